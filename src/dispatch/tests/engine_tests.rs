//! Queue, limits, circuit and fairness in virtual time.

use std::time::Duration;

use super::{
    fake::view,
    sim::{Sim, answered},
};
use crate::{
    api::Reason,
    dispatch::{
        AttemptEnd, FailureKind, HealthView, Hold,
        endings::HOLD_MIN,
        engine::{IN_FLIGHT_MAX, SUSPECTS_MAX},
        questions::Question,
        turns::LATE_IN_FLIGHT_MAX,
    },
    event::Pos,
    policy::delivery::{DeliverySettings, Rate, RetryPlan},
    store::{HookId, HookNote},
};

const SECOND: i64 = 1_000;
const MINUTE: i64 = 60 * SECOND;

fn settings() -> DeliverySettings {
    DeliverySettings { jitter: 0.0, circuit_failures: 0, ..DeliverySettings::default() }
}

fn timed_out() -> AttemptEnd {
    AttemptEnd::Failed { reason: Reason::AnswerTimedOut, kind: FailureKind::Endpoint }
}

/// Every endpoint answers after so many milliseconds.
fn healthy(milliseconds: i64) -> Sim {
    Sim::new(3, Box::new(move |_, _, _, _| (milliseconds, answered(200))))
}

/// The most attempts of a hook that ran at the same time, if each took so long.
fn at_once(sim: &Sim, hook: i64, milliseconds: i64) -> usize {
    let begins: Vec<i64> = sim.attempts_of(hook).into_iter().map(|(at, _)| at).collect();
    let running = |at: i64| begins.iter().filter(|begin| (**begin..**begin + milliseconds).contains(&at)).count();
    begins.iter().map(|at| running(*at)).max().unwrap_or_default()
}

#[test]
fn a_webhook_has_as_many_requests_at_once_as_it_wants_once_it_has_answered() {
    for concurrency in [1, 8] {
        let mut sim = healthy(50);
        sim.set(view(1, &DeliverySettings { concurrency, ..settings() }));
        sim.publish(&[1], None);
        sim.publish(&[1], None);
        sim.run_for(49);
        assert_eq!(sim.attempts.len(), 1, "nothing is known of the endpoint");
        for _ in 0..100 {
            sim.publish(&[1], None);
        }
        sim.run_for(MINUTE);
        sim.assert_over();
        assert_eq!(at_once(&sim, 1, 50), usize::from(concurrency));
        assert!(sim.order_of(1).is_sorted(), "in the order of their events");
    }
}

#[test]
fn no_period_holds_more_starts_than_the_rate_allows() {
    let mut sim = healthy(1);
    let rate = Rate { requests: 10, per: Duration::from_secs(1) };
    sim.set(view(1, &DeliverySettings { rate: Some(rate), ..settings() }));
    for _ in 0..100 {
        sim.publish(&[1], None);
    }
    sim.run_for(MINUTE);
    sim.assert_over();
    let begins: Vec<i64> = sim.attempts_of(1).into_iter().map(|(at, _)| at).collect();
    assert!(begins.windows(11).all(|starts| starts[10] - starts[0] >= SECOND), "{begins:?}");
    assert!(begins[99] - begins[0] < 13 * SECOND, "it is used up as well");
}

#[test]
fn a_circuit_opens_probes_with_one_delivery_and_closes() {
    let back = 1_000_000 + 10 * MINUTE;
    let mut sim =
        Sim::new(5, Box::new(move |_, _, _, now| if now < back { (10, timed_out()) } else { (10, answered(200)) }));
    let retry = RetryPlan::Schedule(vec![Duration::from_secs(15); 20]);
    sim.set(view(1, &DeliverySettings { retry, circuit_failures: 20, ..settings() }));
    for _ in 0..30 {
        sim.publish(&[1], None);
    }
    sim.run_until(back);
    let opened = sim.notes.iter().find(|(_, _, note)| matches!(note, HookNote::Circuit(Some(_))));
    let opened = opened.expect("the circuit opens").0;
    assert!(opened - 1_000_000 >= MINUTE, "over a minute at least");
    let probes = sim.attempts.iter().filter(|(at, _, _)| *at > opened).count();
    assert!((1..=4).contains(&probes), "30 s, 1 min, 2 min, 4 min: {probes}");
    assert!(matches!(sim.health.last().unwrap().view, HealthView::Failing { .. }));
    sim.run_for(30 * MINUTE);
    sim.assert_over();
    assert_eq!((sim.delivered(), sim.store.dead.len()), (30, 0), "probes use up no attempt");
    assert_eq!(sim.health.last().unwrap().view, HealthView::Healthy);
    assert!(matches!(sim.notes.last().unwrap().2, HookNote::Circuit(None)));
}

#[test]
fn a_429_that_says_when_holds_the_whole_webhook() {
    let mut sim = Sim::new(
        5,
        Box::new(|_, _, _, now| {
            let retry_after = Some(Duration::from_secs(100));
            (10, if now < 1_001_000 { AttemptEnd::Answered { code: 429, retry_after } } else { answered(200) })
        }),
    );
    sim.set(view(1, &settings()));
    for _ in 0..5 {
        sim.publish(&[1], None);
    }
    sim.run_for(99 * SECOND);
    assert_eq!(sim.attempts.len(), 1);
    sim.run_for(10 * SECOND);
    sim.assert_over();
}

#[test]
fn endpoints_that_hang_leave_places_for_others() {
    // 400 endpoints hang for 15 s an attempt, with a backlog each.
    let mut sim = Sim::new(
        9,
        Box::new(|_, hook, _, _| if hook.0 <= 400 { (15 * SECOND, timed_out()) } else { (5, answered(200)) }),
    );
    for hook in 1..=420 {
        sim.set(view(hook, &settings()));
    }
    let hanging: Vec<i64> = (1..=400).collect();
    for _ in 0..20 {
        sim.publish(&hanging, None);
    }
    sim.run_for(20 * SECOND);
    assert_eq!(sim.peak_suspects, SUSPECTS_MAX);
    let begin = sim.now;
    for _ in 0..10 {
        sim.publish(&(401..=420).collect::<Vec<_>>(), None);
    }
    sim.run_for(SECOND);
    assert_eq!(sim.delivered(), 200);
    let last = sim.attempts.iter().filter(|(_, hook, _)| hook.0 > 400).map(|(at, _, _)| at - begin).max().unwrap();
    assert!(last <= 100, "one at a time until it is proven, then at once: {last} ms");
}

#[test]
fn one_webhook_that_hangs_after_it_was_proven_takes_no_more_than_its_share() {
    let mut sim = Sim::new(
        9,
        Box::new(
            |_, hook, pos, _| if hook.0 == 1 && pos.0 > 1 { (15 * SECOND, timed_out()) } else { (5, answered(200)) },
        ),
    );
    sim.set(view(1, &DeliverySettings { concurrency: u16::MAX, ..settings() }));
    sim.set(view(2, &settings()));
    sim.publish(&[1, 2], None);
    sim.run_for(SECOND);
    for _ in 0..2_000 {
        sim.publish(&[1], None);
    }
    sim.run_for(SECOND);
    assert!(sim.engine.globals.flights.len() <= IN_FLIGHT_MAX / 16, "{}", sim.engine.globals.flights.len());
    sim.publish(&[2], None);
    sim.run_for(50);
    assert_eq!(sim.order_of(2).len(), 2);
}

#[test]
fn a_large_backlog_delays_nobody_else() {
    let mut sim = healthy(5);
    sim.set(view(1, &settings()));
    sim.set(view(2, &settings()));
    sim.publish(&[2], None);
    for _ in 0..20_000 {
        sim.publish(&[1], None);
    }
    sim.run_for(SECOND);
    for _ in 0..20 {
        let begin = sim.now;
        let pos = sim.publish(&[2], None);
        sim.run_for(100);
        let began = sim.attempts_of(2).into_iter().find(|(_, other)| *other == pos).expect("it was sent").0;
        assert!(began - begin <= 10, "{} ms", began - begin);
    }
    assert!(sim.store.owed.len() > 10_000, "the backlog is there still");
}

/// An event for 5,000 Webhooks comes in, and beside it one a millisecond for a
/// single one. All attempts take 40 ms: the 5,000 are more than the places are for.
fn beside_a_fan_out(milliseconds: i64) -> Sim {
    let mut sim = healthy(milliseconds);
    (sim.store_ms, sim.route_rows) = (0, 64);
    let all: Vec<i64> = (1..=5_000).collect();
    for hook in &all {
        sim.set(view(*hook, &settings()));
    }
    sim.set(view(9_999, &DeliverySettings { concurrency: 64, ..settings() }));
    sim.publish(&[9_999], None);
    sim.run_for(SECOND);
    sim.publish_wide(&all, None);
    for _ in 0..500 {
        (0..4).for_each(|_| sim.route_one());
        sim.publish(&[9_999], None);
        sim.run_for(1);
    }
    sim
}

#[test]
fn beside_others_an_event_for_thousands_takes_its_time() {
    let sim = beside_a_fan_out(1);
    let begin = sim.attempts_of(9_999)[1].0;
    let is_late = |(at, hook, _): &&(i64, HookId, Pos)| hook.0 <= 5_000 && *at < begin + 500;
    let late = sim.attempts.iter().filter(is_late).count();
    // A burst at first, when nothing else had started for a while; then three a
    // millisecond for each of two processors.
    assert!((2_500..=96 + 6 * 499).contains(&late), "{late}");
}

#[test]
fn an_event_for_thousands_delays_none_that_is_for_one() {
    let mut sim = beside_a_fan_out(40);
    let first = sim.attempts_of(9_999)[1].0;
    for (n, (at, pos)) in sim.attempts_of(9_999).into_iter().skip(1).enumerate() {
        let published = first + i64::try_from(n).unwrap();
        assert!(at - published <= 1, "{pos:?} after {} ms", at - published);
    }
    assert_eq!(sim.attempts_of(9_999).len(), 501);
    sim.run_for(SECOND);
    sim.assert_over();
    assert_eq!(sim.delivered(), 5_501);
    let bodies = sim.reads.iter().filter(|(_, _, question)| matches!(question, Question::Bodies { .. }));
    // One piece of news in ten travels without its event.
    assert!(bodies.count() < 1_500, "the event came with the news");
}

#[test]
fn an_event_for_thousands_is_delivered_though_others_have_work_all_the_time() {
    let mut sim = healthy(1);
    (sim.store_ms, sim.route_rows) = (0, 64);
    let (wide, busy): (Vec<i64>, Vec<i64>) = ((1..=1_000).collect(), (2_001..=2_300).collect());
    for hook in wide.iter().chain(&busy) {
        sim.set(view(*hook, &settings()));
    }
    sim.publish_wide(&wide, None);
    (0..16).for_each(|_| sim.route_one());
    let is_wide = |(_, hook, _): &&(i64, HookId, Pos)| hook.0 <= 1_000;
    // One at a time as in a step: the others would have work for ever.
    for _ in 0..200 {
        sim.publish(&busy, None);
        sim.run_for(1);
    }
    assert_eq!(sim.attempts.iter().filter(is_wide).count(), 1_000);
}

#[test]
fn deliveries_of_fan_outs_leave_places_for_others() {
    let mut sim = beside_a_fan_out(15 * SECOND);
    assert_eq!(sim.engine.globals.late_flights, LATE_IN_FLIGHT_MAX);
    for hook in 10_000..10_200 {
        sim.set(view(hook, &settings()));
        sim.publish(&[hook], None);
        sim.run_for(1);
        assert_eq!(sim.attempts_of(hook).len(), 1, "{hook} has a place");
    }
    sim.run_for(10 * MINUTE);
    sim.assert_over();
}

#[test]
fn a_sender_that_wants_to_be_asked_again_at_once_does_not_make_the_dispatcher_spin() {
    let mut sim = Sim::new(
        5,
        Box::new(|_, _, _, _| {
            let retry_after = Some(Duration::ZERO);
            let hold = Hold { reason: Reason::SecretNotFound, message: "".into(), retry_after };
            (0, AttemptEnd::NotSent(hold))
        }),
    );
    sim.set(view(1, &settings()));
    sim.publish(&[1], None);
    sim.run_for(MINUTE);
    let begins: Vec<i64> = sim.attempts.iter().map(|(at, _, _)| *at).collect();
    assert!(begins.windows(2).all(|two| two[1] - two[0] >= i64::try_from(HOLD_MIN.as_millis()).unwrap()));
    assert!(begins.len() > 50, "it is asked again all the same");
}

#[test]
fn a_delivery_that_expired_while_it_waited_for_its_turn_is_not_sent() {
    let mut sim = Sim::new(
        5,
        Box::new(|_, _, _, now| if now < 1_010_000 { (10, answered(400)) } else { (SECOND, answered(200)) }),
    );
    let retry = RetryPlan::Schedule(vec![Duration::from_secs(30)]);
    sim.set(view(1, &DeliverySettings { concurrency: 1, retry, ..settings() }));
    for _ in 0..4 {
        sim.publish(&[1], None);
    }
    sim.run_for(30 * SECOND + 500);
    let waiting: Vec<_> = sim.engine.hooks[&HookId(1)].due.iter().map(|item| item.row.pos).collect();
    let expired = *waiting.last().expect("due rows wait for their turn");
    let before = sim.attempts.len();
    sim.end(1, expired);
    sim.run_for(MINUTE);
    sim.assert_over();
    assert!(sim.attempts[before..].iter().all(|(_, _, pos)| *pos != expired));
    assert_eq!(sim.store.ignored, 0);
}

#[test]
fn a_webhook_that_comes_again_before_its_last_attempt_ended_is_a_new_one() {
    let mut sim =
        Sim::new(5, Box::new(|_, _, pos, _| (10 * SECOND, if pos.0 < 7 { timed_out() } else { answered(200) })));
    sim.set(view(1, &settings()));
    for _ in 0..6 {
        sim.publish(&[1], None);
    }
    sim.run_for(55 * SECOND);
    assert!(matches!(sim.health.last().unwrap().view, HealthView::Failing { .. }));
    let now = sim.clock();
    sim.engine.remove_hook(HookId(1), now);
    sim.settle();
    let told = sim.health.len();
    sim.set(crate::dispatch::HookView { has_backlog: true, ..view(1, &settings()) });
    assert!(sim.engine.hooks[&HookId(1)].health.is_none());
    sim.run_for(9 * SECOND);
    assert_eq!(sim.health.len(), told, "what the attempt of the old one says is not of the new one");
    sim.run_for(60 * MINUTE);
    sim.assert_over();
}

#[test]
fn a_webhook_that_is_gone_leaves_nothing_in_memory() {
    let mut sim = healthy(10);
    sim.set(view(1, &settings()));
    for _ in 0..100 {
        sim.publish(&[1], None);
    }
    sim.run_for(15);
    let now = sim.clock();
    sim.engine.remove_hook(HookId(1), now);
    sim.settle();
    let before = sim.attempts.len();
    sim.run_for(MINUTE);
    assert_eq!(sim.attempts.len(), before, "nothing more is sent");
    assert!(sim.engine.hooks.is_empty());
    assert_eq!((sim.engine.globals.rows, sim.engine.globals.bytes, sim.engine.globals.timers.len()), (0, 0, 0));
    assert_eq!(sim.store.owed.len() + sim.delivered(), 100, "the rest stays owed");
}

#[test]
fn a_hook_whose_backlog_is_gone_by_the_start_asks_for_it_once() {
    let mut sim = Sim::new(1, Box::new(|_, _, _, _| (1, answered(200))));
    sim.set(view(1, &DeliverySettings::default()));
    sim.crash();
    sim.run_for(60_000);
    let owed = sim.reads.iter().filter(|(_, _, question)| matches!(question, Question::Owed { .. })).count();
    assert_eq!(owed, 1);
    sim.assert_over();
}
