//! `signers` and `follow`: whose commits of the repository count, and which branch the appliance looks at.

use std::time::Duration;

use cofferdam_protocol::SignerKey;

use crate::diagnostics::Collector;
use crate::fields::{self, Fields};
use crate::health::duration;
use crate::keys;
use crate::model::{Follow, Github};
use crate::read::{bounded, collect};
use crate::yaml::Node;

/// As many people as operate an appliance.
const MAX_SIGNERS: usize = 32;
const DEFAULT_BRANCH: &str = "main";
/// How soon a push is seen. GitHub counts no question whose answer has not changed, for those with a token.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(60);
const LEAST_INTERVAL: Duration = Duration::from_secs(10);
const MOST_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// Reads the list of signers.
pub(crate) fn signers(node: &Node, errors: &mut Collector<'_>) -> Option<Vec<SignerKey>> {
    let items = fields::list(node, "`signers`", errors)?;
    bounded(node, items.len(), MAX_SIGNERS, "signers", errors)?;
    let mut known: Vec<SignerKey> = Vec::new();
    let read = items.iter().map(|item| {
        let signer = signer(item, errors)?;
        if known.iter().any(|other| other.public() == signer.public()) {
            errors.hinted(item.place, "a second signer has this key", "each signer has a key of their own");
            return None;
        }
        if known.iter().any(|other| other.name() == signer.name()) {
            let message = format!("a second signer is called {}", signer.name());
            errors.hinted(item.place, message, "change the text behind one of the keys");
            return None;
        }
        known.push(signer.clone());
        Some(signer)
    });
    collect(read)
}

/// A private key may have been pasted, so the source line is not shown.
fn signer(node: &Node, errors: &mut Collector<'_>) -> Option<SignerKey> {
    let text = fields::text(node, "a signer", errors)?;
    match text.parse() {
        Err(error) if text.contains("PRIVATE") => {
            errors.hidden(node.place, error);
            None
        }
        result => fields::checked(node, result, errors),
    }
}

/// Reads what is followed.
pub(crate) fn follow(node: &Node, errors: &mut Collector<'_>) -> Option<Follow> {
    let fields = Fields::open(node, "`follow`", keys::FOLLOW, &[], errors)?;
    let branch = match fields.get("branch") {
        Some(node) => fields::parse(node, "`branch`", errors),
        None => DEFAULT_BRANCH.parse().ok(),
    };
    let interval = duration(&fields, "interval", LEAST_INTERVAL, MOST_INTERVAL, errors);
    let apply = match fields.get("apply") {
        Some(node) => fields::boolean(node, "`apply`", errors),
        None => Some(true),
    };
    Some(Follow { branch: branch?, interval: interval?.unwrap_or(DEFAULT_INTERVAL), apply: apply? })
}

/// Who follows needs somebody whose commits count, and a token to ask with.
pub(crate) fn rules(
    follow: Option<&Node>,
    signers: (Option<&Node>, &[SignerKey]),
    github: &Github,
    errors: &mut Collector<'_>,
) {
    let Some(node) = follow else {
        if let (Some(node), false) = (signers.0, signers.1.is_empty()) {
            let hint = "write `follow: {branch: main}`, and the appliance looks for commits that they signed";
            errors.note(node.place, "`signers` has no effect without `follow`", hint);
        }
        return;
    };
    if signers.1.is_empty() {
        errors.hinted(
            node.place,
            "`follow` names a branch, and nobody signs its commits",
            "write `signers: [ssh-ed25519 AAAA… alice]`: a commit counts when one of them signed it (`git commit -S` with gpg.format=ssh)",
        );
    }
    if github.token.is_none() {
        errors.hinted(
            node.place,
            "`follow` without a GitHub token: GitHub answers 60 questions an hour without one",
            "write `github: {token: secret://cofferdam/github/token}`",
        );
    }
}
