//! The role that waits until what was put instead of something else is up: it runs once for each change, and ends.
//!
//! PID 1 has written down which services it started: what the others were before, they are, and that is no reason to go back. It reads from
//! their shims' files how they are, and decides: exit code 0 when all of them are up, else 1 and a line in `why`, which has a service, its
//! state and what its shim says of it, and nothing that a workload printed. It changes nothing: whoever started it goes on or goes back.
//!
//! A shim says in its file what it likes, of its own service alone. So one that fell can let a change pass or fail, as its workload
//! can by what it answers to its probes. What a shim that has ended left in its file is not told from what its successor says:
//! whoever starts that removes the file before.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cofferdam_declaration::{Healthcheck, Probe, Restart};
use cofferdam_protocol::events;
use cofferdam_protocol::status::{HealthState, MAX_FILE, ServiceState, ServiceStatus};

use super::Role;
use super::facts::{Facts, ServiceFacts};
use super::front::untrusted_file;
use crate::paths;
use crate::system::files;

/// How long services have to come up. Images are there by then; what is left is starting, waiting for each other and the first
/// successful probe, of which Docker's defaults allow 90 s, and under software emulation each takes several times as long.
const LIMIT: Duration = Duration::from_secs(300);
/// How long all of them have to stay up. One without a health check is up as soon as it was started, and a program that cannot
/// work ends within its first seconds.
const STEADY: Duration = Duration::from_secs(3);
/// Between two looks, which are a small file for each service.
const PAUSE: Duration = Duration::from_millis(200);
/// Starts again that are forgiven: a service may end for want of one that is not up yet.
const RESTARTS: u32 = 3;

/// Waits, and ends.
///
/// # Errors
///
/// The services did not come up, or it cannot be told. What is said of it is one bounded line.
pub(crate) fn run(role: &Role) -> anyhow::Result<()> {
    role.confine()?;
    let why = PathBuf::from(paths::GATE_DIR).join("why");
    let waited = remove(&why).map_err(|error| error.to_string()).and_then(|()| {
        let facts = Facts::read(Path::new(paths::FACTS_NEXT)).map_err(|error| error.to_string())?;
        wait(&facts.services)
    });
    waited.map_err(|reason| {
        let reason = events::bounded(&reason);
        if let Err(error) = files::replace(&why, reason.as_bytes()) {
            eprintln!("gate: cannot write {}: {error}", why.display());
        }
        anyhow::anyhow!(reason)
    })
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn wait(services: &[ServiceFacts]) -> Result<(), String> {
    let mut gate = Gate::new(services.iter().map(Watched::new).collect());
    let began = Instant::now();
    loop {
        let statuses = services.iter().map(|service| {
            let bytes = untrusted_file::contents(&service.status(), MAX_FILE as u64)?;
            ServiceStatus::parse(&bytes).ok()
        });
        if let Some(done) = gate.look(began.elapsed(), statuses) {
            return done;
        }
        std::thread::sleep(PAUSE);
    }
}

/// A service as it is declared, and how often it had started again when it was first seen.
struct Watched {
    name: String,
    restart: Restart,
    healthcheck: Healthcheck,
    restarts: Option<u32>,
}

/// What one look at a service comes to.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// It is up.
    Up,
    /// It may come up yet.
    NotYet,
    /// It does not.
    Down,
}

/// All of them.
struct Gate {
    services: Vec<Watched>,
    /// Since when all are up, in the gate's own time.
    up_since: Option<Duration>,
}

impl Watched {
    fn new(service: &ServiceFacts) -> Self {
        let declared = &service.declared;
        Self {
            name: declared.name.clone(),
            restart: declared.restart,
            healthcheck: declared.healthcheck.clone(),
            restarts: None,
        }
    }

    /// What its shim says comes to. The number of restarts goes back when the shim is a new one.
    fn see(&mut self, status: &ServiceStatus) -> Seen {
        let first = self.restarts.map_or(status.restarts, |first| first.min(status.restarts));
        self.restarts = Some(first);
        if status.restarts.saturating_sub(first) > RESTARTS {
            return Seen::Down;
        }
        match status.state {
            ServiceState::Running => match &status.health {
                Some(health) => match health.state {
                    HealthState::Healthy => Seen::Up,
                    HealthState::Starting => Seen::NotYet,
                    HealthState::Unhealthy => Seen::Down,
                },
                // Whether the image has a check its shim knows, and says so as soon as the workload runs.
                None if matches!(self.healthcheck.probe, Probe::Image | Probe::Off) => Seen::Up,
                None => Seen::NotYet,
            },
            // An operator wants it so.
            ServiceState::Stopped => Seen::Up,
            ServiceState::Exited if status.exit_code == Some(0) && self.restart != Restart::Always => {
                Seen::Up
            }
            ServiceState::Exited | ServiceState::Failed => Seen::Down,
            ServiceState::Pending
            | ServiceState::Pulling
            | ServiceState::Waiting
            | ServiceState::Starting
            | ServiceState::Restarting => Seen::NotYet,
        }
    }

    /// What is said of it, for people.
    fn describe(&self, status: Option<&ServiceStatus>) -> String {
        let name = &self.name;
        let Some(status) = status else { return format!("service {name} is pending") };
        let mut text = format!("service {name} is {}", status.state.as_str());
        if let Some(health) = status.health.as_ref().filter(|health| health.state != HealthState::Healthy) {
            text.push_str(&format!(" and {}", health.state.as_str()));
        }
        let restarts = status.restarts.saturating_sub(self.restarts.unwrap_or_default());
        if restarts > 0 {
            text.push_str(&format!(", started again {restarts} times"));
        }
        if let Some(code) = status.exit_code {
            text.push_str(&format!(", last exit code {code}"));
        }
        if !status.missing.is_empty() {
            let missing: Vec<String> = status.missing.iter().map(ToString::to_string).collect();
            text.push_str(&format!(", without {}", missing.join(" ")));
        }
        if let Some(detail) = &status.detail {
            text.push_str(&format!(": {detail}"));
        }
        text
    }
}

impl Gate {
    fn new(services: Vec<Watched>) -> Self {
        Self { services, up_since: None }
    }

    /// One look at `at` after the beginning: whether all came up, or why not; `None` while it is not decided.
    fn look(
        &mut self,
        at: Duration,
        statuses: impl Iterator<Item = Option<ServiceStatus>>,
    ) -> Option<Result<(), String>> {
        let mut missing = None;
        for (service, status) in self.services.iter_mut().zip(statuses) {
            let seen = status.as_ref().map_or(Seen::NotYet, |status| service.see(status));
            match seen {
                Seen::Up => {}
                Seen::Down => return Some(Err(service.describe(status.as_ref()))),
                Seen::NotYet if missing.is_none() => missing = Some(service.describe(status.as_ref())),
                Seen::NotYet => {}
            }
        }
        match missing {
            None => {
                let since = *self.up_since.get_or_insert(at);
                (at.saturating_sub(since) >= STEADY).then_some(Ok(()))
            }
            Some(missing) => {
                self.up_since = None;
                (at >= LIMIT).then(|| Err(format!("{missing}, after {} s", LIMIT.as_secs())))
            }
        }
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
