//! A destination that passed the judgement of its text.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use http::{HeaderValue, Uri, uri::Authority};

use crate::api::webhook::Scheme;

/// Addresses of Pods that one destination carries at most.
pub const POD_ADDRESSES_MAX: usize = 64;
/// Separates encoded addresses.
const SEPARATOR: char = '-';
/// Hexadecimal digits of an encoded port.
const PORT_DIGITS: usize = 4;
/// Hexadecimal digits of an encoded IPv4 address.
const V4_DIGITS: usize = 8;
/// Hexadecimal digits of an encoded IPv6 address.
const V6_DIGITS: usize = 32;

/// Where a request goes. Only [`super::parse_url`] and [`Destination::service`]
/// make one, so its host is a name without trailing dot or a literal address,
/// and its URI has a user part only if we wrote it.
///
/// Pods behind a Service are dialed by address while the request speaks of the
/// Service's name. The addresses travel in the user part of the URI's authority,
/// where no tenant can write. So the connector needs no table, and connections
/// are pooled per set of addresses: when the set changes, no old connection is
/// used. The user part never leaves this process.
#[derive(Clone, PartialEq, Eq)]
pub struct Destination {
    uri: Uri,
    host_header: HeaderValue,
    scheme: Scheme,
}

/// The parts do not make a URI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("host, port, path and query do not make a URI")]
pub struct NoUri;

impl Destination {
    /// A destination whose host is a name or a literal address.
    pub(super) fn new(scheme: Scheme, host: &str, port: u16, path_and_query: &str) -> Result<Self, NoUri> {
        Self::build(scheme, None, host, port, path_and_query)
    }

    /// The Pods behind a port of a Service. Addresses beyond
    /// [`POD_ADDRESSES_MAX`] are left out.
    ///
    /// # Errors
    /// [`NoUri`] if name, namespace or path cannot stand in a URI.
    pub fn service(
        scheme: Scheme,
        name: &str,
        namespace: &str,
        port: u16,
        path_and_query: &str,
        pods: &[SocketAddr],
    ) -> Result<Self, NoUri> {
        let is_label = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !is_label(name) || !is_label(namespace) || !path_and_query.starts_with('/') {
            return Err(NoUri);
        }
        let host = format!("{name}.{namespace}.svc");
        Self::build(scheme, Some(&encode(pods)), &host, port, path_and_query)
    }

    fn build(scheme: Scheme, pods: Option<&str>, host: &str, port: u16, path_and_query: &str) -> Result<Self, NoUri> {
        let (scheme_text, default_port) = match scheme {
            Scheme::Http => ("http", 80),
            Scheme::Https => ("https", 443),
        };
        let host_header = if port == default_port { host.to_owned() } else { format!("{host}:{port}") };
        let authority = match pods {
            Some(pods) => format!("{pods}@{host}:{port}"),
            None => format!("{host}:{port}"),
        };
        let uri = Uri::builder().scheme(scheme_text).authority(authority).path_and_query(path_and_query);
        let uri = uri.build().map_err(|_| NoUri)?;
        let host_header = HeaderValue::try_from(host_header).map_err(|_| NoUri)?;
        Ok(Self { uri, host_header, scheme })
    }

    /// The URI for the client: absolute, with an explicit port.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// The value of the header Host.
    pub fn host_header(&self) -> &HeaderValue {
        &self.host_header
    }

    /// The scheme.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host, fit for a message to the tenant.
    pub fn host(&self) -> &str {
        self.uri.host().unwrap_or_default()
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.uri.port_u16().unwrap_or_default()
    }
}

/// Path and query may be secrets: only scheme, host and port are shown.
impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Destination({:?} {}:{})", self.scheme, self.host(), self.port())
    }
}

/// The addresses of Pods that an authority carries; none if it carries none, an
/// empty list if what it carries cannot be read, which then leads nowhere.
pub fn pods_of(authority: &Authority) -> Option<Vec<SocketAddr>> {
    let (pods, _) = authority.as_str().rsplit_once('@')?;
    Some(pods.split(SEPARATOR).map(decode).collect::<Option<Vec<_>>>().unwrap_or_default())
}

fn encode(pods: &[SocketAddr]) -> String {
    let one = |pod: &SocketAddr| match pod.ip() {
        IpAddr::V4(address) => format!("{:08x}{:04x}", u32::from(address), pod.port()),
        IpAddr::V6(address) => format!("{:032x}{:04x}", u128::from(address), pod.port()),
    };
    pods.iter().take(POD_ADDRESSES_MAX).map(one).collect::<Vec<_>>().join("-")
}

fn decode(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_at_checked(text.len().checked_sub(PORT_DIGITS)?)?;
    let address = match address.len() {
        V4_DIGITS => IpAddr::V4(Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?)),
        V6_DIGITS => IpAddr::V6(Ipv6Addr::from(u128::from_str_radix(address, 16).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_service_is_named_in_the_host_and_its_pods_travel_in_the_authority() {
        let addresses = pods(&["10.1.2.3:8080", "[fd00:1::5]:65535"]);
        let to = Destination::service(Scheme::Http, "inbox", "team-a", 8080, "/hook?x=1", &addresses).unwrap();
        assert_eq!(to.host(), "inbox.team-a.svc");
        assert_eq!(to.host_header(), "inbox.team-a.svc:8080");
        assert_eq!(to.uri().path_and_query().unwrap(), "/hook?x=1");
        assert_eq!(pods_of(to.uri().authority().unwrap()), Some(addresses));
        assert!(!format!("{to:?}").contains("hook"), "{to:?}");
    }

    #[test]
    fn the_default_port_is_not_in_the_host_header() {
        let to = Destination::service(Scheme::Http, "inbox", "team-a", 80, "/", &pods(&["10.1.2.3:8080"])).unwrap();
        assert_eq!(to.host_header(), "inbox.team-a.svc");
        assert_eq!(to.port(), 80);
    }

    #[test]
    fn pods_beyond_the_limit_are_left_out() {
        let addresses: Vec<_> = (1..=66).map(|n| SocketAddr::from(([10, 0, 0, n], 80))).collect();
        let to = Destination::service(Scheme::Http, "a", "b", 80, "/", &addresses).unwrap();
        assert_eq!(pods_of(to.uri().authority().unwrap()).unwrap(), addresses[..POD_ADDRESSES_MAX]);
    }

    #[test]
    fn names_that_would_change_the_authority_are_refused() {
        for name in ["a@b", "a:1", "a/b", "a b", "a.b", "A"] {
            assert_eq!(Destination::service(Scheme::Http, name, "ns", 80, "/", &[]), Err(NoUri), "{name}");
            assert_eq!(Destination::service(Scheme::Http, "a", name, 80, "/", &[]), Err(NoUri), "{name}");
        }
        assert_eq!(Destination::service(Scheme::Http, "a", "b", 80, "no-slash", &[]), Err(NoUri));
    }

    #[test]
    fn an_authority_without_pods_has_none_and_a_spoiled_one_leads_nowhere() {
        let check = |text: &str, expected: Option<Vec<SocketAddr>>| {
            assert_eq!(pods_of(&Authority::try_from(text).unwrap()), expected, "{text}");
        };
        check("example.com:443", None);
        check("@example.com:443", Some(vec![]));
        check("0a0102031f90@a.b.svc:80", Some(pods(&["10.1.2.3:8080"])));
        check("0a0102031f90-zz@a.b.svc:80", Some(vec![]));
        check("0a01020@a.b.svc:80", Some(vec![]));
    }
}
