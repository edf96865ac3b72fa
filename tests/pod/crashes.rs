//! kill -9 under load.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use crate::{
    rig::publisher::{Outcome, Pace, publish},
    stage::{Stage, WAIT, scaled, until},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_again_and_again_under_load_the_pod_loses_nothing_that_it_acknowledged() {
    let mut stage = Stage::set().await;
    stage.webhook("orders", "/ok/orders", "order.paid", json!({"retry": {"schedule": ["100ms", "200ms", "1s", "1s"]}}));
    stage.pod.start().await;
    stage.until_routed(1).await;
    let outcome = Arc::new(Outcome::default());
    let tasks = publish(stage.plan(), Pace::Closed, stage.start, Arc::clone(&outcome));
    let mut slowest = Duration::ZERO;
    for cycle in 0..scaled(20, 200) {
        let acknowledged = outcome.accepted();
        // At another moment of the pod's work each time.
        tokio::time::sleep(Duration::from_millis(50 + (cycle * 37) % 450)).await;
        until("the pod takes events", WAIT, async || outcome.accepted() > acknowledged).await;
        stage.pod.kill();
        slowest = slowest.max(stage.pod.start().await);
    }
    outcome.stop();
    tasks.join_all().await;
    let ids = outcome.ids().into_iter().collect();
    stage.until_delivered("/ok/orders", &ids).await;
    let received = stage.receiver.requests_to("/ok/orders");
    println!("{} acknowledged, {received} requests, slowest start {slowest:?}", ids.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_between_commit_and_fan_out_the_pod_still_delivers_to_everyone() {
    const WEBHOOKS: usize = 300;
    let mut stage = Stage::set().await;
    for n in 0..WEBHOOKS {
        stage.webhook(&format!("fan-{n}"), &format!("/ok/{n}"), "everyone", json!(null));
    }
    stage.pod.start().await;
    stage.until_routed(WEBHOOKS as u64).await;
    let mut all = std::collections::HashSet::new();
    for _ in 0..scaled(5, 50) {
        all.extend(stage.publish(3, "everyone").await);
        stage.pod.kill();
        stage.pod.start().await;
    }
    for n in 0..WEBHOOKS {
        stage.until_delivered(&format!("/ok/{n}"), &all).await;
    }
}
