//! A Subscription tells whether its Webhook exists, is verified, and whether
//! the delivery pods have it.

use futures::{StreamExt, stream};
use posthorn::api::{ConditionType, Subscription, Webhook, condition};

use crate::{
    pods::IndexReader,
    support::{Scope, in_namespace},
};

/// How often an object is applied, awaited and looked up in the pod's index.
const ROUNDS: u32 = 50;
/// How many of them at once.
const PARALLEL: usize = 5;

fn is(subscription: &Subscription, type_: ConditionType) -> bool {
    let status = subscription.status.as_ref();
    status.is_some_and(|s| {
        s.observed_generation == subscription.metadata.generation && condition::is_true(&s.conditions, type_)
    })
}

fn reason(subscription: &Subscription, type_: ConditionType) -> String {
    let conditions = subscription.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    condition::find(conditions, type_).map(|c| c.reason.clone()).unwrap_or_default()
}

fn pair(name: &str, path: &str) -> String {
    format!(
        r#"
apiVersion: posthorn.dev/v1alpha1
kind: Webhook
metadata: {{name: {name}}}
spec: {{serviceRef: {{name: inbox, port: 80, path: {path}}}}}
---
apiVersion: posthorn.dev/v1alpha1
kind: Subscription
metadata: {{name: {name}}}
spec: {{webhookRef: {{name: {name}}}, events: [order.paid, 'refund.*']}}
"#
    )
}

#[test]
fn a_subscription_follows_its_webhook() {
    in_namespace("sub", |scope| async move {
        scope.start_inbox(&[]).await;
        scope.apply("{apiVersion: posthorn.dev/v1alpha1, kind: Subscription, metadata: {name: early}, spec: {webhookRef: {name: hook}, events: ['*']}}").await;
        let early = scope
            .wait("early", "without Webhook", |s: &Subscription| reason(s, ConditionType::Ready) == "WebhookNotFound")
            .await;
        assert!(!is(&early, ConditionType::WebhookFound));
        scope.apply("{apiVersion: posthorn.dev/v1alpha1, kind: Webhook, metadata: {name: hook}, spec: {serviceRef: {name: inbox, port: 80, path: /wrong}}}").await;
        let waiting = scope
            .wait("early", "waiting for verification", |s: &Subscription| {
                reason(s, ConditionType::Ready) == "WebhookNotVerified"
            })
            .await;
        assert!(is(&waiting, ConditionType::WebhookFound) && !is(&waiting, ConditionType::WebhookVerified));
        scope.apply("{apiVersion: posthorn.dev/v1alpha1, kind: Webhook, metadata: {name: hook}, spec: {serviceRef: {name: inbox, port: 80}}}").await;
        let ready = scope.wait("early", "Ready", |s: &Subscription| is(s, ConditionType::Ready)).await;
        for holds in [
            ConditionType::Accepted,
            ConditionType::WebhookFound,
            ConditionType::WebhookVerified,
            ConditionType::Programmed,
        ] {
            assert!(is(&ready, holds), "{holds:?}");
        }
        scope.api::<Webhook>().delete("hook", &Default::default()).await.unwrap();
        scope
            .wait("early", "without Webhook again", |s: &Subscription| {
                reason(s, ConditionType::Ready) == "WebhookNotFound"
            })
            .await;
    });
}

async fn round(scope: &Scope, index: &IndexReader, number: u32) {
    let name = format!("pair-{number}");
    scope.apply(&pair(&name, "/")).await;
    let webhook = scope.ready(&name).await;
    let subscription = scope.wait(&name, "Ready", |s: &Subscription| is(s, ConditionType::Ready)).await;
    let held = index.generations(&scope.namespace, &name).await;
    assert_eq!(
        held,
        (webhook.metadata.generation, subscription.metadata.generation),
        "{name}: Ready, but the index lacks it"
    );
}

#[test]
fn whoever_waits_for_ready_finds_the_object_in_the_index() {
    in_namespace("ready", |scope| async move {
        scope.start_inbox(&[]).await;
        let index = IndexReader::new(&scope.client).await;
        let rounds = std::env::var("POSTHORN_READY_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(ROUNDS);
        stream::iter(0..rounds).for_each_concurrent(PARALLEL, |number| round(&scope, &index, number)).await;
    });
}
