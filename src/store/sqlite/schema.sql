-- Version 1. Clustered keys begin with bucket = seq >> 14: appends stay local,
-- retention removes whole buckets. What is pending has a row in exactly one of
-- owed, retry and parked; what has ended has none there.
CREATE TABLE meta (k TEXT PRIMARY KEY, v) WITHOUT ROWID;
CREATE TABLE ns (id INTEGER PRIMARY KEY, uid TEXT NOT NULL UNIQUE, name TEXT NOT NULL, gone_at INTEGER);
CREATE TABLE hook (
  id INTEGER PRIMARY KEY, ns INTEGER NOT NULL, name TEXT NOT NULL, uid TEXT NOT NULL,
  max_age_ms INTEGER NOT NULL, ordered INTEGER NOT NULL, document TEXT NOT NULL,
  gone_at INTEGER, first_bucket INTEGER, circuit TEXT, withdrawn INTEGER, held_until INTEGER,
  UNIQUE (ns, name)
);
-- from_ms: wall time since when events are owed; NULL: as far as retention reaches.
CREATE TABLE sub (
  id INTEGER PRIMARY KEY, hook INTEGER NOT NULL, name TEXT NOT NULL, uid TEXT NOT NULL UNIQUE,
  created INTEGER NOT NULL, from_ms INTEGER, from_seq INTEGER NOT NULL, live_from INTEGER NOT NULL, document TEXT NOT NULL,
  gone_at INTEGER
);
-- Counters of hooks as of the entry `mark` of tally_log; what came after is added
-- from there at a start. Each commit that changes counters appends one entry.
CREATE TABLE tally (
  hook INTEGER PRIMARY KEY, delivered INTEGER NOT NULL, failed INTEGER NOT NULL, pending INTEGER NOT NULL,
  dead INTEGER NOT NULL, last_ms INTEGER NOT NULL, last_code INTEGER NOT NULL, mark INTEGER NOT NULL
);
CREATE TABLE tally_log (id INTEGER PRIMARY KEY, changes BLOB NOT NULL);
-- Deliveries of all times by how they ended: 'delivered', 'discarded:<reason>'; and 'routed'.
CREATE TABLE total (k TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE bucket (
  id INTEGER PRIMARY KEY, first_at INTEGER NOT NULL, last_at INTEGER NOT NULL,
  first_wall INTEGER NOT NULL, last_wall INTEGER NOT NULL, events INTEGER NOT NULL, bytes INTEGER NOT NULL
);
CREATE TABLE bucket_ns (bucket INTEGER NOT NULL, ns INTEGER NOT NULL, events INTEGER NOT NULL, bytes INTEGER NOT NULL,
  PRIMARY KEY (bucket, ns)) WITHOUT ROWID;
-- head: EventHead beside type and source, as JSON. crc: CRC-32C over everything else.
CREATE TABLE event (
  seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, wall INTEGER NOT NULL, ns INTEGER NOT NULL,
  type TEXT NOT NULL, source TEXT NOT NULL, head TEXT, crc INTEGER NOT NULL, body BLOB NOT NULL
);
-- bucket: store time in units of 5 minutes. digest: what tells a duplicate from a conflict.
CREATE TABLE dedup (bucket INTEGER NOT NULL, h BLOB NOT NULL, seq INTEGER NOT NULL, digest BLOB NOT NULL,
  PRIMARY KEY (bucket, h)) WITHOUT ROWID;
CREATE TABLE owed (bucket INTEGER NOT NULL, hook INTEGER NOT NULL, seq INTEGER NOT NULL, sub INTEGER NOT NULL,
  key INTEGER, tries INTEGER NOT NULL, shape INTEGER, PRIMARY KEY (bucket, hook, seq)) WITHOUT ROWID;
CREATE TABLE retry (hook INTEGER NOT NULL, due INTEGER NOT NULL, seq INTEGER NOT NULL, sub INTEGER NOT NULL,
  key INTEGER, tries INTEGER NOT NULL, shape INTEGER, code INTEGER, err TEXT, PRIMARY KEY (hook, due, seq)) WITHOUT ROWID;
CREATE INDEX retry_seq ON retry (seq, hook);
CREATE TABLE parked (hook INTEGER NOT NULL, key INTEGER NOT NULL, seq INTEGER NOT NULL, sub INTEGER NOT NULL,
  tries INTEGER NOT NULL, shape INTEGER, PRIMARY KEY (hook, key, seq)) WITHOUT ROWID;
CREATE INDEX parked_seq ON parked (seq, hook);
-- card: 0 wanted, 1 made, 2 overflow, 3 dismissed, 4 expired.
CREATE TABLE dead (
  bucket INTEGER NOT NULL, hook INTEGER NOT NULL, seq INTEGER NOT NULL, sub INTEGER NOT NULL, key INTEGER, shape INTEGER,
  reason INTEGER NOT NULL, code INTEGER, err TEXT, tries INTEGER NOT NULL, at INTEGER NOT NULL, wall INTEGER NOT NULL,
  card INTEGER NOT NULL, PRIMARY KEY (bucket, hook, seq)
) WITHOUT ROWID;
CREATE INDEX dead_hook ON dead (hook, seq);
CREATE INDEX dead_card ON dead (hook, seq) WHERE card = 0;
CREATE TABLE attempt (
  bucket INTEGER NOT NULL, hook INTEGER NOT NULL, id INTEGER NOT NULL, seq INTEGER NOT NULL, n INTEGER NOT NULL,
  at INTEGER NOT NULL, code INTEGER, ms INTEGER NOT NULL, err TEXT, ok INTEGER NOT NULL,
  PRIMARY KEY (bucket, hook, id)
) WITHOUT ROWID;
CREATE INDEX attempt_bad ON attempt (hook, code, id) WHERE ok = 0;
CREATE INDEX attempt_seq ON attempt (seq);
CREATE TABLE answer (id INTEGER PRIMARY KEY, bucket INTEGER NOT NULL, hook INTEGER NOT NULL, ok INTEGER NOT NULL, head TEXT NOT NULL, body TEXT NOT NULL);
CREATE INDEX answer_hook ON answer (hook, ok, id);
CREATE INDEX answer_bucket ON answer (bucket);
-- kind: 'fan' (cursor = last hook that was written, first = seq), 'backfill' (cursor =
-- next seq to look at, last = first one that is served live), 'replay'.
CREATE TABLE scan (
  id INTEGER PRIMARY KEY, kind TEXT NOT NULL, ns_uid TEXT, name TEXT, spec_hash TEXT, hook INTEGER, sub INTEGER,
  cursor INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, document TEXT, state INTEGER NOT NULL,
  matched INTEGER NOT NULL, reopened INTEGER NOT NULL, begun INTEGER NOT NULL, begun_wall INTEGER NOT NULL,
  UNIQUE (kind, ns_uid, name, spec_hash)
);
-- What a Replay matched; state: 0 to be re-opened, 1 re-opened, 2 ended, 3 ended dead.
CREATE TABLE replay_item (scan INTEGER NOT NULL, seq INTEGER NOT NULL, state INTEGER NOT NULL, PRIMARY KEY (scan, seq)) WITHOUT ROWID;
