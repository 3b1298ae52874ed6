//! What the appliance's status says: roles, publishing, address, clock and services.

use cofferdam_protocol::certificate::{CertificateState, CertificateStatus};
use cofferdam_protocol::network::{NetworkState, NetworkStatus};
use cofferdam_protocol::status::{
    ClockHow, ClockSet, ClockStatus, EgressStatus, Health, HealthState, Killed, NamedService, PublishState,
    PublishStatus, RoleState, RoleStatus, ServiceState, StatusReply, Usage,
};
use cofferdam_protocol::{SecretRef, is_service_name};

use super::finding::{About, Finding};
use crate::verbs::status::NOTABLE_S;

/// From so many seconds on clients refuse times, by the default policy.
const REFUSED_S: u64 = 300;
/// Denied attempts that are named for one service.
const SHOWN: usize = 4;
/// From so much of what it may a service is near its bound, in hundredths.
const NEAR: u64 = 90;

/// What there is to say, at `now` by this machine's clock. Before the launch (`sealed`) there are no services, and nothing is published.
pub(super) fn findings(about: &About<'_>, status: &StatusReply, sealed: bool, now: u64) -> Vec<Finding> {
    let mut found = Vec::new();
    if status.phase.as_deref() == Some("parked") {
        found.push(
            Finding::problem("parked", "the boot stopped: the appliance is parked")
                .remedy("the last line on the machine's console says which measured input contradicts; mend it and boot again"),
        );
    }
    found.extend(status.roles.iter().flatten().filter_map(|role| self::role(about, role)));
    found.extend(status.network.as_ref().and_then(network));
    found.extend(clock(status, now));
    if sealed {
        return found;
    }
    found.extend(publish(about, status.publish.as_ref()));
    found.extend(
        status
            .follow
            .iter()
            .flat_map(|follow| super::follow::findings(about, follow, status.changes.as_ref())),
    );
    found.extend(status.certificate.as_ref().and_then(|held| certificate(about, held, now)));
    let before = found.len();
    for service in &status.services {
        found.extend(self::service(about, service));
    }
    if found.len() == before && !status.services.is_empty() {
        let count = status.services.len();
        found.push(Finding::ok("services", &format!("all services ({count}) are as they should be")));
    }
    found
}

/// A role that does not run. The shims are told by their services.
fn role(about: &About<'_>, role: &RoleStatus) -> Option<Finding> {
    if role.name.starts_with("shim") || role.state == RoleState::Running {
        return None;
    }
    let what = format!("the role {} is {}", role.name, role.state.as_str());
    let killed = role.killed.map(|killed| format!("it was ended: {killed}"));
    let lost = match role.name.as_str() {
        "vault" => "no secret can be put or given; status, logs and events answer",
        "front" => "nobody outside is answered",
        "evidence" => "there is no fresh evidence: clients without an earlier verification are turned away",
        "publish" => "no release attestation is published",
        "egress" => "services reach nothing outside",
        "network" => "an address that is lost is not asked for again",
        _ => "what it does is not done meanwhile",
    };
    let started = format!("{lost}; it was started again {} times", role.restarts);
    Some(
        Finding::problem("role-down", &what)
            .because_all(killed.as_deref())
            .because(if role.restarts > 0 { &started } else { lost })
            .remedy("wait a moment and look again; if it stays so, the events say how it ends")
            .run(about.command("events", "--since 10m")),
    )
}

fn network(network: &NetworkStatus) -> Option<Finding> {
    let (code, what) = match network.state {
        NetworkState::Leased | NetworkState::Static => return None,
        NetworkState::Asking => ("no-address", "the appliance has no address yet"),
        NetworkState::Lost => ("address-lost", "the appliance has lost its address"),
    };
    let lost = format!("lost {} times", network.lost);
    let finding = Finding::problem(code, what)
        .because_all(network.detail.as_deref())
        .because_all((network.lost > 0).then_some(lost.as_str()))
        .remedy("mend the DHCP server on the host's network, or give the machine a fixed address (`ci/boot --address`)");
    Some(finding)
}

/// The clock, by what several servers say of it; where they say nothing, whether it is ours.
fn clock(status: &StatusReply, now: u64) -> Option<Finding> {
    let set = status.clock_set;
    let far = set.is_some_and(|set| set.change.how == ClockHow::TooFar);
    let remedy = if far {
        "set the clock of the appliance's host (NTP) and boot the appliance again: it sets its own by a day at most"
    } else {
        "wait a minute, it is to be set; set the clock of the appliance's host (NTP)"
    };
    if let Some(ClockStatus { ahead_s: Some(ahead), sources, .. }) = &status.clock {
        let (seconds, word) = (ahead.unsigned_abs(), if *ahead > 0 { "ahead" } else { "behind" });
        let what = format!("the appliance's clock is {seconds} s {word}");
        let said: Vec<String> =
            sources.iter().map(|source| format!("{} says {} s", source.host, source.ahead_s)).collect();
        let finding = match seconds {
            0..NOTABLE_S => {
                let right = "the appliance's clock is right";
                let set = set.filter(|_| !far).map(|ClockSet { change, at }| format!("{right}: it {change} at {at}"));
                return Some(Finding::ok("clock", set.as_deref().unwrap_or(right)));
            }
            NOTABLE_S..REFUSED_S => Finding::warning("clock-off", &what),
            _ => Finding::problem("clock-off", &what)
                .because("clients refuse what it attests for its times, and certificates elsewhere may be refused by it"),
        };
        return Some(
            finding.because_all(said.iter().map(String::as_str)).remedy(remedy).run("date -u".to_owned()),
        );
    }
    let apart = status.time?.unix().abs_diff(now);
    (apart >= NOTABLE_S).then(|| {
        Finding::warning(
            "clocks-differ",
            &format!("the appliance's clock and this machine's are {apart} s apart"),
        )
        .because("no two servers have told the appliance the time, so nobody knows which of the two is wrong")
        .remedy("compare both with a clock that is right")
        .run("date -u".to_owned())
    })
}

fn publish(about: &About<'_>, publish: Option<&PublishStatus>) -> Option<Finding> {
    let Some(publish) = publish else {
        return Some(
            Finding::warning("publish-silent", "the role publish has said nothing yet")
                .remedy("wait a moment and look again")
                .run(about.command("status", "")),
        );
    };
    let detail = publish.detail.as_deref();
    let finding = match publish.state {
        PublishState::Published => {
            return Some(Finding::ok("published", "the appliance has seen its release attestation published"));
        }
        PublishState::Publishing => {
            return Some(
                Finding::warning("publishing", "the release attestation is being published")
                    .because_all(detail)
                    .remedy("wait a moment and look again")
                    .run(about.command("status", "")),
            );
        }
        PublishState::Waiting => {
            let finding = Finding::problem("publish-waiting", "no release attestation can be published: something is missing");
            match detail.and_then(secret_in) {
                Some(secret) => finding
                    .remedy("put the token: one for this repository alone, with the right to write its contents")
                    .run(about.command("secret put", secret.path())),
                None => finding
                    .remedy("provide what is missing, then ask for it")
                    .run(about.command("publish", "")),
            }
        }
        PublishState::Contested => {
            Finding::problem("publish-contested", "another machine publishes for this repository")
                .remedy("end that machine, or revoke the token that it has; then have this one published")
                .run(about.command("publish", ""))
        }
        PublishState::Failed => Finding::problem("publish-failed", "publishing the release attestation fails")
            .remedy("mend the cause (a token that was revoked, GitHub's limits), then ask for it; the appliance goes on trying by itself")
            .run(about.command("publish", "")),
    };
    Some(finding.because_all(detail))
}

/// Only where the declaration has one.
fn certificate(about: &About<'_>, certificate: &CertificateStatus, now: u64) -> Option<Finding> {
    let names = certificate.names.join(", ");
    let there = certificate.expires_at.is_some_and(|until| until.unix() > now);
    let finding = match (certificate.state, there) {
        (CertificateState::Valid, true) => {
            return Some(Finding::ok("certificate", &format!("browsers accept the appliance for {names}")));
        }
        (CertificateState::Valid, false) => {
            Finding::problem("certificate-expired", &format!("the certificate for {names} has expired"))
        }
        (CertificateState::Ordering, _) => {
            return Some(
                Finding::warning(
                    "certificate-ordering",
                    &format!("a certificate for {names} is being ordered"),
                )
                .remedy("wait a moment and look again")
                .run(about.command("status", "")),
            );
        }
        (CertificateState::Failed, true) => Finding::warning(
            "certificate-renewal",
            &format!("the certificate for {names} cannot be renewed; the present one is still valid"),
        ),
        (CertificateState::Failed, false) => Finding::problem(
            "certificate-failed",
            &format!("there is no certificate for {names}: browsers refuse the appliance"),
        ),
    };
    Some(
        finding
            .because_all(certificate.detail.as_deref())
            .remedy("see that each of the names leads to this appliance at port 443, and that CAA records allow its account; it goes on trying by itself")
            .run(about.command("status", "")),
    )
}

/// A reference in a text of the appliance.
fn secret_in(text: &str) -> Option<SecretRef> {
    text.split_whitespace().find_map(|word| word.trim_end_matches(['.', ',', ':']).parse().ok())
}

/// What there is to say about one service: its state first, then what it lacks while it runs.
fn service(about: &About<'_>, service: &NamedService) -> Vec<Finding> {
    let mut found: Vec<Finding> = state(about, service).into_iter().collect();
    if service.state == ServiceState::Running {
        found.extend(service.health.as_ref().and_then(|health| self::health(about, service, health)));
        found.extend(service.usage.as_ref().and_then(|usage| near(about, service, usage)));
    }
    found.extend(service.egress.as_ref().and_then(|egress| denied(about, service, egress)));
    found
}

fn state(about: &About<'_>, service: &NamedService) -> Option<Finding> {
    let NamedService { name, detail, exit_code, restarts, .. } = service;
    let ended = exit_code.map(|code| format!("its last exit code is {code}{}", signal(code)));
    let again = restarts.filter(|restarts| *restarts > 0).map(|n| format!("it was started again {n} times"));
    let finding = match service.state {
        ServiceState::Running => return None,
        ServiceState::Exited if *exit_code == Some(0) => return None,
        ServiceState::Failed => {
            Finding::problem("service-failed", &format!("{name} cannot be started as it is"))
                .remedy("change the declaration as the reason says, and boot with it")
                .run(logs(about, name))
        }
        ServiceState::Restarting => return Some(restarting(about, service, ended, again)),
        ServiceState::Exited => {
            Finding::problem("service-ended", &format!("{name} has ended and stays ended"))
                .because_all(ended.as_deref())
                .remedy("its output says why; `restart: always` in the declaration would start it again")
                .run(order(about, "start", name))
        }
        ServiceState::Pulling if detail.is_some() => Finding::problem(
            "image-pull-failing",
            &format!("the image of {name} cannot be fetched"),
        )
        .remedy("mend the registry, its login or the name in the declaration; it is tried again by itself")
        .run(about.command("status", "--wait")),
        ServiceState::Waiting if service.missing.as_ref().is_some_and(|missing| !missing.is_empty()) => {
            return Some(missing(about, service));
        }
        ServiceState::Stopped => {
            Finding::warning("service-stopped", &format!("an operator has stopped {name}"))
                .remedy("start it")
                .run(order(about, "start", name))
        }
        ServiceState::Waiting => {
            Finding::warning("service-waiting", &format!("{name} waits for another service"))
                .remedy("mend that one, or its condition in `depends_on`")
                .run(about.command("status", ""))
        }
        ServiceState::Pending | ServiceState::Pulling | ServiceState::Starting => Finding::warning(
            "service-starting",
            &format!("{name} does not run yet: it is {}", service.state.as_str()),
        )
        .remedy("wait until it runs")
        .run(about.command("status", "--wait")),
    };
    Some(finding.because_all(detail.as_deref()).because_all(again.as_deref()))
}

/// A workload that ends again and again, by whose doing.
fn restarting(
    about: &About<'_>,
    service: &NamedService,
    ended: Option<String>,
    again: Option<String>,
) -> Finding {
    let NamedService { name, detail, killed, .. } = service;
    let finding = match killed {
        Some(Killed::OutOfMemory { limit }) => {
            let what =
                format!("{name} needs more memory than it has ({} MiB), and is ended for it", limit >> 20);
            Finding::problem("service-out-of-memory", &what)
                .remedy("give it more (`mem_limit` in the declaration), or see what takes it")
                .run(about.command("top", ""))
        }
        Some(killed @ (Killed::MachineOutOfMemory | Killed::UncountedMemory)) => Finding::problem(
            "machine-out-of-memory",
            &format!("{name} was ended for want of memory in the machine"),
        )
        .because(&killed.to_string())
        .remedy("give the machine more memory, or services less (`mem_limit`)")
        .run(about.command("top", "")),
        None => Finding::problem("service-restarting", &format!("{name} ends and is started again"))
            .because_all(ended.as_deref())
            .remedy("its output says why it ends")
            .run(logs(about, name)),
    };
    finding.because_all(detail.as_deref()).because_all(again.as_deref())
}

fn missing(about: &About<'_>, service: &NamedService) -> Finding {
    let missing = service.missing.as_deref().unwrap_or_default();
    let names: Vec<String> = missing.iter().map(|secret| format!("no value yet for {secret}")).collect();
    let finding = Finding::problem("secret-missing", &format!("{} waits for secrets", service.name))
        .because_all(names.iter().map(String::as_str))
        .remedy("put them; each value is read from standard input or prompted for");
    match missing.first() {
        Some(first) => finding.run(about.command("secret put", first.path())),
        None => finding,
    }
}

fn health(about: &About<'_>, service: &NamedService, health: &Health) -> Option<Finding> {
    let name = &service.name;
    let finding = match health.state {
        HealthState::Healthy => return None,
        HealthState::Starting => Finding::warning(
            "service-not-healthy-yet",
            &format!("{name} runs, and no probe has succeeded yet"),
        )
        .remedy("wait until it is healthy")
        .run(about.command("status", "--wait")),
        HealthState::Unhealthy => {
            let what =
                format!("{name} runs and is unhealthy: {} probes in a row have failed", health.failures);
            Finding::problem("service-unhealthy", &what)
                .remedy("its output says more; start it again if that helps (`on_unhealthy: restart` does so by itself)")
                .run(logs(about, name))
        }
    };
    let output = health.output.as_deref().map(|output| format!("the last probe: {output}"));
    Some(finding.because_all(output.as_deref()))
}

fn near(about: &About<'_>, service: &NamedService, usage: &Usage) -> Option<Finding> {
    let near = |used: u64, most: u64| most > 0 && used.saturating_mul(100) >= most.saturating_mul(NEAR);
    let memory = near(usage.memory, usage.memory_limit)
        .then(|| format!("memory: {} of {} MiB (`mem_limit`)", usage.memory >> 20, usage.memory_limit >> 20));
    let processes = near(usage.processes, usage.processes_limit)
        .then(|| format!("processes: {} of {} (`pids_limit`)", usage.processes, usage.processes_limit));
    (memory.is_some() || processes.is_some()).then(|| {
        Finding::warning("service-near-limit", &format!("{} has nearly used up what it may", service.name))
            .because_all(memory.as_deref())
            .because_all(processes.as_deref())
            .remedy("give it more in the declaration, or see what takes it")
            .run(about.command("top", ""))
    })
}

/// What was denied outside; which names a service dials is its own choice, so nothing is allowed unread.
fn denied(about: &About<'_>, service: &NamedService, egress: &EgressStatus) -> Option<Finding> {
    if egress.denied == 0 {
        return None;
    }
    let name = &service.name;
    let targets: Vec<String> = egress
        .latest
        .iter()
        .take(SHOWN)
        .map(|denied| {
            let allow = denied.allow.as_deref().map(|allow| format!("; allowed by egress: [\"{allow}\"]"));
            format!(
                "{} ({}), {} times{}",
                denied.target,
                denied.why.as_str(),
                denied.count,
                allow.unwrap_or_default()
            )
        })
        .collect();
    Some(
        Finding::warning("egress-denied", &format!("{name} did not get {} connections to the outside", egress.denied))
            .because_all(targets.iter().map(String::as_str))
            .remedy("allow in the declaration what it is meant to reach, and nothing else: it chose these names itself")
            .run(about.command("events", "--since 1h")),
    )
}

pub(super) fn logs(about: &About<'_>, name: &str) -> String {
    if is_service_name(name) {
        about.command("logs", &format!("{name} --tail 20"))
    } else {
        about.command("status", "")
    }
}

fn order(about: &About<'_>, verb: &str, name: &str) -> String {
    if is_service_name(name) { about.command(verb, name) } else { about.command("status", "") }
}

/// The signal behind an exit code, where it says one.
fn signal(code: i32) -> String {
    if (129..=192).contains(&code) {
        format!(" (signal {})", code.saturating_sub(128))
    } else {
        String::new()
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
