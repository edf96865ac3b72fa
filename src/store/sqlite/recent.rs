//! Publishers' ids of late: in memory, exact after a crash.
//!
//! An id lies anywhere in `dedup`, so writing it with its event would cost each
//! event a page of its own. Instead each commit appends its ids to `dedup_log`.
//! Once they are many, or their bucket is over, they are written in the order of
//! the table, some with each commit: by then neighbours share a page. When all
//! of such a round are written, the log up to the round's begin is removed. An
//! id that a crash leaves in both places is written once more.
//!
//! # An entry of the log
//! 32 bytes an id, little endian: key (16), position (8), digest (8).

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use rusqlite::{Connection, Result};

use super::{
    filters::Filters,
    rows::{self, DIGEST_BYTES, DedupKey, KEY_BYTES, part},
};
use crate::event::{Pos, StoreTime};

/// Milliseconds of a bucket of publishers' ids.
pub(super) const DEDUP_BUCKET_MS: i64 = 5 * 60 * 1000;
/// Ids in memory that begin a round: so many share some four to a page of the
/// 3 million that a bucket gets at 10,000 a second.
pub(super) const ROUND_IDS: usize = 96 * 1024;
/// Ids that upkeep writes, and entries of the log that it removes, at most in a
/// transaction.
const ROUND_ROWS_MAX: usize = 256;
/// A transaction writes so many ids for each that it adds: a round ends before
/// half as many as it has are added.
const ROUND_ROWS_FOR_ADDED: usize = 2;
/// Ids for which an idle pod keeps room.
const KEEP_IDS: usize = 1024;
/// Bytes of an id in an entry.
const ENTRY_BYTES: usize = KEY_BYTES + 8 + DIGEST_BYTES;

type Key = [u8; KEY_BYTES];

/// What is known of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Remembered {
    /// When its event was accepted, in units of [`DEDUP_BUCKET_MS`].
    pub(super) bucket: i64,
    pub(super) pos: Pos,
    pub(super) digest: [u8; DIGEST_BYTES],
}

/// Ids that may not be in their table yet.
pub(super) struct RecentIds {
    ids: HashMap<Key, Remembered>,
    /// Ids that begin a round.
    round_ids: usize,
    /// Bucket of the oldest id that is in no round.
    first_bucket: Option<i64>,
    /// The last entry of the log.
    mark: i64,
    /// What is to be written, the last one first.
    round: Vec<(i64, Key)>,
    /// The last entry of the log when the round began.
    round_mark: i64,
    /// Everything of a round is written: the log up to here is to be removed.
    removes_to: Option<i64>,
    /// Buckets of `dedup` that have rows, or had, and may be asked.
    buckets: BTreeSet<i64>,
    /// What is not in them.
    filters: Filters,
    under_way: UnderWay,
}

/// What the transaction under way did.
#[derive(Default)]
struct UnderWay {
    /// Ids that it added, and what was known of them before.
    added: Vec<(Key, Option<Remembered>)>,
    /// Its entry of the log.
    entry: Option<i64>,
    written: Vec<(Key, i64, Pos)>,
    has_removed: bool,
}

impl RecentIds {
    /// Reads the log. `round_ids` begin a round: [`ROUND_IDS`].
    pub(super) fn load(db: &Connection, round_ids: usize, filters: Filters) -> Result<Self> {
        let mut ids = HashMap::new();
        let (mut mark, mut first_bucket) = (0, None);
        let mut select = db.prepare("SELECT id, bucket, ids FROM dedup_log ORDER BY id")?;
        let mut entries = select.query([])?;
        while let Some(entry) = entries.next()? {
            mark = entry.get(0)?;
            let bucket = entry.get(1)?;
            first_bucket = first_bucket.or(Some(bucket));
            ids.extend(decode(entry.get_ref(2)?.as_blob()?, bucket));
        }
        let mut buckets = BTreeSet::new();
        // From bucket to bucket, not from row to row.
        let mut next = db.prepare("SELECT bucket FROM dedup WHERE bucket > ?1 ORDER BY bucket LIMIT 1")?;
        let mut last = i64::MIN;
        while let Some(bucket) = next.query_map([last], |row| row.get(0))?.next().transpose()? {
            buckets.insert(bucket);
            last = bucket;
        }
        Ok(Self {
            ids,
            round_ids,
            first_bucket,
            mark,
            round: Vec::new(),
            round_mark: 0,
            removes_to: None,
            buckets,
            filters,
            under_way: UnderWay::default(),
        })
    }

    /// What is known of an id that was given at `first` or later, in units of
    /// [`DEDUP_BUCKET_MS`]; the youngest first.
    pub(super) fn known(&self, db: &Connection, key: &Key, first: i64) -> Result<Option<Remembered>> {
        if let Some(recent) = self.ids.get(key).filter(|recent| recent.bucket >= first) {
            return Ok(Some(*recent));
        }
        let mut select = db.prepare_cached("SELECT seq, digest FROM dedup WHERE bucket = ?1 AND h = ?2")?;
        for &bucket in self.buckets.range(first..).rev().filter(|bucket| self.filters.may_have(**bucket, key)) {
            let mut rows = select.query((bucket, key))?;
            if let Some(row) = rows.next()? {
                return Ok(Some(Remembered { bucket, pos: rows::pos_of(row.get(0)?), digest: row.get(1)? }));
            }
        }
        Ok(None)
    }

    /// Remembers an id.
    pub(super) fn remember(&mut self, dedup: &DedupKey, bucket: i64, pos: Pos) {
        let before = self.ids.insert(dedup.key, Remembered { bucket, pos, digest: dedup.digest });
        self.under_way.added.push((dedup.key, before));
        self.first_bucket = self.first_bucket.or(Some(bucket));
    }

    /// Appends to the log what this transaction added, all in one bucket, and goes on
    /// with the round in proportion. To be called once, when it has added everything.
    pub(super) fn append(&mut self, db: &Connection, now: StoreTime) -> Result<()> {
        let added = &self.under_way.added;
        let rows = added.len() * ROUND_ROWS_FOR_ADDED;
        if rows == 0 {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(added.len() * ENTRY_BYTES);
        for (key, remembered) in added.iter().filter_map(|(key, _)| self.ids.get_key_value(key)) {
            bytes.extend(key);
            bytes.extend(remembered.pos.0.to_le_bytes());
            bytes.extend(remembered.digest);
        }
        let id = self.mark + 1;
        db.prepare_cached("INSERT INTO dedup_log (id, bucket, ids) VALUES (?1, ?2, ?3)")?.execute((
            id,
            bucket_of(now),
            bytes,
        ))?;
        self.under_way.entry = Some(id);
        self.write(db, rows)
    }

    /// When ids want to be written, if they do.
    pub(super) fn due(&self) -> Option<StoreTime> {
        if !self.round.is_empty() || self.removes_to.is_some() || self.ids.len() >= self.round_ids {
            return Some(StoreTime(0));
        }
        self.first_bucket.map(|bucket| StoreTime((bucket + 1).saturating_mul(DEDUP_BUCKET_MS)))
    }

    /// A part of a round, which begins if it is time. To be called before a
    /// transaction adds ids: what a round removes from the log is what was durable
    /// when it began. Buckets before `first` are asked no more.
    pub(super) fn upkeep(&mut self, db: &Connection, now: StoreTime, first: i64) -> Result<()> {
        debug_assert!(self.under_way.added.is_empty());
        self.buckets = self.buckets.split_off(&first);
        self.filters.forget_before(first);
        if self.round.is_empty() && self.removes_to.is_none() {
            self.begin(now);
        }
        self.write(db, ROUND_ROWS_MAX)
    }

    fn begin(&mut self, now: StoreTime) {
        let is_over = self.first_bucket.is_some_and(|first| first < bucket_of(now));
        if is_over || self.ids.len() >= self.round_ids {
            self.first_bucket = None;
            self.round_mark = self.mark;
            self.round.extend(self.ids.iter().map(|(key, remembered)| (remembered.bucket, *key)));
            self.round.sort_unstable_by(|one, other| other.cmp(one));
        }
    }

    fn write(&mut self, db: &Connection, rows: usize) -> Result<()> {
        if let Some(upto) = self.removes_to {
            let mut delete = db.prepare_cached(
                "DELETE FROM dedup_log WHERE id IN (SELECT id FROM dedup_log WHERE id <= ?1 ORDER BY id LIMIT ?2)",
            )?;
            self.under_way.has_removed = delete.execute((upto, rows))? < rows;
            return Ok(());
        }
        let mut insert =
            db.prepare_cached("INSERT OR REPLACE INTO dedup (bucket, h, seq, digest) VALUES (?1, ?2, ?3, ?4)")?;
        for (_, key) in self.round.drain(self.round.len().saturating_sub(rows)..).rev() {
            // It is there: what a round has is durable, and leaves memory with it.
            let Some(Remembered { bucket, pos, digest }) = self.ids.get(&key) else { continue };
            insert.execute((bucket, &key, rows::seq_of(*pos), digest))?;
            if self.buckets.insert(*bucket) {
                self.filters.begin(*bucket);
            }
            // Should this be rolled back, it is looked up in vain.
            self.filters.add(*bucket, &key);
            self.under_way.written.push((key, *bucket, *pos));
        }
        Ok(())
    }

    /// The transaction is durable.
    pub(super) fn committed(&mut self) {
        let UnderWay { added: _, entry, written, has_removed } = std::mem::take(&mut self.under_way);
        self.mark = entry.unwrap_or(self.mark);
        let is_end = !written.is_empty() && self.round.is_empty();
        for (key, _, pos) in written {
            // What was given again meanwhile is for the next round.
            if self.ids.get(&key).is_some_and(|recent| recent.pos == pos) {
                self.ids.remove(&key);
            }
        }
        if is_end {
            self.removes_to = Some(self.round_mark);
            self.round = Vec::new();
            self.ids.shrink_to(self.ids.len().max(KEEP_IDS) * 2);
        }
        if has_removed {
            self.removes_to = None;
        }
    }

    /// The transaction under way is rolled back: what it wrote is of its round
    /// again.
    pub(super) fn rolled_back(&mut self) {
        let UnderWay { added, written, .. } = std::mem::take(&mut self.under_way);
        for (key, before) in added.into_iter().rev() {
            match before {
                Some(before) => self.ids.insert(key, before),
                None => self.ids.remove(&key),
            };
        }
        self.round.extend(written.into_iter().rev().map(|(key, bucket, _)| (bucket, key)));
    }
}

/// The bucket of a time.
pub(super) const fn bucket_of(at: StoreTime) -> i64 {
    at.0.div_euclid(DEDUP_BUCKET_MS)
}

/// The oldest bucket that a window reaches back to.
pub(super) fn first_bucket(now: StoreTime, window: Duration) -> i64 {
    let window_ms = i64::try_from(window.as_millis()).unwrap_or(i64::MAX);
    bucket_of(StoreTime(now.0.saturating_sub(window_ms)))
}

fn decode(bytes: &[u8], bucket: i64) -> impl Iterator<Item = (Key, Remembered)> + '_ {
    bytes.chunks_exact(ENTRY_BYTES).map(move |entry| {
        let pos = Pos(u64::from_le_bytes(part(entry, KEY_BYTES)));
        (part(entry, 0), Remembered { bucket, pos, digest: part(entry, KEY_BYTES + 8) })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::open::{SCHEMA_VERSION, bring_over},
        *,
    };

    const LIMIT: usize = 8;

    fn database() -> Connection {
        let db = Connection::open_in_memory().unwrap();
        bring_over(&db, 0, SCHEMA_VERSION).unwrap();
        db
    }

    /// With room for the filters of two buckets.
    fn load(db: &Connection, round_ids: usize) -> RecentIds {
        RecentIds::load(db, round_ids, Filters::new(4 * 1024)).unwrap()
    }

    fn count(db: &Connection, table: &str) -> i64 {
        db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    }

    fn id(n: u16, pos: u64) -> DedupKey {
        let mut key = [0; KEY_BYTES];
        key[7..9].copy_from_slice(&n.wrapping_mul(40_503).to_be_bytes());
        DedupKey { key, digest: pos.to_le_bytes() }
    }

    fn at(bucket: i64) -> StoreTime {
        StoreTime(bucket * DEDUP_BUCKET_MS)
    }

    /// A transaction that adds one id.
    fn add(ids: &mut RecentIds, db: &Connection, n: u16, bucket: i64, pos: u64) {
        ids.remember(&id(n, pos), bucket, Pos(pos));
        ids.append(db, at(bucket)).unwrap();
        ids.committed();
    }

    fn upkeep(ids: &mut RecentIds, db: &Connection, bucket: i64) {
        ids.upkeep(db, at(bucket), bucket - 2).unwrap();
        ids.committed();
    }

    #[test]
    fn once_they_are_many_all_are_written_and_the_log_is_removed() {
        let db = database();
        let mut ids = load(&db, 600);
        for n in 1..600 {
            add(&mut ids, &db, n, 5, n.into());
        }
        assert_eq!((count(&db, "dedup"), count(&db, "dedup_log")), (0, 599));
        assert_eq!(ids.due(), Some(at(6)));
        add(&mut ids, &db, 600, 5, 600);
        assert_eq!(ids.due(), Some(StoreTime(0)));
        upkeep(&mut ids, &db, 5);
        assert_eq!(count(&db, "dedup"), 256);
        // Each transaction writes two of the round for the one that it adds.
        for n in 601..=610 {
            add(&mut ids, &db, n, 5, n.into());
        }
        assert_eq!((count(&db, "dedup"), ids.ids.len()), (276, 334));
        while ids.due() == Some(StoreTime(0)) {
            upkeep(&mut ids, &db, 5);
        }
        assert_eq!((count(&db, "dedup"), count(&db, "dedup_log")), (600, 10), "what came since is not lost");
        assert_eq!(ids.due(), Some(at(6)));
        upkeep(&mut ids, &db, 6);
        upkeep(&mut ids, &db, 6);
        assert_eq!((count(&db, "dedup"), count(&db, "dedup_log"), ids.due()), (610, 0, None), "their bucket is over");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add { ids: Vec<u16>, has_upkeep: bool, is_kept: bool },
        Upkeep { is_kept: bool },
        Buckets(i64),
        Crash,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let add = (proptest::collection::vec(0..40_u16, 1..6), any::<bool>(), proptest::bool::weighted(0.8));
        proptest::collection::vec(
            prop_oneof![
                6 => add.prop_map(|(ids, has_upkeep, is_kept)| Step::Add { ids, has_upkeep, is_kept }),
                3 => proptest::bool::weighted(0.8).prop_map(|is_kept| Step::Upkeep { is_kept }),
                1 => (1..4_i64).prop_map(Step::Buckets),
                1 => Just(Step::Crash),
            ],
            1..80,
        )
    }

    proptest! {
        #[test]
        fn what_is_committed_is_known_whatever_happens(steps in steps()) {
            let db = database();
            let mut ids = load(&db, LIMIT);
            let mut model: HashMap<u16, (i64, u64)> = HashMap::new();
            let (mut bucket, mut pos) = (100, 0);
            for step in steps {
                db.execute_batch("BEGIN").unwrap();
                let before = model.clone();
                let is_kept = match step {
                    Step::Add { ids: numbers, has_upkeep, is_kept } => {
                        if has_upkeep {
                            ids.upkeep(&db, at(bucket), bucket - 2).unwrap();
                        }
                        for n in numbers {
                            // Given again, if the window of two buckets is over.
                            if model.get(&n).is_none_or(|(given, _)| *given < bucket - 2) {
                                pos += 1;
                                ids.remember(&id(n, pos), bucket, Pos(pos));
                                model.insert(n, (bucket, pos));
                            }
                        }
                        ids.append(&db, at(bucket)).unwrap();
                        is_kept
                    }
                    Step::Upkeep { is_kept } => {
                        ids.upkeep(&db, at(bucket), bucket - 2).unwrap();
                        is_kept
                    }
                    Step::Buckets(passed) => {
                        bucket += passed;
                        true
                    }
                    Step::Crash => {
                        ids = load(&db, LIMIT);
                        true
                    }
                };
                if is_kept {
                    db.execute_batch("COMMIT").unwrap();
                    ids.committed();
                } else {
                    db.execute_batch("ROLLBACK").unwrap();
                    ids.rolled_back();
                    model = before;
                }
                for n in 0..40 {
                    let known = ids.known(&db, &id(n, 0).key, bucket - 2).unwrap();
                    let expected = model.get(&n).filter(|(given, _)| *given >= bucket - 2);
                    let expected = expected.map(|(bucket, pos)| Remembered {
                        bucket: *bucket,
                        pos: Pos(*pos),
                        digest: pos.to_le_bytes(),
                    });
                    prop_assert_eq!(known, expected);
                }
            }
            while ids.due().is_some() {
                upkeep(&mut ids, &db, bucket + 1);
            }
            prop_assert_eq!((count(&db, "dedup_log"), ids.ids.len()), (0, 0));
        }
    }
}
