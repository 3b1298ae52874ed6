//! Causes that show in the sections of the image, which the boot stub measures into RTMR2: other sections, other contents.
//!
//! A section is recognised by the digest of its name, which is measured before its contents; the log's words are not needed.

use std::collections::HashMap;

use cofferdam_attest::event_log::Register;
use cofferdam_attest::reference::{Cause, Reason};

use super::align::Pair;
use super::analysis::Analysis;
use super::findings::Findings;
use super::handed::extra;
use super::image::{MAX_NAMES, Part, Rules, is, list};
use super::{Status, label};

/// The sections in the order in which they were measured: name and digest of the contents.
type Sections<'a> = Vec<(&'a str, Register)>;

impl<'a> Rules<'a> {
    /// Other sections, or in another order: the boot stub decides both. Whether that is so.
    pub(super) fn structure(&mut self, findings: &mut Findings) -> bool {
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
            self.no_sections(findings);
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
            let again = measured.len() != predicted.len();
            let how = if again { "another number of times" } else { "in another order" };
            what.push(format!("measured the same sections {how}"));
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

    /// Sections with other contents, and everything that follows from them. Gives their names.
    pub(super) fn sections(&mut self, findings: &mut Findings) -> Vec<&'a str> {
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
        let text = if options && self.part(&Cause::CommandLine) == Part::Same {
            " The command line that the kernel received is as predicted: only what ends the text differs."
        } else {
            ""
        };
        let sentence =
            format!("{noun} {} {verb} other contents (RTMR2){rest}.{text}{follows}", list(&changed));
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
            // It lists the generations of the programs in the image, and all of those but the stub's are as predicted.
            [".sbat"] => Reason::StubVersion,
            [".linux"] | [".linux", ".uname"] | [".uname", ".linux"] => Reason::OtherKernel,
            _ => Reason::OtherImage,
        };
        findings.likely(reason, &registers, sentence);
        changed
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
