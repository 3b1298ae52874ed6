//! What became of the declarations that were to follow the one of the boot: `changes.json`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::json::{self, JsonError};
use crate::{Commit, Digest, Timestamp};

/// Changes that are remembered; the oldest is forgotten for a further one.
pub const MAX: usize = 16;
/// Bound on the file in bytes.
pub const MAX_BYTES: usize = 64 * 1024;

/// `changes.json`, written by PID 1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Changes {
    /// How many there were since the boot.
    pub counts: Counts,
    /// The last ones, the oldest first.
    pub changes: Vec<Change>,
}

/// How often each outcome came about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Counts {
    /// [`Outcome::Applied`].
    pub applied: u64,
    /// [`Outcome::Refused`].
    pub refused: u64,
    /// [`Outcome::RolledBack`].
    pub rolled_back: u64,
}

/// What became of one declaration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// The commit that declares it.
    pub commit: Commit,
    /// Digest of its exact bytes.
    pub declaration: Digest,
    /// When that was known.
    pub at: Timestamp,
    /// What became of it.
    pub outcome: Outcome,
    /// Why, where it does not run; bounded and visible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What becomes of a declaration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It runs, or ran until the next one did.
    Applied,
    /// Nothing was done for it.
    Refused,
    /// It was measured and did not come up; the one before runs again.
    RolledBack,
}

impl Changes {
    /// Reads the file.
    ///
    /// # Errors
    /// It is too large or not of this shape.
    pub fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        json::from_json(bytes, MAX_BYTES)
    }

    /// Remembers one more.
    pub fn add(&mut self, change: Change) {
        let count = match change.outcome {
            Outcome::Applied => &mut self.counts.applied,
            Outcome::Refused => &mut self.counts.refused,
            Outcome::RolledBack => &mut self.counts.rolled_back,
        };
        *count = count.saturating_add(1);
        self.changes.push(change);
        let surplus = self.changes.len().saturating_sub(MAX);
        self.changes.drain(..surplus);
    }

    /// What became last of what a commit declares.
    pub fn of(&self, commit: &Commit) -> Option<&Change> {
        self.changes.iter().rev().find(|change| change.commit == *commit)
    }

    /// Whether this commit was judged, and is not tried again.
    pub fn is_final(&self, commit: &Commit) -> bool {
        self.changes.iter().any(|change| change.commit == *commit && change.outcome != Outcome::Applied)
    }
}

impl Counts {
    /// Each outcome with how often it came about, for metrics.
    pub const fn named(self) -> [(Outcome, u64); 3] {
        [
            (Outcome::Applied, self.applied),
            (Outcome::Refused, self.refused),
            (Outcome::RolledBack, self.rolled_back),
        ]
    }
}

impl Outcome {
    /// The words in JSON, for metrics.
    pub const ALL: [Self; 3] = [Self::Applied, Self::Refused, Self::RolledBack];

    /// The word in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Refused => "refused",
            Self::RolledBack => "rolled-back",
        }
    }
}

impl fmt::Display for Change {
    /// For people, in one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.outcome {
            Outcome::Applied => "runs",
            Outcome::Refused => "is refused",
            Outcome::RolledBack => "did not come up, and what ran before runs again",
        };
        write!(f, "commit {:.12} {what}", self.commit.to_string())?;
        self.detail.iter().try_for_each(|detail| write!(f, ": {detail}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::bounded;

    #[test]
    fn the_largest_file_is_within_its_bound_and_the_oldest_change_is_forgotten() {
        let text = bounded(&"\"".repeat(2000));
        let mut changes = Changes::default();
        for number in 0..40 {
            let [applied, refused, rolled_back] = Outcome::ALL;
            changes.add(Change {
                commit: Commit::from([number; 20]),
                declaration: Digest::of([number]),
                at: Timestamp::EPOCH,
                outcome: if number == 30 {
                    applied
                } else if number % 2 == 0 {
                    refused
                } else {
                    rolled_back
                },
                detail: Some(text.clone()),
            });
        }
        assert_eq!(changes.changes.len(), MAX);
        assert_eq!(changes.counts, Counts { applied: 1, refused: 19, rolled_back: 20 });
        let outcome = |number| changes.of(&Commit::from([number; 20])).map(|change| change.outcome);
        assert_eq!([2, 30, 38].map(outcome), [None, Some(Outcome::Applied), Some(Outcome::Refused)]);
        let bytes = json::to_vec(&changes).unwrap();
        assert!(bytes.len() < MAX_BYTES, "{}", bytes.len());
        assert_eq!(Changes::parse(&bytes).unwrap(), changes);
        let last = [39, 38, 30, 2].map(|number| changes.is_final(&Commit::from([number; 20])));
        assert_eq!(last, [true, true, false, false]);
        let json = String::from_utf8(bytes).unwrap();
        for outcome in Outcome::ALL {
            assert!(json.contains(&format!("\"outcome\":\"{}\"", outcome.as_str())));
        }
        let said = changes.changes[0].to_string();
        assert!(said.starts_with("commit 181818181818 is refused: \"\""), "{said}");
    }
}
