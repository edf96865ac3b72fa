//! The role `delivery`: a pod of a DeliveryPool. It holds the index of its pool,
//! sends the probes that the controller asks for, and tells the controller what
//! it has.
//!
//! It never writes to the API server but for TokenReviews, and it dials nothing
//! but through [`crate::egress`].

mod arguments;
pub mod cards;
pub mod directory;
mod egress_policy;
pub mod internal_api;
mod metrics;
pub mod probe;
pub mod registrar;
pub mod replay;
pub mod sender;
pub mod slots;

use std::{env, io, net::SocketAddr, sync::Arc, time::Duration};

pub use arguments::DeliveryArguments;
use kube::Client;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    access::{Access, KubeTokenReviewer},
    egress::{ResolveError, ServiceResolver, SystemResolver},
    policy::egress::ClusterNetworks,
    routing::{
        index::{Index, SharedIndex},
        watch::{PoolView, Watches},
    },
    runtime::{
        clock,
        connections::{ServerOptions, Transport, serve_router},
        health::{ComponentHealth, Health},
        metrics::MetricsRegistry,
        server, tls, tls_files,
    },
};

use self::{egress_policy::ClientSource, internal_api::InternalApi, metrics::DeliveryMetrics, probe::Prober};

/// Connections to the internal API at a time: every probe may have its own.
pub const INTERNAL_CONNECTIONS_MAX: usize = 512;
/// Time for probes under way to end after the shutdown began.
pub const GRACE: Duration = Duration::from_secs(10);

/// Why a pod cannot start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No way to the API server.
    #[error("the configuration of the Kubernetes client cannot be used")]
    Client(#[source] Box<kube::Error>),
    /// A port is taken, or the address is not ours.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No name servers.
    #[error("the configuration of the name servers cannot be used")]
    Resolver(#[source] ResolveError),
}

/// Runs a delivery pod until `shutdown`.
///
/// # Flow
/// Bind both ports → watch the API server, the certificate and the pool's rules →
/// serve. Ready when the index is complete, the rules are known and there is a
/// certificate. On shutdown: not ready, waiting polls are answered, probes under
/// way get [`GRACE`] to end, then everything ends.
///
/// # Errors
/// [`RunError`], before anything is served.
pub async fn run(arguments: DeliveryArguments, shutdown: CancellationToken) -> Result<(), RunError> {
    tls::install_provider();
    let client = Client::try_default().await.map_err(|error| RunError::Client(Box::new(error)))?;
    let internal = listen(arguments.internal_listen).await?;
    let health_listener = listen(arguments.health_listen).await?;
    let resolver = Arc::new(SystemResolver::from_system().map_err(RunError::Resolver)?);

    let instance = clock::random_bytes::<8>().map(|byte| format!("{byte:02x}")).concat();
    let index = Arc::new(SharedIndex::new(Index::new(&arguments.pool, &instance)));
    let mut registry = MetricsRegistry::new("delivery");
    let metrics = DeliveryMetrics::register(&mut registry, Arc::clone(&index));

    let health = Health::default();
    let [index_health, egress_health, tls_health, serving] =
        ["index", "egress", "tls", "serving"].map(|name| health.component(name));
    let health_end = CancellationToken::new();
    let health_server = tokio::spawn(server::serve(health_listener, health, registry, health_end.clone()));

    let (pool_sender, pool) = watch::channel(PoolView::default());
    let (clients_sender, clients) = watch::channel(None);
    let watches = Watches {
        client: client.clone(),
        pool: arguments.pool.clone(),
        index: Arc::clone(&index),
        errors: metrics.watch_errors.clone(),
    };
    let source = ClientSource {
        cluster: cluster_networks(&arguments),
        is_loopback_allowed: arguments.insecure_allow_loopback,
        resolver,
    };
    let prober = Prober::new(clients, ServiceResolver::new(client.clone()));
    let access = Access::new(Arc::new(KubeTokenReviewer::new(client)), &arguments.callers());
    let api = InternalApi::with_metrics(access, Arc::clone(&index), prober, metrics, shutdown.clone());
    let options = ServerOptions {
        transport: Transport::Tls(tls_files::follow(arguments.tls_dir.clone(), tls_health)),
        connections_max: INTERNAL_CONNECTIONS_MAX,
        grace: GRACE,
    };
    serving.ready();
    tracing::info!(pool = arguments.pool, internal = %arguments.internal_listen, "the delivery pod has started");

    let serve = serve_router(internal, api.router(), options, shutdown.clone());
    let follow = async {
        tokio::join!(
            watches.run(pool_sender),
            egress_policy::follow(pool, source, clients_sender, egress_health),
            tell_when_synced(&index, &index_health),
            tell_shutdown(&shutdown, &serving),
        )
    };
    // Only the server ends by itself: after the shutdown, within the grace.
    tokio::select! { () = serve => {}, _never = follow => {} }
    health_end.cancel();
    // A panic there would be in the log; nothing is left to do about it.
    health_server.await.ok();
    Ok(())
}

async fn listen(address: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(address).await.map_err(|source| RunError::Listen { address, source })
}

async fn tell_when_synced(index: &SharedIndex, health: &ComponentHealth) {
    health.not_ready("waits for the API server to list namespaces, Webhooks and Subscriptions");
    index.until_synced().await;
    tracing::info!("the index is complete");
    health.ready();
}

async fn tell_shutdown(shutdown: &CancellationToken, serving: &ComponentHealth) {
    shutdown.cancelled().await;
    serving.not_ready("shutting down");
    std::future::pending::<()>().await;
}

fn cluster_networks(arguments: &DeliveryArguments) -> ClusterNetworks {
    // Set by the kubelet in every container.
    let api_server = env::var("KUBERNETES_SERVICE_HOST").ok().and_then(|host| host.parse().ok());
    ClusterNetworks {
        networks: arguments.cluster_cidr.clone(),
        api_servers: api_server.into_iter().collect(),
        domain: arguments.cluster_domain.trim_matches('.').to_owned(),
    }
}
