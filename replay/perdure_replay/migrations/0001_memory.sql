-- One row: what a memory knows of itself.
CREATE TABLE state (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    hash_key BLOB NOT NULL,               -- shared by all shards; decides every priority
    half_life REAL NOT NULL,              -- days that the scores in `places` were made with
    watermark REAL,                       -- greatest event time seen
    horizon_time REAL,                    -- the youngest interaction that left because of the bound on rows
    horizon_id TEXT,
    statistics TEXT,                      -- file with the head's statistics
    handed INTEGER NOT NULL DEFAULT 0,    -- deltas up to here were handed out and may be in a file that is being made
    rebuilt INTEGER NOT NULL DEFAULT 0,   -- deltas up to here were dropped by a rebuild
    evicted_subjects INTEGER NOT NULL DEFAULT 0,
    rebuild_due INTEGER NOT NULL DEFAULT 0,
    quarantine_dropped INTEGER NOT NULL DEFAULT 0,
    turn INTEGER NOT NULL DEFAULT 1,
    frozen INTEGER NOT NULL DEFAULT 0,
    champion TEXT,
    promotion INTEGER,
    turn_offset TEXT
);

CREATE TABLE offsets (partition TEXT PRIMARY KEY, position INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE totals (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE classes (label TEXT PRIMARY KEY, turn INTEGER NOT NULL) WITHOUT ROWID;

-- Join state. An erased interaction stays as a stub without text until its time is over.
CREATE TABLE interactions (
    id TEXT PRIMARY KEY,
    time REAL NOT NULL,
    hash BLOB NOT NULL,                   -- keyed hash of the id
    digest BLOB NOT NULL,                 -- keyed hash of the normalised text
    subject BLOB,                         -- keyed hash of the subject
    erased INTEGER NOT NULL,
    text TEXT,
    predicted TEXT,
    confidence REAL NOT NULL,
    version TEXT,
    label TEXT,
    label_time REAL,
    label_source TEXT,
    counted TEXT,                         -- the label by which it is in the head's statistics or in a waiting delta
    fresh INTEGER NOT NULL,               -- a turn has yet to see it with this label
    seen INTEGER NOT NULL,
    learned TEXT                          -- the label with which a turn saw it last
);
CREATE INDEX interactions_by_time ON interactions (time, id);
CREATE INDEX interactions_by_subject ON interactions (subject) WHERE subject IS NOT NULL;
CREATE INDEX interactions_fresh ON interactions (hash) WHERE fresh = 1;

CREATE TABLE waiting (
    interaction TEXT NOT NULL,
    time REAL NOT NULL,
    source TEXT NOT NULL,
    label TEXT NOT NULL,
    PRIMARY KEY (interaction, time, source, label)
) WITHOUT ROWID;
CREATE INDEX waiting_by_time ON waiting (time);

CREATE TABLE erasures (subject BLOB PRIMARY KEY, until REAL NOT NULL) WITHOUT ROWID;

-- The reservoir. The key is the keyed hash of label and text, and decides the place.
CREATE TABLE places (
    key BLOB PRIMARY KEY,
    label TEXT NOT NULL,
    score REAL NOT NULL,                  -- smaller is better
    time REAL NOT NULL,                   -- latest assertion
    support INTEGER NOT NULL,             -- interactions whose label this is
    living INTEGER NOT NULL,
    sample TEXT,                          -- public key; only of the living
    source BLOB                           -- the provenance whose text is shown
) WITHOUT ROWID;
CREATE UNIQUE INDEX places_by_score ON places (label, score, key);
CREATE INDEX places_by_sample ON places (sample) WHERE sample IS NOT NULL;

CREATE TABLE provenance (
    place BLOB NOT NULL REFERENCES places (key) ON DELETE CASCADE,
    hash BLOB NOT NULL,                   -- keyed hash of the interaction's id
    interaction TEXT,                     -- NULL when it was forgotten
    subject BLOB,
    made REAL NOT NULL,                   -- the interaction's time
    time REAL NOT NULL,                   -- its latest assertion of this place
    backs INTEGER NOT NULL,               -- its label is still this one
    text TEXT,
    PRIMARY KEY (place, hash)
) WITHOUT ROWID;
CREATE INDEX provenance_by_subject ON provenance (subject) WHERE subject IS NOT NULL;

CREATE TABLE embeddings (
    place BLOB PRIMARY KEY REFERENCES places (key) ON DELETE CASCADE,
    version TEXT NOT NULL,
    vector BLOB NOT NULL                  -- float16, little-endian, of length 1
) WITHOUT ROWID;

CREATE TABLE deltas (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    interaction TEXT,
    subject BLOB,
    made REAL,
    text TEXT NOT NULL,
    label TEXT NOT NULL,
    sign INTEGER NOT NULL CHECK (sign IN (-1, 1))
);
CREATE INDEX deltas_by_interaction ON deltas (interaction);
CREATE INDEX deltas_by_subject ON deltas (subject) WHERE subject IS NOT NULL;

CREATE TABLE frozen (
    id TEXT PRIMARY KEY,
    text TEXT NOT NULL,
    label TEXT,
    predicted TEXT,
    confidence REAL NOT NULL,
    version TEXT,
    time REAL NOT NULL,
    subject BLOB
) WITHOUT ROWID;

CREATE TABLE quarantine (
    id TEXT PRIMARY KEY,
    time REAL NOT NULL,
    reason TEXT NOT NULL,
    text TEXT NOT NULL,
    label TEXT,
    subject BLOB
) WITHOUT ROWID;
CREATE INDEX quarantine_by_time ON quarantine (time, id);
