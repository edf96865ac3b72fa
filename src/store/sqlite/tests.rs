//! Tests of the whole store.

use std::{
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use rusqlite::Connection;

use super::*;
use crate::{
    event::{EventHead, EventId},
    runtime::clock,
    store::{
        Attempt, AttemptDetail, DeadReason, From, HookDefinition, HookNotes, News, NewsReceiver, Next, RouteChange,
        RouteKey, SubDefinition, SubId, Tally, Target, news_channel,
    },
};

pub(super) const DAY_MS: i64 = 24 * 3_600_000;
pub(super) const BEGIN_MS: i64 = 1_795_000_000_000;

/// Clocks that stand still until they are told to move.
pub(super) struct ManualClock {
    wall_ms: AtomicI64,
    monotonic: Mutex<Instant>,
}

impl ManualClock {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { wall_ms: AtomicI64::new(BEGIN_MS), monotonic: Mutex::new(clock::monotonic()) })
    }

    pub(super) fn pass_ms(&self, ms: u64) {
        *self.monotonic.lock().unwrap() += Duration::from_millis(ms);
        self.jump_ms(ms.cast_signed());
    }

    pub(super) fn jump_ms(&self, ms: i64) {
        self.wall_ms.fetch_add(ms, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> Timestamp {
        Timestamp::from_millisecond(self.wall_ms.load(Ordering::Relaxed)).unwrap()
    }

    fn monotonic(&self) -> Instant {
        *self.monotonic.lock().unwrap()
    }
}

/// Every Subscription wants every event of its namespace.
#[derive(Default)]
pub(super) struct Everything {
    hooks: HashMap<HookId, HookDefinition>,
    subs: HashMap<SubId, (HookId, Pos)>,
}

impl Router for Everything {
    fn route(&self, pos: Pos, event: RouteKey<'_>, after: HookId, limit: usize, targets: &mut Vec<Target>) -> bool {
        let mut found: Vec<Target> = Vec::new();
        for (sub, (hook, live_from)) in &self.subs {
            let Some(definition) = self.hooks.get(hook) else { continue };
            let is_wanted = *live_from <= pos && *definition.namespace_uid == *event.namespace_uid;
            if is_wanted && *hook > after && found.iter().all(|target| target.hook != *hook) {
                found.push(Target { hook: *hook, sub: *sub, is_ordered: definition.is_ordered });
            }
        }
        found.sort_by_key(|target| target.hook);
        let has_more = found.len() > limit;
        found.truncate(limit);
        targets.extend(found);
        has_more
    }

    fn wants(&self, _sub: SubId, _event: RouteKey<'_>) -> bool {
        true
    }

    fn apply(&mut self, changes: &[RouteChange]) {
        for change in changes {
            match change.clone() {
                RouteChange::Hook { id, hook } => drop(self.hooks.insert(id, hook)),
                RouteChange::Sub { id, hook, live_from, .. } => drop(self.subs.insert(id, (hook, live_from))),
                RouteChange::HookGone(id) => drop(self.hooks.remove(&id)),
                RouteChange::SubGone(id) => drop(self.subs.remove(&id)),
            }
        }
    }
}

pub(super) struct Place {
    pub(super) folder: tempfile::TempDir,
    pub(super) clock: Arc<ManualClock>,
    pub(super) limits: StoreLimits,
}

impl Place {
    pub(super) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), clock: ManualClock::new(), limits: StoreLimits::default() }
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn config(&self) -> SqliteConfig {
        SqliteConfig {
            folder: self.path().to_owned(),
            pool: "default".to_owned(),
            expected_store: None,
            accept_store: None,
            limits: self.limits,
            clock: self.clock.clone(),
            metrics: StoreMetrics::default(),
        }
    }

    pub(super) fn open(&self) -> (Arc<SqliteStore>, NewsReceiver) {
        self.open_with(self.config()).unwrap()
    }

    pub(super) fn open_with(&self, config: SqliteConfig) -> Result<(Arc<SqliteStore>, NewsReceiver), OpenError> {
        let (sender, receiver) = news_channel();
        Ok((SqliteStore::open(config, Box::new(Everything::default()), sender)?, receiver))
    }

    pub(super) fn refusal(&self, config: SqliteConfig) -> OpenError {
        self.open_with(config).map(|_| ()).unwrap_err()
    }

    /// The database, while the store is closed.
    pub(super) fn database(&self) -> Connection {
        Connection::open(self.path().join("store.db")).unwrap()
    }
}

pub(super) fn hook(name: &str, is_ordered: bool) -> HookDefinition {
    HookDefinition {
        namespace: "shop".into(),
        namespace_uid: "ns-1".into(),
        name: name.into(),
        uid: format!("uid-{name}").into(),
        max_age_ms: 3 * DAY_MS,
        is_ordered,
        document: "{}".into(),
    }
}

pub(super) fn sub(webhook: &str, name: &str) -> SubDefinition {
    SubDefinition {
        namespace_uid: "ns-1".into(),
        webhook: webhook.into(),
        name: name.into(),
        uid: format!("uid-{name}").into(),
        created: Timestamp::from_millisecond(BEGIN_MS).unwrap(),
        from: From::Time(Timestamp::from_millisecond(BEGIN_MS + DAY_MS).unwrap()),
        document: "{}".into(),
    }
}

pub(super) fn event(data: &str) -> NewEvent {
    let head = EventHead { event_type: "order.paid".into(), source: "/shop".into(), ..EventHead::default() };
    NewEvent {
        namespace: "shop".into(),
        namespace_uid: "ns-1".into(),
        head,
        data: bytes::Bytes::copy_from_slice(data.as_bytes()),
    }
}

pub(super) fn given(id: &str, data: &str) -> NewEvent {
    let mut event = event(data);
    event.head.given_id = Some(id.into());
    event
}

pub(super) async fn register(store: &SqliteStore, name: &str, is_ordered: bool) -> HookId {
    let changes = vec![Register::Hook(hook(name, is_ordered)), Register::Sub(sub(name, name))];
    let registered = store.register(changes).await.unwrap();
    let [Registered::Hook(id), Registered::Sub { .. }] = registered[..] else { panic!("{registered:?}") };
    id
}

pub(super) async fn accept(store: &SqliteStore, event: NewEvent) -> EventId {
    match store.accept(vec![event]).await.unwrap()[..] {
        [Accepted::New(id)] => id,
        ref other => panic!("{other:?}"),
    }
}

pub(super) fn outcome(hook: HookId, pos: Pos, tries: u16, next: Next) -> Outcome {
    let attempt = Attempt {
        at: Timestamp::from_millisecond(BEGIN_MS).unwrap(),
        duration_ms: 12,
        code: Some(if next == Next::Done { 200 } else { 503 }),
        error: (next != Next::Done).then_some("BadStatus"),
        shape: 1,
        detail: Some(Box::new(AttemptDetail { head: "x: y".into(), body: "text".into() })),
    };
    Outcome { hook, pos, tries, attempt: Some(attempt), next }
}

pub(super) async fn record(store: &SqliteStore, outcomes: Vec<Outcome>) {
    let ticket = store.record(outcomes);
    store.recorded().wait_for(|recorded| *recorded >= ticket).await.unwrap();
}

pub(super) async fn tally(store: &SqliteStore, hook: HookId) -> Tally {
    let page = store.tallies(TallyRevision::default(), usize::MAX).await.unwrap();
    page.tallies.into_iter().find(|tally| tally.hook == hook).unwrap_or_default()
}

pub(super) async fn check_totals(store: &SqliteStore) -> Totals {
    let totals = store.totals().await.unwrap();
    let discarded: u64 = totals.discarded.iter().sum();
    assert_eq!(totals.routed, totals.delivered + totals.dead + totals.pending + discarded, "{totals:?}");
    totals
}

#[tokio::test]
async fn a_restart_keeps_everything_that_was_acknowledged() {
    let place = Place::new();
    let (store, mut news) = place.open();
    let id = store.store_id().to_owned();
    let first = register(&store, "one", false).await;
    let event_id = accept(&store, given("a", "1")).await;
    let Some(News::Owed { pos, event: Some(handed), targets }) = news.recv().await else { panic!() };
    assert_eq!((pos, handed.id, targets[0].hook), (event_id.pos, event_id, first));
    drop(store);

    let (store, _news) = place.open();
    assert_eq!(store.store_id(), id);
    let known = store.known().await.unwrap();
    assert_eq!((known.hooks[0].hook.clone(), known.hooks[0].pending), (hook("one", false), 1));
    assert_eq!(known.subs[0].sub, sub("one", "one"));
    let page = store.owed(first, Pos(0), 10).await.unwrap();
    assert_eq!((page.rows[0].pos, page.covered), (pos, pos));
    assert_eq!(store.bodies(vec![pos, Pos(99)]).await.unwrap(), [StoredEvent::Event(handed), StoredEvent::Missing]);
    assert_eq!(
        store.accept(vec![given("a", "1"), event("2")]).await.unwrap(),
        [Accepted::Duplicate(event_id), Accepted::New(EventId { pos: Pos(pos.0 + 1), ..event_id })]
    );
    assert_eq!(store.owed(first, pos, 10).await.unwrap().rows.len(), 1, "routed without a new registration");
    store.close().await.unwrap();
    assert_eq!(store.accept(vec![event("3")]).await, Err(AcceptError::NotStored));
}

#[tokio::test]
async fn a_second_process_and_foreign_empty_and_newer_stores_are_refused() {
    let place = Place::new();
    let (store, _news) = place.open();
    assert!(matches!(place.refusal(place.config()), OpenError::Locked { .. }));
    let id = store.store_id().to_owned();
    drop(store);

    let other = || SqliteConfig { pool: "other".to_owned(), ..place.config() };
    let refusal = place.refusal(other());
    assert!(refusal.is_mismatch() && refusal.to_string().contains(&id), "{refusal}");
    let expected = SqliteConfig { expected_store: Some("abc".to_owned()), ..place.config() };
    assert!(matches!(place.refusal(expected), OpenError::Foreign { .. }));
    place.open_with(SqliteConfig { accept_store: Some(id.clone()), ..other() }).unwrap();
    place.open_with(other()).unwrap();
    assert!(place.refusal(place.config()).is_mismatch(), "it was taken over");

    let empty = Place::new();
    let expecting = || SqliteConfig { expected_store: Some(id.clone()), ..empty.config() };
    assert!(matches!(empty.refusal(expecting()), OpenError::Empty { .. }));
    assert!(!empty.path().join("store.db").exists(), "a backup can be restored there");
    empty.open_with(SqliteConfig { accept_store: Some(ACCEPT_NEW.to_owned()), ..expecting() }).unwrap();

    place.database().execute("UPDATE meta SET v = ?1 WHERE k = 'schema'", [SCHEMA_VERSION + 1]).unwrap();
    assert!(matches!(place.refusal(other()), OpenError::Newer { found, .. } if found > SCHEMA_VERSION));
    std::fs::write(place.path().join("store.db"), vec![7; 100_000]).unwrap();
    assert!(matches!(place.refusal(other()), OpenError::Damaged { .. }));
}

#[tokio::test]
async fn the_same_id_is_a_duplicate_or_a_conflict_within_the_window_and_new_behind_it() {
    let place = Place::new();
    let (store, _news) = place.open();
    let batch = vec![given("a", "1"), given("a", "1"), given("a", "2"), event("1"), event("1")];
    let verdicts = store.accept(batch).await.unwrap();
    let [Accepted::New(first), Accepted::Duplicate(second), Accepted::Conflict(third), ..] = verdicts[..] else {
        panic!("{verdicts:?}")
    };
    assert_eq!((second, third), (first, first));
    assert!(matches!(verdicts[3..], [Accepted::New(_), Accepted::New(_)]), "without an id nothing is compared");
    let mut elsewhere = given("a", "1");
    elsewhere.head.source = "/other".into();
    accept(&store, elsewhere).await;
    place.clock.pass_ms(3_600_000);
    assert_eq!(store.accept(vec![given("a", "1")]).await.unwrap(), [Accepted::Duplicate(first)]);
    place.clock.pass_ms(600_000);
    assert_ne!(accept(&store, given("a", "2")).await, first);
}

#[tokio::test]
async fn ids_outlive_a_crash_and_the_bucket_that_they_came_in() {
    let place = Place::new();
    let (store, _news) = place.open();
    let first = accept(&store, given("a", "1")).await;
    drop(store);
    let (store, _news) = place.open();
    assert_eq!(store.accept(vec![given("a", "1")]).await.unwrap(), [Accepted::Duplicate(first)]);
    place.clock.pass_ms(recent::DEDUP_BUCKET_MS.unsigned_abs());
    // One transaction writes the table, the next one clears the log.
    accept(&store, event("one")).await;
    accept(&store, event("two")).await;
    let count = "SELECT (SELECT count(*) FROM dedup), (SELECT count(*) FROM dedup_log)";
    let (written, logged): (i64, i64) =
        place.database().query_row(count, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert_eq!((written, logged), (1, 0));
    assert_eq!(store.accept(vec![given("a", "2")]).await.unwrap(), [Accepted::Conflict(first)]);
}

#[tokio::test]
async fn a_store_of_the_first_version_opens_with_the_ids_that_it_knows() {
    let place = Place::new();
    let (store, _news) = place.open();
    let first = accept(&store, given("a", "1")).await;
    store.close().await.unwrap();
    drop(store);
    let db = place.database();
    db.execute_batch(
        "INSERT INTO dedup (bucket, h, seq, digest)
         SELECT bucket, substr(ids, 1, 16), 1, CAST(substr(ids, 25, 8) || x'0011223344556677' AS BLOB) FROM dedup_log;
         DROP TABLE dedup_log; UPDATE meta SET v = 1 WHERE k = 'schema'",
    )
    .unwrap();
    db.execute("UPDATE dedup SET seq = ?1", [rows::seq_of(first.pos)]).unwrap();
    drop(db);
    let old = place.path().join("old.db");
    backup(place.path(), &old).unwrap();
    let verified = verify(&old).unwrap();
    assert_eq!((verified.schema, verified.problems), (1, vec![]));
    let restored = Place::new();
    assert_eq!(restore(&old, restored.path(), "default", "00ff").unwrap().schema, SCHEMA_VERSION);

    for place in [place, restored] {
        let accept_store = Some("00ff".to_owned());
        let (store, _news) = place.open_with(SqliteConfig { accept_store, ..place.config() }).unwrap();
        assert_eq!(store.accept(vec![given("a", "1")]).await.unwrap(), [Accepted::Duplicate(first)]);
        assert_eq!(store.accept(vec![given("a", "2")]).await.unwrap(), [Accepted::Conflict(first)]);
        store.close().await.unwrap();
        assert_eq!(verify(&place.path().join(DATABASE_FILE)).unwrap().problems, []);
    }
}

#[tokio::test]
async fn an_outcome_that_does_not_fit_is_ignored() {
    let place = Place::new();
    let (store, _news) = place.open();
    let hook = register(&store, "one", false).await;
    let pos = accept(&store, event("1")).await.pos;
    let due = store.store_now().plus_ms(60_000);
    record(&store, vec![outcome(hook, pos, 0, Next::At(due)), outcome(hook, pos, 0, Next::Done)]).await;
    assert_eq!(store.states_of(pos).await.unwrap(), [(hook, DeliveryState::Waiting(due))]);
    let page = store.waiting(hook, due, 5).await.unwrap();
    assert_eq!((page.rows[0].tries, page.rows[0].shape), (1, Some(1)));
    assert_eq!(store.waiting(hook, store.store_now(), 5).await.unwrap().next_due, Some(due));
    let back = outcome(hook, pos, 1, Next::Back);
    record(&store, vec![back, outcome(hook, pos, 0, Next::Done), outcome(hook, pos, 2, Next::Done)]).await;
    assert_eq!(check_totals(&store).await.pending, 1);
    record(&store, vec![outcome(hook, pos, 1, Next::Done), outcome(hook, pos, 1, Next::Done)]).await;
    let totals = check_totals(&store).await;
    assert_eq!((totals.delivered, totals.pending), (1, 0));
    assert_eq!(store.states_of(pos).await.unwrap(), [(hook, DeliveryState::Delivered)]);
    let attempts = store.attempts_of(pos, 9).await.unwrap();
    assert_eq!(attempts.iter().map(|a| (a.number, a.is_ok)).collect::<Vec<_>>(), [(1, false), (2, false), (2, true)]);
    assert!(attempts.iter().all(|attempt| attempt.detail.is_some()));
    let newest = store.attempts(hook, Some(attempts[2].id), 1).await.unwrap();
    assert_eq!(newest, attempts[1..2]);
    let tally = tally(&store, hook).await;
    assert_eq!((tally.delivered, tally.failed, tally.pending, tally.last_code), (1, 2, 0, 200));
}

#[tokio::test]
async fn ordered_deliveries_are_parked_behind_their_key_and_keep_it() {
    let place = Place::new();
    let (store, _news) = place.open();
    let hook = register(&store, "one", true).await;
    let mut keyed = event("1");
    keyed.head.key = Some("customer-7".into());
    let first = accept(&store, keyed.clone()).await.pos;
    let second = accept(&store, keyed).await.pos;
    let unkeyed = accept(&store, event("3")).await.pos;
    let rows = store.owed(hook, Pos(0), 9).await.unwrap().rows;
    let key = rows[0].key.unwrap();
    assert_eq!((rows[1].key, rows[2].key), (Some(key), None));
    let due = store.store_now().plus_ms(1_000);
    let park = |pos| Outcome { hook, pos, tries: 0, attempt: None, next: Next::Park };
    record(&store, vec![outcome(hook, first, 0, Next::At(due)), park(second), park(unkeyed)]).await;
    let by = BlockedKey { key, is_waiting: true, parked: Some(second), dead: None };
    assert_eq!(store.blocked_keys(hook, true, 9).await.unwrap(), [by]);
    assert_eq!(store.parked(hook, key, 9).await.unwrap()[0].pos, second);
    let states = store.states_of(unkeyed).await.unwrap();
    assert_eq!(states, [(hook, DeliveryState::Owed)], "without a key nothing is behind anything");
    let dead = Next::Dead(DeadReason::Exhausted);
    record(&store, vec![outcome(hook, first, 1, dead), outcome(hook, second, 0, Next::Done)]).await;
    let by = BlockedKey { is_waiting: false, parked: None, dead: Some(first), ..by };
    assert_eq!(store.blocked_keys(hook, true, 9).await.unwrap(), [by]);
    assert_eq!(store.blocked_keys(hook, false, 9).await.unwrap(), []);
    assert_eq!(store.states_of(first).await.unwrap(), [(hook, DeliveryState::Dead(DeadReason::Exhausted))]);
    let totals = check_totals(&store).await;
    assert_eq!((totals.dead, totals.delivered, totals.pending), (1, 1, 1));
}

#[tokio::test]
async fn store_time_goes_on_through_jumps_of_three_days_both_ways() {
    let place = Place::new();
    let (store, _news) = place.open();
    let begin = store.store_now();
    place.clock.jump_ms(3 * DAY_MS);
    assert_eq!(store.store_now(), begin);
    place.clock.pass_ms(1_000);
    accept(&store, event("1")).await;
    drop(store);
    place.clock.jump_ms(-6 * DAY_MS);
    let (store, _news) = place.open();
    assert_eq!(store.store_now(), begin.plus_ms(1_000));
    accept(&store, event("2")).await;
    drop(store);
    place.clock.jump_ms(3 * DAY_MS);
    let (store, _news) = place.open();
    assert_eq!(store.store_now(), begin.plus_ms(3_601_000), "an hour at most");
}

#[tokio::test]
async fn a_full_store_refuses_events_and_still_records_outcomes() {
    let mut place = Place::new();
    place.limits.size_bytes = 4 << 20;
    let (store, _news) = place.open();
    // So many that no backlog reaches its share: that would die and be evicted.
    let mut hooks = Vec::new();
    for n in 0..12 {
        let namespace_uid: Arc<str> = format!("ns-{n}").into();
        let hook = HookDefinition { namespace_uid: namespace_uid.clone(), ..hook("one", false) };
        let sub = SubDefinition { namespace_uid, uid: format!("uid-{n}").into(), ..sub("one", "one") };
        let registered = store.register(vec![Register::Hook(hook), Register::Sub(sub)]).await.unwrap();
        let Registered::Hook(id) = registered[0] else { panic!("{registered:?}") };
        hooks.push(id);
    }
    let data = "x".repeat(10_000);
    let mut accepted = Vec::new();
    let refusal = loop {
        let namespace_uid = format!("ns-{}", accepted.len() % hooks.len()).into();
        match store.accept(vec![NewEvent { namespace_uid, ..event(&data) }]).await {
            Ok(verdicts) => accepted.extend(verdicts),
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal, AcceptError::Full);
    assert!(accepted.len() > 100, "only {} events fit", accepted.len());
    let due = store.store_now().plus_ms(1);
    for tries in 0..20 {
        let failed = accepted.iter().zip(hooks.iter().cycle()).filter_map(|(verdict, hook)| match verdict {
            Accepted::New(id) => Some(outcome(*hook, id.pos, tries, Next::At(due))),
            _ => None,
        });
        record(&store, failed.collect()).await;
    }
    let totals = check_totals(&store).await;
    assert_eq!(totals.pending, accepted.len() as u64);
    assert_eq!(store.waiting(hooks[0], due, 1).await.unwrap().rows[0].tries, 20);

    let bigger = StoreLimits { size_bytes: 64 << 20, namespace_bytes: Some(2_000_000), ..place.limits };
    store.configure(bigger);
    let small = store.accept(vec![event("1")]).await;
    assert!(small.is_ok(), "{small:?}");
    let (fits, too_much) = (vec![event(&"x".repeat(500_000))], vec![event(&"x".repeat(900_000)); 2]);
    assert_eq!(store.accept(too_much).await, Err(AcceptError::Full), "all or nothing");
    assert!(store.accept(fits).await.is_ok());
}

#[tokio::test]
async fn a_damaged_event_is_corrupt_and_its_neighbors_are_not() {
    let place = Place::new();
    let (store, _news) = place.open();
    let mut full = given("a", "1");
    full.head.subject = Some("s".into());
    full.head.time = Some("2026-01-02T03:04:05.123456789Z".parse().unwrap());
    full.head.extensions = vec![("traceparent".into(), "00-1".into())];
    full.head.content_type = Some("text/plain".into());
    let batch = vec![full.clone(), event("2"), event("3"), event("4")];
    store.accept(batch).await.unwrap();
    drop(store);
    let database = place.database();
    database.execute("UPDATE event SET body = x'00' WHERE seq = 2", []).unwrap();
    database.execute("UPDATE event SET at = at + 1 WHERE seq = 3", []).unwrap();
    drop(database);
    let (store, _news) = place.open();
    let bodies = store.bodies(vec![Pos(4), Pos(3), Pos(2), Pos(1)]).await.unwrap();
    assert!(matches!(bodies[0], StoredEvent::Event(_)));
    assert_eq!(bodies[1..3], [StoredEvent::Corrupt, StoredEvent::Corrupt]);
    let StoredEvent::Event(event) = &bodies[3] else { panic!() };
    assert_eq!((&event.head, &event.data), (&full.head, &full.data));
}

#[tokio::test]
async fn a_failed_commit_ends_the_store_and_nobody_is_told_it_was_stored() {
    let place = Place::new();
    let (store, mut news) = place.open();
    accept(&store, event("1")).await;
    store.shared.breaks.fail(rusqlite::ffi::SQLITE_IOERR_FSYNC, u32::MAX);
    assert_eq!(store.accept(vec![event("2")]).await, Err(AcceptError::Unknown));
    assert!(matches!(news.recv().await, Some(News::Failed(StoreError::Failed(_)))));
    store.shared.breaks.fail(0, 0);
    assert_eq!(store.accept(vec![event("3")]).await, Err(AcceptError::NotStored));
    assert!(matches!(store.note(HookId(1), HookNote::Circuit(None)).await, Err(StoreError::Failed(_))));
    assert!(matches!(store.totals().await, Err(StoreError::Failed(_))));
    drop(store);
    let (store, _news) = place.open();
    assert_eq!(store.totals().await.unwrap().events, 1);
}

#[tokio::test]
async fn counters_are_exact_after_a_crash_at_any_point_of_their_rounds() {
    let place = Place::new();
    let mut expected = Tally::default();
    for round in 0..6 {
        let (store, _news) = place.open();
        let hook = register(&store, "one", false).await;
        assert_eq!(Tally { hook, ..expected }, Tally { hook, ..tally(&store, hook).await }, "round {round}");
        for _ in 0..round {
            let pos = accept(&store, event("1")).await.pos;
            let gone = accept(&store, event("2")).await.pos;
            accept(&store, event("3")).await;
            place.clock.pass_ms(3_000);
            let dead = outcome(hook, gone, 0, Next::Dead(DeadReason::DeadOn));
            record(&store, vec![outcome(hook, pos, 0, Next::Done), dead]).await;
        }
        expected = tally(&store, hook).await;
        let totals = check_totals(&store).await;
        assert_eq!(
            (expected.pending, expected.dead, expected.delivered),
            (totals.pending, totals.dead, totals.delivered)
        );
    }
    assert_eq!((expected.pending, expected.failed), (15, 15));
}

#[tokio::test]
async fn a_subscription_is_served_from_where_it_was_first_seen_and_the_rest_is_for_a_scan() {
    let place = Place::new();
    let (store, _news) = place.open();
    let before = accept(&store, event("1")).await.pos;
    place.clock.pass_ms(1_000);
    let since = Timestamp::from_millisecond(BEGIN_MS + 1_000).unwrap();
    let second = accept(&store, event("2")).await.pos;
    let earliest = SubDefinition { from: From::Earliest, ..sub("one", "a") };
    let later = SubDefinition { from: From::Time(since), ..sub("one", "b") };
    let stranger = sub("two", "c");
    let changes = vec![
        Register::Sub(stranger),
        Register::Hook(hook("one", false)),
        Register::Sub(earliest.clone()),
        Register::Sub(later),
        Register::Sub(sub("one", "d")),
    ];
    let registered = store.register(changes).await.unwrap();
    let live = Pos(second.0 + 1);
    assert_eq!(registered[0], Registered::NoSuchWebhook);
    let Registered::Sub { id, live_from } = registered[2] else { panic!("{registered:?}") };
    assert_eq!(live_from, live);
    accept(&store, event("3")).await;
    let again = store.register(vec![Register::Sub(earliest)]).await.unwrap();
    assert_eq!(again, [Registered::Sub { id, live_from }], "a known one keeps what it has");
    store.close().await.unwrap();
    drop(store);
    let database = place.database();
    let mut select = database.prepare("SELECT from_seq, live_from FROM sub ORDER BY id").unwrap();
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let ranges: Vec<(u64, u64)> = rows
        .map(|row: rusqlite::Result<(i64, i64)>| row.map(|(a, b)| (a.cast_unsigned(), b.cast_unsigned())).unwrap())
        .collect();
    assert_eq!(ranges, [(before.0, live.0), (second.0, live.0), (live.0, live.0)]);
}

#[tokio::test]
async fn a_hook_that_comes_back_takes_its_backlog_up_and_notes_survive_a_restart() {
    let place = Place::new();
    let (store, _news) = place.open();
    let id = register(&store, "one", false).await;
    accept(&store, event("1")).await;
    let withdrawn = Timestamp::from_millisecond(BEGIN_MS).unwrap();
    store.note(id, HookNote::Withdrawn(withdrawn)).await.unwrap();
    store.note(id, HookNote::Circuit(Some("open".into()))).await.unwrap();
    let gone = Register::HookGone { namespace_uid: "ns-1".into(), name: "one".into() };
    store.register(vec![gone]).await.unwrap();
    accept(&store, event("2")).await;
    drop(store);
    let (store, _news) = place.open();
    let known = store.known().await.unwrap();
    assert!(known.hooks[0].gone_at.is_some());
    assert_eq!(known.hooks[0].notes.circuit.as_deref(), Some("open"));
    let namesake = HookDefinition { uid: "another".into(), ..hook("one", false) };
    assert_eq!(store.register(vec![Register::Hook(namesake)]).await.unwrap(), [Registered::Hook(id)]);
    let known = store.known().await.unwrap();
    assert_eq!((known.hooks[0].gone_at, known.hooks[0].pending), (None, 1));
    assert_eq!(known.hooks[0].notes, HookNotes { withdrawn: Some(withdrawn), ..HookNotes::default() });
    store.register(vec![Register::NamespaceGone { uid: "ns-1".into() }]).await.unwrap();
    assert_eq!(store.known().await.unwrap(), Known::default());
    accept(&store, event("3")).await;
}

#[tokio::test]
async fn concurrent_batches_share_commits_and_keep_their_own_verdicts() {
    let place = Place::new();
    let (store, _news) = place.open();
    register(&store, "one", false).await;
    let batches = (0..200).map(|n| store.accept(vec![event(&n.to_string()), given(&n.to_string(), "x")]));
    let verdicts = futures::future::join_all(batches).await;
    let mut positions: Vec<Pos> = verdicts
        .into_iter()
        .flat_map(Result::unwrap)
        .map(|verdict| match verdict {
            Accepted::New(id) => id.pos,
            other => panic!("{other:?}"),
        })
        .collect();
    positions.sort();
    positions.dedup();
    assert_eq!(positions.len(), 400);
    let totals = check_totals(&store).await;
    assert_eq!((totals.events, totals.pending), (400, 400));
}

#[tokio::test]
async fn more_than_the_queue_holds_is_refused_as_busy() {
    let place = Place::new();
    let (store, _news) = place.open();
    let big = vec![event(&"x".repeat(WAITING_BYTES_MAX / 8)); 9];
    assert!(matches!(store.accept(big).await, Err(AcceptError::Busy { .. })));
    accept(&store, event("1")).await;
}

#[tokio::test]
async fn the_write_ahead_log_begins_anew_under_load() {
    let place = Place::new();
    let (store, _news) = place.open();
    let data = "x".repeat(1 << 20);
    for _ in 0..160 {
        accept(&store, event(&data)).await;
    }
    let log_bytes = std::fs::metadata(place.path().join("store.db-wal")).unwrap().len();
    assert!(log_bytes < 120 << 20, "{log_bytes} bytes");
}

#[tokio::test]
async fn only_the_detail_of_the_last_successes_is_kept() {
    let place = Place::new();
    let (store, _news) = place.open();
    let hook = register(&store, "one", false).await;
    let verdicts = store.accept((0..150).map(|n: i32| event(&n.to_string())).collect()).await.unwrap();
    let outcomes = verdicts.into_iter().map(|verdict| match verdict {
        Accepted::New(id) => outcome(hook, id.pos, 0, Next::Done),
        other => panic!("{other:?}"),
    });
    let mut outcomes: Vec<Outcome> = outcomes.collect();
    let rest = outcomes.split_off(100);
    record(&store, outcomes).await;
    for outcome in rest {
        record(&store, vec![outcome]).await;
    }
    let attempts = store.attempts(hook, None, 1_000).await.unwrap();
    let kept = attempts.iter().filter(|attempt| attempt.detail.is_some()).count();
    assert!((50..=60).contains(&kept), "{kept}");
    assert!(attempts[..50].iter().all(|attempt| attempt.detail.is_some()));
    assert_eq!(attempts.len(), 150);
}

/// How SQLite would answer questions, in a store as it is when it is new.
pub(super) async fn query_plans() -> impl Fn(&str) -> String {
    let place = Place::new();
    let (store, _news) = place.open();
    store.close().await.unwrap();
    drop(store);
    let database = place.database();
    move |sql: &str| {
        // The folder must outlive the database.
        let _folder = &place;
        let mut explain = database.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let parameters = rusqlite::params_from_iter((0..explain.parameter_count()).map(|_| 1));
        let plan: Vec<String> = explain.query_map(parameters, |row| row.get(3)).unwrap().map(Result::unwrap).collect();
        plan.join("; ")
    }
}

#[tokio::test]
async fn no_hot_query_scans_a_table_or_sorts() {
    let plan_of = query_plans().await;
    let check = |sql: &str| {
        let plan = plan_of(sql);
        assert!(!plan.contains("TEMP B-TREE") && !plan.contains("SCAN"), "{sql}: {plan}");
    };
    check(
        "SELECT o.seq, o.sub, o.key, o.tries, o.shape FROM bucket b CROSS JOIN owed o
         ON o.bucket = b.id AND o.hook = ?1 AND o.seq > ?2 WHERE b.id >= ?3 ORDER BY b.id, o.seq LIMIT ?4",
    );
    check("SELECT seq, sub, key, tries, shape, due FROM retry WHERE hook = ?1 ORDER BY due, seq LIMIT ?2");
    for (sql, index) in [
        (read::NEXT_WAITING_KEY, "COVERING INDEX retry_key"),
        (read::NEXT_PARKED_KEY, "PRIMARY KEY"),
        (read::NEXT_DEAD_KEY, "INDEX dead_key"),
        (read::FIRST_WAITING, "INDEX retry_key"),
        (read::FIRST_PARKED, "PRIMARY KEY"),
        (read::FIRST_DEAD, "INDEX dead_key"),
    ] {
        check(sql);
        assert!(plan_of(sql).contains(index), "{sql}: {}", plan_of(sql));
    }
    check("DELETE FROM retry WHERE seq = ?1 AND hook = ?2 AND tries = ?3");
    check("DELETE FROM parked WHERE seq = ?1 AND hook = ?2 AND tries = ?3");
    check("SELECT id FROM attempt WHERE bucket = ?1 AND hook = ?2 AND id < ?3 ORDER BY id DESC LIMIT ?4");
    check("SELECT id FROM answer WHERE hook = ?1 AND ok = 1 ORDER BY id DESC LIMIT 1 OFFSET ?2");
}

#[test]
fn a_statement_is_compiled_once_whatever_is_compared_with_the_condition_of_an_index() {
    let folder = tempfile::tempdir().unwrap();
    let database = open::lock(folder.path()).unwrap();
    let writer = database.writer().unwrap();
    writer.execute_batch("CREATE TABLE t (a, b); CREATE INDEX i ON t (a) WHERE b = 1").unwrap();
    for db in [&database.reader().unwrap(), &writer] {
        let mut select = db.prepare("SELECT count(*) FROM t WHERE a > 0 AND b = ?1").unwrap();
        for value in 0..5 {
            select.query_row([value], |_| Ok(())).unwrap();
        }
        assert_eq!(select.get_status(rusqlite::StatementStatus::RePrepare), 0);
    }
}
