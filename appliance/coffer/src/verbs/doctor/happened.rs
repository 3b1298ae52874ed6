//! What the events of the last hour say that a status does not: what ended and came back, and what was refused.

use std::collections::BTreeMap;

use cofferdam_protocol::events::{Event, Happened};
use cofferdam_protocol::status::{Killed, ServiceState};

use super::finding::{About, Finding};

/// So far back is looked.
pub(super) const LAST_MS: u64 = 60 * 60 * 1000;
/// So many starts of one service in that time are more than an update.
const OFTEN: usize = 3;
/// Roles and services that are named; others are in the events.
const MAX_NAMED: usize = 16;

/// What there is to say, but for the roles and services of which the status has told more already.
pub(super) fn findings(about: &About<'_>, events: &[Event], is_told: impl Fn(&str) -> bool) -> Vec<Finding> {
    let mut roles: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut services: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
    let (mut memory, mut addresses, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for event in events {
        match &event.event {
            Happened::RoleEnded { name, how, again_ms: Some(_) } if !name.starts_with("shim") => {
                roles.entry(name).or_default().push(how);
            }
            Happened::Service { state: ServiceState::Restarting, .. } => {
                services.entry(event.service.as_deref().unwrap_or_default()).or_default().push(event);
            }
            Happened::OutOfMemory { .. } => memory.push(event.event.to_string()),
            Happened::Address { address: None, detail } => {
                addresses.push(detail.as_deref().unwrap_or("no reason is known"));
            }
            Happened::Audit { status: 401 | 403, .. } | Happened::Refused { .. } => {
                refused.push(event.event.to_string());
            }
            _ => {}
        }
    }
    let events = || about.command("events", "--since 1h");
    let mut found = Vec::new();
    for (name, how) in roles.into_iter().filter(|(name, _)| !is_told(name)).take(MAX_NAMED) {
        let what = format!("the role {name} has ended {} in the last hour, and runs again", times(how.len()));
        found.push(
            Finding::warning("role-ended", &what)
                .because_all(how.last().copied())
                .remedy("once is no harm; if it goes on, report it with the events")
                .run(events()),
        );
    }
    for (name, ends) in
        services.into_iter().filter(|(name, ends)| ends.len() >= OFTEN && !is_told(name)).take(MAX_NAMED)
    {
        found.push(restarts(about, name, &ends));
    }
    if let Some(last) = memory.last() {
        found.push(
            Finding::warning("machine-out-of-memory", "the machine ran out of memory in the last hour")
                .because(last)
                .remedy("give the machine more memory, or services less (`mem_limit`)")
                .run(about.command("top", "")),
        );
    }
    if let Some(last) = addresses.last() {
        let what = format!("the appliance had no address {} in the last hour", times(addresses.len()));
        found.push(
            Finding::warning("address-was-lost", &what)
                .because(last)
                .remedy("see to the DHCP server on the host's network, or give the machine a fixed address (`ci/boot --address`)")
                .run(events()),
        );
    }
    if let Some(last) = refused.last() {
        found.push(
            Finding::warning("requests-refused", "the vault has refused requests in the last hour")
                .because(&format!("the last one: {last}"))
                .remedy("if it was no operator's slip, see who asks: the events name role, uid and operator")
                .run(events()),
        );
    }
    found
}

/// A service that runs at the moment, and ends again and again.
fn restarts(about: &About<'_>, name: &str, ends: &[&Event]) -> Finding {
    let what = format!("{name} was started again {} in the last hour", times(ends.len()));
    let last = ends.last().map(|event| event.event.to_string());
    let memory = ends.iter().any(|event| {
        matches!(&event.event, Happened::Service { killed: Some(Killed::OutOfMemory { .. }), .. })
    });
    let remedy = if memory {
        "give it more memory (`mem_limit`), or see what takes it"
    } else {
        "its output says why it ends"
    };
    Finding::warning("service-restarts", &what)
        .because_all(last.as_deref())
        .remedy(remedy)
        .run(super::status::logs(about, name))
}

fn times(count: usize) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

#[cfg(test)]
#[path = "happened_tests.rs"]
mod tests;
