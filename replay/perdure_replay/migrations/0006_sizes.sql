-- How many places a label has, and how many interactions a partition: counting them anew for each page would cost what
-- memory holds, not what the page brings.
CREATE TABLE place_counts (label TEXT PRIMARY KEY, rows INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO place_counts SELECT label, count(*) FROM places GROUP BY label;
CREATE TRIGGER place_came AFTER INSERT ON places BEGIN
    INSERT INTO place_counts VALUES (NEW.label, 1) ON CONFLICT DO UPDATE SET rows = rows + 1;
END;
CREATE TRIGGER place_went AFTER DELETE ON places BEGIN
    UPDATE place_counts SET rows = rows - 1 WHERE label = OLD.label;
    DELETE FROM place_counts WHERE label = OLD.label AND rows = 0;
END;

CREATE TABLE interaction_counts (partition TEXT PRIMARY KEY, rows INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO interaction_counts SELECT partition, count(*) FROM interactions GROUP BY partition;
CREATE TRIGGER interaction_came AFTER INSERT ON interactions BEGIN
    INSERT INTO interaction_counts VALUES (NEW.partition, 1) ON CONFLICT DO UPDATE SET rows = rows + 1;
END;
CREATE TRIGGER interaction_went AFTER DELETE ON interactions BEGIN
    UPDATE interaction_counts SET rows = rows - 1 WHERE partition = OLD.partition;
    DELETE FROM interaction_counts WHERE partition = OLD.partition AND rows = 0;
END;
