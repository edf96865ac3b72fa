//! Services of a Webhook's own namespace, resolved through the API server
//! instead of DNS.
//!
//! A Service is an indirection that tenants write, so little of it is believed
//! (CVE-2021-25740): it must have a selector, it must not be an ExternalName, and
//! of its EndpointSlices only ready addresses count whose `targetRef` is a Pod of
//! the same namespace. The addresses are judged again before each dial.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::{
    core::v1::{Service, ServicePort},
    discovery::v1::{Endpoint, EndpointSlice},
};
use kube::{
    Api, Client,
    api::{ListParams, ObjectList},
};
use tokio::time::{Instant, timeout};

use crate::{
    api::{Reason, webhook::Scheme},
    policy::egress::{
        Destination, EgressPolicy,
        destination::{NoUri, POD_ADDRESSES_MAX},
    },
};

/// Time for which what the API server said is used again.
pub const CACHE_TIME: Duration = Duration::from_secs(5);
/// Ports of Services that are kept at most.
pub const CACHE_ENTRIES_MAX: usize = 4096;
/// Time that the API server may take.
pub const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// EndpointSlices of one Service that are read at most.
pub const SLICES_MAX: u32 = 100;

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceTarget {
    /// Namespace of the Webhook, and so of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Number of its port.
    pub port: u16,
}

/// Why a Service leads nowhere. The texts are fit for a tenant: what they name is
/// in the tenant's own namespace.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The policy does not name the namespace.
    #[error(
        "the DeliveryPool does not allow Webhooks of namespace {namespace} to call Services: ask the admins of the pool for a rule with namespaces"
    )]
    NotAllowed {
        /// The namespace.
        namespace: String,
    },
    /// There is no such Service.
    #[error("the Service {namespace}/{name} does not exist")]
    NotFound {
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
    },
    /// It leads to a DNS name.
    #[error("the Service {name} is an ExternalName, which is not used: put the URL into url")]
    ExternalName {
        /// The name.
        name: String,
    },
    /// Its addresses are written by hand.
    #[error("the Service {name} has no selector: only Services that select Pods are used")]
    NoSelector {
        /// The name.
        name: String,
    },
    /// It has no such port.
    #[error("the Service {name} has no TCP port {port}: name one of its ports in serviceRef.port")]
    PortNotFound {
        /// The name.
        name: String,
        /// The port.
        port: u16,
    },
    /// No ready Pod.
    #[error("no ready Pod stands behind port {port} of the Service {name}")]
    NoPods {
        /// The name.
        name: String,
        /// The port.
        port: u16,
    },
    /// Name or path cannot stand in a URI.
    #[error("the path of serviceRef cannot be used")]
    Uri(#[source] NoUri),
    /// The API server gave an error.
    #[error("the Service {name} could not be read from the API server; it is tried again")]
    Read {
        /// The name.
        name: String,
        /// Its error.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server did not answer.
    #[error("the API server did not tell of the Service {name} within {READ_TIMEOUT:?}; it is tried again")]
    ReadTimedOut {
        /// The name.
        name: String,
    },
}

impl ServiceError {
    /// The reason in the status of the Webhook.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotAllowed { .. } => Reason::DestinationNotAllowed,
            Self::NotFound { .. } => Reason::ServiceNotFound,
            Self::ExternalName { .. } | Self::NoSelector { .. } | Self::PortNotFound { .. } => Reason::ServiceNotUsable,
            Self::NoPods { .. } => Reason::ServiceWithoutPods,
            Self::Uri(_) => Reason::InvalidUrl,
            Self::Read { .. } | Self::ReadTimedOut { .. } => Reason::Internal,
        }
    }

    /// The sentence in the status of the Webhook.
    pub fn message(&self) -> String {
        self.to_string()
    }
}

struct Cached {
    pods: Arc<[SocketAddr]>,
    read: Instant,
}

/// Finds the Pods behind Services; asks the API server at most every
/// [`CACHE_TIME`] for each. Needs `get` on Services and `list` on EndpointSlices.
pub struct ServiceResolver {
    client: Client,
    cache: Mutex<HashMap<ServiceTarget, Cached>>,
}

impl ServiceResolver {
    /// Asks this API server.
    pub fn new(client: Client) -> Self {
        Self { client, cache: Mutex::default() }
    }

    /// Where a `serviceRef` leads now.
    ///
    /// # Errors
    /// [`ServiceError`]. Errors are not cached: what is missing may be made at
    /// any moment, and who asks often backs off by itself.
    pub async fn resolve(
        &self,
        target: &ServiceTarget,
        scheme: Scheme,
        path: &str,
        policy: &EgressPolicy,
    ) -> Result<Destination, ServiceError> {
        if !policy.allows_service(&target.namespace) {
            return Err(ServiceError::NotAllowed { namespace: target.namespace.clone() });
        }
        let pods = match self.cached(target) {
            Some(pods) => pods,
            None => self.read(target).await?,
        };
        let ServiceTarget { namespace, name, port } = target;
        Destination::service(scheme, name, namespace, *port, path, &pods).map_err(ServiceError::Uri)
    }

    fn cached(&self, target: &ServiceTarget) -> Option<Arc<[SocketAddr]>> {
        // A panic elsewhere leaves the map whole: every change is one operation.
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let cached = cache.get(target)?;
        (cached.read.elapsed() < CACHE_TIME).then(|| cached.pods.clone())
    }

    async fn read(&self, target: &ServiceTarget) -> Result<Arc<[SocketAddr]>, ServiceError> {
        let ServiceTarget { namespace, name, port } = target;
        let read = timeout(READ_TIMEOUT, self.read_objects(namespace, name)).await;
        let (service, slices) = match read {
            Err(_) => return Err(ServiceError::ReadTimedOut { name: name.clone() }),
            Ok(Err(source)) => return Err(ServiceError::Read { name: name.clone(), source: Box::new(source) }),
            Ok(Ok(None)) => {
                return Err(ServiceError::NotFound { namespace: namespace.clone(), name: name.clone() });
            }
            Ok(Ok(Some(objects))) => objects,
        };
        let service_port = usable_port(&service, name, *port)?;
        let pods = ready_pods(&slices.items, namespace, service_port.name.as_deref());
        if pods.is_empty() {
            return Err(ServiceError::NoPods { name: name.clone(), port: *port });
        }
        let pods: Arc<[SocketAddr]> = pods.into_iter().take(POD_ADDRESSES_MAX).collect();
        self.keep(target, pods.clone());
        Ok(pods)
    }

    async fn read_objects(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<(Service, ObjectList<EndpointSlice>)>, kube::Error> {
        let services = Api::<Service>::namespaced(self.client.clone(), namespace);
        let Some(service) = services.get_opt(name).await? else { return Ok(None) };
        let slices = Api::<EndpointSlice>::namespaced(self.client.clone(), namespace);
        let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={name}")).limit(SLICES_MAX);
        Ok(Some((service, slices.list(&of_service).await?)))
    }

    fn keep(&self, target: &ServiceTarget, pods: Arc<[SocketAddr]>) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHE_ENTRIES_MAX {
            cache.retain(|_, cached| cached.read.elapsed() < CACHE_TIME);
        }
        if cache.len() < CACHE_ENTRIES_MAX {
            cache.insert(target.clone(), Cached { pods, read: Instant::now() });
        }
    }
}

/// The port of a Service that may be used at all.
fn usable_port<'a>(service: &'a Service, name: &str, number: u16) -> Result<&'a ServicePort, ServiceError> {
    let name = || name.to_owned();
    let spec = service.spec.as_ref().ok_or_else(|| ServiceError::NoSelector { name: name() })?;
    if spec.type_.as_deref() == Some("ExternalName") || spec.external_name.is_some() {
        return Err(ServiceError::ExternalName { name: name() });
    }
    if spec.selector.as_ref().is_none_or(|selector| selector.is_empty()) {
        return Err(ServiceError::NoSelector { name: name() });
    }
    let fits = |port: &&ServicePort| {
        port.port == i32::from(number) && port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
    };
    let ports = spec.ports.as_deref().unwrap_or_default();
    ports.iter().find(fits).ok_or_else(|| ServiceError::PortNotFound { name: name(), port: number })
}

/// The ready addresses of Pods of this namespace, in a stable order, so that the
/// same Pods make the same destination.
fn ready_pods(slices: &[EndpointSlice], namespace: &str, port_name: Option<&str>) -> BTreeSet<SocketAddr> {
    let mut pods = BTreeSet::new();
    for slice in slices.iter().filter(|slice| slice.address_type == "IPv4" || slice.address_type == "IPv6") {
        let Some(port) = slice_port(slice, port_name) else { continue };
        for endpoint in slice.endpoints.iter().filter(|endpoint| is_ready_pod(endpoint, namespace)) {
            let addresses = endpoint.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok());
            pods.extend(addresses.map(|address| SocketAddr::new(address, port)));
        }
    }
    pods
}

fn slice_port(slice: &EndpointSlice, port_name: Option<&str>) -> Option<u16> {
    let ports = slice.ports.as_deref().unwrap_or_default();
    let port = ports.iter().find(|port| {
        port.name.as_deref().unwrap_or_default() == port_name.unwrap_or_default()
            && port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
    })?;
    u16::try_from(port.port?).ok().filter(|port| *port > 0)
}

fn is_ready_pod(endpoint: &Endpoint, namespace: &str) -> bool {
    // Absent means ready (documentation of EndpointConditions).
    let is_ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
    let is_pod = endpoint
        .target_ref
        .as_ref()
        .is_some_and(|target| target.kind.as_deref() == Some("Pod") && target.namespace.as_deref() == Some(namespace));
    is_ready && is_pod
}
