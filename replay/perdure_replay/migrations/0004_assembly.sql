-- A memory may be made of shards, anew each time: support no longer adds up from one merge to the next.
DROP TABLE merged;

-- The shards that this memory was assembled from last; empty where it ingests itself.
CREATE TABLE shards (
    identity TEXT PRIMARY KEY,
    rebuilt INTEGER NOT NULL              -- how far the shard had rebuilt its statistics then
) WITHOUT ROWID;

-- Files whose sums, with the waiting deltas, are the head's statistics while none is pointed to.
CREATE TABLE parts (name TEXT PRIMARY KEY) WITHOUT ROWID;

-- Interactions whose records lie in several shards: what each shard makes of them, even after it let go of them.
CREATE TABLE split_parts (
    interaction TEXT NOT NULL,
    shard TEXT NOT NULL,
    time REAL NOT NULL,
    digest BLOB NOT NULL,
    subject BLOB,
    text TEXT,                            -- NULL when it was forgotten; then so are the others
    label TEXT,                           -- the label that the shard's places have it under
    counted TEXT,                         -- the label that the shard's statistics or deltas have it under
    PRIMARY KEY (interaction, shard)
) WITHOUT ROWID;
CREATE INDEX split_parts_by_subject ON split_parts (subject) WHERE subject IS NOT NULL;

-- What was said of them in any shard: the latest of each label.
CREATE TABLE split_labels (
    interaction TEXT NOT NULL,
    label TEXT NOT NULL,
    time REAL NOT NULL,
    source TEXT NOT NULL,
    PRIMARY KEY (interaction, label)
) WITHOUT ROWID;

-- Rows that were quarantined here, not in a shard; and how many of those the bound has dropped.
ALTER TABLE quarantine ADD COLUMN own INTEGER NOT NULL DEFAULT 0;
ALTER TABLE state ADD COLUMN own_dropped INTEGER NOT NULL DEFAULT 0;
