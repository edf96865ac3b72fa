//! Nothing goes to an endpoint that was not verified as it stands.

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use posthorn::runtime::clock;
use serde_json::json;

use crate::{
    rig::{
        objects::{self, NAMESPACE, VerifiedWebhook},
        publisher::{Outcome, Pace, publish},
    },
    stage::{Stage, WAIT, until},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_edit_in_a_burst_nothing_reaches_the_new_url_before_it_is_verified() {
    let mut stage = Stage::set().await;
    stage.webhook("orders", "/ok/old", "order.paid", json!(null));
    stage.pod.start().await;
    stage.until_routed(1).await;
    let outcome = Arc::new(Outcome::default());
    let tasks = publish(stage.plan(), Pace::PerSecond(500.0), stage.start, Arc::clone(&outcome));
    until("events flow", WAIT, async || stage.receiver.requests_to("/ok/old") > 100).await;
    let mut edited = stage.api.get("webhooks", NAMESPACE, "orders").unwrap();
    let new = stage.receiver.url("/ok/new");
    edited["spec"]["url"] = json!(new);
    edited["metadata"]["generation"] = json!(null);
    stage.api.apply("webhooks", edited.clone());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(stage.receiver.requests_to("/ok/new"), 0, "the new URL was called before it was verified");
    edited["status"] =
        json!({"observedGeneration": 2, "verification": objects::verification("uid-orders", &new, clock::now())});
    stage.api.apply("webhooks", edited);
    until("the new URL gets events", WAIT, async || stage.receiver.requests_to("/ok/new") > 0).await;
    outcome.stop();
    tasks.join_all().await;
    // Nothing was dropped meanwhile: each went to the old URL or to the new one.
    let both = async || {
        let mut both = stage.receiver.ids("/ok/old");
        both.extend(stage.receiver.ids("/ok/new"));
        outcome.ids().iter().all(|id| both.contains(id))
    };
    until("every acknowledged event was delivered to the old or the new URL", WAIT, both).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_or_replayed_status_is_worth_nothing() {
    let mut stage = Stage::set().await;
    // `other` is rightly verified; its status is copied to `thief`, and made up for `forger`.
    stage.webhook("other", "/ok/other", "order.paid", json!(null));
    let other = stage.api.get("webhooks", NAMESPACE, "other").unwrap();
    for (name, path) in [("thief", "/ok/thief"), ("forger", "/ok/forger")] {
        let url = stage.receiver.url(path);
        let webhook = VerifiedWebhook { namespace: NAMESPACE, name, url: &url, delivery: json!(null) };
        let mut webhook = webhook.unverified(&format!("uid-{name}"));
        webhook["status"] = other["status"].clone();
        if name == "forger" {
            webhook["status"]["verification"]["fingerprint"] = json!("v1.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
        }
        stage.api.apply("webhooks", webhook);
        stage.api.apply("subscriptions", objects::subscription(NAMESPACE, name, name, &["order.paid"]));
    }
    stage.pod.start().await;
    stage.until_routed(1).await;
    let ids = stage.publish(20, "order.paid").await;
    stage.until_delivered("/ok/other", &ids).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(stage.receiver.requests_to("/ok/thief"), 0);
    assert_eq!(stage.receiver.requests_to("/ok/forger"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_said_410_gets_nothing_more_until_it_is_verified_anew() {
    let mut stage = Stage::set().await;
    stage.webhook("orders", "/status/410", "order.paid", json!(null));
    stage.pod.start().await;
    stage.until_routed(1).await;
    stage.publish(1, "order.paid").await;
    until("the endpoint was asked", WAIT, async || stage.receiver.requests_to("/status/410") == 1).await;
    stage.publish(10, "order.paid").await;
    // The withdrawal outlives the process, and the old verification with it.
    stage.pod.kill();
    stage.pod.start().await;
    stage.until_routed(1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(stage.receiver.requests_to("/status/410"), 1);
    let mut webhook = stage.api.get("webhooks", NAMESPACE, "orders").unwrap();
    let url = webhook["spec"]["url"].as_str().unwrap().to_owned();
    let later = Timestamp::from_second(clock::now().as_second() + 1).unwrap();
    webhook["status"]["verification"] = objects::verification("uid-orders", &url, later);
    stage.api.apply("webhooks", webhook);
    until("a new verification opens the way", WAIT, async || stage.receiver.requests_to("/status/410") == 2).await;
}
