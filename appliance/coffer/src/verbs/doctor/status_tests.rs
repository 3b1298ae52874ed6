use cofferdam_protocol::Timestamp;
use cofferdam_protocol::status::{ClockChange, ClockSource, Denied, DeniedWhy};
use serde_json::{Value, json};

use super::*;
use crate::failure::Code;
use crate::verbs::doctor::finding::{Report, Severity};

const NOW: &str = "2026-01-02T03:04:05Z";

fn now() -> u64 {
    NOW.parse::<Timestamp>().unwrap().unix()
}

/// A status in which all is well, but for what `changed` puts in the place of its members.
fn status(changed: Value) -> StatusReply {
    let zero = "00".repeat(48);
    let mut status = json!({
        "repository": "acme/shop", "commit": "01".repeat(20), "declaration": format!("sha256:{}", "02".repeat(32)),
        "endpoint": "shop.example:8443", "image": {"name": "cofferdam", "release": "0.1.0", "digests": {}},
        "state": "memory", "registers": {"mrtd": zero, "rtmr0": zero, "rtmr1": zero, "rtmr2": zero, "rtmr3": zero},
        "phases": [], "phase": "supervise", "time": NOW,
        "roles": [role("vault", "running"), role("shim web", "restarting")],
        "services": [service(json!({}))],
        "publish": {"state": "published", "at": NOW},
    });
    for (name, value) in changed.as_object().unwrap() {
        status[name] = value.clone();
    }
    serde_json::from_value(status).unwrap()
}

fn role(name: &str, state: &str) -> Value {
    json!({"name": name, "pid": null, "restarts": 2, "state": state})
}

fn service(changed: Value) -> Value {
    let mut service = json!({"state": "running", "missing": [], "restarts": 0, "name": "web",
        "since": "2026-01-02T03:04:05.000Z"});
    for (name, value) in changed.as_object().unwrap() {
        service[name] = value.clone();
    }
    service
}

fn found(changed: Value) -> Vec<Finding> {
    let repository = "acme/shop".parse().unwrap();
    let about = About { repository: &repository, endpoint: None };
    findings(&about, &status(changed), false, now())
}

/// What is not well.
fn wrong(changed: Value) -> Vec<Finding> {
    found(changed).into_iter().filter(|finding| finding.severity != Severity::Ok).collect()
}

#[test]
fn a_certificate_for_browsers_has_one_finding() {
    let held = |state: &str, until: Option<&str>| {
        let key = format!("sha256:{}", "04".repeat(32));
        let thumbprint = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs";
        let claim = json!({"key": key, "directory": "https://ca.example/dir", "account_key": thumbprint});
        let mut held = json!({"state": state, "names": ["shop.example"], "claim": claim, "at": NOW});
        if let Some(until) = until {
            held["expires_at"] = until.into();
        }
        if state == "failed" {
            held["detail"] = "caa: forbidden".into();
        }
        json!({ "certificate": held })
    };
    let (past, future) = (Some("2026-01-02T03:04:04Z"), Some("2026-03-02T03:04:05Z"));
    for (state, until, code, severity) in [
        ("valid", future, "certificate", Severity::Ok),
        ("valid", past, "certificate-expired", Severity::Problem),
        ("ordering", None, "certificate-ordering", Severity::Warning),
        ("failed", future, "certificate-renewal", Severity::Warning),
        ("failed", past, "certificate-failed", Severity::Problem),
        ("failed", None, "certificate-failed", Severity::Problem),
    ] {
        let found = found(held(state, until));
        let finding = found.iter().find(|finding| finding.code.starts_with("certificate")).unwrap();
        assert_eq!((finding.code, finding.severity), (code, severity), "{state} {until:?}");
        assert_eq!(found.len(), 3);
    }
}

#[test]
fn all_is_well_where_nothing_is_wrong() {
    let codes: Vec<&str> = found(json!({})).iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["published", "services"]);
    assert_eq!(Report::new(found(json!({}))).exit(), None);
}

#[test]
fn each_scenario_has_one_finding_with_its_remedy_and_its_command() {
    let one = |changed: Value| json!({ "services": [service(changed)] });
    let killed = |why: &str| one(json!({"state": "restarting", "exit_code": 137, "killed": {"why": why}}));
    let usage =
        json!({"memory": 95, "memory_limit": 100, "processes": 1, "processes_limit": 100, "cpu_ms": 1});
    let network = |state: &str| json!({"network": {"state": state, "detail": "nobody answers", "lost": 1, "since": NOW}});
    let publish =
        |state: &str, detail: &str| json!({"publish": {"state": state, "detail": detail, "at": NOW}});
    for (changed, code, severity, remedy, command) in [
        (json!({"phase": "parked"}), "parked", "problem", "console", ""),
        (
            json!({"roles": [role("vault", "restarting")]}),
            "role-down",
            "problem",
            "events",
            "coffer events acme/shop --since 10m",
        ),
        (
            json!({"roles": [role("evidence", "restarting")]}),
            "role-down",
            "problem",
            "events",
            "coffer events acme/shop --since 10m",
        ),
        (network("lost"), "address-lost", "problem", "DHCP", ""),
        (network("asking"), "no-address", "problem", "DHCP", ""),
        (
            publish(
                "waiting",
                "waiting for the GitHub token: no secret yet for secret://cofferdam/github/token",
            ),
            "publish-waiting",
            "problem",
            "token",
            "coffer secret put acme/shop cofferdam/github/token",
        ),
        (
            publish("waiting", "no collateral"),
            "publish-waiting",
            "problem",
            "missing",
            "coffer publish acme/shop",
        ),
        (
            publish("contested", "another machine"),
            "publish-contested",
            "problem",
            "revoke",
            "coffer publish acme/shop",
        ),
        (publish("failed", "401"), "publish-failed", "problem", "token", "coffer publish acme/shop"),
        (publish("publishing", ""), "publishing", "warning", "wait", "coffer status acme/shop"),
        (json!({"publish": null}), "publish-silent", "warning", "wait", "coffer status acme/shop"),
        (
            one(json!({"state": "failed", "detail": "no such user"})),
            "service-failed",
            "problem",
            "declaration",
            "coffer logs acme/shop web --tail 20",
        ),
        (
            one(json!({"state": "restarting", "exit_code": 1, "restarts": 9})),
            "service-restarting",
            "problem",
            "output",
            "coffer logs acme/shop web --tail 20",
        ),
        (
            one(json!({"state": "restarting", "killed": {"why": "out-of-memory", "limit": 67_108_864}})),
            "service-out-of-memory",
            "problem",
            "mem_limit",
            "coffer top acme/shop",
        ),
        (
            killed("machine-out-of-memory"),
            "machine-out-of-memory",
            "problem",
            "memory",
            "coffer top acme/shop",
        ),
        (killed("uncounted-memory"), "machine-out-of-memory", "problem", "memory", "coffer top acme/shop"),
        (
            one(json!({"state": "exited", "exit_code": 3})),
            "service-ended",
            "problem",
            "restart",
            "coffer start acme/shop web",
        ),
        (
            one(json!({"state": "pulling", "detail": "401 Unauthorized"})),
            "image-pull-failing",
            "problem",
            "registry",
            "coffer status acme/shop --wait",
        ),
        (
            one(json!({"state": "pulling"})),
            "service-starting",
            "warning",
            "wait",
            "coffer status acme/shop --wait",
        ),
        (
            one(json!({"state": "waiting", "missing": ["secret://demo/queue/password"]})),
            "secret-missing",
            "problem",
            "put",
            "coffer secret put acme/shop demo/queue/password",
        ),
        (
            one(json!({"state": "waiting", "detail": "db is not healthy"})),
            "service-waiting",
            "warning",
            "depends_on",
            "coffer status acme/shop",
        ),
        (
            one(json!({"state": "stopped"})),
            "service-stopped",
            "warning",
            "start",
            "coffer start acme/shop web",
        ),
        (
            one(json!({"health": {"state": "unhealthy", "failures": 3, "output": "HTTP 503"}})),
            "service-unhealthy",
            "problem",
            "output",
            "coffer logs acme/shop web --tail 20",
        ),
        (
            one(json!({"health": {"state": "starting", "failures": 0}})),
            "service-not-healthy-yet",
            "warning",
            "wait",
            "coffer status acme/shop --wait",
        ),
        (
            one(json!({"usage": usage})),
            "service-near-limit",
            "warning",
            "declaration",
            "coffer top acme/shop",
        ),
    ] {
        let found = wrong(changed);
        assert_eq!(found.len(), 1, "{code}: {found:?}");
        let finding = &found[0];
        assert_eq!((finding.code, finding.severity.as_str()), (code, severity), "{finding:?}");
        assert!(finding.remedy.as_ref().unwrap().contains(remedy), "{finding:?}");
        assert_eq!(finding.command.as_deref().unwrap_or_default(), command);
        let exit = (severity == "problem").then_some(Code::Failed);
        assert_eq!(finding.exit, exit, "{code}");
    }
}

#[test]
fn a_service_that_has_done_what_it_was_there_for_is_well() {
    assert!(wrong(json!({"services": [service(json!({"state": "exited", "exit_code": 0}))]})).is_empty());
}

#[test]
fn a_clock_is_judged_by_several_servers_or_called_different() {
    let off = |ahead: Option<i64>, time: &str| {
        let sources = vec![ClockSource { host: "api\u{1b}.example".to_owned(), ahead_s: ahead.unwrap_or(0) }];
        let clock = ClockStatus { ahead_s: ahead, sources, at: Timestamp::EPOCH };
        let status = StatusReply { clock: Some(clock), ..status(json!({ "time": time })) };
        super::clock(&status, now()).map(|finding| (finding.code, finding.severity, finding.why.join(" ")))
    };
    let of = |ahead| off(Some(ahead), NOW).map(|(code, severity, _)| (code, severity)).unwrap();
    assert_eq!(of(29), ("clock", Severity::Ok));
    assert_eq!(of(-30), ("clock-off", Severity::Warning));
    assert_eq!(of(299), ("clock-off", Severity::Warning));
    assert_eq!(of(-300), ("clock-off", Severity::Problem));
    assert_eq!(of(i64::MIN), ("clock-off", Severity::Problem));
    let (.., why) = off(Some(3600), NOW).unwrap();
    assert!(why.contains("api\\u{1b}.example says 3600 s"), "{why}");
    let set = |how, ahead| {
        let change = ClockChange { how, by_ms: -3_600_000 };
        let clock = ClockStatus { ahead_s: Some(ahead), sources: vec![], at: Timestamp::EPOCH };
        let clock_set = Some(ClockSet { change, at: Timestamp::EPOCH });
        super::clock(&StatusReply { clock: Some(clock), clock_set, ..status(json!({})) }, now()).unwrap()
    };
    let said = set(ClockHow::Stepped, 0);
    assert_eq!((said.code, said.severity), ("clock", Severity::Ok));
    assert!(said.what.ends_with("is right: it was set back by 3600.0 s at 1970-01-01T00:00:00Z"), "{said:?}");
    let far = set(ClockHow::TooFar, 90_000);
    assert_eq!((far.code, far.severity), ("clock-off", Severity::Problem));
    assert!(far.remedy.unwrap().contains("boot the appliance again"));
    // Nobody has agreed: then it is not said whose clock is wrong.
    assert_eq!(off(None, NOW), None);
    assert_eq!(off(None, "2026-01-02T03:05:05Z").unwrap().0, "clocks-differ");
}

#[test]
fn what_was_denied_is_named_and_bounded_and_never_part_of_a_command() {
    let denied = |n: u64| Denied {
        target: format!("\u{1b}[2J{n}.example"),
        why: DeniedWhy::Name,
        count: n,
        last: Timestamp::EPOCH,
        allow: Some(format!("{n}.example:443")),
    };
    let mut status = status(json!({}));
    status.services[0].egress = Some(EgressStatus { denied: 90, latest: (0..16).map(denied).collect() });
    let repository = "acme/shop".parse().unwrap();
    let about = About { repository: &repository, endpoint: None };
    let found = findings(&about, &status, false, now());
    let finding = found.iter().find(|finding| finding.code == "egress-denied").unwrap();
    assert_eq!((finding.severity, finding.why.len()), (Severity::Warning, SHOWN));
    assert!(finding.why[1].contains("1.example:443") && !finding.why.concat().contains('\u{1b}'));
    assert_eq!(finding.command.as_deref(), Some("coffer events acme/shop --since 1h"));
}

#[test]
fn a_name_that_a_shell_would_read_otherwise_is_in_no_command() {
    for name in ["$(reboot)", "web;id", "-f", "web\n", "WEB", ""] {
        for state in ["failed", "restarting", "exited", "stopped"] {
            let found =
                wrong(json!({"services": [service(json!({"state": state, "exit_code": 1, "name": name}))]}));
            assert_eq!(found[0].command.as_deref(), Some("coffer status acme/shop"), "{name} {state}");
        }
    }
}

#[test]
fn before_the_launch_there_are_no_services_and_nothing_to_publish() {
    let repository = "acme/shop".parse().unwrap();
    let endpoint = "127.0.0.1:8443".parse().unwrap();
    let about = About { repository: &repository, endpoint: Some(&endpoint) };
    let changed = json!({
        "services": [service(json!({"state": "pending"}))], "publish": null,
        "roles": [role("front", "restarting")],
    });
    let found = findings(&about, &status(changed), true, now());
    assert_eq!(found.len(), 1);
    assert_eq!(
        found[0].command.as_deref(),
        Some("coffer events acme/shop --since 10m --endpoint 127.0.0.1:8443")
    );
}
