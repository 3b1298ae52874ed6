use cofferdam_protocol::TimestampMillis;

use super::*;

fn event(role: &str, service: Option<&str>, event: Happened) -> Event {
    Event {
        role: role.to_owned(),
        service: service.map(str::to_owned),
        number: 1,
        at: TimestampMillis::from_clock(std::time::UNIX_EPOCH),
        up_ms: 1,
        event,
    }
}

fn ended(name: &str) -> Event {
    let (name, how) = (name.to_owned(), "SIGSEGV".to_owned());
    event("init", None, Happened::RoleEnded { name, how, again_ms: Some(100) })
}

fn restarting(service: &str, killed: Option<Killed>) -> Event {
    let happened =
        Happened::Service { state: ServiceState::Restarting, exit_code: Some(137), killed, detail: None };
    event("shim", Some(service), happened)
}

fn audit(status: u16) -> Event {
    event(
        "vault",
        None,
        Happened::Audit {
            operation: "lease".to_owned(),
            uid: 70_000,
            operator: None,
            references: Vec::new(),
            further: 0,
            service: None,
            status,
        },
    )
}

fn found(events: &[Event]) -> Vec<Finding> {
    let repository = "acme/shop".parse().unwrap();
    let about = About { repository: &repository, endpoint: None };
    findings(&about, events, |name| name == "told")
}

fn codes(events: &[Event]) -> Vec<&'static str> {
    found(events).iter().map(|finding| finding.code).collect()
}

#[test]
fn each_event_that_matters_has_its_finding() {
    let memory = Happened::OutOfMemory { name: "shim web".into(), killed: Killed::UncountedMemory };
    let lost = Happened::Address { address: None, detail: Some("nobody answers".into()) };
    let there = Happened::Address { address: Some("10.0.2.15/24".into()), detail: None };
    for (events, expected) in [
        (vec![], vec![]),
        (vec![ended("vault")], vec!["role-ended"]),
        (vec![ended("vault"), ended("vault"), ended("front")], vec!["role-ended", "role-ended"]),
        (vec![ended("shim web"), ended("told")], vec![]),
        (vec![restarting("web", None), restarting("web", None)], vec![]),
        (vec![restarting("web", None); 3], vec!["service-restarts"]),
        (vec![restarting("told", None); 9], vec![]),
        (vec![event("init", None, memory)], vec!["machine-out-of-memory"]),
        (vec![event("network", None, lost)], vec!["address-was-lost"]),
        (vec![event("network", None, there)], vec![]),
        (vec![audit(200), audit(404)], vec![]),
        (vec![audit(403), audit(401)], vec!["requests-refused"]),
        (vec![event("vault", None, Happened::Refused { count: 9 })], vec!["requests-refused"]),
    ] {
        assert_eq!(codes(&events), expected);
    }
    assert_eq!(found(&[ended("vault")])[0].why, ["SIGSEGV"]);
}

#[test]
fn memory_that_ran_out_is_said_where_it_is_the_reason() {
    let killed = Some(Killed::OutOfMemory { limit: 1 << 26 });
    let remedy = found(&vec![restarting("web", killed); 3])[0].remedy.clone().unwrap();
    assert!(remedy.contains("mem_limit"), "{remedy}");
}

#[test]
fn however_many_names_there_are_the_findings_are_few() {
    let events: Vec<Event> = (0..500).map(|n| ended(&format!("role{n}"))).collect();
    assert_eq!(found(&events).len(), MAX_NAMED);
}
