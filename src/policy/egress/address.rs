//! What kind of address an IP address is.
//!
//! The tables follow the special-purpose registries of IANA (RFC 6890 and its
//! updates) and the metadata services of the clouds. An IPv4 address can hide in
//! an IPv6 address in nine ways; each is undone before judging.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

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

/// Whether a range has nothing but addresses that no rule opens, so that a rule
/// for it is a mistake.
pub(super) fn is_never_network(network: &IpNet) -> bool {
    let is_one = network.prefix_len() == network.max_prefix_len();
    let is_inside = match network {
        IpNet::V4(network) => NEVER_V4.iter().any(|never| never.contains(network)),
        IpNet::V6(network) => NEVER_V6.iter().any(|never| never.contains(network)),
    };
    is_inside || (is_one && classify(network.addr()) == AddressClass::Never)
}

/// The ranges that are never allowed.
const NEVER_V4: [Ipv4Net; 4] = [
    Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4),
];
const NEVER_V6: [Ipv6Net; 6] = [
    Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 127),
    Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0), 32),
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0), 32),
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0), 32),
];

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(addresses: &[&str], expected: AddressClass) {
        for text in addresses {
            assert_eq!(classify(text.parse().unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn the_internet_is_public() {
        check(
            &["1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.0", "172.15.0.1", "172.32.0.1"],
            AddressClass::Public,
        );
        check(&["198.17.255.255", "198.20.0.0", "169.253.255.255", "223.255.255.255"], AddressClass::Public);
        check(&["2001:4860:4860::8888", "2606:4700::1111", "2a00::1", "64:ff9b::808:808"], AddressClass::Public);
        check(&["::ffff:8.8.8.8", "2001:200::1", "3ffe::1"], AddressClass::Public);
    }

    #[test]
    fn special_ranges_are_private_at_both_ends() {
        check(&["10.0.0.0", "10.255.255.255", "172.16.0.0", "172.31.255.255", "192.168.0.0"], AddressClass::Private);
        check(&["100.64.0.0", "100.127.255.255", "192.0.0.1", "192.0.2.1", "192.88.99.1"], AddressClass::Private);
        check(&["198.18.0.0", "198.19.255.255", "198.51.100.1", "203.0.113.255"], AddressClass::Private);
        check(&["240.0.0.0", "255.255.255.254"], AddressClass::Private);
        check(&["fc00::", "fdff::1", "fec0::1", "feff::1", "100::1", "2001:db8::1", "3fff::1"], AddressClass::Private);
        check(&["5f00::1", "2002:808:808::", "2001:1ff::1", "4000::1", "0:1::", "64:ff9b:2::1"], AddressClass::Private);
    }

    #[test]
    fn loopback_link_local_metadata_and_multicast_are_never_allowed() {
        check(&["0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.255", "169.254.0.0"], AddressClass::Never);
        check(&["169.254.169.254", "169.254.170.2", "169.254.255.255", "100.100.100.200"], AddressClass::Never);
        check(&["192.0.0.192", "168.63.129.16", "224.0.0.1", "239.255.255.255"], AddressClass::Never);
        check(&["255.255.255.255", "::", "::1", "fe80::1", "febf::1", "ff02::1"], AddressClass::Never);
        check(&["fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:42::42"], AddressClass::Never);
    }

    #[test]
    fn an_ipv4_address_keeps_its_class_in_every_disguise() {
        check(&["::ffff:127.0.0.1", "::ffff:7f00:1", "::127.0.0.1", "::ffff:0:127.0.0.1"], AddressClass::Never);
        check(&["::5efe:7f00:1", "2a00::200:5efe:7f00:1", "64:ff9b::169.254.169.254"], AddressClass::Never);
        check(&["64:ff9b:1::1", "64:ff9b:1:7f00:0:100::", "2002:a9fe:a9fe::"], AddressClass::Never);
        check(&["2001:0:4136:e378:8000:63bf:80ff:fffe"], AddressClass::Never);
        check(&["::ffff:10.0.0.2", "64:ff9b::10.0.0.2", "::10.0.0.2", "2002:a00:2::"], AddressClass::Private);
        check(&["2001:0:4136:e378:8000:63bf:3fff:fdd2", "64:ff9b:1::10.1.2.3"], AddressClass::Private);
        // What they hide is public, but nobody needs these forms to reach it.
        check(&["::8.8.8.8", "::ffff:0:8.8.8.8", "2a00::5efe:8.8.8.8", "64:ff9b:1::8.8.8.8"], AddressClass::Private);
    }

    /// Every way to write an IPv4 address as an IPv6 one: first those that
    /// translate, then those that only hide.
    fn disguises(address: Ipv4Addr, noise: u16) -> ([Ipv6Addr; 2], [Ipv6Addr; 7]) {
        let [a, b, c, d] = address.octets();
        let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let v6 = |s: [u16; 8]| Ipv6Addr::from(s);
        (
            [v6([0, 0, 0, 0, 0, 0xffff, high, low]), v6([0x64, 0xff9b, 0, 0, 0, 0, high, low])],
            [
                v6([0, 0, 0, 0, 0, 0, high, low]),
                v6([0, 0, 0, 0, 0xffff, 0, high, low]),
                v6([0x64, 0xff9b, 1, 0, 0, 0, high, low]),
                v6([0x2002, high, low, noise, 0, 0, 0, noise]),
                v6([0x2001, 0, noise, noise, 0, noise, !high, !low]),
                v6([0x2a00, noise, 1, 2, 0, 0x5efe, high, low]),
                v6([0x2a00, noise, 1, 2, 0x200, 0x5efe, high, low]),
            ],
        )
    }

    proptest! {
        #[test]
        fn every_disguise_of_every_ipv4_address_shares_its_verdict(bits: u32, noise: u16) {
            let address = Ipv4Addr::from(bits);
            let class = classify(IpAddr::V4(address));
            let (translations, hiding) = disguises(address, noise);
            for disguise in translations {
                prop_assert_eq!(classify(IpAddr::V6(disguise)), class, "{}", disguise);
            }
            for disguise in hiding {
                let expected = class.max(AddressClass::Private);
                prop_assert_eq!(classify(IpAddr::V6(disguise)), expected, "{}", disguise);
            }
        }

        #[test]
        fn the_ranges_that_are_never_allowed_hold_nothing_else(bits: u128) {
            let within = |first: u128, mask: u128| first | (bits & mask);
            for network in NEVER_V4 {
                let bits = within(u32::from(network.network()).into(), u32::from(network.hostmask()).into());
                prop_assert_eq!(classify(IpAddr::V4(u32::try_from(bits).unwrap().into())), AddressClass::Never);
            }
            for network in NEVER_V6 {
                let bits = within(network.network().into(), network.hostmask().into());
                prop_assert_eq!(classify(IpAddr::V6(bits.into())), AddressClass::Never);
            }
        }

        #[test]
        fn any_address_has_a_class(bits: u128) {
            classify(IpAddr::V6(Ipv6Addr::from(bits)));
        }
    }
}
