//! Whether a workload is healthy: when it is probed next, and what the answers add up to. The rules are Docker's.
//!
//! Nothing here probes or waits; time comes in as the time since the workload's start.

use std::time::Duration;

use cofferdam_declaration::{Healthcheck, Probe};
use cofferdam_protocol::status::HealthState;
use cofferdam_registry::image::ImageHealth;

/// Docker's, where neither declaration nor image say anything else.
const INTERVAL: Duration = Duration::from_secs(30);
/// See [`INTERVAL`].
const TIMEOUT: Duration = Duration::from_secs(30);
/// See [`INTERVAL`].
const RETRIES: u32 = 3;
/// See [`INTERVAL`].
const START_INTERVAL: Duration = Duration::from_secs(5);
/// An image may ask for less; a probe is a process.
const LEAST: Duration = Duration::from_secs(1);
/// An image may ask for more.
const MOST: Duration = Duration::from_secs(24 * 3600);

/// How a workload is probed, when it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What is tried.
    pub test: Test,
    /// When.
    pub schedule: Schedule,
}

/// What is tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// A program of the image, as the workload's user; not empty.
    Program(Vec<String>),
    /// A `GET` of this path at this port.
    Http {
        /// Of the workload.
        port: u16,
        /// With its slash.
        path: String,
    },
    /// A connection to this port.
    Tcp {
        /// Of the workload.
        port: u16,
    },
}

/// When it is tried, and what counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// Between the end of a probe and the next one.
    pub interval: Duration,
    /// How long one may take.
    pub timeout: Duration,
    /// Failures in a row that make the workload unhealthy.
    pub retries: u32,
    /// How long failures do not count after the start, until the first success.
    pub start_period: Duration,
    /// The interval in that time.
    pub start_interval: Duration,
}

impl Check {
    /// What the declaration says, and where it says nothing the image. `None` when nothing is to be tried.
    pub fn of(declared: &Healthcheck, image: &ImageHealth) -> Option<Self> {
        let shell = |line: &String| Test::Program(vec!["/bin/sh".into(), "-c".into(), line.clone()]);
        let test = match &declared.probe {
            Probe::Off => return None,
            Probe::Command(words) => Test::Program(words.clone()),
            Probe::Shell(line) => shell(line),
            Probe::Http { port, path } => Test::Http { port: *port, path: path.clone() },
            Probe::Tcp { port } => Test::Tcp { port: *port },
            Probe::Image => match image.test.split_first() {
                Some((kind, words)) if kind == "CMD" && !words.is_empty() => Test::Program(words.to_vec()),
                Some((kind, [line])) if kind == "CMD-SHELL" => shell(line),
                _ => return None,
            },
        };
        let images = declared.probe == Probe::Image;
        let time = |declared: Option<Duration>, image: u64, otherwise: Duration| {
            let image = Some(image).filter(|time| *time > 0 && images).map(Duration::from_nanos);
            declared.or(image).unwrap_or(otherwise)
        };
        let retries = Some(image.retries).filter(|retries| *retries > 0 && images);
        let schedule = Schedule {
            interval: time(declared.interval, image.interval, INTERVAL).clamp(LEAST, MOST),
            timeout: time(declared.timeout, image.timeout, TIMEOUT).min(MOST),
            retries: declared.retries.or(retries).unwrap_or(RETRIES).max(1),
            start_period: time(declared.start_period, image.start_period, Duration::ZERO).min(MOST),
            start_interval: time(declared.start_interval, image.start_interval, START_INTERVAL)
                .clamp(LEAST, MOST),
        };
        Some(Self { test, schedule })
    }
}

/// What the probes of one run of a workload add up to.
#[derive(Debug)]
pub struct Health {
    schedule: Schedule,
    state: HealthState,
    failures: u32,
}

impl Health {
    /// Of a workload that has just been started.
    pub fn new(schedule: Schedule) -> Self {
        Self { schedule, state: HealthState::Starting, failures: 0 }
    }

    /// What they add up to.
    pub fn state(&self) -> HealthState {
        self.state
    }

    /// Failures in a row that counted.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// How long to wait before the next probe.
    pub fn wait(&self, since_start: Duration) -> Duration {
        let Schedule { interval, start_period, start_interval, .. } = self.schedule;
        let starting = self.state == HealthState::Starting && since_start < start_period;
        if starting { start_interval } else { interval }
    }

    /// Takes in how a probe went that ended now.
    pub fn heard(&mut self, succeeded: bool, since_start: Duration) {
        if succeeded {
            self.state = HealthState::Healthy;
            self.failures = 0;
            return;
        }
        if self.state == HealthState::Starting && since_start < self.schedule.start_period {
            return;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures >= self.schedule.retries {
            self.state = HealthState::Unhealthy;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn schedule() -> Schedule {
        Schedule {
            interval: 10 * SECOND,
            timeout: SECOND,
            retries: 3,
            start_period: 60 * SECOND,
            start_interval: 2 * SECOND,
        }
    }

    #[test]
    fn failures_count_in_a_row_and_one_success_makes_it_healthy_again() {
        let mut health = Health::new(Schedule { start_period: Duration::ZERO, ..schedule() });
        let mut states = Vec::new();
        for (at, succeeded) in [false, false, true, false, false, false, false, true].into_iter().enumerate()
        {
            health.heard(succeeded, SECOND * u32::try_from(at).unwrap());
            states.push((health.state(), health.failures()));
        }
        use HealthState::{Healthy, Starting, Unhealthy};
        assert_eq!(
            states,
            [
                (Starting, 1),
                (Starting, 2),
                (Healthy, 0),
                (Healthy, 1),
                (Healthy, 2),
                (Unhealthy, 3),
                (Unhealthy, 4),
                (Healthy, 0)
            ]
        );
    }

    #[test]
    fn in_the_start_period_failures_do_not_count_and_probes_come_sooner() {
        let mut health = Health::new(schedule());
        assert_eq!(health.wait(Duration::ZERO), 2 * SECOND);
        for _ in 0..20 {
            health.heard(false, 59 * SECOND);
        }
        assert_eq!((health.state(), health.failures()), (HealthState::Starting, 0));
        assert_eq!(health.wait(60 * SECOND), 10 * SECOND);
        health.heard(false, 60 * SECOND);
        assert_eq!(health.failures(), 1);
        // The first success ends the period: what fails after it counts.
        let mut health = Health::new(schedule());
        health.heard(true, SECOND);
        assert_eq!(health.wait(SECOND), 10 * SECOND);
        for _ in 0..3 {
            health.heard(false, 2 * SECOND);
        }
        assert_eq!(health.state(), HealthState::Unhealthy);
    }

    #[test]
    fn the_declaration_comes_before_the_image_and_the_image_before_dockers_defaults() {
        let image = ImageHealth {
            test: ["CMD-SHELL", "curl -f localhost"].map(String::from).into(),
            interval: 5_000_000_000,
            retries: 7,
            ..ImageHealth::default()
        };
        let of = |declared: Healthcheck| Check::of(&declared, &image);
        let own = of(Healthcheck::default()).unwrap();
        assert_eq!(own.test, Test::Program(["/bin/sh", "-c", "curl -f localhost"].map(String::from).into()));
        assert_eq!((own.schedule.interval, own.schedule.retries), (5 * SECOND, 7));
        assert_eq!((own.schedule.timeout, own.schedule.start_period), (TIMEOUT, Duration::ZERO));
        let slower = of(Healthcheck { interval: Some(9 * SECOND), ..Healthcheck::default() }).unwrap();
        assert_eq!((slower.schedule.interval, slower.schedule.retries), (9 * SECOND, 7));
        // Another test is another check: what the image says of its own does not hold for it.
        let tcp = of(Healthcheck { probe: Probe::Tcp { port: 5432 }, ..Healthcheck::default() }).unwrap();
        assert_eq!((tcp.test, tcp.schedule.interval), (Test::Tcp { port: 5432 }, INTERVAL));
        assert_eq!(of(Healthcheck { probe: Probe::Off, ..Healthcheck::default() }), None);
        assert_eq!(Check::of(&Healthcheck::default(), &ImageHealth::default()), None);
        let quick = ImageHealth { interval: 1, start_interval: 1, ..image.clone() };
        let quick = Check::of(&Healthcheck::default(), &quick).unwrap().schedule;
        assert_eq!((quick.interval, quick.start_interval), (LEAST, LEAST), "no image busies the machine");
    }
}
