//! Which number each service has. Its host ids and its address follow from it.
//!
//! A name that has a number keeps it, whatever other services come, go or change their places. A number that was once a name's is
//! never another's: files that a service leaves behind are not the next one's. PID 1 owns the table; it is part of the state, and
//! lives exactly as long as that.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::paths::{SERVICE_UID_BASE, SERVICE_UID_RANGE};

/// Names that can ever have a number: 254 networks of 253 addresses. As many ranges of ids fit below 2^32 as well.
const MAX: u16 = 254 * HOSTS;
/// Addresses of one `169.254.x.0/24` that are given out; 254 is a service's own end of its wire, 0 and 255 are nobody's.
const HOSTS: u16 = 253;

/// Every number was given out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no number left for the service {0}: {MAX} names had one before")]
pub(crate) struct Exhausted(String);

/// The table: what was given out so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Numbers(BTreeMap<String, Number>);

/// A service's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Number(u16);

impl Numbers {
    /// The number of the service `name`: the one that it has, or else the next that nobody had.
    ///
    /// # Errors
    ///
    /// [`Exhausted`]; the table is as before.
    pub(crate) fn of(&mut self, name: &str) -> Result<Number, Exhausted> {
        if let Some(number) = self.0.get(name) {
            return Ok(*number);
        }
        // Nothing is ever taken out, so the count is the next number.
        let next = u16::try_from(self.0.len()).ok().filter(|next| *next < MAX);
        let number = Number(next.ok_or_else(|| Exhausted(name.to_owned()))?);
        self.0.insert(name.to_owned(), number);
        Ok(number)
    }
}

impl Number {
    /// The host uid and gid that is root inside the service's container: the first of its [`SERVICE_UID_RANGE`] ids.
    pub(crate) fn uid(self) -> u32 {
        // Below 2^32 for every number, which a test holds.
        SERVICE_UID_BASE.saturating_add(u32::from(self.0).saturating_mul(SERVICE_UID_RANGE))
    }

    /// The address under which the services that depend on this one see it: link-local (RFC 3927), so never routed.
    pub(crate) fn address(self) -> Ipv4Addr {
        let octet = |number: u16| u8::try_from(number.saturating_add(1)).unwrap_or(u8::MAX);
        Ipv4Addr::new(169, 254, octet(self.0 / HOSTS), octet(self.0 % HOSTS))
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
        assert_eq!((first.uid(), first.address()), (100_000, Ipv4Addr::new(169, 254, 1, 1)));
        assert_eq!((second.uid(), second.address()), (165_536, Ipv4Addr::new(169, 254, 1, 2)));
    }

    #[test]
    fn every_number_has_ids_and_an_address_of_its_own() {
        let all = || (0..MAX).map(Number);
        let mut next = SERVICE_UID_BASE;
        for number in all() {
            assert_eq!(number.uid(), next);
            next = next.checked_add(SERVICE_UID_RANGE).unwrap();
        }
        let addresses: BTreeSet<Ipv4Addr> = all().map(Number::address).collect();
        assert_eq!(addresses.len(), usize::from(MAX));
        // RFC 3927 §2.1 reserves the first and the last 256.
        assert!(addresses.iter().all(|a| a.is_link_local() && (1..=254).contains(&a.octets()[2])));
        assert!(addresses.iter().all(|a| (1..=253).contains(&a.octets()[3])));
    }

    #[test]
    fn when_all_are_given_out_old_names_keep_theirs_and_new_ones_are_refused() {
        let mut numbers = Numbers::default();
        for index in 0..MAX {
            numbers.of(&format!("s{index}")).unwrap();
        }
        let before = numbers.clone();
        assert_eq!(numbers.of("one-more"), Err(Exhausted("one-more".to_owned())));
        assert_eq!(numbers, before);
        assert_eq!(numbers.of("s7").unwrap(), Number(7));
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
