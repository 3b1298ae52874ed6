//! What a service's own profile closes, beside what is closed to all.
//!
//! It comes last: the process is confined as every workload is, and then takes from itself, right before it executes a program, what
//! the profile does not name. So nothing on the way into the container depends on a profile, and a probe, which goes the same way,
//! is under the same one. Both parts are further layers of the kernel's, a seccomp filter that only refuses and a Landlock domain,
//! and such layers add up: whatever a profile says, nothing is opened by it.
//!
//! Between the filter and the program there are the calls of [`ALWAYS`], which no profile takes away.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use cofferdam_declaration::{Paths, Profile};
use landlock::{
    AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr,
};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{SFlag, fstat};

use crate::init::LANDLOCK;
use crate::seccomp::{Refusing, SeccompError};

/// Executing the program, saying that this failed, ending; and what the kernel has a program call by itself, after a signal or a stop.
pub(crate) const ALWAYS: [&str; 6] =
    ["execve", "exit", "exit_group", "restart_syscall", "rt_sigreturn", "write"];

/// Why a profile is not in force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NarrowError {
    /// Its calls.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// Its paths.
    #[error("cannot set up Landlock")]
    Landlock(#[from] landlock::RulesetError),
    /// There is no descriptor left.
    #[error("cannot copy the paths of the profile")]
    Copy(#[source] io::Error),
    /// Who writes to a volume could lead it anywhere.
    #[error("the profile's path {path:?} leads through a symbolic link; write where it leads")]
    Link {
        /// As declared.
        path: String,
    },
    /// It is there, and cannot be looked at.
    #[error("cannot open the profile's path {path:?}")]
    Open {
        /// As declared.
        path: String,
        /// What the kernel says.
        source: io::Error,
    },
}

/// A profile, made ready in the service's root file system.
#[derive(Debug)]
pub(crate) struct Narrow {
    calls: Option<Refusing>,
    paths: Option<RulesetCreated>,
}

impl Narrow {
    /// Looks the paths up as whoever calls, who is root of the container. What is not there stays closed when it is made later.
    ///
    /// # Errors
    ///
    /// A path leads through a link, which somebody who writes to a volume may have made.
    pub(crate) fn prepare(profile: &Profile) -> Result<Self, NarrowError> {
        let calls = profile.system_calls.as_ref();
        let calls =
            calls.map(|named| Refusing::all_but(|call| ALWAYS.contains(&call) || named.contains(call)));
        Ok(Self { calls: calls.transpose()?, paths: profile.paths.as_ref().map(ruleset).transpose()? })
    }

    /// Puts the calling thread, and all it starts from now on, under the profile. It may be called in several processes.
    ///
    /// # Errors
    ///
    /// `no_new_privs` is not set, or the kernel refuses a layer.
    pub(crate) fn apply(&self) -> Result<(), NarrowError> {
        if let Some(paths) = &self.paths {
            // It closes the file by which it is known; the copy is this process's own.
            paths.try_clone().map_err(NarrowError::Copy)?.restrict_self()?;
        }
        match &self.calls {
            Some(calls) => Ok(calls.apply()?),
            None => Ok(()),
        }
    }
}

fn ruleset(paths: &Paths) -> Result<RulesetCreated, NarrowError> {
    let execute = AccessFs::Execute | AccessFs::ReadFile;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    // Making device nodes and steering devices are ruled by the layer of all workloads.
    let write =
        AccessFs::from_write(LANDLOCK) & !(AccessFs::MakeBlock | AccessFs::MakeChar | AccessFs::IoctlDev);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(execute | read | write)?
        .create()?;
    for (list, access) in [(&paths.read, read), (&paths.write, write), (&paths.execute, execute)] {
        for path in list {
            if let Some((opened, directory)) = open(path)? {
                let access = if directory { access } else { access & of_files() };
                ruleset = ruleset.add_rule(PathBeneath::new(opened, access))?;
            }
        }
    }
    Ok(ruleset)
}

/// What can be done with something that is no directory.
fn of_files() -> BitFlags<AccessFs> {
    AccessFs::from_file(LANDLOCK)
}

/// A path of the service's root and whether it is a directory; `None` when it is not there.
fn open(path: &str) -> Result<Option<(OwnedFd, bool)>, NarrowError> {
    let how =
        OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    let failed = |errno: Errno| NarrowError::Open { path: path.to_owned(), source: errno.into() };
    let opened = match openat2(AT_FDCWD, Path::new(path), how) {
        Ok(opened) => opened,
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        Err(Errno::ELOOP) => return Err(NarrowError::Link { path: path.to_owned() }),
        Err(errno) => return Err(failed(errno)),
    };
    let mode = SFlag::from_bits_truncate(fstat(&opened).map_err(failed)?.st_mode) & SFlag::S_IFMT;
    // With O_PATH a link at the end is opened itself.
    if mode == SFlag::S_IFLNK {
        return Err(NarrowError::Link { path: path.to_owned() });
    }
    Ok(Some((opened, mode == SFlag::S_IFDIR)))
}
