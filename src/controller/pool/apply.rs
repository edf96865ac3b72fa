//! Does what the plan says. Each step may be repeated; a crash between two of
//! them is made good by the next reconcile.

use std::time::Duration;

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        core::v1::{PersistentVolumeClaim, Service},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy},
};
use kube_runtime::wait::{await_condition, conditions};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    gather::Gathered,
    plan::{Growth, Plan, Step},
};
use crate::{api::FIELD_MANAGER, controller::names};

/// How long the deletion of a StatefulSet is waited for; then the next reconcile
/// goes on.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(20);

/// What the pool's status is made of.
pub(super) struct Applied {
    /// None while it does not exist.
    pub(super) maybe_stateful_set: Option<StatefulSet>,
    /// Why the volume did not grow, although it should.
    pub(super) maybe_refused_growth: Option<Error>,
}

/// A step failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server did not take an object.
    #[error("cannot apply {kind} {name}")]
    Apply {
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What the API server said.
        source: Box<kube::Error>,
    },
    /// The claim of the volume did not take the new size.
    #[error("cannot grow the volume claim {claim} to {size}")]
    Grow {
        /// Name of the claim.
        claim: String,
        /// The new size.
        size: String,
        /// What the API server said.
        source: Box<kube::Error>,
    },
    /// The StatefulSet could not be replaced.
    #[error("cannot delete StatefulSet {name} to make it again with a larger volume; its pods stay")]
    Replace {
        /// Name of the StatefulSet.
        name: String,
        /// What the API server said.
        source: Box<kube::Error>,
    },
    /// The StatefulSet was deleted and is still there.
    #[error("StatefulSet {name} is being deleted, to be made again with a larger volume; its pods stay")]
    StillThere {
        /// Name of the StatefulSet.
        name: String,
    },
}

impl Error {
    /// What the API server said, for the admins who read the pool's status.
    pub(super) fn maybe_kube(&self) -> Option<&kube::Error> {
        match self {
            Self::Apply { source, .. } | Self::Grow { source, .. } | Self::Replace { source, .. } => Some(source),
            Self::StillThere { .. } => None,
        }
    }
}

/// Does what the plan says, in its order: the walls first, the pods last.
pub(super) async fn apply(
    client: &Client,
    namespace: &str,
    pool: &str,
    plan: Plan,
    gathered: Gathered,
) -> Result<Applied, Error> {
    let applier = Applier { client, namespace };
    let Plan { network_policy, disruption_budget, pods_service, ingest_service, maybe_growth, stateful_set } = plan;
    applier.step::<NetworkPolicy>("NetworkPolicy", network_policy).await?;
    applier.step::<PodDisruptionBudget>("PodDisruptionBudget", disruption_budget).await?;
    applier.step::<Service>("Service", pods_service).await?;
    applier.step::<Service>("Service", ingest_service).await?;
    let live = gathered.maybe_stateful_set;
    let (stateful_set, maybe_refused_growth) = match (maybe_growth, &live) {
        (Some(Growth { size, ungrown }), Some(live)) => match applier.grow(pool, &size.0).await {
            Ok(()) => {
                applier.remove_keeping_pods(live).await?;
                (stateful_set, None)
            }
            Err(refused) => (ungrown, Some(refused)),
        },
        _ => (stateful_set, None),
    };
    let applied = applier.step::<StatefulSet>("StatefulSet", stateful_set).await?;
    Ok(Applied { maybe_stateful_set: applied.or(live), maybe_refused_growth })
}

struct Applier<'a> {
    client: &'a Client,
    namespace: &'a str,
}

impl Applier<'_> {
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), self.namespace)
    }

    /// Applies the object if the plan says so, and returns it as it is then.
    async fn step<K>(&self, kind: &'static str, step: Step) -> Result<Option<K>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug,
    {
        let Step::Apply(object) = step else { return Ok(None) };
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        tracing::info!(kind, name, "applying an object of a pool");
        self.patch(&name, &object).await.map(Some).map_err(|source| Error::Apply {
            kind,
            name,
            source: Box::new(source),
        })
    }

    async fn patch<K>(&self, name: &str, object: &Value) -> Result<K, kube::Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug,
    {
        self.api::<K>().patch(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(object)).await
    }

    /// A claim that does not exist yet will be made with the new size.
    async fn grow(&self, pool: &str, size: &str) -> Result<(), Error> {
        let claim = names::store_claim(pool);
        let patch = json!({ "spec": { "resources": { "requests": { "storage": size } } } });
        tracing::info!(claim, size, "growing the volume of a pool");
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        match self.api::<PersistentVolumeClaim>().patch(&claim, &params, &Patch::Merge(patch)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(source) => Err(Error::Grow { claim, size: size.to_owned(), source: Box::new(source) }),
        }
    }

    /// Deletes the StatefulSet that was seen, and no other, without its pods.
    async fn remove_keeping_pods(&self, live: &StatefulSet) -> Result<(), Error> {
        let name = live.metadata.name.clone().unwrap_or_default();
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Orphan),
            preconditions: Some(Preconditions { uid: live.metadata.uid.clone(), ..Preconditions::default() }),
            ..DeleteParams::default()
        };
        match self.api::<StatefulSet>().delete(&name, &params).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(source) => return Err(Error::Replace { name, source: Box::new(source) }),
        }
        // The garbage collector first takes the owner off the pods; until then
        // the old StatefulSet stands, and refuses the new template.
        let uid = live.metadata.uid.clone().unwrap_or_default();
        let gone = await_condition(self.api::<StatefulSet>(), &name, conditions::is_deleted(&uid));
        match tokio::time::timeout(REPLACE_TIMEOUT, gone).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Error::StillThere { name }),
        }
    }
}
