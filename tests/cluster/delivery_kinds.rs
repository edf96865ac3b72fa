//! DeadLetter, Replay and EventType on a real API server: who may write what,
//! what cannot be changed, what people see.

use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use posthorn::api::{DeadLetter, EventType, Replay};
use serde_json::{Value, json};

use crate::support::{RELEASE_NAMESPACE, Scope, client_as, in_namespace, kubectl};

/// A client that acts as Posthorn's delivery pods.
async fn delivery_pod() -> Client {
    client_as(&format!("system:serviceaccount:{RELEASE_NAMESPACE}:posthorn-delivery")).await
}

/// A user with this built-in ClusterRole in the namespace, and nothing else.
async fn user_with(scope: &Scope, role: &str) -> String {
    let user = format!("{}-{role}", scope.namespace);
    scope
        .apply_one(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": role},
            "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
            "roleRef": {"kind": "ClusterRole", "name": role, "apiGroup": "rbac.authorization.k8s.io"}
        }))
        .await
        .unwrap();
    user
}

fn card(name: &str, reason: &str) -> DeadLetter {
    serde_json::from_value(json!({
        "apiVersion": "posthorn.dev/v1alpha1", "kind": "DeadLetter",
        "metadata": {"name": name, "labels": {"posthorn.dev/webhook": "orders", "posthorn.dev/reason": reason}},
        "spec": {
            "webhookRef": {"name": "orders"}, "reason": reason, "lastStatusCode": 503, "attempts": 4,
            "error": "the endpoint answered 503",
            "event": {
                "id": "evt_01KAQ7ZZZZZZZZZZZZZZZZZZZZ", "type": "order.paid", "source": "/shop",
                "time": "2026-11-23T12:00:00Z", "size": 1024, "sha256": "0".repeat(64)
            },
            "firstTime": "2026-11-23T12:00:00Z", "lastTime": "2026-11-23T12:21:00Z"
        }
    }))
    .unwrap()
}

fn replay(name: &str) -> Replay {
    serde_json::from_value(json!({
        "apiVersion": "posthorn.dev/v1alpha1", "kind": "Replay", "metadata": {"name": name},
        "spec": {"webhookRef": {"name": "orders"}, "deadLetters": {"all": true}, "rate": 20}
    }))
    .unwrap()
}

async fn may(scope: &Scope, user: &str, verb: &str, resource: &str, subresource: &str, name: &str) -> bool {
    let review: SubjectAccessReview = serde_json::from_value(json!({
        "metadata": {},
        "spec": {"user": user, "resourceAttributes": {
            "namespace": scope.namespace, "verb": verb, "group": "posthorn.dev", "resource": resource,
            "subresource": subresource, "name": name
        }}
    }))
    .unwrap();
    let reviews: Api<SubjectAccessReview> = Api::all(scope.client.clone());
    reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap().allowed
}

#[test]
fn delivery_pods_alone_write_dead_letters_and_whoever_edits_may_delete_them() {
    in_namespace("cards", |scope| async move {
        let pod: Api<DeadLetter> = Api::namespaced(delivery_pod().await, &scope.namespace);
        pod.create(&PostParams::default(), &card("orders-1", "Exhausted")).await.expect("a delivery pod");
        let apply = PatchParams::apply("posthorn-delivery").force();
        pod.patch("orders-2", &apply, &Patch::Apply(card("orders-2", "DeadOn"))).await.expect("by server-side apply");

        let admin = scope.api::<DeadLetter>();
        let forged = admin.create(&PostParams::default(), &card("orders-3", "Exhausted")).await;
        let message = forged.expect_err("a cluster admin").to_string();
        assert!(message.contains("delivery pods write DeadLetters"), "{message}");
        let edit = Patch::Merge(json!({"spec": {"attempts": 1}}));
        admin.patch("orders-1", &PatchParams::default(), &edit).await.expect_err("an edit by a cluster admin");

        let user = user_with(&scope, "edit").await;
        let tenant: Api<DeadLetter> = Api::namespaced(client_as(&user).await, &scope.namespace);
        tenant.create(&PostParams::default(), &card("orders-4", "Exhausted")).await.expect_err("edit creates none");
        let of = |field: &str| ListParams::default().fields(field);
        assert_eq!(tenant.list(&of("spec.webhookRef.name=orders")).await.unwrap().items.len(), 2);
        assert_eq!(tenant.list(&of("spec.reason=DeadOn")).await.unwrap().items[0].name_any(), "orders-2");
        tenant.delete("orders-1", &DeleteParams::default()).await.expect("edit may discard");
    });
}

#[test]
fn people_see_the_cause_of_a_dead_letter_in_one_line() {
    in_namespace("columns", |scope| async move {
        let pod: Api<DeadLetter> = Api::namespaced(delivery_pod().await, &scope.namespace);
        let made = pod.create(&PostParams::default(), &card("orders-1", "Exhausted")).await.unwrap();
        assert!(serde_json::to_vec(&made).unwrap().len() < posthorn::api::dead_letter::CARD_BYTES_MAX);
        let shown = kubectl(&["get", "whdl", "-n", &scope.namespace]).await;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        let rows: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["NAME", "WEBHOOK", "EVENT", "TYPE", "REASON", "CODE", "ATTEMPTS", "AGE"], "{shown}");
        assert_eq!(rows[1][..6], ["orders-1", "orders", "order.paid", "Exhausted", "503", "4"], "{shown}");
    });
}

#[test]
fn a_replay_changes_in_nothing_but_cancel() {
    in_namespace("replay", |scope| async move {
        let api = scope.api::<Replay>();
        let made = api.create(&PostParams::default(), &replay("again")).await.unwrap();
        assert_eq!(made.status.and_then(|status| status.observed_generation), Some(-1), "nobody has looked at it");
        let change = async |spec: Value| {
            api.patch("again", &PatchParams::default(), &Patch::Merge(json!({ "spec": spec }))).await
        };
        for spec in [
            json!({"rate": 21}),
            json!({"rate": null}),
            json!({"runId": "two"}),
            json!({"dryRun": true}),
            json!({"webhookRef": {"name": "other"}}),
            json!({"deadLetters": null, "since": "2026-11-23T12:00:00Z"}),
            json!({"deadLetters": {"all": null, "names": ["orders-1"]}}),
        ] {
            let message = change(spec.clone()).await.expect_err(&spec.to_string()).to_string();
            assert!(message.contains("spec cannot be changed, but for cancel"), "{spec}: {message}");
        }
        change(json!({"cancel": true})).await.expect("it may be cancelled");
        for cancel in [json!(false), Value::Null] {
            let message = change(json!({ "cancel": cancel })).await.expect_err("for good").to_string();
            assert!(message.contains("cancel cannot be taken back"), "{message}");
        }
    });
}

#[test]
fn delivery_pods_alone_write_the_status_of_a_replay() {
    in_namespace("replay-status", |scope| async move {
        let admin = scope.api::<Replay>();
        admin.create(&PostParams::default(), &replay("again")).await.unwrap();
        let status = Patch::Merge(json!({"status": {"observedGeneration": 1, "matched": 3}}));
        let refused = admin.patch_status("again", &PatchParams::default(), &status).await;
        let message = refused.expect_err("a cluster admin").to_string();
        assert!(message.contains("delivery pods write the status of a Replay"), "{message}");
        let pod: Api<Replay> = Api::namespaced(delivery_pod().await, &scope.namespace);
        pod.patch_status("again", &PatchParams::default(), &status).await.expect("a delivery pod");
    });
}

#[test]
fn the_roles_of_people_publishers_and_pods_have_what_they_need_and_no_more() {
    in_namespace("roles", |scope| async move {
        let (view, edit) = (user_with(&scope, "view").await, user_with(&scope, "edit").await);
        let publisher = user_with(&scope, "posthorn-publisher").await;
        let pod = format!("system:serviceaccount:{RELEASE_NAMESPACE}:posthorn-delivery");
        let controller = format!("system:serviceaccount:{RELEASE_NAMESPACE}:posthorn-controller");
        for (user, verb, resource, subresource, expected) in [
            (&view, "list", "deadletters", "", true),
            (&view, "get", "replays", "", true),
            (&view, "watch", "eventtypes", "", true),
            (&view, "delete", "deadletters", "", false),
            (&view, "create", "replays", "", false),
            (&edit, "create", "replays", "", true),
            (&edit, "update", "eventtypes", "", true),
            (&edit, "delete", "deadletters", "", true),
            (&edit, "create", "deadletters", "", false),
            (&edit, "patch", "deadletters", "", false),
            (&edit, "patch", "replays", "status", false),
            (&edit, "patch", "eventtypes", "status", false),
            (&edit, "create", "eventtypes", "events", false),
            (&publisher, "create", "eventtypes", "events", true),
            (&publisher, "create", "eventtypes", "", false),
            (&publisher, "get", "webhooks", "", false),
            (&pod, "create", "deadletters", "", true),
            (&pod, "patch", "deadletters", "", true),
            (&pod, "patch", "replays", "status", true),
            (&pod, "patch", "replays", "", false),
            (&pod, "patch", "webhooks", "status", false),
            (&pod, "create", "eventtypes", "events", false),
            (&controller, "patch", "eventtypes", "status", true),
            (&controller, "create", "deadletters", "", false),
            (&controller, "patch", "replays", "status", false),
        ] {
            let allowed = may(&scope, user, verb, resource, subresource, "").await;
            assert_eq!(allowed, expected, "{user}: {verb} {resource}/{subresource}");
        }
        assert!(may(&scope, &publisher, "create", "eventtypes", "events", "order.paid").await, "of every type");
    });
}

#[test]
fn an_example_of_any_shape_is_kept_and_a_type_stays() {
    in_namespace("types", |scope| async move {
        let example = json!({"id": 7, "lines": [{"sku": "a", "tags": []}], "paid": true, "note": ""});
        scope
            .apply_one(json!({
                "apiVersion": "posthorn.dev/v1alpha1", "kind": "EventType", "metadata": {"name": "paid"},
                "spec": {"type": "order.paid", "category": "Orders", "example": example}
            }))
            .await
            .unwrap();
        let api = scope.api::<EventType>();
        assert_eq!(api.get("paid").await.unwrap().spec.example, Some(example));
        let change = Patch::Merge(json!({"spec": {"type": "order.made"}}));
        let refused = api.patch("paid", &PatchParams::default(), &change).await.expect_err("another type").to_string();
        assert!(refused.contains("type cannot be changed"), "{refused}");
    });
}
