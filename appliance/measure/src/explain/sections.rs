//! Causes that show in the sections of the image, which the boot stub measures into RTMR2: other sections, other contents.
//!
//! A section is recognised by the digest of its name, which is measured before its contents; the log's words are not needed.

use std::collections::HashMap;

use cofferdam_attest::event_log::Register;
use cofferdam_attest::reference::{Cause, Reason};

use super::align::Pair;
use super::analysis::Analysis;
use super::findings::Findings;
use super::image::{MAX_NAMES, Part, Rules, extra, is, list};
use super::{Status, label};

/// The sections in the order in which they were measured: name and digest of the contents.
type Sections<'a> = Vec<(&'a str, Register)>;

impl<'a> Rules<'a> {
    /// Other sections, or in another order. A predicted image has the predicted stub, which measures the predicted sections:
    /// then it is something else that extended the register.
    pub(super) fn structure(&mut self, findings: &mut Findings) {
        if !self.two.usable() {
            return;
        }
        let tags = tags(&self.two);
        let measured: Vec<&str> = contents(&self.two, &tags).into_iter().map(|section| section.0).collect();
        let predicted: Vec<&str> =
            predicted_contents(&self.two).into_iter().map(|section| section.0).collect();
        if measured == predicted || self.part(&Cause::Uki) == Part::Same {
            return;
        }
        if measured.is_empty() {
            return self.no_sections(findings);
        }
        let extra: Vec<&str> = measured.iter().filter(|name| !predicted.contains(name)).copied().collect();
        let gone: Vec<&str> = predicted.iter().filter(|name| !measured.contains(name)).copied().collect();
        let changed = self.changed_sections();
        self.two.take_at(|at, pair| {
            let tag = tags.get(at).copied().flatten().or_else(|| section_of(pair));
            tag.is_some_and(|name| !changed.contains(&name))
        });
        let mut registers = vec!["rtmr2"];
        if changed.is_empty() && self.one.take(|pair| is(pair, &Cause::Uki)) {
            registers.push("rtmr1");
        }
        self.initrd_follows =
            extra.iter().any(|name| PACKED.contains(name)) || gone.iter().any(|name| PACKED.contains(name));
        if gone.contains(&".cmdline") {
            self.two.take(|pair| is(pair, &Cause::CommandLine));
        }
        let what = structure_in_words(&extra, &gone, measured.len() != predicted.len());
        let sentence = format!("The boot stub {what} (RTMR2)");
        if changed.contains(&".sbat") {
            self.initrd_follows = true;
            let sentence = format!("{sentence}, and .sbat, which names versions, has other contents.");
            findings.likely(Reason::StubVersion, &registers, sentence);
        } else if gone == [".uname", ".sbat"] {
            let sentence =
                format!("{sentence}: other stubs leave these out, and an image without them looks the same.");
            findings.likely(Reason::Tampered, &registers, sentence);
        } else if extra.is_empty() == gone.is_empty() {
            findings.likely(
                Reason::Tampered,
                &registers,
                format!("{sentence}, and the image has another digest (RTMR1)."),
            );
        } else {
            let reason = if gone.is_empty() { Reason::SectionAdded } else { Reason::SectionRemoved };
            let follows = if self.initrd_follows {
                " The initrd that the kernel received follows from it."
            } else {
                ""
            };
            let sentence = format!("{sentence}, and the image has another digest (RTMR1).{follows}");
            findings.likely(reason, &registers, sentence);
        }
    }

    /// Something else than an image of ours was started: all of RTMR2 is its own.
    fn no_sections(&mut self, findings: &mut Findings) {
        let measured: Vec<String> =
            self.two.open().filter_map(extra).filter_map(label::quoted).take(MAX_NAMES).collect();
        let words = if measured.is_empty() {
            String::new()
        } else {
            format!(" It measured {}.", measured.join(", "))
        };
        self.two.take(|_| true);
        self.one.take(|pair| is(pair, &Cause::Uki) || is(pair, &Cause::Kernel));
        let sentence = format!(
            "No section of an image was measured (RTMR2) and the image was not started (RTMR1): this is no unified \
             kernel image, or its stub does not measure.{words}"
        );
        findings.likely(Reason::OtherImage, &["rtmr1", "rtmr2"], sentence);
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

    /// Sections with other contents, and everything that follows from them. A predicted image holds the predicted sections:
    /// nothing known explains that its stub measured others.
    pub(super) fn sections(&mut self, findings: &mut Findings) {
        let changed = self.changed_sections();
        if changed.is_empty() || self.part(&Cause::Uki) == Part::Same {
            return;
        }
        let all = predicted_contents(&self.two);
        let same: Vec<&str> =
            all.iter().map(|section| section.0).filter(|name| !changed.contains(name)).collect();
        let tags = tags(&self.two);
        let has = |name: &str| changed.contains(&name);
        let (kernel, options, initrd) = (has(".linux"), has(".cmdline"), has(".initrd") || has(".osrel"));
        let same_kernel = self.part(&Cause::Kernel) == Part::Same;
        self.two.take_at(|at, pair| {
            let tag = tags.get(at).copied().flatten().or_else(|| section_of(pair));
            tag.is_some_and(|name| changed.contains(&name))
                || (options && is(pair, &Cause::CommandLine))
                || (initrd && is(pair, &Cause::Initrd))
        });
        // Some stubs start the kernel without the firmware, which then measures nothing of it.
        let unmeasured = has(".sbat") && self.part(&Cause::Kernel) == Part::Missing;
        let of_kernel = |pair: &Pair<'_>| (kernel || unmeasured) && is(pair, &Cause::Kernel);
        self.one.take(|pair| is(pair, &Cause::Uki) || of_kernel(pair));
        let mut registers = vec!["rtmr2"];
        let mut follows = "";
        if self.one.status() == Status::Differs {
            registers.push("rtmr1");
            follows = " RTMR1 follows: it holds the digest of the whole image.";
        }
        if unmeasured {
            follows = " RTMR1 follows: it holds the digest of the whole image, and none of the kernel, which this stub starts \
                       without the firmware.";
        }
        let rest = if same.is_empty() {
            String::new()
        } else {
            format!("; {} {} as predicted", list(&same), if same.len() == 1 { "is" } else { "are" })
        };
        let (noun, verb) = if changed.len() == 1 { ("Section", "has") } else { ("Sections", "have") };
        let received = options && self.part(&Cause::CommandLine) == Part::Same;
        let checksum = kernel && same_kernel;
        let more = if received {
            " The command line that the kernel received is as predicted: only what ends the text differs."
        } else if checksum {
            " Yet the firmware's digest of the kernel is as predicted (RTMR1), which leaves out its PE checksum and its \
             certificates."
        } else {
            ""
        };
        let sentence =
            format!("{noun} {} {verb} other contents (RTMR2){rest}.{more}{follows}", list(&changed));
        // Another stub hands over other files of its own.
        self.initrd_follows |= has(".sbat");
        let reason = match changed.as_slice() {
            [".cmdline"] => Reason::CommandLine,
            [".initrd"] => Reason::Initrd,
            // It lists the generations of the programs in the image, and all of those but the stub's are as predicted.
            [".sbat"] => Reason::StubVersion,
            [".linux"] if checksum => Reason::Checksum,
            [".linux"] | [".linux", ".uname"] | [".uname", ".linux"] => Reason::OtherKernel,
            _ => Reason::OtherImage,
        };
        findings.likely(reason, &registers, sentence);
    }

    /// What is known about a section's contents.
    pub(super) fn section(&self, name: &str) -> Part {
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

/// Sections out of which the stub makes files for the initrd, or which it puts before it.
const PACKED: [&str; 5] = [".osrel", ".ucode", ".pcrpkey", ".pcrsig", ".profile"];

/// What was measured in addition, not at all, or in another order.
fn structure_in_words(extra: &[&str], gone: &[&str], again: bool) -> String {
    let mut what = Vec::new();
    if !extra.is_empty() {
        what.push(format!("measured {} in addition", list(extra)));
    }
    if !gone.is_empty() {
        what.push(format!("did not measure {}", list(gone)));
    }
    if what.is_empty() {
        let how = if again { "another number of times" } else { "in another order" };
        what.push(format!("measured the same sections {how}"));
    }
    what.join(" and ")
}

/// For each row the section of the image that the measured event is about. Names are recognised by their digests; the
/// event behind a name is the contents.
pub(super) fn tags(analysis: &Analysis<'_>) -> Vec<Option<&'static str>> {
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
pub(super) fn contents<'a>(analysis: &Analysis<'a>, tags: &[Option<&'static str>]) -> Sections<'a> {
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
pub(super) fn section_of<'a>(pair: &Pair<'a>) -> Option<&'a str> {
    match &pair.predicted?.1.cause {
        Cause::SectionName(name) | Cause::SectionContents(name) => Some(name),
        _ => None,
    }
}
