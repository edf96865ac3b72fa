//! What the dispatcher reads: pending Deliveries and events.

use std::collections::HashSet;

use rusqlite::{Connection, OptionalExtension, Result};

use super::{
    open::meta,
    rows::{self, Epochs},
};
use crate::{
    event::{Pos, StoreTime},
    store::{BlockedKey, HookId, OrderKey, OwedPage, OwedRow, StoredEvent, WaitingPage},
};

/// A number of rows as SQLite has it.
fn limit_of(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Owed Deliveries of a hook behind a position.
pub(super) fn owed(db: &Connection, hook: HookId, after: Pos, limit: usize) -> Result<OwedPage> {
    let last = meta::<i64>(db, "next_seq")?.map_or(Pos(0), |next| rows::pos_of(next - 1));
    let mut first = db.prepare_cached("SELECT first_bucket FROM hook WHERE id = ?1")?;
    let first: Option<i64> = first.query_row([hook.0], |row| row.get(0)).optional()?.flatten();
    let Some(first) = first else { return Ok(OwedPage { rows: Vec::new(), covered: last }) };
    let first = first.max(rows::bucket_of(after));
    // CROSS JOIN: bucket by bucket, each by its key; never the other way round.
    let mut select = db.prepare_cached(
        "SELECT o.seq, o.sub, o.key, o.tries, o.shape FROM bucket b CROSS JOIN owed o
         ON o.bucket = b.id AND o.hook = ?1 AND o.seq > ?2 WHERE b.id >= ?3 ORDER BY b.id, o.seq LIMIT ?4",
    )?;
    let rows = select.query_map((hook.0, rows::seq_of(after), first, limit_of(limit)), rows::owed_row)?;
    let rows: Vec<OwedRow> = rows.collect::<Result<_>>()?;
    let covered = match rows.last() {
        Some(row) if rows.len() >= limit => row.pos,
        _ => last,
    };
    Ok(OwedPage { rows, covered })
}

/// Deliveries of a hook whose retry is due.
pub(super) fn waiting(db: &Connection, hook: HookId, now: StoreTime, limit: usize) -> Result<WaitingPage> {
    let mut select = db.prepare_cached(
        "SELECT seq, sub, key, tries, shape, due FROM retry WHERE hook = ?1 ORDER BY due, seq LIMIT ?2",
    )?;
    let mut found = select.query((hook.0, limit_of(limit.saturating_add(1))))?;
    let mut page = WaitingPage::default();
    while let Some(row) = found.next()? {
        let due = StoreTime(row.get(5)?);
        if due > now || page.rows.len() == limit {
            page.next_due = Some(due);
            break;
        }
        page.rows.push(rows::owed_row(row)?);
    }
    Ok(page)
}

/// Keys of a hook that are blocked, and by what.
pub(super) fn blocked_keys(db: &Connection, hook: HookId, dead_blocks: bool, limit: usize) -> Result<Vec<BlockedKey>> {
    let mut keys = Vec::new();
    let mut known = HashSet::new();
    for next in [NEXT_WAITING_KEY, NEXT_PARKED_KEY].into_iter().chain(dead_blocks.then_some(NEXT_DEAD_KEY)) {
        // From key to key, not from row to row: a key may have a million of them.
        let mut select = db.prepare_cached(next)?;
        let mut from = Some(i64::MIN);
        while let Some(at_least) = from.filter(|_| keys.len() < limit) {
            let Some(key) = select.query_row((hook.0, at_least), |row| row.get(0)).optional()? else { break };
            if known.insert(key) {
                keys.push(blocked_key(db, hook, key, dead_blocks)?);
            }
            from = key.checked_add(1);
        }
    }
    Ok(keys)
}

fn blocked_key(db: &Connection, hook: HookId, key: i64, dead_blocks: bool) -> Result<BlockedKey> {
    let first = |sql: &str| db.prepare_cached(sql)?.query_row((hook.0, key), |row| row.get::<_, Option<i64>>(0));
    Ok(BlockedKey {
        key: OrderKey(key),
        is_waiting: first(FIRST_WAITING)?.is_some(),
        parked: first(FIRST_PARKED)?.map(rows::pos_of),
        dead: if dead_blocks { first(FIRST_DEAD)?.map(rows::pos_of) } else { None },
    })
}

pub(super) const NEXT_WAITING_KEY: &str = "SELECT key FROM retry WHERE hook = ?1 AND key >= ?2 ORDER BY key LIMIT 1";
pub(super) const NEXT_PARKED_KEY: &str = "SELECT key FROM parked WHERE hook = ?1 AND key >= ?2 ORDER BY key LIMIT 1";
pub(super) const NEXT_DEAD_KEY: &str =
    "SELECT key FROM dead WHERE hook = ?1 AND key >= ?2 AND card <> 3 ORDER BY key LIMIT 1";
pub(super) const FIRST_WAITING: &str = "SELECT min(seq) FROM retry WHERE hook = ?1 AND key = ?2";
pub(super) const FIRST_PARKED: &str = "SELECT min(seq) FROM parked WHERE hook = ?1 AND key = ?2";
pub(super) const FIRST_DEAD: &str = "SELECT min(seq) FROM dead WHERE hook = ?1 AND key = ?2 AND card <> 3";

/// Parked Deliveries of a key.
pub(super) fn parked(db: &Connection, hook: HookId, key: OrderKey, limit: usize) -> Result<Vec<OwedRow>> {
    let mut select = db.prepare_cached(
        "SELECT seq, sub, key, tries, shape FROM parked WHERE hook = ?1 AND key = ?2 ORDER BY seq LIMIT ?3",
    )?;
    select.query_map((hook.0, key.0, limit_of(limit)), rows::owed_row)?.collect()
}

/// Events at positions.
pub(super) fn bodies(db: &Connection, epochs: &Epochs, positions: &[Pos]) -> Result<Vec<StoredEvent>> {
    positions.iter().map(|pos| rows::event(db, epochs, *pos)).collect()
}
