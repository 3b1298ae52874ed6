//! Operators' orders for this service, as the vault passes them on.

use std::time::Duration;

use cofferdam_protocol::operator::Order;
use cofferdam_protocol::vault::{GivenOrder, MAX_ORDER_WAIT_MS};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::system::client::vault;

/// Between two questions to a vault that does not answer: it is back within about a second.
const PAUSE: Duration = Duration::from_secs(1);

/// The orders for one service. Of several that come while nobody looks the last one counts.
pub(super) struct Orders {
    heard: watch::Receiver<Option<GivenOrder>>,
    /// Whether the service is to be stopped.
    stopped: bool,
}

impl Orders {
    /// Listens from now on.
    pub(super) fn listen() -> Self {
        let (tell, heard) = watch::channel(None);
        tokio::spawn(async move {
            // What was ordered before this process was there is done by its being started, unless it was to stop.
            let mut wait = Duration::ZERO;
            let mut last = 0;
            while !tell.is_closed() {
                match vault::order(last, wait).await {
                    Ok(heard) => {
                        let late = wait.is_zero();
                        if let Some(given) = heard {
                            last = given.id;
                            if !late || given.order == Order::Stop {
                                tell.send_replace(Some(given));
                            }
                        }
                        wait = Duration::from_millis(MAX_ORDER_WAIT_MS);
                    }
                    Err(_) => sleep(PAUSE).await,
                }
            }
        });
        Self { heard, stopped: false }
    }

    /// Whether the service is to be stopped, as far as is known by now.
    pub(super) fn is_stopped(&mut self) -> bool {
        if self.heard.has_changed().unwrap_or(false) {
            self.take();
        }
        self.stopped
    }

    /// Waits until something else is wanted than what is: a service that runs or is to run, or one that is stopped.
    pub(super) async fn changed(&mut self) {
        loop {
            if self.heard.changed().await.is_err() {
                // Nobody gives orders any more.
                std::future::pending::<()>().await;
            }
            let before = self.stopped;
            let order = self.take();
            if before != self.stopped || order == Some(Order::Restart) {
                return;
            }
        }
    }

    fn take(&mut self) -> Option<Order> {
        let order = self.heard.borrow_and_update().map(|given| given.order);
        if let Some(order) = order {
            self.stopped = order == Order::Stop;
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_already_so_changes_nothing() {
        let (tell, heard) = watch::channel(None);
        let mut orders = Orders { heard, stopped: false };
        let give = |order| tell.send_replace(Some(GivenOrder { id: 1, order }));
        let heard =
            async |orders: &mut Orders| timeout(Duration::from_secs(60), orders.changed()).await.is_ok();
        give(Order::Start);
        assert!(!heard(&mut orders).await && !orders.is_stopped());
        give(Order::Restart);
        assert!(heard(&mut orders).await && !orders.is_stopped());
        give(Order::Stop);
        assert!(orders.is_stopped(), "known without waiting");
        assert!(!heard(&mut orders).await);
        give(Order::Stop);
        assert!(!heard(&mut orders).await && orders.is_stopped());
        give(Order::Start);
        let begun = Instant::now();
        assert!(heard(&mut orders).await && !orders.is_stopped() && begun.elapsed().is_zero());
        drop(tell);
        assert!(!heard(&mut orders).await, "without anybody to give orders none is heard");
    }
}
