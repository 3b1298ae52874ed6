//! Why registers differ from their reference values, in words that say what to do.
//!
//! Responsible for setting the measured event log beside the predicted events, register by register, for naming the first
//! divergence, and for inferring likely causes with the evidence for each. It never decides whether anything is
//! trusted: [`cofferdam_attest::appraise`] does, and a mismatch stays a mismatch whatever explains it.
//!
//! How sure a cause is, is said with it. It is *certain* only where the evidence proves it: a verified chain for MRTD, a known
//! MRTD besides for what firmware measures (RTMR0, RTMR1), and RTMR1 as predicted besides for what boot stub and kernel
//! measure (RTMR2), since another image measures what it likes. Everything else is *likely*, and what nothing explains is listed as
//! such. The words are *tampered or another build* where an image differs and nothing measured says in what.
//!
//! What an explanation cannot know:
//! - The log is believed only as far as it replays to the quote's register. Where it does not, no event is named.
//! - A replay proves the order of the digests. What the log says *about* an event (its type, its data) is not measured
//!   by itself; sections of the image are recognised by the digests of their names, other labels are the log's words.
//! - With an unknown MRTD, unknown firmware measured everything else and may have measured anything. The same holds for the
//!   `machine` event of RTMR3 when RTMR1 or RTMR2 differ: then an unknown program wrote it.
//! - MRTD has no log, so nothing says *what* of a firmware differs, only whether the value is known.
//! - Digests cannot be reversed: that a section changed is seen, not what is in it.

use cofferdam_attest::event_log::payload::{Machine, Payload as _};
use cofferdam_attest::event_log::{self, Event, MAX_EVENTS};
use cofferdam_attest::quote::{Quote, attributes};
use cofferdam_attest::reference::{
    Boot, BootPlatform, BootSource, ImageReference, PlatformReference, Reason, ReferenceValues,
};
use serde::Serialize;

mod align;
mod analysis;
mod candidate;
mod events;
mod findings;
mod handed;
mod image;
mod label;
mod loaded;
mod platform;
mod render;
mod sections;
mod started;

use analysis::{Analysis, Predicted};
pub use candidate::Candidate;
use findings::{Findings, Proof};

/// Most rows of a register's comparison; a boot measures fewer than 30 events into one register.
const MAX_ROWS: usize = 40;
/// Most causes in a failure message.
const MAX_SUMMARY: usize = 3;
/// Longest of its lines in characters; the explanation itself has the rest.
const MAX_SUMMARY_LINE: usize = 400;
/// Most causes and unexplained differences that are listed.
const MAX_LISTED: usize = 16;

/// What differs and why; [`std::fmt::Display`] renders it as text of at most 100 columns, ASCII without colours. In the
/// tables `>` marks the first divergence, then `!` another digest, `+` an event too many and `-` one that is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The image half that was compared: name, release and way of booting.
    pub image: Option<String>,
    /// The platform half that was compared.
    pub platform: Option<String>,
    /// MRTD, RTMR0, RTMR1, RTMR2.
    pub registers: Vec<RegisterComparison>,
    /// Why they may differ, the surest first.
    pub causes: Vec<LikelyCause>,
    /// Differences that nothing known explains.
    pub unexplained: Vec<String>,
    /// What limits the explanation.
    pub notes: Vec<String>,
}

/// One register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RegisterComparison {
    /// `mrtd`, `rtmr0`, `rtmr1`, `rtmr2`.
    pub name: &'static str,
    /// What the comparison says.
    pub status: Status,
    /// The quote's value, 96 hex digits.
    pub measured: String,
    /// Reference values, 96 hex digits each; MRTD has one per page-add order.
    pub expected: Vec<String>,
    /// The first divergence in words, or why no event can be named.
    pub first_divergence: Option<String>,
    /// The logs side by side, when the register differs and the log is believed.
    pub rows: Vec<Row>,
    /// Rows that were left out.
    pub omitted_rows: usize,
}

/// What the comparison of a register says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// As predicted.
    Equal,
    /// As far as it is predicted, the events are there; the rest is not determined.
    PartlyPredicted,
    /// Another value.
    Differs,
    /// Nothing to compare with.
    NoReference,
}

/// One row of two logs side by side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What the row says.
    pub mark: Mark,
    /// What was measured.
    pub measured: Option<Side>,
    /// What was predicted.
    pub predicted: Option<Side>,
}

/// What a row says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// As predicted.
    Same,
    /// Another digest.
    Changed,
    /// Measured, not predicted.
    Extra,
    /// Predicted, not measured.
    Missing,
}

/// One event of one log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Side {
    /// Position among the register's events, from 1.
    pub index: usize,
    /// Its type, `EV_…`.
    pub event: String,
    /// What produces it, or what the log calls it; printable ASCII.
    pub label: Option<String>,
    /// The first 12 hex digits of its digest.
    pub digest: String,
}

/// How sure a cause is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Certainty {
    /// The evidence proves it.
    Certain,
    /// Inferred from which events differ.
    Likely,
}

/// One reason with its evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LikelyCause {
    /// Which.
    pub reason: Reason,
    /// How sure.
    pub certainty: Certainty,
    /// Registers that differ for it.
    pub registers: Vec<&'static str>,
    /// Why we think so.
    pub sentence: String,
    /// What to do.
    pub remedy: String,
}

/// Explains how the registers of `quote` differ from `reference`. `log` is the evidence's event log with all registers;
/// `simulated` is whether a verified chain says that the TDX device is simulated, `None` without a verified chain.
#[must_use]
pub fn explain(
    reference: &ReferenceValues,
    quote: &Quote,
    log: &[Event],
    simulated: Option<bool>,
) -> Explanation {
    explain_booted(reference, quote, log, simulated, None)
}

/// Like [`explain`], where somebody has an image that the machine may have been started with.
#[must_use]
pub fn explain_booted(
    reference: &ReferenceValues,
    quote: &Quote,
    log: &[Event],
    simulated: Option<bool>,
    booted: Option<&Candidate>,
) -> Explanation {
    let [rtmr0, rtmr1, rtmr2, rtmr3] = &quote.rtmr;
    let fitting = reference.boot(simulated, (rtmr1, rtmr2), log);
    // Values for another kind of machine prove nothing, but show what is the same.
    let boot = fitting.or_else(|| reference.boot(None, (rtmr1, rtmr2), log));
    let platform = reference.platform(simulated, &quote.mrtd, rtmr0, log);
    let predicted = Predicted {
        events: boot.map(|(_, boot)| boot.events.as_slice()).unwrap_or_default(),
        alternatives: boot.map(|(image, _)| image.alternatives.as_slice()).unwrap_or_default(),
        partial: false,
    };
    let one = Analysis::new(1, rtmr1, boot.map(|(_, boot)| boot.rtmr1), log, &predicted);
    let two = Analysis::new(2, rtmr2, boot.map(|(_, boot)| boot.rtmr2), log, &predicted);
    let predicted = Predicted {
        events: platform.map(|platform| platform.events.as_slice()).unwrap_or_default(),
        alternatives: platform.map(|platform| platform.alternatives.as_slice()).unwrap_or_default(),
        partial: platform.is_some_and(|platform| platform.rtmr0.is_none()),
    };
    let zero = Analysis::new(0, rtmr0, platform.and_then(|half| half.rtmr0), log, &predicted);
    // Of a TD that is open to debugging the host may have changed everything but MRTD.
    let closed = simulated.is_some() && quote.td_attributes & attributes::DEBUG == 0;
    let firmware = closed && platform.is_some_and(|half| half.order(&quote.mrtd).is_some());
    let proof =
        Proof { chain: simulated.is_some(), firmware, boot: firmware && one.status() == Status::Equal };
    let mut findings = Findings { proof, ..Findings::default() };
    let mut image = image::Rules { boot, candidate: booted, one, two, added: false, initrd_follows: false };
    image.boot_platform(fitting.is_none(), simulated, &mut findings);
    image.apply(&mut findings);
    let machine = (log.len() <= MAX_EVENTS && event_log::replay(log, 3) == *rtmr3)
        .then(|| log.iter().filter(|event| event.mr == 3).find_map(Machine::read))
        .flatten();
    let genuine = image.one.status() == Status::Equal && image.two.status() == Status::Equal;
    let mut shape = platform::Rules { reference, platform, simulated, quote, machine, zero };
    let mrtd = shape.apply(&mut findings);
    let registers = vec![mrtd, shape.zero.comparison(), image.one.comparison(), image.two.comparison()];
    findings.note_trust(&registers, shape.machine.is_some() && !genuine);
    for analysis in [&shape.zero, &image.one, &image.two] {
        findings.leftovers(analysis);
    }
    // Other keys of Secure Boot in the predicted firmware decide what may start at all, so they come first; what is merely seen
    // comes behind what is understood.
    let same_firmware = registers.first().is_some_and(|mrtd| mrtd.status != Status::Differs);
    findings.causes.sort_by_key(|cause| {
        let keys = same_firmware && cause.reason == Reason::SecureBoot;
        (cause.certainty, !keys, cause.reason == Reason::OtherEvent)
    });
    findings.causes.truncate(MAX_LISTED);
    Explanation {
        image: boot.map(describe_image),
        platform: platform.map(describe_platform),
        registers,
        causes: findings.causes,
        unexplained: findings.unexplained,
        notes: findings.notes,
    }
}

/// The explanation in a few lines, for a failure message: each cause with why we think so. `None` when no register differs.
#[must_use]
pub fn summary(explanation: &Explanation) -> Option<String> {
    let differing: Vec<&RegisterComparison> =
        explanation.registers.iter().filter(|register| register.status == Status::Differs).collect();
    let first = differing.first()?;
    if explanation.causes.is_empty() {
        let names: Vec<&str> = differing.iter().map(|register| register.name).collect();
        let first = first.first_divergence.as_deref().unwrap_or("nothing known explains it");
        return Some(format!("{} differ: {first}", upper(&names).join(", ")));
    }
    let line = |cause: &LikelyCause| {
        let (certainty, registers) = (render::certainty(cause.certainty), upper(&cause.registers).join(", "));
        let line = format!("{certainty} cause: {} ({registers}): {}", cause.reason, cause.sentence);
        if line.len() <= MAX_SUMMARY_LINE {
            return line;
        }
        format!("{}...", line.chars().take(MAX_SUMMARY_LINE).collect::<String>())
    };
    let mut lines: Vec<String> = explanation.causes.iter().take(MAX_SUMMARY).map(line).collect();
    let others = explanation.causes.len().saturating_sub(MAX_SUMMARY);
    if others > 0 {
        lines.push(format!("and {others} more"));
    }
    Some(lines.join("\n"))
}

/// Register names as people write them.
fn upper(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_ascii_uppercase()).collect()
}

fn describe_image((image, boot): (&ImageReference, &Boot)) -> String {
    let kind = match boot.platform {
        BootPlatform::Tdx => "in a trust domain",
        BootPlatform::Simulator => "on the simulated device",
    };
    let source = match boot.source {
        BootSource::Disk => "",
        BootSource::Hypervisor => ", handed over by the hypervisor",
    };
    format!(
        "{} {} {kind}{source}",
        label::printable(&image.image.name),
        label::printable(&image.image.release)
    )
}

fn describe_platform(platform: &PlatformReference) -> String {
    let simulated = if platform.simulated { " (SIMULATED)" } else { "" };
    format!("{}{simulated}", label::printable(&platform.name))
}
