//! Ordering keys: one at a time, in order, and what blocks what.

use std::{collections::BTreeMap, time::Duration};

use super::{
    fake::{entry, view},
    sim::{Sim, answered},
};
use crate::{
    dispatch::{AttemptEnd, FailureKind, HookView, order::BLOCKED_KEYS_MAX},
    event::Pos,
    policy::delivery::{DeliverySettings, RetryPlan},
    store::HookId,
};

const SECOND: i64 = 1_000;

fn ordered() -> DeliverySettings {
    DeliverySettings {
        retry: RetryPlan::Schedule(vec![Duration::from_secs(10)]),
        jitter: 0.0,
        circuit_failures: 0,
        is_ordered: true,
        ..DeliverySettings::default()
    }
}

/// Attempts take 10 ms; those of these positions fail so many times first.
fn sim(settings: &DeliverySettings, failures: &[(u64, u32)]) -> Sim {
    let mut left: BTreeMap<u64, u32> = failures.iter().copied().collect();
    let mut sim = Sim::new(
        1,
        Box::new(move |_, _, pos, _| match left.get_mut(&pos.0).filter(|left| **left > 0) {
            Some(left) => {
                *left -= 1;
                (10, answered(400))
            }
            None => (10, answered(200)),
        }),
    );
    sim.set(view(1, settings));
    // The first success proves the endpoint: from then on several at once.
    sim.publish(&[1], Some(99));
    sim.run_for(SECOND);
    sim
}

#[test]
fn keys_go_side_by_side_and_each_by_itself_in_order() {
    let mut sim = sim(&ordered(), &[]);
    for event in 0..12 {
        sim.publish(&[1], Some(event % 3));
    }
    let begin = sim.now;
    sim.run_for(SECOND);
    sim.assert_over();
    assert_eq!(sim.delivered(), 13);
    let last = sim.attempts.last().unwrap().0;
    assert!(last - begin < 12 * 10, "three keys at once: {} ms", last - begin);
}

#[test]
fn a_retry_blocks_its_key_alone() {
    let mut sim = sim(&ordered(), &[(2, 1)]);
    for key in [0, 0, 1, 0, 1] {
        sim.publish(&[1], Some(key));
    }
    sim.run_for(5 * SECOND);
    assert_eq!((sim.store.retry.len(), sim.store.parked.len(), sim.store.owed.len()), (1, 2, 0));
    sim.run_for(10 * SECOND);
    sim.assert_over();
    let key: Vec<u64> = sim.order_of(1).into_iter().filter(|pos| [2, 3, 5].contains(pos)).collect();
    assert_eq!(key, [2, 2, 3, 5]);
}

#[test]
fn a_dead_delivery_releases_its_key() {
    let mut sim = sim(&ordered(), &[(2, 2)]);
    for _ in 0..3 {
        sim.publish(&[1], Some(0));
    }
    sim.run_for(20 * SECOND);
    sim.assert_over();
    assert_eq!((sim.store.dead.len(), sim.order_of(1)), (1, vec![1, 2, 2, 3, 4]));
}

fn blocked() -> (Sim, DeliverySettings) {
    let settings = DeliverySettings { blocks_on_dead: true, ..ordered() };
    let mut sim = sim(&settings, &[(2, 2)]);
    for _ in 0..3 {
        sim.publish(&[1], Some(0));
    }
    sim.publish(&[1], Some(1));
    sim.run_for(60 * SECOND);
    assert_eq!((sim.store.dead.len(), sim.order_of(1)), (1, vec![1, 2, 5, 2]));
    (sim, settings)
}

#[test]
fn with_on_dead_block_a_dead_delivery_holds_its_key_until_it_is_dismissed() {
    let (mut sim, _) = blocked();
    sim.end(1, Pos(2));
    sim.run_for(SECOND);
    sim.assert_over();
    assert_eq!(sim.order_of(1), [1, 2, 5, 2, 3, 4]);
}

#[test]
fn with_on_dead_block_a_replayed_delivery_comes_before_what_it_blocked() {
    let (mut sim, _) = blocked();
    sim.reopen(1, Pos(2));
    sim.run_for(SECOND);
    sim.assert_over();
    assert_eq!(sim.order_of(1), [1, 2, 5, 2, 2, 3, 4]);
}

/// The process ends between the re-opening and the sending: what is in the tables
/// alone says what comes first.
#[test]
fn with_on_dead_block_a_replayed_delivery_comes_first_over_a_crash_as_well() {
    let (mut sim, _) = blocked();
    let late = sim.publish(&[1], Some(0));
    sim.reopen(1, Pos(2));
    sim.crash();
    sim.run_for(SECOND);
    sim.assert_over();
    assert_eq!(sim.order_of(1), [1, 2, 5, 2, 2, 3, 4, late.0]);
}

#[test]
fn with_on_dead_block_what_is_older_than_the_dead_one_is_sent_again_and_what_is_younger_is_not() {
    let (mut sim, _) = blocked();
    // What waits behind the dead one is owed for too long as well.
    sim.expire(HookId(1), Pos(3));
    sim.run_for(SECOND);
    sim.reopen(1, Pos(2));
    sim.run_for(SECOND);
    assert_eq!(sim.order_of(1), [1, 2, 5, 2, 2]);
    sim.crash();
    sim.run_for(SECOND);
    assert_eq!(sim.order_of(1), [1, 2, 5, 2, 2], "the other one blocks still");
    sim.reopen(1, Pos(3));
    sim.run_for(SECOND);
    sim.assert_over();
    assert_eq!(sim.order_of(1), [1, 2, 5, 2, 2, 3, 4]);
}

#[test]
fn on_dead_block_holds_for_what_died_before_it_was_asked_for() {
    let mut sim = sim(&ordered(), &[(2, 2)]);
    sim.publish(&[1], Some(0));
    sim.run_for(60 * SECOND);
    sim.set(view(1, &DeliverySettings { blocks_on_dead: true, ..ordered() }));
    sim.publish(&[1], Some(0));
    sim.run_for(SECOND);
    assert_eq!((sim.order_of(1), sim.store.parked.len()), (vec![1, 2, 2], 1));
    sim.end(1, Pos(2));
    sim.run_for(SECOND);
    sim.assert_over();
}

#[test]
fn with_on_dead_block_news_of_others_a_suspension_and_a_restart_release_nothing() {
    let (mut sim, settings) = blocked();
    let late = sim.publish(&[], None);
    sim.fan_out(1, late);
    sim.run_for(SECOND);
    sim.set(HookView { webhook: Some(entry(1, true)), ..view(1, &settings) });
    sim.run_for(SECOND);
    sim.set(view(1, &settings));
    sim.run_for(SECOND);
    sim.crash();
    sim.publish(&[1], Some(0));
    sim.run_for(SECOND);
    assert_eq!(sim.order_of(1), [1, 2, 5, 2, late.0]);
    assert_eq!(sim.store.parked.len(), 3);
}

#[test]
fn on_dead_continue_releases_what_block_held() {
    let (mut sim, _) = blocked();
    sim.set(view(1, &ordered()));
    sim.run_for(SECOND);
    sim.assert_over();
    assert_eq!(sim.order_of(1), [1, 2, 5, 2, 3, 4]);
}

#[test]
fn a_webhook_that_is_ordered_no_longer_leaves_nothing_parked() {
    for restarts in [false, true] {
        let mut sim = sim(&ordered(), &[(2, 1)]);
        for _ in 0..40 {
            sim.publish(&[1], Some(0));
        }
        sim.run_for(SECOND);
        assert_eq!(sim.store.parked.len(), 39);
        sim.set(view(1, &DeliverySettings { is_ordered: false, ..ordered() }));
        if restarts {
            sim.crash();
        }
        // What is new need not wait for it.
        let fresh = sim.publish(&[1], None);
        sim.run_for(SECOND);
        assert!(sim.store.delivered.contains_key(&(HookId(1), fresh)));
        sim.run_for(20 * SECOND);
        sim.assert_over();
        assert!(sim.engine.hooks[&HookId(1)].keys.is_none(), "nothing is left to keep keys for");
    }
}

#[test]
fn a_probe_takes_no_delivery_whose_key_waits() {
    let settings = DeliverySettings { circuit_failures: 5, ..ordered() };
    let settings = DeliverySettings { retry: RetryPlan::Schedule(vec![Duration::from_secs(20); 30]), ..settings };
    let mut sim = Sim::new(
        1,
        Box::new(|_, _, _, now| {
            let end = AttemptEnd::Failed { reason: crate::api::Reason::AnswerTimedOut, kind: FailureKind::Endpoint };
            (10, if now < 1_400_000 { end } else { answered(200) })
        }),
    );
    sim.set(view(1, &settings));
    for event in 0..400 {
        sim.publish(&[1], Some(event % 100));
    }
    sim.run_for(3_600 * SECOND);
    sim.assert_over();
    assert!(!sim.notes.is_empty(), "the circuit was open");
    let mut last: BTreeMap<_, u64> = BTreeMap::new();
    for pos in sim.order_of(1) {
        let before = last.insert(sim.key_of(Pos(pos)), pos).unwrap_or_default();
        assert!(before <= pos, "{pos} after {before}");
    }
}

/// An endpoint that refuses every event once, and takes it an hour later.
fn refusing_once() -> DeliverySettings {
    DeliverySettings { retry: RetryPlan::Schedule(vec![Duration::from_secs(3_600)]), ..ordered() }
}

fn sim_refusing_once() -> Sim {
    let mut refused = std::collections::BTreeSet::new();
    let mut sim = Sim::new(1, Box::new(move |_, _, pos, _| (1, answered(if refused.insert(pos) { 400 } else { 200 }))));
    sim.set(view(1, &refusing_once()));
    sim
}

#[test]
fn a_key_that_waits_is_blocked_however_many_others_wait() {
    let mut sim = sim_refusing_once();
    for _ in 0..5_000 {
        sim.publish(&[1], None);
    }
    sim.run_for(60 * SECOND);
    let first = sim.publish(&[1], Some(0));
    let second = sim.publish(&[1], Some(0));
    sim.run_for(60 * SECOND);
    assert_eq!((sim.store.retry.len(), sim.store.parked.len()), (5_001, 1));
    sim.crash();
    sim.run_for(60 * SECOND);
    assert_eq!(sim.attempts.len(), 5_001, "nothing is due, and the second one stands behind the first");
    sim.run_for(3 * 3_600 * SECOND);
    sim.assert_over();
    let key: Vec<u64> = sim.order_of(1).into_iter().filter(|pos| [first.0, second.0].contains(pos)).collect();
    assert_eq!(key, [first.0, first.0, second.0, second.0]);
}

#[test]
fn so_many_blocked_keys_hold_nobody_and_one_more_holds_the_webhook() {
    let many = i64::try_from(BLOCKED_KEYS_MAX).unwrap();
    for (keys, is_held) in [(many, false), (many + 1, true)] {
        let mut sim = sim_refusing_once();
        for event in 0..2 * keys {
            sim.publish(&[1], Some(event % keys));
        }
        sim.run_for(60 * SECOND);
        sim.crash();
        sim.run_for(SECOND);
        let before = sim.attempts.len();
        // Of a key that is blocked, without, and of a key that is not.
        let fresh = [Some(0), None, Some(keys)].map(|key| sim.publish(&[1], key));
        sim.run_for(60 * SECOND);
        let tried: Vec<Pos> = sim.attempts[before..].iter().map(|(_, _, pos)| *pos).collect();
        assert_eq!(tried, if is_held { &[] } else { &fresh[1..] }, "{keys} keys");
        sim.run_for(12 * 3_600 * SECOND);
        sim.assert_over();
        assert_eq!(sim.delivered(), usize::try_from(2 * keys + 3).unwrap());
    }
}

#[test]
fn what_is_dead_blocks_however_many_there_are() {
    let keys = i64::try_from(BLOCKED_KEYS_MAX).unwrap() + 80;
    let settings = DeliverySettings { blocks_on_dead: true, retry: RetryPlan::Schedule(vec![]), ..ordered() };
    let mut sim = sim_refusing_once();
    sim.set(view(1, &settings));
    for event in 0..3 * keys {
        sim.publish(&[1], Some(event % keys));
    }
    sim.run_for(60 * SECOND);
    assert!(sim.store.dead.len() > BLOCKED_KEYS_MAX, "{}", sim.store.dead.len());
    sim.crash();
    sim.run_for(60 * SECOND);
    assert_eq!(sim.delivered(), 0);
    // Each dies once, is replayed, and is taken then.
    for _ in 0..10 {
        let dead: Vec<_> = sim.store.dead.keys().copied().collect();
        for (hook, pos) in dead {
            sim.reopen(hook.0, pos);
        }
        sim.run_for(60 * SECOND);
        sim.crash();
        sim.run_for(60 * SECOND);
    }
    sim.assert_over();
    assert_eq!(sim.delivered(), usize::try_from(3 * keys).unwrap());
}
