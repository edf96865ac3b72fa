//! What is owed for too long, and backlogs that are too long, become dead.
//!
//! A round goes over all hooks, then over `retry` and `parked` as far as they are
//! old enough to matter. `maxAge` counts from the accept, which grows with the
//! position: a position tells whether it is over, and no event is read. What a
//! Replay or a backfill owes says itself from when it counts (`since`).

use std::collections::{BTreeMap, HashMap};

use rusqlite::{Connection, OptionalExtension, Result};

use super::{
    super::{
        effects::{STEP_ROWS_MAX, Step},
        rows::seq_of,
    },
    Turn,
    place::{Pending, Table, bucket_of_seq, bury},
};
use crate::{
    event::StoreTime,
    store::{DeadReason, HookId},
};

/// Time from the end of a round to the begin of the next, in milliseconds.
pub(super) const EXPIRY_EVERY_MS: i64 = 10_000;
/// Share of the store that the backlog of one Webhook may take, in percent.
pub(super) const BACKLOG_SHARE_PERCENT: u64 = 10;
/// Bytes that a Delivery takes beside its event, about.
pub(super) const DELIVERY_BYTES: u64 = 128;
/// Rows that a step looks at, at most, without changing them.
const LOOKS_MAX: i64 = 4_096;
/// What it costs to look into a bucket where a hook has rows, in looks.
const BUCKET_LOOKS: i64 = 64;
/// A hook's first bucket is written down when it moved by so many: 10,000 hooks
/// without a backlog cost 10,000 rows in so many buckets.
pub(super) const FIRST_BUCKET_STRIDE: i64 = 8;

/// Where the round stands.
#[derive(Debug)]
pub(super) struct Expiry {
    next_at: StoreTime,
    phase: Phase,
    /// `maxAge` of every hook that this round has seen.
    ages: BTreeMap<i64, i64>,
    /// For each `maxAge`: positions below this are over.
    cutoffs: HashMap<i64, i64>,
    /// Rows that one backlog may have; none: no event to measure by.
    backlog_rows: Option<u64>,
    now: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Rest,
    /// Hooks behind this one; in the first of them, buckets below this one are
    /// without old rows.
    Hooks {
        after: i64,
        bucket: i64,
    },
    Retry {
        seq: i64,
        hook: i64,
    },
    Parked {
        seq: i64,
        hook: i64,
    },
}

impl Default for Expiry {
    fn default() -> Self {
        Self {
            next_at: StoreTime(0),
            phase: Phase::Rest,
            ages: BTreeMap::new(),
            cutoffs: HashMap::new(),
            backlog_rows: None,
            now: 0,
        }
    }
}

/// What was buried of a hook.
struct Buried {
    count: usize,
    /// The bucket that is to be looked into next, if this was not all.
    goes_on: Option<i64>,
}

/// A hook as a round sees it.
struct Seen {
    id: i64,
    max_age_ms: i64,
    first_bucket: Option<i64>,
}

impl Expiry {
    /// The next round begins at once.
    pub(super) fn hurry(&mut self) {
        self.next_at = StoreTime(0);
    }

    pub(super) fn turn(&mut self, step: &mut Step<'_>, pending: &dyn Fn(HookId) -> u64) -> Result<Turn> {
        match self.phase {
            Phase::Rest if step.now < self.next_at => return Ok(Turn::Idle(self.next_at)),
            Phase::Rest => self.begin(step)?,
            Phase::Hooks { after, bucket } => self.hooks(step, pending, after, bucket)?,
            Phase::Retry { seq, hook } => self.old_rows(step, (seq, hook), RETRY_OLD)?,
            Phase::Parked { seq, hook } => self.old_rows(step, (seq, hook), PARKED_OLD)?,
        }
        Ok(Turn::Worked)
    }

    fn begin(&mut self, step: &Step<'_>) -> Result<()> {
        self.now = step.now.0;
        self.ages.clear();
        self.cutoffs.clear();
        self.backlog_rows = backlog_rows(step.tx, step.limits.size_bytes)?;
        self.phase = Phase::Hooks { after: 0, bucket: 0 };
        Ok(())
    }

    /// Positions below this are over for hooks of this `maxAge`.
    fn cutoff(&mut self, step: &Step<'_>, max_age_ms: i64) -> Result<i64> {
        if let Some(cutoff) = self.cutoffs.get(&max_age_ms) {
            return Ok(*cutoff);
        }
        let cutoff = first_seq_at(step.tx, self.now.saturating_sub(max_age_ms), seq_of(step.next))?;
        self.cutoffs.insert(max_age_ms, cutoff);
        Ok(cutoff)
    }

    fn hooks(
        &mut self,
        step: &mut Step<'_>,
        pending: &dyn Fn(HookId) -> u64,
        after: i64,
        mut from_bucket: i64,
    ) -> Result<()> {
        let hooks = hooks_behind(step.tx, after)?;
        let (mut looks, mut room) = (LOOKS_MAX, STEP_ROWS_MAX);
        for hook in &hooks {
            self.ages.insert(hook.id, hook.max_age_ms);
            let first = first_owed_bucket(step, hook.id, hook.first_bucket.unwrap_or_default(), &mut looks)?;
            // Written down at once when the looks are used up, not kept in memory:
            // until the next step a backfill may owe something below it.
            raise_first_bucket(step.tx, hook, &first)?;
            if !first.is_found {
                return Ok(());
            }
            let old = self.bury_old(step, hook, first.bucket.max(from_bucket), (&mut looks, room))?;
            room -= old.count;
            if let Some(bucket) = old.goes_on {
                self.phase = Phase::Hooks { after: hook.id - 1, bucket };
                return Ok(());
            }
            let buried = self.bury_excess(step, pending, (hook.id, first.bucket), (&mut looks, room))?;
            room -= buried;
            from_bucket = 0;
            self.phase = Phase::Hooks { after: hook.id, bucket: 0 };
            if room == 0 || looks <= 0 {
                if buried > 0 {
                    // It may have more of them.
                    self.phase = Phase::Hooks { after: hook.id - 1, bucket: i64::MAX };
                }
                return Ok(());
            }
        }
        if hooks.len() < STEP_ROWS_MAX {
            self.phase = Phase::Retry { seq: 0, hook: 0 };
        }
        Ok(())
    }

    /// Buries what a hook has owed for too long, from a bucket on, oldest first.
    fn bury_old(
        &mut self,
        step: &mut Step<'_>,
        hook: &Seen,
        from_bucket: i64,
        limits: (&mut i64, usize),
    ) -> Result<Buried> {
        let cutoff = self.cutoff(step, hook.max_age_ms)?;
        let over = self.now.saturating_sub(hook.max_age_ms);
        let (old, goes_on) = old_owed(step.tx, hook.id, (from_bucket, cutoff, over), limits)?;
        bury(step, &old, DeadReason::Expired)?;
        Ok(Buried { count: old.len(), goes_on })
    }

    /// Buries what a hook has too much of, oldest first, at most `room`; how many
    /// they were.
    fn bury_excess(
        &self,
        step: &mut Step<'_>,
        pending: &dyn Fn(HookId) -> u64,
        (hook, first_bucket): (i64, i64),
        (looks, room): (&mut i64, usize),
    ) -> Result<usize> {
        let excess = self.excess(step, pending, hook).min(room);
        let oldest = oldest(step.tx, hook, first_bucket, excess, looks)?;
        bury(step, &oldest, DeadReason::BacklogFull)?;
        Ok(oldest.len())
    }

    /// How many Deliveries the backlog of a hook has too many, at most as many as
    /// one step may touch.
    fn excess(&self, step: &Step<'_>, pending: &dyn Fn(HookId) -> u64, hook: i64) -> usize {
        let Some(limit) = self.backlog_rows else { return 0 };
        let hook = HookId(hook);
        let changed: i64 = step.effects.deltas.iter().filter(|delta| delta.hook == hook).map(|d| d.pending).sum();
        let pending = pending(hook).saturating_add_signed(changed);
        usize::try_from(pending.saturating_sub(limit)).unwrap_or(usize::MAX).min(STEP_ROWS_MAX)
    }

    /// Looks at rows of `retry` or `parked` behind (seq, hook), old ones first.
    fn old_rows(&mut self, step: &mut Step<'_>, after: (i64, i64), tables: OldRows) -> Result<()> {
        let youngest = self.ages.values().min().copied();
        let end = youngest.map_or(Ok(0), |max_age_ms| self.cutoff(step, max_age_ms))?;
        let keys: Vec<(i64, i64, i64)> = step
            .tx
            .prepare_cached(tables.walk)?
            .query_map((after.0, after.1, end, LOOKS_MAX), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<Result<_>>()?;
        let is_last = i64::try_from(keys.len()).unwrap_or(i64::MAX) < LOOKS_MAX;
        let mut buried = 0;
        for &(seq, hook, detail) in &keys {
            self.phase = if tables.is_retry { Phase::Retry { seq, hook } } else { Phase::Parked { seq, hook } };
            let Some(max_age_ms) = self.ages.get(&hook).copied() else { continue };
            if seq >= self.cutoff(step, max_age_ms)? {
                continue;
            }
            let over = self.now.saturating_sub(max_age_ms);
            if let Some(row) = old_row(step.tx, &tables, (hook, detail, seq), over)? {
                bury(step, &[row], DeadReason::Expired)?;
                buried += 1;
            }
            if buried == STEP_ROWS_MAX {
                return Ok(());
            }
        }
        if is_last && tables.is_retry {
            self.phase = Phase::Parked { seq: 0, hook: 0 };
        } else if is_last {
            self.phase = Phase::Rest;
            self.next_at = step.now.plus_ms(EXPIRY_EVERY_MS);
        }
        Ok(())
    }
}

/// How to find old rows of a table: `walk` by (seq, hook), then `read` by the key.
#[derive(Clone, Copy)]
struct OldRows {
    is_retry: bool,
    walk: &'static str,
    read: &'static str,
}

pub(super) const RETRY_WALK: &str =
    "SELECT seq, hook, due FROM retry WHERE (seq, hook) > (?1, ?2) AND seq < ?3 ORDER BY seq, hook LIMIT ?4";
pub(super) const PARKED_WALK: &str =
    "SELECT seq, hook, key FROM parked WHERE (seq, hook) > (?1, ?2) AND seq < ?3 ORDER BY seq, hook LIMIT ?4";

const RETRY_OLD: OldRows = OldRows {
    is_retry: true,
    walk: RETRY_WALK,
    read: "SELECT hook, seq, sub, key, tries, shape, due, code, err FROM retry
           WHERE hook = ?1 AND due = ?2 AND seq = ?3 AND coalesce(since, ?4 - 1) < ?4",
};
const PARKED_OLD: OldRows = OldRows {
    is_retry: false,
    walk: PARKED_WALK,
    read: "SELECT hook, seq, sub, key, tries, shape FROM parked
           WHERE hook = ?1 AND key = ?2 AND seq = ?3 AND coalesce(since, ?4 - 1) < ?4",
};

fn old_row(
    db: &Connection,
    tables: &OldRows,
    (hook, detail, seq): (i64, i64, i64),
    over: i64,
) -> Result<Option<Pending>> {
    db.prepare_cached(tables.read)?
        .query_row((hook, detail, seq, over), |row| {
            if tables.is_retry { Pending::read_retry(row) } else { Pending::read(Table::Parked, row) }
        })
        .optional()
}

/// Rows that the backlog of one hook may have, by the mean size of the events
/// that the store holds: what counts is what a backlog keeps from being removed.
/// An event that many hooks wait for counts for each of them.
fn backlog_rows(db: &Connection, size_bytes: u64) -> Result<Option<u64>> {
    let (events, bytes): (u64, u64) = db
        .prepare_cached("SELECT coalesce(sum(events), 0), coalesce(sum(bytes), 0) FROM bucket")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let share = size_bytes / 100 * BACKLOG_SHARE_PERCENT;
    Ok(bytes.checked_div(events).map(|mean| share / (mean + DELIVERY_BYTES)))
}

/// The first position in the store whose event was accepted at `at` or later;
/// `next` if there is none. Store time never goes back, so halving finds it.
pub(super) fn first_seq_at(db: &Connection, at: i64, next: i64) -> Result<i64> {
    let mut probe = db.prepare_cached("SELECT seq, at FROM event WHERE seq >= ?1 AND seq < ?2 ORDER BY seq LIMIT 1")?;
    let mut probe = |from: i64, to: i64| -> Result<Option<(i64, i64)>> {
        probe.query_row((from, to), |row| Ok((row.get(0)?, row.get(1)?))).optional()
    };
    let (mut low, mut high) = (0, next);
    while low < high {
        let middle = low + (high - low) / 2;
        match probe(middle, high)? {
            Some((seq, accepted)) if accepted < at => low = seq + 1,
            Some(_) | None => high = middle,
        }
    }
    Ok(low)
}

fn hooks_behind(db: &Connection, after: i64) -> Result<Vec<Seen>> {
    db.prepare_cached("SELECT id, max_age_ms, first_bucket FROM hook WHERE id > ?1 ORDER BY id LIMIT ?2")?
        .query_map((after, STEP_ROWS_MAX), |row| {
            Ok(Seen { id: row.get(0)?, max_age_ms: row.get(1)?, first_bucket: row.get(2)? })
        })?
        .collect()
}

/// Where a hook's owed rows begin.
pub(super) struct FirstOwed {
    /// No owed row is below it.
    pub(super) bucket: i64,
    /// It has some, or it is the bucket of the next position. Else the looks
    /// were used up.
    pub(super) is_found: bool,
}

/// The first bucket from `from` on in which a hook has owed rows.
pub(super) fn first_owed_bucket(step: &Step<'_>, hook: i64, from: i64, looks: &mut i64) -> Result<FirstOwed> {
    let mut has_rows = step.tx.prepare_cached("SELECT EXISTS (SELECT 1 FROM owed WHERE bucket = ?1 AND hook = ?2)")?;
    let mut buckets = step.tx.prepare_cached("SELECT id FROM bucket WHERE id >= ?1 ORDER BY id")?;
    let mut buckets = buckets.query([from])?;
    while let Some(bucket) = buckets.next()? {
        let bucket = bucket.get(0)?;
        if *looks <= 0 {
            return Ok(FirstOwed { bucket, is_found: false });
        }
        *looks -= 1;
        if has_rows.query_row((bucket, hook), |row| row.get(0))? {
            return Ok(FirstOwed { bucket, is_found: true });
        }
    }
    Ok(FirstOwed { bucket: bucket_of_seq(seq_of(step.next)), is_found: true })
}

/// Writes down where a hook's owed rows begin, now and then. Never above the
/// bucket of the next position: what is accepted from here on is not below it.
fn raise_first_bucket(db: &Connection, hook: &Seen, first: &FirstOwed) -> Result<()> {
    let is_far = |known| first.bucket - known >= FIRST_BUCKET_STRIDE;
    if !first.is_found || hook.first_bucket.is_none_or(is_far) {
        db.prepare_cached("UPDATE hook SET first_bucket = ?2 WHERE id = ?1")?.execute((hook.id, first.bucket))?;
    }
    Ok(())
}

/// Owed rows of a hook that are over: below `cutoff`, or owed anew before `over`;
/// and in which bucket the next ones may be, if this was not all.
fn old_owed(
    db: &Connection,
    hook: i64,
    (from_bucket, cutoff, over): (i64, i64, i64),
    (looks, room): (&mut i64, usize),
) -> Result<(Vec<Pending>, Option<i64>)> {
    let mut rows = Vec::new();
    let mut buckets = db.prepare_cached("SELECT id FROM bucket WHERE id >= ?1 AND id <= ?2 ORDER BY id")?;
    let mut buckets = buckets.query((from_bucket, bucket_of_seq(cutoff - 1)))?;
    let mut select = db.prepare_cached(OWED_OLD)?;
    while let Some(bucket) = buckets.next()? {
        let bucket: i64 = bucket.get(0)?;
        if *looks <= 0 {
            return Ok((rows, Some(bucket)));
        }
        *looks -= BUCKET_LOOKS;
        for row in
            select.query_map((bucket, hook, cutoff, over, room - rows.len()), |row| Pending::read(Table::Owed, row))?
        {
            rows.push(row?);
        }
        if rows.len() >= room {
            return Ok((rows, Some(bucket)));
        }
    }
    Ok((rows, None))
}

pub(super) const OWED_OLD: &str = "SELECT hook, seq, sub, key, tries, shape FROM owed
     WHERE bucket = ?1 AND hook = ?2 AND seq < ?3 AND coalesce(since, ?4 - 1) < ?4 ORDER BY seq LIMIT ?5";

/// The oldest pending rows of a hook: owed ones by position, then those that wait
/// by the time they are due, then parked ones.
pub(super) fn oldest(
    db: &Connection,
    hook: i64,
    first_bucket: i64,
    count: usize,
    looks: &mut i64,
) -> Result<Vec<Pending>> {
    let mut rows = Vec::new();
    if count == 0 {
        return Ok(rows);
    }
    let mut buckets = db.prepare_cached("SELECT id FROM bucket WHERE id >= ?1 ORDER BY id")?;
    let mut buckets = buckets.query([first_bucket])?;
    let mut select = db.prepare_cached(
        "SELECT hook, seq, sub, key, tries, shape FROM owed WHERE bucket = ?1 AND hook = ?2 ORDER BY seq LIMIT ?3",
    )?;
    while let Some(bucket) = buckets.next()?.filter(|_| rows.len() < count && *looks > 0) {
        *looks -= 1;
        let bucket: i64 = bucket.get(0)?;
        let found = select.query_map((bucket, hook, count - rows.len()), |row| Pending::read(Table::Owed, row))?;
        for row in found {
            rows.push(row?);
        }
    }
    let waiting =
        "SELECT hook, seq, sub, key, tries, shape, due, code, err FROM retry WHERE hook = ?1 ORDER BY due LIMIT ?2";
    for row in db.prepare_cached(waiting)?.query_map((hook, count - rows.len()), Pending::read_retry)? {
        rows.push(row?);
    }
    let parked = "SELECT hook, seq, sub, key, tries, shape FROM parked WHERE hook = ?1 LIMIT ?2";
    for row in
        db.prepare_cached(parked)?.query_map((hook, count - rows.len()), |row| Pending::read(Table::Parked, row))?
    {
        rows.push(row?);
    }
    Ok(rows)
}
