//! The role `inbox`: a receiver for demos and tests. It answers every handshake,
//! accepts events, checks signatures if it has the secret, and prints one line
//! for each request. Paths make it misbehave; see [`behavior::Behavior`].
//!
//! It shows how a receiver should be written: the signature is checked over the
//! raw bytes before anything is believed, a proof is given only to who signed,
//! and what it keeps is bounded. It never prints a secret: of the headers it
//! shows the values of those that it knows, and only the names of the others.

pub mod arguments;
pub mod behavior;
pub mod journal;
pub mod receiver;
mod server;

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::runtime::secret::SecretBytes;

/// How an inbox is run.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The signing secret of the Webhooks that point here, as it stands in their
    /// Secret. Without it signatures and tokens are not checked.
    pub secret: Option<SecretBytes>,
    /// Serve HTTPS with this; plain HTTP without.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Print one line for each request to stdout.
    pub print: bool,
}

/// Serves until `shutdown`, then ends what is under way within a second.
pub async fn run(config: Config, listener: TcpListener, shutdown: CancellationToken) {
    server::serve(config, listener, shutdown).await;
}
