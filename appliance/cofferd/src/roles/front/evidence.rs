//! Evidence for anybody who asks.
//!
//! Without a nonce: the document behind the present certificate, as often as anybody likes. With a nonce: a fresh
//! quote over it and over the channel binding of the very connection that asked, which costs the quote device up
//! to a second, so these are counted and queued, and who comes too often is told when to come back.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Response, StatusCode};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use cofferdam_attest::claims::Claims;
use cofferdam_attest::evidence::{Collateral, Evidence, MAX_BYTES, MEDIA_TYPE};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::{foreign, reply};
use crate::roles::clock::Moment;
use crate::roles::evidence::{AskError, EvidenceRequest, ask};

/// Fresh quotes that may be under way or waiting: the evidence role serves one at a time, about one a second.
const QUEUE: usize = 6;

/// Fresh quotes in one burst, for instance by a script that checks every published port.
const BURST: u32 = 20;

/// One more fresh quote is allowed after so long. Above what the stock driver can do, so the queue decides
/// on real hardware and this bound on a fast device.
const REFILL: Duration = Duration::from_millis(200);

/// The nonce in the query: URL-safe alphabet, padding as the client likes.
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Where evidence is handed out.
#[derive(Debug)]
pub(crate) struct Desk {
    socket: PathBuf,
    collateral: PathBuf,
    current: RwLock<Option<(Evidence, Moment)>>,
    bucket: Mutex<Bucket>,
    queue: Semaphore,
}

impl Desk {
    /// A desk that asks the evidence role at `socket` and adds the collateral in that file when there is some.
    pub(crate) fn new(socket: PathBuf, collateral: PathBuf) -> Self {
        Self {
            socket,
            collateral,
            current: RwLock::new(None),
            bucket: Mutex::new(Bucket { tokens: BURST, since: Instant::now() }),
            queue: Semaphore::new(QUEUE),
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
    pub(crate) async fn answer(&self, query: Option<&str>, channel_binding: &[u8; 32]) -> Response<Body> {
        match parse_query(query) {
            Err(reason) => reply::error(
                StatusCode::BAD_REQUEST,
                reason,
                Some("ask with ?nonce=<base64url of 16 to 64 random bytes>, or without a query"),
            ),
            Ok(None) => self.present(),
            Ok(Some(nonce)) => self.fresh(&nonce, channel_binding).await,
        }
    }

    fn present(&self) -> Response<Body> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        match current {
            Some((evidence, expires)) if !expires.has_come() => self.document(evidence),
            _ => reply::later(StatusCode::SERVICE_UNAVAILABLE, "there is no valid evidence now", 1),
        }
    }

    async fn fresh(&self, nonce: &[u8], channel_binding: &[u8; 32]) -> Response<Body> {
        let wait = self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
        if let Err(wait) = wait {
            let seconds = wait.as_secs().saturating_add(1);
            return reply::later(
                StatusCode::TOO_MANY_REQUESTS,
                "too many fresh quotes are asked for",
                seconds,
            );
        }
        let Ok(_place) = self.queue.try_acquire() else {
            let text = "too many fresh quotes are under way";
            return reply::later(StatusCode::SERVICE_UNAVAILABLE, text, 2);
        };
        let request = EvidenceRequest {
            nonce: Some(STANDARD.encode(nonce)),
            channel_binding: Some(STANDARD.encode(channel_binding)),
        };
        match self.fetch(&request).await {
            Ok((evidence, _)) => self.document(evidence),
            Err(error) => reply::later(StatusCode::SERVICE_UNAVAILABLE, &error.to_string(), 1),
        }
    }

    /// The document with the collateral that is known now, as long as both fit the format's bound.
    fn document(&self, mut evidence: Evidence) -> Response<Body> {
        let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX);
        evidence.collateral =
            foreign::read(&self.collateral, limit).and_then(|bytes| Collateral::parse(&bytes).ok());
        let mut body = evidence.to_json();
        if body.len() > MAX_BYTES {
            evidence.collateral = None;
            body = evidence.to_json();
        }
        reply::typed(StatusCode::OK, body, MEDIA_TYPE)
    }
}

/// The nonce of the query, when there is one.
fn parse_query(query: Option<&str>) -> Result<Option<Vec<u8>>, &'static str> {
    let Some(query) = query else { return Ok(None) };
    let value = query.strip_prefix("nonce=").ok_or("the query is not `nonce=…`")?;
    // 64 bytes are 88 characters with padding, which a client may have percent-encoded.
    if value.len() > 96 {
        return Err("the nonce is longer than 64 bytes");
    }
    let value = value.replace("%3D", "=").replace("%3d", "=");
    let nonce = URL_SAFE.decode(value).map_err(|_| "the nonce is not base64url")?;
    if (16..=64).contains(&nonce.len()) {
        Ok(Some(nonce))
    } else {
        Err("the nonce is not 16 to 64 bytes long")
    }
}

/// A token bucket on the monotonic clock.
#[derive(Debug)]
struct Bucket {
    tokens: u32,
    since: Instant,
}

impl Bucket {
    /// Takes a token, or says how long until there is one.
    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        while self.tokens < BURST && now.duration_since(self.since) >= REFILL {
            self.tokens = self.tokens.saturating_add(1);
            self.since += REFILL;
        }
        if self.tokens == BURST {
            self.since = now;
        }
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                Ok(())
            }
            None => Err(REFILL.saturating_sub(now.duration_since(self.since))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_one_nonce_or_nothing() {
        assert_eq!(parse_query(None), Ok(None));
        assert_eq!(parse_query(Some("nonce=AAAAAAAAAAAAAAAAAAAAAA")), Ok(Some(vec![0; 16])));
        assert_eq!(parse_query(Some("nonce=AAAAAAAAAAAAAAAAAAAAAA==")), Ok(Some(vec![0; 16])));
        assert_eq!(parse_query(Some("nonce=AAAAAAAAAAAAAAAAAAAAAA%3D%3D")), Ok(Some(vec![0; 16])));
        let long = format!("nonce={}", "A".repeat(87));
        for bad in [
            "",
            "nonce",
            "nonce=",
            "nonce=AAAA",
            "nonce=+/+/AAAAAAAAAAAAAAAAAA",
            "nonce=AAAAAAAAAAAAAAAAAAAAAA&nonce=AAAAAAAAAAAAAAAAAAAAAA",
            "x=1&nonce=AAAAAAAAAAAAAAAAAAAAAA",
            long.as_str(),
        ] {
            assert!(parse_query(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_bucket_empties_and_fills() {
        let start = Instant::now();
        let mut bucket = Bucket { tokens: BURST, since: start };
        for _ in 0..BURST {
            assert!(bucket.take(start).is_ok());
        }
        assert_eq!(bucket.take(start), Err(REFILL));
        assert!(bucket.take(start + REFILL).is_ok());
        assert!(bucket.take(start + REFILL).is_err());
        // An hour of silence fills it once, not more.
        let later = start + Duration::from_secs(3600);
        assert_eq!((0..100).filter(|_| bucket.take(later).is_ok()).count(), usize::try_from(BURST).unwrap());
    }
}
