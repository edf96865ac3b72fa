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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::{super::ClusterNetworks, *};

    fn policy(egress: serde_json::Value) -> EgressPolicy {
        let cluster = ClusterNetworks { domain: "k8s.example.org".into(), ..ClusterNetworks::default() };
        EgressPolicy::compile(Some(&serde_json::from_value(egress).unwrap()), &cluster).unwrap()
    }

    /// Lenient in scheme and port, so that the host alone decides.
    fn lenient() -> EgressPolicy {
        policy(json!({"schemes": ["https", "http"]}))
    }

    fn check(text: &str, expected: Reason) {
        match parse_url(text, &lenient()) {
            Ok(destination) => panic!("{text:?} passed as {destination:?}"),
            Err(refusal) => assert_eq!(refusal.reason(), expected, "{text:?}: {refusal}"),
        }
    }

    fn accepted(text: &str) -> Destination {
        parse_url(text, &lenient()).unwrap_or_else(|refusal| panic!("{text:?}: {refusal}"))
    }

    #[test]
    fn every_way_to_write_a_loopback_or_unspecified_address_is_refused() {
        for host in [
            "127.1",
            "0x7f.1",
            "0177.1",
            "017700000001",
            "2130706433",
            "0x7f000001",
            "127.000.000.001",
            "127.0.0.1.",
            "127%2e0%2e0%2e1",
            "%31%32%37.0.0.1",
            "0x7f.0x0.0x0.0x1",
            "0",
            "0.0.0.0",
            "127.0.0.1",
        ] {
            check(&format!("https://{host}/"), Reason::DestinationNotAllowed);
            check(&format!("http://{host}/"), Reason::DestinationNotAllowed);
        }
        for host in ["①②⑦.⓪.⓪.①", "127。0。0。1", "ⓛocalhost", "ﬀ.example"] {
            check(&format!("https://{host}/"), Reason::InvalidUrl);
        }
    }

    #[test]
    fn what_the_parser_makes_of_other_digits_is_refused_as_well() {
        // The text is refused before; if it were not, the host would be.
        for host in ["①②⑦.⓪.⓪.①", "127。0。0。1", "ⓛocalhost", "LOCALHOST", "localhost."] {
            let url = Url::parse(&format!("https://{host}/")).unwrap();
            let refusal = judge_host(url.host().unwrap(), 443, &lenient()).unwrap_err();
            assert_eq!(refusal.reason(), Reason::DestinationNotAllowed, "{host}");
        }
    }

    #[test]
    fn every_disguise_in_ipv6_is_refused() {
        for host in [
            "[::]",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[0:0:0:0:0:ffff:10.0.0.2]",
            "[::127.0.0.1]",
            "[::ffff:0:127.0.0.1]",
            "[::5efe:7f00:1]",
            "[64:ff9b::169.254.169.254]",
            "[64:ff9b:1::1]",
            "[2002:a9fe:a9fe::]",
            "[2001:0:4136:e378:8000:63bf:3fff:fdd2]",
            "[fd00:ec2::254]",
            "[fe80::1]",
            "[fec0::1]",
            "[ff02::1]",
        ] {
            check(&format!("https://{host}/"), Reason::DestinationNotAllowed);
        }
    }

    #[test]
    fn names_that_lead_inside_are_refused() {
        for host in [
            "LOCALHOST",
            "localhost",
            "localhost.",
            "a.localhost",
            "printer.local",
            "kubernetes",
            "kubernetes.",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local.",
            "KUBERNETES.default.SVC.Cluster.Local",
            "10-0-0-1.default.pod.cluster.local",
            "x.pod",
            "kubernetes.default.svc.k8s.example.org",
            "1-2-3-4.default.pod.k8s.example.org",
            "metadata.google.internal",
            "metadata.google.internal.",
            "ip-10-0-0-1.ec2.internal",
            "metadata.goog",
            "instance-data",
            "metadata",
            "cluster.local",
            "localhost.localdomain",
        ] {
            check(&format!("https://{host}/"), Reason::DestinationNotAllowed);
        }
        // Names that only look alike.
        accepted("https://hooks.k8s.example.org/");
        accepted("https://svc.example.com/");
        accepted("https://pod.hooks.example.com/");
        accepted("https://notlocalhost.com/");
        accepted("https://cluster.local.example.com/");
    }

    #[test]
    fn hosts_that_dns_does_not_know_are_refused() {
        let label = "a".repeat(LABEL_BYTES_MAX);
        accepted(&format!("https://{label}.com/"));
        for host in ["a..b", "-a.com", "a-.com", "a.com..", ".com", "a.b!c", &format!("{label}a.com")] {
            check(&format!("https://{host}/"), Reason::InvalidUrl);
        }
        let long = format!("{label}.{label}.{label}.{}", "a".repeat(61));
        assert_eq!(long.len(), NAME_BYTES_MAX);
        accepted(&format!("https://{long}/"));
        check(&format!("https://{long}a/"), Reason::InvalidUrl);
    }

    #[test]
    fn what_the_parser_refuses_stays_refused() {
        for host in [
            "256.256.256.256",
            "1.1.1.1.1",
            "4294967296",
            "0xBaaaaaaaaaaaaaaaaffffffff",
            "[example.com]",
            "[1::2::3]",
            "[fe80::1%eth0]",
            "[fe80::1%25eth0]",
            "example.com:65536",
            "xn--",
            "a%00b.com",
            "a^b.com",
            "",
            ":443",
        ] {
            let text = format!("https://{host}/");
            assert!(Url::parse(&text).is_err(), "{text}");
            check(&text, Reason::InvalidUrl);
        }
    }

    #[test]
    fn what_two_readers_may_understand_differently_is_refused() {
        for text in [
            "http:127.0.0.1/",
            "http:///127.0.0.1/",
            "https:example.com",
            "https:/example.com",
            "https:///example.com",
            "https:\\\\example.com",
            "https://127.0.0.1\\@example.com/",
            "https://1.1.1.1@127.0.0.1/",
            "https://user@example.com/",
            "https://user:pw@example.com/",
            "https://@example.com/",
            "https://:@example.com/",
            "https://:pw@example.com/",
            "https://ex\tample.com/",
            "https://ex\nample.com/",
            "https://example.com/\r\nHost: x",
            "https://example.com/a b",
            " https://example.com/",
            "https://example.com/ ",
            "https://example.com/#x",
            "https://example.com/#",
            "https://example.com:0/",
            "https://example.com/ü",
            "https://example.com/\0",
            "gopher://127.0.0.1:6379/",
            "file:///etc/passwd",
            "ftp://example.com/",
            "//example.com/",
            "example.com",
            "",
            "https",
            "https://",
            "javascript:alert(1)",
            "unix:///var/run/docker.sock",
        ] {
            check(text, Reason::InvalidUrl);
        }
    }

    #[test]
    fn the_length_of_a_url_has_a_limit() {
        let url = |bytes: usize| format!("https://example.com/{:a<1$}", "", bytes - "https://example.com/".len());
        accepted(&url(URL_BYTES_MAX));
        check(&url(URL_BYTES_MAX + 1), Reason::InvalidUrl);
    }

    #[test]
    fn scheme_and_port_follow_the_policy() {
        let check = |egress: serde_json::Value, text: &str, expected: Option<Reason>| {
            let reason = parse_url(text, &policy(egress)).err().map(|refusal| refusal.reason());
            assert_eq!(reason, expected, "{text}");
        };
        check(json!({}), "http://example.com/", Some(Reason::HttpNotAllowed));
        check(json!({}), "https://example.com/", None);
        check(json!({}), "HTTPS://example.com:8443/", None);
        check(json!({}), "https://example.com:9000/", Some(Reason::DestinationNotAllowed));
        check(json!({}), "https://8.8.8.8:9000/", Some(Reason::DestinationNotAllowed));
        check(json!({"ports": [9000]}), "https://example.com:9000/", None);
        check(json!({"ports": [9000]}), "https://example.com/", Some(Reason::DestinationNotAllowed));
        check(json!({"schemes": ["http"]}), "https://example.com/", Some(Reason::DestinationNotAllowed));
        check(json!({"schemes": ["http"]}), "http://example.com/", None);
        // A name may lead into a range with ports of its own; an address shows it.
        let rule = json!({"allow": [{"cidr": "10.0.0.0/8", "ports": [9000]}]});
        check(rule.clone(), "https://example.com:9000/", None);
        check(rule.clone(), "https://10.1.2.3:9000/", None);
        check(rule.clone(), "https://10.1.2.3/", Some(Reason::DestinationNotAllowed));
        check(rule, "https://8.8.8.8:9000/", Some(Reason::DestinationNotAllowed));
    }

    #[test]
    fn allowed_urls_become_destinations() {
        let check = |text: &str, uri: &str, host_header: &str| {
            let destination = accepted(text);
            assert_eq!(destination.uri().to_string(), uri, "{text}");
            assert_eq!(destination.host_header(), host_header, "{text}");
        };
        check("https://1.1.1.1", "https://1.1.1.1:443/", "1.1.1.1");
        check("https://8.8.8.8/a?b=c", "https://8.8.8.8:443/a?b=c", "8.8.8.8");
        let google = "[2001:4860:4860::8888]";
        check(&format!("https://{google}/"), &format!("https://{google}:443/"), google);
        check("https://[64:ff9b::808:808]/", "https://[64:ff9b::808:808]:443/", "[64:ff9b::808:808]");
        check("HTTPS://Hooks.Example.COM:8443/A/../b", "https://hooks.example.com:8443/b", "hooks.example.com:8443");
        check("https://example.com.", "https://example.com:443/", "example.com");
        check("https://example.com.:8443/", "https://example.com:8443/", "example.com:8443");
        check("http://example.com:443/", "http://example.com:443/", "example.com:443");
        check(
            "https://xn--bcher-kva.example/?q={a}|b'",
            "https://xn--bcher-kva.example:443/?q={a}|b%27",
            "xn--bcher-kva.example",
        );
        check("https://a_b.example.com/%20", "https://a_b.example.com:443/%20", "a_b.example.com");
        check("https://example.com/@x:y@z", "https://example.com:443/@x:y@z", "example.com");
    }

    #[test]
    fn messages_do_not_repeat_path_or_query() {
        for text in [
            "https://localhost/sesame?k=sesame",
            "https://127.0.0.1/sesame",
            "http://example.com:9/sesame",
            "https://u:sesame@example.com/",
            "https://example.com/sesame#sesame",
            "nope://sesame",
            "https://a..b/sesame",
        ] {
            let message = parse_url(text, &policy(json!({}))).unwrap_err().message();
            assert!(!message.contains("sesame"), "{message}");
        }
        let destination = accepted("https://example.com/sesame?sesame");
        assert!(!format!("{destination:?}").contains("sesame"), "{destination:?}");
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_passes_is_allowed(text in "(https?://)?[ -~]{0,60}") {
            if let Ok(destination) = parse_url(&text, &lenient()) {
                prop_assert!(super::super::destination::pods_of(destination.uri().authority().unwrap()).is_none());
                if let Ok(address) = destination.host().trim_matches(['[', ']']).parse() {
                    prop_assert!(lenient().allows(address, destination.port()));
                }
            }
        }

        #[test]
        fn an_address_in_any_notation_is_judged_as_itself(bits: u32, form in 0usize..6) {
            let [a, b, c, d] = bits.to_be_bytes();
            let host = match form {
                0 => format!("{a}.{b}.{c}.{d}"),
                1 => format!("{bits}"),
                2 => format!("{bits:#x}"),
                3 => format!("0{bits:o}"),
                4 => format!("{a:#x}.{b}.{}", u32::from(c) << 8 | u32::from(d)),
                _ => format!("[::ffff:{a}.{b}.{c}.{d}]"),
            };
            let expected = lenient().allows(IpAddr::V4(bits.into()), 443);
            prop_assert_eq!(parse_url(&format!("https://{host}/"), &lenient()).is_ok(), expected, "{}", host);
        }
    }
}
