//! Events come in, and come in again.

use std::time::Duration;

use posthorn::{event::Pos, store::*};

use crate::store::world::*;

pub async fn what_was_accepted_is_there_after_a_crash_and_owed_to_whoever_wants_it(mut w: World) {
    let (orders, all) = (w.wanting("orders", "order.*").await, w.wanting("all", "*").await);
    let mut sent = event_with_key("order.made", "k");
    sent.head.subject = Some("order/1".into());
    sent.head.content_type = Some("application/json".into());
    sent.head.time = Some(w.clock.wall());
    sent.head.extensions = vec![("traceparent".into(), "00-1".into())];
    let id = w.publish_event(sent.clone()).await;
    let other = w.publish("invoice.made").await;
    w.crash().await;
    assert_eq!(w.owed(orders).await, [id.pos]);
    assert_eq!(w.owed(all).await, [id.pos, other]);
    let stored = w.partition().bodies(vec![other, Pos(1 << 40), id.pos]).await.unwrap();
    let [StoredEvent::Event(_), StoredEvent::Missing, StoredEvent::Event(event)] = &stored[..] else {
        panic!("{stored:?}");
    };
    assert_eq!((event.id, &event.head, &event.data), (id, &sent.head, &sent.data));
    assert_eq!((&*event.namespace, &*event.namespace_uid, event.accepted), ("shop", SHOP, w.clock.wall()));
}

pub async fn an_event_that_nobody_wants_is_accepted_and_owed_to_nobody(w: World) {
    let hook = w.wanting("orders", "order.*").await;
    let pos = w.publish("invoice.made").await;
    assert!(w.owed(hook).await.is_empty());
    assert!(w.states(pos).await.is_empty());
    let totals = w.totals().await;
    assert_eq!((totals.events, totals.routed), (1, 0));
}

pub async fn an_id_that_was_given_before_is_a_duplicate_even_after_a_crash(mut w: World) {
    let hook = w.wanting("all", "*").await;
    let sent = event_with_id("a", "id-1", "{}");
    let first = w.publish_event(sent.clone()).await;
    assert_eq!(w.accept(vec![sent.clone()]).await, [Accepted::Duplicate(first)]);
    w.crash().await;
    assert_eq!(w.accept(vec![sent]).await, [Accepted::Duplicate(first)]);
    assert_eq!(w.owed(hook).await, [first.pos]);
    assert_eq!(w.totals().await.events, 1);
}

pub async fn the_same_id_with_other_data_is_a_conflict_and_leaves_the_others_of_its_batch(w: World) {
    let hook = w.wanting("all", "*").await;
    let first = w.publish_event(event_with_id("a", "id-1", "{}")).await;
    let accepted = w
        .accept(vec![
            event_with_id("a", "id-2", "{}"),
            event_with_id("a", "id-1", "{\"other\":1}"),
            event_with_id("a", "id-1", "{}"),
        ])
        .await;
    let [Accepted::New(second), Accepted::Conflict(of), Accepted::Duplicate(again)] = accepted[..] else {
        panic!("{accepted:?}");
    };
    assert_eq!((of, again), (first, first));
    assert_eq!(w.owed(hook).await, [first.pos, second.pos]);
}

pub async fn an_id_twice_within_a_batch_is_accepted_once(w: World) {
    let hook = w.wanting("all", "*").await;
    let accepted = w
        .accept(vec![
            event_with_id("a", "id", "{}"),
            event_with_id("a", "id", "{}"),
            event_with_id("a", "id", "[]"),
            event("a"),
            event("a"),
        ])
        .await;
    let [Accepted::New(id), Accepted::Duplicate(twice), Accepted::Conflict(other), Accepted::New(b), Accepted::New(c)] =
        accepted[..]
    else {
        panic!("{accepted:?}");
    };
    assert_eq!((twice, other), (id, id));
    assert!(id.pos < b.pos && b.pos < c.pos, "events without an id of the publisher are never duplicates");
    assert_eq!(w.owed(hook).await, [id.pos, b.pos, c.pos]);
}

pub async fn ids_belong_to_their_namespace_and_source(w: World) {
    let first = event_with_id("a", "id", "{}");
    let (mut source, mut namespace) = (first.clone(), first.clone());
    source.head.source = "elsewhere".into();
    namespace.namespace_uid = "uid-of-office".into();
    let accepted = w.accept(vec![first, source, namespace]).await;
    assert!(accepted.iter().all(|a| matches!(a, Accepted::New(_))), "{accepted:?}");
}

pub async fn an_id_is_forgotten_after_the_window(w: World) {
    let sent = event_with_id("a", "id", "{}");
    let first = w.publish_event(sent.clone()).await;
    w.advance(Duration::from_secs(55 * 60));
    assert_eq!(w.accept(vec![sent.clone()]).await, [Accepted::Duplicate(first)], "the window is 1 h");
    w.advance(Duration::from_secs(20 * 60));
    let again = w.accept(vec![sent]).await;
    assert!(matches!(again[..], [Accepted::New(id)] if id != first), "{again:?}");
}

pub async fn an_empty_batch_is_accepted(w: World) {
    assert_eq!(w.accept(vec![]).await, []);
    assert_eq!(w.totals().await, Totals::default());
}

pub async fn concurrent_publishers_of_one_id_get_one_event(w: World) {
    let hook = w.wanting("all", "*").await;
    let sent = event_with_id("a", "id", "{}");
    let accepts = (0..32).map(|_| w.ingest().accept(vec![sent.clone()]));
    let verdicts = futures::future::try_join_all(accepts).await.unwrap().concat();
    assert_eq!(verdicts.iter().filter(|v| matches!(v, Accepted::New(_))).count(), 1, "{verdicts:?}");
    assert_eq!(w.owed(hook).await.len(), 1);
}

pub async fn positions_grow_and_are_never_given_out_twice(mut w: World) {
    let mut last = Pos(0);
    for _ in 0..5 {
        for _ in 0..3 {
            let pos = w.publish("a").await;
            assert!(pos > last, "{pos:?} after {last:?}");
            last = pos;
        }
        w.crash().await;
    }
}

pub async fn the_dispatcher_is_told_of_events_in_their_order(mut w: World) {
    let (first, second) = (w.wanting("first", "*").await, w.wanting("second", "b").await);
    w.news();
    let (a, b, c) = (w.publish("a").await, w.publish("b").await, w.publish("c").await);
    let mut told = Vec::new();
    while told.len() < 3 {
        if let News::Owed { pos, event, targets } = w.next_news().await {
            assert!(event.is_some_and(|e| e.id.pos == pos));
            told.push((pos, targets.iter().map(|t| t.hook).collect::<Vec<_>>()));
        }
    }
    assert_eq!(told, [(a, vec![first]), (b, vec![first, second]), (c, vec![first])]);
}

pub async fn a_namespace_that_is_full_leaves_room_for_the_others(w: World) {
    w.partition().configure(StoreLimits { namespace_bytes: Some(64 << 10), ..StoreLimits::default() });
    let large = |uid: &str| {
        let mut event = event("a");
        event.namespace_uid = uid.into();
        event.data = vec![b'x'; 40 << 10].into();
        event
    };
    let mut accepted = 0;
    while w.ingest().accept(vec![large(SHOP)]).await.is_ok() {
        accepted += 1;
        assert!(accepted <= 2, "64 KiB hold two events of 40 KiB at most");
    }
    assert!(accepted > 0);
    assert_eq!(w.ingest().accept(vec![large(SHOP)]).await, Err(AcceptError::Full));
    assert_eq!(w.ingest().space("uid-of-office"), Space::Free);
    w.accept(vec![large("uid-of-office")]).await;
    assert_eq!(w.totals().await.events, accepted + 1);
}

/// Webhooks that share a full store.
const WEBHOOKS: usize = 32;

pub async fn a_store_that_is_full_takes_no_events_but_every_outcome(w: World) {
    // Many Webhooks, so that no backlog is more than its share of the store.
    let mut hooks = Vec::new();
    for n in 0..WEBHOOKS {
        hooks.push(w.wanting(&format!("hook-{n}"), &format!("a{n}")).await);
    }
    w.partition().configure(StoreLimits { size_bytes: 64 << 20, ..StoreLimits::default() });
    let mut accepted = 0;
    // Large ones until none fits, then ever smaller ones.
    for bytes in [512 << 10, 64 << 10, 4 << 10, 16] {
        let refused = loop {
            let mut event = event(&format!("a{}", accepted % WEBHOOKS));
            event.data = vec![b'x'; bytes].into();
            match w.ingest().accept(vec![event]).await {
                Ok(verdicts) => accepted += verdicts.len(),
                // On a machine with other work its log is not yet written away.
                Err(AcceptError::Busy { .. }) => w.tick().await,
                Err(error) => break error,
            }
            assert!(accepted < 5_000, "a store of 64 MiB took {accepted} events");
        };
        assert_eq!(refused, AcceptError::Full);
    }
    assert_eq!(w.ingest().space("uid-of-office"), Space::StoreFull);
    let mut done = Vec::new();
    for hook in hooks {
        let owed = w.owed(hook).await;
        done.extend(owed.into_iter().map(|pos| outcome(&w.clock, hook, pos, 0, Some(200), Next::Done)));
    }
    assert_eq!(done.len(), accepted, "what is owed is never evicted");
    w.record(done).await;
    assert_eq!(w.totals().await.delivered, accepted as u64);
}
