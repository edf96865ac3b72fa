//! What kind of address an IP address is.
//!
//! The tables follow the special-purpose registries of IANA (RFC 6890 and its
//! updates) and the metadata services of the clouds. An IPv4 address can hide in
//! an IPv6 address in nine ways; each is undone before judging.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The kinds of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressClass {
    /// An ordinary address of the internet.
    Public,
    /// Private or set aside for a special purpose: closed unless a rule opens it.
    Private,
    /// Loopback, unspecified, link-local, multicast, broadcast, and the metadata
    /// services of clouds: no rule opens it.
    Never,
}

/// An address without its disguise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Canonical {
    /// The address that packets reach in the end, as far as that is certain:
    /// IPv4-mapped and well-known NAT64 addresses are IPv4 ones.
    pub address: IpAddr,
    /// The IPv4 address that a form hides which is no plain translation.
    pub embedded: Option<Ipv4Addr>,
}

/// What kind of address this is. Forms of IPv6 that hold an IPv4 address share
/// its verdict: IPv4-mapped and well-known NAT64 addresses entirely; the old
/// transition forms (IPv4-compatible, SIIT, local NAT64, 6to4, Teredo, ISATAP)
/// are never public, and never allowed if what they hide is not.
pub fn classify(address: IpAddr) -> AddressClass {
    let plain = canonical(address);
    let class = match plain.address {
        IpAddr::V4(address) => classify_v4(address),
        IpAddr::V6(address) => classify_v6(address),
    };
    match plain.embedded {
        Some(inner) => class.max(classify_v4(inner)).max(AddressClass::Private),
        None => class,
    }
}

/// Takes the disguise off.
pub(super) fn canonical(address: IpAddr) -> Canonical {
    let IpAddr::V6(v6) = address else { return Canonical { address, embedded: None } };
    match v6.segments() {
        // ::ffff:a.b.c.d (IPv4-mapped) and 64:ff9b::a.b.c.d (NAT64, RFC 6052).
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            Canonical { address: IpAddr::V4(v4(high, low)), embedded: None }
        }
        _ => Canonical { address, embedded: hidden(v6) },
    }
}

fn hidden(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    match v6.segments() {
        // :: and ::1 are no IPv4-compatible addresses (RFC 4291, 2.5.5.1).
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        // ::a.b.c.d (IPv4-compatible) and ::ffff:0:a.b.c.d (SIIT, RFC 2765).
        [0, 0, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => Some(v4(high, low)),
        // 64:ff9b:1::/48 (local NAT64, RFC 8215).
        [0x64, 0xff9b, 1, ..] => Some(local_nat64(v6)),
        // 2002:a.b.c.d::/48 (6to4, RFC 3056).
        [0x2002, high, low, ..] => Some(v4(high, low)),
        // 2001:0::/32 (Teredo, RFC 4380): the client's address, inverted.
        [0x2001, 0, .., high, low] => Some(v4(!high, !low)),
        // …:0:5efe:a.b.c.d, …:200:5efe:a.b.c.d (ISATAP, RFC 5214).
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => Some(v4(high, low)),
        _ => None,
    }
}

/// The IPv4 address of a local NAT64 address. The length of its prefix is not
/// written in it (RFC 6052, 2.2: 48, 56, 64 or 96), so the worst of the four
/// readings counts.
fn local_nat64(v6: Ipv6Addr) -> Ipv4Addr {
    let o = v6.octets();
    let last = Ipv4Addr::new(o[12], o[13], o[14], o[15]);
    let others = [[o[6], o[7], o[9], o[10]], [o[7], o[9], o[10], o[11]], [o[9], o[10], o[11], o[12]]];
    // A reading of 0.x.y.z is what the zeros of another length look like.
    let bad = |a: &Ipv4Addr| a.octets()[0] != 0 && classify_v4(*a) == AddressClass::Never;
    others.into_iter().map(Ipv4Addr::from).find(bad).unwrap_or(last)
}

fn v4(high: u16, low: u16) -> Ipv4Addr {
    let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
    Ipv4Addr::new(a, b, c, d)
}

fn classify_v4(address: Ipv4Addr) -> AddressClass {
    use AddressClass::{Never, Private, Public};
    match address.octets() {
        [0 | 127, ..] | [169, 254, ..] | [224..=239, ..] | [255, 255, 255, 255] => Never,
        // Metadata and host services: Alibaba, Oracle (old), Azure.
        [100, 100, 100, 200] | [192, 0, 0, 192] | [168, 63, 129, 16] => Never,
        // RFC 1918.
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Private,
        // Carrier-grade NAT; protocol assignments; the old 6to4 relay anycast.
        [100, 64..=127, ..] | [192, 0, 0, _] | [192, 88, 99, _] => Private,
        // Documentation; benchmarks; reserved for ever.
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] | [198, 18 | 19, ..] | [240..=255, ..] => Private,
        _ => Public,
    }
}

fn classify_v6(address: Ipv6Addr) -> AddressClass {
    use AddressClass::{Never, Private, Public};
    match address.segments() {
        // Unspecified and loopback.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Never,
        // Link-local; multicast.
        [0xfe80..=0xfebf, ..] | [0xff00..=0xffff, ..] => Never,
        // Metadata and node services: AWS, Google, Scaleway.
        [0xfd00, 0xec2, ..] | [0xfd20, 0xce, ..] | [0xfd00, 0x42, ..] => Never,
        // Site-local (deprecated); unique local.
        [0xfec0..=0xfeff, ..] | [0xfc00..=0xfdff, ..] => Private,
        // ::/8 has nothing public beside the NAT64 prefix, which was undone before.
        [0..=0xff, ..] => Private,
        // Discard-only; protocol assignments with Teredo in them; documentation; 6to4.
        [0x100, 0, 0, 0 | 1, ..] | [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x2002, ..] => Private,
        // Documentation (3fff::/20); SRv6.
        [0x3fff, 0..=0xfff, ..] | [0x5f00, ..] => Private,
        // Global unicast is 2000::/3; the rest is not assigned.
        [0x2000..=0x3fff, ..] => Public,
        _ => Private,
    }
}
