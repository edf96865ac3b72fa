//! Events, from the publisher's token to the receiver, through what the chart
//! installed.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use kube_runtime::wait::await_condition;
use posthorn::{
    api::{ConditionType, Subscription, Webhook, condition},
    inbox::journal::Record,
};
use serde_json::{Value, json};

use crate::{
    pods::{token, token_of},
    publisher::{AUDIENCE, Publisher, grant, ingest_url, service_url},
    support::{Scope, WAIT, in_namespace, in_namespace_within, is_true},
};

/// How often a Webhook is applied, awaited and published to; and in `make faults`.
const ROUNDS: u32 = 50;
const ROUNDS_FULL: u32 = 500;
/// How many of them at once.
const PARALLEL: usize = 10;
/// Rounds whose deliveries are looked for together: the receiver remembers 1,000 requests.
const BATCH: u32 = 50;
/// How long a batch may take.
const BATCH_LIMIT: Duration = Duration::from_secs(180);
/// Time between two looks at what the receiver got.
const POLL: Duration = Duration::from_millis(200);

/// The requests that the receiver of the test's namespace remembers.
pub async fn requests(scope: &Scope) -> Vec<Record> {
    let url = service_url(&scope.client, &scope.namespace, "inbox").await;
    reqwest::get(format!("{url}/requests")).await.unwrap().json().await.unwrap()
}

/// The id of the event that a request brought; none for a challenge.
fn event_id(record: &Record) -> Option<&str> {
    let id = record.headers.iter().find(|(name, _)| name == "webhook-id")?;
    Some(id.1.as_str()).filter(|id| id.starts_with("evt_"))
}

/// Waits until the receiver got these events at the paths.
pub async fn received(scope: &Scope, wanted: &BTreeSet<(String, String)>) {
    let start = Instant::now();
    loop {
        let seen = requests(scope).await;
        let seen: BTreeSet<_> = seen.iter().filter_map(|r| Some((r.path.clone(), event_id(r)?.to_owned()))).collect();
        let missing: Vec<_> = wanted.difference(&seen).collect();
        if missing.is_empty() {
            return;
        }
        assert!(start.elapsed() < WAIT, "not delivered within {WAIT:?}: {missing:?}");
        tokio::time::sleep(POLL).await;
    }
}

fn pair(name: &str) -> String {
    format!(
        r"
apiVersion: posthorn.dev/v1alpha1
kind: Webhook
metadata: {{name: {name}}}
spec: {{serviceRef: {{name: inbox, port: 80, path: /{name}}}}}
---
apiVersion: posthorn.dev/v1alpha1
kind: Subscription
metadata: {{name: {name}}}
spec: {{webhookRef: {{name: {name}}}, events: [{name}]}}
"
    )
}

/// Applies, waits by a watch as `kubectl wait` does, publishes at once. Every
/// second time for the Webhook alone: its Subscription then may come to the pod
/// after the event.
async fn round(scope: &Scope, publisher: &Publisher, number: u32) -> (String, String) {
    let name = format!("once-{number}");
    scope.apply(&pair(&name)).await;
    let is_ready = |webhook: Option<&Webhook>| webhook.is_some_and(|w| is_true(w, ConditionType::Ready));
    await_condition(scope.api::<Webhook>(), &name, is_ready).await.unwrap();
    if number.is_multiple_of(2) {
        let is_ready = |subscription: Option<&Subscription>| {
            subscription
                .and_then(|s| s.status.as_ref())
                .is_some_and(|s| condition::is_true(&s.conditions, ConditionType::Ready))
        };
        await_condition(scope.api::<Subscription>(), &name, is_ready).await.unwrap();
    }
    let id = publisher.accepted(&scope.namespace, &name, json!({"round": number})).await;
    (format!("/{name}"), id)
}

#[test]
fn apply_wait_for_ready_publish_at_once_and_no_event_is_missed() {
    let rounds = if std::env::var("POSTHORN_FAULTS").is_ok_and(|f| f == "full") { ROUNDS_FULL } else { ROUNDS };
    in_namespace_within(BATCH_LIMIT * (rounds / BATCH), "once", move |scope| async move {
        scope.start_inbox(&[]).await;
        let publisher = Publisher::new(&scope).await;
        for first in (0..rounds).step_by(usize::try_from(BATCH).unwrap()) {
            let batch = stream::iter(first..first + BATCH).map(|number| round(&scope, &publisher, number));
            let published = batch.buffer_unordered(PARALLEL).collect().await;
            received(&scope, &published).await;
        }
    });
}

#[test]
fn publishing_takes_a_token_for_posthorn_and_the_right_in_that_namespace() {
    in_namespace("publish", |scope| async move {
        let url = ingest_url(&scope.client).await;
        let paid = json!({"type": "order.paid", "data": {"order": 17}});
        let stranger = Publisher::of(&scope, "stranger", &url).await;
        let (status, problem) = stranger.publish(&scope.namespace, &paid).await;
        assert_eq!(status, 403, "{problem}");
        assert_eq!(problem["errors"][0]["pointer"], "/type", "the problem names the type: {problem}");

        let publisher = Publisher::new(&scope).await;
        publisher.accepted(&scope.namespace, "order.paid", json!({})).await;
        let elsewhere = publisher.publish("default", &paid).await;
        assert_eq!(elsewhere.0, 403, "a right counts where it was given: {}", elsewhere.1);
        let pod = token(&scope.client, "posthorn-delivery", AUDIENCE).await;
        let foreign = Publisher::with_token(&url, &pod).publish(&scope.namespace, &paid).await;
        assert_eq!(foreign.0, 403, "a ServiceAccount of another namespace: {}", foreign.1);
        let api = token_of(&scope.client, &scope.namespace, "publisher", "https://kubernetes.default.svc").await;
        for nobody in [api.as_str(), "nonsense"] {
            let (status, problem) = Publisher::with_token(&url, nobody).publish(&scope.namespace, &paid).await;
            assert_eq!(status, 401, "{problem}");
        }
        let (status, problem) = publisher.publish("no-such-namespace", &paid).await;
        assert!(matches!(status, 403 | 404), "{status} {problem}");
    });
}

#[test]
fn a_right_on_one_type_is_a_right_on_that_type_alone() {
    in_namespace("one-type", |scope| async move {
        let url = ingest_url(&scope.client).await;
        let shop = Publisher::of(&scope, "shop", &url).await;
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "orders"},
            "rules": [{
                "apiGroups": ["posthorn.dev"], "resources": ["eventtypes/events"],
                "verbs": ["create"], "resourceNames": ["order.paid"]
            }]
        });
        scope.apply_one(role).await.unwrap();
        grant(&scope, "shop", "Role", "orders").await;
        shop.until_allowed(&scope.namespace, "order.paid").await;
        let (status, problem) = shop.publish(&scope.namespace, &json!({"type": "order.lost", "data": {}})).await;
        assert_eq!(status, 403, "{problem}");
        let batch: Value = json!([{"type": "order.paid", "data": 1}, {"type": "order.lost", "data": 2}]);
        let (status, problem) = shop.publish(&scope.namespace, &batch).await;
        assert_eq!(status, 403, "{problem}");
        assert!(problem.to_string().contains("order.lost"), "it names the type: {problem}");
    });
}
