//! The NetworkPolicy of a pool: a second wall around what `policy` decides for
//! every single address. It never has to be exact; it must never be too narrow.

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{
    build::Own,
    gather::ApiServers,
    validate::{Namespaces, Range, Reach},
};
use crate::{
    controller::names,
    wire::{HEALTH_PORT, INGEST_PORT, INTERNAL_PORT},
};

/// IPv4 ranges that no public endpoint has (RFC 6890 and its successors).
const NOT_PUBLIC_V4: [&str; 14] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
];
/// The only IPv6 range with public endpoints.
const PUBLIC_V6: &str = "2000::/3";
/// Ranges inside [`PUBLIC_V6`] that lead elsewhere: Teredo, documentation, 6to4.
const NOT_PUBLIC_V6: [&str; 3] = ["2001::/32", "2001:db8::/32", "2002::/16"];
/// 53 as everywhere; 5353 is where the DNS pods of OpenShift listen, and some
/// network plugins look at the port behind the Service.
const DNS_PORTS: [u16; 2] = [53, 5353];

/// Builds the NetworkPolicy of a pool.
pub(super) fn build(own: &Own<'_>, reach: &Reach, api_servers: &ApiServers, cluster: &[IpNet]) -> Value {
    let Reach { public_ports, ranges, namespaces } = reach;
    let mut egress = vec![dns()];
    egress.extend(api_server(api_servers));
    egress.push(json!({ "to": public(cluster), "ports": tcp(public_ports) }));
    egress.extend(ranges.iter().map(range));
    egress.extend(services_of(namespaces));
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": own.metadata(&names::base(&own.pool.name)),
        "spec": {
            "podSelector": { "matchLabels": own.selector() },
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress(),
            "egress": egress,
        },
    })
}

fn ingress() -> Value {
    let controller = json!({ names::NAME_LABEL: names::NAME, names::COMPONENT_LABEL: names::CONTROLLER });
    json!([
        { "from": [{ "podSelector": { "matchLabels": controller } }], "ports": tcp(&[INTERNAL_PORT]) },
        { "from": [{ "namespaceSelector": {} }], "ports": tcp(&[INGEST_PORT]) },
        // Kubelets and monitoring come from addresses that no selector names.
        { "ports": tcp(&[HEALTH_PORT]) },
    ])
}

/// DNS servers are anywhere: pods, nodes, link-local addresses of a node's cache.
fn dns() -> Value {
    let ports: Vec<Value> = DNS_PORTS
        .iter()
        .flat_map(|port| ["UDP", "TCP"].map(|protocol| json!({ "protocol": protocol, "port": port })))
        .collect();
    json!({ "ports": ports })
}

fn api_server(ApiServers { addresses, ports }: &ApiServers) -> Option<Value> {
    let blocks: Vec<Value> = addresses.iter().map(|address| ip_block(&IpNet::from(*address).to_string())).collect();
    (!blocks.is_empty()).then(|| json!({ "to": blocks, "ports": tcp(ports) }))
}

/// Public addresses: those of the cluster itself are not, even where its ranges
/// look public.
fn public(cluster: &[IpNet]) -> Value {
    let block = |cidr: &str, exceptions: &[&str]| {
        let mut exceptions: Vec<IpNet> = exceptions.iter().filter_map(|exception| exception.parse().ok()).collect();
        let whole: Option<IpNet> = cidr.parse().ok();
        let inside = |range: &IpNet| whole.is_some_and(|whole| whole.contains(range) && whole != *range);
        exceptions.extend(cluster.iter().map(IpNet::trunc).filter(inside));
        exceptions.sort_unstable();
        json!({ "ipBlock": { "cidr": cidr, "except": IpNet::aggregate(&exceptions) } })
    };
    json!([block("0.0.0.0/0", &NOT_PUBLIC_V4), block(PUBLIC_V6, &NOT_PUBLIC_V6)])
}

fn range(Range { cidr, ports }: &Range) -> Value {
    json!({ "to": [ip_block(&cidr.to_string())], "ports": tcp(ports) })
}

/// `serviceRef` names the port itself, so the ports are not known here.
fn services_of(namespaces: &Namespaces) -> Option<Value> {
    let selector = match namespaces {
        Namespaces::All => json!({}),
        Namespaces::Named(names) if names.is_empty() => return None,
        Namespaces::Named(names) => json!({
            "matchExpressions": [{ "key": "kubernetes.io/metadata.name", "operator": "In", "values": names }],
        }),
    };
    Some(json!({ "to": [{ "namespaceSelector": selector }] }))
}

fn ip_block(cidr: &str) -> Value {
    json!({ "ipBlock": { "cidr": cidr } })
}

fn tcp(ports: &[u16]) -> Value {
    ports.iter().map(|port| json!({ "protocol": "TCP", "port": port })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exception_lies_inside_its_block() {
        let check = |block: &str, exceptions: &[&str]| {
            let block: IpNet = block.parse().unwrap();
            for exception in exceptions {
                let exception: IpNet = exception.parse().unwrap();
                assert!(block.contains(&exception) && exception.trunc() == exception, "{exception}");
            }
        };
        check("0.0.0.0/0", &NOT_PUBLIC_V4);
        check(PUBLIC_V6, &NOT_PUBLIC_V6);
    }

    #[test]
    fn ranges_of_the_cluster_are_not_public() {
        let ranges = ["10.0.0.0/8", "33.7.0.0/8", "2600:1::/32", "fd00::/8", "0.0.0.0/0"].map(|r| r.parse().unwrap());
        let (without, with) = (public(&[]), public(&ranges));
        for (index, added) in [(0, json!("33.0.0.0/8")), (1, json!("2600:1::/32"))] {
            let exceptions = |blocks: &Value| blocks[index]["ipBlock"]["except"].as_array().unwrap().clone();
            let new: Vec<Value> = exceptions(&with).into_iter().filter(|e| !exceptions(&without).contains(e)).collect();
            assert_eq!(new, [added]);
        }
    }

    #[test]
    fn services_are_reached_in_the_named_namespaces_only() {
        assert_eq!(services_of(&Namespaces::Named(vec![])), None);
        assert_eq!(services_of(&Namespaces::All), Some(json!({ "to": [{ "namespaceSelector": {} }] })));
    }

    #[test]
    fn an_unknown_api_server_makes_no_rule_that_would_allow_everything() {
        assert_eq!(api_server(&ApiServers::default()), None);
    }
}
