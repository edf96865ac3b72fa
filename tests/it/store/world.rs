//! A store under test, its clock, and short words for what a case does with it.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;
use posthorn::{
    event::{EventHead, EventId, Pos, StoreTime},
    store::*,
};

use super::clock::TestClock;

/// How long a store may take over what it does in the background.
const SETTLE_MAX: Duration = Duration::from_secs(10);
/// Time goes on by a second after so many looks in vain.
const TICK_EVERY: u32 = 10;
pub const HOUR: Duration = Duration::from_secs(3600);
pub const SHOP: &str = "uid-of-shop";

/// A running store.
pub struct Opened {
    pub ingest: Arc<dyn Ingest>,
    pub partition: Arc<dyn Partition>,
    pub history: Arc<dyn History>,
    pub news: NewsReceiver,
}

/// Something that a store can be started on again and again.
pub trait Ground: Send {
    /// Starts the store on what the last one left.
    fn open(&mut self) -> BoxFuture<'_, Opened>;
    /// Ends a store as a crash does: without a word to it.
    fn crash(&mut self, opened: Opened) -> BoxFuture<'_, ()>;
    /// The clock of its stores.
    fn clock(&self) -> Arc<TestClock>;
}

/// A store under test.
pub struct World {
    ground: Box<dyn Ground>,
    opened: Option<Opened>,
    pub clock: Arc<TestClock>,
}

impl World {
    pub async fn new(mut ground: impl Ground + 'static) -> Self {
        let opened = Some(ground.open().await);
        Self { clock: ground.clock(), ground: Box::new(ground), opened }
    }

    fn opened(&self) -> &Opened {
        self.opened.as_ref().unwrap()
    }

    pub fn ingest(&self) -> &Arc<dyn Ingest> {
        &self.opened().ingest
    }

    pub fn partition(&self) -> &Arc<dyn Partition> {
        &self.opened().partition
    }

    pub fn history(&self) -> &Arc<dyn History> {
        &self.opened().history
    }

    /// The store dies and is started again.
    pub async fn crash(&mut self) {
        let opened = self.opened.take().unwrap();
        self.ground.crash(opened).await;
        self.opened = Some(self.ground.open().await);
    }

    /// The store is closed and started again.
    pub async fn restart(&mut self) {
        self.restart_after(|_| {}).await;
    }

    /// The store is closed, something happens to the clock, and it is started
    /// again.
    pub async fn restart_after(&mut self, happens: impl FnOnce(&TestClock)) {
        self.partition().close().await.unwrap();
        let opened = self.opened.take().unwrap();
        self.ground.crash(opened).await;
        happens(&self.clock);
        self.opened = Some(self.ground.open().await);
    }

    pub fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    pub fn in_time(&self, by: Duration) -> StoreTime {
        self.partition().store_now().plus_ms(i64::try_from(by.as_millis()).unwrap())
    }

    /// The next thing that the store tells.
    pub async fn next_news(&mut self) -> News {
        let news = &mut self.opened.as_mut().unwrap().news;
        tokio::time::timeout(SETTLE_MAX, news.recv()).await.expect("news in time").unwrap()
    }

    /// What the store has told since the last call.
    pub fn news(&mut self) -> Vec<News> {
        let news = &mut self.opened.as_mut().unwrap().news;
        std::iter::from_fn(|| news.try_recv().ok()).collect()
    }

    /// Asks until the answer is the expected one: what a store does in the
    /// background has no other end that can be seen. Now and then time goes on a
    /// bit, since some of it waits for that.
    pub async fn settles<T, F>(&self, what: &str, expected: T, mut ask: impl FnMut() -> F)
    where
        T: PartialEq + std::fmt::Debug,
        F: Future<Output = T>,
    {
        let begun = std::time::Instant::now();
        for asked in 1_u32.. {
            let seen = ask().await;
            if seen == expected {
                return;
            }
            assert!(begun.elapsed() < SETTLE_MAX, "{what}: {seen:?} and not {expected:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
            if asked.is_multiple_of(TICK_EVERY) {
                self.tick().await;
            }
        }
    }

    /// All positions owed to a hook become these.
    pub async fn settles_owed(&self, hook: HookId, expected: &[Pos]) {
        self.settles("owed", expected.to_vec(), || async { self.owed(hook).await }).await;
    }

    // Events.

    pub async fn accept(&self, events: Vec<NewEvent>) -> Vec<Accepted> {
        self.ingest().accept(events).await.unwrap()
    }

    /// Accepts one event of this type; its position.
    pub async fn publish(&self, event_type: &str) -> Pos {
        self.publish_event(event(event_type)).await.pos
    }

    pub async fn publish_event(&self, event: NewEvent) -> EventId {
        match self.accept(vec![event]).await[..] {
            [Accepted::New(id)] => id,
            ref other => panic!("{other:?}"),
        }
    }

    /// So many events of this type.
    pub async fn publish_many(&self, event_type: &str, count: usize) -> Vec<Pos> {
        let accepted = self.accept(vec![event(event_type); count]).await;
        accepted.into_iter().map(|a| if let Accepted::New(id) = a { id.pos } else { panic!("{a:?}") }).collect()
    }

    // Hooks and Subscriptions.

    pub async fn register(&self, change: Register) -> Registered {
        self.partition().register(vec![change]).await.unwrap()[0]
    }

    pub async fn hook_of(&self, definition: HookDefinition) -> HookId {
        match self.register(Register::Hook(definition)).await {
            Registered::Hook(id) => id,
            other => panic!("{other:?}"),
        }
    }

    pub async fn hook(&self, name: &str) -> HookId {
        self.hook_of(hook(name)).await
    }

    pub async fn sub_of(&self, definition: SubDefinition) -> (SubId, Pos) {
        match self.register(Register::Sub(definition)).await {
            Registered::Sub { id, live_from } => (id, live_from),
            other => panic!("{other:?}"),
        }
    }

    /// A Subscription of `hook` for `pattern` from now on.
    pub async fn sub(&self, hook: &str, name: &str, pattern: &str) -> SubId {
        self.sub_of(self.sub_now(hook, name, pattern)).await.0
    }

    pub fn sub_now(&self, hook: &str, name: &str, pattern: &str) -> SubDefinition {
        sub(hook, name, pattern, From::Time(self.clock.wall()), self.clock.wall())
    }

    /// A hook `name` that wants `pattern`.
    pub async fn wanting(&self, name: &str, pattern: &str) -> HookId {
        let hook = self.hook(name).await;
        self.sub(name, name, pattern).await;
        hook
    }

    // Deliveries.

    pub async fn rows(&self, hook: HookId) -> Vec<OwedRow> {
        self.partition().owed(hook, Pos(0), 100_000).await.unwrap().rows
    }

    pub async fn owed(&self, hook: HookId) -> Vec<Pos> {
        positions(&self.rows(hook).await)
    }

    /// What is due now.
    pub async fn due(&self, hook: HookId) -> Vec<Pos> {
        let now = self.partition().store_now();
        positions(&self.partition().waiting(hook, now, 10_000).await.unwrap().rows)
    }

    pub async fn states(&self, pos: Pos) -> Vec<(HookId, DeliveryState)> {
        let mut states = self.history().states_of(pos).await.unwrap();
        states.sort_by_key(|(hook, _)| *hook);
        states
    }

    pub async fn state(&self, hook: HookId, pos: Pos) -> Option<DeliveryState> {
        self.states(pos).await.into_iter().find(|(h, _)| *h == hook).map(|(_, state)| state)
    }

    /// Records and waits until it is durable.
    pub async fn record(&self, outcomes: Vec<Outcome>) {
        let mut recorded = self.partition().recorded();
        let ticket = self.partition().record(outcomes);
        recorded.wait_for(|upto| *upto >= ticket).await.unwrap();
    }

    /// An attempt that delivers.
    pub async fn deliver(&self, hook: HookId, pos: Pos, tries: u16) {
        self.record(vec![outcome(&self.clock, hook, pos, tries, Some(200), Next::Done)]).await;
    }

    /// An attempt that fails, to be repeated.
    pub async fn fail(&self, hook: HookId, pos: Pos, tries: u16, due: StoreTime) {
        self.record(vec![outcome(&self.clock, hook, pos, tries, Some(500), Next::At(due))]).await;
    }

    /// An attempt that fails for good.
    pub async fn kill(&self, hook: HookId, pos: Pos, tries: u16) {
        let next = Next::Dead(DeadReason::Exhausted);
        self.record(vec![outcome(&self.clock, hook, pos, tries, Some(500), next)]).await;
    }

    /// Dead Deliveries of a hook in this state of their cards.
    pub async fn dead(&self, hook: HookId, state: Option<CardState>) -> Vec<Pos> {
        let query = CardQuery { hook: Some(hook), state, after: None, limit: 1000 };
        self.partition().cards(query).await.unwrap().into_iter().map(|r| r.pos).collect()
    }

    pub async fn mark(&self, hook: HookId, pos: Pos, state: CardState) {
        self.partition().mark_cards(vec![CardMark { hook, pos, state }]).await.unwrap();
    }

    pub async fn totals(&self) -> Totals {
        let totals = self.history().totals().await.unwrap();
        let discarded: u64 = totals.discarded.iter().sum();
        let sum = totals.delivered + totals.dead + totals.pending + discarded;
        assert_eq!(totals.routed, sum, "routed = delivered + dead + pending + discarded: {totals:?}");
        totals
    }

    /// Everything that is known of a hook's counters.
    pub async fn tally(&self, hook: HookId) -> Tally {
        let page = self.partition().tallies(TallyRevision::default(), 10_000).await.unwrap();
        page.tallies.into_iter().rfind(|t| t.hook == hook).unwrap_or_default()
    }

    pub async fn replay(&self, order: ReplayOrder) -> ReplayRun {
        self.partition().replay(order).await.unwrap()
    }

    pub async fn replay_run(&self, order: &ReplayOrder) -> ReplayRun {
        self.partition().replay_run(order.identity.clone()).await.unwrap().unwrap()
    }

    /// A second passes, and the store has something to do: it may look after the
    /// ends of Replays at its leisure.
    pub async fn tick(&self) {
        self.advance(Duration::from_secs(1));
        self.partition().register(vec![]).await.unwrap();
    }

    /// (state, matched, reopened, done, dead) becomes this.
    pub async fn settles_replay(&self, order: &ReplayOrder, expected: (ReplayState, u64, u64, u64, u64)) {
        let ask = || async {
            let run = self.replay_run(order).await;
            (run.state, run.matched, run.reopened, run.done, run.dead)
        };
        self.settles("replay", expected, ask).await;
    }
}

pub fn positions(rows: &[OwedRow]) -> Vec<Pos> {
    rows.iter().map(|r| r.pos).collect()
}

/// An event of this type, without an id.
pub fn event(event_type: &str) -> NewEvent {
    NewEvent {
        namespace: "shop".into(),
        namespace_uid: SHOP.into(),
        head: EventHead { event_type: event_type.into(), source: "tests".into(), ..EventHead::default() },
        data: bytes::Bytes::from_static(b"{\"n\":1}"),
    }
}

/// With the publisher's id.
pub fn event_with_id(event_type: &str, id: &str, data: &'static str) -> NewEvent {
    let mut event = event(event_type);
    event.head.given_id = Some(id.into());
    event.data = bytes::Bytes::from_static(data.as_bytes());
    event
}

/// With an ordering key.
pub fn event_with_key(event_type: &str, key: &str) -> NewEvent {
    let mut event = event(event_type);
    event.head.key = Some(key.into());
    event
}

pub fn hook(name: &str) -> HookDefinition {
    HookDefinition {
        namespace: "shop".into(),
        namespace_uid: SHOP.into(),
        name: name.into(),
        uid: format!("uid-of-{name}").into(),
        max_age_ms: 72 * 3_600_000,
        is_ordered: false,
        document: "{}".into(),
    }
}

pub fn sub(hook: &str, name: &str, pattern: &str, from: From, created: Timestamp) -> SubDefinition {
    SubDefinition {
        namespace_uid: SHOP.into(),
        webhook: hook.into(),
        name: name.into(),
        uid: format!("uid-of-sub-{name}").into(),
        created,
        from,
        document: pattern.into(),
    }
}

pub fn hook_gone(name: &str) -> Register {
    Register::HookGone { namespace_uid: SHOP.into(), name: name.into() }
}

/// An attempt with this answer, and what follows.
pub fn outcome(clock: &TestClock, hook: HookId, pos: Pos, tries: u16, code: Option<u16>, next: Next) -> Outcome {
    let error = (next != Next::Done).then_some("Refused");
    let attempt = Attempt { at: clock.wall(), duration_ms: 12, code, error, shape: 0, detail: None };
    Outcome { hook, pos, tries, attempt: Some(attempt), next }
}

/// Something that follows without an attempt.
pub fn verdict(hook: HookId, pos: Pos, tries: u16, next: Next) -> Outcome {
    Outcome { hook, pos, tries, attempt: None, next }
}

pub fn replay_order(name: &str, hook: HookId, what: ReplayWhat) -> ReplayOrder {
    let identity = ReplayIdentity { namespace_uid: SHOP.into(), name: name.into(), spec_hash: "1".into() };
    ReplayOrder { identity, hook, what, per_second: None, is_dry_run: false }
}
