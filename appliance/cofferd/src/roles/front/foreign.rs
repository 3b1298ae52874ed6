//! Reading what other roles write, without trusting them with more than its content.
//!
//! A service's directory belongs to its shim. A shim that falls must not be able to make `front` open something
//! else in its place: links are not followed, anything but a regular file is refused, and the size is bounded.

use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use cofferdam_protocol::read;

/// The file's bytes; `None` when it is not there, not a regular file, unreadable or larger than `limit` bytes.
pub(crate) fn contents(path: &Path, limit: u64) -> Option<Vec<u8>> {
    read::bounded(open(path)?, limit).ok()
}

/// The last `limit` bytes of the file, or all of it.
pub(crate) fn end(path: &Path, limit: u64) -> Option<Vec<u8>> {
    let mut file = open(path)?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(limit))).ok()?;
    read::beginning(file, limit).ok()
}

fn open(path: &Path) -> Option<File> {
    // Non-blocking, so that a FIFO cannot hold us at open.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    file.metadata().ok()?.is_file().then_some(file)
}
