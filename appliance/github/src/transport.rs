//! One request until it has an answer: bounded bodies, time-outs, and retries that end at the caller's deadline.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::header::{DATE, ETAG, HeaderMap, LINK, LOCATION, RETRY_AFTER};
use reqwest::{StatusCode, Url, redirect, tls};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use cofferdam_protocol::{Timestamp, unix_seconds};

use super::Said;

/// Bound on connecting, name and TLS included: enough for two lost packets in a row (TCP sends again after one second and
/// after three).
const CONNECT: Duration = Duration::from_secs(4);

/// How long a server is tried again that has not been reached at all, over all calls of one client. Where it is not to be reached,
/// a person wants to know; a call that fails then says so after one attempt.
const REACH: Duration = Duration::from_secs(4);

/// Bound on one attempt.
const ATTEMPT: Duration = Duration::from_secs(30);

/// Default bound on a call with all its attempts.
const DEADLINE: Duration = Duration::from_secs(60);

/// First pause between attempts; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// Attempts of one call.
const ATTEMPTS: u32 = 5;

/// Longest piece of a server's message that is repeated to a person, in characters.
const MAX_MESSAGE: usize = 200;

/// The HTTP client with the deadline that bounds each call.
pub(super) struct Transport {
    client: reqwest::Client,
    /// Bound on a call with all its attempts.
    pub(super) deadline: Duration,
    counts: Counts,
    /// Hears why a request is made once more.
    pub(super) on_retry: Option<fn(&GithubError)>,
    /// Since when no attempt has led to a connection.
    unreached: Mutex<Option<Instant>>,
    /// What time the API has said last that it is, and what this machine's clock said when that came.
    date: Mutex<Option<Said>>,
}

/// Who a request goes to, which decides what it costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The REST API: each request counts against the caller's limit.
    Api,
    /// Git's own protocol.
    Git,
    /// Where the bytes of assets are.
    Storage,
}

/// Requests that were sent, by who they went to. GitHub's limit counts those to the API, and with a token not those that
/// were answered with "unchanged".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Requests {
    /// To the REST API.
    pub api: u32,
    /// Of those, answered with "unchanged" (304).
    pub unchanged: u32,
    /// Of git's own protocol.
    pub git: u32,
    /// To where the bytes of assets are.
    pub storage: u32,
}

#[derive(Default)]
struct Counts {
    api: AtomicU32,
    unchanged: AtomicU32,
    git: AtomicU32,
    storage: AtomicU32,
}

/// A successful answer.
#[derive(Debug)]
pub(super) struct Answer {
    /// Where a redirect points.
    pub(super) location: Option<String>,
    /// Name of this version of the answer, to ask for changes.
    pub(super) etag: Option<String>,
    /// Whether the list goes on.
    pub(super) more: bool,
    /// Whether the server says that nothing changed since the version that was named.
    pub(super) unchanged: bool,
    /// The whole body.
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    pub(super) fn json<T: DeserializeOwned>(self) -> Result<T, GithubError> {
        if self.location.is_some() {
            return Err(GithubError::Moved);
        }
        serde_json::from_slice(&self.body).map_err(|error| GithubError::Malformed(error.to_string()))
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum GithubError {
    /// The caller's arguments are unusable.
    #[error("{0}")]
    Config(&'static str),
    /// It does not exist, or the token (or its absence) does not let us see it.
    #[error("not found on GitHub, or not visible with this token")]
    NotFound,
    /// Two commits that were compared have no common ancestor.
    #[error("the commits have no common ancestor")]
    Unrelated,
    /// The token is missing, wrong or does not allow this.
    #[error("GitHub refuses the token: {0}")]
    Unauthorized(String),
    /// Too many requests; the wait would outlast the deadline.
    #[error("{}", limit_words(*retry_after, *resets_at))]
    RateLimited {
        /// How long to wait.
        retry_after: Duration,
        /// When the caller's hour is over, in seconds since the Unix epoch; `None` when it is the pace that is complained of.
        resets_at: Option<u64>,
    },
    /// The request is understood and refused (409, 422 and other 4xx).
    #[error("GitHub refuses the request: {0}")]
    Refused(String),
    /// The server fails (5xx) until the deadline.
    #[error("GitHub answers {status}: {message}")]
    Server {
        /// HTTP status.
        status: u16,
        /// Its message, bounded.
        message: String,
    },
    /// No connection, or none that holds, until the deadline.
    #[error("GitHub is unreachable")]
    Unreachable(#[source] reqwest::Error),
    /// No answer before the deadline.
    #[error("GitHub does not answer in time")]
    Timeout,
    /// The resource has moved; a renamed repository is another identity.
    #[error("GitHub says that the repository has moved")]
    Moved,
    /// The answer is not what the API promises.
    #[error("GitHub's answer is malformed: {0}")]
    Malformed(String),
}

impl GithubError {
    /// Whether this says something about reaching GitHub rather than about what it holds: trying later may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::RateLimited { .. } | Self::Server { .. } | Self::Unreachable(_) | Self::Timeout)
    }
}

impl Transport {
    pub(super) fn new(root: &Url, ca_pem: Option<&str>, user_agent: &str) -> Result<Self, GithubError> {
        // reqwest takes the process's provider; a second installation is refused, and the first one stays.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(user_agent)
            .https_only(true)
            .tls_version_min(tls::Version::TLS_1_2)
            .redirect(redirect::Policy::none())
            .referer(false)
            .connect_timeout(CONNECT)
            .timeout(ATTEMPT);
        if let Some(pem) = ca_pem {
            let authorities = reqwest::Certificate::from_pem_bundle(pem.as_bytes())
                .map_err(|_| GithubError::Config("CA is not PEM"))?;
            if authorities.is_empty() {
                return Err(GithubError::Config("CA holds no certificate"));
            }
            builder = builder.tls_certs_only(authorities);
        }
        if is_loopback(root) {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|_| GithubError::Config("TLS client cannot be set up"))?;
        Ok(Self {
            client,
            deadline: DEADLINE,
            counts: Counts::default(),
            on_retry: None,
            unreached: Mutex::new(None),
            date: Mutex::new(None),
        })
    }

    pub(super) fn date(&self) -> Option<Said> {
        *self.date.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn requests(&self) -> Requests {
        let count = |of: &AtomicU32| of.load(Ordering::Relaxed);
        let Counts { api, unchanged, git, storage } = &self.counts;
        Requests { api: count(api), unchanged: count(unchanged), git: count(git), storage: count(storage) }
    }

    /// Sends what `request` builds until it succeeds, fails for good, or the deadline is reached. Answers of 2xx and
    /// redirects are successes; their bodies are read up to `limit` bytes.
    pub(super) async fn send(
        &self,
        kind: Kind,
        request: impl Fn(&reqwest::Client) -> reqwest::RequestBuilder,
        limit: usize,
    ) -> Result<Answer, GithubError> {
        let end = Instant::now() + self.deadline;
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let error = match tokio::time::timeout_at(end, self.attempt(kind, &request, limit)).await {
                Err(_) => return Err(GithubError::Timeout),
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
            };
            let wait = match &error {
                GithubError::RateLimited { retry_after, .. } => *retry_after,
                error if error.is_transient() => pause,
                _ => return Err(error),
            };
            let end = self.unreached().map_or(end, |since| end.min(since + REACH));
            if attempt == ATTEMPTS || wait >= end.saturating_duration_since(Instant::now()) {
                return Err(error);
            }
            if let Some(observer) = self.on_retry {
                observer(&error);
            }
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            attempt += 1;
        }
    }

    fn unreached(&self) -> Option<Instant> {
        *self.unreached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps in mind whether an attempt that was `begun` then has led to a connection.
    fn note_reached(&self, begun: Instant, reached: bool) {
        let mut unreached = self.unreached.lock().unwrap_or_else(PoisonError::into_inner);
        if reached {
            *unreached = None;
        } else {
            unreached.get_or_insert(begun);
        }
    }

    async fn attempt(
        &self,
        kind: Kind,
        request: &impl Fn(&reqwest::Client) -> reqwest::RequestBuilder,
        limit: usize,
    ) -> Result<Answer, GithubError> {
        let count = match kind {
            Kind::Api => &self.counts.api,
            Kind::Git => &self.counts.git,
            Kind::Storage => &self.counts.storage,
        };
        count.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        let sent = request(&self.client).send().await;
        self.note_reached(begun, sent.as_ref().err().is_none_or(|error| !error.is_connect()));
        let mut response = sent.map_err(transport_error)?;
        let (status, headers) = (response.status(), response.headers().clone());
        if let (Kind::Api, Some(date)) = (kind, headers.get(DATE).and_then(|date| date.to_str().ok())) {
            let (asked, answered) = (begun.into_std(), Instant::now().into_std());
            let said = Timestamp::from_http_date(date).map(|date| Said { date, asked, answered });
            *self.date.lock().unwrap_or_else(PoisonError::into_inner) = said;
        }
        if status == StatusCode::NOT_MODIFIED {
            self.counts.unchanged.fetch_add(1, Ordering::Relaxed);
            return Ok(Answer { location: None, etag: None, more: false, unchanged: true, body: Vec::new() });
        }
        // An error's body is only a message: read little of it and be content with a part.
        let fine = status.is_success() || status.is_redirection();
        let limit = if fine { limit } else { super::MAX_FILE };
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(transport_error)? {
            if body.len() + chunk.len() > limit {
                return Err(GithubError::Malformed(format!("answer of more than {limit} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        if fine {
            let location = headers.get(LOCATION).filter(|_| status.is_redirection());
            let location = location.and_then(|value| value.to_str().ok()).map(str::to_owned);
            if status.is_redirection() && location.is_none() {
                return Err(GithubError::Malformed("redirect without a location".to_owned()));
            }
            let etag = headers.get(ETAG).and_then(|value| value.to_str().ok());
            let etag = etag.filter(|etag| etag.len() <= MAX_MESSAGE).map(str::to_owned);
            return Ok(Answer { location, etag, more: goes_on(&headers), unchanged: false, body });
        }
        Err(refusal(kind, status, &headers, &body))
    }
}

/// Whether a list has a next page (RFC 8288, `rel="next"`). Which that is we know ourselves: no server names the places that we ask.
fn goes_on(headers: &HeaderMap) -> bool {
    let links = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    links.flat_map(|value| value.split(',')).any(|link| {
        link.split(';').skip(1).any(|parameter| matches!(parameter.trim(), "rel=\"next\"" | "rel=next"))
    })
}

/// Sorts an error answer into what the caller can do about it. That a token is refused GitHub alone can say, in its own words:
/// storage gets none, and an answer without them is a proxy's or a portal's.
fn refusal(kind: Kind, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> GithubError {
    let spent = headers.get("x-ratelimit-remaining").is_some_and(|value| value == "0");
    let limited = || {
        let retry_after = retry_after(headers);
        GithubError::RateLimited {
            retry_after,
            resets_at: spent.then(|| unix_seconds(SystemTime::now()).saturating_add(retry_after.as_secs())),
        }
    };
    match status.as_u16() {
        404 if message(body).starts_with(UNRELATED) => GithubError::Unrelated,
        404 | 410 => GithubError::NotFound,
        429 => limited(),
        // Of a pace that is too high GitHub complains in words, not always in a header.
        403 if spent || headers.contains_key(RETRY_AFTER) || message(body).contains("rate limit") => {
            limited()
        }
        status @ (401 | 403) => match (kind, said(body)) {
            (Kind::Storage, _) => GithubError::Malformed(format!("the storage of assets answers {status}")),
            (Kind::Api | Kind::Git, Some(words)) => GithubError::Unauthorized(words),
            (Kind::Api | Kind::Git, None) => GithubError::Malformed(format!("{NOT_GITHUBS} ({status})")),
        },
        400..=499 => GithubError::Refused(message(body)),
        status => GithubError::Server { status, message: message(body) },
    }
}

/// How GitHub says that two commits of one repository have nothing to do with each other.
const UNRELATED: &str = "No common ancestor";

/// What a limit says to a person.
fn limit_words(retry_after: Duration, resets_at: Option<u64>) -> String {
    let seconds = retry_after.as_secs();
    match resets_at.and_then(Timestamp::from_unix) {
        Some(at) => format!("GitHub's rate limit is used up; it resets at {at}, in {seconds} s"),
        None => format!("GitHub asks to wait {seconds} s before the next request"),
    }
}

/// No server makes us wait longer than a day: its limits are per hour, and times are added to this.
const LONGEST_WAIT_S: u64 = 24 * 60 * 60;

/// How long the server asks us to wait: `Retry-After` in seconds, else until `x-ratelimit-reset`, else a minute (GitHub's
/// advice for secondary limits).
fn retry_after(headers: &HeaderMap) -> Duration {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
    if let Some(seconds) = number("retry-after") {
        return Duration::from_secs(seconds.min(LONGEST_WAIT_S));
    }
    let now = unix_seconds(SystemTime::now());
    match number("x-ratelimit-reset") {
        Some(reset) => Duration::from_secs(reset.saturating_sub(now).clamp(1, LONGEST_WAIT_S)),
        None => Duration::from_secs(60),
    }
}

const NOT_GITHUBS: &str = "an answer that is not GitHub's";

/// What an error says, for a person.
fn message(body: &[u8]) -> String {
    said(body).unwrap_or_else(|| NOT_GITHUBS.to_owned())
}

/// The `message` of an error body, bounded and printable; `None` when it is not one of GitHub's.
fn said(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Body {
        message: String,
    }
    let Body { message } = serde_json::from_slice(body).ok()?;
    Some(message.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect())
}

fn transport_error(error: reqwest::Error) -> GithubError {
    if error.is_timeout() {
        GithubError::Timeout
    } else {
        // The URL is ours and can hold nothing secret, but storage URLs carry their permission in the query.
        GithubError::Unreachable(error.without_url())
    }
}

pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_server_names_a_time_that_overflows() {
        for (name, value) in [
            ("retry-after", "18446744073709551615"),
            ("x-ratelimit-reset", "18446744073709551615"),
            ("retry-after", "-1"),
            ("x-ratelimit-reset", "0"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            let wait = retry_after(&headers);
            assert!((1..=LONGEST_WAIT_S).contains(&wait.as_secs()), "{name}: {value}");
        }
    }
}
