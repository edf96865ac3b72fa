//! What the controller counts.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
};

use crate::runtime::metrics::MetricsRegistry;

/// The controller's metrics. Clones share their values.
#[derive(Clone)]
pub struct Metrics {
    /// Reconciles by kind and outcome.
    reconciles: Family<ReconcileLabels, Counter>,
    /// Time that a reconcile takes, by kind.
    reconcile_seconds: Family<KindLabel, Histogram>,
    /// Probes that wait for their turn or run.
    pub probes_in_flight: Gauge,
    /// Probes by outcome.
    probes: Family<OutcomeLabel, Counter>,
    /// Requests that change something at the API server, by resource, verb and status code.
    api_writes: Family<WriteLabels, Counter>,
    /// Requests that read a single object, by resource.
    api_reads: Family<ResourceLabel, Counter>,
    /// 1 while this replica leads.
    pub leader: Gauge,
    /// Seconds since the last answer of a pool's index feed.
    feed_lag: Family<PoolLabel, Gauge>,
    /// Events that could not be written.
    pub events_failed: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReconcileLabels {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    resource: String,
    verb: &'static str,
    code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabel {
    resource: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabel {
    pool: String,
}

impl Metrics {
    /// Fresh metrics, registered.
    pub fn register(registry: &mut MetricsRegistry) -> Self {
        // 1 ms to 33 s.
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 16));
        let metrics = Self {
            reconciles: Family::default(),
            reconcile_seconds: Family::new_with_constructor(seconds),
            probes_in_flight: Gauge::default(),
            probes: Family::default(),
            api_writes: Family::default(),
            api_reads: Family::default(),
            leader: Gauge::default(),
            feed_lag: Family::default(),
            events_failed: Counter::default(),
        };
        registry.register("controller_reconciles", "Reconciles by kind and outcome", metrics.reconciles.clone());
        registry.register(
            "controller_reconcile_seconds",
            "Time that a reconcile takes",
            metrics.reconcile_seconds.clone(),
        );
        registry.register(
            "controller_probes_in_flight",
            "Probes that wait for their turn or run",
            metrics.probes_in_flight.clone(),
        );
        registry.register("controller_probes", "Probes by outcome", metrics.probes.clone());
        registry.register(
            "controller_api_writes",
            "Requests that change something at the API server",
            metrics.api_writes.clone(),
        );
        registry.register("controller_api_reads", "Requests that read one object", metrics.api_reads.clone());
        registry.register("controller_leader", "1 while this replica leads", metrics.leader.clone());
        registry.register(
            "controller_feed_lag_seconds",
            "Seconds since the last answer of a pool's index feed",
            metrics.feed_lag.clone(),
        );
        registry.register(
            "controller_events_failed",
            "Kubernetes Events that could not be written",
            metrics.events_failed.clone(),
        );
        metrics
    }

    /// Counts a reconcile.
    pub fn reconciled(&self, kind: &'static str, outcome: &'static str, took: Duration) {
        self.reconciles.get_or_create(&ReconcileLabels { kind, outcome }).inc();
        self.reconcile_seconds.get_or_create(&KindLabel { kind }).observe(took.as_secs_f64());
    }

    /// Counts a probe that ended.
    pub fn probed(&self, outcome: &'static str) {
        self.probes.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// Counts a request that changes something.
    pub fn api_write(&self, resource: String, verb: &'static str, code: String) {
        self.api_writes.get_or_create(&WriteLabels { resource, verb, code }).inc();
    }

    /// Counts a request that reads one object.
    pub fn api_read(&self, resource: String) {
        self.api_reads.get_or_create(&ResourceLabel { resource }).inc();
    }

    /// Notes how long a pool's feed has been silent.
    pub fn feed_lag(&self, pool: &str, silent: Duration) {
        let seconds = i64::try_from(silent.as_secs()).unwrap_or(i64::MAX);
        self.feed_lag.get_or_create(&PoolLabel { pool: pool.to_owned() }).set(seconds);
    }

    /// Forgets a pool that is gone.
    pub fn forget_pool(&self, pool: &str) {
        self.feed_lag.remove(&PoolLabel { pool: pool.to_owned() });
    }
}
