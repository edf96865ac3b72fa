//! The API server away, slow to agree, or cutting watches: Posthorn converges,
//! and nothing restarts.

use std::time::Duration;

use kube::Api;
use posthorn::api::{ConditionType, Webhook};
use serde_json::json;

use crate::{
    control_plane::{ControlPlane, Posthorn},
    faulty_proxy::FaultyProxy,
    support::{Scope, is_true},
};

/// How long the API server stays away.
const OUTAGE: Duration = Duration::from_secs(60);
/// Webhooks that must become Ready through the faulty proxy.
const THROUGH_FAULTS: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_away_for_a_minute_changes_nothing() {
    let plane = ControlPlane::up("outage").await;
    let mut posthorn = Posthorn::start(&plane, &plane.kubeconfig).await;
    let scope = plane.tenant().await;
    scope.apply(&posthorn.pair("before", "/")).await;
    let before = scope.ready("before").await;

    plane.component("stop-component", "kube-apiserver").await;
    tokio::time::sleep(OUTAGE).await;
    assert!(posthorn.is_running(), "nothing may end while the API server is away");
    plane.component("start-component", "kube-apiserver").await;

    let scope = Scope { client: plane.client().await, namespace: scope.namespace };
    scope.apply(&posthorn.pair("after", "/")).await;
    scope.wait_for("after", "Ready", Duration::from_secs(90), |w: &Webhook| is_true(w, ConditionType::Ready)).await;
    let kept = scope.ready("before").await;
    assert_eq!(kept.status.unwrap().verification, before.status.unwrap().verification, "verified once is enough");
    assert!(posthorn.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_watches_conflicts_and_throttling_only_delay() {
    let plane = ControlPlane::up("faulty").await;
    let proxy = FaultyProxy::start(&plane).await;
    let mut posthorn = Posthorn::start(&plane, &proxy.kubeconfig).await;
    let scope = plane.tenant().await;
    for number in 0..THROUGH_FAULTS {
        scope.apply(&posthorn.pair(&format!("hook-{number}"), "/")).await;
    }
    for number in 0..THROUGH_FAULTS {
        let name = format!("hook-{number}");
        scope.wait_for(&name, "Ready", Duration::from_secs(120), |w: &Webhook| is_true(w, ConditionType::Ready)).await;
    }
    assert!(proxy.faults() > THROUGH_FAULTS, "the proxy made only {} faults", proxy.faults());
    assert!(posthorn.is_running(), "nothing may restart");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_cannot_be_parsed_does_not_stop_the_others() {
    let plane = ControlPlane::up("parse").await;
    let mut posthorn = Posthorn::start(&plane, &plane.kubeconfig).await;
    let scope = plane.tenant().await;
    loosen_schema(&scope).await;
    let broken = json!({
        "apiVersion": "posthorn.dev/v1alpha1", "kind": "Webhook", "metadata": {"name": "broken"},
        "spec": {"url": 17, "verification": "whatever"}
    });
    scope.apply_one(broken).await.unwrap();
    scope.apply(&posthorn.pair("good", "/")).await;
    scope.ready("good").await;
    assert!(posthorn.is_running());
}

/// An older or foreign CRD that lets everything through.
async fn loosen_schema(scope: &Scope) {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
    use kube::api::{Patch, PatchParams};
    let crds: Api<CustomResourceDefinition> = Api::all(scope.client.clone());
    let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let patch = json!([{
        "op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema",
        "value": {"type": "object", "properties": {"spec": anything, "status": anything}}
    }, {"op": "remove", "path": "/spec/versions/0/selectableFields"}]);
    let patch: json_patch::Patch = serde_json::from_value(patch).unwrap();
    crds.patch("webhooks.posthorn.dev", &PatchParams::default(), &Patch::Json::<()>(patch)).await.unwrap();
    // The API server takes a moment to serve the new schema.
    for _ in 0..100 {
        let probe = json!({"apiVersion": "posthorn.dev/v1alpha1", "kind": "Webhook", "metadata": {"name": "probe"}, "spec": {"url": 1}});
        if scope.apply_one(probe).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("the API server still holds the schema");
}
