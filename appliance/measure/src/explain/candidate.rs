//! The image that a machine was started with, where somebody has the file.
//!
//! Its digest in RTMR1 proves that it was; then what differs between it and the reference's image is what differs in the
//! registers. Without it a digest says only that something in the image changed.

use std::collections::HashSet;

use cofferdam_attest::event_log::{Event, Register};
use cofferdam_attest::reference::{Cause, Reason};
use sha2::{Digest as _, Sha384};

use super::findings::Findings;
use super::image::{Rules, is};
use super::label;
use crate::difference::{Difference, differences};
use crate::pe::{Image, PeError};
use crate::uki::image_reference;

/// An image that a machine may have been started with.
#[derive(Debug, Clone)]
pub struct Candidate {
    uki: Register,
    /// What it, its stub and its kernel measure, as far as that follows from its bytes.
    digests: HashSet<Register>,
    /// Whether the initrd that its stub hands over is among them.
    initrd: bool,
    differences: Vec<Difference>,
}

impl Candidate {
    /// Compares `booted` with the image of the reference values.
    ///
    /// # Errors
    /// [`PeError`] when one of them is no image. Its boot stub need not be a known one, nor its sections those that are predicted.
    pub fn new(reference: &[u8], booted: &[u8]) -> Result<Self, PeError> {
        let image = Image::parse(booted)?;
        let uki = image.authenticode_sha384()?;
        let mut digests = HashSet::from([uki]);
        let predicted = image_reference(booted, None);
        if let Ok(half) = &predicted {
            let events = half.boots.iter().flat_map(|boot| &boot.events);
            digests.extend(events.map(|event| event.digest));
        } else {
            digests.extend(parts(&image));
        }
        Ok(Self { uki, digests, initrd: predicted.is_ok(), differences: differences(reference, booted)? })
    }

    fn predicts(&self, digest: &Register) -> bool {
        self.digests.contains(digest)
    }
}

/// The digests of an image whose measurements are not predicted as a whole: its sections, its kernel, its command line.
fn parts(image: &Image<'_>) -> Vec<Register> {
    let mut found = Vec::new();
    for (name_digest, name) in label::section_names() {
        if let Some(contents) = image.section(name) {
            found.extend([name_digest, Sha384::digest(contents).into()]);
        }
    }
    let kernel =
        image.section(".linux").and_then(|linux| Image::parse(linux).ok()?.authenticode_sha384().ok());
    let options = image.section(".cmdline").and_then(|text| std::str::from_utf8(text).ok());
    found.extend(kernel);
    found.extend(options.map(|text| label::text_digest(text.trim_end_matches(['\0', '\n']))));
    found
}

impl Rules<'_> {
    /// Where RTMR1 holds the candidate: its differences, and whatever follows from them. Whether it does.
    pub(super) fn booted(&mut self, findings: &mut Findings) -> bool {
        let Some(candidate) = self.candidate else { return false };
        let loaded = |(_, event): (_, &Event)| event.register_digest() == candidate.uki;
        let ran = self.one.usable() && self.one.pairs.iter().filter_map(|pair| pair.measured).any(loaded);
        let own = self
            .one
            .pairs
            .iter()
            .filter_map(|pair| pair.predicted)
            .any(|(_, event)| event.digest == candidate.uki);
        if !ran || own {
            let note = if own {
                "the image given as --booted has the digest of the reference's image, as the firmware takes it"
            } else {
                "the image given as --booted is not the one that was started, or the log of RTMR1 cannot be used"
            };
            findings.notes.push(note.to_owned());
            return false;
        }
        // Another stub may measure other sections, and start the kernel without the firmware, which then measures nothing of it.
        let another_stub =
            candidate.differences.iter().any(|difference| difference.reason == Reason::StubVersion);
        let mut registers = vec!["rtmr1"];
        for analysis in [&mut self.one, &mut self.two] {
            let name = analysis.name();
            let followed = analysis.take(|pair| match (pair.measured, pair.predicted) {
                (Some((_, event)), _) if candidate.predicts(&event.register_digest()) => true,
                (Some(_), Some(_)) => !candidate.initrd && is(pair, &Cause::Initrd),
                (None, Some((_, event))) => {
                    let image = matches!(
                        event.cause,
                        Cause::Uki | Cause::Kernel | Cause::SectionName(_) | Cause::SectionContents(_)
                    );
                    image && (another_stub || !candidate.predicts(&event.digest))
                }
                _ => false,
            });
            if followed && name == "rtmr2" {
                registers.push("rtmr2");
            }
        }
        for difference in &candidate.differences {
            let sentence = format!("RTMR1 holds the image given as --booted. {}", difference.sentence);
            findings.proved(findings.proof.firmware, difference.reason, &registers, sentence);
        }
        true
    }
}
