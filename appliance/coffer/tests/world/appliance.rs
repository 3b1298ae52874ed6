//! An appliance on loopback that makes evidence for each connection, as the real one does, and can be told to lie.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cofferdam_attest::{operator, ratls};
use cofferdam_protocol::base64;
use cofferdam_protocol::evidence::CHANNEL_BINDING_LABEL;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use super::seal::Seal;
use super::{Told, World, now};

/// What it answers when it is asked for evidence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mood {
    Honest,
    /// Something else than evidence.
    Html,
    /// The honest evidence of another connection.
    OtherChannel,
    /// Nothing at the moment.
    Busy,
    /// Evidence; and it knows no operator.
    Strange,
}

/// How its services are.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Scene {
    /// One runs, one waits, one has failed, one needs too much memory.
    #[default]
    Usual,
    /// All is well.
    Well,
    /// All is well but the clock, which is an hour ahead.
    Clock,
    /// A service ends again and again.
    Loop,
    /// A role, a service, the address and publishing are in trouble, and what services are called and say is hostile.
    Trouble,
}

/// The appliance; it lives as long as the test's process.
pub struct Simulated {
    pub endpoint: String,
    pub mood: Arc<Mutex<Mood>>,
    pub scene: Arc<Mutex<Scene>>,
    pub told: Arc<Mutex<Option<Told>>>,
    /// Its state while that is not open.
    pub seal: Arc<Mutex<Option<Seal>>>,
    pub tls_key: String,
    pub vault_key: String,
}

impl Simulated {
    pub fn start() -> Self {
        let key = ratls::generate_key().unwrap();
        let der = ratls::certificate(&key, b"{}", &["127.0.0.1".to_owned()], now() - 60, 86_400).unwrap();
        let tls_key = ratls::spki_sha256(&der).unwrap().to_string();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from(der)],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec())),
            )
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let (mood, told) = (Arc::new(Mutex::new(Mood::Honest)), Arc::new(Mutex::new(None)));
        let seal: Arc<Mutex<Option<Seal>>> = Arc::default();
        let scene: Arc<Mutex<Scene>> = Arc::default();
        let its_scene = Arc::clone(&scene);
        let (its_mood, its_told, its_seal) = (Arc::clone(&mood), Arc::clone(&told), Arc::clone(&seal));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, mood, told, seal) = (
                    Arc::clone(&config),
                    Arc::clone(&its_mood),
                    Arc::clone(&its_told),
                    Arc::clone(&its_seal),
                );
                let scene = Arc::clone(&its_scene);
                std::thread::spawn(move || serve(config, stream, &mood, &scene, &told, &seal));
            }
        });
        let vault_key = base64::encode(operator::generate_vault_key().1);
        Self { endpoint, mood, scene, told, seal, tls_key, vault_key }
    }

    pub fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// A world whose repository declares this appliance and whose newest release attests it; its evidence on request is
    /// valid for `validity` seconds.
    pub fn world(&self, validity: u64) -> Option<World> {
        self.world_since(60, validity)
    }

    /// The same with a release of `age` seconds ago.
    pub fn world_since(&self, age: u64, validity: u64) -> Option<World> {
        let mut world = World::new()?;
        world.endpoint.clone_from(&self.endpoint);
        let commit = world.declare("alice");
        world.commit("README.md", "moved on\n");
        let told = Told {
            tls_key: self.tls_key.clone(),
            vault_key: self.vault_key.clone(),
            ..world.told(&commit, "alice", age)
        };
        world.attest(&told);
        *self.told.lock().unwrap() = Some(Told { validity, ..told });
        world.start();
        Some(world)
    }
}

impl Simulated {
    /// A world whose newest release attests an earlier boot of this appliance, on a state of epoch `attested` (0: in memory), and in
    /// which the appliance itself waits with `seal`.
    pub fn sealed_world(&self, seal: Seal, attested: u64) -> Option<World> {
        let mut world = World::new()?;
        world.endpoint.clone_from(&self.endpoint);
        let commit = world.declare("alice");
        world.attest(&Told { epoch: attested, ..world.told(&commit, "alice", 60) });
        let waits = Told {
            tls_key: self.tls_key.clone(),
            vault_key: seal.public_key(),
            launched: false,
            ..world.told(&commit, "alice", 60)
        };
        *self.told.lock().unwrap() = Some(waits);
        *self.seal.lock().unwrap() = Some(seal);
        world.start();
        Some(world)
    }
}

/// Requests on one connection until it ends; `None` when it does.
fn serve(
    config: Arc<ServerConfig>,
    stream: TcpStream,
    mood: &Mutex<Mood>,
    scene: &Mutex<Scene>,
    told: &Mutex<Option<Told>>,
    seal: &Mutex<Option<Seal>>,
) -> Option<()> {
    stream.set_read_timeout(Some(Duration::from_secs(120))).ok()?;
    let mut stream = StreamOwned::new(ServerConnection::new(config).ok()?, stream);
    // Who has signed in: a service of this appliance says so.
    let mut caller = "nobody";
    loop {
        let (line, sent) = request(&mut stream)?;
        if line.starts_with("POST /.well-known/cofferdam/v1/sign-in ") {
            let known = *mood.lock().unwrap() != Mood::Strange;
            let answer = if known { SIGNED_IN } else { NOT_SIGNED_IN };
            stream.write_all(answer.as_bytes()).ok()?;
            stream.flush().ok()?;
            caller = known.then_some("an operator")?;
            continue;
        }
        let (status, body) = match line.split("evidence?nonce=").nth(1) {
            Some(rest) => evidence(rest, &stream.conn, *mood.lock().unwrap(), told)?,
            None => match line.split(' ').nth(1).and_then(|path| path.strip_prefix("/.well-known/cofferdam"))
            {
                Some(path) if path == "/v1/seal" || path == "/v1/unseal" => {
                    seal.lock().unwrap().as_mut()?.answer(&sent, told.lock().unwrap().as_mut()?)?
                }
                Some(_) if *mood.lock().unwrap() == Mood::Strange => {
                    ("403 Forbidden", r#"{"error":"the key is no operator's"}"#.into())
                }
                Some(path) => operators(line.split(' ').next()?, path, *scene.lock().unwrap()),
                None => ("200 OK", format!("hello {caller}").into_bytes()),
            },
        };
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(&[head.as_bytes(), &body].concat()).ok()?;
        stream.flush().ok()?;
    }
}

const SIGNED_IN: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: cofferdam-operator\r\n\r\n";
const NOT_SIGNED_IN: &str = "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 36\r\n\r\n{\"error\":\"the key is no operator's\"}";

/// What operators get: a service that runs and one that waits, two lines, one secret.
fn operators(method: &str, path: &str, scene: Scene) -> (&'static str, Vec<u8>) {
    let lines = "{\"at\":\"2026-01-02T03:04:05.678Z\",\"stream\":\"stdout\",\"line\":\"listening with [redacted:key]\"}\n\
                 {\"at\":\"2026-01-02T03:04:06.789Z\",\"stream\":\"stderr\",\"line\":\"\\u001b[2Ja prompt\"}\n";
    match (method, path) {
        ("GET", "/v1/status") => ("200 OK", status(scene)),
        ("GET", "/v1/events?last=600000") => {
            ("200 OK", EVENTS.lines().skip(1).map(|line| format!("{line}\n")).collect::<String>().into())
        }
        ("GET", path) if path.starts_with("/v1/events") => {
            ("200 OK", if scene == Scene::Usual { EVENTS.into() } else { Vec::new() })
        }
        ("GET", "/v1/secrets") => ("200 OK", SECRETS.into()),
        ("GET", path) if path.starts_with("/v1/logs?service=web&") => ("200 OK", lines.into()),
        ("GET", path) if path.starts_with("/v1/logs?") => (
            "404 Not Found",
            r#"{"error":"there is no such service","hint":"`coffer status` lists them"}"#.into(),
        ),
        ("POST", "/v1/services/web/restart") => {
            ("200 OK", r#"{"id":7,"order":"restart","dependents":["worker"]}"#.into())
        }
        ("POST", "/v1/services/web/stop") => ("200 OK", r#"{"id":8,"order":"stop"}"#.into()),
        ("POST", "/v1/services/web/start") => ("200 OK", r#"{"id":9,"order":"start"}"#.into()),
        ("POST", path) if path.starts_with("/v1/services/") => (
            "404 Not Found",
            r#"{"error":"there is no such service","hint":"`coffer status` lists them"}"#.into(),
        ),
        ("PUT", _) => ("200 OK", STORED.into()),
        ("DELETE", "/v1/secrets/demo/greeting/value") => ("204 No Content", Vec::new()),
        ("DELETE", _) => ("404 Not Found", r#"{"error":"there is no such secret"}"#.into()),
        _ => ("403 Forbidden", r#"{"error":"the key is no operator's"}"#.into()),
    }
}

const SECRETS: &str = r#"{"secrets":[{"reference":"secret://demo/greeting/value","version":2,
    "updated_at":"2026-01-02T03:04:05Z"}]}"#;
/// What a put is answered with, whichever secret it was.
const STORED: &str = r#"{"secret":{"reference":"secret://demo/greeting/value","version":2,"updated_at":"2026-01-02T03:04:05Z"},
    "services":[{"service":"web","on_change":"restart"},{"service":"proxy","on_change":"signal HUP"},
    {"service":"agent","on_change":"notify"},{"service":"db","on_change":"nothing"}]}"#;
/// Events of each kind of source.
const EVENTS: &str = r#"{"role":"network","number":1,"at":"2026-01-02T03:04:05.678Z","up_ms":900,"event":{"kind":"address","address":"10.0.2.15/24"}}
{"role":"shim","service":"web","number":7,"at":"2026-01-02T03:05:05.678Z","up_ms":60900,"event":{"kind":"service","state":"restarting","exit_code":137,"killed":{"why":"out-of-memory","limit":536870912},"detail":"again in 1s"}}
{"role":"egress","service":"web","number":1,"at":"2026-01-02T03:05:06.678Z","up_ms":61900,"event":{"kind":"denied","target":"api.example.org:443","why":"name","count":3,"allow":"api.example.org:443"}}
{"role":"publish","number":2,"at":"2026-01-02T03:05:07.178Z","up_ms":62400,"event":{"kind":"follow","found":{"state":"refused","commit":"fedcba9876543210fedcba9876543210fedcba98","why":"unsigned","detail":"it is not signed"}}}
{"role":"init","number":3,"at":"2026-01-02T03:05:07.378Z","up_ms":62600,"event":{"kind":"change","change":{"commit":"fedcba9876543210fedcba9876543210fedcba98","declaration":"sha256:abababababababababababababababababababababababababababababababab","at":"2026-01-02T03:05:07Z","outcome":"refused","detail":"it changes endpoint, which takes a boot: start the machine with this declaration"}}}
{"role":"vault","number":4,"at":"2026-01-02T03:05:07.678Z","up_ms":62900,"event":{"kind":"audit","operation":"put","uid":102,"operator":"SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","references":["secret://demo/greeting/value"],"further":0,"status":200}}
"#;
/// Every member of a status, as the real one writes them.
fn status(scene: Scene) -> Vec<u8> {
    let zero = "00".repeat(48);
    let since = "2026-01-02T03:04:05.678Z";
    let role =
        |name: &str, restarts: u32| json!({"name": name, "pid": 7, "restarts": restarts, "state": "running"});
    let mut status = json!({
        "repository": "acme/shop", "commit": "0123456789abcdef0123456789abcdef01234567",
        "declaration": super::simulated::DIGEST, "endpoint": "shop.example:8443",
        "image": {"name": "cofferdam", "release": "0.1.0", "digests": {}},
        "state": "memory only: secrets are gone after a power-off",
        "registers": {"mrtd": zero, "rtmr0": zero, "rtmr1": zero, "rtmr2": zero, "rtmr3": zero},
        "phases": [{"name": "mount", "ms": 3}], "phase": "supervise",
        "roles": [role("vault", 0), role("front", 1)],
        "services": [
            {"state": "running", "missing": [], "pid": 42, "restarts": 0, "since": since, "name": "web",
             "usage": {"memory": 104_857_600, "memory_limit": 536_870_912, "processes": 7, "processes_limit": 4096,
                       "cpu_ms": 1500, "cpus_limit": 500}},
            {"state": "waiting", "missing": ["secret://demo/queue/password"], "restarts": 0, "since": since,
             "name": "worker"},
            {"state": "failed", "missing": [], "restarts": 3, "detail": "the image has no such user",
             "since": since, "name": "broken"},
            {"state": "restarting", "missing": [], "restarts": 2, "exit_code": 137, "detail": "again in 1s",
             "killed": {"why": "out-of-memory", "limit": 67_108_864}, "since": since, "name": "hungry"},
        ],
        "publish": {"state": "published", "tag": "attest-20260102T030405Z-0a1b2c3d", "at": "2026-01-02T03:05:00Z"},
    });
    let commit = "fedcba9876543210fedcba9876543210fedcba98";
    let follow = |found: Value| json!({"branch": "main", "found": found, "at": "2026-01-02T03:05:00Z"});
    status["follow"] = follow(json!({"state": "newer", "commit": commit, "signer": "alice@laptop",
        "declaration": format!("sha256:{}", "ab".repeat(32))}));
    status["changes"] = json!({"counts": {"applied": 1, "refused": 0, "rolled-back": 1}, "changes": [
        {"commit": "0123456789abcdef0123456789abcdef01234567", "declaration": super::simulated::DIGEST,
         "at": "2026-01-02T03:04:10Z", "outcome": "applied"},
        {"commit": commit, "declaration": format!("sha256:{}", "ab".repeat(32)), "at": "2026-01-02T03:05:10Z",
         "outcome": "rolled-back", "detail": "service web is running and unhealthy"}]});
    let service = |name: &str, state: &str| json!({"state": state, "missing": [], "restarts": 0, "since": since, "name": name});
    let clock = |ahead: i64| {
        let source = |host: &str| json!({"host": host, "ahead_s": ahead});
        let sources = [source("api.github.example"), source("pcs.example")];
        json!({"ahead_s": ahead, "sources": sources, "at": "2026-01-02T03:05:00Z"})
    };
    if scene != Scene::Usual {
        status["services"] = json!([service("web", "running"), service("agent", "running")]);
        status["clock"] = clock(1);
        status["follow"] = follow(json!({"state": "current", "commit": commit}));
        status.as_object_mut().unwrap().remove("changes");
    }
    match scene {
        Scene::Usual | Scene::Well => {}
        Scene::Clock => status["clock"] = clock(3600),
        Scene::Loop => {
            let mut loops = service("agent", "restarting");
            (loops["exit_code"], loops["restarts"], loops["detail"]) =
                (json!(1), json!(12), json!("again in 60s"));
            status["services"][1] = loops;
        }
        Scene::Trouble => {
            status["roles"][0]["state"] = json!("restarting");
            status["network"] = json!({"state": "lost", "detail": "nobody answers", "lost": 2, "since": "2026-01-02T03:05:00Z"});
            status["publish"] = json!({"state": "waiting", "at": "2026-01-02T03:05:00Z",
                "detail": "waiting for the GitHub token: no secret yet for secret://cofferdam/github/token"});
            status["follow"] = follow(json!({"state": "refused", "commit": commit, "why": "declaration",
                "detail": "cofferdam.yaml:3:1: `\u{1b}[2Jok: all is well` is not a key of the declaration"}));
            status["follow"]["problem"] = json!("the branch cannot be looked at: GitHub is unreachable");
            let mut hostile = service("$(reboot)\u{1b}[2J", "failed");
            hostile["detail"] = json!("\u{202e}\u{1b}]0;owned\u{7}\nok: all is well");
            hostile["egress"] = json!({"denied": 3, "latest": [{"target": "evil\u{1b}.example:443", "why": "name", "count": 3,
                "last": "2026-01-02T03:05:00Z", "allow": "evil.example:443"}]});
            status["services"][1] = hostile;
        }
    }
    status.to_string().into_bytes()
}

fn evidence(
    rest: &str,
    connection: &ServerConnection,
    mood: Mood,
    told: &Mutex<Option<Told>>,
) -> Option<(&'static str, Vec<u8>)> {
    let nonce = base64::decode_url(rest.split(' ').next()?)?;
    let label = CHANNEL_BINDING_LABEL;
    let mut binding = connection.export_keying_material([0_u8; 32], label, Some(&[])).ok()?;
    match mood {
        Mood::Honest | Mood::Strange => {}
        Mood::Html => return Some(("200 OK", b"<html>".to_vec())),
        Mood::Busy => return Some(("503 Service Unavailable", Vec::new())),
        Mood::OtherChannel => binding[0] ^= 1,
    }
    let told = told.lock().unwrap().clone()?;
    Some(("200 OK", Told { issued: now(), nonce: Some(nonce), binding: Some(binding), ..told }.document()))
}

/// The request line and the body of one request.
fn request(stream: &mut impl std::io::Read) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let count = stream.read(&mut chunk).ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&chunk[..count]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head
            .lines()
            .find_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok())
            .unwrap_or(0_usize);
        if body.len() >= length {
            return Some((head.lines().next()?.to_owned(), body.as_bytes().to_vec()));
        }
    }
}
