//! Reading the URL of an endpoint: once, strictly, with the text itself judged.
//!
//! `url` follows the WHATWG: it drops tabs and line breaks silently, takes `\`
//! for `/`, and reads `0x7f.1` or full-width digits as an address. What two
//! readers may understand differently is refused; what the one reader understood
//! is judged and passed on as [`Destination`], and never parsed again.

use std::net::IpAddr;

use ::url::{Host, Url};

use super::{AddressRefusal, Destination, EgressPolicy};
use crate::api::{Reason, webhook::Scheme};

/// Bytes of a URL at most.
pub const URL_BYTES_MAX: usize = 2048;
/// Bytes of a DNS name at most (RFC 1035).
const NAME_BYTES_MAX: usize = 253;
/// Bytes of a label of a DNS name at most (RFC 1035).
const LABEL_BYTES_MAX: usize = 63;

/// Names that lead to metadata services and would pass the other rules.
const METADATA_NAMES: [&str; 3] = ["metadata.goog", "metadata.tencentyun.com", "metadata.platformequinix.com"];
/// Top-level names that are no names of the internet: this machine (RFC 6761),
/// mDNS (RFC 6762), private use (ICANN), and the short forms of cluster DNS.
const LOCAL_SUFFIXES: [&str; 6] = ["localhost", "local", "internal", "svc", "pod", "localdomain"];
/// Every cluster's DNS until someone changes it.
const CLUSTER_SUFFIX: &str = "cluster.local";

/// Why a URL cannot be used. The texts are fit for a tenant; they never repeat
/// the path or the query.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlRefusal {
    /// Too long.
    #[error("the URL is longer than {URL_BYTES_MAX} bytes")]
    TooLong,
    /// Something that readers of URLs understand differently.
    #[error(
        "the URL has characters other than printable ASCII, or a space or backslash: percent-encode them in the path, and write the host in punycode"
    )]
    Character,
    /// Neither http:// nor https://.
    #[error("the URL does not begin with https:// (or http:// where the pool allows it)")]
    Scheme,
    /// Not a URL at all.
    #[error("the URL cannot be parsed: write an absolute URL such as https://hooks.example.com/posthorn")]
    Malformed,
    /// A user name or password.
    #[error("the URL has a user name or password: send credentials with headersFrom")]
    Credentials,
    /// A fragment.
    #[error("the URL has a fragment (#…), which is never sent: remove it")]
    Fragment,
    /// Port 0.
    #[error("the URL has port 0: write the port of the receiver")]
    PortZero,
    /// No name that DNS could have.
    #[error("the URL's host is not a full DNS name")]
    HostName,
    /// http, and the pool wants https.
    #[error("the URL is http, and the pool allows https only")]
    HttpNotAllowed,
    /// https, and the pool wants http. Odd, but it is the admin's choice.
    #[error("the URL is https, and the pool allows http only")]
    HttpsNotAllowed,
    /// A port that no rule knows.
    #[error("the pool does not allow port {0}")]
    Port(u16),
    /// A name that leads inside.
    #[error("the pool does not allow the host {host}: use serviceRef for a Service of this namespace")]
    LocalName {
        /// The host.
        host: String,
    },
    /// A literal address that the policy refuses.
    #[error("the pool does not allow the host {host}")]
    Address {
        /// The host as the tenant may see it: it is in the URL itself.
        host: String,
        /// Why, for the operator.
        #[source]
        refusal: AddressRefusal,
    },
}

impl UrlRefusal {
    /// The reason in the status of the Webhook.
    pub fn reason(&self) -> Reason {
        match self {
            Self::TooLong
            | Self::Character
            | Self::Scheme
            | Self::Malformed
            | Self::Credentials
            | Self::Fragment
            | Self::PortZero
            | Self::HostName => Reason::InvalidUrl,
            Self::HttpNotAllowed => Reason::HttpNotAllowed,
            Self::HttpsNotAllowed | Self::Port(_) | Self::LocalName { .. } | Self::Address { .. } => {
                Reason::DestinationNotAllowed
            }
        }
    }

    /// The sentence in the status of the Webhook.
    pub fn message(&self) -> String {
        self.to_string()
    }
}

/// Reads and judges the URL of an endpoint.
///
/// # Flow
/// Text → scheme → one parse → credentials, fragment, port → host. A name is
/// judged by its form only; where it leads is judged before each dial.
///
/// # Errors
/// [`UrlRefusal`]: the first rule that the URL breaks.
pub fn parse_url(text: &str, policy: &EgressPolicy) -> Result<Destination, UrlRefusal> {
    check_text(text)?;
    let url = Url::parse(text).map_err(|_| UrlRefusal::Malformed)?;
    let scheme = match url.scheme() {
        "https" => Scheme::Https,
        "http" => Scheme::Http,
        _ => return Err(UrlRefusal::Scheme),
    };
    if !url.username().is_empty() || url.password().is_some() || has_credentials(text) {
        return Err(UrlRefusal::Credentials);
    }
    if url.fragment().is_some() {
        return Err(UrlRefusal::Fragment);
    }
    let port = url.port_or_known_default().ok_or(UrlRefusal::Malformed)?;
    if port == 0 {
        return Err(UrlRefusal::PortZero);
    }
    match scheme {
        _ if policy.allows_scheme(scheme) => {}
        Scheme::Http => return Err(UrlRefusal::HttpNotAllowed),
        Scheme::Https => return Err(UrlRefusal::HttpsNotAllowed),
    }
    let host = judge_host(url.host().ok_or(UrlRefusal::Malformed)?, port, policy)?;
    let path = &url[::url::Position::BeforePath..::url::Position::AfterQuery];
    Destination::new(scheme, &host, port, path).map_err(|_| UrlRefusal::Malformed)
}

/// Judges what the parser would pass over.
fn check_text(text: &str) -> Result<(), UrlRefusal> {
    if text.len() > URL_BYTES_MAX {
        return Err(UrlRefusal::TooLong);
    }
    if text.bytes().any(|byte| !matches!(byte, b'!'..=b'~') || byte == b'\\') {
        return Err(UrlRefusal::Character);
    }
    let (scheme, rest) = text.split_once(':').ok_or(UrlRefusal::Scheme)?;
    if !scheme.eq_ignore_ascii_case("https") && !scheme.eq_ignore_ascii_case("http") {
        return Err(UrlRefusal::Scheme);
    }
    // The parser also takes `https:host` and `https:////host`.
    match rest.strip_prefix("//") {
        Some(rest) if !rest.starts_with('/') => Ok(()),
        _ => Err(UrlRefusal::Malformed),
    }
}

/// Finds the `@` of an empty user name, which the parser drops.
fn has_credentials(text: &str) -> bool {
    let after_scheme = text.split_once("://").map_or(text, |(_, rest)| rest);
    let authority = after_scheme.split(['/', '?', '#']).next().unwrap_or_default();
    authority.contains('@')
}

/// Judges a host as the parser understood it and writes it for a URI.
fn judge_host(host: Host<&str>, port: u16, policy: &EgressPolicy) -> Result<String, UrlRefusal> {
    let name = match host {
        Host::Ipv4(address) => return judge_literal(IpAddr::V4(address), address.to_string(), port, policy),
        Host::Ipv6(address) => return judge_literal(IpAddr::V6(address), format!("[{address}]"), port, policy),
        Host::Domain(name) => name.to_ascii_lowercase(),
    };
    let name = name.strip_suffix('.').unwrap_or(&name);
    if !is_dns_name(name) {
        return Err(UrlRefusal::HostName);
    }
    if is_local_name(name, policy.cluster_domain()) {
        return Err(UrlRefusal::LocalName { host: name.to_owned() });
    }
    if !policy.may_allow_port(port) {
        return Err(UrlRefusal::Port(port));
    }
    Ok(name.to_owned())
}

fn judge_literal(address: IpAddr, host: String, port: u16, policy: &EgressPolicy) -> Result<String, UrlRefusal> {
    match policy.judge(address, port) {
        Ok(()) => Ok(host),
        Err(refusal) => Err(UrlRefusal::Address { host, refusal }),
    }
}

fn is_dns_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    name.len() <= NAME_BYTES_MAX && name.split('.').all(is_label)
}

/// A name that leads to this machine, this network, this cluster or its cloud.
fn is_local_name(name: &str, cluster_domain: &str) -> bool {
    let is_or_ends_with = |suffix: &str| {
        let rest = name.strip_suffix(suffix);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    let is_of_cluster = || {
        let rest = name.strip_suffix(cluster_domain).and_then(|rest| rest.strip_suffix('.'));
        let last = rest.map(|rest| rest.rsplit('.').next().unwrap_or_default());
        !cluster_domain.is_empty() && matches!(last, Some("svc" | "pod"))
    };
    !name.contains('.')
        || LOCAL_SUFFIXES.into_iter().any(is_or_ends_with)
        || METADATA_NAMES.into_iter().any(is_or_ends_with)
        || is_or_ends_with(CLUSTER_SUFFIX)
        || is_of_cluster()
}
