//! The watches bring into the index what the API server lists.

use std::sync::Arc;

use posthorn::{
    routing::{
        index::{Counts, Index, SharedIndex},
        watch::{PoolView, WatchErrors, Watches},
    },
    runtime::reachability::Reachability,
    wire::index_feed::FeedKind,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    fake_api::{self, Answer},
    index::content,
};

fn list(kind: &str, items: &Value) -> Answer {
    let (group, kind) = (if kind == "Namespace" { "v1" } else { "posthorn.dev/v1alpha1" }, format!("{kind}List"));
    Answer::Json(
        200,
        json!({ "apiVersion": group, "kind": kind, "metadata": { "resourceVersion": "7" }, "items": items }),
    )
}

fn object(kind: &str, namespace: Option<&str>, name: &str, spec: &Value) -> Value {
    let metadata = json!({
        "name": name, "namespace": namespace, "uid": format!("uid-{name}"), "generation": 1, "resourceVersion": "5",
        "managedFields": [{ "manager": "kubectl", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1" }],
    });
    json!({ "apiVersion": "posthorn.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec })
}

fn answer(path: &str) -> Answer {
    if path.contains("watch=true") {
        return Answer::Never;
    }
    assert!(path.contains("limit=500"), "{path}");
    match path.split('?').next().unwrap_or_default() {
        "/api/v1/namespaces" => list(
            "Namespace",
            &json!([
                { "metadata": { "name": "shop", "uid": "1" } },
                { "metadata": { "name": "bank", "uid": "2", "labels": { "posthorn.dev/pool": "vault" } } },
            ]),
        ),
        "/apis/posthorn.dev/v1alpha1/webhooks" => list(
            "Webhook",
            &json!([
                object("Webhook", Some("shop"), "good", &json!({ "url": "https://a.example/in" })),
                object("Webhook", Some("shop"), "bad", &json!({ "url": ["https://a.example/token"] })),
                object("Webhook", Some("bank"), "foreign", &json!({ "url": "https://b.example/in" })),
            ]),
        ),
        "/apis/posthorn.dev/v1alpha1/subscriptions" => list(
            "Subscription",
            &json!([
                object(
                    "Subscription",
                    Some("shop"),
                    "all",
                    &json!({ "webhookRef": { "name": "good" }, "events": ["*"] })
                ),
                object("Subscription", Some("shop"), "new", &json!({ "events": ["*"] })),
            ]),
        ),
        "/apis/posthorn.dev/v1alpha1/deliverypools" => {
            assert!(path.contains("fieldSelector=metadata.name%3Ddefault"), "{path}");
            list(
                "DeliveryPool",
                &json!([object("DeliveryPool", None, "default", &json!({ "egress": { "ports": [443] } }))]),
            )
        }
        other => panic!("nobody may ask for {other}"),
    }
}

fn start(answer: impl FnMut(&str) -> Answer + Send + 'static) -> (Arc<SharedIndex>, watch::Receiver<PoolView>) {
    let mut answer = answer;
    let index = Arc::new(SharedIndex::new(Index::new("default", "one")));
    let (sender, pool) = watch::channel(PoolView::default());
    let watches = Watches {
        client: fake_api::client(move |_, path, _| answer(path)),
        pool: "default".to_owned(),
        index: Arc::clone(&index),
        errors: WatchErrors::default(),
        api_server: Reachability::default(),
    };
    tokio::spawn(watches.run(sender));
    (index, pool)
}

#[tokio::test]
async fn an_object_that_does_not_parse_does_not_stop_the_others() {
    let (index, _pool) = start(answer);
    index.until_synced().await;
    let entries = index.read(content);
    let told: Vec<_> = entries.iter().map(|e| (e.kind, e.name.as_str(), e.error.is_some())).collect();
    assert_eq!(
        told,
        [
            (FeedKind::Webhook, "bad", true),
            (FeedKind::Webhook, "good", false),
            (FeedKind::Subscription, "all", false),
            (FeedKind::Subscription, "new", true),
        ]
    );
    assert!(entries.iter().all(|e| !e.error.as_deref().unwrap_or_default().contains("token")));
    assert_eq!(index.read(Index::counts), Counts { namespaces: 1, webhooks: 1, subscriptions: 1, refused: 2 });
}

#[tokio::test]
async fn the_pool_is_told_once_it_was_listed() {
    let (_index, mut pool) = start(answer);
    let view = pool.wait_for(|view| *view != PoolView::NotSeen).await.unwrap().clone();
    let PoolView::Spec(spec) = view else { panic!("{view:?}") };
    assert_eq!(spec.egress.as_ref().unwrap().ports, Some(vec![443]));
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_fails_is_asked_again_and_the_index_becomes_complete() {
    let mut failures = 8;
    let (index, mut pool) = start(move |path| {
        if failures > 0 {
            failures -= 1;
            return Answer::Json(
                503,
                json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 503 }),
            );
        }
        if path.contains("deliverypools") && !path.contains("watch=true") {
            return list("DeliveryPool", &json!([]));
        }
        answer(path)
    });
    index.until_synced().await;
    assert_eq!(*pool.wait_for(|view| *view != PoolView::NotSeen).await.unwrap(), PoolView::Missing);
}
