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

/// Whether Posthorn verified this endpoint of this Webhook in this way.
///
/// # Errors
/// Why nothing is sent.
pub fn fingerprint(
    webhook: &WebhookEntry,
    endpoint: &str,
    key: Option<&FingerprintKey>,
    now: Timestamp,
) -> Result<(), Hold> {
    let Some(key) = key else {
        let message = "The delivery pod has no key to check verifications with yet; it waits for it.";
        return Err(hold(Reason::PodsStarting, message, Some(STARTING_RETRY)));
    };
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
