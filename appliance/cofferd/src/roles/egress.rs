//! The role that carries services' connections out of the appliance: to the names and ports that the declaration says, and nowhere else.
//!
//! # Duties
//!
//! - A shim hands over the sockets of its service's [gate](crate::system::gate). Which service it is, the kernel says (SO_PEERCRED); what
//!   that one may reach, PID 1's facts.
//! - It answers the shim's questions for names with addresses that stand for them in that gate alone, and carries what is sent to one
//!   to that name (`tenant`). What is not declared does not exist, and nobody outside is asked for it.
//! - What is denied is counted for each service, and the last of it written down (`denials`).
//! - No service keeps another out: their connections share places of which the one with most loses some, and everything else is
//!   bounded for each.
//! - It does nothing while nobody asks.
//!
//! # Prohibitions
//!
//! - It connects to no address of the appliance's own, its network's or the cloud's (`dial`), whatever the DNS says.
//! - It listens nowhere itself, and takes no address from a service for where to connect to.
//! - It looks at the beginning of TLS and at nothing behind it, keeps none of it and prints none.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use cofferdam_protocol::egress::{Answer, MAX_DESCRIPTORS, MAX_QUESTION, OPEN, Opened, Question, parse};
use cofferdam_protocol::{error_chain, json};
use cofferdam_workload::places::Places;
use serde::Serialize;
use tokio::io::{
    AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, Interest,
};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

pub(crate) use self::denials::ring;
use self::dial::{Dialer, is_outside};
use self::lookup::Resolvers;
use self::tenant::Tenant;
use super::Role;
use super::facts::Facts;
use crate::paths;
use crate::system::quota::Quota;
use crate::system::{sys, unix};

mod denials;
mod dial;
mod hello;
mod lookup;
mod names;
mod seen;
mod tenant;

/// Connections of all services at a time. Two descriptors each, and what the kernel keeps for both sockets.
const CONNECTIONS: usize = 512;
/// Open connections of one shim, and room for its restart. Nobody else has any.
const CONNECTIONS_EACH: usize = 4;
/// For a shim to say what it wants, which it does at once.
const REQUEST: Duration = Duration::from_secs(5);
/// Pause after accept(2) failed: out of descriptors, for which somebody else has to let go.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs the role until it is killed.
///
/// # Errors
///
/// It cannot be confined, the facts cannot be read, or the socket cannot be made.
pub(crate) fn run(role: &Role) -> anyhow::Result<()> {
    role.confine().context("cannot confine the role")?;
    let facts = Facts::read(Path::new(paths::FACTS))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let listener = unix::bind(Path::new(paths::EGRESS_SOCKET))
            .with_context(|| format!("cannot listen on {}", paths::EGRESS_SOCKET))?;
        let dialer = Dialer::new(Resolvers::new(paths::NETWORK_RESOLVER), is_outside);
        serve(listener, Outlets::new(&facts, dialer, Path::new(paths::EGRESS_DIR))).await;
        Ok(())
    })
}

/// Where the role says what a service was denied.
pub(crate) fn status(directory: &Path, service: &str) -> PathBuf {
    directory.join(format!("{service}.json"))
}

/// The services, and what they share.
#[derive(Debug)]
struct Outlets {
    /// By the uid of the shim.
    tenants: BTreeMap<u32, Arc<Tenant>>,
    dialer: Dialer,
    places: Arc<Places<u32>>,
}

/// Why a gate is not served.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("that is not a request")]
    Malformed,
    #[error("a descriptor is no socket of a gate")]
    Socket(#[source] io::Error),
    #[error("the service may not connect to port {0}")]
    Port(u16),
}

impl Outlets {
    /// Those of the facts; what they are denied is written into `directory`.
    fn new(facts: &Facts, dialer: Dialer, directory: &Path) -> Arc<Self> {
        let tenants = facts.services.iter().map(|service| {
            let tenant = Arc::new(Tenant::new(&service.declared.name, &service.declared.egress));
            let (writer, path) = (Arc::clone(&tenant), status(directory, &tenant.name));
            tokio::spawn(async move { writer.denials.write_to(&path).await });
            (service.uid, tenant)
        });
        Arc::new(Self { tenants: tenants.collect(), dialer, places: Places::new(CONNECTIONS) })
    }

    /// Serves a gate for as long as `alive` does: its sockets are in the order of [`OPEN`].
    fn open(
        self: &Arc<Self>,
        uid: u32,
        tenant: &Arc<Tenant>,
        sockets: Vec<OwnedFd>,
        tasks: &mut JoinSet<()>,
        alive: &watch::Receiver<()>,
    ) -> Result<usize, OpenError> {
        let mut sockets = sockets.into_iter();
        for (udp, socket) in [false, true].into_iter().zip(sockets.by_ref()) {
            let tenant = Arc::clone(tenant);
            tasks.spawn(async move { seen::watch(socket, |seen| tenant.refused(&seen, udp)).await });
        }
        let mut ports = BTreeSet::new();
        for socket in sockets {
            let listener = std::net::TcpListener::from(socket);
            listener.set_nonblocking(true).map_err(OpenError::Socket)?;
            let port = listener.local_addr().map_err(OpenError::Socket)?.port();
            if !tenant.may_connect_to(port) || !ports.insert(port) {
                return Err(OpenError::Port(port));
            }
            let listener = TcpListener::from_std(listener).map_err(OpenError::Socket)?;
            let (outlets, tenant, alive) = (Arc::clone(self), Arc::clone(tenant), alive.clone());
            tasks.spawn(async move { outlets.accept(uid, &tenant, listener, &alive).await });
        }
        Ok(ports.len())
    }

    /// Accepts until the task ends. A connection lasts as long as it has its place and the gate is served.
    async fn accept(
        self: &Arc<Self>,
        uid: u32,
        tenant: &Arc<Tenant>,
        listener: TcpListener,
        alive: &watch::Receiver<()>,
    ) {
        loop {
            let Ok((client, _)) = listener.accept().await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let ended = Arc::new(Notify::new());
            let place = self.places.enter(uid, &ended);
            let (outlets, tenant, mut alive) = (Arc::clone(self), Arc::clone(tenant), alive.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = ended.notified() => {}
                    _ = alive.changed() => {}
                    () = tenant.carry(client, &outlets.dialer, || place.touch()) => {}
                }
            });
            // Whoever has just lost their place lets go of it before the next one comes.
            tokio::task::yield_now().await;
        }
    }
}

/// Serves until the task is dropped.
async fn serve(listener: UnixListener, outlets: Arc<Outlets>) {
    let connections = Quota::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                eprintln!("egress: cannot accept: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // A connection of somebody else or beyond a shim's share is closed: the peer sees it end.
        let uid = stream.peer_cred().ok().map(|peer| peer.uid());
        let known = uid.and_then(|uid| Some((uid, Arc::clone(outlets.tenants.get(&uid)?))));
        let Some((uid, tenant)) = known else { continue };
        let Some(permit) = connections.take(&[(uid, CONNECTIONS_EACH)]) else { continue };
        let outlets = Arc::clone(&outlets);
        tokio::spawn(async move {
            // What goes wrong on a connection concerns its peer alone.
            let _ = converse(stream, uid, &tenant, &outlets).await;
            drop(permit);
        });
    }
}

/// Serves one gate and answers its service's questions, until its shim ends.
async fn converse(
    mut stream: UnixStream,
    uid: u32,
    tenant: &Arc<Tenant>,
    outlets: &Arc<Outlets>,
) -> io::Result<()> {
    // Both end with this function: the listeners, and what came of them.
    let (mut tasks, (_keep, alive)) = (JoinSet::new(), watch::channel(()));
    let opened = match timeout(REQUEST, request(&stream)).await?? {
        Some(sockets) => outlets.open(uid, tenant, sockets, &mut tasks, &alive),
        None => Err(OpenError::Malformed),
    };
    let answer = match &opened {
        Ok(count) => Opened::Listeners(u32::try_from(*count).unwrap_or(u32::MAX)),
        Err(error) => Opened::Refused(error_chain(error)),
    };
    say(&mut stream, &answer).await?;
    if opened.is_err() {
        return Ok(());
    }
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        (&mut stream).take(MAX_QUESTION as u64).read_until(b'\n', &mut line).await?;
        if line.pop() != Some(b'\n') {
            return Ok(());
        }
        let question: Question = parse(&line, MAX_QUESTION).map_err(io::Error::other)?;
        let answer = tenant.address(&question.name).map_or(Answer::Denied, Answer::Address);
        say(&mut stream, &answer).await?;
    }
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), answer: &impl Serialize) -> io::Result<()> {
    let mut line = json::to_vec(answer).map_err(io::Error::other)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

/// The sockets that came with the request. `None` when it is no request.
async fn request(stream: &UnixStream) -> io::Result<Option<Vec<OwnedFd>>> {
    loop {
        stream.readable().await?;
        let mut byte = [0_u8];
        match stream.try_io(Interest::READABLE, || Ok(sys::receive_many(stream.as_fd(), &mut byte)?)) {
            Ok((1, sockets)) if byte == [OPEN] && sockets.len() <= MAX_DESCRIPTORS => {
                return Ok(Some(sockets));
            }
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
