//! The disk fails, is slow, or holds what it should not.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use crate::{
    rig::publisher::{Outcome, Pace, publish},
    stage::{Stage, WAIT, scaled, until},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_on_the_same_store_refuses_to_start() {
    let mut stage = Stage::set().await;
    stage.pod.start().await;
    let mut second = crate::rig::pod::Pod::new(env!("CARGO_BIN_EXE_posthorn"), &stage.api);
    second.data.clone_from(&stage.pod.data);
    second.spawn();
    let code = second.until_ended(WAIT).await;
    assert!(code.is_some_and(|code| code != 0), "{code:?}");
    assert!(second.log().contains("another process"), "{}", second.log_tail());
    assert!(stage.pod.is_ready().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_another_pool_is_refused_with_a_word_on_what_to_do() {
    let mut stage = Stage::set().await;
    stage.pod.start().await;
    stage.pod.terminate();
    stage.pod.environment.push(("POSTHORN_POOL".to_owned(), "other".to_owned()));
    let mut pool = crate::rig::objects::pool(json!({}));
    pool["metadata"]["name"] = json!("other");
    stage.api.apply("deliverypools", pool);
    stage.pod.spawn();
    let problem = until_refused(&stage).await;
    assert!(problem.contains("of DeliveryPool default, not a store of DeliveryPool other"), "{problem}");
    assert!(stage.pod.log().contains("accept-store"), "{}", stage.pod.log_tail());
    // What it is called for besides is answered too.
    let (code, _) = stage.pod.internal("/internal/v1/deliveries").await.unwrap();
    assert_eq!(code, 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_folder_in_place_of_the_recorded_store_is_refused_until_somebody_accepts_it() {
    let mut stage = Stage::set().await;
    let mut pool = stage.api.get("deliverypools", "", "default").unwrap();
    pool["status"] = json!({"stores": [{"pod": "posthorn-default-0", "id": "0123456789abcdef"}]});
    stage.api.apply("deliverypools", pool.clone());
    stage.pod.environment.push(("HOSTNAME".to_owned(), "posthorn-default-0".to_owned()));
    stage.pod.spawn();
    let problem = until_refused(&stage).await;
    assert!(problem.contains("is empty, but DeliveryPool default has store 0123456789abcdef"), "{problem}");
    let before = stage.pod.pid();
    pool["metadata"]["annotations"] = json!({"posthorn.dev/accept-store": "new"});
    stage.api.apply("deliverypools", pool);
    stage.pod.until_ready().await;
    assert_eq!(stage.pod.pid(), before, "it went on by itself");
    let (_, counters) = stage.pod.internal("/internal/v1/counters").await.unwrap();
    assert!(counters["storeId"].is_string() && counters["storeProblem"].is_null(), "{counters}");
}

/// Waits until the pod tells the controller, and whoever looks at its readiness,
/// that it refuses its volume; what it says.
async fn until_refused(stage: &Stage) -> String {
    let counters = async || stage.pod.internal("/internal/v1/counters").await.map(|(_, counters)| counters);
    let is_told = async || counters().await.is_some_and(|counters| counters["storeProblem"].is_object());
    until("the pod tells of it", WAIT, is_told).await;
    let counters = counters().await.unwrap();
    assert_eq!((&counters["storeProblem"]["reason"], &counters["storeId"]), (&json!("StoreMismatch"), &json!(null)));
    let message = counters["storeProblem"]["message"].as_str().unwrap().to_owned();
    let (code, text) = stage.pod.get("/readyz").await.unwrap();
    assert_eq!(code, 503);
    assert!(text.contains(&format!("store: StoreMismatch: {message}")), "{text}");
    assert!(message.contains("accept-store"), "{message}");
    message
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_event_ends_as_a_dead_letter_that_says_so_and_costs_the_others_nothing() {
    let mut stage = Stage::set().await;
    let patient = json!({"retry": {"backoff": {"initial": "500ms", "factor": 1, "max": "500ms", "attempts": 100}}, "circuit": {"failures": 0}});
    stage.webhook("orders", "/switch/orders", "order.paid", patient);
    stage.pod.start().await;
    stage.until_routed(1).await;
    let ids = stage.publish(9, "order.paid").await;
    stage.pod.terminate();
    let database = rusqlite::Connection::open(stage.pod.data.join("store.db")).unwrap();
    let damaged = "UPDATE event SET body = zeroblob(length(body)) WHERE seq = (SELECT min(seq) + 4 FROM event)";
    assert_eq!(database.execute(damaged, []).unwrap(), 1);
    drop(database);
    stage.receiver.set_up("orders", true);
    stage.pod.start().await;
    until("eight are delivered", WAIT, async || stage.receiver.ids("/switch/orders").len() == 8).await;
    until("a card", WAIT, async || !stage.api.list("deadletters").is_empty()).await;
    let cards = stage.api.list("deadletters");
    assert_eq!((cards.len(), &cards[0]["spec"]["reason"]), (1, &json!("Corrupt")), "{cards:?}");
    assert!(stage.receiver.ids("/switch/orders").is_subset(&ids));
}

/// With a disk that does something to every sync.
fn with_syncs(stage: &mut Stage, inject: &str) {
    if std::process::Command::new("strace").arg("-V").output().is_err() {
        panic!("strace is missing: install the Debian package strace");
    }
    let inject = format!("inject=fsync,fdatasync:{inject}");
    let wrapper = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e", &inject];
    stage.pod.wrapper = wrapper.map(str::to_owned).to_vec();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn syncs_that_take_long_make_publishers_wait_and_nothing_else() {
    const DELAY: Duration = Duration::from_millis(200);
    let mut stage = Stage::set().await;
    stage.webhook("orders", "/ok/orders", "order.paid", json!(null));
    with_syncs(&mut stage, &format!("delay_enter={}", DELAY.as_micros()));
    stage.pod.start().await;
    stage.until_routed(1).await;
    let outcome = Arc::new(Outcome::default());
    let tasks = publish(stage.plan(), Pace::Closed, stage.start, Arc::clone(&outcome));
    tokio::time::sleep(Duration::from_secs(scaled(4, 60))).await;
    outcome.stop();
    tasks.join_all().await;
    assert_eq!(*outcome.refused.lock().unwrap(), [].into());
    let latencies = outcome.take_latencies();
    let median = Duration::from_micros(latencies[latencies.len() / 2].into());
    assert!(median >= DELAY, "{median:?}: the disk was not slow");
    assert!(median < DELAY * 10, "{median:?}");
    let ids = outcome.ids().into_iter().collect();
    stage.until_delivered("/ok/orders", &ids).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_find_the_disk_full_are_refused_and_end_nothing() {
    let mut stage = Stage::set().await;
    stage.webhook("orders", "/ok/orders", "order.paid", json!(null));
    // SQLite writes pages so, and nothing else in a pod does.
    let inject = "inject=pwrite64:error=ENOSPC:when=600..640";
    let wrapper = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=pwrite64", "-e", inject];
    stage.pod.wrapper = wrapper.map(str::to_owned).to_vec();
    stage.pod.start().await;
    stage.until_routed(1).await;
    let outcome = Arc::new(Outcome::default());
    let tasks = publish(stage.plan(), Pace::PerSecond(100.0), stage.start, Arc::clone(&outcome));
    until("some are refused", WAIT, async || !outcome.refused.lock().unwrap().is_empty()).await;
    let before = outcome.accepted();
    until("others are taken again", WAIT, async || outcome.accepted() > before + 100).await;
    outcome.stop();
    tasks.join_all().await;
    let refused: Vec<u16> = outcome.refused.lock().unwrap().keys().copied().collect();
    assert_eq!(refused, [507], "nothing of these was stored, and they are told so");
    let ids = outcome.ids().into_iter().collect();
    stage.until_delivered("/ok/orders", &ids).await;
    assert!(stage.pod.is_ready().await, "{}", stage.pod.log_tail());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_fails_ends_the_pod_and_what_it_acknowledged_is_there_after_the_restart() {
    let mut stage = Stage::set().await;
    stage.webhook("orders", "/ok/orders", "order.paid", json!(null));
    // The store's start needs some syncs; one of those under load fails.
    with_syncs(&mut stage, "error=EIO:when=60+");
    stage.pod.start().await;
    stage.until_routed(1).await;
    let outcome = Arc::new(Outcome::default());
    let tasks = publish(stage.plan(), Pace::Closed, stage.start, Arc::clone(&outcome));
    let code = stage.pod.until_ended(WAIT).await;
    assert!(code.is_some_and(|code| code != 0), "{code:?}");
    stage.pod.wrapper.clear();
    stage.pod.start().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    outcome.stop();
    tasks.join_all().await;
    let ids = outcome.ids().into_iter().collect();
    stage.until_delivered("/ok/orders", &ids).await;
}
