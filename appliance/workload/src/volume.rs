//! The volumes of a container: attached where the service sees them, and filled from the image as long as they are empty.
//!
//! It is responsible for the way of a volume from a path outside to its target inside the new root. What a volume is made of, whose
//! it is and what may be done in it was decided where its mount was made: those flags stay with it.
//!
//! # What an empty volume takes over
//!
//! Content, owner and mode of the image's directory at the target, as Docker's named volumes do: also when it is the root's own, since an
//! image that runs as another user could not write to it. A volume that holds anything is left as it is, and one that this service only reads,
//! too.
//!
//! Half a copy never counts as a whole one. First comes a mark, a directory of [`OUTSIDE_ID`], then the copy; when that is on the disk
//! the mark is removed, and when that is on the disk, too, the workload starts. Where a mark is found, nobody has run on the volume yet, and
//! what is there is removed and copied anew. No workload can make one: that id does not exist in any. Two services that share a volume
//! fill it one after the other.
//!
//! Nothing here follows a link in a volume: another service that shares it may be running.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use cofferdam_declaration::reserved_path;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{
    FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstat, fstatat, futimens, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, fsync, symlinkat, unlinkat};
use serde::{Deserialize, Serialize};

use crate::unpack::{file_kind, names, remove};
use crate::{OUTSIDE_ID, sys};

/// Says that a volume is being filled. Its owner is [`OUTSIDE_ID`].
const MARK: &str = ".cofferdam-unfinished";
/// Most entries that are copied: an image has no more.
const MAX_ENTRIES: u32 = 1 << 18;
/// No image is deeper.
const MAX_DEPTH: usize = 128;

const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_CLOEXEC);
const NO_LINK: OFlag = DIRECTORY.union(OFlag::O_NOFOLLOW);

/// A volume that a container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Where it is mounted, for this service alone.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub target: String,
    /// Whether its mount is read-only.
    pub read_only: bool,
}

/// One that was taken along from the outside, attached nowhere.
pub(crate) struct Taken<'p> {
    volume: &'p Volume,
    mount: OwnedFd,
    /// Whether the target lies in another volume, whose links somebody else may have made.
    inside: bool,
}

/// Takes them along while their paths can still be seen.
///
/// # Errors
///
/// What open_tree(2) says.
pub(crate) fn take(volumes: &[Volume]) -> io::Result<Vec<Taken<'_>>> {
    let below = |volume: &Volume, other: &Volume| {
        volume.target.strip_prefix(other.target.as_str()).is_some_and(|rest| rest.starts_with('/'))
    };
    let mut taken = Vec::with_capacity(volumes.len());
    for volume in volumes {
        let path = CString::new(volume.source.as_os_str().as_bytes())?;
        let inside = volumes.iter().any(|other| below(volume, other));
        taken.push(Taken { volume, mount: sys::detached_copy(&path)?, inside });
    }
    Ok(taken)
}

impl Taken<'_> {
    /// Where it goes.
    pub(crate) fn target(&self) -> &str {
        &self.volume.target
    }

    /// Attaches it at its target, which is there, and fills it.
    ///
    /// # Errors
    ///
    /// The target leads to a path of the appliance's own or is no directory, or the volume cannot be filled.
    pub(crate) fn attach(&self) -> io::Result<()> {
        let mut how = OpenHow::new().flags(DIRECTORY | OFlag::O_PATH);
        if self.inside {
            how = how.resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
        }
        // A link of the image's leads to somewhere below the root, which is the container's already.
        let place = openat2(AT_FDCWD, self.target(), how)?;
        let path = fs::read_link(format!("/proc/self/fd/{}", place.as_raw_fd()))?;
        if path.to_str().is_none_or(reserved_path) {
            return Err(io::Error::other("a link of the image leads to a path of the appliance's own"));
        }
        let image = openat(&place, ".", DIRECTORY, Mode::empty())?;
        let volume = openat(&self.mount, ".", DIRECTORY, Mode::empty())?;
        sys::attach_to(self.mount.as_fd(), place.as_fd())?;
        if self.volume.read_only { Ok(()) } else { fill(&image, &File::from(volume)) }
    }
}

/// Copies what the image has into a volume that is empty, or was not filled to the end.
///
/// # Errors
///
/// What the file system says; the mark is then there.
pub(crate) fn fill(image: &OwnedFd, volume: &File) -> io::Result<()> {
    let own: OwnedFd = volume.try_clone()?.into();
    // Before there is a reason to, nobody waits for a lock that another service could keep.
    if state(&own)? == State::Used {
        return Ok(());
    }
    volume.lock()?;
    match state(&own)? {
        State::Used => return Ok(()),
        State::Empty => {
            mkdirat(&own, MARK, Mode::S_IRWXU)?;
            let outside = (Uid::from_raw(OUTSIDE_ID), Gid::from_raw(OUTSIDE_ID));
            fchownat(&own, MARK, Some(outside.0), Some(outside.1), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        State::Unfinished => {
            for name in entries(&own)?.iter().filter(|name| *name != MARK) {
                remove(&own, name, Path::new(name), 0).map_err(io::Error::other)?;
            }
        }
    }
    let mut left = MAX_ENTRIES;
    copy_entries(image, &own, &mut left, 0)?;
    adopt(&own, &fstat(image)?)?;
    nix::unistd::syncfs(volume)?;
    unlinkat(&own, MARK, UnlinkatFlags::RemoveDir)?;
    // A mark that came back after a power cut would take away what the workload wrote until then.
    Ok(fsync(volume)?)
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// Nothing is in it.
    Empty,
    /// A mark is.
    Unfinished,
    /// Anything else is.
    Used,
}

fn state(volume: &OwnedFd) -> io::Result<State> {
    let names = entries(volume)?;
    if names.iter().any(|name| name == MARK) {
        let mark = fstatat(volume, MARK, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if file_kind(&mark) == SFlag::S_IFDIR && mark.st_uid == OUTSIDE_ID {
            return Ok(State::Unfinished);
        }
        // The power was cut before the mark had its owner; or a workload has made it, and nothing else.
        if names.len() == 1 && unlinkat(volume, MARK, UnlinkatFlags::RemoveDir).is_ok() {
            return Ok(State::Empty);
        }
    }
    Ok(if names.is_empty() { State::Empty } else { State::Used })
}

fn entries(directory: &OwnedFd) -> io::Result<Vec<OsString>> {
    names(directory, Path::new(".")).map_err(io::Error::other)
}

fn copy_entries(from: &OwnedFd, to: &OwnedFd, left: &mut u32, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other("the image's directory is too deep"));
    }
    for name in entries(from)? {
        *left = left
            .checked_sub(1)
            .ok_or_else(|| io::Error::other("the image's directory has too many entries"))?;
        copy(from, to, &name, left, depth)?;
    }
    Ok(())
}

/// Copies one entry and what is below it. Sockets are not copied: nobody listens there.
fn copy(from: &OwnedFd, to: &OwnedFd, name: &OsStr, left: &mut u32, depth: usize) -> io::Result<()> {
    let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    match file_kind(&stat) {
        SFlag::S_IFDIR => {
            mkdirat(to, name, Mode::S_IRWXU)?;
            let below = openat(to, name, NO_LINK, Mode::empty())?;
            copy_entries(
                &openat(from, name, NO_LINK, Mode::empty())?,
                &below,
                left,
                depth.saturating_add(1),
            )?;
            adopt(&below, &stat)
        }
        SFlag::S_IFREG => {
            let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let mut source = File::from(openat(from, name, flags | OFlag::O_RDONLY, Mode::empty())?);
            let flags = flags | OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
            let mut file = File::from(openat(to, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
            io::copy(&mut source, &mut file)?;
            adopt(&file.into(), &stat)
        }
        kind @ (SFlag::S_IFLNK | SFlag::S_IFIFO) => {
            if kind == SFlag::S_IFLNK {
                symlinkat(readlinkat(from, name)?.as_os_str(), to, name)?;
            } else {
                mknodat(to, name, SFlag::S_IFIFO, mode(&stat), 0)?;
            }
            fchownat(to, name, Some(owner), Some(group), AtFlags::AT_SYMLINK_NOFOLLOW)?;
            let (accessed, modified) = times(&stat);
            Ok(utimensat(to, name, &accessed, &modified, UtimensatFlags::NoFollowSymlink)?)
        }
        _ => Ok(()),
    }
}

/// Gives a file or directory the owner, the mode and the times of another one.
fn adopt(file: &OwnedFd, of: &FileStat) -> io::Result<()> {
    fchown(file, Some(Uid::from_raw(of.st_uid)), Some(Gid::from_raw(of.st_gid)))?;
    fchmod(file, mode(of))?;
    let (accessed, modified) = times(of);
    Ok(futimens(file, &accessed, &modified)?)
}

fn mode(stat: &FileStat) -> Mode {
    Mode::from_bits_truncate(stat.st_mode)
}

fn times(stat: &FileStat) -> (TimeSpec, TimeSpec) {
    (TimeSpec::new(stat.st_atime, stat.st_atime_nsec), TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec))
}
