//! Dead Deliveries, their cards, and Replays.

use std::time::Duration;

use posthorn::{event::Pos, store::*};

use crate::store::world::*;

pub async fn a_dead_delivery_tells_what_it_was(mut w: World) {
    let hook = w.wanting("h", "*").await;
    let id = w.publish_event(event_with_id("a", "given", "{\"n\":2}")).await;
    let accepted_ms = w.clock.wall_ms();
    w.fail(hook, id.pos, 0, w.in_time(HOUR)).await;
    w.advance(Duration::from_secs(60));
    let at = w.partition().store_now();
    w.kill(hook, id.pos, 1).await;
    w.crash().await;
    let query = CardQuery { hook: Some(hook), state: None, after: None, limit: 10 };
    let [dead] = &w.partition().cards(query).await.unwrap()[..] else { panic!("one is dead") };
    assert_eq!((dead.hook, dead.pos, dead.reason, dead.tries), (hook, id.pos, DeadReason::Exhausted, 2));
    assert_eq!((dead.code, dead.error.as_deref(), dead.card), (Some(500), Some("Refused"), CardState::Wanted));
    assert_eq!((dead.first_ms, dead.last_ms, dead.at), (accepted_ms, w.clock.wall_ms(), at));
    let event = dead.event.as_ref().unwrap();
    assert_eq!((event.id, &*event.event_type, event.data_bytes), (id, "a", 7));
    assert_eq!((event.given_id.as_deref(), &*event.source), (Some("given"), "tests"));
}

pub async fn a_delivery_can_be_given_up_without_an_attempt(w: World) {
    let hook = w.wanting("h", "*").await;
    for reason in DeadReason::ALL {
        let pos = w.publish("a").await;
        w.record(vec![verdict(hook, pos, 0, Next::Dead(reason))]).await;
        assert_eq!(w.state(hook, pos).await, Some(DeliveryState::Dead(reason)));
    }
    assert_eq!(w.totals().await.dead, DeadReason::ALL.len() as u64);
}

pub async fn cards_are_asked_for_by_hook_and_state_in_pages(mut w: World) {
    let (a, b) = (w.wanting("a", "*").await, w.wanting("b", "*").await);
    let all = w.publish_many("x", 4).await;
    for pos in &all {
        w.kill(a, *pos, 0).await;
        w.kill(b, *pos, 0).await;
    }
    w.mark(a, all[1], CardState::Made).await;
    w.mark(a, all[2], CardState::Overflow).await;
    w.mark(b, all[0], CardState::Expired).await;
    w.crash().await;
    let states = [CardState::Wanted, CardState::Made, CardState::Overflow, CardState::Expired];
    let mut seen = Vec::new();
    for state in states {
        seen.push((w.dead(a, Some(state)).await, w.dead(b, Some(state)).await));
    }
    let expected = [
        (vec![all[0], all[3]], all[1..].to_vec()),
        (vec![all[1]], vec![]),
        (vec![all[2]], vec![]),
        (vec![], vec![all[0]]),
    ];
    assert_eq!(seen, expected);
    let mut pages = Vec::new();
    let mut after = None;
    loop {
        let query = CardQuery { hook: None, state: None, after, limit: 3 };
        let page = w.partition().cards(query).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some((last.hook, last.pos));
        pages.extend(page.iter().map(|r| (r.hook, r.pos)));
    }
    let of = |hook| all.iter().map(move |pos| (hook, *pos));
    assert_eq!(pages, of(a).chain(of(b)).collect::<Vec<_>>());
    assert_eq!(w.tally(a).await.dead + w.tally(b).await.dead, 8, "without a card they are dead all the same");
}

pub async fn a_dismissed_delivery_is_discarded_once_and_no_retry_finds_it(mut w: World) {
    let hook = w.wanting("h", "*").await;
    let pos = w.publish("a").await;
    w.mark(hook, pos, CardState::Dismissed).await;
    assert_eq!(w.owed(hook).await, [pos], "what is not dead cannot be dismissed");
    w.kill(hook, pos, 0).await;
    for _ in 0..2 {
        w.mark(hook, pos, CardState::Dismissed).await;
        w.crash().await;
    }
    w.deliver(hook, pos, 1).await;
    assert_eq!(w.state(hook, pos).await, Some(DeliveryState::Dismissed));
    let totals = w.totals().await;
    assert_eq!((totals.dead, totals.discarded), (0, [0, 0, 1, 0]));
}

pub async fn a_replay_of_all_reopens_every_dead_delivery_and_no_dismissed_one(mut w: World) {
    let (hook, other) = (w.wanting("h", "*").await, w.wanting("other", "*").await);
    let all = w.publish_many("a", 5).await;
    for pos in &all[..4] {
        w.kill(hook, *pos, 0).await;
    }
    w.kill(other, all[0], 0).await;
    w.mark(hook, all[1], CardState::Overflow).await;
    w.mark(hook, all[2], CardState::Dismissed).await;
    w.news();
    let order = replay_order("again", hook, ReplayWhat::AllDead);
    let run = w.replay(order.clone()).await;
    assert!(!run.is_known);
    assert_eq!(run.begun_ms, w.clock.wall_ms());
    w.settles_owed(hook, &[all[0], all[1], all[3], all[4]]).await;
    assert!(w.news().iter().any(|n| matches!(n, News::Changed { hook: h, from } if *h == hook && *from <= all[0])));
    assert!(w.rows(hook).await.iter().all(|r| r.tries == 0));
    w.settles_replay(&order, (ReplayState::Sending, 3, 3, 0, 0)).await;
    w.crash().await;
    w.deliver(hook, all[0], 0).await;
    w.kill(hook, all[1], 0).await;
    w.settles_replay(&order, (ReplayState::Sending, 3, 3, 2, 1)).await;
    w.deliver(hook, all[3], 0).await;
    w.settles_replay(&order, (ReplayState::Complete, 3, 3, 3, 1)).await;
    let totals = w.totals().await;
    assert_eq!((totals.delivered, totals.dead, totals.pending, totals.discarded[2]), (2, 2, 5, 1));
    assert_eq!(w.state(other, all[0]).await, Some(DeliveryState::Dead(DeadReason::Exhausted)));
}

pub async fn what_a_replay_reopens_of_an_ordered_webhook_comes_before_what_it_blocked(mut w: World) {
    let hook = w.hook_of(HookDefinition { is_ordered: true, ..hook("h") }).await;
    w.sub("h", "s", "*").await;
    let mut all = Vec::new();
    for _ in 0..4 {
        all.push(w.publish_event(event_with_key("a", "x")).await.pos);
    }
    let free = w.publish("a").await;
    let key = w.rows(hook).await[0].key.unwrap();
    w.deliver(hook, all[0], 0).await;
    w.kill(hook, all[1], 0).await;
    w.kill(hook, free, 0).await;
    w.record(vec![verdict(hook, all[2], 0, Next::Park)]).await;
    w.replay(replay_order("dead", hook, ReplayWhat::AllDead)).await;
    w.settles_owed(hook, &[all[3], free]).await;
    w.replay(replay_order("again", hook, ReplayWhat::Events(vec![all[0]]))).await;
    let pending = || async { w.totals().await.pending };
    w.settles("pending", 5, pending).await;
    w.crash().await;
    let parked = w.partition().parked(hook, key, 10).await.unwrap();
    assert_eq!(positions(&parked), all[..3]);
    assert!(parked.iter().all(|row| row.tries == 0));
    let by = BlockedKey { key, is_waiting: false, parked: Some(all[0]), dead: None };
    assert_eq!(w.partition().blocked_keys(hook, true, 10).await.unwrap(), [by]);
    assert_eq!(w.owed(hook).await, [all[3], free], "without a key nothing stands behind anything");
    w.deliver(hook, all[0], 0).await;
    w.deliver(hook, all[1], 0).await;
    let totals = w.totals().await;
    assert_eq!((totals.delivered, totals.dead, totals.pending), (2, 0, 3));
}

pub async fn a_replay_runs_once_per_identity(mut w: World) {
    let hook = w.wanting("h", "*").await;
    let pos = w.publish("a").await;
    w.kill(hook, pos, 0).await;
    let order = replay_order("again", hook, ReplayWhat::AllDead);
    w.replay(order.clone()).await;
    w.settles_owed(hook, &[pos]).await;
    w.kill(hook, pos, 0).await;
    w.settles_replay(&order, (ReplayState::Complete, 1, 1, 1, 1)).await;
    w.crash().await;
    let again = w.replay(order.clone()).await;
    assert_eq!((again.is_known, again.state, again.reopened), (true, ReplayState::Complete, 1));
    assert_eq!(w.state(hook, pos).await, Some(DeliveryState::Dead(DeadReason::Exhausted)));
    let mut changed = order.clone();
    changed.identity.spec_hash = "2".into();
    assert!(!w.replay(changed).await.is_known, "another spec is another Replay");
    w.settles_owed(hook, &[pos]).await;
    let unknown = ReplayIdentity { name: "no-such".into(), ..order.identity };
    assert_eq!(w.partition().replay_run(unknown.clone()).await.unwrap(), None);
    assert_eq!(w.partition().cancel_replay(unknown).await.unwrap(), None);
}

pub async fn a_replay_of_named_dead_deliveries_leaves_the_others(w: World) {
    let hook = w.wanting("h", "*").await;
    let all = w.publish_many("a", 3).await;
    w.kill(hook, all[0], 0).await;
    w.kill(hook, all[1], 0).await;
    let what = ReplayWhat::Dead(vec![all[1], all[2], Pos(1 << 40)]);
    let order = replay_order("named", hook, what);
    w.replay(order.clone()).await;
    w.settles_owed(hook, &[all[1], all[2]]).await;
    w.deliver(hook, all[1], 0).await;
    w.deliver(hook, all[2], 0).await;
    let ended = || async {
        let run = w.replay_run(&order).await;
        (run.state, run.reopened)
    };
    w.settles("ended", (ReplayState::Complete, 1), ended).await;
    assert_eq!(w.state(hook, all[0]).await, Some(DeliveryState::Dead(DeadReason::Exhausted)));
}

pub async fn a_replay_of_events_reopens_whatever_became_of_them(mut w: World) {
    let hook = w.hook("h").await;
    let unrouted = w.publish("a").await;
    let unwanted = w.publish("b").await;
    w.advance(Duration::from_secs(1));
    w.sub("h", "s", "a").await;
    let all = w.publish_many("a", 4).await;
    w.deliver(hook, all[0], 0).await;
    w.kill(hook, all[1], 0).await;
    w.kill(hook, all[2], 0).await;
    w.mark(hook, all[2], CardState::Dismissed).await;
    let events = vec![unrouted, unwanted, all[0], all[1], all[2], all[3], Pos(1 << 40)];
    let order = replay_order("events", hook, ReplayWhat::Events(events));
    w.replay(order.clone()).await;
    let reopened = [unrouted, all[0], all[1], all[2], all[3]];
    w.settles_owed(hook, &reopened).await;
    w.crash().await;
    w.settles_replay(&order, (ReplayState::Sending, 5, 4, 0, 0)).await;
    let totals = w.totals().await;
    assert_eq!((totals.routed, totals.delivered, totals.dead, totals.pending), (5, 0, 0, 5));
    assert_eq!(totals.discarded[DiscardReason::Dismissed as usize], 0, "it is owed again");
    for pos in reopened {
        w.deliver(hook, pos, 0).await;
    }
    w.settles_replay(&order, (ReplayState::Complete, 5, 4, 4, 0)).await;
}

pub async fn a_replay_by_time_reopens_what_a_present_subscription_wants(mut w: World) {
    let hook = w.wanting("h", "a").await;
    let before = w.publish("a").await;
    w.deliver(hook, before, 0).await;
    w.advance(Duration::from_secs(10));
    let since = w.clock.wall();
    let inside = w.publish_many("a", 600).await;
    let other = w.publish("b").await;
    for pos in &inside[..300] {
        w.record(vec![outcome(&w.clock, hook, *pos, 0, Some(200), Next::Done)]).await;
    }
    w.advance(Duration::from_secs(10));
    let until = w.clock.wall();
    let after = w.publish("a").await;
    w.deliver(hook, after, 0).await;
    let what = ReplayWhat::Range { since, until: Some(until) };
    let order = replay_order("range", hook, what);
    w.replay(order.clone()).await;
    w.crash().await;
    w.settles_owed(hook, &inside).await;
    w.settles_replay(&order, (ReplayState::Sending, 600, 300, 0, 0)).await;
    assert!(w.states(other).await.is_empty());
    let open_end = ReplayWhat::Range { since: until, until: None };
    w.replay(replay_order("open", hook, open_end)).await;
    w.settles_owed(hook, &[inside, vec![after]].concat()).await;
    assert_eq!(w.state(hook, before).await, Some(DeliveryState::Delivered));
}

pub async fn a_dry_run_counts_and_reopens_nothing(w: World) {
    let hook = w.wanting("h", "*").await;
    let all = w.publish_many("a", 3).await;
    w.kill(hook, all[0], 0).await;
    w.kill(hook, all[1], 0).await;
    let order = ReplayOrder { is_dry_run: true, ..replay_order("dry", hook, ReplayWhat::AllDead) };
    w.replay(order.clone()).await;
    w.settles_replay(&order, (ReplayState::Complete, 2, 0, 0, 0)).await;
    assert_eq!(w.owed(hook).await, [all[2]]);
}

pub async fn a_replay_with_a_rate_takes_its_time_and_can_be_cancelled(mut w: World) {
    let hook = w.wanting("h", "*").await;
    let all = w.publish_many("a", 20).await;
    for pos in &all {
        w.kill(hook, *pos, 0).await;
    }
    let order = ReplayOrder { per_second: Some(2), ..replay_order("slow", hook, ReplayWhat::AllDead) };
    let run = w.replay(order.clone()).await;
    assert!(run.reopened <= 2, "{run:?}");
    for _ in 0..3 {
        w.advance(Duration::from_secs(1));
        let reopened = w.replay_run(&order).await.reopened;
        assert!(reopened <= 8, "{reopened} after 3 s at 2 a second");
    }
    w.settles("some", true, || async { !w.owed(hook).await.is_empty() }).await;
    w.crash().await;
    let cancelled = w.partition().cancel_replay(order.identity.clone()).await.unwrap().unwrap();
    assert_eq!(cancelled.state, ReplayState::Cancelled);
    let owed = w.owed(hook).await;
    assert!(owed.len() < 20, "{}", owed.len());
    w.advance(HOUR);
    w.publish("b").await;
    assert_eq!(w.owed(hook).await.len(), owed.len() + 1, "what was not re-opened stays as it is");
    assert_eq!(w.replay_run(&order).await.state, ReplayState::Cancelled);
    assert_eq!(w.totals().await.dead, 20 - owed.len() as u64);
}

pub async fn a_replayed_delivery_is_owed_for_its_full_age_again(w: World) {
    let hook = w.hook_of(HookDefinition { max_age_ms: 2 * 3_600_000, ..hook("h") }).await;
    w.sub("h", "s", "*").await;
    let pos = w.publish("a").await;
    w.kill(hook, pos, 0).await;
    w.advance(5 * HOUR);
    let order = replay_order("late", hook, ReplayWhat::AllDead);
    w.replay(order.clone()).await;
    w.settles_owed(hook, &[pos]).await;
    w.publish("b").await;
    w.advance(HOUR);
    w.publish("b").await;
    assert_eq!(w.state(hook, pos).await, Some(DeliveryState::Owed), "a Replay of what is old must reach somebody");
    w.deliver(hook, pos, 0).await;
    w.settles_replay(&order, (ReplayState::Complete, 1, 1, 1, 0)).await;
}

pub async fn a_replay_of_nothing_is_complete(w: World) {
    let hook = w.wanting("h", "*").await;
    let order = replay_order("none", hook, ReplayWhat::AllDead);
    w.replay(order.clone()).await;
    w.settles_replay(&order, (ReplayState::Complete, 0, 0, 0, 0)).await;
}

pub async fn retention_touches_nothing_that_is_owed(mut w: World) {
    let limits =
        StoreLimits { retention_age: HOUR, dead_age: HOUR, retention_bytes: Some(1), ..StoreLimits::default() };
    w.partition().configure(limits);
    let hook = w.hook_of(HookDefinition { max_age_ms: i64::MAX / 4, is_ordered: true, ..hook("h") }).await;
    w.sub("h", "s", "*").await;
    let mut all = Vec::new();
    for _ in 0..4 {
        all.push(w.publish_event(event_with_key("a", "k")).await.pos);
    }
    w.fail(hook, all[0], 0, w.in_time(1000 * HOUR)).await;
    w.record(vec![verdict(hook, all[1], 0, Next::Park)]).await;
    w.deliver(hook, all[2], 0).await;
    for _ in 0..10 {
        w.advance(10 * HOUR);
        w.publish("b").await;
        w.restart().await;
        w.partition().configure(limits);
    }
    assert_eq!(w.owed(hook).await[0], all[3]);
    assert!(matches!(w.state(hook, all[0]).await, Some(DeliveryState::Waiting(_))));
    assert_eq!(w.state(hook, all[1]).await, Some(DeliveryState::Parked));
    let bodies = w.partition().bodies(vec![all[0], all[1], all[3]]).await.unwrap();
    assert!(bodies.iter().all(|b| matches!(b, StoredEvent::Event(_))), "{bodies:?}");
    w.totals().await;
}

pub async fn what_ended_has_ended_for_a_replay_though_another_one_opens_it_again(w: World) {
    let hook = w.wanting("h", "*").await;
    let all = w.publish_many("a", 2).await;
    w.kill(hook, all[0], 0).await;
    let first = replay_order("first", hook, ReplayWhat::Events(all.clone()));
    w.replay(first.clone()).await;
    w.settles_owed(hook, &all).await;
    // Both end, and are opened again before anybody looks.
    w.kill(hook, all[0], 0).await;
    w.deliver(hook, all[1], 0).await;
    let second = replay_order("second", hook, ReplayWhat::Events(all.clone()));
    w.replay(second.clone()).await;
    w.settles_owed(hook, &all).await;
    w.settles_replay(&first, (ReplayState::Complete, 2, 1, 1, 1)).await;
    w.settles_replay(&second, (ReplayState::Sending, 2, 2, 0, 0)).await;
}

pub async fn a_replay_waits_for_what_was_pending_already_and_does_not_count_it(w: World) {
    let hook = w.wanting("h", "*").await;
    let pos = w.publish("a").await;
    let order = replay_order("pending", hook, ReplayWhat::Events(vec![pos]));
    w.replay(order.clone()).await;
    w.settles_replay(&order, (ReplayState::Sending, 1, 0, 0, 0)).await;
    w.deliver(hook, pos, 0).await;
    w.settles_replay(&order, (ReplayState::Complete, 1, 0, 0, 0)).await;
}
