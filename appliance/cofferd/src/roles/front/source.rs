//! Who a stranger is, as far as fairness goes: the holder of a share of connections and of fresh evidence.
//!
//! Nothing is known about a client but its address, so shares are by address: one IPv4 address, or one IPv6 /64, the
//! least that a site is given (RFC 6177 §2). Clients behind one NAT, one load balancer or QEMU's user network are one
//! source, and what they say about addresses behind them is not believed. So every share is a part that serves a
//! whole site well: a single source keeps the appliance busy, it does not keep others out. Whoever has many
//! addresses is held by the bounds over all sources alone.

use std::net::{IpAddr, Ipv6Addr};

/// The last 64 bits of an IPv6 address are the client's own choice.
const NETWORK: u128 = !(u64::MAX as u128);

/// An IPv4 address or the first half of an IPv6 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Source(IpAddr);

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        // A socket for both families reports IPv4 clients as ::ffff:a.b.c.d, which are all in one /64.
        Self(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & NETWORK).into(),
            address => address,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(address: &str) -> Source {
        Source::from(address.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_network() {
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
        assert_ne!(source("::ffff:192.0.2.1"), source("::ffff:192.0.2.2"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
        assert_eq!(source("2001:db8:0:1::1"), source("2001:db8:0:1:ffff:ffff:ffff:ffff"));
        assert_ne!(source("2001:db8:0:1::1"), source("2001:db8:0:2::1"));
        assert_ne!(source("::1"), source("127.0.0.1"));
    }
}
