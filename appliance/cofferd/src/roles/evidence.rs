//! Role `evidence`: the only holder of the quote device.
//!
//! Responsible for composing the claims out of what PID 1 measured and the vault's public key, having them
//! quoted, and handing out the evidence document over a Unix socket to `front` and `publish`.
//!
//! One thing only does another role say, the URL of an ACME account, and that one holds the account's key.
//!
//! It never takes a claim from its callers: they choose a nonce and a channel binding, or the root of many of these, all bounded, and
//! nothing else. So a network-facing role that falls cannot make the TD sign another endpoint, key or
//! repository. It has no network, holds no secret, and hands out nothing that it has not checked against the
//! quote that came back: the report_data must be the one asked for and RTMR3 must be what the event log replays
//! to. Requests to the device are serialised; who finds the queue full is told to come back. Each of the two callers
//! has connections and a queue of its own, so one that has fallen cannot keep the other out; who is neither of them is
//! not spoken to.

mod ask;
mod device;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::body::{Body, Bytes};
use axum::http::{Method, Request, Response, StatusCode, header};
use cofferdam_attest::claims::{self, Claims};
use cofferdam_attest::event_log;
use cofferdam_attest::evidence::Evidence;
use cofferdam_attest::quote;
use cofferdam_protocol::evidence::{EvidenceRequest, MAX_REQUEST, ROUTE, VaultKey};
use cofferdam_protocol::json::{self, JsonError};
use cofferdam_protocol::reply::{ErrorReply, JSON};
use cofferdam_protocol::vault::{KEY, KeyReply};
use cofferdam_protocol::{Timestamp, error_chain};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(crate) use self::ask::{AskError, ask};
use self::device::{Configfs, Device, DeviceError, Reports};
use crate::paths;
use crate::roles::certificate;
use crate::roles::clock;
use crate::roles::facts::{self, FactsError};
use crate::roles::{FRONT, PUBLISH, Role};
use crate::system::unix::bind;
use crate::system::{client, tdx};

/// How long claims hold, in seconds. A day is long enough to survive an outage of GitHub or of the PCS and
/// short enough that a client that demands fresh evidence gets it: the certificate and the release are renewed
/// at two thirds of it.
const VALIDITY: u64 = 24 * 60 * 60;

/// How long one quote may take. The stock driver polls once a second; ten times that is a device that hangs.
const QUOTE_LIMIT: Duration = Duration::from_secs(10);

/// Requests of one peer that may wait for the device. Each takes about a second, and a peer gives up after 30.
const QUEUE: usize = 8;

/// How long a request waits in the queue before it is told to come back.
const QUEUE_LIMIT: Duration = Duration::from_secs(15);

/// Open connections of one peer: each has a few requests at a time, one on each connection.
const CONNECTIONS: usize = 16;

/// How long a connection may last whatever happens on it: as long as a peer waits for its one answer.
const CONNECTION_LIMIT: Duration = Duration::from_secs(30);

/// How long a peer may take to send its request.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// How long to wait for the vault before giving up and being started again by PID 1.
const VAULT_LIMIT: Duration = Duration::from_secs(60);

/// The register can be ahead of the file for the moment that PID 1 needs to write it; so many looks are taken.
const LOG_ATTEMPTS: u32 = 3;

/// Runs the role until it is killed.
///
/// # Errors
/// When the facts of this boot are unreadable, the device's directory is not there, the vault does not answer
/// within a minute or the socket cannot be made.
pub(crate) fn run(role: &Role) -> anyhow::Result<()> {
    role.confine().context("cannot confine the role")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let device = Device::new(Configfs::new(tdx::REPORTS));
        let removed = device.clear().context("cannot clear the quote device's directory")?;
        if removed > 0 {
            println!("evidence: removed {removed} requests of a predecessor");
        }
        let vault_key = vault_key(Path::new(paths::VAULT_SOCKET), VAULT_LIMIT).await?;
        let attester = Attester {
            appliance: PathBuf::from(paths::APPLIANCE),
            certificate: PathBuf::from(paths::PUBLISH_CERTIFICATE),
            device,
            vault_key,
            limit: QUOTE_LIMIT,
        };
        let listener = bind(Path::new(paths::EVIDENCE_SOCKET))
            .with_context(|| format!("cannot listen on {}", paths::EVIDENCE_SOCKET))?;
        let callers: Vec<u32> = [&FRONT, &PUBLISH].into_iter().filter_map(Role::uid).collect();
        serve(listener, attester, &callers).await;
        Ok(())
    })
}

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
enum EvidenceError {
    #[error("the facts of this boot are not available")]
    Appliance(#[from] FactsError),
    #[error("no quote")]
    Device(#[from] DeviceError),
    #[error("the quote device returned something that is not a TDX quote")]
    Quote(#[source] quote::QuoteError),
    #[error("the quote is over other report data than was asked for")]
    ReportData,
    #[error("RTMR3 is not what the event log replays to")]
    EventLog,
    #[error("the clock is not at a time that can be written")]
    Clock,
    #[error("the claims of this boot are malformed")]
    Claims(#[source] claims::ClaimsError),
    #[error("what is to be quoted cannot be written")]
    Write(#[from] JsonError),
}

/// Everything that goes into evidence.
struct Attester<R> {
    appliance: PathBuf,
    /// What `publish` knows of the certificate that browsers accept.
    certificate: PathBuf,
    device: Device<R>,
    vault_key: VaultKey,
    /// How long one quote may take.
    limit: Duration,
}

impl<R: Reports> Attester<R> {
    /// An evidence document without collateral. Blocks on the device.
    fn evidence(&self, request: &EvidenceRequest, now: u64) -> Result<Vec<u8>, EvidenceError> {
        let mut attempt: u32 = 1;
        loop {
            let outcome = self.attempt(request, now);
            if !matches!(outcome, Err(EvidenceError::EventLog)) || attempt >= LOG_ATTEMPTS {
                return outcome;
            }
            attempt = attempt.saturating_add(1);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn attempt(&self, request: &EvidenceRequest, now: u64) -> Result<Vec<u8>, EvidenceError> {
        let appliance = facts::appliance(&self.appliance)?;
        let claims = Claims {
            version: 1,
            repository: appliance.repository,
            commit: appliance.commit,
            declaration: appliance.declaration,
            endpoint: appliance.endpoint,
            tls_key: appliance.tls_key,
            vault_key: self.vault_key,
            issued_at: Timestamp::from_unix(now).ok_or(EvidenceError::Clock)?,
            expires_at: Timestamp::from_unix(now.saturating_add(VALIDITY)).ok_or(EvidenceError::Clock)?,
            // As the verifier sees it: what is not measured is not claimed.
            sealed: appliance.event_log.iter().any(|event| event.mr == 3 && event.event == "sealed"),
            state_epoch: appliance.state.epoch(),
            state_continuity: appliance.state.continuity(),
            certificate: certificate::claim(appliance.certificate, &self.certificate),
            nonce: request.nonce.clone(),
            channel_binding: request.channel_binding,
            challenges: request.challenges,
        }
        .encode()?;
        Claims::decode(&claims).map_err(EvidenceError::Claims)?;

        let report_data = claims::report_data(&claims);
        let padded = self.device.quote(&report_data, self.limit)?;
        // Some hosts fill the quote's buffer up with zeros; a document carries the quote alone.
        let bytes = quote::trim_padding(&padded).map_err(EvidenceError::Quote)?.to_vec();
        let quote = quote::parse(&bytes).map_err(EvidenceError::Quote)?;
        if quote.report_data != report_data {
            return Err(EvidenceError::ReportData);
        }
        let [_, _, _, rtmr3] = quote.rtmr;
        if rtmr3 != event_log::replay(&appliance.event_log, 3) {
            return Err(EvidenceError::EventLog);
        }
        let evidence = Evidence {
            claims,
            quote: bytes,
            event_log: appliance.event_log,
            collateral: None,
            image: appliance.image,
            challenge: None,
        };
        Ok(evidence.to_json()?)
    }
}

/// The device, which is used by one at a time.
struct QuoteService<R> {
    attester: Attester<R>,
    device: Semaphore,
}

/// A caller that is served, and what it may take.
struct Peer {
    uid: u32,
    connections: Arc<Semaphore>,
    queue: Semaphore,
}

impl Peer {
    fn new(uid: u32) -> Arc<Self> {
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        Arc::new(Self { uid, connections, queue: Semaphore::new(QUEUE) })
    }
}

/// The peer with this uid and a place for its connection; nothing when it is a stranger or has too many.
fn admit(peers: &[Arc<Peer>], uid: u32) -> Option<(Arc<Peer>, OwnedSemaphorePermit)> {
    let peer = peers.iter().find(|peer| peer.uid == uid)?;
    let place = Arc::clone(&peer.connections).try_acquire_owned().ok()?;
    Some((Arc::clone(peer), place))
}

/// Serves callers whose uid is in `allowed` until the task is dropped.
async fn serve<R: Reports + 'static>(listener: UnixListener, attester: Attester<R>, allowed: &[u32]) {
    let service = Arc::new(QuoteService { attester, device: Semaphore::new(1) });
    let peers: Vec<_> = allowed.iter().copied().map(Peer::new).collect();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                eprintln!("evidence: cannot accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let peer = stream.peer_cred().ok().and_then(|credentials| admit(&peers, credentials.uid()));
        let Some((peer, place)) = peer else { continue };
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            let _ = tokio::time::timeout(CONNECTION_LIMIT, converse(stream, service, peer)).await;
            drop(place);
        });
    }
}

/// One connection. What goes wrong on it concerns its peer alone.
async fn converse<R: Reports + 'static>(stream: UnixStream, service: Arc<QuoteService<R>>, peer: Arc<Peer>) {
    let service = service_fn(move |request| {
        let (service, peer) = (Arc::clone(&service), Arc::clone(&peer));
        async move { Ok::<_, std::convert::Infallible>(answer(request, &service, &peer).await) }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_LIMIT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer<R: Reports + 'static>(
    request: Request<Incoming>,
    service: &Arc<QuoteService<R>>,
    peer: &Peer,
) -> Response<Body> {
    if request.uri().path() != ROUTE {
        return refuse(StatusCode::NOT_FOUND, "only /v1/evidence is here");
    }
    if request.method() != Method::POST {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "POST asks for evidence");
    }
    let body = axum::body::to_bytes(Body::new(request.into_body()), MAX_REQUEST);
    let body = match tokio::time::timeout(REQUEST_LIMIT, body).await {
        Ok(Ok(body)) => body,
        _ => return refuse(StatusCode::BAD_REQUEST, "the request is too large or came too slowly"),
    };
    let request = match EvidenceRequest::parse(&body) {
        Ok(request) => request,
        Err(_) => {
            return refuse(
                StatusCode::BAD_REQUEST,
                "the request is not {nonce?, channel_binding?, challenges?}",
            );
        }
    };
    if request.challenges.is_some() && (request.nonce.is_some() || request.channel_binding.is_some()) {
        return refuse(StatusCode::BAD_REQUEST, "challenges are asked for by their root alone");
    }
    attest(request, service, peer).await
}

/// Takes a place in the peer's queue, then the device, then the quote.
async fn attest<R: Reports + 'static>(
    request: EvidenceRequest,
    service: &Arc<QuoteService<R>>,
    peer: &Peer,
) -> Response<Body> {
    let busy = || refuse(StatusCode::SERVICE_UNAVAILABLE, "the quote device is busy");
    let Ok(_place) = peer.queue.try_acquire() else { return busy() };
    let Ok(Ok(_)) =
        tokio::time::timeout(QUEUE_LIMIT, service.device.acquire()).await.map(|p| p.map(|p| p.forget()))
    else {
        return busy();
    };
    // The device is given back by the thread that uses it: while one hangs, nobody else is let in.
    let thread = Arc::clone(service);
    let work = tokio::task::spawn_blocking(move || {
        let outcome = thread.attester.evidence(&request, clock::unix_now());
        thread.device.add_permits(1);
        outcome
    });
    match tokio::time::timeout(service.attester.limit, work).await {
        Ok(Ok(Ok(document))) => reply(StatusCode::OK, document),
        Ok(Ok(Err(error))) => {
            let text = error_chain(&error);
            eprintln!("evidence: {text}");
            refuse(StatusCode::SERVICE_UNAVAILABLE, &text)
        }
        Ok(Err(_)) => refuse(StatusCode::SERVICE_UNAVAILABLE, "the quote was abandoned"),
        Err(_) => refuse(StatusCode::SERVICE_UNAVAILABLE, "the quote device did not answer in time"),
    }
}

fn refuse(status: StatusCode, error: &str) -> Response<Body> {
    let mut response = match json::to_vec(&ErrorReply::new(error, None)) {
        Ok(body) => reply(status, body),
        // One string always serialises; were that to fail, an answer without words is still a refusal.
        Err(_) => reply(StatusCode::INTERNAL_SERVER_ERROR, Bytes::new()),
    };
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
    }
    response
}

fn reply(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::from(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(JSON));
    response
}

/// Asks the vault for its public key until it answers.
async fn vault_key(socket: &Path, limit: Duration) -> anyhow::Result<VaultKey> {
    let asking = async {
        let mut pause = Duration::from_millis(50);
        loop {
            match ask_vault_key(socket).await {
                Ok(key) => return key,
                Err(error) => eprintln!("evidence: waiting for the vault: {error:#}"),
            }
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2).min(Duration::from_secs(2));
        }
    };
    tokio::time::timeout(limit, asking).await.context("the vault did not answer in time")
}

async fn ask_vault_key(socket: &Path) -> anyhow::Result<VaultKey> {
    let (status, body) =
        client::request(socket, Method::GET, KEY, Vec::new(), MAX_REQUEST, REQUEST_LIMIT).await?;
    anyhow::ensure!(status == StatusCode::OK, "the vault answered {status}");
    let key: KeyReply =
        json::from_json(&body, MAX_REQUEST).context("the vault's answer is not {public_key}")?;
    Ok(key.public_key)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use cofferdam_protocol::evidence::Nonce;
    use cofferdam_protocol::{Digest, base64};
    use serde_json::json;
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::device::tests::{Fake, Mischief};
    use super::*;
    use crate::roles::NETWORK;
    use crate::roles::testing::{appliance, platform, quote as quoted, respond, serve_unix};

    fn own_uid(role: &Role) -> u32 {
        role.uid().unwrap()
    }

    fn key() -> Digest {
        Digest::from([0xcd; 32])
    }

    /// A role whose device has measured `events`, or what the file says.
    fn role<F>(mischief: &[Mischief], allowed: Vec<u32>, quote: F) -> (TempDir, PathBuf)
    where
        F: Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static,
    {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("appliance.json");
        std::fs::write(&file, serde_json::to_vec(&appliance(&key())).unwrap()).unwrap();
        let socket = start(directory.path(), mischief, allowed, quote);
        (directory, socket)
    }

    /// Starts the role over the `appliance.json` in `directory`; returns its socket.
    pub(crate) fn start<F>(directory: &Path, mischief: &[Mischief], allowed: Vec<u32>, quote: F) -> PathBuf
    where
        F: Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static,
    {
        let fake = Fake::new(quote);
        *fake.mischief.lock().unwrap() = mischief.to_vec();
        let attester = Attester {
            appliance: directory.join("appliance.json"),
            certificate: directory.join("certificate.json"),
            device: Device::new(fake),
            vault_key: [9; 32].into(),
            // Short for a device that is going to hang, so that the test is.
            limit: if mischief.is_empty() { QUOTE_LIMIT } else { Duration::from_millis(1500) },
        };
        let socket = directory.join("evidence.sock");
        let listener = bind(&socket).unwrap();
        tokio::spawn(async move { serve(listener, attester, &allowed).await });
        socket
    }

    fn honest() -> impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static {
        let platform = platform();
        let events = appliance(&key()).event_log;
        move |report_data| quoted(&platform, &events, report_data)
    }

    fn me() -> Vec<u32> {
        vec![nix::unistd::getuid().as_raw()]
    }

    fn refusal(outcome: Result<(Evidence, Claims), AskError>) -> String {
        match outcome {
            Err(AskError::Refused(text)) => text,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[tokio::test]
    async fn evidence_holds_what_was_asked_for_and_what_is_true() {
        let (_directory, socket) = role(&[], me(), honest());
        let request = EvidenceRequest {
            nonce: Some(Nonce::new(vec![1; 32]).unwrap()),
            challenges: None,
            channel_binding: Some([2; 32].into()),
        };
        let before = clock::unix_now();
        let (evidence, claims) = ask(&socket, &request).await.unwrap();
        assert_eq!((claims.nonce, claims.channel_binding), (request.nonce, request.channel_binding));
        assert_eq!(claims.repository.to_string(), "acme/room");
        assert_eq!(claims.endpoint.to_string(), "127.0.0.1:8443");
        assert_eq!((claims.tls_key, claims.vault_key), (key(), [9; 32].into()));
        let issued = claims.issued_at.unix();
        assert!((before..=clock::unix_now()).contains(&issued));
        assert_eq!(claims.expires_at.unix(), issued + VALIDITY);
        let quote = quote::parse(&evidence.quote).unwrap();
        assert_eq!(quote.report_data, claims::report_data(&evidence.claims));
        assert_eq!(quote.rtmr[3], event_log::replay(&evidence.event_log, 3));
        assert!(evidence.collateral.is_none());

        let (_, claims) = ask(&socket, &EvidenceRequest::default()).await.unwrap();
        assert_eq!((claims.nonce, claims.channel_binding), (None, None));

        let many = EvidenceRequest { challenges: Some([3; 32].into()), ..EvidenceRequest::default() };
        let (_, claims) = ask(&socket, &many).await.unwrap();
        assert_eq!((claims.nonce, claims.channel_binding, claims.challenges), (None, None, many.challenges));
        let both = EvidenceRequest { channel_binding: Some([2; 32].into()), ..many };
        assert!(refusal(ask(&socket, &both).await).contains("by their root alone"));
    }

    #[tokio::test]
    async fn only_the_roles_that_need_it_are_served() {
        let (_directory, socket) = role(&[], vec![own_uid(&FRONT), own_uid(&PUBLISH)], honest());
        // The test's own uid is neither.
        assert!(!me().contains(&own_uid(&FRONT)));
        let outcome = ask(&socket, &EvidenceRequest::default()).await;
        assert!(matches!(outcome, Err(AskError::Ask(client::ClientError::Exchange(_)))), "{outcome:?}");
        // Silent ones are not waited for, however many hold on.
        let mut strangers = Vec::new();
        for _ in 0..3 * CONNECTIONS {
            strangers.push(UnixStream::connect(&socket).await.unwrap());
        }
        for stranger in &mut strangers {
            let end = tokio::time::timeout(REQUEST_LIMIT / 2, stranger.read(&mut [0; 64])).await;
            assert_eq!(end.expect("closed at once").unwrap(), 0);
        }
    }

    #[test]
    fn one_peer_cannot_take_the_places_of_the_other() {
        let peers = [&FRONT, &PUBLISH].map(own_uid).map(Peer::new);
        let held: Vec<_> = std::iter::from_fn(|| admit(&peers, own_uid(&FRONT))).collect();
        assert_eq!(held.len(), CONNECTIONS);
        let queued: Vec<_> =
            std::iter::from_fn(|| held.first().and_then(|(front, _)| front.queue.try_acquire().ok()))
                .collect();
        assert_eq!(queued.len(), QUEUE);
        let (publish, _place) = admit(&peers, own_uid(&PUBLISH)).expect("its own places");
        assert!(publish.queue.try_acquire().is_ok());
        assert!(admit(&peers, own_uid(&NETWORK)).is_none());
        drop(queued);
        drop(held);
        assert!(admit(&peers, own_uid(&FRONT)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_does_not_last_whatever_happens_on_it() {
        let (_directory, socket) = role(&[], me(), honest());
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        let started = tokio::time::Instant::now();
        let mut buffer = [0; 4096];
        // One that is never silent for long, and never done.
        loop {
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
            if !matches!(stream.read(&mut buffer).await, Ok(count) if count > 0) {
                break;
            }
            assert!(started.elapsed() <= 2 * CONNECTION_LIMIT, "it may stay for ever");
            tokio::time::sleep(REQUEST_LIMIT / 2).await;
        }
        assert!(started.elapsed() >= CONNECTION_LIMIT);
    }

    #[tokio::test]
    async fn malformed_requests_are_refused() {
        let (_directory, socket) = role(&[], me(), honest());
        let sizes =
            [("nonce", 15), ("nonce", 65), ("nonce", 0), ("channel_binding", 31), ("channel_binding", 33)];
        let of_size =
            |(name, size): (&str, usize)| format!(r#"{{"{name}":"{}"}}"#, base64::encode(vec![1; size]));
        let sizes: Vec<String> = sizes.map(of_size).into();
        let long = format!(r#"{{"nonce":"{}"}}"#, "A".repeat(2000));
        for body in [
            "",
            "{",
            r#"{"nonce":1}"#,
            r#"{"endpoint":"evil:443"}"#,
            r#"{"nonce":"AA==","nonce":"AA=="}"#,
            &long,
        ]
        .into_iter()
        .chain(sizes.iter().map(String::as_str))
        {
            let limit = Duration::from_secs(5);
            let (status, _) =
                client::request(&socket, Method::POST, ROUTE, body.to_owned(), 4096, limit).await.unwrap();
            assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        }
    }

    #[tokio::test]
    async fn a_quote_that_does_not_fit_is_not_handed_out() {
        let honest_quote = honest();
        let (_directory, socket) = role(&[], me(), move |_| honest_quote(&[0; 64]));
        assert!(refusal(ask(&socket, &EvidenceRequest::default()).await).contains("other report data"));

        let (_directory, socket) = role(&[], me(), |_| b"not a quote".to_vec());
        assert!(refusal(ask(&socket, &EvidenceRequest::default()).await).contains("not a TDX quote"));

        let platform = platform();
        let (_directory, socket) = role(&[], me(), move |report_data| quoted(&platform, &[], report_data));
        assert!(refusal(ask(&socket, &EvidenceRequest::default()).await).contains("RTMR3"));
    }

    #[tokio::test]
    async fn padding_after_the_quote_is_left_out_and_anything_else_refused() {
        let exact = honest();
        let (_directory, socket) = role(&[], me(), move |data| [exact(data), vec![0; 99]].concat());
        let (evidence, _) = ask(&socket, &EvidenceRequest::default()).await.unwrap();
        assert!(quote::parse(&evidence.quote).is_ok());

        let exact = honest();
        let (_directory, socket) = role(&[], me(), move |data| [exact(data), vec![1]].concat());
        assert!(refusal(ask(&socket, &EvidenceRequest::default()).await).contains("not a TDX quote"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_register_ahead_of_its_file_is_waited_for() {
        let mut later = appliance(&key());
        later.event_log.push(event_log::Event::new("sealed", b"{}".as_slice()));
        let (platform, events) = (platform(), later.event_log.clone());
        let (directory, socket) = role(&[], me(), move |data| quoted(&platform, &events, data));
        let file = directory.path().join("appliance.json");
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(60)).await;
            crate::system::files::replace(file, &serde_json::to_vec(&later).unwrap()).unwrap();
        });
        let (evidence, _) = ask(&socket, &EvidenceRequest::default()).await.unwrap();
        assert_eq!(evidence.event_log.len(), 6);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_queue_is_bounded_and_the_device_used_by_one() {
        static USERS: AtomicU32 = AtomicU32::new(0);
        static OPEN: AtomicBool = AtomicBool::new(false);
        let exact = honest();
        let (_directory, socket) = role(&[], me(), move |data| {
            assert_eq!(USERS.fetch_add(1, Ordering::SeqCst), 0, "two at once");
            while !OPEN.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            let quote = exact(data);
            USERS.fetch_sub(1, Ordering::SeqCst);
            quote
        });
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..CONNECTIONS {
            let socket = socket.clone();
            asking.spawn(async move { ask(&socket, &EvidenceRequest::default()).await });
        }
        // Whoever finds the queue full is told so while the device is still busy with the first.
        for _ in 0..CONNECTIONS - QUEUE {
            assert!(refusal(asking.join_next().await.unwrap().unwrap()).contains("busy"));
        }
        OPEN.store(true, Ordering::SeqCst);
        while let Some(outcome) = asking.join_next().await {
            assert!(outcome.unwrap().is_ok());
        }
        assert!(ask(&socket, &EvidenceRequest::default()).await.is_ok(), "it recovers");
    }

    #[tokio::test]
    async fn a_device_that_fails_once_is_used_again() {
        let (_directory, socket) = role(&[Mischief::Fail], me(), honest());
        assert!(refusal(ask(&socket, &EvidenceRequest::default()).await).contains("outblob"));
        assert!(ask(&socket, &EvidenceRequest::default()).await.is_ok());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_device_that_hangs_is_not_waited_for_and_not_shared() {
        let (_directory, socket) = role(&[Mischief::Hang(Duration::from_secs(3))], me(), honest());
        let hung = ask(&socket, &EvidenceRequest::default()).await;
        assert!(refusal(hung).contains("did not answer in time"));
        // The thread still has the device: the next one waits for it and does not overtake.
        let started = std::time::Instant::now();
        assert!(ask(&socket, &EvidenceRequest::default()).await.is_ok());
        assert!(started.elapsed() > Duration::from_secs(1));
    }

    #[tokio::test]
    async fn the_vault_is_waited_for_and_not_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("vault.sock");
        assert!(vault_key(&socket, Duration::from_millis(200)).await.is_err());

        let late = socket.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let asked = AtomicU32::new(0);
            serve_unix(&late, move |_| {
                let answer = match asked.fetch_add(1, Ordering::Relaxed) {
                    0 => respond(503, json!({"error": "opening the store"})),
                    1 => respond(200, json!({"public_key": "AAAA"})),
                    _ => respond(200, json!({"public_key": base64::encode([9; 32])})),
                };
                async move { answer }
            });
        });
        assert_eq!(vault_key(&socket, Duration::from_secs(20)).await.unwrap(), [9; 32].into());
    }
}
