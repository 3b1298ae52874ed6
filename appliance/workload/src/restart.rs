//! When an ended workload starts again, and how long that waits (Docker's restart policies and back-off).

use std::time::Duration;

use cofferdam_declaration::Restart;
use serde::{Deserialize, Serialize};

/// The first wait.
const FIRST: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(60);
/// A workload that ran this long was sound: its next end is a new event.
const SOUND: Duration = Duration::from_secs(10);

/// How a workload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Signalled(i32),
}

impl End {
    /// As a shell counts: a signal is 128 and its number.
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signalled(signal) => signal.saturating_add(128),
        }
    }
}

/// Counts the ends of one service in a row.
#[derive(Debug)]
pub struct Policy {
    restart: Restart,
    /// Failures since the last sound run: what `on-failure:N` bounds.
    failures: u32,
    wait: Duration,
}

impl Policy {
    /// A service that has not run yet.
    pub fn new(restart: Restart) -> Self {
        Self { restart, failures: 0, wait: FIRST }
    }

    /// How long to wait before the next start, or `None` when the workload stays ended.
    pub fn next(&mut self, end: End, ran: Duration) -> Option<Duration> {
        if ran >= SOUND {
            self.failures = 0;
            self.wait = FIRST;
        }
        let failed = end != End::Exited(0);
        if failed {
            self.failures = self.failures.saturating_add(1);
        }
        let again = match self.restart {
            Restart::No => false,
            // Nothing stops a single service yet, so `unless-stopped` is `always`.
            Restart::Always | Restart::UnlessStopped => true,
            Restart::OnFailure { max_retries } => {
                failed && max_retries.is_none_or(|max| self.failures <= max)
            }
        };
        let wait = self.wait;
        self.wait = wait.saturating_mul(2).min(LONGEST);
        again.then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_millis(5);

    #[test]
    fn waits_double_up_to_a_minute_and_start_over_after_a_sound_run() {
        let mut policy = Policy::new(Restart::Always);
        let waits: Vec<u128> =
            (0..12).map(|_| policy.next(End::Exited(1), QUICK).unwrap().as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000]);
        assert_eq!(policy.next(End::Exited(1), SOUND), Some(FIRST));
    }

    #[test]
    fn each_policy_keeps_its_word() {
        let next = |restart, end| Policy::new(restart).next(end, QUICK).is_some();
        assert!(!next(Restart::No, End::Exited(1)));
        assert!(next(Restart::Always, End::Exited(0)));
        assert!(next(Restart::UnlessStopped, End::Signalled(9)));
        assert!(!next(Restart::OnFailure { max_retries: None }, End::Exited(0)));
        assert!(next(Restart::OnFailure { max_retries: None }, End::Signalled(11)));
    }

    #[test]
    fn on_failure_gives_up_after_its_number() {
        let mut policy = Policy::new(Restart::OnFailure { max_retries: Some(2) });
        let again: Vec<bool> = (0..4).map(|_| policy.next(End::Exited(3), QUICK).is_some()).collect();
        assert_eq!(again, [true, true, false, false]);
        assert!(policy.next(End::Exited(3), SOUND).is_some(), "a sound run starts the count over");
    }

    #[test]
    fn codes_are_counted_as_a_shell_counts() {
        assert_eq!((End::Exited(3).code(), End::Signalled(9).code()), (3, 137));
    }
}
