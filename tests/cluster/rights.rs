//! Who may do what: the ValidatingAdmissionPolicies and the aggregated roles.

use std::time::Instant;

use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use posthorn::api::Webhook;
use serde_json::{Value, json};

use crate::{
    publisher::{GRANT_LIMIT, GRANT_POLL},
    support::{Scope, client_as, in_namespace},
};

/// Gives a user the role `edit` for Posthorn's kinds here, and `get` on the
/// named Secrets only.
async fn limited_user(scope: &Scope, secrets: &[&str]) -> Client {
    let user = format!("{}-tenant", scope.namespace);
    let mut rules = vec![json!({
        "apiGroups": ["posthorn.dev"], "resources": ["webhooks", "subscriptions"],
        "verbs": ["get", "list", "create", "update", "patch", "delete"]
    })];
    if !secrets.is_empty() {
        rules.push(json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"], "resourceNames": secrets}));
    }
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "tenant"}, "rules": rules});
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "tenant"},
        "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "Role", "name": "tenant", "apiGroup": "rbac.authorization.k8s.io"}
    });
    for object in [role, binding] {
        scope.apply_one(object).await.unwrap();
    }
    let client = client_as(&user).await;
    // The API server hears of the binding a moment later.
    until_may(&client, &scope.namespace, "posthorn.dev", "webhooks", None, "patch").await;
    for secret in secrets {
        until_may(&client, &scope.namespace, "", "secrets", Some(secret), "get").await;
    }
    client
}

/// Waits until the user may do this.
async fn until_may(client: &Client, namespace: &str, group: &str, resource: &str, name: Option<&str>, verb: &str) {
    let review: SelfSubjectAccessReview = serde_json::from_value(json!({"spec": {"resourceAttributes": {
        "namespace": namespace, "group": group, "resource": resource, "name": name, "verb": verb
    }}}))
    .unwrap();
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let start = Instant::now();
    loop {
        let answer = reviews.create(&PostParams::default(), &review).await.unwrap();
        if answer.status.is_some_and(|status| status.allowed) {
            return;
        }
        assert!(start.elapsed() < GRANT_LIMIT, "no right to {verb} {resource} within {GRANT_LIMIT:?}");
        tokio::time::sleep(GRANT_POLL).await;
    }
}

/// That the policy refused, and not the lack of a right.
fn assert_policy(refused: &str, secret: &str) {
    assert!(refused.contains("ValidatingAdmissionPolicy") && refused.contains(secret), "{refused}");
}

fn webhook(name: &str, spec: Value) -> Webhook {
    serde_json::from_value(json!({
        "apiVersion": "posthorn.dev/v1alpha1", "kind": "Webhook", "metadata": {"name": name}, "spec": spec
    }))
    .unwrap()
}

async fn create(api: &Api<Webhook>, webhook: &Webhook) -> Result<(), String> {
    api.create(&PostParams::default(), webhook).await.map(drop).map_err(|e| e.to_string())
}

#[test]
fn who_may_not_read_a_secret_may_not_name_it() {
    in_namespace("rights", |scope| async move {
        let tenant = limited_user(&scope, &["mine"]).await;
        let api: Api<Webhook> = Api::namespaced(tenant, &scope.namespace);
        let url = "https://hooks.example.com/in";
        let naming = |name: &str, secret: &str, field: &str| {
            let reference = json!({"name": secret, "key": "k"});
            let spec = match field {
                "signing" => json!({"url": url, "signing": {"secretRef": reference}}),
                "previous" => {
                    json!({"url": url, "signing": {"secretRef": {"name": "mine", "key": "k"}, "previousSecretRef": reference}})
                }
                "urlFrom" => json!({"urlFrom": reference, "signing": {"secretRef": {"name": "mine", "key": "k"}}}),
                "headersFrom" => {
                    json!({"url": url, "signing": {"secretRef": {"name": "mine", "key": "k"}}, "headersFrom": [{"name": "X-A", "secretRef": reference}]})
                }
                "ca" => {
                    json!({"url": url, "signing": {"secretRef": {"name": "mine", "key": "k"}}, "tls": {"caRef": reference}})
                }
                _ => {
                    json!({"url": url, "signing": {"secretRef": {"name": "mine", "key": "k"}}, "tls": {"clientCertificateRef": {"name": secret}}})
                }
            };
            webhook(name, spec)
        };
        for field in ["signing", "previous", "urlFrom", "headersFrom", "ca", "client"] {
            let refused = create(&api, &naming(&format!("theirs-{}", field.to_lowercase()), "theirs", field)).await;
            assert_policy(&refused.expect_err(field), "theirs");
            create(&api, &naming(&format!("mine-{}", field.to_lowercase()), "mine", field)).await.expect(field);
        }
        let made = create(&api, &webhook("made", json!({"url": url})))
            .await
            .expect_err("the Secret that the controller makes");
        assert_policy(&made, "made-signing");
    });
}

#[test]
fn who_may_not_read_a_secret_may_not_change_where_it_is_sent() {
    in_namespace("edit", |scope| async move {
        let url = "https://hooks.example.com/in";
        let theirs = webhook(
            "theirs",
            json!({"url": url, "suspend": true, "signing": {"secretRef": {"name": "theirs", "key": "k"}}}),
        );
        let owner = scope.api::<Webhook>();
        owner.create(&PostParams::default(), &theirs).await.unwrap();
        let tenant: Api<Webhook> = Api::namespaced(limited_user(&scope, &[]).await, &scope.namespace);
        let elsewhere = Patch::Merge(json!({"spec": {"url": "https://evil.example.com/"}}));
        let refused = tenant
            .patch("theirs", &PatchParams::default(), &elsewhere)
            .await
            .expect_err("an edit of the URL")
            .to_string();
        assert_policy(&refused, "theirs");
        let label = Patch::Merge(json!({"metadata": {"labels": {"team": "shop"}}}));
        tenant.patch("theirs", &PatchParams::default(), &label).await.expect("a label does not send anything anywhere");
        owner.patch("theirs", &PatchParams::default(), &elsewhere).await.expect("the owner may");
    });
}

#[test]
fn nobody_but_the_controller_writes_status() {
    in_namespace("status", |scope| async move {
        let hook = webhook("hook", json!({"url": "https://hooks.example.com/in", "suspend": true}));
        let api = scope.api::<Webhook>();
        let uid = api.create(&PostParams::default(), &hook).await.unwrap().uid().unwrap();
        let forged =
            json!({"status": {"observedGeneration": 1, "verification": {"state": "Verified", "fingerprint": uid}}});
        let refused = api.patch_status("hook", &PatchParams::default(), &Patch::Merge(&forged)).await;
        let message = refused.expect_err("a forged status").to_string();
        assert!(message.contains("Posthorn"), "{message}");
    });
}
