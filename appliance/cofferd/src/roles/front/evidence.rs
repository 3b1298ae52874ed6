//! Evidence for anybody who asks.
//!
//! Without a nonce: the document behind the present certificate, as often as anybody likes. With a nonce: a fresh
//! quote over it and over the channel binding of the very connection that asked, which costs the quote device up
//! to a second, so these are counted and queued, over all and for each source, and who comes too often is told when to
//! come back.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Response, StatusCode};
use cofferdam_attest::claims::Claims;
use cofferdam_attest::evidence::{Collateral, Evidence};
use cofferdam_protocol::evidence::{EvidenceRequest, MAX_DOCUMENT, MEDIA_TYPE, Nonce, parse_query};
use cofferdam_protocol::json::JsonError;
use tokio::time::Instant;

use super::source::Source;
use super::{reply, untrusted_file};
use crate::roles::clock::Moment;
use crate::roles::evidence::{AskError, ask};
use crate::system::quota::Quota;

/// Fresh quotes that may be under way or waiting: the evidence role serves one at a time, about one a second.
const QUEUE: usize = 6;

/// Of these, for one source: on real hardware this is what leaves others a way to the device.
const QUEUE_EACH: usize = 4;

/// What one source gets: a burst, for instance by a script that checks every published port, and one more fresh quote
/// after so long. Above what the stock driver can do, so the queue decides on real hardware and this bound on a
/// fast device; and enough for a site that comes from one address.
const EACH: Rate = Rate { burst: 20, refill: Duration::from_millis(200) };

/// What all get together: twice as much, so that one source leaves half of it to the others.
const ALL: Rate = Rate { burst: 40, refill: Duration::from_millis(100) };

/// Where evidence is handed out.
#[derive(Debug)]
pub(crate) struct EvidenceClient {
    socket: PathBuf,
    collateral: PathBuf,
    current: RwLock<Option<(Evidence, Moment)>>,
    buckets: Mutex<Buckets>,
    queue: Arc<Quota<Option<Source>>>,
}

impl EvidenceClient {
    /// A client that asks the evidence role at `socket` and adds the collateral in that file when there is some.
    pub(crate) fn new(socket: PathBuf, collateral: PathBuf) -> Self {
        Self {
            socket,
            collateral,
            current: RwLock::new(None),
            buckets: Mutex::new(Buckets::new(Instant::now())),
            queue: Quota::new(),
        }
    }

    /// Asks the evidence role for a document.
    ///
    /// # Errors
    /// When it does not answer, refuses, or answers with something that is not evidence.
    pub(crate) async fn fetch(&self, request: &EvidenceRequest) -> Result<(Evidence, Claims), AskError> {
        ask(&self.socket, request).await
    }

    /// Hands out this document from now on, until it expires, to whoever brings no nonce.
    pub(crate) fn replace(&self, evidence: Evidence, expires: Moment) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some((evidence, expires));
    }

    /// Answers `GET /evidence[?nonce=…]` on the connection with this channel binding.
    pub(crate) async fn answer(
        &self,
        query: Option<&str>,
        source: Source,
        channel_binding: &[u8; 32],
    ) -> Response<Body> {
        match parse_query(query) {
            Err(reason) => reply::error(
                StatusCode::BAD_REQUEST,
                reason,
                Some("ask with ?nonce=<base64url of 16 to 64 random bytes>, or without a query"),
            ),
            Ok(None) => self.present(),
            Ok(Some(nonce)) => self.fresh(nonce, source, channel_binding).await,
        }
    }

    fn present(&self) -> Response<Body> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        match current {
            Some((evidence, expires)) if !expires.has_come() => self.document(evidence),
            _ => reply::later(StatusCode::SERVICE_UNAVAILABLE, "there is no valid evidence now", 1),
        }
    }

    async fn fresh(&self, nonce: Nonce, source: Source, channel_binding: &[u8; 32]) -> Response<Body> {
        let now = Instant::now();
        let wait = self.buckets.lock().unwrap_or_else(PoisonError::into_inner).take(source, now);
        if let Err(wait) = wait {
            let seconds = wait.as_secs().saturating_add(1);
            return reply::later(
                StatusCode::TOO_MANY_REQUESTS,
                "too many fresh quotes are asked for",
                seconds,
            );
        }
        let Some(_place) = self.queue.take(&[(None, QUEUE), (Some(source), QUEUE_EACH)]) else {
            let text = "too many fresh quotes are under way";
            return reply::later(StatusCode::SERVICE_UNAVAILABLE, text, 2);
        };
        let request =
            EvidenceRequest { nonce: Some(nonce), channel_binding: Some((*channel_binding).into()) };
        match self.fetch(&request).await {
            Ok((evidence, _)) => self.document(evidence),
            Err(error) => reply::later(StatusCode::SERVICE_UNAVAILABLE, &error.to_string(), 1),
        }
    }

    /// The document with the collateral that is known now, as long as both fit the format's bound.
    fn document(&self, evidence: Evidence) -> Response<Body> {
        match self.with_collateral(evidence) {
            Ok(body) => reply::typed(StatusCode::OK, body, MEDIA_TYPE),
            Err(error) => reply::error(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string(), None),
        }
    }

    fn with_collateral(&self, mut evidence: Evidence) -> Result<Vec<u8>, JsonError> {
        let limit = u64::try_from(MAX_DOCUMENT).unwrap_or(u64::MAX);
        evidence.collateral = untrusted_file::contents(&self.collateral, limit)
            .and_then(|bytes| Collateral::parse(&bytes).ok());
        let body = evidence.to_json()?;
        if body.len() <= MAX_DOCUMENT {
            return Ok(body);
        }
        evidence.collateral = None;
        evidence.to_json()
    }
}

/// How fast a bucket may be emptied: `burst` at once, then one after each `refill`.
#[derive(Debug, Clone, Copy)]
struct Rate {
    burst: u32,
    refill: Duration,
}

/// A token bucket on the monotonic clock.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    rate: Rate,
    tokens: u32,
    since: Instant,
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self { rate, tokens: rate.burst, since: now }
    }

    /// Puts in what has come since the last time; says whether it is full.
    fn fill(&mut self, now: Instant) -> bool {
        while self.tokens < self.rate.burst && now.duration_since(self.since) >= self.rate.refill {
            self.tokens = self.tokens.saturating_add(1);
            self.since += self.rate.refill;
        }
        self.tokens == self.rate.burst
    }

    /// Takes a token, or says how long until there is one.
    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        if self.fill(now) {
            self.since = now;
        }
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                Ok(())
            }
            None => Err(self.rate.refill.saturating_sub(now.duration_since(self.since))),
        }
    }
}

/// The bucket over all sources and one for each. A bucket that is full again is forgotten, and one comes into being
/// only by a token of the bucket over all: so these are few, however many sources ask.
#[derive(Debug)]
struct Buckets {
    all: Bucket,
    each: BTreeMap<Source, Bucket>,
}

impl Buckets {
    fn new(now: Instant) -> Self {
        Self { all: Bucket::full(ALL, now), each: BTreeMap::new() }
    }

    /// Takes a token of both buckets, or of none and says how long until there is one.
    fn take(&mut self, source: Source, now: Instant) -> Result<(), Duration> {
        self.each.retain(|_, bucket| !bucket.fill(now));
        let mut own = self.each.get(&source).copied().unwrap_or(Bucket::full(EACH, now));
        own.take(now)?;
        self.all.take(now)?;
        self.each.insert(source, own);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_empties_and_fills() {
        let start = Instant::now();
        let mut bucket = Bucket::full(EACH, start);
        for _ in 0..EACH.burst {
            assert!(bucket.take(start).is_ok());
        }
        assert_eq!(bucket.take(start), Err(EACH.refill));
        assert!(bucket.take(start + EACH.refill).is_ok());
        assert!(bucket.take(start + EACH.refill).is_err());
        // An hour of silence fills it once, not more.
        let later = start + Duration::from_secs(3600);
        assert_eq!((0..100).filter(|_| bucket.take(later).is_ok()).count(), EACH.burst as usize);
    }

    fn source(n: u32) -> Source {
        Source::from(std::net::IpAddr::from(std::net::Ipv4Addr::from_bits(n)))
    }

    #[test]
    fn one_source_leaves_half_of_the_quotes_to_the_others() {
        let start = Instant::now();
        let mut buckets = Buckets::new(start);
        let (mut greedy, mut honest) = (0, 0);
        // A minute of one who asks every 10 ms, and of another who asks every second.
        for tick in 0..6000 {
            let now = start + Duration::from_millis(10) * tick;
            greedy += u32::from(buckets.take(source(1), now).is_ok());
            if tick % 100 == 0 {
                assert!(buckets.take(source(2), now).is_ok(), "at {tick}");
                honest += 1;
            }
        }
        assert_eq!(honest, 60);
        assert!((300..=320).contains(&greedy), "{greedy} in a minute");
    }

    #[test]
    fn sources_without_number_are_not_kept_in_mind() {
        let start = Instant::now();
        let mut buckets = Buckets::new(start);
        let (mut granted, mut most) = (0, 0);
        for n in 0..100_000 {
            granted += u32::from(buckets.take(source(n), start + Duration::from_millis(1) * n).is_ok());
            most = most.max(buckets.each.len());
        }
        assert!((1000..=1041).contains(&granted), "{granted}: the bound over all holds");
        assert!(most <= 64, "{most}");
    }
}
