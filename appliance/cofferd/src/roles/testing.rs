//! Counterparts for the roles' tests: servers on Unix sockets that answer from a closure, and the facts of a boot
//! that never happened.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{Request, Response};
use cofferdam_attest::event_log::payload::{self, Payload as _};
use cofferdam_attest::event_log::{self, Event, Register};
use cofferdam_attest::ratls;
use cofferdam_declaration::Declaration;
use cofferdam_protocol::facts::{ApplianceFacts, ImageInfo, Phase, Registers};
use cofferdam_protocol::state::State;
use cofferdam_protocol::{Commit, Digest, base64};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tdx_sim::{Platform, Seed, TdReport};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;

use super::clock;
use super::facts::Facts;

/// The commit of every declaration here.
const COMMIT: [u8; 20] = [0x12; 20];

/// Serves HTTP/1.1 at `path` until the test's runtime ends. Bodies are collected before `handler` sees them.
pub(crate) fn serve_unix<F, A>(path: &Path, handler: F)
where
    F: Fn(Request<Bytes>) -> A + Send + Sync + 'static,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = UnixListener::bind(path).unwrap();
    let handler = Arc::new(handler);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(converse(stream, Arc::clone(&handler)));
        }
    });
}

/// A TLS server for 127.0.0.1 on a port of the system's choice.
pub(crate) struct TlsServer {
    /// Where it is dialled.
    pub(crate) listener: TcpListener,
    /// Its side of the handshake.
    pub(crate) acceptor: TlsAcceptor,
    /// `https://127.0.0.1:PORT`.
    pub(crate) root: String,
    /// PEM of the only authority that vouches for it.
    pub(crate) ca: String,
}

impl TlsServer {
    /// A server with a certificate of its own, that answers nothing yet.
    pub(crate) async fn bind() -> Self {
        let key = ratls::generate_key().unwrap();
        let name = ["127.0.0.1".to_owned()];
        let certificate = ratls::certificate(&key, b"{}", &name, clock::unix_now() - 60, 3600).unwrap();
        let body = base64::encode(&certificate);
        let ca = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.into()], PrivatePkcs8KeyDer::from(key.to_vec()).into())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let root = format!("https://{}", listener.local_addr().unwrap());
        Self { listener, acceptor: TlsAcceptor::from(Arc::new(config)), root, ca }
    }

    /// Serves HTTP/1.1 until the test's runtime ends. Bodies are collected before `handler` sees them.
    pub(crate) fn serve<F, A>(self, handler: F)
    where
        F: Fn(Request<Bytes>) -> A + Send + Sync + 'static,
        A: Future<Output = Response<Body>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        tokio::spawn(async move {
            loop {
                let (stream, _) = self.listener.accept().await.unwrap();
                let (acceptor, handler) = (self.acceptor.clone(), Arc::clone(&handler));
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        converse(stream, handler).await;
                    }
                });
            }
        });
    }
}

async fn converse<S, F, A>(stream: S, handler: Arc<F>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Bytes>) -> A + Send + Sync + 'static,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let handler = Arc::clone(&handler);
        async move {
            let (parts, body) = request.into_parts();
            let body = axum::body::to_bytes(Body::new(body), 1 << 20).await?;
            Ok::<_, axum::Error>(handler(Request::from_parts(parts, body)).await)
        }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
}

/// A response with a JSON body.
pub(crate) fn respond(status: u16, body: serde_json::Value) -> Response<Body> {
    Response::builder().status(status).body(Body::from(body.to_string())).unwrap()
}

/// The facts of a boot with these mr-3 events and this TLS key.
pub(crate) fn appliance(tls_key: &Digest) -> ApplianceFacts {
    let (declaration, commit) = (Digest::from([0xab; 32]), Commit::from(COMMIT));
    let (repository, endpoint) = ("acme/room".parse().unwrap(), "127.0.0.1:8443".parse().unwrap());
    let identity = payload::Appliance { repository, declaration, endpoint };
    let event_log = [
        payload::Declaration { digest: declaration, source: "disk".to_owned(), commit }.event(),
        identity.event(),
        payload::Machine { cpus: 2, memory_mib: 2048, network: None }.event(),
        payload::State::memory().event(),
        payload::Launch { services: Vec::new(), tls_key: *tls_key }.event(),
    ];
    let zero = [0; 48];
    ApplianceFacts {
        repository: identity.repository,
        commit,
        declaration,
        endpoint: identity.endpoint,
        tls_key: *tls_key,
        certificate: None,
        state: State::Memory,
        event_log: event_log.map(Result::unwrap).into(),
        phases: vec![Phase { name: "mount".to_owned(), ms: 3 }],
        registers: Registers { mrtd: zero, rtmr0: zero, rtmr1: zero, rtmr2: zero, rtmr3: zero },
        image: ImageInfo {
            name: "cofferdam".to_owned(),
            release: "0.1.0".to_owned(),
            digests: Default::default(),
        },
    }
}

/// A declaration of the repository `octo/app` with these sections besides.
pub(crate) fn declaration(sections: &str) -> Declaration {
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    let text = format!(
        "version: 1\nrepository: octo/app\nendpoint: api.example.org:443\noperators:\n  - name: alice\n    key: {key}\n{sections}"
    );
    Declaration::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{error}"))
}

/// What PID 1 of a first boot makes of it.
pub(crate) fn facts(declaration: &Declaration) -> Facts {
    crate::boot::first_facts(declaration)
}

/// A simulated platform; the same one every time.
pub(crate) fn platform() -> Platform {
    Platform::from_seed(Seed::from_bytes(&[7; 32]).unwrap()).unwrap()
}

/// A quote of that platform over `report_data` in a TD that has measured `events`.
pub(crate) fn quote(platform: &Platform, events: &[Event], report_data: &[u8]) -> Vec<u8> {
    let registers: [Register; 4] =
        std::array::from_fn(|mr| event_log::replay(events, mr.try_into().unwrap()));
    platform.quote(&TdReport::new(registers, report_data.try_into().unwrap()))
}
