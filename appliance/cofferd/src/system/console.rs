//! What a person at the machine's console sees of the boot, with the time of each line.
//!
//! The host reads the console: nothing that a workload prints and no secret ever goes here.
//! A console that does not take a line loses it; PID 1 never stops for that.

use std::io::Write;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Time since the kernel started (`CLOCK_BOOTTIME`): monotonic and not the host's wall clock.
pub(crate) fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// Prints one line: `[seconds.milliseconds] cofferd: text`.
pub(crate) fn say(text: &str) {
    let now = since_boot();
    let line = format!("[{:5}.{:03}] cofferd: {text}\n", now.as_secs(), now.subsec_millis());
    // One write, so that lines of roles do not land inside it. Errors: see the module's head.
    let mut console = std::io::stderr();
    let _ = console.write_all(line.as_bytes());
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_clock_counts() {
        assert!(super::since_boot() > std::time::Duration::ZERO);
    }
}
