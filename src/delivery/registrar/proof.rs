//! Whether what a status says of a verification is believed. Pure.

use k8s_openapi::jiff::Timestamp;

use crate::{
    api::webhook::VerificationState,
    routing::index::WebhookEntry,
    verify::fingerprint::{Bound, FingerprintKey},
};

/// Since when the endpoint of a Webhook is verified, if that is believed.
///
/// An endpoint that only a Secret tells is believed by the status alone: what is
/// owed too early is not sent before the sender, who has the Secret, has computed
/// the fingerprint.
pub(super) fn verified_since(webhook: &WebhookEntry, key: Option<&FingerprintKey>) -> Option<Timestamp> {
    let key = key?;
    let is_verified = webhook.verification.state == VerificationState::Verified;
    let since = webhook.verification.verified_time.filter(|_| is_verified)?;
    let Some(endpoint) = webhook.endpoint.identity() else { return Some(since) };
    let bound = Bound {
        uid: &webhook.uid,
        endpoint: &endpoint,
        method: webhook.method,
        http_method: webhook.sending.http_method,
        verified_time: None,
        valid_until: None,
    };
    key.fits(&webhook.verification_status(), bound).then_some(since)
}
