//! Causes in the image's half: RTMR1 (what the firmware loads) and RTMR2 (what boot stub and kernel measure).
//!
//! Both registers are judged together, because one changed section shows twice: as itself in RTMR2 and in the digest of the
//! whole image in RTMR1; [`super::sections`] and [`super::handed`] hold the rules for RTMR2, [`super::started`] those for how the image
//! was started. A part whose register equals the reference is as predicted, whatever the log says.
//!
//! An image with another digest has another stub for all we know, which may measure into RTMR2 what it likes: whatever RTMR2 then
//! shows is likely at most. An image with the predicted digest has the predicted stub, so no rule blames that.

use cofferdam_attest::event_log::{Event, Register};
use cofferdam_attest::reference::{Boot, BootPlatform, Cause, ImageReference, Reason};

use super::align::Pair;
use super::analysis::{Analysis, LogState};
use super::candidate::Candidate;
use super::events::other_events;
use super::findings::{Findings, Proof};
use super::{Status, label, loaded};

/// Most names that one sentence lists.
pub(super) const MAX_NAMES: usize = 8;

/// What is known about one part of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Same,
    Changed(Register),
    Missing,
    /// The log of its register cannot be used.
    Unknown,
}

pub(super) struct Rules<'a> {
    pub(super) boot: Option<(&'a ImageReference, &'a Boot)>,
    /// The image that the machine was started with, where somebody has it.
    pub(super) candidate: Option<&'a Candidate>,
    pub(super) one: Analysis<'a>,
    pub(super) two: Analysis<'a>,
    /// An addon was loaded.
    pub(super) added: bool,
    /// Sections that are there in addition or missing change the initrd that the kernel receives.
    pub(super) initrd_follows: bool,
}

impl<'a> Rules<'a> {
    /// Whether the reference is for this kind of machine. `unfit` says that no half fits what the chain proves.
    pub(super) fn boot_platform(&mut self, unfit: bool, simulated: Option<bool>, findings: &mut Findings) {
        let Some((_, boot)) = self.boot else { return };
        let separator = |pair: &Pair<'_>| {
            let measured = pair.measured.is_some_and(|(_, event)| event.event == "EV_SEPARATOR");
            let predicted = pair.predicted.is_some_and(|(_, event)| event.cause == Cause::Separator);
            measured || predicted
        };
        let predicted =
            self.one.pairs.iter().filter(|pair| pair.predicted.is_some() && separator(pair)).count();
        let measured =
            self.one.pairs.iter().filter(|pair| pair.measured.is_some() && separator(pair)).count();
        let (wanted, other) = match boot.platform {
            BootPlatform::Tdx => ("a trust domain", "the simulated device"),
            BootPlatform::Simulator => ("the simulated device", "a trust domain"),
        };
        if unfit {
            let proved = match simulated {
                Some(true) => "the simulated device",
                _ => "hardware",
            };
            let sentence = format!(
                "The evidence's certificate chain is that of {proved}, and the only reference values given are for \
                 {wanted}."
            );
            findings.proved(findings.proof.chain, Reason::BootPlatform, &["rtmr1"], sentence);
        }
        // One separator per register (TDVF) or per PCR (firmware with a TPM, five of which are RTMR1).
        let shape = match boot.platform {
            BootPlatform::Tdx => predicted == 1 && measured == 5,
            BootPlatform::Simulator => predicted == 5 && measured == 1,
        };
        if self.one.usable() && shape {
            self.one.take(|pair| separator(pair) && (pair.measured.is_none() || pair.predicted.is_none()));
            if unfit {
                return;
            }
            let sentence = format!(
                "RTMR1's log has {measured} separators where {predicted} were predicted, as {other} measures them; the \
                 reference is for {wanted}."
            );
            findings.likely(Reason::BootPlatform, &["rtmr1"], sentence);
        }
    }

    pub(super) fn apply(&mut self, findings: &mut Findings) {
        if self.one.status() != Status::Differs && self.two.status() != Status::Differs {
            return;
        }
        let known = self.booted(findings);
        let bare = self.bare_kernel(findings);
        self.moved(findings);
        if bare {
            return self.others(findings);
        }
        self.listed(findings);
        if !known {
            self.structure(findings);
            self.sections(findings);
        }
        self.addons(findings);
        self.command_line(findings);
        self.initrd(findings);
        if !known {
            self.image_alone(findings);
        }
        self.others(findings);
    }

    /// Digests that the reference lists as coming about in a certain way. What the hypervisor does to a kernel has a rule of its own,
    /// and so has the initrd of an image without `.osrel`.
    fn listed(&mut self, findings: &mut Findings) {
        let Some((image, _)) = self.boot else { return };
        for alternative in &image.alternatives {
            if alternative.reason == Reason::QemuHeaderPatching
                || (&alternative.of, alternative.reason) == (&Cause::Initrd, Reason::SectionRemoved)
            {
                continue;
            }
            let loaded = matches!(alternative.of, Cause::Uki | Cause::Kernel);
            let Proof { firmware, boot, .. } = findings.proof;
            let analysis = if loaded { &mut self.one } else { &mut self.two };
            let name = analysis.name();
            let hit = analysis.take(|pair| {
                is(pair, &alternative.of)
                    && pair.measured.is_some_and(|(_, event)| event.register_digest() == alternative.digest)
            });
            if hit {
                let of = label::printable(&alternative.of.to_string());
                let why = known(alternative.reason);
                let sentence = format!(
                    "What was measured for \"{of}\" is exactly what the reference lists for this case: {why}."
                );
                findings.proved(if loaded { firmware } else { boot }, alternative.reason, &[name], sentence);
            }
        }
    }

    /// The image as a whole differs, and none of its measured sections is known to.
    fn image_alone(&mut self, findings: &mut Findings) {
        let image = matches!(self.open_part(&Cause::Uki), Part::Changed(_));
        let kernel = matches!(self.open_part(&Cause::Kernel), Part::Changed(_));
        // A predicted image starts the predicted kernel: nothing known explains that it does not.
        if !image {
            return;
        }
        let hint = self.length_hint();
        let linux = self.section(".linux");
        self.one.take(|pair| is(pair, &Cause::Uki) || (kernel && is(pair, &Cause::Kernel)));
        let what = if kernel {
            "The image and the kernel inside it have other digests (RTMR1)"
        } else {
            "The image has another digest, its kernel the predicted one (RTMR1)"
        };
        if linux != Part::Same {
            let sentence =
                format!("{what}. RTMR2 cannot say which of its sections changed.{}", hint.sentence);
            findings.likely(Reason::Tampered, &["rtmr1"], sentence);
            return;
        }
        let seen =
            format!("{what}, yet every section that the stub says it measured is as predicted (RTMR2)");
        if kernel {
            let sentence = format!("{seen}: the stub started another kernel than it says.");
            findings.likely(Reason::Tampered, &["rtmr1"], sentence);
        } else if hint.overlay {
            let sentence = format!("{seen}.{}", hint.sentence);
            findings.likely(Reason::Overlay, &["rtmr1"], sentence);
        } else {
            let sentence = format!(
                "{seen}: the stub's own code, the headers, where the sections lie, or bytes that no stub measures.{}",
                hint.sentence
            );
            findings.likely(Reason::Tampered, &["rtmr1"], sentence);
        }
    }

    /// What the length of the image's file says, which the firmware logs and does not measure.
    fn length_hint(&self) -> LengthHint {
        let wanted = self.boot.and_then(|(image, _)| image.length);
        let row = self.one.pairs.iter().find(|pair| is(pair, &Cause::Uki));
        let found = row.and_then(|pair| pair.measured).and_then(|(_, event)| loaded::length(event));
        let (Some(wanted), Some(found)) = (wanted, found) else { return LengthHint::default() };
        let longer = found.saturating_sub(wanted);
        // The last section of an image ends at a multiple of this.
        let overlay = longer % FILE_ALIGNMENT != 0;
        let sentence = if overlay {
            format!(
                " The log says that its file is {longer} bytes longer, which no section can be: they follow the last one."
            )
        } else if longer > 0 {
            format!(
                " The log says that its file is {longer} bytes longer: one more section, or bytes behind the last one."
            )
        } else if found < wanted {
            format!(" The log says that its file is {} bytes shorter.", wanted.saturating_sub(found))
        } else {
            " The log says that its file has the same length: bytes were changed in place.".to_owned()
        };
        LengthHint { overlay, sentence }
    }

    /// Events too many or too few that nothing above accounts for.
    fn others(&mut self, findings: &mut Findings) {
        for analysis in [&mut self.one, &mut self.two] {
            other_events(analysis, findings);
        }
    }

    /// What is known about the part that this cause stands for.
    pub(super) fn part(&self, cause: &Cause) -> Part {
        let analysis = if matches!(cause, Cause::Uki | Cause::Kernel) { &self.one } else { &self.two };
        match analysis.status() {
            Status::Equal => return Part::Same,
            Status::Differs if analysis.log == LogState::Replays => {}
            _ => return Part::Unknown,
        }
        let elsewhere = |digest| {
            let mut measured = analysis.pairs.iter().filter_map(|pair| pair.measured);
            measured.any(|(_, event)| event.register_digest() == digest)
        };
        match analysis.pairs.iter().find(|pair| is(pair, cause)) {
            Some(Pair { predicted: Some((_, event)), .. }) if elsewhere(event.digest) => Part::Same,
            Some(Pair { measured: Some((_, event)), .. }) => Part::Changed(event.register_digest()),
            _ => Part::Missing,
        }
    }

    /// Like [`Self::part`]; what a rule accounted for already counts as the same.
    pub(super) fn open_part(&self, cause: &Cause) -> Part {
        let analysis = if matches!(cause, Cause::Uki | Cause::Kernel) { &self.one } else { &self.two };
        if analysis.usable() && !analysis.open().any(|pair| is(pair, cause)) {
            return Part::Same;
        }
        self.part(cause)
    }
}

/// Sections of a PE image lie at multiples of at least this in the file (PE format: `FileAlignment`).
const FILE_ALIGNMENT: u64 = 512;

/// What the length of a file suggests.
#[derive(Default)]
struct LengthHint {
    /// There are bytes that belong to no section.
    overlay: bool,
    /// A sentence with a space before it; empty where nothing is known.
    sentence: String,
}

/// A measured event that was not predicted.
pub(super) fn extra<'a>(pair: &Pair<'a>) -> Option<&'a Event> {
    pair.predicted.is_none().then_some(pair.measured?.1)
}

/// Whether the row's predicted event has this cause.
pub(super) fn is(pair: &Pair<'_>, cause: &Cause) -> bool {
    pair.predicted.is_some_and(|(_, event)| event.cause == *cause)
}

/// How a digest of a known alternative comes about.
pub(super) fn known(reason: Reason) -> &'static str {
    match reason {
        Reason::QemuHeaderPatching => {
            "QEMU before 10.2 rewrote the kernel's setup header, as it does with -kernel"
        }
        Reason::StubVersion => "another version of systemd-stub",
        Reason::PageAddOrder => "the hypervisor added the firmware's pages in another order",
        Reason::LowMemory => "memory laid out as on a machine on the other side of 2.75 GiB",
        Reason::CpuCount => "the machine has another number of processors",
        Reason::CommandLine | Reason::LoaderCommandLine => "another command line",
        Reason::Initrd => "another initrd",
        Reason::FirmwareBuild => "another build of the firmware",
        _ => "a known variant",
    }
}

pub(super) fn list(names: &[&str]) -> String {
    let mut shown: Vec<String> = names.iter().take(MAX_NAMES).map(|name| label::printable(name)).collect();
    if names.len() > MAX_NAMES {
        shown.push("...".to_owned());
    }
    match shown.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => shown.concat(),
    }
}
