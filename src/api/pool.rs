//! `DeliveryPool`: the pods that deliver, their store and their rules.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::ResourceRequirements,
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Condition},
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    duration::Gep2257Duration,
    schema,
    webhook::{Scheme, VerificationMethod},
};

/// A DeliveryPool is a set of pods in Posthorn's own namespace that verify
/// endpoints and deliver events for the namespaces that pick it by the label
/// posthorn.dev/pool. Owned by cluster admins.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[kube(
    group = "posthorn.dev",
    version = "v1alpha1",
    kind = "DeliveryPool",
    status = "DeliveryPoolStatus",
    shortname = "whpool",
    category = "posthorn",
    derive = "PartialEq",
    doc = "A DeliveryPool is a set of pods in Posthorn's own namespace that verify endpoints and deliver events for the namespaces that pick it by the label posthorn.dev/pool. Owned by cluster admins.",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Store", type_ = "string", json_path = ".spec.store.size"),
    printcolumn(name = "Service", type_ = "string", priority = "1", json_path = ".status.service"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name must be at most 40 characters of a-z, 0-9 and '-', beginning with a letter: it becomes part of the names of a StatefulSet, its Services and its Pods"),
    validation = Rule::new("self.metadata.name != 'controller' && !self.metadata.name.endsWith('-pods')").message("metadata.name must not be 'controller' and must not end in '-pods': objects of the pool would bear the names of others")
)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryPoolSpec {
    /// Where accepted events are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<Store>,
    /// How events are taken in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingest: Option<Ingest>,
    /// What each namespace may use of the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Which destinations the pods may call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
    /// Which ways of verification Webhooks of this pool may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<PoolVerification>,
    /// CPU and memory of a pod. Default: requests 100m and 128Mi, limit of
    /// memory 512Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

/// Where accepted events are kept.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Store {
    /// The engine. Default: SQLite.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub type_: Option<StoreType>,
    /// Size of the volume, such as 10Gi. Default: 10Gi. It may grow, never shrink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    #[x_kube(
        validation = Rule::new("isQuantity(self) && quantity(self).compareTo(quantity('256Mi')) >= 0 && quantity(self).compareTo(quantity('16Ti')) <= 0").message("size must be a quantity from 256Mi to 16Ti"),
        validation = Rule::new("quantity(self).compareTo(quantity(oldSelf)) >= 0").message("size may grow, never shrink: a volume cannot be made smaller")
    )]
    pub size: Option<Quantity>,
    /// StorageClass of the volume. Default: the cluster's default class. It
    /// cannot be changed: the volume exists already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("storageClassName cannot be changed: make another DeliveryPool and move namespaces to it"))]
    pub storage_class_name: Option<String>,
    /// How long events are kept once everything that was owed of them has ended.
    /// What is owed is never removed by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

/// How long events are kept once everything that was owed of them has ended.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Retention {
    /// How long, 1h to 8760h. Default: 168h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1h') && duration(self) <= duration('8760h')").message("age must be from 1h to 8760h"))]
    pub age: Option<Gep2257Duration>,
    /// How many bytes of events at most, such as 5Gi, at least 16Mi; the oldest
    /// go first. Default: what fits into the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    #[x_kube(validation = Rule::new("isQuantity(self) && quantity(self).compareTo(quantity('16Mi')) >= 0 && quantity(self).compareTo(quantity('16Ti')) <= 0").message("size must be a quantity from 16Mi to 16Ti"))]
    pub size: Option<Quantity>,
    /// How long Deliveries that were given up are kept with their events, 1h to
    /// 8760h. Default: 720h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1h') && duration(self) <= duration('8760h')").message("deadLetters must be from 1h to 8760h"))]
    pub dead_letters: Option<Gep2257Duration>,
}

/// How events are taken in.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Ingest {
    /// For how long known publishers may go on while the API server does not
    /// answer, 0s to 1h; after that they get 503. Default: 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('1h')").message("outageGrace must be from 0s to 1h"))]
    pub outage_grace: Option<Gep2257Duration>,
    /// For how long the id that a publisher gave to an event is remembered, so
    /// that the same event is accepted once, 1m to 24h. Default: 1h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('24h')").message("deduplicationWindow must be from 1m to 24h"))]
    pub deduplication_window: Option<Gep2257Duration>,
}

/// What each namespace may use of the pool.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// For every namespace by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_namespace: Option<NamespaceLimits>,
}

/// Limits of one namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.burst) || has(self.eventsPerSecond)").message("burst needs eventsPerSecond").field_path(".burst"))]
pub struct NamespaceLimits {
    /// Bytes of events in the store, such as 1Gi, at least 1Mi; beyond it the
    /// namespace gets 507, and no other one does. Default: no limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    #[x_kube(validation = Rule::new("isQuantity(self) && quantity(self).compareTo(quantity('1Mi')) >= 0 && quantity(self).compareTo(quantity('16Ti')) <= 0").message("storeBytes must be a quantity from 1Mi to 16Ti"))]
    pub store_bytes: Option<Quantity>,
    /// Events accepted a second, 1 to 1000000; beyond it the namespace gets 429.
    /// Default: no limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000))]
    pub events_per_second: Option<i32>,
    /// Events that may come at once, 1 to 10000000. Default: twice
    /// `eventsPerSecond`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000000))]
    pub burst: Option<i32>,
}

/// The engines that keep events.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreType {
    /// An embedded SQLite database on the pod's own volume.
    SQLite,
}

/// Which destinations the pods may call. Without rules: public addresses on
/// ports 443 and 8443 by https. Loopback, link-local and metadata addresses are
/// never allowed, whatever the rules say.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Egress {
    /// What may be called beside public addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub allow: Vec<EgressRule>,
    /// Schemes of URLs. Default: [https].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2))]
    pub schemes: Option<Vec<Scheme>>,
    /// Ports of public addresses. Default: [443, 8443], and 80 where http is
    /// allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), inner(range(min = 1, max = 65535)))]
    pub ports: Option<Vec<i32>>,
}

/// One rule: either a range of addresses, or namespaces whose Services may be
/// called by `serviceRef`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.cidr) != has(self.namespaces)").message("a rule has exactly one of cidr and namespaces"),
    validation = Rule::new("has(self.cidr) || !has(self.ports)").message("ports belong to cidr: serviceRef names its port itself")
)]
pub struct EgressRule {
    /// A range of addresses such as 10.20.0.0/16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("isCIDR(self)").message("cidr must be a range of addresses such as 10.20.0.0/16 or fd00:1::/64"))]
    pub cidr: Option<String>,
    /// Ports of that range. Default: the ports of `egress.ports`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), inner(range(min = 1, max = 65535)))]
    pub ports: Option<Vec<i32>>,
    /// Names of namespaces whose Webhooks may call Services of their own
    /// namespace by `serviceRef`; `*` means every namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 63)))]
    #[x_kube(validation = Rule::new("self.all(n, n == '*' || n.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$'))").message("every entry of namespaces must be the name of a namespace, or '*'"))]
    pub namespaces: Option<Vec<String>>,
}

/// Which ways of verification Webhooks of this pool may use.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct PoolVerification {
    /// The methods that are allowed. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub methods: Option<Vec<VerificationMethod>>,
    /// How long an endpoint may give no right answer before its Webhook counts
    /// as Failed, 10s to 24h. Default: 15m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10s') && duration(self) <= duration('24h')").message("failAfter must be from 10s to 24h"))]
    pub fail_after: Option<Gep2257Duration>,
}

/// CPU and memory of a pod.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the scheduler reserves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<ResourceAmounts>,
    /// What the pod may use at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<ResourceAmounts>,
}

/// Amounts of CPU and memory.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ResourceAmounts {
    /// CPU, such as 500m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    pub cpu: Option<Quantity>,
    /// Memory, such as 256Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    pub memory: Option<Quantity>,
}

impl From<&ResourceAmounts> for BTreeMap<String, Quantity> {
    fn from(amounts: &ResourceAmounts) -> Self {
        let ResourceAmounts { cpu, memory } = amounts;
        let named = [("cpu", cpu), ("memory", memory)];
        named.into_iter().filter_map(|(name, amount)| Some((name.to_owned(), amount.clone()?))).collect()
    }
}

impl From<&Resources> for ResourceRequirements {
    fn from(resources: &Resources) -> Self {
        Self {
            requests: resources.requests.as_ref().map(Into::into),
            limits: resources.limits.as_ref().map(Into::into),
            claims: None,
        }
    }
}

/// What the controller knows about a DeliveryPool. Written by the controller alone.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryPoolStatus {
    /// The generation of the spec that this status speaks of; -1 until the
    /// controller has seen the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready; Reconciling and Stalled as kstatus reads them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// DNS name of the Service that takes events for this pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub service: Option<String>,
    /// Pods that are ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub ready_replicas: Option<i32>,
    /// The store of each pod, recorded when the pod first told it. A pod whose
    /// volume has another store does not become ready: events would be lost
    /// unseen. See the annotation posthorn.dev/accept-store.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["pod".into()]))]
    pub stores: Vec<StoreStatus>,
}

/// The store of a pod.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct StoreStatus {
    /// Name of the pod.
    #[schemars(length(min = 1, max = 63))]
    pub pod: String,
    /// Id of its store: made at random when the volume was empty.
    #[schemars(length(min = 1, max = 64))]
    pub id: String,
}
