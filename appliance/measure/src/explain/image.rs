//! Causes in the image's half: RTMR1 (what the firmware loads) and RTMR2 (what boot stub and kernel measure).
//!
//! Both registers are judged together, because one changed section shows twice: as itself in RTMR2 and in the digest of the
//! whole image in RTMR1; [`super::sections`] and [`super::handed`] hold the rules for RTMR2. A part whose register equals the reference is as predicted, whatever the log says.

use cofferdam_attest::event_log::Register;
use cofferdam_attest::reference::{Boot, BootPlatform, Cause, ImageReference, Reason};

use super::align::Pair;
use super::analysis::{Analysis, LogState};
use super::events::other_events;
use super::findings::Findings;
use super::sections::{contents, section_of, tags};
use super::{Status, label};

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
    boot: Option<(&'a ImageReference, &'a Boot)>,
    pub(super) one: Analysis<'a>,
    pub(super) two: Analysis<'a>,
}

impl<'a> Rules<'a> {
    pub(super) fn new(
        boot: Option<(&'a ImageReference, &'a Boot)>,
        one: Analysis<'a>,
        two: Analysis<'a>,
    ) -> Self {
        Self { boot, one, two }
    }

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
            findings.certain(Reason::BootPlatform, &["rtmr1"], sentence);
        }
        // One separator per register (TDVF) or per PCR (firmware with a TPM, five of which are RTMR1).
        let shape = match boot.platform {
            BootPlatform::Tdx => predicted == 1 && measured == 5,
            BootPlatform::Simulator => predicted == 5 && measured == 1,
        };
        if self.one.usable() && shape {
            self.one.take(|pair| separator(pair) && (pair.measured.is_none() || pair.predicted.is_none()));
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
        let patched = self.alternatives(findings);
        if self.bare_kernel(patched, findings) {
            return self.others(findings);
        }
        let restructured = self.structure(findings);
        let changed = self.sections(findings);
        self.command_line(findings);
        self.initrd(restructured, findings);
        if changed.is_empty() {
            self.image_alone(findings);
        }
        self.others(findings);
    }

    /// Digests that are known to come about in a certain way. Whether one is that of a kernel that QEMU patched.
    fn alternatives(&mut self, findings: &mut Findings) -> bool {
        let mut patched = false;
        let Some((image, _)) = self.boot else { return patched };
        for alternative in &image.alternatives {
            for analysis in [&mut self.one, &mut self.two] {
                let name = analysis.name();
                let hit = analysis.take(|pair| match (pair.measured, pair.predicted) {
                    (Some((_, measured)), Some((_, predicted))) => {
                        predicted.cause == alternative.of && measured.register_digest() == alternative.digest
                    }
                    _ => false,
                });
                if hit {
                    patched |= alternative.reason == Reason::QemuHeaderPatching;
                    let of = label::printable(&alternative.of.to_string());
                    let sentence = format!(
                        "What was measured for \"{of}\" is exactly what the reference lists for this case: {}.",
                        known(alternative.reason)
                    );
                    findings.certain(alternative.reason, &[name], sentence);
                }
            }
        }
        patched
    }

    /// The kernel out of the image was started without the image: then no stub measures, and command line and initrd are
    /// the host's. Whether that is so.
    fn bare_kernel(&mut self, patched: bool, findings: &mut Findings) -> bool {
        let started = patched || self.part(&Cause::Kernel) == Part::Same;
        let no_section = self.two.usable() && contents(&self.two, &tags(&self.two)).is_empty();
        if self.part(&Cause::Uki) != Part::Missing || !started || !no_section {
            return false;
        }
        self.one.take(|pair| is(pair, &Cause::Uki));
        let own = |pair: &Pair<'_>| is(pair, &Cause::CommandLine) || is(pair, &Cause::Initrd);
        let others =
            if self.two.take(own) { ", with another command line or initrd than the image's" } else { "" };
        self.two.take(|pair| section_of(pair).is_some());
        let sentence = format!(
            "The kernel out of the image was started without the image: RTMR1 holds no image, RTMR2 no sections{others}."
        );
        let reason = if patched { Reason::QemuHeaderPatching } else { Reason::OtherImage };
        findings.likely(reason, &["rtmr1", "rtmr2"], sentence);
        true
    }

    /// The image as a whole differs, and none of its measured sections is known to.
    fn image_alone(&mut self, findings: &mut Findings) {
        let image = matches!(self.open_part(&Cause::Uki), Part::Changed(_));
        let kernel = matches!(self.open_part(&Cause::Kernel), Part::Changed(_));
        if !image && !kernel {
            return;
        }
        let disk = self
            .one
            .pairs
            .iter()
            .filter_map(|pair| pair.measured)
            .any(|(_, event)| matches!(event.event.as_str(), "EV_EFI_GPT_EVENT" | "EV_EFI_GPT_EVENT2"));
        let linux = self.section(".linux");
        self.one.take(|pair| is(pair, &Cause::Uki) || is(pair, &Cause::Kernel));
        let what = match (image, kernel) {
            (true, true) => "The image and the kernel inside it have other digests (RTMR1)",
            (true, false) => "The image has another digest, its kernel the predicted one (RTMR1)",
            (false, _) => "The kernel has another digest, the image around it the predicted one (RTMR1)",
        };
        if linux != Part::Same {
            let sentence = format!("{what}. RTMR2 cannot say which of its sections changed.");
            findings.likely(Reason::OtherImage, &["rtmr1"], sentence);
            return;
        }
        let seen = format!("{what}, yet every section that the stub measured is as predicted (RTMR2)");
        if !disk {
            let sentence = format!("{seen}: older QEMU writes into the headers of what -kernel starts.");
            findings.likely(Reason::QemuHeaderPatching, &["rtmr1"], sentence);
        }
        if !kernel {
            let sentence =
                format!("{seen}: the stub's own code, or a section that it does not measure, changed.");
            findings.likely(Reason::StubVersion, &["rtmr1"], sentence);
        }
        if disk && kernel {
            let sentence = format!("{seen}, and the image came from a partitioned disk.");
            findings.likely(Reason::OtherImage, &["rtmr1"], sentence);
        }
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
        match analysis.pairs.iter().find(|pair| is(pair, cause)) {
            Some(pair) if pair.same() => Part::Same,
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
        Reason::StubVersion => "another version of systemd-stub handed over what it adds to the initrd",
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
