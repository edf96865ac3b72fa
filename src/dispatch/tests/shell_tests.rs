//! The dispatcher as a task, with a store in memory and a paused clock.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;
use smallvec::smallvec;
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use super::fake::{FakeStore, view};
use crate::{
    dispatch::{
        AttemptEnd, AttemptJob, AttemptReport, AttemptSender, DispatchMetrics, Dispatcher, DispatcherHandle, HookView,
        questions::{Question, Reply},
    },
    event::{Pos, StoreTime},
    policy::delivery::DeliverySettings,
    store::*,
};

/// How long an attempt takes.
const ATTEMPT: Duration = Duration::from_secs(2);

/// Tables in memory; what is recorded is durable at once, or when it is let.
struct Store {
    tables: Mutex<FakeStore>,
    recorded: watch::Sender<RecordTicket>,
    tickets: AtomicU64,
    is_slow: AtomicBool,
    is_fenced: AtomicBool,
    /// Of this event the fan-out comes with the next question for owed rows.
    fan_out: Mutex<Option<(NewsSender, Pos)>>,
    began: Instant,
    notes: Mutex<Vec<HookNote>>,
}

impl Store {
    fn tables(&self) -> MutexGuard<'_, FakeStore> {
        self.tables.lock().unwrap()
    }

    fn ask(&self, hook: HookId, question: Question) -> Result<Reply, StoreError> {
        if self.is_fenced.load(Ordering::Relaxed) {
            return Err(StoreError::Fenced);
        }
        Ok(self.tables().answer(hook, &question))
    }
}

fn unused<T: Send + 'static>() -> Answer<'static, T> {
    Box::pin(async { Err(StoreError::Failed("not of this test".into())) })
}

impl Partition for Store {
    fn register(&self, _: Vec<Register>) -> Answer<'_, Vec<Registered>> {
        unused()
    }
    fn known(&self) -> Answer<'_, Known> {
        unused()
    }
    fn namespaces(&self) -> Answer<'_, Vec<KnownNamespace>> {
        unused()
    }
    fn owed(&self, hook: HookId, after: Pos, limit: usize) -> Answer<'_, OwedPage> {
        if let Some((news, pos)) = self.fan_out.lock().unwrap().take() {
            self.tables().owe(hook, pos, Some(OrderKey(1)));
            news.send(News::Added { hook, from: pos });
        }
        let reply = self.ask(hook, Question::Owed { after, limit });
        Box::pin(async { reply.map(|reply| if let Reply::Owed(page) = reply { page } else { OwedPage::default() }) })
    }
    fn waiting(&self, hook: HookId, now: StoreTime, limit: usize) -> Answer<'_, WaitingPage> {
        let page = self.tables().waiting_page(hook, now, limit);
        Box::pin(async { Ok(page) })
    }
    fn blocked_keys(&self, hook: HookId, dead_blocks: bool, limit: usize) -> Answer<'_, Vec<BlockedKey>> {
        let keys = self.tables().blocked_keys(hook, dead_blocks, limit);
        Box::pin(async { Ok(keys) })
    }
    fn parked(&self, hook: HookId, key: OrderKey, limit: usize) -> Answer<'_, Vec<OwedRow>> {
        let rows = self.tables().parked_rows(hook, key, limit);
        Box::pin(async { Ok(rows) })
    }
    fn bodies(&self, positions: Vec<Pos>) -> Answer<'_, Vec<StoredEvent>> {
        let bodies = self.tables().bodies(&positions);
        Box::pin(async { Ok(bodies) })
    }
    fn record(&self, outcomes: Vec<Outcome>) -> RecordTicket {
        outcomes.iter().for_each(|outcome| self.tables().apply(outcome));
        let ticket = RecordTicket(self.tickets.fetch_add(1, Ordering::Relaxed) + 1);
        if !self.is_slow.load(Ordering::Relaxed) {
            self.recorded.send_replace(ticket);
        }
        ticket
    }
    fn recorded(&self) -> watch::Receiver<RecordTicket> {
        self.recorded.subscribe()
    }
    fn note(&self, _: HookId, note: HookNote) -> Answer<'_, ()> {
        self.notes.lock().unwrap().push(note);
        Box::pin(async { Ok(()) })
    }
    fn tallies(&self, _: TallyRevision, _: usize) -> Answer<'_, TallyPage> {
        unused()
    }
    fn cards(&self, _: CardQuery) -> Answer<'_, Vec<DeadRow>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    fn mark_cards(&self, _: Vec<CardMark>) -> Answer<'_, ()> {
        unused()
    }
    fn replay(&self, _: ReplayOrder) -> Answer<'_, ReplayRun> {
        unused()
    }
    fn replay_run(&self, _: ReplayIdentity) -> Answer<'_, Option<ReplayRun>> {
        unused()
    }
    fn cancel_replay(&self, _: ReplayIdentity) -> Answer<'_, Option<ReplayRun>> {
        unused()
    }
    fn configure(&self, _: StoreLimits) {}
    fn store_now(&self) -> StoreTime {
        StoreTime(i64::try_from(self.began.elapsed().as_millis()).unwrap())
    }
    fn close(&self) -> Answer<'_, ()> {
        unused()
    }
}

/// Says 200, or 410, after [`ATTEMPT`]; panics at the third event.
#[derive(Default)]
struct Sender {
    begun: Mutex<Vec<Pos>>,
    says_gone: bool,
}

impl AttemptSender for Sender {
    fn attempt(&self, job: AttemptJob) -> BoxFuture<'static, AttemptReport> {
        let pos = job.event.id.pos;
        let is_first = !self.begun.lock().unwrap().contains(&pos);
        self.begun.lock().unwrap().push(pos);
        let code = if self.says_gone { 410 } else { 200 };
        Box::pin(async move {
            tokio::time::sleep(ATTEMPT).await;
            assert!(pos != Pos(3) || !is_first, "a defect of the sender");
            let end = AttemptEnd::Answered { code, retry_after: None };
            AttemptReport { at: Timestamp::UNIX_EPOCH, duration: ATTEMPT, shape: 1, end, detail: None }
        })
    }
}

struct World {
    store: Arc<Store>,
    sender: Arc<Sender>,
    news: NewsSender,
    handle: DispatcherHandle,
    run: JoinHandle<Result<(), StoreError>>,
}

fn world(sender: Sender) -> World {
    let store = Arc::new(Store {
        tables: Mutex::default(),
        recorded: watch::Sender::new(RecordTicket(0)),
        tickets: AtomicU64::new(0),
        is_slow: AtomicBool::new(false),
        is_fenced: AtomicBool::new(false),
        fan_out: Mutex::default(),
        began: Instant::now(),
        notes: Mutex::default(),
    });
    let (news, receiver) = news_channel();
    let sender = Arc::new(sender);
    let (dispatcher, handle) =
        Dispatcher::new(store.clone(), sender.clone(), receiver, DispatchMetrics::unregistered());
    World { store, sender, news, handle, run: tokio::spawn(dispatcher.run()) }
}

impl World {
    fn owe(&self) -> Pos {
        let mut tables = self.store.tables();
        let (pos, _) = tables.accept(StoreTime(0), 10);
        tables.owe(HookId(1), pos, None);
        pos
    }

    /// With the event, or with its position alone.
    fn publish(&self, has_event: bool) -> Pos {
        let pos = self.owe();
        let stored = self.store.tables().bodies(&[pos]).pop();
        let event = stored.filter(|_| has_event).and_then(|stored| match stored {
            StoredEvent::Event(event) => Some(event),
            _ => None,
        });
        let targets = smallvec![Target { hook: HookId(1), sub: SubId(1), is_ordered: false }];
        self.news.send(News::Owed { pos, event, targets });
        pos
    }

    fn left(&self) -> usize {
        let tables = self.store.tables();
        tables.owed.len() + tables.retry.len() + tables.parked.len()
    }
}

async fn seconds(number: u64) {
    tokio::time::sleep(Duration::from_secs(number)).await;
}

fn settings() -> DeliverySettings {
    DeliverySettings { jitter: 0.0, ..DeliverySettings::default() }
}

#[tokio::test(start_paused = true)]
async fn what_the_news_tell_and_what_was_owed_before_is_sent() {
    let world = world(Sender::default());
    world.owe();
    world.handle.set_hook(HookView { has_backlog: true, ..view(1, &settings()) });
    world.publish(true);
    seconds(10).await;
    world.publish(false);
    let late = world.owe();
    world.news.send(News::Added { hook: HookId(1), from: late });
    // The third one panics once, and is tried again a minute later.
    seconds(90).await;
    assert_eq!(world.left(), 0);
    let mut begun = world.sender.begun.lock().unwrap().clone();
    begun.sort_unstable();
    assert_eq!(begun, [1, 2, 3, 3, 4].map(Pos));
    assert!(world.handle.health_of(HookId(1)).is_some());
}

/// The answer shows a younger event than the news speak of, and both are there.
#[tokio::test(start_paused = true)]
async fn news_are_taken_before_answers() {
    let world = world(Sender::default());
    let ordered = DeliverySettings { is_ordered: true, ..settings() };
    let (older, _) = world.store.tables().accept(StoreTime(0), 10);
    world.handle.set_hook(HookView { has_backlog: true, ..view(1, &ordered) });
    seconds(1).await;
    let (younger, event) = world.store.tables().accept(StoreTime(0), 10);
    world.store.tables().owe(HookId(1), younger, Some(OrderKey(1)));
    *world.store.fan_out.lock().unwrap() = Some((world.news.clone(), older));
    let targets = smallvec![Target { hook: HookId(1), sub: SubId(1), is_ordered: true }];
    world.news.send(News::Owed { pos: younger, event: Some(event), targets });
    seconds(10).await;
    assert_eq!(*world.sender.begun.lock().unwrap(), [older, younger]);
    assert_eq!(world.left(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_lets_running_attempts_end_and_hands_the_rest_back() {
    let world = world(Sender::default());
    world.handle.set_hook(view(1, &settings()));
    world.publish(true);
    world.publish(true);
    seconds(1).await;
    world.handle.shutdown(Duration::from_secs(10));
    assert_eq!(world.run.await.unwrap(), Ok(()));
    assert_eq!(*world.sender.begun.lock().unwrap(), [Pos(1)]);
    let tables = world.store.tables();
    assert_eq!((tables.delivered.len(), tables.owed.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_outlasts_the_grace_stays_owed() {
    let world = world(Sender::default());
    world.handle.set_hook(view(1, &settings()));
    world.publish(true);
    seconds(1).await;
    let begin = Instant::now();
    world.handle.shutdown(Duration::from_millis(500));
    assert_eq!(world.run.await.unwrap(), Ok(()));
    assert_eq!(begin.elapsed(), Duration::from_millis(500));
    let tables = world.store.tables();
    assert_eq!((tables.delivered.len(), tables.owed.len()), (0, 1));
    assert_eq!(tables.owed[&(HookId(1), Pos(1))].tries, 0);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_until_outcomes_and_notes_are_durable() {
    let world = world(Sender { says_gone: true, ..Sender::default() });
    world.store.is_slow.store(true, Ordering::Relaxed);
    world.handle.set_hook(view(1, &settings()));
    world.publish(true);
    seconds(3).await;
    world.handle.shutdown(Duration::ZERO);
    seconds(3).await;
    assert!(!world.run.is_finished(), "the outcome is not durable");
    world.store.recorded.send_replace(RecordTicket(world.store.tickets.load(Ordering::Relaxed)));
    assert_eq!(world.run.await.unwrap(), Ok(()));
    assert!(matches!(world.store.notes.lock().unwrap()[..], [HookNote::Withdrawn(_)]));
    assert_eq!(world.store.tables().owed.len(), 1, "what an endpoint that is gone was owed is kept");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_failed_or_is_anothers_ends_the_dispatcher() {
    let failed = world(Sender::default());
    failed.news.send(News::Failed(StoreError::Failed("the disk is gone".into())));
    assert_eq!(failed.run.await.unwrap(), Err(StoreError::Failed("the disk is gone".into())));
    let fenced = world(Sender::default());
    fenced.store.is_fenced.store(true, Ordering::Relaxed);
    fenced.handle.set_hook(HookView { has_backlog: true, ..view(1, &settings()) });
    assert_eq!(fenced.run.await.unwrap(), Err(StoreError::Fenced));
}

#[tokio::test(start_paused = true)]
async fn a_webhook_that_is_removed_is_forgotten_and_its_deliveries_stay_owed() {
    let world = world(Sender::default());
    world.handle.set_hook(view(1, &settings()));
    world.publish(true);
    seconds(3).await;
    assert!(world.handle.health_of(HookId(1)).is_some());
    world.handle.remove_hook(HookId(1));
    seconds(1).await;
    world.publish(true);
    seconds(3).await;
    assert_eq!((world.handle.health_of(HookId(1)), world.left()), (None, 1));
}
