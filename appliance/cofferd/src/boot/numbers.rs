//! Which number each service and each network has. A service's host ids and its addresses follow from them.
//!
//! A name that has a number keeps it, whatever others come, go or change their places. A number that was once a name's is
//! never another's: files that a service leaves behind are not the next one's. PID 1 owns the tables; they are part of the state,
//! and live exactly as long as that.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::paths::{SERVICE_UID_BASE, SERVICE_UID_RANGE};

/// Names of services that can ever have a number: 254 times as many as the last part of an address can tell apart. As many
/// ranges of ids fit below 2^32 as well.
const MAX: u16 = 254 * HOSTS;
/// Values of an address's last part that are given out: 0, 254 and 255 are nobody's.
const HOSTS: u16 = 253;
/// Names of networks that can ever have a number: each is a /16 of 10.0.0.0/8, of which the first and the last are nobody's.
const MAX_NETWORKS: u16 = 254;

/// Every number was given out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no number left for the {kind} {name}: {most} names had one before")]
pub(crate) struct Exhausted {
    kind: &'static str,
    name: String,
    most: u16,
}

/// The tables: what was given out so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Numbers {
    services: BTreeMap<String, u16>,
    networks: BTreeMap<String, u16>,
}

/// A service's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Number(u16);

/// A network's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NetworkNumber(u16);

impl Numbers {
    /// The number of the service `name`: the one that it has, or else the next that nobody had.
    ///
    /// # Errors
    ///
    /// [`Exhausted`]; the table is as before.
    pub(crate) fn of(&mut self, name: &str) -> Result<Number, Exhausted> {
        number(&mut self.services, "service", name, MAX).map(Number)
    }

    /// The same for the network `name`.
    ///
    /// # Errors
    ///
    /// [`Exhausted`]; the table is as before.
    pub(crate) fn of_network(&mut self, name: &str) -> Result<NetworkNumber, Exhausted> {
        number(&mut self.networks, "network", name, MAX_NETWORKS).map(NetworkNumber)
    }
}

fn number(
    table: &mut BTreeMap<String, u16>,
    kind: &'static str,
    name: &str,
    most: u16,
) -> Result<u16, Exhausted> {
    if let Some(number) = table.get(name) {
        return Ok(*number);
    }
    // Nothing is ever taken out, so the count is the next number.
    let next = u16::try_from(table.len()).ok().filter(|next| *next < most);
    let next = next.ok_or_else(|| Exhausted { kind, name: name.to_owned(), most })?;
    table.insert(name.to_owned(), next);
    Ok(next)
}

impl Number {
    /// The host uid and gid of the service's shim: the first of its [`SERVICE_UID_RANGE`] ids. Those of its container follow.
    pub(crate) fn uid(self) -> u32 {
        // Below 2^32 for every number, which a test holds.
        SERVICE_UID_BASE.saturating_add(u32::from(self.0).saturating_mul(SERVICE_UID_RANGE))
    }

    /// The service's address in a network, which is 10.n.0.0/16.
    pub(crate) fn address(self, network: NetworkNumber) -> Ipv4Addr {
        let octet = |number: u16| u8::try_from(number.saturating_add(1)).unwrap_or(u8::MAX);
        Ipv4Addr::new(10, octet(network.0), octet(self.0 / HOSTS), octet(self.0 % HOSTS))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_numbers_are_those_of_the_first_services() {
        let mut numbers = Numbers::default();
        let first = numbers.of("web").unwrap();
        let second = numbers.of("db").unwrap();
        assert_eq!((first.uid(), second.uid()), (100_000, 165_537));
        let networks = ["default", "back"].map(|name| numbers.of_network(name).unwrap());
        assert_eq!(first.address(networks[0]), Ipv4Addr::new(10, 1, 1, 1));
        assert_eq!(second.address(networks[0]), Ipv4Addr::new(10, 1, 1, 2));
        assert_eq!(second.address(networks[1]), Ipv4Addr::new(10, 2, 1, 2));
        assert_eq!(numbers.of_network("default"), Ok(networks[0]));
    }

    #[test]
    fn every_number_has_ids_and_an_address_of_its_own() {
        let all = || (0..MAX).map(Number);
        let mut next = SERVICE_UID_BASE;
        for number in all() {
            assert_eq!(number.uid(), next);
            next = next.checked_add(SERVICE_UID_RANGE).unwrap();
        }
        for network in [0, 7, MAX_NETWORKS - 1].map(NetworkNumber) {
            let addresses: BTreeSet<Ipv4Addr> = all().map(|number| number.address(network)).collect();
            assert_eq!(addresses.len(), usize::from(MAX));
            let own = u8::try_from(network.0 + 1).unwrap();
            assert!(
                addresses.iter().all(|a| a.octets()[..2] == [10, own] && (1..=254).contains(&a.octets()[2]))
            );
            assert!(addresses.iter().all(|a| (1..=253).contains(&a.octets()[3])));
        }
        let networks = (0..MAX_NETWORKS).map(|network| Number(0).address(NetworkNumber(network)).octets()[1]);
        assert_eq!(networks.collect::<BTreeSet<u8>>(), (1..=254).collect());
    }

    #[test]
    fn when_all_are_given_out_old_names_keep_theirs_and_new_ones_are_refused() {
        let mut numbers = Numbers::default();
        for index in 0..MAX {
            numbers.of(&format!("s{index}")).unwrap();
        }
        let before = numbers.clone();
        let refused = numbers.of("one-more").unwrap_err().to_string();
        assert_eq!(refused, "there is no number left for the service one-more: 64262 names had one before");
        assert_eq!(numbers, before);
        assert_eq!(numbers.of("s7").unwrap(), Number(7));
        for index in 0..MAX_NETWORKS {
            assert_eq!(numbers.of_network(&format!("n{index}")), Ok(NetworkNumber(index)));
        }
        assert!(numbers.of_network("one-more").is_err());
        assert_eq!(numbers.of_network("n9"), Ok(NetworkNumber(9)));
    }

    proptest! {
        /// Declarations come one after the other, each with any services in any order.
        #[test]
        fn a_name_keeps_its_number_and_shares_it_with_no_name_of_any_time(
            declarations in proptest::collection::vec(proptest::collection::vec("[a-f][a-c]?", 0..32), 0..40),
        ) {
            let mut numbers = Numbers::default();
            let mut seen: BTreeMap<String, Number> = BTreeMap::new();
            for name in declarations.iter().flatten() {
                let number = numbers.of(name).unwrap();
                let known = seen.insert(name.clone(), number);
                prop_assert!(known.is_none_or(|known| known == number), "{name} changed");
            }
            let distinct: BTreeSet<Number> = seen.values().copied().collect();
            prop_assert_eq!(distinct.len(), seen.len());
        }

        /// What is inserted, left out or moved around a service changes nothing about it.
        #[test]
        fn the_neighbours_of_a_service_do_not_matter_once_it_has_a_number(
            first in proptest::collection::btree_set("[a-z]{1,4}", 1..32),
            later in proptest::collection::vec("[a-z]{1,4}", 0..64),
            seed in any::<prop::sample::Index>(),
        ) {
            let mut numbers = Numbers::default();
            let before: Vec<(String, Number)> =
                first.iter().map(|name| (name.clone(), numbers.of(name).unwrap())).collect();
            for name in &later {
                numbers.of(name).unwrap();
            }
            let mut again = before.clone();
            again.rotate_left(seed.index(before.len()));
            for (name, number) in again {
                prop_assert_eq!(numbers.of(&name).unwrap(), number);
            }
        }
    }
}
