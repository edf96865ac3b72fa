//! Random histories: nothing is lost, nothing is sent twice but after a crash,
//! keys keep their order, whatever the store's answers and the news overtake.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proptest::prelude::*;
use rand::RngExt;

use super::{
    fake::{entry, view},
    sim::{Sim, answered},
};
use crate::{
    api::Reason,
    dispatch::{AttemptEnd, FailureKind, Hold},
    event::Pos,
    policy::delivery::{DeliverySettings, Rate, RetryPlan},
    store::HookId,
};

/// What a random history consists of.
#[derive(Clone, Debug)]
struct History {
    seed: u64,
    hooks: i64,
    window: usize,
    store_ms: i64,
    is_ordered: bool,
    has_crashes: bool,
    failing_percent: u32,
    circuit_failures: u16,
    /// The endpoint fails from then on for some minutes.
    outage_ms: Option<i64>,
    /// The Webhook is ordered and not ordered by turns.
    is_changing: bool,
    steps: Vec<(u8, u16)>,
}

fn history() -> impl Strategy<Value = History> {
    let numbers = (any::<u64>(), 1i64..5, 1usize..20, 0i64..40);
    let kinds = (any::<bool>(), any::<bool>(), 0u32..60, prop::sample::select(vec![0u16, 5]));
    let outage = prop::option::of(0i64..20_000);
    let steps = prop::collection::vec((0u8..12, 0u16..300), 1..120);
    (numbers, kinds, outage, steps).prop_map(|((seed, hooks, window, store_ms), kinds, outage_ms, steps)| {
        let (is_ordered, has_crashes, failing_percent, circuit_failures) = kinds;
        History {
            seed,
            hooks,
            window,
            store_ms,
            is_ordered,
            has_crashes,
            failing_percent,
            circuit_failures,
            outage_ms,
            is_changing: false,
            steps,
        }
    })
}

fn settings(history: &History) -> DeliverySettings {
    let wait_ms = if history.outage_ms.is_some() { 20_000 } else { 200 };
    DeliverySettings {
        retry: RetryPlan::Schedule(vec![Duration::from_millis(wait_ms); 30]),
        circuit_failures: history.circuit_failures,
        concurrency: 4,
        is_ordered: history.is_ordered,
        rate: history.seed.is_multiple_of(3).then_some(Rate { requests: 40, per: Duration::from_secs(1) }),
        ..DeliverySettings::default()
    }
}

fn end(rng: &mut rand::rngs::StdRng, failing_percent: u32) -> AttemptEnd {
    if rng.random_range(0..100) >= failing_percent {
        return answered(200);
    }
    match rng.random_range(0..6) {
        0 => answered(503),
        1 => answered(400),
        2 => AttemptEnd::Answered { code: 429, retry_after: Some(Duration::from_millis(700)) },
        3 => AttemptEnd::Failed { reason: Reason::AnswerTimedOut, kind: FailureKind::Endpoint },
        4 => AttemptEnd::Failed { reason: Reason::DestinationNotAllowed, kind: FailureKind::Other },
        _ => {
            let retry_after = Some(Duration::from_millis(rng.random_range(0..2) * 300));
            AttemptEnd::NotSent(Hold { reason: Reason::SecretNotFound, message: "".into(), retry_after })
        }
    }
}

fn play(history: &History) -> Sim {
    // After an outage the endpoint is well: with single failures a circuit that
    // closes opens again and again, for hours.
    let failing = if history.outage_ms.is_some() { 0 } else { history.failing_percent };
    let mut ended: BTreeMap<(HookId, Pos), i64> = BTreeMap::new();
    let has_crashes = history.has_crashes;
    let outage = history.outage_ms.map(|from| 1_000_000 + from..1_200_000 + from);
    let is_out = move |now: i64| outage.as_ref().is_some_and(|outage| outage.contains(&now));
    let mut sim = Sim::new(
        history.seed,
        Box::new(move |rng, hook, pos, now| {
            let before = ended.get(&(hook, pos)).copied();
            assert!(has_crashes || before.is_none(), "{hook:?} {pos:?} at {now} after its delivery at {before:?}");
            let end = if is_out(now) { answered(503) } else { end(rng, failing) };
            if end == answered(200) {
                ended.insert((hook, pos), now);
            }
            (rng.random_range(0..60), end)
        }),
    );
    sim.engine.globals.window = history.window;
    sim.store_ms = history.store_ms;
    sim.keeps_order = !history.is_changing;
    let mut settings = settings(history);
    for hook in 0..history.hooks {
        sim.set(view(hook, &settings));
    }
    for (kind, number) in &history.steps {
        let hook = i64::from(*number) % history.hooks;
        let key = |sim: &mut Sim| settings.is_ordered.then(|| sim.rng.random_range(0..4));
        match kind {
            0..=4 => {
                for _ in 0..*number % 12 {
                    let key = key(&mut sim);
                    sim.publish(&[hook], key);
                }
            }
            5 => {
                let all: Vec<i64> = (0..history.hooks).collect();
                let key = key(&mut sim);
                sim.publish(&all, key);
            }
            6 => {
                let some: Vec<i64> = (hook..history.hooks).collect();
                let key = key(&mut sim);
                sim.publish_wide(&some, key);
            }
            7 => (0..*number % 8).for_each(|_| sim.route_one()),
            8 => sim.set(crate::dispatch::HookView { webhook: Some(entry(1, true)), ..view(hook, &settings) }),
            9 => sim.set(view(hook, &settings)),
            10 if history.has_crashes => sim.crash(),
            10 if history.is_changing => {
                settings.is_ordered = !settings.is_ordered;
                for hook in 0..history.hooks {
                    sim.set(view(hook, &settings));
                }
            }
            _ => sim.run_for(i64::from(*number)),
        }
    }
    for hook in 0..history.hooks {
        sim.set(view(hook, &settings));
    }
    while !sim.unrouted.is_empty() {
        sim.run_for(1);
        sim.route_one();
    }
    sim.run_for(3 * 3_600_000);
    sim
}

/// Deliveries that die and block their keys, are re-opened and dismissed, and
/// crashes at any time. What is attempted when, the world itself judges.
fn play_with_dead_that_block(history: &History) -> Sim {
    let failing = history.failing_percent;
    let is_well = std::rc::Rc::new(std::cell::Cell::new(false));
    let well = std::rc::Rc::clone(&is_well);
    let mut sim = Sim::new(
        history.seed,
        Box::new(move |rng, _, _, _| {
            let fails = !well.get() && rng.random_range(0..100) < failing;
            (rng.random_range(0..60), answered(if fails { 400 } else { 200 }))
        }),
    );
    sim.engine.globals.window = history.window;
    sim.store_ms = history.store_ms;
    let settings = DeliverySettings {
        retry: RetryPlan::Schedule(vec![Duration::from_millis(100)]),
        circuit_failures: 0,
        concurrency: 4,
        is_ordered: true,
        blocks_on_dead: true,
        ..DeliverySettings::default()
    };
    for hook in 0..history.hooks {
        sim.set(view(hook, &settings));
    }
    for (kind, number) in &history.steps {
        let hook = i64::from(*number) % history.hooks;
        let dead: Vec<_> = sim.store.dead.keys().copied().collect();
        let one_dead = dead.get(usize::from(*number) % dead.len().max(1)).copied();
        match (kind, one_dead) {
            (0..=3, _) => {
                for _ in 0..*number % 12 {
                    let key = sim.rng.random_range(0..4);
                    sim.publish(&[hook], Some(key));
                }
            }
            (4, _) => {
                let key = sim.rng.random_range(0..4);
                sim.publish_wide(&(hook..history.hooks).collect::<Vec<_>>(), Some(key));
            }
            (5, _) => (0..*number % 8).for_each(|_| sim.route_one()),
            (6, Some((hook, pos))) => sim.end(hook.0, pos),
            (7 | 8, Some((hook, pos))) => sim.reopen(hook.0, pos),
            (9, _) if history.has_crashes => sim.crash(),
            (10, _) => {
                // What was answered is over, whatever the store says of its age.
                let parked: Vec<_> = sim.store.parked.keys().filter(|at| !sim.is_tried(at)).copied().collect();
                if let Some((hook, pos)) = parked.get(usize::from(*number) % parked.len().max(1)) {
                    sim.expire(*hook, *pos);
                }
            }
            _ => sim.run_for(i64::from(*number)),
        }
    }
    is_well.set(true);
    // What was on its way before may still fail, and die.
    sim.run_for(1_000);
    for _ in 0..10_000 {
        sim.run_for(50);
        sim.route_one();
        if let Some((hook, pos)) = sim.store.dead.keys().next().copied() {
            sim.reopen(hook.0, pos);
        } else if sim.unrouted.is_empty() {
            break;
        }
    }
    sim.run_for(3_600_000);
    sim
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_and_nothing_is_sent_twice(history in history()) {
        let sim = play(&history);
        sim.assert_over();
        prop_assert_eq!(sim.store.ignored > 0, false);
    }

    #[test]
    fn nothing_is_left_when_a_webhook_is_ordered_by_turns(mut history in history()) {
        (history.is_changing, history.has_crashes) = (true, false);
        let sim = play(&history);
        sim.assert_over();
        prop_assert_eq!(sim.store.ignored, 0);
    }

    #[test]
    fn deliveries_of_a_key_begin_in_the_order_of_their_events(mut history in history()) {
        (history.is_ordered, history.has_crashes) = (true, false);
        let sim = play(&history);
        sim.assert_over();
        let mut last: BTreeMap<_, Pos> = BTreeMap::new();
        for (at, hook, pos) in &sim.attempts {
            let key = (*hook, sim.key_of(*pos));
            let before = last.insert(key, *pos).unwrap_or_default();
            prop_assert!(before <= *pos, "{key:?}: {pos:?} at {at} after {before:?}");
        }
    }

    #[test]
    fn what_is_dead_blocks_what_is_younger_until_it_was_sent_again(history in history()) {
        let sim = play_with_dead_that_block(&history);
        sim.assert_over();
        prop_assert_eq!(sim.store.dead.len(), 0);
    }

    #[test]
    fn one_seed_has_one_history(mut history in history()) {
        history.steps.truncate(30);
        prop_assert_eq!(play(&history).attempts, play(&history).attempts);
    }
}

#[test]
fn the_window_keeps_its_bounds_whatever_is_owed() {
    let mut sim = Sim::new(7, Box::new(|_, _, _, _| (1, answered(200))));
    sim.engine.globals.window = 8;
    sim.store_ms = 1;
    let settings = Arc::new(DeliverySettings::default());
    for hook in 0..20 {
        sim.set(view(hook, &settings));
    }
    for _ in 0..200 {
        sim.publish(&(0..20).collect::<Vec<_>>(), None);
    }
    sim.run_for(600_000);
    sim.assert_over();
    assert_eq!(sim.delivered(), 4_000);
    assert!(sim.peak.0 <= 20 * 8, "{:?}", sim.peak);
}

/// Found by chance: rows of a key that were parked while the Webhook was
/// suspended and released were overtaken.
#[test]
fn a_key_keeps_its_order_over_a_suspension_while_rows_are_being_parked() {
    let steps = [
        (0, 63),
        (0, 130),
        (0, 162),
        (0, 232),
        (0, 2),
        (5, 0),
        (0, 36),
        (0, 42),
        (0, 66),
        (0, 1),
        (0, 56),
        (0, 43),
        (7, 0),
        (0, 63),
        (6, 103),
        (8, 0),
    ];
    let history = History {
        seed: 21_667_943_602_691,
        hooks: 1,
        window: 13,
        store_ms: 2,
        is_ordered: true,
        has_crashes: false,
        failing_percent: 0,
        circuit_failures: 0,
        outage_ms: None,
        is_changing: false,
        steps: steps.to_vec(),
    };
    let sim = play(&history);
    sim.assert_over();
    let mut last: BTreeMap<_, Pos> = BTreeMap::new();
    for (at, hook, pos) in &sim.attempts {
        let before = last.insert((*hook, sim.key_of(*pos)), *pos).unwrap_or_default();
        assert!(before <= *pos, "{pos:?} at {at} after {before:?}");
    }
}
