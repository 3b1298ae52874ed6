//! Causes in the image's half: RTMR1 (what the firmware loads) and RTMR2 (what boot stub and kernel measure).
//!
//! Both registers are judged together, because one changed section shows twice: as itself in RTMR2 and in the digest of the
//! whole image in RTMR1. A part whose register equals the reference is as predicted, whatever the log says.

use std::collections::HashMap;

use cofferdam_attest::event_log::{Event, Register};
use cofferdam_attest::reference::{Boot, BootPlatform, Cause, ImageReference, Reason};

use super::align::Pair;
use super::{Analysis, Findings, LogState, Status, label};

/// Most names that one sentence lists.
const MAX_NAMES: usize = 8;

/// What is known about one part of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Same,
    Changed(Register),
    Missing,
    /// The log of its register cannot be used.
    Unknown,
}

/// The sections in the order in which they were measured: name and digest of the contents.
type Sections<'a> = Vec<(&'a str, Register)>;

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

    /// Other sections, or in another order: the boot stub decides both. Whether that is so.
    fn structure(&mut self, findings: &mut Findings) -> bool {
        if !self.two.usable() {
            return false;
        }
        let tags = tags(&self.two);
        let measured: Vec<&str> = contents(&self.two, &tags).into_iter().map(|section| section.0).collect();
        let predicted: Vec<&str> =
            predicted_contents(&self.two).into_iter().map(|section| section.0).collect();
        if measured == predicted {
            return false;
        }
        if measured.is_empty() && self.part(&Cause::Uki) != Part::Same {
            let sentence = "No section of an image was measured (RTMR2) and another program started (RTMR1): this is no \
                            unified kernel image, or its stub does not measure.";
            self.two.take(|pair| section_of(pair).is_some());
            self.one.take(|pair| is(pair, &Cause::Uki) || is(pair, &Cause::Kernel));
            findings.likely(Reason::OtherImage, &["rtmr1", "rtmr2"], sentence.to_owned());
            return true;
        }
        let extra: Vec<&str> = measured.iter().filter(|name| !predicted.contains(name)).copied().collect();
        let gone: Vec<&str> = predicted.iter().filter(|name| !measured.contains(name)).copied().collect();
        let mut what = Vec::new();
        if !extra.is_empty() {
            what.push(format!("measured {} in addition", list(&extra)));
        }
        if !gone.is_empty() {
            what.push(format!("did not measure {}", list(&gone)));
        }
        if what.is_empty() {
            what.push("measured the same sections in another order".to_owned());
        }
        let origin = match self.part(&Cause::Uki) {
            Part::Same => {
                "The image is the predicted one bit for bit, so the prediction follows another version's rules."
            }
            _ => "The image itself differs as well: it was built with another stub, or with other sections.",
        };
        let changed = self.changed_sections();
        self.two.take_at(|at, pair| {
            let tag = tags.get(at).copied().flatten().or_else(|| section_of(pair));
            tag.is_some_and(|name| !changed.contains(&name))
        });
        let mut registers = vec!["rtmr2"];
        if changed.is_empty() && self.one.take(|pair| is(pair, &Cause::Uki)) {
            registers.push("rtmr1");
        }
        let sentence = format!("The boot stub {} (RTMR2). {origin}", what.join(" and "));
        findings.likely(Reason::StubVersion, &registers, sentence);
        true
    }

    /// The sections whose contents changed, by name.
    fn changed_sections(&self) -> Vec<&'a str> {
        if !self.two.usable() {
            return Vec::new();
        }
        let measured: HashMap<&str, Register> =
            contents(&self.two, &tags(&self.two)).into_iter().rev().collect();
        let predicted = predicted_contents(&self.two).into_iter();
        predicted
            .filter(|(name, digest)| measured.get(name).is_some_and(|found| found != digest))
            .map(|(name, _)| name)
            .collect()
    }

    /// Sections with other contents, and everything that follows from them. Gives their names.
    fn sections(&mut self, findings: &mut Findings) -> Vec<&'a str> {
        let changed = self.changed_sections();
        if changed.is_empty() {
            return changed;
        }
        let all = predicted_contents(&self.two);
        let same: Vec<&str> =
            all.iter().map(|section| section.0).filter(|name| !changed.contains(name)).collect();
        let same_image = self.part(&Cause::Uki) == Part::Same;
        let tags = tags(&self.two);
        let has = |name: &str| changed.contains(&name);
        let (kernel, options, initrd) = (has(".linux"), has(".cmdline"), has(".initrd") || has(".osrel"));
        self.two.take_at(|at, pair| {
            let tag = tags.get(at).copied().flatten().or_else(|| section_of(pair));
            tag.is_some_and(|name| changed.contains(&name))
                || (options && is(pair, &Cause::CommandLine))
                || (initrd && is(pair, &Cause::Initrd))
        });
        self.one.take(|pair| is(pair, &Cause::Uki) || (kernel && is(pair, &Cause::Kernel)));
        let mut registers = vec!["rtmr2"];
        if self.one.status() == Status::Differs {
            registers.push("rtmr1");
        }
        let rest = if same.is_empty() {
            String::new()
        } else {
            format!("; {} {} as predicted", list(&same), if same.len() == 1 { "is" } else { "are" })
        };
        let follows = if self.one.status() == Status::Differs {
            " RTMR1 follows: it holds the digest of the whole image."
        } else {
            ""
        };
        let verb = if changed.len() == 1 { "has" } else { "have" };
        let noun = if changed.len() == 1 { "Section" } else { "Sections" };
        let sentence = format!("{noun} {} {verb} other contents (RTMR2){rest}.{follows}", list(&changed));
        if same_image {
            let sentence = format!(
                "{sentence} Yet RTMR1 says that the image is the predicted one: its stub reads it otherwise."
            );
            findings.likely(Reason::StubVersion, &registers, sentence);
            return changed;
        }
        let reason = match changed.as_slice() {
            [".cmdline"] => Reason::CommandLine,
            [".initrd"] => Reason::Initrd,
            [".linux"] | [".linux", ".uname"] | [".uname", ".linux"] => Reason::OtherKernel,
            _ => Reason::OtherImage,
        };
        findings.likely(reason, &registers, sentence);
        changed
    }

    /// The command line that the kernel received, where the image's own is as predicted.
    fn command_line(&mut self, findings: &mut Findings) {
        let Part::Changed(digest) = self.open_part(&Cause::CommandLine) else { return };
        if self.section(".cmdline") != Part::Same {
            return;
        }
        // systemd-stub measures what it is passed by itself, as the same UTF-16 text that the kernel then measures.
        let options = |event: &Event| event.event == "EV_IPL" && label::proved_text(event).is_some();
        let passed: Vec<&Event> = self.two.open().filter_map(extra).filter(|event| options(event)).collect();
        let whole = passed.iter().any(|event| event.register_digest() == digest);
        let texts: Vec<String> = passed
            .iter()
            .take(MAX_NAMES)
            .filter_map(|event| label::proved_text(event))
            .map(|text| format!("\"{}\"", label::printable(&text)))
            .collect();
        let how = match (texts.is_empty(), whole) {
            (true, _) => {
                "The log does not show the text: a stub that adds words of its own would look the same"
                    .to_owned()
            }
            (false, true) => format!("The stub measured the one it was passed: {}", texts.join(", ")),
            (false, false) => format!("The stub measured additions that it was passed: {}", texts.join(", ")),
        };
        self.two.take(|pair| is(pair, &Cause::CommandLine) || extra(pair).is_some_and(options));
        let sentence = format!(
            "The kernel received another command line (RTMR2) although section .cmdline of the image is as predicted. \
             {how}."
        );
        findings.likely(Reason::LoaderCommandLine, &["rtmr2"], sentence);
    }

    /// The initrd that the kernel received, where the image's own is as predicted.
    fn initrd(&mut self, restructured: bool, findings: &mut Findings) {
        let Part::Changed(_) = self.open_part(&Cause::Initrd) else { return };
        if self.section(".initrd") != Part::Same {
            return;
        }
        // Archives that the stub packs are measured one by one and named: "Credentials initrd".
        let archive = |event: &Event| {
            matches!(event.event.as_str(), "EV_IPL" | "EV_EVENT_TAG")
                && label::of(event).is_some_and(|label| {
                    (label.contains("initrd") && label != ".initrd") || label.ends_with(".addon.efi")
                })
        };
        let added: Vec<String> = self
            .two
            .open()
            .filter_map(extra)
            .filter(|event| archive(event))
            .filter_map(label::quoted)
            .take(MAX_NAMES)
            .collect();
        let seen = "The kernel received another initrd (RTMR2) although section .initrd of the image is as predicted";
        self.two.take(|pair| is(pair, &Cause::Initrd) || extra(pair).is_some_and(archive));
        if !added.is_empty() {
            let sentence = format!("{seen}: the log names archives that were added, {}.", added.join(", "));
            findings.likely(Reason::Initrd, &["rtmr2"], sentence);
        } else if restructured {
            let sentence = format!("{seen}: another stub also adds other files of its own.");
            findings.likely(Reason::StubVersion, &["rtmr2"], sentence);
        } else if matches!(self.open_part(&Cause::Uki), Part::Changed(_)) {
            self.one.take(|pair| is(pair, &Cause::Uki));
            let sentence = format!(
                "{seen}, and the image has another digest (RTMR1) with the same sections: another stub, which adds \
                 other files of its own."
            );
            findings.likely(Reason::StubVersion, &["rtmr1", "rtmr2"], sentence);
        } else {
            let sentence = format!("{seen}: something was appended to it, or it was replaced.");
            findings.likely(Reason::Initrd, &["rtmr2"], sentence);
        }
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
            let sentence = format!("{seen}: QEMU before 10.2 rewrites the header of what -kernel starts.");
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
    fn part(&self, cause: &Cause) -> Part {
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
    fn open_part(&self, cause: &Cause) -> Part {
        let analysis = if matches!(cause, Cause::Uki | Cause::Kernel) { &self.one } else { &self.two };
        if analysis.usable() && !analysis.open().any(|pair| is(pair, cause)) {
            return Part::Same;
        }
        self.part(cause)
    }

    /// What is known about a section's contents.
    fn section(&self, name: &str) -> Part {
        if self.two.status() == Status::Equal {
            return Part::Same;
        }
        if !self.two.usable() {
            return Part::Unknown;
        }
        let find = |sections: Sections<'a>| sections.into_iter().find(|(known, _)| *known == name);
        let measured = find(contents(&self.two, &tags(&self.two)));
        match (measured, find(predicted_contents(&self.two))) {
            (Some((_, found)), Some((_, wanted))) if found == wanted => Part::Same,
            (Some((_, found)), _) => Part::Changed(found),
            _ => Part::Missing,
        }
    }
}

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
        "EV_SEPARATOR" => ": another firmware ends more of its parts",
        _ => "",
    }
}

/// For each row the section of the image that the measured event is about. Names are recognised by their digests; the
/// event behind a name is the contents.
fn tags(analysis: &Analysis<'_>) -> Vec<Option<&'static str>> {
    let names: HashMap<Register, &'static str> = label::section_names().into_iter().collect();
    let mut open = None;
    let mut out = Vec::with_capacity(analysis.pairs.len());
    for pair in &analysis.pairs {
        let Some((_, event)) = pair.measured else {
            out.push(None);
            continue;
        };
        match names.get(&event.register_digest()) {
            Some(name) => {
                open = Some(*name);
                out.push(open);
            }
            None => out.push(open.take().filter(|_| event.event == "EV_IPL")),
        }
    }
    out
}

/// The sections in the order in which they were measured.
fn contents<'a>(analysis: &Analysis<'a>, tags: &[Option<&'static str>]) -> Sections<'a> {
    let mut last = None;
    let mut out = Sections::new();
    for (pair, tag) in analysis.pairs.iter().zip(tags) {
        let Some((_, event)) = pair.measured else { continue };
        if let Some(name) = tag.filter(|_| last == *tag) {
            out.push((name, event.register_digest()));
            last = None;
        } else {
            last = *tag;
        }
    }
    out
}

/// The sections in the order in which they were predicted.
fn predicted_contents<'a>(analysis: &Analysis<'a>) -> Sections<'a> {
    let predicted = analysis.pairs.iter().filter_map(|pair| pair.predicted);
    let contents = predicted.filter_map(|(_, event)| match &event.cause {
        Cause::SectionContents(name) => Some((name.as_str(), event.digest)),
        _ => None,
    });
    contents.collect()
}

/// The section that the predicted event of a row is about.
fn section_of<'a>(pair: &Pair<'a>) -> Option<&'a str> {
    match &pair.predicted?.1.cause {
        Cause::SectionName(name) | Cause::SectionContents(name) => Some(name),
        _ => None,
    }
}

/// Whether the row's predicted event has this cause.
fn is(pair: &Pair<'_>, cause: &Cause) -> bool {
    pair.predicted.is_some_and(|(_, event)| event.cause == *cause)
}

/// A measured event that was not predicted.
fn extra<'a>(pair: &Pair<'a>) -> Option<&'a Event> {
    pair.predicted.is_none().then_some(pair.measured?.1)
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

fn list(names: &[&str]) -> String {
    let mut shown: Vec<String> = names.iter().take(MAX_NAMES).map(|name| label::printable(name)).collect();
    if names.len() > MAX_NAMES {
        shown.push("...".to_owned());
    }
    match shown.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => shown.concat(),
    }
}
