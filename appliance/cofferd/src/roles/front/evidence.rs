//! Evidence for anybody who asks.
//!
//! Without a nonce: the document behind the present certificate. With a nonce: a fresh quote over it and over the channel binding of the very
//! connection that asked, which those who ask at the same time share (`batch`).

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use axum::body::Body;
use axum::http::{Response, StatusCode};
use cofferdam_attest::claims::Claims;
use cofferdam_attest::evidence::{Collateral, Evidence};
use cofferdam_protocol::evidence::{EvidenceRequest, MAX_DOCUMENT, MEDIA_TYPE, Nonce, parse_query};
use cofferdam_protocol::json::JsonError;

use super::batch::{BatchError, Batches};
use super::counts::Counts;
use super::{reply, untrusted_file};
use crate::roles::clock::Moment;
use crate::roles::evidence::{AskError, ask};

/// Room that is left in a document for a challenge: its path of ten nodes, nonce and binding are well under it.
const CHALLENGE_ROOM: usize = 1024;

/// Where evidence is handed out.
#[derive(Debug)]
pub(crate) struct EvidenceClient {
    socket: PathBuf,
    collateral: CollateralFile,
    current: RwLock<Option<(Evidence, Moment)>>,
    batches: Arc<Batches>,
}

impl EvidenceClient {
    /// A client that asks the evidence role at `socket` and adds the collateral in that file when there is some.
    pub(crate) fn new(socket: PathBuf, collateral: PathBuf, counts: Arc<Counts>) -> Self {
        let collateral = CollateralFile(collateral);
        let batches = Batches::new(socket.clone(), collateral.clone(), counts);
        Self { socket, collateral, current: RwLock::new(None), batches }
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
            Ok(Some(nonce)) => self.fresh(nonce, channel_binding).await,
        }
    }

    fn present(&self) -> Response<Body> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        match current {
            Some((evidence, expires)) if !expires.has_come() => {
                document(self.collateral.add(evidence).and_then(|evidence| evidence.to_json()))
            }
            _ => reply::later(StatusCode::SERVICE_UNAVAILABLE, "there is no valid evidence now", 1),
        }
    }

    async fn fresh(&self, nonce: Nonce, channel_binding: &[u8; 32]) -> Response<Body> {
        match self.batches.document(nonce, (*channel_binding).into()).await {
            Ok(body) => document(Ok(body)),
            Err(error @ BatchError::Write(_)) => {
                reply::error(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string(), None)
            }
            Err(error) => reply::later(StatusCode::SERVICE_UNAVAILABLE, &error.to_string(), 1),
        }
    }
}

fn document(body: Result<Vec<u8>, JsonError>) -> Response<Body> {
    match body {
        Ok(body) => reply::typed(StatusCode::OK, body, MEDIA_TYPE),
        Err(error) => reply::error(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string(), None),
    }
}

/// The collateral that `publish` has fetched.
#[derive(Debug, Clone)]
pub(crate) struct CollateralFile(PathBuf);

impl CollateralFile {
    /// `evidence` with the collateral that is known now, as long as both fit the format's bound, and a challenge as well.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn add(&self, mut evidence: Evidence) -> Result<Evidence, JsonError> {
        let limit = u64::try_from(MAX_DOCUMENT).unwrap_or(u64::MAX);
        let collateral = untrusted_file::contents(&self.0, limit);
        evidence.collateral = collateral.and_then(|bytes| Collateral::parse(&bytes).ok());
        if evidence.to_json()?.len().saturating_add(CHALLENGE_ROOM) > MAX_DOCUMENT {
            evidence.collateral = None;
        }
        Ok(evidence)
    }
}
