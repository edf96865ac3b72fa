//! What is over is removed: events by age, by bytes and when the store is nearly
//! full; dead Deliveries by age; publishers' ids; records of Replays.
//!
//! # What is never removed
//! A position that `owed`, `retry`, `parked`, `dead` (dismissed ones not among
//! them) or an unfinished scan refers to. `owed` has no index by position, for the
//! sake of the accept: before a bucket is swept its owed rows are walked and
//! their positions marked ([`Pins`]); whoever owes a Delivery of the bucket after
//! that marks it too. A Delivery leaves `owed` only for tables that are looked at
//! when an event is removed, so the marks may be too many and never too few.
//!
//! # When the store is nearly full
//! Above [`evict_above`] of its size, events whose Deliveries have all ended go,
//! oldest bucket first; when there are none left, dead Deliveries, oldest first.

use rusqlite::{OptionalExtension, Result};

use super::{
    super::{
        effects::{BUCKET_SHIFT, STEP_ROWS_MAX, Step},
        rows::seq_of,
        space::evict_above,
    },
    Turn,
    place::{bucket_of_seq, discard_dead},
    sweep::{Freed, clear_bucket, remove_event, remove_events},
};
use crate::{event::StoreTime, store::DiscardReason};

/// Time from the end of a round to the begin of the next, in milliseconds.
pub(super) const RETENTION_EVERY_MS: i64 = 60_000;
/// How often buckets that were swept before are swept again, for what has ended
/// since, in milliseconds: 1 h.
pub(super) const RESWEEP_EVERY_MS: i64 = 3_600_000;
/// Time between rounds while the store is nearly full, in milliseconds.
pub(super) const FULL_EVERY_MS: i64 = 10_000;
/// Dead Deliveries that are discarded for want of room before buckets are swept
/// again for their events, at most: to sweep after each step would go over all
/// buckets for [`STEP_ROWS_MAX`] Deliveries.
const EVICT_DEAD_MAX: u64 = 16_384;
/// The same, as a part of the events that are there: a small store would else
/// lose more of them than it needs room for.
const EVICT_DEAD_PART: u64 = 32;
/// Events that are removed at once if nothing refers to any of them, and attempts
/// that go with them.
const REMOVE_MAX: usize = STEP_ROWS_MAX / 2;
/// Owed rows that one step marks at most.
const MARK_ROWS_MAX: usize = 8_192;
/// Owed rows of one bucket that are marked at most: with more it is left alone.
const MARK_BUCKET_ROWS_MAX: usize = 4_000_000;
/// Positions of one bucket.
const BUCKET_POSITIONS: usize = 1 << BUCKET_SHIFT;

/// Positions of the bucket that is being swept which may not be removed.
#[derive(Debug, Default)]
pub(super) struct Pins {
    bucket: i64,
    /// A bit each; empty while nothing is swept.
    bits: Vec<u64>,
    count: i64,
}

impl Pins {
    fn begin(&mut self, bucket: i64) {
        *self = Self { bucket, bits: vec![0; BUCKET_POSITIONS / 64], count: 0 };
    }

    fn place(&self, seq: i64) -> Option<(usize, u64)> {
        if self.bits.is_empty() || bucket_of_seq(seq) != self.bucket {
            return None;
        }
        let offset = usize::try_from(seq - (self.bucket << BUCKET_SHIFT)).ok()?;
        Some((offset / 64, 1 << (offset % 64)))
    }

    /// A Delivery of this position is owed.
    pub(super) fn pin(&mut self, seq: i64) {
        if let Some((word, bit)) = self.place(seq)
            && self.bits[word] & bit == 0
        {
            self.bits[word] |= bit;
            self.count += 1;
        }
    }

    fn has(&self, seq: i64) -> bool {
        self.place(seq).is_some_and(|(word, bit)| self.bits[word] & bit != 0)
    }
}

/// Why a bucket is swept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Age,
    Bytes,
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Marks owed rows behind (hook, seq).
    Mark { hook: i64, seq: i64, rows: usize },
    /// Removes events from here on.
    Remove { from: i64 },
    /// Nothing of the bucket is left but what belonged to its events.
    Clear,
}

/// A bucket that is being swept.
#[derive(Clone, Copy, Debug)]
struct Sweep {
    bucket: i64,
    /// Positions below this.
    upto: i64,
    cause: Cause,
    phase: Phase,
}

/// Where the round stands.
#[derive(Debug, Default)]
pub(super) struct Retention {
    next_at: StoreTime,
    sweep: Option<Sweep>,
    /// Buckets up to here were swept for their age; none yet.
    aged_upto: Option<i64>,
    resweep_at: StoreTime,
    /// Buckets up to here were swept for want of room, in this round.
    forced_upto: Option<i64>,
    /// Dead Deliveries that were discarded for want of room since.
    evicted: u64,
}

impl Retention {
    /// The next round begins at once, and with the oldest bucket.
    pub(super) fn hurry(&mut self) {
        (self.next_at, self.aged_upto, self.forced_upto) = (StoreTime(0), None, None);
    }

    /// The next round begins at once: the store is nearly full.
    pub(super) fn press(&mut self) {
        self.next_at = StoreTime(0);
    }

    pub(super) fn turn(&mut self, step: &mut Step<'_>, pins: &mut Pins) -> Result<Turn> {
        if let Some(sweep) = self.sweep {
            self.sweep = sweep_on(step, pins, sweep)?;
            if self.sweep.is_none() {
                *pins = Pins::default();
            }
            return Ok(Turn::Worked);
        }
        if step.now < self.next_at {
            return Ok(Turn::Idle(self.next_at));
        }
        if let Some((bucket, cause)) = self.next_bucket(step)? {
            match cause {
                Cause::Age => self.aged_upto = Some(bucket),
                Cause::Bytes | Cause::Full => self.forced_upto = Some(bucket),
            }
            let upto = ((bucket + 1) << BUCKET_SHIFT).min(seq_of(step.next));
            let phase = Phase::Mark { hook: 0, seq: 0, rows: 0 };
            self.sweep = Some(Sweep { bucket, upto, cause, phase });
            pins.begin(bucket);
            return Ok(Turn::Worked);
        }
        let is_full = is_needed(step, Cause::Full)?;
        if is_full {
            let evicted = evict_dead(step)?;
            self.evicted += evicted;
            if self.evicted > 0 && (evicted == 0 || self.evicted >= evict_max(step)?) {
                (self.evicted, self.forced_upto) = (0, None);
                return Ok(Turn::Worked);
            }
            if evicted > 0 {
                return Ok(Turn::Worked);
            }
        }
        self.next_at = step.now.plus_ms(if is_full { FULL_EVERY_MS } else { RETENTION_EVERY_MS });
        self.forced_upto = None;
        if step.now >= self.resweep_at {
            self.resweep_at = step.now.plus_ms(RESWEEP_EVERY_MS);
            self.aged_upto = None;
        }
        Ok(Turn::Idle(self.next_at))
    }

    fn next_bucket(&self, step: &Step<'_>) -> Result<Option<(i64, Cause)>> {
        let behind = |after: Option<i64>| -> Result<Option<(i64, i64)>> {
            step.tx
                .prepare_cached("SELECT id, last_at FROM bucket WHERE id > ?1 ORDER BY id LIMIT 1")?
                .query_row([after.unwrap_or(-1)], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()
        };
        let over = step.now.0.saturating_sub(milliseconds(step.limits.retention_age));
        if let Some((bucket, _)) = behind(self.aged_upto)?.filter(|(_, last_at)| *last_at < over) {
            return Ok(Some((bucket, Cause::Age)));
        }
        for cause in [Cause::Bytes, Cause::Full] {
            if is_needed(step, cause)? {
                return Ok(behind(self.forced_upto)?.map(|(bucket, _)| (bucket, cause)));
            }
        }
        Ok(None)
    }
}

/// One step of a sweep; none when the bucket is done.
fn sweep_on(step: &mut Step<'_>, pins: &mut Pins, sweep: Sweep) -> Result<Option<Sweep>> {
    let phase = match sweep.phase {
        Phase::Mark { hook, seq, rows } => mark(step, pins, &sweep, (hook, seq, rows))?,
        Phase::Remove { .. } if !is_needed(step, sweep.cause)? => None,
        Phase::Remove { from } => remove(step, pins, &sweep, from)?,
        Phase::Clear if clear_bucket(step, sweep.bucket, STEP_ROWS_MAX)? => None,
        Phase::Clear => Some(Phase::Clear),
    };
    Ok(phase.map(|phase| Sweep { phase, ..sweep }))
}

fn mark(
    step: &Step<'_>,
    pins: &mut Pins,
    sweep: &Sweep,
    (hook, seq, rows): (i64, i64, usize),
) -> Result<Option<Phase>> {
    let found: Vec<(i64, i64)> = step
        .tx
        .prepare_cached(OWED_WALK)?
        .query_map((sweep.bucket, hook, seq, MARK_ROWS_MAX), |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_>>()?;
    found.iter().for_each(|(_, seq)| pins.pin(*seq));
    let rows = rows + found.len();
    let events: i64 = step
        .tx
        .prepare_cached("SELECT events FROM bucket WHERE id = ?1")?
        .query_row([sweep.bucket], |row| row.get(0))
        .optional()?
        .unwrap_or_default();
    let is_all_pinned = events > 0 && pins.count >= events;
    Ok(match found.last() {
        _ if is_all_pinned || rows >= MARK_BUCKET_ROWS_MAX => None,
        Some(&(hook, seq)) if found.len() == MARK_ROWS_MAX => Some(Phase::Mark { hook, seq, rows }),
        _ => Some(Phase::Remove { from: sweep.bucket << BUCKET_SHIFT }),
    })
}

pub(super) const OWED_WALK: &str =
    "SELECT hook, seq FROM owed WHERE bucket = ?1 AND (hook, seq) > (?2, ?3) ORDER BY hook, seq LIMIT ?4";

/// Removes events from `from` on that nothing refers to.
fn remove(step: &mut Step<'_>, pins: &Pins, sweep: &Sweep, from: i64) -> Result<Option<Phase>> {
    let floor = scan_floor(step)?;
    let upto = floor.unwrap_or(sweep.upto).min(sweep.upto);
    if let Some(last) = remove_free(step, pins, from, upto)? {
        return Ok(Some(Phase::Remove { from: last + 1 }));
    }
    let events: Vec<(i64, bool)> = step
        .tx
        .prepare_cached(EVENTS_TO_REMOVE)?
        .query_map((from, upto, STEP_ROWS_MAX), |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_>>()?;
    let is_last = events.len() < STEP_ROWS_MAX;
    let mut freed = Freed::default();
    let mut room = STEP_ROWS_MAX;
    let mut next = from;
    for (seq, is_pinned) in events {
        if !is_pinned && !pins.has(seq) && !remove_event(step, seq, &mut room, &mut freed)? {
            // The rest of it in the next step.
            freed.apply(step)?;
            return Ok(Some(Phase::Remove { from: seq }));
        }
        next = seq + 1;
    }
    freed.apply(step)?;
    if !is_last {
        return Ok(Some(Phase::Remove { from: next }));
    }
    // The newest bucket's own row stays: the accept adds to it.
    let is_newest = bucket_of_seq(seq_of(step.next)) <= sweep.bucket;
    let first = sweep.bucket << BUCKET_SHIFT;
    let is_empty = !step
        .tx
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM event WHERE seq >= ?1 AND seq < ?2)")?
        .query_row((first, first + (1 << BUCKET_SHIFT)), |row| row.get::<_, bool>(0))?;
    Ok((is_empty && !is_newest).then_some(Phase::Clear))
}

/// Removes the next events at once if nothing refers to any of them, which is how
/// it is mostly; gives the last of them. None if they want a closer look.
fn remove_free(step: &mut Step<'_>, pins: &Pins, from: i64, upto: i64) -> Result<Option<i64>> {
    let events: Vec<i64> = step
        .tx
        .prepare_cached(EVENTS_NEXT)?
        .query_map((from, upto, REMOVE_MAX), |row| row.get(0))?
        .collect::<Result<_>>()?;
    let (Some(&first), Some(&last)) = (events.first(), events.last()) else { return Ok(None) };
    let is_full_step = events.len() == REMOVE_MAX;
    if !is_full_step || events.iter().any(|seq| pins.has(*seq)) {
        return Ok(None);
    }
    let is_referred = step.tx.prepare_cached(REFERRED)?.query_row((first, last), |row| row.get::<_, bool>(0))?;
    if is_referred {
        return Ok(None);
    }
    let mut freed = Freed::default();
    let has_removed = remove_events(step, (first, last), REMOVE_MAX, &mut freed)?;
    freed.apply(step)?;
    Ok(has_removed.then_some(last))
}

pub(super) const EVENTS_NEXT: &str = "SELECT seq FROM event WHERE seq >= ?1 AND seq < ?2 ORDER BY seq LIMIT ?3";

/// Whether anything refers to positions from ?1 to ?2, dismissed Deliveries among
/// them.
pub(super) const REFERRED: &str = "SELECT EXISTS (SELECT 1 FROM retry WHERE seq BETWEEN ?1 AND ?2)
        OR EXISTS (SELECT 1 FROM parked WHERE seq BETWEEN ?1 AND ?2)
        OR EXISTS (SELECT 1 FROM dead WHERE seq BETWEEN ?1 AND ?2)
        OR EXISTS (SELECT 1 FROM scan INDEXED BY scan_fan WHERE kind = 'fan' AND first BETWEEN ?1 AND ?2)
        OR EXISTS (SELECT 1 FROM scan s JOIN replay_item i ON i.scan = s.id AND i.seq BETWEEN ?1 AND ?2
                   WHERE s.kind = 'replay' AND s.state < 3)";

pub(super) const EVENTS_TO_REMOVE: &str = "SELECT e.seq,
        EXISTS (SELECT 1 FROM retry r WHERE r.seq = e.seq)
        OR EXISTS (SELECT 1 FROM parked p WHERE p.seq = e.seq)
        OR EXISTS (SELECT 1 FROM dead d WHERE d.seq = e.seq AND d.card < 3)
        OR EXISTS (SELECT 1 FROM dead d WHERE d.seq = e.seq AND d.card > 3)
        OR EXISTS (SELECT 1 FROM scan f WHERE f.kind = 'fan' AND f.first = e.seq)
        OR EXISTS (SELECT 1 FROM replay_item i WHERE i.seq = e.seq AND i.scan IN
                   (SELECT id FROM scan WHERE kind = 'replay' AND state < 3))
     FROM event e WHERE e.seq >= ?1 AND e.seq < ?2 ORDER BY e.seq LIMIT ?3";

/// The lowest position that a backfill or a Replay has still to look at.
fn scan_floor(step: &Step<'_>) -> Result<Option<i64>> {
    step.tx
        .prepare_cached(
            "SELECT min(cursor) FROM scan WHERE kind IN ('backfill', 'replay') AND state < 3 AND cursor < last",
        )?
        .query_row([], |row| row.get(0))
}

/// Whether there is reason to remove more.
fn is_needed(step: &Step<'_>, cause: Cause) -> Result<bool> {
    Ok(match (cause, step.limits.retention_bytes) {
        (Cause::Age, _) => true,
        (Cause::Bytes, None) => false,
        (Cause::Bytes, Some(limit)) => {
            let bytes: u64 = step
                .tx
                .prepare_cached("SELECT coalesce(sum(bytes), 0) FROM bucket")?
                .query_row([], |row| row.get(0))?;
            bytes > limit
        }
        (Cause::Full, _) => used_bytes(step)? > evict_above(step.limits.size_bytes),
    })
}

/// Bytes of the database that are in use: free pages are used again.
fn used_bytes(step: &Step<'_>) -> Result<u64> {
    let pragma = |name: &str| step.tx.pragma_query_value(None, name, |row| row.get::<_, u64>(0));
    Ok(pragma("page_count")?.saturating_sub(pragma("freelist_count")?) * pragma("page_size")?)
}

/// Discards the dead that are older than `dead_age`, oldest first.
pub(super) fn dead_of_age(step: &mut Step<'_>) -> Result<bool> {
    let over = step.now.0.saturating_sub(milliseconds(step.limits.dead_age));
    Ok(discard_dead_before(step, over)? > 0)
}

/// Discards the oldest dead, for room; how many they were.
fn evict_dead(step: &mut Step<'_>) -> Result<u64> {
    discard_dead_before(step, i64::MAX)
}

/// How many dead Deliveries go before it is looked how much room that made.
fn evict_max(step: &Step<'_>) -> Result<u64> {
    let events: u64 =
        step.tx.prepare_cached("SELECT coalesce(sum(events), 0) FROM bucket")?.query_row([], |row| row.get(0))?;
    Ok((events / EVICT_DEAD_PART).min(EVICT_DEAD_MAX))
}

fn discard_dead_before(step: &mut Step<'_>, at: i64) -> Result<u64> {
    let rows: Vec<(i64, i64)> = step
        .tx
        .prepare_cached(DEAD_OLD)?
        .query_map((at, STEP_ROWS_MAX), |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_>>()?;
    for &(hook, seq) in &rows {
        discard_dead(step, hook, seq, DiscardReason::Retention)?;
    }
    Ok(rows.len() as u64)
}

pub(super) const DEAD_OLD: &str = "SELECT hook, seq FROM dead WHERE card <> 3 AND at < ?1 ORDER BY at LIMIT ?2";

/// A duration of the configuration, in milliseconds.
pub(super) fn milliseconds(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
