//! The status file of one service: what whoever runs it is doing, for those who ask.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::files;

/// Where a service is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its image is being fetched; `detail` says what went wrong last, if anything.
    Pulling,
    /// Secrets are missing (`missing`), or a service that it depends on has not started (`detail`).
    Waiting,
    /// The container is being made.
    Starting,
    /// The workload runs.
    Running,
    /// The workload ended and will start again.
    Restarting,
    /// The workload ended and stays ended.
    Exited,
    /// It cannot be started as it is; `detail` says why.
    Failed,
}

/// The file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// Where it is.
    pub state: State,
    /// Secrets that hold no value yet, as `secret://…`; empty unless it waits for them.
    pub missing: Vec<String>,
    /// The workload's process, in the appliance's own counting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// How often the workload was started again.
    pub restarts: u32,
    /// How the workload last ended; 128 and the signal's number for a signal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// One line for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// When it came to this, RFC 3339 in UTC.
    pub since: String,
}

/// Keeps one service's file up to date.
#[derive(Debug)]
pub struct Reporter {
    path: PathBuf,
    current: Status,
}

impl Reporter {
    /// Starts with `pulling`. Nothing is written yet.
    pub fn new(path: PathBuf) -> Self {
        let current = Status {
            state: State::Pulling,
            missing: Vec::new(),
            pid: None,
            restarts: 0,
            exit_code: None,
            detail: None,
            since: now(),
        };
        Self { path, current }
    }

    /// Changes what is said, and writes it when it differs from before.
    ///
    /// # Errors
    ///
    /// The file cannot be replaced.
    pub fn report(&mut self, state: State, change: impl FnOnce(&mut Status)) -> io::Result<()> {
        let before = self.current.clone();
        self.current.state = state;
        self.current.missing.clear();
        self.current.pid = None;
        self.current.detail = None;
        change(&mut self.current);
        if self.current == before && self.path.exists() {
            return Ok(());
        }
        if before.state != state {
            self.current.since = now();
        }
        files::replace(&self.path, &serde_json::to_vec(&self.current)?)
    }
}

/// The wall clock as RFC 3339 in UTC with milliseconds; it belongs to the host and is for people only.
pub(crate) fn now() -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    OffsetDateTime::now_utc().format(&format).unwrap_or_default()
}
