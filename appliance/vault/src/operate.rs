//! An operator's request: authenticate, then carry out.
//!
//! | request | answer |
//! |---|---|
//! | `PUT /v1/secrets/{ns}/{name}/{field}` | 200 with the entry |
//! | `GET /v1/secrets` | 200 with the list |
//! | `DELETE /v1/secrets/{ns}/{name}/{field}` | 204 |
//! | `GET /v1/status`, `GET /v1/logs` | 204: allowed; the front serves them itself |
//!
//! Paths are accepted with and without the prefix of the operator API. Signed is what the operator sent, so a path
//! that is not the signed one fails before it is looked at.
//!
//! A request that changes something is carried out once. The signature binds it to one connection, but the
//! front says which connection that is; a front that has been taken over could otherwise replay an old
//! `PUT` and bring an old secret back.

use axum::http::StatusCode;
use cofferdam_protocol::operator::{LOGS, MAX_TARGET, PREFIX, SEAL_TAG, SECRETS, STATUS, SealedSecret};
use cofferdam_protocol::reply::ErrorReply;
use cofferdam_protocol::vault::{OperatorRequest, SecretEntry, SecretsReply};
use cofferdam_protocol::{Fingerprint, SECRET_SCHEME, SecretRef, Timestamp, WordError, json};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::audit::{Audit, Operation};
use crate::operators::{AuthenticationError, Signed};
use crate::store::{Entry, MAX_VALUE, RequestId};
use crate::{DiskError, StoreError, Vault};

/// What the operator gets: a status and, unless it is 204, a JSON body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// The JSON body; empty with 204.
    pub body: Vec<u8>,
}

/// A request that is not carried out, as the status, what is wrong, and what to do about it.
struct Refusal(StatusCode, String, Option<&'static str>);

/// What a request asks for, once it is known.
enum Verb {
    Put(SecretRef),
    List,
    Remove(SecretRef),
    Allow,
}

impl Vault {
    /// Carries out one operator's request that the peer with this uid relays.
    pub fn operate(&self, uid: u32, request: &OperatorRequest) -> Answer {
        let mut event =
            Audit { uid, operation: Operation::Authenticate, operator: None, references: &[], status: 0 };
        let mut subject = Vec::new();
        let mut operator = None;
        let outcome = self.authenticate(uid, request).and_then(|fingerprint| {
            operator = Some(fingerprint);
            let verb = route(&request.method, &request.path)?;
            (event.operation, subject) = match &verb {
                Verb::Put(reference) => (Operation::Put, vec![reference.clone()]),
                Verb::List => (Operation::List, Vec::new()),
                Verb::Remove(reference) => (Operation::Remove, vec![reference.clone()]),
                Verb::Allow => (Operation::Allow, Vec::new()),
            };
            self.carry_out(&verb, request)
        });
        let answer = outcome.unwrap_or_else(Refusal::into_answer);
        self.audit(&Audit { operator, references: &subject, status: answer.status.as_u16(), ..event });
        answer
    }

    /// Returns the operator's fingerprint.
    fn authenticate(&self, uid: u32, request: &OperatorRequest) -> Result<Fingerprint, Refusal> {
        if uid != self.rules.front_uid {
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
        let operator =
            self.rules.operators.authenticate(&request.key, &request.signature, signed).map_err(|error| {
                let hint = match error {
                    AuthenticationError::UnknownKey => "use a key listed under operators in cofferdam.yaml",
                    AuthenticationError::Signature => {
                        "sign each request anew for the connection that carries it"
                    }
                };
                Refusal(StatusCode::UNAUTHORIZED, error.to_string(), Some(hint))
            })?;
        Ok(operator.fingerprint)
    }

    fn carry_out(&self, verb: &Verb, request: &OperatorRequest) -> Result<Answer, Refusal> {
        let id: RequestId = Sha256::digest(request.signature.as_bytes()).into();
        match verb {
            Verb::Allow => Ok(Answer::empty()),
            Verb::List => {
                let secrets = self.store.list().into_iter().map(describe).collect();
                Answer::json(StatusCode::OK, &SecretsReply { secrets })
            }
            Verb::Put(reference) => {
                let entry = self.put(reference, request.body.as_bytes(), &id)?;
                Answer::json(StatusCode::OK, &describe(entry))
            }
            Verb::Remove(reference) => {
                self.store.remove(reference, &id).map_err(refuse)?;
                Ok(Answer::empty())
            }
        }
    }

    fn put(&self, reference: &SecretRef, body: &[u8], id: &RequestId) -> Result<Entry, Refusal> {
        let sealed = SealedSecret::parse(body).map_err(|_| {
            Refusal(
                StatusCode::BAD_REQUEST,
                "the body is not a sealed secret".into(),
                Some("use coffer secret put"),
            )
        })?;
        if sealed.ciphertext.as_bytes().len() > MAX_VALUE + SEAL_TAG {
            return Err(refuse(StoreError::TooLong));
        }
        let secret = self.store.keys().unseal(reference, &sealed).map_err(|error| {
            Refusal(
                StatusCode::BAD_REQUEST,
                error.to_string(),
                Some("the appliance may have been started anew: verify it again and seal to its present vault_key"),
            )
        })?;
        let visible = secret.expose().iter().filter(|byte| !matches!(byte, b'\n' | b'\r')).count();
        if visible < self.rules.min_value {
            return Err(Refusal(
                StatusCode::BAD_REQUEST,
                format!("the value is shorter than {} bytes, not counting line breaks", self.rules.min_value),
                Some("a value that short cannot be kept out of a workload's output: use a longer one"),
            ));
        }
        let entry = self.store.put(&secret, (self.clock)(), id).map_err(refuse)?;
        self.changed.notify_waiters();
        Ok(entry)
    }
}

impl Answer {
    fn empty() -> Self {
        Self { status: StatusCode::NO_CONTENT, body: Vec::new() }
    }

    fn json(status: StatusCode, body: &impl Serialize) -> Result<Self, Refusal> {
        match json::to_vec(body) {
            Ok(body) => Ok(Self { status, body }),
            Err(_) => {
                Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, "the answer cannot be written".into(), None))
            }
        }
    }
}

impl Refusal {
    fn into_answer(self) -> Answer {
        match json::to_vec(&ErrorReply::new(self.1, self.2)) {
            Ok(body) => Answer { status: self.0, body },
            // Two strings always serialise; were that to fail, an answer without words is still a refusal.
            Err(_) => Answer { status: StatusCode::INTERNAL_SERVER_ERROR, body: Vec::new() },
        }
    }
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

fn route(method: &str, path_and_query: &str) -> Result<Verb, Refusal> {
    let (path, query) = match path_and_query.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path_and_query, None),
    };
    let path = path.strip_prefix(PREFIX).unwrap_or(path);
    let not_found = || Refusal(StatusCode::NOT_FOUND, "there is no such resource".into(), None);
    let not_allowed =
        || Refusal(StatusCode::METHOD_NOT_ALLOWED, "the resource does not have this method".into(), None);
    match (path, query) {
        (STATUS | LOGS, _) => match method {
            "GET" => Ok(Verb::Allow),
            _ => Err(not_allowed()),
        },
        (SECRETS, None) => match method {
            "GET" => Ok(Verb::List),
            _ => Err(not_allowed()),
        },
        (path, None) => {
            let name =
                path.strip_prefix(SECRETS).and_then(|rest| rest.strip_prefix('/')).ok_or_else(not_found)?;
            let reference: SecretRef = format!("{SECRET_SCHEME}{name}")
                .parse()
                .map_err(|error: WordError| Refusal(StatusCode::BAD_REQUEST, error.message, None))?;
            match method {
                "PUT" => Ok(Verb::Put(reference)),
                "DELETE" => Ok(Verb::Remove(reference)),
                _ => Err(Refusal(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "a secret can be put and removed, not read".into(),
                    None,
                )),
            }
        }
        _ => Err(not_found()),
    }
}

/// What a failure of the store means to an operator. The cause stays inside: it is about the appliance, not the request.
fn refuse(error: StoreError) -> Refusal {
    let (status, hint) = match &error {
        StoreError::TooLong => (StatusCode::PAYLOAD_TOO_LARGE, None),
        StoreError::Full(_) | StoreError::Disk(DiskError::Full) => {
            (StatusCode::CONFLICT, Some("remove a secret that is no longer used: coffer secret rm"))
        }
        StoreError::Spent => (StatusCode::CONFLICT, Some("to repeat it, sign it anew on another connection")),
        StoreError::Missing => (StatusCode::NOT_FOUND, Some("coffer secret list shows what there is")),
        _ => (StatusCode::SERVICE_UNAVAILABLE, None),
    };
    Refusal(status, error.to_string(), hint)
}

fn describe(entry: Entry) -> SecretEntry {
    // The clock is the host's: a year beyond 9999 has no text and is shown as the epoch.
    let updated_at = Timestamp::from_unix(entry.updated_at).unwrap_or(Timestamp::EPOCH);
    SecretEntry { reference: entry.reference, version: entry.version, updated_at }
}
