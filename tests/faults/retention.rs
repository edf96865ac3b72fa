//! Retention beside publishers at full speed: it keeps up, and hardly shows.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::join_all;
use posthorn::store::{
    Accepted, Attempt, History, HookId, Ingest, Next, Outcome, Partition, StoreLimits, news_channel,
    sqlite::{SqliteConfig, SqliteStore},
};
use tempfile::TempDir;

use crate::{
    clock::TestClock,
    kit::{router::EverythingToEveryone, writer},
    scaled,
};

const PUBLISHERS: usize = 32;
/// The store's time goes faster than ours, so that events grow old.
const STEP: Duration = Duration::from_secs(10);
const STEP_EVERY: Duration = Duration::from_millis(10);
/// Three seconds of ours.
const AGE: Duration = Duration::from_secs(3000);

struct Load {
    store: Arc<SqliteStore>,
    clock: Arc<TestClock>,
    hook: HookId,
}

impl Load {
    fn limits(age: Duration) -> StoreLimits {
        StoreLimits { retention_age: age, ..StoreLimits::default() }
    }

    /// Publishes for so long; how long each accept took, sorted.
    async fn publish(&self, time: Duration) -> Vec<Duration> {
        let is_over = AtomicBool::new(false);
        let publisher = async || {
            let mut took = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let accepted = self.store.accept(vec![writer::event("retention", 1024)]).await.unwrap();
                took.push(begun.elapsed());
                let [Accepted::New(id)] = accepted[..] else { panic!("{accepted:?}") };
                let attempt = Attempt {
                    at: self.clock.wall(),
                    duration_ms: 1,
                    code: Some(200),
                    error: None,
                    shape: 0,
                    detail: None,
                };
                let (hook, pos) = (self.hook, id.pos);
                self.store.record(vec![Outcome { hook, pos, tries: 0, attempt: Some(attempt), next: Next::Done }]);
            }
            took
        };
        let publishers = join_all((0..PUBLISHERS).map(|_| publisher()));
        let time_goes_on = async {
            let begun = Instant::now();
            while begun.elapsed() < time {
                tokio::time::sleep(STEP_EVERY).await;
                self.clock.advance(STEP);
            }
            is_over.store(true, Ordering::Relaxed);
        };
        let (took, ()) = futures::future::join(publishers, time_goes_on).await;
        let mut took: Vec<_> = took.into_iter().flatten().collect();
        took.sort_unstable();
        took
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_keeps_up_with_publishers_and_hardly_holds_them_up() {
    let folder = TempDir::new().unwrap();
    let clock = Arc::new(TestClock::new());
    let config = SqliteConfig {
        clock: clock.clone(),
        limits: Load::limits(1_000_000 * AGE),
        ..writer::config(folder.path(), 1 << 30)
    };
    let store = SqliteStore::open(config, Box::new(EverythingToEveryone::default()), news_channel().0).unwrap();
    writer::register(&store, 1).await;
    let hook = store.known().await.unwrap().hooks[0].id;
    let load = Load { store: store.clone(), clock, hook };
    let time = Duration::from_secs(u64::from(scaled(5, 30)));
    load.publish(time / 2).await;
    let without = load.publish(time).await;
    store.configure(Load::limits(AGE));
    // What has gathered goes first, and the first events have to grow old.
    load.publish(time).await;
    let with = load.publish(time).await;
    let events = store.totals().await.unwrap().events;
    let all = without.len() + 2 * with.len();
    println!(
        "accept p50/p99 without retention {:?}/{:?} ({} events), with {:?}/{:?} ({} events); {events} kept",
        percentile(&without, 50),
        percentile(&without, 99),
        without.len(),
        percentile(&with, 50),
        percentile(&with, 99),
        with.len(),
    );
    // Whole buckets go, of 16,384 events each; sweeps begin once a minute of the
    // store's time.
    let expected = with.len() as f64 / time.as_secs_f64() * 3.0 + 2.0 * 16_384.0;
    assert!((events as f64) < 1.5 * expected, "{events} of {all} are left, expected about {expected}");
}
