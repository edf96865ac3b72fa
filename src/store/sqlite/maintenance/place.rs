//! Where a Delivery is, and the moves that upkeep makes with it. Every move
//! pushes the change of the counters, so that routed = delivered + dead +
//! discarded + pending holds after each.

use rusqlite::{Connection, Result, Row};

use super::super::{
    effects::{BUCKET_SHIFT, Step, TallyDelta},
    rows::{lower_first_bucket, pos_of},
};
use crate::store::{CardState, DeadReason, DiscardReason, HookId, News};

/// The number of [`CardState::Dismissed`] in the store. Spelled out in SQL, where
/// a partial index asks for it.
pub(super) const DISMISSED: i64 = CardState::Dismissed as i64;

/// The bucket of a position.
pub(super) const fn bucket_of_seq(seq: i64) -> i64 {
    seq >> BUCKET_SHIFT
}

/// What is pending has its row in one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// Keyed by (bucket, hook, seq).
    Owed,
    /// Keyed by (hook, due, seq): the due time.
    Retry(i64),
    /// Keyed by (hook, key, seq).
    Parked,
}

/// A Delivery that is owed, waits or is parked.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) table: Table,
    pub(super) hook: i64,
    pub(super) seq: i64,
    pub(super) sub: i64,
    pub(super) key: Option<i64>,
    pub(super) tries: i64,
    pub(super) shape: Option<i64>,
    pub(super) code: Option<i64>,
    pub(super) err: Option<String>,
}

impl Pending {
    /// From columns (hook, seq, sub, key, tries, shape) of `owed` or `parked`.
    pub(super) fn read(table: Table, row: &Row<'_>) -> Result<Self> {
        Ok(Self {
            table,
            hook: row.get(0)?,
            seq: row.get(1)?,
            sub: row.get(2)?,
            key: row.get(3)?,
            tries: row.get(4)?,
            shape: row.get(5)?,
            code: None,
            err: None,
        })
    }

    /// From columns (hook, seq, sub, key, tries, shape, due, code, err) of `retry`.
    pub(super) fn read_retry(row: &Row<'_>) -> Result<Self> {
        let pending = Self::read(Table::Retry(row.get(6)?), row)?;
        Ok(Self { code: row.get(7)?, err: row.get(8)?, ..pending })
    }

    fn delete(&self, db: &Connection) -> Result<usize> {
        match self.table {
            Table::Owed => db
                .prepare_cached("DELETE FROM owed WHERE bucket = ?1 AND hook = ?2 AND seq = ?3")?
                .execute((bucket_of_seq(self.seq), self.hook, self.seq)),
            Table::Retry(due) => db
                .prepare_cached("DELETE FROM retry WHERE hook = ?1 AND due = ?2 AND seq = ?3")?
                .execute((self.hook, due, self.seq)),
            Table::Parked => db
                .prepare_cached("DELETE FROM parked WHERE hook = ?1 AND key = ?2 AND seq = ?3")?
                .execute((self.hook, self.key, self.seq)),
        }
    }
}

/// Whether a Delivery is owed, waits or is parked.
pub(super) fn is_pending(db: &Connection, hook: i64, seq: i64) -> Result<bool> {
    db.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM owed WHERE bucket = ?1 AND hook = ?2 AND seq = ?3)
             OR EXISTS (SELECT 1 FROM retry WHERE seq = ?3 AND hook = ?2)
             OR EXISTS (SELECT 1 FROM parked WHERE seq = ?3 AND hook = ?2)",
    )?
    .query_row((bucket_of_seq(seq), hook, seq), |row| row.get(0))
}

/// Whether there is or was a Delivery: pending, dead, or with an attempt.
pub(super) fn is_known(db: &Connection, hook: i64, seq: i64) -> Result<bool> {
    if is_pending(db, hook, seq)? {
        return Ok(true);
    }
    db.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM dead WHERE bucket = ?1 AND hook = ?2 AND seq = ?3)
             OR EXISTS (SELECT 1 FROM attempt WHERE seq = ?3 AND hook = ?2)",
    )?
    .query_row((bucket_of_seq(seq), hook, seq), |row| row.get(0))
}

/// Whether the last attempt of a Delivery that is neither pending nor dead
/// delivered it.
pub(super) fn is_delivered(db: &Connection, hook: i64, seq: i64) -> Result<bool> {
    db.prepare_cached(
        "SELECT coalesce((SELECT ok FROM attempt WHERE seq = ?1 AND hook = ?2 ORDER BY id DESC LIMIT 1), 0) = 1",
    )?
    .query_row((seq, hook), |row| row.get(0))
}

/// Whether the event waits for its fan-out. Nobody else writes Deliveries of it
/// until then: the fan-out need not look whether there is one.
pub(super) fn is_unrouted(db: &Connection, seq: i64) -> Result<bool> {
    db.prepare_cached("SELECT EXISTS (SELECT 1 FROM scan WHERE kind = 'fan' AND first = ?1)")?
        .query_row([seq], |row| row.get(0))
}

/// A Delivery to be owed.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewOwed {
    pub(super) hook: i64,
    pub(super) seq: i64,
    pub(super) sub: i64,
    pub(super) key: Option<i64>,
    pub(super) shape: Option<i64>,
    /// From when `maxAge` counts; none: from the accept.
    pub(super) since: Option<i64>,
}

/// Writes an owed row, without counting. False if there is one.
pub(super) fn insert_owed(db: &Connection, row: &NewOwed) -> Result<bool> {
    let bucket = bucket_of_seq(row.seq);
    let inserted = db
        .prepare_cached(
            "INSERT OR IGNORE INTO owed (bucket, hook, seq, sub, key, tries, shape, since)
             VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6, ?7)",
        )?
        .execute((bucket, row.hook, row.seq, row.sub, row.key, row.shape, row.since))?;
    lower_first_bucket(db, HookId(row.hook), bucket)?;
    Ok(inserted == 1)
}

/// Writes a row that was re-opened, without counting. False if there is one.
///
/// For a hook that is ordered it is parked, with nothing in front of it: parked
/// rows of a key are sent before owed ones and in the order of their events. So
/// it comes before what was blocked behind it, and a crash changes nothing.
pub(super) fn insert_reopened(db: &Connection, row: &NewOwed, is_ordered: bool) -> Result<bool> {
    let Some(key) = row.key.filter(|_| is_ordered) else { return insert_owed(db, row) };
    let mut insert = db.prepare_cached(
        "INSERT OR IGNORE INTO parked (hook, key, seq, sub, tries, shape, since) VALUES (?1, ?2, ?3, ?4, 0, ?5, ?6)",
    )?;
    Ok(insert.execute((row.hook, key, row.seq, row.sub, row.shape, row.since))? == 1)
}

/// Pending Deliveries of one hook become dead; the dispatcher is told.
pub(super) fn bury(step: &mut Step<'_>, rows: &[Pending], reason: DeadReason) -> Result<()> {
    for row in rows {
        if row.delete(step.tx)? == 0 {
            continue;
        }
        step.tx
            .prepare_cached(
                "INSERT OR REPLACE INTO dead
                 (bucket, hook, seq, sub, key, shape, reason, code, err, tries, at, wall, card)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, 0)",
            )?
            .execute((
                bucket_of_seq(row.seq),
                row.hook,
                row.seq,
                row.sub,
                row.key,
                row.shape,
                reason as i64,
                row.code,
                &row.err,
                row.tries,
                step.now.0,
                step.wall.as_millisecond(),
            ))?;
        count(step, row.hook, -1, 1);
        step.effects.died[reason as usize] += 1;
    }
    if let Some((hook, from)) = rows.iter().map(|row| (row.hook, row.seq)).min_by_key(|(_, seq)| *seq) {
        changed(step, hook, from);
    }
    Ok(())
}

/// Pending Deliveries of one hook end as discarded; the dispatcher is told.
pub(super) fn discard(step: &mut Step<'_>, rows: &[Pending], reason: DiscardReason) -> Result<()> {
    for row in rows {
        if row.delete(step.tx)? > 0 {
            count(step, row.hook, -1, 0);
            step.effects.discard(reason, 1);
        }
    }
    if let Some((hook, from)) = rows.iter().map(|row| (row.hook, row.seq)).min_by_key(|(_, seq)| *seq) {
        changed(step, hook, from);
    }
    Ok(())
}

/// A dead Delivery ends as discarded. A dismissed one was counted before.
pub(super) fn discard_dead(step: &mut Step<'_>, hook: i64, seq: i64, reason: DiscardReason) -> Result<()> {
    let (was_dismissed, had_key): (bool, bool) = step
        .tx
        .prepare_cached(
            "DELETE FROM dead WHERE bucket = ?1 AND hook = ?2 AND seq = ?3 RETURNING card = ?4, key IS NOT NULL",
        )?
        .query_row((bucket_of_seq(seq), hook, seq, DISMISSED), |row| Ok((row.get(0)?, row.get(1)?)))?;
    if !was_dismissed {
        count(step, hook, 0, -1);
        step.effects.discard(reason, 1);
        if had_key {
            // It may have blocked its ordering key.
            changed(step, hook, seq);
        }
    }
    Ok(())
}

/// Counts what a hook has more, or less.
pub(super) fn count(step: &mut Step<'_>, hook: i64, pending: i64, dead: i64) {
    let hook = HookId(hook);
    if let Some(last) = step.effects.deltas.last_mut().filter(|last| last.hook == hook) {
        last.pending += pending;
        last.dead += dead;
    } else {
        step.effects.deltas.push(TallyDelta { hook, pending, dead, ..TallyDelta::default() });
    }
}

/// Tells the dispatcher that a hook is owed more, at positions that it may have
/// read past.
pub(super) fn added(step: &mut Step<'_>, hook: i64, from: i64) {
    step.effects.news.push(News::Added { hook: HookId(hook), from: pos_of(from) });
}

/// Tells the dispatcher that rows of a hook changed behind its back.
pub(super) fn changed(step: &mut Step<'_>, hook: i64, from: i64) {
    step.effects.news.push(News::Changed { hook: HookId(hook), from: pos_of(from) });
}
