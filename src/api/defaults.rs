//! What an absent field means. The field docs in the schema say the same.

use super::{
    duration::Gep2257Duration,
    pool::{DeliveryPoolSpec, NamespaceLimits, Retention},
    quantity,
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

/// Bytes of a volume whose pool names no size: 10 GiB.
pub const STORE_SIZE_BYTES: u64 = 10 << 30;
/// How long events are kept whose Deliveries have all ended.
pub const RETENTION_AGE: Gep2257Duration = Gep2257Duration::from_secs(7 * 24 * 3600);
/// How long Deliveries that were given up are kept.
pub const RETENTION_DEAD_LETTERS: Gep2257Duration = Gep2257Duration::from_secs(30 * 24 * 3600);
/// For how long known publishers go on while the API server is away.
pub const OUTAGE_GRACE: Gep2257Duration = Gep2257Duration::from_secs(5 * 60);
/// For how long publishers' ids are remembered.
pub const DEDUPLICATION_WINDOW: Gep2257Duration = Gep2257Duration::from_secs(3600);

/// How many events of a namespace are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventRate {
    /// A second.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

impl DeliveryPoolSpec {
    fn retention(&self) -> Option<&Retention> {
        self.store.as_ref()?.retention.as_ref()
    }

    fn namespace_limits(&self) -> Option<&NamespaceLimits> {
        self.limits.as_ref()?.per_namespace.as_ref()
    }

    /// Bytes of the volume, or their default. The volume itself may be larger: a
    /// size that was taken out of the spec takes nothing from it.
    pub fn effective_store_bytes(&self) -> u64 {
        let size = self.store.as_ref().and_then(|store| store.size.as_ref());
        size.and_then(quantity::bytes).unwrap_or(STORE_SIZE_BYTES)
    }

    /// How long events are kept whose Deliveries have all ended.
    pub fn effective_retention_age(&self) -> Gep2257Duration {
        self.retention().and_then(|retention| retention.age).unwrap_or(RETENTION_AGE)
    }

    /// How many bytes of events are kept at most; none: what fits.
    pub fn retention_bytes(&self) -> Option<u64> {
        self.retention()?.size.as_ref().and_then(quantity::bytes)
    }

    /// How long Deliveries that were given up are kept.
    pub fn effective_dead_letter_age(&self) -> Gep2257Duration {
        self.retention().and_then(|retention| retention.dead_letters).unwrap_or(RETENTION_DEAD_LETTERS)
    }

    /// For how long known publishers go on while the API server is away.
    pub fn effective_outage_grace(&self) -> Gep2257Duration {
        self.ingest.as_ref().and_then(|ingest| ingest.outage_grace).unwrap_or(OUTAGE_GRACE)
    }

    /// For how long publishers' ids are remembered.
    pub fn effective_deduplication_window(&self) -> Gep2257Duration {
        self.ingest.as_ref().and_then(|ingest| ingest.deduplication_window).unwrap_or(DEDUPLICATION_WINDOW)
    }

    /// Bytes of events of one namespace at most; none: no limit of its own.
    pub fn namespace_bytes(&self) -> Option<u64> {
        self.namespace_limits()?.store_bytes.as_ref().and_then(quantity::bytes)
    }

    /// How many events of one namespace are accepted; none: no limit of its own.
    pub fn namespace_rate(&self) -> Option<EventRate> {
        let limits = self.namespace_limits()?;
        let per_second = u32::try_from(limits.events_per_second?).ok().filter(|rate| *rate > 0)?;
        let burst = limits.burst.and_then(|burst| u32::try_from(burst).ok()).filter(|burst| *burst > 0);
        Some(EventRate { per_second, burst: burst.unwrap_or(per_second.saturating_mul(2)) })
    }
}

/// Name of the Secret that the controller makes for a Webhook without
/// `signing.secretRef`.
pub fn signing_secret_name(webhook_name: &str) -> String {
    format!("{webhook_name}{SIGNING_SECRET_SUFFIX}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pool_without_a_word_has_the_limits_of_its_docs() {
        let pool = DeliveryPoolSpec::default();
        assert_eq!(pool.effective_store_bytes(), 10 << 30);
        let hours = |duration: Gep2257Duration| duration.as_std().as_secs() / 3600;
        assert_eq!((hours(pool.effective_retention_age()), hours(pool.effective_dead_letter_age())), (168, 720));
        assert_eq!(pool.effective_outage_grace().to_string(), "5m");
        assert_eq!(pool.effective_deduplication_window().to_string(), "1h");
        assert_eq!((pool.retention_bytes(), pool.namespace_bytes(), pool.namespace_rate()), (None, None, None));
    }

    #[test]
    fn what_a_pool_says_counts_and_a_burst_is_two_seconds_unless_said() {
        let pool: DeliveryPoolSpec = serde_json::from_value(json!({
            "store": { "size": "20Gi", "retention": { "age": "24h", "size": "5Gi", "deadLetters": "48h" } },
            "ingest": { "outageGrace": "0s", "deduplicationWindow": "24h" },
            "limits": { "perNamespace": { "storeBytes": "1Gi", "eventsPerSecond": 100 } },
        }))
        .unwrap();
        assert_eq!((pool.effective_store_bytes(), pool.retention_bytes()), (20 << 30, Some(5 << 30)));
        assert_eq!(pool.namespace_bytes(), Some(1 << 30));
        assert_eq!(pool.namespace_rate(), Some(EventRate { per_second: 100, burst: 200 }));
        assert_eq!(pool.effective_outage_grace().as_std().as_secs(), 0);
    }
}
