//! `publish/status.json`: what the role is doing, for people.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use cofferdam_protocol::events::{self, Happened};
use cofferdam_protocol::status::{MAX_FILE, PublishState, PublishStatus};
use cofferdam_protocol::{Timestamp, TimestampMillis, json};

use crate::system::files;
use crate::system::ring::Ring;

/// Bound on the detail in characters.
const MAX_DETAIL: usize = 500;

/// The status with the file that shows it.
#[derive(Debug)]
pub(crate) struct StatusFile {
    path: PathBuf,
    status: PublishStatus,
    events: Arc<Ring>,
}

impl StatusFile {
    /// Takes up the release that a predecessor's status names, if there is one.
    pub(crate) fn open(path: PathBuf, events: Arc<Ring>) -> Self {
        let previous = files::read_bounded(&path, MAX_FILE as u64).ok();
        let previous = previous.and_then(|bytes| PublishStatus::parse(&bytes).ok());
        let fresh = PublishStatus {
            state: PublishState::Waiting,
            detail: None,
            tag: None,
            release_url: None,
            at: now(),
            expires_at: None,
            checked_at: None,
        };
        Self { path, status: previous.unwrap_or(fresh), events }
    }

    /// What the file says.
    pub(crate) fn status(&self) -> &PublishStatus {
        &self.status
    }

    /// Says a state and why. Printed too when it is new.
    pub(crate) fn set(&mut self, state: PublishState, detail: &str) {
        let detail: String = detail.chars().filter(|c| !c.is_control()).take(MAX_DETAIL).collect();
        let detail = Some(detail).filter(|detail| !detail.is_empty());
        if self.status.state != state || self.status.detail != detail {
            println!("publish: {state:?}{}", detail.as_deref().map(|d| format!(": {d}")).unwrap_or_default());
            let told = detail.as_deref().map(events::bounded);
            self.events.tell(Happened::Publish { state, detail: told });
            self.status = PublishStatus { state, detail, at: now(), ..self.status.clone() };
        }
        self.write();
    }

    /// Says that a release is published.
    pub(crate) fn published(&mut self, tag: String, url: Option<String>, expires_at: Timestamp) {
        self.status.tag = Some(tag);
        self.status.release_url = url;
        self.status.expires_at = Some(expires_at);
        self.status.checked_at = Some(TimestampMillis::from_clock(SystemTime::now()));
        self.set(PublishState::Published, "");
    }

    /// Takes the release of a predecessor as published, about which there may be something to say.
    pub(crate) fn kept(&mut self, tag: String, url: Option<String>, expires_at: Timestamp) {
        let same = self.status.tag.as_ref() == Some(&tag);
        self.status.tag = Some(tag);
        self.status.release_url = url;
        self.status.expires_at = Some(expires_at);
        if !same || !matches!(self.status.state, PublishState::Published | PublishState::Contested) {
            self.set(PublishState::Published, "");
        }
    }

    /// Says what a look at the releases came to.
    pub(crate) fn looked(&mut self, state: PublishState, detail: &str) {
        self.status.checked_at = Some(TimestampMillis::from_clock(SystemTime::now()));
        self.set(state, detail);
    }

    fn write(&self) {
        let written = json::to_vec(&self.status).map_err(io::Error::other);
        if let Err(error) = written.and_then(|bytes| files::replace(&self.path, &bytes)) {
            eprintln!("publish: cannot write {}: {error}", self.path.display());
        }
    }
}

fn now() -> Timestamp {
    Timestamp::from_clock(SystemTime::now()).unwrap_or(Timestamp::EPOCH)
}
