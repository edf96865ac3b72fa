//! What is seen of a store whose disk is full for some commits.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rusqlite::ffi::{SQLITE_FULL, SQLITE_IOERR_SHMSIZE, SQLITE_IOERR_WRITE};

use super::super::{
    tests::{Everything, Place, accept, check_totals, event, given, hook, outcome, record, register, sub, tally},
    *,
};
use crate::{
    event::{Pos, StoreTime},
    store::{
        AcceptError, Accepted, History, HookId, HookNote, Ingest, NewEvent, News, Next, Partition, Register,
        Registered, RouteChange, RouteKey, Router, SubDefinition, SubId, Target, news_channel,
    },
};

/// So long a store that has room again may take to go on.
const GOES_ON_MAX: Duration = Duration::from_secs(20);

fn of(namespace: &str, data: &str) -> NewEvent {
    NewEvent { namespace_uid: namespace.into(), ..event(data) }
}

/// What a publisher hears who tries again until it is taken.
async fn accept_in_time(store: &SqliteStore, event: NewEvent) -> Accepted {
    let accepted = async {
        loop {
            if let Ok(verdicts) = store.accept(vec![event.clone()]).await {
                return verdicts[0];
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(GOES_ON_MAX, accepted).await.unwrap()
}

#[tokio::test]
async fn of_a_transaction_without_room_nothing_is_stored_and_the_next_one_is_as_if_it_never_began() {
    let place = Place::new();
    let (store, mut news) = place.open();
    let hook = register(&store, "one", false).await;
    let first = accept(&store, event("1")).await;
    store.shared.breaks.fail(SQLITE_FULL, 1);
    let batch = vec![given("a", "2"), of("ns-2", "of a namespace that was never seen")];
    assert_eq!(store.accept(batch).await, Err(AcceptError::Full));
    let Accepted::New(second) = accept_in_time(&store, given("a", "2")).await else { panic!("it was never stored") };
    assert_eq!(second.pos, Pos(first.pos.0 + 1));
    let Accepted::New(_) = accept_in_time(&store, of("ns-3", "3")).await else { panic!() };
    record(&store, vec![outcome(hook, second.pos, 0, Next::Done)]).await;
    let totals = check_totals(&store).await;
    assert_eq!((totals.events, totals.routed, totals.delivered), (3, 2, 1));
    let page = store.owed(hook, Pos(0), 9).await.unwrap();
    assert_eq!(page.rows.iter().map(|row| row.pos).collect::<Vec<_>>(), [first.pos]);
    let mut positions = Vec::new();
    while let Ok(told) = news.try_recv() {
        let News::Owed { pos, .. } = told else { panic!("{told:?}") };
        positions.push(pos);
    }
    assert_eq!(positions, [first.pos, second.pos], "the dispatcher hears of what is durable");
    store.close().await.unwrap();
    drop(store);
    assert_eq!(verify(&place.path().join("store.db")).unwrap().problems, []);
}

#[tokio::test]
async fn outcomes_and_commands_without_room_wait_in_their_order_and_nobody_hears_an_error() {
    let place = Place::new();
    let (store, _news) = place.open();
    let one = register(&store, "one", false).await;
    let events: Vec<Pos> = {
        let verdicts = store.accept((0..40).map(|n| event(&n.to_string())).collect()).await.unwrap();
        verdicts.iter().map(|verdict| if let Accepted::New(id) = verdict { id.pos } else { panic!() }).collect()
    };
    store.shared.breaks.fail(SQLITE_FULL, 30);
    let due = StoreTime(store.store_now().0 + 1);
    let waits = events.iter().map(|pos| outcome(one, *pos, 0, Next::At(due)));
    let done = events.iter().map(|pos| outcome(one, *pos, 1, Next::Done));
    let both = async {
        store.record(waits.collect());
        record(&store, done.collect()).await;
    };
    let (registered, noted, ()) = tokio::time::timeout(
        GOES_ON_MAX,
        futures::future::join3(
            store.register(vec![Register::Hook(hook("two", false)), Register::Sub(sub("two", "two"))]),
            store.note(one, HookNote::Circuit(Some("open".into()))),
            both,
        ),
    )
    .await
    .unwrap();
    noted.unwrap();
    let [Registered::Hook(two), Registered::Sub { live_from, .. }] = registered.unwrap()[..] else { panic!() };
    assert_eq!(live_from, Pos(events[39].0 + 1));
    let Accepted::New(_) = accept_in_time(&store, event("both get it")).await else { panic!() };
    let totals = check_totals(&store).await;
    assert_eq!((totals.delivered, totals.pending), (40, 2), "{totals:?}");
    assert_eq!((tally(&store, one).await.failed, tally(&store, two).await.pending), (40, 1));
    drop(store);
    assert_eq!(verify(&place.path().join("store.db")).unwrap().problems, []);
    let (store, _news) = place.open();
    assert_eq!(store.known().await.unwrap().hooks[0].notes.circuit.as_deref(), Some("open"));
}

/// Tells what it was told.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<BTreeSet<SubId>>>, Arc<AtomicUsize>);

struct Telling(Everything, Told);

impl Router for Telling {
    fn route(&self, pos: Pos, event: RouteKey<'_>, after: HookId, limit: usize, targets: &mut Vec<Target>) -> bool {
        self.0.route(pos, event, after, limit, targets)
    }

    fn wants(&self, sub: SubId, event: RouteKey<'_>) -> bool {
        self.0.wants(sub, event)
    }

    fn apply(&mut self, changes: &[RouteChange]) {
        self.1.1.fetch_add(1, Ordering::Relaxed);
        for change in changes {
            if let RouteChange::Sub { id, .. } = change {
                self.1.0.lock().unwrap().insert(*id);
            }
        }
        self.0.apply(changes);
    }
}

#[tokio::test]
async fn a_route_is_told_to_the_router_when_it_is_durable_and_once() {
    let place = Place::new();
    let told = Told::default();
    let router = Box::new(Telling(Everything::default(), told.clone()));
    let store = SqliteStore::open(place.config(), router, news_channel().0).unwrap();
    let begun = told.1.load(Ordering::Relaxed);
    store.shared.breaks.fail(SQLITE_FULL, u32::MAX);
    let mut registered = store.register(vec![Register::Hook(hook("one", false)), Register::Sub(sub("one", "one"))]);
    let refused = store.accept(vec![event("1")]);
    assert!(futures::poll!(&mut registered).is_pending());
    assert_eq!(refused.await, Err(AcceptError::Full));
    assert_eq!(told.1.load(Ordering::Relaxed), begun, "it was rolled back");
    store.shared.breaks.fail(0, 0);
    tokio::time::timeout(GOES_ON_MAX, registered).await.unwrap().unwrap();
    let Accepted::New(_) = accept_in_time(&store, event("1")).await else { panic!() };
    assert_eq!((told.1.load(Ordering::Relaxed), told.0.lock().unwrap().len()), (begun + 1, 1));
    assert_eq!(store.totals().await.unwrap().routed, 1);
}

#[tokio::test]
async fn a_store_that_closes_without_room_says_so_and_what_was_not_recorded_stays_owed() {
    let place = Place::new();
    let (store, _news) = place.open();
    let hook = register(&store, "one", false).await;
    let id = accept(&store, event("1")).await;
    store.shared.breaks.fail(SQLITE_FULL, u32::MAX);
    store.record(vec![outcome(hook, id.pos, 0, Next::Done)]);
    let closed = tokio::time::timeout(GOES_ON_MAX, store.close()).await.unwrap();
    assert!(matches!(closed, Err(StoreError::Failed(_))), "{closed:?}");
    drop(store);
    let (store, _news) = place.open();
    assert_eq!(store.totals().await.unwrap().pending, 1);
}

#[tokio::test]
async fn an_index_of_the_log_without_room_leaves_publishers_unsure_and_a_failed_write_ends_the_store() {
    let place = Place::new();
    let (store, _news) = place.open();
    accept(&store, event("1")).await;
    store.shared.breaks.fail(SQLITE_IOERR_SHMSIZE, 1);
    assert_eq!(store.accept(vec![event("2")]).await, Err(AcceptError::Unknown));
    let Accepted::New(_) = accept_in_time(&store, event("2")).await else { panic!() };
    // There is room: so it was something else.
    store.shared.breaks.fail(SQLITE_IOERR_WRITE, u32::MAX);
    assert_eq!(store.accept(vec![event("3")]).await, Err(AcceptError::Unknown));
    assert_eq!(store.accept(vec![event("4")]).await, Err(AcceptError::NotStored));
}

#[tokio::test]
async fn a_subscription_of_a_rolled_back_transaction_is_seen_for_the_first_time_at_the_next() {
    let place = Place::new();
    let (store, _news) = place.open();
    accept(&store, event("1")).await;
    store.shared.breaks.fail(SQLITE_FULL, 3);
    let all = SubDefinition { from: crate::store::From::Earliest, ..sub("one", "one") };
    let changes = vec![Register::Hook(hook("one", false)), Register::Sub(all)];
    let registered = tokio::time::timeout(GOES_ON_MAX, store.register(changes)).await.unwrap().unwrap();
    let Registered::Hook(hook) = registered[0] else { panic!() };
    accept_in_time(&store, event("2")).await;
    let both = async {
        while store.owed(hook, Pos(0), 9).await.unwrap().rows.len() < 2 {
            store.note(hook, HookNote::Circuit(None)).await.unwrap();
        }
    };
    tokio::time::timeout(GOES_ON_MAX, both).await.unwrap();
    assert_eq!(check_totals(&store).await.routed, 2, "no gap and no double");
}
