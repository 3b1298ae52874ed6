//! Requests that services answer: how many at one time, for each service and for each source.
//!
//! A request that hangs is no error: long polls and WebSockets do so for a living. So none is ended for another's sake; who
//! finds no place is told to come back. Each service has places of its own, which requests to others never take, and half of
//! them at most go to one source. The other places are shared, and neither a service, nor a source, nor the two together
//! get all of them. A load balancer is one source: what it sends to one service may hang, and there is still room for what it
//! sends to the others.

use std::sync::Arc;

use super::source::Source;
use crate::system::quota::{self, Quota};

/// How many requests may be under way. Each costs two descriptors and up to about 180 KiB, when the client reads slowly what
/// the service sends fast.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Each service's own.
    pub(crate) own: usize,
    /// Of these, for one source.
    pub(crate) own_by_source: usize,
    /// What all share beyond that.
    pub(crate) shared: usize,
    /// Of these, for one service,
    pub(crate) by_service: usize,
    /// for one source,
    pub(crate) by_source: usize,
    /// and for one source at one service.
    pub(crate) by_both: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { own: 16, own_by_source: 8, shared: 384, by_service: 256, by_source: 256, by_both: 128 }
    }
}

/// What a request is counted under.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Heading {
    Own(Arc<str>),
    OwnBySource(Arc<str>, Source),
    Shared,
    ByService(Arc<str>),
    BySource(Source),
    ByBoth(Arc<str>, Source),
}

/// The places of all requests to services.
#[derive(Debug)]
pub(crate) struct Requests {
    bounds: Bounds,
    quota: Arc<Quota<Heading>>,
}

/// One request's; it is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    _permit: quota::Permit<Heading>,
}

impl Requests {
    /// None is under way.
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, quota: Quota::new() }
    }

    /// A place for a request of `source` to `service`; one of the service's own first.
    pub(crate) fn take(&self, service: &Arc<str>, source: Source) -> Option<Permit> {
        let bounds = self.bounds;
        let name = || Arc::clone(service);
        let own = [
            (Heading::Own(name()), bounds.own),
            (Heading::OwnBySource(name(), source), bounds.own_by_source),
        ];
        let shared = [
            (Heading::Shared, bounds.shared),
            (Heading::ByService(name()), bounds.by_service),
            (Heading::BySource(source), bounds.by_source),
            (Heading::ByBoth(name(), source), bounds.by_both),
        ];
        let permit = self.quota.take(&own).or_else(|| self.quota.take(&shared))?;
        Some(Permit { _permit: permit })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn source(number: u32) -> Source {
        IpAddr::from(Ipv4Addr::from_bits(number)).into()
    }

    /// As many as there are to be had, for good.
    fn all(requests: &Requests, service: &str, from: u32) -> (usize, Vec<Permit>) {
        let held: Vec<_> = std::iter::from_fn(|| requests.take(&service.into(), source(from))).collect();
        (held.len(), held)
    }

    #[test]
    fn what_hangs_in_one_service_leaves_the_others_room_also_for_the_same_source() {
        let requests = Requests::new(Bounds::default());
        let (hanging, _held) = all(&requests, "slow", 1);
        assert_eq!(hanging, 8 + 128);
        let (further, _more) = all(&requests, "web", 1);
        assert_eq!(further, 8 + 128, "the same load balancer reaches another service");
        let (third, _third) = all(&requests, "db", 1);
        assert_eq!(third, 8, "a third one has its own");
        let (others, _others) = all(&requests, "db", 2);
        assert_eq!(others, 8 + 128, "and other sources have theirs");
    }

    #[test]
    fn no_number_of_sources_at_one_service_takes_what_the_others_have() {
        let requests = Requests::new(Bounds::default());
        let held: Vec<_> = (0..1000).flat_map(|from| all(&requests, "slow", from).1).collect();
        assert_eq!(held.len(), 16 + 256);
        let (others, _others) = all(&requests, "web", 7);
        assert_eq!(others, 8 + 128);
        drop(held);
        assert_eq!(all(&requests, "slow", 8).0, 8 + 128, "they are free again");
    }

    #[test]
    fn every_service_has_places_when_all_others_are_full() {
        let requests = Requests::new(Bounds::default());
        let names: Vec<String> = (0..31).map(|number| format!("service-{number}")).collect();
        let held: Vec<_> = (0..100)
            .flat_map(|from| names.iter().map(move |name| (name, from)))
            .flat_map(|(name, from)| all(&requests, name, from).1)
            .collect();
        assert_eq!(held.len(), 31 * 16 + 384);
        assert_eq!(all(&requests, "last", 0).0, 8);
        assert_eq!(all(&requests, "last", 1000).0, 8);
    }
}
