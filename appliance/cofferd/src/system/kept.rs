//! Images on the sealed disk: unpacked, one directory for each, named by the digest that the declaration names it by.
//!
//! ```text
//! DIGEST            an image that is there, seen read-only by everybody
//! DIGEST.partial    one that is being pulled, by a service that has it for writing
//! ```
//!
//! # Duties
//!
//! - A name without `.partial` is given by PID 1 alone, when the pull has ended, all of it is on the disk, and no process of the service that
//!   pulled is left: nobody has the directory for writing then, and from here on nobody gets it for writing again. That service
//!   starts anew and sees it like everybody else.
//! - What the declaration does not name, and what a power cut left unfinished, is removed before any service runs.
//!
//! # Prohibitions
//!
//! - It reads nothing that the pull wrote. A digest names what was checked when it was pulled; that a block is what was written
//!   then is for the volume below to say ([`volume`](crate::system::volume)), and its content is not hashed again.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use cofferdam_protocol::Digest;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::system::images::{Holder, MountError, READ_ONLY, mount_for, step};
use crate::system::sys::OwnFlags;

/// A directory and no link.
const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// The mounted volume of images.
#[derive(Debug)]
pub struct KeptImages {
    root: PathBuf,
}

/// Where an image is until it is whole.
pub(super) struct Partial {
    partial: PathBuf,
    whole: PathBuf,
    ended: Box<dyn Fn() -> bool>,
}

impl std::fmt::Debug for Partial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Partial").field("whole", &self.whole).finish_non_exhaustive()
    }
}

impl KeptImages {
    /// What the volume at `root` holds of these images. Everything else in it is removed.
    ///
    /// # Errors
    ///
    /// The directory cannot be read, or something in it cannot be removed.
    pub fn open(root: PathBuf, declared: &BTreeSet<Digest>) -> io::Result<Self> {
        let named: BTreeSet<String> = declared.iter().map(Digest::hex).collect();
        for entry in fs::read_dir(&root)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(|name| named.contains(name)) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                remove_tree(&open(AT_FDCWD, root.as_os_str())?, &entry.file_name())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(Self { root })
    }

    /// Whether an image is there, whole.
    pub fn has(&self, digest: &Digest) -> bool {
        self.whole(digest).is_dir()
    }

    /// Shows an image that is there to each holder.
    ///
    /// # Errors
    ///
    /// [`MountError`].
    pub fn mount(&self, digest: &Digest, holders: &[Holder]) -> Result<(), MountError> {
        let whole = self.whole(digest);
        holders.iter().try_for_each(|holder| mount_for(&whole, holder, READ_ONLY))
    }

    /// Makes the directory of an image that is to be pulled and shows it to each holder, to `owner` for writing. `ended` says whether no process of
    /// the owner's is left.
    ///
    /// # Errors
    ///
    /// [`MountError`].
    pub(super) fn begin(
        &self,
        digest: &Digest,
        owner: &Holder,
        others: &[Holder],
        ended: Box<dyn Fn() -> bool>,
    ) -> Result<Partial, MountError> {
        let partial = self.partial(digest);
        step("make a directory", &partial, DirBuilder::new().mode(0o700).create(&partial))?;
        mount_for(&partial, owner, OwnFlags::default())?;
        others.iter().try_for_each(|other| mount_for(&partial, other, READ_ONLY))?;
        Ok(Partial { partial, whole: self.whole(digest), ended })
    }

    /// Removes an image that nobody has any more, or what is there of it.
    ///
    /// # Errors
    ///
    /// The file system's.
    pub(crate) fn remove(&self, digest: &Digest) -> io::Result<()> {
        let root = open(AT_FDCWD, self.root.as_os_str())?;
        for path in [self.whole(digest), self.partial(digest)] {
            if let Some(name) = path.file_name().filter(|_| path.exists()) {
                remove_tree(&root, name)?;
            }
        }
        Ok(())
    }

    /// Where an image that is to be pulled lies until it is whole.
    pub fn partial(&self, digest: &Digest) -> PathBuf {
        self.root.join(format!("{}.partial", digest.hex()))
    }

    fn whole(&self, digest: &Digest) -> PathBuf {
        self.root.join(digest.hex())
    }
}

impl Partial {
    /// Gives the image its name, and its owner a view of it like everybody's. False as long as a process of the owner's is left.
    ///
    /// # Errors
    ///
    /// [`MountError`].
    pub(super) fn keep(&self, owner: &Holder) -> Result<bool, MountError> {
        if !(self.ended)() {
            return Ok(false);
        }
        let hidden = match umount2(&owner.place, MntFlags::MNT_DETACH) {
            // It was tried before, and failed after this.
            Err(Errno::EINVAL) => Ok(()),
            done => done,
        };
        step("end the writing", &owner.place, hidden)?;
        mount_for(&self.partial, owner, READ_ONLY)?;
        step("name the image", &self.whole, fs::rename(&self.partial, &self.whole))?;
        let directory = self.whole.parent().unwrap_or(Path::new("/"));
        step("write the name", directory, File::open(directory).and_then(|open| open.sync_all()))?;
        Ok(true)
    }
}

/// Removes all that is in a directory.
///
/// # Errors
///
/// The file system's.
pub(super) fn empty(directory: &Path) -> io::Result<()> {
    let directory = open(AT_FDCWD, directory.as_os_str())?;
    while let Some(below) = clear(&directory)? {
        remove_tree(&directory, &below)?;
    }
    Ok(())
}

/// Removes the directory `name` and all below it. An image chooses how deep that is, by links even deeper than a path can be: there are never
/// more than a few descriptors, and no recursion. Nobody else is there to move anything meanwhile.
fn remove_tree(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let mut directory = open(parent, name)?;
    let mut above = vec![name.to_owned()];
    while let Some(own) = above.last() {
        match clear(&directory)? {
            Some(below) => {
                directory = open(&directory, &below)?;
                above.push(below);
            }
            None => {
                let up =
                    if above.len() == 1 { parent.try_clone()? } else { open(&directory, OsStr::new(".."))? };
                unlinkat(&up, own.as_os_str(), UnlinkatFlags::RemoveDir)?;
                directory = up;
                above.pop();
            }
        }
    }
    Ok(())
}

/// Removes everything from a directory up to the first directory in it, whose name is returned.
fn clear(directory: &OwnedFd) -> io::Result<Option<OsString>> {
    let mut entries = Dir::openat(directory, ".", DIRECTORY, Mode::empty())?;
    for entry in entries.iter() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR) => return Ok(Some(name.to_owned())),
            removed => removed?,
        }
    }
    Ok(None)
}

fn open(parent: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    Ok(openat(parent, name, DIRECTORY, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use nix::sys::stat::mkdirat;

    use super::*;

    #[test]
    fn a_tree_that_is_deeper_than_a_path_can_be_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("images");
        let top = root.join("deep.partial");
        fs::create_dir_all(&top).unwrap();
        let name = OsStr::new("a-directory");
        let mut directory = open(AT_FDCWD, top.as_os_str()).unwrap();
        // More levels than a process has descriptors by default, and 60 kB of path.
        for _ in 0..5000 {
            mkdirat(&directory, name, Mode::S_IRWXU).unwrap();
            mkdirat(&directory, OsStr::new("other"), Mode::S_IRWXU).unwrap();
            std::os::unix::fs::symlink(
                "/",
                Path::new(&format!("/proc/self/fd/{}/link", directory.as_raw_fd())),
            )
            .unwrap();
            directory = open(&directory, name).unwrap();
        }
        let kept = KeptImages::open(root.clone(), &BTreeSet::new()).unwrap();
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
        let digests = [b"one", b"two"].map(Digest::of);
        for path in [digests[0].hex(), format!("{}.partial", digests[0].hex()), digests[1].hex()] {
            fs::create_dir_all(root.join(path).join("a/b")).unwrap();
        }
        kept.remove(&digests[0]).unwrap();
        kept.remove(&Digest::of(b"three")).unwrap();
        assert!(kept.has(&digests[1]) && fs::read_dir(&root).unwrap().count() == 1);
        empty(&root).unwrap();
        assert!(!kept.has(&digests[1]));
    }

    #[test]
    fn what_is_not_named_and_what_is_not_whole_is_removed_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (root, outside) = (folder.path().join("images"), folder.path().join("outside"));
        let digests = [b"kept", b"gone", b"half"].map(Digest::of);
        for path in [&outside, &root.join(digests[0].hex()), &root.join(digests[1].hex()).join("image")] {
            fs::create_dir_all(path).unwrap();
            fs::write(path.join("file"), b"x").unwrap();
        }
        let half = root.join(format!("{}.partial", digests[2].hex()));
        fs::create_dir(&half).unwrap();
        std::os::unix::fs::symlink(&outside, half.join("link")).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
        fs::write(root.join("stray"), b"x").unwrap();
        let declared = [digests[0], digests[2]].into();
        let kept = KeptImages::open(root.clone(), &declared).unwrap();
        assert_eq!(digests.map(|digest| kept.has(&digest)), [true, false, false]);
        let left: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [digests[0].hex().as_str()]);
        assert!(outside.join("file").exists());
        assert!(KeptImages::open(folder.path().join("none"), &declared).is_err());
    }
}
