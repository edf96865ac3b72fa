//! Fan-out, backfill, expiry and the limit of a backlog.

use super::{
    super::{
        super::{effects::Effects, register, rows, tally as counters, tests::Everything},
        scans,
    },
    *,
};
use crate::store::{From, News, Router, StoreLimits, SubDefinition};

/// One step of upkeep on a store that is closed, committed or not.
fn step_by_hand(place: &Place, is_committed: bool) -> Effects {
    let db = place.database();
    let mut router = Everything::default();
    router.apply(&register::route_changes(register::known(&db, |_| 0).unwrap()));
    let limits = StoreLimits::default();
    let mut effects = Effects::default();
    let tx = db.unchecked_transaction().unwrap();
    let mut step = super::super::Step {
        tx: &tx,
        router: &router,
        now: StoreTime(BEGIN_MS),
        wall: rows::timestamp(BEGIN_MS),
        limits: &limits,
        next: Pos(2),
        epochs: &rows::Epochs::first(),
        effects: &mut effects,
    };
    super::super::Rounds::default().step(&mut step, &|_| 0).unwrap();
    counters::write_totals(&tx, &effects.totals).unwrap();
    if is_committed {
        tx.commit().unwrap()
    } else {
        tx.rollback().unwrap()
    }
    effects
}

#[tokio::test]
async fn a_fan_out_goes_on_where_it_was_interrupted_and_owes_each_delivery_once() {
    let place = Place::new();
    let (store, _news) = place.open();
    accept(&store, event("1")).await;
    let names: Vec<String> = (0..300).map(|n| format!("hook-{n}")).collect();
    let changes = names.iter().flat_map(|name| [Register::Hook(hook(name, false)), Register::Sub(sub(name, name))]);
    register_all(&store, changes.collect()).await;
    store.close().await.unwrap();
    drop(store);
    // As if the event had come now.
    let database = place.database();
    database.execute("UPDATE sub SET from_seq = 1, live_from = 1", []).unwrap();
    database.execute("DELETE FROM scan", []).unwrap();
    let scan = "INSERT INTO scan (kind, cursor, first, last, state, matched, reopened, begun, begun_wall)
                VALUES ('fan', 0, 1, 1, 0, 0, 0, 0, 0)";
    database.execute(scan, []).unwrap();
    let owed = || database.query_row("SELECT count(*) FROM owed", [], |row| row.get::<_, i64>(0)).unwrap();

    step_by_hand(&place, false);
    assert_eq!(owed(), 0, "a step that is rolled back was never begun");
    let effects = step_by_hand(&place, true);
    let rows = scans::FAN_ROWS_MAX;
    assert_eq!((owed(), effects.totals.routed), (rows as i64, rows as i64));
    let [News::Late { pos: Pos(1), event: Some(event), targets }] = &effects.news[..] else { panic!() };
    assert_eq!((event.id.pos, targets.len(), targets[0].hook), (Pos(1), rows, HookId(1)));

    let (store, mut news) = place.open();
    until(&store, "300 owed", async || store.totals().await.unwrap().pending == 300).await;
    settle(&store).await;
    assert_eq!(check_totals(&store).await.routed, 300);
    let mut told = Vec::new();
    while let Ok(News::Late { pos: Pos(1), event: Some(_), targets }) = news.try_recv() {
        told.extend(targets.iter().map(|target| target.hook.0));
    }
    assert_eq!(
        told,
        (rows as i64 + 1..=300).collect::<Vec<_>>(),
        "each once, and none that was told before the restart"
    );
    for hook in 1..=300 {
        assert_eq!(store.owed(HookId(hook), Pos(0), 5).await.unwrap().rows.len(), 1);
    }
    assert_eq!(database.query_row("SELECT count(*) FROM scan", [], |row| row.get::<_, i64>(0)).unwrap(), 0);
}

#[tokio::test]
async fn of_one_ordering_key_one_event_at_a_time_has_its_fan_out() {
    let place = Place::new();
    let (store, _news) = place.open();
    let names: Vec<String> = (0..100).map(|n| format!("hook-{n}")).collect();
    let changes = names.iter().flat_map(|name| [Register::Hook(hook(name, true)), Register::Sub(sub(name, name))]);
    register_all(&store, changes.collect()).await;
    store.close().await.unwrap();
    drop(store);
    let database = place.database();
    let keyed = |key: &str| (1, Some(rows::order_key(key)));
    let begin = |pos, of| scans::begin_fan_out(&database, Pos(pos), of, (StoreTime(0), 0)).unwrap();
    let ready = || {
        let mut select = database.prepare("SELECT first FROM scan WHERE state = 0 ORDER BY first").unwrap();
        select.query_map([], |row| row.get(0)).unwrap().collect::<rusqlite::Result<Vec<i64>>>().unwrap()
    };
    for (pos, of) in
        [(1, keyed("a")), (2, keyed("a")), (3, keyed("b")), (4, (1, None)), (5, (2, keyed("a").1)), (6, keyed("a"))]
    {
        begin(pos, of);
    }
    assert_eq!(ready(), [1, 3, 4, 5], "keys of another namespace are other keys");
    assert!(scans::stands_behind_fan_out(&database, 1, rows::order_key("b")).unwrap());
    assert!(!scans::stands_behind_fan_out(&database, 2, rows::order_key("b")).unwrap());
    for (ended, left) in [(2, vec![1, 3, 4, 5]), (1, vec![3, 4, 5, 6]), (4, vec![3, 5, 6]), (6, vec![3, 5])] {
        scans::end_fan_out(&database, ended).unwrap();
        assert_eq!(ready(), left, "after {ended}");
    }
}

/// The writer goes on with the next event of a key in the same step.
#[tokio::test]
async fn events_that_stood_behind_a_fan_out_are_routed_in_their_order_many_in_a_step() {
    let place = Place::new();
    let (store, _news) = place.open();
    let hooks: Vec<String> = (0..65).map(|n| format!("hook-{n}")).collect();
    let changes = hooks.iter().flat_map(|name| [Register::Hook(hook(name, true)), Register::Sub(sub(name, name))]);
    register_all(&store, changes.collect()).await;
    let mut keyed = event("1");
    keyed.head.key = Some("k".into());
    let mut all = accept_all(&store, vec![keyed.clone(); 20]).await;
    let store = reopened(&place, store);
    all.extend(accept_all(&store, vec![keyed; 20]).await);
    until(&store, "all are routed", async || store.totals().await.unwrap().pending == 40 * 65).await;
    for id in 1..=65 {
        let rows = store.owed(HookId(id), Pos(0), 99).await.unwrap().rows;
        assert_eq!(rows.iter().map(|row| row.pos).collect::<Vec<_>>(), all);
    }
    settle(&store).await;
    assert_eq!(check_totals(&store).await.routed, 40 * 65);
    assert_eq!(place.database().query_row("SELECT count(*) FROM scan", [], |row| row.get::<_, i64>(0)).unwrap(), 0);
}

#[tokio::test]
async fn an_event_with_300_targets_reaches_all_of_them_over_a_restart() {
    let place = Place::new();
    let (store, _news) = place.open();
    let names: Vec<String> = (0..300).map(|n| format!("hook-{n}")).collect();
    let changes = names.iter().flat_map(|name| [Register::Hook(hook(name, false)), Register::Sub(sub(name, name))]);
    register_all(&store, changes.collect()).await;
    let pos = accept(&store, event("1")).await.pos;
    let store = reopened(&place, store);
    until(&store, "300 owed", async || store.totals().await.unwrap().pending == 300).await;
    assert_eq!(store.states_of(pos).await.unwrap().len(), 300);
    assert_eq!(check_totals(&store).await.routed, 300);
}

#[tokio::test]
async fn a_backfill_leaves_no_gap_and_owes_nothing_twice() {
    let place = Place::new();
    let (store, _news) = place.open();
    let mut other = event("x");
    (other.namespace, other.namespace_uid) = ("other".into(), "ns-2".into());
    accept_all(&store, vec![other; 3]).await;
    let mut wanted = accept_all(&store, (0..1_500).map(|n: i32| event(&n.to_string())).collect()).await;
    let earliest = |name: &str| SubDefinition { from: From::Earliest, ..sub("one", name) };
    let changes = vec![Register::Hook(patient("one")), Register::Sub(earliest("a"))];
    let [Registered::Hook(hook), _] = register_all(&store, changes).await[..] else { panic!() };
    wanted.extend(accept_all(&store, vec![event("live"); 10]).await);
    let store = reopened(&place, store);
    until(&store, "all are owed", async || store.totals().await.unwrap().pending == 1_510).await;
    settle(&store).await;
    let rows = store.owed(hook, Pos(0), 9_999).await.unwrap().rows;
    assert_eq!(rows.iter().map(|row| row.pos).collect::<Vec<_>>(), wanted);

    let (first, second) = (wanted[0], wanted[1]);
    record(&store, vec![outcome(hook, first, 0, Next::Done), dead(hook, second)]).await;
    register_all(&store, vec![Register::Sub(earliest("b"))]).await;
    settle(&store).await;
    let totals = check_totals(&store).await;
    assert_eq!((totals.routed, totals.pending, totals.delivered, totals.dead), (1_510, 1_508, 1, 1));
    assert_eq!(place.database().query_row("SELECT count(*) FROM scan", [], |row| row.get::<_, i64>(0)).unwrap(), 0);
}

#[tokio::test]
async fn what_is_owed_for_longer_than_its_max_age_is_dead_and_the_dispatcher_hears_of_it() {
    let place = Place::new();
    let (store, mut news) = place.open();
    let hook = register(&store, "one", true).await;
    let mut keyed = event("1");
    keyed.head.key = Some("k".into());
    let old = accept_all(&store, vec![keyed.clone(), keyed, event("3")]).await;
    let park = Outcome { hook, pos: old[1], tries: 0, attempt: None, next: Next::Park };
    record(&store, vec![outcome(hook, old[0], 0, in_a_day(&store)), park]).await;
    pass(&place, DAY_MS);
    let young = accept(&store, event("4")).await.pos;
    pass(&place, 2 * DAY_MS);
    settle(&store).await;
    assert_eq!(check_totals(&store).await.dead, 0, "not before it is over");
    while news.try_recv().is_ok() {}
    pass(&place, 10_001);
    until(&store, "three are dead", async || store.totals().await.unwrap().dead == 3).await;
    settle(&store).await;
    for pos in &old {
        assert_eq!(state(&store, hook, *pos).await, Some(DeliveryState::Dead(DeadReason::Expired)));
    }
    assert_eq!(state(&store, hook, young).await, Some(DeliveryState::Owed));
    let mut changed = Vec::new();
    while let Ok(news) = news.try_recv() {
        let News::Changed { hook: whose, from } = news else { panic!("{news:?}") };
        assert_eq!(whose, hook);
        changed.push(from);
    }
    changed.sort();
    assert_eq!(changed, old);
    let tally = tally(&store, hook).await;
    assert_eq!((tally.pending, tally.dead), (1, 3));
    check_totals(&store).await;
}

#[tokio::test]
async fn of_a_backlog_that_is_too_long_the_oldest_are_dead() {
    let mut place = Place::new();
    place.limits.size_bytes = 4 << 20;
    let (store, _news) = place.open();
    let hook = register(&store, "one", false).await;
    settle(&store).await;
    let data = "x".repeat(10_000);
    let positions = accept_all(&store, (0..60).map(|_| event(&data)).collect()).await;
    let mean = place.database().query_row("SELECT bytes / events FROM bucket", [], |row| row.get::<_, u64>(0)).unwrap();
    let limit = (4 << 20) / 100 * 10 / (mean + super::super::expiry::DELIVERY_BYTES);
    pass(&place, 10_000);
    until(&store, "the limit", async || store.totals().await.unwrap().pending == limit).await;
    settle(&store).await;
    assert_eq!(check_totals(&store).await.pending, limit);
    assert_eq!(state(&store, hook, positions[0]).await, Some(DeliveryState::Dead(DeadReason::BacklogFull)));
    assert_eq!(state(&store, hook, positions[59]).await, Some(DeliveryState::Owed));
}
