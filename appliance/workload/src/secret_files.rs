//! The secret files of a container, while it is built and while it runs.
//!
//! They are in a tmpfs of the container's own. What the container sees of it is read-only for good before the workload exists; the
//! shim has a second mount of it, attached nowhere, through which it replaces a file when its secret has changed. The workload has
//! no way to that mount, and nothing of it in its file system leads anywhere else: it cannot make a link in there.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};

/// Where a file is written until it takes its place. No secret file is called so.
const UNFINISHED: &str = ".new";

/// A directory of secret files, and whose they are.
#[derive(Debug)]
pub(crate) struct SecretFiles {
    directory: OwnedFd,
    uid: u32,
    gid: u32,
}

impl SecretFiles {
    /// The files in a directory that is writable, which come to belong to this user and group.
    pub(crate) fn new(directory: OwnedFd, uid: u32, gid: u32) -> Self {
        Self { directory, uid, gid }
    }

    /// Puts a file in place, which whoever opens it finds as it was or as it is, and never in part.
    ///
    /// # Errors
    ///
    /// What the file system says; what was there is there then.
    pub(crate) fn put(&self, name: &str, content: &[u8]) -> io::Result<()> {
        match unlinkat(&self.directory, UNFINISHED, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(&self.directory, UNFINISHED, flags, Mode::S_IWUSR)?);
        file.write_all(content)?;
        fchown(&file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        fchmod(&file, self.mode())?;
        Ok(renameat(&self.directory, UNFINISHED, &self.directory, name)?)
    }

    /// For the workload's user alone; for every user of the container when it starts as root, which often becomes another user only later.
    fn mode(&self) -> Mode {
        if self.uid == 0 { Mode::S_IRUSR | Mode::S_IRGRP | Mode::S_IROTH } else { Mode::S_IRUSR }
    }
}
