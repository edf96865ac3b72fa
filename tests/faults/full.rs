//! The store is full, or its disk.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use posthorn::{
    event::Pos,
    store::{
        AcceptError, Accepted, Attempt, History, HookId, Ingest, NewEvent, Next, Outcome, Partition, RouteChange,
        RouteKey, Router, StoreError, StoreLimits, SubId, Target, news_channel,
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
};

const DISK_MIB: u64 = 64;
/// What a pool's store gets of its volume: 90 %.
const SIZE_BYTES: u64 = (DISK_MIB << 20) / 100 * 90;
const EVENT_BYTES: usize = 4_000;
const BATCH: usize = 200;

/// So many that no backlog reaches its share of the store: what is beyond that
/// dies and is evicted, and the store is never full.
const HOOKS: usize = 12;

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
        store.note(HookId(0), posthorn::store::HookNote::Circuit(None)).await.unwrap();
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
    println!("full store: {} events through {DISK_MIB} MiB, refused {refusals} times", accepted.len());
}

#[tokio::test]
async fn a_disk_that_others_filled_loses_nothing_and_the_store_goes_on_when_there_is_room() {
    let disk = Disk::new(DISK_MIB);
    let folder = disk.path().join("store");
    let plan = Plan { bytes: EVENT_BYTES, size_bytes: SIZE_BYTES, ..Plan::default() };
    let mut writer = Writer::start(&folder, plan);
    let mut said: Vec<Said> = writer.listen(Duration::from_millis(100)).into_iter().map(|(_, said)| said).collect();
    let filler = disk.fill();
    said.extend(writer.listen(Duration::from_secs(20)).into_iter().map(|(_, said)| said));
    assert!(said.iter().any(|said| matches!(said, Said::Failed(_))), "there was no room to write to: {said:?}");
    let (is_good, rest) = writer.wait();
    assert!(!is_good, "a process whose store failed ends with an error");
    said.extend(rest);
    std::fs::remove_file(filler).unwrap();
    let all = acknowledged(&said);
    assert!(!all.is_empty());
    let mut report = Report::default();
    let lost = missing(&folder, &all, plan, &mut report).await;
    assert!(lost.is_empty(), "{lost:?}; {report:?}");
    let (store, _news) = writer::open(&folder, SIZE_BYTES).unwrap();
    let accepted = store.accept(vec![writer::event("after", EVENT_BYTES)]).await;
    assert!(accepted.is_ok(), "{accepted:?}");
    let closed: Result<(), StoreError> = store.close().await;
    closed.unwrap();
    println!("full disk: {report:?}");
}
