//! The machine's clock, which PID 1 sets when the role `publish` says what time servers agree on.
//!
//! What it hears is one number of eight bytes: by how many milliseconds the wall clock should be ahead of the kernel's raw monotonic clock,
//! which nobody sets and nothing slews. So it means the same however late or often it is heard, and nothing is parsed.
//!
//! A role that an attacker has taken could say any number, and the host decides what the clock says at boot. So:
//!
//! - the clock never comes further than [`FURTHEST_MS`] from what the host's would say by now;
//! - it is changed at most once in [`PAUSE`], and not for less than [`LEAST_MS`];
//! - leases and time-outs run on the monotonic clock, which a step does not touch.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::rc::Rc;
use std::time::{Duration, Instant};

use cofferdam_protocol::status::{ClockChange, ClockHow};
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};

use super::sys;

/// Less is within what whole seconds and the way of an answer say.
pub(crate) const LEAST_MS: u64 = 2_000;

/// Up to here the clock is slewed, which takes less than three hours: it stays one that never jumps for programs.
pub(crate) const SLEWED_MS: u64 = 5_000;

/// Furthest from the host's clock, as it was at boot and counted on: an hour of summer, a time zone, a night's pause of the machine. A host
/// that is further off is wrong in another way, and whoever has taken `publish` gets no further either.
const FURTHEST_MS: u64 = 24 * 60 * 60 * 1000;

/// Shortest time between two looks at what was said. Each step costs a quote and lines on the console.
const PAUSE: Duration = Duration::from_secs(30);

/// Messages that are read at one look.
const AT_ONCE: usize = 16;

/// What two clocks say at one moment, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    /// The wall clock, since the Unix epoch.
    pub(crate) wall_ms: i64,
    /// The raw monotonic clock (`CLOCK_MONOTONIC_RAW`).
    pub(crate) raw_ms: i64,
}

impl Reading {
    /// Both, now.
    pub(crate) fn now() -> Self {
        // A clock that cannot be read is one that the kernel does not have, and it has these two.
        let read = |clock| clock_gettime(clock).map_or(0, |time| milliseconds(time.tv_sec(), time.tv_nsec()));
        Self { wall_ms: read(ClockId::CLOCK_REALTIME), raw_ms: read(ClockId::CLOCK_MONOTONIC_RAW) }
    }

    /// By how much the first is ahead of the second.
    pub(crate) fn offset(self) -> i64 {
        self.wall_ms.saturating_sub(self.raw_ms)
    }
}

fn milliseconds(seconds: i64, nanoseconds: i64) -> i64 {
    seconds.saturating_mul(1000).saturating_add(nanoseconds / 1_000_000)
}

/// PID 1's part: hears, judges, sets.
#[derive(Debug)]
pub(super) struct Clock {
    heard: UnixDatagram,
    lent: Rc<File>,
    /// The offset of the clock that the host gave.
    hosts_ms: i64,
    /// When it listens again.
    deaf_until: Option<Instant>,
    /// What was told last.
    last: Option<ClockChange>,
}

impl Clock {
    /// The clock as the host gave it.
    ///
    /// # Errors
    ///
    /// No socket.
    pub(super) fn of_host() -> io::Result<Self> {
        let (heard, lent) = UnixDatagram::pair()?;
        for end in [&heard, &lent] {
            end.set_nonblocking(true)?;
        }
        let lent = Rc::new(File::from(OwnedFd::from(lent)));
        Ok(Self { heard, lent, hosts_ms: Reading::now().offset(), deaf_until: None, last: None })
    }

    /// What `publish` writes to.
    pub(super) fn lent(&self) -> Rc<File> {
        Rc::clone(&self.lent)
    }

    /// What to wait for; `None` while it does not listen.
    pub(super) fn descriptor(&self, now: Instant) -> Option<BorrowedFd<'_>> {
        self.deaf_for(now).is_none().then(|| self.heard.as_fd())
    }

    /// How long it does not listen yet.
    pub(super) fn deaf_for(&self, now: Instant) -> Option<Duration> {
        self.deaf_until.and_then(|until| until.checked_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// Sets the clock if somebody has said what it should be. Returns what was done when that is news.
    ///
    /// # Errors
    ///
    /// The kernel does not let it.
    pub(super) fn turn(&mut self, now: Instant) -> Result<Option<ClockChange>, Errno> {
        if self.descriptor(now).is_none() {
            return Ok(None);
        }
        let mut heard = false;
        let mut wanted = None;
        for _ in 0..AT_ONCE {
            let mut message = [0; 9];
            let Ok(length) = self.heard.recv(&mut message) else { break };
            heard = true;
            wanted = number(message.get(..length).unwrap_or_default()).or(wanted);
        }
        if heard {
            self.deaf_until = now.checked_add(PAUSE);
        }
        let Some(wanted) = wanted else { return Ok(None) };
        let Some(change) = judge(wanted, Reading::now().offset(), self.hosts_ms) else { return Ok(None) };
        match change.how {
            // What is left of a slew would be added to the step.
            ClockHow::Stepped => sys::slew_clock(0).and_then(|()| sys::step_clock(change.by_ms))?,
            ClockHow::Slewed => sys::slew_clock(change.by_ms)?,
            ClockHow::TooFar => (),
        }
        let news = self.last.is_none_or(|last| is_news(last, change));
        if news {
            self.last = Some(change);
        }
        Ok(news.then_some(change))
    }
}

fn number(message: &[u8]) -> Option<i64> {
    message.try_into().ok().map(i64::from_ne_bytes)
}

/// What is to be done when the clock is to be `wanted` ahead of the raw one and is `current`; the host's would be `hosts`.
fn judge(wanted: i64, current: i64, hosts: i64) -> Option<ClockChange> {
    let by_ms = wanted.saturating_sub(current);
    let how = match by_ms.unsigned_abs() {
        0..LEAST_MS => return None,
        _ if wanted.abs_diff(hosts) > FURTHEST_MS => ClockHow::TooFar,
        LEAST_MS..=SLEWED_MS => ClockHow::Slewed,
        _ => ClockHow::Stepped,
    };
    Some(ClockChange { how, by_ms })
}

/// A slew is asked for again while it is under way, and what is too far off stays so: that is told once.
fn is_news(last: ClockChange, change: ClockChange) -> bool {
    let same = last.how == change.how && last.by_ms.signum() == change.by_ms.signum();
    change.how == ClockHow::Stepped || !same
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const HOUR: i64 = 3_600_000;

    fn judged(wanted: i64, current: i64) -> Option<(ClockHow, i64)> {
        judge(wanted, current, 0).map(|change| (change.how, change.by_ms))
    }

    #[test]
    fn a_little_is_slewed_and_more_is_a_step() {
        assert_eq!(judged(0, 1_999), None);
        assert_eq!(judged(0, 2_000), Some((ClockHow::Slewed, -2_000)));
        assert_eq!(judged(5_000, 0), Some((ClockHow::Slewed, 5_000)));
        assert_eq!(judged(5_001, 0), Some((ClockHow::Stepped, 5_001)));
        assert_eq!(judged(0, HOUR), Some((ClockHow::Stepped, -HOUR)));
    }

    #[test]
    fn it_never_comes_further_than_a_day_from_the_hosts_whatever_is_said() {
        let day = 24 * HOUR;
        assert_eq!(judged(day, 0), Some((ClockHow::Stepped, day)));
        assert_eq!(judged(day + 1, 0), Some((ClockHow::TooFar, day + 1)));
        // Not in several steps either.
        assert_eq!(judged(day + HOUR, day), Some((ClockHow::TooFar, HOUR)));
        assert_eq!(judged(-day - 3_000, -day), Some((ClockHow::TooFar, -3_000)));
        // Back to the host's it may always.
        assert_eq!(judged(0, day), Some((ClockHow::Stepped, -day)));
        for any in [i64::MIN, i64::MAX, i64::MIN / 2] {
            assert_eq!(judged(any, 0).unwrap().0, ClockHow::TooFar);
        }
    }

    #[test]
    fn only_eight_bytes_are_heard_and_whoever_says_much_is_heard_once_in_a_while() {
        let mut clock = Clock::of_host().unwrap();
        let now = Instant::now();
        let (mut lent, right) = (clock.lent().try_clone().unwrap(), clock.hosts_ms.to_ne_bytes());
        assert!(clock.descriptor(now).is_some());
        assert_eq!(clock.turn(now), Ok(None));
        assert!(clock.descriptor(now).is_some(), "nothing was said");
        for message in [&b""[..], b"1234567", b"123456789", b"1234567890123456"] {
            lent.write_all(message).unwrap();
        }
        assert_eq!(clock.turn(now), Ok(None));
        assert!(clock.descriptor(now + PAUSE - Duration::from_secs(1)).is_none());
        lent.write_all(&right).unwrap();
        assert_eq!(clock.turn(now + Duration::from_secs(1)), Ok(None));
        assert!(clock.descriptor(now + PAUSE).is_some());
        // The last one counts, and it is too far for a machine that is not this test's.
        lent.write_all(&i64::MAX.to_ne_bytes()).unwrap();
        let change = clock.turn(now + PAUSE).unwrap().unwrap();
        assert_eq!(change.how, ClockHow::TooFar);
        // It is told once.
        lent.write_all(&i64::MAX.to_ne_bytes()).unwrap();
        assert_eq!(clock.turn(now + PAUSE * 2), Ok(None));
    }

    #[test]
    fn the_raw_clock_counts_and_the_wall_clock_is_after_2020() {
        let (first, second) = (Reading::now(), Reading::now());
        assert!(second.raw_ms >= first.raw_ms && first.wall_ms > 1_577_836_800_000);
        assert!(first.offset().abs_diff(second.offset()) < 10_000);
    }
}
