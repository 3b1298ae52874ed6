//! What a tree of device files is, apart from how it is mounted.
//!
//! The two device directories are written against [`Tree`], so that their semantics are tested without a mount and
//! [`super::fuse`] stays free of them.

use nix::errno::Errno;

/// Inode number of a tree's root, as FUSE fixes it.
pub const ROOT: u64 = 1;

/// A file or directory as `stat` shows it. Everything belongs to root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// Inode number, never used again for another file.
    pub ino: u64,
    /// Directory or regular file.
    pub directory: bool,
    /// Permission bits.
    pub mode: u16,
    /// Size that `stat` shows, in bytes; what can be read may be more (configfs) or exactly this (sysfs).
    pub size: u64,
}

impl Node {
    /// A directory, 0755 as in sysfs and configfs.
    pub fn directory(ino: u64) -> Self {
        Self { ino, directory: true, mode: 0o755, size: 0 }
    }

    /// A file.
    pub fn file(ino: u64, mode: u16, size: u64) -> Self {
        Self { ino, directory: false, mode, size }
    }

    pub(crate) fn readable(&self) -> bool {
        self.mode & 0o444 != 0
    }

    pub(crate) fn writable(&self) -> bool {
        self.mode & 0o222 != 0
    }
}

/// A directory tree of device files. Calls come one at a time from the kernel, but from any process.
pub trait Tree: Send + Sync + 'static {
    /// The child `name` of `parent`.
    fn lookup(&self, parent: u64, name: &str) -> Result<Node, Errno>;

    /// The node of an inode that was looked up before; `ENOENT` when it was removed since.
    fn node(&self, ino: u64) -> Result<Node, Errno>;

    /// All children of a directory.
    fn children(&self, ino: u64) -> Result<Vec<(Node, String)>, Errno>;

    /// `mkdir`. Most directories refuse.
    fn make_directory(&self, _parent: u64, _name: &str) -> Result<Node, Errno> {
        Err(Errno::EPERM)
    }

    /// `rmdir`. Most directories refuse.
    fn remove_directory(&self, _parent: u64, _name: &str) -> Result<(), Errno> {
        Err(Errno::EPERM)
    }

    /// A file was opened as `handle`, unique among open files.
    fn open(&self, _ino: u64, _handle: u64) -> Result<(), Errno> {
        Ok(())
    }

    /// Reads at most `size` bytes at `offset`; fewer or none at the end.
    fn read(&self, ino: u64, handle: u64, offset: u64, size: usize) -> Result<Vec<u8>, Errno>;

    /// Writes `data` at `offset` and says how much of it was taken.
    fn write(&self, ino: u64, handle: u64, offset: u64, data: &[u8]) -> Result<usize, Errno>;

    /// A descriptor of the open file was closed (there may be more of them).
    fn flush(&self, _ino: u64, _handle: u64) {}

    /// The last descriptor of the open file is gone.
    fn release(&self, _ino: u64, _handle: u64) {}
}

/// The part of `content` that a read of `size` bytes at `offset` returns.
pub(crate) fn window(content: &[u8], offset: u64, size: usize) -> Vec<u8> {
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    content.iter().skip(offset).take(size).copied().collect()
}
