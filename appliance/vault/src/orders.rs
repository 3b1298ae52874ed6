//! What operators want of services: the last order for each, until its shim has heard it.
//!
//! Orders are kept in memory: they are about processes that end with the appliance. A shim that was started again hears the last one, so
//! that a service that was stopped stays stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cofferdam_protocol::operator::Order;
use cofferdam_protocol::vault::GivenOrder;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::store::RequestId;

/// Orders that are carried out while the vault runs; each is remembered, so that a front that was taken over cannot give one again.
const MAX_ORDERS: usize = 100_000;

/// Why an order is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OrderError {
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
    /// Gives an order to the service whose shim has this uid.
    pub(crate) fn give(&self, uid: u32, order: Order, request: &RequestId) -> Result<GivenOrder, OrderError> {
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
        let order = GivenOrder { id: u32::from_be_bytes([a, b, c, d]).max(1), order };
        given.last.insert(uid, order);
        drop(given);
        self.changed.notify_waiters();
        Ok(order)
    }

    /// The last order for the service with this uid, if it is another one than `after`. Waits for one up to `wait`.
    pub(crate) async fn next(&self, uid: u32, after: u32, wait: Duration) -> Option<GivenOrder> {
        let deadline = Instant::now() + wait;
        loop {
            // Armed before looking, so that an order between the look and the wait is not slept through.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let last = self.given.lock().unwrap_or_else(PoisonError::into_inner).last.get(&uid).copied();
            if let Some(order) = last.filter(|order| order.id != after) {
                return Some(order);
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return None;
            }
        }
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

    #[tokio::test(start_paused = true)]
    async fn the_last_order_is_heard_once_by_its_service_alone() {
        let orders = Orders::default();
        let first = orders.give(7, Order::Restart, &[1; 32]).unwrap();
        let last = orders.give(7, Order::Stop, &[2; 32]).unwrap();
        assert_ne!(first.id, last.id);
        assert_eq!(orders.next(7, 0, Duration::ZERO).await, Some(last));
        let begun = Instant::now();
        assert_eq!(orders.next(7, last.id, Duration::from_secs(9)).await, None);
        assert_eq!(begun.elapsed(), Duration::from_secs(9));
        assert_eq!(orders.next(8, 0, Duration::ZERO).await, None);
        let waiting = orders.next(7, last.id, Duration::from_secs(3600));
        let (heard, given) = tokio::join!(waiting, async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            orders.give(8, Order::Start, &[3; 32]).unwrap();
            orders.give(7, Order::Start, &[4; 32]).unwrap()
        });
        assert_eq!(heard, Some(given));
    }

    #[test]
    fn an_order_is_given_once_and_there_is_an_end_to_them() {
        let orders = Orders::default();
        orders.give(7, Order::Stop, &[1; 32]).unwrap();
        orders.give(7, Order::Start, &[2; 32]).unwrap();
        assert_eq!(orders.give(7, Order::Stop, &[1; 32]), Err(OrderError::Spent));
        let id = |n: usize| {
            let mut id = [3; 32];
            id[..8].copy_from_slice(&n.to_le_bytes());
            id
        };
        let taken = (0..MAX_ORDERS + 5).filter(|n| orders.give(7, Order::Restart, &id(*n)).is_ok()).count();
        assert_eq!(taken, MAX_ORDERS - 2);
    }
}
