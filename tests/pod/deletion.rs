//! Webhooks, Subscriptions, namespaces and cards are deleted with a backlog.

use std::time::Duration;

use serde_json::json;

use crate::{
    rig::{
        objects::{self, NAMESPACE},
        publisher::Plan,
    },
    stage::{Stage, WAIT, number_of, until},
};

/// Never up by itself, tried every 300 ms.
fn patient() -> serde_json::Value {
    json!({"retry": {"backoff": {"initial": "300ms", "factor": 1, "max": "300ms", "attempts": 100}}, "circuit": {"failures": 0}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_made_anew_under_its_name_takes_up_its_backlog() {
    let mut stage = Stage::set().await;
    stage.webhook("orders", "/switch/orders", "order.paid", patient());
    stage.pod.start().await;
    stage.until_routed(1).await;
    let ids = stage.publish(50, "order.paid").await;
    stage.api.delete("webhooks", NAMESPACE, "orders");
    stage.api.delete("subscriptions", NAMESPACE, "orders");
    until("the pod sees the deletion", WAIT, async || stage.pod.metric("posthorn_routed_subscriptions").await == 0.0)
        .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let asked = stage.receiver.requests_to("/switch/orders");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(stage.receiver.requests_to("/switch/orders"), asked, "a Webhook that is gone was called");
    stage.receiver.set_up("orders", true);
    let url = stage.receiver.url("/switch/orders");
    let anew = objects::VerifiedWebhook { namespace: NAMESPACE, name: "orders", url: &url, delivery: patient() };
    stage.api.apply("webhooks", anew.build("uid-orders-anew"));
    stage.until_delivered("/switch/orders", &ids).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_made_anew_sees_nothing_of_its_predecessor() {
    let mut stage = Stage::set().await;
    stage.webhook("orders", "/switch/orders", "order.paid", patient());
    stage.pod.start().await;
    stage.until_routed(1).await;
    let old = stage.publish(50, "order.paid").await;
    for plural in ["webhooks", "subscriptions"] {
        stage.api.delete(plural, NAMESPACE, "orders");
    }
    stage.api.delete("namespaces", "", NAMESPACE);
    // The last attempt for the old Webhook has ended, too.
    until("the pod sees the deletion", WAIT, async || {
        stage.pod.metric("posthorn_routed_subscriptions").await == 0.0
            && stage.pod.metric("posthorn_dispatch_hooks").await == 0.0
    })
    .await;
    stage.receiver.set_up("orders", true);
    objects::tenant(&stage.api, NAMESPACE);
    let url = stage.receiver.url("/switch/orders");
    let anew = objects::VerifiedWebhook { namespace: NAMESPACE, name: "orders", url: &url, delivery: patient() };
    stage.api.apply("webhooks", anew.build("uid-orders-anew"));
    let mut subscription = objects::subscription(NAMESPACE, "orders", "orders", &["order.paid"]);
    subscription["spec"]["start"] = json!("Earliest");
    stage.api.apply("subscriptions", subscription);
    stage.until_routed(1).await;
    let new = stage.publish(20, "order.paid").await;
    stage.until_delivered("/switch/orders", &new).await;
    let delivered = stage.receiver.ids("/switch/orders");
    assert_eq!(delivered.intersection(&old).count(), 0, "events of the namespace that is gone were delivered");
    stage.until_discarded(50).await;
    stage.until_removed(50).await;
    stage.pod.terminate();
    let table = stage.verify_store();
    assert_eq!(number_of(&table, "discarded: NamespaceDeleted"), 50, "{table}");
    assert_eq!(number_of(&table, "Events"), 20, "{table}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_that_went_while_the_pod_was_away_are_discarded_with_their_reason() {
    let mut stage = Stage::set().await;
    // One has a backlog for a Webhook that is gone already, one nothing but events.
    stage.webhook("orders", "/switch/orders", "order.paid", patient());
    objects::tenant(&stage.api, "bare");
    stage.pod.start().await;
    stage.until_routed(1).await;
    stage.publish(30, "order.paid").await;
    stage.publish_plan(Plan { namespace: "bare".to_owned(), ..stage.plan() }, 20).await;
    for plural in ["webhooks", "subscriptions"] {
        stage.api.delete(plural, NAMESPACE, "orders");
    }
    until("the pod sees the deletion", WAIT, async || stage.pod.metric("posthorn_routed_subscriptions").await == 0.0)
        .await;
    stage.pod.kill();
    stage.api.delete("namespaces", "", NAMESPACE);
    stage.api.delete("namespaces", "", "bare");
    stage.pod.start().await;
    stage.until_discarded(30).await;
    stage.until_removed(50).await;
    assert_eq!(stage.post(NAMESPACE, "order.paid").await.0, 404);
    stage.pod.terminate();
    let table = stage.verify_store();
    assert_eq!(number_of(&table, "discarded: NamespaceDeleted"), 30, "{table}");
    assert_eq!((number_of(&table, "Events"), number_of(&table, "owed")), (0, 0), "{table}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cards_come_again_after_all_were_lost_and_stay_away_after_one_was_deleted() {
    let mut stage = Stage::set().await;
    let once = json!({"retry": {"schedule": ["100ms"]}, "circuit": {"failures": 0}});
    stage.webhook("orders", "/status/500", "order.paid", once);
    stage.pod.start().await;
    stage.until_routed(1).await;
    stage.publish(5, "order.paid").await;
    until("five cards", WAIT, async || stage.api.list("deadletters").len() == 5).await;
    let first = stage.api.list("deadletters")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    // Somebody deletes one while the pod looks on: that dismisses the Delivery.
    stage.api.delete("deadletters", NAMESPACE, &first);
    // The pod waits whether the whole kind goes before it takes a deletion as a word.
    tokio::time::sleep(posthorn::delivery::cards::DISMISS_DELAY + Duration::from_secs(3)).await;
    assert_eq!(stage.api.list("deadletters").len(), 4);
    // All vanish while it does not look, as with a CRD that is removed.
    stage.pod.kill();
    for card in stage.api.list("deadletters") {
        stage.api.delete("deadletters", NAMESPACE, card["metadata"]["name"].as_str().unwrap());
    }
    stage.pod.start().await;
    until("four cards again", WAIT, async || stage.api.list("deadletters").len() == 4).await;
    assert!(stage.api.get("deadletters", NAMESPACE, &first).is_none(), "a dismissed card came again");
}
