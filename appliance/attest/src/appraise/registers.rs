//! MRTD and RTMR0-2 against reference values, with the first event that explains a difference.

use cofferdam_protocol::hex;

use crate::appraise::{Appraisal, Outcome};
use crate::event_log::{self, Event, Register};
use crate::policy::Policy;
use crate::quote::Quote;
use crate::reference::{self, PlatformReference, PredictedEvent, ReferenceValues};

pub(super) fn check(
    appraisal: &mut Appraisal,
    quote: &Quote,
    events: &[Event],
    reference: &ReferenceValues,
    policy: &Policy,
) {
    firmware_log(appraisal, quote, events);
    let [rtmr0, rtmr1, rtmr2, _] = &quote.rtmr;
    let required = |name: &str| policy.required_registers.iter().any(|register| register == name);
    // Without a verified chain nothing is accepted, and nobody knows what signed: then every value may explain.
    let simulated = appraisal.platform.is_some().then_some(appraisal.simulated);
    let platform = reference.platform(simulated, &quote.mrtd, rtmr0, events);
    mrtd(appraisal, &quote.mrtd, platform, required("mrtd"));
    self::rtmr0(appraisal, rtmr0, events, platform, required("rtmr0"));
    let boot = reference.boot(simulated, (rtmr1, rtmr2), events).map(|(_, boot)| boot);
    let halves = [
        ("rtmr1", 1, rtmr1, boot.map(|boot| &boot.rtmr1)),
        ("rtmr2", 2, rtmr2, boot.map(|boot| &boot.rtmr2)),
    ];
    for (name, mr, found, wanted) in halves {
        match wanted {
            Some(wanted) if wanted == found => appraisal.pass(name, hex::encode(found)),
            Some(wanted) => {
                let predicted = boot.map(|boot| boot.events.as_slice()).unwrap_or_default();
                let why = explain(mr, found, events, predicted);
                appraisal.fail(
                    name,
                    format!("is {}, reference is {}{why}", hex::encode(found), hex::encode(wanted)),
                );
            }
            None => no_reference(appraisal, name, found, required(name)),
        }
    }
}

fn no_reference(appraisal: &mut Appraisal, name: &'static str, found: &Register, required: bool) {
    if required {
        let detail = format!("no reference value; the quote says {}", hex::encode(found));
        appraisal.push(name, Outcome::CouldNotCheck, detail);
    } else {
        appraisal.push(name, Outcome::NotChecked, "no reference value");
    }
}

/// MRTD has to be what one of the page orders of the firmware makes.
fn mrtd(appraisal: &mut Appraisal, found: &Register, platform: Option<&PlatformReference>, required: bool) {
    let Some(platform) = platform else { return no_reference(appraisal, "mrtd", found, required) };
    match platform.order(found) {
        Some(order) => {
            appraisal
                .pass("mrtd", format!("{}, {}, {}", hex::encode(found), platform.name, order.describe()));
        }
        None => {
            let known: Vec<String> = platform.mrtd.iter().map(|mrtd| hex::encode(mrtd.value)).collect();
            let known = known.join(" or ");
            appraisal.fail(
                "mrtd",
                format!("is {}, reference for {} is {known}", hex::encode(found), platform.name),
            );
        }
    }
}

/// RTMR0 has to be the predicted value, where it is determined. Where only a part of its events is, they have to occur
/// in the log in their order; that says less than a value, so it fails but never passes.
fn rtmr0(
    appraisal: &mut Appraisal,
    found: &Register,
    events: &[Event],
    platform: Option<&PlatformReference>,
    required: bool,
) {
    let Some(platform) = platform else { return no_reference(appraisal, "rtmr0", found, required) };
    match &platform.rtmr0 {
        Some(wanted) if wanted == found => appraisal.pass("rtmr0", hex::encode(found)),
        Some(wanted) => {
            let why = explain(0, found, events, &platform.events);
            appraisal.fail(
                "rtmr0",
                format!("is {}, reference is {}{why}", hex::encode(found), hex::encode(wanted)),
            );
        }
        None if platform.events.is_empty() => no_reference(appraisal, "rtmr0", found, required),
        // Whoever hands over the document could leave the log out: that must not spare them the comparison.
        None if !events.iter().any(|event| event.mr == 0) => {
            let detail = format!(
                "events of {} are to be compared, and the evidence has no log of them",
                platform.name
            );
            appraisal.push("rtmr0", Outcome::CouldNotCheck, detail);
        }
        None => {
            let (count, missing) = reference::occurring(&platform.events, events, 0);
            if let Some(event) = missing {
                return appraisal
                    .fail("rtmr0", format!("the firmware log lacks the predicted {}", event.cause));
            }
            let outcome = if required { Outcome::CouldNotCheck } else { Outcome::NotChecked };
            let detail = format!("{count} events are as predicted, the others are not determined");
            appraisal.push("rtmr0", outcome, detail);
        }
    }
}

/// The firmware's log must replay to RTMR0-2 when it is there.
fn firmware_log(appraisal: &mut Appraisal, quote: &Quote, events: &[Event]) {
    let count = events.iter().filter(|event| event.mr < 3).count();
    if count == 0 {
        appraisal.push("firmware_log", Outcome::NotChecked, "the evidence carries no firmware log");
        return;
    }
    let problems: Vec<String> = (0..3u8)
        .zip(&quote.rtmr)
        .filter(|(mr, register)| event_log::replay(events, *mr) != **register)
        .map(|(mr, _)| format!("does not replay to RTMR{mr} of the quote"))
        .collect();
    appraisal.require("firmware_log", format!("{count} events replay to RTMR0-2"), &problems);
}

/// Names the first measured event that differs from the predicted ones. The measured log is believed only as far as it
/// replays to the register.
fn explain(mr: u8, found: &Register, events: &[Event], predicted: &[PredictedEvent]) -> String {
    let measured: Vec<&Event> = events.iter().filter(|event| event.mr == mr).collect();
    let predicted: Vec<&PredictedEvent> = predicted.iter().filter(|event| event.mr == mr).collect();
    if measured.is_empty() {
        return "; no firmware log to find the event in".to_owned();
    }
    if event_log::replay(events, mr) != *found {
        return "; the firmware log does not replay to the register, so no event can be named".to_owned();
    }
    if predicted.is_empty() {
        return "; no predicted events to compare with".to_owned();
    }
    let mut pairs = measured.iter().zip(&predicted).enumerate();
    let differs = pairs.find(|(_, (measured, predicted))| measured.register_digest() != predicted.digest);
    match differs {
        Some((at, (measured, predicted))) if measured.event == predicted.event => {
            let (kind, cause) = (&predicted.event, &predicted.cause);
            format!("; first difference in event {} of RTMR{mr}: {kind} ({cause})", at.saturating_add(1))
        }
        Some((at, (measured, predicted))) => format!(
            "; first difference in event {} of RTMR{mr}: {} where {} ({}) was predicted",
            at.saturating_add(1),
            describe(measured),
            predicted.event,
            predicted.cause
        ),
        None => match (measured.get(predicted.len()), predicted.get(measured.len())) {
            (Some(extra), _) => {
                format!(
                    "; event {} of RTMR{mr} was not predicted: {}",
                    predicted.len().saturating_add(1),
                    describe(extra)
                )
            }
            (None, Some(gone)) => format!(
                "; event {} of RTMR{mr} is missing: {} ({})",
                measured.len().saturating_add(1),
                gone.event,
                gone.cause
            ),
            (None, None) => String::new(),
        },
    }
}

/// A measured event's type with what is printable of its data.
fn describe(event: &Event) -> String {
    match label(event) {
        Some(label) => format!("{} ({label})", event.event),
        None => event.event.clone(),
    }
}

/// Event data as text, when it is ASCII or UTF-16 text; at most 60 characters.
fn label(event: &Event) -> Option<String> {
    let data = event.payload.as_deref()?;
    let (pairs, rest) = data.as_chunks::<2>();
    let wide: String = pairs.iter().filter(|pair| pair[1] == 0).map(|pair| char::from(pair[0])).collect();
    let text = if rest.is_empty() && !pairs.is_empty() && wide.len() == pairs.len() {
        wide
    } else {
        String::from_utf8(data.to_vec()).ok()?
    };
    let text = text.trim_end_matches('\0');
    let printable = !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() || c == ' ');
    printable.then(|| text.chars().take(60).collect())
}
