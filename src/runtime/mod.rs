//! What every role of the binary needs: logs, metrics and health endpoints,
//! shutdown, the clock, secrets in memory. Knows nothing of webhooks.

pub mod clock;
pub mod logging;
pub mod secret;
pub mod shutdown;
