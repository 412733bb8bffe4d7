-- What each finished turn said of itself.
CREATE TABLE history (turn INTEGER PRIMARY KEY, summary TEXT NOT NULL);
