//! Recording outcomes of attempts; inside the writer's transaction.
//!
//! A pending Delivery has its row in one of `owed`, `retry` and `parked`. Every
//! change names the number of tries that the row must have: an outcome that came
//! twice, or too late, finds nothing and is ignored.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Result, Row};

use super::{
    effects::{Effects, LastAttempt, TallyDelta},
    rows,
    space::History,
};
use crate::{
    event::{Pos, StoreTime},
    store::{Attempt, DeadReason, HookId, Next, Outcome, OwedRow},
};

/// Successes of a hook whose detail is kept.
const SUCCESSES_KEPT: usize = 50;
/// Successes beyond them after which the oldest are removed.
const SUCCESSES_SLACK: usize = 10;

/// Which hooks have how many successes with detail since the last sweep.
#[derive(Default)]
pub(super) struct Successes(HashMap<HookId, usize>);

/// One transaction's outcomes.
pub(super) struct Record<'a> {
    pub(super) db: &'a Connection,
    pub(super) effects: &'a mut Effects,
    pub(super) now: StoreTime,
    pub(super) wall_ms: i64,
    pub(super) next_attempt: &'a mut i64,
    pub(super) successes: &'a mut Successes,
    /// What of an attempt may be kept.
    pub(super) history: History,
}

/// A pending Delivery that an outcome fits.
struct Found {
    row: OwedRow,
    /// What `maxAge` counts from, if not the accept.
    since: Option<i64>,
    /// Of the last failed attempt, if it waits for a retry.
    code: Option<u16>,
    error: Option<String>,
}

impl Record<'_> {
    /// Records outcomes in their order.
    pub(super) fn all(&mut self, outcomes: &[Outcome]) -> Result<()> {
        // Of many successes in one transaction only the last ones are kept.
        let mut left: HashMap<HookId, usize> = HashMap::new();
        for outcome in outcomes.iter().filter(|outcome| keeps_success(outcome)) {
            *left.entry(outcome.hook).or_default() += 1;
        }
        for outcome in outcomes {
            let is_superseded = keeps_success(outcome) && {
                let left = left.entry(outcome.hook).or_default();
                *left = left.saturating_sub(1);
                *left >= SUCCESSES_KEPT
            };
            self.one(outcome, is_superseded)?;
        }
        Ok(())
    }

    fn one(&mut self, outcome: &Outcome, is_superseded: bool) -> Result<()> {
        let Outcome { hook, pos, tries, .. } = *outcome;
        let mut delta = TallyDelta { hook, ..TallyDelta::default() };
        match outcome.next {
            Next::Done => {
                if !delete(self.db, hook, pos, tries)? {
                    return Ok(());
                }
                (delta.delivered, delta.pending) = (1, -1);
                self.effects.totals.delivered += 1;
            }
            Next::At(due) => {
                let Some(found) = take(self.db, hook, pos, tries)? else { return Ok(()) };
                self.wait(outcome, found, due)?;
            }
            Next::Dead(reason) => {
                let Some(found) = take(self.db, hook, pos, tries)? else { return Ok(()) };
                self.bury(outcome, found, reason)?;
                (delta.dead, delta.pending) = (1, -1);
                self.effects.died[reason as usize] += 1;
            }
            Next::Park => return self.park(outcome),
            Next::Back => {
                if !self.stay(outcome)? {
                    return Ok(());
                }
            }
        }
        if let Some(attempt) = &outcome.attempt {
            let is_ok = outcome.next == Next::Done;
            delta.failed = i64::from(!is_ok);
            delta.last = Some(LastAttempt { ms: attempt.at.as_millisecond(), code: attempt.code.unwrap_or_default() });
            self.keep_attempt(outcome, attempt, is_superseded)?;
        }
        self.effects.deltas.push(delta);
        Ok(())
    }

    fn wait(&self, outcome: &Outcome, found: Found, due: StoreTime) -> Result<()> {
        let row = after(outcome, &found.row);
        let (code, error) = last(outcome, &found);
        let mut insert = self.db.prepare_cached(
            "INSERT INTO retry (hook, due, seq, sub, key, tries, shape, code, err, since)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?;
        let (seq, key) = (rows::seq_of(row.pos), row.key.map(|key| key.0));
        let (hook, sub) = (outcome.hook.0, row.sub.0);
        insert.execute((hook, due.0, seq, sub, key, row.tries, row.shape, code, error, found.since))?;
        Ok(())
    }

    fn bury(&self, outcome: &Outcome, found: Found, reason: DeadReason) -> Result<()> {
        let row = after(outcome, &found.row);
        let (code, error) = last(outcome, &found);
        let mut insert = self.db.prepare_cached(
            "INSERT OR REPLACE INTO dead (bucket, hook, seq, sub, key, shape, reason, code, err, tries, at, wall, card)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, 0)",
        )?;
        let (bucket, seq) = (rows::bucket_of(row.pos), rows::seq_of(row.pos));
        let key = row.key.map(|key| key.0);
        let (hook, sub, reason) = (outcome.hook.0, row.sub.0, reason as i64);
        insert.execute((
            bucket,
            hook,
            seq,
            sub,
            key,
            row.shape,
            reason,
            code,
            error,
            row.tries,
            self.now.0,
            self.wall_ms,
        ))?;
        Ok(())
    }

    /// Only from owed, and only with a key.
    fn park(&self, outcome: &Outcome) -> Result<()> {
        let (bucket, seq) = (rows::bucket_of(outcome.pos), rows::seq_of(outcome.pos));
        let mut delete = self.db.prepare_cached(
            "DELETE FROM owed WHERE bucket = ?1 AND hook = ?2 AND seq = ?3 AND tries = ?4 AND key IS NOT NULL
             RETURNING seq, sub, key, tries, shape, since",
        )?;
        let found = delete.query_row((bucket, outcome.hook.0, seq, outcome.tries), |row| {
            Ok((rows::owed_row(row)?, row.get::<_, Option<i64>>(5)?))
        });
        let Some((row, since)) = found.optional()? else { return Ok(()) };
        let mut insert = self.db.prepare_cached(
            "INSERT INTO parked (hook, key, seq, sub, tries, shape, since) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?;
        let key = row.key.map(|key| key.0);
        insert.execute((outcome.hook.0, key, seq, row.sub.0, row.tries, row.shape, since))?;
        Ok(())
    }

    /// Leaves the row where it is, but keeps the shape it was sent in.
    fn stay(&self, outcome: &Outcome) -> Result<bool> {
        let shape = outcome.attempt.as_ref().map(|attempt| attempt.shape);
        let (bucket, seq) = (rows::bucket_of(outcome.pos), rows::seq_of(outcome.pos));
        let (hook, tries) = (outcome.hook.0, outcome.tries);
        let mut owed = self.db.prepare_cached(
            "UPDATE owed SET shape = coalesce(shape, ?1) WHERE bucket = ?2 AND hook = ?3 AND seq = ?4 AND tries = ?5",
        )?;
        if owed.execute((shape, bucket, hook, seq, tries))? == 1 {
            return Ok(true);
        }
        for sql in [
            "UPDATE retry SET shape = coalesce(shape, ?1) WHERE seq = ?2 AND hook = ?3 AND tries = ?4",
            "UPDATE parked SET shape = coalesce(shape, ?1) WHERE seq = ?2 AND hook = ?3 AND tries = ?4",
        ] {
            if self.db.prepare_cached(sql)?.execute((shape, seq, hook, tries))? == 1 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn keep_attempt(&mut self, outcome: &Outcome, attempt: &Attempt, is_superseded: bool) -> Result<()> {
        if self.history == History::Nothing {
            return Ok(());
        }
        let id = *self.next_attempt;
        *self.next_attempt += 1;
        let (bucket, hook, seq) = (rows::bucket_of(outcome.pos), outcome.hook, rows::seq_of(outcome.pos));
        let (is_ok, number) = (outcome.next == Next::Done, outcome.tries.saturating_add(1));
        let mut insert = self.db.prepare_cached(
            "INSERT INTO attempt (bucket, hook, id, seq, n, at, code, ms, err, ok)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?;
        let (at, ms) = (attempt.at.as_millisecond(), attempt.duration_ms);
        insert.execute((bucket, hook.0, id, seq, number, at, attempt.code, ms, attempt.error, is_ok))?;
        let Some(detail) = &attempt.detail else { return Ok(()) };
        if is_superseded || self.history == History::NoDetail {
            return Ok(());
        }
        let mut insert = self
            .db
            .prepare_cached("INSERT INTO answer (id, bucket, hook, ok, head, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
        insert.execute((id, bucket, hook.0, is_ok, &detail.head, &detail.body))?;
        if is_ok { self.sweep_successes(hook) } else { Ok(()) }
    }

    /// Removes the detail of older successes, some at a time.
    fn sweep_successes(&mut self, hook: HookId) -> Result<()> {
        // A fresh process does not know how many there are and looks at once.
        let count = self.successes.0.entry(hook).or_insert(SUCCESSES_SLACK);
        *count += 1;
        if *count <= SUCCESSES_SLACK {
            return Ok(());
        }
        *count = 0;
        let mut delete = self.db.prepare_cached(
            "DELETE FROM answer WHERE hook = ?1 AND ok = 1 AND id <=
             (SELECT id FROM answer WHERE hook = ?1 AND ok = 1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
        )?;
        delete.execute((hook.0, i64::try_from(SUCCESSES_KEPT).unwrap_or(i64::MAX)))?;
        Ok(())
    }
}

fn keeps_success(outcome: &Outcome) -> bool {
    outcome.next == Next::Done && outcome.attempt.as_ref().is_some_and(|attempt| attempt.detail.is_some())
}

/// The row after an attempt that used up a try, if there was one.
fn after(outcome: &Outcome, row: &OwedRow) -> OwedRow {
    let Some(attempt) = &outcome.attempt else { return *row };
    OwedRow { tries: row.tries.saturating_add(1), shape: row.shape.or(Some(attempt.shape)), ..*row }
}

/// Code and reason of the last attempt: this one, or the one before.
fn last(outcome: &Outcome, found: &Found) -> (Option<u16>, Option<String>) {
    match &outcome.attempt {
        Some(attempt) => (attempt.code, attempt.error.map(str::to_owned)),
        None => (found.code, found.error.clone()),
    }
}

/// Deletes a pending row.
fn delete(db: &Connection, hook: HookId, pos: Pos, tries: u16) -> Result<bool> {
    let (bucket, seq) = (rows::bucket_of(pos), rows::seq_of(pos));
    let mut owed = db.prepare_cached("DELETE FROM owed WHERE bucket = ?1 AND hook = ?2 AND seq = ?3 AND tries = ?4")?;
    if owed.execute((bucket, hook.0, seq, tries))? == 1 {
        return Ok(true);
    }
    for sql in [
        "DELETE FROM retry WHERE seq = ?1 AND hook = ?2 AND tries = ?3",
        "DELETE FROM parked WHERE seq = ?1 AND hook = ?2 AND tries = ?3",
    ] {
        if db.prepare_cached(sql)?.execute((seq, hook.0, tries))? == 1 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Deletes a pending row and gives what it was.
fn take(db: &Connection, hook: HookId, pos: Pos, tries: u16) -> Result<Option<Found>> {
    let (bucket, seq) = (rows::bucket_of(pos), rows::seq_of(pos));
    let mut owed = db.prepare_cached(
        "DELETE FROM owed WHERE bucket = ?1 AND hook = ?2 AND seq = ?3 AND tries = ?4
         RETURNING seq, sub, key, tries, shape, since, NULL, NULL",
    )?;
    if let Some(found) = owed.query_row((bucket, hook.0, seq, tries), found).optional()? {
        return Ok(Some(found));
    }
    for sql in [
        "DELETE FROM retry WHERE seq = ?1 AND hook = ?2 AND tries = ?3
         RETURNING seq, sub, key, tries, shape, since, code, err",
        "DELETE FROM parked WHERE seq = ?1 AND hook = ?2 AND tries = ?3
         RETURNING seq, sub, key, tries, shape, since, NULL, NULL",
    ] {
        if let Some(found) = db.prepare_cached(sql)?.query_row((seq, hook.0, tries), found).optional()? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn found(row: &Row<'_>) -> Result<Found> {
    Ok(Found { row: rows::owed_row(row)?, since: row.get(5)?, code: row.get(6)?, error: row.get(7)? })
}
