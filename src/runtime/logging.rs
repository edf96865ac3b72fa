//! Structured logs on stderr: JSON in a cluster, text for people.

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// What is logged unless `RUST_LOG` says otherwise. The Kubernetes client writes
/// an error for each call that fails, several a second while the API server is away;
/// whoever made the call says it once, and to which object it was.
pub const DEFAULT_FILTER: &str = "info,kube_client::client::builder=off";

/// Starts logging; `RUST_LOG` overrides [`DEFAULT_FILTER`]. To be called once.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Json => registry
            .with(
                fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_current_span(false)
                    .with_span_list(false)
                    .with_writer(std::io::stderr),
            )
            .init(),
        LogFormat::Text => registry.with(fmt::layer().with_writer(std::io::stderr)).init(),
    }
}
