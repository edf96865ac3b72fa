//! What an absent field means. The field docs in the schema say the same.

use super::{
    duration::Gep2257Duration,
    webhook::{ChallengeHttpMethod, Dialect, VerificationMethod, WebhookSpec},
};

/// Time between two checks of a verified endpoint.
pub const VERIFICATION_INTERVAL: Gep2257Duration = Gep2257Duration::from_secs(24 * 3600);
/// Time that one check of an endpoint may take in all.
pub const VERIFICATION_TIMEOUT: Gep2257Duration = Gep2257Duration::from_secs(15);
/// How long an endpoint may give no right answer before it counts as Failed.
pub const VERIFICATION_FAIL_AFTER: Gep2257Duration = Gep2257Duration::from_secs(15 * 60);
/// Key of the signing secret inside a Secret that the controller makes.
pub const SIGNING_SECRET_KEY: &str = "secret";
/// Suffix of the name of the Secret that the controller makes for a Webhook.
pub const SIGNING_SECRET_SUFFIX: &str = "-signing";
/// Type of the Secrets that the controller makes.
pub const SIGNING_SECRET_TYPE: &str = "posthorn.dev/signing";

impl WebhookSpec {
    /// The dialect, or its default.
    pub fn effective_dialect(&self) -> Dialect {
        self.dialect.unwrap_or(Dialect::StandardWebhooks)
    }

    /// The way of verification: as written, or as the dialect implies.
    pub fn effective_method(&self) -> VerificationMethod {
        self.verification.as_ref().and_then(|v| v.method).unwrap_or(match self.effective_dialect() {
            Dialect::StandardWebhooks | Dialect::Improvado => VerificationMethod::Challenge,
            Dialect::CloudEvents => VerificationMethod::CloudEvents,
            Dialect::Analytics | Dialect::Impira => VerificationMethod::None,
        })
    }

    /// The HTTP method of a challenge.
    pub fn effective_http_method(&self) -> ChallengeHttpMethod {
        self.verification.as_ref().and_then(|v| v.http_method).unwrap_or(ChallengeHttpMethod::Post)
    }

    /// Time between two checks of a verified endpoint.
    pub fn effective_interval(&self) -> Gep2257Duration {
        self.verification.as_ref().and_then(|v| v.interval).unwrap_or(VERIFICATION_INTERVAL)
    }

    /// Time that one check of the endpoint may take.
    pub fn effective_verification_timeout(&self) -> Gep2257Duration {
        self.verification.as_ref().and_then(|v| v.timeout).unwrap_or(VERIFICATION_TIMEOUT)
    }

    /// Whether requests go out unsigned.
    pub fn is_unsigned(&self) -> bool {
        self.signing.as_ref().and_then(|s| s.none).unwrap_or(false)
    }

    /// Whether everything about this Webhook is held.
    pub fn is_suspended(&self) -> bool {
        self.suspend.unwrap_or(false)
    }
}

/// Name of the Secret that the controller makes for a Webhook without
/// `signing.secretRef`.
pub fn signing_secret_name(webhook_name: &str) -> String {
    format!("{webhook_name}{SIGNING_SECRET_SUFFIX}")
}
