//! DeliveryPool: its StatefulSet, Services, PodDisruptionBudget, NetworkPolicy
//! and certificate.
//!
//! A reconcile is gather → validate → plan → apply → status. Only gather, apply
//! and status hold a client. Everything is applied server-side by one field
//! manager and by force on our own fields, so a change by hand is put back,
//! and fields that others own stay theirs. What is in place is not written again.

mod apply;
mod build;
mod default_pool;
mod drift;
mod gather;
mod network_policy;
mod plan;
pub mod settings;
mod status;
mod validate;

use std::{fmt::Debug, sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{apps::v1::StatefulSet, core::v1::Service, networking::v1::NetworkPolicy, policy::v1::PodDisruptionBudget},
    jiff::Timestamp,
};
use kube::{Api, Client, Resource, ResourceExt};
use kube_runtime::{
    controller::{self, Action, Controller},
    reflector::ObjectRef,
    watcher,
};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use self::status::{Outcome, PodStore};
use super::{internal, names, pods::PodClient};
use crate::{
    api::{ConditionType, DeliveryPool, POOL_LABEL, condition},
    runtime::clock,
};

pub use settings::PoolSettings;

/// Pools that are worked on at once.
const CONCURRENCY: u16 = 4;
/// One change of a pool comes as several events of its objects.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// A settled pool is looked at again for what no watch tells: the end of its
/// certificate, the address of the API server.
const SETTLED_INTERVAL: Duration = Duration::from_secs(300);
/// A pool that is not ready is looked at again for what its pods wait for.
const STARTING_INTERVAL: Duration = Duration::from_secs(10);
/// Time until a failed reconcile is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// What the reconciliation of pools needs.
#[derive(Clone)]
pub struct Context {
    /// The API server.
    pub client: Client,
    /// The namespace that everything of ours lives in.
    pub release_namespace: String,
    /// What the operator's flags say about every pool.
    pub settings: PoolSettings,
    /// The delivery pods: they tell which store they have.
    pub pods: PodClient,
}

/// A reconcile failed. One variant a step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something could not be read.
    #[error(transparent)]
    Gather(#[from] gather::Error),
    /// The certificate or the keys could not be had.
    #[error(transparent)]
    Trust(#[from] internal::Error),
    /// A part could not be applied.
    #[error(transparent)]
    Apply(#[from] apply::Error),
    /// The status could not be written.
    #[error(transparent)]
    Status(#[from] status::Error),
}

/// Keeps every DeliveryPool in shape until `shutdown`. To be run by the elected
/// controller alone. If the settings hold the pool `default`, it is kept as well.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    tokio::join!(keep_default_pool(&context, &shutdown), control(Arc::clone(&context), shutdown.clone()));
}

/// Applies the pool `default` now and again: an admin who deleted it by mistake
/// gets it back, one who does not want it says so in the values.
async fn keep_default_pool(context: &Context, shutdown: &CancellationToken) {
    let Some(spec) = context.settings.default_pool() else { return };
    loop {
        let wait = match default_pool::ensure(&context.client, spec).await {
            Ok(()) => SETTLED_INTERVAL,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot keep the default pool");
                RETRY_INTERVAL
            }
        };
        tokio::select! { () = tokio::time::sleep(wait) => {}, () = shutdown.cancelled() => return }
    }
}

async fn control(context: Arc<Context>, shutdown: CancellationToken) {
    let config = controller::Config::default().concurrency(CONCURRENCY).debounce(DEBOUNCE);
    let controller = Controller::new(Api::<DeliveryPool>::all(context.client.clone()), watcher::Config::default());
    let controller = watch::<StatefulSet>(controller, &context);
    let controller = watch::<Service>(controller, &context);
    let controller = watch::<PodDisruptionBudget>(controller, &context);
    let controller = watch::<NetworkPolicy>(controller, &context);
    controller
        .with_config(config)
        .graceful_shutdown_on(shutdown.cancelled_owned())
        .run(reconcile, retry, context)
        .for_each(|result| async move {
            match result {
                // A pool that was deleted while its objects went away.
                Ok(_) | Err(controller::Error::ObjectNotFound(_)) => {}
                Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "a pool is not in shape"),
            }
        })
        .await;
}

/// Lets changes of a pool's objects wake its reconcile. By label, not by owner:
/// the objects have a namespace and their owner has none.
fn watch<K>(controller: Controller<DeliveryPool>, context: &Context) -> Controller<DeliveryPool>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + DeserializeOwned
        + Clone
        + Debug
        + Send
        + Sync
        + 'static,
{
    let ours = watcher::Config::default().labels(&format!("{}={}", names::MANAGED_BY_LABEL, names::MANAGED_BY));
    let api = Api::<K>::namespaced(context.client.clone(), &context.release_namespace);
    controller.watches(api, ours, |object| object.labels().get(POOL_LABEL).map(|pool| ObjectRef::new(pool)))
}

/// One pool, from what is there to what it should be. Safe to repeat.
async fn reconcile(pool: Arc<DeliveryPool>, context: Arc<Context>) -> Result<Action, Error> {
    if pool.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let now = clock::now();
    let (name, namespace) = (pool.name_any(), &context.release_namespace);
    let gathered = gather::gather(&context, &name).await?;
    let valid = match validate::validate(&pool, gathered.maybe_stateful_set.as_ref()) {
        Ok(valid) => valid,
        Err(invalid) => return settle(&pool, &context, &Outcome::Invalid(&invalid), now).await,
    };
    if let Err(error) = trust(&context, &pool, now).await {
        settle(&pool, &context, &Outcome::Untrusted(&error), now).await?;
        return Err(error.into());
    }
    let plan = plan::plan(&valid, &gathered, &context.settings, namespace);
    let pods = gathered.pods.clone();
    let apply::Applied { maybe_stateful_set, maybe_refused_growth } =
        match apply::apply(&context.client, namespace, &name, plan, gathered).await {
            Ok(applied) => applied,
            Err(error) => {
                settle(&pool, &context, &Outcome::NotApplied(&error), now).await?;
                return Err(error.into());
            }
        };
    let outcome = match &maybe_refused_growth {
        Some(error) => Outcome::NotApplied(error),
        None => {
            let maybe_stateful_set = maybe_stateful_set.as_ref();
            let store = store_of(&context, &name, maybe_stateful_set).await;
            Outcome::Applied { maybe_stateful_set, pods: &pods, store }
        }
    };
    settle(&pool, &context, &outcome, now).await
}

/// What the pool's pod says of its store. A pod that is not ready is asked as
/// well: one that refuses its volume never gets ready.
async fn store_of(context: &Context, pool: &str, maybe_stateful_set: Option<&StatefulSet>) -> PodStore {
    let replicas = maybe_stateful_set.and_then(|set| set.status.as_ref()).map_or(0, |status| status.replicas);
    // A pod that is being made cannot be asked yet.
    if replicas == 0 {
        return PodStore::Untold;
    }
    match context.pods.counters(pool).await {
        Ok(counters) => PodStore::told(counters),
        Err(error) => {
            tracing::debug!(pool, %error, "the pool's pod does not tell which store it has");
            PodStore::Untold
        }
    }
}

/// The Secrets that the pods mount must exist before the pods.
async fn trust(context: &Context, pool: &DeliveryPool, now: Timestamp) -> Result<(), internal::Error> {
    let Context { client, release_namespace, settings: _, pods: _ } = context;
    internal::ensure(client, release_namespace, now).await?;
    internal::ensure_serving_certificate(client, release_namespace, pool, now).await
}

/// Writes the status, and says when to look again.
async fn settle(
    pool: &DeliveryPool,
    context: &Context,
    outcome: &Outcome<'_>,
    now: Timestamp,
) -> Result<Action, Error> {
    let wanted = status::wanted(pool, outcome, &context.release_namespace, now);
    // A ready pod whose store is not recorded will tell it in a moment; one that
    // refuses its volume looks at it again every few seconds.
    let is_under_way = condition::is_true(&wanted.conditions, ConditionType::Reconciling)
        || wanted.stores.is_empty()
        || status::is_refused(outcome);
    status::write(&context.client, pool, wanted).await?;
    Ok(Action::requeue(if is_under_way { STARTING_INTERVAL } else { SETTLED_INTERVAL }))
}

fn retry(_: Arc<DeliveryPool>, _: &Error, _: Arc<Context>) -> Action {
    Action::requeue(RETRY_INTERVAL)
}
