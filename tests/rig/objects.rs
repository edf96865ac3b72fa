//! Objects as a cluster has them, and the tokens of publishers.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use posthorn::{
    api::webhook::{ChallengeHttpMethod, VerificationMethod},
    verify::fingerprint::{Bound, FingerprintKey},
};
use serde_json::{Value, json};

use super::api::ApiServer;

/// The key of fingerprints of the rig.
pub const FINGERPRINT_KEY: [u8; 32] = [7; 32];
/// The signing key of every Webhook of the rig.
pub const SIGNING_KEY: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
/// The namespace that tests use unless they need several.
pub const NAMESPACE: &str = "shop";

pub fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

/// A pool that may call loopback by http.
pub fn pool(extra: Value) -> Value {
    let mut spec = json!({"egress": {"schemes": ["http", "https"], "allow": [{"cidr": "127.0.0.0/8", "ports": []}]}});
    // Ports of loopback are opened by the flag of the pod.
    spec["egress"].as_object_mut().unwrap().remove("allow");
    json_patch::merge(&mut spec, &extra);
    json!({"apiVersion": "posthorn.dev/v1alpha1", "kind": "DeliveryPool", "metadata": {"name": "default"}, "spec": spec})
}

/// The Secret that every Webhook of the rig signs with.
pub fn signing_secret(namespace: &str, name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": name, "namespace": namespace},
        "data": {"secret": base64::prelude::BASE64_STANDARD.encode(SIGNING_KEY)}})
}

/// A Webhook whose endpoint is verified, with `delivery` as its spec has it.
pub struct VerifiedWebhook<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub url: &'a str,
    pub delivery: Value,
}

impl VerifiedWebhook<'_> {
    /// With a status that the fingerprint key vouches for.
    pub fn build(&self, uid: &str) -> Value {
        let mut webhook = self.unverified(uid);
        let now = Timestamp::from_second(Timestamp::now().as_second() - 60).unwrap();
        webhook["status"] = json!({"observedGeneration": 1, "verification": verification(uid, self.url, now)});
        webhook
    }

    pub fn unverified(&self, uid: &str) -> Value {
        let mut webhook = json!({
            "apiVersion": "posthorn.dev/v1alpha1", "kind": "Webhook",
            "metadata": {"name": self.name, "namespace": self.namespace, "uid": uid},
            "spec": {
                "url": self.url,
                "signing": {"secretRef": {"name": "signing", "key": "secret"}},
                "verification": {"method": "None"},
            },
        });
        if !self.delivery.is_null() {
            webhook["spec"]["delivery"] = self.delivery.clone();
        }
        webhook
    }
}

/// The status of an endpoint that was verified at a time.
pub fn verification(uid: &str, url: &str, since: Timestamp) -> Value {
    let until = since + SignedDuration::from_hours(96);
    let fingerprint = FingerprintKey::new(FINGERPRINT_KEY).fingerprint(Bound {
        uid,
        endpoint: url,
        method: VerificationMethod::None,
        http_method: ChallengeHttpMethod::Post,
        verified_time: Some(since),
        valid_until: Some(until),
    });
    json!({"state": "Verified", "fingerprint": fingerprint, "verifiedTime": since.to_string(), "validUntil": until.to_string()})
}

pub fn subscription(namespace: &str, name: &str, webhook: &str, events: &[&str]) -> Value {
    json!({"apiVersion": "posthorn.dev/v1alpha1", "kind": "Subscription",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"webhookRef": {"name": webhook}, "events": events}})
}

/// A token of audience `posthorn` that the double of the API server accepts.
pub fn token(service_account: &str) -> String {
    token_for_days(service_account, 1)
}

/// One that is valid from so many days ago until in so many days.
pub fn token_for_days(service_account: &str, days: i64) -> String {
    token_of("posthorn", &format!("{NAMESPACE}:{service_account}"), days)
}

/// The token with which the controller calls the internal API of pods.
pub fn controller_token() -> String {
    token_of("posthorn-internal", "posthorn-system:posthorn-controller", 1)
}

fn token_of(audience: &str, service_account: &str, days: i64) -> String {
    let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let (now, lasts) = (Timestamp::now().as_second(), days * 24 * 3600);
    let claims = json!({"aud": [audience], "exp": now + lasts, "iat": now - lasts, "iss": "https://rig",
        "sub": format!("system:serviceaccount:{service_account}")});
    format!("{}.{}.{}", part(json!({"alg": "RS256"})), part(claims), "c2ln")
}

/// A namespace with its signing Secret.
pub fn tenant(api: &ApiServer, name: &str) {
    api.apply("namespaces", namespace(name));
    api.apply("secrets", signing_secret(name, "signing"));
}
