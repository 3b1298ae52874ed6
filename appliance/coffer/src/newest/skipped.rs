//! What a search passed over, why, and what follows from it when nothing was accepted.

use cofferdam_attest::appraise::Verdict;
use cofferdam_attest::evidence::ASSET_NAME;
use cofferdam_attest::release::Tag;
use cofferdam_protocol::Repository;
use serde_json::{Value, json};

use crate::failure::{Cause, Code, Failure};
use crate::ui::printable;

/// Refused attestations that are named one by one.
const MAX_NAMED: usize = 20;

/// What was passed over and why.
#[derive(Default)]
pub(crate) struct Skipped {
    pub(super) other: usize,
    pub(super) future: usize,
    pub(super) without_document: usize,
    pub(super) old: usize,
    /// Not looked at any more, because a bound was reached.
    pub(super) unread: usize,
    pub(super) complete: bool,
    named: Vec<(Tag, Verdict, String)>,
    rejected: usize,
    unknown: usize,
}

impl Skipped {
    pub(super) fn note(&mut self, tag: Tag, verdict: Verdict, reason: String) {
        match verdict {
            Verdict::Rejected => self.rejected += 1,
            _ => self.unknown += 1,
        }
        if self.named.len() < MAX_NAMED {
            self.named.push((tag, verdict, reason));
        }
    }

    /// The answer when nothing was accepted: what the verdicts on several attestations add up to.
    pub(super) fn verdict(&self) -> Verdict {
        if self.rejected > 0 && self.unknown == 0 && self.unread == 0 && self.complete {
            Verdict::Rejected
        } else {
            Verdict::CouldNotCheck
        }
    }

    /// The failure when there is not even an appraisal to show.
    pub(super) fn failure(&self, repository: &Repository) -> Failure {
        if self.rejected + self.unknown + self.unread == 0 {
            let mut message = format!("{repository} has no release attestation");
            if !self.complete {
                message.push_str(" among those of its releases that were looked at");
            }
            for line in self.lines() {
                message.push_str(&format!("\n  {line}"));
            }
            return Failure::could_not_check(message)
                .because_of(Cause::NoRelease)
                .hint("has the appliance published yet? `coffer status` with --endpoint shows it");
        }
        let (code, words) = match self.verdict() {
            Verdict::Rejected => (Code::Rejected, "is refused"),
            _ => (Code::CouldNotCheck, "could not be checked"),
        };
        let lines: String = self.lines().iter().map(|line| format!("\n  {line}")).collect();
        Failure::new(code, format!("each release attestation of {repository} {words}{lines}"))
    }

    /// What was passed over, in lines for a person; releases of other kinds and of other days are none of it.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .named
            .iter()
            .map(|(tag, verdict, reason)| {
                let words = if *verdict == Verdict::Rejected { "refused" } else { "could not be checked" };
                format!("{tag} {words}: {}", printable(reason))
            })
            .collect();
        let more = (self.rejected + self.unknown).saturating_sub(self.named.len());
        let mut count = |number: usize, words: &str| {
            if number > 0 {
                lines.push(format!("{number} {words}"));
            }
        };
        count(more, "more, likewise");
        count(self.unread, "not looked at: too many");
        count(self.future, "with a tag from the future");
        count(self.without_document, &format!("without a usable {ASSET_NAME}"));
        if !self.complete {
            lines.push(format!("{} releases were looked at, there are more", looked_at()));
        }
        lines
    }

    /// Those that have a newer tag than `accepted`, and why each is passed over: somebody wrote them, and they are not the appliance's.
    pub(crate) fn newer_than(&self, accepted: &Tag) -> Vec<String> {
        let newer = self.named.iter().filter(|(tag, ..)| tag.issued_at > accepted.issued_at);
        let mut lines: Vec<String> = newer.map(|(tag, _, reason)| format!("{tag}: {reason}")).collect();
        if self.future > 0 {
            lines.push(format!("{} with a tag from the future", self.future));
        }
        lines
    }

    pub(crate) fn to_json(&self) -> Value {
        let named: Vec<Value> = self
            .named
            .iter()
            .map(|(tag, verdict, reason)| {
                json!({ "tag": tag.to_string(), "verdict": verdict.name(), "reason": reason })
            })
            .collect();
        json!({
            "attestations": named, "rejected": self.rejected, "could_not_check": self.unknown,
            "not_looked_at": self.unread, "from_the_future": self.future,
            "without_document": self.without_document, "too_old": self.old, "other_releases": self.other,
            "all_releases_listed": self.complete,
        })
    }
}

fn looked_at() -> usize {
    usize::try_from(crate::source::MAX_PAGES).unwrap_or(0).saturating_mul(cofferdam_github::PAGE)
}

#[cfg(test)]
mod tests {
    use cofferdam_attest::release::DigestPrefix;

    use super::*;

    fn tag(n: u32) -> Tag {
        Tag { issued_at: "2026-01-02T03:04:05Z".parse().unwrap(), digest: DigestPrefix(n.to_be_bytes()) }
    }

    fn skipped(rejected: u32, unknown: u32) -> Skipped {
        let mut skipped = Skipped { complete: true, ..Skipped::default() };
        for n in 0..rejected {
            skipped.note(tag(n), Verdict::Rejected, "rtmr1: differs".to_owned());
        }
        for n in 0..unknown {
            skipped.note(tag(n), Verdict::CouldNotCheck, "not found".to_owned());
        }
        skipped
    }

    #[test]
    fn no_is_said_only_when_everything_was_judged_and_something_was() {
        assert_eq!(skipped(1, 0).verdict(), Verdict::Rejected);
        assert_eq!(skipped(0, 0).verdict(), Verdict::CouldNotCheck);
        assert_eq!(skipped(0, 1).verdict(), Verdict::CouldNotCheck);
        assert_eq!(skipped(5, 1).verdict(), Verdict::CouldNotCheck);
        assert_eq!(Skipped { unread: 1, ..skipped(5, 0) }.verdict(), Verdict::CouldNotCheck);
        assert_eq!(Skipped { complete: false, ..skipped(5, 0) }.verdict(), Verdict::CouldNotCheck);
        for (skipped, code) in [(skipped(2, 0), 3), (skipped(2, 1), 6), (skipped(0, 0), 6)] {
            assert_eq!(skipped.failure(&"acme/app".parse().unwrap()).code as u8, code);
        }
    }

    #[test]
    fn what_is_passed_over_is_named_and_bounded() {
        let lines = Skipped { future: 3, without_document: 4, ..skipped(30, 0) }.lines();
        assert_eq!(lines.len(), MAX_NAMED + 3);
        assert_eq!(lines[0], "attest-20260102T030405Z-00000000 refused: rtmr1: differs");
        assert_eq!(lines[MAX_NAMED], "10 more, likewise");
        assert!(skipped(0, 0).lines().is_empty());
    }
}
