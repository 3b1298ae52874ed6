//! What the followed branch has that does not run, and what to do about it today.

use cofferdam_protocol::change::{Change, Changes, Outcome};
use cofferdam_protocol::follow::{FollowStatus, Found, Why};

use super::finding::{About, Finding};

const SIGN_ON_TOP: &str = "git commit --allow-empty -S -m 'Approve'";

/// What there is to say. That the last look has no answer does not take back what was found before.
pub(super) fn findings(about: &About<'_>, follow: &FollowStatus, changes: Option<&Changes>) -> Vec<Finding> {
    let unlooked = follow.problem.as_deref().map(|problem| {
        Finding::unknown("branch-unchecked", &format!("the branch {} could not be looked at", follow.branch))
            .because(problem)
            .remedy("mend that; the appliance looks again by itself")
            .run(about.command("status", ""))
    });
    let tried = changes.and_then(|changes| changes.of(&follow.found.commit()?));
    let tried = tried.filter(|_| matches!(follow.found, Found::Newer { .. }));
    let tried = tried.and_then(|change| tried_in_vain(about, follow, change));
    tried.or_else(|| found(about, follow)).into_iter().chain(unlooked).collect()
}

/// The head counts, and the appliance could not make what it declares run.
fn tried_in_vain(about: &About<'_>, follow: &FollowStatus, change: &Change) -> Option<Finding> {
    let branch = &follow.branch;
    let finding = match change.outcome {
        Outcome::Applied => return None,
        Outcome::Refused => {
            Finding::problem("change-refused", &format!("the appliance does not take what the branch {branch} declares"))
                .remedy("mend that and put a signed commit on top; what takes a boot needs the machine to be started with it")
                .run(format!("git show {}:cofferdam.yaml", change.commit))
        }
        Outcome::RolledBack => {
            let what = format!("what the branch {branch} declares did not come up, and what ran before runs again");
            Finding::problem("change-rolled-back", &what)
                .remedy("see what happened then; mend it, or take it back with `git revert`, and put a signed commit on top")
                .run(about.command("events", "--since 1h"))
        }
    };
    Some(finding.because(&change.to_string()))
}

fn found(about: &About<'_>, follow: &FollowStatus) -> Option<Finding> {
    let branch = &follow.branch;
    match &follow.found {
        Found::Unknown => None,
        Found::Current { .. } => {
            Some(Finding::ok("branch", &format!("the branch {branch} declares what runs")))
        }
        Found::Newer { .. } if follow.apply => Some(
            Finding::warning(
                "newer-declaration",
                &format!("the branch {branch} has a newer declaration than what runs"),
            )
            .because(&follow.found.to_string())
            .remedy("the appliance applies it by itself, which takes as long as images and services do; if it stays so, its events say why")
            .run(about.command("events", "--since 1h")),
        ),
        Found::Newer { commit, .. } => Some(
            Finding::warning(
                "newer-declaration",
                &format!("the branch {branch} has a newer declaration than what runs"),
            )
            .because(&follow.found.to_string())
            .remedy("start the machine with the declaration of that commit: this appliance applies none by itself (`follow: {apply: false}`, or an image that cannot)")
            .run(format!("git show {commit}:cofferdam.yaml")),
        ),
        Found::Refused { commit, why, .. } => Some(
            Finding::problem("commit-refused", &format!("the head of the branch {branch} does not count"))
                .because(&follow.found.to_string())
                .remedy(remedy(*why))
                .run(match why {
                    Why::NotForward => format!("git log --oneline {commit}"),
                    Why::Declaration => "coffer check".to_owned(),
                    _ => SIGN_ON_TOP.to_owned(),
                }),
        ),
    }
}

fn remedy(why: Why) -> &'static str {
    match why {
        Why::Unsigned => {
            "have one of the declared signers put a commit on top that is signed with their SSH key (`git config gpg.format ssh`)"
        }
        Why::OtherSignature => {
            "what is merged on GitHub's pages is signed by GitHub and by no signer: have one of them put a signed commit on top"
        }
        Why::Stranger => {
            "have one of the declared signers put a signed commit on top; who is added to `signers` counts once that declaration runs"
        }
        Why::Signature => {
            "see who can write to the branch, and have one of the declared signers put a signed commit on top"
        }
        Why::NotForward => {
            "the branch was forced to another history: see who did it, and merge what runs into it, or start the machine with what is there now"
        }
        Why::Declaration => "mend the file and put a signed commit on top",
    }
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
