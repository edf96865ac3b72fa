//! Whatever happens in whatever order, the counters tell what the tables hold.

use proptest::{
    prelude::*,
    sample::Index,
    test_runner::{Config, TestRunner},
};

use super::*;
use crate::store::{
    CardMark, CardQuery, CardState, Next, ReplayIdentity, ReplayOrder, ReplayWhat, StoreLimits, sqlite::verify,
};

const CASES: u32 = 24;
const COMMANDS_MAX: usize = 40;
const HOOKS: usize = 3;
/// Everything is over within a few of them.
const STEP_MS: i64 = 3_600_000;

#[derive(Clone, Debug)]
enum Command {
    /// So many events of so many bytes.
    Accept(usize, usize),
    /// What follows for some of the Deliveries that were ever accepted.
    Record(Vec<(Index, Index, Follow)>),
    Hook(usize),
    HookGone(usize),
    /// Dismisses the first cards.
    Dismiss(usize),
    Replay(usize),
    Pass(i64),
    /// So many commits find the disk full.
    NoRoom(u32),
    Reopen,
    Crash,
}

#[derive(Clone, Copy, Debug)]
enum Follow {
    Done,
    Wait,
    Dead,
}

fn command() -> impl Strategy<Value = Command> {
    let follow = prop_oneof![4 => Just(Follow::Done), 2 => Just(Follow::Wait), 2 => Just(Follow::Dead)];
    prop_oneof![
        6 => (1..60_usize, 10..9_000_usize).prop_map(|(events, bytes)| Command::Accept(events, bytes)),
        6 => prop::collection::vec((any::<Index>(), any::<Index>(), follow), 1..40).prop_map(Command::Record),
        2 => (0..HOOKS).prop_map(Command::Hook),
        1 => (0..HOOKS).prop_map(Command::HookGone),
        1 => (1..5_usize).prop_map(Command::Dismiss),
        2 => (0..HOOKS).prop_map(Command::Replay),
        3 => (1..40_i64).prop_map(Command::Pass),
        3 => (1..6_u32).prop_map(Command::NoRoom),
        1 => Just(Command::Reopen),
        1 => Just(Command::Crash),
    ]
}

/// The store, and what was done to it.
struct Run {
    place: Place,
    store: Option<Arc<SqliteStore>>,
    hooks: [Option<HookId>; HOOKS],
    events: Vec<Pos>,
    replays: usize,
}

impl Run {
    async fn begin() -> Self {
        let mut place = Place::new();
        // So small and so short that everything is evicted, expires or is over.
        place.limits = StoreLimits {
            size_bytes: 4 << 20,
            retention_age: std::time::Duration::from_secs(2 * 3_600),
            dead_age: std::time::Duration::from_secs(3 * 3_600),
            ..StoreLimits::default()
        };
        let store = Some(place.open().0);
        let mut run = Self { place, store, hooks: [None; HOOKS], events: Vec::new(), replays: 0 };
        run.command(&Command::Hook(0)).await;
        run
    }

    fn store(&self) -> &Arc<SqliteStore> {
        self.store.as_ref().unwrap()
    }

    async fn command(&mut self, command: &Command) {
        match command {
            Command::Accept(events, bytes) => {
                let data = "x".repeat(*bytes);
                match self.store().accept((0..*events).map(|_| event(&data)).collect()).await {
                    Ok(verdicts) => self.events.extend(verdicts.into_iter().map(|verdict| match verdict {
                        Accepted::New(id) => id.pos,
                        other => panic!("{other:?}"),
                    })),
                    Err(error) => assert_eq!(error, crate::store::AcceptError::Full),
                }
            }
            Command::Record(outcomes) => self.record(outcomes).await,
            Command::Hook(n) => {
                let name = format!("h{n}");
                let definition = HookDefinition { max_age_ms: 20 * STEP_MS, ..hook(&name, false) };
                let changes = vec![Register::Hook(definition), Register::Sub(sub(&name, &name))];
                let registered = register_all(self.store(), changes).await;
                let Registered::Hook(id) = registered[0] else { panic!("{registered:?}") };
                self.hooks[*n] = Some(id);
            }
            Command::HookGone(n) => {
                let gone = Register::HookGone { namespace_uid: "ns-1".into(), name: format!("h{n}").into() };
                register_all(self.store(), vec![gone]).await;
            }
            Command::Dismiss(count) => {
                let query = CardQuery { hook: None, state: Some(CardState::Wanted), after: None, limit: *count };
                let cards = self.store().cards(query).await.unwrap();
                let mark = |hook, pos| CardMark { hook, pos, state: CardState::Dismissed };
                let marks = cards.iter().map(|card| mark(card.hook, card.pos)).collect();
                self.store().mark_cards(marks).await.unwrap();
            }
            Command::Replay(n) => {
                let Some(hook) = self.hooks[*n] else { return };
                self.replays += 1;
                let name = format!("r{}", self.replays).into();
                let identity = ReplayIdentity { namespace_uid: "ns-1".into(), name, spec_hash: "1".into() };
                let what = ReplayWhat::AllDead;
                let order = ReplayOrder { identity, hook, what, per_second: None, is_dry_run: false };
                self.store().replay(order).await.unwrap();
            }
            Command::Pass(minutes) => {
                pass(&self.place, minutes * STEP_MS / 10);
                nudge(self.store()).await;
            }
            Command::NoRoom(commits) => self.store().shared.breaks.fail(rusqlite::ffi::SQLITE_FULL, *commits),
            Command::Reopen => {
                self.store().shared.breaks.fail(0, 0);
                self.store().close().await.unwrap();
                self.reopen();
            }
            Command::Crash => self.reopen(),
        }
    }

    async fn record(&self, outcomes: &[(Index, Index, Follow)]) {
        let hooks: Vec<HookId> = self.hooks.iter().flatten().copied().collect();
        if self.events.is_empty() {
            return;
        }
        let due = StoreTime(self.store().store_now().0 + STEP_MS);
        let outcome = |(event, hook, follow): &(Index, Index, Follow)| {
            let next = match follow {
                Follow::Done => Next::Done,
                Follow::Wait => Next::At(due),
                Follow::Dead => Next::Dead(DeadReason::Exhausted),
            };
            outcome(*hook.get(&hooks), *event.get(&self.events), 0, next)
        };
        record(self.store(), outcomes.iter().map(outcome).collect()).await;
    }

    fn reopen(&mut self) {
        drop(self.store.take());
        self.store = Some(self.place.open().0);
    }

    /// Everything of the store adds up, as people and as the tables see it.
    async fn check(mut self, is_drained: bool) -> Result<(), TestCaseError> {
        // Upkeep may still be at work between the two questions below.
        settle(self.store()).await;
        let totals = self.store().totals().await.unwrap();
        let known = self.store().known().await.unwrap();
        let pending: u64 = known.hooks.iter().map(|hook| hook.pending).sum();
        prop_assert_eq!(pending, totals.pending, "{:?}", &known.hooks);
        if is_drained {
            prop_assert_eq!((totals.pending, totals.dead), (0, 0));
        }
        drop(self.store.take());
        let found = verify(&self.place.path().join("store.db")).unwrap();
        prop_assert_eq!(found.problems, []);
        Ok(())
    }
}

#[test]
fn after_any_commands_the_counters_tell_what_the_tables_hold() {
    let config = Config { cases: CASES, failure_persistence: None, max_shrink_iters: 60, ..Config::default() };
    let commands = (prop::collection::vec(command(), 1..COMMANDS_MAX), any::<bool>());
    let result = TestRunner::new(config).run(&commands, |(commands, is_drained)| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut run = Run::begin().await;
            for command in &commands {
                run.command(command).await;
            }
            if is_drained {
                // Long enough for everything to expire, and the dead to be over.
                for _ in 0..30 {
                    pass(&run.place, STEP_MS);
                    settle(run.store()).await;
                }
            }
            run.check(is_drained).await
        })
    });
    result.unwrap();
}
