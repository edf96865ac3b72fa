//! The role `controller` from start to end: serve health, stand for election,
//! lead until shutdown, and stand again whenever the Lease is lost.

use std::{sync::Arc, time::Duration};

use kube::Client;
use tokio::{net::TcpListener, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    arguments::ControllerArguments,
    backoff::Backoff,
    client::{self, ClientError},
    internal::{self, InternalMaterial},
    leader::Candidate,
    metrics::Metrics,
    pods::{PodAddress, PodClient, PodError},
    pool,
    work::{self, Leadership},
};
use crate::{
    runtime::{clock, health::Health, metrics::MetricsRegistry, server, tls},
    verify::fingerprint::FingerprintKey,
};

/// Longest wait between two tries to have the internal trust.
const TRUST_BACKOFF_MAX: Duration = Duration::from_secs(15);
/// Time for reconciles under way to end after the shutdown began.
const GRACE: Duration = Duration::from_secs(10);

/// Why the controller ended before its shutdown.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// No way to the API server.
    #[error("cannot talk to the API server")]
    Client(#[from] ClientError),
    /// The address of the health server is taken.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The internal authority is unusable.
    #[error("cannot set up calls of delivery pods")]
    Pods(#[from] PodError),
    /// The fingerprint key is not as long as it must be.
    #[error(
        "the fingerprint key in Secret {} does not have {} bytes",
        internal::KEYS_SECRET,
        internal::FINGERPRINT_KEY_BYTES
    )]
    FingerprintKey,
}

/// Runs the controller until `shutdown`.
///
/// # Errors
/// If it cannot start, or if what it needs to lead is unusable.
pub async fn run(arguments: ControllerArguments, shutdown: CancellationToken) -> Result<(), ControllerError> {
    tls::install_provider();
    let mut registry = MetricsRegistry::new("controller");
    let metrics = Metrics::register(&mut registry);
    let health = Health::default();
    let api_server = health.component("api-server");
    let address = arguments.health_listen;
    let listener = TcpListener::bind(address).await.map_err(|source| ControllerError::Listen { address, source })?;
    let health_shutdown = CancellationToken::new();
    let serving = tokio::spawn(server::serve(listener, health, registry, health_shutdown.clone()));

    let client = client::connect(&metrics).await?;
    // A standby is ready as well: readiness says that it could lead.
    api_server.ready();
    let result = elect_and_lead(&arguments, &client, &metrics, &shutdown).await;
    api_server.not_ready("shutting down");
    health_shutdown.cancel();
    serving.await.ok();
    result
}

async fn elect_and_lead(
    arguments: &ControllerArguments,
    client: &Client,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> Result<(), ControllerError> {
    if !arguments.leader_election {
        metrics.leader.set(1);
        return lead(arguments, client, metrics, shutdown).await;
    }
    let candidate = Candidate::new(client.clone(), &arguments.namespace, arguments.identity.clone());
    while !shutdown.is_cancelled() {
        tracing::info!(identity = arguments.identity, "standing for election");
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = candidate.lead() => {}
        }
        lead_until_lost(&candidate, arguments, client, metrics, shutdown).await?;
    }
    Ok(())
}

/// Leads until shutdown, or until the Lease is lost. Dropping the leading future
/// stops every write: it owns all tasks, and a request that is under way is as
/// likely to arrive as if the process had ended. So a replica that lost the
/// Lease stands again and need not restart: an API server that is away for a
/// minute takes the Lease from everybody.
async fn lead_until_lost(
    candidate: &Candidate,
    arguments: &ControllerArguments,
    client: &Client,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> Result<(), ControllerError> {
    tracing::info!(identity = arguments.identity, "leading");
    metrics.leader.set(1);
    let ended = tokio::select! {
        result = lead(arguments, client, metrics, shutdown) => Ok(result),
        lost = candidate.hold() => Err(lost),
    };
    metrics.leader.set(0);
    match ended {
        Ok(result) => {
            candidate.release().await;
            result
        }
        Err(lost) => {
            tracing::warn!(reason = %lost, "the Lease is lost; all work has stopped, and this replica stands again");
            Ok(())
        }
    }
}

async fn lead(
    arguments: &ControllerArguments,
    client: &Client,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> Result<(), ControllerError> {
    let InternalMaterial { ca_pem, fingerprint_key } = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        material = trust(client, &arguments.namespace) => material,
    };
    let key: [u8; internal::FINGERPRINT_KEY_BYTES] =
        fingerprint_key.expose().try_into().map_err(|_| ControllerError::FingerprintKey)?;
    let address = PodAddress { template: arguments.delivery_url.clone(), namespace: arguments.namespace.clone() };
    let pods = PodClient::new(&ca_pem, address, arguments.token_file.clone())?;
    let leadership = Leadership {
        client: client.clone(),
        namespace: arguments.namespace.clone(),
        identity: arguments.identity.clone(),
        fingerprint_key: FingerprintKey::new(key),
        pods: pods.clone(),
        metrics: metrics.clone(),
    };
    let pools = pool::Context {
        client: client.clone(),
        release_namespace: arguments.namespace.clone(),
        settings: arguments.pools.clone(),
        pods,
    };
    let both = async {
        tokio::join!(work::run(leadership, shutdown.clone()), pool::run(Arc::new(pools), shutdown.clone()));
    };
    tokio::pin!(both);
    tokio::select! {
        () = &mut both => return Ok(()),
        () = shutdown.cancelled() => {}
    }
    if tokio::time::timeout(GRACE, both).await.is_err() {
        tracing::warn!("reconciles did not end within {GRACE:?} after the shutdown began; they are cut off");
    }
    Ok(())
}

/// The internal trust, however long the API server takes.
async fn trust(client: &Client, namespace: &str) -> InternalMaterial {
    let mut backoff = Backoff::new(Duration::from_secs(1), TRUST_BACKOFF_MAX);
    loop {
        match internal::ensure(client, namespace, clock::now()).await {
            Ok(material) => return material,
            Err(error) => tracing::warn!(error = %with_causes(&error), "cannot have the internal trust yet"),
        }
        sleep(backoff.next(clock::chance())).await;
    }
}

/// An error with its causes, in one line.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
