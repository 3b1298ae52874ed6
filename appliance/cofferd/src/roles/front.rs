//! Role `front`: the appliance's face to the network.
//!
//! Responsible for TLS with the attested key, evidence for anybody, the operators' interface (of which the vault
//! decides what changes anything), and the way to the services behind the published ports. It holds the TLS key and no other secret,
//! and it cannot make the TD sign anything but a nonce and a channel binding.
//!
//! It fails closed: until the evidence role has delivered evidence for the certificate, no port is opened; it
//! tries again with growing pauses. Evidence and certificate hold 24 h and are renewed at two thirds, and at once when the clock is set; when
//! renewal keeps failing until the end, handshakes are refused.

mod auth;
mod batch;
mod browser;
mod connection;
mod counts;
mod events;
mod evidence;
mod gather;
mod half;
mod http2;
mod listen;
mod logs;
mod operator;
mod outgoing;
mod proxy;
mod reply;
mod requests;
mod site;
mod source;
mod stall;
mod tcp;
mod tls;
mod turns;
pub(crate) mod untrusted_file;
mod upstream;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use cofferdam_attest::evidence::Evidence;
use cofferdam_attest::ratls;
use cofferdam_protocol::Endpoint;
use cofferdam_protocol::evidence::EvidenceRequest;
use cofferdam_protocol::json::JsonError;
use cofferdam_workload::places::Places;
use tokio::net::{TcpListener, TcpSocket};
use tokio_rustls::TlsAcceptor;

use self::auth::Callers;
use self::browser::Browser;
use self::counts::Counts;
use self::evidence::EvidenceClient;
use self::listen::Limits;
use self::operator::{Operators, Records};
use self::proxy::{Backend, Proxy};
use self::requests::Bounds;
use self::site::{Own, Site};
use self::tls::{Identity, TlsKey};
use self::turns::Turns;
use crate::paths;
use crate::roles::Role;
use crate::roles::clock::{self, Moment, Steps};
use crate::roles::evidence::AskError;
use crate::roles::facts::Facts;
use crate::system::{cgroup, confine, sys};

/// Served always, so that an appliance can be operated whatever its services publish.
const ALWAYS: u16 = 443;

/// First and longest pause between attempts to get evidence. Short, because nothing is served meanwhile.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// Largest evidence that goes into a certificate whole, in bytes. TLS libraries bound a certificate message to
/// 64 KiB; beyond this the firmware events' payloads are left out, which their digests stand for.
const CERTIFICATE_EVIDENCE: usize = 32 * 1024;

/// Runs the role until it is killed.
///
/// # Errors
/// When the key, the facts of this boot or a port is not to be had.
pub(crate) fn run(role: &Role) -> anyhow::Result<()> {
    // Before the key is in this process's memory.
    confine::undumpable().context("cannot become unreadable for others")?;
    let key = sys::inherited(paths::KEY_FD).context("no TLS key was handed over")?;
    let key = TlsKey::inherited(key)?;
    role.confine().context("cannot confine the role")?;
    let facts = Facts::read(Path::new(paths::FACTS))?;

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        // From before the first certificate is made, so that none keeps the dates of a clock that was set meanwhile.
        let steps = Steps::watch().context("cannot watch the clock")?;
        let identity = Arc::new(Identity::default());
        let site = Arc::new(site(&facts, &key)?);
        let until = attest(&site.evidence, &key, &identity).await;
        let acceptor = |http| {
            let config = tls::server_config(Arc::clone(&identity), http)?;
            Ok::<_, tls::TlsError>(TlsAcceptor::from(Arc::new(config)))
        };
        let (for_http, for_bytes) = (acceptor(true)?, acceptor(false)?);
        let limits = Limits::default();
        let waiting = Places::new(limits.waiting);
        let ports: BTreeSet<u16> = site.backends.keys().copied().chain([ALWAYS]).collect();
        for port in ports {
            let listener = bind(port)?;
            let acceptor = if site.carries_http(port) { &for_http } else { &for_bytes };
            let (acceptor, waiting, site) = (acceptor.clone(), Arc::clone(&waiting), Arc::clone(&site));
            tokio::spawn(listen::serve(listener, port, acceptor, limits, waiting, site));
        }
        println!("front: serving with an attested certificate");
        renew(&site.evidence, &key, &identity, until, steps).await;
        Ok(())
    })
}

/// The site of this appliance.
fn site(facts: &Facts, key: &TlsKey) -> anyhow::Result<Site> {
    let services = &facts.services;
    let ports =
        services.iter().flat_map(|service| service.declared.ports.iter().map(move |port| (service, port)));
    let backends: BTreeMap<u16, Backend> = ports
        .map(|(service, port)| {
            let backend = Backend {
                service: service.declared.name.as_str().into(),
                auth: port.auth,
                speaks: port.speaks,
                socket: service.socket(port),
                uid: service.uid,
                status: service.status(),
                kept: upstream::places(),
                connections: Places::new(tcp::CONNECTIONS),
            };
            (port.published, backend)
        })
        .collect();
    let counts = Arc::new(Counts::default());
    let records = Records {
        counts: Arc::clone(&counts),
        appliance: PathBuf::from(paths::APPLIANCE),
        roles: PathBuf::from(paths::STATUS),
        publish: PathBuf::from(paths::PUBLISH_STATUS),
        network: PathBuf::from(paths::NETWORK_STATUS),
        store: PathBuf::from(paths::VAULT_STATUS),
        egress: PathBuf::from(paths::EGRESS_DIR),
        services: services
            .iter()
            .map(|service| (service.declared.name.clone(), service.directory.clone()))
            .collect(),
        rings: events::sources(services),
        role_groups: PathBuf::from(cgroup::ROLES),
        groups: services.iter().map(|service| (service.declared.name.clone(), service.group())).collect(),
    };
    Ok(Site {
        evidence: EvidenceClient::new(
            PathBuf::from(paths::EVIDENCE_SOCKET),
            PathBuf::from(paths::PUBLISH_COLLATERAL),
            Arc::clone(&counts),
        ),
        operators: Operators::new(
            PathBuf::from(paths::VAULT_SOCKET),
            PathBuf::from(paths::PUBLISH_SOCKET),
            records,
        ),
        callers: Callers::new(&facts.operators, &facts.tokens, Turns::new())?,
        backends,
        proxy: Proxy::new(Bounds::default()),
        own: Own::default(),
        counts,
        browser: browser(facts, key)?,
        attested_key: facts.certificate.as_ref().map(|_| key.digest()).transpose()?,
    })
}

/// The certificate that browsers accept, where the declaration has names for it.
fn browser(facts: &Facts, key: &TlsKey) -> anyhow::Result<Option<Browser>> {
    let Some(facts) = &facts.certificate else { return Ok(None) };
    let signing = key.for_browsers().context("no key for browsers was handed over")?;
    let (chain, challenges) = (Path::new(paths::PUBLISH_CHAIN), Path::new(paths::PUBLISH_CHALLENGES));
    Ok(Some(Browser::new(facts, signing, chain, challenges)?))
}

/// Gets evidence, puts it into a certificate and shows both from now on. Tries until it works; returns when the
/// certificate has to be renewed.
async fn attest(client: &EvidenceClient, key: &TlsKey, identity: &Identity) -> Moment {
    let mut pause = FIRST_PAUSE;
    loop {
        match attempt(client, key, identity).await {
            Ok(until) => return until,
            Err(error) => {
                eprintln!("front: no attested certificate yet: {:#}", anyhow::Error::new(error));
                tokio::time::sleep(pause).await;
                pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
enum AttestError {
    #[error("there is no evidence")]
    Ask(#[from] AskError),
    #[error("the evidence is not valid now: the clock moved or the evidence role is wrong")]
    Validity,
    #[error("the evidence is about another TLS key than the one that was handed over")]
    OtherKey,
    #[error("the certificate cannot be made")]
    Certificate(#[from] ratls::RatlsError),
    #[error("the evidence cannot be written")]
    Write(#[from] JsonError),
}

async fn attempt(client: &EvidenceClient, key: &TlsKey, identity: &Identity) -> Result<Moment, AttestError> {
    let (evidence, claims) = client.fetch(&EvidenceRequest::default()).await?;
    let (issued, expires) = (claims.issued_at.unix(), claims.expires_at.unix());
    let now = clock::unix_now();
    if now >= expires {
        return Err(AttestError::Validity);
    }
    let lifetime = expires.saturating_sub(issued);
    let certificate = certificate(evidence.clone(), &claims.endpoint, key, issued, lifetime)?;
    if ratls::spki_sha256(&certificate)? != claims.tls_key {
        return Err(AttestError::OtherKey);
    }
    let expires = Moment::at(expires);
    identity.replace(certificate, key, expires);
    client.replace(evidence, expires);
    Ok(Moment::at(ratls::renew_at(issued, lifetime)))
}

/// The certificate with the evidence in it, valid exactly as long as the claims.
fn certificate(
    mut evidence: Evidence,
    endpoint: &Endpoint,
    key: &TlsKey,
    issued: u64,
    lifetime: u64,
) -> Result<Vec<u8>, AttestError> {
    if evidence.to_json()?.len() > CERTIFICATE_EVIDENCE {
        for event in evidence.event_log.iter_mut().filter(|event| event.digest.is_some()) {
            event.payload = None;
        }
    }
    let names = [endpoint.host().to_owned()];
    Ok(ratls::certificate(key.pkcs8(), &evidence.to_json()?, &names, issued, lifetime)?)
}

/// Renews for ever: when it is time, and when the clock is set, since what was made by another clock has wrong dates.
async fn renew(
    client: &EvidenceClient,
    key: &TlsKey,
    identity: &Identity,
    mut until: Moment,
    mut steps: Steps,
) {
    loop {
        tokio::select! {
            () = until.wait() => {}
            () = steps.next() => {}
        }
        until = attest(client, key, identity).await;
        println!("front: renewed the attested certificate");
    }
}

/// Connections that the kernel has taken and the front has not: listen(2) makes it what `net.core.somaxconn` allows, 4,096 unless it
/// was changed. When it is full the kernel drops newcomers, whoever they are, and they try again after seconds. So a moment in which
/// strangers come faster than they are let in must fit.
const BACKLOG: u32 = 4096;

/// Opens a port on every address, IPv6 and IPv4; on IPv4 alone where the kernel has no IPv6.
fn bind(port: u16) -> anyhow::Result<TcpListener> {
    let every = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let ipv4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    open(every).or_else(|_| open(ipv4)).with_context(|| format!("cannot listen on port {port}"))
}

fn open(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod attacks;
#[cfg(test)]
mod browser_tests;
#[cfg(test)]
mod protocols;
#[cfg(test)]
mod tests;
