//! What ingest counts. No label holds a text that a tenant chose.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};

use crate::runtime::metrics::MetricsRegistry;

/// Upper bounds of the buckets of answer times, in seconds: from a sync of a fast
/// disk to the longest wait for a body.
const DURATION_BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 60.0];

/// What became of an event.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabel {
    reason: &'static str,
    code: u16,
}

/// What ingest counts. Clones share it.
#[derive(Clone, Debug)]
pub struct IngestMetrics {
    /// Events that were stored.
    pub(super) accepted: Counter,
    /// Events that were there already.
    pub(super) duplicate: Counter,
    /// Events whose id was used for another before.
    pub(super) conflict: Counter,
    /// Bytes of bodies that were read.
    pub(super) bytes: Counter,
    /// Time from the head of a request to its answer.
    pub(super) seconds: Histogram,
    /// Requests under way.
    pub(super) under_way: Gauge,
    events: Family<OutcomeLabel, Counter>,
    refused: Family<RefusedLabel, Counter>,
}

impl IngestMetrics {
    /// Counts that the registry shows.
    pub fn register(registry: &mut MetricsRegistry) -> Self {
        let metrics = Self::unregistered();
        registry.register("ingest_events", "Events by what became of them", metrics.events.clone());
        registry.register("ingest_refused", "Requests that were refused", metrics.refused.clone());
        registry.register("ingest_bytes", "Bytes of bodies that were read", metrics.bytes.clone());
        registry.register("ingest_duration_seconds", "Time until the answer", metrics.seconds.clone());
        registry.register("ingest_requests_under_way", "Requests without an answer yet", metrics.under_way.clone());
        metrics
    }

    /// Counts that nobody scrapes.
    pub fn unregistered() -> Self {
        let events = Family::<OutcomeLabel, Counter>::default();
        // Looked up once: the hot path only adds.
        let counter = |outcome| events.get_or_create(&OutcomeLabel { outcome }).clone();
        Self {
            accepted: counter("Accepted"),
            duplicate: counter("Duplicate"),
            conflict: counter("Conflict"),
            bytes: Counter::default(),
            seconds: Histogram::new(DURATION_BUCKETS),
            under_way: Gauge::default(),
            events,
            refused: Family::default(),
        }
    }

    /// Counts a refusal.
    pub(super) fn refused(&self, reason: &'static str, code: u16) {
        self.refused.get_or_create(&RefusedLabel { reason, code }).inc();
    }
}
