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
/// an error for each call that fails and a warning for each connection that ends,
/// several a second while the API server is away; whoever made the call says it
/// once, and to which object it was. An answer that it cannot parse it logs in
/// full, and that may be a Secret.
pub const DEFAULT_FILTER: &str = "info,kube_client::client=off";

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

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn by_default_the_kubernetes_client_is_silent_about_calls_and_everything_else_is_not() {
        let log = Log::default();
        let writer = log.clone();
        let layer = fmt::layer().with_ansi(false).with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(EnvFilter::new(DEFAULT_FILTER)).with(layer);
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "kube_client::client", "eof in poll");
            tracing::error!(target: "kube_client::client::builder", "failed with error");
            tracing::debug!(target: "posthorn::delivery", "too much");
            tracing::warn!(target: "kube_client::config", "a bad kubeconfig");
            tracing::info!(target: "posthorn::delivery", "our own words");
        });
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let told: Vec<_> = text.lines().filter_map(|line| line.split_once(": ").map(|(_, words)| words)).collect();
        assert_eq!(told, ["a bad kubeconfig", "our own words"], "{text}");
    }
}
