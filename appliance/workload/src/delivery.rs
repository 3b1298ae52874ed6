//! What a container's init needs to be told, and the part of it that only the workload's own process may read.
//!
//! The plan holds no secret and is JSON. The delivery holds the environment, the secret files and the configs. It travels in
//! an anonymous memory file that the forked child reads and init never does: init stays, the
//! child's memory is replaced by execve. Layout: for each entry its kind (one byte), then the lengths of
//! name and value (u32 little-endian each), then both.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use cofferdam_declaration::{Capability, Profile, Ulimits};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::config::Config;
use crate::seccomp;
use crate::volume::Volume;

/// Bound on a plan in bytes: a declaration has 1 MiB and an image's configuration 4 MiB.
const MAX_PLAN: u64 = 16 << 20;
/// Bound on a delivery in bytes: what execve takes for an environment (a quarter of the default stack), several times.
const MAX_DELIVERY: u64 = 32 << 20;

/// How to build a container. Nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The unpacked image.
    pub rootfs: PathBuf,
    /// The service's name.
    pub hostname: String,
    /// `/etc/hosts`, whole.
    pub hosts: String,
    /// Whether the root is mounted read-only.
    pub read_only: bool,
    /// How much the workload may write into its root file system until it is started again, in bytes.
    pub writable: u64,
    /// What the service may take of the machine's memory, in bytes; `/proc/meminfo` says so.
    pub memory: u64,
    /// Bytes of `/dev/shm`; not 0, which would be without end.
    pub shm_size: u64,
    /// Resource limits of the workload's processes.
    pub ulimits: Ulimits,
    /// Where empty in-memory file systems go; absolute.
    pub tmpfs: Vec<String>,
    /// Volumes that it sees; targets are unique, and none is a tmpfs's.
    pub volumes: Vec<Volume>,
    /// Files that it only reads; targets are unique, and none is a tmpfs's or a volume's.
    pub configs: Vec<Config>,
    /// What runs; not empty.
    pub arguments: Vec<String>,
    /// What runs to find out whether it is healthy, when that is a program; not empty.
    pub probe: Option<Vec<String>>,
    /// Absolute; made when it is missing.
    pub working_dir: String,
    /// The user to run as.
    pub uid: u32,
    /// The group to run as.
    pub gid: u32,
    /// What root of the workload may do to its own files and processes.
    pub capabilities: BTreeSet<Capability>,
    /// All groups to be in.
    pub groups: Vec<u32>,
    /// What it confines itself to.
    pub profile: Profile,
}

/// The environment and the files with the secrets in place.
#[derive(Default)]
pub struct Delivery {
    /// Names and values of variables, in order; names are unique.
    pub environment: Vec<(String, Zeroizing<Vec<u8>>)>,
    /// File names under `/run/secrets` and their contents.
    pub files: Vec<(String, Zeroizing<Vec<u8>>)>,
    /// Contents of the configs by their targets.
    pub configs: Vec<(String, Zeroizing<Vec<u8>>)>,
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery").finish_non_exhaustive()
    }
}

impl Plan {
    /// Writes the plan, and the compiled profile of system calls, into a memory file that a child can inherit.
    ///
    /// # Errors
    ///
    /// Out of memory or descriptors.
    pub(crate) fn store(&self, calls: &seccomp::Profile) -> io::Result<OwnedFd> {
        memory_file(c"plan", &serde_json::to_vec(&(self, calls))?)
    }

    /// Reads both back.
    ///
    /// # Errors
    ///
    /// Not a plan and a profile, or something beyond its bound.
    pub(crate) fn load(file: OwnedFd) -> io::Result<(Self, seccomp::Profile)> {
        Ok(serde_json::from_slice(&read(file, MAX_PLAN)?)?)
    }
}

const VARIABLE: u8 = b'v';
const FILE: u8 = b'f';
const CONFIG: u8 = b'c';

impl Delivery {
    /// Writes the delivery into a memory file that a child can inherit.
    ///
    /// # Errors
    ///
    /// Out of memory or descriptors, or a value beyond four GiB.
    pub(crate) fn store(&self) -> io::Result<OwnedFd> {
        let entries = || {
            let variables = self.environment.iter().map(|entry| (VARIABLE, entry));
            let files = self.files.iter().map(|entry| (FILE, entry));
            variables.chain(files).chain(self.configs.iter().map(|entry| (CONFIG, entry)))
        };
        let size = entries().map(|(_, (name, value))| 9 + name.len() + value.len()).sum();
        // Of the right size from the start: growing would leave copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(size));
        for (kind, (name, value)) in entries() {
            bytes.push(kind);
            for length in [name.len(), value.len()] {
                let length = u32::try_from(length).map_err(|_| io::ErrorKind::FileTooLarge)?;
                bytes.extend_from_slice(&length.to_le_bytes());
            }
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(value);
        }
        memory_file(c"delivery", &bytes)
    }

    /// Reads a delivery back.
    ///
    /// # Errors
    ///
    /// Not a delivery, or one beyond its bound.
    pub(crate) fn load(file: OwnedFd) -> io::Result<Self> {
        let bytes = read(file, MAX_DELIVERY)?;
        let mut delivery = Self::default();
        let mut rest = bytes.as_slice();
        while let Some((kind, tail)) = rest.split_first() {
            let (name, value, tail) = entry(tail).ok_or(io::ErrorKind::InvalidData)?;
            let name = String::from_utf8(name.to_vec()).map_err(|_| io::ErrorKind::InvalidData)?;
            let list = match *kind {
                VARIABLE => &mut delivery.environment,
                FILE => &mut delivery.files,
                CONFIG => &mut delivery.configs,
                _ => return Err(io::ErrorKind::InvalidData.into()),
            };
            list.push((name, Zeroizing::new(value.to_vec())));
            rest = tail;
        }
        Ok(delivery)
    }
}

fn entry(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (name, rest) = bytes.split_first_chunk::<4>()?;
    let (value, rest) = rest.split_first_chunk::<4>()?;
    let (name, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*name)).ok()?)?;
    let (value, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*value)).ok()?)?;
    Some((name, value, rest))
}

fn memory_file(name: &std::ffi::CStr, bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

fn read(file: OwnedFd, limit: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut file = File::from(file);
    // The process that runs the probes reads the delivery after the workload's own has.
    file.rewind()?;
    let size = file.metadata()?.len();
    if size > limit {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(size).unwrap_or_default()));
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_comes_back_as_it_was() {
        let delivery = Delivery {
            environment: vec![
                ("A".into(), Zeroizing::new(b"1=\n\xff".to_vec())),
                ("B".into(), Zeroizing::default()),
            ],
            files: vec![("key.pem".into(), Zeroizing::new(vec![0, 1, 2]))],
            configs: vec![("/etc/app.conf".into(), Zeroizing::new(b"a = 1".to_vec()))],
        };
        let back = Delivery::load(delivery.store().unwrap()).unwrap();
        assert_eq!(back.environment, delivery.environment);
        assert_eq!(back.files, delivery.files);
        assert_eq!(back.configs, delivery.configs);
    }

    #[test]
    fn a_cut_delivery_is_refused() {
        for bytes in
            [&b"v"[..], b"v\x01\0\0\0\x01\0\0\0a", b"x\0\0\0\0\0\0\0\0", b"v\xff\xff\xff\xff\0\0\0\0"]
        {
            let file = memory_file(c"test", bytes).unwrap();
            assert_eq!(Delivery::load(file).unwrap_err().kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        }
    }
}
