//! The objects of a pool as values. Pure: no client, no clock.
//!
//! They are written as JSON because they are applied as JSON, and so they read
//! like the manifests that every reader of Kubernetes knows. A test reads each
//! into the type of the API and back: a misspelt field would be lost there.

use serde_json::{Value, json};

use super::{
    gather::ApiServers,
    network_policy,
    settings::PoolSettings,
    validate::{ValidatedPool, Volume},
};
use crate::{
    api::{DeliveryPool, POOL_LABEL},
    controller::{internal, names},
    runtime::logging::LogFormat,
    wire::{HEALTH_PORT, INGEST_PORT, INTERNAL_PORT},
};

/// Where the volume of the store is mounted.
const DATA_DIR: &str = "/data";
/// Where the volume in memory is mounted: Secrets, for a restart of the
/// container without the API server.
const RUN_DIR: &str = "/run/posthorn";
/// User and group of every process in our image.
const USER: u32 = 65532;
/// What a pod gets to end the attempts that are under way: more than the longest
/// time-out of an attempt.
const TERMINATION_GRACE_SECONDS: u32 = 60;
/// A store that was not closed well is checked at the start; it gets five minutes.
const STARTUP_FAILURES_MAX: u32 = 150;
const STARTUP_PERIOD_SECONDS: u32 = 2;
/// Secrets in memory: keys and certificates of at most some thousand Webhooks.
const MEMORY_VOLUME_SIZE: &str = "16Mi";
/// Readable by owner and group, in decimal: Secrets are mounted 0440.
const SECRET_MODE: u32 = 0o440;

/// The objects of a pool, ready to be applied.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Prepared {
    pub(super) network_policy: Value,
    pub(super) disruption_budget: Value,
    pub(super) pods_service: Value,
    pub(super) ingest_service: Value,
    pub(super) stateful_set: Value,
}

/// Builds every object of a pool.
pub(super) fn build(
    pool: &ValidatedPool,
    settings: &PoolSettings,
    api_servers: &ApiServers,
    namespace: &str,
) -> Prepared {
    let own = Own { pool, namespace };
    Prepared {
        network_policy: network_policy::build(&own, &pool.reach, api_servers, &settings.cluster_cidr),
        disruption_budget: disruption_budget(&own),
        pods_service: pods_service(&own),
        ingest_service: ingest_service(&own),
        stateful_set: stateful_set(&own, settings),
    }
}

/// What all objects of a pool have in common.
pub(super) struct Own<'a> {
    pub(super) pool: &'a ValidatedPool,
    pub(super) namespace: &'a str,
}

impl Own<'_> {
    /// The labels that select the pods of this pool. They never change: the
    /// selector of a StatefulSet cannot.
    pub(super) fn selector(&self) -> Value {
        json!({
            names::NAME_LABEL: names::NAME,
            names::COMPONENT_LABEL: names::DELIVERY,
            POOL_LABEL: self.pool.name,
        })
    }

    fn labels(&self) -> Value {
        let mut labels = self.selector();
        labels[names::MANAGED_BY_LABEL] = json!(names::MANAGED_BY);
        labels
    }

    /// Metadata of an object that ends with its pool.
    pub(super) fn metadata(&self, name: &str) -> Value {
        json!({
            "name": name,
            "namespace": self.namespace,
            "labels": self.labels(),
            "ownerReferences": [{
                "apiVersion": <DeliveryPool as kube::Resource>::api_version(&()),
                "kind": <DeliveryPool as kube::Resource>::kind(&()),
                "name": self.pool.name,
                "uid": self.pool.uid,
                "controller": true,
                "blockOwnerDeletion": true,
            }],
        })
    }
}

/// A pool has one pod, so a budget that forbade its eviction would stop every
/// drain of a node. This one allows it, and says so to those who look for one.
fn disruption_budget(own: &Own<'_>) -> Value {
    json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": own.metadata(&names::base(&own.pool.name)),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": { "matchLabels": own.selector() },
        },
    })
}

/// Gives the pods their DNS names. The controller also calls pods that are not
/// ready yet: what their index holds is what it waits for.
fn pods_service(own: &Own<'_>) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": own.metadata(&names::pods_service(&own.pool.name)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "selector": own.selector(),
            "ports": [{ "name": "internal", "port": INTERNAL_PORT, "targetPort": "internal", "protocol": "TCP" }],
        },
    })
}

fn ingest_service(own: &Own<'_>) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": own.metadata(&names::base(&own.pool.name)),
        "spec": {
            "type": "ClusterIP",
            "selector": own.selector(),
            "ports": [{ "name": "http", "port": 80, "targetPort": "http", "protocol": "TCP" }],
        },
    })
}

fn stateful_set(own: &Own<'_>, settings: &PoolSettings) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": own.metadata(&names::base(&own.pool.name)),
        "spec": {
            // A store belongs to one pod.
            "replicas": 1,
            "serviceName": names::pods_service(&own.pool.name),
            // With OrderedReady, a pod that never becomes ready keeps its own
            // correction from being rolled out.
            "podManagementPolicy": "Parallel",
            "updateStrategy": { "type": "RollingUpdate" },
            "persistentVolumeClaimRetentionPolicy": { "whenDeleted": "Retain", "whenScaled": "Retain" },
            "selector": { "matchLabels": own.selector() },
            "template": {
                "metadata": {
                    "labels": own.labels(),
                    "annotations": { "kubectl.kubernetes.io/default-container": names::DELIVERY },
                },
                "spec": pod_spec(own, settings),
            },
            "volumeClaimTemplates": [claim_template(&own.pool.volume)],
        },
    })
}

/// The template cannot be changed once it is applied, so it holds nothing that
/// a later version could want to change.
fn claim_template(volume: &Volume) -> Value {
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"],
        "resources": { "requests": { "storage": volume.size } },
    });
    if let Some(class) = &volume.maybe_storage_class {
        spec["storageClassName"] = json!(class);
    }
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": { "name": names::STORE_VOLUME },
        "spec": spec,
    })
}

fn pod_spec(own: &Own<'_>, settings: &PoolSettings) -> Value {
    let spread = |key: &str| {
        json!({
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": { "matchLabels": { names::NAME_LABEL: names::NAME, names::COMPONENT_LABEL: names::DELIVERY } },
        })
    };
    let mut spec = json!({
        "serviceAccountName": names::DELIVERY_SERVICE_ACCOUNT,
        "automountServiceAccountToken": true,
        // Service variables of a whole namespace are noise, and can break flags
        // that are read from the environment.
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": TERMINATION_GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        // Pools are spread over zones and nodes, so that one failure meets few.
        "topologySpreadConstraints": [spread("topology.kubernetes.io/zone"), spread("kubernetes.io/hostname")],
        "containers": [container(own.pool, settings)],
        "volumes": [
            { "name": "tls", "secret": { "secretName": internal::tls_secret_name(&own.pool.name), "defaultMode": SECRET_MODE } },
            { "name": "keys", "secret": { "secretName": internal::KEYS_SECRET, "defaultMode": SECRET_MODE } },
            { "name": "run", "emptyDir": { "medium": "Memory", "sizeLimit": MEMORY_VOLUME_SIZE } },
        ],
    });
    if let Some(class) = settings.priority_class() {
        spec["priorityClassName"] = json!(class);
    }
    let secrets: Vec<Value> = settings.pull_secrets().map(|name| json!({ "name": name })).collect();
    if !secrets.is_empty() {
        spec["imagePullSecrets"] = json!(secrets);
    }
    spec
}

fn container(pool: &ValidatedPool, settings: &PoolSettings) -> Value {
    json!({
        "name": names::DELIVERY,
        "image": settings.delivery_image,
        "imagePullPolicy": settings.delivery_image_pull_policy.as_str(),
        "args": ["delivery"],
        "env": environment(pool, settings),
        "ports": [
            { "name": "http", "containerPort": INGEST_PORT, "protocol": "TCP" },
            { "name": "health", "containerPort": HEALTH_PORT, "protocol": "TCP" },
            { "name": "internal", "containerPort": INTERNAL_PORT, "protocol": "TCP" },
        ],
        "resources": resources(pool),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        },
        "startupProbe": probe("/healthz", STARTUP_PERIOD_SECONDS, STARTUP_FAILURES_MAX),
        "readinessProbe": probe("/readyz", 5, 2),
        "livenessProbe": probe("/healthz", 10, 6),
        "volumeMounts": [
            { "name": names::STORE_VOLUME, "mountPath": DATA_DIR },
            { "name": "tls", "mountPath": "/etc/posthorn/tls", "readOnly": true },
            { "name": "keys", "mountPath": "/etc/posthorn/keys", "readOnly": true },
            { "name": "run", "mountPath": RUN_DIR },
        ],
    })
}

/// Arenas of the C library's allocator, which SQLite has, are bounded: the default
/// of eight a core holds on to memory that the limit counts. mimalloc, which has the
/// rest, gives pages back after 100 ms in place of 1 s: 10,000 idle Webhooks took a
/// seventh less.
fn environment(pool: &ValidatedPool, settings: &PoolSettings) -> Value {
    let log_format = match settings.delivery_log_format {
        LogFormat::Json => "json",
        LogFormat::Text => "text",
    };
    let namespace = json!({ "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } });
    let mut variables = vec![
        json!({ "name": "POSTHORN_POOL", "value": pool.name }),
        json!({ "name": "POSTHORN_NAMESPACE", "valueFrom": namespace }),
        json!({ "name": "POSTHORN_DATA_DIR", "value": DATA_DIR }),
        json!({ "name": "POSTHORN_RUN_DIR", "value": RUN_DIR }),
        json!({ "name": "POSTHORN_LOG_FORMAT", "value": log_format }),
        json!({ "name": "POSTHORN_CLUSTER_DOMAIN", "value": settings.cluster_domain }),
        json!({ "name": "MALLOC_ARENA_MAX", "value": "2" }),
        json!({ "name": "MIMALLOC_PURGE_DELAY", "value": "100" }),
    ];
    if !settings.cluster_cidr.is_empty() {
        let ranges: Vec<String> = settings.cluster_cidr.iter().map(ToString::to_string).collect();
        variables.push(json!({ "name": "POSTHORN_CLUSTER_CIDR", "value": ranges.join(",") }));
    }
    json!(variables)
}

fn resources(pool: &ValidatedPool) -> Value {
    json!(k8s_openapi::api::core::v1::ResourceRequirements::from(&pool.resources))
}

fn probe(path: &str, period_seconds: u32, failures_max: u32) -> Value {
    json!({
        "httpGet": { "path": path, "port": "health", "scheme": "HTTP" },
        "periodSeconds": period_seconds,
        "timeoutSeconds": 5,
        "failureThreshold": failures_max,
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use k8s_openapi::api::{
        apps::v1::StatefulSet, core::v1::Service, networking::v1::NetworkPolicy, policy::v1::PodDisruptionBudget,
    };
    use serde::{Serialize, de::DeserializeOwned};

    use super::*;
    use crate::controller::pool::{settings, validate::validate};

    /// A pool, a namespace and an image whose names appear nowhere else, so that
    /// a name in the wrong place is seen.
    pub(super) fn build_from(spec: Value) -> Prepared {
        let pool: DeliveryPool = serde_json::from_value(json!({
            "apiVersion": "posthorn.dev/v1alpha1", "kind": "DeliveryPool",
            "metadata": { "name": "sturdy", "uid": "6d1c3f9a-0000-4000-8000-000000000001" }, "spec": spec,
        }))
        .unwrap();
        let settings = settings::tests::settings();
        let api_servers = ApiServers {
            addresses: ["10.96.0.1", "192.168.7.2", "fd00::1"].map(|a| a.parse().unwrap()).into(),
            ports: vec![443, 6443],
        };
        build(&validate(&pool, None).unwrap(), &settings, &api_servers, "mail")
    }

    fn rich() -> Value {
        json!({
            "store": { "size": "20Gi", "storageClassName": "fast" },
            "egress": { "schemes": ["http", "https"], "allow": [
                { "cidr": "10.20.0.0/16", "ports": [8080] }, { "cidr": "fd00:1::/64" }, { "namespaces": ["shop", "billing"] },
            ]},
            "resources": { "requests": { "cpu": "2" }, "limits": { "memory": "1Gi" } },
        })
    }

    fn objects(prepared: Prepared) -> [(&'static str, Value); 5] {
        let Prepared { network_policy, disruption_budget, pods_service, ingest_service, stateful_set } = prepared;
        [
            ("networkpolicy", network_policy),
            ("poddisruptionbudget", disruption_budget),
            ("service-pods", pods_service),
            ("service-ingest", ingest_service),
            ("statefulset", stateful_set),
        ]
    }

    /// The whole object as a reader can judge it. To write the files anew:
    /// `POSTHORN_BLESS=1 cargo test --lib controller::pool`.
    fn check_golden(case: &str, name: &str, object: &Value) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pool");
        let path = folder.join(format!("{case}-{name}.json"));
        let text = format!("{}\n", serde_json::to_string_pretty(object).unwrap());
        if std::env::var_os("POSTHORN_BLESS").is_some() {
            fs::create_dir_all(&folder).unwrap();
            fs::write(&path, &text).unwrap();
        }
        let golden = fs::read_to_string(&path).unwrap_or_default();
        assert!(golden == text, "{} differs from:\n{text}", path.display());
    }

    #[test]
    fn the_objects_are_those_of_the_golden_files() {
        for (case, spec) in [("bare", json!({})), ("rich", rich())] {
            for (name, object) in objects(build_from(spec)) {
                check_golden(case, name, &object);
            }
        }
    }

    fn check_type<K: Serialize + DeserializeOwned>(object: &Value) {
        let typed: K = serde_json::from_value(object.clone()).unwrap();
        assert_eq!(&serde_json::to_value(typed).unwrap(), object);
    }

    #[test]
    fn every_field_is_one_that_the_api_knows() {
        for spec in [json!({}), rich()] {
            let Prepared { network_policy, disruption_budget, pods_service, ingest_service, stateful_set } =
                build_from(spec);
            check_type::<NetworkPolicy>(&network_policy);
            check_type::<PodDisruptionBudget>(&disruption_budget);
            check_type::<Service>(&pods_service);
            check_type::<Service>(&ingest_service);
            check_type::<StatefulSet>(&stateful_set);
        }
    }

    #[test]
    fn pods_meet_the_restricted_pod_security_standard() {
        let pod = build_from(json!({})).stateful_set["spec"]["template"]["spec"].clone();
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        for container in pod["containers"].as_array().unwrap() {
            assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
            assert_eq!(container["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
            assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        }
        for volume in pod["volumes"].as_array().unwrap() {
            assert!(volume.get("secret").is_some() || volume.get("emptyDir").is_some(), "{volume}");
        }
        assert!(pod.get("hostNetwork").is_none());
    }
}
