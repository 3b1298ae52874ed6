//! What operators want of services: the last order for each, until its shim has heard it.
//!
//! Orders are kept in memory: they are about processes that end with the appliance. A shim that was started again hears the last one, so
//! that a service that was stopped stays stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cofferdam_protocol::operator::{Order, OrderReply};
use cofferdam_protocol::vault::GivenOrder;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::store::RequestId;
use crate::vault::Rules;

/// Orders that are carried out while the vault runs; each is remembered, so that a front that was taken over cannot give one again.
const MAX_ORDERS: usize = 100_000;

/// Why an order is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OrderError {
    #[error("there is no such service")]
    Unknown,
    #[error("this very order has been given already")]
    Spent,
    #[error("{MAX_ORDERS} orders have been given since the vault started")]
    Full,
}

/// The orders given so far.
#[derive(Default)]
pub(crate) struct Orders {
    given: Mutex<Given>,
    changed: Notify,
}

#[derive(Default)]
struct Given {
    /// By the uid of the service's shim.
    last: BTreeMap<u32, GivenOrder>,
    spent: BTreeSet<RequestId>,
}

impl Orders {
    /// Gives an order to this service; one to restart to those as well that restart with it.
    pub(crate) fn give(
        &self,
        rules: &Rules,
        service: &str,
        order: Order,
        request: &RequestId,
    ) -> Result<OrderReply, OrderError> {
        let uid = rules.services.get(service).ok_or(OrderError::Unknown)?;
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if given.spent.contains(request) {
            return Err(OrderError::Spent);
        }
        if given.spent.len() >= MAX_ORDERS {
            return Err(OrderError::Full);
        }
        given.spent.insert(*request);
        // Of the request, so that a vault that is started again gives no number twice.
        let [a, b, c, d, ..] = *request;
        let id = u32::from_be_bytes([a, b, c, d]).max(1);
        let dependents =
            if order == Order::Restart { given.dependents(rules, service) } else { BTreeMap::new() };
        let reply = OrderReply { id, order, dependents: dependents.keys().cloned().collect() };
        given.last.insert(*uid, GivenOrder { id, order, after: Vec::new() });
        for (name, after) in dependents {
            if let Some(uid) = rules.services.get(&name) {
                given.last.insert(*uid, GivenOrder { id, order, after });
            }
        }
        drop(given);
        self.changed.notify_waiters();
        Ok(reply)
    }

    /// The last order for the service with this uid, if it is another one than `after`. Waits for one up to `wait`.
    pub(crate) async fn next(&self, uid: u32, after: u32, wait: Duration) -> Option<GivenOrder> {
        let deadline = Instant::now() + wait;
        loop {
            // Armed before looking, so that an order between the look and the wait is not slept through.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let last = self.given.lock().unwrap_or_else(PoisonError::into_inner).last.get(&uid).cloned();
            if let Some(order) = last.filter(|order| order.id != after) {
                return Some(order);
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return None;
            }
        }
    }
}

impl Given {
    /// The services that restart when this one does, with those of them, or it, that each restarts after. What was stopped stays so,
    /// and nobody restarts because of it.
    fn dependents(&self, rules: &Rules, service: &str) -> BTreeMap<String, Vec<String>> {
        let is_stopped = |name: &String| {
            let last = rules.services.get(name).and_then(|uid| self.last.get(uid));
            last.is_some_and(|last| last.order == Order::Stop)
        };
        let mut found = BTreeSet::from([service.to_owned()]);
        loop {
            let next = rules.restarts_with.iter().find(|(name, with)| {
                !found.contains(*name) && !with.is_disjoint(&found) && !is_stopped(name)
            });
            let Some((name, _)) = next else { break };
            found.insert(name.clone());
        }
        let after = |name: &String| {
            let with = rules.restarts_with.get(name)?;
            Some((name.clone(), with.intersection(&found).cloned().collect()))
        };
        found.iter().filter(|name| *name != service).filter_map(after).collect()
    }
}

impl fmt::Debug for Orders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Orders").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Grants, Operators};

    /// db ← api ← web, db ← jobs, and `other`, which depends on nobody; their shims have the uids 1 to 5.
    fn rules() -> Rules {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        Rules {
            grants: Grants::default(),
            affected: BTreeMap::new(),
            operators: Operators::new([]).unwrap(),
            front_uid: 100,
            publish_uid: 101,
            services: ["db", "api", "web", "jobs", "other"].map(str::to_owned).into_iter().zip(1..).collect(),
            restarts_with: BTreeMap::from([
                ("api".to_owned(), names(&["db"])),
                ("jobs".to_owned(), names(&["db"])),
                ("web".to_owned(), names(&["api", "db"])),
            ]),
            min_value: 1,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_order_is_heard_once_by_its_service_alone() {
        let (orders, rules) = (Orders::default(), rules());
        let first = orders.give(&rules, "web", Order::Restart, &[1; 32]).unwrap();
        let last = orders.give(&rules, "web", Order::Stop, &[2; 32]).unwrap();
        assert_ne!(first.id, last.id);
        let stop = GivenOrder { id: last.id, order: Order::Stop, after: Vec::new() };
        assert_eq!(orders.next(3, 0, Duration::ZERO).await, Some(stop));
        let begun = Instant::now();
        assert_eq!(orders.next(3, last.id, Duration::from_secs(9)).await, None);
        assert_eq!(begun.elapsed(), Duration::from_secs(9));
        assert_eq!(orders.next(5, 0, Duration::ZERO).await, None);
        let waiting = orders.next(3, last.id, Duration::from_secs(3600));
        let (heard, given) = tokio::join!(waiting, async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            orders.give(&rules, "other", Order::Start, &[3; 32]).unwrap();
            orders.give(&rules, "web", Order::Start, &[4; 32]).unwrap()
        });
        assert_eq!(heard.map(|heard| heard.id), Some(given.id));
        assert_eq!(orders.give(&rules, "nobody", Order::Stop, &[5; 32]), Err(OrderError::Unknown));
    }

    #[tokio::test]
    async fn a_restart_restarts_those_that_say_so_but_none_that_is_stopped() {
        let (orders, rules) = (Orders::default(), rules());
        let heard =
            async |uid| orders.next(uid, 0, Duration::ZERO).await.map(|given| (given.order, given.after));
        let after = |names: &[&str]| {
            Some((Order::Restart, names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()))
        };
        let reply = orders.give(&rules, "db", Order::Restart, &[1; 32]).unwrap();
        assert_eq!(reply.dependents, ["api", "jobs", "web"]);
        assert_eq!(heard(1).await, after(&[]));
        assert_eq!(heard(2).await, after(&["db"]));
        assert_eq!(heard(3).await, after(&["api", "db"]));
        assert_eq!(heard(4).await, after(&["db"]));
        assert_eq!(heard(5).await, None);

        let reply = orders.give(&rules, "api", Order::Stop, &[2; 32]).unwrap();
        assert_eq!(reply.dependents, [""; 0], "as with Compose, those that depend on it go on");
        let reply = orders.give(&rules, "db", Order::Restart, &[3; 32]).unwrap();
        assert_eq!(reply.dependents, ["jobs", "web"]);
        assert_eq!(heard(2).await, Some((Order::Stop, Vec::new())));
        assert_eq!(heard(3).await, after(&["db"]), "not after one that stays stopped");
        let reply = orders.give(&rules, "other", Order::Restart, &[4; 32]).unwrap();
        assert_eq!(reply.dependents, [""; 0]);
    }

    #[test]
    fn an_order_is_given_once_and_there_is_an_end_to_them() {
        let (orders, rules) = (Orders::default(), rules());
        let give = |order, id: &RequestId| orders.give(&rules, "web", order, id).map(|reply| reply.id);
        give(Order::Stop, &[1; 32]).unwrap();
        give(Order::Start, &[2; 32]).unwrap();
        assert_eq!(give(Order::Stop, &[1; 32]), Err(OrderError::Spent));
        let id = |n: usize| {
            let mut id = [3; 32];
            id[..8].copy_from_slice(&n.to_le_bytes());
            id
        };
        let taken = (0..MAX_ORDERS + 5).filter(|n| give(Order::Restart, &id(*n)).is_ok()).count();
        assert_eq!(taken, MAX_ORDERS - 2);
    }
}
