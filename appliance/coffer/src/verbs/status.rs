//! `coffer status`: the appliance, its roles and its services.

use std::fmt::Write as _;

use cofferdam_protocol::certificate::CertificateStatus;
use cofferdam_protocol::change::Change;
use cofferdam_protocol::follow::FollowStatus;
use cofferdam_protocol::json;
use cofferdam_protocol::network::NetworkStatus;
use cofferdam_protocol::operator::{MAX_REPLY, STATUS};
use cofferdam_protocol::status::{
    ClockHow, ClockSet, ClockStatus, Denied, EgressStatus, Health, HealthState, NamedService, RoleState,
    ServiceState, StatusReply, Usage,
};
use hyper::StatusCode;

use crate::channel::{Channel, refusal};
use crate::cli;
use crate::failure::{Code, Failure, Outcome, chain};
use crate::operator_key::OperatorKey;
use crate::ui::{Tone, Ui, printable};

/// A clock that is off by less is right: a certificate is made for longer.
pub(super) const NOTABLE_S: u64 = 30;
/// Different attempts that are shown for one service; the rest is in `--json`.
const SHOWN: usize = 5;

pub(crate) async fn run(
    ui: &Ui,
    appliance: &cli::Appliance,
    wait: cli::Wait,
    key: &cli::OperatorKey,
) -> Outcome {
    let key = OperatorKey::load(key)?;
    let ready = async || {
        let mut channel = super::open_to_read(ui, appliance).await?;
        let status = ask(&mut channel, &key).await?;
        match unready(&status) {
            Some(what) if wait.wait => Err(Failure::new(Code::NotReady, what)),
            _ => Ok((status, channel.appraisal.is_before_launch())),
        }
    };
    let (status, sealed) = super::patiently(wait, &appliance.repository, ready).await?;
    let shown = serde_json::to_value(&status).map_err(|error| malformed(&error))?;
    ui.result(&text(ui, &status), shown);
    if sealed {
        return Err(super::sealed::printed(
            ui,
            Failure::new(Code::NotReady, "the appliance is sealed: it waits for its state to be opened")
                .hint(format!("coffer unseal {}", appliance.repository)),
        ));
    }
    Ok(())
}

/// The appliance's status.
pub(super) async fn ask(channel: &mut Channel, key: &OperatorKey) -> Outcome<StatusReply> {
    let reply = channel.request(key, "GET", STATUS, Vec::new()).await?;
    if reply.status != StatusCode::OK {
        return Err(refusal(&reply, "no status"));
    }
    json::from_json(&reply.body, MAX_REPLY).map_err(|error| malformed(&error))
}

fn malformed(error: &dyn std::error::Error) -> Failure {
    Failure::failed(format!("the appliance's status is malformed: {}", chain(error)))
}

/// The first service that is not yet what it is meant to be, and why.
fn unready(status: &StatusReply) -> Option<String> {
    if status.services.is_empty() {
        return Some("no service is known yet".to_owned());
    }
    let waited_for = |service: &&NamedService| !is_ready(service);
    let service = status.services.iter().find(waited_for)?;
    let why = remarks(service).pop().map(|why| format!(" ({why})")).unwrap_or_default();
    Some(format!("{} is {}{why}", printable(&service.name), service.state.as_str()))
}

/// Whether a service runs, and is healthy where that is known, or has done what it was there to do.
pub(super) fn is_ready(service: &NamedService) -> bool {
    match service.state {
        ServiceState::Running => {
            service.health.as_ref().is_none_or(|health| health.state == HealthState::Healthy)
        }
        ServiceState::Exited => service.exit_code == Some(0),
        _ => false,
    }
}

fn text(ui: &Ui, status: &StatusReply) -> String {
    let mut out = String::new();
    let _ =
        writeln!(out, "{}  commit {:.12}  {}", status.repository, status.commit.to_string(), status.endpoint);
    let _ = writeln!(out, "state: {}", printable(&status.state));
    if let Some(publish) = &status.publish {
        let tag = publish.tag.as_deref().map(printable).unwrap_or_default();
        let detail = publish.detail.as_deref().map(printable).unwrap_or_default();
        let _ = writeln!(out, "attestation: {} {}", publish.state.as_str(), format!("{tag} {detail}").trim());
    }
    out.extend(status.follow.as_ref().map(follow));
    out.extend(status.changes.as_ref().and_then(|changes| changes.changes.last()).map(change));
    out.extend(status.certificate.as_ref().map(certificate));
    out.extend(status.network.as_ref().map(network));
    out.extend(clock(status.clock.as_ref(), status.clock_set));
    let _ = writeln!(out, "roles:");
    for role in status.roles.iter().flatten() {
        let tone = if role.state == RoleState::Running { Tone::Good } else { Tone::Unsure };
        let _ = writeln!(out, "{}", row(ui, &role.name, tone, role.state.as_str(), role.restarts));
        if let Some(killed) = role.killed {
            let _ = writeln!(out, "    ended: {killed}");
        }
    }
    let _ = writeln!(out, "services:");
    for service in &status.services {
        let tone = match service.state {
            ServiceState::Running => Tone::Good,
            ServiceState::Failed => Tone::Bad,
            _ => Tone::Unsure,
        };
        let restarts = service.restarts.unwrap_or(0);
        let _ = writeln!(out, "{}", row(ui, &service.name, tone, service.state.as_str(), restarts));
        for line in remarks(service) {
            let _ = writeln!(out, "    {line}");
        }
    }
    out
}

/// What the followed branch has, and why that is not known any better.
fn follow(follow: &FollowStatus) -> String {
    let problem =
        follow.problem.as_deref().map(|problem| format!("\n    not looked at: {}", printable(problem)));
    let found = printable(&follow.found.to_string());
    format!("follow: {}: {found}{}\n", printable(follow.branch.as_str()), problem.unwrap_or_default())
}

/// What became of the last declaration that was to take the place of what runs.
fn change(change: &Change) -> String {
    format!("change: {}\n    at {}\n", printable(&change.to_string()), change.at)
}

/// What becomes of the certificate that browsers accept.
fn certificate(certificate: &CertificateStatus) -> String {
    let until = certificate.expires_at.map(|until| format!(" until {until}")).unwrap_or_default();
    let detail =
        certificate.detail.as_deref().map(|detail| format!(": {}", printable(detail))).unwrap_or_default();
    let names: Vec<String> = certificate.names.iter().map(|name| printable(name)).collect();
    let account = certificate
        .claim
        .account
        .as_ref()
        .map(|account| format!("\n    account {account}"))
        .unwrap_or_default();
    format!("browsers: {} for {}{until}{detail}{account}\n", certificate.state.as_str(), names.join(", "))
}

/// How far the clock is off when that is worth saying, and what the appliance has done about it.
fn clock(clock: Option<&ClockStatus>, set: Option<ClockSet>) -> Option<String> {
    let hosts = clock.map(hosts).unwrap_or_default();
    let off = clock.and_then(|clock| clock.ahead_s);
    match (off.filter(|ahead| ahead.unsigned_abs() >= NOTABLE_S), set) {
        (Some(ahead), set) => {
            let (seconds, word) = (ahead.unsigned_abs(), if ahead > 0 { "ahead of" } else { "behind" });
            let far = set.is_some_and(|set| set.change.how == ClockHow::TooFar);
            let what = if far { "too far to be set: the host has to set its own" } else { "it is to be set" };
            Some(format!("clock: {seconds} s {word} {hosts}; {what}\n"))
        }
        (None, Some(ClockSet { change, at })) if change.how != ClockHow::TooFar => {
            Some(format!("clock: {change} at {at}, as {hosts} said\n"))
        }
        (None, _) => None,
    }
}

/// Who says what time it is.
fn hosts(clock: &ClockStatus) -> String {
    let hosts: Vec<String> = clock.sources.iter().map(|source| printable(&source.host)).collect();
    hosts.join(" and ")
}

/// Which address it has and from where, or why there is none: then who reads this has reached it before.
fn network(network: &NetworkStatus) -> String {
    let mut line = format!("network: {}", network.state.as_str());
    let _ = match (&network.settings, network.server) {
        (Some(settings), Some(server)) => {
            write!(line, " {}/{} by {server}", settings.address, settings.prefix)
        }
        (Some(settings), None) => write!(line, " {}/{}", settings.address, settings.prefix),
        (None, _) => write!(line, " {}", network.detail.as_deref().map(printable).unwrap_or_default()),
    };
    if network.lost > 0 {
        let _ = write!(line, ", lost {} times", network.lost);
    }
    line.push('\n');
    line
}

/// What there is to say about a service below its own line: what it uses, why it was ended, what it waits for.
fn remarks(service: &NamedService) -> Vec<String> {
    let mut lines: Vec<String> = service.usage.iter().map(used).collect();
    lines.extend(service.health.as_ref().map(health));
    lines.extend(service.killed.map(|killed| format!("killed: {killed}")));
    lines.extend(service.missing.iter().flatten().map(|missing| format!("missing {missing}")));
    lines.extend(service.detail.as_deref().map(printable));
    lines.extend(service.egress.iter().flat_map(denied));
    lines
}

/// What a service wanted outside and did not get, and what would allow it.
fn denied(egress: &EgressStatus) -> Vec<String> {
    if egress.denied == 0 {
        return Vec::new();
    }
    let mut lines = vec![format!("outside: {} denied or failed", egress.denied)];
    for Denied { target, why, count, allow, .. } in egress.latest.iter().take(SHOWN) {
        lines.push(format!("  {} ({}), {count} times", printable(target), why.as_str()));
        lines.extend(allow.as_deref().map(|allow| format!("    allow: egress: [\"{}\"]", printable(allow))));
    }
    if egress.latest.len() > SHOWN {
        lines.push("  … more with --json".to_owned());
    }
    lines
}

/// How its probes went, with what the last one said unless all is well.
fn health(health: &Health) -> String {
    let failures = match health.failures {
        0 => String::new(),
        1 => " (1 failure)".to_owned(),
        failures => format!(" ({failures} failures)"),
    };
    let output =
        health.output.as_deref().filter(|_| health.state != HealthState::Healthy || health.failures > 0);
    let output = output.map(|output| format!(": {}", printable(output))).unwrap_or_default();
    format!("health {}{failures}{output}", health.state.as_str())
}

/// What a service uses of what it may. With the indentation it fits into 60 columns, whatever the figures.
fn used(usage: &Usage) -> String {
    let (memory, of) = (usage.memory >> 20, usage.memory_limit >> 20);
    let (seconds, tenths) = (usage.cpu_ms / 1000, usage.cpu_ms % 1000 / 100);
    let memory = format!("{memory}/{of} MiB");
    let pids = format!("{}/{}", usage.processes, usage.processes_limit);
    format!("memory {memory:15} pids {pids:11} cpu {seconds}.{tenths} s")
}

/// A line: name, state and restarts.
fn row(ui: &Ui, name: &str, tone: Tone, state: &str, restarts: u32) -> String {
    format!("  {:16} {} restarts {restarts}", printable(name), ui.tone(tone, &format!("{state:10}")))
}

#[cfg(test)]
mod tests {
    use cofferdam_protocol::status::{ClockChange, ClockSource, DeniedWhy, Killed};

    use super::*;

    const USAGE: Usage = Usage {
        memory: 412 << 20,
        memory_limit: 512 << 20,
        processes: 14,
        processes_limit: 4096,
        cpu_ms: 12_345,
        cpus_limit: None,
    };

    #[test]
    fn what_a_service_uses_fits_into_60_columns() {
        assert_eq!(used(&USAGE), "memory 412/512 MiB     pids 14/4096     cpu 12.3 s");
        // 99 GiB, every process, a year of one processor.
        let most = Usage {
            memory: 99_999 << 20,
            memory_limit: 99_999 << 20,
            processes: 32_768,
            processes_limit: 32_768,
            cpu_ms: 31_536_000_000,
            cpus_limit: None,
        };
        assert!("    ".len() + used(&most).len() <= 60, "{}", used(&most));
    }

    #[test]
    fn what_becomes_of_the_certificate_is_shown() {
        let text = r#"{"state":"failed","detail":"caa: \u001b no","names":["shop.example"],"at":"2026-01-02T03:04:05Z",
            "expires_at":"2026-03-02T03:04:05Z","claim":{"key":"sha256:0404040404040404040404040404040404040404040404040404040404040404",
            "directory":"https://ca.example/dir","account_key":"NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs","account":"https://ca.example/acct/1"}}"#;
        let said = certificate(&CertificateStatus::parse(text.as_bytes()).unwrap());
        assert!(!said.contains('\u{1b}'), "{said}");
        assert!(
            said.starts_with("browsers: failed for shop.example until 2026-03-02T03:04:05Z: caa: "),
            "{said}"
        );
        assert!(said.ends_with(" no\n    account https://ca.example/acct/1\n"), "{said}");
    }

    #[test]
    fn what_the_followed_branch_has_is_shown_with_what_keeps_it_from_being_known() {
        let commit = "01".repeat(20);
        let said = |found: &str, problem: &str| {
            let text = format!(r#"{{"branch":"main","found":{found},"at":"2026-01-02T03:04:05Z"{problem}}}"#);
            follow(&FollowStatus::parse(text.as_bytes()).unwrap())
        };
        let current = format!(r#"{{"state":"current","commit":"{commit}"}}"#);
        assert_eq!(said(&current, ""), "follow: main: commit 010101010101 declares what runs\n");
        let refused = format!(
            r#"{{"state":"refused","commit":"{commit}","why":"unsigned","detail":"it is\u001b not"}}"#
        );
        let said = said(&refused, r#","problem":"GitHub is away""#);
        assert!(!said.contains('\u{1b}'), "{said}");
        assert!(said.starts_with("follow: main: commit 010101010101 does not count: it is"), "{said}");
        assert!(said.ends_with(" not\n    not looked at: GitHub is away\n"), "{said}");
    }

    #[test]
    fn what_became_of_the_last_change_is_shown_with_why() {
        let text = format!(
            r#"{{"commit":"{}","declaration":"sha256:{}","at":"2026-01-02T03:04:05Z","outcome":"rolled-back","detail":"service web is failed: \u001b no"}}"#,
            "01".repeat(20),
            "02".repeat(32)
        );
        let said = change(&json::from_json(text.as_bytes(), 1024).unwrap());
        assert!(!said.contains('\u{1b}'), "{said}");
        assert!(
            said.starts_with("change: commit 010101010101 did not come up, and what ran before runs again: service web is failed: "),
            "{said}"
        );
        assert!(said.ends_with(" no\n    at 2026-01-02T03:04:05Z\n"), "{said}");
    }

    #[test]
    fn a_clock_that_is_off_is_shown_with_who_says_so() {
        let source = |host: &str, ahead_s| ClockSource { host: host.to_owned(), ahead_s };
        let of = |ahead_s| ClockStatus {
            ahead_s,
            sources: vec![source("api.github.example", 3601), source("pcs\u{1b}.example", 3600)],
            at: cofferdam_protocol::Timestamp::EPOCH,
        };
        let clock = |ahead_s, set: Option<(ClockHow, i64)>| {
            let at = "2026-01-02T03:04:05Z".parse().unwrap();
            let clock_set = set.map(|(how, by_ms)| ClockSet { change: ClockChange { how, by_ms }, at });
            clock(Some(&of(ahead_s)), clock_set)
        };
        assert_eq!((clock(None, None), clock(Some(29), None), clock(Some(-29), None)), (None, None, None));
        let said = clock(Some(3600), None).unwrap();
        assert!(said.starts_with("clock: 3600 s ahead of api.github.example and pcs"), "{said}");
        assert!(said.ends_with("; it is to be set\n") && !said.contains('\u{1b}'), "{said}");
        assert!(clock(Some(-60), None).unwrap().starts_with("clock: 60 s behind"));
        let far = clock(Some(90_000), Some((ClockHow::TooFar, -90_000_000))).unwrap();
        assert!(far.contains("the host has to set its own"), "{far}");
        let set = clock(Some(0), Some((ClockHow::Stepped, -3_600_000))).unwrap();
        assert!(
            set.starts_with("clock: was set back by 3600.0 s at 2026-01-02T03:04:05Z, as api.github.example")
        );
        assert_eq!(clock(None, Some((ClockHow::TooFar, 90_000_000))), None, "nobody knows it any more");
    }

    #[test]
    fn what_was_denied_is_shown_with_the_line_that_would_allow_it() {
        let denied = |target: &str, why, allow: Option<&str>| Denied {
            target: target.to_owned(),
            why,
            count: 3,
            last: cofferdam_protocol::Timestamp::EPOCH,
            allow: allow.map(str::to_owned),
        };
        let mut service = NamedService::new("web".to_owned(), None);
        assert!(remarks(&service).is_empty());
        service.egress = Some(EgressStatus::default());
        assert!(remarks(&service).is_empty());
        let mut latest = vec![
            denied("api.example.org", DeniedWhy::Name, Some("api.example.org:443")),
            denied("203.0.113.7:443", DeniedWhy::Address, None),
        ];
        service.egress = Some(EgressStatus { denied: 6, latest: latest.clone() });
        assert_eq!(
            remarks(&service),
            [
                "outside: 6 denied or failed",
                "  api.example.org (name not declared), 3 times",
                "    allow: egress: [\"api.example.org:443\"]",
                "  203.0.113.7:443 (an address instead of a name), 3 times",
            ]
        );
        latest.extend((0..9).map(|_| denied("a\u{1b}b", DeniedWhy::Udp, None)));
        service.egress = Some(EgressStatus { denied: 40, latest });
        let lines = remarks(&service);
        assert_eq!(lines.len(), 1 + SHOWN + 1 + 1);
        assert_eq!(lines.last().unwrap(), "  … more with --json");
        assert!(lines.iter().all(|line| !line.contains('\u{1b}')));
    }

    #[test]
    fn health_is_one_line_with_what_the_last_probe_said_when_that_matters() {
        let of = |state, failures, output: &str| {
            let mut service = NamedService::new("web".to_owned(), None);
            service.health = Some(Health { state, failures, output: Some(output.to_owned()) });
            remarks(&service).remove(0)
        };
        assert_eq!(of(HealthState::Starting, 0, "refused"), "health starting: refused");
        assert_eq!(of(HealthState::Healthy, 0, "HTTP 200"), "health healthy");
        assert_eq!(of(HealthState::Healthy, 1, "HTTP 503"), "health healthy (1 failure): HTTP 503");
        assert_eq!(
            of(HealthState::Unhealthy, 3, "exit code 1: [redacted:x]"),
            "health unhealthy (3 failures): exit code 1: [redacted:x]"
        );
    }

    #[test]
    fn a_service_that_ran_out_of_memory_reads_differently_from_one_that_was_killed() {
        let mut service = NamedService::new("web".to_owned(), None);
        service.exit_code = Some(137);
        service.detail = Some("again in 1s".to_owned());
        assert_eq!(remarks(&service), ["again in 1s"]);
        service.killed = Some(Killed::OutOfMemory { limit: 512 << 20 });
        service.usage = Some(USAGE);
        let lines = remarks(&service);
        assert_eq!(lines[1..], ["killed: out of memory (limit 512 MiB)", "again in 1s"]);
        service.killed = Some(Killed::MachineOutOfMemory);
        assert_eq!(remarks(&service)[1..], ["killed: the machine ran out of memory", "again in 1s"]);
        service.killed = Some(Killed::UncountedMemory);
        assert_eq!(remarks(&service)[1], "killed: it took memory that is counted to nobody");
    }
}
