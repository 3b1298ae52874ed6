//! Reading what other roles write, without trusting them with more than its content.
//!
//! A service's directory belongs to its shim. A shim that falls must not be able to make `front` open something
//! else in its place: links are not followed, anything but a regular file is refused, and the size is bounded.

use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use cofferdam_protocol::read;

/// The file's bytes; `None` when it is not there, not a regular file, unreadable or larger than `limit` bytes.
pub(crate) fn contents(path: &Path, limit: u64) -> Option<Vec<u8>> {
    read::bounded(open(path)?, limit).ok()
}

/// A part of a file.
#[derive(Debug)]
pub(crate) struct Part {
    /// Which file it is, whatever it is called by now.
    pub(crate) file: u64,
    /// Where the part begins.
    pub(crate) start: u64,
    /// What is there.
    pub(crate) bytes: Vec<u8>,
}

/// At most `limit` bytes of the file: its last ones, or for the file that `known` names those from a byte of it on. `None` when there is no
/// such file.
pub(crate) fn part(path: &Path, known: Option<(u64, u64)>, limit: u64) -> Option<Part> {
    let mut file = open(path)?;
    let metadata = file.metadata().ok()?;
    let start = match known {
        Some((number, from)) if number == metadata.ino() => from,
        _ => metadata.len().saturating_sub(limit),
    };
    file.seek(SeekFrom::Start(start)).ok()?;
    Some(Part { file: metadata.ino(), start, bytes: read::beginning(file, limit).ok()? })
}

fn open(path: &Path) -> Option<File> {
    // Non-blocking, so that a FIFO cannot hold us at open.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    file.metadata().ok()?.is_file().then_some(file)
}
