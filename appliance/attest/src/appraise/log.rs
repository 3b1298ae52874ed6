//! RTMR3: the appliance's own events have to replay to the quote, in the order that gives them their meaning.

use cofferdam_protocol::hex;

use crate::appraise::{Appraisal, Expectations};
use crate::event_log::payload::{Appliance, Declaration, Image, Launch, Machine, Payload, State, Upgrade};
use crate::event_log::{self, Event};
use crate::policy::Policy;
use crate::quote::Quote;

/// Events that come exactly once before the images, in this order. Right before `state` there may be an `upgrade`.
const OPENING: [&str; 4] = [Declaration::NAME, Appliance::NAME, Machine::NAME, State::NAME];

/// Events that may follow the launch boundary.
const AFTER_LAUNCH: [&str; 1] = ["sealed"];

/// The check that is made of evidence from before the launch boundary alone.
pub(super) const BEFORE_LAUNCH: &str = "before_launch";

pub(super) fn check(
    appraisal: &mut Appraisal,
    quote: Option<&Quote>,
    events: &[Event],
    expected: &Expectations,
    policy: &Policy,
) {
    let ours: Vec<&Event> = events.iter().filter(|event| event.mr == 3).collect();
    if let Some(Quote { rtmr: [.., rtmr3], .. }) = quote {
        let replayed = event_log::replay(events, 3);
        if replayed == *rtmr3 {
            appraisal.pass("event_log", format!("{} events replay to RTMR3", ours.len()));
        } else {
            appraisal.fail(
                "event_log",
                format!(
                    "{} events replay to {}, RTMR3 of the quote is {}: the log was changed, reordered, cut or extended",
                    ours.len(),
                    hex::encode(replayed),
                    hex::encode(rtmr3)
                ),
            );
        }
    }
    appraisal.state = ours.iter().find_map(|event| State::read(event));
    appraisal.upgrade = ours.iter().find_map(|event| Upgrade::read(event));
    let (reached, mut problems) = order(events, &ours, policy);
    let waits = reached == Reached::Machine && expected.before_launch;
    if reached != Reached::Launch && !waits {
        problems.push("no `launch` event: the boundary was not reached".to_owned());
    }
    let names: Vec<&str> = ours.iter().map(|event| event.event.as_str()).collect();
    appraisal.require("event_order", names.join(", "), &problems);
    appraisal.require("event_payloads", "well formed and consistent", &payloads(&ours));
    if waits {
        let bound = match expected.sealed_to_vault_key {
            true => "nothing runs yet; the nonce is ours, and what is sent goes to the vault's key alone",
            false => "nothing runs yet; nonce, channel binding and TLS key are this connection's",
        };
        appraisal.require(BEFORE_LAUNCH, bound, &unbound(expected));
    }
}

/// What is missing for believing evidence whose TLS key no event names. That what is expected is also claimed, the checks of the
/// claims say.
fn unbound(expected: &Expectations) -> Vec<String> {
    let connection = !expected.sealed_to_vault_key;
    let missing = [
        ("nonce", expected.nonce.is_none()),
        ("channel binding", connection && expected.channel_binding.is_none()),
        ("TLS key", connection && expected.tls_key.is_none()),
    ];
    let missing = missing.into_iter().filter(|(_, missing)| *missing);
    let mut problems: Vec<String> =
        missing.map(|(what, _)| format!("no {what} of a connection to compare with")).collect();
    if expected.tag.is_some() {
        problems.push("a release attestation is of an appliance that has launched".to_owned());
    }
    problems
}

/// How far an appliance has come, by its events.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reached {
    /// Over the launch boundary.
    Launch,
    /// Everything is measured but the state: it waits to be unsealed.
    Machine,
    /// Somewhere where no appliance shows evidence.
    Elsewhere,
}

/// Firmware's events first; then ours: opening, images, launch, and nothing after it but what the boundary allows.
fn order(all: &[Event], ours: &[&Event], policy: &Policy) -> (Reached, Vec<String>) {
    let mut problems = Vec::new();
    if !all.is_sorted_by_key(|event| event.mr == 3) {
        problems.push("a firmware event follows the appliance's own".to_owned());
    }
    // The format forbids it, and a caller that builds evidence by hand must not get around the names and payloads.
    if ours.iter().any(|event| event.digest.is_some()) {
        problems.push("an event of register 3 brings its own digest".to_owned());
    }
    let allowed = |name: &str| policy.allowed_events.iter().any(|known| known == name);
    let mut wanted = OPENING.iter();
    let (mut launched, mut upgraded) = (false, false);
    for event in ours {
        let name = event.event.as_str();
        let is_ours = OPENING.contains(&name)
            || [Upgrade::NAME, Image::NAME, Launch::NAME].contains(&name)
            || AFTER_LAUNCH.contains(&name);
        let next = wanted.as_slice().first();
        if upgraded && next == Some(&State::NAME) && name != State::NAME {
            problems.push(format!("`{name}` between `{}` and `{}`", Upgrade::NAME, State::NAME));
        }
        if launched {
            if !AFTER_LAUNCH.contains(&name) {
                problems.push(format!("`{name}` after the launch boundary"));
            }
        } else if !is_ours {
            if !allowed(name) {
                problems.push(format!("unknown event `{name}`"));
            }
        } else if name == Upgrade::NAME {
            if next != Some(&State::NAME) {
                problems.push(format!("`{name}` in the wrong place"));
            }
            upgraded = true;
        } else if name == Image::NAME || name == Launch::NAME {
            if let Some(missing) = wanted.next() {
                problems.push(format!("`{name}` before `{missing}`"));
            }
            launched = name == Launch::NAME;
        } else {
            match wanted.next() {
                Some(next) if *next == name => {}
                Some(next) => problems.push(format!("`{name}` where `{next}` belongs")),
                None => problems.push(format!("`{name}` in the wrong place")),
            }
        }
    }
    let reached = match wanted.as_slice() {
        _ if launched => Reached::Launch,
        [State::NAME] if !upgraded => Reached::Machine,
        _ => Reached::Elsewhere,
    };
    (reached, problems)
}

/// Every payload has its shape, and the events agree with one another.
fn payloads(ours: &[&Event]) -> Vec<String> {
    let mut problems = Vec::new();
    for event in ours {
        let fine = match event.event.as_str() {
            Declaration::NAME => Declaration::read(event).is_some(),
            Appliance::NAME => Appliance::read(event).is_some(),
            Machine::NAME => Machine::read(event).is_some(),
            Upgrade::NAME => Upgrade::read(event).is_some(),
            State::NAME => State::read(event).is_some(),
            Image::NAME => Image::read(event).is_some(),
            Launch::NAME => Launch::read(event).is_some(),
            _ => true,
        };
        if !fine {
            problems.push(format!("payload of `{}` is malformed", event.event));
        }
    }
    let declaration = ours.iter().find_map(|event| Declaration::read(event));
    let appliance = ours.iter().find_map(|event| Appliance::read(event));
    if let (Some(declaration), Some(appliance)) = (declaration, appliance)
        && declaration.digest != appliance.declaration
    {
        problems.push("`appliance` names another declaration than `declaration`".to_owned());
    }
    if let Some(upgrade) = ours.iter().find_map(|event| Upgrade::read(event))
        && let Some(state) = ours.iter().find_map(|event| State::read(event))
        && !matches!(state, State::Disk { fresh: false, lineage, .. } if lineage == upgrade.version)
    {
        problems.push("`state` is not what `upgrade` opened".to_owned());
    }
    if let Some(State::Disk { continuity: Some(continuity), .. }) =
        ours.iter().find_map(|event| State::read(event))
        && !continuity.is_ordered()
    {
        problems.push("`state` has no such anchors".to_owned());
    }
    let images: Vec<String> =
        ours.iter().filter_map(|event| Image::read(event)).map(|image| image.service).collect();
    if let Some(launch) = ours.iter().find_map(|event| Launch::read(event))
        && launch.services != images
    {
        problems.push("`launch` starts other services than the measured images".to_owned());
    }
    problems
}
