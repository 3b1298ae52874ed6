//! The status file of one service: what whoever runs it is doing, for those who ask.

use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use cofferdam_protocol::TimestampMillis;
use cofferdam_protocol::status::{Health, ServiceState, ServiceStatus};

use crate::files;

/// Keeps one service's file up to date.
#[derive(Debug)]
pub struct Reporter {
    path: PathBuf,
    current: ServiceStatus,
}

impl Reporter {
    /// Starts with `pulling`. Nothing is written yet.
    pub fn new(path: PathBuf) -> Self {
        let current = ServiceStatus {
            state: ServiceState::Pulling,
            missing: Vec::new(),
            pid: None,
            restarts: 0,
            exit_code: None,
            killed: None,
            detail: None,
            since: now(),
            order: None,
            usage: None,
            health: None,
        };
        Self { path, current }
    }

    /// Says how the workload's probes went, in the state that it is in.
    ///
    /// # Errors
    ///
    /// The file cannot be replaced.
    pub fn health(&mut self, health: Health) -> io::Result<()> {
        if self.current.health.as_ref() == Some(&health) {
            return Ok(());
        }
        self.current.health = Some(health);
        self.write()
    }

    /// Changes what is said, and writes it when it differs from before.
    ///
    /// # Errors
    ///
    /// The file cannot be replaced.
    pub fn report(&mut self, state: ServiceState, change: impl FnOnce(&mut ServiceStatus)) -> io::Result<()> {
        let before = self.current.clone();
        self.current.state = state;
        self.current.missing.clear();
        self.current.pid = None;
        self.current.detail = None;
        self.current.health = None;
        change(&mut self.current);
        if self.current == before && self.path.exists() {
            return Ok(());
        }
        if before.state != state {
            self.current.since = now();
        }
        self.write()
    }

    fn write(&self) -> io::Result<()> {
        files::replace(&self.path, &serde_json::to_vec(&self.current)?)
    }
}

/// The wall clock; it belongs to the host and is for people only.
pub(crate) fn now() -> TimestampMillis {
    TimestampMillis::from_clock(SystemTime::now())
}
