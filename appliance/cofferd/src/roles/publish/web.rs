//! An HTTPS client with the roots that the declaration names, and bounded answers.

use std::path::Path;
use std::time::Duration;

use axum::http::HeaderMap;
use reqwest::{Certificate, Client, ClientBuilder, RequestBuilder, Response, StatusCode};

use crate::system::files;

/// The certificate authorities of the image, for servers for which the declaration names none.
pub(crate) const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Bound on the bundle in bytes; Debian's is about 220 KiB.
const MAX_BUNDLE: u64 = 2 * 1024 * 1024;

/// How long a connection may take to be made, and a whole request.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// Why a server could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WebError {
    /// The image's bundle is missing or unreadable.
    #[error("cannot read the certificate authorities of the image")]
    Bundle(#[source] std::io::Error),
    /// A certificate authority does not parse.
    #[error("the certificate authorities are not PEM certificates")]
    Authorities,
    /// The client could not be made.
    #[error("cannot prepare HTTPS")]
    Prepare(#[source] reqwest::Error),
    /// No complete answer: name, connection, TLS, time.
    #[error("no answer from {host}")]
    Unreachable {
        /// Who was asked.
        host: String,
        /// What the client met.
        #[source]
        source: reqwest::Error,
    },
    /// An answer that is not 200.
    #[error("{host} answered {status}")]
    Status {
        /// Who was asked.
        host: String,
        /// What it answered.
        status: StatusCode,
    },
    /// More bytes than the caller wants.
    #[error("{host} answered with more than {limit} bytes")]
    TooLarge {
        /// Who was asked.
        host: String,
        /// The bound.
        limit: usize,
    },
}

/// The PEM certificates that are trusted for a server: the declaration's alone, else the image's.
///
/// # Errors
/// When the image's bundle is needed and cannot be read.
pub(crate) fn authorities(declared: Option<&str>, bundle: &Path) -> Result<String, WebError> {
    match declared {
        Some(pem) => Ok(pem.to_owned()),
        None => {
            let bytes = files::read_bounded(bundle, MAX_BUNDLE).map_err(WebError::Bundle)?;
            String::from_utf8(bytes).map_err(|_| WebError::Authorities)
        }
    }
}

/// A client that trusts these authorities only, follows no redirect and takes no proxy from its environment.
///
/// # Errors
/// When the authorities are not PEM certificates.
pub(crate) fn client(authorities: &str) -> Result<Client, WebError> {
    let roots = Certificate::from_pem_bundle(authorities.as_bytes()).map_err(|_| WebError::Authorities)?;
    if roots.is_empty() {
        return Err(WebError::Authorities);
    }
    builder().tls_certs_only(roots).https_only(true).build().map_err(WebError::Prepare)
}

/// A client for a server to which nothing secret goes and whose answers are signed: without TLS.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn plain_client() -> Result<Client, WebError> {
    builder().tls_certs_only([]).build().map_err(WebError::Prepare)
}

fn builder() -> ClientBuilder {
    Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_LIMIT)
        .timeout(REQUEST_LIMIT)
        .user_agent(concat!("cofferdam/", env!("CARGO_PKG_VERSION")))
}

/// Headers and body of a 200.
///
/// # Errors
/// When there is no complete answer, it is not a 200, or it is larger than `limit` bytes.
pub(crate) async fn get(client: &Client, url: &str, limit: usize) -> Result<(HeaderMap, Vec<u8>), WebError> {
    let (response, host) = send(client.get(url), url).await?;
    if response.status() != StatusCode::OK {
        return Err(WebError::Status { host, status: response.status() });
    }
    let headers = response.headers().clone();
    Ok((headers, read(response, host, limit).await?))
}

/// Status and body of whatever is answered to a `POST`.
///
/// # Errors
/// When there is no complete answer, or it is larger than `limit` bytes.
pub(crate) async fn post(
    client: &Client,
    url: &str,
    body: Vec<u8>,
    limit: usize,
) -> Result<(StatusCode, Vec<u8>), WebError> {
    let (response, host) = send(client.post(url).body(body), url).await?;
    Ok((response.status(), read(response, host, limit).await?))
}

/// Sends a request; says whom it asks.
///
/// # Errors
/// When there is no answer.
pub(super) async fn send(request: RequestBuilder, url: &str) -> Result<(Response, String), WebError> {
    let host = reqwest::Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned));
    let host = host.unwrap_or_else(|| "a server without a name".to_owned());
    match request.send().await {
        Ok(response) => Ok((response, host)),
        Err(source) => Err(WebError::Unreachable { host, source: source.without_url() }),
    }
}

/// The body of an answer.
///
/// # Errors
/// When it breaks off, or is larger than `limit` bytes.
pub(super) async fn read(mut response: Response, host: String, limit: usize) -> Result<Vec<u8>, WebError> {
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(None) => return Ok(body),
            Ok(Some(chunk)) if body.len().saturating_add(chunk.len()) > limit => {
                return Err(WebError::TooLarge { host, limit });
            }
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Err(source) => return Err(WebError::Unreachable { host, source: source.without_url() }),
        }
    }
}
