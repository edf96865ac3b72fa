//! Puts a delivery pod together and runs it.

use std::{env, io, net::SocketAddr, sync::Arc, time::Duration};

use kube::{Client, Config, config::InferConfigError};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinError, JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    DeliveryArguments,
    board::Board,
    cards::{CardKeeper, CardMetrics, Cards},
    directory::Directory,
    egress_policy::{self, ClientSource},
    hooks::PodHooks,
    internal_api::{InternalApi, StoreState},
    kept_pool, limits,
    metrics::DeliveryMetrics,
    probe::Prober,
    registrar::Registrar,
    replay::ReplayRunner,
    sender::{Pace, RunDir, SecretCache, Sender, fingerprint_key},
    store_folder::{self, OpenStore, StoreCounts, Waiting},
};
use crate::{
    access::{self, Access, KubeAuthorizer, KubeTokenReviewer, publish::PublishAccess},
    dispatch::{DispatchMetrics, Dispatcher, DispatcherHandle},
    egress::{Clients, ResolveError, ServiceResolver, SystemResolver},
    ingest::{self, IngestApi, IngestMetrics, IngestParts, IngestSettings},
    policy::egress::ClusterNetworks,
    routing::{
        index::{Index, SharedIndex},
        watch::{PoolView, Watches},
    },
    runtime::{
        clock,
        connections::{ServerOptions, Transport, serve},
        health::{ComponentHealth, Health},
        metrics::MetricsRegistry,
        reachability::Reachability,
        server, tls, tls_files,
    },
    store::{
        Partition, StoreError,
        sqlite::{OpenError, SqliteStore},
    },
    verify::{challenge::request_origin, fingerprint::FingerprintKey},
};

/// Connections to the internal API at a time: every probe may have its own.
pub const INTERNAL_CONNECTIONS_MAX: usize = 512;
/// Time for what is under way to end after the shutdown began: attempts are
/// handed back after it. With the rest of the shutdown less than the grace
/// period of the pod.
pub const GRACE: Duration = Duration::from_secs(20);
/// Time for a connection to the API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the API server to list everything before the pod is ready with what
/// its store remembers: it may know better, and mostly it is there.
const LISTING_PATIENCE: Duration = Duration::from_secs(2);
/// Time beyond it for outcomes to become durable: they do not while the volume is
/// full.
const RECORD_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the store to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// The token of the pod's own ServiceAccount: tells whose tokens the API server makes.
const OWN_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Why a pod ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No way to the API server.
    #[error("cannot find out how to reach the API server: run inside a cluster or set KUBECONFIG")]
    Config(#[source] Box<InferConfigError>),
    /// The way cannot be used.
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
    /// The store cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store failed while it ran. What was acknowledged is in it; the next
    /// start reads it anew.
    #[error("the store failed, so the pod ends; see whether its volume is sound")]
    Store(#[from] StoreError),
}

/// What every part of a pod uses.
struct Base {
    arguments: DeliveryArguments,
    client: Client,
    index: Arc<SharedIndex>,
    instance: String,
    pool: watch::Receiver<PoolView>,
    api_server: Reachability,
    clients: watch::Receiver<Option<Arc<Clients>>>,
    key: watch::Receiver<Option<FingerprintKey>>,
    run_dir: Option<Arc<RunDir>>,
    metrics: DeliveryMetrics,
    dispatch_metrics: DispatchMetrics,
    card_metrics: CardMetrics,
    ingest_metrics: IngestMetrics,
    serving: ComponentHealth,
    tls: ComponentHealth,
    shutdown: CancellationToken,
}

/// Runs a delivery pod until `shutdown`.
///
/// # Flow
/// Bind every port → watch the API server, the certificate, the keys and the
/// pool's rules → serve the internal API → open the store, for as long as that
/// takes → register what the store and the API server know → deliver, take events
/// in. On shutdown: not ready, no events are
/// taken any more, attempts under way get [`GRACE`] and are handed back, the
/// store is closed.
///
/// # Errors
/// [`RunError`]: the pod cannot start, or its store failed.
pub async fn run(arguments: DeliveryArguments, shutdown: CancellationToken) -> Result<(), RunError> {
    tls::install_provider();
    let client = connect().await?;
    let internal = listen(arguments.internal_listen).await?;
    let health_listener = listen(arguments.health_listen).await?;
    let publishers = listen(arguments.ingest_listen).await?;
    let resolver = Arc::new(SystemResolver::from_system().map_err(RunError::Resolver)?);

    let instance = clock::random_bytes::<8>().map(|byte| format!("{byte:02x}")).concat();
    let index = Arc::new(SharedIndex::new(Index::recorded(&arguments.pool, &instance)));
    let mut registry = MetricsRegistry::new("delivery");
    let metrics = DeliveryMetrics::register(&mut registry, Arc::clone(&index));
    let dispatch_metrics = DispatchMetrics::register(&mut registry);
    let card_metrics = CardMetrics::register(&mut registry);
    let ingest_metrics = IngestMetrics::register(&mut registry);
    let counts = StoreCounts::register(&mut registry);

    let health = Health::default();
    let [store, known, egress, tls, keys, serving] =
        ["store", "index", "egress", "tls", "keys", "serving"].map(|name| health.component(name));
    let health_end = CancellationToken::new();
    let health_server = tokio::spawn(server::serve(health_listener, health, registry, health_end.clone()));

    let (pool_sender, pool) = watch::channel(kept_pool::read(&arguments.run_dir));
    let (clients_sender, clients) = watch::channel(None);
    let api_server = Reachability::default();
    let watches = Watches {
        client: client.clone(),
        pool: arguments.pool.clone(),
        index: Arc::clone(&index),
        errors: metrics.watch_errors.clone(),
        api_server: api_server.clone(),
    };
    let source = ClientSource {
        cluster: cluster_networks(&arguments),
        is_loopback_allowed: arguments.insecure_allow_loopback,
        resolver,
    };
    let mut followers = JoinSet::new();
    followers.spawn(watches.run(pool_sender));
    followers.spawn(egress_policy::follow(pool.clone(), source, clients_sender, egress));
    followers.spawn(tell_when_usable(Arc::clone(&index), known));
    followers.spawn(kept_pool::follow(arguments.run_dir.clone(), pool.clone()));
    let run_dir = open_run_dir(&arguments);
    let key = fingerprint_key::follow(&arguments.keys_dir, run_dir.clone(), keys);

    let base = Base {
        client,
        index,
        instance,
        pool,
        api_server,
        clients,
        key,
        run_dir,
        metrics,
        dispatch_metrics,
        card_metrics,
        ingest_metrics,
        serving,
        tls,
        shutdown,
        arguments,
    };
    let ended = base.open_and_deliver(store, &counts, internal, publishers).await;
    health_end.cancel();
    // A panic there would be in the log; nothing is left to do about it.
    health_server.await.ok();
    ended
}

impl Base {
    /// Serves the internal API, opens the store, and works on it until the shutdown.
    async fn open_and_deliver(
        self,
        store: ComponentHealth,
        counts: &StoreCounts,
        internal: TcpListener,
        publishers: TcpListener,
    ) -> Result<(), RunError> {
        let (state, states) = watch::channel(StoreState::Opening);
        let mut served = self.serve_internal(internal, states);
        let waiting = Waiting { health: store, state };
        match store_folder::open(&self.arguments, &self.client, &waiting, counts, &self.shutdown).await? {
            Some(open) => Ok(self.deliver(open, waiting.state, served, publishers).await?),
            None => {
                while served.join_next().await.is_some() {}
                Ok(())
            }
        }
    }

    async fn deliver(
        self,
        open: OpenStore,
        state: watch::Sender<StoreState>,
        mut served: JoinSet<()>,
        publishers: TcpListener,
    ) -> Result<(), StoreError> {
        let OpenStore { store, news } = open;
        let store_id = store.store_id().to_owned();
        let partition: Arc<dyn Partition> = store.clone();
        let secrets = SecretCache::new(self.client.clone(), self.run_dir.clone(), Pace::default());
        let sender = Sender::new(
            self.clients.clone(),
            ServiceResolver::new(self.client.clone()),
            secrets.clone(),
            self.key.clone(),
            &request_origin(&self.arguments.namespace),
        );
        let (dispatcher, handle) =
            Dispatcher::new(Arc::clone(&partition), Arc::new(sender), news, self.dispatch_metrics.clone());
        let known = partition.known().await?;
        let hooks = Arc::new(PodHooks::new(handle.clone(), secrets, Arc::clone(&self.index), &known));
        drop(known);
        let directory: Arc<dyn Directory> = hooks.clone();
        let cards = Cards::new(&store_id, &self.arguments.pool);
        let board = Board::new(&self.instance, &store_id, Arc::clone(&directory), cards.clone());

        let dispatching = tokio::spawn(dispatcher.run());
        let mut tasks = JoinSet::new();
        let registrar = Registrar::new(Arc::clone(&self.index), Arc::clone(&partition), hooks, self.key.clone());
        tasks.spawn(registrar.run());
        let keeper = CardKeeper::new(
            Arc::clone(&partition),
            Arc::clone(&directory),
            self.client.clone(),
            cards.clone(),
            self.card_metrics.clone(),
        );
        tasks.spawn(keeper.run());
        let index = Arc::clone(&self.index);
        let uid = move |namespace: &str| index.read(|index| index.namespace_uid(namespace).map(|uid| uid.to_string()));
        tasks.spawn(ReplayRunner::new(Arc::clone(&partition), directory, self.client.clone(), cards, uid).run());
        let (follower, counted, told) = (board.clone(), Arc::clone(&partition), handle.clone());
        tasks.spawn(async move { follower.follow(counted, told).await });

        state.send_replace(StoreState::Open(Arc::new(board)));
        let _followers = self.serve_publishers(store, publishers, &mut served);
        self.serving.ready();
        tracing::info!(pool = self.arguments.pool, store = store_id, "the delivery pod has started");
        self.until_shutdown(&handle, dispatching, tasks, served, partition).await
    }

    /// Waits for the shutdown, or for the store to fail; then ends in good order:
    /// no new events, no new attempts, running ones get their grace, the store
    /// last.
    async fn until_shutdown(
        &self,
        handle: &DispatcherHandle,
        mut dispatching: JoinHandle<Result<(), StoreError>>,
        mut tasks: JoinSet<Result<(), StoreError>>,
        mut served: JoinSet<()>,
        partition: Arc<dyn Partition>,
    ) -> Result<(), StoreError> {
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            ended = &mut dispatching => return joined(ended),
            // Each of them runs for ever: one that ends tells of the store.
            Some(ended) = tasks.join_next() => return joined(ended),
        }
        tracing::info!("shutting down");
        self.serving.not_ready("shutting down");
        handle.shutdown(GRACE);
        let (ended, ()) = tokio::join!(timeout(GRACE + RECORD_TIMEOUT, &mut dispatching), async {
            while served.join_next().await.is_some() {}
        });
        tasks.shutdown().await;
        match ended {
            Ok(Ok(Err(error))) => return Err(error),
            Ok(_) => {}
            Err(_) => {
                dispatching.abort();
                tracing::warn!("the last outcomes could not be recorded; what they delivered is delivered again");
            }
        }
        timeout(CLOSE_TIMEOUT, partition.close()).await.unwrap_or(Ok(()))?;
        tracing::info!("the store is closed");
        Ok(())
    }

    /// Ingest; it ends within its grace after the shutdown. What it needs meanwhile
    /// lives as long as the set that is returned.
    fn serve_publishers(
        &self,
        store: Arc<SqliteStore>,
        publishers: TcpListener,
        served: &mut JoinSet<()>,
    ) -> JoinSet<()> {
        let mut followers = JoinSet::new();
        let (settings_sender, settings) = watch::channel(IngestSettings::default());
        let own_issuer = std::fs::read_to_string(OWN_TOKEN).ok().and_then(|token| access::issuer(token.trim()));
        let release = self.arguments.namespace.clone();
        let parts = IngestParts {
            store: store.clone(),
            namespaces: Arc::clone(&self.index),
            access: PublishAccess::new(
                Arc::new(KubeTokenReviewer::new(self.client.clone())),
                Arc::new(KubeAuthorizer::new(self.client.clone())),
                own_issuer,
                self.api_server.clone(),
            ),
            settings,
            metrics: self.ingest_metrics.clone(),
            service_of: Box::new(move |pool| format!("posthorn-{pool}.{release}.svc")),
        };
        served.spawn(ingest::serve(publishers, IngestApi::new(parts), self.shutdown.clone()));
        followers.spawn(limits::follow(self.pool.clone(), store, settings_sender));
        followers
    }

    /// The internal API; it ends within its grace after the shutdown.
    fn serve_internal(&self, internal: TcpListener, states: watch::Receiver<StoreState>) -> JoinSet<()> {
        let reviewer = Arc::new(KubeTokenReviewer::new(self.client.clone()));
        let prober = Prober::new(self.clients.clone(), ServiceResolver::new(self.client.clone()));
        let access = Access::new(reviewer, &self.arguments.callers());
        let (index, metrics) = (Arc::clone(&self.index), self.metrics.clone());
        let api = InternalApi::with_metrics(access, index, prober, metrics, self.shutdown.clone());
        let options = ServerOptions {
            transport: Transport::Tls(tls_files::follow(self.arguments.tls_dir.clone(), self.tls.clone())),
            connections_max: INTERNAL_CONNECTIONS_MAX,
            grace: GRACE,
        };
        let router = api.with_store(states).router();
        let mut served = JoinSet::new();
        served.spawn(serve(internal, router, options, self.shutdown.clone()));
        served
    }
}

/// The way to the API server. Without retries of the client's own: it would hide a
/// 503 for minutes, and look again later than whoever asked, who knows better.
async fn connect() -> Result<Client, RunError> {
    let mut config = Config::infer().await.map_err(|error| RunError::Config(Box::new(error)))?;
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Client::try_from(config).map_err(|error| RunError::Client(Box::new(error)))
}

/// A task that panicked is a defect; the process ends with an error and starts anew.
fn joined(ended: Result<Result<(), StoreError>, JoinError>) -> Result<(), StoreError> {
    match ended {
        Ok(Ok(())) => Err(StoreError::Failed("a part of the pod ended by itself".into())),
        Ok(Err(error)) => Err(error),
        Err(panic) => Err(StoreError::Failed(panic.to_string().into())),
    }
}

fn open_run_dir(arguments: &DeliveryArguments) -> Option<Arc<RunDir>> {
    match RunDir::open(&arguments.run_dir) {
        Ok(run_dir) => Some(Arc::new(run_dir)),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "Secrets do not survive a restart of the container");
            None
        }
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(address).await.map_err(|source| RunError::Listen { address, source })
}

/// Ready with what the API server lists; without its answer, with what the store
/// remembers: a pod that restarts while it is away must not stay closed. A pod
/// whose store remembers nothing has nothing to work with and waits.
async fn tell_when_usable(index: Arc<SharedIndex>, health: ComponentHealth) {
    health.not_ready("waits for the API server to list namespaces, Webhooks and Subscriptions");
    let remembered = async {
        index.until_usable().await;
        sleep(LISTING_PATIENCE).await;
    };
    tokio::select! {
        biased;
        () = index.until_complete() => {}
        () = remembered => {
            tracing::warn!("the API server has not listed everything yet; the pod works with what its store remembers");
            health.ready();
            index.until_complete().await;
        }
    }
    tracing::info!("the index is complete");
    health.ready();
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
