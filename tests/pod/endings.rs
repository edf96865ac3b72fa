//! Deliveries that end otherwise than by an answer of the endpoint: events that
//! have no form for it, Webhooks that stay deleted, namespaces that move.

use std::time::Duration;

use posthorn::{runtime::clock, store::GONE_KEEP};
use serde_json::{Value, json};

use crate::{
    rig::{
        objects::{self, NAMESPACE, VerifiedWebhook},
        pod,
    },
    stage::{Stage, WAIT, number_of, until},
};

/// Never up by itself, tried every 300 ms.
fn patient() -> Value {
    json!({"retry": {"backoff": {"initial": "300ms", "factor": 1, "max": "300ms", "attempts": 100}}, "circuit": {"failures": 0}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_has_no_form_in_a_dialect_dies_there_and_holds_nothing_up() {
    let mut stage = Stage::set().await;
    // One at a time, so that what cannot be sent stands before what can.
    for (name, dialect) in [("strict", "Impira"), ("lenient", "StandardWebhooks")] {
        let url = stage.receiver.url(&format!("/ok/{name}"));
        let webhook = VerifiedWebhook { namespace: NAMESPACE, name, url: &url, delivery: json!({"concurrency": 1}) };
        let mut webhook = webhook.build(&format!("uid-{name}"));
        webhook["spec"]["dialect"] = json!(dialect);
        stage.api.apply("webhooks", webhook);
        stage.api.apply("subscriptions", objects::subscription(NAMESPACE, name, name, &["order.paid"]));
    }
    stage.pod.start().await;
    stage.until_routed(2).await;
    let text = post_text(&stage, "no JSON").await;
    let ids = stage.publish(5, "order.paid").await;
    // Its requests bear no id in a header; the text would be one more.
    until("the others are delivered", WAIT, async || stage.receiver.requests_to("/ok/strict") >= 5).await;
    stage.until_delivered("/ok/lenient", &ids.iter().chain([&text]).cloned().collect()).await;
    until("a card", WAIT, async || !stage.api.list("deadletters").is_empty()).await;
    let cards = stage.api.list("deadletters");
    assert_eq!(cards.len(), 1, "{cards:?}");
    let spec = &cards[0]["spec"];
    assert_eq!((&spec["reason"], &spec["event"]["id"]), (&json!("Unrenderable"), &json!(text)), "{spec}");
    assert_eq!(spec["webhookRef"]["name"], "strict", "{spec}");
    assert_eq!(stage.receiver.requests_to("/ok/strict"), 5);
    assert_eq!(stage.pod.metric("posthorn_deliveries_dead_total").await, 1.0);
}

/// Publishes a CloudEvent that is text; its id.
async fn post_text(stage: &Stage, text: &'static str) -> String {
    let url = format!("http://127.0.0.1:{}/v1/namespaces/{NAMESPACE}/events", stage.pod.ingest);
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-id", "text"),
        ("ce-source", "/shop"),
        ("ce-type", "order.paid"),
        ("content-type", "text/plain"),
    ];
    let mut request = pod::client().post(url).bearer_auth(objects::token("publisher")).body(text);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 202);
    let answer: Value = answer.json().await.unwrap();
    answer["events"][0]["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_backlog_of_a_webhook_that_stays_deleted_is_discarded_and_a_later_namesake_gets_nothing_of_it() {
    let mut stage = Stage::set().await;
    stage.webhook("orders", "/switch/orders", "order.paid", patient());
    stage.pod.start().await;
    stage.until_routed(1).await;
    let old = stage.publish(30, "order.paid").await;
    for plural in ["webhooks", "subscriptions"] {
        stage.api.delete(plural, NAMESPACE, "orders");
    }
    until("the pod sees the deletion", WAIT, async || stage.pod.metric("posthorn_routed_subscriptions").await == 0.0)
        .await;
    stage.pod.terminate();
    // A day goes by.
    let database = rusqlite::Connection::open(stage.pod.data.join("store.db")).unwrap();
    let kept_ms = i64::try_from(GONE_KEEP.as_millis()).unwrap();
    assert_eq!(database.execute("UPDATE hook SET gone_at = gone_at - ?1", [kept_ms]).unwrap(), 1);
    drop(database);
    stage.pod.start().await;
    stage.until_discarded(30).await;

    stage.receiver.set_up("orders", true);
    let url = stage.receiver.url("/switch/orders");
    let anew = VerifiedWebhook { namespace: NAMESPACE, name: "orders", url: &url, delivery: patient() };
    let mut webhook = anew.unverified("uid-orders-anew");
    let verification = objects::verification("uid-orders-anew", &url, clock::now());
    webhook["status"] = json!({"observedGeneration": 1, "verification": verification});
    stage.api.apply("webhooks", webhook);
    stage.api.apply("subscriptions", objects::subscription(NAMESPACE, "orders", "orders", &["order.paid"]));
    stage.until_routed(1).await;
    let new = stage.publish(20, "order.paid").await;
    stage.until_delivered("/switch/orders", &new).await;
    assert_eq!(stage.receiver.ids("/switch/orders").intersection(&old).count(), 0, "it got what was discarded");
    stage.pod.terminate();
    let table = stage.verify_store();
    assert_eq!(number_of(&table, "discarded: WebhookDeleted"), 30, "{table}");
    assert_eq!(number_of(&table, "owed"), 0, "{table}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_moves_to_another_pool_gets_what_it_is_owed_from_the_old_one_and_publishes_elsewhere() {
    let mut stage = Stage::set().await;
    stage.webhook("orders", "/switch/orders", "order.paid", patient());
    stage.pod.start().await;
    stage.until_routed(1).await;
    let ids = stage.publish(50, "order.paid").await;
    let mut namespace = stage.api.get("namespaces", "", NAMESPACE).unwrap();
    namespace["metadata"]["labels"] = json!({"posthorn.dev/pool": "other"});
    stage.api.apply("namespaces", namespace);
    until("the pod is not responsible any more", WAIT, async || stage.post(NAMESPACE, "order.paid").await.0 == 421)
        .await;
    // Those that the pod took while it had not seen the label are owed as well.
    let taken = stage.pod.metric("posthorn_deliveries_routed_total").await as usize;
    // A restart changes neither.
    stage.pod.kill();
    stage.pod.start().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(stage.post(NAMESPACE, "order.paid").await.0, 421);
    stage.receiver.set_up("orders", true);
    stage.until_delivered("/switch/orders", &ids).await;
    until("all that it took", WAIT, async || stage.receiver.ids("/switch/orders").len() == taken).await;
    assert_eq!(stage.pod.metric("posthorn_deliveries_discarded_total").await, 0.0);
    stage.pod.terminate();
    let table = stage.verify_store();
    assert_eq!((number_of(&table, "owed"), number_of(&table, "delivered") as usize), (0, taken), "{table}");
}
