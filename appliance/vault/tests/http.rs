//! The router: leases, and what a peer can send.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that fails panics")]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cofferdam_protocol::reply::ErrorReply;
use cofferdam_protocol::vault::{KeyReply, MAX_REQUEST, MissingReply};
use cofferdam_vault::store::{Anchors, MAX_VALUE};
use cofferdam_vault::{MAX_WAITERS, MAX_WAITERS_PER_PEER, Peer, Rules, Store, Vault, router};
use common::*;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use serde_json::json;

/// One request of a peer. `None` is a listener that does not say who the peer is.
async fn send(
    router: &Router,
    uid: Option<u32>,
    method: &str,
    path: &str,
    body: impl Into<Body>,
) -> (StatusCode, Bytes) {
    let mut request = Request::builder().method(method).uri(path);
    // What a client says about itself counts for nothing.
    for header in ["x-forwarded-for", "x-forwarded-user", "x-real-uid", "authorization", "x-debug"] {
        request = request.header(header, "102");
    }
    let mut request = request.body(body.into()).unwrap();
    if let Some(uid) = uid {
        request.extensions_mut().insert(Peer { uid });
    }
    let response = TowerToHyperService::new(router.clone()).call(request).await.unwrap();
    let status = response.status();
    (status, axum::body::to_bytes(response.into_body(), 10 << 20).await.unwrap())
}

async fn lease(router: &Router, uid: u32, references: &[&str], wait_ms: u64) -> (StatusCode, Bytes) {
    let body = json!({ "references": references, "wait_ms": wait_ms }).to_string();
    send(router, Some(uid), "POST", "/v1/lease", body).await
}

fn value(reply: &[u8], name: &str) -> Vec<u8> {
    let reply: serde_json::Value = serde_json::from_slice(reply).unwrap();
    STANDARD.decode(reply["values"][name].as_str().unwrap()).unwrap()
}

fn missing(reply: &[u8]) -> Vec<String> {
    serde_json::from_slice::<MissingReply>(reply).unwrap().missing.iter().map(ToString::to_string).collect()
}

fn start() -> (Arc<Vault>, Router) {
    let vault = Arc::new(vault(&disk()));
    (vault.clone(), router(vault))
}

#[tokio::test]
async fn anybody_may_have_the_public_key() {
    let (vault, router) = start();
    for uid in [0, 65_534, SERVICE] {
        let (status, body) = send(&router, Some(uid), "GET", "/v1/key", "").await;
        assert_eq!(status, StatusCode::OK);
        let reply: KeyReply = serde_json::from_slice(&body).unwrap();
        assert_eq!(*reply.public_key.as_bytes(), vault.public_key());
    }
}

/// A service that raised the number would make every client miss anchors that were never published.
#[tokio::test]
async fn which_anchors_are_published_says_the_publisher_alone_and_one_after_the_other() {
    let disk = disk();
    let vault = Arc::new(vault(&disk));
    let anchored = |uid: u32, number: serde_json::Value| {
        let router = router(vault.clone());
        async move {
            let body = json!({ "number": number }).to_string();
            send(&router, Some(uid), "POST", "/v1/anchored", body).await.0
        }
    };
    for uid in [0, FRONT, SERVICE, 65_534] {
        assert_eq!(anchored(uid, json!(1)).await, StatusCode::NOT_FOUND, "{uid}");
    }
    for wrong in [json!(0), json!(-1), json!(1.5), json!("1"), json!(null)] {
        assert_eq!(anchored(PUBLISH, wrong.clone()).await, StatusCode::BAD_REQUEST, "{wrong}");
    }
    // The next one alone, and each once.
    for (number, published) in [(2, 0), (1, 1), (1, 1), (9, 1), (2, 2), (u64::MAX, 2)] {
        assert_eq!(anchored(PUBLISH, json!(number)).await, StatusCode::NO_CONTENT);
        let store = Store::open(disk.clone(), keys(1), None).unwrap();
        assert_eq!(store.anchors(), Anchors { first: 1, published }, "{number}");
    }
    drop(vault);
    let store = Store::open(disk, keys(1), None).unwrap();
    assert_eq!(store.anchors().published, 2);
    let before = store.root().epoch;
    store.give_up(99, 7).unwrap();
    assert!(before < 99 && store.root().epoch == 100);
    assert_eq!(store.anchors(), Anchors { first: 8, published: 7 });
    store.give_up(5, 3).unwrap();
    assert_eq!(store.anchors(), Anchors { first: 8, published: 7 }, "numbers only rise");
    assert_eq!(store.root().epoch, 101);
}

#[tokio::test]
async fn the_certificate_for_browsers_is_kept_for_publish_alone() {
    let disk = disk();
    let router = router(Arc::new(vault(&disk)));
    let epoch = || Store::open(disk.clone(), keys(1), None).unwrap().root().epoch;
    let path = "/v1/certificate";
    let kept = |chain: &str| {
        json!({"directory": "https://ca.example/dir", "account": "https://ca.example/acct/1", "chain": chain})
            .to_string()
    };
    let get = async |uid| send(&router, Some(uid), "GET", path, String::new()).await;
    let put = async |uid, body: String| send(&router, Some(uid), "PUT", path, body).await.0;
    assert_eq!(get(PUBLISH).await.0, StatusCode::NOT_FOUND, "there is none");
    assert_eq!(put(PUBLISH, kept("one")).await, StatusCode::NO_CONTENT);
    for uid in [0, FRONT, SERVICE, 65_534] {
        assert_eq!(get(uid).await.0, StatusCode::NOT_FOUND, "{uid}");
        assert_eq!(put(uid, kept("forged")).await, StatusCode::NOT_FOUND, "{uid}");
    }
    let before = epoch();
    assert_eq!(put(PUBLISH, kept("one")).await, StatusCode::NO_CONTENT);
    assert_eq!(epoch(), before, "what is the same is not written again");
    for wrong in ["{}".to_owned(), kept("one").replace("https", "http"), kept(&"x".repeat(49 * 1024))] {
        assert!(put(PUBLISH, wrong).await.is_client_error());
    }
    assert_eq!(put(PUBLISH, kept(&"x".repeat(48 * 1024))).await, StatusCode::NO_CONTENT);
    let store = Store::open(disk.clone(), keys(1), None).unwrap();
    let read = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
    assert_eq!(read(&store.certificate().unwrap()), read(kept(&"x".repeat(48 * 1024)).as_bytes()));
}

#[tokio::test]
async fn a_lease_is_all_or_nothing_and_only_for_the_granted() {
    let (vault, router) = start();
    put(&vault, PASSWORD, b"correct horse");
    put(&vault, "secret://other/app/key", b"another service's");

    let (status, body) = lease(&router, SERVICE, &[PASSWORD], 0).await;
    assert_eq!((status, value(&body, PASSWORD)), (StatusCode::OK, b"correct horse".to_vec()));
    let (status, body) = lease(&router, SERVICE, &[PASSWORD, USER, PASSWORD], 0).await;
    assert_eq!((status, missing(&body)), (StatusCode::CONFLICT, vec![USER.to_owned()]));

    // Whether a secret exists makes no difference to whom it is not granted.
    for reference in ["secret://other/app/key", "secret://other/app/none"] {
        let (status, body) = lease(&router, SERVICE, &[reference], 30_000).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        let reply: ErrorReply = serde_json::from_slice(&body).unwrap();
        assert_eq!(reply.error, format!("not granted: {reference}"));
    }
    let (status, _) = lease(&router, SERVICE, &[PASSWORD, "secret://other/app/key"], 0).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "one that is not granted refuses all");
    for uid in [0, 101, FRONT, 103, SERVICE + 1, SERVICE + 65_536, u32::MAX] {
        assert_eq!(lease(&router, uid, &[PASSWORD], 0).await.0, StatusCode::FORBIDDEN, "{uid}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_order_is_heard_by_the_shim_of_its_service_alone() {
    let (vault, router) = start();
    let orders = async |uid: u32, after: u32, wait_ms: u64| {
        let body = json!({ "after": after, "wait_ms": wait_ms }).to_string();
        send(&router, Some(uid), "POST", "/v1/orders", body).await
    };
    assert_eq!(orders(SERVICE, 0, 60_000).await.0, StatusCode::NO_CONTENT);
    let request = signed("POST", "/v1/services/web/stop", b"", &id());
    assert_eq!(vault.operate(FRONT, &request).status, StatusCode::OK);
    let (status, body) = orders(SERVICE, 0, 0).await;
    assert_eq!(status, StatusCode::OK);
    let given: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(given["order"], "stop");
    let known = u32::try_from(given["id"].as_u64().unwrap()).unwrap();
    assert_eq!(orders(SERVICE, known, 1000).await.0, StatusCode::NO_CONTENT);
    for uid in [0, FRONT, PUBLISH, SERVICE + 1, 65_534] {
        assert_eq!(orders(uid, 0, 0).await.0, StatusCode::NOT_FOUND, "{uid}");
    }
    assert_eq!(orders(SERVICE, 0, 300_001).await.0, StatusCode::BAD_REQUEST);
    // Those that wait for orders take no place of those that wait for secrets, and are bounded.
    let waiting: Vec<_> = (0..MAX_WAITERS_PER_PEER)
        .map(|_| {
            let vault = Arc::clone(&vault);
            tokio::spawn(async move {
                let body = json!({ "after": known, "wait_ms": 300_000 }).to_string();
                send(&cofferdam_vault::router(vault), Some(SERVICE), "POST", "/v1/orders", body).await.0
            })
        })
        .collect();
    tokio::task::yield_now().await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(orders(SERVICE, known, 1000).await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(lease(&router, SERVICE, &[PASSWORD], 10).await.0, StatusCode::CONFLICT);
    for one in waiting {
        assert_eq!(one.await.unwrap(), StatusCode::NO_CONTENT);
    }
}

#[tokio::test]
async fn without_a_known_peer_nothing_is_served() {
    let (vault, router) = start();
    put(&vault, PASSWORD, b"correct horse");
    let body = json!({ "references": [PASSWORD], "wait_ms": 0 }).to_string();
    assert_eq!(send(&router, None, "POST", "/v1/lease", body).await.0, StatusCode::INTERNAL_SERVER_ERROR);
    let body = serde_json::to_string(&signed("GET", "/v1/secrets", b"", &id())).unwrap();
    assert_eq!(send(&router, None, "POST", "/v1/operator", body).await.0, StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_lease_is_released_by_the_put_that_completes_it() {
    let (vault, router) = start();
    let waiting = tokio::spawn({
        let router = router.clone();
        async move { (lease(&router, SERVICE, &[PASSWORD, USER], 30_000).await, tokio::time::Instant::now()) }
    });
    let start = tokio::time::Instant::now();
    for (after, name) in [(5, "secret://other/app/key"), (10, PASSWORD), (20, USER)] {
        tokio::time::sleep_until(start + Duration::from_secs(after)).await;
        assert!(!waiting.is_finished());
        assert_eq!(put(&vault, name, b"correct horse").status, StatusCode::OK);
    }
    let ((status, body), at) = waiting.await.unwrap();
    assert_eq!(status, StatusCode::OK);
    assert_eq!(value(&body, USER), b"correct horse");
    assert!(at - start < Duration::from_millis(20_100), "at once, not at the end of the wait");
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_when_it_was_said_to() {
    let (_, router) = start();
    for wait in [0, 1, 1000, 30_000] {
        let start = tokio::time::Instant::now();
        let (status, body) = lease(&router, SERVICE, &[USER, PASSWORD], wait).await;
        assert_eq!(status, StatusCode::CONFLICT);
        assert_eq!(missing(&body), [PASSWORD, USER]);
        let waited = start.elapsed();
        assert!(
            waited >= Duration::from_millis(wait) && waited < Duration::from_millis(wait + 10),
            "{wait} {waited:?}"
        );
    }
}

async fn changed(router: &Router, uid: u32, known: serde_json::Value, wait_ms: u64) -> (StatusCode, String) {
    let body = json!({ "references": [PASSWORD, USER], "known": known, "wait_ms": wait_ms }).to_string();
    let (status, body) = send(router, Some(uid), "POST", "/v1/changed", body).await;
    let reply: serde_json::Value = serde_json::from_slice(&body).unwrap();
    (status, reply["revision"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_put_and_a_removal_are_heard_of_by_whom_the_secret_is_granted_to() {
    let (vault, router) = start();
    let (status, mut known) = changed(&router, SERVICE, json!(null), 0).await;
    assert_eq!((status, known.len()), (StatusCode::OK, 71));
    let remove = signed("DELETE", &path(PASSWORD), b"", &id());
    let changes: [(&str, &dyn Fn() -> StatusCode); 5] = [
        ("first", &|| put(&vault, PASSWORD, b"correct horse").status),
        ("the same value", &|| put(&vault, PASSWORD, b"correct horse").status),
        ("another secret", &|| put(&vault, USER, b"battery staple").status),
        ("removed", &|| vault.operate(FRONT, &remove).status),
        ("as it was", &|| put(&vault, PASSWORD, b"correct horse").status),
    ];
    let mut seen = std::collections::BTreeSet::from([known.clone()]);
    for (what, change) in changes {
        let waiting = tokio::spawn({
            let (router, known) = (router.clone(), json!(known));
            async move { changed(&router, SERVICE, known, 90_000).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        put(&vault, "secret://other/app/key", b"of somebody else");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished(), "{what}");
        assert!(change().is_success(), "{what}");
        known = waiting.await.unwrap().1;
        assert!(seen.insert(known.clone()), "{what}: a revision comes back");
    }
    // One that is known waits as long as it was said to.
    let start = tokio::time::Instant::now();
    assert_eq!(changed(&router, SERVICE, json!(known), 90_000).await, (StatusCode::OK, known));
    assert!(start.elapsed() >= Duration::from_secs(90));
}

#[tokio::test]
async fn who_waits_for_a_change_is_granted_the_secret_and_stays_within_bounds() {
    let (vault, router) = start();
    for uid in [0, 101, FRONT, PUBLISH, SERVICE + 1, u32::MAX] {
        let (status, revision) = changed(&router, uid, json!(null), 0).await;
        assert_eq!((status, revision.as_str()), (StatusCode::FORBIDDEN, ""), "{uid}");
    }
    assert_eq!(changed(&router, SERVICE, json!(null), 90_001).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(changed(&router, SERVICE, json!("sha256:00"), 0).await.0, StatusCode::BAD_REQUEST);
    let (_, known) = changed(&router, SERVICE, json!(null), 0).await;
    let waiting = (0..MAX_WAITERS_PER_PEER).map(|_| {
        let (router, known) = (router.clone(), json!(known));
        tokio::spawn(async move { changed(&router, SERVICE, known, 90_000).await.0 })
    });
    let waiting: Vec<_> = waiting.collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(changed(&router, SERVICE, json!(known), 1).await.0, StatusCode::SERVICE_UNAVAILABLE);
    put(&vault, USER, b"battery staple");
    for one in waiting {
        assert_eq!(one.await.unwrap(), StatusCode::OK);
    }
}

#[tokio::test]
async fn a_wait_is_a_number_of_milliseconds_within_bounds_or_refused() {
    let (vault, router) = start();
    put(&vault, PASSWORD, b"correct horse");
    for wait in [
        "-1",
        "30001",
        "1e3",
        "1.5",
        "18446744073709551616",
        "\"1h\"",
        "\"100\"",
        "null",
        "true",
        "[]",
        "1e999",
        "NaN",
    ] {
        let body = format!("{{\"references\":[\"{PASSWORD}\"],\"wait_ms\":{wait}}}");
        let (status, _) = send(&router, Some(SERVICE), "POST", "/v1/lease", body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{wait}");
    }
    let body = json!({ "references": [PASSWORD] }).to_string();
    assert_eq!(
        send(&router, Some(SERVICE), "POST", "/v1/lease", body).await.0,
        StatusCode::OK,
        "no wait is none"
    );
}

#[tokio::test]
async fn a_lease_request_is_exactly_one() {
    let (_, router) = start();
    let many: Vec<_> = (0..65).map(|n| format!("secret://a/b/c{n}")).collect();
    for body in [
        String::new(),
        "{}".into(),
        "[]".into(),
        "{\"references\":[],\"wait_ms\":0}".into(),
        "{\"references\":\"secret://a/b/c\",\"wait_ms\":0}".into(),
        "{\"references\":[\"a/b/c\"],\"wait_ms\":0}".into(),
        "{\"references\":[\"secret://a/b/../c\"],\"wait_ms\":0}".into(),
        format!("{{\"references\":[\"{PASSWORD}\"],\"wait_ms\":0,\"uid\":0}}"),
        format!("{{\"references\":[\"{PASSWORD}\"],\"wait_ms\":0,\"wait_ms\":1}}"),
        format!("{{\"references\":[\"{PASSWORD}\"],\"wait_ms\":0}}{{}}"),
        json!({ "references": many, "wait_ms": 0 }).to_string(),
        "[".repeat(100_000),
    ] {
        let (status, reply) = send(&router, Some(SERVICE), "POST", "/v1/lease", body.clone()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body:.80}");
        serde_json::from_slice::<ErrorReply>(&reply).unwrap();
    }
}

#[tokio::test]
async fn an_error_does_not_repeat_the_request() {
    let (_, router) = start();
    let body = "{\"references\":[\"hunter2hunter2\"],\"wait_ms\":\"hunter2\",\"hunter2\":1}";
    let (status, reply) = send(&router, Some(SERVICE), "POST", "/v1/lease", body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(!String::from_utf8_lossy(&reply).contains("hunter2"), "{reply:?}");
}

#[tokio::test]
async fn bodies_are_bounded_in_size() {
    let (_, router) = start();
    for path in ["/v1/lease", "/v1/operator"] {
        let (status, _) = send(&router, Some(FRONT), "POST", path, vec![b' '; MAX_REQUEST + 1]).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
        let (status, _) = send(&router, Some(FRONT), "POST", path, vec![b' '; MAX_REQUEST]).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
    }
}

#[tokio::test(start_paused = true)]
async fn bodies_are_bounded_in_time() {
    let (_, router) = start();
    let start = tokio::time::Instant::now();
    let (status, _) = send(&router, Some(FRONT), "POST", "/v1/lease", Body::new(Never)).await;
    assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
    assert!(start.elapsed() < Duration::from_secs(6));
}

/// A body that never comes.
struct Never;

impl axum::body::HttpBody for Never {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Pending
    }
}

#[tokio::test(start_paused = true)]
async fn the_waiting_are_bounded_by_peer_and_in_all_and_give_their_places_back() {
    let mut rules: Rules = rules();
    let peers = (MAX_WAITERS / MAX_WAITERS_PER_PEER) as u32 + 1;
    for number in 0..peers {
        rules.grants.allow(SERVICE + number, reference(PASSWORD));
    }
    let store = Store::create(disk(), keys(1)).unwrap();
    let vault = Arc::new(Vault::new(store, rules, || NOW, |_| {}));
    let router = router(vault.clone());
    let wait = |uid: u32| {
        let router = router.clone();
        tokio::spawn(async move { lease(&router, uid, &[PASSWORD], 30_000).await.0 })
    };
    let mut waiting = Vec::new();
    for _ in 0..MAX_WAITERS_PER_PEER {
        waiting.push(wait(SERVICE));
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(lease(&router, SERVICE, &[PASSWORD], 30_000).await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        lease(&router, SERVICE, &[PASSWORD], 0).await.0,
        StatusCode::CONFLICT,
        "asking without waiting works"
    );
    for number in 1..peers - 1 {
        waiting.extend((0..MAX_WAITERS_PER_PEER).map(|_| wait(SERVICE + number)));
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    let last = SERVICE + peers - 1;
    assert_eq!(lease(&router, last, &[PASSWORD], 30_000).await.0, StatusCode::SERVICE_UNAVAILABLE);
    // A peer that goes away leaves its place.
    waiting.pop().unwrap().abort();
    tokio::time::sleep(Duration::from_millis(10)).await;
    waiting.push(wait(last));
    tokio::time::sleep(Duration::from_millis(10)).await;
    put(&vault, PASSWORD, b"correct horse");
    for task in waiting {
        assert_eq!(task.await.unwrap(), StatusCode::OK);
    }
}

#[tokio::test]
async fn the_largest_lease_is_whole() {
    let mut rules = rules();
    let names: Vec<_> = (0..64).map(|n| format!("secret://app/large/f{n}")).collect();
    for name in &names {
        rules.grants.allow(SERVICE, reference(name));
    }
    let store = Store::create(disk(), keys(1)).unwrap();
    let vault = Arc::new(Vault::new(store, rules, || NOW, |_| {}));
    // Printable bytes: a value of line breaks alone could not be redacted and is refused.
    let content = |number: usize| vec![b'!' + number as u8; MAX_VALUE];
    for (number, name) in names.iter().enumerate() {
        assert_eq!(put(&vault, name, &content(number)).status, StatusCode::OK);
    }
    let references: Vec<_> = names.iter().map(String::as_str).collect();
    let (status, body) = lease(&router(vault), SERVICE, &references, 0).await;
    assert_eq!(status, StatusCode::OK);
    assert!(body.len() <= cofferdam_protocol::vault::MAX_REPLY);
    for (number, name) in names.iter().enumerate() {
        assert_eq!(value(&body, name), content(number));
    }
}

#[tokio::test]
async fn the_longest_audit_line_is_bounded() {
    let longest = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let seen = longest.clone();
    let store = Store::create(disk(), keys(1)).unwrap();
    let vault = Arc::new(Vault::new(
        store,
        rules(),
        || NOW,
        move |event| {
            seen.fetch_max(event.to_string().len(), std::sync::atomic::Ordering::Relaxed);
        },
    ));
    let part = "x".repeat(63);
    let names: Vec<_> = (10..74).map(|n| format!("secret://{part}/{part}/{n}{}", "x".repeat(61))).collect();
    let references: Vec<_> = names.iter().map(String::as_str).collect();
    assert_eq!(lease(&router(vault), SERVICE, &references, 0).await.0, StatusCode::FORBIDDEN);
    let longest = longest.load(std::sync::atomic::Ordering::Relaxed);
    assert!((10_000..14_336).contains(&longest), "{longest}");
}

#[tokio::test]
async fn an_operators_largest_secret_passes_the_socket() {
    let (vault, router) = start();
    let body = sealed(&vault, PASSWORD, &vec![7; MAX_VALUE]);
    let request = serde_json::to_string(&signed("PUT", &path(PASSWORD), &body, &id())).unwrap();
    let (status, _) = send(&router, Some(FRONT), "POST", "/v1/operator", request.clone()).await;
    assert_eq!(status, StatusCode::OK);
    let (status, _) = send(&router, Some(SERVICE), "POST", "/v1/operator", request).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn everything_else_is_not_there() {
    let (_, router) = start();
    for path in
        ["/", "/v1", "/v1/status", "/v1/secrets", "/v1/export", "/metrics", "/v1/lease/", "//v1/lease"]
    {
        assert_eq!(send(&router, Some(FRONT), "GET", path, "").await.0, StatusCode::NOT_FOUND, "{path}");
    }
    for (method, path) in
        [("GET", "/v1/lease"), ("PUT", "/v1/key"), ("DELETE", "/v1/operator"), ("TRACE", "/v1/key")]
    {
        let (status, body) = send(&router, Some(FRONT), method, path, "").await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        serde_json::from_slice::<ErrorReply>(&body).unwrap();
    }
}

#[tokio::test]
async fn removing_a_secret_cuts_access_at_once() {
    let (vault, router) = start();
    put(&vault, PASSWORD, b"correct horse");
    assert_eq!(lease(&router, SERVICE, &[PASSWORD], 0).await.0, StatusCode::OK);
    vault.operate(FRONT, &signed("DELETE", &path(PASSWORD), b"", &id()));
    let started = Instant::now();
    assert_eq!(lease(&router, SERVICE, &[PASSWORD], 0).await.0, StatusCode::CONFLICT);
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_disk_that_fails_or_vanishes_ends_the_changes_and_no_lease() {
    // Once without the disk, and before each write of a change: the record alone, or pages and record.
    changes_that_fail(b"a newer value", 2).await;
    changes_that_fail(&[b'n'; 4000], 3).await;
}

async fn changes_that_fail(newer: &[u8], wanted: usize) {
    let disk = state::SparseDisk::new(16 << 20);
    let store = Store::create(disk.clone(), keys(1)).unwrap();
    let vault = Arc::new(Vault::new(store, rules(), || NOW, |_| {}));
    let router = router(vault.clone());
    put(&vault, USER, b"a user's name");
    put(&vault, PASSWORD, b"correct horse");
    let change = async |method: &str, value: &[u8]| {
        let body = if method == "PUT" { sealed(&vault, PASSWORD, value) } else { Vec::new() };
        let request = signed(method, &path(PASSWORD), &body, &id());
        send(&router, Some(FRONT), "POST", "/v1/operator", serde_json::to_vec(&request).unwrap()).await
    };
    let length = 16 << 20;
    // It vanishes, and comes back; or takes so many writes more and then none.
    let faults = std::iter::once((0, usize::MAX)).chain((0..64).map(|writes| (length, writes)));
    let mut failed = 0;
    for (length_now, writes) in faults {
        disk.with(|disk| (disk.length, disk.writes) = (length_now, writes));
        let (status, body) = change("PUT", newer).await;
        if status == StatusCode::OK {
            break;
        }
        failed += 1;
        let reply: ErrorReply = serde_json::from_slice(&body).unwrap();
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{writes} {reply:?}");
        let words = ["the store's disk does not take the change", "of the store's disk cannot be read"];
        assert!(words.iter().any(|words| reply.error.ends_with(words)), "{reply:?}");
        if writes == 0 || length_now == 0 {
            assert_eq!(change("DELETE", b"").await.0, StatusCode::SERVICE_UNAVAILABLE);
        }
        let (status, body) = lease(&router, SERVICE, &[PASSWORD, USER], 0).await;
        assert_eq!((status, value(&body, PASSWORD)), (StatusCode::OK, b"correct horse".to_vec()));
        // What was acknowledged is what a vault finds that is started now.
        disk.with(|disk| (disk.length, disk.writes) = (length, usize::MAX));
        let found = Store::open(disk.copy(), keys(1), None).unwrap();
        assert_eq!(found.get(&reference(PASSWORD)).unwrap().unwrap().expose(), b"correct horse");
        assert_eq!(found.get(&reference(USER)).unwrap().unwrap().expose(), b"a user's name");
    }
    assert_eq!(failed, wanted);
    disk.with(|disk| disk.writes = usize::MAX);
    assert_eq!(change("PUT", b"the newest value").await.0, StatusCode::OK);
    let found = Store::open(disk.copy(), keys(1), None).unwrap();
    assert_eq!(found.get(&reference(PASSWORD)).unwrap().unwrap().expose(), b"the newest value");
}
