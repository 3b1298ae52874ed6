//! The file systems that images lie in: one for each image, seen by each service that has it in that service's own ids.
//!
//! # Duties
//!
//! - Each is a tmpfs of PID 1's own, with ids as the image names them, in a directory that nobody else sees, and is mounted once for each of
//!   its services (mount_setattr(2), MOUNT_ATTR_IDMAP). One of them, the owner, has it for writing until the image is there.
//! - On a sealed disk that has room for images they lie there instead, one directory for each ([`kept`](crate::system::kept)).
//! - When the owner's pull says that it is, PID 1 makes the file system itself read-only and says so in a file of its own, for which
//!   all of them wait. No namespace of a service can undo that: from then on neither the owner's shim nor any workload
//!   changes what the others start from.
//!
//! # Prohibitions
//!
//! - It reads nothing that the pull wrote: that a name is there is all that it looks at.

use std::ffi::CString;
use std::fs;
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use cofferdam_protocol::Digest;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::system::kept::{self, KeptImages, Partial};
use crate::system::sys::OwnFlags;
use crate::system::{spawn, sys};

/// No setuid program and no device of an image works.
const FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
/// A child makes a namespace and sends it: two system calls.
const NAMESPACE_TIMEOUT_MS: u16 = 10_000;
const NONE: Option<&str> = None;
/// For whoever does not write it.
pub(crate) const READ_ONLY: OwnFlags = OwnFlags { read_only: true, no_exec: false };

/// Why a service does not see a file system.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} at {path}")]
pub struct MountError {
    step: &'static str,
    path: String,
    #[source]
    source: io::Error,
}

/// A service that has the file system.
#[derive(Debug, Clone)]
pub struct Holder {
    /// The directory where it finds it.
    pub place: PathBuf,
    /// The first of its ids, which is its shim's. Those of its container follow.
    pub base: u32,
}

/// An image that is not there yet.
#[derive(Debug)]
pub struct PendingImage {
    owner: Holder,
    lies: Lies,
    /// What the pull makes last.
    complete: PathBuf,
    /// What says that nobody changes it any more.
    seal: PathBuf,
    /// Whether it was said that it cannot be sealed.
    pub(crate) reported: bool,
}

#[derive(Debug)]
enum Lies {
    InMemory,
    OnDisk(Partial),
}

/// Makes the file system of one image, of at most `size` bytes, at `root`, which nobody but the caller may see into, and mounts it at the
/// place of each holder; the first one is its owner. `complete` is what the owner's pull makes last, `seal` the file that PID 1 makes then.
///
/// # Errors
///
/// [`MountError`].
pub fn mount_image(
    root: &Path,
    owner: &Holder,
    others: &[Holder],
    size: u64,
    complete: PathBuf,
    seal: PathBuf,
) -> Result<PendingImage, MountError> {
    let options = format!("mode=0700,size={size}");
    let made = mount(Some("image"), root, Some("tmpfs"), FLAGS, Some(options.as_str()));
    step("make a file system", root, made)?;
    mount_for(root, owner, OwnFlags::default())?;
    others.iter().try_for_each(|other| mount_for(root, other, READ_ONLY))?;
    Ok(PendingImage { owner: owner.clone(), lies: Lies::InMemory, complete, seal, reported: false })
}

/// The same for an image that is to lie on the sealed disk: `complete` is where PID 1 sees what the pull makes last, `ended` says whether no
/// process of the owner's is left.
///
/// # Errors
///
/// [`MountError`].
pub fn mount_kept(
    (kept, digest): (&KeptImages, &Digest),
    owner: &Holder,
    others: &[Holder],
    ended: Box<dyn Fn() -> bool>,
    complete: PathBuf,
    seal: PathBuf,
) -> Result<PendingImage, MountError> {
    let lies = Lies::OnDisk(kept.begin(digest, owner, others, ended)?);
    Ok(PendingImage { owner: owner.clone(), lies, complete, seal, reported: false })
}

/// Mounts what is mounted at `place` once more, for `holder` alone and in the ids of its container.
///
/// # Errors
///
/// [`MountError`].
pub fn mount_for(place: &Path, holder: &Holder, own: OwnFlags) -> Result<(), MountError> {
    let copy = step("copy the mount", place, sys::detached_copy(&named(place)?))?;
    let ids = step("make the ids", &holder.place, ids_of(holder.base))?;
    step("map the ids", &holder.place, sys::map_ids_of(copy.as_fd(), ids.as_fd(), own))?;
    step("attach the file system", &holder.place, sys::attach(copy.as_fd(), &named(&holder.place)?))
}

/// Empties the file system of an image that nobody has any more, and takes it away. Emptied because others, who may not see into it,
/// have got it with PID 1's mounts: as long as one of them runs, what is in it would stay in memory.
///
/// # Errors
///
/// [`MountError`].
pub(crate) fn remove(root: &Path) -> Result<(), MountError> {
    step("write to", root, mount(NONE, root, NONE, FLAGS | MsFlags::MS_REMOUNT, NONE))?;
    step("empty", root, kept::empty(root))?;
    step("unmount", root, umount2(root, MntFlags::MNT_DETACH))?;
    step("remove", root, fs::remove_dir(root))
}

/// Undoes that, when no process of the holder is left. What stays mounted loses nothing: the file system is written out all the same.
pub(crate) fn unmount(place: &Path) {
    let _ = umount2(place, MntFlags::empty());
}

impl PendingImage {
    /// What says that nobody changes it any more, once it is there.
    pub(crate) fn seal_path(&self) -> &Path {
        &self.seal
    }

    /// Makes it read-only for good if its pull is done. False as long as it is not.
    ///
    /// # Errors
    ///
    /// [`MountError`]; the image stays unsealed.
    pub fn seal(&self) -> Result<bool, MountError> {
        if fs::symlink_metadata(&self.complete).is_err() {
            return Ok(false);
        }
        let ended = match &self.lies {
            Lies::InMemory => end_writing(&self.owner.place)?,
            Lies::OnDisk(partial) => partial.keep(&self.owner)?,
        };
        if ended {
            step("write the seal", &self.seal, fs::write(&self.seal, b""))?;
        }
        Ok(ended)
    }
}

/// Makes a file system of its own read-only. False when a file is still open for writing.
fn end_writing(place: &Path) -> Result<bool, MountError> {
    let flags = FLAGS | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    match mount(NONE, place, NONE, flags, NONE) {
        Err(Errno::EBUSY) => Ok(false),
        done => step("end the writing", place, done).map(|()| true),
    }
}

/// A user namespace with the ids of a service's container, in which nothing runs: only its map counts. Another process has to make it, since
/// whoever does is in it; it sends it itself, because nobody else may open it (Yama, with our patch).
fn ids_of(base: u32) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    let Some(pid) = sys::fork()? else {
        drop(ours);
        let _ = make_namespace(&theirs);
        sys::leave(0)
    };
    drop(theirs);
    let mut readable = [PollFd::new(ours.as_fd(), PollFlags::POLLIN)];
    poll(&mut readable, PollTimeout::from(NAMESPACE_TIMEOUT_MS))?;
    let (_, namespace) = sys::receive(ours.as_fd(), &mut [0])?;
    let namespace = namespace.ok_or(io::ErrorKind::BrokenPipe)?;
    spawn::map_ids(pid, &spawn::container_ids(base))?;
    // The socket closes, and with that the child ends.
    Ok(namespace)
}

/// The child's side: makes the namespace, sends it, and stays in it until its ids are mapped.
fn make_namespace(mut channel: &UnixStream) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER)?;
    let namespace = fs::File::open("/proc/self/ns/user")?;
    let rights = [namespace.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&rights)];
    sendmsg::<()>(channel.as_raw_fd(), &[IoSlice::new(b"u")], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    channel.read(&mut [0]).map(drop)
}

fn named(path: &Path) -> Result<CString, MountError> {
    step("name a path", path, CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from))
}

pub(super) fn step<T, E: Into<io::Error>>(
    step: &'static str,
    path: &Path,
    outcome: Result<T, E>,
) -> Result<T, MountError> {
    outcome.map_err(|source| MountError { step, path: path.display().to_string(), source: source.into() })
}
