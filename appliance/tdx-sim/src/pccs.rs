//! A provisioning certification service for the simulated machine, on the host's loopback.
//!
//! Shape: Intel PCS API v4 as far as a verifier of TDX quotes uses it, and `rootcacrl` as the caching service (PCCS)
//! adds it. Collateral is made anew for each request, so it never expires while the service runs.
//! Bounded: 64 connections, 16 KiB of request head, no body is read, 30 seconds per connection.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::collateral::{Collateral, CollateralOptions};
use crate::machine;
use crate::platform::{Platform, PlatformError};

/// Connections served at once; the demo has two clients.
const MAX_CONNECTIONS: usize = 64;
/// Longest request head in bytes (hyper's minimum is 8 KiB).
const MAX_HEAD: usize = 16 * 1024;
/// How long a connection may last, and how long its handshake and each request head may take.
const CONNECTION_TIME: Duration = Duration::from_secs(30);
const HEAD_TIME: Duration = Duration::from_secs(10);

/// Where the time comes from.
pub type Clock = fn() -> u64;

/// The system's clock in Unix seconds.
pub fn system_clock() -> u64 {
    cofferdam_protocol::unix_seconds(SystemTime::now())
}

/// Serves `platform`'s collateral on `listener`, over TLS when `tls` is given, until the future is dropped.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    platform: Platform,
    clock: Clock,
) -> io::Result<()> {
    let router = router(platform, clock);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // A connection that went away, or no descriptor left: neither ends the service.
                eprintln!("tdx-sim pccs: accept: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (router, tls) = (router.clone(), tls.clone());
        tokio::spawn(async move {
            let _slot = slot;
            let _ = stream.set_nodelay(true);
            // Whatever goes wrong on one connection concerns its client only.
            let _ = tokio::time::timeout(CONNECTION_TIME, async move {
                match tls {
                    None => connection(stream, router).await,
                    Some(tls) => {
                        if let Ok(Ok(stream)) = tokio::time::timeout(HEAD_TIME, tls.accept(stream)).await {
                            connection(stream, router).await;
                        }
                    }
                }
            })
            .await;
        });
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    drop(served); // the client's own trouble
}

struct Service {
    platform: Platform,
    clock: Clock,
}

impl Service {
    fn collateral(&self) -> Result<Collateral, Refusal> {
        Ok(self.platform.collateral((self.clock)(), CollateralOptions::default())?)
    }
}

fn router(platform: Platform, clock: Clock) -> Router {
    Router::new()
        .route("/sgx/certification/v4/pckcrl", get(pck_crl))
        .route("/sgx/certification/v4/rootcacrl", get(root_ca_crl))
        .route("/tdx/certification/v4/tcb", get(tcb_info))
        .route("/tdx/certification/v4/qe/identity", get(qe_identity))
        .with_state(Arc::new(Service { platform, clock }))
}

/// What is not a document, with the status that Intel's service gives it.
enum Refusal {
    Parameter,
    Unknown,
    Failed,
}

impl From<PlatformError> for Refusal {
    fn from(_: PlatformError) -> Self {
        Self::Failed
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Parameter => (StatusCode::BAD_REQUEST, "invalid request parameters"),
            Self::Unknown => (StatusCode::NOT_FOUND, "no such platform"),
            Self::Failed => (StatusCode::INTERNAL_SERVER_ERROR, "the collateral cannot be made"),
        }
        .into_response()
    }
}

#[derive(Deserialize)]
struct CrlQuery {
    ca: Option<String>,
    encoding: Option<String>,
}

async fn pck_crl(
    State(service): State<Arc<Service>>,
    Query(query): Query<CrlQuery>,
) -> Result<Response, Refusal> {
    match query.ca.as_deref() {
        Some("platform") => (),
        // The other CA issues for processors without registration: this machine's is not among them.
        Some("processor") => return Err(Refusal::Unknown),
        _ => return Err(Refusal::Parameter),
    }
    let collateral = service.collateral()?;
    let body = match query.encoding.as_deref() {
        Some("der") => collateral.pck_crl,
        None | Some("pem") => pem("X509 CRL", &collateral.pck_crl).into_bytes(),
        Some(_) => return Err(Refusal::Parameter),
    };
    let chain = url_encode(&collateral.pck_crl_issuer_chain);
    Ok(([(CRL_CHAIN, chain), (header::CONTENT_TYPE, "application/pkix-crl".to_owned())], body)
        .into_response())
}

/// The caching service gives the root's list as DER in hexadecimal text.
async fn root_ca_crl(State(service): State<Arc<Service>>) -> Result<Response, Refusal> {
    let body = hex::encode(service.collateral()?.root_ca_crl);
    Ok(([(header::CONTENT_TYPE, "application/pkix-crl")], body).into_response())
}

#[derive(Deserialize)]
struct TcbQuery {
    fmspc: Option<String>,
}

async fn tcb_info(
    State(service): State<Arc<Service>>,
    Query(query): Query<TcbQuery>,
) -> Result<Response, Refusal> {
    let mut fmspc = [0u8; 6];
    hex::decode_to_slice(query.fmspc.unwrap_or_default(), &mut fmspc).map_err(|_| Refusal::Parameter)?;
    if fmspc != machine::FMSPC {
        return Err(Refusal::Unknown);
    }
    let collateral = service.collateral()?;
    let body = signed("tcbInfo", &collateral.tcb_info, &collateral.tcb_info_signature);
    Ok(document(TCB_CHAIN, &collateral.tcb_info_issuer_chain, body))
}

async fn qe_identity(State(service): State<Arc<Service>>) -> Result<Response, Refusal> {
    let collateral = service.collateral()?;
    let body = signed("enclaveIdentity", &collateral.qe_identity, &collateral.qe_identity_signature);
    Ok(document(IDENTITY_CHAIN, &collateral.qe_identity_issuer_chain, body))
}

const CRL_CHAIN: HeaderName = HeaderName::from_static("sgx-pck-crl-issuer-chain");
const TCB_CHAIN: HeaderName = HeaderName::from_static("tcb-info-issuer-chain");
const IDENTITY_CHAIN: HeaderName = HeaderName::from_static("sgx-enclave-identity-issuer-chain");

fn document(chain_header: HeaderName, chain: &str, body: String) -> Response {
    let headers = [(chain_header, url_encode(chain)), (header::CONTENT_TYPE, "application/json".to_owned())];
    (headers, body).into_response()
}

/// `{"NAME":<the exact signed bytes>,"signature":"<hex>"}`.
fn signed(name: &str, json: &str, signature: &[u8]) -> String {
    format!(r#"{{"{name}":{json},"signature":"{}"}}"#, hex::encode(signature))
}

/// Percent-encoding of everything that RFC 3986 does not call unreserved: a PEM chain in a header.
fn url_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len().saturating_mul(2));
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = cofferdam_protocol::base64::encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap_or_default()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
