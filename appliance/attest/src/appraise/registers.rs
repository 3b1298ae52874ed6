//! MRTD and RTMR0-2 against reference values, with the first event that explains a difference.

use crate::appraise::{Appraisal, Outcome};
use crate::event_log::{self, Event, Register};
use crate::policy::Policy;
use crate::quote::Quote;
use crate::reference::ReferenceValues;

pub(super) fn check(
    appraisal: &mut Appraisal,
    quote: &Quote,
    events: &[Event],
    reference: Option<&ReferenceValues>,
    policy: &Policy,
) {
    firmware_log(appraisal, quote, events);
    let [rtmr0, rtmr1, rtmr2, _] = &quote.rtmr;
    let registers: [(&'static str, Option<u8>, &Register); 4] = [
        ("mrtd", None, &quote.mrtd),
        ("rtmr0", Some(0), rtmr0),
        ("rtmr1", Some(1), rtmr1),
        ("rtmr2", Some(2), rtmr2),
    ];
    for (name, mr, found) in registers {
        let required = policy.required_registers.iter().any(|register| register == name);
        match reference.and_then(|values| values.register(name)) {
            Some(wanted) if wanted == found => appraisal.pass(name, hex::encode(found)),
            Some(wanted) => {
                let predicted = reference.map(|values| values.events.as_slice()).unwrap_or_default();
                let why = mr.map(|mr| explain(mr, found, events, predicted)).unwrap_or_default();
                appraisal.fail(
                    name,
                    format!("is {}, reference is {}{why}", hex::encode(found), hex::encode(wanted)),
                );
            }
            None if required => {
                let detail = format!("no reference value; the quote says {}", hex::encode(found));
                appraisal.push(name, Outcome::CouldNotCheck, detail);
            }
            None => appraisal.push(name, Outcome::NotChecked, "no reference value"),
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
fn explain(mr: u8, found: &Register, events: &[Event], predicted: &[Event]) -> String {
    let of = |list: &'_ [Event]| list.iter().filter(|event| event.mr == mr).cloned().collect::<Vec<_>>();
    let (measured, predicted) = (of(events), of(predicted));
    if measured.is_empty() {
        return "; no firmware log to find the event in".to_owned();
    }
    if event_log::replay(&measured, mr) != *found {
        return "; the firmware log does not replay to the register, so no event can be named".to_owned();
    }
    if predicted.is_empty() {
        return "; no predicted events to compare with".to_owned();
    }
    let mut pairs = measured.iter().zip(&predicted).enumerate();
    match pairs.find(|(_, (a, b))| a.register_digest() != b.register_digest()) {
        Some((at, (a, b))) if a.event == b.event => {
            format!("; first difference in event {} of RTMR{mr}: {}", at + 1, describe(b, a))
        }
        Some((at, (a, b))) => format!(
            "; first difference in event {} of RTMR{mr}: {} where {} was predicted",
            at + 1,
            describe(a, a),
            describe(b, b)
        ),
        None if measured.len() > predicted.len() => {
            let extra = measured.get(predicted.len()).map(|event| describe(event, event)).unwrap_or_default();
            format!("; event {} of RTMR{mr} was not predicted: {extra}", predicted.len() + 1)
        }
        None => {
            let gone = predicted.get(measured.len()).map(|event| describe(event, event)).unwrap_or_default();
            format!("; event {} of RTMR{mr} is missing: {gone}", measured.len() + 1)
        }
    }
}

/// An event's type with what is printable of its data (the prediction's label when it has one).
fn describe(event: &Event, fallback: &Event) -> String {
    let label = label(event).or_else(|| label(fallback));
    match label {
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
