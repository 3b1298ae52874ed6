//! The configs of a container: files that the declaration holds, each a read-only mount of its own over a file of the root.
//!
//! It is responsible for their way from the delivery to their targets. A place for each is made while the root can still be written
//! to, and held by its descriptor; their content, in which secrets may stand, is read by the workload's process alone, which lays it
//! over the places before it is confined. Mounts instead of files, so that a workload cannot change what was measured, also where it
//! lies in a volume; and so that nothing of it, secrets least of all, is left in a volume but an empty file.

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::Path;

use cofferdam_declaration::reserved_path;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, fstat};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::sys;

/// What they have all of them together; more than the declaration's bounds allow with every secret in place.
const SIZE: &str = "mode=0700,size=16m";
/// As elsewhere in the root. Programs may be executed: the declaration is measured, and says so in their modes.
const FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
const NONE: Option<&str> = None;

/// Where a config goes, and whose it is. Its content is in the delivery, under its target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Absolute path in the container.
    pub target: String,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its permission bits.
    pub mode: u32,
}

/// A place for each config, which is a file: one of the image's, or of a volume's, or a new and empty one. The directories are there.
///
/// # Errors
///
/// The target leads to a path of the appliance's own, is no file, or cannot be made.
pub(crate) fn place(config: &Config, in_volume: bool) -> io::Result<OwnedFd> {
    // A link of the image's leads to somewhere below the root, which is the container's already. One in a volume may be another
    // service's.
    let resolve = if in_volume { ResolveFlag::RESOLVE_NO_SYMLINKS } else { ResolveFlag::empty() };
    let open = |flags: OFlag, mode| {
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(mode).resolve(resolve);
        openat2(AT_FDCWD, config.target.as_str(), how)
    };
    let found = match open(OFlag::O_PATH, Mode::empty()) {
        Err(Errno::ENOENT) => {
            let new = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY;
            open(new, Mode::from_bits_truncate(0o644))?;
            open(OFlag::O_PATH, Mode::empty())?
        }
        found => found?,
    };
    let path = fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
    if path.to_str().is_none_or(reserved_path) {
        return Err(io::Error::other("a link of the image leads to a path of the appliance's own"));
    }
    if SFlag::from_bits_truncate(fstat(&found)?.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(io::Error::other("what is there is no file"));
    }
    Ok(found)
}

/// Lays the contents over their places. `staging` is an empty directory of this process's own, which is left as it was.
///
/// # Errors
///
/// A content is missing, or what the kernel says.
pub(crate) fn fill(
    configs: &[Config],
    contents: &[(String, Zeroizing<Vec<u8>>)],
    places: &[OwnedFd],
    staging: &str,
) -> io::Result<()> {
    if configs.is_empty() {
        return Ok(());
    }
    mount(Some("configs"), staging, Some("tmpfs"), FLAGS, Some(SIZE))?;
    let filled = contents_over_places(configs, contents, places, Path::new(staging));
    umount2(staging, MntFlags::MNT_DETACH)?;
    filled
}

fn contents_over_places(
    configs: &[Config],
    contents: &[(String, Zeroizing<Vec<u8>>)],
    places: &[OwnedFd],
    staging: &Path,
) -> io::Result<()> {
    for (index, config) in configs.iter().enumerate() {
        let (_, content) = contents
            .iter()
            .find(|(target, _)| *target == config.target)
            .ok_or_else(|| io::Error::other(format!("the content of {} was not delivered", config.target)))?;
        let path = staging.join(index.to_string());
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(content)?;
        chown(&path, Some(config.uid), Some(config.gid))?;
        fs::set_permissions(&path, Permissions::from_mode(config.mode))?;
    }
    // The copies are made of this mount, so nothing is written through them either.
    mount(NONE, staging, NONE, FLAGS | MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, NONE)?;
    for (index, place) in places.iter().enumerate() {
        let path = staging.join(index.to_string());
        let copy = sys::detached_copy(&std::ffi::CString::new(path.as_os_str().as_bytes())?)?;
        sys::attach_to(copy.as_fd(), place.as_fd())?;
    }
    Ok(())
}
