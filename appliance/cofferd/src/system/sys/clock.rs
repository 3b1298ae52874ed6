//! Setting the machine's clock, for which nix has no call that adds to it.

use std::mem::MaybeUninit;

use nix::errno::Errno;
use nix::libc;

/// Adds to the wall clock at once (adjtimex(2), `ADJ_SETOFFSET`).
///
/// # Errors
///
/// `EPERM` without CAP_SYS_TIME; `EINVAL` for a time that the kernel does not have.
pub(crate) fn step_clock(milliseconds: i64) -> Result<(), Errno> {
    let mut request = empty();
    request.modes = libc::ADJ_SETOFFSET;
    // Seconds may be negative, microseconds may not.
    request.time.tv_sec = milliseconds.div_euclid(1000);
    request.time.tv_usec = milliseconds.rem_euclid(1000).saturating_mul(1000);
    adjust(request)
}

/// Adds to the wall clock little by little, 0.5 ms in each second (adjtime(3)). What is left of an earlier request is forgotten.
///
/// # Errors
///
/// As [`step_clock`].
pub(crate) fn slew_clock(milliseconds: i64) -> Result<(), Errno> {
    let mut request = empty();
    request.modes = libc::ADJ_OFFSET_SINGLESHOT;
    request.offset = milliseconds.saturating_mul(1000);
    adjust(request)
}

fn empty() -> libc::timex {
    // SAFETY: `timex` is made of integers, for which zeros are a value.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

fn adjust(mut request: libc::timex) -> Result<(), Errno> {
    // SAFETY: the kernel reads and writes one `timex`, which `request` is, and keeps no pointer to it.
    Errno::result(unsafe { libc::adjtimex(&raw mut request) }).map(drop)
}
