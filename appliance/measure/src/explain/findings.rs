//! What the rules found: causes, each reported once, and what is left over.

use cofferdam_attest::reference::Reason;

use super::analysis::{Analysis, LogState};
use super::{Certainty, LikelyCause, MAX_LISTED, RegisterComparison, Status, render};

/// What the rules found so far.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) proof: Proof,
    pub(super) causes: Vec<LikelyCause>,
    pub(super) unexplained: Vec<String>,
    pub(super) notes: Vec<String>,
}

/// What the evidence proves by itself, before any rule.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Proof {
    /// The quote's chain was verified: the registers are those of a TD.
    pub(super) chain: bool,
    /// And MRTD is a known one, so that the firmware measured RTMR0 and what it loads (RTMR1) as that firmware does.
    pub(super) firmware: bool,
    /// And RTMR1 is as predicted: nothing but the image and its kernel ran, so that those measured RTMR2.
    pub(super) boot: bool,
}

impl Findings {
    /// A cause that is certain when `proved`, which has to be a member of [`Self::proof`], and likely otherwise.
    pub(super) fn proved(
        &mut self,
        proved: bool,
        reason: Reason,
        registers: &[&'static str],
        sentence: String,
    ) {
        let certainty = if proved { Certainty::Certain } else { Certainty::Likely };
        self.add(reason, certainty, registers, sentence);
    }

    pub(super) fn likely(&mut self, reason: Reason, registers: &[&'static str], sentence: String) {
        self.add(reason, Certainty::Likely, registers, sentence);
    }

    /// One reason is reported once; further registers that differ for it are added to it, and it is then as sure as the least
    /// sure of its parts.
    fn add(&mut self, reason: Reason, certainty: Certainty, registers: &[&'static str], sentence: String) {
        if let Some(known) = self.causes.iter_mut().find(|cause| cause.reason == reason) {
            for register in registers {
                if !known.registers.contains(register) {
                    known.registers.push(register);
                }
            }
            known.certainty = known.certainty.max(certainty);
            if !known.sentence.contains(&sentence) {
                known.sentence = format!("{} {sentence}", known.sentence);
            }
            return;
        }
        let remedy = render::remedy(reason).to_owned();
        self.causes.push(LikelyCause { reason, certainty, registers: registers.to_vec(), sentence, remedy });
    }

    /// What the explanation's own evidence rests on.
    pub(super) fn note_trust(&mut self, registers: &[RegisterComparison], machine_unproved: bool) {
        let differs = |name| {
            registers.iter().any(|register| register.name == name && register.status == Status::Differs)
        };
        let known =
            registers.iter().any(|register| register.name == "mrtd" && register.status == Status::Equal);
        let any = registers.iter().any(|register| register.status == Status::Differs);
        if any && !self.proof.chain {
            let note = "the quote's certificate chain was not verified, so no cause is certain";
            self.notes.push(note.to_owned());
        } else if any && !known && !differs("mrtd") {
            let note = "MRTD was compared with nothing, so the firmware is unknown and no cause in RTMR0-2 is certain";
            self.notes.push(note.to_owned());
        }
        if differs("mrtd") {
            let note = "MRTD is not a known one: unknown firmware measured RTMR0-2, and what is said about them \
                        holds only if it is honest";
            self.notes.push(note.to_owned());
        }
        if machine_unproved && differs("rtmr0") {
            let note = "the machine's shape is what an image said that is not the predicted one";
            self.notes.push(note.to_owned());
        }
    }

    /// Lists what no rule accounts for.
    pub(super) fn leftovers(&mut self, analysis: &Analysis<'_>) {
        if analysis.status() != Status::Differs {
            return;
        }
        let name = analysis.name().to_ascii_uppercase();
        if analysis.log != LogState::Replays {
            if !self.causes.iter().any(|cause| cause.registers.contains(&analysis.name())) {
                self.unexplained.push(format!("{name}: {}", render::no_event(analysis)));
            }
            return;
        }
        let open: Vec<String> = analysis.open().take(MAX_LISTED).map(|pair| render::pair(pair)).collect();
        let room = MAX_LISTED.saturating_sub(self.unexplained.len());
        self.unexplained.extend(open.into_iter().take(room).map(|what| format!("{name}: {what}")));
    }
}
