//! SIGTERM and rolling updates under load.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    rig::publisher::{Outcome, Pace, publish},
    stage::{Stage, WAIT, number_of, scaled, until},
};

/// How long a pool may be closed to publishers in an update.
const CLOSED_MAX: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_rolling_updates_a_publisher_that_retries_sees_no_failure_and_nothing_is_lost() {
    let mut stage = Stage::set().await;
    stage.webhook("orders", "/ok/orders", "order.paid", json!(null));
    // Attempts are under way whenever the signal comes.
    stage.webhook("slow", "/slow/700/slow", "order.paid", json!({"concurrency": 64}));
    stage.pod.start().await;
    stage.until_routed(2).await;
    let outcome = Arc::new(Outcome::default());
    let tasks = publish(stage.plan(), Pace::PerSecond(200.0), stage.start, Arc::clone(&outcome));
    for _ in 0..scaled(3, 20) {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let closed = Instant::now();
        let before = outcome.accepted.load(Ordering::Relaxed);
        assert_eq!(stage.pod.terminate(), Some(0), "{}", stage.pod.log_tail());
        let ended = closed.elapsed();
        stage.pod.spawn();
        while outcome.accepted.load(Ordering::Relaxed) <= before + 20 {
            assert!(closed.elapsed() < Duration::from_secs(30), "{}", stage.pod.log_tail());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        println!("ended after {ended:?}, open again after {:?}", closed.elapsed());
        assert!(closed.elapsed() < CLOSED_MAX, "closed for {:?}", closed.elapsed());
    }
    outcome.stop();
    tasks.join_all().await;
    let hard: Vec<_> = outcome
        .refused
        .lock()
        .unwrap()
        .iter()
        .filter(|(code, _)| !matches!(code, 429 | 503))
        .map(|(c, n)| (*c, *n))
        .collect();
    assert!(hard.is_empty(), "{hard:?}");
    let ids = outcome.ids().into_iter().collect();
    stage.until_delivered("/ok/orders", &ids).await;
    stage.until_delivered("/slow/700/slow", &ids).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_that_hang_are_handed_back_at_the_end_of_the_grace_period() {
    let mut stage = Stage::set().await;
    stage.webhook("orders", "/hang/orders", "order.paid", json!({"timeout": "30s"}));
    stage.pod.start().await;
    stage.until_routed(1).await;
    stage.publish(3, "order.paid").await;
    until("an attempt hangs", WAIT, async || stage.receiver.requests_to("/hang/orders") > 0).await;
    let began = Instant::now();
    assert_eq!(stage.pod.terminate(), Some(0), "{}", stage.pod.log_tail());
    // More than the time-out of an attempt would be a stuck pod.
    assert!(began.elapsed() < Duration::from_secs(45), "{:?}", began.elapsed());
    let table = stage.verify_store();
    assert_eq!(number_of(&table, "owed"), 3, "{table}");
}
