//! What the followed branch has that does not run, and what to do about it today.

use cofferdam_protocol::follow::{FollowStatus, Found, Why};

use super::finding::{About, Finding};

const SIGN_ON_TOP: &str = "git commit --allow-empty -S -m 'Approve'";

/// What there is to say. That the last look has no answer does not take back what was found before.
pub(super) fn findings(about: &About<'_>, follow: &FollowStatus) -> Vec<Finding> {
    let unlooked = follow.problem.as_deref().map(|problem| {
        Finding::unknown("branch-unchecked", &format!("the branch {} could not be looked at", follow.branch))
            .because(problem)
            .remedy("mend that; the appliance looks again by itself")
            .run(about.command("status", ""))
    });
    found(follow).into_iter().chain(unlooked).collect()
}

fn found(follow: &FollowStatus) -> Option<Finding> {
    let branch = &follow.branch;
    match &follow.found {
        Found::Unknown => None,
        Found::Current { .. } => {
            Some(Finding::ok("branch", &format!("the branch {branch} declares what runs")))
        }
        Found::Newer { commit, .. } => Some(
            Finding::warning(
                "newer-declaration",
                &format!("the branch {branch} has a newer declaration than what runs"),
            )
            .because(&follow.found.to_string())
            .remedy("start the machine with the declaration of that commit: a running appliance takes none")
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
