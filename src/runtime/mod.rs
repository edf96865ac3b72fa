//! What every role of the binary needs: logs, metrics and health endpoints,
//! shutdown, the clock, secrets in memory. Knows nothing of webhooks.

pub mod clock;
pub mod connections;
pub mod health;
pub mod logging;
pub mod metrics;
pub(crate) mod pack;
pub mod problem;
pub mod reachability;
pub mod secret;
pub mod server;
pub mod shutdown;
pub mod tls;
pub mod tls_files;
