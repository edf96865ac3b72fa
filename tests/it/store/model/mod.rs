//! The model: a store in memory that is small enough to be seen to be right.
//! Every Delivery that ever was is one entry of one map; what the contract
//! counts is counted from there. What is known to the caller survives a crash.

mod deliveries;
mod replays;
mod state;

use std::sync::{Arc, Mutex, MutexGuard};

use futures::{FutureExt, future::BoxFuture};
use posthorn::{
    event::{Pos, StoreTime},
    store::*,
};
use tokio::sync::watch;

pub use state::State;

/// What a model keeps when its process is gone.
pub type Disk = Arc<Mutex<State>>;

/// A running store on a [`Disk`].
pub struct ModelStore {
    disk: Disk,
    recorded: watch::Sender<RecordTicket>,
}

impl ModelStore {
    /// Starts on what a disk holds.
    pub fn open(disk: &Disk, router: Box<dyn Router>) -> (Self, NewsReceiver) {
        let news = disk.lock().unwrap().start(router);
        (Self { disk: disk.clone(), recorded: watch::channel(RecordTicket(0)).0 }, news)
    }

    /// The state, after everything that is due by now.
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.disk.lock().unwrap();
        state.maintain();
        state
    }

    fn answer<T: Send + 'static>(&self, work: impl FnOnce(&mut State) -> T) -> Answer<'_, T> {
        let mut state = self.state();
        let value = work(&mut state);
        state.maintain();
        async { Ok(value) }.boxed()
    }
}

impl Ingest for ModelStore {
    fn accept(&self, events: Vec<NewEvent>) -> BoxFuture<'_, Result<Vec<Accepted>, AcceptError>> {
        let accepted = self.state().accept(events);
        async { accepted }.boxed()
    }

    fn space(&self, namespace_uid: &str) -> Space {
        self.state().space(namespace_uid)
    }
}

impl Partition for ModelStore {
    fn register(&self, changes: Vec<Register>) -> Answer<'_, Vec<Registered>> {
        self.answer(|s| changes.into_iter().map(|c| s.register(c)).collect())
    }

    fn known(&self) -> Answer<'_, Known> {
        self.answer(|s| s.known())
    }

    fn namespaces(&self) -> Answer<'_, Vec<KnownNamespace>> {
        self.answer(|s| s.namespaces())
    }

    fn owed(&self, hook: HookId, after: Pos, limit: usize) -> Answer<'_, OwedPage> {
        self.answer(move |s| s.owed(hook, after, limit))
    }

    fn waiting(&self, hook: HookId, now: StoreTime, limit: usize) -> Answer<'_, WaitingPage> {
        self.answer(move |s| s.waiting(hook, now, limit))
    }

    fn blocked_keys(&self, hook: HookId, dead_blocks: bool, limit: usize) -> Answer<'_, Vec<BlockedKey>> {
        self.answer(move |s| s.blocked_keys(hook, dead_blocks, limit))
    }

    fn parked(&self, hook: HookId, key: OrderKey, limit: usize) -> Answer<'_, Vec<OwedRow>> {
        self.answer(move |s| s.parked(hook, key, limit))
    }

    fn bodies(&self, positions: Vec<Pos>) -> Answer<'_, Vec<StoredEvent>> {
        self.answer(move |s| {
            let stored = |p| s.events.get(p).map_or(StoredEvent::Missing, |e| StoredEvent::Event(e.clone()));
            positions.iter().map(stored).collect()
        })
    }

    fn record(&self, outcomes: Vec<Outcome>) -> RecordTicket {
        let mut state = self.state();
        outcomes.into_iter().for_each(|o| state.record(o));
        let ticket = RecordTicket(self.recorded.borrow().0 + 1);
        self.recorded.send_replace(ticket);
        ticket
    }

    fn recorded(&self) -> watch::Receiver<RecordTicket> {
        self.recorded.subscribe()
    }

    fn note(&self, hook: HookId, note: HookNote) -> Answer<'_, ()> {
        self.answer(move |s| s.note(hook, note))
    }

    fn tallies(&self, after: TallyRevision, limit: usize) -> Answer<'_, TallyPage> {
        self.answer(move |s| s.tallies(after, limit))
    }

    fn cards(&self, query: CardQuery) -> Answer<'_, Vec<DeadRow>> {
        self.answer(move |s| s.cards(&query))
    }

    fn mark_cards(&self, marks: Vec<CardMark>) -> Answer<'_, ()> {
        self.answer(move |s| marks.into_iter().for_each(|m| s.mark_card(m)))
    }

    fn replay(&self, order: ReplayOrder) -> Answer<'_, ReplayRun> {
        self.answer(move |s| s.replay(order))
    }

    fn replay_run(&self, identity: ReplayIdentity) -> Answer<'_, Option<ReplayRun>> {
        self.answer(move |s| s.replay_run(&identity, true))
    }

    fn cancel_replay(&self, identity: ReplayIdentity) -> Answer<'_, Option<ReplayRun>> {
        self.answer(move |s| s.cancel_replay(&identity))
    }

    fn configure(&self, limits: StoreLimits) {
        self.state().limits = limits;
    }

    fn store_now(&self) -> StoreTime {
        self.state().now()
    }

    fn close(&self) -> Answer<'_, ()> {
        self.answer(|_| ())
    }
}

impl History for ModelStore {
    fn attempts(&self, hook: HookId, before: Option<AttemptId>, limit: usize) -> Answer<'_, Vec<AttemptRow>> {
        self.answer(move |s| {
            let wanted = |a: &&AttemptRow| a.hook == hook && before.is_none_or(|b| a.id < b);
            s.attempts.iter().rev().filter(wanted).take(limit).cloned().collect()
        })
    }

    fn attempts_of(&self, pos: Pos, limit: usize) -> Answer<'_, Vec<AttemptRow>> {
        self.answer(move |s| s.attempts.iter().filter(|a| a.pos == pos).take(limit).cloned().collect())
    }

    fn states_of(&self, pos: Pos) -> Answer<'_, Vec<(HookId, DeliveryState)>> {
        self.answer(move |s| s.states_of(pos))
    }

    fn totals(&self) -> Answer<'_, Totals> {
        self.answer(|s| s.totals())
    }
}
