-- Version 1. Clustered keys begin with bucket = seq >> 14: appends stay local,
-- retention removes whole buckets. What is pending has a row in exactly one of
-- owed, retry and parked; what has ended has none there.
CREATE TABLE meta (k TEXT PRIMARY KEY, v) WITHOUT ROWID;
-- Numbers of namespaces, hooks and Subscriptions are never given out twice (AUTOINCREMENT): attempts outlive
-- the Webhook that they were made for.
CREATE TABLE ns (id INTEGER PRIMARY KEY AUTOINCREMENT, uid TEXT NOT NULL UNIQUE, name TEXT NOT NULL, gone_at INTEGER);
CREATE INDEX ns_gone ON ns (gone_at) WHERE gone_at IS NOT NULL;
CREATE TABLE hook (
  id INTEGER PRIMARY KEY AUTOINCREMENT, ns INTEGER NOT NULL, name TEXT NOT NULL, uid TEXT NOT NULL,
  max_age_ms INTEGER NOT NULL, ordered INTEGER NOT NULL, document TEXT NOT NULL,
  gone_at INTEGER, first_bucket INTEGER, circuit TEXT, withdrawn INTEGER, held_until INTEGER,
  UNIQUE (ns, name)
);
CREATE INDEX hook_gone ON hook (gone_at) WHERE gone_at IS NOT NULL;
-- from_ms: wall time since when events are owed; NULL: as far as retention reaches.
CREATE TABLE sub (
  id INTEGER PRIMARY KEY AUTOINCREMENT, hook INTEGER NOT NULL, name TEXT NOT NULL, uid TEXT NOT NULL UNIQUE,
  created INTEGER NOT NULL, from_ms INTEGER, from_seq INTEGER NOT NULL, live_from INTEGER NOT NULL,
  document TEXT NOT NULL, gone_at INTEGER
);
CREATE INDEX sub_hook ON sub (hook);
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
CREATE INDEX bucket_ns_ns ON bucket_ns (ns);
-- head: EventHead beside type and source, as JSON. crc: CRC-32C over everything else.
CREATE TABLE event (
  seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, wall INTEGER NOT NULL, ns INTEGER NOT NULL,
  type TEXT NOT NULL, source TEXT NOT NULL, head TEXT, crc INTEGER NOT NULL, body BLOB NOT NULL
);
-- bucket: store time in units of 5 minutes. digest: what tells a duplicate from a conflict.
CREATE TABLE dedup (bucket INTEGER NOT NULL, h BLOB NOT NULL, seq INTEGER NOT NULL, digest BLOB NOT NULL,
  PRIMARY KEY (bucket, h)) WITHOUT ROWID;
-- since (owed, retry, parked): store time from which maxAge counts, if not from the accept: what a Replay or a
-- backfill owes again would else expire at once.
CREATE TABLE owed (bucket INTEGER NOT NULL, hook INTEGER NOT NULL, seq INTEGER NOT NULL, sub INTEGER NOT NULL,
  key INTEGER, tries INTEGER NOT NULL, shape INTEGER, since INTEGER, PRIMARY KEY (bucket, hook, seq)) WITHOUT ROWID;
CREATE TABLE retry (hook INTEGER NOT NULL, due INTEGER NOT NULL, seq INTEGER NOT NULL, sub INTEGER NOT NULL,
  key INTEGER, tries INTEGER NOT NULL, shape INTEGER, code INTEGER, err TEXT, since INTEGER, PRIMARY KEY (hook, due, seq)) WITHOUT ROWID;
CREATE INDEX retry_seq ON retry (seq, hook);
CREATE INDEX retry_key ON retry (hook, key) WHERE key IS NOT NULL;
CREATE TABLE parked (hook INTEGER NOT NULL, key INTEGER NOT NULL, seq INTEGER NOT NULL, sub INTEGER NOT NULL,
  tries INTEGER NOT NULL, shape INTEGER, since INTEGER, PRIMARY KEY (hook, key, seq)) WITHOUT ROWID;
CREATE INDEX parked_seq ON parked (seq, hook);
-- card: 0 wanted, 1 made, 2 overflow, 3 dismissed, 4 expired.
CREATE TABLE dead (
  bucket INTEGER NOT NULL, hook INTEGER NOT NULL, seq INTEGER NOT NULL, sub INTEGER NOT NULL, key INTEGER, shape INTEGER,
  reason INTEGER NOT NULL, code INTEGER, err TEXT, tries INTEGER NOT NULL, at INTEGER NOT NULL, wall INTEGER NOT NULL,
  card INTEGER NOT NULL, PRIMARY KEY (bucket, hook, seq)
) WITHOUT ROWID;
CREATE INDEX dead_hook ON dead (hook, seq);
CREATE INDEX dead_card ON dead (card, hook, seq);
CREATE INDEX dead_at ON dead (at) WHERE card <> 3;
CREATE INDEX dead_seq ON dead (seq, card);
CREATE INDEX dead_key ON dead (hook, key, seq) WHERE key IS NOT NULL AND card <> 3;
CREATE TABLE attempt (
  bucket INTEGER NOT NULL, hook INTEGER NOT NULL, id INTEGER NOT NULL, seq INTEGER NOT NULL, n INTEGER NOT NULL,
  at INTEGER NOT NULL, code INTEGER, ms INTEGER NOT NULL, err TEXT, ok INTEGER NOT NULL,
  PRIMARY KEY (bucket, hook, id)
) WITHOUT ROWID;
CREATE INDEX attempt_bad ON attempt (hook, code, id) WHERE ok = 0;
CREATE INDEX attempt_seq ON attempt (seq, hook);
CREATE TABLE answer (id INTEGER PRIMARY KEY, bucket INTEGER NOT NULL, hook INTEGER NOT NULL, ok INTEGER NOT NULL, head TEXT NOT NULL, body TEXT NOT NULL);
CREATE INDEX answer_hook ON answer (hook, ok, id);
CREATE INDEX answer_bucket ON answer (bucket);
-- kind: 'fan' (first = seq, cursor = the last hook that was routed to; ns, key: of an event with an ordering key), 'backfill' and 'replay' (cursor = the next
-- seq to look at, up to last, which is not looked at any more).
-- state: -1 a fan-out behind an older one of its ordering key, 0 runs, 1 a Replay that has re-opened everything, 2 a cancelled one whose items are not yet removed,
-- 3 complete, 4 cancelled. The other two kinds are deleted at their end.
-- opened: items below this seq were re-opened; paced: what the rate allows counts from here, in microseconds of
-- store time.
CREATE TABLE scan (
  id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, ns_uid TEXT, name TEXT, spec_hash TEXT, hook INTEGER, sub INTEGER,
  cursor INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, document TEXT, state INTEGER NOT NULL,
  matched INTEGER NOT NULL, reopened INTEGER NOT NULL, begun INTEGER NOT NULL, begun_wall INTEGER NOT NULL,
  opened INTEGER NOT NULL DEFAULT 0, paced INTEGER NOT NULL DEFAULT 0,
  done INTEGER NOT NULL DEFAULT 0, dead INTEGER NOT NULL DEFAULT 0, ns INTEGER, key INTEGER,
  UNIQUE (kind, ns_uid, name, spec_hash)
);
CREATE INDEX scan_open ON scan (kind, id) WHERE state < 3;
CREATE INDEX scan_fan ON scan (first) WHERE kind = 'fan';
CREATE INDEX scan_fan_ready ON scan (id) WHERE kind = 'fan' AND state = 0;
CREATE INDEX scan_key ON scan (ns, key, id) WHERE key IS NOT NULL;
CREATE INDEX scan_ended ON scan (begun) WHERE state >= 3;
CREATE INDEX scan_hook ON scan (hook) WHERE hook IS NOT NULL;
-- What a Replay matched and has not ended; state: 0 to be re-opened, 1 re-opened, 2 was pending already.
CREATE TABLE replay_item (scan INTEGER NOT NULL, seq INTEGER NOT NULL, state INTEGER NOT NULL, PRIMARY KEY (scan, seq)) WITHOUT ROWID;
