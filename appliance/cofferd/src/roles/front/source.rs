//! Who a stranger is, as far as fairness goes, and how many places one of them may hold.
//!
//! Nothing is known about a client but its address, so shares are by address: one IPv4 address, or one IPv6 /64, the
//! least that a site is given (RFC 6177 §2). Clients behind one NAT, one load balancer or QEMU's user network are one
//! source, and what they say about addresses behind them is not believed. So every share is a part that serves a
//! whole site well: a single source keeps the appliance busy, it does not keep others out. Whoever has many
//! addresses is held by the bounds over all sources alone.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

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

/// A number of places, of which one source gets a part.
#[derive(Debug)]
pub(crate) struct Places {
    all: usize,
    each: usize,
    /// Places held, by those who hold some: never more entries than `all`.
    held: Mutex<BTreeMap<Source, usize>>,
}

/// One place; it is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    source: Source,
}

impl Places {
    /// So many places, and so many of them for each source.
    pub(crate) fn new(all: usize, each: usize) -> Arc<Self> {
        Arc::new(Self { all, each, held: Mutex::default() })
    }

    /// A place for `source`, or nothing when it has its share or all are taken. Never waits.
    pub(crate) fn take(self: &Arc<Self>, source: Source) -> Option<Place> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = held.values().sum();
        let own = held.get(&source).copied().unwrap_or(0);
        if all >= self.all || own >= self.each {
            return None;
        }
        held.insert(source, own.saturating_add(1));
        Some(Place { places: Arc::clone(self), source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.places.held.lock().unwrap_or_else(PoisonError::into_inner);
        match held.get(&self.source).copied() {
            Some(own) if own > 1 => held.insert(self.source, own.saturating_sub(1)),
            _ => held.remove(&self.source),
        };
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

    #[test]
    fn one_source_cannot_take_the_places_of_all() {
        let places = Places::new(5, 3);
        let held: Vec<_> = std::iter::from_fn(|| places.take(source("192.0.2.1"))).collect();
        assert_eq!(held.len(), 3);
        let others: Vec<_> = std::iter::from_fn(|| places.take(source("192.0.2.2"))).collect();
        assert_eq!(others.len(), 2, "the bound over all holds as well");
        drop(held);
        assert!(places.take(source("192.0.2.1")).is_some());
        drop(others);
        assert!(places.held.lock().unwrap().is_empty());
    }
}
