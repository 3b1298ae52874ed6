//! The wall clock, which the host gives and PID 1 mends. It decides only what certificates and claims need, and it may shorten what it cannot
//! lengthen: a [`Moment`] also comes when the monotonic clock says that the time until it has passed. Who holds something with dates
//! hears when it is set ([`Steps`]).

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use cofferdam_protocol::unix_seconds;
use nix::errno::Errno;
use nix::libc::TFD_TIMER_CANCEL_ON_SET;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::unistd::read;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::system::sys;

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

/// Says when the clock is set: not when it is slewed, and not when the machine stood still, which its kernel does not see.
#[derive(Debug, Clone)]
pub(crate) struct Steps(watch::Receiver<u64>);

/// When the timer would go off by itself, in seconds since the Unix epoch: in the year 9999.
const NEVER: i64 = 253_402_300_799;

impl Steps {
    /// Watches the clock on the current runtime, which is not woken while the clock is left alone: the kernel cancels a timer
    /// (timerfd_create(2), `TFD_TIMER_CANCEL_ON_SET`).
    ///
    /// # Errors
    /// The kernel has no such timer.
    pub(crate) fn watch() -> io::Result<Self> {
        let timer =
            TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        // nix has no name for the second flag.
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME
            | TimerSetTimeFlags::from_bits_retain(TFD_TIMER_CANCEL_ON_SET);
        timer.set(Expiration::OneShot(TimeSpec::new(NEVER, 0)), flags)?;
        let timer = sys::watch(OwnedFd::from(timer))?;
        let (sender, steps) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok(mut ready) = timer.readable().await {
                match read(timer.get_ref(), &mut [0; 8]) {
                    Err(Errno::EAGAIN) => ready.clear_ready(),
                    Err(Errno::ECANCELED) => {
                        sender.send_modify(|count: &mut u64| *count = count.wrapping_add(1))
                    }
                    _ => return,
                }
            }
        });
        Ok(Self(steps))
    }

    /// Those that a test makes.
    #[cfg(test)]
    pub(crate) fn made() -> (watch::Sender<u64>, Self) {
        let (sender, steps) = watch::channel(0);
        (sender, Self(steps))
    }

    /// Waits until the clock has been set since the last time that this was waited for.
    pub(crate) async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_clock_that_is_left_alone_wakes_nobody() {
        let mut steps = Steps::watch().unwrap();
        tokio::time::timeout(Duration::from_millis(200), steps.next()).await.unwrap_err();
        let (sender, mut steps) = Steps::made();
        sender.send_modify(|count| *count += 1);
        steps.next().await;
        tokio::time::timeout(Duration::from_millis(50), steps.next()).await.unwrap_err();
    }

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
