//! The router while the state is closed: who may ask for what, and when an open state is handed on.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that fails panics")]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use cofferdam_attest::operator::seal_key;
use cofferdam_protocol::Fingerprint;
use cofferdam_protocol::reply::ErrorReply;
use cofferdam_protocol::unseal::{
    NewMethod, OpeningKey, SealDisk, SealStatus, Sealable as _, UnsealRequest, Witness,
};
use cofferdam_protocol::upgrade::{SignedStatement, Statement, Successor};
use cofferdam_protocol::vault::{KeyReply, OperatorRequest};
use cofferdam_vault::state::{Boot, Cost, MIN_DISK, Sealed, sealed_router};
use cofferdam_vault::{Audit, Peer};
use common::state::*;
use common::*;
use ed25519_dalek::{Signer as _, SigningKey};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;

struct Waiting {
    sealed: Arc<Sealed>,
    router: Router,
    lines: Arc<Mutex<Vec<String>>>,
}

fn start(disk: &SparseDisk) -> Waiting {
    start_as(disk, boot())
}

fn start_as(disk: &SparseDisk, boot: Boot) -> Waiting {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = lines.clone();
    let audit = move |event: &Audit<'_>| sink.lock().unwrap().push(event.to_string());
    let sealed = Sealed::find(disk.clone(), boot, operators(), FRONT, audit).unwrap();
    let sealed = Arc::new(sealed.with_cost(Cost::new(8192, 1).unwrap()));
    Waiting { router: sealed_router(sealed.clone()), sealed, lines }
}

impl Waiting {
    async fn send(&self, uid: u32, method: &str, path: &str, body: impl Into<Body>) -> (StatusCode, Bytes) {
        let mut request = Request::builder().method(method).uri(path).body(body.into()).unwrap();
        request.extensions_mut().insert(Peer { uid });
        let response = TowerToHyperService::new(self.router.clone()).call(request).await.unwrap();
        let status = response.status();
        // A copy: the bytes themselves are held as an answer that is not written.
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, Bytes::copy_from_slice(&body))
    }

    async fn relay(&self, uid: u32, request: &OperatorRequest) -> (StatusCode, Bytes) {
        self.send(uid, "POST", "/v1/operator", serde_json::to_vec(request).unwrap()).await
    }

    async fn ask(&self, method: &str, path: &str, body: &[u8]) -> (StatusCode, Bytes) {
        let path = format!("/.well-known/cofferdam{path}");
        self.relay(FRONT, &signed(method, &path, body, &id())).await
    }

    fn sealed_body(&self, request: &UnsealRequest) -> Vec<u8> {
        let sealed = seal_key(&self.sealed.public_key(), &request.write().unwrap()).unwrap();
        serde_json::to_vec(&sealed).unwrap()
    }

    async fn unseal(&self, request: &UnsealRequest) -> (StatusCode, Bytes) {
        self.ask("POST", "/v1/unseal", &self.sealed_body(request)).await
    }

    /// The same by somebody who tries again while they are told to wait.
    async fn unseal_patiently(&self, request: &UnsealRequest) -> (StatusCode, Bytes) {
        let until = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            let answer = self.unseal(request).await;
            if answer.0 != StatusCode::TOO_MANY_REQUESTS {
                return answer;
            }
            assert!(tokio::time::Instant::now() < until, "{}", error(&answer.1));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn last_line(&self) -> String {
        self.lines.lock().unwrap().last().unwrap().clone()
    }
}

fn status(body: &[u8]) -> SealStatus {
    serde_json::from_slice(body).unwrap()
}

fn error(body: &[u8]) -> String {
    serde_json::from_slice::<ErrorReply>(body).unwrap().error
}

#[tokio::test]
async fn a_state_is_made_and_then_opened_by_an_operator() {
    let disk = SparseDisk::new(MIN_DISK);
    let waiting = start(&disk);
    let (code, body) = waiting.ask("GET", "/v1/seal", b"").await;
    assert_eq!((code, status(&body).disk), (StatusCode::OK, SealDisk::Blank));
    let (code, body) = waiting.unseal(&create_request()).await;
    assert_eq!((code, status(&body).disk), (StatusCode::OK, SealDisk::Open));
    assert!(waiting.last_line().starts_with("audit: create-state uid=102 status=200 operator=SHA256:"));
    let made = waiting.sealed.opened().await;
    assert!(made.fresh);

    let waiting = start(&disk);
    let (code, body) = waiting.unseal(&passphrase("correct horse battery stapler")).await;
    assert_eq!(
        (code, error(&body)),
        (StatusCode::FORBIDDEN, "the passphrase does not open the state".into())
    );
    assert!(waiting.last_line().starts_with("audit: open-state uid=102 status=403 "));
    let (code, body) = waiting.unseal(&passphrase(PASSPHRASE)).await;
    assert_eq!(code, StatusCode::TOO_MANY_REQUESTS, "{}", error(&body));
    tokio::time::sleep(Duration::from_millis(status(&waiting.ask("GET", "/v1/seal", b"").await.1).wait_ms))
        .await;
    let (code, _) = waiting.unseal(&passphrase(PASSPHRASE)).await;
    assert_eq!(code, StatusCode::OK);
    let opened = waiting.sealed.opened().await;
    assert_eq!(opened.keys.vault.expose(), made.keys.vault.expose());
    let (code, body) = waiting.unseal(&passphrase(PASSPHRASE)).await;
    assert_eq!((code, error(&body)), (StatusCode::CONFLICT, "the state is open".into()));
}

/// Which refusals say "checked and false", which "not allowed", and which that the state stays sealed.
#[tokio::test]
async fn a_state_of_another_image_is_opened_with_a_statement_of_its_operator() {
    let disk = made();
    let mut next = boot();
    next.rtmr[2] = [0xB2; 48];
    let waiting = start_as(&disk, next.clone());
    let before = disk.copy();
    let statement = |version: u64, rtmr2: [u8; 48], key: &SigningKey| {
        let [_, rtmr1, _] = next.rtmr;
        let operators = vec![operator_key().verifying_key().to_bytes().into()];
        let to = Successor { repository: next.repository.clone(), mrtd: next.mrtd, rtmr1, rtmr2, operators };
        let statement = Statement { version, from: next.repository.clone(), to };
        let signature = key.sign(&statement.signing_input().unwrap()).to_bytes().into();
        let key = Fingerprint::of(&key.verifying_key().to_bytes());
        Some(Box::new(SignedStatement { statement, key, signature }))
    };
    let request = |upgrade| {
        let key = OpeningKey::Recovery { recovery: secret_bytes(RECOVERY) };
        UnsealRequest::Open { key, at_least: 0, witness: Witness::default(), upgrade }
    };
    let (own, stranger) = (operator_key(), SigningKey::from_bytes(&[4; 32]));
    let mut changed = statement(2, [0xB2; 48], &own);
    changed.as_mut().unwrap().statement.version = 3;
    for (upgrade, code, words, verb) in [
        (None, 503, "the state was sealed by another image", "open-state"),
        (statement(2, [0xB2; 48], &stranger), 403, "no operator of the state", "upgrade-state"),
        (changed, 403, "does not match", "upgrade-state"),
        (statement(1, [0xB2; 48], &own), 412, "the state is at version 1 already", "upgrade-state"),
        (statement(2, [0xB3; 48], &own), 412, "lets another image open the state", "upgrade-state"),
    ] {
        let (found, body) = waiting.unseal(&request(upgrade)).await;
        assert_eq!(found.as_u16(), code, "{words}");
        let reply: ErrorReply = serde_json::from_slice(&body).unwrap();
        assert!(reply.error.contains(words) && reply.hint.is_some(), "{reply:?}");
        assert!(waiting.last_line().starts_with(&format!("audit: {verb} uid=102 status={code} operator=")));
    }
    assert!(disk.same(&before), "no attempt was made");
    let status = status(&waiting.ask("GET", "/v1/seal", b"").await.1);
    assert!(status.lineage.unwrap().needs_statement.unwrap().contains("RTMR2"));
    let (found, _) = waiting.unseal(&request(statement(2, [0xB2; 48], &own))).await;
    assert_eq!(found, StatusCode::OK);
    assert_eq!(waiting.sealed.opened().await.lineage, 2);
}

#[tokio::test]
async fn nobody_but_an_operator_over_the_front_can_try() {
    let disk = made();
    let before = disk.copy();
    let waiting = start(&disk);
    let body = waiting.sealed_body(&recovery(&RECOVERY));
    let path = "/.well-known/cofferdam/v1/unseal";
    let good = signed("POST", path, &body, &id());
    for uid in [0, 101, 103, SERVICE, u32::MAX] {
        assert_eq!(waiting.relay(uid, &good).await.0, StatusCode::FORBIDDEN, "{uid}");
    }
    let stranger = signed_by(&SigningKey::from_bytes(&[4; 32]), "POST", path, &body, &id());
    assert_eq!(waiting.relay(FRONT, &stranger).await.0, StatusCode::UNAUTHORIZED);
    let mut moved = good.clone();
    moved.channel_binding = [1; 32].into();
    assert_eq!(waiting.relay(FRONT, &moved).await.0, StatusCode::UNAUTHORIZED);
    assert!(waiting.last_line().starts_with("audit: authenticate uid=102 status=401"));
    // Sealed to the key of another start, or no sealed request at all.
    let other = start(&disk).sealed_body(&recovery(&RECOVERY));
    for body in [other.as_slice(), b"{}", b"", b"not JSON"] {
        let (code, body) = waiting.ask("POST", "/v1/unseal", body).await;
        assert_eq!(code, StatusCode::BAD_REQUEST, "{}", error(&body));
    }
    assert!(waiting.last_line().starts_with("audit: unseal uid=102 status=400 operator="));
    assert!(disk.same(&before), "none of it counts as an attempt");
    assert_eq!(waiting.relay(FRONT, &good).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_request_is_carried_out_once() {
    let (disk, shares) = made_with_shares();
    let waiting = start(&disk);
    let body = waiting.sealed_body(&share(SET, 1, &*shares[0].bytes));
    let request = signed("POST", "/v1/unseal", &body, &id());
    assert_eq!(waiting.relay(FRONT, &request).await.0, StatusCode::OK);
    assert!(waiting.last_line().starts_with("audit: give-share uid=102 status=200"));
    let (code, body) = waiting.relay(FRONT, &request).await;
    assert_eq!((code, error(&body)), (StatusCode::CONFLICT, "this request was already carried out".into()));
}

#[tokio::test]
async fn nothing_else_is_served_while_the_state_is_closed() {
    let waiting = start(&made());
    let (code, body) = waiting.send(SERVICE, "GET", "/v1/key", "").await;
    let key: KeyReply = serde_json::from_slice(&body).unwrap();
    assert_eq!((code, *key.public_key.as_bytes()), (StatusCode::OK, waiting.sealed.public_key()));
    assert_ne!(start(&made()).sealed.public_key(), waiting.sealed.public_key(), "another one each time");
    let lease = r#"{"references":["secret://app/db/password"]}"#;
    let (code, body) = waiting.send(SERVICE, "POST", "/v1/lease", lease).await;
    assert_eq!((code, error(&body)), (StatusCode::SERVICE_UNAVAILABLE, "the state is sealed".into()));
    for (method, path, expected) in [
        ("GET", "/v1/status", 204),
        ("GET", "/v1/logs?service=web", 204),
        ("GET", "/v1/secrets", 503),
        ("PUT", "/v1/secrets/app/db/password", 503),
        ("DELETE", "/v1/secrets/app/db/password", 503),
        ("POST", "/v1/seal", 405),
        ("GET", "/v1/unseal", 405),
        ("POST", "/v1/status", 405),
        ("GET", "/v1/seal?x", 404),
        ("GET", "/v1/secretsx", 404),
        ("GET", "/v1/other", 404),
    ] {
        assert_eq!(waiting.ask(method, path, b"").await.0.as_u16(), expected, "{method} {path}");
    }
    assert_eq!(waiting.send(SERVICE, "GET", "/v1/other", "").await.0, StatusCode::NOT_FOUND);
    assert_eq!(waiting.send(SERVICE, "GET", "/v1/lease", "").await.0, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn the_state_is_handed_on_when_the_answer_is_written() {
    let disk = made();
    let waiting = start(&disk);
    let body = waiting.sealed_body(&recovery(&RECOVERY));
    let body = serde_json::to_vec(&signed("POST", "/v1/unseal", &body, &id())).unwrap();
    let mut request = Request::post("/v1/operator").body(Body::from(body)).unwrap();
    request.extensions_mut().insert(Peer { uid: FRONT });
    let response = TowerToHyperService::new(waiting.router.clone()).call(request).await.unwrap();
    let sealed = waiting.sealed.clone();
    let opened = tokio::spawn(async move { sealed.opened().await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!opened.is_finished(), "the answer is not written");
    drop(response);
    assert!(!tokio::time::timeout(Duration::from_secs(1), opened).await.unwrap().unwrap().fresh);
    assert_eq!(waiting.lines.lock().unwrap().len(), 1);
}

/// Whoever asked goes away in the middle: the attempt is made to its end, and is on record.
#[tokio::test]
async fn an_attempt_does_not_end_with_its_connection() {
    let waiting = start(&made());
    let body = waiting.sealed_body(&passphrase(PASSPHRASE));
    let request = serde_json::to_vec(&signed("POST", "/v1/unseal", &body, &id())).unwrap();
    let asked = waiting.send(FRONT, "POST", "/v1/operator", request);
    assert!(tokio::time::timeout(Duration::from_millis(2), asked).await.is_err(), "too fast to be left");
    assert!(!waiting.sealed.opened().await.fresh);
    assert!(waiting.last_line().starts_with("audit: open-state uid=102 status=200"));
}

#[tokio::test]
async fn two_operators_who_are_right_at_once_open_or_make_the_state_once() {
    let disk = made();
    let waiting = start(&disk);
    let (one, other) = (passphrase(PASSPHRASE), recovery(&RECOVERY));
    let answers = tokio::join!(waiting.unseal_patiently(&one), waiting.unseal_patiently(&other));
    let (first, second) = if answers.0.0 == StatusCode::OK { answers } else { (answers.1, answers.0) };
    assert_eq!((first.0, status(&first.1).disk), (StatusCode::OK, SealDisk::Open));
    assert_eq!((second.0, error(&second.1)), (StatusCode::CONFLICT, "the state is open".into()));
    assert!(!waiting.sealed.opened().await.fresh);

    // On a blank disk: one of them makes it, and only their recovery key opens it.
    let disk = SparseDisk::new(MIN_DISK);
    let waiting = start(&disk);
    let create = |recovery: [u8; 32]| UnsealRequest::Create {
        method: NewMethod::Passphrase { passphrase: secret_bytes(PASSPHRASE) },
        recovery: secret_bytes(recovery),
        witness: Witness::default(),
    };
    let keys = [[0x61; 32], [0x62; 32]];
    let (one, other) = (create(keys[0]), create(keys[1]));
    let (one, other) = tokio::join!(waiting.unseal_patiently(&one), waiting.unseal_patiently(&other));
    let mut codes = [one.0, other.0];
    let (own, foreign) = if codes[0] == StatusCode::OK { (keys[0], keys[1]) } else { (keys[1], keys[0]) };
    codes.sort();
    assert_eq!(codes, [StatusCode::OK, StatusCode::CONFLICT]);
    assert!(waiting.sealed.opened().await.fresh);
    assert_eq!(start(&disk.copy()).unseal(&recovery(&foreign)).await.0, StatusCode::FORBIDDEN);
    assert_eq!(start(&disk).unseal(&recovery(&own)).await.0, StatusCode::OK);
}

#[tokio::test]
async fn who_is_wrong_does_not_take_the_shares_that_others_give() {
    let (disk, shares) = made_with_shares();
    let waiting = start(&disk);
    let give = |index: usize| share(SET, shares[index].index, &*shares[index].bytes);
    let (wrong, one, other) = (recovery(&[9; 32]), give(0), give(1));
    let answers = tokio::join!(
        waiting.unseal_patiently(&wrong),
        waiting.unseal_patiently(&one),
        waiting.unseal_patiently(&other)
    );
    let codes = (answers.0.0, answers.1.0, answers.2.0);
    assert_eq!(codes, (StatusCode::FORBIDDEN, StatusCode::OK, StatusCode::OK));
    assert_eq!(status(&answers.2.1).disk, SealDisk::Sealed);
    // The wait after a wrong attempt is everybody's; the shares that were given stay.
    let (code, body) = waiting.unseal_patiently(&give(2)).await;
    assert_eq!((code, status(&body).disk), (StatusCode::OK, SealDisk::Open));
    assert!(!waiting.sealed.opened().await.fresh);
}
