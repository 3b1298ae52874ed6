//! RTMR3: the appliance's own events have to replay to the quote, in the order that gives them their meaning.
//!
//! Up to the launch boundary that order is fixed. Behind it, a declaration that was applied at run time is a group: its
//! `declaration` event and one `image` event for each of its services. The claims are compared with the last declaration.

use std::collections::BTreeSet;

use cofferdam_protocol::{hex, shorten};

use crate::appraise::{Appraisal, Expectations};
use crate::event_log::payload::{Appliance, Declaration, Image, Launch, Machine, Payload, State, Upgrade};
use crate::event_log::{self, Event, MAX_APPLIED};
use crate::policy::Policy;
use crate::quote::Quote;

/// Events that come exactly once before the images, in this order. Right before `state` there may be an `upgrade`.
const OPENING: [&str; 4] = [Declaration::NAME, Appliance::NAME, Machine::NAME, State::NAME];

/// Behind it there is no further declaration.
const SEALED: &str = "sealed";

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
    let (boot, applied) = groups(&ours);
    if applied.len() > MAX_APPLIED {
        problems.push(format!(
            "{} declarations applied after launch, at most {MAX_APPLIED} are allowed",
            applied.len()
        ));
    }
    let mut payload_problems = payloads(&ours, boot);
    payload_problems.extend(applied.iter().filter_map(|group| applied_wrongly(group)));
    appraisal.applied = applied.iter().filter_map(|group| Declaration::read(group.first()?)).collect();
    let names: Vec<&str> = boot.iter().map(|event| event.event.as_str()).collect();
    let mut names = names.join(", ");
    if let Some(last) = appraisal.applied.last() {
        names += &format!("; declarations applied after launch: {}, commit {}", applied.len(), last.commit);
    }
    appraisal.require("event_order", names, &problems);
    appraisal.require("event_payloads", "well formed and consistent", &payload_problems);
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
    let (mut behind, mut upgraded): (Option<Behind>, bool) = (None, false);
    for event in ours {
        let name = event.event.as_str();
        let is_ours =
            OPENING.contains(&name) || [Upgrade::NAME, Image::NAME, Launch::NAME, SEALED].contains(&name);
        let next = wanted.as_slice().first();
        if upgraded && next == Some(&State::NAME) && name != State::NAME {
            problems.push(format!("`{name}` between `{}` and `{}`", Upgrade::NAME, State::NAME));
        }
        if let Some(behind) = &mut behind {
            problems.extend(behind.then(name));
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
            behind = (name == Launch::NAME).then_some(Behind::Launch);
        } else {
            match wanted.next() {
                Some(next) if *next == name => {}
                Some(next) => problems.push(format!("`{name}` where `{next}` belongs")),
                None => problems.push(format!("`{name}` in the wrong place")),
            }
        }
    }
    let reached = match wanted.as_slice() {
        _ if behind.is_some() => Reached::Launch,
        [State::NAME] if !upgraded => Reached::Machine,
        _ => Reached::Elsewhere,
    };
    (reached, problems)
}

/// What was last behind the launch boundary.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Behind {
    /// The boundary itself.
    Launch,
    /// A declaration, whose images follow.
    Declaration,
    /// The end of all declarations.
    Sealed,
}

impl Behind {
    /// Goes on to the event of this name, or says why it does not belong there.
    fn then(&mut self, name: &str) -> Option<String> {
        *self = match (*self, name) {
            (_, SEALED) => Self::Sealed,
            (Self::Sealed, Declaration::NAME | Image::NAME) => {
                return Some(format!("`{name}` after `{SEALED}`"));
            }
            (_, Declaration::NAME) | (Self::Declaration, Image::NAME) => Self::Declaration,
            _ => return Some(format!("`{name}` after the launch boundary")),
        };
        None
    }
}

/// The events of the boot, and those of each declaration that was applied behind a launch boundary that was reached in order.
fn groups<'a, 'e>(ours: &'a [&'e Event]) -> (&'a [&'e Event], Vec<&'a [&'e Event]>) {
    let opened = ours.iter().position(|event| event.event == State::NAME).unwrap_or(ours.len());
    let mut rest = ours.iter().enumerate().skip(opened);
    // Up to the boundary and past it: without one there is nothing behind it.
    let _boundary = rest.find(|(_, event)| event.event == Launch::NAME);
    let first = rest.find(|(_, event)| event.event == Declaration::NAME).map_or(ours.len(), |(at, _)| at);
    let (boot, applied) = ours.split_at(first);
    (boot, applied.chunk_by(|_, next| next.event != Declaration::NAME).collect())
}

/// What is wrong with a declaration that was applied at run time.
fn applied_wrongly(group: &[&Event]) -> Option<String> {
    // One that cannot be read was named already.
    let declaration = group.first().and_then(|event| Declaration::read(event))?;
    let of = format!("the declaration of commit {}, applied after launch,", declaration.commit);
    if declaration.source != Declaration::FROM_GITHUB {
        return Some(format!(
            "{of} is from `{}` instead of `{}`",
            shorten(&declaration.source, 32),
            Declaration::FROM_GITHUB
        ));
    }
    let images: Vec<String> =
        group.iter().filter_map(|event| Image::read(event)).map(|image| image.service).collect();
    if images.is_empty() {
        return Some(format!("{of} starts nothing"));
    }
    let distinct = images.iter().collect::<BTreeSet<_>>().len();
    (distinct < images.len()).then(|| format!("{of} has a service with two images"))
}

/// Every payload has its shape, and the events of the boot agree with one another.
fn payloads(ours: &[&Event], boot: &[&Event]) -> Vec<String> {
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
    let declaration = boot.iter().find_map(|event| Declaration::read(event));
    let appliance = boot.iter().find_map(|event| Appliance::read(event));
    if let (Some(declaration), Some(appliance)) = (declaration, appliance)
        && declaration.digest != appliance.declaration
    {
        problems.push("`appliance` names another declaration than `declaration`".to_owned());
    }
    if let Some(declaration) = boot.iter().find_map(|event| Declaration::read(event))
        && declaration.source != Declaration::FROM_DISK
    {
        problems.push(format!(
            "the declaration of the boot is from `{}` instead of `{}`",
            shorten(&declaration.source, 32),
            Declaration::FROM_DISK
        ));
    }
    if let Some(upgrade) = boot.iter().find_map(|event| Upgrade::read(event))
        && let Some(state) = boot.iter().find_map(|event| State::read(event))
        && !matches!(state, State::Disk { fresh: false, lineage, .. } if lineage == upgrade.version)
    {
        problems.push("`state` is not what `upgrade` opened".to_owned());
    }
    if let Some(State::Disk { continuity: Some(continuity), .. }) =
        boot.iter().find_map(|event| State::read(event))
        && !continuity.is_ordered()
    {
        problems.push("`state` has no such anchors".to_owned());
    }
    let images: Vec<String> =
        boot.iter().filter_map(|event| Image::read(event)).map(|image| image.service).collect();
    if let Some(launch) = boot.iter().find_map(|event| Launch::read(event))
        && launch.services != images
    {
        problems.push("`launch` starts other services than the measured images".to_owned());
    }
    problems
}
