//! What is in the cluster: read once, before anything is decided.

use std::net::IpAddr;

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        core::v1::{Pod, Service},
        discovery::v1::EndpointSlice,
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{Api, Client, Resource, ResourceExt, api::ListParams};
use serde::de::DeserializeOwned;

use super::Context;
use crate::{api::POOL_LABEL, controller::names};

/// Where the Service of the API server is.
const API_SERVER_NAMESPACE: &str = "default";
/// Name of the Service of the API server.
const API_SERVER_SERVICE: &str = "kubernetes";

/// What is in the cluster for one pool.
pub(super) struct Gathered {
    pub(super) maybe_network_policy: Option<NetworkPolicy>,
    pub(super) maybe_disruption_budget: Option<PodDisruptionBudget>,
    pub(super) maybe_pods_service: Option<Service>,
    pub(super) maybe_ingest_service: Option<Service>,
    pub(super) maybe_stateful_set: Option<StatefulSet>,
    pub(super) pods: Vec<Pod>,
    pub(super) api_servers: ApiServers,
}

/// Where the API server listens; a NetworkPolicy has no other way to name it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ApiServers {
    /// Sorted, each once: the Service's own address among them, because network
    /// plugins differ in whether they look before or after its translation.
    pub(super) addresses: Vec<IpAddr>,
    /// Sorted, each once.
    pub(super) ports: Vec<u16>,
}

/// An object could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {kind} {namespace}/{name}")]
pub struct Error {
    kind: &'static str,
    namespace: String,
    name: String,
    source: Box<kube::Error>,
}

/// Reads everything that belongs to the pool of this name.
pub(super) async fn gather(context: &Context, pool: &str) -> Result<Gathered, Error> {
    let reader = Reader { client: &context.client, namespace: &context.release_namespace };
    let base = names::base(pool);
    Ok(Gathered {
        maybe_network_policy: reader.maybe("NetworkPolicy", &base).await?,
        maybe_disruption_budget: reader.maybe("PodDisruptionBudget", &base).await?,
        maybe_pods_service: reader.maybe("Service", &names::pods_service(pool)).await?,
        maybe_ingest_service: reader.maybe("Service", &base).await?,
        maybe_stateful_set: reader.maybe("StatefulSet", &base).await?,
        pods: reader.pods(pool).await?,
        api_servers: gather_api_servers(&context.client).await?,
    })
}

struct Reader<'a> {
    client: &'a Client,
    namespace: &'a str,
}

impl Reader<'_> {
    async fn maybe<K>(&self, kind: &'static str, name: &str) -> Result<Option<K>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug,
    {
        Api::<K>::namespaced(self.client.clone(), self.namespace)
            .get_opt(name)
            .await
            .map_err(|source| error(kind, self.namespace, name, source))
    }

    async fn pods(&self, pool: &str) -> Result<Vec<Pod>, Error> {
        let selector = format!("{}={},{POOL_LABEL}={pool}", names::NAME_LABEL, names::NAME);
        let mut pods = Api::<Pod>::namespaced(self.client.clone(), self.namespace)
            .list(&ListParams::default().labels(&selector))
            .await
            .map_err(|source| error("Pods", self.namespace, &names::base(pool), source))?
            .items;
        pods.sort_by_key(ResourceExt::name_any);
        Ok(pods)
    }
}

async fn gather_api_servers(client: &Client) -> Result<ApiServers, Error> {
    let service = Api::<Service>::namespaced(client.clone(), API_SERVER_NAMESPACE)
        .get_opt(API_SERVER_SERVICE)
        .await
        .map_err(|source| error("Service", API_SERVER_NAMESPACE, API_SERVER_SERVICE, source))?;
    let selector = format!("kubernetes.io/service-name={API_SERVER_SERVICE}");
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), API_SERVER_NAMESPACE)
        .list(&ListParams::default().labels(&selector))
        .await
        .map_err(|source| error("EndpointSlices", API_SERVER_NAMESPACE, API_SERVER_SERVICE, source))?;
    Ok(api_servers(service.as_ref(), &slices.items))
}

fn api_servers(maybe_service: Option<&Service>, slices: &[EndpointSlice]) -> ApiServers {
    let spec = maybe_service.and_then(|service| service.spec.as_ref());
    let own = spec.and_then(|spec| spec.cluster_ips.as_deref()).unwrap_or_default();
    let behind = slices.iter().flat_map(|slice| &slice.endpoints).flat_map(|endpoint| &endpoint.addresses);
    let mut addresses: Vec<IpAddr> = own.iter().chain(behind).filter_map(|address| address.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();

    let own = spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default().iter().map(|port| port.port);
    let behind = slices.iter().flat_map(|slice| slice.ports.iter().flatten()).filter_map(|port| port.port);
    let mut ports: Vec<u16> = own.chain(behind).filter_map(|port| u16::try_from(port).ok()).collect();
    ports.sort_unstable();
    ports.dedup();
    ApiServers { addresses, ports }
}

fn error(kind: &'static str, namespace: &str, name: &str, source: kube::Error) -> Error {
    Error { kind, namespace: namespace.to_owned(), name: name.to_owned(), source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_api_server_is_found_before_and_after_translation() {
        let service = serde_json::from_value(json!({
            "metadata": {}, "spec": { "clusterIPs": ["10.96.0.1"], "ports": [{ "port": 443 }] }
        }))
        .unwrap();
        let slice = serde_json::from_value(json!({
            "metadata": {}, "addressType": "IPv4", "ports": [{ "port": 6443 }],
            "endpoints": [{ "addresses": ["192.168.7.3"] }, { "addresses": ["192.168.7.2", "192.168.7.3"] }]
        }))
        .unwrap();
        let expected = ApiServers {
            addresses: ["10.96.0.1", "192.168.7.2", "192.168.7.3"].map(|a| a.parse().unwrap()).into(),
            ports: vec![443, 6443],
        };
        assert_eq!(api_servers(Some(&service), &[slice]), expected);
        assert_eq!(api_servers(None, &[]), ApiServers::default());
    }
}
