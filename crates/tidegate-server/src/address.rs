//! Addresses, as caps and quotas count them.
//!
//! An address is an IPv4 address, or the first 64 bits of an IPv6 address: a single host is commonly given all
//! addresses that share these.

use std::net::{IpAddr, Ipv6Addr};

/// The address under which `peer` is counted: see [the module](self).
pub(crate) fn network_of(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}
