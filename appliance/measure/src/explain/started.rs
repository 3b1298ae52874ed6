//! How the image was started: by the firmware from a disk, by the hypervisor (`-kernel`), or not at all.
//!
//! The order of a register's events is proved by its replay, so it is what these rules go by; what the log says about an
//! event is not.

use std::collections::HashSet;

use cofferdam_attest::event_log::{Event, Register};
use cofferdam_attest::reference::{Cause, PredictedEvent, Reason};

use super::align::Pair;
use super::analysis::Analysis;
use super::findings::Findings;
use super::image::{Part, Rules, extra, is, list};
use super::sections::{contents, section_of, tags};
use super::{label, loaded};

impl Rules<'_> {
    /// Predicted events that were measured, but earlier or later.
    pub(super) fn moved(&mut self, findings: &mut Findings) {
        if self.one.usable() {
            let moved = moved(&mut self.one);
            if !moved.is_empty() {
                let from_hypervisor = self.before_any_boot_option();
                if from_hypervisor && moved.contains(&Cause::Uki) {
                    let sentence =
                        "The image was loaded before the firmware announced that it boots (RTMR1), as when \
                                    the hypervisor hands it over (QEMU's -kernel) instead of a disk."
                            .to_owned();
                    findings.likely(Reason::KernelBoot, &["rtmr1"], sentence);
                } else {
                    let sentence = format!("RTMR1 has {} in another place than predicted.", names(&moved));
                    findings.likely(Reason::EventMoved, &["rtmr1"], sentence);
                }
            }
        }
        // Another image measures its sections as it likes; there is a rule for that.
        if self.two.usable() && self.part(&Cause::Uki) == Part::Same {
            let moved = moved(&mut self.two);
            if !moved.is_empty() {
                let sentence = format!("RTMR2 has {} in another place than predicted.", names(&moved));
                findings.likely(Reason::EventMoved, &["rtmr2"], sentence);
            }
        }
    }

    /// The kernel out of the image was started without the image: then no stub measures, and command line and initrd are
    /// the host's. Whether that is so.
    pub(super) fn bare_kernel(&mut self, findings: &mut Findings) -> bool {
        let Some((image, boot)) = self.boot else { return false };
        let no_section = self.two.usable() && contents(&self.two, &tags(&self.two)).is_empty();
        if !self.one.usable() || !no_section || self.part(&Cause::Uki) == Part::Same {
            return false;
        }
        let plain: HashSet<Register> = digests(&boot.events, &Cause::Kernel).collect();
        let listed = image
            .alternatives
            .iter()
            .filter(|known| known.of == Cause::Kernel && known.reason == Reason::QemuHeaderPatching);
        let patched: HashSet<Register> = listed.map(|known| known.digest).collect();
        let started = |set: &HashSet<Register>| {
            let mut measured = self.one.pairs.iter().filter_map(|pair| pair.measured);
            measured.any(|(_, event)| set.contains(&event.register_digest()))
        };
        let (as_it_is, changed) = (started(&plain), started(&patched));
        if !as_it_is && !changed {
            return false;
        }
        // A file on a disk may hold the same bytes: only the hypervisor's way of starting speaks for the hypervisor.
        let patched_by_qemu = changed && self.before_any_boot_option();
        self.one.take(|pair| {
            let of_kernel = |event: &Event| {
                let digest = event.register_digest();
                plain.contains(&digest) || patched.contains(&digest)
            };
            is(pair, &Cause::Uki) || is(pair, &Cause::Kernel) || extra(pair).is_some_and(of_kernel)
        });
        let own = |pair: &Pair<'_>| is(pair, &Cause::CommandLine) || is(pair, &Cause::Initrd);
        let others =
            if self.two.take(own) { ", with another command line or initrd than the image's" } else { "" };
        self.two.take(|pair| section_of(pair).is_some());
        let how = if patched_by_qemu {
            " It was loaded before the firmware announced that it boots, and its digest is that of a kernel whose setup \
             header QEMU before 10.2 rewrote."
        } else if changed {
            " Its setup header was changed."
        } else {
            ""
        };
        let sentence = format!(
            "The kernel out of the image was started without the image: RTMR1 holds no image, RTMR2 no sections{others}.{how}"
        );
        let reason = if patched_by_qemu { Reason::QemuHeaderPatching } else { Reason::OtherImage };
        findings.likely(reason, &["rtmr1", "rtmr2"], sentence);
        true
    }

    /// Addons: the stub has the firmware load them, so RTMR1 holds them between image and kernel; what they add is in RTMR2.
    pub(super) fn addons(&mut self, findings: &mut Findings) {
        if !self.one.usable() {
            return;
        }
        let names: Vec<String> = self.one.open().filter_map(extra).filter_map(loaded::addon).collect();
        if names.is_empty() {
            return;
        }
        self.one.take(|pair| extra(pair).and_then(loaded::addon).is_some());
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let sentence = format!(
            "The boot stub had the firmware load {} (RTMR1), which lies beside the image (\"IMAGE.extra.d\") or in \
             \"loader/addons\".",
            list(&names)
        );
        findings.likely(Reason::Addon, &["rtmr1"], sentence);
        self.added = true;
    }

    /// Whether the first program was loaded before the firmware announced that it starts a boot option.
    fn before_any_boot_option(&self) -> bool {
        let Some((_, boot)) = self.boot else { return false };
        let announced: HashSet<Register> = digests(&boot.events, &Cause::BootAttempt).collect();
        let mut measured = self.one.pairs.iter().filter_map(|pair| pair.measured);
        let first = measured.find(|(_, event)| {
            event.event == loaded::APPLICATION || announced.contains(&event.register_digest())
        });
        first.is_some_and(|(_, event)| !announced.contains(&event.register_digest()))
            && self.one.pairs.iter().any(|pair| {
                pair.measured.is_some_and(|(_, event)| announced.contains(&event.register_digest()))
            })
    }
}

/// Takes the rows of events that are missing in one place and too many in another, as many of the one as of the other; gives
/// what they are.
fn moved(analysis: &mut Analysis<'_>) -> Vec<Cause> {
    let missing = analysis.open().filter(|pair| pair.measured.is_none()).filter_map(|pair| pair.predicted);
    let missing: Vec<(Register, Cause)> =
        missing.map(|(_, event)| (event.digest, event.cause.clone())).collect();
    let mut moved = Vec::new();
    for (digest, cause) in missing {
        if analysis.take_one(|pair| extra(pair).is_some_and(|event| event.register_digest() == digest)) {
            analysis.take_one(|pair| {
                pair.measured.is_none() && pair.predicted.is_some_and(|(_, event)| event.digest == digest)
            });
            moved.push(cause);
        }
    }
    moved
}

fn digests(events: &[PredictedEvent], cause: &Cause) -> impl Iterator<Item = Register> {
    events.iter().filter(move |event| event.cause == *cause).map(|event| event.digest)
}

fn names(causes: &[Cause]) -> String {
    let names: Vec<String> = causes.iter().map(|cause| label::printable(&cause.to_string())).collect();
    list(&names.iter().map(String::as_str).collect::<Vec<_>>())
}
