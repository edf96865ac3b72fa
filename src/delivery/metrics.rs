//! What a delivery pod counts.

use std::sync::Arc;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        MetricType,
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
};

use crate::{
    routing::{index::SharedIndex, watch::WatchErrors},
    runtime::metrics::MetricsRegistry,
};

/// Upper bounds of the buckets of probe durations, in seconds: from a receiver
/// next door to the longest time-out.
const DURATION_BUCKETS: [f64; 9] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 30.0];

/// How a probe ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OutcomeLabel {
    /// `Answered`, or the reason why there was no answer.
    pub(super) outcome: &'static str,
}

/// A request to the internal API.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestLabel {
    /// The path as in the router; `other` for what is not there.
    pub(super) path: &'static str,
    /// Status code of the answer.
    pub(super) code: u16,
}

/// The counts of a delivery pod. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct DeliveryMetrics {
    pub(super) probes: Family<OutcomeLabel, Counter>,
    pub(super) probes_total: Counter,
    pub(super) probe_seconds: Histogram,
    pub(super) followers: Gauge,
    pub(super) requests: Family<RequestLabel, Counter>,
    pub(super) watch_errors: WatchErrors,
}

impl DeliveryMetrics {
    pub(super) fn register(registry: &mut MetricsRegistry, index: Arc<SharedIndex>) -> Self {
        let metrics = Self::unregistered();
        registry.register("probes", "Probes of endpoints by outcome", metrics.probes.clone());
        registry.register("probe_duration_seconds", "Time of a probe", metrics.probe_seconds.clone());
        registry.register("feed_followers", "Requests that wait for changes of the index", metrics.followers.clone());
        registry.register("internal_requests", "Requests to the internal API", metrics.requests.clone());
        registry.register("watch_errors", "Errors of watches on the API server", metrics.watch_errors.clone());
        registry.register_collector(IndexCollector(index));
        metrics
    }

    pub(super) fn unregistered() -> Self {
        Self {
            probes: Family::default(),
            probes_total: Counter::default(),
            probe_seconds: Histogram::new(DURATION_BUCKETS),
            followers: Gauge::default(),
            requests: Family::default(),
            watch_errors: WatchErrors::default(),
        }
    }
}

/// Counts the index at each scrape.
#[derive(Debug)]
struct IndexCollector(Arc<SharedIndex>);

impl Collector for IndexCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let (counts, revision, synced) = self.0.read(|index| (index.counts(), index.revision(), index.synced()));
        for (name, help, value) in [
            ("posthorn_index_namespaces", "Namespaces of this pool", counts.namespaces),
            ("posthorn_index_webhooks", "Webhooks in the index", counts.webhooks),
            ("posthorn_index_subscriptions", "Subscriptions in the index", counts.subscriptions),
            ("posthorn_index_refused", "Objects that this version cannot use", counts.refused),
            ("posthorn_index_revision", "Number of the last change of the index", revision),
            ("posthorn_index_synced", "1 once every kind has been listed", u64::from(synced)),
        ] {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(metric)?;
        }
        Ok(())
    }
}
