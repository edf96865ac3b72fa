//! What waits for the writer: bounded by bytes, outcomes apart from the rest.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{accept::Prepared, checkpoint::TransactionMost, pending::Pending, rows};
use crate::{
    runtime::clock,
    store::{
        AcceptError, Accepted, CardMark, HookId, HookNote, NewEvent, Outcome, RecordTicket, Register, Registered,
        ReplayIdentity, ReplayOrder, ReplayRun, StoreError, StoreLimits,
    },
};

/// Bytes of events that wait for the writer at most.
pub const WAITING_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Batches in one transaction at most.
const TRANSACTION_BATCHES_MAX: usize = 1024;
/// How long outcomes wait for an accept whose sync they can share.
const OUTCOMES_WAIT: Duration = Duration::from_millis(10);
/// How long batches wait at most for others to share a transaction with: its sync
/// and the pages that it writes whatever is in it.
const BATCHES_WAIT_MAX: Duration = Duration::from_millis(2);
/// Batches in a transaction after which the next ones wait as long as it took.
/// After fewer they wait less: when little comes, time is all that waiting saves.
const BATCHES_SHARED: u32 = 16;
/// When a publisher shall try again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Bytes that an event takes beside its data, roughly.
const EVENT_EXTRA_BYTES: usize = 512;

/// How the answer to a call comes back.
pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What becomes of a batch.
pub(super) type Verdict = Result<Vec<Accepted>, AcceptError>;

/// A batch of a publisher.
pub(super) struct Batch {
    pub(super) events: Vec<Prepared>,
    pub(super) bytes: usize,
    /// Known inside the transaction, told after its commit.
    pub(super) verdict: Option<Verdict>,
    reply: oneshot::Sender<Verdict>,
}

impl Batch {
    /// Tells the verdict. Without one the publisher hears *unknown*.
    pub(super) fn answer(self) {
        if let Some(verdict) = self.verdict {
            // A publisher that is gone needs no answer.
            drop(self.reply.send(verdict));
        }
    }

    /// Tells that nothing of it was stored.
    pub(super) fn refuse(self, error: AcceptError) {
        drop(self.reply.send(Err(error)));
    }
}

/// A question to the writer. It stays whole until its transaction is durable: one
/// that is rolled back is asked again.
pub(super) struct Ask<Q, A> {
    pub(super) question: Q,
    /// Known inside the transaction, told after its commit.
    pub(super) answer: Option<A>,
    reply: Reply<A>,
}

impl<Q, A> Ask<Q, A> {
    pub(super) const fn new(question: Q, reply: Reply<A>) -> Self {
        Self { question, answer: None, reply }
    }

    fn end(self, refusal: Option<StoreError>) {
        let answer = match refusal {
            Some(error) => Some(Err(error)),
            None => self.answer.map(Ok),
        };
        if let Some(answer) = answer {
            // A caller that is gone needs no answer.
            drop(self.reply.send(answer));
        }
    }
}

/// Something else to be done in a transaction.
pub(super) enum Command {
    Register(Ask<Vec<Register>, Vec<Registered>>),
    Note(Ask<(HookId, HookNote), ()>),
    Replay(Ask<ReplayOrder, ReplayRun>),
    CancelReplay(Ask<ReplayIdentity, Option<ReplayRun>>),
    MarkCards(Ask<Vec<CardMark>, ()>),
}

impl Command {
    /// Tells the answer, or why there is none.
    pub(super) fn end(self, refusal: Option<StoreError>) {
        match self {
            Self::Register(ask) => ask.end(refusal),
            Self::Note(ask) => ask.end(refusal),
            Self::Replay(ask) => ask.end(refusal),
            Self::CancelReplay(ask) => ask.end(refusal),
            Self::MarkCards(ask) => ask.end(refusal),
        }
    }
}

/// What the writer does next, in one transaction.
#[derive(Default)]
pub(super) struct Work {
    pub(super) outcomes: Vec<Outcome>,
    pub(super) commands: Vec<Command>,
    pub(super) batches: Vec<Batch>,
    pub(super) limits: Option<StoreLimits>,
    /// Somebody wants the end, after everything that waits.
    pub(super) close: Option<Reply<()>>,
    /// The end, at once: what waits is dropped, as in a crash.
    pub(super) is_abandoned: bool,
}

impl Work {
    /// Whether people or publishers wait for it: it must reach stable storage.
    pub(super) fn is_awaited(&self) -> bool {
        !self.commands.is_empty() || !self.batches.is_empty() || self.close.is_some()
    }

    /// Everything of it is durable.
    pub(super) fn answer(self) {
        for batch in self.batches {
            batch.answer();
        }
        for command in self.commands {
            command.end(None);
        }
    }
}

#[derive(Default)]
struct Waiting {
    outcomes: Pending,
    outcomes_since: Option<Instant>,
    commands: Vec<Command>,
    batches: VecDeque<Batch>,
    batch_bytes: usize,
    limits: Option<StoreLimits>,
    close: Option<Reply<()>>,
    is_abandoned: bool,
    /// Set once: nothing is taken any more.
    ended: Option<StoreError>,
}

/// What waits for the writer.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

/// How the one writer takes what waits: after a transaction of batches it rests
/// as long as that took (less after few), so that the dearer transactions are (a slow disk, many
/// Webhooks), the more share one. After a pause nobody waits.
#[derive(Default)]
pub(super) struct Taking {
    /// When batches were taken, if they were the last thing.
    batches_at: Option<Instant>,
    /// How many they were.
    batches: u32,
    rests_until: Option<Instant>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a batch behind the others.
    pub(super) fn accept(
        &self,
        events: Vec<NewEvent>,
        is_behind: bool,
    ) -> Result<oneshot::Receiver<Verdict>, AcceptError> {
        let bytes = events.iter().map(|event| event.data.len() + EVENT_EXTRA_BYTES).sum();
        let (reply, answer) = oneshot::channel();
        // Hashing happens here, so that the one writer has less to do.
        let events = events.into_iter().map(Prepared::new).collect();
        let batch = Batch { events, bytes, verdict: None, reply };
        let mut waiting = self.lock();
        if waiting.ended.is_some() || waiting.close.is_some() {
            return Err(AcceptError::NotStored);
        }
        if is_behind || waiting.batch_bytes + bytes > WAITING_BYTES_MAX {
            return Err(AcceptError::Busy { retry_after: RETRY_AFTER });
        }
        waiting.batch_bytes += bytes;
        waiting.batches.push_back(batch);
        drop(waiting);
        self.wake.notify_one();
        Ok(answer)
    }

    /// Puts outcomes behind the others.
    pub(super) fn record(&self, outcomes: Vec<Outcome>) -> RecordTicket {
        let mut waiting = self.lock();
        let is_open = waiting.ended.is_none();
        let ticket = waiting.outcomes.push(if is_open { outcomes } else { Vec::new() });
        if is_open && waiting.outcomes_since.is_none() {
            waiting.outcomes_since = Some(clock::monotonic());
            drop(waiting);
            self.wake.notify_one();
        }
        ticket
    }

    /// Puts a command behind the others.
    pub(super) fn command<T>(
        &self,
        make: impl FnOnce(Reply<T>) -> Command,
    ) -> oneshot::Receiver<Result<T, StoreError>> {
        let (reply, answer) = oneshot::channel();
        let command = make(reply);
        let mut waiting = self.lock();
        if let Some(error) = waiting.refusal() {
            command.end(Some(error));
        } else {
            waiting.commands.push(command);
            self.wake.notify_one();
        }
        answer
    }

    /// New limits, from the next transaction on.
    pub(super) fn configure(&self, limits: StoreLimits) {
        self.lock().limits = Some(limits);
        self.wake.notify_one();
    }

    /// The end, after everything that waits.
    pub(super) fn close(&self) -> oneshot::Receiver<Result<(), StoreError>> {
        let (reply, answer) = oneshot::channel();
        let mut waiting = self.lock();
        if let Some(error) = waiting.refusal() {
            // A caller that is gone needs no answer.
            drop(reply.send(Err(error)));
        } else {
            waiting.close = Some(reply);
            self.wake.notify_one();
        }
        answer
    }

    /// The end, at once.
    pub(super) fn abandon(&self) {
        self.lock().is_abandoned = true;
        self.wake.notify_one();
    }

    /// So many outcomes more are durable; gives the last ticket that is, if it is
    /// another one than before.
    pub(super) fn recorded(&self, outcomes: usize) -> Option<RecordTicket> {
        self.lock().outcomes.recorded(outcomes)
    }

    /// Takes what was rolled back, to be done again before everything that waits.
    /// Batches are not among it: their publishers were refused.
    pub(super) fn put_back(&self, work: Work) {
        let mut waiting = self.lock();
        if !work.outcomes.is_empty() {
            waiting.outcomes.put_back(work.outcomes);
            waiting.outcomes_since.get_or_insert_with(clock::monotonic);
        }
        waiting.commands.splice(..0, work.commands);
    }

    /// Whether somebody waits for the end.
    pub(super) fn is_closing(&self) -> bool {
        self.lock().close.is_some()
    }

    /// Refuses batches as full for this time; less if the end comes.
    pub(super) fn refuse_batches(&self, time: Duration) {
        let begin = clock::monotonic();
        let mut waiting = self.lock();
        loop {
            let batches = std::mem::take(&mut waiting.batches);
            waiting.batch_bytes = 0;
            for batch in batches {
                batch.refuse(AcceptError::Full);
            }
            let left = time.saturating_sub(clock::monotonic().saturating_duration_since(begin));
            if left.is_zero() || waiting.close.is_some() || waiting.is_abandoned {
                return;
            }
            waiting = self.wake.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes what waits, so much of it as may be in one transaction; nothing if
    /// nothing comes within `patience`.
    pub(super) fn take(&self, taking: &mut Taking, patience: Duration, most: TransactionMost) -> Work {
        let begin = clock::monotonic();
        taking.rest(begin);
        let mut waiting = self.lock();
        loop {
            let now = clock::monotonic();
            if waiting.is_urgent() {
                let pause = if waiting.has_only_batches(most) { taking.pause(now) } else { Duration::ZERO };
                if pause.is_zero() {
                    let work = waiting.take(most);
                    taking.batches = u32::try_from(work.batches.len()).unwrap_or(u32::MAX);
                    taking.batches_at = (taking.batches > 0).then_some(now);
                    return work;
                }
                // Asleep without the lock and out of reach of `wake`: whoever comes
                // meanwhile wakes nobody.
                drop(waiting);
                std::thread::sleep(pause);
                waiting = self.lock();
                continue;
            }
            let patience_left = patience.saturating_sub(now.saturating_duration_since(begin));
            let left = match waiting.outcomes_since {
                Some(since) => OUTCOMES_WAIT.saturating_sub(now.saturating_duration_since(since)).min(patience_left),
                None => patience_left,
            };
            if left.is_zero() {
                return waiting.take(most);
            }
            waiting = self.wake.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Nothing more is taken; what waits is refused.
    pub(super) fn end(&self, error: &StoreError) {
        let mut waiting = self.lock();
        waiting.ended.get_or_insert_with(|| error.clone());
        let batches = std::mem::take(&mut waiting.batches);
        let commands = std::mem::take(&mut waiting.commands);
        waiting.outcomes.clear();
        waiting.batch_bytes = 0;
        let close = waiting.close.take();
        drop(waiting);
        for batch in batches {
            batch.refuse(AcceptError::NotStored);
        }
        for command in commands {
            command.end(Some(error.clone()));
        }
        if let Some(reply) = close {
            drop(reply.send(Err(error.clone())));
        }
    }

    /// Why nothing is taken, if so.
    pub(super) fn ended(&self) -> Option<StoreError> {
        self.lock().ended.clone()
    }
}

impl Taking {
    /// The last transaction is over.
    fn rest(&mut self, now: Instant) {
        let took = self.batches_at.take().map(|at| now.saturating_duration_since(at).min(BATCHES_WAIT_MAX));
        self.rests_until = took.map(|took| now + took * self.batches.min(BATCHES_SHARED) / BATCHES_SHARED);
    }

    /// How long the next batches wait for others to go with.
    fn pause(&self, now: Instant) -> Duration {
        self.rests_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }
}

impl Waiting {
    /// Whether nobody but publishers waits, and for no full transaction.
    fn has_only_batches(&self, most: TransactionMost) -> bool {
        self.commands.is_empty()
            && self.limits.is_none()
            && self.close.is_none()
            && !self.is_abandoned
            && self.batches.len() < TRANSACTION_BATCHES_MAX
            && self.batch_bytes < most.batch_bytes
    }

    fn refusal(&self) -> Option<StoreError> {
        match &self.ended {
            Some(error) => Some(error.clone()),
            None if self.close.is_some() => Some(closed()),
            None => None,
        }
    }

    fn is_urgent(&self) -> bool {
        !self.batches.is_empty()
            || !self.commands.is_empty()
            || self.limits.is_some()
            || self.close.is_some()
            || self.is_abandoned
    }

    fn take(&mut self, most: TransactionMost) -> Work {
        let commands = std::mem::take(&mut self.commands);
        // Routes take effect when they are durable: no event shares a transaction
        // with a change of them.
        let has_routes = commands.iter().any(|command| matches!(command, Command::Register(_)));
        let batches = if has_routes { Vec::new() } else { self.take_batches(most.batch_bytes) };
        let outcomes = self.outcomes.take(most.outcomes);
        if self.outcomes.is_empty() {
            self.outcomes_since = None;
        }
        // The end comes when nothing is left.
        let is_done = self.batches.is_empty() && self.outcomes.is_empty();
        let close = if is_done { self.close.take() } else { None };
        if close.is_some() {
            self.ended = Some(closed());
        }
        Work { outcomes, commands, batches, limits: self.limits.take(), close, is_abandoned: self.is_abandoned }
    }

    fn take_batches(&mut self, bytes_max: usize) -> Vec<Batch> {
        let mut batches = Vec::new();
        let mut bytes = 0;
        while let Some(batch) = self.batches.front() {
            if batches.len() == TRANSACTION_BATCHES_MAX || (!batches.is_empty() && bytes + batch.bytes > bytes_max) {
                break;
            }
            bytes += batch.bytes;
            batches.extend(self.batches.pop_front());
        }
        self.batch_bytes -= bytes;
        batches
    }
}

/// What a call gets that comes after the end.
pub(super) fn closed() -> StoreError {
    StoreError::Failed(Arc::from("it is closed"))
}

impl Prepared {
    /// What can be computed before the writer has it.
    fn new(event: NewEvent) -> Self {
        Self { head: rows::head_text(&event.head), dedup: rows::DedupKey::of(&event), event }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_transaction_of_batches_the_next_ones_wait_as_long_as_it_took_at_most_the_limit() {
        let check = |batches: u32, took: Duration, expected: Duration| {
            let begin = clock::monotonic();
            let mut taking = Taking { batches_at: Some(begin), batches, ..Taking::default() };
            let end = begin + took;
            taking.rest(end);
            assert_eq!(taking.pause(end), expected, "a transaction of {batches} batches and {took:?}");
            assert_eq!(taking.pause(end + expected), Duration::ZERO, "after {expected:?}");
            taking.rest(end);
            assert_eq!(taking.pause(end), Duration::ZERO, "one without batches, after {took:?}");
        };
        check(BATCHES_SHARED, Duration::from_micros(300), Duration::from_micros(300));
        check(BATCHES_SHARED * 9, Duration::from_micros(300), Duration::from_micros(300));
        check(BATCHES_SHARED, BATCHES_WAIT_MAX, BATCHES_WAIT_MAX);
        check(BATCHES_SHARED, Duration::from_secs(1), BATCHES_WAIT_MAX);
        check(BATCHES_SHARED / 4, Duration::from_secs(1), BATCHES_WAIT_MAX / 4);
        check(1, Duration::from_micros(320), Duration::from_micros(20));
        assert_eq!(Taking::default().pause(clock::monotonic()), Duration::ZERO);
    }

    #[test]
    fn the_writer_takes_a_batch_no_sooner_than_it_has_rested() {
        let queue = Queue::default();
        drop(queue.accept(Vec::new(), false).unwrap());
        let begin = clock::monotonic();
        let mut taking =
            Taking { batches_at: begin.checked_sub(BATCHES_WAIT_MAX), batches: BATCHES_SHARED, ..Taking::default() };
        let most = TransactionMost { outcomes: 1, batch_bytes: 1_000_000, steps: 1 };
        assert_eq!(queue.take(&mut taking, Duration::ZERO, most).batches.len(), 1);
        assert!(clock::monotonic() - begin >= BATCHES_WAIT_MAX);
    }

    #[test]
    fn people_and_full_transactions_wait_for_no_pause() {
        let batch = |bytes| Batch { events: Vec::new(), bytes, verdict: None, reply: oneshot::channel().0 };
        let most = TransactionMost { outcomes: 1, batch_bytes: 1_000_000, steps: 1 };
        let waiting = |batches: usize, bytes: usize| Waiting {
            batches: (0..batches).map(|_| batch(bytes)).collect(),
            batch_bytes: batches * bytes,
            ..Waiting::default()
        };
        assert!(waiting(TRANSACTION_BATCHES_MAX - 1, 1).has_only_batches(most));
        assert!(!waiting(TRANSACTION_BATCHES_MAX, 1).has_only_batches(most));
        assert!(waiting(1, most.batch_bytes - 1).has_only_batches(most));
        assert!(!waiting(1, most.batch_bytes).has_only_batches(most));
        let command = Command::Note(Ask::new((HookId(1), HookNote::Circuit(None)), oneshot::channel().0));
        assert!(!Waiting { commands: vec![command], ..waiting(1, 1) }.has_only_batches(most));
        assert!(!Waiting { limits: Some(StoreLimits::default()), ..waiting(1, 1) }.has_only_batches(most));
        assert!(!Waiting { close: Some(oneshot::channel().0), ..waiting(1, 1) }.has_only_batches(most));
    }
}
