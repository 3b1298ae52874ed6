//! How long a lease takes over a Unix socket, beside a bare hyper handler that answers with the same bytes.
//!
//! `cargo run --release -p cofferdam-vault --example lease_latency [ROUNDS | vault TIMES | bare TIMES]`
//!
//! Prints JSON: microseconds that half of the requests are below, in turn on one kept connection to each, `{"vault":…,"bare":…}`. With
//! `vault` or `bare` that many requests are made and nothing is printed, for a program that counts instructions.
//!
//! Server and client are two threads of this process, each with its own current-thread runtime, as the
//! roles are two processes: so both directions cross a scheduler. The server is the router of this crate on
//! hyper, without the connection bounds of the role. Bias: no console, nobody else on the machine's
//! cores, and what the client costs is in both figures. A lease does not write.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use cofferdam_protocol::reply::JSON;
use cofferdam_protocol::{SecretRef, SecretValue};
use cofferdam_vault::{FileDisk, Grants, Keys, MasterKey, Operators, Peer, Rules, Store, Vault, router};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const REFERENCE: &str = "secret://app/db/password";

/// Requests to one before it is the other's turn.
const TURN: usize = 100;

fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let directory = tempfile::tempdir()?;
    let [vault, bare] = ["vault", "bare"].map(|name| directory.path().join(name));
    let answers = open_vault()?;
    listen(vault.clone(), Service::Vault(Arc::clone(&answers)))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // What the vault says once, the other says always.
    let answer = runtime.block_on(async { lease(&mut connect(&vault).await?).await })?;
    listen(bare.clone(), Service::Bare(answer))?;
    runtime.block_on(async {
        let (mut vault, mut bare) = (connect(&vault).await?, connect(&bare).await?);
        let only = match words.first().map(String::as_str) {
            Some("vault") => Some(&mut vault),
            Some("bare") => Some(&mut bare),
            _ => None,
        };
        if let Some(sender) = only {
            for _ in 0..words.get(1).map_or(Ok(1), |text| text.parse())? {
                lease(sender).await?;
            }
            return Ok(());
        }
        let rounds: usize = words.first().map_or(Ok(20_000), |text| text.parse())?;
        let mut times = [Vec::with_capacity(rounds), Vec::with_capacity(rounds)];
        for _ in 0..rounds.div_ceil(TURN) {
            for (sender, times) in [&mut vault, &mut bare].into_iter().zip(&mut times) {
                for _ in 0..TURN {
                    let start = Instant::now();
                    lease(sender).await?;
                    times.push(start.elapsed());
                }
            }
        }
        let [vault, bare] = times.map(median);
        println!("{{\"vault\":{vault:.2},\"bare\":{bare:.2}}}");
        Ok(())
    })
}

/// A vault with one secret that this process may lease.
fn open_vault() -> Outcome<Arc<Vault>> {
    let file = tempfile::tempfile()?;
    file.set_len(4 << 20)?;
    let mut master = [0; 32];
    getrandom::fill(&mut master)?;
    let store = Store::create(FileDisk::new(file)?, Keys::derive(MasterKey::take(&mut master))?)?;
    let reference = REFERENCE.parse::<SecretRef>()?;
    store.put(&SecretValue::new(reference.clone(), vec![b'x'; 64]), 0, &[0; 32])?;
    let mut grants = Grants::default();
    grants.allow(0, reference);
    let rules = Rules {
        grants,
        affected: Default::default(),
        operators: Operators::default(),
        front_uid: 102,
        publish_uid: 103,
        services: [].into(),
        restarts_with: [].into(),
        min_value: 8,
    };
    Ok(Arc::new(Vault::new(store, rules, || 0, |_| {})))
}

/// What is behind a socket.
#[derive(Clone)]
enum Service {
    Vault(Arc<Vault>),
    Bare(Bytes),
}

/// Serves the socket on a thread of its own, and returns when it can be connected to.
fn listen(path: PathBuf, service: Service) -> Outcome<()> {
    let (ready, listening) = std::sync::mpsc::channel();
    std::thread::spawn(move || -> Outcome<()> {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let listener = UnixListener::bind(path)?;
            ready.send(())?;
            loop {
                let (stream, _) = listener.accept().await?;
                let stream = TokioIo::new(stream);
                match service.clone() {
                    Service::Vault(vault) => {
                        let router = TowerToHyperService::new(router(vault));
                        let service = service_fn(move |mut request: Request<Incoming>| {
                            request.extensions_mut().insert(Peer { uid: 0 });
                            router.call(request.map(Body::new))
                        });
                        tokio::spawn(http1::Builder::new().serve_connection(stream, service));
                    }
                    Service::Bare(answer) => {
                        let service = service_fn(move |request: Request<Incoming>| {
                            let answer = answer.clone();
                            async move {
                                request.into_body().collect().await?;
                                let response = Response::builder().header("content-type", JSON);
                                Ok::<_, Box<dyn Error + Send + Sync>>(response.body(Full::new(answer))?)
                            }
                        });
                        tokio::spawn(http1::Builder::new().serve_connection(stream, service));
                    }
                }
            }
        })
    });
    Ok(listening.recv()?)
}

async fn connect(socket: &PathBuf) -> Outcome<SendRequest<Body>> {
    let stream = UnixStream::connect(socket).await?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn lease(sender: &mut SendRequest<Body>) -> Outcome<Bytes> {
    let body = format!("{{\"references\":[\"{REFERENCE}\"],\"wait_ms\":0}}");
    let request = Request::post("/v1/lease").header("host", "localhost").body(Body::from(body))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = axum::body::to_bytes(Body::new(response.into_body()), 4096).await?;
    if status != StatusCode::OK || body.len() < 64 {
        return Err(format!("{status}: {body:?}").into());
    }
    Ok(body)
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default().as_secs_f64() * 1e6
}
