//! What the dispatcher reads: pending Deliveries and events.

use rusqlite::{Connection, OptionalExtension, Result};

use super::{
    open::meta,
    rows::{self, Epochs},
};
use crate::{
    event::{Pos, StoreTime},
    store::{HookId, OrderKey, OwedPage, OwedRow, StoredEvent, WaitingPage},
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

/// Keys of a hook with a Delivery that waits or is parked.
pub(super) fn blocked_keys(db: &Connection, hook: HookId, limit: usize) -> Result<Vec<OrderKey>> {
    let mut waiting =
        db.prepare_cached("SELECT DISTINCT key FROM retry WHERE hook = ?1 AND key IS NOT NULL LIMIT ?2")?;
    let keys = waiting.query_map((hook.0, limit_of(limit)), |row| row.get(0))?;
    let mut keys: std::collections::BTreeSet<i64> = keys.collect::<Result<_>>()?;
    // From key to key, not from row to row: a key may have a million of them.
    let mut parked = db.prepare_cached("SELECT key FROM parked WHERE hook = ?1 AND key >= ?2 ORDER BY key LIMIT 1")?;
    let mut from = i64::MIN;
    while keys.len() < limit {
        let key: Option<i64> = parked.query_row((hook.0, from), |row| row.get(0)).optional()?;
        let Some(key) = key else { break };
        keys.insert(key);
        let Some(next) = key.checked_add(1) else { break };
        from = next;
    }
    Ok(keys.into_iter().take(limit).map(OrderKey).collect())
}

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
