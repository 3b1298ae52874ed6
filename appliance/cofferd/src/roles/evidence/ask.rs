//! The other end of the evidence socket: how `front` and `publish` ask.

use std::path::Path;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use cofferdam_attest::claims::Claims;
use cofferdam_attest::evidence::{Evidence, MAX_BYTES};
use cofferdam_protocol::evidence::{EvidenceRequest, ROUTE};
use cofferdam_protocol::json;
use cofferdam_protocol::reply::ErrorReply;

use crate::system::client::{self, ClientError};

/// How long an answer may take: the queue in front of the device, then the device.
const LIMIT: Duration = Duration::from_secs(30);

/// Why there is no evidence now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// The evidence role cannot be asked.
    #[error("the evidence role does not answer")]
    Ask(#[source] ClientError),
    /// The evidence role has none.
    #[error("no evidence: {0}")]
    Refused(String),
    /// The evidence role answered with something else.
    #[error("the evidence role's answer is not evidence")]
    Malformed,
}

/// Asks the evidence role for a document without collateral.
///
/// # Errors
/// When it does not answer, refuses, or answers with something that is not evidence.
pub(crate) async fn ask(socket: &Path, request: &EvidenceRequest) -> Result<(Evidence, Claims), AskError> {
    let body = json::to_vec(request).map_err(|_| AskError::Malformed)?;
    let (status, body) =
        client::request(socket, Method::POST, ROUTE, body, MAX_BYTES, LIMIT).await.map_err(AskError::Ask)?;
    if status != StatusCode::OK {
        let refusal = ErrorReply::parse(&body);
        return Err(AskError::Refused(refusal.map_or_else(|_| status.to_string(), |refusal| refusal.error)));
    }
    let evidence = Evidence::parse(&body).map_err(|_| AskError::Malformed)?;
    let claims = Claims::decode(&evidence.claims).map_err(|_| AskError::Malformed)?;
    Ok((evidence, claims))
}
