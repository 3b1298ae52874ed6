//! Stage `network`: the loopback, then a role that obtains an address. PID 1 reads no packet.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use cofferdam_protocol::json::{self, JsonError};
use cofferdam_protocol::network::Ipv4Settings;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::paths;
use crate::roles::NETWORK;
use crate::system::cgroup::CgroupError;
use crate::system::console::say;
use crate::system::supervise::{Supervisor, Tier};
use crate::system::{files, sys};

/// A DHCP server answers within a second or two: after this long it is said that there is no address, and again each time it was twice
/// as long. The role says why.
const SAID_AFTER: Duration = Duration::from_secs(10);
/// Longest time without a word about it.
const SAID_EVERY: Duration = Duration::from_secs(10 * 60);

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
    /// The settings cannot be written as JSON.
    #[error("cannot encode the address that the host has set")]
    Encode(#[from] JsonError),
}

/// Brings the network up and waits for an address, however long that takes: a network that is away can come back. With `settings`,
/// which are measured, it is that one and no DHCP server is asked.
///
/// # Errors
///
/// [`NetworkError`].
pub(crate) fn establish(
    supervisor: &mut Supervisor,
    settings: Option<&Ipv4Settings>,
) -> Result<(), NetworkError> {
    loopback().map_err(NetworkError::Loopback)?;
    let own = |path: &'static str| move |error| NetworkError::File(path, error);
    if let Some((path, uid, gid, mode)) = NETWORK.directory() {
        files::directory(path, uid, gid, mode).map_err(own(path))?;
    }
    if let Some(settings) = settings {
        files::replace(paths::NETWORK_SETTINGS, &json::to_vec(settings)?)
            .map_err(own(paths::NETWORK_SETTINGS))?;
    }
    fs::create_dir_all("/etc").map_err(own("/etc"))?;
    match symlink(paths::NETWORK_RESOLVER, "/etc/resolv.conf") {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(own("/etc/resolv.conf")(error));
        }
        _ => {}
    }
    supervisor.keep(NETWORK.name().to_owned(), Tier::Role, NETWORK.spec(None, None)?);
    let lease = Path::new(paths::NETWORK_LEASE);
    let (began, mut wait) = (Instant::now(), SAID_AFTER);
    while !supervisor.run_until(wait, || lease.exists()) {
        say(&format!("network: no address after {} s, waiting for one", began.elapsed().as_secs()));
        wait = wait.saturating_mul(2).min(SAID_EVERY);
    }
    Ok(())
}

fn loopback() -> Result<(), Errno> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    sys::interface_up(socket.as_fd(), "lo")
}
