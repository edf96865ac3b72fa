//! A world in virtual time: the engine, a store whose answers and commits take
//! their time, endpoints by script. One seed, one history.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::jiff::Timestamp;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use smallvec::smallvec;

use super::fake::FakeStore;
use crate::{
    dispatch::{
        AttemptEnd, AttemptJob, AttemptReport, DispatchMetrics, HookHealth, HookView,
        engine::{Action, Engine, IN_FLIGHT_MAX, Now, SUSPECTS_MAX},
        questions::{Question, Reply},
        turns::{LATE_IN_FLIGHT_MAX, STARTS_MAX},
    },
    event::{Pos, StoreTime},
    store::{DeadReason, HookId, HookNote, News, Next, OrderKey, Outcome, RecordTicket, StoredEvent, SubId, Target},
};

/// What happens at some time.
enum Happening {
    News(News),
    Ended(u64, HookId, Pos, AttemptEnd, i64),
    Read(HookId, std::num::NonZeroU64, Question),
    Answer(HookId, std::num::NonZeroU64, Question, Reply),
    Commit(RecordTicket, Vec<Outcome>),
    Recorded(RecordTicket),
}

/// Happenings at one time: beyond these the engine turns in circles.
const STEPS_AT_ONCE_MAX: usize = 100_000;

/// Questions without an attempt between them: beyond these they are in vain.
const READS_IN_VAIN_MAX: usize = 10_000;

/// How an endpoint behaves: (hook, position, time) to (how long it takes, end).
pub(super) type Endpoint = Box<dyn FnMut(&mut StdRng, HookId, Pos, i64) -> (i64, AttemptEnd)>;

pub(super) fn answered(code: u16) -> AttemptEnd {
    AttemptEnd::Answered { code, retry_after: None }
}

pub(super) struct Sim {
    pub(super) engine: Engine,
    pub(super) store: FakeStore,
    pub(super) now: i64,
    pub(super) rng: StdRng,
    pub(super) endpoint: Endpoint,
    /// Time, hook and position of each attempt that began.
    pub(super) attempts: Vec<(i64, HookId, Pos)>,
    pub(super) notes: Vec<(i64, HookId, HookNote)>,
    pub(super) health: Vec<HookHealth>,
    pub(super) reads: Vec<(i64, HookId, Question)>,
    pub(super) views: BTreeMap<HookId, HookView>,
    /// Milliseconds that the store takes at most for anything.
    pub(super) store_ms: i64,
    /// Largest number of rows and of bytes that were in the windows.
    pub(super) peak: (usize, usize),
    pub(super) peak_suspects: usize,
    /// Hooks with keys are ordered all the time.
    pub(super) keeps_order: bool,
    /// Events that wait for their fan-out, and the hooks that it has not come to.
    pub(super) unrouted: Vec<(Pos, Vec<i64>)>,
    /// Deliveries that a step of a fan-out brings.
    pub(super) route_rows: usize,
    keys: HashMap<Pos, OrderKey>,
    /// What the engine has said of rows and the store has not committed.
    in_air: BTreeMap<(HookId, Pos), Next>,
    /// Expired, and when the engine hears of it.
    expired: BTreeMap<(HookId, Pos), i64>,
    /// Came after younger ones of their keys were sent: no order is promised.
    late: BTreeSet<(HookId, Pos)>,
    flying: BTreeSet<(HookId, Pos)>,
    flying_keys: BTreeSet<(HookId, OrderKey)>,
    agenda: BTreeMap<(i64, u64), Happening>,
    serial: u64,
    ticket: u64,
    last_commit: i64,
    last_news: i64,
    /// When the last news of rows at old positions come.
    last_change: i64,
    /// Happenings at this very time.
    steps: usize,
    /// Questions before the last attempt.
    reads_before: usize,
}

impl Sim {
    pub(super) fn new(seed: u64, endpoint: Endpoint) -> Self {
        Self {
            engine: new_engine(seed),
            store: FakeStore::default(),
            now: 1_000_000,
            rng: StdRng::seed_from_u64(seed),
            endpoint,
            attempts: Vec::new(),
            notes: Vec::new(),
            health: Vec::new(),
            reads: Vec::new(),
            views: BTreeMap::new(),
            store_ms: 3,
            peak: (0, 0),
            peak_suspects: 0,
            keeps_order: true,
            unrouted: Vec::new(),
            route_rows: 2,
            keys: HashMap::new(),
            in_air: BTreeMap::new(),
            expired: BTreeMap::new(),
            late: BTreeSet::new(),
            flying: BTreeSet::new(),
            flying_keys: BTreeSet::new(),
            agenda: BTreeMap::new(),
            serial: 0,
            ticket: 0,
            last_commit: 0,
            last_news: 0,
            last_change: 0,
            steps: 0,
            reads_before: 0,
        }
    }

    pub(super) fn clock(&self) -> Now {
        Now { store: StoreTime(self.now), wall: Timestamp::from_millisecond(self.now).unwrap() }
    }

    pub(super) fn set(&mut self, view: HookView) {
        self.views.insert(view.id, view.clone());
        let now = self.clock();
        self.engine.set_hook(view, now);
        self.settle();
    }

    /// Publishes an event to these hooks; the news take a while.
    pub(super) fn publish(&mut self, hooks: &[i64], key: Option<i64>) -> Pos {
        self.publish_bytes(hooks, key, 100)
    }

    pub(super) fn publish_bytes(&mut self, hooks: &[i64], key: Option<i64>, bytes: usize) -> Pos {
        let key_of = |pos: &Pos| self.keys.get(pos).map(|key| key.0);
        if key.is_some() && self.unrouted.iter().any(|(older, _)| key_of(older) == key) {
            return self.publish_wide(hooks, key);
        }
        let (pos, event) = self.store.accept(StoreTime(self.now), bytes);
        let mut targets = smallvec![];
        for hook in hooks {
            let hook = HookId(*hook);
            self.store.owe(hook, pos, key.map(OrderKey));
            targets.push(Target { hook, sub: SubId(1), is_ordered: key.is_some() });
        }
        if let Some(key) = key {
            self.keys.insert(pos, OrderKey(key));
        }
        let event = self.rng.random_bool(0.9).then_some(event);
        self.tell(News::Owed { pos, event, targets });
        pos
    }

    /// Publishes an event that waits for its fan-out.
    pub(super) fn publish_wide(&mut self, hooks: &[i64], key: Option<i64>) -> Pos {
        let (pos, _) = self.store.accept(StoreTime(self.now), 100);
        self.keys.extend(key.map(|key| (pos, OrderKey(key))));
        self.unrouted.push((pos, hooks.to_vec()));
        pos
    }

    /// A step of a fan-out, of whichever event may have its turn: the first one of
    /// its key.
    pub(super) fn route_one(&mut self) {
        let keys: Vec<_> = self.unrouted.iter().map(|(pos, _)| self.key_of(*pos)).collect();
        let is_first = |at: &usize| keys[*at].is_none() || !keys[..*at].contains(&keys[*at]);
        let ready: Vec<usize> = (0..keys.len()).filter(is_first).collect();
        if ready.is_empty() {
            return;
        }
        let at = ready[self.rng.random_range(0..ready.len())];
        let (pos, hooks) = &mut self.unrouted[at];
        let pos = *pos;
        let some = hooks.split_off(hooks.len().saturating_sub(self.route_rows));
        if hooks.is_empty() {
            self.unrouted.remove(at);
        }
        let key = self.key_of(pos);
        some.iter().for_each(|hook| self.store.owe(HookId(*hook), pos, key));
        let target = |hook: &i64| Target { hook: HookId(*hook), sub: SubId(1), is_ordered: key.is_some() };
        let event = self.store.events.get(&pos).cloned().filter(|_| self.rng.random_bool(0.9));
        let event = event.and_then(|stored| if let StoredEvent::Event(event) = stored { Some(event) } else { None });
        self.tell(News::Late { pos, event, targets: some.iter().map(target).collect() });
    }

    /// Rows come behind the engine's back: of an event that was accepted before.
    pub(super) fn fan_out(&mut self, hook: i64, pos: Pos) {
        let key = self.keys.get(&pos).copied();
        self.store.owe(HookId(hook), pos, key);
        self.tell(News::Added { hook: HookId(hook), from: pos });
    }

    /// A dead Delivery is owed again, and the store tells of it.
    pub(super) fn reopen(&mut self, hook: i64, pos: Pos) {
        let hook = HookId(hook);
        let settings = &self.views[&hook].settings;
        if !settings.blocks_on_dead {
            self.late.insert((hook, pos));
        }
        self.store.reopen(hook, pos, settings.is_ordered);
        self.tell(News::Changed { hook, from: pos });
    }

    /// A dead Delivery is dismissed, or a row that waits has expired.
    pub(super) fn end(&mut self, hook: i64, pos: Pos) {
        let at = (HookId(hook), pos);
        assert!(self.store.dead.remove(&at).is_some() || self.store.retry.remove(&at).is_some());
        self.tell(News::Changed { hook: HookId(hook), from: pos });
    }

    /// Whether an attempt runs, or its outcome is not committed.
    pub(super) fn is_tried(&self, at: &(HookId, Pos)) -> bool {
        self.flying.contains(at) || self.in_air.contains_key(at)
    }

    /// A pending Delivery is owed for too long.
    pub(super) fn expire(&mut self, hook: HookId, pos: Pos) {
        let at = (hook, pos);
        let FakeStore { owed, retry, parked, dead, .. } = &mut self.store;
        let row = owed.remove(&at).or(retry.remove(&at).map(|(_, row)| row)).or(parked.remove(&at));
        dead.insert(at, (DeadReason::Expired, row.unwrap()));
        self.tell(News::Changed { hook, from: pos });
        self.expired.insert(at, self.last_news);
    }

    fn tell(&mut self, news: News) {
        // In the order of the commits.
        self.last_news = self.last_news.max(self.now + self.rng.random_range(0..=self.store_ms));
        if !matches!(news, News::Owed { .. }) {
            self.last_change = self.last_news;
        }
        self.put(self.last_news, Happening::News(news));
    }

    fn put(&mut self, at: i64, happening: Happening) {
        self.serial += 1;
        self.agenda.insert((at, self.serial), happening);
    }

    /// Does what happens until there is nothing more before `until`.
    pub(super) fn run_until(&mut self, until: i64) {
        loop {
            let next = self.agenda.first_key_value().map(|(at, _)| *at);
            let wake = self.engine.next_wake().map(|at| at.0);
            let at = [next.map(|(at, _)| at), wake].into_iter().flatten().min().filter(|at| *at <= until);
            let Some(at) = at else { break };
            if self.now < at {
                (self.now, self.steps) = (at, 0);
            }
            self.steps += 1;
            assert!(self.steps < STEPS_AT_ONCE_MAX, "the engine spins at {at}: {:?}", self.reads.last_chunk::<6>());
            let idle = self.reads.len() - self.reads_before;
            assert!(idle < READS_IN_VAIN_MAX, "the engine asks in vain at {at}: {:?}", self.reads.last_chunk::<9>());
            if next.is_some_and(|(due, _)| due <= self.now)
                && let Some((_, happening)) = self.agenda.pop_first()
            {
                self.happen(happening);
            }
            self.settle();
        }
        self.now = until;
    }

    pub(super) fn run_for(&mut self, milliseconds: i64) {
        self.run_until(self.now + milliseconds);
    }

    /// The process is killed and starts again: what is not committed is lost.
    pub(super) fn crash(&mut self) {
        self.agenda.clear();
        self.flying.clear();
        self.flying_keys.clear();
        self.in_air.clear();
        let window = self.engine.globals.window;
        self.engine = new_engine(self.serial);
        self.engine.globals.window = window;
        for view in self.views.clone().into_values() {
            self.set(HookView { has_backlog: true, ..view });
        }
    }

    fn happen(&mut self, happening: Happening) {
        let now = self.clock();
        match happening {
            Happening::News(news) => self.engine.news(news, now),
            Happening::Ended(flight, hook, pos, end, took) => {
                assert!(self.flying.remove(&(hook, pos)));
                if let Some(key) = self.keys.get(&pos) {
                    self.flying_keys.remove(&(hook, *key));
                }
                let duration = std::time::Duration::from_millis(took.unsigned_abs());
                let report = AttemptReport { at: now.wall, duration, shape: 1, end, detail: None };
                self.engine.ended(flight, report, now);
            }
            Happening::Read(hook, serial, question) => {
                let reply = self.store.answer(hook, &question);
                let mut at = self.now + self.rng.random_range(0..=self.store_ms);
                if !matches!(question, Question::Bodies { .. }) {
                    // What it shows was told before.
                    at = at.max(self.last_change);
                }
                self.put(at, Happening::Answer(hook, serial, question, reply));
            }
            Happening::Answer(hook, serial, question, reply) => {
                self.engine.answered(hook, serial, question, reply, now);
            }
            Happening::Commit(ticket, outcomes) => {
                for outcome in &outcomes {
                    self.store.apply(outcome);
                    self.in_air.remove(&(outcome.hook, outcome.pos));
                }
                let at = self.now + self.rng.random_range(0..=self.store_ms);
                self.put(at, Happening::Recorded(ticket));
            }
            Happening::Recorded(ticket) => self.engine.recorded(ticket, now),
        }
    }

    /// One step of the engine, and what it says.
    pub(super) fn settle(&mut self) {
        self.step();
        while self.engine.wants_step() {
            self.step();
        }
    }

    fn step(&mut self) {
        let before = self.attempts.len();
        self.engine.step(self.clock());
        self.hand_over();
        for action in self.engine.take_actions() {
            match action {
                Action::Attempt(flight, job) => self.attempt(flight, &job),
                Action::Ask { hook, serial, question } => {
                    self.reads.push((self.now, hook, question.clone()));
                    let at = self.now + self.rng.random_range(0..=self.store_ms);
                    self.put(at, Happening::Read(hook, serial, question));
                }
                Action::Note(hook, note) => self.notes.push((self.now, hook, note)),
                Action::Health(health) => self.health.push(health),
                Action::Forget(_) => {}
            }
        }
        let globals = &self.engine.globals;
        self.peak = (self.peak.0.max(globals.rows), self.peak.1.max(globals.bytes));
        self.peak_suspects = self.peak_suspects.max(globals.suspects);
        assert!(globals.flights.len() <= IN_FLIGHT_MAX && globals.suspects <= SUSPECTS_MAX);
        assert!(globals.late_flights <= LATE_IN_FLIGHT_MAX);
        assert_eq!(globals.flights.len(), self.flying.len());
        // A turn has 64 KiB, and an event costs 4 at least.
        assert!(self.attempts.len() - before < usize::try_from(STARTS_MAX).unwrap() + 16);
    }

    /// Hands outcomes to the store.
    fn hand_over(&mut self) {
        let outcomes = self.engine.take_outcomes();
        self.in_air.extend(outcomes.iter().map(|outcome| ((outcome.hook, outcome.pos), outcome.next)));
        if !outcomes.is_empty() {
            self.ticket += 1;
            let hooks: Vec<HookId> = outcomes.iter().map(|outcome| outcome.hook).collect();
            self.engine.handed(RecordTicket(self.ticket), hooks.into_iter());
            self.last_commit = self.last_commit.max(self.now + self.rng.random_range(0..=self.store_ms));
            self.put(self.last_commit, Happening::Commit(RecordTicket(self.ticket), outcomes));
        }
    }

    fn attempt(&mut self, flight: u64, job: &AttemptJob) {
        let (hook, pos) = (job.hook, job.event.id.pos);
        assert!(self.flying.insert((hook, pos)), "{hook:?} {pos:?} twice at the same time");
        assert!(!self.is_known_dead(hook, pos), "{hook:?} {pos:?} is dead");
        if let Some(key) = self.keys.get(&pos) {
            let is_alone = self.flying_keys.insert((hook, *key));
            assert!(is_alone || !self.keeps_order, "{hook:?} {key:?} twice at the same time");
            if self.keeps_order {
                self.assert_is_first(hook, pos, *key);
            }
        }
        self.attempts.push((self.now, hook, pos));
        self.reads_before = self.reads.len();
        let (took, end) = (self.endpoint)(&mut self.rng, hook, pos, self.now);
        self.put(self.now + took, Happening::Ended(flight, hook, pos, end, took));
    }

    /// Dead, and the engine may know it.
    fn is_known_dead(&self, hook: HookId, pos: Pos) -> bool {
        let heard = self.expired.get(&(hook, pos)).copied().unwrap_or_default();
        self.store.dead.contains_key(&(hook, pos)) && self.now > heard
    }

    /// Nothing older of its key is left, but what was answered and is not recorded.
    fn assert_is_first(&self, hook: HookId, pos: Pos, key: OrderKey) {
        let blocks = self.views[&hook].settings.blocks_on_dead;
        let is_over = |older: &Pos| match self.in_air.get(&(hook, *older)) {
            Some(Next::Done) => true,
            Some(Next::Dead(_)) => !blocks,
            Some(Next::At(_) | Next::Park | Next::Back) | None => self.late.contains(&(hook, *older)),
        };
        let mut pending = self.store.pending_before(hook, pos, key);
        assert_eq!(pending.find(|older| !is_over(older)), None, "is before {hook:?} {pos:?} {key:?} at {}", self.now);
        let dead = self.store.dead.range((hook, Pos(0))..(hook, pos)).filter(|(_, (_, row))| row.key == Some(key));
        let dead = dead.map(|((_, older), _)| *older).find(|older| blocks && self.is_known_dead(hook, *older));
        assert_eq!(dead, None, "is dead before {hook:?} {pos:?} {key:?} at {}", self.now);
        let is_unrouted = |(older, hooks): &(Pos, Vec<i64>)| {
            *older < pos && hooks.contains(&hook.0) && self.keys.get(older) == Some(&key)
        };
        assert!(!self.unrouted.iter().any(is_unrouted), "something unrouted is before {hook:?} {pos:?} {key:?}");
    }

    /// Nothing is owed, and nothing is left in memory.
    pub(super) fn assert_over(&self) {
        let FakeStore { owed, retry, parked, .. } = &self.store;
        assert_eq!((owed.len(), retry.len(), parked.len()), (0, 0, 0), "{:?}", parked.keys().next());
        let globals = &self.engine.globals;
        assert_eq!((globals.rows, globals.bytes, globals.flights.len(), globals.suspects), (0, 0, 0, 0));
        assert_eq!(globals.late_flights, 0);
        assert_eq!((globals.open_questions, globals.open_bodies, globals.unrecorded.len()), (0, 0, 0));
    }

    /// Time and position of each attempt of a hook, in order.
    pub(super) fn attempts_of(&self, hook: i64) -> Vec<(i64, Pos)> {
        self.attempts.iter().filter(|(_, of, _)| *of == HookId(hook)).map(|(at, _, pos)| (*at, *pos)).collect()
    }

    /// Positions that were attempted at a hook, in order.
    pub(super) fn order_of(&self, hook: i64) -> Vec<u64> {
        self.attempts_of(hook).into_iter().map(|(_, pos)| pos.0).collect()
    }

    pub(super) fn key_of(&self, pos: Pos) -> Option<OrderKey> {
        self.keys.get(&pos).copied()
    }

    pub(super) fn delivered(&self) -> usize {
        self.store.delivered.len()
    }
}

fn new_engine(seed: u64) -> Engine {
    let mut rng = StdRng::seed_from_u64(seed);
    Engine::new(DispatchMetrics::unregistered(), Box::new(move || rng.random()), 2)
}
