//! The cases, in the order in which a verifier meets what they change.

use serde_json::Value;

use super::{Case, Text, collateral, common, forge};

pub(super) mod applied;
mod chain;
mod claims;
mod document;
mod endorsements;
mod inputs;
mod log;
mod policy;
mod quote;
mod registers;

/// Every case; names are unique.
pub(super) fn all(honest: &Value) -> Vec<Case> {
    let cases = [
        document::cases(honest),
        quote::cases(honest),
        chain::cases(honest),
        endorsements::cases(honest),
        policy::cases(honest),
        registers::cases(honest),
        log::cases(honest),
        claims::cases(honest),
        inputs::cases(honest),
    ]
    .concat();
    unique(&cases);
    cases
}

/// Whoever reads a file of vectors finds a case by its name.
fn unique(cases: &[Case]) {
    for (at, case) in cases.iter().enumerate() {
        assert!(cases[at + 1..].iter().all(|other| other.name != case.name), "{} twice", case.name);
    }
}
