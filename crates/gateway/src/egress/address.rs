//! Which addresses a sandbox may reach: public ones, and those that the operator named.
//!
//! Sources: the special-purpose registries of RFC 6890 with their later entries, and for IPv6 the other way round: only
//! global unicast (`2000::/3`) passes, without the parts of it that stand for something else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use caisson_domain::egress::AddressRange;

/// Refused IPv4 ranges: first address, prefix length, what it is.
const REFUSED_V4: [(Ipv4Addr, u32, &str); 15] = [
    (Ipv4Addr::UNSPECIFIED, 8, "an address of this host"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "a private address"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "a carrier's shared address"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "a loopback address"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "a link-local or metadata address"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "a private address"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "a protocol's address"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "an address for documentation"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "a relay's address"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "a private address"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "an address for benchmarks"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "an address for documentation"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "an address for documentation"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "a multicast address"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "a reserved or broadcast address"),
];

/// Refused IPv6 ranges, the most telling first; behind them everything that is not global unicast is refused.
const REFUSED_V6: [(Ipv6Addr, u32, &str); 17] = [
    (Ipv6Addr::UNSPECIFIED, 128, "an address of this host"),
    (Ipv6Addr::LOCALHOST, 128, "a loopback address"),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96, "an IPv4 address in an IPv6 one"),
    (Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0), 96, "an IPv4 address in an IPv6 one"),
    (Ipv6Addr::UNSPECIFIED, 96, "an IPv4 address in an IPv6 one"),
    (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96, "a translated IPv4 address (NAT64)"),
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48, "a translated IPv4 address (NAT64)"),
    (Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64, "an address that discards"),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, "a protocol's address (Teredo and others)"),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, "an address for documentation"),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, "an IPv4 address in an IPv6 one (6to4)"),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, "an address for documentation"),
    (Ipv6Addr::new(0x5f00, 0, 0, 0, 0, 0, 0, 0), 16, "a segment routing address"),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, "a private or metadata address"),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, "a link-local address"),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10, "a site-local address"),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, "a multicast address"),
];

/// Global unicast.
const GLOBAL_V6: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// What is wrong with the address; none if it may be reached.
pub(super) fn refused(address: IpAddr, allow: &[AddressRange]) -> Option<&'static str> {
    if allow.iter().any(|range| range.contains(address)) {
        return None;
    }
    match address {
        IpAddr::V4(address) => {
            let found = REFUSED_V4.iter().find(|(first, bits, _)| shares_v4(address, *first, *bits));
            found.map(|(_, _, what)| *what)
        }
        IpAddr::V6(address) => {
            let found = REFUSED_V6.iter().find(|(first, bits, _)| shares_v6(address, *first, *bits));
            let outside = || (!shares_v6(address, GLOBAL_V6.0, GLOBAL_V6.1)).then_some("no global address");
            found.map(|(_, _, what)| *what).or_else(outside)
        }
    }
}

fn shares_v4(address: Ipv4Addr, first: Ipv4Addr, bits: u32) -> bool {
    (address.to_bits() ^ first.to_bits()) >> (32 - bits) == 0
}

fn shares_v6(address: Ipv6Addr, first: Ipv6Addr, bits: u32) -> bool {
    (address.to_bits() ^ first.to_bits()) >> (128 - bits) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(text: &str, allow: &[&str]) -> Option<&'static str> {
        let allow: Vec<AddressRange> = allow.iter().map(|text| text.parse().unwrap()).collect();
        refused(text.parse().unwrap(), &allow)
    }

    #[test]
    fn every_special_range_is_refused_to_its_last_address() {
        for (first, last) in [
            ("0.0.0.0", "0.255.255.255"),
            ("10.0.0.0", "10.255.255.255"),
            ("100.64.0.0", "100.127.255.255"),
            ("127.0.0.0", "127.255.255.255"),
            ("169.254.0.0", "169.254.255.255"),
            ("172.16.0.0", "172.31.255.255"),
            ("192.0.0.0", "192.0.0.255"),
            ("192.0.2.0", "192.0.2.255"),
            ("192.88.99.0", "192.88.99.255"),
            ("192.168.0.0", "192.168.255.255"),
            ("198.18.0.0", "198.19.255.255"),
            ("198.51.100.0", "198.51.100.255"),
            ("203.0.113.0", "203.0.113.255"),
            ("224.0.0.0", "239.255.255.255"),
            ("240.0.0.0", "255.255.255.255"),
            ("::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("::ffff:0.0.0.0", "::ffff:255.255.255.255"),
            ("::ffff:0:0.0.0.0", "::ffff:0:255.255.255.255"),
            ("::0.0.0.2", "::255.255.255.255"),
            ("64:ff9b::", "64:ff9b::255.255.255.255"),
            ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff"),
            ("100::", "100::ffff:ffff:ffff:ffff"),
            ("2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("4000::", "fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            assert!(look(first, &[]).is_some(), "{first}");
            assert!(look(last, &[]).is_some(), "{last}");
        }
    }

    #[test]
    fn what_lies_beside_the_ranges_is_public() {
        for text in [
            "1.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.0.3.0",
            "192.88.98.255",
            "192.88.100.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "198.51.99.255",
            "198.51.101.0",
            "203.0.112.255",
            "203.0.114.0",
            "223.255.255.255",
            "2000::",
            "2001:200::1",
            "2001:db7:ffff::",
            "2001:db9::",
            "2003::",
            "2600::1",
            "3ffe:ffff::",
            "3fff:1000::",
        ] {
            assert_eq!(look(text, &[]), None, "{text}");
        }
    }

    #[test]
    fn the_metadata_services_are_refused_by_name() {
        assert!(look("169.254.169.254", &[]).unwrap().contains("metadata"));
        assert!(look("fd00:ec2::254", &[]).unwrap().contains("metadata"));
        assert!(look("::ffff:169.254.169.254", &[]).unwrap().contains("IPv4"));
        assert!(look("64:ff9b::a9fe:a9fe", &[]).unwrap().contains("NAT64"));
        assert!(look("2002:a9fe:a9fe::1", &[]).unwrap().contains("6to4"));
    }

    #[test]
    fn a_range_of_the_operator_opens_itself_and_nothing_beside() {
        assert_eq!(look("127.0.0.1", &["127.0.0.1/32"]), None);
        assert!(look("127.0.0.2", &["127.0.0.1/32"]).is_some());
        assert!(look("::ffff:127.0.0.1", &["127.0.0.1/32"]).is_some(), "another spelling is another address");
        assert_eq!(look("::1", &["10.0.0.0/8", "::1/128"]), None);
    }
}
