//! Operators' requests, as they arrive over a front that may have been taken over.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that fails panics")]

mod common;

use std::sync::{Arc, Mutex};

use axum::http::StatusCode;
use cofferdam_attest::operator::seal_secret;
use cofferdam_protocol::operator::{Order, OrderReply, SealedSecret};
use cofferdam_protocol::reply::ErrorReply;
use cofferdam_protocol::vault::{Affected, OperatorRequest, SecretEntry, SecretsReply, StoredReply};
use cofferdam_protocol::{Base64Bytes, Fingerprint};
use cofferdam_vault::store::MAX_VALUE;
use cofferdam_vault::{Answer, Store, Vault};
use common::*;
use ed25519_dalek::SigningKey;
use proptest::prelude::*;

const VALUE: &[u8] = b"correct horse battery staple";

fn fresh() -> Vault {
    vault(&disk())
}

fn error(answer: &Answer) -> ErrorReply {
    serde_json::from_slice(&answer.body).unwrap_or_else(|_| panic!("{answer:?} is no error"))
}

fn ask(vault: &Vault, method: &str, path: &str) -> Answer {
    vault.operate(FRONT, &signed(method, path, b"", &id()))
}

fn list(vault: &Vault) -> Vec<SecretEntry> {
    let answer = ask(vault, "GET", "/.well-known/cofferdam/v1/secrets");
    assert_eq!(answer.status, StatusCode::OK);
    serde_json::from_slice::<SecretsReply>(&answer.body).unwrap().secrets
}

#[test]
fn an_operator_puts_lists_and_removes() {
    let vault = fresh();
    let answer = put(&vault, PASSWORD, VALUE);
    assert_eq!(answer.status, StatusCode::OK);
    let stored: StoredReply = serde_json::from_slice(&answer.body).unwrap();
    let updated_at = "2023-11-14T22:13:20Z".parse().unwrap();
    let first = SecretEntry { reference: reference(PASSWORD), version: 1, updated_at };
    assert_eq!(stored.secret, first);
    let web = Affected { service: "web".into(), on_change: "restart".into() };
    assert_eq!(stored.services, [web], "and what it does to whom");
    assert_eq!(put(&vault, PASSWORD, b"another value").status, StatusCode::OK);
    let answer = put(&vault, USER, b"a user's name");
    assert_eq!(serde_json::from_slice::<StoredReply>(&answer.body).unwrap().services, []);
    let versions: Vec<_> = list(&vault).into_iter().map(|e| (e.reference.to_string(), e.version)).collect();
    assert_eq!(versions, [(PASSWORD.to_owned(), 2), (USER.to_owned(), 1)]);

    let answer = ask(&vault, "DELETE", &path(PASSWORD));
    assert_eq!((answer.status, answer.body.len()), (StatusCode::NO_CONTENT, 0));
    assert_eq!(list(&vault).len(), 1);
    let answer = ask(&vault, "DELETE", &path(PASSWORD));
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert_eq!(error(&answer).error, "there is no such secret");

    // The same without the API's prefix, when that is what was signed.
    assert_eq!(ask(&vault, "GET", "/v1/secrets").status, StatusCode::OK);
}

#[test]
fn what_the_front_serves_itself_is_allowed_with_204() {
    let vault = fresh();
    for path in ["/v1/status", "/v1/logs?service=web&tail=10", "/v1/logs", "/v1/events", "/v1/events?since=7"]
    {
        let path = format!("/.well-known/cofferdam{path}");
        let answer = ask(&vault, "GET", &path);
        assert_eq!((answer.status, answer.body.len()), (StatusCode::NO_CONTENT, 0));
        let unsigned = signed_by(&SigningKey::from_bytes(&[4; 32]), "GET", &path, b"", &id());
        assert_eq!(vault.operate(FRONT, &unsigned).status, StatusCode::UNAUTHORIZED);
    }
}

#[test]
fn a_service_is_ordered_about_by_operators_once_for_each_signature_and_audited() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = lines.clone();
    let vault = Vault::new(
        Store::create(disk(), keys(1)).unwrap(),
        rules(),
        || NOW,
        move |event| {
            sink.lock().unwrap().push(event.to_string());
        },
    );
    let path = |rest: &str| format!("/.well-known/cofferdam/v1/services/{rest}");
    let request = signed("POST", &path("web/restart"), b"", &id());
    let answer = vault.operate(FRONT, &request);
    assert_eq!(answer.status, StatusCode::OK);
    let given: OrderReply = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(given.order, Order::Restart);
    assert_ne!(given.id, 0);
    // A front that was taken over has this request, and may give it again on a connection of its choosing.
    assert_eq!(vault.operate(FRONT, &request).status, StatusCode::CONFLICT);
    assert_eq!(vault.operate(SERVICE, &request).status, StatusCode::FORBIDDEN);
    let stranger = signed_by(&SigningKey::from_bytes(&[4; 32]), "POST", &path("web/stop"), b"", &id());
    assert_eq!(vault.operate(FRONT, &stranger).status, StatusCode::UNAUTHORIZED);
    for (method, rest, status) in [
        ("POST", "nobody/stop", StatusCode::NOT_FOUND),
        ("POST", "web/kill", StatusCode::NOT_FOUND),
        ("POST", "web", StatusCode::NOT_FOUND),
        ("POST", "../web/stop", StatusCode::NOT_FOUND),
        ("POST", "web/stop/", StatusCode::NOT_FOUND),
        ("GET", "web/stop", StatusCode::METHOD_NOT_ALLOWED),
        ("PUT", "web/stop", StatusCode::METHOD_NOT_ALLOWED),
    ] {
        assert_eq!(ask(&vault, method, &path(rest)).status, status, "{method} {rest}");
    }
    let lines = lines.lock().unwrap();
    let operator = lines[0].rsplit_once(" operator=").unwrap().1;
    assert_eq!(lines[0], format!("audit: restart-service uid={FRONT} status=200 operator={operator}"));
    assert!(operator.ends_with(" service=web"), "{operator}");
    assert!(lines[3].starts_with("audit: authenticate "), "{}", lines[3]);
    assert!(!lines[4].contains("nobody"), "a name of a stranger's choosing: {}", lines[4]);
}

#[test]
fn only_the_front_relays() {
    let vault = fresh();
    let request = signed("GET", "/v1/secrets", b"", &id());
    for uid in [0, 101, 103, 104, SERVICE, u32::MAX] {
        assert_eq!(vault.operate(uid, &request).status, StatusCode::FORBIDDEN, "{uid}");
    }
    assert_eq!(vault.operate(FRONT, &request).status, StatusCode::OK);
}

#[test]
fn a_key_that_the_declaration_does_not_name_is_nobody() {
    let vault = fresh();
    let body = sealed(&vault, PASSWORD, VALUE);
    let stranger = SigningKey::from_bytes(&[4; 32]);
    let answer = vault.operate(FRONT, &signed_by(&stranger, "PUT", &path(PASSWORD), &body, &id()));
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(error(&answer).hint.unwrap(), "use a key listed under operators in cofferdam.yaml");

    // Nor is the stranger's signature the operator's when the operator's key is named beside it.
    let mut request = signed_by(&stranger, "PUT", &path(PASSWORD), &body, &id());
    request.key = signed("GET", "/", b"", &id()).key;
    assert_eq!(vault.operate(FRONT, &request).status, StatusCode::UNAUTHORIZED);
    assert!(list(&vault).is_empty());
}

#[test]
fn no_part_of_a_request_can_be_exchanged() {
    let vault = fresh();
    let body = sealed(&vault, PASSWORD, VALUE);
    let good = signed("PUT", &path(PASSWORD), &body, &[7; 32]);
    let other = signed("DELETE", &path(USER), &sealed(&vault, USER, VALUE), &[8; 32]);
    for part in 0..5 {
        let mut request = good.clone();
        match part {
            0 => request.method = other.method.clone(),
            1 => request.path = other.path.clone(),
            2 => request.body = other.body.clone(),
            3 => request.channel_binding = other.channel_binding,
            _ => request.signature = other.signature,
        }
        assert_eq!(vault.operate(FRONT, &request).status, StatusCode::UNAUTHORIZED, "part {part}");
        assert!(list(&vault).is_empty());
    }
    // The prefix belongs to what was signed.
    let mut request = good.clone();
    request.path = request.path.strip_prefix("/.well-known/cofferdam").unwrap().into();
    assert_eq!(vault.operate(FRONT, &request).status, StatusCode::UNAUTHORIZED);
    assert_eq!(vault.operate(FRONT, &good).status, StatusCode::OK);
}

#[test]
fn a_request_is_carried_out_once() {
    let vault = fresh();
    let body = sealed(&vault, PASSWORD, b"the first value");
    let old = signed("PUT", &path(PASSWORD), &body, &[7; 32]);
    assert_eq!(vault.operate(FRONT, &old).status, StatusCode::OK);
    assert_eq!(put(&vault, PASSWORD, b"the second value").status, StatusCode::OK);
    // A front that was taken over sends the old request again, with the binding that it was signed for.
    assert_eq!(vault.operate(FRONT, &old).status, StatusCode::CONFLICT);
    let remove = signed("DELETE", &path(PASSWORD), b"", &[7; 32]);
    assert_eq!(vault.operate(FRONT, &remove).status, StatusCode::NO_CONTENT);
    assert_eq!(put(&vault, PASSWORD, b"the third value").status, StatusCode::OK);
    assert_eq!(vault.operate(FRONT, &remove).status, StatusCode::CONFLICT);
    assert_eq!(list(&vault).len(), 1);
    // Reading twice is no harm.
    let read = signed("GET", "/v1/secrets", b"", &[7; 32]);
    assert_eq!(vault.operate(FRONT, &read).status, StatusCode::OK);
    assert_eq!(vault.operate(FRONT, &read).status, StatusCode::OK);
}

#[test]
fn a_secret_is_sealed_to_this_appliance_and_this_name() {
    let vault = fresh();
    let elsewhere = Vault::new(Store::create(disk(), keys(2)).unwrap(), rules(), || NOW, |_| {});
    for body in [sealed(&elsewhere, PASSWORD, VALUE), sealed(&vault, USER, VALUE)] {
        let answer = vault.operate(FRONT, &signed("PUT", &path(PASSWORD), &body, &id()));
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(error(&answer).hint.unwrap().contains("verify it again"));
    }
    let good = seal_secret(&vault.public_key(), &reference(PASSWORD), VALUE).unwrap();
    for position in 0..good.ciphertext.as_bytes().len() {
        let mut ciphertext = good.ciphertext.as_bytes().to_vec();
        ciphertext[position] ^= 1;
        let altered = SealedSecret { ciphertext: Base64Bytes::new(ciphertext).unwrap(), ..good.clone() };
        let body = serde_json::to_vec(&altered).unwrap();
        let answer = vault.operate(FRONT, &signed("PUT", &path(PASSWORD), &body, &id()));
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "byte {position}");
    }
    assert!(list(&vault).is_empty());
}

#[test]
fn a_name_is_validated_before_anything_is_stored() {
    let vault = fresh();
    for name in [
        "a/b",
        "a/b/c/d",
        "a/b/",
        "a//c",
        "A/b/c",
        "a/b/%63",
        "a/b/..",
        "../../etc/passwd",
        "a/b/c?x=1",
        "a/b/c#f",
        "",
    ] {
        let path = format!("/.well-known/cofferdam/v1/secrets/{name}");
        let body = sealed(&vault, PASSWORD, VALUE);
        let answer = vault.operate(FRONT, &signed("PUT", &path, &body, &id()));
        assert!(
            matches!(answer.status, StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND),
            "{name} {answer:?}"
        );
        assert!(list(&vault).is_empty(), "{name}");
    }
    for path in
        ["relative", "", "/v1/secrets/a/b/c\n", "/v1/secrets/a/b/\u{e9}", &format!("/{}", "a".repeat(2000))]
    {
        let answer = vault.operate(FRONT, &signed("GET", path, b"", &id()));
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path:?}");
    }
}

#[test]
fn values_are_neither_too_long_nor_too_short() {
    let vault = fresh();
    assert_eq!(put(&vault, PASSWORD, &vec![b'x'; MAX_VALUE]).status, StatusCode::OK);
    assert_eq!(put(&vault, PASSWORD, &[b'x'; MIN]).status, StatusCode::OK);
    for short in [&b""[..], b"x", &[b'x'; MIN - 1], &[b'\n'; 100], b"\r\n1234\n\n567\n"] {
        let answer = put(&vault, USER, short);
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert_eq!(error(&answer).error, "the value is shorter than 8 bytes, not counting line breaks");
        assert!(error(&answer).hint.unwrap().contains("use a longer one"));
    }
    // A client that does not check: one byte more than fits.
    let long =
        SealedSecret { enc: [0; 32].into(), ciphertext: Base64Bytes::new(vec![0; MAX_VALUE + 17]).unwrap() };
    let body = serde_json::to_vec(&long).unwrap();
    let answer = vault.operate(FRONT, &signed("PUT", &path(USER), &body, &id()));
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(list(&vault).len(), 1);
}

#[test]
fn a_body_is_exactly_a_sealed_secret() {
    let vault = fresh();
    let good = String::from_utf8(sealed(&vault, PASSWORD, VALUE)).unwrap();
    let bodies = [
        String::new(),
        "null".into(),
        "[]".into(),
        "{}".into(),
        format!("{good} x"),
        good.replacen('{', "{\"more\":1,", 1),
        good.replacen('{', "{\"enc\":\"\",", 1),
        good.replace("enc", "ENC"),
        "[".repeat(10_000),
    ];
    for body in bodies {
        let answer = vault.operate(FRONT, &signed("PUT", &path(PASSWORD), body.as_bytes(), &id()));
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        assert_eq!(error(&answer).error, "the body is not a sealed secret");
    }
    assert!(list(&vault).is_empty());
}

#[test]
fn fields_of_the_wrong_shape_are_refused_before_they_are_verified() {
    let vault = fresh();
    let good = signed("GET", "/v1/secrets", b"", &id());
    let injected = "SHA256:\nvault: audit: put uid=0 status=200";
    for wrong in ["", "AAAA", "not base64!", &"A".repeat(1000), "AA==\n", injected] {
        for field in ["channel_binding", "signature", "key"] {
            let mut request = serde_json::to_value(&good).unwrap();
            request[field] = wrong.into();
            assert!(serde_json::from_value::<OperatorRequest>(request).is_err(), "{field} {wrong}");
        }
    }
    for method in ["", "get", "G\0T", "GET ", "BREW"] {
        let answer = vault.operate(FRONT, &signed(method, "/v1/secrets", b"", &id()));
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{method:?}");
    }
}

#[test]
fn nothing_reads_a_secret() {
    let vault = fresh();
    put(&vault, PASSWORD, VALUE);
    for (method, path) in [
        ("GET", path(PASSWORD)),
        ("POST", path(PASSWORD)),
        ("HEAD", path(PASSWORD)),
        ("POST", "/v1/secrets".into()),
        ("DELETE", "/v1/secrets".into()),
        ("PUT", "/v1/status".into()),
    ] {
        let answer = ask(&vault, method, &path);
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
    }
    for path in ["/v1/key", "/v1/export", "/", "/.well-known/cofferdam", "/v1/secrets?values=true"] {
        assert_eq!(ask(&vault, "GET", path).status, StatusCode::NOT_FOUND, "{path}");
    }
}

#[test]
fn an_audit_line_has_no_value_and_nothing_of_a_strangers_choosing() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = lines.clone();
    let store = Store::create(disk(), keys(1)).unwrap();
    let vault = Vault::new(store, rules(), || NOW, move |event| sink.lock().unwrap().push(event.to_string()));
    put(&vault, PASSWORD, VALUE);
    ask(&vault, "GET", "/v1/secrets");
    ask(&vault, "GET", "/v1/logs?service=x");
    ask(&vault, "DELETE", &path(PASSWORD));
    let stranger = SigningKey::from_bytes(&[4; 32]);
    let request = signed_by(&stranger, "PUT", "/v1/secrets/audit:/put/uid=0", b"", &id());
    vault.operate(FRONT, &request);
    let operator = signed("GET", "/", b"", &id()).key;
    assert_eq!(
        *lines.lock().unwrap(),
        [
            format!("audit: put uid=102 status=200 operator={operator} {PASSWORD}"),
            format!("audit: list uid=102 status=200 operator={operator}"),
            format!("audit: allow uid=102 status=204 operator={operator}"),
            format!("audit: remove uid=102 status=204 operator={operator} {PASSWORD}"),
            "audit: authenticate uid=102 status=401".to_owned(),
        ]
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// No answer, no audit line and no debugging output holds four characters of a value in a row.
    #[test]
    fn no_part_of_a_value_is_ever_shown(value in "[!-~]{8,60}") {
        let lines = Arc::new(Mutex::new(String::new()));
        let sink = lines.clone();
        let store = Store::create(disk(), keys(1)).unwrap();
        let vault = Vault::new(store, rules(), || NOW, move |event| {
            sink.lock().unwrap().push_str(&format!("{event} {event:?}"));
        });
        // Encrypted and hashed parts of the requests may hold anything by chance: they are not looked at.
        let mut said = Vec::new();
        let answer = put(&vault, PASSWORD, value.as_bytes());
        prop_assert_eq!(answer.status, StatusCode::OK);
        said.extend_from_slice(&answer.body);
        said.extend(ask(&vault, "GET", "/v1/secrets").body);
        said.extend(ask(&vault, "GET", &path(PASSWORD)).body);
        said.extend(put(&vault, USER, &value.as_bytes()[..7]).body);
        said.extend(format!("{vault:?}").bytes());
        said.extend(lines.lock().unwrap().bytes());
        let said = String::from_utf8_lossy(&said).into_owned();
        // What is said anyway, whatever the value.
        let other = {
            let vault = fresh();
            let mut other = put(&vault, PASSWORD, b"\x01\x02\x03\x04\x05\x06\x07\x08").body;
            other.extend(ask(&vault, "GET", "/v1/secrets").body);
            other.extend(ask(&vault, "GET", &path(PASSWORD)).body);
            other.extend(put(&vault, USER, b"\x01").body);
            other.extend(format!("{vault:?}").bytes());
            String::from_utf8_lossy(&other).into_owned()
        };
        for part in value.as_bytes().windows(4) {
            let part = std::str::from_utf8(part).unwrap();
            prop_assert!(!said.contains(part) || other.contains(part) || "audit: operator=SHA256".contains(part), "{part} in {said}");
        }
    }

    #[test]
    fn any_request_is_answered(method in ".{0,8}", path in ".{0,40}", body in any::<Vec<u8>>(), binding in any::<[u8; 32]>(), key in any::<[u8; 32]>(), signature in proptest::collection::vec(any::<u8>(), 64..=64)) {
        let vault = fresh();
        let request = OperatorRequest {
            method,
            path,
            body: Base64Bytes::new(body).unwrap(),
            channel_binding: binding.into(),
            key: Fingerprint::of(&key),
            signature: (&signature[..]).try_into().map(|bytes: [u8; 64]| bytes.into()).unwrap(),
        };
        let status = vault.operate(FRONT, &request).status;
        prop_assert!(status == StatusCode::BAD_REQUEST || status == StatusCode::UNAUTHORIZED);
    }
}

#[test]
fn a_vault_that_serves_says_that_there_is_nothing_to_open() {
    let vault = fresh();
    for (method, path) in [("GET", "/v1/seal"), ("POST", "/v1/unseal")] {
        let answer = ask(&vault, method, path);
        assert_eq!(answer.status, StatusCode::CONFLICT, "{path}");
        assert_eq!(error(&answer).error, "there is nothing to open: the state is open, or in memory");
        assert_eq!(error(&answer).hint.as_deref(), Some("coffer seal status says which"));
    }
    for (method, path) in [("PUT", "/v1/seal"), ("DELETE", "/v1/unseal"), ("GET", "/v1/unseal")] {
        assert_eq!(ask(&vault, method, path).status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
    }
    assert_eq!(ask(&vault, "GET", "/v1/seal?a").status, StatusCode::NOT_FOUND);
}
