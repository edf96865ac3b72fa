//! The gate: what is not verified as it stands gets no byte and no connection.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use posthorn::{
    api::Reason,
    delivery::sender::Pace,
    dispatch::{AttemptEnd, AttemptSender},
    routing::index::{Index, WebhookEntry},
    verify::fingerprint::{Bound, FingerprintKey},
};
use serde_json::{Value, json};

use super::{
    Endpoint, NAMESPACE, Rig, canary::Log, entry, fingerprint_key, job, merged, object, seconds, secrets::pass,
    verification, verified, verified_at,
};

/// A spec and the status of its verification, which a row of the table changes.
struct Case {
    spec: Value,
    status: Value,
}

impl Case {
    /// Verified and permitted.
    fn new(endpoint: &Endpoint) -> Self {
        let spec = json!({ "url": endpoint.url("/hook") });
        let status = verification(&spec, spec["url"].as_str().unwrap());
        Self { spec, status }
    }

    fn entry(&self) -> Arc<WebhookEntry> {
        entry(&object(&self.spec, &self.status))
    }
}

type Row = (&'static str, fn(&mut Case, &Endpoint), Reason);

fn rows() -> Vec<Row> {
    fn state(case: &mut Case, state: &str) {
        case.status["state"] = json!(state);
    }
    vec![
        ("no status", |case, _| case.status = json!({ "state": "Unverified" }), Reason::Unverified),
        ("Unverified", |case, _| state(case, "Unverified"), Reason::Unverified),
        ("Pending", |case, _| state(case, "Pending"), Reason::VerificationPending),
        ("Failed", |case, _| state(case, "Failed"), Reason::VerificationFailed),
        ("Gone", |case, _| state(case, "Gone"), Reason::Gone),
        ("Expired", |case, _| state(case, "Expired"), Reason::VerificationExpired),
        ("suspended", |case, _| case.spec["suspend"] = json!(true), Reason::Suspended),
        ("URL edited", |case, to| case.spec["url"] = json!(to.url("/other")), Reason::Unverified),
        ("query added", |case, to| case.spec["url"] = json!(to.url("/hook?a=1")), Reason::Unverified),
        ("method edited", |case, _| case.spec["verification"] = json!({ "method": "None" }), Reason::Unverified),
        ("made up", |case, _| case.status["fingerprint"] = json!(format!("v1.{}", "A".repeat(43))), Reason::Unverified),
        ("no fingerprint", |case, _| case.status["fingerprint"] = json!(null), Reason::Unverified),
        ("empty fingerprint", |case, _| case.status["fingerprint"] = json!(""), Reason::Unverified),
        ("end moved", |case, _| case.status["validUntil"] = json!(Time(seconds(7200))), Reason::Unverified),
        ("start moved", |case, _| case.status["verifiedTime"] = json!(Time(seconds(0))), Reason::Unverified),
        ("end removed", |case, _| case.status["validUntil"] = json!(null), Reason::Unverified),
        (
            "by another's key",
            |case, _| forge(case, &FingerprintKey::new([8; 32]), "uid-orders", 3600),
            Reason::Unverified,
        ),
        ("of another Webhook", |case, _| forge(case, &fingerprint_key(), "uid-other", 3600), Reason::Unverified),
        ("run out", |case, _| forge(case, &fingerprint_key(), "uid-orders", -1), Reason::VerificationExpired),
    ]
}

/// A status that is whole in itself, made with this key, for this UID.
fn forge(case: &mut Case, key: &FingerprintKey, uid: &str, valid_seconds: i64) {
    let webhook = case.entry();
    let bound = Bound {
        uid,
        endpoint: case.spec["url"].as_str().unwrap(),
        method: webhook.method,
        http_method: webhook.sending.http_method,
        verified_time: Some(seconds(-60)),
        valid_until: Some(seconds(valid_seconds)),
    };
    case.status = json!({
        "state": "Verified", "fingerprint": key.fingerprint(bound),
        "verifiedTime": bound.verified_time.map(Time), "validUntil": bound.valid_until.map(Time),
    });
}

#[tokio::test]
async fn what_is_verified_and_permitted_gets_one_request() {
    let endpoint = Endpoint::code(204).await;
    let rig = Rig::new();
    assert_eq!(rig.code(&Case::new(&endpoint).entry()).await, 204);
    assert_eq!(endpoint.request().line, "POST /hook HTTP/1.1");
    assert_eq!(endpoint.connections().await, 1);
}

#[tokio::test]
async fn nothing_else_gets_a_byte_or_a_connection() {
    let endpoint = Endpoint::code(204).await;
    let rig = Rig::new();
    for (what, change, reason) in rows() {
        let mut case = Case::new(&endpoint);
        change(&mut case, &endpoint);
        let hold = rig.hold(&case.entry()).await;
        assert_eq!(hold.reason, reason, "{what}: {}", hold.message);
        assert!(!hold.message.contains(&endpoint.address.to_string()), "{what}: {}", hold.message);
        endpoint.check_silence().await;
    }
    assert_eq!(rig.vault.gets(), [""; 0], "what may not be sent needs no Secret");
}

#[tokio::test]
async fn an_endpoint_that_said_410_needs_a_verification_from_after_that() {
    let endpoint = Endpoint::code(204).await;
    let rig = Rig::new();
    let webhook = Case::new(&endpoint).entry();
    let attempt = async |withdrawn: i64| {
        let mut job = job(&webhook);
        job.withdrawn = Some(seconds(withdrawn));
        rig.sender.attempt(job).await.end
    };
    // It was verified 60 s ago.
    let AttemptEnd::NotSent(hold) = attempt(-10).await else { panic!("sent") };
    assert_eq!(hold.reason, Reason::Gone);
    endpoint.check_silence().await;
    assert!(matches!(attempt(-120).await, AttemptEnd::Answered { code: 204, .. }));
}

#[tokio::test]
async fn a_service_that_was_edited_is_not_called() {
    let rig = Rig::new();
    let spec = |name: &str| json!({ "serviceRef": { "name": name, "port": 80, "path": "/in" } });
    let hold = rig.hold(&verified_at(&spec("other"), "service:http://inbox:80/in")).await;
    assert_eq!(hold.reason, Reason::Unverified);
    assert_eq!(rig.vault.gets(), [""; 0], "nobody even asked where it leads");
}

#[tokio::test]
async fn a_url_from_a_secret_is_bound_by_its_value() {
    let (old, new) = (Endpoint::code(204).await, Endpoint::code(204).await);
    let rig = Rig::new();
    rig.vault.put("target", json!({ "url": old.url("/secret") }));
    let spec = json!({ "urlFrom": { "name": "target", "key": "url" } });
    let webhook = verified_at(&spec, &old.url("/secret"));
    assert_eq!(rig.code(&webhook).await, 204);

    rig.vault.put("target", json!({ "url": new.url("/secret") }));
    let again = |reload: &str| {
        let mut object = object(&spec, &verification(&spec, &old.url("/secret")));
        object["metadata"]["annotations"] = json!({ "posthorn.dev/reload": reload });
        entry(&object)
    };
    assert_eq!(rig.hold(&again("1")).await.reason, Reason::Unverified);
    new.check_silence().await;
    assert_eq!(old.requests().len(), 1);

    rig.vault.put("target", json!({ "url": old.url("/secret") }));
    assert_eq!(rig.code(&again("2")).await, 204);
    new.check_silence().await;
}

#[tokio::test]
async fn without_the_key_or_the_rules_nothing_goes_out() {
    let endpoint = Endpoint::code(204).await;
    let rig = Rig::new();
    let webhook = Case::new(&endpoint).entry();
    let key = rig.key.send_replace(None);
    assert_eq!(rig.hold(&webhook).await.reason, Reason::PodsStarting);
    rig.key.send_replace(Some(FingerprintKey::new([9; 32])));
    assert_eq!(rig.hold(&webhook).await.reason, Reason::Unverified);
    rig.key.send_replace(key);
    let clients = rig.clients.send_replace(None);
    assert_eq!(rig.hold(&webhook).await.reason, Reason::PodsStarting);
    endpoint.check_silence().await;
    rig.clients.send_replace(clients);
    assert_eq!(rig.code(&webhook).await, 204);
}

#[tokio::test]
async fn what_was_found_to_fit_fits_no_other_key_and_no_other_value_of_a_secret() {
    let endpoint = Endpoint::code(204).await;
    let rig = Rig::new();
    let webhook = Case::new(&endpoint).entry();
    assert_eq!(rig.code(&webhook).await, 204);
    let key = rig.key.send_replace(Some(FingerprintKey::new([9; 32])));
    assert_eq!(rig.hold(&webhook).await.reason, Reason::Unverified);
    rig.key.send_replace(key);
    assert_eq!(rig.code(&webhook).await, 204);
    assert_eq!(endpoint.requests().len(), 2);

    // The Webhook is the very same; its Secret is read again after a 401.
    let (old, new) = (Endpoint::code(401).await, Endpoint::code(204).await);
    let rig = Rig::new();
    rig.vault.put("target", json!({ "url": old.url("/secret") }));
    let webhook = verified_at(&json!({ "urlFrom": { "name": "target", "key": "url" } }), &old.url("/secret"));
    assert_eq!(rig.code(&webhook).await, 401);
    rig.vault.put("target", json!({ "url": new.url("/secret") }));
    pass(Pace::default().distrust).await;
    assert_eq!(rig.hold(&webhook).await.reason, Reason::Unverified);
    new.check_silence().await;
    assert_eq!(old.requests().len(), 1);
}

#[tokio::test]
async fn the_rules_of_the_pool_are_those_of_the_attempt() {
    let endpoint = Endpoint::code(204).await;
    let rig = Rig::new();
    let webhook = Case::new(&endpoint).entry();
    assert_eq!(rig.code(&webhook).await, 204);
    let only_https = serde_json::from_value(json!({ "schemes": ["https"] })).unwrap();
    let policy = posthorn::policy::egress::EgressPolicy::compile(Some(&only_https), &Default::default()).unwrap();
    let renewed = rig.clients.borrow().as_ref().unwrap().renew(Arc::new(policy)).unwrap();
    rig.clients.send_replace(Some(Arc::new(renewed)));
    let before = endpoint.connections().await;
    rig.failure(&webhook).await;
    assert_eq!(
        (endpoint.requests().len(), endpoint.connections().await),
        (1, before),
        "not even on the old connection"
    );
}

#[tokio::test]
async fn a_url_that_the_rules_refuse_is_logged_once_until_something_changes() {
    let log = Log::default();
    let _capturing = log.capture();
    let told = || log.text().matches("the rules of the pool do not allow where a Webhook leads").count();
    let rig = Rig::new();
    let webhook = verified(&json!({ "url": "https://10.1.2.3/hook" }));
    for _ in 0..3 {
        assert_eq!(rig.failure(&webhook).await, Reason::DestinationNotAllowed);
    }
    assert_eq!(told(), 1);
    assert!(log.text().contains("10.1.2.3"), "the operator sees which address");
    let edited = verified(&json!({ "url": "https://10.1.2.4/hook" }));
    for _ in 0..3 {
        assert_eq!(rig.failure(&edited).await, Reason::DestinationNotAllowed);
    }
    assert_eq!(told(), 2);
}

#[test]
fn a_webhook_of_another_pool_or_that_is_gone_is_no_webhook_of_the_index() {
    let object = object(&json!({ "url": "https://a.example/" }), &json!({ "state": "Verified" }));
    let mut index = Index::new("default", "i");
    index.apply_namespace(NAMESPACE, "uid-shop", None);
    index.apply_webhook(&serde_json::from_value(object).unwrap());
    assert!(index.webhook(NAMESPACE, "orders").is_some());
    index.apply_namespace(NAMESPACE, "uid-shop", Some("other"));
    assert!(index.webhook(NAMESPACE, "orders").is_none());
    index.apply_namespace(NAMESPACE, "uid-shop", None);
    assert!(index.webhook(NAMESPACE, "orders").is_some());
    index.delete(posthorn::wire::index_feed::FeedKind::Webhook, NAMESPACE, "orders");
    assert!(index.webhook(NAMESPACE, "orders").is_none());
}

#[tokio::test]
async fn edits_that_the_fingerprint_does_not_bind_end_no_verification() {
    let endpoint = Endpoint::code(204).await;
    let rig = Rig::new();
    rig.vault.put("another", json!({ "k": super::OLD_KEY }));
    for change in [
        json!({ "headers": [{ "name": "x-a", "value": "b" }] }),
        json!({ "delivery": { "concurrency": 1 } }),
        json!({ "signing": { "secretRef": { "name": "another", "key": "k" } } }),
    ] {
        let spec = merged(json!({ "url": endpoint.url("/hook") }), &change);
        assert_eq!(rig.code(&verified(&spec)).await, 204, "{change}");
    }
}
