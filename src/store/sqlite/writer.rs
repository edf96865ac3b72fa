//! The one writer: a thread that makes everything that waits one transaction
//! (group commit), and answers when it is on stable storage.
//!
//! # Order inside a transaction
//! Rows of counters, a step of maintenance, outcomes, commands, batches. So a
//! command takes effect before every event of its transaction.
//!
//! # Failure
//! An error is the end: nothing is tried again, whoever waits gets no answer
//! (which reads as *unknown*), everything later is refused, and the dispatcher
//! hears [`News::Failed`]. The process exits, and the next start reads what the
//! disk really has. Only for want of room a transaction is rolled back and the
//! store goes on: [`super::stuck`].

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rusqlite::{Connection, Result};
use tokio::sync::watch;

use super::{
    accept::{Accept, Added},
    checkpoint::Checkpointer,
    effects::{Effects, Progress, Step},
    maintenance,
    metrics::StoreMetrics,
    open::set_meta,
    outcomes::{Record, Successes},
    queue::{Batch, Command, Queue, Reply, Taking, Work, closed},
    recent::{self, RecentIds},
    register::{self, Registrar},
    rows::{self, Epochs},
    slack::Slack,
    space::{History, Room, Usage},
    stuck::{Before, RolledBack, Stuck},
    tally::{self, Ledger, Tallies},
    time::StoreClock,
    told::Told,
    volume::{self, Volume},
};
use crate::{
    event::{Pos, StoreTime},
    runtime::clock,
    store::{
        HookId, News, NewsSender, Outcome, RecordTicket, Register, Registered, Router, StoreError, StoreLimits, Target,
    },
};

/// How long the writer sleeps at most: tests drive the clock, machines sleep.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// How long it sleeps at most while the write-ahead log is too long: there is no
/// upkeep then.
const BEHIND_SLEEP: Duration = Duration::from_millis(50);
/// Store time between two looks of maintenance at most, in milliseconds.
const MAINTENANCE_EVERY_MS: i64 = 60_000;
/// How long upkeep that nobody waits for waits for a transaction to ride with.
const UPKEEP_WAIT: Duration = Duration::from_millis(10);
/// Part of the time of a transaction that somebody waits for which upkeep may add
/// to it, beside one step.
const UPKEEP_PART: u32 = 8;
/// Time that upkeep takes of one transaction at most, beside one step: so long an
/// accept waits that comes when nobody was waiting.
const UPKEEP_TIME_MAX: Duration = Duration::from_millis(1);

/// What the writer shares with the callers.
pub(super) struct Shared {
    pub(super) queue: Queue,
    pub(super) clock: StoreClock,
    pub(super) usage: Arc<Usage>,
    pub(super) tallies: Tallies,
    pub(super) recorded: watch::Sender<RecordTicket>,
    pub(super) told: Told,
    /// The write-ahead log is too long to accept more.
    pub(super) is_behind: AtomicBool,
    #[cfg(test)]
    pub(super) breaks: super::stuck::Breaks,
}

/// What the writer knows of the tables, so that it need not ask.
pub(super) struct State {
    pub(super) next: Pos,
    pub(super) next_attempt: i64,
    pub(super) epochs: Arc<Epochs>,
    pub(super) limits: StoreLimits,
    /// Numbers of namespaces by UID.
    pub(super) namespaces: HashMap<Arc<str>, i64>,
    /// Publishers' ids.
    pub(super) ids: RecentIds,
    /// Hooks whose `first_bucket` is at most this one.
    pub(super) first_buckets: HashMap<HookId, i64>,
    /// For the router to fill.
    pub(super) targets: Vec<Target>,
}

/// The writer.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) db: Connection,
    pub(super) router: Box<dyn Router>,
    pub(super) news: NewsSender,
    pub(super) state: State,
    pub(super) room: Room,
    pub(super) ledger: Ledger,
    pub(super) successes: Successes,
    pub(super) rounds: maintenance::Rounds,
    pub(super) checkpointer: Checkpointer,
    pub(super) volume: Volume,
    /// The last transactions had no room.
    pub(super) stuck: Option<Stuck>,
    pub(super) metrics: StoreMetrics,
    /// When maintenance looks again.
    pub(super) due: StoreTime,
    /// What is due of it is nothing that somebody waits for.
    pub(super) is_upkeep_spare: bool,
    /// How long the last transaction took that somebody waited for, without its
    /// upkeep.
    pub(super) awaited_took: Duration,
    /// Whether the last transaction was one that waits for the disk.
    pub(super) is_full_sync: bool,
    pub(super) slack: Slack,
}

/// Refuses everything when the thread ends, however it ends.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.queue.end(&StoreError::Failed(Arc::from("its writer ended")));
        self.0.told.end();
    }
}

impl Writer {
    /// Works until the end of the store.
    pub(super) fn run(mut self) {
        let _end = End(self.shared.clone());
        let mut taking = Taking::default();
        loop {
            let mut work = self.shared.queue.take(&mut taking, self.patience(), self.most());
            if work.is_abandoned {
                return;
            }
            let close = work.close.take();
            let end = self.work(work, close.is_some());
            if let Err(error) = end {
                return self.fail(&error, close);
            }
            if let Some(reply) = close {
                return self.close(reply);
            }
        }
    }

    fn patience(&self) -> Duration {
        let left_ms = self.upkeep_due().0.saturating_sub(self.shared.clock.now().0);
        if self.shared.is_behind.load(Ordering::Relaxed) {
            return BEHIND_SLEEP;
        }
        if left_ms <= 0 && self.is_upkeep_spare {
            return UPKEEP_WAIT;
        }
        Duration::from_millis(u64::try_from(left_ms).unwrap_or_default()).min(SLEEP_MAX)
    }

    fn upkeep_due(&self) -> StoreTime {
        let others = [self.ledger.due(), self.state.ids.due()];
        others.into_iter().flatten().fold(self.due, StoreTime::min)
    }

    fn fail(&self, error: &rusqlite::Error, close: Option<Reply<()>>) {
        tracing::error!(error = %error, "the store failed; the process must end");
        let error = StoreError::Failed(error.to_string().into());
        self.shared.queue.end(&error);
        if let Some(reply) = close {
            drop(reply.send(Err(error.clone())));
        }
        self.news.send(News::Failed(error));
    }

    fn close(self, reply: Reply<()>) {
        // A reader may hold the log; then the next start empties it.
        let truncated = self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        self.shared.queue.end(&closed());
        let answer = truncated.map_err(|error| StoreError::Failed(error.to_string().into()));
        drop(self);
        drop(reply.send(answer));
    }

    /// One transaction, if there is anything to do.
    fn work(&mut self, mut work: Work, is_last: bool) -> Result<()> {
        if let Some(limits) = work.limits.take() {
            let limits = self.volume.configure(limits);
            self.configure(limits)?;
            self.look_at_volume()?;
        }
        if self.stuck.is_some() {
            return self.work_while_stuck(work, is_last);
        }
        let now = self.shared.clock.now();
        let has_upkeep = self.has_upkeep(now);
        let outcomes = work.outcomes.len();
        if outcomes > 0 || work.is_awaited() || has_upkeep || is_last {
            self.sync_mode(work.is_awaited() || is_last)?;
            if let Some(rolled_back) = self.transaction(work, now, has_upkeep)? {
                if is_last {
                    return Err(rolled_back.error);
                }
                self.get_stuck(rolled_back);
                return Ok(());
            }
            self.look_at_volume()?;
            self.look_at_log()?;
            self.slack.busy(clock::monotonic());
        } else {
            self.look_at_volume()?;
            self.slack.idle(&self.db, clock::monotonic())?;
            if self.shared.is_behind.load(Ordering::Relaxed) {
                self.look_at_log()?;
            }
        }
        self.tell_recorded(outcomes);
        Ok(())
    }

    pub(super) fn tell_recorded(&self, outcomes: usize) {
        if let Some(ticket) = self.shared.queue.recorded(outcomes) {
            self.shared.recorded.send_replace(ticket);
        }
    }

    /// Upkeep makes the log longer, which is for outcomes when it is too long.
    pub(super) fn has_upkeep(&self, now: StoreTime) -> bool {
        self.upkeep_due() <= now && !self.shared.is_behind.load(Ordering::Relaxed)
    }

    fn configure(&mut self, limits: StoreLimits) -> Result<()> {
        self.room.configure(&self.db, &limits)?;
        self.checkpointer.configure(limits.size_bytes);
        self.state.limits = limits;
        self.due = StoreTime(0);
        Ok(())
    }

    pub(super) fn look_at_volume(&mut self) -> Result<()> {
        if let Some(limits) = self.volume.look(&self.db, self.room.used()) {
            self.configure(limits)?;
        }
        self.room.look_at(self.volume.room());
        self.metrics.look_at(self.volume.room());
        self.checkpointer.confine(self.volume.confined_log());
        Ok(())
    }

    pub(super) fn look_at_log(&mut self) -> Result<()> {
        let is_behind = self.checkpointer.after_commit(&self.db)?;
        self.shared.is_behind.store(is_behind, Ordering::Relaxed);
        Ok(())
    }

    /// Nobody waits for outcomes: a crash of the machine repeats their attempts.
    pub(super) fn sync_mode(&mut self, is_full: bool) -> Result<()> {
        if self.is_full_sync != is_full {
            self.db.pragma_update(None, "synchronous", if is_full { "full" } else { "normal" })?;
            self.is_full_sync = is_full;
        }
        Ok(())
    }

    /// Does work, and with it what is due of upkeep. Gives the work back if there
    /// was no room for it.
    pub(super) fn transaction(
        &mut self,
        mut work: Work,
        now: StoreTime,
        has_upkeep: bool,
    ) -> Result<Option<RolledBack>> {
        let before = Before { next: self.state.next, next_attempt: self.state.next_attempt };
        let mut effects = Effects::default();
        match self.try_transaction(&mut work, now, has_upkeep, &mut effects) {
            Ok(entry) => {
                self.committed(effects, entry, work)?;
                Ok(None)
            }
            Err(error) => {
                let Some(refusal) = volume::refusal(&error, &self.volume) else { return Err(error) };
                self.roll_back(&before)?;
                self.shared.told.done();
                Ok(Some(RolledBack { work, refusal, error }))
            }
        }
    }

    /// Gives the number of its entry in the log of counters.
    fn try_transaction(
        &mut self,
        work: &mut Work,
        now: StoreTime,
        has_upkeep: bool,
        effects: &mut Effects,
    ) -> Result<Option<i64>> {
        let is_awaited = work.is_awaited();
        self.db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        if has_upkeep {
            self.ledger.write_rows(&self.db, now, self.state.next)?;
            let first = recent::first_bucket(now, self.state.limits.deduplication);
            self.state.ids.upkeep(&self.db, now, first)?;
            if self.due <= now {
                self.maintain(now, is_awaited, effects)?;
            }
        }
        let begun = clock::monotonic();
        let entry = self.fill(work, now, effects)?;
        if effects.tells_of_old_positions() {
            self.shared.told.begin();
        }
        self.commit()?;
        if is_awaited {
            self.awaited_took = clock::monotonic().saturating_duration_since(begun);
        }
        Ok(entry)
    }

    /// What a transaction means, now that it is durable.
    fn committed(&mut self, effects: Effects, entry: Option<i64>, work: Work) -> Result<()> {
        self.ledger.committed(&effects.deltas, entry);
        self.state.ids.committed();
        self.metrics.committed(&effects);
        if !effects.routes.is_empty() {
            self.router.apply(&effects.routes);
        }
        self.room.free(&effects.freed);
        self.room.committed(&self.db)?;
        for uid in &effects.gone {
            self.state.namespaces.remove(uid);
            self.room.forget(uid);
        }
        if self.rounds.look_at_room(self.room.used(), self.state.limits.size_bytes) {
            self.due = StoreTime(0);
        }
        work.answer();
        for news in effects.news {
            self.news.send(news);
        }
        self.shared.told.done();
        Ok(())
    }

    fn commit(&self) -> Result<()> {
        #[cfg(test)]
        self.shared.breaks.next(self.is_full_sync)?;
        self.db.prepare_cached("COMMIT")?.execute([])?;
        Ok(())
    }

    /// Everything inside a transaction; gives the number of its entry in the log
    /// of counters.
    fn fill(&mut self, work: &mut Work, now: StoreTime, effects: &mut Effects) -> Result<Option<i64>> {
        let before = (self.state.next, self.state.next_attempt);
        self.record(&work.outcomes, now, effects)?;
        for command in &mut work.commands {
            self.command(command, now, effects)?;
        }
        if !work.batches.is_empty() {
            self.accept(&mut work.batches, now, effects)?;
        }
        effects.deltas = tally::merge(std::mem::take(&mut effects.deltas));
        tally::write_totals(&self.db, &effects.totals)?;
        let entry = self.ledger.append(&self.db, &effects.deltas)?;
        set_meta(&self.db, "clock_ms", now.0)?;
        set_meta(&self.db, "wall_ms", self.shared.clock.wall().as_millisecond())?;
        if self.state.next != before.0 {
            set_meta(&self.db, "next_seq", rows::seq_of(self.state.next))?;
        }
        if self.state.next_attempt != before.1 {
            set_meta(&self.db, "next_attempt", self.state.next_attempt)?;
        }
        Ok(entry)
    }

    fn step<'a>(&'a self, now: StoreTime, effects: &'a mut Effects) -> Step<'a> {
        Step {
            tx: &self.db,
            router: &*self.router,
            now,
            wall: self.shared.clock.wall(),
            limits: &self.state.limits,
            next: self.state.next,
            epochs: &self.state.epochs,
            effects,
        }
    }

    /// Does what is due of upkeep, as much as there is time for: all of it beside
    /// outcomes alone, a part of what they took before beside publishers. So it
    /// keeps up with them, whatever the disk does, and hardly holds them up.
    fn maintain(&mut self, now: StoreTime, is_awaited: bool, effects: &mut Effects) -> Result<()> {
        let tallies = self.ledger.tallies.clone();
        let mut rounds = std::mem::take(&mut self.rounds);
        let part = if is_awaited { self.awaited_took / UPKEEP_PART } else { UPKEEP_TIME_MAX };
        let end = clock::monotonic() + part.min(UPKEEP_TIME_MAX);
        self.is_upkeep_spare = true;
        for _ in 0..self.checkpointer.most().steps {
            self.due = match rounds.step(&mut self.step(now, effects), &|hook| tallies.pending(hook))? {
                Progress::More => {
                    self.is_upkeep_spare = false;
                    now
                }
                Progress::Spare => now,
                Progress::Idle(until) => until.min(now.plus_ms(MAINTENANCE_EVERY_MS)),
            };
            if self.due > now || clock::monotonic() >= end {
                break;
            }
        }
        self.rounds = rounds;
        Ok(())
    }

    fn record(&mut self, outcomes: &[Outcome], now: StoreTime, effects: &mut Effects) -> Result<()> {
        if outcomes.is_empty() {
            return Ok(());
        }
        let mut record = Record {
            db: &self.db,
            effects,
            now,
            wall_ms: self.shared.clock.wall().as_millisecond(),
            next_attempt: &mut self.state.next_attempt,
            successes: &mut self.successes,
            history: if self.stuck.is_some() { History::Nothing } else { self.room.history() },
        };
        record.all(outcomes)
    }

    fn command(&mut self, command: &mut Command, now: StoreTime, effects: &mut Effects) -> Result<()> {
        match command {
            Command::Register(ask) => ask.answer = Some(self.register(&ask.question, now, effects)?),
            Command::Note(ask) => {
                let (hook, note) = &ask.question;
                register::note(&self.db, *hook, note)?;
                ask.answer = Some(());
                return Ok(());
            }
            Command::Replay(ask) => {
                ask.answer = Some(maintenance::replay(&mut self.step(now, effects), &ask.question)?);
            }
            Command::CancelReplay(ask) => {
                ask.answer = Some(maintenance::cancel_replay(&mut self.step(now, effects), &ask.question)?);
            }
            Command::MarkCards(ask) => {
                maintenance::mark_cards(&mut self.step(now, effects), &ask.question)?;
                ask.answer = Some(());
            }
        }
        (self.due, self.is_upkeep_spare) = (StoreTime(0), false);
        Ok(())
    }

    fn register(&self, changes: &[Register], now: StoreTime, effects: &mut Effects) -> Result<Vec<Registered>> {
        let wall_ms = self.shared.clock.wall().as_millisecond();
        let next = self.state.next;
        let mut registrar = Registrar { db: &self.db, now, wall_ms, next, changes: Vec::new(), gone: Vec::new() };
        let registered = registrar.all(changes)?;
        let Registrar { changes, gone, .. } = registrar;
        effects.routes.extend(changes);
        effects.gone.extend(gone);
        Ok(registered)
    }

    fn accept(&mut self, batches: &mut [Batch], at: StoreTime, effects: &mut Effects) -> Result<()> {
        let mut accept = Accept {
            db: &self.db,
            state: &mut self.state,
            router: &*self.router,
            room: &mut self.room,
            at,
            wall_ms: self.shared.clock.wall().as_millisecond(),
            effects,
            added: Added::default(),
            has_scans: false,
        };
        for batch in batches {
            batch.verdict = Some(accept.batch(std::mem::take(&mut batch.events))?);
        }
        accept.added.write(&self.db)?;
        accept.state.ids.append(&self.db, at)?;
        if accept.has_scans {
            (self.due, self.is_upkeep_spare) = (StoreTime(0), false);
        }
        Ok(())
    }
}
