//! The vault's one unsafe call.

#![allow(unsafe_code)]

use std::ptr::NonNull;

use nix::errno::Errno;
use nix::libc::c_void;

/// Keeps the pages of this memory from being written to a swap device (mlock(2)) until the process ends.
///
/// # Errors
/// What mlock(2) says: `ENOMEM` beyond RLIMIT_MEMLOCK.
pub(super) fn lock(memory: &[u8]) -> Result<(), Errno> {
    let start = NonNull::from(memory).cast::<c_void>();
    // SAFETY: the range is that of a live slice. mlock(2) reads and writes nothing there; it only
    // marks the pages, which also lasts when the slice is gone.
    unsafe { nix::sys::mman::mlock(start, memory.len()) }
}
