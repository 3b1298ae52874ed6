//! A client for OCI registries that believes nothing it has not hashed (OCI distribution-spec 1.1, "Pull").
//!
//! It fetches manifests and blobs by digest, anonymously or with [`Credentials`], by the bearer-token exchange or the basic
//! authentication that the registry asks for. Every body is bounded by what its descriptor promises, every wait by a deadline that follows
//! from the size, so that a registry that stalls, drips or never ends is an error in bounded time.
//! Redirects are followed here and not by the HTTP library: each hop is https and is trusted
//! by its own host's authority. Token and credentials go to the registry itself, and the credentials also to the https
//! address at which the registry says that tokens are made; to no host that a redirect leads to.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use cofferdam_protocol::{Digest, RegistryHost, base64};
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use reqwest::{Certificate, Client, Response, StatusCode, Url};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::image::{self, Blob, ImageError, short};

/// How long a registry may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For connecting, DNS and the TLS handshake included.
    connect: Duration,
    /// The longest silence inside a body.
    stall: Duration,
    /// For a body, and its size at [`SLOWEST`] besides.
    body: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            stall: Duration::from_secs(30),
            body: Duration::from_secs(60),
        }
    }
}

/// Bytes per second below which a download is given up: slower than any link that a server has.
const SLOWEST: u64 = 32 << 10;
/// Registries send a client to one object store, sometimes by way of one more name.
const MAX_REDIRECTS: usize = 5;
/// A token answer is a JWT and a few fields.
const MAX_TOKEN: u64 = 64 << 10;
/// Tries of one request before the whole pull counts as failed and the shim backs off.
const TRIES: u32 = 4;
/// The wait before the second try; doubles.
const RETRY_FIRST: Duration = Duration::from_millis(200);

/// Why something could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
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
    /// It wants credentials, or a scheme of authentication that this client does not have.
    #[error(
        "the registry does not let the image be pulled anonymously: it is private, or there is no such image"
    )]
    Unauthorized,
    /// It knows no such user, or with another password.
    #[error("the registry refuses the user name or the password that were given for it")]
    Refused,
    /// The credentials are right, and are not enough. Many registries say the same of images that they do not have.
    #[error(
        "the registry accepts the credentials and does not let them pull this image, or there is no such image"
    )]
    Forbidden,
    /// There is no such thing under that name and digest.
    #[error("the registry has no such {0}: the image's name or digest is wrong, or it was deleted")]
    Missing(&'static str),
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
        expected: Digest,
        /// As received.
        got: Digest,
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

/// How a registry is reached: whom to trust, and as whom.
#[derive(Debug, Default)]
pub struct Access {
    /// PEM certificates for every server that has none of its own. `None` takes the system's.
    pub bundle: Option<Vec<u8>>,
    /// PEM certificates that alone are trusted for the registry itself.
    pub registry: Option<String>,
    /// The same for other hosts that the registry may send to, such as its token service: `host` or `host:port` and PEM.
    pub hosts: BTreeMap<String, String>,
    /// As whom to pull; as nobody without.
    pub credentials: Option<Credentials>,
}

/// A user of a registry. The password is wiped when this is dropped, and prints as nothing.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// The user's name, without a colon (RFC 7617 §2).
    pub username: String,
    /// Their password or access token.
    pub password: Zeroizing<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Credentials {
    /// The header of basic authentication (RFC 7617 §2). It is marked so that it prints as "Sensitive".
    fn header(&self) -> Result<HeaderValue, RegistryError> {
        let pair = Zeroizing::new(format!("{}:{}", self.username, self.password.as_str()));
        let text = Zeroizing::new(format!("Basic {}", base64::encode(pair.as_bytes())));
        sensitive(&text)
    }
}

fn sensitive(text: &str) -> Result<HeaderValue, RegistryError> {
    let mut header = HeaderValue::from_str(text).map_err(|_| RegistryError::Unauthorized)?;
    header.set_sensitive(true);
    Ok(header)
}

/// One repository at one registry.
pub struct Registry {
    base: Url,
    repository: String,
    /// For the registry itself.
    own: Client,
    /// For the hosts that the declaration knows.
    known: BTreeMap<String, Client>,
    /// For wherever else the registry sends us.
    others: Client,
    credentials: Option<Credentials>,
    /// What the registry asked for last; for the registry itself only.
    authorization: Option<HeaderValue>,
    patience: Patience,
}

impl Registry {
    /// Prepares to pull `repository` from `base`, `https://host[:port]`. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// The address or the certificates do not parse.
    pub fn new(
        base: &str,
        repository: &str,
        access: Access,
        patience: Patience,
    ) -> Result<Self, RegistryError> {
        let base = Url::parse(base).map_err(|_| RegistryError::Address(short(base)))?;
        let others = client(access.bundle.as_deref(), patience)?;
        let own = match &access.registry {
            Some(pem) => client(Some(pem.as_bytes()), patience)?,
            None => others.clone(),
        };
        let known = access
            .hosts
            .iter()
            .map(|(host, pem)| Ok((host.clone(), client(Some(pem.as_bytes()), patience)?)));
        let known = known.collect::<Result<_, RegistryError>>()?;
        Ok(Self {
            base,
            repository: repository.to_owned(),
            own,
            known,
            others,
            credentials: access.credentials,
            authorization: None,
            patience,
        })
    }

    /// Fetches an index or manifest by its digest.
    ///
    /// # Errors
    ///
    /// [`RegistryError`].
    pub async fn manifest(&mut self, digest: &Digest, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let (_, bytes) = self.manifest_at(&digest.to_string(), Some(digest), limit).await?;
        Ok(bytes)
    }

    /// What a tag leads to now: the digest of an index or manifest, and its bytes. Another time it may lead elsewhere.
    ///
    /// # Errors
    ///
    /// [`RegistryError`].
    pub async fn tagged(&mut self, tag: &str) -> Result<(Digest, Vec<u8>), RegistryError> {
        self.manifest_at(tag, None, image::MAX_MANIFEST).await
    }

    async fn manifest_at(
        &mut self,
        reference: &str,
        digest: Option<&Digest>,
        limit: u64,
    ) -> Result<(Digest, Vec<u8>), RegistryError> {
        let path = format!("manifests/{reference}");
        for attempt in 1.. {
            let mut bytes = Vec::new();
            let request = Request { path: &path, accept: image::MANIFEST_TYPES, what: "manifest" };
            match self.fetch(&request, digest, None, limit, &mut bytes).await {
                Ok(digest) => return Ok((digest, bytes)),
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
    pub async fn blob<W: Write>(
        &mut self,
        blob: &Blob,
        what: &'static str,
        sink: &mut W,
        rewind: impl Fn(&mut W) -> std::io::Result<()>,
    ) -> Result<(), RegistryError> {
        let path = format!("blobs/{}", blob.digest);
        for attempt in 1.. {
            rewind(sink).map_err(|error| RegistryError::Store(what, error))?;
            let request = Request { path: &path, accept: "*/*", what };
            match self.fetch(&request, Some(&blob.digest), Some(blob.size), blob.size, sink).await {
                Ok(_) => return Ok(()),
                Err(error) => pause(attempt, error).await?,
            }
        }
        Err(RegistryError::Redirects)
    }

    async fn fetch(
        &mut self,
        request: &Request<'_>,
        digest: Option<&Digest>,
        size: Option<u64>,
        limit: u64,
        sink: &mut impl Write,
    ) -> Result<Digest, RegistryError> {
        let what = request.what;
        let deadline = self.patience.body.saturating_add(Duration::from_secs(limit / SLOWEST));
        let transfer = async {
            let response = self.get(request).await?;
            receive(response, digest, size, limit, what, sink).await
        };
        tokio::time::timeout(deadline, transfer).await.map_err(|_| RegistryError::Slow(what))?
    }

    /// Sends a request, authenticated when the registry asks for it, and follows where it leads.
    async fn get(&mut self, request: &Request<'_>) -> Result<Response, RegistryError> {
        let path = format!("/v2/{}/{}", self.repository, request.path);
        let start = self.base.join(&path).map_err(|_| RegistryError::Address(short(&path)))?;
        let mut response = self.follow(start.clone(), request).await?;
        let mut asked = None;
        if response.status() == StatusCode::UNAUTHORIZED {
            let challenge = Challenge::of(&response).ok_or(RegistryError::Unauthorized)?;
            self.authorization = Some(self.authorize(&challenge).await?);
            asked = Some(challenge);
            response = self.follow(start, request).await?;
        }
        match (response.status(), &self.credentials, asked) {
            (StatusCode::OK, ..) => Ok(response),
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, None, _) => Err(RegistryError::Unauthorized),
            (StatusCode::UNAUTHORIZED, Some(_), Some(Challenge::Basic)) => Err(RegistryError::Refused),
            // Whoever made the token has looked at the credentials.
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Some(_), _) => Err(RegistryError::Forbidden),
            (StatusCode::NOT_FOUND, ..) => Err(RegistryError::Missing(request.what)),
            (status, ..) => Err(RegistryError::Status { status: status.as_u16(), what: request.what }),
        }
    }

    async fn follow(&self, mut url: Url, request: &Request<'_>) -> Result<Response, RegistryError> {
        for _ in 0..=MAX_REDIRECTS {
            let home = url.origin() == self.base.origin();
            let mut builder = self.client(&url).get(url.clone()).header(ACCEPT, request.accept);
            if let (true, Some(authorization)) = (home, &self.authorization) {
                builder = builder.header(AUTHORIZATION, authorization);
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

    /// The client that trusts whoever may speak for the address.
    fn client(&self, url: &Url) -> &Client {
        if url.origin() == self.base.origin() {
            return &self.own;
        }
        let host = url.host_str().unwrap_or_default();
        let known = match url.port() {
            Some(port) => self.known.get(&format!("{host}:{port}")),
            None => self.known.get(host).or_else(|| self.known.get(&format!("{host}:443"))),
        };
        known.unwrap_or(&self.others)
    }

    /// Only https, or whatever the registry itself was named with.
    fn checked(&self, url: Url) -> Result<Url, RegistryError> {
        if url.scheme() == "https" || url.scheme() == self.base.scheme() {
            Ok(url)
        } else {
            Err(RegistryError::Address(short(url.as_str())))
        }
    }

    /// What the registry asked for: the credentials themselves, or a token.
    async fn authorize(&self, challenge: &Challenge) -> Result<HeaderValue, RegistryError> {
        match challenge {
            Challenge::Basic => self.credentials.as_ref().ok_or(RegistryError::Unauthorized)?.header(),
            Challenge::Bearer { realm, service } => self.token(realm, service.as_deref()).await,
        }
    }

    /// Asks for a token as the challenge says (RFC 6750 §3, Docker's token specification).
    async fn token(&self, realm: &str, service: Option<&str>) -> Result<HeaderValue, RegistryError> {
        let mut url = Url::parse(realm).map_err(|_| RegistryError::Address(short(realm)))?;
        url.query_pairs_mut()
            .extend_pairs(service.iter().map(|service| ("service", service)))
            .append_pair("scope", &format!("repository:{}:pull", self.repository));
        let url = self.checked(url)?;
        let mut request = self.client(&url).get(url);
        if let Some(credentials) = &self.credentials {
            request = request.header(AUTHORIZATION, credentials.header()?);
        }
        let response = request.send().await.map_err(unreachable)?;
        match response.status() {
            StatusCode::OK => {}
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                return Err(RegistryError::Status { status: status.as_u16(), what: "token" });
            }
            _ if self.credentials.is_some() => return Err(RegistryError::Refused),
            _ => return Err(RegistryError::Unauthorized),
        }
        let bytes = Zeroizing::new(collect(response, MAX_TOKEN, "token").await?);
        let answer: Token = serde_json::from_slice(&bytes).map_err(|e| ImageError::Parse("token", e))?;
        let token = answer.token.or(answer.access_token).ok_or(RegistryError::Unauthorized)?;
        // It goes into a header: visible ASCII only.
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(RegistryError::Unauthorized);
        }
        sensitive(&Zeroizing::new(format!("Bearer {}", token.as_str())))
    }
}

/// Where a registry's API is. Docker Hub's has another name than its images.
pub fn base(registry: &RegistryHost) -> String {
    match registry.as_str() {
        "docker.io" | "index.docker.io" => "https://registry-1.docker.io".to_owned(),
        host => format!("https://{host}"),
    }
}

struct Request<'a> {
    path: &'a str,
    accept: &'static str,
    what: &'static str,
}

#[derive(Deserialize)]
struct Token {
    token: Option<Zeroizing<String>>,
    access_token: Option<Zeroizing<String>>,
}

fn client(pem: Option<&[u8]>, patience: Patience) -> Result<Client, RegistryError> {
    // reqwest takes the process's provider; a second installation is refused, and the first one stays.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut builder = Client::builder();
    if let Some(pem) = pem {
        builder = builder.tls_certs_only(Certificate::from_pem_bundle(pem).map_err(RegistryError::Setup)?);
    }
    builder
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(patience.connect)
        .read_timeout(patience.stall)
        .no_proxy()
        .user_agent(concat!("cofferdam/", env!("CARGO_PKG_VERSION")))
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
    tokio::time::sleep(RETRY_FIRST.saturating_mul(1 << attempt.saturating_sub(1).min(8))).await;
    Ok(())
}

/// Streams a body into `sink`, counting and hashing; what it hashes to. The sink's content counts only when this succeeds.
async fn receive(
    mut response: Response,
    digest: Option<&Digest>,
    size: Option<u64>,
    limit: u64,
    what: &'static str,
    sink: &mut impl Write,
) -> Result<Digest, RegistryError> {
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
    let actual = Digest::from(<[u8; 32]>::from(hash.finalize()));
    match digest {
        Some(expected) if *expected != actual => {
            Err(RegistryError::Lies { what, expected: *expected, got: actual })
        }
        _ => Ok(actual),
    }
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

/// How a registry wants to be asked (RFC 9110 §11.6.1).
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    /// With a token that is made at `realm`.
    Bearer { realm: String, service: Option<String> },
    /// With the credentials themselves.
    Basic,
}

impl Challenge {
    /// What an answer asks for. A registry that takes both gets a token, which lives shorter than a password.
    fn of(response: &Response) -> Option<Self> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let mut challenges: Vec<_> = headers.filter_map(|value| Self::parse(value.to_str().ok()?)).collect();
        challenges.sort_by_key(|challenge| *challenge == Self::Basic);
        challenges.into_iter().next()
    }

    /// Reads `Bearer realm="…",service="…",…` or `Basic …`. Values may be quoted and hold commas (RFC 9110 §11.2).
    fn parse(header: &str) -> Option<Self> {
        let (scheme, mut rest) = header.trim().split_once(' ')?;
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
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
        Some(Self::Bearer { realm: realm?, service })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What a request line and an authorization get.
    type Answer = dyn Fn(&str, Option<&str>) -> Vec<u8> + Send + Sync;

    /// A server on the loopback that answers each connection's one request; `{base}` in an answer is its own address.
    struct Server {
        base: String,
        seen: Arc<Mutex<Vec<String>>>,
    }

    impl Server {
        fn new(answer: impl Fn(&str, Option<&str>) -> Vec<u8> + Send + Sync + 'static) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let base = format!("http://{}", listener.local_addr().unwrap());
            let (answer, seen): (Arc<Answer>, _) = (Arc::new(answer), Arc::new(Mutex::new(Vec::new())));
            let (own, log) = (base.clone(), Arc::clone(&seen));
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (answer, own, log) = (Arc::clone(&answer), own.clone(), Arc::clone(&log));
                    std::thread::spawn(move || serve(stream, &*answer, &own, &log));
                }
            });
            Self { base, seen }
        }

        fn registry(&self) -> Registry {
            Registry::new(&self.base, "team/app", Access::default(), Patience::default()).unwrap()
        }

        fn registry_as(&self, username: &str, password: &str) -> Registry {
            let password = Zeroizing::new(password.to_owned());
            let credentials = Some(Credentials { username: username.to_owned(), password });
            let access = Access { credentials, ..Access::default() };
            Registry::new(&self.base, "team/app", access, Patience::default()).unwrap()
        }

        fn requests(&self) -> usize {
            self.seen.lock().unwrap().len()
        }
    }

    fn serve(mut stream: TcpStream, answer: &Answer, own: &str, log: &Mutex<Vec<String>>) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read_exact(&mut byte).is_err() {
                return;
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let line = head.lines().next().unwrap().to_owned();
        let token = head.lines().find_map(|line| line.strip_prefix("authorization: "));
        log.lock().unwrap().push(line.clone());
        let bytes = answer(&line, token);
        let text = String::from_utf8_lossy(&bytes);
        let bytes = if text.contains("{base}") { text.replace("{base}", own).into_bytes() } else { bytes };
        let _ = stream.write_all(&bytes);
    }

    fn ok(body: &[u8]) -> Vec<u8> {
        let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    }

    /// A body that ends with the connection, as long as the server likes.
    fn open_ended(body: &[u8]) -> Vec<u8> {
        [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", body].concat()
    }

    fn status(line: &str, more: &str) -> Vec<u8> {
        format!("HTTP/1.1 {line}\r\nConnection: close\r\nContent-Length: 0\r\n{more}\r\n").into_bytes()
    }

    fn blob(body: &[u8]) -> Blob {
        Blob { digest: Digest::of(body), size: body.len() as u64 }
    }

    async fn fetch(server: &Server, blob: &Blob) -> Result<Vec<u8>, RegistryError> {
        let mut sink = Vec::new();
        let rewind = |sink: &mut Vec<u8>| {
            sink.clear();
            Ok(())
        };
        server.registry().blob(blob, "layer", &mut sink, rewind).await.map(|()| sink)
    }

    #[test]
    fn docker_hub_has_its_own_address() {
        let base = |host: &str| base(&host.parse().unwrap());
        assert_eq!(base("docker.io"), "https://registry-1.docker.io");
        assert_eq!(base("ghcr.io"), "https://ghcr.io");
        assert_eq!(base("r.example:5000"), "https://r.example:5000");
    }

    #[tokio::test]
    async fn a_blob_arrives_whole_and_checked() {
        let body = vec![7_u8; 200_000];
        let (expected, served) = (blob(&body), body.clone());
        let server = Server::new(move |_, _| ok(&served));
        assert_eq!(fetch(&server, &expected).await.unwrap(), body);
        let line = server.seen.lock().unwrap()[0].clone();
        assert_eq!(line, format!("GET /v2/team/app/blobs/{} HTTP/1.1", expected.digest));
    }

    #[tokio::test]
    async fn a_tag_leads_to_what_its_bytes_hash_to_and_not_to_what_a_header_says() {
        let body = br#"{"schemaVersion":2}"#;
        let server = Server::new(|line, _| match line {
            "GET /v2/team/app/manifests/16-alpine HTTP/1.1" => ok(br#"{"schemaVersion":2}"#),
            "GET /v2/team/app/manifests/long HTTP/1.1" => open_ended(&vec![b' '; 5 << 20]),
            _ => status("404 Not Found", ""),
        });
        let (digest, bytes) = server.registry().tagged("16-alpine").await.unwrap();
        assert_eq!((digest, bytes.as_slice()), (Digest::of(body), body.as_slice()));
        let error = server.registry().tagged("long").await.unwrap_err();
        assert!(matches!(error, RegistryError::TooLong { limit: image::MAX_MANIFEST, .. }), "{error}");
        assert!(matches!(server.registry().tagged("17").await, Err(RegistryError::Missing("manifest"))));
    }

    #[tokio::test]
    async fn a_registry_that_lies_is_caught_and_not_asked_again() {
        let server = Server::new(|_, _| ok(b"other"));
        let error = fetch(&server, &blob(b"right")).await.unwrap_err();
        assert!(matches!(error, RegistryError::Lies { .. }), "{error}");
        assert!(error.to_string().contains(&blob(b"right").digest.to_string()), "{error}");
        assert_eq!(server.requests(), 1);
    }

    #[tokio::test]
    async fn a_registry_that_never_ends_is_cut_off_at_the_promised_size() {
        let server = Server::new(|_, _| open_ended(&vec![0; 5 << 20]));
        let error = fetch(&server, &blob(&[0; 1000])).await.unwrap_err();
        assert!(matches!(error, RegistryError::TooLong { limit: 1000, .. }), "{error}");
        let digest = blob(b"x").digest;
        let error = server.registry().manifest(&digest, 4096).await.unwrap_err();
        assert!(matches!(error, RegistryError::TooLong { limit: 4096, .. }), "{error}");
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_asked_for_again() {
        let body = vec![3_u8; 5000];
        let (expected, tries) = (blob(&body), Mutex::new(0));
        let served = body.clone();
        let server = Server::new(move |_, _| {
            let mut tries = tries.lock().unwrap();
            *tries += 1;
            if *tries < 3 { open_ended(&served[..*tries * 1000]) } else { ok(&served) }
        });
        assert_eq!(fetch(&server, &expected).await.unwrap(), body);
        assert_eq!(server.requests(), 3);
    }

    #[tokio::test]
    async fn an_unwell_registry_is_given_its_tries_and_then_up() {
        let server = Server::new(|_, _| status("503 Service Unavailable", ""));
        let error = fetch(&server, &blob(b"x")).await.unwrap_err();
        assert!(matches!(error, RegistryError::Status { status: 503, .. }), "{error}");
        assert_eq!(server.requests(), TRIES as usize);
        let server = Server::new(|_, _| status("404 Not Found", ""));
        let error = fetch(&server, &blob(b"x")).await.unwrap_err();
        assert!(matches!(error, RegistryError::Missing("layer")), "{error}");
        assert_eq!(server.requests(), 1);
    }

    #[tokio::test]
    async fn a_token_is_fetched_as_the_registry_asks_and_kept() {
        let body = b"layer".to_vec();
        let (expected, served) = (blob(&body), body.clone());
        let server = Server::new(move |line, token| {
            let challenge =
                "WWW-Authenticate: Bearer realm=\"{base}/token\",service=\"reg, istry\",scope=\"other\"\r\n";
            match (line, token) {
                (line, _) if line.starts_with("GET /token?") => {
                    ok(br#"{"access_token":"abc","expires_in":300}"#)
                }
                (_, Some("Bearer abc")) => ok(&served),
                _ => status("401 Unauthorized", challenge),
            }
        });
        let mut registry = server.registry();
        let mut sink = Vec::new();
        for _ in 0..2 {
            sink.clear();
            registry.blob(&expected, "layer", &mut sink, |_| Ok(())).await.unwrap();
        }
        assert_eq!(sink, body);
        let seen = server.seen.lock().unwrap().clone();
        assert_eq!(seen.len(), 4, "{seen:?}");
        assert_eq!(seen[1], "GET /token?service=reg%2C+istry&scope=repository%3Ateam%2Fapp%3Apull HTTP/1.1");
    }

    #[tokio::test]
    async fn a_registry_that_wants_more_than_a_token_is_told_apart() {
        for more in
            ["", "WWW-Authenticate: Basic realm=\"x\"\r\n", "WWW-Authenticate: Bearer service=\"x\"\r\n"]
        {
            let server = Server::new(move |_, _| status("401 Unauthorized", more));
            let error = fetch(&server, &blob(b"x")).await.unwrap_err();
            assert!(matches!(error, RegistryError::Unauthorized), "{error}");
        }
    }

    /// `user:right` in basic authentication.
    const RIGHT: &str = "Basic dXNlcjpyaWdodA==";

    async fn fetch_as(server: &Server, blob: &Blob, password: &str) -> Result<Vec<u8>, RegistryError> {
        let mut sink = Vec::new();
        server.registry_as("user", password).blob(blob, "layer", &mut sink, |_| Ok(())).await.map(|()| sink)
    }

    #[tokio::test]
    async fn basic_credentials_are_sent_when_asked_for_and_wrong_ones_are_told_apart() {
        let body = b"layer".to_vec();
        let (expected, served) = (blob(&body), body.clone());
        let server = Server::new(move |line, authorization| match authorization {
            Some(RIGHT) if line.contains(&blob(b"layer").digest.to_string()) => ok(&served),
            Some(RIGHT) => status("404 Not Found", ""),
            _ => status("401 Unauthorized", "WWW-Authenticate: Basic realm=\"r\"\r\n"),
        });
        assert_eq!(fetch_as(&server, &expected, "right").await.unwrap(), body);
        let wrong = fetch_as(&server, &expected, "wrong").await.unwrap_err();
        assert!(matches!(wrong, RegistryError::Refused), "{wrong}");
        let missing = fetch_as(&server, &blob(b"another"), "right").await.unwrap_err();
        assert!(matches!(missing, RegistryError::Missing("layer")), "{missing}");
        let nobody = fetch(&server, &expected).await.unwrap_err();
        assert!(matches!(nobody, RegistryError::Unauthorized), "{nobody}");
    }

    #[tokio::test]
    async fn a_token_is_asked_for_with_the_credentials_and_they_go_nowhere_else() {
        let body = b"layer".to_vec();
        let (expected, served) = (blob(&body), body.clone());
        let tokens = Server::new(|_, authorization| match authorization {
            Some(RIGHT) => ok(br#"{"token":"abc"}"#),
            _ => status("401 Unauthorized", ""),
        });
        let challenge = format!("WWW-Authenticate: Bearer realm=\"{}/token\",service=\"r\"\r\n", tokens.base);
        // A registry that offers both ways is asked with a token, and never sees the password.
        let both = format!("WWW-Authenticate: Basic realm=\"r\"\r\n{challenge}");
        let server = Server::new(move |line, authorization| match authorization {
            Some("Bearer abc") if line.contains("/blobs/") => ok(&served),
            Some("Bearer abc") => status("403 Forbidden", ""),
            None => status("401 Unauthorized", &both),
            Some(_) => status("500 Internal Server Error", ""),
        });
        assert_eq!(fetch_as(&server, &expected, "right").await.unwrap(), body);
        let wrong = fetch_as(&server, &expected, "wrong").await.unwrap_err();
        assert!(matches!(wrong, RegistryError::Refused), "{wrong}");
        let mut registry = server.registry_as("user", "right");
        let forbidden = registry.manifest(&expected.digest, 100).await.unwrap_err();
        assert!(matches!(forbidden, RegistryError::Forbidden), "{forbidden}");
    }

    #[test]
    fn each_host_is_trusted_by_its_own_authority() {
        let hosts = ["auth.example.org", "auth.example.org:5001", "[2001:db8::1]:5001"];
        let hosts = hosts.map(|host| (host.to_owned(), String::new())).into();
        let access = Access { hosts, ..Access::default() };
        let registry = Registry::new("https://r.example.org:5000", "a", access, Patience::default()).unwrap();
        let client = |url: &str| registry.client(&Url::parse(url).unwrap());
        assert!(std::ptr::eq(client("https://r.example.org:5000/v2/"), &raw const registry.own));
        for (url, host) in [
            ("https://auth.example.org/token", "auth.example.org"),
            ("https://auth.example.org:5001/token", "auth.example.org:5001"),
            ("https://[2001:db8::1]:5001/token", "[2001:db8::1]:5001"),
        ] {
            assert!(std::ptr::eq(client(url), registry.known.get(host).unwrap()), "{url}");
        }
        for url in ["https://r.example.org/v2/", "https://auth.example.org:5002/", "https://cdn.example.org/"]
        {
            assert!(std::ptr::eq(client(url), &raw const registry.others), "{url}");
        }
    }

    #[test]
    fn a_password_is_in_no_output() {
        let credentials = Credentials { username: "user".into(), password: Zeroizing::new("hunter2".into()) };
        assert!(!format!("{credentials:?}").contains("hunter2"));
        assert!(!format!("{:?}", credentials.header().unwrap()).contains("aHVudGVyMg"));
    }

    #[tokio::test]
    async fn redirects_are_followed_so_far_and_never_carry_the_token() {
        let body = b"layer".to_vec();
        let served = body.clone();
        let store = Server::new(
            move |_, token| if token.is_some() { status("400 Bad Request", "") } else { ok(&served) },
        );
        let target = format!("Location: {}/store\r\n", store.base);
        let server = Server::new(move |_, _| status("307 Temporary Redirect", &target));
        let mut registry = server.registry();
        registry.authorization = Some(sensitive("Bearer abc").unwrap());
        let mut sink = Vec::new();
        registry.blob(&blob(&body), "layer", &mut sink, |_| Ok(())).await.unwrap();
        assert_eq!(sink, body);
        let circle = Server::new(|_, _| status("302 Found", "Location: {base}/again\r\n"));
        assert!(matches!(fetch(&circle, &blob(b"x")).await, Err(RegistryError::Redirects)));
        let elsewhere = Server::new(|_, _| status("302 Found", "Location: file:///etc/passwd\r\n"));
        assert!(matches!(fetch(&elsewhere, &blob(b"x")).await, Err(RegistryError::Address(_))));
    }

    /// A server that answers the head and then a byte at each `pause`, for as long as it is listened to.
    fn drip(pause: Duration) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    // An answer before the request would be an error of another kind.
                    let _ = stream.read(&mut [0; 4096]);
                    let mut sent = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\na");
                    while sent.is_ok() {
                        std::thread::sleep(pause);
                        sent = stream.write_all(b"b");
                    }
                });
            }
        });
        base
    }

    #[tokio::test]
    async fn a_registry_that_stalls_or_drips_is_given_up() {
        let digest = blob(b"x").digest;
        // One bound is short at a time, so that a busy machine does not decide which of them is met.
        let get = async |base: &str, stall: Duration, body: Duration| {
            let patience = Patience { stall, body, ..Patience::default() };
            let mut registry = Registry::new(base, "team/app", Access::default(), patience).unwrap();
            registry.manifest(&digest, 1000).await.unwrap_err()
        };
        let (short, long) = (Duration::from_millis(300), Duration::from_secs(60));
        let stalled = get(&drip(long), short, long).await;
        assert!(matches!(stalled, RegistryError::Unreachable(_)), "{stalled}");
        let dripped = get(&drip(Duration::from_millis(50)), long, short).await;
        assert!(matches!(dripped, RegistryError::Slow("manifest")), "{dripped}");
    }

    #[test]
    fn challenges_are_read_and_others_are_not() {
        let read = Challenge::parse;
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
        };
        let both = bearer("https://a/t", Some("s,x"));
        assert_eq!(read("Bearer realm=\"https://a/t\",service=\"s,x\",scope=\"a,b\""), both);
        assert_eq!(read("bearer service=\"s,x\", realm=\"https://a/t\""), both);
        assert_eq!(read("Bearer realm=https://a/t"), bearer("https://a/t", None));
        assert_eq!(read("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(read("Negotiate abc"), None);
        assert_eq!(read("Bearer realm=\"unclosed"), None);
        assert_eq!(read(""), None);
    }

    #[test]
    fn an_authority_that_is_no_certificate_is_an_error() {
        let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let access = Access { registry: Some(pem.to_owned()), ..Access::default() };
        assert!(matches!(
            Registry::new("https://r.example", "a", access, Patience::default()),
            Err(RegistryError::Setup(_))
        ));
    }
}
