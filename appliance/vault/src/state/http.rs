//! The vault's HTTP interface while the state is closed: the key, and what operators ask for.
//!
//! | request of an operator | answer |
//! |---|---|
//! | `GET /v1/seal` | 200 with the status |
//! | `POST /v1/unseal` | 200 with the status |
//! | `GET /v1/status`, `GET /v1/logs` | 204: allowed; the front serves them itself |
//! | anything about secrets | 503: the state is sealed |
//!
//! `publish` brings what a key server says with `POST /v1/peer`; who it is the kernel says.
//!
//! Operators are authenticated as always, before anything else of a request is looked at. Each request is one event, written before its
//! effect shows: an open state is handed on after that.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use cofferdam_protocol::keyserve::{PEER, PeerNews};
use cofferdam_protocol::operator::{LOGS, SECRETS, SERVICES, STATUS};
use cofferdam_protocol::reply::JSON;
use cofferdam_protocol::unseal::{OpeningKey, SEAL, SealedKey, UNSEAL, UnsealRequest};
use cofferdam_protocol::vault::{KEY, KeyReply, LEASE, OPERATOR, OperatorRequest};

use super::{LineageError, Opened, Sealed, StateError};
use crate::audit::{Audit, Operation};
use crate::request::{self, Answer, Refusal};
use crate::router::{json, problem, read};
use crate::{DiskError, Peer, StoreError, VolumeError};

const SEALED: &str = "the state is sealed";
const HINT: &str = "open it: coffer unseal";

/// `GET` [`KEY`], `POST` [`OPERATOR`]; leases are refused with 503, everything else with 404 or 405.
pub fn sealed_router(sealed: Arc<Sealed>) -> Router {
    Router::new()
        .route(KEY, get(key))
        .route(LEASE, post(async || problem(StatusCode::SERVICE_UNAVAILABLE, SEALED, Some(HINT))))
        .route(OPERATOR, post(operator))
        .route(PEER, post(peer))
        .fallback(async || problem(StatusCode::NOT_FOUND, "there is no such resource", None))
        .method_not_allowed_fallback(async || {
            problem(StatusCode::METHOD_NOT_ALLOWED, "the resource does not have this method", None)
        })
        .with_state(sealed)
}

async fn key(State(sealed): State<Arc<Sealed>>) -> Response {
    json(StatusCode::OK, &KeyReply { public_key: sealed.public_key().into() })
}

async fn operator(
    State(sealed): State<Arc<Sealed>>,
    Extension(peer): Extension<Peer>,
    body: Body,
) -> Response {
    let request: OperatorRequest = match read(body).await {
        Ok(request) => request,
        Err(response) => return response,
    };
    let unwritten = Unwritten::new(&sealed);
    // In a thread of its own, and to its end: whoever asked may go away meanwhile.
    let answer = tokio::task::spawn_blocking(move || sealed.operate(peer.uid, &request)).await;
    let Ok(answer) = answer else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    if answer.body.is_empty() {
        return answer.status.into_response();
    }
    let body = Bytes::from_owner(AnswerBody { bytes: answer.body, _unwritten: unwritten });
    (answer.status, [(header::CONTENT_TYPE, JSON)], body).into_response()
}

/// 404 for everybody but the one who speaks for the key server.
async fn peer(State(sealed): State<Arc<Sealed>>, Extension(peer): Extension<Peer>, body: Body) -> Response {
    let news: PeerNews = match read(body).await {
        Ok(news) => news,
        Err(response) => return response,
    };
    // In a thread of its own: the store is read.
    let taken = tokio::task::spawn_blocking(move || sealed.peer_news(peer.uid, &news)).await;
    match taken {
        Ok(Some(Ok(reply))) => json(StatusCode::OK, &reply),
        Ok(Some(Err(error))) => {
            let Refusal(status, text, hint) = refuse(error);
            problem(status, &text, hint)
        }
        Ok(None) => problem(StatusCode::NOT_FOUND, "there is no such resource", None),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// What an operator wants, once it is known.
enum Verb {
    Status,
    Unseal,
    Allow,
}

impl Sealed {
    /// Carries out one operator's request that the peer with this uid relays. It blocks, as [`Sealed::unseal`] does.
    pub fn operate(&self, uid: u32, request: &OperatorRequest) -> Answer {
        let mut event = Audit {
            uid,
            operation: Operation::Authenticate,
            operator: None,
            references: &[],
            service: None,
            status: 0,
        };
        let authentic = request::authenticate(&self.operators, self.front_uid, uid, request);
        let outcome = authentic.and_then(|fingerprint| {
            event.operator = Some(fingerprint);
            match route(&request.method, &request.path)? {
                Verb::Allow => {
                    event.operation = Operation::Allow;
                    Ok(Reply::Empty)
                }
                Verb::Status => {
                    event.operation = Operation::SealStatus;
                    Ok(Reply::Status(None))
                }
                Verb::Unseal => {
                    let opened = self.unsealed(request, &mut event.operation);
                    opened.map(|opened| Reply::Status(opened.map(Box::new)))
                }
            }
        });
        let (reply, refused) = match outcome {
            Ok(reply) => (reply, None),
            Err(refusal) => (Reply::Empty, Some(refusal.into_answer())),
        };
        let status = match (&refused, &reply) {
            (Some(answer), _) => answer.status,
            (None, Reply::Empty) => StatusCode::NO_CONTENT,
            (None, Reply::Status(_)) => StatusCode::OK,
        };
        event.status = status.as_u16();
        self.audit(&event);
        match (refused, reply) {
            (Some(answer), _) => answer,
            (None, Reply::Empty) => Answer::empty(),
            (None, Reply::Status(opened)) => {
                Answer::json(status, &self.publish(opened.map(|opened| *opened)))
                    .unwrap_or_else(Refusal::into_answer)
            }
        }
    }

    /// Opens or makes the state and tells nobody yet.
    fn unsealed(
        &self,
        request: &OperatorRequest,
        operation: &mut Operation,
    ) -> Result<Option<Opened>, Refusal> {
        *operation = Operation::Unseal;
        let malformed = || {
            Refusal(
                StatusCode::BAD_REQUEST,
                "the body is not a sealed request to open a state".into(),
                Some("use coffer unseal; the key to seal to is another one after each boot"),
            )
        };
        let sealed = SealedKey::parse(request.body.as_bytes()).map_err(|_| malformed())?;
        let unseal = self.read(&sealed).ok_or_else(malformed)?;
        *operation = match &unseal {
            UnsealRequest::Create { .. } => Operation::CreateState,
            UnsealRequest::Open { upgrade: Some(_), .. } => Operation::UpgradeState,
            UnsealRequest::Open { key: OpeningKey::Share { .. }, .. } => Operation::GiveShare,
            UnsealRequest::Open { .. } => Operation::OpenState,
        };
        self.spend(request::id(request)).and_then(|()| self.carry_out(&unseal)).map_err(refuse)
    }
}

enum Reply {
    Empty,
    Status(Option<Box<Opened>>),
}

fn route(method: &str, path_and_query: &str) -> Result<Verb, Refusal> {
    let (path, query) = request::target(path_and_query);
    let secrets = path.strip_prefix(SECRETS).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    match (method, path, query) {
        ("GET", SEAL, None) => Ok(Verb::Status),
        ("POST", UNSEAL, None) => Ok(Verb::Unseal),
        ("GET", STATUS | LOGS, _) => Ok(Verb::Allow),
        (_, SEAL | UNSEAL, None) | (_, STATUS | LOGS, _) => Err(Refusal::not_allowed()),
        _ if secrets || path.starts_with(SERVICES) => {
            Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, SEALED.into(), Some(HINT)))
        }
        _ => Err(Refusal::not_found()),
    }
}

/// What a failure means to an operator.
pub(crate) fn refuse(error: StateError) -> Refusal {
    use StateError as E;
    let (status, hint) = match &error {
        E::WrongPassphrase | E::WrongRecovery => (
            StatusCode::FORBIDDEN,
            Some("check it; a key slot that somebody altered on the disk looks the same"),
        ),
        E::WrongShares => (
            StatusCode::FORBIDDEN,
            Some("all shares that were given are forgotten: give others, or the recovery key"),
        ),
        E::OtherSet | E::NoSuchShare { .. } | E::ShareTwice(_) => {
            (StatusCode::CONFLICT, Some("coffer seal status shows the set and how many were given"))
        }
        E::Wait { .. } => (StatusCode::TOO_MANY_REQUESTS, Some("each wrong attempt doubles the wait")),
        E::Busy => (StatusCode::TOO_MANY_REQUESTS, None),
        E::Passphrase { .. } | E::KeyLength | E::Shares { .. } => (StatusCode::BAD_REQUEST, None),
        E::NoSuchWay => (StatusCode::CONFLICT, Some("coffer seal status shows what opens it")),
        E::Blank => (StatusCode::CONFLICT, Some("coffer seal init makes a state on a blank disk")),
        E::Occupied => (StatusCode::CONFLICT, Some("open it: coffer unseal")),
        E::Open => (StatusCode::CONFLICT, None),
        E::Spent => (StatusCode::CONFLICT, Some("to repeat it, sign it anew on another connection")),
        E::OlderCopy { .. } | E::OlderSlots { .. } => {
            (StatusCode::PRECONDITION_FAILED, Some("attach the disk that the appliance ran with last"))
        }
        E::Unwitnessed => (
            StatusCode::SERVICE_UNAVAILABLE,
            Some("make GitHub reachable, or declare `state: {rollback: warn}`"),
        ),
        E::TooFewServers { .. } => (
            StatusCode::SERVICE_UNAVAILABLE,
            Some("make more of them reachable, or declare `state: {rollback: warn}`"),
        ),
        E::OtherState { .. } | E::Copied { .. } => (
            StatusCode::PRECONDITION_FAILED,
            Some("attach the disk that the appliance ran with last, and run one copy of the appliance"),
        ),
        E::NoPeer { .. } => {
            (StatusCode::SERVICE_UNAVAILABLE, Some("coffer seal status shows what stands in the way"))
        }
        E::NoKeyServer => (
            StatusCode::CONFLICT,
            Some("declare `state: {provider: peer, peers: […]}`, or make it without --peer"),
        ),
        E::PeerSignature => {
            (StatusCode::FORBIDDEN, Some("compare the declared key with what `coffer keyserve` prints"))
        }
        E::WrongPeer => (
            StatusCode::FORBIDDEN,
            Some("the key server has lost the directory that it had: bring back a copy"),
        ),
        E::Lineage(error) => refuse_lineage(error),
        E::Leftover | E::Store(StoreError::Disk(DiskError::Occupied)) => {
            (StatusCode::CONFLICT, Some("attach the right disk, or one that holds zeros only"))
        }
        E::Store(StoreError::Volume(error)) => (StatusCode::CONFLICT, Some(volume_hint(error))),
        E::Altered | E::OtherSlots | E::Store(_) => (
            StatusCode::CONFLICT,
            Some("nothing was changed: attach the disk as the appliance left it, or a copy of it"),
        ),
        _ => (StatusCode::SERVICE_UNAVAILABLE, None),
    };
    // With its causes: they are about the disk and hold nothing of a key.
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    Refusal(status, text, hint)
}

fn volume_hint(error: &VolumeError) -> &'static str {
    match error {
        VolumeError::NoRoom { .. } => {
            "nothing was changed: declare a smaller volume; those that are not declared any more keep their place"
        }
        VolumeError::SizeChanged { .. } => {
            "nothing was changed: declare the size that it has, or a volume of another name"
        }
        _ => "nothing was changed",
    }
}

fn refuse_lineage(error: &LineageError) -> (StatusCode, Option<&'static str>) {
    use LineageError as E;
    match error {
        E::OtherRepository(_) | E::OtherImage { .. } | E::OtherOperators => (
            StatusCode::SERVICE_UNAVAILABLE,
            Some(
                "an operator of the state allows it with `coffer seal allow-upgrade`; give that with `coffer unseal --upgrade FILE`",
            ),
        ),
        E::Stranger(_) => (StatusCode::FORBIDDEN, Some("coffer seal status shows whose statements count")),
        E::Signature => (StatusCode::FORBIDDEN, Some("make it anew: coffer seal allow-upgrade")),
        E::Version { .. } => (
            StatusCode::PRECONDITION_FAILED,
            Some(
                "a statement counts once; coffer seal status shows the state's version, and whether this image needs a statement",
            ),
        ),
        E::From { .. } | E::ToRepository(_) | E::ToImage { .. } | E::ToOperators => {
            (StatusCode::PRECONDITION_FAILED, Some("make one for what runs here: coffer seal allow-upgrade"))
        }
        E::OlderSheet { .. } => {
            (StatusCode::PRECONDITION_FAILED, Some("attach the disk that the appliance ran with last"))
        }
    }
}

/// Counts an answer as not written for as long as it lives.
struct Unwritten(Arc<Sealed>);

impl Unwritten {
    fn new(sealed: &Arc<Sealed>) -> Self {
        sealed.answering(true);
        Self(sealed.clone())
    }
}

impl Drop for Unwritten {
    fn drop(&mut self) {
        self.0.answering(false);
    }
}

/// The bytes of an answer, which the connection drops when it has taken them.
struct AnswerBody {
    bytes: Vec<u8>,
    _unwritten: Unwritten,
}

impl AsRef<[u8]> for AnswerBody {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
