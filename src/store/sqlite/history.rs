//! Questions apart from the hot path.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Result, Row};

use super::{rows, tally};
use crate::{
    event::{Pos, StoreTime},
    store::{AttemptDetail, AttemptId, AttemptRow, DeadReason, DeliveryState, DiscardReason, HookId, Totals},
};

/// `dead.card` of a Delivery whose card was deleted.
const CARD_DISMISSED: i64 = 3;

/// Attempts of a hook, newest first.
pub(super) fn attempts(
    db: &Connection,
    hook: HookId,
    before: Option<AttemptId>,
    limit: usize,
) -> Result<Vec<AttemptRow>> {
    let before = before.map_or(i64::MAX, |id| id.0);
    let mut buckets = db.prepare_cached("SELECT id FROM bucket ORDER BY id DESC")?;
    let mut select = db.prepare_cached(
        "SELECT id, hook, seq, n, at, ms, code, err, ok FROM attempt WHERE bucket = ?1 AND hook = ?2 AND id < ?3
         ORDER BY id DESC LIMIT ?4",
    )?;
    // A retry of an old event is newer than first attempts of younger ones: every
    // bucket is asked, and most have nothing newer than what was found.
    let mut newest = BTreeMap::new();
    for bucket in buckets.query_map([], |row| row.get::<_, i64>(0))? {
        let columns = (bucket?, hook.0, before, i64::try_from(limit).unwrap_or(i64::MAX));
        let mut found = select.query(columns)?;
        while let Some(row) = found.next()? {
            let attempt = attempt_row(row)?;
            if newest.len() >= limit {
                let Some(oldest) = newest.first_entry().filter(|oldest| *oldest.key() < attempt.id) else { break };
                oldest.remove();
            }
            newest.insert(attempt.id, attempt);
        }
    }
    newest.into_values().rev().map(|attempt| with_detail(db, attempt)).collect()
}

/// Attempts of one event, oldest first.
pub(super) fn attempts_of(db: &Connection, pos: Pos, limit: usize) -> Result<Vec<AttemptRow>> {
    let mut select = db.prepare_cached(
        "SELECT id, hook, seq, n, at, ms, code, err, ok FROM attempt WHERE seq = ?1 ORDER BY id LIMIT ?2",
    )?;
    let columns = (rows::seq_of(pos), i64::try_from(limit).unwrap_or(i64::MAX));
    select.query_map(columns, attempt_row)?.map(|attempt| with_detail(db, attempt?)).collect()
}

fn attempt_row(row: &Row<'_>) -> Result<AttemptRow> {
    Ok(AttemptRow {
        id: AttemptId(row.get(0)?),
        hook: HookId(row.get(1)?),
        pos: rows::pos_of(row.get(2)?),
        number: row.get(3)?,
        at_ms: row.get(4)?,
        duration_ms: row.get(5)?,
        code: row.get(6)?,
        error: row.get(7)?,
        is_ok: row.get(8)?,
        detail: None,
    })
}

fn with_detail(db: &Connection, attempt: AttemptRow) -> Result<AttemptRow> {
    let mut select = db.prepare_cached("SELECT head, body FROM answer WHERE id = ?1")?;
    let detail = select.query_row([attempt.id.0], |row| Ok(AttemptDetail { head: row.get(0)?, body: row.get(1)? }));
    Ok(AttemptRow { detail: detail.optional()?, ..attempt })
}

/// Where every Delivery of an event is, in the order of hooks.
pub(super) fn states_of(db: &Connection, pos: Pos) -> Result<Vec<(HookId, DeliveryState)>> {
    let (bucket, seq) = (rows::bucket_of(pos), rows::seq_of(pos));
    let mut states = BTreeMap::new();
    // Later ones replace earlier ones: what is pending tells more than what was.
    let mut delivered = db.prepare_cached("SELECT DISTINCT hook FROM attempt WHERE seq = ?1 AND ok = 1")?;
    for hook in delivered.query_map([seq], |row| row.get(0))? {
        states.insert(HookId(hook?), DeliveryState::Delivered);
    }
    let mut dead = db.prepare_cached("SELECT hook, reason, card FROM dead WHERE bucket = ?1 AND seq = ?2")?;
    let mut found = dead.query((bucket, seq))?;
    while let Some(row) = found.next()? {
        let reason = DeadReason::ALL.get(usize::from(row.get::<_, u8>(1)?)).copied();
        let state = match (row.get::<_, i64>(2)?, reason) {
            (CARD_DISMISSED, _) | (_, None) => DeliveryState::Dismissed,
            (_, Some(reason)) => DeliveryState::Dead(reason),
        };
        states.insert(HookId(row.get(0)?), state);
    }
    let mut parked = db.prepare_cached("SELECT hook FROM parked WHERE seq = ?1")?;
    for hook in parked.query_map([seq], |row| row.get(0))? {
        states.insert(HookId(hook?), DeliveryState::Parked);
    }
    let mut waiting = db.prepare_cached("SELECT hook, due FROM retry WHERE seq = ?1")?;
    for row in waiting.query_map([seq], |row| Ok((row.get(0)?, row.get(1)?)))? {
        let (hook, due) = row?;
        states.insert(HookId(hook), DeliveryState::Waiting(StoreTime(due)));
    }
    let mut owed = db.prepare_cached("SELECT hook FROM owed WHERE bucket = ?1 AND seq = ?2")?;
    for hook in owed.query_map((bucket, seq), |row| row.get(0))? {
        states.insert(HookId(hook?), DeliveryState::Owed);
    }
    Ok(states.into_iter().collect())
}

/// What the store holds in all, counted row by row where there are rows.
pub(super) fn totals(db: &Connection) -> Result<Totals> {
    let count = |sql: &str| {
        let count: i64 = db.query_row(sql, [], |row| row.get(0))?;
        Ok::<_, rusqlite::Error>(u64::try_from(count).unwrap_or_default())
    };
    let total = |key: &str| {
        let n: Option<i64> = db.query_row("SELECT n FROM total WHERE k = ?1", [key], |row| row.get(0)).optional()?;
        Ok::<_, rusqlite::Error>(u64::try_from(n.unwrap_or_default()).unwrap_or_default())
    };
    let mut discarded = [0; DiscardReason::ALL.len()];
    for reason in DiscardReason::ALL {
        discarded[reason as usize] = total(&tally::discarded_key(reason))?;
    }
    Ok(Totals {
        events: count("SELECT count(*) FROM event")?,
        routed: total("routed")?,
        delivered: total("delivered")?,
        dead: count("SELECT count(*) FROM dead WHERE card <> 3")?,
        pending: count(
            "SELECT (SELECT count(*) FROM owed) + (SELECT count(*) FROM retry) + (SELECT count(*) FROM parked)",
        )?,
        discarded,
    })
}
