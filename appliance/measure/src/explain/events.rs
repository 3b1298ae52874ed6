//! Events too many or too few, for any register.

use super::analysis::Analysis;
use super::findings::Findings;
use super::image::MAX_NAMES;
use super::label;
use cofferdam_attest::reference::Reason;

/// One cause per type of event that is there too often or too rarely.
pub(super) fn other_events(analysis: &mut Analysis<'_>, findings: &mut Findings) {
    let name = analysis.name();
    let mut kinds: Vec<(String, Vec<String>, bool)> = Vec::new();
    for pair in analysis.open() {
        let (event, label, missing) = match (pair.measured, pair.predicted) {
            (Some((_, event)), None) => (label::printable(&event.event), label::quoted(event), false),
            (None, Some((_, event))) => {
                (label::printable(&event.event), Some(label::printable(&event.cause.to_string())), true)
            }
            _ => continue,
        };
        let labels = label.into_iter();
        // A log can hold as many types as events; a list of causes cannot.
        let full = kinds.len() >= MAX_NAMES;
        match kinds.iter_mut().find(|(known, _, gone)| *known == event && *gone == missing) {
            Some((_, known, _)) if known.len() >= MAX_NAMES => {}
            Some((_, known, _)) => known.extend(labels),
            None if full => {}
            None => kinds.push((event, labels.collect(), missing)),
        }
    }
    analysis.take(|pair| pair.measured.is_none() != pair.predicted.is_none());
    for (event, labels, missing) in kinds {
        let labels = if labels.is_empty() { String::new() } else { format!(" ({})", labels.join(", ")) };
        let register = name.to_ascii_uppercase();
        let sentence = if missing {
            format!("{register} lacks {event}{labels}.")
        } else {
            let meaning = meaning(&event);
            format!("{register} has {event}{labels}, which was not predicted{meaning}.")
        };
        findings.likely(Reason::OtherEvent, &[name], sentence);
    }
}

/// How an event that was not predicted usually comes about.
fn meaning(event: &str) -> &'static str {
    match event {
        "EV_EFI_GPT_EVENT" | "EV_EFI_GPT_EVENT2" => {
            ": the firmware boots from a disk with a partition table and measures the table"
        }
        "EV_EFI_BOOT_SERVICES_DRIVER" | "EV_EFI_RUNTIME_SERVICES_DRIVER" => {
            ": the firmware loaded a driver from outside, as the option ROM of a network card"
        }
        "EV_EFI_BOOT_SERVICES_APPLICATION" => {
            ": another program ran before or beside the image, as a boot loader"
        }
        "EV_EFI_ACTION" => ": the firmware tried another boot option or showed its menu",
        "EV_EFI_VARIABLE_BOOT" | "EV_EFI_VARIABLE_BOOT2" => ": the firmware found a further boot entry",
        "EV_EFI_VARIABLE_AUTHORITY" => ": Secure Boot checked a signature against a key",
        "EV_IPL" => ": boot loader or stub measured something passed from outside",
        "EV_EVENT_TAG" => ": boot stub or kernel measured an addition",
        "EV_PLATFORM_CONFIG_FLAGS" => ": the firmware took one more table or setting from the hypervisor",
        "EV_EFI_HANDOFF_TABLES" | "EV_EFI_HANDOFF_TABLES2" => {
            ": the firmware measures one more table of the machine"
        }
        "EV_SEPARATOR" => ": another firmware ends more of its parts",
        _ => "",
    }
}
