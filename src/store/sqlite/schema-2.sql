-- Version 2. Publishers' ids are written to dedup many at a time, in its order; until then each commit's stand
-- here. ids: 32 bytes an id, see recent.rs. Of the digest the first half tells a conflict as well as all of it.
CREATE TABLE dedup_log (id INTEGER PRIMARY KEY, bucket INTEGER NOT NULL, ids BLOB NOT NULL);
UPDATE dedup SET digest = substr(digest, 1, 8);
