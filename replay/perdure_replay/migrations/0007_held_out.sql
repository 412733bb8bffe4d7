-- Rows that were once outside the held-out share may have been trained on: it can fall, but not rise again.
ALTER TABLE state ADD COLUMN holdout_share REAL;  -- the least so far; NULL until a writer has said one
