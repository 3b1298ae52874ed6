//! What a service waits for before its first start, by what the others' statuses say.

use cofferdam_declaration::{Condition, Dependency};
use cofferdam_protocol::status::{HealthState, ServiceState, ServiceStatus};

/// Why a service still waits for another one, for people; `None` when it need not. A service whose shim has said nothing has not
/// started.
pub fn waits(on: &Dependency, status: Option<&ServiceStatus>) -> Option<String> {
    let name = &on.service;
    let Some(status) = status else { return Some(format!("{name} has not started yet")) };
    if !on.required && failed(on.condition, status) {
        return None;
    }
    let health = status.health.as_ref();
    match on.condition {
        Condition::Started if started(status) => None,
        Condition::Started => Some(format!("{name} has not started yet")),
        Condition::Healthy => match health.map(|health| health.state) {
            Some(HealthState::Healthy) => None,
            Some(HealthState::Unhealthy) => Some(format!("{name} is unhealthy")),
            Some(HealthState::Starting) => Some(format!("{name} is not healthy yet")),
            None if status.state == ServiceState::Running => {
                Some(format!("{name} has no health check, neither declared nor in its image"))
            }
            None if started(status) => Some(format!("{name} does not run")),
            None => Some(format!("{name} has not started yet")),
        },
        Condition::Completed => match (status.state, status.exit_code) {
            (ServiceState::Exited, Some(0)) => None,
            (ServiceState::Exited | ServiceState::Restarting | ServiceState::Failed, Some(code)) => {
                Some(format!("{name} ended with exit code {code}"))
            }
            _ if started(status) => Some(format!("{name} has not completed yet")),
            _ => Some(format!("{name} has not started yet")),
        },
    }
}

/// Whether a service has been started once, whatever became of it: one that ends again and again delays nobody.
fn started(status: &ServiceStatus) -> bool {
    status.state == ServiceState::Running || status.restarts > 0 || status.exit_code.is_some()
}

/// Whether it will not come to it by itself.
fn failed(condition: Condition, status: &ServiceStatus) -> bool {
    let ended = matches!(status.state, ServiceState::Exited | ServiceState::Failed);
    let unhealthy = status.health.as_ref().is_some_and(|health| health.state == HealthState::Unhealthy);
    match condition {
        Condition::Started => status.state == ServiceState::Failed,
        Condition::Healthy => ended || unhealthy,
        Condition::Completed => ended && status.exit_code != Some(0),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use cofferdam_protocol::TimestampMillis;
    use cofferdam_protocol::status::Health;

    use super::*;

    fn status(state: ServiceState) -> ServiceStatus {
        ServiceStatus {
            state,
            missing: Vec::new(),
            pid: None,
            restarts: 0,
            exit_code: None,
            killed: None,
            detail: None,
            since: TimestampMillis::from_clock(std::time::UNIX_EPOCH),
            order: None,
            usage: None,
            health: None,
        }
    }

    fn on(service: &str, condition: Condition) -> Dependency {
        Dependency { service: service.to_owned(), condition, required: true, restart: false }
    }

    fn with_health(state: HealthState) -> ServiceStatus {
        let health = Some(Health { state, failures: 0, output: None });
        ServiceStatus { health, ..status(ServiceState::Running) }
    }

    #[test]
    fn each_condition_is_met_by_what_compose_means_and_says_what_it_waits_for() {
        let (healthy, completed) = (on("db", Condition::Healthy), on("job", Condition::Completed));
        let started = on("db", Condition::Started);
        let ended = |state, code| ServiceStatus { exit_code: Some(code), ..status(state) };
        for (condition, status, expected) in [
            (&started, None, Some("db has not started yet")),
            (&started, Some(status(ServiceState::Starting)), Some("db has not started yet")),
            (&started, Some(status(ServiceState::Running)), None),
            (&started, Some(ended(ServiceState::Restarting, 1)), None),
            (&healthy, Some(status(ServiceState::Pulling)), Some("db has not started yet")),
            (&healthy, Some(with_health(HealthState::Starting)), Some("db is not healthy yet")),
            (&healthy, Some(with_health(HealthState::Unhealthy)), Some("db is unhealthy")),
            (&healthy, Some(with_health(HealthState::Healthy)), None),
            (&healthy, Some(ended(ServiceState::Restarting, 1)), Some("db does not run")),
            (
                &healthy,
                Some(status(ServiceState::Running)),
                Some("db has no health check, neither declared nor in its image"),
            ),
            (&completed, Some(status(ServiceState::Running)), Some("job has not completed yet")),
            (&completed, Some(ended(ServiceState::Exited, 0)), None),
            (&completed, Some(ended(ServiceState::Restarting, 3)), Some("job ended with exit code 3")),
            (&completed, Some(ended(ServiceState::Exited, 3)), Some("job ended with exit code 3")),
        ] {
            assert_eq!(waits(condition, status.as_ref()).as_deref(), expected, "{condition:?} {status:?}");
        }
    }

    #[test]
    fn what_is_not_required_is_waited_for_until_it_has_failed() {
        let optional = |condition| Dependency { required: false, ..on("x", condition) };
        let ended = |code| ServiceStatus { exit_code: Some(code), ..status(ServiceState::Exited) };
        assert!(waits(&optional(Condition::Healthy), Some(&with_health(HealthState::Starting))).is_some());
        assert!(waits(&optional(Condition::Healthy), Some(&with_health(HealthState::Unhealthy))).is_none());
        assert!(waits(&optional(Condition::Healthy), Some(&ended(0))).is_none());
        assert!(waits(&optional(Condition::Completed), Some(&ended(3))).is_none());
        assert!(waits(&optional(Condition::Completed), Some(&status(ServiceState::Running))).is_some());
        assert!(waits(&optional(Condition::Started), Some(&status(ServiceState::Failed))).is_none());
    }

    /// Fifty services in ten rows: each waits for two of the row before, in turn for each condition. In each round every service
    /// that waits for nobody any more starts; it comes to what others wait for in the round after. One of the first row ends at once,
    /// again and again.
    #[test]
    fn fifty_services_start_in_order_and_one_that_ends_again_and_again_delays_nobody() {
        let condition = |row: usize| match row % 3 {
            0 => Condition::Started,
            1 => Condition::Healthy,
            _ => Condition::Completed,
        };
        let name = |row: usize, column: usize| format!("s{row}-{column}");
        let mut graph: BTreeMap<String, Vec<Dependency>> = BTreeMap::new();
        for row in 0..10 {
            for column in 0..5 {
                let before = |at: usize| on(&name(row - 1, at % 5), condition(row - 1));
                let needs = if row == 0 { Vec::new() } else { vec![before(column), before(column + 1)] };
                graph.insert(name(row, column), needs);
            }
        }
        assert_eq!(graph.len(), 50);
        let mut statuses: BTreeMap<String, ServiceStatus> = BTreeMap::new();
        let mut order: Vec<Vec<String>> = Vec::new();
        while statuses.len() < 50 {
            // What runs comes to what others wait for: healthy, completed, or ended.
            for (service, status) in &mut statuses {
                let row: usize = service.get(1..2).unwrap().parse().unwrap();
                match condition(row) {
                    _ if service == "s0-2" => {
                        status.state = ServiceState::Restarting;
                        status.exit_code = Some(1);
                        status.restarts += 1;
                    }
                    Condition::Started => {}
                    Condition::Healthy => *status = with_health(HealthState::Healthy),
                    Condition::Completed => {
                        status.state = ServiceState::Exited;
                        status.exit_code = Some(0);
                    }
                }
            }
            let ready: Vec<String> = graph
                .iter()
                .filter(|(service, needs)| {
                    !statuses.contains_key(*service)
                        && needs.iter().all(|need| waits(need, statuses.get(&need.service)).is_none())
                })
                .map(|(service, _)| service.clone())
                .collect();
            assert!(!ready.is_empty(), "nobody can start: {statuses:?}");
            for service in &ready {
                statuses.insert(service.clone(), status(ServiceState::Running));
            }
            order.push(ready);
        }
        let rows: Vec<Vec<String>> = (0..10).map(|row| (0..5).map(|at| name(row, at)).collect()).collect();
        assert_eq!(order, rows, "each row at once, and none before the one that it waits for");
    }
}
