//! Replays.

use super::*;
use crate::store::{CardMark, CardState, ReplayIdentity, ReplayOrder, ReplayRun, ReplayState, ReplayWhat};
use k8s_openapi::jiff::Timestamp;

fn identity(name: &str) -> ReplayIdentity {
    ReplayIdentity { namespace_uid: "ns-1".into(), name: name.into(), spec_hash: "1".into() }
}

fn order(name: &str, hook: HookId, what: ReplayWhat) -> ReplayOrder {
    ReplayOrder { identity: identity(name), hook, what, per_second: None, is_dry_run: false }
}

async fn run(store: &SqliteStore, name: &str) -> ReplayRun {
    store.replay_run(identity(name)).await.unwrap().unwrap()
}

async fn reaches(place: &Place, store: &SqliteStore, name: &str, expected: ReplayState) -> ReplayRun {
    until(store, "the Replay's state", async || {
        pass(place, 100);
        run(store, name).await.state == expected
    })
    .await;
    run(store, name).await
}

/// Delivered, dead, dismissed, owed, dead.
async fn mixed(store: &SqliteStore) -> (HookId, Vec<Pos>) {
    let hook = register_patient(store, "one").await;
    let events = accept_all(store, (0..5).map(|n: i32| event(&n.to_string())).collect()).await;
    let done = outcome(hook, events[0], 0, Next::Done);
    record(store, vec![done, dead(hook, events[1]), dead(hook, events[2]), dead(hook, events[4])]).await;
    store.mark_cards(vec![CardMark { hook, pos: events[2], state: CardState::Dismissed }]).await.unwrap();
    (hook, events)
}

#[tokio::test]
async fn all_dead_are_re_opened_once_per_identity_and_a_dry_run_only_counts() {
    let place = Place::new();
    let (store, _news) = place.open();
    let (hook, events) = mixed(&store).await;
    let dry = ReplayOrder { is_dry_run: true, ..order("dry", hook, ReplayWhat::AllDead) };
    assert!(!store.replay(dry).await.unwrap().is_known);
    let dry = reaches(&place, &store, "dry", ReplayState::Complete).await;
    assert_eq!((dry.matched, dry.reopened), (2, 0));
    assert_eq!(check_totals(&store).await.dead, 2);

    let all = order("all", hook, ReplayWhat::AllDead);
    store.replay(all.clone()).await.unwrap();
    reaches(&place, &store, "all", ReplayState::Sending).await;
    assert_eq!(state(&store, hook, events[1]).await, Some(DeliveryState::Owed));
    assert_eq!(check_totals(&store).await.pending, 3);
    record(&store, vec![outcome(hook, events[1], 0, Next::Done), dead(hook, events[4])]).await;
    let ended = reaches(&place, &store, "all", ReplayState::Complete).await;
    assert_eq!((ended.matched, ended.reopened, ended.done, ended.dead), (2, 2, 2, 1));

    let store = reopened(&place, store);
    let again = store.replay(all).await.unwrap();
    assert!(again.is_known && again.state == ReplayState::Complete);
    settle(&store).await;
    let totals = check_totals(&store).await;
    assert_eq!((totals.dead, totals.pending, totals.delivered), (1, 1, 2));
}

#[tokio::test]
async fn events_are_re_opened_whatever_became_of_them_and_what_is_pending_is_left() {
    let place = Place::new();
    let (store, _news) = place.open();
    let (hook, events) = mixed(&store).await;
    let before = check_totals(&store).await;
    store.replay(order("events", hook, ReplayWhat::Events(events[..4].to_vec()))).await.unwrap();
    let sending = reaches(&place, &store, "events", ReplayState::Sending).await;
    assert_eq!((sending.matched, sending.reopened), (4, 3));
    let totals = check_totals(&store).await;
    assert_eq!((totals.routed, totals.pending, totals.dead, totals.delivered), (before.routed, 4, 1, 0));
    let owed = store.owed(hook, Pos(0), 9).await.unwrap().rows;
    assert!(owed.iter().all(|row| row.tries == 0));
    record(&store, owed.iter().map(|row| outcome(hook, row.pos, 0, Next::Done)).collect()).await;
    let ended = reaches(&place, &store, "events", ReplayState::Complete).await;
    assert_eq!((ended.done, ended.dead), (3, 0));
    let totals = check_totals(&store).await;
    assert_eq!((totals.delivered, totals.discarded), (4, [0; 4]));
}

#[tokio::test]
async fn listed_dead_ones_are_re_opened_and_others_are_not() {
    let place = Place::new();
    let (store, _news) = place.open();
    let (hook, events) = mixed(&store).await;
    store.replay(order("listed", hook, ReplayWhat::Dead(events[..4].to_vec()))).await.unwrap();
    let sending = reaches(&place, &store, "listed", ReplayState::Sending).await;
    assert_eq!((sending.matched, sending.reopened), (1, 1));
    assert_eq!(state(&store, hook, events[4]).await, Some(DeliveryState::Dead(DeadReason::Exhausted)));
    check_totals(&store).await;
}

#[tokio::test]
async fn a_range_of_time_is_re_opened_without_what_is_before_and_behind_it() {
    let place = Place::new();
    let (store, _news) = place.open();
    let hook = register_patient(&store, "one").await;
    let mut events = Vec::new();
    for _ in 0..4 {
        events.push(accept(&store, event("1")).await.pos);
        pass(&place, 1_000);
    }
    record(&store, events.iter().map(|pos| outcome(hook, *pos, 0, Next::Done)).collect()).await;
    let at = |ms| Timestamp::from_millisecond(BEGIN_MS + ms).unwrap();
    let what = ReplayWhat::Range { since: at(1_000), until: Some(at(3_000)) };
    store.replay(order("range", hook, what)).await.unwrap();
    reaches(&place, &store, "range", ReplayState::Sending).await;
    let owed = store.owed(hook, Pos(0), 9).await.unwrap().rows;
    assert_eq!(owed.iter().map(|row| row.pos).collect::<Vec<_>>(), events[1..3]);
    let totals = check_totals(&store).await;
    assert_eq!((totals.routed, totals.delivered, totals.pending), (4, 2, 2));
}

#[tokio::test]
async fn a_replay_keeps_to_its_rate_and_a_cancelled_one_leaves_the_rest_as_it_is() {
    let place = Place::new();
    let (store, _news) = place.open();
    let hook = register_patient(&store, "one").await;
    let events = accept_all(&store, (0..9).map(|n: i32| event(&n.to_string())).collect()).await;
    record(&store, events.iter().map(|pos| dead(hook, *pos)).collect()).await;
    let slow = ReplayOrder { per_second: Some(2), ..order("slow", hook, ReplayWhat::AllDead) };
    store.replay(slow.clone()).await.unwrap();
    settle(&store).await;
    assert_eq!(run(&store, "slow").await.reopened, 2, "the first second's share");
    pass(&place, 1_000);
    settle(&store).await;
    assert_eq!(run(&store, "slow").await.reopened, 4);
    let cancelled = store.cancel_replay(identity("slow")).await.unwrap().unwrap();
    assert_eq!(cancelled.state, ReplayState::Cancelled);
    pass(&place, 60_000);
    settle(&store).await;
    let totals = check_totals(&store).await;
    assert_eq!((totals.pending, totals.dead), (4, 5));
    assert!(store.replay(slow).await.unwrap().is_known, "it never runs again");
    assert_eq!(store.cancel_replay(identity("other")).await.unwrap(), None);
    let items: i64 = place.database().query_row("SELECT count(*) FROM replay_item", [], |row| row.get(0)).unwrap();
    assert_eq!(items, 0);
}
