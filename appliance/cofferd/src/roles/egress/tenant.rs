//! What one service may reach, and the carrying of its connections there.
//!
//! A connection says which name it is for by the address that was dialled, which stands for one name in this service's gate. It goes on
//! only where the declaration names that name with that port, and, unless the entry says `/tcp`, where what comes first is TLS
//! for that very server. The server is told nothing before, and nobody asks the DNS.
//!
//! The place where secrets will be put on the wire is [`Tenant::carry`], between the client's first bytes and the server.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cofferdam_declaration::{Carries, Egress, is_destination};
use cofferdam_protocol::status::DeniedWhy;
use cofferdam_workload::join::{Idle, join};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::denials::Denials;
use super::dial::Dialer;
use super::hello::{self, Hello, HelloError};
use super::names::Names;
use super::seen::Seen;

/// For a client to begin with TLS, and to begin again.
pub(super) const HELLO: Duration = Duration::from_secs(10);
/// For a server's first answer to that.
pub(super) const ANSWER: Duration = Duration::from_secs(30);
/// Silence after which a connection is forgotten, as of those between services: see [`cofferdam_workload::relay`].
const IDLE: Idle = Idle { open: Duration::from_secs(8 * 3600), half_closed: Duration::from_secs(300) };
/// Questions to the DNS at a time; other connections wait for their turn.
const LOOKUPS: usize = 8;
/// Names whose addresses are kept. Each service has its own, so that none can tell from the time what another has asked for.
const KEPT: usize = 128;

/// One service.
#[derive(Debug)]
pub(super) struct Tenant {
    /// Its name.
    pub(super) name: String,
    declared: Vec<Egress>,
    names: Mutex<Names>,
    /// What it did not get.
    pub(super) denials: Denials,
    known: Mutex<BTreeMap<String, Known>>,
    lookups: Semaphore,
}

/// What the DNS said of a name.
#[derive(Debug, Clone)]
struct Known {
    addresses: Vec<Ipv4Addr>,
    until: Instant,
}

/// Why a connection goes nowhere.
#[derive(Debug)]
struct Refusal {
    target: String,
    why: DeniedWhy,
    allow: Option<String>,
}

impl Tenant {
    /// A service with these destinations.
    pub(super) fn new(name: &str, declared: &[Egress]) -> Self {
        Self {
            name: name.to_owned(),
            declared: declared.to_vec(),
            names: Mutex::default(),
            denials: Denials::default(),
            known: Mutex::default(),
            lookups: Semaphore::new(LOOKUPS),
        }
    }

    /// The ports that it may connect to.
    pub(super) fn may_connect_to(&self, port: u16) -> bool {
        self.declared.iter().any(|egress| egress.port() == port)
    }

    /// The address that stands for a name, if it may know it.
    pub(super) fn address(&self, name: &str) -> Option<Ipv4Addr> {
        if !self.declared.iter().any(|egress| egress.covers(name)) {
            self.denials.add(name, DeniedWhy::Name, entry(name, 443));
            return None;
        }
        let given = self.names.lock().unwrap_or_else(PoisonError::into_inner).give(name);
        if given.is_none() {
            self.denials.add(name, DeniedWhy::TooManyNames, None);
        }
        given
    }

    /// Counts what the kernel has refused.
    pub(super) fn refused(&self, seen: &Seen, udp: bool) {
        let Seen { address, port } = *seen;
        // At the other ports connections are accepted, and judged there.
        if !udp && self.may_connect_to(port) {
            return;
        }
        let name = self.name_of(address);
        let host = name.clone().unwrap_or_else(|| address.to_string());
        match (udp, name) {
            (true, _) => self.denials.add(&format!("{host}:{port}/udp"), DeniedWhy::Udp, None),
            (false, Some(name)) => {
                self.denials.add(&format!("{host}:{port}"), DeniedWhy::Port, entry(&name, port));
            }
            (false, None) => self.denials.add(&format!("{host}:{port}"), DeniedWhy::Address, None),
        }
    }

    /// Carries a connection to where it is for, or refuses it. `moved` is called whenever something has passed.
    pub(super) async fn carry(&self, mut client: TcpStream, dialer: &Dialer, moved: impl Fn()) {
        let Ok(dialled) = client.local_addr() else { return };
        let joined = match self.open(&mut client, dialled, dialer).await {
            Ok(server) => server,
            Err(Some(refusal)) => {
                if matches!(refusal.why, DeniedWhy::ServerName) {
                    // For a client of TLS to show.
                    let _ = client.write_all(&hello::ACCESS_DENIED).await;
                } else {
                    // At once, and not as an end of what was said.
                    let _ = client.set_zero_linger();
                }
                self.denials.add(&refusal.target, refusal.why, refusal.allow);
                return;
            }
            // The client has gone, or is gone from by the server.
            Err(None) => return,
        };
        join(client, joined, IDLE, moved).await;
    }

    /// The connection to the server, with everything that was said so far passed on.
    async fn open(
        &self,
        client: &mut TcpStream,
        dialled: SocketAddr,
        dialer: &Dialer,
    ) -> Result<TcpStream, Option<Refusal>> {
        let SocketAddr::V4(dialled) = dialled else { return Err(None) };
        let port = dialled.port();
        let refuse = |target: String, why, allow| Some(Refusal { target, why, allow });
        let Some(name) = self.name_of(*dialled.ip()) else {
            return Err(refuse(dialled.to_string(), DeniedWhy::Address, None));
        };
        let target = format!("{name}:{port}");
        let covers = |egress: &&Egress| egress.port() == port && egress.covers(&name);
        // What is said of the very name comes before what is said of many.
        let Some(declared) = self.declared.iter().filter(covers).min_by_key(|egress| egress.is_wildcard())
        else {
            return Err(refuse(target, DeniedWhy::Port, entry(&name, port)));
        };
        let connect = async || match self.connect(&name, port, dialer).await {
            Ok(server) => Ok(server),
            Err(why) => Err(refuse(target.clone(), why, None)),
        };
        if declared.carries() == Carries::Tcp {
            return connect().await;
        }
        let hello = self.judge(timeout(HELLO, hello::first(client)).await, &name, port)?;
        let mut server = connect().await?;
        let gone = |_| None;
        server.write_all(&hello.bytes).await.map_err(gone)?;
        // Nothing more of the client's passes before it is known whether the server wants another hello: it could name another server.
        let retry = timeout(ANSWER, hello::answer(&mut server, client)).await;
        if retry.map_err(|_| None)?.map_err(|_| None)? {
            let hello = timeout(HELLO, hello::second(client, &mut server)).await;
            let hello = self.judge(hello, &name, port)?;
            server.write_all(&hello.bytes).await.map_err(gone)?;
        }
        Ok(server)
    }

    /// The hello, if it is for this name.
    fn judge(
        &self,
        hello: Result<Result<Hello, HelloError>, tokio::time::error::Elapsed>,
        name: &str,
        port: u16,
    ) -> Result<Hello, Option<Refusal>> {
        let target = format!("{name}:{port}");
        match hello {
            Ok(Ok(hello)) if hello.server == name => Ok(hello),
            Ok(Ok(hello)) => Err(Some(Refusal {
                target: format!("{}:{port}@{name}", hello.server),
                why: DeniedWhy::ServerName,
                allow: entry(&hello.server, port),
            })),
            Ok(Err(HelloError::Malformed | HelloError::Nameless)) | Err(_) => {
                let allow = Some(format!("{target}/tcp"));
                Err(Some(Refusal { target, why: DeniedWhy::NotTls, allow }))
            }
            Ok(Err(HelloError::Io(_))) => Err(None),
        }
    }

    /// Connects to what the DNS says now, or said a moment ago.
    async fn connect(&self, name: &str, port: u16, dialer: &Dialer) -> Result<TcpStream, DeniedWhy> {
        let kept = |tenant: &Self| {
            let known = tenant.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.get(name).filter(|known| known.until > Instant::now()).map(|known| known.addresses.clone())
        };
        if let Some(addresses) = kept(self) {
            return dialer.connect(&addresses, port).await;
        }
        let addresses = {
            let _turn = self.lookups.acquire().await.map_err(|_| DeniedWhy::Unresolved)?;
            match kept(self) {
                // Somebody else was asking.
                Some(addresses) => addresses,
                None => {
                    let found = dialer.look_up(name).await?;
                    self.keep(
                        name,
                        Known { addresses: found.addresses.clone(), until: Instant::now() + found.holds },
                    );
                    found.addresses
                }
            }
        };
        dialer.connect(&addresses, port).await
    }

    fn keep(&self, name: &str, new: Known) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KEPT {
            let now = Instant::now();
            known.retain(|_, known| known.until > now);
        }
        if known.len() >= KEPT {
            let next = known.iter().min_by_key(|(_, known)| known.until).map(|(name, _)| name.clone());
            next.and_then(|next| known.remove(&next));
        }
        known.insert(name.to_owned(), new);
    }

    fn name_of(&self, address: Ipv4Addr) -> Option<String> {
        let name = self.names.lock().unwrap_or_else(PoisonError::into_inner).name(address);
        name.map(|name| name.to_string())
    }
}

/// The entry of a declaration that allows this, where one can.
fn entry(name: &str, port: u16) -> Option<String> {
    is_destination(name).then(|| format!("{name}:{port}"))
}
