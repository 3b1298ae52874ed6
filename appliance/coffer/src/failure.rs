//! Why a command ended without success: the exit code and the words that a person reads.
//!
//! The codes are a contract with scripts; "checked and false" ([`Code::Rejected`]) and "could not check"
//! ([`Code::CouldNotCheck`]) are never mixed up. A failure never carries a secret.

use std::fmt;
use std::time::Duration;

pub(crate) use cofferdam_protocol::error_chain as chain;

/// The exit codes, one meaning each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// The operation failed.
    Failed = 1,
    /// Usage or declaration error.
    Usage = 2,
    /// Verification says no: checked and false.
    Rejected = 3,
    /// Not authenticated or not allowed.
    NotAllowed = 4,
    /// Sealed or not ready.
    NotReady = 5,
    /// Could not check or could not reach.
    CouldNotCheck = 6,
    /// A policy forbids it.
    Policy = 7,
}

/// One failure, as it is printed: `error: message`, then `hint: hint`.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    /// Already rendered for the person (a declaration's diagnostics, an appraisal's report): printed as it is
    /// instead of the message.
    pub(crate) rendered: Option<String>,
    /// Whether a reboot explains it: the key that answers is not attested, and may be soon.
    pub(crate) after_reboot: bool,
    /// How long somebody who could not answer asks us not to ask again.
    pub(crate) retry_after: Option<Duration>,
    /// What is behind it, where `coffer doctor` has more to say about that than the hint.
    pub(crate) cause: Option<Cause>,
}

/// What can be behind a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// GitHub gives no answer.
    GithubAway,
    /// GitHub has answered as often as it does for now.
    GithubLimit,
    /// The repository has no release attestation at all.
    NoRelease,
    /// Nobody answers at the endpoint.
    EndpointAway,
    /// Times are wrong, and nothing else.
    Times,
}

/// What every verb returns.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
            rendered: None,
            after_reboot: false,
            retry_after: None,
            cause: None,
        }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Code::Usage, message)
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Code::Failed, message)
    }

    pub(crate) fn rejected(message: impl Into<String>) -> Self {
        Self::new(Code::Rejected, message)
    }

    pub(crate) fn could_not_check(message: impl Into<String>) -> Self {
        Self::new(Code::CouldNotCheck, message)
    }

    pub(crate) fn after_reboot(mut self) -> Self {
        self.after_reboot = true;
        self
    }

    pub(crate) fn because_of(mut self, cause: Cause) -> Self {
        self.cause = Some(cause);
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn rendered(mut self, text: impl Into<String>) -> Self {
        self.rendered = Some(text.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}
