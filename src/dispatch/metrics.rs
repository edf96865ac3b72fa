//! What the dispatcher counts.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};

use super::AttemptEnd;
use crate::runtime::metrics::MetricsRegistry;

/// Upper bounds of the buckets from accept to first attempt, in seconds: from
/// the direct path to a backlog of hours.
const LATENCY_BUCKETS: [f64; 12] = [0.001, 0.002, 0.005, 0.01, 0.025, 0.1, 0.5, 2.0, 15.0, 60.0, 600.0, 3600.0];

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OutcomeLabel {
    /// `2xx` … `5xx`, `other`, `failed` (no complete answer), `not_sent`, `unrenderable`.
    pub(super) outcome: &'static str,
}

/// Why something is held.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct HoldLabel {
    /// `circuit`, `pause` or `hold`.
    pub(super) by: &'static str,
}

/// The counts of a dispatcher. Clones share them.
#[derive(Clone, Debug)]
pub struct DispatchMetrics {
    pub(super) attempts: Family<OutcomeLabel, Counter>,
    pub(super) in_flight: Gauge,
    pub(super) hooks: Gauge,
    pub(super) held: Family<HoldLabel, Gauge>,
    pub(super) window_rows: Gauge,
    pub(super) window_bytes: Gauge,
    pub(super) unrecorded: Gauge,
    pub(super) reads: Counter,
    pub(super) first_attempt_seconds: Histogram,
}

/// An end in a word.
pub(super) fn outcome(end: &AttemptEnd) -> OutcomeLabel {
    let outcome = match end {
        AttemptEnd::Answered { code: 200..=299, .. } => "2xx",
        AttemptEnd::Answered { code: 300..=399, .. } => "3xx",
        AttemptEnd::Answered { code: 400..=499, .. } => "4xx",
        AttemptEnd::Answered { code: 500..=599, .. } => "5xx",
        AttemptEnd::Answered { .. } => "other",
        AttemptEnd::Failed { .. } => "failed",
        AttemptEnd::NotSent(_) => "not_sent",
        AttemptEnd::Unrenderable => "unrenderable",
    };
    OutcomeLabel { outcome }
}

impl DispatchMetrics {
    /// Counts that a scrape shows.
    pub fn register(registry: &mut MetricsRegistry) -> Self {
        let metrics = Self::unregistered();
        registry.register("attempts", "Attempts by how they ended", metrics.attempts.clone());
        registry.register("attempts_in_flight", "Attempts that run", metrics.in_flight.clone());
        registry.register("dispatch_hooks", "Webhooks that the dispatcher knows", metrics.hooks.clone());
        registry.register("dispatch_held", "Webhooks to which nothing is sent, by cause", metrics.held.clone());
        registry.register("dispatch_window_rows", "Owed Deliveries in memory", metrics.window_rows.clone());
        registry.register("dispatch_window_bytes", "Bytes of events in memory", metrics.window_bytes.clone());
        registry.register("dispatch_unrecorded", "Outcomes that are not durable yet", metrics.unrecorded.clone());
        registry.register("dispatch_reads", "Questions to the store", metrics.reads.clone());
        registry.register(
            "first_attempt_delay_seconds",
            "Time from accept to first attempt",
            metrics.first_attempt_seconds.clone(),
        );
        metrics
    }

    /// Counts that nobody reads.
    pub fn unregistered() -> Self {
        Self {
            attempts: Family::default(),
            in_flight: Gauge::default(),
            hooks: Gauge::default(),
            held: Family::default(),
            window_rows: Gauge::default(),
            window_bytes: Gauge::default(),
            unrecorded: Gauge::default(),
            reads: Counter::default(),
            first_attempt_seconds: Histogram::new(LATENCY_BUCKETS),
        }
    }
}
