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
//! disk really has.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rusqlite::{Connection, Result};
use tokio::sync::{oneshot, watch};

use super::{
    accept::{Accept, Added},
    checkpoint::Checkpointer,
    effects::{Effects, Progress, Step},
    maintenance,
    metrics::StoreMetrics,
    open::set_meta,
    outcomes::{Record, Successes},
    queue::{Batch, Command, Queue, Reply, Taking, Work, closed},
    register::{self, Registrar},
    rows::{self, Epochs},
    space::{Room, Usage},
    tally::{self, Ledger, Tallies},
    time::StoreClock,
};
use crate::{
    event::{Pos, StoreTime},
    runtime::clock,
    store::{AcceptError, Accepted, HookId, News, NewsSender, RecordTicket, Router, StoreError, StoreLimits, Target},
};

/// How long the writer sleeps at most: tests drive the clock, machines sleep.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// How long it sleeps at most while the write-ahead log is too long.
const BEHIND_SLEEP: Duration = Duration::from_millis(50);
/// Store time between two looks of maintenance at most, in milliseconds.
const MAINTENANCE_EVERY_MS: i64 = 60_000;
/// How long upkeep that nobody waits for waits for a transaction to ride with.
const UPKEEP_WAIT: Duration = Duration::from_millis(10);
/// Part of the time of a transaction that somebody waits for which upkeep may add
/// to it, beside one step.
const UPKEEP_PART: u32 = 8;
/// Time that upkeep takes of one transaction at most, beside one step.
const UPKEEP_TIME_MAX: Duration = Duration::from_millis(5);
/// Steps of upkeep in one transaction at most.
const UPKEEP_STEPS_MAX: usize = 64;

/// What the writer shares with the callers.
pub(super) struct Shared {
    pub(super) queue: Queue,
    pub(super) clock: StoreClock,
    pub(super) usage: Arc<Usage>,
    pub(super) tallies: Tallies,
    pub(super) recorded: watch::Sender<RecordTicket>,
    /// The write-ahead log is too long to accept more.
    pub(super) is_behind: AtomicBool,
    /// The next commit that somebody waits for fails as if the disk did.
    #[cfg(test)]
    pub(super) breaks: AtomicBool,
}

/// What the writer knows of the tables, so that it need not ask.
pub(super) struct State {
    pub(super) next: Pos,
    pub(super) next_attempt: i64,
    pub(super) epochs: Arc<Epochs>,
    pub(super) limits: StoreLimits,
    /// Numbers of namespaces by UID.
    pub(super) namespaces: HashMap<Arc<str>, i64>,
    /// Buckets of `dedup` that have rows.
    pub(super) dedup_buckets: BTreeSet<i64>,
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
}

/// What is sent when a transaction is durable.
#[derive(Default)]
struct Answers {
    batches: Vec<(oneshot::Sender<BatchResult>, BatchResult)>,
    others: Vec<Box<dyn FnOnce()>>,
}

type BatchResult = std::result::Result<Vec<Accepted>, AcceptError>;

impl Answers {
    fn later<T: 'static>(&mut self, reply: Reply<T>, value: T) {
        // A caller that is gone needs no answer.
        self.others.push(Box::new(move || drop(reply.send(Ok(value)))));
    }

    fn send(self) {
        for (reply, verdict) in self.batches {
            drop(reply.send(verdict));
        }
        for send in self.others {
            send();
        }
    }
}

/// Refuses everything when the thread ends, however it ends.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.queue.end(&StoreError::Failed(Arc::from("its writer ended")));
    }
}

impl Writer {
    /// Works until the end of the store.
    pub(super) fn run(mut self) {
        let _end = End(self.shared.clone());
        let mut taking = Taking::default();
        loop {
            let mut work = self.shared.queue.take(&mut taking, self.patience());
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
        let due = self.ledger.due().map_or(self.due, |due| due.min(self.due));
        let left_ms = due.0.saturating_sub(self.shared.clock.now().0);
        if left_ms <= 0 && self.is_upkeep_spare {
            return UPKEEP_WAIT;
        }
        let most = if self.shared.is_behind.load(Ordering::Relaxed) { BEHIND_SLEEP } else { SLEEP_MAX };
        Duration::from_millis(u64::try_from(left_ms).unwrap_or_default()).min(most)
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
    fn work(&mut self, work: Work, is_last: bool) -> Result<()> {
        if let Some(limits) = work.limits {
            self.room.configure(&self.db, &limits)?;
            self.checkpointer.configure(limits.size_bytes);
            self.state.limits = limits;
            self.due = StoreTime(0);
        }
        let now = self.shared.clock.now();
        let has_upkeep = self.due <= now || self.ledger.due().is_some_and(|due| due <= now);
        let ticket = work.ticket;
        if !work.outcomes.is_empty() || work.is_awaited() || has_upkeep || is_last {
            self.sync_mode(work.is_awaited() || is_last)?;
            self.transaction(work, now)?;
            self.look_at_log()?;
        } else if self.shared.is_behind.load(Ordering::Relaxed) {
            self.look_at_log()?;
        }
        self.shared.recorded.send_if_modified(|recorded| {
            let is_later = *recorded < ticket;
            *recorded = ticket.max(*recorded);
            is_later
        });
        Ok(())
    }

    fn look_at_log(&mut self) -> Result<()> {
        let is_behind = self.checkpointer.after_commit(&self.db)?;
        self.shared.is_behind.store(is_behind, Ordering::Relaxed);
        Ok(())
    }

    /// Nobody waits for outcomes: a crash of the machine repeats their attempts.
    fn sync_mode(&mut self, is_full: bool) -> Result<()> {
        if self.is_full_sync != is_full {
            self.db.pragma_update(None, "synchronous", if is_full { "full" } else { "normal" })?;
            self.is_full_sync = is_full;
        }
        Ok(())
    }

    fn transaction(&mut self, work: Work, now: StoreTime) -> Result<()> {
        let mut effects = Effects::default();
        let mut answers = Answers::default();
        let is_awaited = work.is_awaited();
        self.db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        self.ledger.write_rows(&self.db, now, self.state.next)?;
        if self.due <= now {
            self.maintain(now, is_awaited, &mut effects)?;
        }
        let begun = clock::monotonic();
        let entry = self.fill(work, now, &mut effects, &mut answers)?;
        self.commit()?;
        if is_awaited {
            self.awaited_took = clock::monotonic().saturating_duration_since(begun);
        }
        self.ledger.committed(&effects.deltas, entry);
        self.metrics.committed(&effects);
        self.room.free(&effects.freed);
        self.room.committed(&self.db)?;
        if self.rounds.look_at_room(self.room.used(), self.state.limits.size_bytes) {
            self.due = StoreTime(0);
        }
        answers.send();
        for news in effects.news {
            self.news.send(news);
        }
        Ok(())
    }

    fn commit(&self) -> Result<()> {
        #[cfg(test)]
        if self.is_full_sync && self.shared.breaks.load(Ordering::Relaxed) {
            return Err(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_FSYNC),
                None,
            ));
        }
        self.db.prepare_cached("COMMIT")?.execute([])?;
        Ok(())
    }

    /// Everything inside a transaction; gives the number of its entry in the log
    /// of counters.
    fn fill(
        &mut self,
        work: Work,
        now: StoreTime,
        effects: &mut Effects,
        answers: &mut Answers,
    ) -> Result<Option<i64>> {
        let before = (self.state.next, self.state.next_attempt);
        self.record(&work, now, effects)?;
        for command in work.commands {
            self.command(command, now, effects, answers)?;
        }
        if !work.batches.is_empty() {
            self.accept(work.batches, now, effects, answers)?;
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
        for _ in 0..UPKEEP_STEPS_MAX {
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

    fn record(&mut self, work: &Work, now: StoreTime, effects: &mut Effects) -> Result<()> {
        if work.outcomes.is_empty() {
            return Ok(());
        }
        let mut record = Record {
            db: &self.db,
            effects,
            now,
            wall_ms: self.shared.clock.wall().as_millisecond(),
            next_attempt: &mut self.state.next_attempt,
            successes: &mut self.successes,
            history: self.room.history(),
        };
        record.all(&work.outcomes)
    }

    fn command(
        &mut self,
        command: Command,
        now: StoreTime,
        effects: &mut Effects,
        answers: &mut Answers,
    ) -> Result<()> {
        match command {
            Command::Register(changes, reply) => {
                let registered = self.register(changes, now)?;
                answers.later(reply, registered);
            }
            Command::Note(hook, note, reply) => {
                register::note(&self.db, hook, &note)?;
                answers.later(reply, ());
                return Ok(());
            }
            Command::Replay(order, reply) => {
                let run = maintenance::replay(&mut self.step(now, effects), &order)?;
                answers.later(reply, run);
            }
            Command::CancelReplay(identity, reply) => {
                let run = maintenance::cancel_replay(&mut self.step(now, effects), &identity)?;
                answers.later(reply, run);
            }
            Command::MarkCards(marks, reply) => {
                maintenance::mark_cards(&mut self.step(now, effects), &marks)?;
                answers.later(reply, ());
            }
        }
        (self.due, self.is_upkeep_spare) = (StoreTime(0), false);
        Ok(())
    }

    fn register(
        &mut self,
        changes: Vec<crate::store::Register>,
        now: StoreTime,
    ) -> Result<Vec<crate::store::Registered>> {
        let wall_ms = self.shared.clock.wall().as_millisecond();
        let next = self.state.next;
        let mut registrar = Registrar { db: &self.db, now, wall_ms, next, changes: Vec::new(), gone: Vec::new() };
        let registered = registrar.all(changes)?;
        let Registrar { changes, gone, .. } = registrar;
        self.router.apply(&changes);
        for uid in gone {
            self.state.namespaces.remove(&uid);
            self.room.forget(&uid);
        }
        Ok(registered)
    }

    fn accept(
        &mut self,
        batches: Vec<Batch>,
        at: StoreTime,
        effects: &mut Effects,
        answers: &mut Answers,
    ) -> Result<()> {
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
            let verdict = accept.batch(batch.events)?;
            answers.batches.push((batch.reply, verdict));
        }
        accept.added.write(&self.db)?;
        if accept.has_scans {
            (self.due, self.is_upkeep_spare) = (StoreTime(0), false);
        }
        Ok(())
    }
}
