//! The GitHub client against a scripted server on loopback TLS: what it asks, what it believes, when it gives up.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cofferdam_attest::ratls;
use cofferdam_github::{Asset, Cache, Client, GithubError, Head, NewAsset, NewRelease, Release, Requests};
use cofferdam_protocol::{Commit, Digest, Repository};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

const TOKEN: &str = "ghp_secret0123456789";

/// One scripted answer: what the request line must begin with, then status, headers and body.
struct Step(&'static str, u16, Vec<(&'static str, String)>, String);

/// A server that answers each request with the next step and remembers what it was asked.
struct Server {
    root: String,
    ca: String,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// `{root}` in a header or body stands for the server's own `https://127.0.0.1:PORT`.
    async fn start(steps: Vec<Step>) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let key = ratls::generate_key().unwrap();
        let der = ratls::certificate(&key, b"{}", &["127.0.0.1".to_owned()], now - 60, 3600).unwrap();
        let ca = format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            STANDARD
                .encode(&der)
                .as_bytes()
                .chunks(64)
                .map(|l| std::str::from_utf8(l).unwrap())
                .collect::<Vec<_>>()
                .join("\n")
        );
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from(der)],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec())),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let root = format!("https://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, base) = (Arc::clone(&seen), root.clone());
        tokio::spawn(async move {
            let mut steps = steps.into_iter();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // A client that goes away early is part of some tests.
                let _ = answer(&acceptor, stream, &mut steps, &base, &log).await;
            }
        });
        Self { root, ca, seen }
    }

    fn client(&self) -> Client {
        let token = Zeroizing::new(TOKEN.to_owned());
        Client::new(&format!("{}/api/v3", self.root), Some(token), Some(&self.ca), "cofferdam-test/1")
            .unwrap()
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    /// Request lines without the version.
    fn lines(&self) -> Vec<String> {
        let line = |request: &String| request.lines().next().unwrap().replace(" HTTP/1.1", "");
        self.seen().iter().map(line).collect()
    }
}

/// Serves one request on one connection; `None` when the client went away first.
async fn answer(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    steps: &mut impl Iterator<Item = Step>,
    base: &str,
    log: &Mutex<Vec<String>>,
) -> Option<()> {
    let mut stream = acceptor.accept(stream).await.ok()?;
    let mut request = Vec::new();
    let mut chunk = [0; 16 * 1024];
    let text = loop {
        let count = stream.read(&mut chunk).await.ok().filter(|count| *count > 0)?;
        request.extend_from_slice(&chunk[..count]);
        let text = String::from_utf8_lossy(&request).to_string();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head
            .lines()
            .find_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
        if body.len() >= length.unwrap_or(0) {
            break text;
        }
    };
    log.lock().unwrap().push(text.clone());
    let Step(wanted, status, headers, body) =
        steps.next().unwrap_or(Step("", 500, vec![], "{\"message\":\"nothing is scripted\"}".into()));
    assert!(text.starts_with(wanted), "wanted {wanted}, got {text}");
    if status == 0 {
        // Others are answered meanwhile.
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(30)).await;
            drop(stream);
        });
        return None;
    }
    let body = body.replace("{root}", base);
    let mut head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {}\r\n", value.replace("{root}", base)));
    }
    stream.write_all(format!("{head}\r\n{body}").as_bytes()).await.ok()?;
    stream.shutdown().await.ok()
}

fn step(line: &'static str, status: u16, body: impl Into<String>) -> Step {
    Step(line, status, vec![], body.into())
}

fn repository() -> Repository {
    "acme/shop".parse().unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

fn asset_json(id: u64, name: &str, bytes: &[u8]) -> String {
    format!(
        r#"{{"id":{id},"name":"{name}","size":{},"digest":"{}","state":"uploaded"}}"#,
        bytes.len(),
        sha256(bytes)
    )
}

fn release_json(draft: bool, assets: &str) -> String {
    format!(
        r#"{{"id":7,"tag_name":"attest-20260102T030405Z-0a1b2c3d","target_commitish":"main","draft":{draft},"immutable":{},
        "created_at":"2026-01-02T03:04:05Z","published_at":null,"html_url":"https://h/","assets":[{assets}],"unknown":{{}},
        "upload_url":"{{root}}/api/uploads/repos/acme/shop/releases/7/assets{{?name,label}}"}}"#,
        !draft
    )
}

fn file_json() -> String {
    let content = r"aGVs\nbG8gd29y\nbGQ=\n";
    let sha = "b".repeat(40);
    format!(
        r#"{{"type":"file","size":11,"encoding":"base64","sha":"{sha}","content":"{content}","name":"x"}}"#
    )
}

/// A cache in memory that can be looked into.
#[derive(Default)]
struct Memory(Mutex<HashMap<String, Vec<u8>>>);

impl Cache for Memory {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.0.lock().unwrap().get(key).cloned()
    }

    fn put(&self, key: &str, value: &[u8]) {
        self.0.lock().unwrap().insert(key.to_owned(), value.to_vec());
    }
}

fn commit_json(sha: &str) -> String {
    format!(r#"{{"sha":"{sha}","commit":{{"message":"","committer":null}}}}"#)
}

/// A commit.
fn at() -> Commit {
    [0xaa; 20].into()
}

fn new_release() -> NewRelease {
    NewRelease {
        tag_name: "attest-20260102T030405Z-0a1b2c3d".into(),
        target_commitish: [0xcc; 20].into(),
        name: "attestation".into(),
        body: "text".into(),
    }
}

fn new_asset() -> NewAsset {
    NewAsset {
        name: "attestation.json".into(),
        content_type: "application/json",
        bytes: b"{\"version\":1}".to_vec(),
    }
}

#[tokio::test]
async fn contents_are_asked_for_at_a_commit_and_decoded() {
    let server = Server::start(vec![step("GET ", 200, file_json())]).await;
    let contents = server.client().contents(&repository(), "dir/a b?.yaml", at()).await.unwrap();
    assert_eq!(contents, b"hello world");
    let request = server.seen()[0].to_lowercase();
    let whole = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    let path = format!("/api/v3/repos/acme/shop/contents/dir/a%20b%3F.yaml?ref={whole}");
    assert!(server.lines()[0].ends_with(&path));
    assert!(request.contains(&format!("authorization: bearer {TOKEN}")));
    assert!(request.contains("user-agent: cofferdam-test/1"));
    assert!(request.contains("accept: application/vnd.github+json"));
}

#[tokio::test]
async fn nothing_is_asked_with_names_that_are_tricks() {
    let server = Server::start(vec![]).await;
    let client = server.client();
    for path in ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a"] {
        assert!(
            matches!(client.contents(&repository(), path, at()).await, Err(GithubError::Config(_))),
            "{path}"
        );
    }
    for tag in ["", "..", "a/../b", "a b", "a?b", "a#b", "/a"] {
        let asked = client.release_by_tag(&repository(), tag).await;
        assert!(matches!(asked, Err(GithubError::Config(_))), "{tag}");
    }
    for name in ["acme", "acme/..", "../shop", "acme/a/b", "ac me/shop", "acme/", "/shop", "-a/b"] {
        assert!(name.parse::<Repository>().is_err(), "{name}");
    }
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn roots_other_than_plain_https_are_refused() {
    let new = |root: &str| Client::new(root, None, None, "x");
    for root in
        ["http://127.0.0.1/", "ftp://h", "not a url", "https://h/?x=1", "https://user@h/", "https://h/#x"]
    {
        assert!(matches!(new(root), Err(GithubError::Config(_))), "{root}");
    }
    let bad = Client::new("https://h", Some(Zeroizing::new("a\nb".into())), None, "x");
    assert!(matches!(bad, Err(GithubError::Config(_))));
    assert!(matches!(Client::new("https://h", None, Some("no pem"), "x"), Err(GithubError::Config(_))));
}

#[tokio::test]
async fn errors_are_told_apart() {
    let message = |text: &str| format!("{{\"message\":\"{text}\"}}");
    let limited =
        vec![("x-ratelimit-remaining", "0".to_owned()), ("x-ratelimit-reset", "99999999999".to_owned())];
    let server = Server::start(vec![
        step("GET ", 404, message("Not Found")),
        step("GET ", 401, message("Bad credentials")),
        step("GET ", 403, message("Resource not accessible")),
        Step("GET ", 403, limited, message("API rate limit exceeded")),
        step("GET ", 422, message("No commit found")),
        step("GET ", 200, "<html>"),
        step("GET ", 200, r#"{"sha":"short","commit":{"message":"","committer":null}}"#),
        Step("GET ", 301, vec![("Location", "{root}/repositories/1".to_owned())], String::new()),
        step("GET ", 302, ""),
        step("GET ", 400, "<html>"),
        step("GET ", 200, commit_json(&"b".repeat(40))),
    ])
    .await;
    let client = server.client();
    let mut errors = Vec::new();
    for _ in 0..11 {
        errors.push(client.commit(&repository(), at()).await.unwrap_err());
    }
    assert!(matches!(errors[0], GithubError::NotFound));
    assert!(matches!(&errors[1], GithubError::Unauthorized(text) if text == "Bad credentials"));
    assert!(matches!(&errors[2], GithubError::Unauthorized(_)));
    assert!(
        matches!(&errors[3], GithubError::RateLimited { retry_after, .. } if retry_after.as_secs() > 3600)
    );
    assert!(matches!(&errors[4], GithubError::Refused(text) if text == "No commit found"));
    assert!(matches!(&errors[5], GithubError::Malformed(_)));
    assert!(matches!(&errors[6], GithubError::Malformed(_)));
    assert!(matches!(errors[7], GithubError::Moved));
    assert!(matches!(&errors[8], GithubError::Malformed(_)));
    assert!(matches!(&errors[9], GithubError::Refused(text) if !text.contains('<')));
    assert!(matches!(&errors[10], GithubError::Malformed(text) if text.contains("another commit")));
    let transient: Vec<bool> = errors.iter().map(GithubError::is_transient).collect();
    assert_eq!(transient.iter().filter(|is| **is).count(), 1);
    for error in &errors {
        assert!(!format!("{error} {error:?}").contains(TOKEN));
    }
    assert!(!format!("{client:?}").contains(TOKEN));
    assert_eq!(server.seen().len(), 11, "none of these is retried");
}

#[tokio::test]
async fn only_github_itself_refuses_a_token() {
    let message = "{\"message\":\"go away\"}";
    let asset: Asset = serde_json::from_str(&asset_json(9, "a", b"12345")).unwrap();
    let redirect = || Step("GET ", 302, vec![("Location", "{root}/storage/9".to_owned())], String::new());
    let slow = vec![("Retry-After", "77".to_owned())];
    let mut steps = Vec::new();
    for status in [401, 403] {
        // A portal in front of the API, then the storage host in its words and in GitHub's.
        steps.push(step("GET ", status, "<html>log in to the network</html>"));
        for body in ["<Error>AccessDenied</Error>", message] {
            steps.extend([redirect(), step("GET ", status, body)]);
        }
        steps.extend([
            step("GET ", status, message),
            step("POST ", status, "<html>"),
            step("GET ", 404, "{}"),
        ]);
    }
    steps.extend([redirect(), Step("GET ", 403, slow, "<html>".into())]);
    let server = Server::start(steps).await;
    let client = server.client();
    for _ in 0..2 {
        let portal = client.commit(&repository(), at()).await.unwrap_err();
        assert!(matches!(&portal, GithubError::Malformed(text) if !text.contains('<')), "{portal:?}");
        for _ in 0..2 {
            let storage = client.download(&repository(), &asset, 9).await.unwrap_err();
            assert!(matches!(&storage, GithubError::Malformed(_)), "{storage:?}");
        }
        let api = client.download(&repository(), &asset, 9).await.unwrap_err();
        assert!(matches!(&api, GithubError::Unauthorized(text) if text == "go away"), "{api:?}");
        // Where git is refused the API is asked.
        assert!(matches!(client.default_head(&repository()).await, Err(GithubError::NotFound)));
    }
    // A limit stays one, whoever says it.
    let limited = client.with_deadline(Duration::from_secs(5)).download(&repository(), &asset, 9).await;
    assert!(matches!(limited, Err(GithubError::RateLimited { .. })), "{limited:?}");
}

#[tokio::test]
async fn failures_of_the_server_are_retried_and_its_pace_is_kept() {
    let commit = format!(
        r#"{{"sha":"{}","commit":{{"message":"m","committer":{{"date":"2026-01-02T03:04:05Z"}}}}}}"#,
        "a".repeat(40)
    );
    let server = Server::start(vec![
        step("GET ", 500, "{}"),
        Step("GET ", 429, vec![("Retry-After", "1".to_owned())], "{}".into()),
        step("GET ", 200, commit),
    ])
    .await;
    let begun = Instant::now();
    assert_eq!(server.client().commit(&repository(), at()).await.unwrap().sha.to_string(), "a".repeat(40));
    assert!(
        begun.elapsed() >= Duration::from_millis(1_500),
        "0.5 s back-off, then the 1 s that was asked for"
    );
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn the_callers_deadline_bounds_everything() {
    let server =
        Server::start((0..5).map(|_| step("GET ", 502, "{\"message\":\"bad\\u0007 gateway\"}")).collect())
            .await;
    let client = server.client().with_deadline(Duration::from_millis(800));
    let begun = Instant::now();
    let error = client.commit(&repository(), at()).await.unwrap_err();
    assert!(
        matches!(&error, GithubError::Server { status: 502, message } if message == "bad gateway"),
        "{error:?}"
    );
    assert!(error.is_transient() && begun.elapsed() < Duration::from_secs(2));

    let silent = Server::start(vec![step("GET ", 0, "")]).await;
    let client = silent.client().with_deadline(Duration::from_millis(300));
    assert!(matches!(client.commit(&repository(), at()).await, Err(GithubError::Timeout)));

    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let root = format!("https://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let client = Client::new(&root, None, None, "x").unwrap().with_deadline(Duration::from_millis(300));
    assert!(matches!(client.commit(&repository(), at()).await, Err(GithubError::Unreachable(_))));
}

#[tokio::test]
async fn a_server_of_another_authority_is_not_talked_to() {
    let (server, other) = (Server::start(vec![]).await, Server::start(vec![]).await);
    for ca in [Some(other.ca.as_str()), None] {
        let token = Some(Zeroizing::new(TOKEN.to_owned()));
        let client =
            Client::new(&server.root, token, ca, "x").unwrap().with_deadline(Duration::from_millis(300));
        assert!(matches!(client.commit(&repository(), at()).await, Err(GithubError::Unreachable(_))));
    }
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn bodies_are_bounded() {
    let huge = format!("[{}]", " ".repeat(4 * 1024 * 1024));
    let server = Server::start(vec![step("GET ", 200, huge)]).await;
    let error = server.client().releases(&repository(), 1).await.unwrap_err();
    assert!(matches!(&error, GithubError::Malformed(text) if text.contains("more than")), "{error:?}");
}

#[tokio::test]
async fn assets_come_from_storage_without_the_token() {
    let bytes = b"{\"version\":1}";
    let asset: Asset = serde_json::from_str(&asset_json(9, "attestation.json", bytes)).unwrap();
    let redirect = |to: &str| Step("GET ", 302, vec![("Location", to.to_owned())], String::new());
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let server = Server::start(vec![
        redirect("{root}/storage/9?signature=abc"),
        step("GET /storage/9?signature=abc", 200, text.clone()),
    ])
    .await;
    assert_eq!(server.client().download(&repository(), &asset, 1024).await.unwrap(), bytes);
    let seen = server.seen();
    assert!(seen[0].starts_with("GET /api/v3/repos/acme/shop/releases/assets/9 "));
    assert!(seen[0].contains(TOKEN) && !seen[1].contains(TOKEN));
    assert!(seen[0].to_lowercase().contains("accept: application/octet-stream"));

    let server = Server::start(vec![
        step("GET ", 200, "other bytes!!"),
        step("GET ", 200, format!("{text} ")),
        redirect("http://127.0.0.1/storage"),
    ])
    .await;
    for _ in 0..3 {
        let error = server.client().download(&repository(), &asset, 1024).await.unwrap_err();
        assert!(matches!(error, GithubError::Malformed(_)), "{error:?}");
    }
    assert!(matches!(
        server.client().download(&repository(), &asset, 4).await,
        Err(GithubError::Malformed(_))
    ));
    assert_eq!(server.seen().len(), 3, "an asset that is too large is not even asked for");
    let circle = Server::start((0..10).map(|_| redirect("{root}/again")).collect()).await;
    assert!(matches!(
        circle.client().download(&repository(), &asset, 1024).await,
        Err(GithubError::Malformed(_))
    ));
    assert_eq!(circle.seen().len(), 6);
}

fn numbered(id: u64) -> String {
    release_json(false, "").replace("{root}", "https://h").replace("\"id\":7", &format!("\"id\":{id}"))
}

fn linked(body: String, link: &str) -> Step {
    Step("GET ", 200, vec![("Link", link.to_owned()), ("ETag", "W/\"one\"".to_owned())], body)
}

#[tokio::test]
async fn pages_of_releases_are_followed_within_a_bound_and_each_release_counts_once() {
    let next = "<https://elsewhere.example/?page=9>; rel=\"next\", <https://h/?page=3>; rel=\"last\"";
    let page = |ids: [u64; 2]| format!("[{},{}]", numbered(ids[0]), numbered(ids[1]));
    let script = || {
        vec![
            linked(page([1, 2]), next),
            linked(page([2, 3]), next),
            linked(page([4, 5]), "<https://h/>; rel=\"prev\""),
        ]
    };
    let ids = |releases: &[Release]| releases.iter().map(|release| release.id).collect::<Vec<_>>();
    let server = Server::start(script()).await;
    let all = server.client().all_releases(&repository(), 20, None).await.unwrap();
    assert_eq!((ids(&all.releases), all.complete), (vec![1, 2, 3, 4, 5], true));
    let asked = |page| format!("GET /api/v3/repos/acme/shop/releases?per_page=100&page={page}");
    assert_eq!(server.lines(), [asked(1), asked(2), asked(3)], "our own pages, wherever the links point");

    // No more than what is wanted is on; what is nowhere does not end before the bound.
    let tag = "attest-20260102T030405Z-0a1b2c3d".to_owned();
    for (wanted, asked) in [(tag, 1), ("attest-20260102T030405Z-00000000".to_owned(), 3)] {
        let server = Server::start(script()).await;
        let found = server.client().all_releases(&repository(), 20, Some(&HashSet::from([wanted]))).await;
        assert!(found.unwrap().complete);
        assert_eq!(server.lines().len(), asked);
    }

    let server = Server::start(script()).await;
    let some = server.client().all_releases(&repository(), 2, None).await.unwrap();
    assert_eq!((ids(&some.releases), some.complete), (vec![1, 2, 3], false));
    assert_eq!(server.lines().len(), 2);
}

#[tokio::test]
async fn what_has_not_changed_is_asked_for_conditionally() {
    let unchanged = || step("GET ", 304, "");
    let server =
        Server::start(vec![linked(format!("[{}]", numbered(1)), ""), unchanged(), unchanged()]).await;
    let client = server.client().with_cache(Arc::new(Memory::default()));
    let first = client.all_releases(&repository(), 1, None).await.unwrap();
    assert_eq!(client.all_releases(&repository(), 1, None).await.unwrap(), first);
    assert!(server.seen()[1].to_lowercase().contains("if-none-match: w/\"one\""));
    assert!(!server.seen()[0].to_lowercase().contains("if-none-match"));
    assert_eq!(client.requests(), Requests { api: 2, unchanged: 1, ..Requests::default() });
    // Nobody asked for changes only: then this is no answer.
    let error = server.client().all_releases(&repository(), 1, None).await.unwrap_err();
    assert!(matches!(error, GithubError::Malformed(_)), "{error:?}");
}

fn comparison(status: &str, base: &str, merge_base: &str, files: &str) -> String {
    format!(
        r#"{{"status":"{status}","base_commit":{{"sha":"{base}"}},"merge_base_commit":{{"sha":"{merge_base}"}},"files":[{files}]}}"#
    )
}

#[tokio::test]
async fn what_cannot_change_is_asked_once() {
    let (old, new) = ("a".repeat(40), "b".repeat(40));
    let asset: Asset = serde_json::from_str(&asset_json(9, "attestation.json", b"12345")).unwrap();
    let server = Server::start(vec![
        step("GET ", 200, file_json()),
        step("GET ", 200, comparison("ahead", &old, &old, "")),
        step("GET ", 200, "12345"),
        step("GET ", 200, "54321"),
    ])
    .await;
    let memory = Arc::new(Memory::default());
    let client = server.client().with_cache(Arc::clone(&memory) as Arc<dyn Cache>);
    for _ in 0..2 {
        assert_eq!(client.contents(&repository(), "x", at()).await.unwrap(), b"hello world");
        let found = client.compare(&repository(), old.parse().unwrap(), new.parse().unwrap()).await.unwrap();
        assert_eq!(found.merge_base.to_string(), old);
        assert_eq!(client.download(&repository(), &asset, 9).await.unwrap(), b"12345");
    }
    assert_eq!(server.seen().len(), 3);
    // What is not what the release says is not taken from the cache either, and asked for anew.
    for value in memory.0.lock().unwrap().values_mut() {
        value.reverse();
    }
    assert!(client.download(&repository(), &asset, 9).await.is_err());
    assert_eq!(server.seen().len(), 4);
}

#[tokio::test]
async fn another_token_or_authority_has_another_cache() {
    let file = || step("GET ", 200, file_json());
    let server = Server::start(vec![file(), file(), file()]).await;
    let memory: Arc<dyn Cache> = Arc::new(Memory::default());
    let root = format!("{}/api/v3", server.root);
    let doubled = server.ca.repeat(2);
    for (token, ca) in [(Some("one"), &server.ca), (None, &server.ca), (None, &doubled)] {
        let token = token.map(|token| Zeroizing::new(token.to_owned()));
        let client = Client::new(&root, token, Some(ca), "x").unwrap().with_cache(Arc::clone(&memory));
        client.contents(&repository(), "x", at()).await.unwrap();
    }
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn the_default_branch_is_asked_for_without_a_name_that_a_ref_could_shadow() {
    let commit = "c".repeat(40);
    let line = format!("{commit} HEAD symref-target:refs/heads/trunk\n");
    let answer = format!("{:04x}{line}0000", line.len() + 4);
    let named = r#"{"default_branch":"trunk"}"#;
    let reference =
        |name: &str| format!(r#"{{"ref":"{name}","object":{{"type":"commit","sha":"{commit}"}}}}"#);
    let server = Server::start(vec![
        step("POST ", 200, answer),
        step("POST ", 404, "{}"),
        step("GET ", 200, named),
        step("GET ", 200, reference("refs/heads/trunk")),
        step("POST ", 200, "0000"),
        step("GET ", 200, named),
        step("GET ", 200, reference("refs/tags/trunk")),
        step("POST ", 403, "{}"),
        step("GET ", 404, "{}"),
    ])
    .await;
    let client = server.client();
    let head = |tags| Head { branch: "trunk".to_owned(), commit: commit.parse().unwrap(), tags };
    assert_eq!(client.default_head(&repository()).await.unwrap(), head(Some(vec![])));
    assert_eq!(
        client.default_head(&repository()).await.unwrap(),
        head(None),
        "by the API where git is not spoken"
    );
    assert!(matches!(client.default_head(&repository()).await, Err(GithubError::Malformed(_))));
    assert!(matches!(client.default_head(&repository()).await, Err(GithubError::NotFound)));
    assert_eq!(
        server.lines()[..4],
        [
            "POST /acme/shop.git/git-upload-pack",
            "POST /acme/shop.git/git-upload-pack",
            "GET /api/v3/repos/acme/shop",
            "GET /api/v3/repos/acme/shop/git/ref/heads/trunk",
        ]
    );
    let first = server.seen()[0].to_lowercase();
    assert!(first.contains("git-protocol: version=2") && first.contains("user-agent: git/cofferdam-test/1"));
    let basic = STANDARD.encode(format!("x-access-token:{TOKEN}"));
    assert!(server.seen()[0].contains(&format!("Basic {basic}")));
    assert_eq!(client.requests(), Requests { api: 5, git: 4, ..Requests::default() });
}

#[tokio::test]
async fn where_git_is_silent_or_limits_the_api_is_asked_for_the_head() {
    let commit = "c".repeat(40);
    let reference = format!(r#"{{"ref":"refs/heads/trunk","object":{{"type":"commit","sha":"{commit}"}}}}"#);
    let limited = || vec![("Retry-After", "3600".to_owned())];
    let script = vec![
        Step("POST ", 429, limited(), "{}".into()),
        step("GET ", 200, r#"{"default_branch":"trunk"}"#),
        step("GET ", 200, reference.clone()),
        step("POST ", 0, ""),
        step("GET ", 200, r#"{"default_branch":"trunk"}"#),
        step("GET ", 200, reference),
    ];
    let server = Server::start(script).await;
    let client = server.client();
    let begun = Instant::now();
    for _ in 0..2 {
        let head = Head { branch: "trunk".to_owned(), commit: commit.parse().unwrap(), tags: None };
        assert_eq!(client.default_head(&repository()).await.unwrap(), head);
    }
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(client.requests(), Requests { api: 4, git: 2, ..Requests::default() }, "git once each");
}

#[tokio::test]
async fn an_unchanged_full_page_does_not_end_the_list() {
    let page = |ids: std::ops::Range<u64>| format!("[{}]", ids.map(numbered).collect::<Vec<_>>().join(","));
    let server =
        Server::start(vec![linked(page(0..100), ""), step("GET ", 304, ""), linked(page(100..101), "")])
            .await;
    let client = server.client().with_cache(Arc::new(Memory::default()));
    assert_eq!(client.all_releases(&repository(), 20, None).await.unwrap().releases.len(), 100);
    let grown = client.all_releases(&repository(), 20, None).await.unwrap();
    assert_eq!((grown.releases.len(), grown.complete), (101, true));
}

#[tokio::test]
async fn a_draft_with_the_wanted_tag_does_not_end_the_list() {
    let next = "<https://h/?page=2>; rel=\"next\"";
    let draft = release_json(true, "").replace("{root}", "https://h");
    let server =
        Server::start(vec![linked(format!("[{draft}]"), next), linked(format!("[{}]", numbered(8)), "")])
            .await;
    let wanted = HashSet::from(["attest-20260102T030405Z-0a1b2c3d".to_owned()]);
    let found = server.client().all_releases(&repository(), 20, Some(&wanted)).await.unwrap();
    assert_eq!(found.releases.iter().map(|release| release.draft).collect::<Vec<_>>(), [true, false]);
}

#[tokio::test]
async fn commits_are_compared_by_their_whole_names_and_no_answer_is_not_no() {
    let (old, new) = ("a".repeat(40), "b".repeat(40));
    let unrelated = format!("{{\"message\":\"No common ancestor between {old} and {new}.\"}}");
    let server = Server::start(vec![
        step(
            "GET ",
            200,
            comparison("ahead", &old, &old, r#"{"filename":"x","status":"modified","sha":null}"#),
        ),
        step("GET ", 200, comparison("diverged", &old, &"c".repeat(40), "")),
        step("GET ", 404, unrelated),
        step("GET ", 404, "{\"message\":\"Not Found\"}"),
        step("GET ", 200, comparison("ahead", &new, &new, "")),
        step("GET ", 200, "<html>"),
    ])
    .await;
    let client = server.client();
    let compare = async || client.compare(&repository(), old.parse().unwrap(), new.parse().unwrap()).await;
    assert_eq!(compare().await.unwrap().merge_base.to_string(), old);
    assert_ne!(compare().await.unwrap().merge_base.to_string(), old);
    assert!(matches!(compare().await, Err(GithubError::Unrelated)));
    assert!(matches!(compare().await, Err(GithubError::NotFound)));
    assert!(matches!(compare().await, Err(GithubError::Malformed(_))), "a comparison of other commits");
    assert!(matches!(compare().await, Err(GithubError::Malformed(_))));
    assert!(server.lines()[0].contains(&format!("/compare/{old}...{new}?per_page=1&page=1")));
    assert_eq!(server.seen().len(), 6);
}

#[tokio::test]
async fn a_rate_limit_says_when_it_resets() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let spent =
        vec![("x-ratelimit-remaining", "0".to_owned()), ("x-ratelimit-reset", (now + 1234).to_string())];
    let slow = vec![("Retry-After", "77".to_owned()), ("x-ratelimit-remaining", "12".to_owned())];
    let server = Server::start(vec![
        Step("GET ", 403, spent.clone(), "{}".into()),
        Step("GET ", 429, spent, "{}".into()),
        Step("GET ", 403, slow, "{}".into()),
        step("GET ", 403, "{\"message\":\"You have exceeded a secondary rate limit.\"}"),
    ])
    .await;
    let client = server.client().with_deadline(Duration::from_secs(50));
    for _ in 0..2 {
        let error = client.commit(&repository(), at()).await.unwrap_err();
        let GithubError::RateLimited { resets_at: Some(at), .. } = error else { panic!("{error:?}") };
        assert!(at.abs_diff(now + 1234) <= 5, "{at}");
        let text = error.to_string();
        assert!(text.contains("it resets at 20") && text.contains("Z, in 123"), "{text}");
    }
    let error = client.commit(&repository(), at()).await.unwrap_err();
    assert_eq!(error.to_string(), "GitHub asks to wait 77 s before the next request");
    assert!(matches!(error, GithubError::RateLimited { resets_at: None, .. }));
    let error = client.commit(&repository(), at()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "GitHub asks to wait 60 s before the next request",
        "a minute, as GitHub advises"
    );
    assert_eq!(server.seen().len(), 4, "nobody asks again before that");
}

#[tokio::test]
async fn without_a_token_assets_come_from_where_browsers_get_them() {
    let bytes = "12345";
    let asset = |place: &str| {
        let mut asset: Asset = serde_json::from_str(&asset_json(9, "a", bytes.as_bytes())).unwrap();
        asset.browser_download_url = Some(place.to_owned());
        asset
    };
    let redirect = Step("GET ", 302, vec![("Location", "{root}/storage/9".to_owned())], String::new());
    let server = Server::start(vec![redirect, step("GET ", 200, bytes), step("GET ", 200, bytes)]).await;
    let root = format!("{}/api/v3", server.root);
    let client = Client::new(&root, None, Some(&server.ca), "x").unwrap();
    let here = format!("{}/acme/shop/releases/download/t/a", server.root);
    assert_eq!(client.download(&repository(), &asset(&here), 9).await.unwrap(), bytes.as_bytes());
    assert_eq!(client.requests(), Requests { storage: 2, ..Requests::default() });
    // A place elsewhere is not even asked: the API knows the asset too.
    let there = asset("https://elsewhere.example/a");
    assert_eq!(client.download(&repository(), &there, 9).await.unwrap(), bytes.as_bytes());
    assert_eq!(
        server.lines(),
        [
            "GET /acme/shop/releases/download/t/a",
            "GET /storage/9",
            "GET /api/v3/repos/acme/shop/releases/assets/9"
        ]
    );
}

#[tokio::test]
async fn with_a_token_too_and_where_browsers_get_nothing_the_api_is_asked() {
    let bytes = "12345";
    let server = Server::start(vec![
        step("GET ", 200, bytes),
        step("GET ", 404, "<html>"),
        step("GET ", 200, bytes),
        step("GET ", 200, "<html>sign in</html>"),
        step("GET ", 200, bytes),
    ])
    .await;
    let mut asset: Asset = serde_json::from_str(&asset_json(9, "a", bytes.as_bytes())).unwrap();
    asset.browser_download_url = Some(format!("{}/acme/shop/releases/download/t/a", server.root));
    let client = server.client();
    for _ in 0..3 {
        assert_eq!(client.download(&repository(), &asset, 9).await.unwrap(), bytes.as_bytes());
    }
    let (page, api) =
        ("GET /acme/shop/releases/download/t/a", "GET /api/v3/repos/acme/shop/releases/assets/9");
    assert_eq!(server.lines(), [page, page, api, page, api]);
    for request in server.seen() {
        assert_eq!(request.contains(TOKEN), request.starts_with(api), "the token is the API's alone");
    }
    assert_eq!(client.requests(), Requests { api: 2, storage: 3, ..Requests::default() });
}

#[tokio::test]
async fn a_release_is_a_draft_until_its_assets_are_there() {
    let asset = asset_json(9, "attestation.json", &new_asset().bytes);
    let server = Server::start(vec![
        step("GET ", 404, "{}"),
        step("POST ", 201, release_json(true, "")),
        step("POST ", 201, asset.clone()),
        step("PATCH ", 200, release_json(false, &asset)),
    ])
    .await;
    let release = server.client().publish(&repository(), &new_release(), &[new_asset()]).await.unwrap();
    assert!(!release.draft && release.immutable == Some(true) && release.assets.len() == 1);
    assert_eq!(
        server.lines(),
        [
            "GET /api/v3/repos/acme/shop/releases/tags/attest-20260102T030405Z-0a1b2c3d",
            "POST /api/v3/repos/acme/shop/releases",
            "POST /api/uploads/repos/acme/shop/releases/7/assets?name=attestation.json",
            "PATCH /api/v3/repos/acme/shop/releases/7",
        ]
    );
    let seen = server.seen();
    assert!(
        seen[1].contains("\"draft\":true")
            && seen[1].contains("\"tag_name\":\"attest-20260102T030405Z-0a1b2c3d\"")
    );
    assert!(
        seen[2].ends_with("{\"version\":1}")
            && seen[2].to_lowercase().contains("content-type: application/json")
    );
    assert!(seen[3].ends_with("{\"draft\":false,\"make_latest\":\"false\"}"));
}

#[tokio::test]
async fn publishing_again_changes_nothing() {
    let asset = asset_json(9, "attestation.json", &new_asset().bytes);
    let other = asset_json(9, "attestation.json", b"something else");
    let server = Server::start(vec![
        step("GET ", 200, release_json(false, &asset)),
        step("GET ", 200, release_json(false, &other)),
    ])
    .await;
    assert!(server.client().publish(&repository(), &new_release(), &[new_asset()]).await.is_ok());
    let taken = server.client().publish(&repository(), &new_release(), &[new_asset()]).await;
    assert!(matches!(taken, Err(GithubError::Refused(_))));
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn a_failed_upload_leaves_nothing_behind() {
    let server = Server::start(vec![
        step("GET ", 404, "{}"),
        step("POST ", 201, release_json(true, "")),
        step("POST ", 422, "{\"message\":\"Validation Failed\"}"),
        step("GET ", 200, release_json(true, "")),
        step("GET ", 200, release_json(true, "")),
        step("DELETE ", 204, ""),
    ])
    .await;
    let error = server.client().publish(&repository(), &new_release(), &[new_asset()]).await.unwrap_err();
    assert!(matches!(&error, GithubError::Refused(text) if text == "Validation Failed"));
    assert_eq!(server.lines()[5], "DELETE /api/v3/repos/acme/shop/releases/7");
}

#[tokio::test]
async fn an_upload_whose_answer_was_lost_is_found_again() {
    let asset = asset_json(9, "attestation.json", &new_asset().bytes);
    let server = Server::start(vec![
        step("POST ", 502, "{}"),
        step("POST ", 422, "{\"message\":\"already_exists\"}"),
        step("GET ", 200, release_json(true, &asset)),
    ])
    .await;
    let draft: Release =
        serde_json::from_str(&release_json(true, "").replace("{root}", &server.root)).unwrap();
    assert_eq!(server.client().upload(&repository(), &draft, &new_asset()).await.unwrap().id, 9);
}

#[tokio::test]
async fn a_published_release_is_never_deleted_and_the_token_stays_home() {
    let server = Server::start(vec![step("GET ", 200, release_json(false, ""))]).await;
    assert!(matches!(server.client().delete_draft(&repository(), 7).await, Err(GithubError::Refused(_))));
    let draft: Release =
        serde_json::from_str(&release_json(true, "").replace("{root}", "https://mallory.example")).unwrap();
    let foreign = server.client().upload(&repository(), &draft, &new_asset()).await;
    assert!(matches!(foreign, Err(GithubError::Malformed(text)) if text.contains("foreign host")));
    let downgraded = Release { upload_url: server.root.replace("https", "http"), ..draft };
    let plain = server.client().upload(&repository(), &downgraded, &new_asset()).await;
    assert!(matches!(plain, Err(GithubError::Malformed(_))));
    assert_eq!(server.seen().len(), 1);
}
