//! Webhooks and Subscriptions become known, and go.

use std::{collections::BTreeMap, time::Duration};

use posthorn::{event::Pos, store::*};

use crate::store::world::*;

pub async fn a_fan_out_beyond_what_fits_into_the_accept_reaches_everyone(mut w: World) {
    let names: Vec<_> = (0..3 * INLINE_TARGETS_MAX).map(|n| format!("h{n}")).collect();
    let created = w.clock.wall();
    let changes = names.iter().flat_map(|name| {
        [Register::Hook(hook(name)), Register::Sub(sub(name, name, "a", From::Time(created), created))]
    });
    w.partition().register(changes.collect()).await.unwrap();
    let (first, second) = (w.publish("a").await, w.publish("a").await);
    w.crash().await;
    let third = w.publish("a").await;
    let expected = 3 * names.len() as u64;
    w.settles("routed", expected, || async { w.totals().await.routed }).await;
    for known in w.partition().known().await.unwrap().hooks {
        assert_eq!(w.owed(known.id).await, [first, second, third]);
    }
}

/// What a dispatcher does that reads on behind what it has read, and goes back when
/// it is told to: it is shown each key in the order of its events.
pub async fn of_a_key_an_event_is_shown_only_after_older_ones_however_long_their_fan_out_takes(mut w: World) {
    const ROUNDS: usize = 30;
    let created = w.clock.wall();
    let names: Vec<_> = (0..=INLINE_TARGETS_MAX).map(|n| format!("h{n}")).collect();
    let changes = names.iter().flat_map(|name| {
        let hook = HookDefinition { is_ordered: true, ..hook(name) };
        [Register::Hook(hook), Register::Sub(sub(name, name, "wide", From::Time(created), created))]
    });
    let registered = w.partition().register(changes.collect()).await.unwrap();
    // The last one: the fan-out comes to it at its end.
    let Registered::Hook(last) = registered[2 * INLINE_TARGETS_MAX] else { panic!("{registered:?}") };
    w.sub(&names[INLINE_TARGETS_MAX], "narrow", "narrow").await;
    let (mut shown, mut after) = (BTreeMap::<Pos, Option<OrderKey>>::new(), Pos(0));
    for round in 0.. {
        if round < ROUNDS {
            let keys = [("wide", "k"), ("narrow", "k"), ("narrow", "other"), ("wide", "other")];
            w.accept(keys.map(|(event_type, key)| event_with_key(event_type, key)).into()).await;
        } else if shown.len() == 4 * ROUNDS {
            break;
        } else {
            assert!(round < 100 * ROUNDS, "{} of {}", shown.len(), 4 * ROUNDS);
            w.tick().await;
        }
        if round == ROUNDS / 2 {
            w.crash().await;
            after = Pos(0);
        }
        let page = w.partition().owed(last, after, 1_000).await.unwrap();
        let told = w.news().into_iter().filter_map(|news| match news {
            News::Late { pos, targets, .. } => targets.iter().any(|target| target.hook == last).then_some(pos),
            News::Added { hook, from } | News::Changed { hook, from } => (hook == last).then_some(from),
            News::Owed { .. } | News::Failed(_) => None,
        });
        let back_to = told.min().map_or(Pos(u64::MAX), |from| Pos(from.0 - 1));
        for row in page.rows.iter().take_while(|row| row.pos <= back_to) {
            if shown.contains_key(&row.pos) {
                continue;
            }
            let younger = shown.range(row.pos..).find(|(_, key)| **key == row.key);
            assert_eq!(younger, None, "{:?} came before {:?}", younger, row.pos);
            shown.insert(row.pos, row.key);
        }
        after = page.covered.min(back_to);
    }
}

pub async fn exactly_as_many_targets_as_fit_are_owed_with_the_accept(w: World) {
    for n in 0..INLINE_TARGETS_MAX {
        w.wanting(&format!("h{n}"), "a").await;
    }
    w.publish("a").await;
    assert_eq!(w.totals().await.routed, INLINE_TARGETS_MAX as u64);
}

pub async fn a_hook_gets_an_event_once_however_many_subscriptions_match(w: World) {
    let hook = w.hook("h").await;
    let created = w.clock.wall();
    let (young, _) = w.sub_of(sub("h", "young", "*", From::Time(created), created + Duration::from_secs(5))).await;
    let (old_b, _) = w.sub_of(sub("h", "old-b", "a.*", From::Time(created), created)).await;
    let (old_a, _) = w.sub_of(sub("h", "old-a", "a.b", From::Time(created), created)).await;
    let (first, second, third) = (w.publish("a.b").await, w.publish("a.c").await, w.publish("b").await);
    let subs: Vec<_> = w.rows(hook).await.iter().map(|r| (r.pos, r.sub)).collect();
    assert_eq!(subs, [(first, old_a), (second, old_b), (third, young)], "the oldest shapes it: time, then name");
}

pub async fn a_subscription_between_two_events_gets_the_second(mut w: World) {
    let hook = w.hook("h").await;
    let before = w.publish("a").await;
    w.advance(Duration::from_secs(1));
    let (_, live_from) = w.sub_of(w.sub_now("h", "s", "*")).await;
    let after = w.publish("a").await;
    assert!(before < live_from && live_from <= after);
    w.crash().await;
    let last = w.publish("a").await;
    assert_eq!(w.owed(hook).await, [after, last]);
}

pub async fn earliest_owes_everything_without_gap_and_without_double(mut w: World) {
    let hook = w.hook("h").await;
    let before = w.publish_many("a", 700).await;
    w.publish("b").await;
    w.sub_of(sub("h", "s", "a", From::Earliest, w.clock.wall())).await;
    let after = w.publish_many("a", 10).await;
    w.crash().await;
    let all = [before, after].concat();
    w.settles_owed(hook, &all).await;
    w.deliver(hook, all[0], 0).await;
    w.sub_of(sub("h", "s", "a", From::Earliest, w.clock.wall())).await;
    w.crash().await;
    w.settles_owed(hook, &all[1..]).await;
    assert_eq!(w.totals().await.routed, all.len() as u64);
}

pub async fn a_start_by_time_owes_what_was_accepted_since(w: World) {
    let hook = w.hook("h").await;
    w.publish_many("a", 3).await;
    w.advance(Duration::from_secs(10));
    let since = w.clock.wall();
    let wanted = w.publish_many("a", 4).await;
    w.advance(Duration::from_secs(10));
    let later = w.publish("a").await;
    w.sub_of(sub("h", "s", "a", From::Time(since), w.clock.wall())).await;
    let live = w.publish("a").await;
    w.settles_owed(hook, &[wanted, vec![later, live]].concat()).await;
}

pub async fn a_backfill_brings_nothing_back_that_the_hook_had_through_another_subscription(w: World) {
    let hook = w.wanting("h", "a").await;
    let all = w.publish_many("a", 5).await;
    w.deliver(hook, all[0], 0).await;
    w.kill(hook, all[1], 0).await;
    w.fail(hook, all[2], 0, w.in_time(HOUR)).await;
    let other = w.publish("b").await;
    w.sub_of(sub("h", "all", "*", From::Earliest, w.clock.wall())).await;
    w.settles_owed(hook, &[all[3], all[4], other]).await;
    assert_eq!(w.state(hook, all[0]).await, Some(DeliveryState::Delivered));
    assert_eq!(w.state(hook, all[1]).await, Some(DeliveryState::Dead(DeadReason::Exhausted)));
    assert!(matches!(w.state(hook, all[2]).await, Some(DeliveryState::Waiting(_))));
    assert_eq!(w.totals().await.routed, 6);
}

pub async fn registering_again_changes_fields_and_nothing_else(mut w: World) {
    let hook_id = w.hook("h").await;
    let first = w.sub_now("h", "s", "a");
    let (sub_id, live_from) = w.sub_of(first.clone()).await;
    w.publish("b").await;
    let changed = SubDefinition { document: "b".into(), from: From::Earliest, ..first };
    assert_eq!(w.sub_of(changed.clone()).await, (sub_id, live_from), "a known UID keeps what it has");
    let renewed = HookDefinition { document: "{\"new\":1}".into(), max_age_ms: 7, ..hook("h") };
    assert_eq!(w.hook_of(renewed.clone()).await, hook_id);
    w.hook_of(HookDefinition { max_age_ms: hook("h").max_age_ms, ..renewed.clone() }).await;
    w.publish("a").await;
    let wanted = w.publish("b").await;
    w.crash().await;
    assert_eq!(w.owed(hook_id).await, [wanted], "edits take effect when they are seen, without backfill");
    let known = w.partition().known().await.unwrap();
    assert_eq!(&*known.hooks[0].hook.document, "{\"new\":1}");
    assert_eq!((known.subs[0].id, known.subs[0].live_from, &*known.subs[0].sub.document), (sub_id, live_from, "b"));
}

pub async fn a_subscription_of_an_unknown_webhook_is_told_so(w: World) {
    let changes = vec![
        Register::Sub(w.sub_now("h", "s", "*")),
        Register::Hook(hook("h")),
        Register::Sub(w.sub_now("h", "s", "*")),
        hook_gone("no-such"),
        Register::SubGone { uid: "no-such".into() },
    ];
    let done = w.partition().register(changes).await.unwrap();
    assert_eq!(done[0], Registered::NoSuchWebhook);
    assert!(matches!(done[1..3], [Registered::Hook(_), Registered::Sub { .. }]), "{done:?}");
    assert_eq!(done[3..], [Registered::Done, Registered::Done]);
}

pub async fn a_subscription_that_is_gone_brings_nothing_more_and_what_it_brought_stays_owed(mut w: World) {
    let hook = w.wanting("h", "*").await;
    let owed = w.publish("a").await;
    w.register(Register::SubGone { uid: "uid-of-sub-h".into() }).await;
    w.publish("a").await;
    w.crash().await;
    w.publish("a").await;
    assert_eq!(w.owed(hook).await, [owed]);
    assert!(w.partition().known().await.unwrap().subs.is_empty());
}

pub async fn a_webhook_that_comes_back_within_a_day_takes_its_backlog_up_again(mut w: World) {
    let id = w.wanting("h", "*").await;
    let (first, second) = (w.publish("a").await, w.publish("a").await);
    w.fail(id, first, 0, w.in_time(HOUR)).await;
    w.register(hook_gone("h")).await;
    w.publish("a").await;
    w.crash().await;
    let known = w.partition().known().await.unwrap();
    assert!(known.hooks[0].gone_at.is_some());
    assert_eq!(known.hooks[0].pending, 2);
    w.advance(20 * HOUR);
    let again = w.hook_of(HookDefinition { uid: "another".into(), ..hook("h") }).await;
    assert_eq!(again, id, "the same namespace and name");
    w.sub_of(SubDefinition { uid: "another-sub".into(), ..w.sub_now("h", "s2", "*") }).await;
    let live = w.publish("b").await;
    assert_eq!(w.owed(id).await, [second, live]);
    assert_eq!(w.due(id).await, [first]);
    assert_eq!(w.partition().known().await.unwrap().hooks[0].gone_at, None);
    w.advance(20 * HOUR);
    assert_eq!(w.owed(id).await, [second, live], "being gone before does not count any more");
}

pub async fn the_backlog_of_a_webhook_that_stays_away_is_discarded_after_a_day(w: World) {
    let gone = w.wanting("gone", "*").await;
    let stays = w.wanting("stays", "*").await;
    let (first, second) = (w.publish("a").await, w.publish("a").await);
    w.fail(gone, first, 0, w.in_time(48 * HOUR)).await;
    w.register(hook_gone("gone")).await;
    w.advance(GONE_KEEP + HOUR);
    w.partition().register(vec![]).await.unwrap();
    w.settles("pending", 2, || async { w.totals().await.pending }).await;
    let totals = w.totals().await;
    assert_eq!((totals.routed, totals.discarded[DiscardReason::WebhookDeleted as usize]), (4, 2));
    assert_eq!(w.owed(stays).await, [first, second]);
}

pub async fn a_namespace_that_is_gone_leaves_nothing_but_its_count(mut w: World) {
    let gone = w.wanting("h", "*").await;
    let office = HookDefinition { namespace_uid: "uid-of-office".into(), ..hook("h") };
    let stays = w.hook_of(office).await;
    let sub =
        SubDefinition { namespace_uid: "uid-of-office".into(), uid: "sub-office".into(), ..w.sub_now("h", "s", "*") };
    w.sub_of(sub).await;
    let owed = w.publish_many("a", 600).await;
    w.deliver(gone, owed[0], 0).await;
    w.kill(gone, owed[1], 0).await;
    w.fail(gone, owed[2], 0, w.in_time(HOUR)).await;
    let mut other = event("a");
    other.namespace_uid = "uid-of-office".into();
    let kept = w.publish_event(other).await.pos;
    w.register(Register::NamespaceGone { uid: SHOP.into() }).await;
    w.crash().await;
    w.settles("events", 1, || async { w.totals().await.events }).await;
    let totals = w.totals().await;
    assert_eq!((totals.routed, totals.delivered, totals.dead, totals.pending), (601, 1, 0, 1));
    assert_eq!(totals.discarded[DiscardReason::NamespaceDeleted as usize], 599);
    assert_eq!(w.owed(stays).await, [kept]);
    assert!(w.owed(gone).await.is_empty());
    assert_eq!(w.partition().bodies(vec![owed[3]]).await.unwrap(), [StoredEvent::Missing]);
    w.publish("a").await;
    assert!(w.owed(gone).await.is_empty(), "nothing is routed to what is gone");
}

pub async fn a_namespace_is_known_by_its_events_alone_until_it_is_gone(mut w: World) {
    w.publish("a").await;
    let mut other = event("a");
    (other.namespace, other.namespace_uid) = ("office".into(), "uid-of-office".into());
    w.publish_event(other).await;
    w.crash().await;
    let namespaces = async |w: &World| -> Vec<String> {
        let known = w.partition().namespaces().await.unwrap();
        known.iter().map(|namespace| format!("{} {}", namespace.name, namespace.uid)).collect()
    };
    let shop = format!("shop {SHOP}");
    assert_eq!(namespaces(&w).await, ["office uid-of-office".to_owned(), shop.clone()]);
    w.register(Register::NamespaceGone { uid: "uid-of-office".into() }).await;
    assert_eq!(namespaces(&w).await, [shop]);
}

pub async fn notes_on_a_webhook_survive(mut w: World) {
    let hook = w.hook("h").await;
    let (at, until) = (w.clock.wall(), w.in_time(HOUR));
    w.partition().note(hook, HookNote::Circuit(Some("open 3".into()))).await.unwrap();
    w.partition().note(hook, HookNote::Withdrawn(at)).await.unwrap();
    w.partition().note(hook, HookNote::HeldUntil(Some(until))).await.unwrap();
    w.crash().await;
    let notes = || async { w.partition().known().await.unwrap().hooks[0].notes.clone() };
    let all = HookNotes { circuit: Some("open 3".into()), withdrawn: Some(at), held_until: Some(until) };
    assert_eq!(notes().await, all);
    w.partition().note(hook, HookNote::Circuit(None)).await.unwrap();
    w.partition().note(hook, HookNote::HeldUntil(None)).await.unwrap();
    assert_eq!(notes().await, HookNotes { circuit: None, withdrawn: Some(at), held_until: None });
}

pub async fn every_object_is_known_again_after_a_crash(mut w: World) {
    let definition = HookDefinition { is_ordered: true, max_age_ms: 1234, document: "{\"a\":1}".into(), ..hook("h") };
    let id = w.hook_of(definition.clone()).await;
    let mut wanted = w.sub_now("h", "s", "a.*");
    wanted.from = From::Earliest;
    let (sub_id, live_from) = w.sub_of(wanted.clone()).await;
    w.crash().await;
    let known = w.partition().known().await.unwrap();
    let [hook] = &known.hooks[..] else { panic!("{known:?}") };
    assert_eq!((hook.id, &hook.hook, hook.gone_at, hook.pending), (id, &definition, None, 0));
    let [sub] = &known.subs[..] else { panic!("{known:?}") };
    assert_eq!((sub.id, sub.hook, sub.live_from), (sub_id, id, live_from));
    assert_eq!((&sub.sub.uid, &sub.sub.name, &sub.sub.webhook), (&wanted.uid, &wanted.name, &wanted.webhook));
    assert_eq!((sub.sub.created, &sub.sub.document), (wanted.created, &wanted.document));
    assert_eq!(w.owed(HookId(999)).await, Vec::<Pos>::new());
}

pub async fn a_backfill_waits_for_a_webhook_that_is_gone_for_a_while(mut w: World) {
    let id = w.hook("h").await;
    let all = w.publish_many("a", 3).await;
    w.register(hook_gone("h")).await;
    w.sub_of(sub("h", "s", "a", From::Earliest, w.clock.wall())).await;
    w.publish("b").await;
    w.crash().await;
    assert!(w.owed(id).await.is_empty());
    w.hook("h").await;
    w.settles_owed(id, &all).await;
}
