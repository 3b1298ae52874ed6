//! What the appliance has found in the branch that it follows: `publish/follow.json`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::json::{self, JsonError};
use crate::{Branch, Commit, Digest, Timestamp, TimestampMillis};

/// Bound on the file in bytes.
pub const MAX_BYTES: usize = 16 * 1024;

/// `publish/follow.json`, written by `publish`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FollowStatus {
    /// The branch.
    pub branch: Branch,
    /// Whether what counts there takes the place of what runs; false in answers of appliances that apply nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub apply: bool,
    /// What is at its head.
    pub found: Found,
    /// Since when that is known.
    pub at: Timestamp,
    /// The last head that was not refused since the boot: behind it the branch does not go back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<Commit>,
    /// When it was last looked at, as far as the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checked_at: Option<TimestampMillis>,
    /// Why the last look has no answer; what was found before still stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What the head of a followed branch is to what runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase", deny_unknown_fields)]
pub enum Found {
    /// Nobody knows yet.
    Unknown,
    /// It declares what runs.
    Current {
        /// The head.
        commit: Commit,
    },
    /// It counts, and declares something else than what runs.
    Newer {
        /// The head.
        commit: Commit,
        /// Who signed it, as the declaration that runs calls them.
        signer: String,
        /// Digest of the exact bytes that it declares.
        declaration: Digest,
    },
    /// It does not count.
    Refused {
        /// The head.
        commit: Commit,
        /// Why.
        why: Why,
        /// The same in words, which may have come from outside.
        detail: String,
    },
}

/// Why a commit does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// It has no signature.
    Unsigned,
    /// It is signed by GitHub or otherwise with something else than an SSH key.
    OtherSignature,
    /// The key is no signer's.
    Stranger,
    /// The signature is wrong, or what was sent is not this commit.
    Signature,
    /// What runs, or what counted before, is not in its history.
    NotForward,
    /// It has no declaration for this appliance.
    Declaration,
}

impl FollowStatus {
    /// Reads the file.
    ///
    /// # Errors
    /// It is too large or not of this shape.
    pub fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        json::from_json(bytes, MAX_BYTES)
    }
}

impl Found {
    /// The words in JSON, for metrics.
    pub const STATES: [&str; 4] = ["unknown", "current", "newer", "refused"];

    /// The word in JSON.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Current { .. } => "current",
            Self::Newer { .. } => "newer",
            Self::Refused { .. } => "refused",
        }
    }

    /// The head.
    pub const fn commit(&self) -> Option<Commit> {
        match self {
            Self::Unknown => None,
            Self::Current { commit } | Self::Newer { commit, .. } | Self::Refused { commit, .. } => {
                Some(*commit)
            }
        }
    }
}

impl fmt::Display for Found {
    /// For people, in one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("not known yet"),
            Self::Current { commit } => write!(f, "commit {:.12} declares what runs", commit.to_string()),
            Self::Newer { commit, signer, .. } => {
                write!(f, "commit {:.12}, signed by {signer}, declares something newer", commit.to_string())
            }
            Self::Refused { commit, detail, .. } => {
                write!(f, "commit {:.12} does not count: {detail}", commit.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::bounded;

    #[test]
    fn the_largest_status_is_within_its_bound_and_read_as_it_was_written() {
        let commit = Commit::from([7; 20]);
        let text = bounded(&"\"".repeat(2000));
        let found = [
            Found::Unknown,
            Found::Current { commit },
            Found::Newer { commit, signer: text.clone(), declaration: Digest::of(b"") },
            Found::Refused { commit, why: Why::OtherSignature, detail: text.clone() },
        ];
        for (found, state) in found.into_iter().zip(Found::STATES) {
            assert_eq!(found.as_str(), state);
            let status = FollowStatus {
                branch: "é".repeat(100).parse().unwrap(),
                apply: true,
                found,
                at: Timestamp::EPOCH,
                newest: Some(commit),
                checked_at: Some(TimestampMillis::from_clock(std::time::UNIX_EPOCH)),
                problem: Some(text.clone()),
            };
            let bytes = json::to_vec(&status).unwrap();
            assert!(bytes.len() < MAX_BYTES / 2, "{}", bytes.len());
            assert_eq!(FollowStatus::parse(&bytes).unwrap(), status);
            assert!(String::from_utf8(bytes).unwrap().contains(&format!("\"state\":\"{state}\"")));
        }
    }
}
