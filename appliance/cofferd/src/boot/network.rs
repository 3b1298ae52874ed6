//! Stage `network`: the loopback, then a role that obtains an address. PID 1 reads no packet.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{chown, symlink};
use std::path::Path;
use std::time::Duration;

use caps::Capability;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::paths;
use crate::system::cgroup::{Cgroup, CgroupError, Limits};
use crate::system::spawn::{DEVICE_PATHS, Identity, Spec};
use crate::system::supervise::{Supervisor, Tier};
use crate::system::sys;

/// A DHCP server answers within a second or two; one that needs more than half a minute is not there.
const LEASE_WITHIN: Duration = Duration::from_secs(30);
/// The role holds one lease and a few packets.
const MEMORY: u64 = 32 << 20;
const PROCESSES: u32 = 16;

/// Why the stage failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// The loopback does not come up.
    #[error("cannot bring the loopback up")]
    Loopback(#[source] Errno),
    /// A directory or link cannot be made.
    #[error("cannot set up {0}")]
    File(&'static str, #[source] io::Error),
    /// The control group cannot be made.
    #[error("cannot make the control group of the network role")]
    Cgroup(#[from] CgroupError),
    /// Nobody answered.
    #[error("no address by DHCP within {} s", LEASE_WITHIN.as_secs())]
    NoLease,
}

/// Brings the network up and waits for its lease.
///
/// # Errors
///
/// [`NetworkError`].
pub(crate) fn establish(supervisor: &mut Supervisor) -> Result<(), NetworkError> {
    loopback().map_err(NetworkError::Loopback)?;
    let directory = paths::NETWORK_DIR;
    let own = |path: &'static str| move |error| NetworkError::File(path, error);
    fs::create_dir_all(directory).map_err(own(directory))?;
    chown(directory, Some(paths::NETWORK_UID), Some(paths::NETWORK_UID)).map_err(own(directory))?;
    fs::create_dir_all("/etc").map_err(own("/etc"))?;
    match symlink(paths::NETWORK_RESOLVER, "/etc/resolv.conf") {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(own("/etc/resolv.conf")(error));
        }
        _ => {}
    }
    supervisor.keep("network".to_owned(), Tier::Role, spec()?);
    let lease = Path::new(paths::NETWORK_LEASE);
    if supervisor.run_until(LEASE_WITHIN, || lease.exists()) { Ok(()) } else { Err(NetworkError::NoLease) }
}

fn spec() -> Result<Spec, CgroupError> {
    // Ports below 1024 for the DHCP client's own, packets before there is an address, and the address itself.
    const CAPABILITIES: &[Capability] =
        &[Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW, Capability::CAP_NET_BIND_SERVICE];
    let uid = paths::NETWORK_UID;
    let limits = Limits { memory: Some(MEMORY), processes: Some(PROCESSES) };
    Ok(Spec {
        arguments: vec!["network".to_owned()],
        identity: Identity::Role { uid, gid: uid, capabilities: CAPABILITIES },
        own_network: false,
        covered: &DEVICE_PATHS,
        key: None,
        cgroup: Some(Cgroup::role("network", limits)?),
    })
}

fn loopback() -> Result<(), Errno> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    sys::interface_up(socket.as_fd(), "lo")
}
