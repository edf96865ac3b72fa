//! The gate: whether anything may be sent to a Webhook now. Pure.
//!
//! | what | held as | asked again |
//! |---|---|---|
//! | `spec.suspend` | Suspended | when the Webhook changes |
//! | no verification, one that failed, ended or was answered 410 | Unverified, VerificationPending, VerificationFailed, VerificationExpired, Gone | when it changes |
//! | Verified, but from before the endpoint said 410 | Gone | when it changes |
//! | Verified, but `validUntil` has passed | VerificationExpired | after [`EXPIRED_RETRY`], since clocks are set |
//! | Verified, but the fingerprint is not ours for this endpoint | Unverified | after [`FORGED_RETRY`], since keys are renewed |
//! | no key of fingerprints yet | PodsStarting | after [`STARTING_RETRY`] |

use std::{borrow::Cow, time::Duration};

use k8s_openapi::jiff::Timestamp;

use crate::{
    api::{
        Reason,
        webhook::{ServiceRef, VerificationState},
    },
    dispatch::Hold,
    routing::index::{EndpointSource, WebhookEntry},
    verify::fingerprint::{Bound, FingerprintKey},
};

/// When a Webhook is looked at again whose verification has run out.
pub const EXPIRED_RETRY: Duration = Duration::from_secs(60);
/// When a Webhook is looked at again whose fingerprint does not fit.
pub const FORGED_RETRY: Duration = Duration::from_secs(30);
/// When a Webhook is looked at again while the pod has not all it needs.
pub const STARTING_RETRY: Duration = Duration::from_secs(5);

/// A hold of these.
pub(super) fn hold(reason: Reason, message: impl Into<String>, retry_after: Option<Duration>) -> Hold {
    Hold { reason, message: message.into().into(), retry_after }
}

/// What the Webhook itself says: everything but the fingerprint.
///
/// # Errors
/// Why nothing is sent.
pub fn standing(webhook: &WebhookEntry, withdrawn: Option<Timestamp>, now: Timestamp) -> Result<(), Hold> {
    if webhook.suspended {
        return Err(hold(Reason::Suspended, "spec.suspend is true: nothing is sent until it is false again.", None));
    }
    let verification = &webhook.verification;
    let (reason, message) = match verification.state {
        VerificationState::Verified => {
            return verified(verification.verified_time, verification.valid_until, withdrawn, now);
        }
        VerificationState::Unverified => {
            (Reason::Unverified, "The endpoint is not verified yet; the condition Verified says more.")
        }
        VerificationState::Pending => {
            (Reason::VerificationPending, "The endpoint is being verified; the condition Verified says more.")
        }
        VerificationState::Failed => {
            (Reason::VerificationFailed, "The verification of the endpoint failed; the condition Verified says why.")
        }
        VerificationState::Gone => (Reason::Gone, GONE),
        VerificationState::Expired => (Reason::VerificationExpired, EXPIRED),
    };
    Err(hold(reason, message, None))
}

const GONE: &str = "The endpoint answered 410: it wants no events any more. Change the spec, or set the annotation posthorn.dev/verify-requested-at, to ask it again.";
const EXPIRED: &str = "No check of the endpoint succeeded for so long that its verification ended. Set the annotation posthorn.dev/verify-requested-at, or wait for the next check.";

fn verified(
    verified_time: Option<Timestamp>,
    valid_until: Option<Timestamp>,
    withdrawn: Option<Timestamp>,
    now: Timestamp,
) -> Result<(), Hold> {
    if withdrawn.is_some_and(|withdrawn| verified_time.is_none_or(|verified| verified < withdrawn)) {
        return Err(hold(Reason::Gone, GONE, None));
    }
    if valid_until.is_some_and(|until| until < now) {
        return Err(hold(Reason::VerificationExpired, EXPIRED, Some(EXPIRED_RETRY)));
    }
    Ok(())
}

/// The endpoint as a fingerprint binds it; none if a Secret has it.
pub fn identity(webhook: &WebhookEntry) -> Option<Cow<'_, str>> {
    match &webhook.endpoint {
        EndpointSource::Url(url) => Some(Cow::Borrowed(url)),
        EndpointSource::UrlFrom { .. } => None,
        EndpointSource::Service(service) => {
            let reference = ServiceRef {
                name: service.name.to_string(),
                port: i32::from(service.port),
                path: Some(service.path.to_string()),
                scheme: Some(service.scheme),
            };
            Some(Cow::Owned(reference.identity()))
        }
    }
}

/// Why nothing is sent while there is no key to check fingerprints with.
pub(super) fn no_key() -> Hold {
    let message = "The delivery pod has no key to check verifications with yet; it waits for it.";
    hold(Reason::PodsStarting, message, Some(STARTING_RETRY))
}

/// Whether Posthorn verified this endpoint of this Webhook in this way.
///
/// # Errors
/// Why nothing is sent.
pub fn fingerprint(webhook: &WebhookEntry, endpoint: &str, key: &FingerprintKey, now: Timestamp) -> Result<(), Hold> {
    let status = webhook.verification_status();
    let bound = Bound {
        uid: &webhook.uid,
        endpoint,
        method: webhook.method,
        http_method: webhook.sending.http_method,
        verified_time: None,
        valid_until: None,
    };
    if key.permits(&status, bound, now) {
        return Ok(());
    }
    let message = "The verification in the status is not one of this endpoint; it is verified again by itself, and nothing is sent before.";
    Err(hold(Reason::Unverified, message, Some(FORGED_RETRY)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        api::webhook::{ChallengeHttpMethod, VerificationMethod},
        delivery::sender::testing::entry,
    };

    const URL: &str = "https://a.example/hooks/token";

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_795_000_000 + seconds).unwrap()
    }

    fn key() -> FingerprintKey {
        FingerprintKey::new([7; 32])
    }

    /// A status that Posthorn made for this endpoint, verified at 0 s, valid until 100 s.
    fn status(endpoint: &str) -> Value {
        let bound = Bound {
            uid: "u",
            endpoint,
            method: VerificationMethod::Challenge,
            http_method: ChallengeHttpMethod::Post,
            verified_time: Some(at(0)),
            valid_until: Some(at(100)),
        };
        json!({
            "state": "Verified", "fingerprint": key().fingerprint(bound), "verifiedTime": Time(at(0)), "validUntil": Time(at(100)),
        })
    }

    fn webhook(spec: Value, status: &Value) -> Arc<WebhookEntry> {
        let mut all = json!({ "url": URL });
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        entry(&all, &json!({}), status)
    }

    fn verdict(webhook: &WebhookEntry, withdrawn: Option<i64>, now: i64) -> String {
        let endpoint = identity(webhook).unwrap();
        let judged = standing(webhook, withdrawn.map(at), at(now))
            .and_then(|()| fingerprint(webhook, &endpoint, &key(), at(now)));
        match judged {
            Ok(()) => "go".to_owned(),
            Err(hold) => {
                assert!(!hold.message.contains("token") && hold.message.ends_with('.'), "{}", hold.message);
                hold.reason.to_string()
            }
        }
    }

    #[test]
    fn a_verified_endpoint_is_sent_to_until_its_verification_ends() {
        let webhook = webhook(json!({}), &status(URL));
        assert_eq!(verdict(&webhook, None, 0), "go");
        assert_eq!(verdict(&webhook, None, 100), "go");
        assert_eq!(verdict(&webhook, None, 101), "VerificationExpired");
    }

    #[test]
    fn a_verification_from_before_the_endpoint_said_410_is_worth_nothing() {
        let webhook = webhook(json!({}), &status(URL));
        assert_eq!(verdict(&webhook, Some(-1), 50), "go");
        assert_eq!(verdict(&webhook, Some(0), 50), "go");
        assert_eq!(verdict(&webhook, Some(1), 50), "Gone");
    }

    #[test]
    fn a_status_of_another_endpoint_method_webhook_or_time_opens_nothing() {
        let changed = |change: fn(&mut Value)| {
            let mut status = status(URL);
            change(&mut status);
            verdict(&webhook(json!({}), &status), None, 50)
        };
        assert_eq!(changed(|_| {}), "go");
        assert_eq!(changed(|status| status["fingerprint"] = json!("v1.forged")), "Unverified");
        assert_eq!(changed(|status| status["fingerprint"] = json!(null)), "Unverified");
        assert_eq!(changed(|status| status["validUntil"] = json!(Time(at(9_999)))), "Unverified");
        assert_eq!(changed(|status| status["verifiedTime"] = json!(Time(at(10)))), "Unverified");
        assert_eq!(changed(|status| status["validUntil"] = json!(null)), "Unverified");
        let with = |spec: Value| verdict(&webhook(spec, &status(URL)), None, 50);
        assert_eq!(with(json!({ "url": "https://a.example/hooks/tokeN" })), "Unverified");
        assert_eq!(with(json!({ "url": "https://A.example/hooks/token" })), "Unverified");
        assert_eq!(with(json!({ "verification": { "method": "None" } })), "Unverified");
        let improvado = json!({ "dialect": "Improvado", "verification": { "httpMethod": "GET" } });
        assert_eq!(with(improvado), "Unverified");
        assert_eq!(with(json!({ "headers": [{ "name": "a", "value": "b" }] })), "go");
    }

    #[test]
    fn every_other_state_holds_with_its_own_reason() {
        let state = |state: &str| {
            let mut status = status(URL);
            status["state"] = json!(state);
            verdict(&webhook(json!({}), &status), None, 50)
        };
        assert_eq!(state("Unverified"), "Unverified");
        assert_eq!(state("Pending"), "VerificationPending");
        assert_eq!(state("Failed"), "VerificationFailed");
        assert_eq!(state("Gone"), "Gone");
        assert_eq!(state("Expired"), "VerificationExpired");
        assert_eq!(verdict(&webhook(json!({}), &json!({})), None, 50), "Unverified");
        assert_eq!(verdict(&webhook(json!({ "suspend": true }), &status(URL)), None, 50), "Suspended");
    }

    #[test]
    fn a_service_is_bound_by_all_that_is_called() {
        let service = |path: &str| {
            let spec = json!({ "serviceRef": { "name": "inbox", "port": 80, "path": path } });
            entry(&spec, &json!({}), &status("service:http://inbox:80/in"))
        };
        assert_eq!(verdict(&service("/in"), None, 50), "go");
        assert_eq!(verdict(&service("/out"), None, 50), "Unverified");
        let from = entry(&json!({ "urlFrom": { "name": "s", "key": "u" } }), &json!({}), &json!({}));
        assert!(identity(&from).is_none());
    }

    #[test]
    fn a_fingerprint_of_another_key_is_not_believed() {
        let webhook = webhook(json!({}), &status(URL));
        let other = FingerprintKey::new([8; 32]);
        let hold = fingerprint(&webhook, URL, &other, at(0)).unwrap_err();
        assert_eq!((hold.reason, hold.retry_after), (Reason::Unverified, Some(FORGED_RETRY)));
    }
}
