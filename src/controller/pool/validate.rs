//! From a DeliveryPool as written to one that cannot be wrong. After this step
//! nobody reads the spec.

use ipnet::IpNet;
use k8s_openapi::{
    api::{apps::v1::StatefulSet, core::v1::PersistentVolumeClaim},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::ResourceExt;

use crate::{
    api::{
        DeliveryPool,
        pool::{Egress, EgressRule, ResourceAmounts, Resources},
        quantity,
        webhook::Scheme,
    },
    policy::egress::{ClusterNetworks, EgressPolicy, PolicyError},
};

/// Size of a volume whose pool names none.
const STORE_SIZE: &str = "10Gi";
/// Ports of public addresses where `egress.ports` is absent.
const PUBLIC_PORTS: [u16; 2] = [443, 8443];
/// Added to [`PUBLIC_PORTS`] where http is allowed.
const HTTP_PORT: u16 = 80;

/// A pool that can be built.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ValidatedPool {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) volume: Volume,
    pub(super) resources: Resources,
    pub(super) reach: Reach,
}

/// The volume of a pool.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Volume {
    /// Never less than the volume has.
    pub(super) size: Quantity,
    /// As the volume claim says; none is the cluster's default class.
    pub(super) maybe_storage_class: Option<String>,
}

/// What the pods of a pool must be able to reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    pub(super) public_ports: Vec<u16>,
    pub(super) ranges: Vec<Range>,
    pub(super) namespaces: Namespaces,
}

/// A range of addresses beside the public ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) cidr: IpNet,
    pub(super) ports: Vec<u16>,
}

/// Namespaces whose Services may be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Namespaces {
    All,
    /// Sorted, each once; may be empty.
    Named(Vec<String>),
}

/// Why a pool cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Invalid {
    /// The object has no name or UID; the API server never sends such.
    #[error("the object has no name or no uid")]
    Unidentified,
    /// Its objects would bear the names of another part's objects.
    #[error(
        "the name {name} cannot be used: its objects would have the names of others. Make a pool whose name is not 'controller' and does not end in '-pods'"
    )]
    NameTaken {
        /// Name of the pool.
        name: String,
    },
    /// The store's volume has another class.
    #[error(
        "store.storageClassName is {wanted}, but the volume was made with {existing}: put it back, or make another DeliveryPool and move namespaces to it"
    )]
    StorageClassChanged {
        /// What the spec says.
        wanted: String,
        /// What the volume has.
        existing: String,
    },
    /// Not a range of addresses.
    #[error("egress.allow names {cidr}, which is not a range of addresses such as 10.20.0.0/16")]
    NotARange {
        /// What the spec says.
        cidr: String,
    },
    /// The delivery pods would refuse the rules.
    #[error(transparent)]
    Egress(#[from] PolicyError),
    /// Not the size of a volume.
    #[error("store.size is {size}, which is not a size such as 10Gi")]
    NotASize {
        /// What the spec says.
        size: String,
    },
}

/// Checks a pool against itself and against the volume that it already has.
pub(super) fn validate(
    pool: &DeliveryPool,
    maybe_stateful_set: Option<&StatefulSet>,
) -> Result<ValidatedPool, Invalid> {
    let (Some(name), Some(uid)) = (pool.metadata.name.clone(), pool.uid()) else { return Err(Invalid::Unidentified) };
    if name == "controller" || name.ends_with("-pods") {
        return Err(Invalid::NameTaken { name });
    }
    let reach = reach(pool.spec.egress.as_ref())?;
    // The same judge as in the pods: what they would refuse is said here.
    EgressPolicy::compile(pool.spec.egress.as_ref(), &ClusterNetworks::default())?;
    Ok(ValidatedPool {
        volume: volume(pool, maybe_stateful_set.and_then(claim_template))?,
        resources: pool.spec.resources.clone().unwrap_or_else(default_resources),
        reach,
        name,
        uid,
    })
}

/// The template of the store's volume claim.
pub(super) fn claim_template(stateful_set: &StatefulSet) -> Option<&PersistentVolumeClaim> {
    stateful_set.spec.as_ref()?.volume_claim_templates.as_ref()?.first()
}

/// The size that a volume claim asks for.
pub(super) fn claim_size(claim: &PersistentVolumeClaim) -> Option<&Quantity> {
    claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage")
}

/// A field that was removed from the spec must not take anything from a volume
/// that exists: the size stays what it is, and so does the class.
fn volume(pool: &DeliveryPool, maybe_claim: Option<&PersistentVolumeClaim>) -> Result<Volume, Invalid> {
    let store = pool.spec.store.as_ref();
    let wanted_class = store.and_then(|store| store.storage_class_name.clone());
    let existing_class = maybe_claim.map(|claim| claim.spec.as_ref().and_then(|spec| spec.storage_class_name.clone()));
    let maybe_storage_class = match (wanted_class, existing_class) {
        (wanted, None) => wanted,
        (None, Some(existing)) => existing,
        (Some(wanted), Some(existing)) if existing.as_deref() == Some(wanted.as_str()) => existing,
        (Some(wanted), Some(existing)) => {
            let existing = existing.unwrap_or_else(|| "the cluster's default class".to_owned());
            return Err(Invalid::StorageClassChanged { wanted, existing });
        }
    };
    let wanted = store.and_then(|store| store.size.clone()).unwrap_or_else(|| Quantity(STORE_SIZE.to_owned()));
    let Some(wanted_bytes) = quantity::thousandths(&wanted.0) else { return Err(Invalid::NotASize { size: wanted.0 }) };
    let larger = maybe_claim
        .and_then(claim_size)
        .filter(|existing| quantity::thousandths(&existing.0).is_some_and(|bytes| bytes >= wanted_bytes));
    Ok(Volume { size: larger.cloned().unwrap_or(wanted), maybe_storage_class })
}

fn default_resources() -> Resources {
    let amount = |text: &str| Some(Quantity(text.to_owned()));
    Resources {
        requests: Some(ResourceAmounts { cpu: amount("100m"), memory: amount("128Mi") }),
        limits: Some(ResourceAmounts { cpu: None, memory: amount("512Mi") }),
    }
}

fn reach(maybe_egress: Option<&Egress>) -> Result<Reach, Invalid> {
    let none = Egress::default();
    let Egress { allow, schemes, ports: maybe_ports } = maybe_egress.unwrap_or(&none);
    let http = schemes.as_ref().is_some_and(|schemes| schemes.contains(&Scheme::Http));
    let implied = || PUBLIC_PORTS.into_iter().chain(http.then_some(HTTP_PORT)).collect();
    let public_ports: Vec<u16> = maybe_ports.as_deref().map_or_else(implied, ports);
    let mut ranges = Vec::new();
    let mut named = Vec::new();
    for EgressRule { cidr, ports: rule_ports, namespaces } in allow {
        if let Some(cidr) = cidr {
            let cidr = cidr.parse().map_err(|_| Invalid::NotARange { cidr: cidr.clone() })?;
            ranges.push(Range { cidr, ports: rule_ports.as_deref().map_or_else(|| public_ports.clone(), ports) });
        }
        named.extend(namespaces.iter().flatten().cloned());
    }
    named.sort_unstable();
    named.dedup();
    let namespaces = if named.iter().any(|name| name == "*") { Namespaces::All } else { Namespaces::Named(named) };
    Ok(Reach { public_ports, ranges, namespaces })
}

/// The schema allows 1 to 65535 only; what is not a port is left out.
fn ports(ports: &[i32]) -> Vec<u16> {
    ports.iter().filter_map(|port| u16::try_from(*port).ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pool(name: &str, spec: Value) -> DeliveryPool {
        serde_json::from_value(json!({
            "apiVersion": "posthorn.dev/v1alpha1", "kind": "DeliveryPool",
            "metadata": { "name": name, "uid": "5f2c" }, "spec": spec,
        }))
        .unwrap()
    }

    fn stateful_set(size: &str, class: Option<&str>) -> StatefulSet {
        let mut claim = json!({ "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": size } } });
        if let Some(class) = class {
            claim["storageClassName"] = json!(class);
        }
        serde_json::from_value(json!({ "metadata": {}, "spec": {
            "selector": {}, "template": {}, "volumeClaimTemplates": [{ "metadata": { "name": "store" }, "spec": claim }],
        }}))
        .unwrap()
    }

    fn check_volume(spec: Value, live: Option<StatefulSet>, expected: Result<(&str, Option<&str>), &str>) {
        let got = validate(&pool("sturdy", json!({ "store": spec })), live.as_ref());
        let got = got.map(|p| (p.volume.size.0, p.volume.maybe_storage_class)).map_err(|e| e.to_string());
        match expected {
            Ok((size, class)) => assert_eq!(got, Ok((size.to_owned(), class.map(str::to_owned)))),
            Err(part) => assert!(got.as_ref().is_err_and(|e| e.contains(part)), "{got:?}"),
        }
    }

    #[test]
    fn rules_that_the_pods_would_refuse_are_said_here() {
        let opened = json!({ "egress": { "allow": [{ "cidr": "127.0.0.0/8" }] } });
        let error = validate(&pool("sturdy", opened), None).unwrap_err().to_string();
        assert!(error.contains("spec.egress.allow[0].cidr") && error.contains("remove it"), "{error}");
    }

    #[test]
    fn a_volume_grows_and_never_shrinks() {
        check_volume(json!({}), None, Ok(("10Gi", None)));
        check_volume(json!({ "size": "20Gi" }), Some(stateful_set("10Gi", None)), Ok(("20Gi", None)));
        check_volume(json!({ "size": "10240Mi" }), Some(stateful_set("10Gi", None)), Ok(("10Gi", None)));
        check_volume(json!({}), Some(stateful_set("50Gi", None)), Ok(("50Gi", None)));
        check_volume(json!({ "size": "ten" }), None, Err("not a size"));
    }

    #[test]
    fn the_class_of_a_volume_that_exists_stays() {
        check_volume(json!({ "storageClassName": "fast" }), None, Ok(("10Gi", Some("fast"))));
        check_volume(json!({}), Some(stateful_set("10Gi", Some("fast"))), Ok(("10Gi", Some("fast"))));
        let slow = json!({ "storageClassName": "slow" });
        check_volume(slow.clone(), Some(stateful_set("10Gi", Some("fast"))), Err("made with fast"));
        check_volume(slow, Some(stateful_set("10Gi", None)), Err("default class"));
    }

    fn check_reach(egress: Value, expected: Result<Reach, Invalid>) {
        let got = validate(&pool("sturdy", json!({ "egress": egress })), None).map(|p| p.reach);
        assert_eq!(got, expected, "{egress}");
    }

    fn named(names: &[&str]) -> Namespaces {
        Namespaces::Named(names.iter().map(|n| (*n).to_owned()).collect())
    }

    #[test]
    fn without_rules_public_addresses_are_reached_by_https() {
        check_reach(json!({}), Ok(Reach { public_ports: vec![443, 8443], ranges: vec![], namespaces: named(&[]) }));
        let http = Reach { public_ports: vec![443, 8443, 80], ranges: vec![], namespaces: named(&[]) };
        check_reach(json!({ "schemes": ["http", "https"] }), Ok(http));
    }

    #[test]
    fn rules_add_ranges_and_namespaces() {
        let cidr = |text: &str, ports: &[u16]| Range { cidr: text.parse().unwrap(), ports: ports.to_vec() };
        check_reach(
            json!({ "ports": [444], "allow": [
                { "cidr": "10.1.0.0/16" }, { "cidr": "fd00:1::/64", "ports": [80] },
                { "namespaces": ["shop", "mail"] }, { "namespaces": ["shop"] },
            ]}),
            Ok(Reach {
                public_ports: vec![444],
                ranges: vec![cidr("10.1.0.0/16", &[444]), cidr("fd00:1::/64", &[80])],
                namespaces: named(&["mail", "shop"]),
            }),
        );
        let all = Reach { public_ports: vec![443, 8443], ranges: vec![], namespaces: Namespaces::All };
        check_reach(json!({ "allow": [{ "namespaces": ["shop", "*"] }] }), Ok(all));
        check_reach(json!({ "allow": [{ "cidr": "10/8" }] }), Err(Invalid::NotARange { cidr: "10/8".into() }));
    }

    #[test]
    fn names_that_would_collide_are_refused() {
        for (name, good) in [("default", true), ("pods", true), ("controller", false), ("a-pods", false)] {
            assert_eq!(validate(&pool(name, json!({})), None).is_ok(), good, "{name}");
        }
    }
}
