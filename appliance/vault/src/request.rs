//! What all operators' requests have in common: who relayed one, who signed it, where it goes, and what an answer is.
//!
//! It never looks at what a request asks for: that is [`crate::Vault`]'s, and of a closed state [`crate::state`]'s.

use axum::http::StatusCode;
use cofferdam_protocol::operator::{MAX_TARGET, PREFIX};
use cofferdam_protocol::reply::ErrorReply;
use cofferdam_protocol::vault::OperatorRequest;
use cofferdam_protocol::{Fingerprint, json};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::operators::{AuthenticationError, Operators, Signed};
use crate::store::RequestId;

/// What the operator gets: a status and, unless it is 204, a JSON body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// The JSON body; empty with 204.
    pub body: Vec<u8>,
}

/// A request that is not carried out, as the status, what is wrong, and what to do about it.
pub(crate) struct Refusal(pub(crate) StatusCode, pub(crate) String, pub(crate) Option<&'static str>);

impl Answer {
    pub(crate) fn empty() -> Self {
        Self { status: StatusCode::NO_CONTENT, body: Vec::new() }
    }

    pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Result<Self, Refusal> {
        match json::to_vec(body) {
            Ok(body) => Ok(Self { status, body }),
            Err(_) => {
                Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, "the answer cannot be written".into(), None))
            }
        }
    }
}

impl Refusal {
    pub(crate) fn not_found() -> Self {
        Self(StatusCode::NOT_FOUND, "there is no such resource".into(), None)
    }

    pub(crate) fn not_allowed() -> Self {
        Self(StatusCode::METHOD_NOT_ALLOWED, "the resource does not have this method".into(), None)
    }

    pub(crate) fn into_answer(self) -> Answer {
        match json::to_vec(&ErrorReply::new(self.1, self.2)) {
            Ok(body) => Answer { status: self.0, body },
            // Two strings always serialise; were that to fail, an answer without words is still a refusal.
            Err(_) => Answer { status: StatusCode::INTERNAL_SERVER_ERROR, body: Vec::new() },
        }
    }
}

/// Finds out which operator sent a request that the peer with this uid relays.
pub(crate) fn authenticate(
    operators: &Operators,
    front_uid: u32,
    uid: u32,
    request: &OperatorRequest,
) -> Result<Fingerprint, Refusal> {
    if uid != front_uid {
        return Err(Refusal(
            StatusCode::FORBIDDEN,
            "this peer may not relay operator requests".into(),
            Some("operators speak to the appliance's endpoint"),
        ));
    }
    check_target(request)?;
    let signed = Signed {
        method: &request.method,
        path: &request.path,
        body: request.body.as_bytes(),
        channel_binding: request.channel_binding.as_bytes(),
    };
    let operator = operators.authenticate(&request.key, &request.signature, signed).map_err(|error| {
        let hint = match error {
            AuthenticationError::UnknownKey => "use a key listed under operators in cofferdam.yaml",
            AuthenticationError::Signature => "sign each request anew for the connection that carries it",
        };
        Refusal(StatusCode::UNAUTHORIZED, error.to_string(), Some(hint))
    })?;
    Ok(operator.fingerprint)
}

/// Identifies a request, so that it is carried out at most once.
pub(crate) fn id(request: &OperatorRequest) -> RequestId {
    Sha256::digest(request.signature.as_bytes()).into()
}

/// Path and query, the path without the prefix of the operators' interface.
pub(crate) fn target(path_and_query: &str) -> (&str, Option<&str>) {
    let (path, query) = match path_and_query.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path_and_query, None),
    };
    (path.strip_prefix(PREFIX).unwrap_or(path), query)
}

/// Checks shape and bound of what is signed as text before anything is verified.
fn check_target(request: &OperatorRequest) -> Result<(), Refusal> {
    let bad = |what: &str| Refusal(StatusCode::BAD_REQUEST, format!("{what} is malformed"), None);
    let path_is_plain =
        request.path.starts_with('/') && request.path.bytes().all(|byte| byte.is_ascii_graphic());
    if !path_is_plain || request.path.len() > MAX_TARGET {
        return Err(bad("path"));
    }
    match request.method.as_str() {
        "GET" | "PUT" | "DELETE" | "POST" | "HEAD" | "PATCH" | "OPTIONS" => Ok(()),
        _ => Err(bad("method")),
    }
}
