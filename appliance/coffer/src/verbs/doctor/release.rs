//! What GitHub says: whether there is a release attestation that verifies, and how long it will.

use cofferdam_attest::appraise::{Check, Outcome as CheckOutcome, Verdict};
use cofferdam_attest::event_log::payload::State;
use cofferdam_protocol::{Endpoint, Timestamp};

use super::finding::{About, Finding};
use crate::failure::{Cause, Code, Failure};
use crate::newest::Found;
use crate::verbs::verify;

/// Collateral that ends within a day is not what the appliance fetches every day.
const COLLATERAL_SOON_S: u64 = 24 * 60 * 60;
/// An attestation is replaced at two thirds of its validity: in its last sixth that is overdue.
const LAST_PART: u64 = 6;

/// Why no release attestation could even be judged.
pub(super) fn unavailable(about: &About<'_>, failure: &Failure) -> Finding {
    let (code, what) = match (failure.cause, failure.code) {
        (Some(Cause::GithubAway), _) => ("github-away", "GitHub does not answer"),
        (Some(Cause::GithubLimit), _) => ("github-limit", "GitHub answers no more for a while"),
        (Some(Cause::NoRelease), _) => ("no-release", "the repository has no release attestation"),
        (_, Code::NotAllowed) => ("github-refuses", "GitHub does not let this user see the repository"),
        (_, Code::Rejected) => ("release-refused", "no release attestation of the repository is true"),
        _ => ("release-unchecked", "the release attestation could not be checked"),
    };
    let finding = Finding::of(code, what, failure);
    match failure.cause {
        Some(Cause::NoRelease) => finding
            .remedy("wait for the first one; what the appliance waits for itself, its own answers say to an operator")
            .run(about.at(None, "verify", "--wait")),
        _ => finding
            .or_remedy("the command asks once more, and shows what was asked")
            .run(about.at(None, "verify", "-v")),
    }
}

/// What was found on GitHub. `endpoint` is where the appliance answers, as far as that is known from elsewhere than a release that is refused.
pub(super) fn findings(
    about: &About<'_>,
    found: &Found,
    endpoint: Option<&Endpoint>,
    now: u64,
) -> Vec<Finding> {
    let verified = &found.verified;
    if found.verdict != Verdict::Accepted {
        let failure = verify::failure(about.repository, found);
        return failure.iter().map(|failure| refused(about, failure, &verified.checks, endpoint)).collect();
    }
    let claims = &verified.claims;
    let until = format!("{} is true until {}", verified.tag, claims.expires_at);
    let mut all = vec![Finding::ok("release", &until)];
    all.extend(expiry(about, claims.issued_at.unix(), claims.expires_at.unix(), now));
    let collateral = verified.judged.appraisal.platform.as_ref().map(|platform| platform.collateral_expires);
    all.extend(collateral.and_then(|expires| self::collateral(about, expires, now)));
    all.extend(passed_over(&found.skipped.newer_than(&verified.tag)));
    if let Some(State::Disk { continuity: Some(continuity), .. }) = &verified.judged.appraisal.state
        && continuity.unwitnessed
    {
        all.push(
            Finding::warning(
                "state-unwitnessed",
                "the state was opened without a witness: an older copy would not have been noticed",
            )
            .remedy("open it with the releases in reach at the next boot, and leave out --without-witness"),
        );
    }
    all
}

/// A release attestation that is not accepted, by the checks that say so.
fn refused(about: &About<'_>, failure: &Failure, checks: &[Check], endpoint: Option<&Endpoint>) -> Finding {
    let wanted =
        if failure.code == Code::Rejected { CheckOutcome::Fail } else { CheckOutcome::CouldNotCheck };
    let names: Vec<&str> =
        checks.iter().filter(|check| check.outcome == wanted).map(|check| check.name).collect();
    let only = |allowed: &[&str]| !names.is_empty() && names.iter().all(|name| allowed.contains(name));
    let publish = || about.at(endpoint, "publish", "");
    let is_false = failure.code == Code::Rejected;
    if is_false && only(&["issued_at", "expires_at"]) {
        return Finding::of("release-expired", "the newest release attestation is of another time than now", failure)
            .remedy("have it published anew where the appliance runs; if its date is right, one of the clocks is wrong (`date -u` here and on its host)")
            .run(publish());
    }
    if only(&["state_anchors"]) {
        let (code, what) = match is_false {
            true => {
                ("anchors-gone", "releases that witness the appliance's state are gone, or newer than it")
            }
            false => {
                ("anchors-unchecked", "the releases that witness the appliance's state could not be checked")
            }
        };
        return Finding::of(code, what, failure)
            .remedy("see who can remove or write releases of the repository, and whether the state is the newest copy")
            .run(about.at(endpoint, "seal status", ""));
    }
    if is_false && only(&["repository_declaration", "declaration", "endpoint", "commit"]) {
        let finding = Finding::of(
            "declaration-differs",
            "the appliance was started with another declaration than the repository's",
            failure,
        );
        let hint = "boot the appliance with the declaration of the default branch, or accept an older one with --commit SHA";
        return finding.remedy(hint).run(about.at(None, "verify", ""));
    }
    if !is_false && only(&["collateral"]) {
        return Finding::of(
            "collateral-expired",
            "Intel's endorsements in the release attestation have expired",
            failure,
        )
        .remedy("let the appliance reach the certification service, then have it publish anew")
        .run(publish());
    }
    let (code, what) = match is_false {
        true => ("release-refused", "the release attestation is false"),
        false => ("release-unchecked", "the release attestation could not be checked"),
    };
    let finding = Finding::of(code, what, failure);
    let remedy = match is_false {
        true => {
            "clients are right to refuse it: see what differs, and which machine or token has published it"
        }
        false => "mend what could not be checked; the command shows each check",
    };
    finding.or_remedy(remedy).run(about.at(None, "verify", ""))
}

fn expiry(about: &About<'_>, issued: u64, expires: u64, now: u64) -> Option<Finding> {
    let left = expires.saturating_sub(now);
    (left < expires.saturating_sub(issued) / LAST_PART).then(|| {
        Finding::warning("release-ends-soon", &format!("the release attestation ends in {} min", left / 60))
            .because("the appliance replaces it at two thirds of its validity, and has not")
            .remedy("see what keeps it from publishing, and ask for it")
            .run(about.command("publish", ""))
    })
}

fn collateral(about: &About<'_>, expires: u64, now: u64) -> Option<Finding> {
    let left = expires.checked_sub(now).filter(|_| expires > 0)?;
    (left < COLLATERAL_SOON_S).then(|| {
        let what =
            format!("Intel's endorsements in the release attestation end at {}", Timestamp::shown(expires));
        Finding::warning("collateral-ends-soon", &what)
            .because("the appliance fetches them every day, and has none that are newer")
            .remedy("let the appliance reach the certification service, then have it publish anew")
            .run(about.command("publish", ""))
    })
}

/// Newer releases with such a tag: nobody is misled, and somebody wrote them.
fn passed_over(newer: &[String]) -> Option<Finding> {
    (!newer.is_empty()).then(|| {
        Finding::warning("newer-releases-refused", "newer releases look like release attestations and are none that counts")
            .because_all(newer.iter().map(String::as_str))
            .remedy("see who can write releases of the repository: revoke a token that leaked, end a machine that is not yours")
    })
}

#[cfg(test)]
#[path = "release_tests.rs"]
mod tests;
