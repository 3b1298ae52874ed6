//! The role that decides whether what `publish` found may take the place of what runs: it runs once for each candidate, and ends.
//!
//! # Duties
//!
//! - It judges the candidate from its bytes alone (`cofferdam_github::judge`), by the signers of the declaration that runs: who signed
//!   the commit, whether the declaration is that commit's, whether it is one of this repository.
//! - Versions only move forward: a commit is not older, by what its committer says, than the one that was admitted last in this boot. So
//!   whoever has `publish` cannot bring back what a signer signed once. What the boot began with is no commit whose text is
//!   known, so that for the first one `publish` has to be believed in this one thing.
//! - What counts it writes down for PID 1: `declaration`, its exact bytes, and `commit`, 20 bytes. Then it ends with exit code 0.
//! - Else `why` has a line, and the exit code is 1. `commit` is there as soon as a signer's key has signed for it.
//!
//! # Prohibitions
//!
//! - It has no network and no key, and nobody can call it.
//! - It parses the declaration, and everything else that is behind the signature, after that was verified.
//! - It believes nothing that `publish` says, and follows no link of its.

use std::fs;
use std::io;
use std::path::PathBuf;

use cofferdam_declaration::{Declaration, MAX_BYTES};
use cofferdam_github::{Candidate, JudgeError, MAX_CANDIDATE, judge};
use cofferdam_protocol::json::JsonError;
use cofferdam_protocol::{Repository, Timestamp, error_chain, events};

use super::Role;
use super::facts::{self, Facts, FactsError};
use super::front::untrusted_file;
use crate::paths;
use crate::system::files;

/// The declaration's place in the repository, where clients look for it, too.
pub(crate) const DECLARATION: &str = "cofferdam.yaml";

/// Seconds since the epoch, big-endian.
const TIME_BYTES: u64 = 8;

/// Why a candidate may not take the place of what runs.
#[derive(Debug, thiserror::Error)]
enum AdmitError {
    #[error("the facts of this boot are not available")]
    Facts(#[from] FactsError),
    #[error("the declaration that runs follows no branch, or says `apply: false`")]
    NotFollowed,
    #[error("there is no candidate, or more than {MAX_CANDIDATE} bytes of one")]
    NoCandidate,
    #[error("it is no candidate")]
    Shape(#[source] JsonError),
    #[error("commit {commit:.12} does not count")]
    Judged {
        commit: String,
        #[source]
        source: JudgeError,
    },
    #[error("commit {commit:.12} was made at {made}, before the one of {last} that was admitted last")]
    Older { commit: String, made: Timestamp, last: Timestamp },
    #[error("commit {commit:.12} does not count")]
    Declaration {
        commit: String,
        #[source]
        source: DeclaredError,
    },
    #[error("when the last one was admitted cannot be read")]
    Time,
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Why a file is not a declaration of this appliance.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeclaredError {
    /// Nobody writes that much.
    #[error("{DECLARATION} has more than {MAX_BYTES} bytes")]
    TooLarge,
    /// The first of its errors.
    #[error("{DECLARATION}:{line}:{column}: {message}")]
    Errors {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// Another appliance's.
    #[error("it declares another repository, {0}")]
    Repository(Repository),
}

/// Reads a declaration, which has to be one that an appliance of this repository could boot with.
///
/// # Errors
///
/// [`DeclaredError`].
pub(crate) fn declared(bytes: &[u8], repository: &Repository) -> Result<Declaration, DeclaredError> {
    if bytes.len() > MAX_BYTES {
        return Err(DeclaredError::TooLarge);
    }
    let declaration = Declaration::parse(bytes).map_err(|errors| {
        let first = errors.iter().next();
        first.map_or_else(
            || DeclaredError::Errors { line: 1, column: 1, message: "it is no declaration".to_owned() },
            |first| DeclaredError::Errors {
                line: first.line,
                column: first.column,
                message: first.message.clone(),
            },
        )
    })?;
    if declaration.repository.is_same(repository) {
        Ok(declaration)
    } else {
        Err(DeclaredError::Repository(declaration.repository))
    }
}

/// Judges what `publish` has brought, and ends.
///
/// # Errors
///
/// It may not take the place of what runs. What is said of it is one bounded line.
pub(crate) fn run(role: &Role) -> anyhow::Result<()> {
    role.confine()?;
    let places = Places {
        facts: paths::FACTS.into(),
        appliance: paths::APPLIANCE.into(),
        candidate: paths::CANDIDATE.into(),
        directory: paths::ADMIT_DIR.into(),
    };
    places.admit().map_err(|error| {
        let why = events::bounded(&error_chain(&error));
        if let Err(error) = places.write("why", why.as_bytes()) {
            eprintln!("admit: {}", error_chain(&error));
        }
        anyhow::anyhow!(why)
    })
}

/// What the role reads, and the directory that it owns.
struct Places {
    facts: PathBuf,
    appliance: PathBuf,
    candidate: PathBuf,
    directory: PathBuf,
}

impl Places {
    fn admit(&self) -> Result<(), AdmitError> {
        for name in ["declaration", "commit", "why"] {
            self.remove(name)?;
        }
        let follow = Facts::read(&self.facts)?.follow.filter(|follow| follow.declared.apply);
        let follow = follow.ok_or(AdmitError::NotFollowed)?;
        let repository = facts::appliance(&self.appliance)?.repository;
        let bytes = untrusted_file::contents(&self.candidate, MAX_CANDIDATE as u64);
        let candidate =
            Candidate::parse(&bytes.ok_or(AdmitError::NoCandidate)?).map_err(AdmitError::Shape)?;
        let commit = candidate.commit().to_string();
        let (signed, bytes) = judge(&candidate, DECLARATION, &follow.signers)
            .map_err(|source| AdmitError::Judged { commit: commit.clone(), source })?;
        self.write("commit", signed.id.as_bytes())?;
        match self.last()? {
            Some(last) if signed.committed < last => {
                return Err(AdmitError::Older { commit, made: signed.committed, last });
            }
            _ => {}
        }
        declared(&bytes, &repository).map_err(|source| AdmitError::Declaration { commit, source })?;
        self.write("declaration", &bytes)?;
        self.write("time", &signed.committed.unix().to_be_bytes())
    }

    /// When the commit was made that was admitted last.
    fn last(&self) -> Result<Option<Timestamp>, AdmitError> {
        let bytes = match files::read_bounded(self.own("time"), TIME_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(_) => return Err(AdmitError::Time),
        };
        let seconds = bytes.try_into().map_err(|_| AdmitError::Time)?;
        Timestamp::from_unix(u64::from_be_bytes(seconds)).map(Some).ok_or(AdmitError::Time)
    }

    fn own(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn remove(&self, name: &str) -> Result<(), AdmitError> {
        match fs::remove_file(self.own(name)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(AdmitError::Write { path: self.own(name), source })
            }
            _ => Ok(()),
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), AdmitError> {
        let path = self.own(name);
        files::replace(&path, bytes).map_err(|source| AdmitError::Write { path, source })
    }
}

#[cfg(test)]
#[path = "admit_tests.rs"]
mod tests;
