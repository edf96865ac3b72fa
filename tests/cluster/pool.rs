//! What a DeliveryPool becomes, and that it stays so.

use k8s_openapi::api::{
    apps::v1::StatefulSet, core::v1::Service, networking::v1::NetworkPolicy, policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams},
};
use posthorn::{
    api::{ConditionType, DeliveryPool, condition},
    wire::{COUNTERS_PATH, INTERNAL_AUDIENCE},
};
use serde_json::json;

use crate::{
    pods::{IndexReader, token},
    support::{RELEASE_NAMESPACE, Scope, in_namespace},
};

/// Waits in the release's namespace instead of the test's own.
fn release(client: &Client) -> Scope {
    Scope { client: client.clone(), namespace: RELEASE_NAMESPACE.to_owned() }
}

#[test]
fn what_is_changed_by_hand_is_put_back() {
    in_namespace("pool", |scope| async move {
        let release = release(&scope.client);
        let merge = PatchParams::default();
        let services = release.api::<Service>();
        let patch = json!({"spec": {"selector": {"posthorn.dev/pool": "other"}}});
        services.patch("posthorn-default", &merge, &Patch::Merge(&patch)).await.unwrap();
        release
            .wait("posthorn-default", "put back", |s: &Service| {
                s.spec.as_ref().and_then(|s| s.selector.as_ref()).is_some_and(|s| s["posthorn.dev/pool"] == "default")
            })
            .await;
        release.api::<PodDisruptionBudget>().delete("posthorn-default", &DeleteParams::default()).await.unwrap();
        release
            .wait("posthorn-default", "made again", |p: &PodDisruptionBudget| p.metadata.deletion_timestamp.is_none())
            .await;
        release.api::<NetworkPolicy>().delete("posthorn-default", &DeleteParams::default()).await.unwrap();
        release
            .wait("posthorn-default", "made again", |p: &NetworkPolicy| p.metadata.deletion_timestamp.is_none())
            .await;
        let set = release.api::<StatefulSet>().get("posthorn-default").await.unwrap();
        assert_eq!(set.spec.unwrap().service_name.as_deref(), Some("posthorn-default-pods"));
    });
}

#[test]
fn the_pool_is_ready_and_says_where_events_go() {
    in_namespace("pool-status", |scope| async move {
        let pools: Api<DeliveryPool> = Api::all(scope.client.clone());
        let pool = pools.get("default").await.unwrap();
        let status = pool.status.unwrap();
        assert_eq!(status.observed_generation, pool.metadata.generation);
        assert!(condition::is_true(&status.conditions, ConditionType::Ready), "{:?}", status.conditions);
        assert!(status.service.unwrap().starts_with("posthorn-default.posthorn-system.svc"));
    });
}

#[test]
fn the_internal_api_answers_the_controller_alone() {
    in_namespace("internal", |scope| async move {
        let index = IndexReader::new(&scope.client).await;
        let controller = token(&scope.client, "posthorn-controller", INTERNAL_AUDIENCE).await;
        let other_account = token(&scope.client, "posthorn-delivery", INTERNAL_AUDIENCE).await;
        let other_audience =
            token(&scope.client, "posthorn-controller", "https://kubernetes.default.svc.cluster.local").await;
        assert_eq!(index.status(COUNTERS_PATH, Some(&controller)).await, 200);
        assert_eq!(index.status(COUNTERS_PATH, None).await, 401);
        assert_eq!(index.status(COUNTERS_PATH, Some("nonsense")).await, 401);
        assert_eq!(index.status(COUNTERS_PATH, Some(&other_audience)).await, 401);
        assert!(matches!(index.status(COUNTERS_PATH, Some(&other_account)).await, 401 | 403));
    });
}
