//! A client for OCI registries that believes nothing it has not hashed (OCI distribution-spec 1.1, "Pull").
//!
//! It fetches manifests and blobs by digest, anonymously, with the bearer-token exchange that registries
//! ask for. Every body is bounded by what its descriptor promises, every wait by a deadline that follows
//! from the size, so that a registry that stalls, drips or never ends is an error in bounded time.
//! Redirects are followed here and not by the HTTP library: each hop is https and is trusted
//! by its own host's authority, and the token goes to no other host.

use std::io::Write;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, LOCATION, WWW_AUTHENTICATE};
use reqwest::{Certificate, Client, Response, StatusCode, Url};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::image::{Blob, Digest, ImageError, short};

/// Connecting includes DNS and the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest silence inside a body.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// A body may take this long plus its size at [`SLOWEST`].
const BODY_BASE: Duration = Duration::from_secs(60);
/// Bytes per second below which a download is given up: slower than any link that a server has.
const SLOWEST: u64 = 32 << 10;
/// Registries send a client to one object store, sometimes by way of one more name.
const MAX_REDIRECTS: usize = 5;
/// A token answer is a JWT and a few fields.
const MAX_TOKEN: u64 = 64 << 10;
/// Tries of one request before the whole pull counts as failed and the shim backs off.
const TRIES: u32 = 4;
/// The wait before the second try; doubles.
const RETRY_FIRST: Duration = Duration::from_millis(500);

/// Why something could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    /// The TLS client cannot be made, for example because the authority is no certificate.
    #[error("cannot set up TLS for the registry")]
    Setup(#[source] reqwest::Error),
    /// Not a URL, or one that is not https.
    #[error("the registry sends to {0}, which is not an https address")]
    Address(String),
    /// No connection, a broken or stalled one.
    #[error("cannot reach the registry")]
    Unreachable(#[source] reqwest::Error),
    /// Too slow for its size.
    #[error("the registry took too long for the {0}")]
    Slow(&'static str),
    /// An answer that is no success.
    #[error("the registry answers {status} for the {what}")]
    Status {
        /// HTTP status.
        status: u16,
        /// What was asked for.
        what: &'static str,
    },
    /// It wants credentials or a scheme of authentication that this client does not have.
    #[error("the registry does not let the image be pulled anonymously")]
    Unauthorized,
    /// Too many redirects.
    #[error("the registry redirects without end")]
    Redirects,
    /// More bytes than promised, or than allowed.
    #[error("the {what} is longer than {limit} bytes")]
    TooLong {
        /// What was asked for.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// Fewer bytes than promised.
    #[error("the {what} has {got} bytes instead of {size}")]
    TooShort {
        /// What was asked for.
        what: &'static str,
        /// As promised.
        size: u64,
        /// As received.
        got: u64,
    },
    /// Other bytes than promised.
    #[error("the registry lies about the {what}: it hashes to {got}, not to {expected}")]
    Lies {
        /// What was asked for.
        what: &'static str,
        /// As pinned.
        expected: String,
        /// As received.
        got: String,
    },
    /// A document is not what it should be.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The blob cannot be stored.
    #[error("cannot store the {0}")]
    Store(&'static str, #[source] std::io::Error),
}

impl RegistryError {
    /// Whether trying the same request again soon could help.
    fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Slow(_) | Self::TooShort { .. } => true,
            Self::Status { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }
}

/// Who is trusted to speak for which server.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trust {
    /// PEM certificates for every server that has none of its own: the image's CA bundle.
    pub(crate) bundle: Vec<u8>,
    /// PEM certificates that alone are trusted for the registry itself.
    pub(crate) registry: Option<String>,
}

/// One repository at one registry.
pub(crate) struct Registry {
    base: Url,
    repository: String,
    /// For the registry itself.
    own: Client,
    /// For wherever the registry sends us.
    others: Client,
    token: Option<String>,
}

impl Registry {
    /// Prepares to pull `repository` from `base`, `https://host[:port]`. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// The address or the certificates do not parse.
    pub(crate) fn new(base: &str, repository: &str, trust: &Trust) -> Result<Self, RegistryError> {
        let base = Url::parse(base).map_err(|_| RegistryError::Address(short(base)))?;
        let others = client(&trust.bundle)?;
        let own = match &trust.registry {
            Some(pem) => client(pem.as_bytes())?,
            None => others.clone(),
        };
        Ok(Self { base, repository: repository.to_owned(), own, others, token: None })
    }

    /// Fetches an index or manifest by its digest.
    ///
    /// # Errors
    ///
    /// [`RegistryError`].
    pub(crate) async fn manifest(&mut self, digest: &Digest, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let path = format!("manifests/{}", digest.as_str());
        for attempt in 1.. {
            let mut bytes = Vec::new();
            let request = Request { path: &path, accept: super::image::MANIFEST_TYPES, what: "manifest" };
            match self.fetch(&request, digest, None, limit, &mut bytes).await {
                Ok(()) => return Ok(bytes),
                Err(error) => pause(attempt, error).await?,
            }
        }
        Err(RegistryError::Redirects)
    }

    /// Fetches a blob into `sink`, which is emptied by `rewind` before each try.
    ///
    /// # Errors
    ///
    /// [`RegistryError`]; what the sink then holds is worth nothing.
    pub(crate) async fn blob<W: Write>(
        &mut self,
        blob: &Blob,
        what: &'static str,
        sink: &mut W,
        rewind: impl Fn(&mut W) -> std::io::Result<()>,
    ) -> Result<(), RegistryError> {
        let path = format!("blobs/{}", blob.digest.as_str());
        for attempt in 1.. {
            rewind(sink).map_err(|error| RegistryError::Store(what, error))?;
            let request = Request { path: &path, accept: "*/*", what };
            match self.fetch(&request, &blob.digest, Some(blob.size), blob.size, sink).await {
                Ok(()) => return Ok(()),
                Err(error) => pause(attempt, error).await?,
            }
        }
        Err(RegistryError::Redirects)
    }

    async fn fetch(
        &mut self,
        request: &Request<'_>,
        digest: &Digest,
        size: Option<u64>,
        limit: u64,
        sink: &mut impl Write,
    ) -> Result<(), RegistryError> {
        let what = request.what;
        let deadline = BODY_BASE.saturating_add(Duration::from_secs(limit / SLOWEST));
        let transfer = async {
            let response = self.get(request).await?;
            receive(response, digest, size, limit, what, sink).await
        };
        tokio::time::timeout(deadline, transfer).await.map_err(|_| RegistryError::Slow(what))?
    }

    /// Sends a request, with a token when the registry asks for one, and follows where it leads.
    async fn get(&mut self, request: &Request<'_>) -> Result<Response, RegistryError> {
        let path = format!("/v2/{}/{}", self.repository, request.path);
        let start = self.base.join(&path).map_err(|_| RegistryError::Address(short(&path)))?;
        let mut response = self.follow(start.clone(), request).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.token = Some(self.authenticate(&response).await?);
            response = self.follow(start, request).await?;
        }
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(RegistryError::Unauthorized),
            status => Err(RegistryError::Status { status: status.as_u16(), what: request.what }),
        }
    }

    async fn follow(&self, mut url: Url, request: &Request<'_>) -> Result<Response, RegistryError> {
        for _ in 0..=MAX_REDIRECTS {
            let home = url.origin() == self.base.origin();
            let client = if home { &self.own } else { &self.others };
            let mut builder = client.get(url.clone()).header(ACCEPT, request.accept);
            if let (true, Some(token)) = (home, &self.token) {
                builder = builder.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            let response = builder.send().await.map_err(unreachable)?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let target = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let target = target.unwrap_or_default();
            url = self.checked(url.join(target).map_err(|_| RegistryError::Address(short(target)))?)?;
        }
        Err(RegistryError::Redirects)
    }

    /// Only https, or whatever the registry itself was named with.
    fn checked(&self, url: Url) -> Result<Url, RegistryError> {
        if url.scheme() == "https" || url.scheme() == self.base.scheme() {
            Ok(url)
        } else {
            Err(RegistryError::Address(short(url.as_str())))
        }
    }

    /// Asks for an anonymous token as the challenge says (RFC 6750 §3, Docker's token specification).
    async fn authenticate(&self, response: &Response) -> Result<String, RegistryError> {
        let header = response.headers().get(WWW_AUTHENTICATE).and_then(|value| value.to_str().ok());
        let challenge = challenge(header.unwrap_or_default()).ok_or(RegistryError::Unauthorized)?;
        let mut url =
            Url::parse(&challenge.realm).map_err(|_| RegistryError::Address(short(&challenge.realm)))?;
        url.query_pairs_mut()
            .extend_pairs(challenge.service.iter().map(|service| ("service", service)))
            .append_pair("scope", &format!("repository:{}:pull", self.repository));
        let url = self.checked(url)?;
        let client = if url.origin() == self.base.origin() { &self.own } else { &self.others };
        let response = client.get(url).send().await.map_err(unreachable)?;
        match response.status() {
            StatusCode::OK => {}
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                return Err(RegistryError::Status { status: status.as_u16(), what: "token" });
            }
            _ => return Err(RegistryError::Unauthorized),
        }
        let bytes = collect(response, MAX_TOKEN, "token").await?;
        let answer: Token = serde_json::from_slice(&bytes).map_err(|e| ImageError::Parse("token", e))?;
        let token = answer.token.or(answer.access_token).ok_or(RegistryError::Unauthorized)?;
        // It goes into a header: visible ASCII only.
        if token.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(token)
        } else {
            Err(RegistryError::Unauthorized)
        }
    }
}

struct Request<'a> {
    path: &'a str,
    accept: &'static str,
    what: &'static str,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

fn client(pem: &[u8]) -> Result<Client, RegistryError> {
    let roots = Certificate::from_pem_bundle(pem).map_err(RegistryError::Setup)?;
    Client::builder()
        .tls_certs_only(roots)
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(STALL_TIMEOUT)
        .no_proxy()
        .user_agent(concat!("cofferd/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(RegistryError::Setup)
}

fn unreachable(error: reqwest::Error) -> RegistryError {
    RegistryError::Unreachable(error.without_url())
}

/// Waits before another try, or gives the error back when another try makes no sense.
async fn pause(attempt: u32, error: RegistryError) -> Result<(), RegistryError> {
    if attempt >= TRIES || !error.is_transient() {
        return Err(error);
    }
    tokio::time::sleep(RETRY_FIRST.saturating_mul(1 << attempt.min(8))).await;
    Ok(())
}

/// Streams a body into `sink`, counting and hashing. The sink's content counts only when this succeeds.
async fn receive(
    mut response: Response,
    digest: &Digest,
    size: Option<u64>,
    limit: u64,
    what: &'static str,
    sink: &mut impl Write,
) -> Result<(), RegistryError> {
    let mut hash = Sha256::new();
    let mut got = 0_u64;
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        got = got.saturating_add(chunk.len() as u64);
        if got > limit {
            return Err(RegistryError::TooLong { what, limit });
        }
        hash.update(&chunk);
        sink.write_all(&chunk).map_err(|error| RegistryError::Store(what, error))?;
    }
    if let Some(size) = size.filter(|size| *size != got) {
        return Err(RegistryError::TooShort { what, size, got });
    }
    let actual = Digest::of_hash(&hash.finalize());
    if actual != *digest {
        let (expected, got) = (digest.as_str().to_owned(), actual.as_str().to_owned());
        return Err(RegistryError::Lies { what, expected, got });
    }
    Ok(())
}

async fn collect(mut response: Response, limit: u64, what: &'static str) -> Result<Vec<u8>, RegistryError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if (bytes.len() as u64).saturating_add(chunk.len() as u64) > limit {
            return Err(RegistryError::TooLong { what, limit });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    realm: String,
    service: Option<String>,
}

/// Reads `Bearer realm="…",service="…",…`. Values may be quoted and hold commas (RFC 9110 §11.2).
fn challenge(header: &str) -> Option<Challenge> {
    let (scheme, mut rest) = header.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service) = (None, None);
    while let Some((name, tail)) = rest.split_once('=') {
        let (value, tail) = match tail.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => tail.split_once(',').unwrap_or((tail, "")),
        };
        match name.trim_start_matches([',', ' ']) {
            "realm" => realm = Some(value.to_owned()),
            "service" => service = Some(value.to_owned()),
            _ => {}
        }
        rest = tail;
    }
    Some(Challenge { realm: realm?, service })
}
