//! The store is full, or its disk.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use posthorn::{
    event::Pos,
    store::{
        AcceptError, Accepted, Attempt, History, HookId, HookNote, Ingest, NewEvent, Next, Outcome, Partition,
        RouteChange, RouteKey, Router, Space, StoreLimits, SubId, Target, news_channel,
        sqlite::{DATABASE_FILE, SqliteConfig, SqliteStore, verify},
    },
};

use crate::{
    clock::TestClock,
    disk::Disk,
    kit::{
        oracle::{Report, acknowledged, missing},
        writer::{self, Plan, Said, Writer},
    },
    scaled,
};

const DISK_MIB: u64 = 64;
/// What a pool's store gets of its volume: 90 %.
const SIZE_BYTES: u64 = (DISK_MIB << 20) / 100 * 90;
const EVENT_BYTES: usize = 4_000;
const BATCH: usize = 200;

/// So many that no backlog reaches its share of the store: what is beyond that
/// dies and is evicted, and the store is never full.
const HOOKS: usize = 12;

/// Within this time a store goes on when there is room.
const RECOVER_MAX: Duration = Duration::from_secs(60);

/// An event goes to the Webhook that its type names.
#[derive(Default)]
struct ByName(BTreeMap<Arc<str>, (HookId, SubId)>);

impl Router for ByName {
    fn route(&self, _: Pos, event: RouteKey<'_>, after: HookId, _: usize, targets: &mut Vec<Target>) -> bool {
        let found = self.0.get(event.event_type).filter(|(hook, _)| *hook > after);
        targets.extend(found.map(|&(hook, sub)| Target { hook, sub, is_ordered: false }));
        false
    }

    fn wants(&self, _: SubId, _: RouteKey<'_>) -> bool {
        false
    }

    fn apply(&mut self, changes: &[RouteChange]) {
        for change in changes {
            if let RouteChange::Sub { id, hook, sub, .. } = change {
                self.0.insert(sub.webhook.clone(), (*hook, *id));
            }
        }
    }
}

fn event(n: usize) -> NewEvent {
    let mut event = writer::event("full", EVENT_BYTES);
    event.head.event_type = format!("h{}", n % HOOKS).into();
    event
}

fn open(disk: &Disk, clock: &Arc<TestClock>) -> Arc<SqliteStore> {
    let config = SqliteConfig {
        clock: clock.clone(),
        limits: StoreLimits { size_bytes: SIZE_BYTES, ..StoreLimits::default() },
        ..writer::config(&disk.path().join("store"), SIZE_BYTES)
    };
    SqliteStore::open(config, Box::new(ByName::default()), news_channel().0).unwrap()
}

/// Where each of the events is that fit, by the number of its Webhook.
async fn accept_until_full(store: &SqliteStore) -> Vec<(usize, Pos)> {
    let mut all = Vec::new();
    loop {
        match store.accept((0..BATCH).map(event).collect()).await {
            Ok(accepted) => all.extend(accepted.into_iter().enumerate().map(|(n, verdict)| {
                let Accepted::New(id) = verdict else { panic!("{verdict:?}") };
                (n % HOOKS, id.pos)
            })),
            Err(AcceptError::Busy { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(AcceptError::Full) => return all,
            Err(error) => panic!("{error} after {} events", all.len()),
        }
    }
}

async fn deliver(store: &SqliteStore, clock: &TestClock, hooks: &[HookId], positions: &[(usize, Pos)]) {
    let outcome = |&(n, pos): &(usize, Pos)| {
        let attempt =
            Attempt { at: clock.wall(), duration_ms: 1, code: Some(200), error: None, shape: 0, detail: None };
        Outcome { hook: hooks[n], pos, tries: 0, attempt: Some(attempt), next: Next::Done }
    };
    let ticket = store.record(positions.iter().map(outcome).collect());
    store.recorded().wait_for(|recorded| *recorded >= ticket).await.unwrap();
}

/// In place of the sleep of a publisher that was refused.
async fn ten_seconds_pass(store: &SqliteStore, clock: &TestClock) {
    clock.advance(Duration::from_secs(10));
    for _ in 0..20 {
        store.note(HookId(0), HookNote::Circuit(None)).await.unwrap();
    }
}

#[tokio::test]
async fn a_full_store_refuses_events_records_outcomes_and_recovers() {
    let disk = Disk::new(DISK_MIB);
    let clock = Arc::new(TestClock::new());
    let store = open(&disk, &clock);
    writer::register(&store, HOOKS).await;
    let hooks: Vec<HookId> = store.known().await.unwrap().hooks.iter().map(|known| known.id).collect();
    let mut accepted = accept_until_full(&store).await;
    assert!(accepted.len() * EVENT_BYTES > 25 << 20, "{} events", accepted.len());
    // Everything is delivered while it is full.
    for chunk in accepted.chunks(500) {
        deliver(&store, &clock, &hooks, chunk).await;
    }
    let totals = store.totals().await.unwrap();
    assert_eq!((totals.delivered, totals.pending), (accepted.len() as u64, 0), "{totals:?}");
    // What was delivered makes room.
    let mut refusals = 0;
    while accepted.len() < 20_000 {
        let more = accept_until_full(&store).await;
        deliver(&store, &clock, &hooks, &more).await;
        accepted.extend(more);
        refusals += 1;
        assert!(refusals < 1_000, "{} events, then no more", accepted.len());
        ten_seconds_pass(&store, &clock).await;
    }
    let totals = store.totals().await.unwrap();
    assert_eq!(totals.routed, accepted.len() as u64, "{totals:?}");
    store.close().await.unwrap();
    drop(store);
    assert_eq!(verify(&disk.path().join("store").join(DATABASE_FILE)).unwrap().problems, []);
    // The last ones were never removed, since there was room.
    let store = open(&disk, &clock);
    let last = accepted[accepted.len() - 200..].iter().map(|(_, pos)| *pos);
    let stored = store.bodies(last.collect()).await.unwrap();
    assert!(stored.iter().all(|stored| matches!(stored, posthorn::store::StoredEvent::Event(_))));
    store.close().await.unwrap();
    println!("full store: {} events through {DISK_MIB} MiB, refused {refusals} times", accepted.len());
}

/// Hands outcomes in and says whether they are durable within this time.
async fn deliver_within(
    time: Duration,
    store: &SqliteStore,
    clock: &TestClock,
    hooks: &[HookId],
    positions: &[(usize, Pos)],
) -> bool {
    tokio::time::timeout(time, deliver(store, clock, hooks, positions)).await.is_ok()
}

/// A publisher that tries again until it is not refused.
async fn accept_in_time(store: &SqliteStore, clock: &TestClock) {
    let begun = Instant::now();
    loop {
        match store.accept(vec![event(0)]).await {
            Ok(_) => return,
            Err(AcceptError::Full | AcceptError::Busy { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        assert!(begun.elapsed() < RECOVER_MAX, "it takes events again when there is room");
        clock.advance(Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn deliveries_go_on_while_others_fill_the_disk_and_outcomes_wait_when_even_the_log_is_full() {
    let disk = Disk::new(DISK_MIB);
    let clock = Arc::new(TestClock::new());
    let store = open(&disk, &clock);
    writer::register(&store, HOOKS).await;
    let hooks: Vec<HookId> = store.known().await.unwrap().hooks.iter().map(|known| known.id).collect();
    let mut accepted = Vec::new();
    while accepted.len() < 6_000 {
        let verdicts = store.accept((0..BATCH).map(event).collect()).await.unwrap();
        accepted.extend(verdicts.into_iter().enumerate().map(|(n, verdict)| match verdict {
            Accepted::New(id) => (n % HOOKS, id.pos),
            verdict => panic!("{verdict:?}"),
        }));
    }
    let filler = disk.fill();
    // A look at the volume comes with each transaction.
    deliver(&store, &clock, &hooks, &accepted[..1]).await;
    assert_eq!(store.accept(vec![event(0)]).await, Err(AcceptError::Full));
    assert_eq!(store.space(writer::NAMESPACE_UID), Space::StoreFull);
    let (now, later) = accepted[1..].split_at(3_000);
    for chunk in now.chunks(20) {
        assert!(deliver_within(RECOVER_MAX, &store, &clock, &hooks, chunk).await, "recorded though the disk is full");
    }
    // Somebody reads the whole store: the log cannot begin anew.
    let reader = rusqlite::Connection::open(disk.path().join("store").join(DATABASE_FILE)).unwrap();
    let snapshot = reader.unchecked_transaction().unwrap();
    snapshot.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).unwrap();
    let mut chunks = later.chunks(20);
    let mut handed = 0;
    for chunk in chunks.by_ref() {
        handed += chunk.len();
        if !deliver_within(Duration::from_millis(1_500), &store, &clock, &hooks, chunk).await {
            break;
        }
    }
    assert!(chunks.len() > 0, "the log is full in time");
    let note = store.note(hooks[0], HookNote::Circuit(Some("open".into())));
    let rest: Vec<_> = chunks.flatten().copied().collect();
    let waiting = deliver(&store, &clock, &hooks, &rest);
    let refused = store.accept(vec![event(0)]).await;
    assert!(matches!(refused, Err(AcceptError::Full | AcceptError::Busy { .. })), "it answers: {refused:?}");
    drop(snapshot);
    drop(reader);
    let (noted, ()) = tokio::time::timeout(RECOVER_MAX, futures::future::join(note, waiting)).await.unwrap();
    noted.unwrap();
    let totals = store.totals().await.unwrap();
    assert_eq!((totals.delivered, totals.pending), (accepted.len() as u64, 0), "{totals:?}");
    assert_eq!(store.accept(vec![event(0)]).await, Err(AcceptError::Full), "the disk is still full");
    std::fs::remove_file(filler).unwrap();
    accept_in_time(&store, &clock).await;
    store.close().await.unwrap();
    drop(store);
    assert_eq!(verify(&disk.path().join("store").join(DATABASE_FILE)).unwrap().problems, []);
    let store = open(&disk, &clock);
    let known = store.known().await.unwrap();
    assert_eq!(known.hooks[0].notes.circuit.as_deref(), Some("open"));
    store.close().await.unwrap();
    println!("full disk: the log took {handed} outcomes while it could not begin anew");
}

/// Listens until all that a writer says for half a second is as expected.
fn until(writer: &Writer, all: &mut Vec<Said>, is_expected: impl Fn(&[Said]) -> bool, what: &str) {
    let begun = Instant::now();
    loop {
        let said = writer.listen(Duration::from_millis(500)).into_iter().map(|(_, said)| said);
        let said: Vec<Said> = said.collect();
        all.extend(said.iter().cloned());
        if is_expected(&said) {
            return;
        }
        assert!(begun.elapsed() < RECOVER_MAX, "{what}: {:?}", said.last());
    }
}

#[tokio::test]
async fn a_disk_that_others_filled_loses_nothing_and_the_store_goes_on_when_there_is_room() {
    let disk = Disk::new(DISK_MIB);
    let folder = disk.path().join("store");
    // So little that nothing is evicted: what is counted at the end was all accepted.
    let plan = Plan { publishers: 2, bytes: 500, size_bytes: SIZE_BYTES, ..Plan::default() };
    let writer = Writer::start(&folder, plan);
    let mut all: Vec<Said> = Vec::new();
    let takes_events = |said: &[Said]| !acknowledged(said).is_empty();
    let refuses_all = |said: &[Said]| !said.is_empty() && said.iter().all(|said| *said == Said::Full);
    for round in 0..scaled(3, 10) {
        until(&writer, &mut all, takes_events, &format!("round {round}: it takes events"));
        let filler = disk.fill();
        until(&writer, &mut all, refuses_all, &format!("round {round}: it refuses events, and does nothing else"));
        std::fs::remove_file(filler).unwrap();
    }
    until(&writer, &mut all, takes_events, "it takes events when there is room");
    let failed = all.iter().find(|said| matches!(said, Said::Failed(_)));
    assert_eq!(failed, None, "a full disk ends nobody");
    // Nor does it keep anybody from beginning.
    disk.fill();
    all.extend(writer.kill());
    let all = acknowledged(&all);
    let mut report = Report::default();
    let lost = missing(&folder, &all, plan, &mut report).await;
    assert!(lost.is_empty(), "{lost:?}; {report:?}");
    println!("full disk: {report:?}");
}
