//! Mounts a [`Tree`] with FUSE.
//!
//! Responsible for: translating requests, answering for the kernel's caches (nothing is cached: every read of a register
//! must be the register). Permissions are the modes that the tree shows, enforced by the kernel for every user
//! (`default_permissions`, `allow_other`), plus what sysfs and configfs add: a file without a read (write) bit
//! cannot be opened for reading (writing), not even by root.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, KernelConfig, LockOwner, MountOption, OpenAccMode, OpenFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, Session,
    SessionACL, TimeOrNow, WriteFlags,
};
use nix::errno::Errno;

use super::node::{Node, Tree};

/// Nothing may be kept by the kernel.
const TTL: Duration = Duration::ZERO;
/// Largest write that a device file takes, in bytes; the kernel splits longer ones.
const MAX_WRITE: u32 = 4096;

/// Mounts `tree` on the directory `target` and serves it from a thread until the result is dropped.
///
/// # Errors
/// What the kernel says to the mount: only root may, `/dev/fuse` must exist.
pub fn mount(tree: impl Tree, name: &str, target: &Path) -> io::Result<BackgroundSession> {
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.mount_options = vec![
        MountOption::FSName(name.to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoExec,
        MountOption::NoAtime,
    ];
    Session::new(Mounted { tree, handles: AtomicU64::new(1) }, target, &config)?.spawn()
}

struct Mounted<T> {
    tree: T,
    handles: AtomicU64,
}

fn code(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno as i32)
}

fn attributes(node: &Node) -> FileAttr {
    let (kind, nlink) = if node.directory { (FileType::Directory, 2) } else { (FileType::RegularFile, 1) };
    FileAttr {
        ino: INodeNo(node.ino),
        size: node.size,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: node.mode,
        nlink,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// Device file names are ASCII; anything else names nothing.
fn text(name: &OsStr) -> Result<&str, Errno> {
    name.to_str().ok_or(Errno::ENOENT)
}

fn answer_entry(result: Result<Node, Errno>, reply: ReplyEntry) {
    match result {
        Ok(node) => reply.entry(&TTL, &attributes(&node), Generation(0)),
        Err(errno) => reply.error(code(errno)),
    }
}

fn answer_attributes(result: Result<Node, Errno>, reply: ReplyAttr) {
    match result {
        Ok(node) => reply.attr(&TTL, &attributes(&node)),
        Err(errno) => reply.error(code(errno)),
    }
}

impl<T: Tree> Filesystem for Mounted<T> {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // The kernel may grant less; both values are only upper bounds.
        let _ = config.set_max_write(MAX_WRITE);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answer_entry(text(name).and_then(|name| self.tree.lookup(parent.0, name)), reply);
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        answer_attributes(self.tree.node(ino.0), reply);
    }

    /// Truncation is accepted and means nothing, as in sysfs and configfs; owners and modes are fixed.
    fn setattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if mode.is_some() || uid.is_some() || gid.is_some() {
            return reply.error(code(Errno::EPERM));
        }
        answer_attributes(self.tree.node(ino.0), reply);
    }

    fn mkdir(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let name = text(name).map_err(|_| Errno::EINVAL);
        answer_entry(name.and_then(|name| self.tree.make_directory(parent.0, name)), reply);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match text(name).and_then(|name| self.tree.remove_directory(parent.0, name)) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn unlink(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(code(Errno::EPERM));
    }

    fn create(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(code(Errno::EACCES));
    }

    fn mknod(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(code(Errno::EPERM));
    }

    fn open(&self, _request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (read, write) = match flags.acc_mode() {
            OpenAccMode::O_RDONLY => (true, false),
            OpenAccMode::O_WRONLY => (false, true),
            OpenAccMode::O_RDWR => (true, true),
        };
        let handle = self.handles.fetch_add(1, Ordering::Relaxed);
        let opened = self.tree.node(ino.0).and_then(|node| {
            if (read && !node.readable()) || (write && !node.writable()) {
                return Err(Errno::EACCES);
            }
            self.tree.open(ino.0, handle)
        });
        match opened {
            // Direct: every read and write reaches the tree, whatever size `stat` shows.
            Ok(()) => reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO),
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        match self.tree.read(ino.0, handle.0, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn write(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.tree.write(ino.0, handle.0, offset, data) {
            // Never more than MAX_WRITE.
            Ok(taken) => reply.written(u32::try_from(taken).unwrap_or(MAX_WRITE)),
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn flush(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.tree.flush(ino.0, handle.0);
        reply.ok();
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.tree.release(ino.0, handle.0);
        reply.ok();
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let children = match self.tree.children(ino.0) {
            Ok(children) => children,
            Err(errno) => return reply.error(code(errno)),
        };
        let itself = Node::directory(ino.0);
        let dots = [(itself, ".".to_owned()), (itself, "..".to_owned())];
        // The offset of an entry is its number plus one: where the next one begins.
        for (next, (node, name)) in (1u64..).zip(dots.into_iter().chain(children)) {
            let kind = if node.directory { FileType::Directory } else { FileType::RegularFile };
            if next > offset && reply.add(INodeNo(node.ino), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
