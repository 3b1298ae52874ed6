//! Who gets through to a service: with the front as a whole, and a workload that repeats the headers it sees.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::{Body, Bytes};
use axum::http::{Method, Request, Response, StatusCode, header};
use cofferdam_protocol::operator::{Authorization, PREFIX, SIGN_IN, signing_input};
use cofferdam_protocol::{AccessToken, Digest, Fingerprint};
use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::same;
use crate::roles::front::listen::Limits;
use crate::roles::front::requests::Bounds;
use crate::roles::front::tests::{
    Answer, Client, FOR_OPERATORS, FOR_TOKENS, PUBLISHED, Room, dial, operator, second_operator, token,
};

/// A room whose workload answers with the headers that it sees, and how often it was asked.
async fn open() -> (Room, Arc<AtomicUsize>) {
    let room = Room::open().await;
    let count = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&count);
    room.workload(move |request| {
        asked.fetch_add(1, Ordering::Relaxed);
        echo(&request)
    });
    (room, count)
}

fn echo(request: &Request<Bytes>) -> Response<Body> {
    let headers = request.headers().iter();
    let seen: Vec<String> = headers
        .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
        .collect();
    Response::new(Body::from(serde_json::to_vec(&seen).unwrap()))
}

async fn client(address: SocketAddr) -> Client {
    Client::over(dial(address, None).await.unwrap()).await
}

/// The headers that the workload saw whose names begin so.
fn seen(answer: &Answer, prefix: &str) -> Vec<String> {
    assert_eq!(answer.status, StatusCode::OK, "{}", String::from_utf8_lossy(&answer.body));
    let Value::Array(lines) = answer.json() else { panic!("no list") };
    let lines = lines.iter().map(|line| line.as_str().unwrap().to_owned());
    lines.filter(|line| line.starts_with(prefix)).collect()
}

fn with(headers: &[(&str, &str)]) -> Request<Body> {
    let request = Request::get("/").header(header::HOST, "room.example");
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    request.body(Body::empty()).unwrap()
}

fn authorization(key: &SigningKey, method: &str, path: &str, binding: &[u8; 32]) -> String {
    let signature = key.sign(&signing_input(method, path, b"", binding)).to_bytes().into();
    Authorization { key: Fingerprint::of(&key.verifying_key().to_bytes()), signature }.to_string()
}

fn challenge(answer: &Answer) -> &str {
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert!(answer.json()["hint"].as_str().is_some());
    answer.headers[header::WWW_AUTHENTICATE].to_str().unwrap()
}

#[tokio::test]
async fn a_port_for_operators_serves_who_has_signed_in_on_the_connection_and_says_who_that_is() {
    let (room, asked) = open().await;
    let address = room.listen(FOR_OPERATORS, &room.site).await;
    let mut alice = client(address).await;
    assert_eq!(challenge(&alice.get("/").await), "Cofferdam-Operator");
    assert_eq!(asked.load(Ordering::Relaxed), 0, "the service was not asked");
    assert_eq!(alice.signed(&operator(), Method::POST, SIGN_IN, b"").await.status, StatusCode::NO_CONTENT);
    for _ in 0..2 {
        assert_eq!(seen(&alice.get("/").await, "x-cofferdam"), ["x-cofferdam-caller: operator:alice"]);
    }
    // What a service itself wants to know of its users is the service's.
    let own = alice.send(with(&[("authorization", "Basic dXNlcjpwYXNz")])).await;
    assert_eq!(seen(&own, "authorization"), ["authorization: Basic dXNlcjpwYXNz"]);
    // Another connection is nobody's, and another operator is somebody else.
    let mut bob = client(address).await;
    assert_eq!(bob.get("/").await.status, StatusCode::UNAUTHORIZED);
    bob.signed(&second_operator(), Method::POST, SIGN_IN, b"").await;
    assert_eq!(seen(&bob.get("/").await, "x-cofferdam"), ["x-cofferdam-caller: operator:bob"]);
    let answer = bob.signed(&operator(), Method::POST, SIGN_IN, b"").await;
    assert_eq!(
        (answer.status, answer.headers[header::CONNECTION].as_bytes()),
        (StatusCode::FORBIDDEN, &b"close"[..])
    );
}

#[tokio::test]
async fn nobody_signs_in_with_another_key_another_signature_or_that_of_another_connection() {
    let (room, asked) = open().await;
    let address = room.listen(FOR_OPERATORS, &room.site).await;
    let path = format!("{PREFIX}{SIGN_IN}");
    let stranger = SigningKey::from_bytes(&[6; 32]);
    let other = client(address).await.binding;
    type Headers<'a> = &'a dyn Fn(&[u8; 32]) -> Vec<String>;
    let cases: [(&str, Headers<'_>, StatusCode); 8] = [
        ("nothing", &|_| vec![], StatusCode::UNAUTHORIZED),
        ("a stranger", &|own| vec![authorization(&stranger, "POST", &path, own)], StatusCode::FORBIDDEN),
        ("a replay", &|_| vec![authorization(&operator(), "POST", &path, &other)], StatusCode::UNAUTHORIZED),
        ("another path", &|own| vec![authorization(&operator(), "POST", "/", own)], StatusCode::UNAUTHORIZED),
        (
            "another method",
            &|own| vec![authorization(&operator(), "PUT", &path, own)],
            StatusCode::UNAUTHORIZED,
        ),
        (
            "another's name",
            &|own| {
                let named = authorization(&operator(), "POST", &path, own);
                let signed = authorization(&stranger, "POST", &path, own);
                let key = |text: &str| text.split('"').nth(1).unwrap().to_owned();
                vec![signed.replace(&key(&signed), &key(&named))]
            },
            StatusCode::UNAUTHORIZED,
        ),
        ("two", &|own| vec![authorization(&operator(), "POST", &path, own); 2], StatusCode::UNAUTHORIZED),
        ("a token", &|_| vec![format!("Bearer {}", token().expose())], StatusCode::UNAUTHORIZED),
    ];
    for (name, headers, status) in cases {
        let mut client = client(address).await;
        let request = Request::post(&path).header(header::HOST, "room.example");
        let request = headers(&client.binding)
            .iter()
            .fold(request, |request, value| request.header(header::AUTHORIZATION, value));
        let answer = client.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status, status, "{name}");
        assert_eq!(answer.headers[header::CONNECTION], "close", "each attempt costs a handshake: {name}");
    }
    // Only POST, and only without a body, which nobody would read.
    for (method, body) in [(Method::GET, &b""[..]), (Method::POST, b"{}")] {
        let mut client = client(address).await;
        let answer = client.signed(&operator(), method, SIGN_IN, body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    }
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_port_for_tokens_serves_who_brings_one_and_the_service_never_sees_it() {
    let (room, asked) = open().await;
    let mut client = client(room.listen(FOR_TOKENS, &room.site).await).await;
    assert_eq!(challenge(&client.get("/").await), "Bearer");
    let good = format!("Bearer {}", token().expose());
    for value in [good.clone(), good.replace("Bearer ", "bearer  ")] {
        let answer = client.send(with(&[("authorization", &value), ("cookie", "a=b")])).await;
        assert_eq!(seen(&answer, "x-cofferdam"), ["x-cofferdam-caller: token:ci"]);
        assert_eq!(seen(&answer, "authorization"), Vec::<String>::new());
        assert_eq!(seen(&answer, "cookie"), ["cookie: a=b"]);
        assert!(!String::from_utf8_lossy(&answer.body).contains(token().expose()));
    }
    let before = asked.load(Ordering::Relaxed);
    let unknown = format!("Bearer {}", AccessToken::from_random(&[1; 32]).expose());
    let hash = format!("Bearer {}", token().hash());
    let cut = good.strip_suffix(|_: char| true).unwrap();
    for wrong in [&unknown, &hash, cut, "Bearer", "Bearer ", "Basic Y2k6eA==", token().expose()] {
        let answer = client.send(with(&[("authorization", wrong)])).await;
        assert_eq!(challenge(&answer), "Bearer error=\"invalid_token\"", "{wrong}");
        assert!(
            !String::from_utf8_lossy(&answer.body).contains("cofferdam_"),
            "what was brought is not repeated"
        );
    }
    for two in [[&good, &unknown], [&unknown, &good], [&good, &good]] {
        let answer = client.send(with(&two.map(|value| ("authorization", value.as_str())))).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    }
    for header in ["proxy-authorization", "x-authorization", "authorization_"] {
        assert_eq!(client.send(with(&[(header, &good)])).await.status, StatusCode::UNAUTHORIZED, "{header}");
    }
    // An operator is no client of these ports: who wants both publishes two.
    client.signed(&operator(), Method::POST, SIGN_IN, b"").await;
    assert_eq!(client.get("/").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(asked.load(Ordering::Relaxed), before);
}

#[tokio::test]
async fn no_client_tells_a_service_who_calls() {
    let (room, _) = open().await;
    let forged = [
        ("X-Cofferdam-Caller", "operator:alice"),
        ("x_cofferdam_caller", "operator:alice"),
        ("x-cofferdam_caller", "operator:alice"),
        ("x-cofferdam-anything", "1"),
        ("connection", "x-cofferdam-caller"),
        ("X_Forwarded_For", "192.0.2.7"),
        ("trailer", "x-cofferdam-caller"),
    ];
    let mut anybody = client(room.listen(PUBLISHED, &room.site).await).await;
    let answer = anybody.send(with(&forged)).await;
    assert_eq!(seen(&answer, "x-cofferdam"), Vec::<String>::new());
    assert_eq!(seen(&answer, "x_"), Vec::<String>::new());
    let mut alice = client(room.listen(FOR_OPERATORS, &room.site).await).await;
    alice.signed(&operator(), Method::POST, SIGN_IN, b"").await;
    let answer = alice.send(with(&forged)).await;
    assert_eq!(seen(&answer, "x-cofferdam"), ["x-cofferdam-caller: operator:alice"]);
    assert_eq!(seen(&answer, "x_"), Vec::<String>::new());
}

#[tokio::test]
async fn a_trailer_does_not_tell_it_either() {
    let (room, _) = open().await;
    let mut stream = dial(room.listen(PUBLISHED, &room.site).await, None).await.unwrap();
    let request = "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nTrailer: x-cofferdam-caller\r\n\r\n\
                   1\r\nx\r\n0\r\nx-cofferdam-caller: operator:alice\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!answer.contains("cofferdam-caller"), "{answer}");
}

#[tokio::test]
async fn who_is_turned_away_takes_no_place_of_a_service() {
    let bounds = Bounds { own: 1, own_by_source: 1, shared: 0, by_service: 0, by_source: 0, by_both: 0 };
    let room = Room::with(Limits::default(), bounds).await;
    room.workload(|request| echo(&request));
    let address = room.listen(FOR_TOKENS, &room.site).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = client(address).await;
        assert_eq!(client.get("/").await.status, StatusCode::UNAUTHORIZED);
        clients.push(client);
    }
    let good = format!("Bearer {}", token().expose());
    let answer = clients[0].send(with(&[("authorization", &good)])).await;
    assert_eq!(answer.status, StatusCode::OK, "the one place is free");
}

#[test]
fn digests_are_compared_as_a_whole() {
    let one = Digest::of("a");
    assert!(same(&one, &Digest::of("a")));
    for at in 0..32 {
        let mut bytes = *one.as_bytes();
        bytes[at] ^= 1;
        assert!(!same(&one, &Digest::from(bytes)));
    }
}
