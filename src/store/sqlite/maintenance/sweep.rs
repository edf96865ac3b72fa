//! Removes events with all that belongs to them, and other rows that are over.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Result};

use super::{
    super::{
        effects::{BUCKET_SHIFT, STEP_ROWS_MAX, Step},
        recent,
    },
    place::bucket_of_seq,
};

/// How long the record of a Replay is kept, in milliseconds: 90 d.
pub(super) const REPLAY_KEEP_MS: i64 = 90 * 24 * 3_600_000;

/// What was removed from buckets, to be subtracted once a step.
#[derive(Debug, Default)]
pub(super) struct Freed {
    /// By (bucket, namespace): events and bytes.
    by_bucket: BTreeMap<(i64, i64), (i64, i64)>,
}

impl Freed {
    fn add(&mut self, seq: i64, ns: i64, bytes: i64) {
        let entry = self.by_bucket.entry((bucket_of_seq(seq), ns)).or_default();
        *entry = (entry.0 + 1, entry.1 + bytes);
    }

    /// Subtracts it, and tells the writer.
    pub(super) fn apply(self, step: &mut Step<'_>) -> Result<()> {
        for ((bucket, ns), (events, bytes)) in self.by_bucket {
            step.tx
                .prepare_cached(
                    "UPDATE bucket SET events = max(0, events - ?2), bytes = max(0, bytes - ?3) WHERE id = ?1",
                )?
                .execute((bucket, events, bytes))?;
            step.tx
                .prepare_cached(
                    "UPDATE bucket_ns SET events = max(0, events - ?3), bytes = max(0, bytes - ?4)
                     WHERE bucket = ?1 AND ns = ?2",
                )?
                .execute((bucket, ns, events, bytes))?;
            step.effects.freed.push((ns, u64::try_from(bytes).unwrap_or_default()));
            step.effects.events_removed += events;
        }
        Ok(())
    }
}

/// Removes an event with its attempts, their answers and its dismissed
/// Deliveries; `room` is how many rows may still go. False if not all of it went:
/// the event itself is the last.
///
/// # Assumptions
/// Nothing that is pending or dead refers to it.
pub(super) fn remove_event(step: &Step<'_>, seq: i64, room: &mut usize, freed: &mut Freed) -> Result<bool> {
    let db = step.tx;
    let attempts: Vec<(i64, i64, i64)> = db
        .prepare_cached("SELECT bucket, hook, id FROM attempt WHERE seq = ?1 LIMIT ?2")?
        .query_map((seq, *room), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<Result<_>>()?;
    remove_attempts(db, &attempts)?;
    *room -= attempts.len();
    let dismissed: Vec<i64> = db
        .prepare_cached("SELECT hook FROM dead WHERE seq = ?1 AND card = 3 LIMIT ?2")?
        .query_map((seq, *room), |row| row.get(0))?
        .collect::<Result<_>>()?;
    for hook in &dismissed {
        db.prepare_cached("DELETE FROM dead WHERE bucket = ?1 AND hook = ?2 AND seq = ?3")?.execute((
            bucket_of_seq(seq),
            hook,
            seq,
        ))?;
    }
    *room -= dismissed.len();
    if *room == 0 {
        return Ok(false);
    }
    *room -= 1;
    let removed: Option<(i64, i64)> = db
        .prepare_cached(&format!("DELETE FROM event WHERE seq = ?1 RETURNING ns, {EVENT_BYTES}"))?
        .query_row([seq], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    if let Some((ns, bytes)) = removed {
        freed.add(seq, ns, bytes);
    }
    Ok(true)
}

/// Removes all events from the first to the last position, with their attempts
/// and their answers. False, and nothing is removed, if they have more attempts
/// than may go.
///
/// # Assumptions
/// Nothing refers to any of them, not even a dismissed Delivery.
pub(super) fn remove_events(
    step: &Step<'_>,
    (first, last): (i64, i64),
    attempts_max: usize,
    freed: &mut Freed,
) -> Result<bool> {
    let db = step.tx;
    let attempts: Vec<(i64, i64, i64)> = db
        .prepare_cached(ATTEMPTS_OF)?
        .query_map((first, last, attempts_max + 1), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<Result<_>>()?;
    if attempts.len() > attempts_max {
        return Ok(false);
    }
    remove_attempts(db, &attempts)?;
    let mut delete =
        db.prepare_cached(&format!("DELETE FROM event WHERE seq BETWEEN ?1 AND ?2 RETURNING seq, ns, {EVENT_BYTES}"))?;
    let mut removed = delete.query((first, last))?;
    while let Some(row) = removed.next()? {
        freed.add(row.get(0)?, row.get(1)?, row.get(2)?);
    }
    Ok(true)
}

pub(super) const ATTEMPTS_OF: &str = "SELECT bucket, hook, id FROM attempt WHERE seq BETWEEN ?1 AND ?2 LIMIT ?3";

fn remove_attempts(db: &Connection, attempts: &[(i64, i64, i64)]) -> Result<()> {
    let mut attempt = db.prepare_cached("DELETE FROM attempt WHERE bucket = ?1 AND hook = ?2 AND id = ?3")?;
    let mut answer = db.prepare_cached("DELETE FROM answer WHERE id = ?1")?;
    for &(bucket, hook, id) in attempts {
        attempt.execute((bucket, hook, id))?;
        answer.execute([id])?;
    }
    Ok(())
}

/// Bytes of an event as the accept counts them.
pub(in super::super) const EVENT_BYTES: &str =
    "octet_length(type) + octet_length(source) + coalesce(octet_length(head), 0) + octet_length(body)";

/// Removes what is left of a bucket without events, at most `room` rows at a
/// time. True when nothing is left.
pub(super) fn clear_bucket(step: &mut Step<'_>, bucket: i64, mut room: usize) -> Result<bool> {
    let db = step.tx;
    for delete in [
        "DELETE FROM attempt WHERE (bucket, hook, id) IN
         (SELECT bucket, hook, id FROM attempt WHERE bucket = ?1 LIMIT ?2)",
        "DELETE FROM answer WHERE id IN (SELECT id FROM answer WHERE bucket = ?1 LIMIT ?2)",
        "DELETE FROM dead WHERE (bucket, hook, seq) IN
         (SELECT bucket, hook, seq FROM dead WHERE bucket = ?1 AND card = 3 LIMIT ?2)",
        "DELETE FROM bucket_ns WHERE (bucket, ns) IN
         (SELECT bucket, ns FROM bucket_ns WHERE bucket = ?1 AND bytes = 0 LIMIT ?2)",
    ] {
        room -= db.prepare_cached(delete)?.execute((bucket, room))?;
        if room == 0 {
            return Ok(false);
        }
    }
    // Whatever the counters say, no event is there.
    let leftover: Vec<(i64, u64)> = db
        .prepare_cached("DELETE FROM bucket_ns WHERE bucket = ?1 RETURNING ns, bytes")?
        .query_map([bucket], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_>>()?;
    step.effects.freed.extend(leftover);
    db.prepare_cached("DELETE FROM bucket WHERE id = ?1")?.execute([bucket])?;
    Ok(true)
}

/// Forgets publishers' ids whose window is over, and records of Replays. True if
/// there was something.
pub(super) fn forget(step: &Step<'_>) -> Result<bool> {
    let window_over = recent::first_bucket(step.now, step.limits.deduplication);
    let ids = step
        .tx
        .prepare_cached(
            "DELETE FROM dedup WHERE (bucket, h) IN
             (SELECT bucket, h FROM dedup WHERE bucket < ?1 ORDER BY bucket, h LIMIT ?2)",
        )?
        .execute((window_over, STEP_ROWS_MAX))?;
    if ids > 0 {
        return Ok(true);
    }
    let records_over = step.now.0.saturating_sub(REPLAY_KEEP_MS);
    let records = step
        .tx
        .prepare_cached(
            "DELETE FROM scan WHERE id IN
             (SELECT id FROM scan WHERE state >= 3 AND begun < ?1 ORDER BY begun LIMIT ?2)",
        )?
        .execute((records_over, STEP_ROWS_MAX))?;
    Ok(records > 0)
}

/// The first and the last position of a bucket.
pub(super) const fn positions_of(bucket: i64) -> (i64, i64) {
    (bucket << BUCKET_SHIFT, ((bucket + 1) << BUCKET_SHIFT) - 1)
}

/// Removes the items of a Replay, at most `room`; how many went.
pub(super) fn remove_items(db: &Connection, scan: i64, room: usize) -> Result<usize> {
    db.prepare_cached(
        "DELETE FROM replay_item WHERE (scan, seq) IN (SELECT scan, seq FROM replay_item WHERE scan = ?1 LIMIT ?2)",
    )?
    .execute((scan, room))
}
