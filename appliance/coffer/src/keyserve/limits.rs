//! What strangers may take of a key server: nonces, requests and places for connections, bounded for each address and for all.
//!
//! An address is an IPv4 address or the first half of an IPv6 one, which is what one customer gets of a provider.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a nonce counts: a quote takes seconds, and its queue in the appliance up to 15.
const NONCE_LIFE: Duration = Duration::from_secs(60);
/// Most nonces that are out, of one address and of all.
const NONCES_EACH: usize = 16;
const NONCES: usize = 4096;
/// Requests of one address at once, and for how long each takes away one of them. An appliance that waits makes two a minute.
const BURST: u32 = 30;
const REFILL: Duration = Duration::from_secs(1);
/// Addresses that are remembered; one that has asked for nothing for [`BURST`] times [`REFILL`] needs no place.
const ADDRESSES: usize = 4096;
/// Open connections of one address and of all.
const CONNECTIONS_EACH: usize = 8;
const CONNECTIONS: usize = 128;

/// Who asks, as far as limits go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Address(IpAddr);

impl Address {
    pub(super) fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V6(ip) => Self(IpAddr::V6((u128::from(ip) & !u128::from(u64::MAX)).into())),
            ip => Self(ip),
        }
    }
}

/// Nonces that are out.
#[derive(Default)]
pub(super) struct Nonces(Mutex<HashMap<[u8; 32], (Address, Instant)>>);

impl Nonces {
    /// Remembers a new one; false when there are too many.
    pub(super) fn add(&self, nonce: [u8; 32], address: Address, now: Instant) -> bool {
        let mut out = lock(&self.0);
        out.retain(|_, (_, made)| now.saturating_duration_since(*made) < NONCE_LIFE);
        let own = out.values().filter(|(whose, _)| *whose == address).count();
        if own >= NONCES_EACH || out.len() >= NONCES {
            return false;
        }
        out.insert(nonce, (address, now));
        true
    }

    /// Takes one back, whoever brings it; false when it was none of ours, is used or is too old.
    pub(super) fn take(&self, nonce: &[u8; 32], now: Instant) -> bool {
        let found = lock(&self.0).remove(nonce);
        found.is_some_and(|(_, made)| now.saturating_duration_since(made) < NONCE_LIFE)
    }
}

/// How much each address has asked for.
#[derive(Default)]
pub(super) struct Requests(Mutex<HashMap<Address, (u32, Instant)>>);

impl Requests {
    /// Counts a request; false when it is one too many.
    pub(super) fn count(&self, address: Address, now: Instant) -> bool {
        let mut all = lock(&self.0);
        // What is left of an address's requests after so long a pause.
        let left = |(used, since): (u32, Instant)| {
            let refilled = now.saturating_duration_since(since).as_millis() / REFILL.as_millis();
            used.saturating_sub(u32::try_from(refilled).unwrap_or(u32::MAX))
        };
        if !all.contains_key(&address) && all.len() >= ADDRESSES {
            all.retain(|_, entry| left(*entry) > 0);
            if all.len() >= ADDRESSES {
                return false;
            }
        }
        let entry = all.entry(address).or_insert((0, now));
        let used = left(*entry);
        if used >= BURST {
            return false;
        }
        if used != entry.0 {
            entry.1 = now;
        }
        entry.0 = used.saturating_add(1);
        true
    }
}

/// Open connections.
#[derive(Clone, Default)]
pub(super) struct Connections(Arc<Mutex<HashMap<Address, usize>>>);

/// A place for one connection, as long as it lives.
pub(super) struct Place {
    connections: Connections,
    address: Address,
}

impl Connections {
    pub(super) fn take(&self, address: Address) -> Option<Place> {
        let mut open = lock(&self.0);
        let own = open.get(&address).copied().unwrap_or(0);
        if own >= CONNECTIONS_EACH || open.values().sum::<usize>() >= CONNECTIONS {
            return None;
        }
        open.insert(address, own.saturating_add(1));
        Some(Place { connections: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = lock(&self.connections.0);
        if let Some(own) = open.get_mut(&self.address) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                open.remove(&self.address);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one call.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> Address {
        Address::of(IpAddr::V4(n.into()))
    }

    #[test]
    fn a_nonce_counts_once_and_for_a_minute() {
        let (nonces, now) = (Nonces::default(), Instant::now());
        assert!(nonces.add([1; 32], address(1), now) && nonces.add([2; 32], address(1), now));
        assert!(!nonces.take(&[3; 32], now), "none of ours");
        assert!(nonces.take(&[1; 32], now + NONCE_LIFE - Duration::from_millis(1)));
        assert!(!nonces.take(&[1; 32], now), "used");
        assert!(!nonces.take(&[2; 32], now + NONCE_LIFE), "too old");
    }

    #[test]
    fn nonces_of_one_address_and_of_all_are_bounded_and_come_back() {
        let (nonces, now) = (Nonces::default(), Instant::now());
        let nonce = |n: u32| {
            let mut nonce = [0; 32];
            nonce[..4].copy_from_slice(&n.to_be_bytes());
            nonce
        };
        let added = (0..10_000).filter(|n| nonces.add(nonce(*n), address(1), now)).count();
        assert_eq!(added, NONCES_EACH);
        assert!(nonces.add(nonce(20_000), address(2), now), "another address has its own");
        let many = (30_000..40_000).filter(|n| nonces.add(nonce(*n), address(*n), now)).count();
        assert_eq!(added + 1 + many, NONCES);
        assert!(nonces.add(nonce(50_000), address(1), now + NONCE_LIFE));
    }

    #[test]
    fn requests_of_an_address_are_bounded_and_refill() {
        let (requests, now) = (Requests::default(), Instant::now());
        let asked = |at| (0..1000).filter(|_| requests.count(address(1), at)).count();
        assert_eq!(asked(now), BURST as usize);
        assert!(requests.count(address(2), now));
        assert_eq!(asked(now + REFILL * 3), 3);
        assert_eq!(asked(now + REFILL * 1000), BURST as usize);
        let strangers = (10..20_000).filter(|n| requests.count(address(*n), now + REFILL * 1000)).count();
        assert!(strangers < ADDRESSES);
        assert!(requests.count(address(30_000), now + REFILL * 2000), "who asks for nothing needs no place");
    }

    #[test]
    fn connections_are_bounded_for_an_address_and_for_all_and_given_back() {
        let connections = Connections::default();
        let mut held: Vec<Place> = (0..100).filter_map(|_| connections.take(address(1))).collect();
        assert_eq!(held.len(), CONNECTIONS_EACH);
        held.extend((2..1000).filter_map(|n| connections.take(address(n))));
        assert_eq!(held.len(), CONNECTIONS);
        held.clear();
        assert!(connections.take(address(1)).is_some());
        assert!(lock(&connections.0).is_empty(), "nothing is kept of who has gone");
    }

    #[test]
    fn the_second_half_of_an_ipv6_address_is_nobodys() {
        let of = |text: &str| Address::of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1:2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
