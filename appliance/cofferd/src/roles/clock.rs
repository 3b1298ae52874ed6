//! The host's wall clock. It decides only what certificates and claims need, and it may shorten what it cannot
//! lengthen: a [`Moment`] also comes when the monotonic clock says that the time until it has passed.

use std::time::{Duration, SystemTime};

use cofferdam_protocol::unix_seconds;
use tokio::time::Instant;

/// Longest single sleep towards a moment of the wall clock, so that a clock that the host moves is noticed.
const STRIDE: Duration = Duration::from_secs(60);

/// Longest time to a moment; what is further away was not meant as a time.
const FURTHEST: Duration = Duration::from_secs(400 * 24 * 60 * 60);

/// Seconds since the Unix epoch; 0 for a clock before it.
pub(crate) fn unix_now() -> u64 {
    unix_seconds(SystemTime::now())
}

/// A time of the wall clock, seen from now: a host that turns its clock back does not put it off.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    unix: u64,
    latest: Instant,
}

impl Moment {
    /// The moment at `unix` seconds since the Unix epoch.
    pub(crate) fn at(unix: u64) -> Self {
        let left = Duration::from_secs(unix.saturating_sub(unix_now())).min(FURTHEST);
        Self { unix, latest: Instant::now() + left }
    }

    /// Whether either clock has reached it.
    pub(crate) fn has_come(&self) -> bool {
        self.left().is_zero()
    }

    /// Sleeps until it has come.
    pub(crate) async fn wait(&self) {
        loop {
            let left = self.left();
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(STRIDE)).await;
        }
    }

    /// What is left until the first of the two clocks reaches it.
    fn left(&self) -> Duration {
        let wall = Duration::from_secs(self.unix.saturating_sub(unix_now()));
        wall.min(self.latest.saturating_duration_since(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_moment_comes_although_the_wall_clock_stands_still() {
        // With the runtime's clock paused and then skipped ahead, the wall clock stands still in comparison.
        let moment = Moment::at(unix_now() + 3600);
        assert!(!moment.has_come());
        let before = Instant::now();
        moment.wait().await;
        assert!(moment.has_come());
        assert!(before.elapsed() >= Duration::from_secs(3599));
        assert!(before.elapsed() < Duration::from_secs(3700));
    }

    #[tokio::test(start_paused = true)]
    async fn a_moment_comes_when_the_wall_clock_says_so() {
        let moment = Moment { unix: unix_now(), latest: Instant::now() + FURTHEST };
        assert!(moment.has_come());
        assert!(Moment::at(0).has_come());
        assert!(!Moment::at(u64::MAX).has_come());
    }
}
