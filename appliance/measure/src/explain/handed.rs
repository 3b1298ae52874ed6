//! Causes in what the kernel is handed besides the image: its command line and its initrd, measured by the kernel itself.

use cofferdam_attest::event_log::Event;
use cofferdam_attest::reference::{Cause, Reason};

use super::align::Pair;
use super::findings::Findings;
use super::image::{MAX_NAMES, Part, Rules, is};
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
    pub(super) fn initrd(&mut self, restructured: bool, findings: &mut Findings) {
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
}

/// A measured event that was not predicted.
pub(super) fn extra<'a>(pair: &Pair<'a>) -> Option<&'a Event> {
    pair.predicted.is_none().then_some(pair.measured?.1)
}
