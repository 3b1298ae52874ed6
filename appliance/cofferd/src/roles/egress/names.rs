//! The addresses that stand for names in one service's gate.
//!
//! They are of 198.18.0.0/16, which is nobody's (RFC 2544), and mean something in this one gate only. Names are the service's choice
//! where a declaration has a wildcard, so there are so many at a time.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// Names at a time.
pub(super) const MOST: usize = 1024;
/// An address is another name's at the earliest this long after it was last given out or dialled: a resolver keeps an answer for a
/// minute, and a program that keeps it longer does not end up elsewhere unnoticed.
const KEPT: Duration = Duration::from_secs(3600);
/// The address before the first.
const BASE: u32 = 0xc612_0000;

/// The addresses given out.
#[derive(Debug, Default)]
pub(super) struct Names {
    by_name: BTreeMap<Arc<str>, Ipv4Addr>,
    by_address: BTreeMap<Ipv4Addr, Given>,
}

#[derive(Debug)]
struct Given {
    name: Arc<str>,
    used: Instant,
}

impl Names {
    /// The address that stands for a name: the one that it has, or a free one. `None` when all are in use.
    pub(super) fn give(&mut self, name: &str) -> Option<Ipv4Addr> {
        let now = Instant::now();
        if let Some(address) = self.by_name.get(name).copied() {
            self.touch(address, now);
            return Some(address);
        }
        let address = if self.by_address.len() < MOST {
            let number = u32::try_from(self.by_address.len()).ok()?;
            Ipv4Addr::from(BASE.saturating_add(number).saturating_add(1))
        } else {
            self.free(now)?
        };
        let name: Arc<str> = name.into();
        self.by_name.insert(Arc::clone(&name), address);
        self.by_address.insert(address, Given { name, used: now });
        Some(address)
    }

    /// The name that an address was given to.
    pub(super) fn name(&mut self, address: Ipv4Addr) -> Option<Arc<str>> {
        self.touch(address, Instant::now());
        self.by_address.get(&address).map(|given| Arc::clone(&given.name))
    }

    fn touch(&mut self, address: Ipv4Addr, now: Instant) {
        if let Some(given) = self.by_address.get_mut(&address) {
            given.used = now;
        }
    }

    /// Takes the address back that was not used for longest, if that is long enough.
    fn free(&mut self, now: Instant) -> Option<Ipv4Addr> {
        let (address, given) = self.by_address.iter().min_by_key(|(_, given)| given.used)?;
        if now.saturating_duration_since(given.used) < KEPT {
            return None;
        }
        let address = *address;
        self.by_name.remove(&given.name);
        Some(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_name_keeps_its_address_and_shares_it_with_no_other() {
        let mut names = Names::default();
        let first = names.give("a.example.org").unwrap();
        assert_eq!(first, Ipv4Addr::new(198, 18, 0, 1));
        let second = names.give("b.example.org").unwrap();
        assert_eq!(second, Ipv4Addr::new(198, 18, 0, 2));
        assert_eq!(names.give("a.example.org"), Some(first));
        assert_eq!(names.name(second).as_deref(), Some("b.example.org"));
        assert_eq!(names.name(Ipv4Addr::new(198, 18, 0, 3)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_greedy_service_has_no_more_names_until_one_was_not_used_for_an_hour() {
        let mut names = Names::default();
        let given: Vec<_> = (0..MOST).map(|n| names.give(&format!("n{n}.example.org")).unwrap()).collect();
        assert_eq!(*given.last().unwrap(), Ipv4Addr::new(198, 18, 4, 0));
        assert_eq!(names.give("more.example.org"), None);
        tokio::time::advance(KEPT).await;
        // Dialling counts as use.
        assert!(names.name(given[0]).is_some());
        assert_eq!(names.give("more.example.org"), Some(given[1]));
        assert_eq!(names.name(given[1]).as_deref(), Some("more.example.org"));
        assert_eq!(names.by_name.len(), MOST);
        assert_eq!(names.give("n0.example.org"), Some(given[0]));
        assert_ne!(names.give("n1.example.org"), Some(given[1]));
    }
}
