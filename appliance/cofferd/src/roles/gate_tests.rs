//! The decision, on statuses that shims could have written.

use cofferdam_protocol::TimestampMillis;
use cofferdam_protocol::status::Health;

use super::super::testing;
use super::*;

const WEB: &str = "services:\n  web:\n    image: registry.example.org/acme/web@sha256:1111111111111111111111111111111111111111111111111111111111111111\n";

fn gate(sections: &str) -> Gate {
    let facts = testing::facts(&testing::declaration(sections));
    Gate::new(facts.services.iter().map(Watched::new).collect())
}

fn web(lines: &str) -> Gate {
    gate(&format!("{WEB}{lines}"))
}

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

fn with_health(state: HealthState) -> ServiceStatus {
    let output = Some("the secret is hunter2".to_owned());
    ServiceStatus { health: Some(Health { state, failures: 3, output }), ..status(ServiceState::Running) }
}

fn ended(code: i32) -> ServiceStatus {
    ServiceStatus { exit_code: Some(code), ..status(ServiceState::Exited) }
}

/// What is decided when this is all that is ever said of the one service.
fn always(gate: &mut Gate, said: &ServiceStatus) -> Result<Duration, String> {
    let mut at = Duration::ZERO;
    loop {
        if let Some(done) = gate.look(at, std::iter::once(Some(said.clone()))) {
            return done.map(|()| at);
        }
        at += PAUSE;
        assert!(at <= LIMIT + PAUSE, "it decides in the end");
    }
}

#[test]
fn a_service_is_up_when_it_has_run_for_a_while_and_is_healthy_where_that_is_known() {
    let running = status(ServiceState::Running);
    assert_eq!(always(&mut web(""), &running), Ok(STEADY));
    assert_eq!(always(&mut web(""), &with_health(HealthState::Healthy)), Ok(STEADY));
    let declared = "    healthcheck:\n      test: [CMD, /probe]\n";
    assert_eq!(always(&mut web(declared), &with_health(HealthState::Healthy)), Ok(STEADY));
    // It has a check, of which nothing is said.
    let why = always(&mut web(declared), &running).unwrap_err();
    assert_eq!(why, "service web is running, after 300 s");
    assert_eq!(always(&mut web("    healthcheck:\n      disable: true\n"), &running), Ok(STEADY));
    assert_eq!(always(&mut web(""), &status(ServiceState::Stopped)), Ok(STEADY), "an operator stopped it");
}

#[test]
fn an_unhealthy_service_fails_at_once_and_what_its_probe_printed_is_not_said() {
    let mut unhealthy = with_health(HealthState::Unhealthy);
    let mut gate = web("");
    let why = gate.look(Duration::ZERO, std::iter::once(Some(unhealthy.clone()))).unwrap().unwrap_err();
    assert_eq!(why, "service web is running and unhealthy");
    unhealthy.health.as_mut().unwrap().state = HealthState::Starting;
    let why = always(&mut web(""), &unhealthy).unwrap_err();
    assert_eq!(why, "service web is running and starting, after 300 s");
}

#[test]
fn one_that_ended_with_0_counts_where_it_may_stay_ended() {
    for (restart, code, up) in [
        ("\"no\"", 0, true),
        ("\"no\"", 1, false),
        ("on-failure", 0, true),
        ("on-failure:2", 3, false),
        ("always", 0, false),
    ] {
        let found = always(&mut web(&format!("    restart: {restart}\n")), &ended(code));
        assert_eq!(found.is_ok(), up, "{restart} {code}: {found:?}");
    }
    let why = always(&mut web("    restart: \"no\"\n"), &ended(1)).unwrap_err();
    assert_eq!(why, "service web is exited, last exit code 1");
}

#[test]
fn what_failed_fails_and_what_waits_fails_in_the_end_with_what_it_waits_for() {
    let failed =
        ServiceStatus { detail: Some("exec /app: no such file".to_owned()), ..status(ServiceState::Failed) };
    let mut gate = web("");
    let why = gate.look(Duration::ZERO, std::iter::once(Some(failed))).unwrap().unwrap_err();
    assert_eq!(why, "service web is failed: exec /app: no such file");
    let waiting = ServiceStatus {
        missing: vec!["secret://app/db/password".parse().unwrap()],
        ..status(ServiceState::Waiting)
    };
    let why = always(&mut web(""), &waiting).unwrap_err();
    assert_eq!(why, "service web is waiting, without secret://app/db/password, after 300 s");
    let mut silent = web("");
    assert!(silent.look(Duration::ZERO, std::iter::once(None)).is_none());
    let why = silent.look(LIMIT, std::iter::once(None)).unwrap().unwrap_err();
    assert_eq!(why, "service web is pending, after 300 s");
}

#[test]
fn restarts_are_counted_from_when_the_gate_began_and_again_from_a_new_shim() {
    let restarted = |restarts| ServiceStatus { restarts, ..status(ServiceState::Running) };
    let look =
        |gate: &mut Gate, at, status| gate.look(Duration::from_secs(at), std::iter::once(Some(status)));
    let mut gate = web("");
    assert_eq!(look(&mut gate, 0, restarted(7)), None);
    assert_eq!(look(&mut gate, 1, restarted(10)), None);
    let why = look(&mut gate, 2, restarted(11)).unwrap().unwrap_err();
    assert_eq!(why, "service web is running, started again 4 times");
    let mut gate = web("");
    assert_eq!(look(&mut gate, 0, restarted(7)), None);
    assert_eq!(look(&mut gate, 1, restarted(0)), None);
    assert!(look(&mut gate, 2, restarted(4)).unwrap().is_err());
}

#[test]
fn all_have_to_be_up_at_the_same_time_and_stay_so() {
    let mut gate =
        gate(&format!("{WEB}  db:\n    image: registry.example.org/acme/db@sha256:{}\n", "2".repeat(64)));
    let (up, again) = (status(ServiceState::Running), status(ServiceState::Restarting));
    let mut look = |at: u64, db: &ServiceStatus| {
        gate.look(Duration::from_millis(at), [Some(up.clone()), Some(db.clone())].into_iter())
    };
    assert_eq!(look(0, &up), None);
    assert_eq!(look(2000, &again), None);
    assert_eq!(look(4000, &up), None);
    assert_eq!(look(6000, &up), None);
    assert_eq!(look(7000, &up), Some(Ok(())));
    // Without services there is nothing to wait for but the moment itself.
    let mut none = super::Gate::new(Vec::new());
    assert_eq!(none.look(Duration::ZERO, std::iter::empty()), None);
    assert_eq!(none.look(STEADY, std::iter::empty()), Some(Ok(())));
}
