//! The API server is away.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use posthorn::access::AWAY_PATIENCE;
use serde_json::json;

use crate::{
    rig::{
        objects::NAMESPACE,
        publisher::{Outcome, Pace, publish},
    },
    stage::{Stage, WAIT, scaled, until},
};

/// Who tells of an outage, once: six watches, the reviews of tokens and of rights,
/// the reader of Secrets.
const TELLERS: usize = 9;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_api_server_is_away_known_publishers_publish_and_events_are_delivered() {
    let mut stage = Stage::set().await;
    stage.webhook("orders", "/ok/orders", "order.paid", json!(null));
    stage.pod.start().await;
    stage.until_routed(1).await;
    // Known is who has been seen with this token; the next second's is another one.
    let plan = stage.plan();
    let before = stage.publish_plan(plan.clone(), 50).await;
    stage.until_delivered("/ok/orders", &before).await;
    stage.api.set_away(true);
    let outcome = Arc::new(Outcome::default());
    let tasks = publish(plan, Pace::PerSecond(100.0), stage.start, Arc::clone(&outcome));
    tokio::time::sleep(Duration::from_secs(scaled(5, 280))).await;
    outcome.stop();
    tasks.join_all().await;
    assert_eq!(*outcome.refused.lock().unwrap(), [].into(), "known callers were refused");
    // Who is not known is told at once to come again, not after a review's time.
    let began = Instant::now();
    let (code, headers) = stage.post_as("stranger", NAMESPACE, "order.paid").await;
    assert_eq!(code, 503);
    assert!(headers.contains_key("retry-after"), "{headers:?}");
    assert!(began.elapsed() < AWAY_PATIENCE + Duration::from_secs(1), "{:?}", began.elapsed());
    let ids = outcome.ids().into_iter().collect();
    stage.until_delivered("/ok/orders", &ids).await;
    // Told once a kind, by who knows what was asked for.
    let log = stage.pod.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
    assert!(told.len() <= TELLERS, "{} lines of one outage:\n{}", told.len(), told.join("\n"));
    assert!(told.iter().all(|line| !line.contains("kube_client")), "{}", told.join("\n"));
    stage.api.set_away(false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_restarts_while_the_api_server_is_away_delivers_what_it_owes() {
    let mut stage = Stage::set().await;
    stage.webhook("orders", "/switch/orders", "order.paid", json!({"retry": {"schedule": ["500ms", "500ms", "500ms", "500ms", "1s", "1s", "2s", "2s", "5s", "5s"]}, "circuit": {"failures": 0}}));
    stage.pod.start().await;
    stage.until_routed(1).await;
    let ids = stage.publish(50, "order.paid").await;
    // The key must have been seen once: the run folder keeps it.
    until("an attempt was made", WAIT, async || stage.receiver.requests_to("/switch/orders") > 0).await;
    stage.api.set_away(true);
    stage.pod.kill();
    stage.receiver.set_up("orders", true);
    stage.pod.spawn();
    stage.until_delivered("/switch/orders", &ids).await;
    stage.pod.until_ready().await;
    // Who publishes cannot be asked for, which is no refusal.
    let (code, headers) = stage.post(NAMESPACE, "order.paid").await;
    assert_eq!(code, 503);
    assert!(headers.contains_key("retry-after"));
    stage.api.set_away(false);
    let later = stage.publish(20, "order.paid").await;
    stage.until_delivered("/switch/orders", &later).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_namespaces_are_not_listed_publishers_are_asked_to_come_again() {
    let mut stage = Stage::set().await;
    stage.webhook("orders", "/ok/orders", "order.paid", json!(null));
    stage.api.set_list_away("namespaces", true);
    stage.pod.spawn();
    for namespace in [NAMESPACE, "no-such"] {
        let (code, headers) = stage.post(namespace, "order.paid").await;
        assert_eq!(code, 503, "{namespace}");
        assert!(headers.contains_key("retry-after"), "{namespace}");
    }
    assert!(!stage.pod.is_ready().await);
    stage.api.set_list_away("namespaces", false);
    stage.pod.until_ready().await;
    let ids = stage.publish(20, "order.paid").await;
    stage.until_delivered("/ok/orders", &ids).await;
    assert_eq!(stage.post("no-such", "order.paid").await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_while_the_pod_lists_for_the_first_time_is_not_missed() {
    for _ in 0..scaled(5, 50) {
        let mut stage = Stage::set().await;
        for n in 0..200 {
            stage.webhook(&format!("other-{n}"), "/ok/other", &format!("other.{n}"), json!(null));
        }
        stage.webhook("orders", "/ok/orders", "order.paid", json!(null));
        stage.pod.spawn();
        // Retried until the pod takes it: the first moment at which it does.
        let ids: HashSet<String> = stage.publish(5, "order.paid").await;
        stage.until_delivered("/ok/orders", &ids).await;
    }
}
