//! GitHub's REST API, as far as release attestations and followers of a branch need it: contents and commits, releases and their assets.
//!
//! Responsible for what is asked and in how many requests, for bounds, redirects, retries and where the token goes. It decides
//! nothing about trust: what comes back is bounded, typed and untrusted, but for commits that signers signed ([`SignedCommit`]). HTTPS always, also on loopback. The token goes to the
//! API's own host, its upload host and the host of its repositories, and nowhere else: redirects are followed by hand, only for
//! asset bytes, and without it. Works the same with api.github.com and with GitHub Enterprise Server (`https://HOST/api/v3`).
//!
//! Each fact is asked for once. What may change (the list of releases, the head of the default branch) is asked for by every
//! caller anew, the list conditionally; what cannot change (a file at a commit, how two commits are related, an asset) comes
//! from the [`Cache`] when it holds it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, IF_NONE_MATCH};
use reqwest::{Method, Url};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use cofferdam_protocol::{Repository, Timestamp, base64, hex};

mod cache;
mod candidate;
mod follow;
mod history;
mod object;
mod publish;
mod read;
mod signed;
mod transport;
mod types;

pub use cache::Cache;
pub use candidate::{Candidate, JudgeError, MAX_CANDIDATE, MAX_TREE, judge};
pub use follow::CommitText;
pub use history::{Comparison, Head};
pub use read::{Listed, PAGE};
pub use signed::{Foreign, MAX_PAYLOAD, MAX_SIGNATURE, SignatureError, SignedCommit, verify};
pub use transport::{GithubError, Requests};
pub use types::{Asset, Commit, CommitDetail, NewAsset, NewRelease, Release, Signature};

use transport::{Answer, Kind, Transport};

/// GitHub's own API root.
pub const DEFAULT_API: &str = "https://api.github.com";

/// Largest accepted JSON answer in bytes.
pub const MAX_JSON: usize = 4 * 1024 * 1024;

/// Largest file that [`Client::contents`] returns in bytes: the API carries no larger ones in JSON.
pub const MAX_FILE: usize = 1024 * 1024;

/// Version of the REST API that these requests are written for.
const API_VERSION: &str = "2022-11-28";

impl std::ops::Add for Requests {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            api: self.api.saturating_add(other.api),
            unchanged: self.unchanged.saturating_add(other.unchanged),
            git: self.git.saturating_add(other.git),
            storage: self.storage.saturating_add(other.storage),
        }
    }
}

/// What a server has said about the time.
#[derive(Debug, Clone, Copy)]
pub struct Said {
    /// The time, in whole seconds, that it was somewhere between the other two.
    pub date: Timestamp,
    /// When it was asked.
    pub asked: Instant,
    /// When it had answered.
    pub answered: Instant,
}

/// A GitHub server, with or without a token.
pub struct Client {
    root: Url,
    token: Option<HeaderValue>,
    /// The same token for git's own protocol, which takes it as a password.
    git_token: Option<HeaderValue>,
    user_agent: String,
    transport: Transport,
    cache: Option<Arc<dyn Cache>>,
    /// Whose answers the cache holds: those of one server, by one authority, to one token.
    identity: String,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "[redacted:github token]");
        f.debug_struct("Client")
            .field("root", &self.root.as_str())
            .field("token", &token)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client for the API at `root` (`https://api.github.com`, `https://HOST/api/v3`). With `ca_pem` only those
    /// authorities are trusted, without it the system's.
    ///
    /// # Errors
    /// [`GithubError::Config`] for a root that is not https or has a query, a token with control characters or an unusable CA.
    pub fn new(
        root: &str,
        token: Option<Zeroizing<String>>,
        ca_pem: Option<&str>,
        user_agent: &str,
    ) -> Result<Self, GithubError> {
        let url = Url::parse(root).map_err(|_| GithubError::Config("API root is not a URL"))?;
        if url.scheme() != "https" || url.host_str().is_none() {
            return Err(GithubError::Config("API root is not an https URL"));
        }
        if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
            return Err(GithubError::Config("API root has more than scheme, host, port and path"));
        }
        let mut identity = Sha256::new();
        for part in [url.as_str(), ca_pem.unwrap_or_default(), token.as_ref().map_or("", |token| token)] {
            identity.update(Sha256::digest(part));
        }
        let git_token = token.as_ref().map(|token| basic(token)).transpose()?;
        let token = token.map(|token| bearer(&token)).transpose()?;
        let transport = Transport::new(&url, ca_pem, user_agent)?;
        Ok(Self {
            root: url,
            token,
            git_token,
            user_agent: user_agent.to_owned(),
            transport,
            cache: None,
            identity: hex::encode(identity.finalize()),
        })
    }

    /// The same client with another bound on the whole of one call, retries included (default 60 s).
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.transport.deadline = deadline;
        self
    }

    /// The same client with a memory for what need not be asked again.
    #[must_use]
    pub fn with_cache(mut self, cache: Arc<dyn Cache>) -> Self {
        self.cache = Some(cache);
        self
    }

    /// The same client, which tells `observer` why it asks once more.
    #[must_use]
    pub fn on_retry(mut self, observer: fn(&GithubError)) -> Self {
        self.transport.on_retry = Some(observer);
        self
    }

    /// Host of the API, to name it to a person.
    pub fn host(&self) -> &str {
        self.root.host_str().unwrap_or_default()
    }

    /// Whether its requests go out by the proxy of the environment, where there is one: those to this machine never do.
    pub fn heeds_proxies(&self) -> bool {
        !transport::is_loopback(&self.root)
    }

    /// Whether it has a token: GitHub allows 60 requests an hour without one and 5,000 with it.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// What time the API has said last that it is.
    pub fn date(&self) -> Option<Said> {
        self.transport.date()
    }

    /// Asks what time it is, which costs nothing of the limits and needs no token: [`Client::date`] has it then. An answer that is
    /// refused says it, too.
    ///
    /// # Errors
    /// What GitHub says.
    pub async fn ask_time(&self) -> Result<(), GithubError> {
        let mut url = self.root.clone();
        extend(&mut url, &["rate_limit"])?;
        self.get::<serde::de::IgnoredAny>(url).await.map(drop)
    }

    /// What was asked so far, retries included.
    pub fn requests(&self) -> Requests {
        self.transport.requests()
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, url: Url) -> Result<T, GithubError> {
        self.get_up_to(url, MAX_JSON).await
    }

    async fn get_up_to<T: serde::de::DeserializeOwned>(
        &self,
        url: Url,
        limit: usize,
    ) -> Result<T, GithubError> {
        let request = |client: &reqwest::Client| {
            authorize(api(client.request(Method::GET, url.clone())), self.token.as_ref())
        };
        self.transport.send(Kind::Api, request, limit).await?.json()
    }

    /// An answer of the API, or that it is still the one of this ETag.
    async fn send_unless(&self, url: &Url, known: Option<&str>) -> Result<Answer, GithubError> {
        let request = |client: &reqwest::Client| {
            let request = authorize(api(client.request(Method::GET, url.clone())), self.token.as_ref());
            match known {
                Some(etag) => request.header(IF_NONE_MATCH, etag),
                None => request,
            }
        };
        self.transport.send(Kind::Api, request, MAX_JSON).await
    }

    /// What the cache holds under `name`.
    fn cached(&self, name: &str) -> Option<Vec<u8>> {
        self.cache.as_ref()?.get(&format!("{} {name}", self.identity))
    }

    fn remember(&self, name: &str, value: &[u8]) {
        if let Some(cache) = &self.cache {
            cache.put(&format!("{} {name}", self.identity), value);
        }
    }

    /// `ROOT/repos/OWNER/REPO/parts…?query`, each part percent-encoded.
    fn url(
        &self,
        repository: &Repository,
        parts: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Url, GithubError> {
        let mut url = self.root.clone();
        extend(&mut url, &["repos", repository.owner(), repository.name()])?;
        extend(&mut url, parts)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    /// The root of the pages that belong to this API: `https://github.com` of `https://api.github.com`, the same for tenants of
    /// ghe.com, and `https://HOST` of `https://HOST/api/v3`. Of others it is not known: the token goes to no host that nobody named.
    fn pages(&self) -> Option<Url> {
        let mut url = self.root.clone();
        if url.path() == "/" {
            let host = url.host_str()?.strip_prefix("api.")?.to_owned();
            let known = host == "github.com" || host.ends_with(".ghe.com");
            url.set_host(Some(&host)).ok().filter(|()| known && url.port().is_none())?;
        }
        url.set_path("");
        Some(url)
    }
}

fn bearer(token: &str) -> Result<HeaderValue, GithubError> {
    secret(&Zeroizing::new(format!("Bearer {}", token.trim())))
}

/// The token as the password of a user whose name GitHub does not look at.
fn basic(token: &str) -> Result<HeaderValue, GithubError> {
    let pair = Zeroizing::new(format!("x-access-token:{}", token.trim()));
    let encoded = Zeroizing::new(base64::encode(pair.as_bytes()));
    secret(&Zeroizing::new(format!("Basic {}", encoded.as_str())))
}

fn secret(text: &str) -> Result<HeaderValue, GithubError> {
    let mut value =
        HeaderValue::from_str(text).map_err(|_| GithubError::Config("token has control characters"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn api(request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
    request.header(ACCEPT, "application/vnd.github+json").header("X-GitHub-Api-Version", API_VERSION)
}

fn authorize(request: reqwest::RequestBuilder, token: Option<&HeaderValue>) -> reqwest::RequestBuilder {
    match token {
        Some(token) => request.header(AUTHORIZATION, token.clone()),
        None => request,
    }
}

fn extend(url: &mut Url, parts: &[&str]) -> Result<(), GithubError> {
    let mut segments = url.path_segments_mut().map_err(|()| GithubError::Config("API root has no path"))?;
    segments.pop_if_empty().extend(parts);
    Ok(())
}

/// A tag that is one: bounded, printable, no path tricks.
fn check_tag(at: &str) -> Result<(), GithubError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/');
    let fine = (1..=200).contains(&at.len())
        && at.bytes().all(plain)
        && at.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if fine { Ok(()) } else { Err(GithubError::Config("tag is not plain")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_goes_to_no_host_that_nobody_named() {
        for (root, pages) in [
            ("https://api.github.com", Some("https://github.com/")),
            ("https://api.github.com/", Some("https://github.com/")),
            ("https://api.acme.ghe.com", Some("https://acme.ghe.com/")),
            ("https://ghes.example/api/v3", Some("https://ghes.example/")),
            ("https://127.0.0.1:8443/api/v3", Some("https://127.0.0.1:8443/")),
            ("https://api.corp.example", None),
            ("https://api.corp.example/", None),
            ("https://api.github.com.corp.example", None),
            ("https://api.xghe.com", None),
            ("https://api.ghe.com", None),
            ("https://api.github.com:8443", None),
            ("https://corp.example", None),
        ] {
            let client = Client::new(root, None, None, "x").unwrap();
            assert_eq!(client.pages().as_ref().map(Url::as_str), pages, "{root}");
        }
    }
}
