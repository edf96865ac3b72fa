//! The writer while there is no room: the volume is full, or the database is.
//!
//! A transaction that finds no room is rolled back, and everything in memory is
//! again as if it had never begun. Its publishers hear that there is no room. Its
//! outcomes and commands stay first in the queue; from then on each kind of work is
//! a transaction of its own, as small as it has to be, and is tried again until all
//! of them fit. Deliveries go on meanwhile: the dispatcher starts no more of them
//! than it may have outcomes that are not durable.

#[cfg(test)]
mod tests;

use std::time::Duration;

use rusqlite::{Error, Result};

use super::{
    checkpoint::TransactionMost,
    maintenance::Rounds,
    outcomes::Successes,
    queue::{Command, Work},
    writer::Writer,
};
use crate::{
    event::{Pos, StoreTime},
    store::AcceptError,
};

/// How long publishers are refused before the next try.
const RETRY_EVERY: Duration = Duration::from_millis(if cfg!(test) { 2 } else { 250 });

/// What is tried while there is no room.
pub(super) struct Stuck {
    /// Outcomes at once.
    outcomes_max: usize,
    /// The last try failed.
    is_failing: bool,
}

/// A transaction for which there was no room: it is as if it had never begun.
pub(super) struct RolledBack {
    /// What was to be done, but for what events there were.
    pub(super) work: Work,
    /// What its publishers hear.
    pub(super) refusal: AcceptError,
    pub(super) error: Error,
}

/// What a transaction changes in memory before it is durable, and how it was.
pub(super) struct Before {
    pub(super) next: Pos,
    pub(super) next_attempt: i64,
}

/// Lets commits fail as a disk would.
#[cfg(test)]
#[derive(Default)]
pub(super) struct Breaks(std::sync::Mutex<(i32, u32)>);

#[cfg(test)]
impl Breaks {
    /// So many commits from now on fail with this code of SQLite.
    pub(super) fn fail(&self, code: i32, commits: u32) {
        *self.0.lock().unwrap() = (code, commits);
    }

    /// Why this commit fails. A failed sync is only one's who waits for it.
    pub(super) fn next(&self, is_full_sync: bool) -> Result<()> {
        let (code, left) = &mut *self.0.lock().unwrap();
        if *left == 0 || (*code == rusqlite::ffi::SQLITE_IOERR_FSYNC && !is_full_sync) {
            return Ok(());
        }
        *left -= 1;
        Err(Error::SqliteFailure(rusqlite::ffi::Error::new(*code), None))
    }
}

impl Writer {
    /// How much the next transaction may hold.
    pub(super) fn most(&self) -> TransactionMost {
        let most = self.checkpointer.most();
        let outcomes = self.stuck.as_ref().map_or(most.outcomes, |stuck| stuck.outcomes_max.min(most.outcomes));
        TransactionMost { outcomes, ..most }
    }

    /// Undoes a transaction, in the database and in memory.
    pub(super) fn roll_back(&mut self, before: &Before) -> Result<()> {
        // After some errors SQLite has done so itself.
        if !self.db.is_autocommit() {
            self.db.prepare_cached("ROLLBACK")?.execute([])?;
        }
        (self.state.next, self.state.next_attempt) = (before.next, before.next_attempt);
        // Caches of what is in the tables: what is not in them is looked up again.
        self.state.namespaces.clear();
        self.state.first_buckets.clear();
        self.state.ids.rolled_back();
        self.room.rolled_back();
        self.ledger.rolled_back();
        // These begin as at a start of the process.
        self.successes = Successes::default();
        self.rounds = Rounds::default();
        (self.due, self.is_upkeep_spare) = (StoreTime(0), true);
        Ok(())
    }

    /// Takes a transaction that was rolled back: refuses its publishers and keeps
    /// the rest.
    pub(super) fn get_stuck(&mut self, rolled_back: RolledBack) {
        let RolledBack { mut work, refusal, error } = rolled_back;
        if self.stuck.is_none() {
            tracing::warn!(error = %error, "the store has no room; events are refused until there is some");
        }
        for batch in std::mem::take(&mut work.batches) {
            batch.refuse(refusal.clone());
        }
        self.stuck = Some(Stuck { outcomes_max: (work.outcomes.len() / 2).max(1), is_failing: true });
        self.shared.queue.put_back(work);
    }

    /// The same work as ever, each kind of it in a transaction of its own.
    ///
    /// # Errors
    /// Another error than that there is no room; that one too if this was the last
    /// try.
    pub(super) fn work_while_stuck(&mut self, mut work: Work, is_last: bool) -> Result<()> {
        for batch in std::mem::take(&mut work.batches) {
            batch.refuse(AcceptError::Full);
        }
        if self.stuck.as_ref().is_some_and(|stuck| stuck.is_failing) {
            // It may be that only the log has no room left.
            self.checkpointer.empty(&self.db)?;
        }
        self.look_at_volume()?;
        // As ever, nobody waits for outcomes, but for the last.
        self.sync_mode(is_last)?;
        let failed = self.outcomes_alone(&mut work)?;
        self.sync_mode(is_last || !work.commands.is_empty())?;
        let failed = self.commands_alone(&mut work)?.or(failed);
        let failed = self.upkeep_alone()?.or(failed);
        self.shared.queue.put_back(work);
        if let Some(stuck) = &mut self.stuck {
            stuck.is_failing = failed.is_some();
        }
        match failed {
            Some(error) if is_last || self.shared.queue.is_closing() => return Err(error),
            Some(_) => self.shared.queue.refuse_batches(RETRY_EVERY),
            None if self.volume.room().for_events => {
                tracing::info!("the store has room again");
                self.stuck = None;
            }
            None => {}
        }
        self.look_at_log()
    }

    fn outcomes_alone(&mut self, work: &mut Work) -> Result<Option<Error>> {
        let outcomes = std::mem::take(&mut work.outcomes);
        let count = outcomes.len();
        if count == 0 {
            self.tell_recorded(0);
            return Ok(None);
        }
        let alone = Work { outcomes, ..Work::default() };
        let rolled_back = self.transaction(alone, self.shared.clock.now(), false)?;
        if let Some(stuck) = &mut self.stuck {
            stuck.outcomes_max = if rolled_back.is_some() { (count / 2).max(1) } else { count * 2 };
        }
        let Some(RolledBack { work: alone, error, .. }) = rolled_back else {
            self.tell_recorded(count);
            return Ok(None);
        };
        work.outcomes = alone.outcomes;
        Ok(Some(error))
    }

    /// In their order: behind one that has no room all of them wait.
    fn commands_alone(&mut self, work: &mut Work) -> Result<Option<Error>> {
        let mut commands: std::collections::VecDeque<Command> = std::mem::take(&mut work.commands).into();
        while let Some(command) = commands.pop_front() {
            let alone = Work { commands: vec![command], ..Work::default() };
            if let Some(RolledBack { work: alone, error, .. }) =
                self.transaction(alone, self.shared.clock.now(), false)?
            {
                work.commands = alone.commands;
                work.commands.extend(commands);
                return Ok(Some(error));
            }
        }
        Ok(None)
    }

    fn upkeep_alone(&mut self) -> Result<Option<Error>> {
        if !self.has_upkeep(self.shared.clock.now()) {
            return Ok(None);
        }
        let rolled_back = self.transaction(Work::default(), self.shared.clock.now(), true)?;
        Ok(rolled_back.map(|rolled_back| rolled_back.error))
    }
}
