//! Attempts and what follows.

use std::{collections::BTreeSet, time::Duration};

use posthorn::{
    event::{Pos, StoreTime},
    store::*,
};

use crate::store::world::*;

pub async fn an_outcome_that_does_not_fit_the_tries_is_ignored(mut w: World) {
    let hook = w.wanting("h", "*").await;
    let pos = w.publish("a").await;
    w.fail(hook, pos, 1, w.in_time(HOUR)).await;
    assert_eq!(w.owed(hook).await, [pos], "tries are 0, not 1");
    let due = w.in_time(HOUR);
    w.fail(hook, pos, 0, due).await;
    w.deliver(hook, pos, 0).await;
    assert_eq!(w.state(hook, pos).await, Some(DeliveryState::Waiting(due)), "tries are 1 by now");
    w.deliver(hook, pos, 1).await;
    w.kill(hook, pos, 2).await;
    w.fail(hook, pos, 1, due).await;
    w.crash().await;
    assert_eq!(w.state(hook, pos).await, Some(DeliveryState::Delivered));
    w.deliver(hook, Pos(pos.0 + 50), 0).await;
    let totals = w.totals().await;
    assert_eq!((totals.delivered, totals.dead, totals.pending), (1, 0, 0));
    assert_eq!(w.history().attempts_of(pos, 10).await.unwrap().len(), 2, "attempts that do not count are not kept");
}

pub async fn retries_come_back_when_they_are_due_earliest_first(mut w: World) {
    let hook = w.wanting("h", "*").await;
    let all = w.publish_many("a", 4).await;
    for (pos, minutes) in all.iter().zip([30, 10, 20, 90]) {
        w.fail(hook, *pos, 0, w.in_time(Duration::from_secs(minutes * 60))).await;
    }
    assert!(w.owed(hook).await.is_empty() && w.due(hook).await.is_empty());
    let next_due = |page: WaitingPage| page.next_due;
    let now = w.partition().store_now();
    let page = w.partition().waiting(hook, now, 10).await.unwrap();
    assert_eq!(next_due(page), Some(now.plus_ms(600_000)));
    w.advance(Duration::from_secs(35 * 60));
    w.crash().await;
    assert_eq!(w.due(hook).await, [all[1], all[2], all[0]]);
    let now = w.partition().store_now();
    let page = w.partition().waiting(hook, now, 2).await.unwrap();
    assert_eq!(positions(&page.rows), [all[1], all[2]]);
    assert!(page.next_due.is_some_and(|due| due <= now), "the third one is due too");
    let row = page.rows[0];
    assert_eq!((row.tries, row.shape), (1, Some(0)));
    w.deliver(hook, all[1], 1).await;
    assert_eq!(w.due(hook).await, [all[2], all[0]]);
}

pub async fn a_retry_is_due_at_its_millisecond(w: World) {
    let hook = w.wanting("h", "*").await;
    let pos = w.publish("a").await;
    let due = w.in_time(HOUR);
    w.fail(hook, pos, 0, due).await;
    let at = |now: StoreTime| w.partition().waiting(hook, now, 10);
    assert!(at(due.plus_ms(-1)).await.unwrap().rows.is_empty());
    assert_eq!(positions(&at(due).await.unwrap().rows), [pos]);
}

pub async fn owed_pages_cover_everything_in_order(w: World) {
    let hook = w.wanting("h", "a").await;
    let mut all = w.publish_many("a", 25).await;
    w.publish("b").await;
    let (mut seen, mut after) = (Vec::new(), Pos(0));
    loop {
        let page = w.partition().owed(hook, after, 10).await.unwrap();
        assert!(page.rows.is_sorted_by_key(|r| r.pos) && page.rows.iter().all(|r| r.pos > after));
        let is_last = page.rows.len() < 10;
        seen.extend(positions(&page.rows));
        assert!(page.covered >= seen.last().copied().unwrap_or_default());
        after = page.covered;
        if is_last {
            break;
        }
    }
    assert_eq!(seen, all);
    all = w.publish_many("a", 2).await;
    let page = w.partition().owed(hook, after, 10).await.unwrap();
    assert_eq!(positions(&page.rows), all, "what comes later is behind what was covered");
}

pub async fn parked_deliveries_wait_behind_their_key_in_order(mut w: World) {
    let hook = w.hook_of(HookDefinition { is_ordered: true, ..hook("h") }).await;
    w.sub("h", "s", "*").await;
    let mut all = Vec::new();
    for key in ["x", "y", "x", "x", "y"] {
        all.push(w.publish_event(event_with_key("a", key)).await.pos);
    }
    let free = w.publish("a").await;
    let rows = w.rows(hook).await;
    let key = |n: usize| rows[n].key.unwrap();
    assert_eq!((key(0), key(1), rows[5].key), (key(2), key(4), None));
    assert!(key(0) == key(3) && key(0) != key(1));
    w.fail(hook, all[0], 0, w.in_time(HOUR)).await;
    w.record([all[3], all[2]].map(|pos| verdict(hook, pos, 0, Next::Park)).into()).await;
    w.crash().await;
    assert_eq!(w.owed(hook).await, [all[1], all[4], free]);
    let blocked = || async { w.partition().blocked_keys(hook, true, 10).await.unwrap() };
    let by = BlockedKey { key: key(0), is_waiting: true, parked: Some(all[2]), dead: None };
    assert_eq!(blocked().await, [by]);
    let parked = |limit| w.partition().parked(hook, key(0), limit);
    assert_eq!(positions(&parked(10).await.unwrap()), [all[2], all[3]], "in the order of the events");
    assert_eq!(positions(&parked(1).await.unwrap()), [all[2]]);
    assert_eq!(w.state(hook, all[2]).await, Some(DeliveryState::Parked));
    w.kill(hook, all[0], 1).await;
    w.deliver(hook, all[2], 0).await;
    w.fail(hook, all[3], 0, w.in_time(HOUR)).await;
    assert!(parked(10).await.unwrap().is_empty());
    let by = BlockedKey { parked: None, dead: Some(all[0]), ..by };
    assert_eq!(blocked().await, [by], "a retry blocks its key");
    w.deliver(hook, all[3], 1).await;
    assert_eq!(blocked().await, [BlockedKey { is_waiting: false, ..by }], "what is dead may block as well");
    w.mark(hook, all[0], CardState::Dismissed).await;
    assert_eq!(blocked().await, []);
}

pub async fn blocked_keys_are_each_told_once_and_no_more_than_asked_for(w: World) {
    let hook = w.hook_of(HookDefinition { is_ordered: true, ..hook("h") }).await;
    w.sub("h", "s", "*").await;
    for n in 0..6 {
        let pos = w.publish_event(event_with_key("a", &format!("k{}", n / 2))).await.pos;
        if n % 2 == 0 {
            w.fail(hook, pos, 0, w.in_time(HOUR)).await;
        } else {
            w.record(vec![verdict(hook, pos, 0, Next::Park)]).await;
        }
    }
    let dead = w.publish_event(event_with_key("a", "k3")).await.pos;
    w.kill(hook, dead, 0).await;
    let blocked = |dead_blocks, limit| w.partition().blocked_keys(hook, dead_blocks, limit);
    let keys = blocked(true, 10).await.unwrap();
    assert_eq!((keys.len(), keys.iter().map(|by| by.key).collect::<BTreeSet<_>>().len()), (4, 4));
    assert!(keys[..3].iter().all(|by| by.is_waiting && by.parked.is_some()), "those that wait come first");
    assert_eq!((keys[3].is_waiting, keys[3].parked, keys[3].dead), (false, None, Some(dead)));
    assert_eq!(blocked(false, 10).await.unwrap(), keys[..3]);
    assert_eq!(blocked(true, 2).await.unwrap(), keys[..2]);
}

pub async fn a_probe_of_an_open_circuit_uses_up_no_try_and_is_kept_as_an_attempt(mut w: World) {
    let hook = w.wanting("h", "*").await;
    let (first, second) = (w.publish("a").await, w.publish("a").await);
    let due = w.in_time(HOUR);
    w.fail(hook, second, 0, due).await;
    for (pos, tries) in [(first, 0), (second, 1)] {
        w.record(vec![outcome(&w.clock, hook, pos, tries, Some(503), Next::Back)]).await;
    }
    w.crash().await;
    let row = w.rows(hook).await[0];
    assert_eq!((row.pos, row.tries), (first, 0));
    assert_eq!(w.state(hook, second).await, Some(DeliveryState::Waiting(due)));
    let attempts = w.history().attempts_of(first, 10).await.unwrap();
    assert_eq!((attempts.len(), attempts[0].code, attempts[0].is_ok), (1, Some(503), false));
}

pub async fn the_shape_of_the_first_attempt_stays(mut w: World) {
    let hook = w.wanting("h", "*").await;
    let pos = w.publish("a").await;
    assert_eq!(w.rows(hook).await[0].shape, None);
    let mut attempt = outcome(&w.clock, hook, pos, 0, None, Next::At(w.partition().store_now()));
    attempt.attempt.as_mut().unwrap().shape = 3;
    w.record(vec![attempt]).await;
    w.crash().await;
    let now = w.partition().store_now();
    assert_eq!(w.partition().waiting(hook, now, 1).await.unwrap().rows[0].shape, Some(3));
}

pub async fn attempts_are_kept_with_their_detail_newest_first(mut w: World) {
    let (hook, other) = (w.wanting("h", "*").await, w.wanting("other", "*").await);
    let pos = w.publish("a").await;
    let now = w.partition().store_now();
    let detail = AttemptDetail { head: "POST\n200".into(), body: "no".into() };
    for tries in 0..3 {
        let mut attempt = outcome(&w.clock, hook, pos, tries, Some(500 + tries), Next::At(now));
        attempt.attempt.as_mut().unwrap().detail = Some(detail.clone().into());
        w.record(vec![attempt]).await;
        w.advance(Duration::from_secs(1));
    }
    w.deliver(hook, pos, 3).await;
    w.deliver(other, pos, 0).await;
    w.crash().await;
    let attempts = w.history().attempts(hook, None, 10).await.unwrap();
    let shown: Vec<_> = attempts.iter().map(|a| (a.number, a.code, a.is_ok)).collect();
    assert_eq!(shown, [(4, Some(200), true), (3, Some(502), false), (2, Some(501), false), (1, Some(500), false)]);
    assert_eq!((attempts[1].detail.clone(), attempts[1].error.as_deref()), (Some(detail), Some("Refused")));
    assert_eq!((attempts[1].duration_ms, attempts[1].hook, attempts[1].pos), (12, hook, pos));
    assert!(attempts[0].at_ms > attempts[1].at_ms);
    let older = w.history().attempts(hook, Some(attempts[1].id), 1).await.unwrap();
    assert_eq!(older, [attempts[2].clone()]);
    let of: Vec<_> = w.history().attempts_of(pos, 10).await.unwrap().iter().map(|a| (a.hook, a.number)).collect();
    assert_eq!(of, [(hook, 1), (hook, 2), (hook, 3), (hook, 4), (other, 1)]);
    assert_eq!(w.history().attempts_of(pos, 2).await.unwrap().len(), 2);
}

pub async fn counters_follow_what_happens_and_survive(mut w: World) {
    let hook = w.wanting("h", "*").await;
    let all = w.publish_many("a", 5).await;
    w.deliver(hook, all[0], 0).await;
    w.kill(hook, all[1], 0).await;
    w.fail(hook, all[2], 0, w.in_time(HOUR)).await;
    let last_ms = w.clock.wall_ms();
    let expected = Tally { hook, delivered: 1, failed: 2, pending: 3, dead: 1, last_ms, last_code: 500 };
    assert_eq!(w.tally(hook).await, expected);
    w.crash().await;
    assert_eq!(w.partition().known().await.unwrap().hooks[0].pending, 3);
    w.mark(hook, all[1], CardState::Dismissed).await;
    w.deliver(hook, all[3], 0).await;
    let expected = Tally { delivered: 2, pending: 2, dead: 0, last_code: 200, ..expected };
    assert_eq!(w.tally(hook).await, expected);
}

pub async fn changed_counters_are_told_oldest_change_first_in_pages(w: World) {
    let mut hooks = Vec::new();
    for n in 0..5 {
        hooks.push(w.wanting(&format!("h{n}"), &format!("t{n}")).await);
    }
    for n in [3, 1, 4, 0, 2] {
        w.publish(&format!("t{n}")).await;
    }
    let page = |after, limit| w.partition().tallies(after, limit);
    let first = page(TallyRevision::default(), 3).await.unwrap();
    let of = |page: &TallyPage| page.tallies.iter().map(|t| t.hook).collect::<Vec<_>>();
    assert_eq!((of(&first), first.more), (vec![hooks[3], hooks[1], hooks[4]], true));
    let second = page(first.revision, 3).await.unwrap();
    assert_eq!((of(&second), second.more), (vec![hooks[0], hooks[2]], false));
    assert_eq!(page(second.revision, 3).await.unwrap().tallies, []);
    w.publish("t1").await;
    let third = page(second.revision, 3).await.unwrap();
    assert_eq!(of(&third), [hooks[1]]);
    assert_eq!(third.tallies[0].pending, 2);
}

pub async fn what_is_owed_for_longer_than_the_webhook_wants_is_dead(mut w: World) {
    let hook = w.hook_of(HookDefinition { max_age_ms: 2 * 3_600_000, is_ordered: true, ..hook("h") }).await;
    w.sub("h", "s", "*").await;
    let patient = w.wanting("patient", "*").await;
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(w.publish_event(event_with_key("a", "k")).await.pos);
    }
    w.fail(hook, all[0], 0, w.in_time(10 * HOUR)).await;
    w.record(vec![verdict(hook, all[1], 0, Next::Park)]).await;
    w.advance(HOUR);
    let young = w.publish("b").await;
    w.advance(HOUR + Duration::from_secs(600));
    w.restart().await;
    w.settles("dead", all.clone(), || async { w.dead(hook, Some(CardState::Wanted)).await }).await;
    assert_eq!(w.state(hook, all[0]).await, Some(DeliveryState::Dead(DeadReason::Expired)));
    assert_eq!(w.owed(hook).await, [young]);
    assert_eq!(w.owed(patient).await.len(), 4);
    assert_eq!(w.totals().await.dead, 3);
    assert_eq!(w.tally(hook).await.dead, 3);
}

pub async fn expiry_comes_without_a_restart_too(w: World) {
    let hook = w.hook_of(HookDefinition { max_age_ms: 3_600_000, ..hook("h") }).await;
    w.sub("h", "s", "*").await;
    let pos = w.publish("a").await;
    w.advance(2 * HOUR);
    w.publish("b").await;
    let expected = Some(DeliveryState::Dead(DeadReason::Expired));
    w.settles("state", expected, || async { w.state(hook, pos).await }).await;
}

pub async fn store_time_follows_no_jump_of_the_wall_clock(w: World) {
    let hook = w.hook_of(HookDefinition { max_age_ms: 12 * 3_600_000, ..hook("h") }).await;
    w.sub("h", "s", "*").await;
    let pos = w.publish("a").await;
    let begun = w.partition().store_now();
    let days_3_ms = 72 * 3_600_000;
    for jump_ms in [days_3_ms, -2 * days_3_ms, days_3_ms] {
        w.clock.jump_wall_ms(jump_ms);
        w.advance(Duration::from_secs(60));
        w.publish("b").await;
    }
    assert_eq!(w.partition().store_now(), begun.plus_ms(180_000));
    assert_eq!(w.state(hook, pos).await, Some(DeliveryState::Owed));
}

pub async fn a_start_believes_the_wall_clock_about_an_hour_at_most_and_never_backwards(mut w: World) {
    let hook = w.hook_of(HookDefinition { max_age_ms: 12 * 3_600_000, ..hook("h") }).await;
    w.sub("h", "s", "*").await;
    let pos = w.publish("a").await;
    let begun = w.partition().store_now();
    w.restart_after(|clock| clock.jump_wall_ms(72 * 3_600_000)).await;
    assert_eq!(w.partition().store_now(), begun.plus_ms(3_600_000));
    w.publish("b").await;
    w.restart_after(|clock| clock.jump_wall_ms(-144 * 3_600_000)).await;
    assert_eq!(w.partition().store_now(), begun.plus_ms(3_600_000));
    assert_eq!(w.state(hook, pos).await, Some(DeliveryState::Owed));
    let later = w.publish("c").await;
    assert_eq!(w.owed(hook).await.last(), Some(&later));
}

pub async fn totals_add_up_at_every_step(mut w: World) {
    let (hook, other) = (w.wanting("h", "*").await, w.wanting("other", "a").await);
    let all = w.publish_many("a", 6).await;
    w.totals().await;
    w.deliver(hook, all[0], 0).await;
    w.fail(hook, all[1], 0, w.in_time(HOUR)).await;
    w.kill(hook, all[2], 0).await;
    w.kill(hook, all[3], 0).await;
    w.mark(hook, all[3], CardState::Dismissed).await;
    w.crash().await;
    let totals = w.totals().await;
    let expected = Totals { events: 6, routed: 12, delivered: 1, dead: 1, pending: 9, discarded: [0, 0, 1, 0] };
    assert_eq!(totals, expected);
    w.register(hook_gone("other")).await;
    w.advance(GONE_KEEP + HOUR);
    w.settles("discarded", 6, || async { w.totals().await.discarded[DiscardReason::WebhookDeleted as usize] }).await;
    assert!(w.owed(other).await.is_empty());
    w.restart().await;
    w.totals().await;
}
