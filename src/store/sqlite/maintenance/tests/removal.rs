//! Retention and purge, and dismissed cards.

use super::*;
use crate::store::{CardMark, CardQuery, CardState, DiscardReason, GONE_KEEP, Known, Totals};

fn discarded(totals: &Totals, reason: DiscardReason) -> u64 {
    totals.discarded[reason as usize]
}

#[tokio::test]
async fn retention_takes_what_has_ended_and_never_what_is_owed_waits_or_is_dead() {
    let place = Place::new();
    let (store, _news) = place.open();
    let hook = register_patient(&store, "one").await;
    let events = accept_all(&store, (0..4).map(|n: i32| event(&n.to_string())).collect()).await;
    let done = outcome(hook, events[0], 0, Next::Done);
    record(&store, vec![done, outcome(hook, events[1], 0, in_a_day(&store)), dead(hook, events[2])]).await;
    pass(&place, 8 * DAY_MS);
    until(&store, "one event is gone", async || store.totals().await.unwrap().events == 3).await;
    settle(&store).await;
    assert_eq!(check_totals(&store).await.events, 3);
    assert_eq!(store.states_of(events[0]).await.unwrap(), []);
    assert_eq!(store.attempts_of(events[0], 9).await.unwrap(), []);
    assert_eq!(state(&store, hook, events[3]).await, Some(DeliveryState::Owed));

    record(&store, vec![outcome(hook, events[3], 0, Next::Done)]).await;
    pass(&place, 3_700_000);
    until(&store, "swept again", async || store.totals().await.unwrap().events == 2).await;
    settle(&store).await;
    pass(&place, 23 * DAY_MS);
    until(&store, "the dead are over", async || store.totals().await.unwrap().dead == 0).await;
    settle(&store).await;
    pass(&place, 3_700_000);
    until(&store, "and their event", async || store.totals().await.unwrap().events == 1).await;
    let totals = check_totals(&store).await;
    assert_eq!((discarded(&totals, DiscardReason::Retention), totals.pending, totals.delivered), (1, 1, 2));
}

#[tokio::test]
async fn a_dead_delivery_whose_time_is_over_blocks_its_key_no_longer_and_the_dispatcher_hears_of_it() {
    let place = Place::new();
    let (store, mut news) = place.open();
    let hook = register(&store, "one", true).await;
    let mut keyed = event("1");
    keyed.head.key = Some("k".into());
    let pos = accept(&store, keyed).await.pos;
    record(&store, vec![dead(hook, pos)]).await;
    assert_eq!(store.blocked_keys(hook, true, 9).await.unwrap()[0].dead, Some(pos));
    settle(&store).await;
    while news.try_recv().is_ok() {}
    pass(&place, 31 * DAY_MS);
    until(&store, "the dead one is over", async || store.totals().await.unwrap().dead == 0).await;
    settle(&store).await;
    assert_eq!(store.blocked_keys(hook, true, 9).await.unwrap(), []);
    assert!(matches!(news.try_recv(), Ok(crate::store::News::Changed { hook: of, from }) if (of, from) == (hook, pos)));
    check_totals(&store).await;
}

#[tokio::test]
async fn a_dismissed_card_discards_its_delivery_once() {
    let place = Place::new();
    let (store, _news) = place.open();
    let hook = register(&store, "one", false).await;
    let other = register(&store, "two", false).await;
    let pos = accept(&store, event("1")).await.pos;
    record(&store, vec![dead(hook, pos), dead(other, pos)]).await;
    let query = |state| CardQuery { hook: None, state, after: None, limit: 9 };
    let wanted = store.cards(query(Some(CardState::Wanted))).await.unwrap();
    assert_eq!(wanted.iter().map(|row| row.hook).collect::<Vec<_>>(), [hook, other]);
    assert_eq!((wanted[0].tries, wanted[0].code, wanted[0].event.is_some()), (1, Some(503), true));
    let behind = CardQuery { after: Some((hook, pos)), ..query(None) };
    assert_eq!(store.cards(behind).await.unwrap().len(), 1);
    let mark = |state| vec![CardMark { hook, pos, state }];
    for state in [CardState::Made, CardState::Dismissed, CardState::Dismissed, CardState::Wanted] {
        store.mark_cards(mark(state)).await.unwrap();
    }
    assert_eq!(state(&store, hook, pos).await, Some(DeliveryState::Dismissed));
    let totals = check_totals(&store).await;
    assert_eq!((totals.dead, discarded(&totals, DiscardReason::Dismissed)), (1, 1));
    assert_eq!(tally(&store, hook).await.dead, 0);
}

#[tokio::test]
async fn a_namespace_that_is_gone_leaves_nothing_but_the_count() {
    let place = Place::new();
    let (store, _news) = place.open();
    let hook = register(&store, "one", false).await;
    let mut other = event("x");
    (other.namespace, other.namespace_uid) = ("other".into(), "ns-2".into());
    accept(&store, other).await;
    let events = accept_all(&store, (0..700).map(|n: i32| event(&n.to_string())).collect()).await;
    let done = outcome(hook, events[0], 0, Next::Done);
    record(&store, vec![done, outcome(hook, events[1], 0, in_a_day(&store)), dead(hook, events[2])]).await;
    register_all(&store, vec![Register::NamespaceGone { uid: "ns-1".into() }]).await;
    pass(&place, 10_000);
    until(&store, "the events are gone", async || store.totals().await.unwrap().events == 1).await;
    settle(&store).await;
    pass(&place, 20_000);
    settle(&store).await;
    let totals = check_totals(&store).await;
    assert_eq!((totals.pending, totals.dead, totals.delivered), (0, 0, 1));
    assert_eq!(discarded(&totals, DiscardReason::NamespaceDeleted), 699);
    assert_eq!(store.known().await.unwrap(), Known::default());
    for table in ["hook", "sub", "owed", "retry", "dead", "attempt", "answer", "scan", "tally"] {
        let count = format!("SELECT count(*) FROM {table}");
        let rows: i64 = place.database().query_row(&count, [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 0, "{table}");
    }
    let left: i64 = place.database().query_row("SELECT count(*) FROM ns", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 1);
}

#[tokio::test]
async fn the_backlog_of_a_webhook_that_is_gone_waits_a_day_for_a_namesake() {
    let place = Place::new();
    let (store, _news) = place.open();
    let hook = register_patient(&store, "one").await;
    let kept = register_patient(&store, "two").await;
    let events = accept_all(&store, vec![event("1"), event("2")]).await;
    record(&store, vec![dead(hook, events[0])]).await;
    register_all(&store, vec![Register::HookGone { namespace_uid: "ns-1".into(), name: "one".into() }]).await;
    let keep_ms = i64::try_from(GONE_KEEP.as_millis()).unwrap();
    pass(&place, keep_ms - 1);
    settle(&store).await;
    assert_eq!(check_totals(&store).await.pending, 3);
    pass(&place, 10_000);
    until(&store, "purged", async || store.known().await.unwrap().hooks.len() == 1).await;
    let totals = check_totals(&store).await;
    assert_eq!((discarded(&totals, DiscardReason::WebhookDeleted), totals.pending, totals.events), (2, 2, 2));
    assert_eq!(store.owed(kept, Pos(0), 9).await.unwrap().rows.len(), 2);
}
