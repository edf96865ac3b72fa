//! Random commands, crashes among them, to an engine and to the model at once:
//! after each, both show the same.
//!
//! `POSTHORN_STORE_CASES` runs more cases, `POSTHORN_STORE_SEED` (32 bytes in
//! hexadecimal, as a failure prints it) repeats a run.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use posthorn::{
    event::{EventId, Pos},
    store::*,
};
use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner},
};

use super::world::*;

const CASES_DEFAULT: u32 = 32;
const COMMANDS_MAX: usize = 50;
/// One step of time: no sum of them comes near the limits below.
const STEP: Duration = Duration::from_secs(25 * 60);
const MAX_AGE_MS: i64 = 110 * 60_000;
/// So many looks at both stores, and time goes on a bit: some work of a store
/// waits for that.
const TICK_EVERY: usize = 5;
/// Looks before the two count as different: 40 seconds of the stores' time.
const POLLS_MIN: usize = 40 * TICK_EVERY;
const TYPES: [&str; 4] = ["a", "a.b", "b", "c"];
const PATTERNS: [&str; 4] = ["*", "a*", "b", "c"];
const HOOKS: usize = 3;
const SUBS: usize = 6;

#[derive(Clone, Debug)]
enum Command {
    /// Events: type, publisher's id, data, ordering key.
    Accept(Vec<(usize, Option<u8>, bool, Option<u8>)>),
    Hook(usize),
    HookGone(usize),
    /// Subscription, pattern, whether from the earliest.
    Sub(usize, usize, bool),
    SubGone(usize),
    /// Which Deliveries (of all that there ever were), what follows, and how far
    /// the tries are off.
    Record(Vec<(prop::sample::Index, Follow, u16)>),
    Mark(prop::sample::Index, Card),
    Replay(usize, What),
    CancelReplay(prop::sample::Index),
    Pass(u32),
    Crash,
    Restart,
}

#[derive(Clone, Copy, Debug)]
enum Follow {
    Done,
    At(u32),
    Dead,
    Park,
    Back,
}

#[derive(Clone, Copy, Debug)]
enum Card {
    Made,
    Overflow,
    Dismissed,
    Expired,
}

#[derive(Clone, Debug)]
enum What {
    AllDead,
    Dead,
    Events(Vec<prop::sample::Index>),
    Range(u32),
}

fn command() -> impl Strategy<Value = Command> {
    let index = any::<prop::sample::Index>;
    let event = (0..TYPES.len(), prop::option::of(0..6_u8), prop::bool::weighted(0.2), prop::option::of(0..3_u8));
    let follow = prop_oneof![
        3 => Just(Follow::Done),
        3 => (0..6_u32).prop_map(Follow::At),
        3 => Just(Follow::Dead),
        2 => Just(Follow::Park),
        1 => Just(Follow::Back),
    ];
    let tries_off = prop_oneof![9 => Just(0_u16), 1 => Just(1)];
    let card = prop_oneof![Just(Card::Made), Just(Card::Overflow), Just(Card::Dismissed), Just(Card::Expired)];
    let what = prop_oneof![
        Just(What::AllDead),
        Just(What::Dead),
        prop::collection::vec(index(), 1..5).prop_map(What::Events),
        (0..5_u32).prop_map(What::Range),
    ];
    prop_oneof![
        8 => prop::collection::vec(event, 1..4).prop_map(Command::Accept),
        3 => (0..HOOKS).prop_map(Command::Hook),
        1 => (0..HOOKS).prop_map(Command::HookGone),
        4 => (0..SUBS, 0..PATTERNS.len(), any::<bool>()).prop_map(|(n, pattern, all)| Command::Sub(n, pattern, all)),
        1 => (0..SUBS).prop_map(Command::SubGone),
        9 => prop::collection::vec((index(), follow, tries_off), 1..4).prop_map(Command::Record),
        2 => (index(), card).prop_map(|(which, card)| Command::Mark(which, card)),
        3 => (0..HOOKS, what).prop_map(|(hook, what)| Command::Replay(hook, what)),
        1 => index().prop_map(Command::CancelReplay),
        3 => (1..4_u32).prop_map(Command::Pass),
        2 => Just(Command::Crash),
        1 => Just(Command::Restart),
    ]
}

/// One of the two stores, with the numbers that it gave out.
struct Side {
    world: World,
    /// The n-th event that was accepted.
    events: Vec<EventId>,
    hooks: BTreeMap<usize, HookId>,
    subs: BTreeMap<SubId, usize>,
    replays: Vec<ReplayOrder>,
    /// Whether it is said which Subscription shapes a Delivery: not after a
    /// Replay, nor when several backfills waited for a Webhook.
    is_sub_told: bool,
}

/// What both must show alike, as text: names and counts, no numbers of a store.
#[derive(Clone, PartialEq)]
struct Shown(Vec<String>);

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "\n    {line}"))
    }
}

impl Side {
    fn new(world: World) -> Self {
        let limits = StoreLimits {
            retention_age: Duration::from_secs(10 * 365 * 86_400),
            dead_age: Duration::from_secs(10 * 365 * 86_400),
            ..StoreLimits::default()
        };
        world.partition().configure(limits);
        Self {
            world,
            events: Vec::new(),
            hooks: BTreeMap::new(),
            subs: BTreeMap::new(),
            replays: Vec::new(),
            is_sub_told: true,
        }
    }

    fn index(&self, pos: Pos) -> Option<usize> {
        self.events.iter().position(|id| id.pos == pos)
    }

    fn hook_name(&self, id: HookId) -> Option<usize> {
        self.hooks.iter().find(|(_, h)| **h == id).map(|(name, _)| *name)
    }

    fn row(&self, row: &OwedRow) -> String {
        let first = self.is_sub_told.then(|| (self.subs.get(&row.sub), row.shape));
        format!("{:?} tries {} key {:?} {first:?}", self.index(row.pos), row.tries, row.key)
    }

    async fn shown(&self) -> Shown {
        let mut lines = Vec::new();
        let known = self.world.partition().known().await.unwrap();
        for hook in &known.hooks {
            let name = self.hook_name(hook.id);
            lines.push(format!("hook {name:?} gone {:?} pending {}", hook.gone_at, hook.pending));
            self.show_deliveries(hook.id, &mut lines).await;
        }
        let mut subs: Vec<_> = known.subs.iter().map(|s| (self.subs.get(&s.id), self.hook_name(s.hook))).collect();
        subs.sort();
        lines.push(format!("subs {subs:?}"));
        for (n, id) in self.events.iter().enumerate() {
            let states = self.world.states(id.pos).await;
            let states: Vec<_> = states.into_iter().map(|(hook, state)| (self.hook_name(hook), state)).collect();
            let attempts = self.world.history().attempts_of(id.pos, 100).await.unwrap();
            let attempts: Vec<_> = attempts.iter().map(|a| (self.hook_name(a.hook), a.code, a.is_ok)).collect();
            lines.push(format!("event {n} {states:?} {attempts:?}"));
        }
        for order in &self.replays {
            let run = self.world.replay_run(order).await;
            let ended = (run.state != ReplayState::Cancelled).then_some((run.done, run.dead));
            lines.push(format!("{} {:?} {} {} {ended:?}", order.identity.name, run.state, run.matched, run.reopened));
        }
        lines.push(format!("{:?}", self.world.totals().await));
        Shown(lines)
    }

    async fn show_deliveries(&self, hook: HookId, lines: &mut Vec<String>) {
        let partition = self.world.partition();
        for row in self.world.rows(hook).await {
            lines.push(format!("  owed {}", self.row(&row)));
        }
        let now = partition.store_now();
        let page = partition.waiting(hook, now, 1000).await.unwrap();
        let due: Vec<_> = page.rows.iter().map(|r| self.row(r)).collect();
        lines.push(format!("  at {now:?} due {due:?}, next {:?}", page.next_due));
        for BlockedKey { key, is_waiting, parked, dead } in partition.blocked_keys(hook, true, 100).await.unwrap() {
            let rows = partition.parked(hook, key, 1000).await.unwrap();
            let rows: Vec<_> = rows.iter().map(|r| self.row(r)).collect();
            let first = [parked, dead].map(|pos| pos.map(|pos| self.index(pos)));
            lines.push(format!("  blocked {key:?} {is_waiting} {first:?} {rows:?}"));
        }
        let query = CardQuery { hook: Some(hook), state: None, after: None, limit: 1000 };
        for dead in partition.cards(query).await.unwrap() {
            let event = dead.event.is_some();
            // When it is found that something is too old is the store's own affair;
            // and the answer to a probe (`Next::Back`) may be forgotten with it.
            let last = (dead.reason != DeadReason::Expired).then_some((dead.at, dead.code));
            let told = (dead.reason, dead.card, dead.tries, last, event);
            lines.push(format!("  dead {:?} {told:?}", self.index(dead.pos)));
        }
        let tally = self.world.tally(hook).await;
        if tally != Tally::default() {
            lines.push(format!("  tally pending {} dead {} delivered {}", tally.pending, tally.dead, tally.delivered));
        }
    }

    async fn accept(&mut self, batch: &[(usize, Option<u8>, bool, Option<u8>)]) -> String {
        let events = batch.iter().map(|(event_type, id, other, key)| {
            let mut event = event(TYPES[*event_type]);
            event.head.given_id = id.map(|id| format!("id-{id}").into());
            event.head.key = key.map(|key| format!("key-{key}").into());
            event.data = if *other { "{\"other\":1}".into() } else { event.data };
            event
        });
        let accepted = self.world.accept(events.collect()).await;
        let mut told = Vec::new();
        for verdict in accepted {
            if let Accepted::New(id) = verdict {
                self.events.push(id);
            }
            let (Accepted::New(id) | Accepted::Duplicate(id) | Accepted::Conflict(id)) = verdict;
            let word = std::mem::discriminant(&verdict);
            told.push((word, self.events.iter().position(|e| *e == id)));
        }
        format!("{told:?}")
    }

    async fn hook(&mut self, n: usize) {
        let definition = HookDefinition { max_age_ms: MAX_AGE_MS, is_ordered: n != 1, ..hook(&format!("h{n}")) };
        let id = self.world.hook_of(definition).await;
        self.hooks.insert(n, id);
    }

    async fn sub(&mut self, n: usize, pattern: usize, is_earliest: bool) -> String {
        let from = if is_earliest { From::Earliest } else { From::Time(self.world.clock.wall()) };
        // Of one UID, so of one time.
        let created = Timestamp::from_second(1_790_000_000 - n as i64).unwrap();
        let definition = sub(&format!("h{}", n % HOOKS), &format!("s{n}"), PATTERNS[pattern], from, created);
        let registered = self.world.register(Register::Sub(definition)).await;
        if let Registered::Sub { id, .. } = registered {
            self.subs.insert(id, n);
        }
        format!("{:?}", std::mem::discriminant(&registered))
    }

    async fn replay(&mut self, hook: HookId, what: ReplayWhat) -> String {
        let order = replay_order(&format!("r{}", self.replays.len()), hook, what);
        let run = self.world.replay(order.clone()).await;
        self.replays.push(order);
        self.is_sub_told = false;
        format!("{}", run.is_known)
    }
}

/// The model and the engine.
struct Pair {
    model: Side,
    engine: Side,
    steps_passed: u32,
    gone: BTreeMap<usize, u32>,
}

impl Pair {
    fn sides(&mut self) -> [&mut Side; 2] {
        [&mut self.model, &mut self.engine]
    }

    async fn run(&mut self, command: &Command) -> Result<(), TestCaseError> {
        let mut told = Vec::new();
        match command {
            Command::Accept(batch) => {
                for side in self.sides() {
                    told.push(side.accept(batch).await);
                }
            }
            Command::Hook(n) => self.hook(*n).await,
            Command::HookGone(n) => {
                self.gone.insert(*n, self.steps_passed);
                for side in self.sides() {
                    side.is_sub_told = false;
                    side.world.register(hook_gone(&format!("h{n}"))).await;
                }
            }
            Command::Sub(n, pattern, is_earliest) => {
                for side in self.sides() {
                    told.push(side.sub(*n, *pattern, *is_earliest).await);
                }
            }
            Command::SubGone(n) => {
                let uid: Arc<str> = format!("uid-of-sub-s{n}").into();
                for side in self.sides() {
                    side.world.register(Register::SubGone { uid: uid.clone() }).await;
                }
            }
            Command::Record(outcomes) => self.record(outcomes).await,
            Command::Mark(which, card) => self.mark(which, *card).await,
            Command::Replay(hook, what) => told = self.replay(*hook, what).await,
            Command::CancelReplay(which) => self.cancel_replay(which).await,
            Command::Pass(steps) => self.pass(*steps).await,
            Command::Crash => {
                for side in self.sides() {
                    side.world.crash().await;
                }
            }
            Command::Restart => {
                for side in self.sides() {
                    side.world.restart().await;
                }
            }
        }
        prop_assert!(told.is_empty() || told[0] == told[1], "the model said {} and the engine {}", told[0], told[1]);
        self.compare().await
    }

    async fn hook(&mut self, n: usize) {
        self.gone.remove(&n);
        for side in self.sides() {
            side.hook(n).await;
        }
    }

    /// Time passes; an event, so that both stores write it down. A Webhook comes
    /// back before its day is over: what is afterwards is not said.
    async fn pass(&mut self, steps: u32) {
        for _ in 0..steps {
            self.steps_passed += 1;
            for side in self.sides() {
                side.world.advance(STEP);
            }
            let now = self.steps_passed;
            let back: Vec<_> = self.gone.iter().filter(|(_, since)| now - **since > 40).map(|(n, _)| *n).collect();
            for n in back {
                self.hook(n).await;
            }
            for side in self.sides() {
                side.accept(&[(2, None, false, None)]).await;
            }
        }
    }

    async fn compare(&self) -> Result<(), TestCaseError> {
        let begun = std::time::Instant::now();
        let mut polls = 0;
        loop {
            let (model, engine) = (self.model.shown().await, self.engine.shown().await);
            if model == engine {
                return Ok(());
            }
            let missing: Vec<_> = model.0.iter().filter(|l| !engine.0.contains(l)).collect();
            let added: Vec<_> = engine.0.iter().filter(|l| !model.0.contains(l)).collect();
            // On a machine with other work, time alone says nothing: upkeep comes with ticks.
            let is_over = begun.elapsed() > Duration::from_secs(3) && polls >= POLLS_MIN;
            prop_assert!(!is_over, "the model shows\n{missing:#?}\nthe engine shows\n{added:#?}\nwhole {model:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
            polls += 1;
            if polls % TICK_EVERY == 0 {
                self.model.world.tick().await;
                self.engine.world.tick().await;
            }
        }
    }

    /// Deliveries that there are, by name of the hook and number of the event.
    async fn deliveries(&self) -> Vec<(usize, usize, DeliveryState)> {
        let mut all = Vec::new();
        for (n, id) in self.model.events.iter().enumerate() {
            for (hook, state) in self.model.world.states(id.pos).await {
                all.extend(self.model.hook_name(hook).map(|name| (name, n, state)));
            }
        }
        all
    }

    async fn record(&mut self, outcomes: &[(prop::sample::Index, Follow, u16)]) {
        let all = self.deliveries().await;
        if all.is_empty() {
            return;
        }
        let mut chosen = Vec::new();
        for (which, follow, tries_off) in outcomes {
            let (hook, event, state) = *which.get(&all);
            let pos = self.model.events[event].pos;
            let row = self.model_row(self.model.hooks[&hook], pos).await;
            let next = match follow {
                Follow::Done => Next::Done,
                Follow::At(steps) => {
                    let ms = i64::try_from(STEP.as_millis()).unwrap() * i64::from(*steps) + 60_000;
                    Next::At(self.model.world.partition().store_now().plus_ms(ms))
                }
                Follow::Dead => Next::Dead(DeadReason::Exhausted),
                Follow::Park if state == DeliveryState::Owed && row.is_some_and(|r| r.key.is_some()) => Next::Park,
                Follow::Park => continue,
                Follow::Back => Next::Back,
            };
            chosen.push((hook, event, row.map_or(0, |r| r.tries) + tries_off, next));
        }
        for side in self.sides() {
            let outcomes = chosen.iter().map(|(hook, event, tries, next)| {
                let (hook, pos) = (side.hooks[hook], side.events[*event].pos);
                let code = if *next == Next::Done { 200 } else { 500 };
                match next {
                    Next::Park => verdict(hook, pos, *tries, *next),
                    _ => outcome(&side.world.clock, hook, pos, *tries, Some(code), *next),
                }
            });
            let outcomes = outcomes.collect();
            side.world.record(outcomes).await;
        }
    }

    async fn model_row(&self, hook: HookId, pos: Pos) -> Option<OwedRow> {
        let partition = self.model.world.partition();
        let mut rows = self.model.world.rows(hook).await;
        let far = partition.store_now().plus_ms(i64::MAX / 4);
        rows.extend(partition.waiting(hook, far, 10_000).await.unwrap().rows);
        for by in partition.blocked_keys(hook, false, 100).await.unwrap() {
            rows.extend(partition.parked(hook, by.key, 10_000).await.unwrap());
        }
        rows.into_iter().find(|r| r.pos == pos)
    }

    async fn mark(&mut self, which: &prop::sample::Index, card: Card) {
        let all = self.deliveries().await;
        let dead: Vec<_> = all.iter().filter(|(.., s)| matches!(s, DeliveryState::Dead(_))).collect();
        if dead.is_empty() {
            return;
        }
        let (hook, event, _) = **which.get(&dead);
        let state = match card {
            Card::Made => CardState::Made,
            Card::Overflow => CardState::Overflow,
            Card::Dismissed => CardState::Dismissed,
            Card::Expired => CardState::Expired,
        };
        for side in self.sides() {
            side.world.mark(side.hooks[&hook], side.events[event].pos, state).await;
        }
    }

    async fn replay(&mut self, hook: usize, what: &What) -> Vec<String> {
        if !self.model.hooks.contains_key(&hook) || self.gone.contains_key(&hook) {
            return Vec::new();
        }
        let is_dead = |d: &(usize, usize, DeliveryState)| d.0 == hook && matches!(d.2, DeliveryState::Dead(_));
        let dead: Vec<_> = self.deliveries().await.into_iter().filter(is_dead).map(|(_, event, _)| event).collect();
        let mut told = Vec::new();
        for side in self.sides() {
            let positions = |events: &[usize]| events.iter().map(|n| side.events[*n].pos).collect();
            let what = match what {
                What::AllDead => ReplayWhat::AllDead,
                What::Dead => ReplayWhat::Dead(positions(&dead[..dead.len().min(3)])),
                What::Events(_) if side.events.is_empty() => return Vec::new(),
                What::Events(chosen) => {
                    let mut events: Vec<_> = chosen.iter().map(|c| c.index(side.events.len())).collect();
                    events.sort_unstable();
                    events.dedup();
                    ReplayWhat::Events(positions(&events))
                }
                What::Range(steps) => {
                    let since = side.world.clock.wall() - STEP * *steps - Duration::from_secs(60);
                    ReplayWhat::Range { since, until: None }
                }
            };
            let id = side.hooks[&hook];
            told.push(side.replay(id, what).await);
        }
        told
    }

    async fn cancel_replay(&mut self, which: &prop::sample::Index) {
        if self.model.replays.is_empty() {
            return;
        }
        let n = which.index(self.model.replays.len());
        for side in self.sides() {
            let identity = side.replays[n].identity.clone();
            side.world.partition().cancel_replay(identity).await.unwrap();
        }
    }
}

/// Runs random commands on the model and on the engine that `ground` makes.
pub fn same_as_the_model<G: Ground + 'static, M: Ground + 'static>(model: impl Fn() -> M, engine: impl Fn() -> G) {
    let cases = std::env::var("POSTHORN_STORE_CASES").map_or(CASES_DEFAULT, |n| n.parse().unwrap());
    let seed = std::env::var("POSTHORN_STORE_SEED").map_or_else(|_| rand::random(), |text| seed_from(&text));
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 100, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let result = runner.run(&prop::collection::vec(command(), 1..COMMANDS_MAX), |commands| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (model, engine) = (World::new(model()).await, World::new(engine()).await);
            let (steps_passed, gone) = (0, BTreeMap::new());
            let mut pair = Pair { model: Side::new(model), engine: Side::new(engine), steps_passed, gone };
            for command in &commands {
                pair.run(command).await?;
            }
            Ok(())
        })
    });
    if let Err(error) = result {
        let seed: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
        match error {
            TestError::Fail(reason, commands) => {
                panic!("POSTHORN_STORE_SEED={seed}\nafter {commands:#?}\n{reason}")
            }
            TestError::Abort(reason) => panic!("POSTHORN_STORE_SEED={seed}: {reason}"),
        }
    }
}

fn seed_from(text: &str) -> [u8; 32] {
    let bytes = (0..text.len() / 2).map(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap());
    bytes.collect::<Vec<_>>().try_into().expect("32 bytes in hexadecimal")
}

#[test]
fn sqlite_shows_the_same_as_the_model() {
    use super::grounds::{ModelGround, SqliteGround};
    same_as_the_model(ModelGround::fresh, SqliteGround::fresh);
}

#[test]
fn the_model_shows_the_same_as_itself() {
    use super::grounds::ModelGround;
    same_as_the_model(ModelGround::fresh, ModelGround::fresh);
}
