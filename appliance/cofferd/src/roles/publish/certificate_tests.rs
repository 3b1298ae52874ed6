//! An authority that lies: whatever it answers, there is a bounded error and no certificate. `front/browser_tests` has a whole order at a
//! real one.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::{Body, Bytes};
use axum::http::{Method, Request, Response};
use cofferdam_attest::ratls;
use cofferdam_declaration::Certificate;
use cofferdam_protocol::base64;
use serde_json::{Value, json};

use super::*;
use crate::roles::testing::TlsServer;

const NAME: &str = "shop.example.test";

/// What the authority answers instead of the truth, to which path.
type Lie = Box<dyn Fn(&str, &str) -> Option<Response<Body>> + Send + Sync>;

fn answer(status: u16, media_type: &str, body: impl Into<Body>) -> Response<Body> {
    static NONCE: AtomicUsize = AtomicUsize::new(0);
    let nonce = format!("nonce{}", NONCE.fetch_add(1, Ordering::Relaxed));
    let response = Response::builder().status(status).header("content-type", media_type);
    response.header("replay-nonce", nonce).body(body.into()).unwrap()
}

fn found(status: u16, location: &str, body: &Value) -> Response<Body> {
    let mut response = answer(status, "application/json", body.to_string());
    response.headers_mut().insert("location", location.parse().unwrap());
    response
}

/// An authority that does as it should with whatever `lie` leaves to it, and what it was asked for.
fn authority(server: TlsServer, chain: String, lie: Lie) -> Arc<Mutex<Vec<String>>> {
    let (root, log) = (server.root.clone(), Arc::new(Mutex::new(Vec::new())));
    let asked = Arc::clone(&log);
    server.serve(move |request: Request<Bytes>| {
        let path = request.uri().path().to_owned();
        asked.lock().unwrap().push(format!("{} {path}", request.method()));
        let order = json!({
            "status": "valid", "authorizations": [format!("{root}/name")],
            "finalize": format!("{root}/finalize"), "certificate": format!("{root}/chain"),
        });
        let response = lie(&path, &root).unwrap_or_else(|| match path.as_str() {
            "/dir" => {
                assert_eq!(request.method(), Method::GET);
                let of = |name: &str| format!("{root}/{name}");
                let urls = json!({"newNonce": of("nonce"), "newAccount": of("account"), "newOrder": of("order")});
                let mut answer = answer(200, "application/json", urls.to_string());
                answer.headers_mut().remove("replay-nonce");
                answer
            }
            "/nonce" => answer(200, "text/plain", Body::empty()),
            "/account" => found(201, &format!("{root}/account/1"), &json!({"status": "valid"})),
            "/order" | "/order/1" => found(201, &format!("{root}/order/1"), &order),
            "/name" => answer(
                200,
                "application/json; charset=utf-8",
                json!({"identifier": {"type": "dns", "value": "Shop.Example.Test"}, "status": "pending", "challenges": [
                    {"type": "http-01", "url": format!("{root}/no"), "token": "x"},
                    {"type": "tls-alpn-01", "url": format!("{root}/ready"), "token": "dG9rZW4"},
                ]})
                .to_string(),
            ),
            "/ready" | "/finalize" => answer(200, "application/json", order.to_string()),
            "/chain" => answer(200, "application/pem-certificate-chain", chain.clone()),
            other => panic!("{other}"),
        });
        async move { response }
    });
    log
}

/// What one attempt comes to with an authority that lies, and what that was asked for.
async fn order(chain: impl FnOnce(&[u8]) -> String, lie: Lie) -> (Result<Moment, OrderError>, Vec<String>) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let server = TlsServer::bind().await;
    let declared = Certificate {
        names: vec![NAME.to_owned()],
        directory: format!("{}/dir", server.root).parse().unwrap(),
        contact: Vec::new(),
        ca: Some(server.ca.clone()),
    };
    let (browser, account, facts) = crate::boot::certificate_keys(&declared);
    let log = authority(server, chain(&browser), lie);
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let paths = Paths {
        appliance: path("appliance.json"),
        changes: path("changes.json"),
        directory: directory.path().to_owned(),
        evidence: path("evidence.sock"),
        vault: path("vault.sock"),
        bundle: path("none"),
    };
    let events = Arc::new(Ring::at(path("events")));
    let key = AccountKey::new(&account).unwrap();
    let mut keeper = Keeper::new(facts, key, paths, events, watch::channel(None).0);
    let outcome = tokio::time::timeout(Duration::from_secs(60), keeper.order()).await.unwrap();
    assert!(!path("challenges.json").exists(), "nothing is answered any more");
    assert_eq!(path("chain.pem").exists(), outcome.is_ok());
    let log = log.lock().unwrap().clone();
    (outcome, log)
}

fn certificate(key: &[u8], name: &str, from: u64) -> String {
    let der = ratls::certificate(key, b"{}", &[name.to_owned()], from, 3600).unwrap();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", base64::encode(der))
}

fn good(key: &[u8]) -> String {
    certificate(key, NAME, clock::unix_now() - 60)
}

fn nothing() -> Lie {
    Box::new(|_, _| None)
}

/// At this path it answers this.
fn at(path: &'static str, made: impl Fn(&str) -> Response<Body> + Send + Sync + 'static) -> Lie {
    Box::new(move |asked, root| (asked == path).then(|| made(root)))
}

async fn refused(lie: Lie) -> (String, Vec<String>) {
    let (outcome, log) = order(good, lie).await;
    (error_chain(&outcome.unwrap_err()), log)
}

#[tokio::test]
async fn an_honest_authority_gives_a_certificate() {
    let (outcome, log) = order(good, nothing()).await;
    outcome.unwrap();
    let account = log.iter().position(|asked| asked == "POST /account").unwrap();
    assert_eq!(log[..account], ["GET /dir", "HEAD /nonce"]);
}

#[tokio::test]
async fn a_certificate_that_is_not_the_appliances_is_not_taken() {
    let now = clock::unix_now();
    let other = ratls::generate_key().unwrap();
    type Issue = Box<dyn FnOnce(&[u8]) -> String>;
    let cases: [(&str, Issue); 6] = [
        ("for the key", Box::new(move |_| certificate(&other, NAME, now - 60))),
        ("other names", Box::new(move |key| certificate(key, "other.example.test", now - 60))),
        ("not valid now", Box::new(move |key| certificate(key, NAME, now - 7200))),
        ("not valid now", Box::new(move |key| certificate(key, NAME, now + 3600))),
        ("certificates in a chain", Box::new(|_| "no certificate".to_owned())),
        ("certificates in a chain", Box::new(move |key| certificate(key, NAME, now - 60).repeat(9))),
    ];
    for (says, chain) in cases {
        let (outcome, _) = order(chain, nothing()).await;
        let error = error_chain(&outcome.unwrap_err());
        assert!(error.contains(says), "{says}: {error}");
    }
}

#[tokio::test]
async fn an_authority_that_lies_is_not_followed() {
    let page = |body: String| answer(200, "application/json", body);
    for (lie, says) in [
        (at("/dir", |_| found(302, "https://elsewhere.example/dir", &json!({}))), "302"),
        (at("/dir", move |_| page(" ".repeat(1 << 20))), "more than"),
        (at("/dir", |_| answer(200, "text/html", "<html>")), "media type"),
        (at("/dir", move |_| page("{".to_owned())), "cannot be read"),
        (
            at("/dir", move |_| {
                let away = "https://169.254.169.254/latest";
                page(json!({"newNonce": away, "newAccount": away, "newOrder": away}).to_string())
            }),
            "not at its directory's origin",
        ),
        (at("/nonce", |_| Response::new(Body::empty())), "no nonce"),
        (at("/account", |_| found(201, "https://elsewhere.example/account", &json!({}))), "origin"),
        (
            at("/account", |root| found(201, &format!("{root}/account/1?x=y"), &json!({}))),
            "URL of the account",
        ),
        (at("/account", move |_| page("{}".to_owned())), "no Location"),
        (
            at("/name", |_| {
                let other =
                    json!({"identifier": {"type": "dns", "value": "other.example"}, "status": "pending"});
                answer(200, "application/json", other.to_string())
            }),
            "does not ask for a proof over TLS",
        ),
        (at("/chain", |_| answer(200, "text/plain", "-----BEGIN CERTIFICATE-----")), "media type"),
        (
            at("/chain", |_| answer(200, "application/pem-certificate-chain", "x".repeat(1 << 20))),
            "more than",
        ),
        (
            at("/order/1", |root| {
                let order = json!({"status": "invalid", "finalize": format!("{root}/finalize"), "authorizations": [],
                    "error": {"type": "urn:ietf:params:acme:error:caa", "detail": "forbidden by\u{7} CAA"}});
                answer(200, "application/json", order.to_string())
            }),
            "invalid",
        ),
    ] {
        let (error, log) = refused(lie).await;
        assert!(error.contains(says), "{says}: {error}");
        assert!(log.len() < 20, "{says}: {log:?}");
        assert!(error.len() < 2000 && !error.contains('\u{7}'));
    }
}

#[tokio::test]
async fn nonces_that_are_never_good_are_tried_a_few_times() {
    let problem = json!({"type": "urn:ietf:params:acme:error:badNonce", "detail": "no"});
    let lie = at("/account", move |_| answer(400, "application/problem+json", problem.to_string()));
    let (error, log) = refused(lie).await;
    assert!(error.contains("badNonce"), "{error}");
    assert_eq!(log.iter().filter(|asked| *asked == "POST /account").count(), 3);
}

#[tokio::test]
async fn limits_are_honoured_and_have_a_bound() {
    let limited = |header: Option<&'static str>| {
        at("/order", move |_| {
            let problem = json!({"type": "urn:ietf:params:acme:error:rateLimited", "detail": "too many"});
            let mut response = answer(429, "application/problem+json", problem.to_string());
            if let Some(value) = header {
                response.headers_mut().insert("retry-after", value.parse().unwrap());
            }
            response
        })
    };
    let pause = Duration::from_secs(60);
    for (header, waits) in [
        (Some("7200"), Duration::from_secs(7200)),
        (Some("1"), pause),
        (Some("99999999999"), LONGEST_IMPOSED),
        (Some("-5"), LONGEST_PAUSE),
        (Some("soon"), LONGEST_PAUSE),
        (Some("Fri, 31 Dec 9999 23:59:59 GMT"), LONGEST_IMPOSED),
        (None, LONGEST_PAUSE),
    ] {
        let (outcome, _) = order(good, limited(header)).await;
        let error = outcome.unwrap_err();
        assert_eq!(wait(&error, pause), waits, "{header:?}");
        assert!(error_chain(&error).contains("rateLimited: too many"), "{error:?}");
    }
    assert_eq!(wait(&OrderError::Late, pause), pause);
}
