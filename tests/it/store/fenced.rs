//! A partition that is taken away at a call that the test chooses.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use futures::FutureExt;
use posthorn::{
    event::{Pos, StoreTime},
    store::*,
};
use tokio::sync::watch;

/// When the partition is taken away, as the caller cannot know it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fence {
    /// Before the call does anything.
    Before,
    /// After it did everything; its answer is lost.
    After,
}

/// Answers the first calls as the store does, and from then on with
/// [`StoreError::Fenced`].
pub struct FencedPartition {
    inner: Arc<dyn Partition>,
    fence: Fence,
    calls_left: AtomicUsize,
}

impl FencedPartition {
    pub fn new(inner: Arc<dyn Partition>, fence: Fence, good_calls: usize) -> Self {
        Self { inner, fence, calls_left: AtomicUsize::new(good_calls + 1) }
    }

    /// Whether this call is (passed on, answered).
    fn next(&self) -> (bool, bool) {
        let left = self.calls_left.load(SeqCst);
        self.calls_left.store(left.saturating_sub(1), SeqCst);
        (left > 1 || (left == 1 && self.fence == Fence::After), left > 1)
    }

    fn call<'a, T: Send + 'a>(&'a self, call: impl FnOnce() -> Answer<'a, T>) -> Answer<'a, T> {
        let (is_passed_on, is_answered) = self.next();
        let answer = is_passed_on.then(call);
        async move {
            match answer {
                Some(answer) => answer.await.and_then(|a| if is_answered { Ok(a) } else { Err(StoreError::Fenced) }),
                None => Err(StoreError::Fenced),
            }
        }
        .boxed()
    }
}

impl Partition for FencedPartition {
    fn register(&self, changes: Vec<Register>) -> Answer<'_, Vec<Registered>> {
        self.call(|| self.inner.register(changes))
    }
    fn known(&self) -> Answer<'_, Known> {
        self.call(|| self.inner.known())
    }

    fn namespaces(&self) -> Answer<'_, Vec<KnownNamespace>> {
        self.call(|| self.inner.namespaces())
    }
    fn owed(&self, hook: HookId, after: Pos, limit: usize) -> Answer<'_, OwedPage> {
        self.call(|| self.inner.owed(hook, after, limit))
    }
    fn waiting(&self, hook: HookId, now: StoreTime, limit: usize) -> Answer<'_, WaitingPage> {
        self.call(|| self.inner.waiting(hook, now, limit))
    }
    fn blocked_keys(&self, hook: HookId, dead_blocks: bool, limit: usize) -> Answer<'_, Vec<BlockedKey>> {
        self.call(|| self.inner.blocked_keys(hook, dead_blocks, limit))
    }
    fn parked(&self, hook: HookId, key: OrderKey, limit: usize) -> Answer<'_, Vec<OwedRow>> {
        self.call(|| self.inner.parked(hook, key, limit))
    }
    fn bodies(&self, positions: Vec<Pos>) -> Answer<'_, Vec<StoredEvent>> {
        self.call(|| self.inner.bodies(positions))
    }

    /// Takes them; that they are lost shows in `recorded`, which ends.
    fn record(&self, outcomes: Vec<Outcome>) -> RecordTicket {
        let (is_passed_on, _) = self.next();
        if is_passed_on { self.inner.record(outcomes) } else { RecordTicket(u64::MAX) }
    }
    fn recorded(&self) -> watch::Receiver<RecordTicket> {
        if self.calls_left.load(SeqCst) > 0 { self.inner.recorded() } else { watch::channel(RecordTicket(0)).1 }
    }

    fn note(&self, hook: HookId, note: HookNote) -> Answer<'_, ()> {
        self.call(|| self.inner.note(hook, note))
    }
    fn tallies(&self, after: TallyRevision, limit: usize) -> Answer<'_, TallyPage> {
        self.call(|| self.inner.tallies(after, limit))
    }
    fn cards(&self, query: CardQuery) -> Answer<'_, Vec<DeadRow>> {
        self.call(|| self.inner.cards(query))
    }
    fn mark_cards(&self, marks: Vec<CardMark>) -> Answer<'_, ()> {
        self.call(|| self.inner.mark_cards(marks))
    }
    fn replay(&self, order: ReplayOrder) -> Answer<'_, ReplayRun> {
        self.call(|| self.inner.replay(order))
    }
    fn replay_run(&self, identity: ReplayIdentity) -> Answer<'_, Option<ReplayRun>> {
        self.call(|| self.inner.replay_run(identity))
    }
    fn cancel_replay(&self, identity: ReplayIdentity) -> Answer<'_, Option<ReplayRun>> {
        self.call(|| self.inner.cancel_replay(identity))
    }
    fn configure(&self, limits: StoreLimits) {
        self.inner.configure(limits);
    }
    fn store_now(&self) -> StoreTime {
        self.inner.store_now()
    }
    fn close(&self) -> Answer<'_, ()> {
        self.call(|| self.inner.close())
    }
}
