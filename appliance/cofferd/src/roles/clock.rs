//! The host's wall clock. It decides only what certificates and claims need; every wait runs on the monotonic one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest single sleep towards a moment of the wall clock, so that a clock that the host moves is noticed.
const STRIDE: Duration = Duration::from_secs(60);

/// Seconds since the Unix epoch; 0 for a clock before it.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Sleeps until the wall clock says `unix` or later.
pub(crate) async fn sleep_until(unix: u64) {
    loop {
        let left = unix.saturating_sub(unix_now());
        if left == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_secs(left).min(STRIDE)).await;
    }
}
