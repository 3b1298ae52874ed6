//! How long a lease takes over a Unix socket, one connection kept open and one connection each.
//!
//! `cargo run --release -p cofferdam-vault --example lease_latency [ROUNDS]`
//!
//! Server and client are two threads of this process, each with its own current-thread runtime, as the
//! roles are two processes: so both directions cross a scheduler. The server is the router of this crate on
//! hyper, without the connection bounds of the role. Bias: no console, nobody else on the machine's
//! cores; the file system is whatever the temporary directory is on, and a lease does not write.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use cofferdam_protocol::{SecretRef, SecretValue};
use cofferdam_vault::{FileDisk, Grants, Keys, MasterKey, Operators, Peer, Rules, Store, Vault, router};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::{Service as _, service_fn};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const REFERENCE: &str = "secret://app/db/password";

fn main() -> Outcome<()> {
    let rounds: usize = std::env::args().nth(1).map_or(Ok(20_000), |text| text.parse())?;
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("vault.sock");
    let file = tempfile::tempfile()?;
    file.set_len(4 << 20)?;
    let mut master = [0; 32];
    getrandom::fill(&mut master)?;
    let store = Store::create(FileDisk::new(file)?, Keys::derive(MasterKey::take(&mut master))?)?;
    let reference = REFERENCE.parse::<SecretRef>()?;
    store.put(&SecretValue::new(reference.clone(), vec![b'x'; 64]), 0, &[0; 32])?;
    let mut grants = Grants::default();
    grants.allow(0, reference.clone());

    let start = Instant::now();
    for _ in 0..rounds {
        store.get(&reference)?.ok_or("gone")?;
    }
    println!("{:<34} mean {:>7.1} µs", "store.get, 64 bytes", micros(start.elapsed()) / rounds as f64);

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
    let vault = Arc::new(Vault::new(store, rules, || 0, |_| {}));
    let path = socket.clone();
    let (ready, listening) = std::sync::mpsc::channel();
    std::thread::spawn(move || -> Outcome<()> {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let listener = UnixListener::bind(path)?;
            ready.send(())?;
            serve(listener, vault).await
        })
    });
    listening.recv()?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measure(socket, rounds))
}

async fn serve(listener: UnixListener, vault: Arc<Vault>) -> Outcome<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let router = TowerToHyperService::new(router(vault.clone()));
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Peer { uid: 0 });
            router.call(request.map(Body::new))
        });
        tokio::spawn(
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
        );
    }
}

async fn measure(socket: PathBuf, rounds: usize) -> Outcome<()> {
    let mut sender = connect(&socket).await?;
    let mut kept = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let start = Instant::now();
        lease(&mut sender).await?;
        kept.push(start.elapsed());
    }
    let mut each = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let start = Instant::now();
        lease(&mut connect(&socket).await?).await?;
        each.push(start.elapsed());
    }
    report("lease, one connection", kept);
    report("lease, one connection each", each);
    Ok(())
}

async fn connect(socket: &PathBuf) -> Outcome<SendRequest<Body>> {
    let stream = UnixStream::connect(socket).await?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn lease(sender: &mut SendRequest<Body>) -> Outcome<()> {
    let body = format!("{{\"references\":[\"{REFERENCE}\"],\"wait_ms\":0}}");
    let request = Request::post("/v1/lease").header("host", "localhost").body(Body::from(body))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = axum::body::to_bytes(Body::new(response.into_body()), 4096).await?;
    if status != StatusCode::OK || body.len() < 64 {
        return Err(format!("{status}: {body:?}").into());
    }
    Ok(())
}

fn report(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 1000).copied().unwrap_or_default();
    println!(
        "{name:<34} p50 {:>8.1} µs   p99 {:>8.1} µs   p99.9 {:>8.1} µs",
        micros(at(500)),
        micros(at(990)),
        micros(at(999))
    );
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
