//! `publish/status.json`: what the role is doing, for people.

use std::path::PathBuf;

use cofferdam_attest::claims;
use serde::{Deserialize, Serialize};

use crate::roles::clock;
use crate::system::files;

/// Bound on the file in bytes, and on the detail in it in characters.
const MAX_BYTES: u64 = 16 * 1024;
const MAX_DETAIL: usize = 500;

/// What the role is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// Something that somebody else has to provide is missing.
    Waiting,
    /// A release is being made.
    Publishing,
    /// A true attestation is published.
    Published,
    /// An attempt failed; there will be another.
    Failed,
}

/// The file. `tag`, `release_url` and `expires_at` are those of the last release that was published in this boot,
/// whatever has happened since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Status {
    /// What the role is doing.
    pub(crate) state: State,
    /// Why, or what for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) detail: Option<String>,
    /// Tag of the release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tag: Option<String>,
    /// Its page for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) release_url: Option<String>,
    /// Since when the state is what it is, RFC 3339.
    pub(crate) at: String,
    /// When the published claims cease to hold, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<String>,
}

/// The status with the file that shows it.
#[derive(Debug)]
pub(crate) struct StatusFile {
    path: PathBuf,
    status: Status,
}

impl StatusFile {
    /// Takes up the release that a predecessor's status names, if there is one.
    pub(crate) fn open(path: PathBuf) -> Self {
        let previous = files::read_bounded(&path, MAX_BYTES).ok();
        let previous = previous.and_then(|bytes| serde_json::from_slice::<Status>(&bytes).ok());
        let fresh = Status {
            state: State::Waiting,
            detail: None,
            tag: None,
            release_url: None,
            at: now(),
            expires_at: None,
        };
        Self { path, status: previous.unwrap_or(fresh) }
    }

    /// What the file says.
    pub(crate) fn status(&self) -> &Status {
        &self.status
    }

    /// Says a state and why. Printed too when it is new.
    pub(crate) fn set(&mut self, state: State, detail: &str) {
        let detail: String = detail.chars().filter(|c| !c.is_control()).take(MAX_DETAIL).collect();
        let detail = Some(detail).filter(|detail| !detail.is_empty());
        if self.status.state != state || self.status.detail != detail {
            println!("publish: {state:?}{}", detail.as_deref().map(|d| format!(": {d}")).unwrap_or_default());
            self.status = Status { state, detail, at: now(), ..self.status.clone() };
        }
        self.write();
    }

    /// Says that a release is published.
    pub(crate) fn published(&mut self, tag: String, url: Option<String>, expires_at: String) {
        self.status.tag = Some(tag);
        self.status.release_url = url;
        self.status.expires_at = Some(expires_at);
        self.set(State::Published, "");
    }

    fn write(&self) {
        let bytes = serde_json::to_vec(&self.status).unwrap_or_default();
        if let Err(error) = files::replace(&self.path, &bytes) {
            eprintln!("publish: cannot write {}: {error}", self.path.display());
        }
    }
}

fn now() -> String {
    claims::format_time(clock::unix_now()).unwrap_or_default()
}
