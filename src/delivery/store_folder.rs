//! Opens the store of this pod: the one that its DeliveryPool has recorded, or
//! a fresh one if none is. What does not fit is left alone until an admin says
//! so; the pod waits, not ready, and tells what to do.

use std::{path::Path, sync::Arc, time::Duration};

use kube::{Api, Client};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{DeliveryArguments, internal_api::StoreState, limits::store_limits};
use crate::{
    api::{ACCEPT_STORE_ANNOTATION, DeliveryPool, Reason},
    routing::table::RoutingTable,
    runtime::{health::ComponentHealth, metrics::MetricsRegistry},
    store::{
        NewsReceiver, StoreLimits, news_channel,
        sqlite::{OpenError, SqliteConfig, SqliteStore, StoreMetrics, SystemClock},
    },
    wire::index_feed::StoreProblem,
};

/// Time for the API server to tell of the pool. With a store on the volume the
/// pod goes on without: its name of the pool and its lock still protect it.
const POOL_TIMEOUT: Duration = Duration::from_secs(2);
/// Why a pod with an empty volume waits for its DeliveryPool.
const UNKNOWN_POOL: &str =
    "waits for the API server: the volume is empty, and whether it should be stands in the DeliveryPool";
/// Pause before a store that does not fit is looked at again.
const RETRY: Duration = Duration::from_secs(5);

/// A store that is open.
pub(super) struct OpenStore {
    pub(super) store: Arc<SqliteStore>,
    pub(super) news: NewsReceiver,
}

/// Where it is told why the store is not open yet.
pub(super) struct Waiting {
    /// For `/readyz`.
    pub(super) health: ComponentHealth,
    /// For the internal API.
    pub(super) state: watch::Sender<StoreState>,
}

impl Waiting {
    /// Says it once: the volume is looked at again and again.
    fn tell(&self, told: &mut String, problem: String) {
        if *told == problem {
            return;
        }
        tracing::error!(problem, "the store is not open");
        self.health.not_ready(problem.clone());
        *told = problem;
    }

    /// The volume holds what this pool must not use until an admin says so.
    fn refuse(&self, told: &mut String, error: &OpenError) {
        let (reason, message) = (Reason::StoreMismatch, error.to_string());
        self.tell(told, format!("{}: {message}", reason.as_str()));
        self.state.send_replace(StoreState::Refused(StoreProblem { reason, message }));
    }
}

/// What is counted of it.
#[derive(Clone, Debug)]
pub(super) struct StoreCounts {
    /// Subscriptions that new events are matched with.
    pub(super) routed: Gauge,
    pub(super) store: StoreMetrics,
}

impl StoreCounts {
    pub(super) fn register(registry: &mut MetricsRegistry) -> Self {
        let counts = Self { routed: Gauge::default(), store: StoreMetrics::register(registry) };
        let help = "Subscriptions that new events are matched with";
        registry.register("routed_subscriptions", help, counts.routed.clone());
        counts
    }
}

/// What the pool says about the store of this pod.
#[derive(Clone, Debug, Default, PartialEq)]
struct Recorded {
    expected: Option<String>,
    accepted: Option<String>,
    limits: StoreLimits,
}

/// Opens the store; none if the pod shuts down before.
///
/// # Errors
/// [`OpenError`] of a store that cannot be used at all. One that is not the
/// recorded one is waited for.
pub(super) async fn open(
    arguments: &DeliveryArguments,
    client: &Client,
    waiting: &Waiting,
    counts: &StoreCounts,
    shutdown: &CancellationToken,
) -> Result<Option<OpenStore>, OpenError> {
    let mut told = String::new();
    loop {
        let attempt = async {
            let recorded = ask(client, arguments).await;
            let is_there = arguments.data_dir.join("store.db").exists();
            match recorded {
                Some(recorded) => Some(recorded),
                None if is_there => Some(Recorded::default()),
                None => None,
            }
        };
        let recorded = tokio::select! { recorded = attempt => recorded, () = shutdown.cancelled() => return Ok(None) };
        match recorded {
            None => waiting.tell(&mut told, UNKNOWN_POOL.to_owned()),
            Some(recorded) => match open_now(arguments, recorded, counts.clone()).await {
                Ok(open) => {
                    tracing::info!(store = open.store.store_id(), "the store is open");
                    waiting.health.ready();
                    waiting.state.send_replace(StoreState::Opening);
                    return Ok(Some(open));
                }
                Err(error) if error.is_mismatch() => waiting.refuse(&mut told, &error),
                Err(error) => return Err(error),
            },
        }
        tokio::select! { () = sleep(RETRY) => {}, () = shutdown.cancelled() => return Ok(None) }
    }
}

async fn ask(client: &Client, arguments: &DeliveryArguments) -> Option<Recorded> {
    let api = Api::<DeliveryPool>::all(client.clone());
    let pool = timeout(POOL_TIMEOUT, api.get(&arguments.pool)).await.ok()?.ok()?;
    Some(recorded(&pool, &arguments.pod_name))
}

fn recorded(pool: &DeliveryPool, pod: &str) -> Recorded {
    let stores = pool.status.as_ref().map(|status| status.stores.as_slice()).unwrap_or_default();
    let annotations = pool.metadata.annotations.as_ref();
    Recorded {
        expected: stores.iter().find(|store| store.pod == pod).map(|store| store.id.clone()),
        accepted: annotations.and_then(|all| all.get(ACCEPT_STORE_ANNOTATION)).map(|id| id.trim().to_owned()),
        limits: store_limits(&pool.spec),
    }
}

async fn open_now(
    arguments: &DeliveryArguments,
    recorded: Recorded,
    counts: StoreCounts,
) -> Result<OpenStore, OpenError> {
    let config = SqliteConfig {
        folder: arguments.data_dir.clone(),
        pool: arguments.pool.clone(),
        expected_store: recorded.expected,
        accept_store: recorded.accepted,
        limits: recorded.limits,
        clock: Arc::new(SystemClock),
        metrics: counts.store,
    };
    let folder = config.folder.clone();
    // Recovery reads the disk for as long as it takes.
    let opened = tokio::task::spawn_blocking(move || {
        let (sender, news) = news_channel();
        let store = SqliteStore::open(config, Box::new(RoutingTable::counted(counts.routed)), sender)?;
        Ok(OpenStore { store, news })
    });
    opened.await.unwrap_or_else(|panic| Err(panicked(&folder, panic)))
}

/// A defect: told as an error of the folder, so that the process ends with a word.
fn panicked(folder: &Path, panic: tokio::task::JoinError) -> OpenError {
    OpenError::Io { folder: folder.to_owned(), source: std::io::Error::other(panic) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_pool_tells_which_store_its_pod_had_and_which_may_be_taken() {
        let pool: DeliveryPool = serde_json::from_value(json!({
            "apiVersion": "posthorn.dev/v1alpha1", "kind": "DeliveryPool",
            "metadata": { "name": "eu", "annotations": { ACCEPT_STORE_ANNOTATION: " b2 " } },
            "spec": { "store": { "size": "1Gi" } },
            "status": { "stores": [{ "pod": "posthorn-eu-0", "id": "a1" }] },
        }))
        .unwrap();
        let of = |pod| recorded(&pool, pod);
        assert_eq!(of("posthorn-eu-0").expected.as_deref(), Some("a1"));
        assert_eq!(of("posthorn-eu-1").expected, None);
        assert_eq!(of("posthorn-eu-0").accepted.as_deref(), Some("b2"));
        assert_eq!(of("posthorn-eu-0").limits, store_limits(&pool.spec));
    }
}
