//! The metrics of a process, as OpenMetrics text.
//!
//! A part registers what it counts before the server starts; the registry is
//! then handed over and only read. Names of ours begin with `posthorn_`; what
//! every process has keeps the names that dashboards know (`process_…`).

use std::{fmt, fs};

use k8s_openapi::jiff::Timestamp;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{MetricType, gauge::ConstGauge, info::Info},
    registry::{Metric, Registry},
};

use super::clock;

/// Media type of [`MetricsRegistry::encode`].
pub const OPENMETRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What this process counts.
#[derive(Debug)]
pub struct MetricsRegistry(Registry);

impl MetricsRegistry {
    /// A registry with what every process has: `posthorn_build_info`, resident
    /// memory, start time, open files. `role` is the subcommand.
    pub fn new(role: &'static str) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessCollector { started: clock::now() }));
        let build = Info::new([("role", role), ("version", env!("CARGO_PKG_VERSION"))]);
        registry.sub_registry_with_prefix("posthorn").register("build", "What runs here", build);
        Self(registry)
    }

    /// Adds a metric. `name` without the prefix `posthorn_` and, for a counter,
    /// without the suffix `_total`: both are added. Metrics of prometheus-client
    /// share their values between clones: keep one, register the other.
    pub fn register(&mut self, name: &str, help: &str, metric: impl Metric) {
        self.0.sub_registry_with_prefix("posthorn").register(name, help, metric);
    }

    /// Adds a collector: what is read at each scrape. It names its metrics in
    /// full, with the prefix.
    pub fn register_collector(&mut self, collector: impl Collector) {
        self.0.register_collector(Box::new(collector));
    }

    /// The present values as OpenMetrics text.
    ///
    /// # Errors
    /// If a metric cannot be written; a defect of that metric.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.0)?;
        Ok(text)
    }
}

/// Reads `/proc/self` at each scrape. What cannot be read is left out.
#[derive(Debug)]
struct ProcessCollector {
    started: Timestamp,
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut gauge = |name, help, value: u64| {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(metric)
        };
        let started = u64::try_from(self.started.as_second()).unwrap_or(0);
        gauge("process_start_time_seconds", "When the process started, in seconds since 1970", started)?;
        if let Some(bytes) = fs::read_to_string("/proc/self/status").ok().as_deref().and_then(resident_bytes) {
            gauge("process_resident_memory_bytes", "Memory of the process that is in RAM", bytes)?;
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            gauge("process_open_fds", "Files and sockets that the process has open", entries.count() as u64)?;
        }
        Ok(())
    }
}

/// `VmRSS` of `/proc/<pid>/status`: unlike `statm` it does not need the size of a page.
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn names_have_the_prefix_and_the_text_ends_as_openmetrics_demands() {
        let mut metrics = MetricsRegistry::new("delivery");
        let probes = Counter::<u64>::default();
        metrics.register("probes", "Probes sent", probes.clone());
        probes.inc_by(3);
        let text = metrics.encode().unwrap();
        for expected in
            ["posthorn_probes_total 3\n", "posthorn_build_info{role=\"delivery\"", "process_start_time_seconds "]
        {
            assert!(text.contains(expected), "{expected} is missing in:\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn resident_memory_is_read_from_proc_status_and_nonsense_is_left_out() {
        let check = |status: &str, expected| assert_eq!(resident_bytes(status), expected, "{status:?}");
        check("Name:\tx\nVmRSS:\t    2048 kB\nThreads: 1\n", Some(2_097_152));
        check("VmRSS: 2048 MB\n", None);
        check("VmRSS: -1 kB\n", None);
        check("VmRSS: 18446744073709551615 kB\n", None);
        check("", None);
    }
}
