//! Which destinations a delivery pod may call.
//!
//! The order of judgement, each step a pure function with its own typed refusal:
//! 1. [`parse_url`] reads a URL once and judges its text, scheme, port and host.
//! 2. [`classify`] says what kind of address an IP address is, whatever form of
//!    IPv6 it hides in.
//! 3. [`EgressPolicy::judge`] says whether an address and port may be dialed. It
//!    is asked again for every address right before each dial, because only then
//!    it is known where a name leads.
//!
//! Nothing here resolves or dials.

pub mod address;
pub mod destination;
pub mod header;
pub mod url;

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use self::address::canonical;
pub use self::{
    address::{AddressClass, classify},
    destination::Destination,
    header::{HeaderRefusal, check_header, check_headers},
    url::{UrlRefusal, parse_url},
};
use crate::api::{
    pool::{Egress, EgressRule},
    webhook::Scheme,
};

/// Ports of public addresses without `egress.ports`.
const HTTPS_PORTS: [u16; 2] = [443, 8443];
/// The port that joins them where http is allowed.
const HTTP_PORT: u16 = 80;
/// Length of the prefix of 224.0.0.0/4, the widest range that is never allowed;
/// 0.0.0.0/1 begins and ends in such addresses and is not one.
const NEVER_PREFIX_MIN: u8 = 4;
/// In `egress.allow[].namespaces`: every namespace.
const EVERY_NAMESPACE: &str = "*";
/// The DNS domain of nearly every cluster.
pub const CLUSTER_DOMAIN_DEFAULT: &str = "cluster.local";

/// The networks of the cluster itself. They are closed unless a rule opens them,
/// even where their addresses are public ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterNetworks {
    /// Ranges of Pods, Services and Nodes, and the pod's own addresses.
    pub networks: Vec<IpNet>,
    /// Addresses of the API server. They are closed to `serviceRef` as well: an
    /// EndpointSlice is a text that someone in the namespace may have written.
    pub api_servers: Vec<IpAddr>,
    /// DNS domain of the cluster, without a leading or trailing dot.
    pub domain: String,
}

impl Default for ClusterNetworks {
    fn default() -> Self {
        Self { networks: Vec::new(), api_servers: Vec::new(), domain: CLUSTER_DOMAIN_DEFAULT.to_owned() }
    }
}

/// What is wrong with the egress part of a DeliveryPool. The text names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A range of addresses that is none.
    #[error("{field} is not a range of addresses such as 10.20.0.0/16")]
    Cidr {
        /// Path of the field.
        field: String,
    },
    /// A range that no rule can open.
    #[error("{field} lies in loopback, link-local, multicast or metadata addresses, which no rule can open: remove it")]
    NeverAllowed {
        /// Path of the field.
        field: String,
    },
    /// A port out of range.
    #[error("{field} must be from 1 to 65535")]
    Port {
        /// Path of the field.
        field: String,
    },
    /// A list that must not be empty.
    #[error("{field} must not be empty: remove it to get the default")]
    Empty {
        /// Path of the field.
        field: String,
    },
    /// Neither or both of `cidr` and `namespaces`, or ports with namespaces.
    #[error("{field} must have exactly one of cidr and namespaces, and ports only with cidr")]
    Rule {
        /// Path of the field.
        field: String,
    },
}

/// Why an address may not be dialed. For operators: a tenant is told no more
/// than that the destination is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressRefusal {
    /// Loopback, link-local, metadata and the like.
    #[error("{0} is of a kind that is never allowed")]
    Never(IpAddr),
    /// Not public, and no rule opens it.
    #[error("{address} is not public, and no rule of egress.allow opens it with port {port}")]
    NotPublic {
        /// The address.
        address: IpAddr,
        /// The port.
        port: u16,
    },
    /// One of the cluster's own networks, and no rule opens it.
    #[error("{address} belongs to the cluster, and no rule of egress.allow opens it with port {port}")]
    Cluster {
        /// The address.
        address: IpAddr,
        /// The port.
        port: u16,
    },
    /// Public, but not with this port.
    #[error("port {port} of the public address {address} is not in egress.ports")]
    Port {
        /// The address.
        address: IpAddr,
        /// The port.
        port: u16,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Opening {
    network: IpNet,
    ports: BTreeSet<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Namespaces {
    Every,
    Named(BTreeSet<String>),
}

/// The rules of a DeliveryPool in a form that cannot be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressPolicy {
    http_allowed: bool,
    https_allowed: bool,
    ports: BTreeSet<u16>,
    openings: Vec<Opening>,
    namespaces: Namespaces,
    cluster: ClusterNetworks,
    loopback_allowed: bool,
}

impl EgressPolicy {
    /// Reads the rules of a DeliveryPool; none means public addresses by https.
    ///
    /// # Errors
    /// [`PolicyError`], which names the field. The API server checks the same
    /// when the pool is written, so this is for pools that were written before
    /// or around it.
    pub fn compile(egress: Option<&Egress>, cluster: &ClusterNetworks) -> Result<Self, PolicyError> {
        let default = Egress::default();
        let Egress { allow, schemes, ports } = egress.unwrap_or(&default);
        let schemes = schemes.as_deref().unwrap_or(&[Scheme::Https]);
        if schemes.is_empty() {
            return Err(PolicyError::Empty { field: "spec.egress.schemes".into() });
        }
        let http_allowed = schemes.contains(&Scheme::Http);
        let ports = match ports {
            Some(ports) => compile_ports(ports, "spec.egress.ports")?,
            None => HTTPS_PORTS.into_iter().chain(http_allowed.then_some(HTTP_PORT)).collect(),
        };
        let mut policy = Self {
            http_allowed,
            https_allowed: schemes.contains(&Scheme::Https),
            ports,
            openings: Vec::new(),
            namespaces: Namespaces::Named(BTreeSet::new()),
            cluster: cluster.clone(),
            loopback_allowed: false,
        };
        for (index, rule) in allow.iter().enumerate() {
            policy.add_rule(rule, &format!("spec.egress.allow[{index}]"))?;
        }
        Ok(policy)
    }

    /// Opens loopback addresses with every port. For tests and demos on one
    /// machine only: no field of a DeliveryPool leads here, just the flag
    /// `--insecure-allow-loopback`.
    #[must_use]
    pub fn allow_loopback(mut self) -> Self {
        self.loopback_allowed = true;
        self
    }

    /// Whether a URL may have this scheme.
    pub fn allows_scheme(&self, scheme: Scheme) -> bool {
        match scheme {
            Scheme::Http => self.http_allowed,
            Scheme::Https => self.https_allowed,
        }
    }

    /// Whether Webhooks of this namespace may call Services of their own
    /// namespace by `serviceRef`.
    pub fn allows_service(&self, namespace: &str) -> bool {
        match &self.namespaces {
            Namespaces::Every => true,
            Namespaces::Named(names) => names.contains(namespace),
        }
    }

    /// Whether some address might be dialed with this port: what can be said
    /// about a name before it is resolved.
    pub fn may_allow_port(&self, port: u16) -> bool {
        self.loopback_allowed
            || self.ports.contains(&port)
            || self.openings.iter().any(|opening| opening.ports.contains(&port))
    }

    /// Whether this address may be dialed with this port.
    pub fn allows(&self, address: IpAddr, port: u16) -> bool {
        self.judge(address, port).is_ok()
    }

    /// Judges an address and port.
    ///
    /// # Errors
    /// [`AddressRefusal`]: why it may not be dialed.
    pub fn judge(&self, address: IpAddr, port: u16) -> Result<(), AddressRefusal> {
        let plain = canonical(address);
        match classify(address) {
            AddressClass::Never if self.loopback_allowed && plain.address.is_loopback() => Ok(()),
            AddressClass::Never => Err(AddressRefusal::Never(address)),
            AddressClass::Private if self.opens(plain.address, port) => match plain.embedded {
                // An old IPv6 transition form may be opened only together with
                // the IPv4 address that it hides.
                Some(inner) => self.judge(IpAddr::V4(inner), port),
                None => Ok(()),
            },
            AddressClass::Private => Err(AddressRefusal::NotPublic { address, port }),
            AddressClass::Public if self.opens(plain.address, port) => Ok(()),
            AddressClass::Public if self.is_of_cluster(plain.address) => Err(AddressRefusal::Cluster { address, port }),
            AddressClass::Public if self.ports.contains(&port) => Ok(()),
            AddressClass::Public => Err(AddressRefusal::Port { address, port }),
        }
    }

    /// Judges the address of a Pod behind a Service that `serviceRef` names. The
    /// namespace was judged before ([`Self::allows_service`]), so Pod addresses
    /// need no further rule; what is never a Pod stays closed.
    ///
    /// # Errors
    /// [`AddressRefusal`]: why it may not be dialed.
    pub fn judge_pod(&self, address: IpAddr, port: u16) -> Result<(), AddressRefusal> {
        let plain = canonical(address).address;
        match classify(address) {
            AddressClass::Never if self.loopback_allowed && plain.is_loopback() => Ok(()),
            AddressClass::Never => Err(AddressRefusal::Never(address)),
            _ if self.cluster.api_servers.iter().any(|server| canonical(*server).address == plain) => {
                self.judge(address, port)
            }
            _ => Ok(()),
        }
    }

    /// The DNS domain of the cluster.
    pub fn cluster_domain(&self) -> &str {
        &self.cluster.domain
    }

    fn add_rule(&mut self, rule: &EgressRule, field: &str) -> Result<(), PolicyError> {
        match (&rule.cidr, &rule.namespaces, &rule.ports) {
            (Some(cidr), None, ports) => {
                let network = compile_cidr(cidr, &format!("{field}.cidr"))?;
                let ports = match ports {
                    Some(ports) => compile_ports(ports, &format!("{field}.ports"))?,
                    None => self.ports.clone(),
                };
                self.openings.push(Opening { network, ports });
            }
            (None, Some(names), None) => self.add_namespaces(names, &format!("{field}.namespaces"))?,
            _ => return Err(PolicyError::Rule { field: field.to_owned() }),
        }
        Ok(())
    }

    fn add_namespaces(&mut self, names: &[String], field: &str) -> Result<(), PolicyError> {
        if names.is_empty() {
            return Err(PolicyError::Empty { field: field.to_owned() });
        }
        match &mut self.namespaces {
            Namespaces::Every => {}
            every if names.iter().any(|name| name == EVERY_NAMESPACE) => *every = Namespaces::Every,
            Namespaces::Named(named) => named.extend(names.iter().cloned()),
        }
        Ok(())
    }

    fn opens(&self, plain: IpAddr, port: u16) -> bool {
        self.openings.iter().any(|opening| opening.network.contains(&plain) && opening.ports.contains(&port))
    }

    fn is_of_cluster(&self, plain: IpAddr) -> bool {
        self.cluster.networks.iter().any(|network| network.contains(&plain))
            || self.cluster.api_servers.iter().any(|server| canonical(*server).address == plain)
    }
}

fn compile_cidr(cidr: &str, field: &str) -> Result<IpNet, PolicyError> {
    let network: IpNet = cidr.parse().map_err(|_| PolicyError::Cidr { field: field.to_owned() })?;
    let network = network.trunc();
    // Both ends tell: the only ranges that begin and end in addresses that are
    // never allowed and have others between are wider than NEVER_PREFIX_MIN.
    let is_never = |address| classify(address) == AddressClass::Never;
    let is_narrow = network.prefix_len() >= NEVER_PREFIX_MIN;
    if is_narrow && is_never(network.network()) && is_never(network.broadcast()) {
        return Err(PolicyError::NeverAllowed { field: field.to_owned() });
    }
    Ok(network)
}

fn compile_ports(ports: &[i32], field: &str) -> Result<BTreeSet<u16>, PolicyError> {
    if ports.is_empty() {
        return Err(PolicyError::Empty { field: field.to_owned() });
    }
    let compile = |(index, port): (usize, &i32)| {
        let port = u16::try_from(*port).ok().filter(|port| *port > 0);
        port.ok_or_else(|| PolicyError::Port { field: format!("{field}[{index}]") })
    };
    ports.iter().enumerate().map(compile).collect()
}
