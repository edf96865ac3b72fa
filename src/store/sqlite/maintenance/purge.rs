//! Removes what belongs to namespaces that are gone, and to Webhooks that have
//! been gone for too long: every Delivery that is not delivered ends as discarded.
//!
//! A Webhook ends with its pending and dead Deliveries, its Subscriptions and its
//! own row, which is the last. Its attempts go with their events: numbers of
//! Webhooks are never given out twice. A namespace ends with its Webhooks, then
//! its Replays, its events and its row.

use rusqlite::{OptionalExtension, Result};

use super::{
    super::effects::{BUCKET_SHIFT, STEP_ROWS_MAX, Step},
    Turn,
    expiry::{first_owed_bucket, oldest},
    place::{discard, discard_dead},
    retention::milliseconds,
    scans::{SCAN_READS_MAX, end_fan_out},
    sweep::{Freed, remove_event, remove_items},
};
use crate::{
    event::StoreTime,
    store::{DiscardReason, GONE_KEEP},
};

/// Time from one look for what is gone to the next, in milliseconds. The data of
/// a namespace has to be gone within 1 h.
pub(super) const PURGE_EVERY_MS: i64 = 10_000;
/// Buckets that one step looks into at most.
const LOOKS_MAX: i64 = 4_096;

/// Where the purge stands.
#[derive(Debug, Default)]
pub(super) struct Purge {
    next_at: StoreTime,
    /// Events of this namespace and bucket are removed up to this position.
    events: (i64, i64, i64),
}

impl Purge {
    pub(super) fn turn(&mut self, step: &mut Step<'_>) -> Result<Turn> {
        if step.now < self.next_at {
            return Ok(Turn::Idle(self.next_at));
        }
        if let Some((hook, reason)) = next_hook(step)? {
            purge_hook(step, hook, reason)?;
            return Ok(Turn::Worked);
        }
        if let Some((ns, uid)) = next_namespace(step)? {
            self.purge_namespace(step, ns, &uid)?;
            return Ok(Turn::Worked);
        }
        self.next_at = step.now.plus_ms(PURGE_EVERY_MS);
        Ok(Turn::Idle(self.next_at))
    }

    fn purge_namespace(&mut self, step: &mut Step<'_>, ns: i64, uid: &str) -> Result<()> {
        let replay: Option<i64> = step
            .tx
            .prepare_cached("SELECT id FROM scan WHERE kind = 'replay' AND ns_uid = ?1 LIMIT 1")?
            .query_row([uid], |row| row.get(0))
            .optional()?;
        if let Some(replay) = replay {
            if remove_items(step.tx, replay, STEP_ROWS_MAX)? < STEP_ROWS_MAX {
                step.tx.prepare_cached("DELETE FROM scan WHERE id = ?1")?.execute([replay])?;
            }
            return Ok(());
        }
        let bucket: Option<i64> = step
            .tx
            .prepare_cached("SELECT min(bucket) FROM bucket_ns WHERE ns = ?1")?
            .query_row([ns], |row| row.get(0))?;
        match bucket {
            Some(bucket) => self.purge_events(step, ns, bucket),
            None => step.tx.prepare_cached("DELETE FROM ns WHERE id = ?1")?.execute([ns]).map(drop),
        }
    }

    fn purge_events(&mut self, step: &mut Step<'_>, ns: i64, bucket: i64) -> Result<()> {
        let first = bucket << BUCKET_SHIFT;
        let from = if (self.events.0, self.events.1) == (ns, bucket) { self.events.2 } else { first };
        let events: Vec<(i64, i64)> = step
            .tx
            .prepare_cached("SELECT seq, ns FROM event WHERE seq >= ?1 AND seq < ?2 ORDER BY seq LIMIT ?3")?
            .query_map((from, first + (1 << BUCKET_SHIFT), SCAN_READS_MAX), |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_>>()?;
        let is_last = events.len() < SCAN_READS_MAX;
        let mut freed = Freed::default();
        let mut room = STEP_ROWS_MAX;
        for (seq, owner) in events {
            self.events = (ns, bucket, seq);
            if owner == ns {
                end_fan_out(step.tx, seq)?;
                if !remove_event(step, seq, &mut room, &mut freed)? {
                    return freed.apply(step);
                }
            }
            self.events = (ns, bucket, seq + 1);
        }
        freed.apply(step)?;
        if is_last {
            let left: Option<u64> = step
                .tx
                .prepare_cached("DELETE FROM bucket_ns WHERE bucket = ?1 AND ns = ?2 RETURNING bytes")?
                .query_row((bucket, ns), |row| row.get(0))
                .optional()?;
            step.effects.freed.extend(left.map(|bytes| (ns, bytes)));
        }
        Ok(())
    }
}

/// A hook to be purged: of a namespace that is gone, or gone for too long.
fn next_hook(step: &Step<'_>) -> Result<Option<(i64, DiscardReason)>> {
    let of_namespace = step
        .tx
        .prepare_cached("SELECT h.id FROM ns n JOIN hook h ON h.ns = n.id WHERE n.gone_at IS NOT NULL LIMIT 1")?
        .query_row([], |row| row.get(0))
        .optional()?;
    if let Some(hook) = of_namespace {
        return Ok(Some((hook, DiscardReason::NamespaceDeleted)));
    }
    let over = step.now.0.saturating_sub(milliseconds(GONE_KEEP));
    let hook = step
        .tx
        .prepare_cached("SELECT id FROM hook WHERE gone_at IS NOT NULL AND gone_at <= ?1 LIMIT 1")?
        .query_row([over], |row| row.get(0))
        .optional()?;
    Ok(hook.map(|hook| (hook, DiscardReason::WebhookDeleted)))
}

fn next_namespace(step: &Step<'_>) -> Result<Option<(i64, String)>> {
    step.tx
        .prepare_cached("SELECT id, uid FROM ns WHERE gone_at IS NOT NULL LIMIT 1")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

/// One step of a hook's purge: what is pending, what is dead, scans,
/// Subscriptions, the hook itself.
fn purge_hook(step: &mut Step<'_>, hook: i64, reason: DiscardReason) -> Result<()> {
    let from: Option<i64> =
        step.tx.prepare_cached("SELECT first_bucket FROM hook WHERE id = ?1")?.query_row([hook], |row| row.get(0))?;
    let mut looks = LOOKS_MAX;
    let first = first_owed_bucket(step, hook, from.unwrap_or_default(), &mut looks)?;
    if from != Some(first.bucket) {
        step.tx.prepare_cached("UPDATE hook SET first_bucket = ?2 WHERE id = ?1")?.execute((hook, first.bucket))?;
    }
    if !first.is_found {
        return Ok(());
    }
    let pending = oldest(step.tx, hook, first.bucket, STEP_ROWS_MAX, &mut looks)?;
    if !pending.is_empty() {
        return discard(step, &pending, reason);
    }
    if looks <= 0 {
        // The rest of the owed rows in the next step.
        return Ok(());
    }
    let dead: Vec<i64> = step
        .tx
        .prepare_cached("SELECT seq FROM dead WHERE hook = ?1 ORDER BY seq LIMIT ?2")?
        .query_map((hook, STEP_ROWS_MAX), |row| row.get(0))?
        .collect::<Result<_>>()?;
    for seq in &dead {
        discard_dead(step, hook, *seq, reason)?;
    }
    if dead.is_empty() { end_hook(step, hook) } else { Ok(()) }
}

fn end_hook(step: &mut Step<'_>, hook: i64) -> Result<()> {
    let scan: Option<(i64, bool)> = step
        .tx
        .prepare_cached("SELECT id, kind = 'replay' FROM scan WHERE hook = ?1 AND state < 3 LIMIT 1")?
        .query_row([hook], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match scan {
        Some((scan, true)) => {
            if remove_items(step.tx, scan, STEP_ROWS_MAX)? < STEP_ROWS_MAX {
                step.tx.prepare_cached("UPDATE scan SET state = 4, cursor = last WHERE id = ?1")?.execute([scan])?;
            }
            return Ok(());
        }
        Some((scan, false)) => {
            return step.tx.prepare_cached("DELETE FROM scan WHERE id = ?1")?.execute([scan]).map(drop);
        }
        None => {}
    }
    let subs = step
        .tx
        .prepare_cached("DELETE FROM sub WHERE id IN (SELECT id FROM sub WHERE hook = ?1 LIMIT ?2)")?
        .execute((hook, STEP_ROWS_MAX))?;
    if subs < STEP_ROWS_MAX {
        step.tx.prepare_cached("DELETE FROM hook WHERE id = ?1")?.execute([hook])?;
        step.tx.prepare_cached("DELETE FROM tally WHERE hook = ?1")?.execute([hook])?;
    }
    Ok(())
}
