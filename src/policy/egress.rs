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

use self::address::{canonical, is_never_network};
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
    if is_never_network(&network) {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn compile(egress: serde_json::Value, cluster: &ClusterNetworks) -> Result<EgressPolicy, PolicyError> {
        EgressPolicy::compile(Some(&serde_json::from_value(egress).unwrap()), cluster)
    }

    fn policy(egress: serde_json::Value) -> EgressPolicy {
        compile(egress, &ClusterNetworks::default()).unwrap()
    }

    fn check(policy: &EgressPolicy, endpoint: &str, expected: bool) {
        let endpoint: std::net::SocketAddr = endpoint.parse().unwrap();
        assert_eq!(policy.allows(endpoint.ip(), endpoint.port()), expected, "{endpoint}");
    }

    #[test]
    fn without_rules_public_addresses_by_https_on_two_ports_are_allowed() {
        for policy in [EgressPolicy::compile(None, &ClusterNetworks::default()).unwrap(), policy(json!({}))] {
            check(&policy, "8.8.8.8:443", true);
            check(&policy, "8.8.8.8:8443", true);
            check(&policy, "[2001:4860:4860::8888]:443", true);
            check(&policy, "[64:ff9b::808:808]:443", true);
            check(&policy, "8.8.8.8:80", false);
            check(&policy, "10.0.0.1:443", false);
            check(&policy, "127.0.0.1:443", false);
            check(&policy, "169.254.169.254:443", false);
            assert!(policy.allows_scheme(Scheme::Https) && !policy.allows_scheme(Scheme::Http));
            assert!(!policy.allows_service("team-a"));
        }
    }

    #[test]
    fn port_80_joins_where_http_is_allowed_unless_ports_are_named() {
        check(&policy(json!({"schemes": ["https", "http"]})), "8.8.8.8:80", true);
        let named = policy(json!({"schemes": ["https", "http"], "ports": [8080]}));
        check(&named, "8.8.8.8:8080", true);
        check(&named, "8.8.8.8:80", false);
        check(&named, "8.8.8.8:443", false);
    }

    #[test]
    fn a_rule_opens_its_range_with_its_ports_and_nothing_else() {
        let policy = policy(json!({"allow": [{"cidr": "10.20.0.1/16", "ports": [9000]}, {"cidr": "fd00:1::/64"}]}));
        check(&policy, "10.20.255.255:9000", true);
        check(&policy, "10.20.255.255:443", false);
        check(&policy, "10.21.0.0:9000", false);
        check(&policy, "[fd00:1::1]:8443", true);
        check(&policy, "[fd00:1:0:1::1]:8443", false);
        check(&policy, "[::ffff:10.20.0.1]:9000", true);
        check(&policy, "[64:ff9b::10.20.0.1]:9000", true);
        check(&policy, "8.8.8.8:9000", false);
        assert!(policy.may_allow_port(9000) && !policy.may_allow_port(9001));
    }

    #[test]
    fn a_rule_for_an_old_ipv6_form_needs_one_for_what_it_hides() {
        let one = policy(json!({"allow": [{"cidr": "2002::/16"}]}));
        check(&one, "[2002:a00:1::]:443", false);
        let both = policy(json!({"allow": [{"cidr": "2002::/16"}, {"cidr": "10.0.0.0/8"}]}));
        check(&both, "[2002:a00:1::]:443", true);
    }

    #[test]
    fn networks_of_the_cluster_are_closed_even_if_public_until_a_rule_opens_them() {
        let cluster = ClusterNetworks {
            networks: vec!["20.0.0.0/16".parse().unwrap()],
            api_servers: vec!["20.9.0.1".parse().unwrap()],
            ..ClusterNetworks::default()
        };
        let closed = compile(json!({}), &cluster).unwrap();
        check(&closed, "20.0.1.1:443", false);
        check(&closed, "20.9.0.1:443", false);
        check(&closed, "20.9.0.2:443", true);
        let open = compile(json!({"allow": [{"cidr": "20.0.0.0/8", "ports": [443]}]}), &cluster).unwrap();
        check(&open, "20.0.1.1:443", true);
        check(&open, "20.0.1.1:8443", false);
        check(&open, "20.9.0.1:443", true);
    }

    #[test]
    fn pods_behind_a_service_need_no_range_but_are_never_loopback_metadata_or_api_server() {
        let cluster = ClusterNetworks { api_servers: vec!["10.0.0.1".parse().unwrap()], ..ClusterNetworks::default() };
        let policy = compile(json!({"allow": [{"namespaces": ["team-a"]}]}), &cluster).unwrap();
        let judge = |address: &str| policy.judge_pod(address.parse().unwrap(), 8080).is_ok();
        assert!(judge("10.0.0.2") && judge("fd00::2") && judge("20.1.1.1"));
        for address in ["127.0.0.1", "169.254.169.254", "::1", "fe80::1", "10.0.0.1", "::ffff:10.0.0.1"] {
            assert!(!judge(address), "{address}");
        }
    }

    #[test]
    fn namespaces_are_named_or_all() {
        let named = policy(json!({"allow": [{"namespaces": ["team-a"]}, {"namespaces": ["team-b"]}]}));
        assert!(named.allows_service("team-a") && named.allows_service("team-b") && !named.allows_service("team-c"));
        let every = policy(json!({"allow": [{"namespaces": ["team-a", "*"]}, {"namespaces": ["team-b"]}]}));
        assert!(every.allows_service("team-c"));
    }

    #[test]
    fn what_is_wrong_is_told_with_the_name_of_its_field() {
        let check = |egress: serde_json::Value, expected: &str| {
            let error = compile(egress.clone(), &ClusterNetworks::default()).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{egress}: {error}");
        };
        check(json!({"allow": [{"cidr": "10.0.0.0/8"}, {"cidr": "10.0.0.0"}]}), "spec.egress.allow[1].cidr ");
        check(json!({"allow": [{"cidr": "10.0.0.0/8", "ports": [1, 0]}]}), "spec.egress.allow[0].ports[1] ");
        check(json!({"allow": [{"cidr": "10.0.0.0/8", "ports": []}]}), "spec.egress.allow[0].ports ");
        check(json!({"allow": [{"namespaces": []}]}), "spec.egress.allow[0].namespaces ");
        check(json!({"allow": [{}]}), "spec.egress.allow[0] ");
        check(json!({"allow": [{"cidr": "10.0.0.0/8", "namespaces": ["a"]}]}), "spec.egress.allow[0] ");
        check(json!({"allow": [{"namespaces": ["a"], "ports": [1]}]}), "spec.egress.allow[0] ");
        check(json!({"ports": [65536]}), "spec.egress.ports[0] ");
        check(json!({"ports": []}), "spec.egress.ports ");
        check(json!({"schemes": []}), "spec.egress.schemes ");
    }

    #[test]
    fn a_rule_for_nothing_but_forbidden_addresses_is_an_error_and_a_wide_one_is_not() {
        for cidr in ["127.0.0.0/8", "169.254.169.254/32", "224.0.0.0/4", "::1/128", "fe80::/10", "fd00:ec2::/32"] {
            let error = compile(json!({"allow": [{"cidr": cidr}]}), &ClusterNetworks::default()).unwrap_err();
            assert_eq!(error, PolicyError::NeverAllowed { field: "spec.egress.allow[0].cidr".into() }, "{cidr}");
        }
        for cidr in ["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "::/0", "fc00::/7", "240.0.0.0/4"] {
            policy(json!({"allow": [{"cidr": cidr}]}));
        }
    }

    #[test]
    fn loopback_is_opened_by_its_flag_alone_and_opens_nothing_else() {
        let policy = policy(json!({})).allow_loopback();
        check(&policy, "127.0.0.1:12345", true);
        check(&policy, "[::1]:12345", true);
        check(&policy, "[::ffff:127.0.0.1]:1", true);
        check(&policy, "169.254.169.254:80", false);
        check(&policy, "0.0.0.0:80", false);
        check(&policy, "10.0.0.1:443", false);
    }

    proptest! {
        #[test]
        fn no_rule_opens_what_is_never_allowed(bits: u128, short: bool, prefix in 0u8..=128, port: u16) {
            let address = if short { IpAddr::V4(u32::try_from(bits >> 96).unwrap().into()) } else { IpAddr::V6(bits.into()) };
            // Rules around this very address, from itself up to everything.
            let longest = if short { 32 } else { 128 };
            let cidr = format!("{address}/{}", prefix.min(longest));
            let rules = json!({"allow": [
                {"cidr": cidr, "ports": [i32::from(port.max(1))]},
                {"cidr": "0.0.0.0/0", "ports": [i32::from(port.max(1))]},
                {"cidr": "::/0", "ports": [i32::from(port.max(1))]},
            ]});
            match compile(rules, &ClusterNetworks::default()) {
                Ok(policy) if classify(address) == AddressClass::Never => {
                    prop_assert!(!policy.allows(address, port.max(1)));
                    prop_assert!(policy.judge_pod(address, port).is_err());
                }
                Ok(policy) => prop_assert!(policy.allows(address, port.max(1))),
                Err(PolicyError::NeverAllowed { .. }) => prop_assert_eq!(classify(address), AddressClass::Never),
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            }
        }
    }
}
