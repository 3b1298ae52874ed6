//! Causes in what the kernel is handed besides the image: its command line and its initrd, measured by the kernel itself.

use cofferdam_attest::event_log::Event;
use cofferdam_attest::reference::{Cause, Reason};

use super::findings::Findings;
use super::image::{MAX_NAMES, Part, Rules, extra, is};
use super::label;

impl Rules<'_> {
    /// The command line that the kernel received, where the image's own is as predicted.
    pub(super) fn command_line(&mut self, findings: &mut Findings) {
        let Part::Changed(digest) = self.open_part(&Cause::CommandLine) else { return };
        if self.section(".cmdline") != Part::Same {
            return;
        }
        // systemd-stub measures what it is passed by itself, as the same UTF-16 text that the kernel then measures.
        let options = |event: &Event| event.event == "EV_IPL" && label::proved_text(event).is_some();
        let passed: Vec<String> = self
            .two
            .open()
            .filter_map(extra)
            .filter(|event| options(event))
            .filter_map(label::proved_text)
            .take(MAX_NAMES)
            .collect();
        self.two.take(|pair| is(pair, &Cause::CommandLine) || extra(pair).is_some_and(options));
        let texts: Vec<String> =
            passed.iter().map(|text| format!("\"{}\"", label::printable(text))).collect();
        let texts = texts.join(", ");
        // What replaces the image's own line comes first, additions follow behind a space each.
        let replaced = label::text_digest(&passed.join(" ")) == digest;
        if self.added && !replaced && !passed.is_empty() {
            let sentence = format!("It added to the command line, as the stub measured: {texts} (RTMR2).");
            return findings.likely(Reason::Addon, &["rtmr2"], sentence);
        }
        let how = if passed.is_empty() {
            "The log does not show the text: a stub that adds words of its own would look the same".to_owned()
        } else if replaced {
            format!("The stub measured the one it was passed: {texts}")
        } else {
            format!("The stub measured additions that it was passed: {texts}")
        };
        let sentence = format!(
            "The kernel received another command line (RTMR2) although section .cmdline of the image is as predicted. \
             {how}."
        );
        let proved = findings.proof.boot;
        findings.proved(proved, Reason::LoaderCommandLine, &["rtmr2"], sentence);
    }

    /// The initrd that the kernel received, where the image's own is as predicted.
    pub(super) fn initrd(&mut self, findings: &mut Findings) {
        let Part::Changed(digest) = self.open_part(&Cause::Initrd) else { return };
        if self.initrd_follows {
            self.two.take(|pair| is(pair, &Cause::Initrd));
            return;
        }
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
        let other_image = matches!(self.part(&Cause::Uki), Part::Changed(_) | Part::Missing);
        if self.added {
            let sentence = "It may also add to the initrd, which is another one (RTMR2).".to_owned();
            findings.likely(Reason::Addon, &["rtmr2"], sentence);
        } else if !added.is_empty() {
            let sentence = format!("{seen}: the log names archives that were added, {}.", added.join(", "));
            findings.proved(findings.proof.boot, Reason::Initrd, &["rtmr2"], sentence);
        } else if other_image {
            let whole = self.one.take(|pair| is(pair, &Cause::Uki));
            let how = if self.is_bare_initrd(digest) {
                "it lacks what the predicted stub adds"
            } else {
                "a section that is not measured but handed over (.pcrsig), or other code in the stub"
            };
            let sentence = format!("{seen}, and the image has another digest (RTMR1): {how}.");
            let registers: &[&str] = if whole { &["rtmr1", "rtmr2"] } else { &["rtmr2"] };
            findings.likely(Reason::Tampered, registers, sentence);
        } else {
            let sentence = format!("{seen}: something was appended to it, or it was replaced.");
            findings.proved(findings.proof.boot, Reason::Initrd, &["rtmr2"], sentence);
        }
    }

    /// Whether this is the section alone, without the stub's own archive.
    fn is_bare_initrd(&self, digest: cofferdam_attest::event_log::Register) -> bool {
        self.boot.is_some_and(|(image, _)| {
            image.alternatives.iter().any(|known| {
                known.of == Cause::Initrd && known.reason == Reason::SectionRemoved && known.digest == digest
            })
        })
    }
}
