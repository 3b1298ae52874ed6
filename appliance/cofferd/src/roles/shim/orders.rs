//! Operators' orders for this service, as the vault passes them on.

use std::path::PathBuf;
use std::time::Duration;

use cofferdam_declaration::Dependency;
use cofferdam_protocol::operator::Order;
use cofferdam_protocol::vault::{GivenOrder, MAX_ORDER_WAIT_MS};
use cofferdam_workload::depend;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::{DEPENDENCY_PAUSE, said};
use crate::system::client::vault;

/// Between two questions to a vault that does not answer: it is back within about a second.
const PAUSE: Duration = Duration::from_secs(1);
/// How long after another service's grace this one restarts without having seen that the other one did: its shim may have died, or
/// have been told something else before it looked.
const LATE: Duration = Duration::from_secs(10);

/// The orders for one service. Of several that come while nobody looks the last one counts.
pub(super) struct Orders {
    heard: watch::Receiver<Option<GivenOrder>>,
    /// Whether the service is to be stopped.
    stopped: bool,
    /// The last one that was taken.
    taken: Option<u32>,
}

/// A service that this one depends on, and may have to restart after.
pub(super) struct Other {
    pub(super) on: Dependency,
    /// Where its shim says what it does.
    pub(super) status: PathBuf,
    pub(super) grace: Duration,
}

impl Orders {
    /// Listens from now on.
    pub(super) fn listen(others: Vec<Other>) -> Self {
        let (tell, heard) = watch::channel(None);
        tokio::spawn(async move {
            // What was ordered before this process was there is done by its being started, unless it was to stop.
            let mut wait = Duration::ZERO;
            let mut last = 0;
            // What comes after others, and since when.
            let mut later: Option<(GivenOrder, Instant)> = None;
            while !tell.is_closed() {
                let heard = tokio::select! {
                    heard = vault::order(last, wait) => heard,
                    given = ready(&others, later.clone()) => {
                        later = None;
                        tell.send_replace(Some(given));
                        continue;
                    }
                };
                match heard {
                    Ok(heard) => {
                        let late = wait.is_zero();
                        if let Some(given) = heard {
                            last = given.id;
                            later = None;
                            if given.order == Order::Stop || (!late && given.after.is_empty()) {
                                tell.send_replace(Some(given));
                            } else if !late {
                                later = Some((given, Instant::now()));
                            }
                        }
                        wait = Duration::from_millis(MAX_ORDER_WAIT_MS);
                    }
                    Err(_) => sleep(PAUSE).await,
                }
            }
        });
        Self { heard, stopped: false, taken: None }
    }

    /// Whether the service is to be stopped, as far as is known by now.
    pub(super) fn is_stopped(&mut self) -> bool {
        if self.heard.has_changed().unwrap_or(false) {
            self.take();
        }
        self.stopped
    }

    /// The last order that was taken.
    pub(super) fn taken(&self) -> Option<u32> {
        self.taken
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
        let (id, order) = self.heard.borrow_and_update().as_ref().map(|given| (given.id, given.order))?;
        self.stopped = order == Order::Stop;
        self.taken = Some(id);
        Some(order)
    }
}

/// The order, once all that it comes after have been restarted and are what this service waits for. Never without one.
async fn ready(others: &[Other], later: Option<(GivenOrder, Instant)>) -> GivenOrder {
    let Some((given, heard)) = later else { return std::future::pending().await };
    for other in others.iter().filter(|other| given.after.contains(&other.on.service)) {
        loop {
            let status = said(&other.status);
            let restarted = status.as_ref().is_some_and(|status| status.order == Some(given.id));
            let due = restarted || heard.elapsed() > other.grace.saturating_add(LATE);
            if due && depend::waits(&other.on, status.as_ref()).is_none() {
                break;
            }
            sleep(DEPENDENCY_PAUSE).await;
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use cofferdam_declaration::Condition;
    use cofferdam_protocol::status::{Health, HealthState, ServiceState, ServiceStatus};
    use cofferdam_workload::status::Reporter;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_already_so_changes_nothing() {
        let (tell, heard) = watch::channel(None);
        let mut orders = Orders { heard, stopped: false, taken: None };
        let give = |order| tell.send_replace(Some(GivenOrder { id: 1, order, after: Vec::new() }));
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
    #[tokio::test(start_paused = true)]
    async fn a_restart_waits_until_the_others_have_restarted_and_are_what_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let status = folder.path().join("db.json");
        let mut reporter = Reporter::new(status.clone());
        let on =
            Dependency { service: "db".into(), condition: Condition::Healthy, required: true, restart: true };
        let others = [Other { on, status, grace: Duration::from_secs(5) }];
        let given = GivenOrder { id: 7, order: Order::Restart, after: vec!["db".into()] };
        let mut say = |order, state| {
            let health = Some(Health { state, failures: 0, output: None });
            let change = |status: &mut ServiceStatus| (status.order, status.health) = (order, health);
            reporter.report(ServiceState::Running, change).unwrap();
        };
        let is_ready = async |seconds| {
            let wait = Duration::from_secs(seconds);
            timeout(wait, ready(&others, Some((given.clone(), Instant::now())))).await.is_ok()
        };
        assert!(!is_ready(14).await, "it has said nothing");
        say(Some(6), HealthState::Healthy);
        assert!(!is_ready(14).await, "it runs as before");
        say(Some(7), HealthState::Starting);
        assert!(!is_ready(60).await, "it is not healthy yet");
        say(Some(7), HealthState::Healthy);
        assert!(is_ready(1).await);
        say(Some(8), HealthState::Healthy);
        assert!(is_ready(16).await, "it was ordered something else: that is not waited for for ever");
        let long_ago = Instant::now() - Duration::from_secs(16);
        assert!(timeout(Duration::ZERO, ready(&others, Some((given.clone(), long_ago)))).await.is_ok());
        let nothing = ready(&others, None);
        assert!(timeout(Duration::from_secs(60), nothing).await.is_err());
    }
}
