-- Time passes in each partition by itself: one that is read ahead of another must not make the other's records late.
CREATE TABLE partitions (
    name TEXT PRIMARY KEY,
    watermark REAL NOT NULL,              -- greatest event time seen
    horizon_time REAL,                    -- the youngest interaction that left because of the bound on rows
    horizon_id TEXT
) WITHOUT ROWID;
INSERT INTO partitions SELECT partition, watermark, horizon_time, horizon_id FROM offsets, state
    WHERE watermark IS NOT NULL;
ALTER TABLE state DROP COLUMN watermark;
ALTER TABLE state DROP COLUMN horizon_time;
ALTER TABLE state DROP COLUMN horizon_id;

-- The partition that the record came from. Of a memory made before, nobody knows: the first one stands for all.
ALTER TABLE interactions ADD COLUMN partition TEXT NOT NULL DEFAULT '';
ALTER TABLE waiting ADD COLUMN partition TEXT NOT NULL DEFAULT '';
UPDATE interactions SET partition = (SELECT min(name) FROM partitions) WHERE EXISTS (SELECT 1 FROM partitions);
UPDATE waiting SET partition = (SELECT min(name) FROM partitions) WHERE EXISTS (SELECT 1 FROM partitions);
DROP INDEX interactions_by_time;
DROP INDEX waiting_by_time;
CREATE INDEX interactions_by_time ON interactions (partition, time, id);
CREATE INDEX waiting_by_time ON waiting (partition, time);
