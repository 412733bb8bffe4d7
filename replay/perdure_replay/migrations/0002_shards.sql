-- Memories that were merged into this one: support adds up, so none may be merged twice.
ALTER TABLE state ADD COLUMN identity TEXT;
UPDATE state SET identity = lower(hex(randomblob(16)));
CREATE TABLE merged (identity TEXT PRIMARY KEY) WITHOUT ROWID;
