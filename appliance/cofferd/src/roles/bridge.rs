//! The role that joins services to their networks: a bridge for each network, and a pair of interfaces for each member.
//!
//! # Duties
//!
//! - The bridges are in a network namespace of its own, in which no interface has an address and nothing is passed on
//!   between two of them: a frame reaches the members of its network and nobody else.
//! - A shim hands over its service's network namespace. Which service it is, the kernel says (SO_PEERCRED); which networks
//!   that one is in and under which addresses, PID 1's facts. The shim itself sets the addresses, with the rights that it has
//!   there.
//! - The connection stays open for as long as this process lives: its end tells a shim that the interfaces went with it.
//!
//! # Prohibitions
//!
//! - It reads one byte of what a shim says.
//! - It puts nothing into a namespace of the appliance's own, which a shim could once have held on to.
//!
//! A shim and its service's root have one uid here. The service sees no file of the appliance, so not this socket; if it did,
//! it could have its own networks joined to its own namespace once more. Every other id of a service is refused.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use cofferdam_protocol::bridge::{ATTACH, Answer};
use cofferdam_protocol::{error_chain, json};
use cofferdam_workload::network::{hardware_address, interface};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::Role;
use super::facts::Facts;
use crate::paths;
use crate::system::quota::Quota;
use crate::system::rtnetlink::{End, Pair, Rtnetlink};
use crate::system::{sys, unix};

/// Open connections of one shim, and room for its restart. Nobody else has any.
const CONNECTIONS_EACH: usize = 4;
/// For a shim to say what it wants, which it does at once.
const REQUEST: Duration = Duration::from_secs(5);
/// Pause after accept(2) failed: out of descriptors, for which somebody else has to let go.
const PAUSE: Duration = Duration::from_millis(100);
/// The first bridge's index; those below are the kernel's to give out.
const FIRST_INDEX: u32 = 1000;
/// In this namespace, below /proc/sys/net, and whether a kernel without it is accepted.
const SETTINGS: [(&str, &str, bool); 3] = [
    ("ipv4/ip_forward", "0", false),
    // No interface gets an address by itself.
    ("ipv6/conf/default/disable_ipv6", "1", true),
    ("ipv6/conf/all/disable_ipv6", "1", true),
];

/// Runs the role until it is killed.
///
/// # Errors
///
/// It cannot be confined, the facts cannot be read, the kernel has no bridges, or the socket cannot be made.
pub(crate) fn run(role: &Role) -> anyhow::Result<()> {
    for (name, value, optional) in SETTINGS {
        match fs::write(Path::new("/proc/sys/net").join(name), value) {
            Err(error) if optional && error.kind() == io::ErrorKind::NotFound => {}
            other => other.with_context(|| format!("cannot set net/{name}"))?,
        }
    }
    let own = owner(&fs::metadata("/proc/self/ns/user").context("cannot tell its own user namespace")?);
    role.confine().context("cannot confine the role")?;
    let facts = Facts::read(Path::new(paths::FACTS))?;
    let bridges = Arc::new(Bridges::make(&facts, own)?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let listener = unix::bind(Path::new(paths::BRIDGE_SOCKET))
            .with_context(|| format!("cannot listen on {}", paths::BRIDGE_SOCKET))?;
        serve(listener, bridges).await;
        Ok(())
    })
}

/// The identity of a namespace: device and inode of the file that stands for it.
type Owner = (u64, u64);

fn owner(metadata: &fs::Metadata) -> Owner {
    (metadata.dev(), metadata.ino())
}

/// A service's place in one network.
#[derive(Debug)]
struct Seat {
    /// Its interface, as the bridge's side calls it.
    outer: String,
    /// The bridge's index.
    bridge: u32,
    /// What its interface is known by to the other members.
    hardware: [u8; 6],
}

/// The bridges, and who has a place at which.
#[derive(Debug)]
struct Bridges {
    kernel: Rtnetlink,
    /// The user namespace that the appliance's own network namespaces belong to.
    own: Owner,
    /// By the uid of the shim.
    seats: BTreeMap<u32, Vec<Seat>>,
}

/// Why a service is not in its networks.
#[derive(Debug, thiserror::Error)]
enum AttachError {
    #[error("the peer {0} is no shim")]
    Stranger(u32),
    #[error("that is not a request")]
    Malformed,
    #[error("the descriptor is no namespace")]
    NoNamespace(#[source] io::Error),
    #[error("the namespace is the appliance's own")]
    Own,
    #[error("cannot make {0}")]
    Kernel(String, #[source] io::Error),
}

impl Bridges {
    /// Makes a bridge for each network, in the namespace that the caller is in.
    fn make(facts: &Facts, own: Owner) -> anyhow::Result<Self> {
        let kernel = Rtnetlink::open().context("cannot talk to the kernel about interfaces")?;
        let mut indices = BTreeMap::new();
        for (index, network) in (FIRST_INDEX..).zip(&facts.networks) {
            // Their names are for whoever lists them: a network's own may be longer than an interface's.
            let made = kernel.add_bridge(index, &format!("net{}", index.saturating_sub(FIRST_INDEX)));
            made.with_context(|| format!("cannot make the bridge of the network {network}"))?;
            indices.insert(network.as_str(), index);
        }
        let mut seats = BTreeMap::new();
        for (number, service) in facts.services.iter().enumerate() {
            let own = service.networks.iter().enumerate().map(|(place, at)| {
                let bridge = indices.get(at.network.as_str()).copied();
                let bridge = bridge.with_context(|| format!("there is no network {}", at.network))?;
                Ok(Seat {
                    outer: format!("s{number}n{place}"),
                    bridge,
                    hardware: hardware_address(at.address),
                })
            });
            seats.insert(service.uid, own.collect::<anyhow::Result<Vec<_>>>()?);
        }
        Ok(Self { kernel, own, seats })
    }

    /// Puts an interface for each network of the service with this uid into the namespace. Those that the service had elsewhere
    /// are gone then.
    fn attach(&self, uid: u32, namespace: BorrowedFd<'_>) -> Result<usize, AttachError> {
        let seats = self.seats.get(&uid).ok_or(AttachError::Stranger(uid))?;
        let owned =
            sys::owning_user_namespace(namespace).map_err(|errno| AttachError::NoNamespace(errno.into()))?;
        let owned = fs::File::from(owned).metadata().map_err(AttachError::NoNamespace)?;
        if owner(&owned) == self.own {
            return Err(AttachError::Own);
        }
        for seat in seats {
            let removed = self.kernel.remove(&seat.outer);
            removed.map_err(|source| AttachError::Kernel(seat.outer.clone(), source))?;
        }
        for (place, seat) in seats.iter().enumerate() {
            let inner = interface(place);
            let (outer, end, hardware) = (seat.outer.as_str(), End::Bridge(seat.bridge), seat.hardware);
            let made = self.kernel.add_pair(&Pair { outer, end, inner: &inner, namespace, hardware });
            made.map_err(|source| AttachError::Kernel(inner.clone(), source))?;
        }
        Ok(seats.len())
    }
}

/// Serves until the task is dropped.
async fn serve(listener: UnixListener, bridges: Arc<Bridges>) {
    let connections = Quota::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                eprintln!("bridge: cannot accept: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // A connection of somebody else or beyond a shim's share is closed: the peer sees it end.
        let uid =
            stream.peer_cred().ok().map(|peer| peer.uid()).filter(|uid| bridges.seats.contains_key(uid));
        let Some((uid, permit)) =
            uid.and_then(|uid| Some((uid, connections.take(&[(uid, CONNECTIONS_EACH)])?)))
        else {
            continue;
        };
        let bridges = Arc::clone(&bridges);
        tokio::spawn(async move {
            // What goes wrong on a connection concerns its peer alone.
            let _ = converse(stream, uid, &bridges).await;
            drop(permit);
        });
    }
}

async fn converse(mut stream: UnixStream, uid: u32, bridges: &Bridges) -> io::Result<()> {
    let namespace = timeout(REQUEST, request(&stream)).await??;
    let attached = match namespace {
        Some(namespace) => bridges.attach(uid, namespace.as_fd()),
        None => Err(AttachError::Malformed),
    };
    // The namespace's own life is none of this process's business.
    let answer = match attached {
        Ok(count) => Answer::Attached(u32::try_from(count).unwrap_or(u32::MAX)),
        Err(error) => Answer::Refused(error_chain(&error)),
    };
    let mut line = json::to_vec(&answer).map_err(io::Error::other)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    if matches!(answer, Answer::Attached(_)) {
        // Until the shim ends, or says more, which it never does.
        let _ = stream.read_u8().await;
    }
    Ok(())
}

/// The namespace that came with the request. `None` when it is no request.
async fn request(stream: &UnixStream) -> io::Result<Option<OwnedFd>> {
    loop {
        stream.readable().await?;
        let mut byte = [0_u8];
        match stream.try_io(Interest::READABLE, || Ok(sys::receive(stream.as_fd(), &mut byte)?)) {
            Ok((1, namespace)) if byte == [ATTACH] => return Ok(namespace),
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
