//! The pool's limits, as store and ingest take them. Pure but for the task that
//! hands changes on.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{
    api::{
        DeliveryPoolSpec, Gep2257Duration,
        pool::{Limits, NamespaceLimits},
        quantity,
    },
    ingest::{EventRate, IngestSettings, OUTAGE_GRACE_DEFAULT},
    routing::watch::PoolView,
    store::{Partition, StoreLimits},
};

/// Share of the volume that the database may take, in percent: its write-ahead
/// log and the file system need the rest.
const DATABASE_PERCENT: u64 = 90;
/// Size of a volume unless the pool says otherwise.
const VOLUME_BYTES_DEFAULT: u64 = 10 << 30;
/// Events at once, as a multiple of those a second, unless the pool says otherwise.
const BURST_DEFAULT: u32 = 2;

/// What the store takes of a pool's spec.
pub(super) fn store_limits(spec: &DeliveryPoolSpec) -> StoreLimits {
    let defaults = StoreLimits::default();
    let duration = |given: Option<Gep2257Duration>, default: Duration| given.map_or(default, |given| given.as_std());
    let store = spec.store.as_ref();
    let retention = store.and_then(|store| store.retention.as_ref());
    let volume = store.and_then(|store| store.size.as_ref()).and_then(quantity::bytes).unwrap_or(VOLUME_BYTES_DEFAULT);
    let of_namespace = per_namespace(spec).and_then(|limits| limits.store_bytes.as_ref());
    StoreLimits {
        size_bytes: volume / 100 * DATABASE_PERCENT,
        namespace_bytes: of_namespace.and_then(quantity::bytes),
        retention_age: duration(retention.and_then(|retention| retention.age), defaults.retention_age),
        retention_bytes: retention.and_then(|retention| retention.size.as_ref()).and_then(quantity::bytes),
        dead_age: duration(retention.and_then(|retention| retention.dead_letters), defaults.dead_age),
        deduplication: duration(
            spec.ingest.as_ref().and_then(|ingest| ingest.deduplication_window),
            defaults.deduplication,
        ),
    }
}

/// What ingest takes of a pool's spec.
pub(super) fn ingest_settings(spec: &DeliveryPoolSpec) -> IngestSettings {
    let grace = spec.ingest.as_ref().and_then(|ingest| ingest.outage_grace);
    let number = |given: Option<i32>| given.and_then(|given| u32::try_from(given).ok()).filter(|given| *given > 0);
    let rate = per_namespace(spec).and_then(|limits| {
        let events_per_second = number(limits.events_per_second)?;
        let burst = number(limits.burst).unwrap_or_else(|| events_per_second.saturating_mul(BURST_DEFAULT));
        Some(EventRate { events_per_second, burst })
    });
    IngestSettings {
        rate,
        outage_grace: grace.map_or(OUTAGE_GRACE_DEFAULT, |grace| grace.as_std()),
        ..IngestSettings::default()
    }
}

fn per_namespace(spec: &DeliveryPoolSpec) -> Option<&NamespaceLimits> {
    let Limits { per_namespace } = spec.limits.as_ref()?;
    per_namespace.as_ref()
}

/// Hands the pool's limits on, for ever. What is not known leaves the old ones.
pub(super) async fn follow(
    mut pool: watch::Receiver<PoolView>,
    partition: Arc<dyn Partition>,
    ingest: watch::Sender<IngestSettings>,
) {
    loop {
        if let PoolView::Spec(spec) = &*pool.borrow_and_update() {
            partition.configure(store_limits(spec));
            ingest.send_if_modified(|known| {
                let new = ingest_settings(spec);
                std::mem::replace(known, new) != new
            });
        }
        if pool.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn without_a_word_the_defaults_hold() {
        let spec = DeliveryPoolSpec::default();
        let limits = store_limits(&spec);
        assert_eq!(limits, StoreLimits { size_bytes: (10 << 30) / 100 * 90, ..StoreLimits::default() });
        assert_eq!(ingest_settings(&spec), IngestSettings::default());
    }

    #[test]
    fn everything_that_a_pool_says_is_taken() {
        let spec = serde_json::from_value(json!({
            "store": { "size": "1Gi", "retention": { "age": "2h", "size": "100Mi", "deadLetters": "24h" } },
            "ingest": { "outageGrace": "1m", "deduplicationWindow": "2h" },
            "limits": { "perNamespace": { "storeBytes": "10Mi", "eventsPerSecond": 100 } },
        }))
        .unwrap();
        let hour = Duration::from_secs(3600);
        assert_eq!(
            store_limits(&spec),
            StoreLimits {
                size_bytes: (1 << 30) / 100 * 90,
                namespace_bytes: Some(10 << 20),
                retention_age: 2 * hour,
                retention_bytes: Some(100 << 20),
                dead_age: 24 * hour,
                deduplication: 2 * hour,
            }
        );
        let settings = ingest_settings(&spec);
        assert_eq!(settings.rate, Some(EventRate { events_per_second: 100, burst: 200 }));
        assert_eq!(settings.outage_grace, Duration::from_secs(60));
    }
}
