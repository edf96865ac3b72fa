//! How much upkeep does at once, and that it does enough.

use rusqlite::Connection;

use super::{
    super::{
        super::{
            effects::{Effects, Progress, STEP_ROWS_MAX, Step},
            rows::Epochs,
            tests::Everything,
        },
        Rounds,
    },
    *,
};
use crate::store::{DiscardReason, StoreLimits};

fn rows(db: &Connection, table: &str) -> usize {
    db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

/// Takes single steps on a closed store until nothing is left to do; what each
/// removed of events, attempts and dead Deliveries.
fn removed_by_steps(place: &Place, limits: &StoreLimits, now: StoreTime) -> Vec<usize> {
    let db = place.database();
    let router = Everything::default();
    let mut rounds = Rounds::default();
    let mut removed = Vec::new();
    let left = || rows(&db, "event") + rows(&db, "attempt") + rows(&db, "dead");
    loop {
        let before = left();
        let mut effects = Effects::default();
        let wall = k8s_openapi::jiff::Timestamp::from_millisecond(BEGIN_MS).unwrap();
        let next = Pos(1 << 20);
        let epochs = &Epochs::first();
        let mut step = Step { tx: &db, router: &router, now, wall, limits, next, epochs, effects: &mut effects };
        let progress = rounds.step(&mut step, &|_| 0).unwrap();
        removed.push(before - left());
        if matches!(progress, Progress::Idle(_)) {
            return removed;
        }
    }
}

#[tokio::test]
async fn no_step_removes_more_rows_than_it_may_and_the_last_one_is_reached() {
    let place = Place::new();
    let (store, _news) = place.open();
    let hook = register_patient(&store, "one").await;
    let events = accept_all(&store, (0..600).map(|n: i32| event(&n.to_string())).collect()).await;
    let done = |pos: &Pos| outcome(hook, *pos, 0, Next::Done);
    // The first one alone has more attempts than one step may remove.
    let failed = |tries| outcome(hook, events[0], tries, in_a_day(&store));
    record(&store, (0..600).map(failed).collect()).await;
    record(&store, events.iter().skip(1).map(done).collect()).await;
    record(&store, vec![outcome(hook, events[0], 600, Next::Done)]).await;
    store.close().await.unwrap();
    drop(store);
    let removed = removed_by_steps(&place, &StoreLimits::default(), StoreTime(BEGIN_MS + 8 * DAY_MS));
    assert_eq!(removed.iter().max(), Some(&STEP_ROWS_MAX), "{removed:?}");
    assert_eq!(removed.iter().sum::<usize>(), 600 + 601 + 599, "{removed:?}");
    let db = place.database();
    assert_eq!((rows(&db, "answer"), rows(&db, "bucket")), (0, 0));
}

#[tokio::test]
async fn one_transaction_takes_several_steps_when_nobody_waits() {
    let place = Place::new();
    let (store, _news) = place.open();
    let hook = register_patient(&store, "one").await;
    let events = accept_all(&store, (0..4_000).map(|n: i32| event(&n.to_string())).collect()).await;
    record(&store, events.iter().map(|pos| outcome(hook, *pos, 0, Next::Done)).collect()).await;
    pass(&place, 8 * DAY_MS);
    // Nobody asks the store to do anything but to look at its clock once.
    nudge(&store).await;
    for _ in 0..100_000 {
        if store.totals().await.unwrap().events == 0 {
            check_totals(&store).await;
            return;
        }
    }
    panic!("{:?}", store.totals().await);
}

#[tokio::test]
async fn a_small_store_with_a_dead_endpoint_goes_on_taking_events() {
    let size_bytes = 8 << 20;
    let mut place = Place::new();
    place.limits = StoreLimits { size_bytes, ..StoreLimits::default() };
    let (store, _news) = place.open();
    let hook = register_patient(&store, "one").await;
    let data = "x".repeat(2_000);
    let (mut refused, mut accepted) = (0, 0);
    // Five times what fits.
    while accepted < 20_000 {
        match store.accept((0..100).map(|_| event(&data)).collect()).await {
            Ok(taken) => accepted += taken.len(),
            Err(error) => {
                assert_eq!(error, crate::store::AcceptError::Full);
                refused += 1;
                // A round of looking for too long backlogs, and one of retention.
                pass(&place, 10_000);
                settle(&store).await;
                assert!(refused < 1_000, "{accepted} accepted, then no more");
            }
        }
    }
    // Upkeep may still be at work between the questions below.
    settle(&store).await;
    let totals = check_totals(&store).await;
    assert_eq!(totals.routed, accepted as u64);
    let evicted = totals.discarded[DiscardReason::Retention as usize];
    assert!(evicted > 0 && totals.pending > 0, "{totals:?}");
    // What was evicted made room that is in use: no more went than had to. (So small
    // a store evicts above half of its size.)
    assert!(totals.events * 2_000 > size_bytes / 4, "{totals:?}");
    assert!(tally(&store, hook).await.pending == totals.pending, "{totals:?}");
    store.close().await.unwrap();
    let found = crate::store::sqlite::verify(&place.path().join("store.db")).unwrap();
    assert_eq!(found.problems, []);
}
