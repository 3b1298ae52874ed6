//! The vault as PID 1 runs it: the real program with its own uid, its filter and its Landlock rules, a key at
//! descriptor 3, peers of other uids, and a kill in between.
//!
//! Works in a mount namespace of its own, so `/run/cofferdam` is this test's. Needs root, and a kernel with
//! the Landlock that the image has; says so and passes otherwise.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cofferd::paths;
use cofferd::roles::{FRONT, PUBLISH, Role, VAULT};
use cofferd::system::client;
use cofferd::system::sys::SecretMemory;
use cofferdam_attest::operator::seal_secret;
use cofferdam_protocol::operator::signing_input;
use cofferdam_protocol::vault::{KeyReply, OperatorRequest};
use cofferdam_protocol::{Base64Bytes, Fingerprint, base64};
use ed25519_dalek::{Signer as _, SigningKey};
use hyper::Method;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Set for the child that asks the vault as somebody else: `METHOD PATH`, the body on standard input.
const ASK: &str = "COFFERDAM_VAULT_ROLE_ASK";
const PASSWORD: &str = "secret://app/db/password";
const VALUE: &[u8] = b"correct horse battery staple";

fn uid(role: &Role) -> u32 {
    role.uid().unwrap()
}

/// Runs a test's future on this thread.
fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// The child's part; without the variable it is no test and passes.
#[test]
fn ask() {
    let Ok(question) = std::env::var(ASK) else { return };
    let (method, path) = question.split_once(' ').unwrap();
    let mut body = Vec::new();
    std::io::stdin().read_to_end(&mut body).unwrap();
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let asking = client::request(paths::VAULT_SOCKET, method, path, body, 1 << 20, Duration::from_secs(10));
    let (status, body) = block_on(asking).unwrap();
    println!("answer {} {}", status.as_u16(), String::from_utf8(body.to_vec()).unwrap());
}

/// Asks the vault as the peer with this uid.
fn ask_as(uid: u32, question: &str, body: &str) -> (u16, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ask", "--nocapture"])
        .env(ASK, question)
        .uid(uid)
        .gid(uid)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let answer =
        output.lines().find_map(|line| line.split_once("answer ")).unwrap_or_else(|| panic!("{output}")).1;
    let (status, body) = answer.split_once(' ').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

fn lease_as(uid: u32) -> (u16, String) {
    ask_as(uid, "POST /v1/lease", &format!("{{\"references\":[\"{PASSWORD}\"],\"wait_ms\":0}}"))
}

fn operate(uid: u32, key: &SigningKey, vault_key: &[u8; 32]) -> (u16, String) {
    let body =
        serde_json::to_vec(&seal_secret(vault_key, &PASSWORD.parse().unwrap(), VALUE).unwrap()).unwrap();
    let path = "/.well-known/cofferdam/v1/secrets/app/db/password";
    let signature = key.sign(&signing_input("PUT", path, &body, &[5; 32])).to_bytes();
    let request = OperatorRequest {
        method: "PUT".into(),
        path: path.into(),
        body: Base64Bytes::new(body).unwrap(),
        channel_binding: [5; 32].into(),
        key: Fingerprint::of(&key.verifying_key().to_bytes()),
        signature: signature.into(),
    };
    ask_as(uid, "POST /v1/operator", &serde_json::to_string(&request).unwrap())
}

/// What PID 1 prepares before it starts the vault.
fn prepare(key: &SigningKey) {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("run"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
    fs::create_dir_all(paths::VAULT_DIR).unwrap();
    fs::set_permissions(paths::VAULT_DIR, fs::Permissions::from_mode(0o711)).unwrap();
    std::os::unix::fs::chown(paths::VAULT_DIR, Some(uid(&VAULT)), Some(uid(&VAULT))).unwrap();
    let facts = serde_json::json!({
        "tokens": [],
        "operators": [{"name": "alice", "key": hex::encode(key.verifying_key().to_bytes())}],
        "github": {"api": "https://api.github.com", "token": null, "ca": null},
        "attestation": {"collateral": "https://api.trustedservices.intel.com", "ca": null},
        "registries": [],
        "grants": [{"uid": 100_000, "secret": PASSWORD}],
        "volumes": [], "networks": [], "key_servers": [], "rollback": "require",
        "services": [],
    });
    fs::write(paths::FACTS, facts.to_string()).unwrap();
    let (digest, zero) = (format!("sha256:{}", "0".repeat(64)), "0".repeat(96));
    let appliance = serde_json::json!({
        "repository": "octo/app", "commit": "0".repeat(40), "declaration": digest, "endpoint": "127.0.0.1:8443",
        "tls_key": digest, "state": "memory", "event_log": [], "phases": [],
        "registers": {"mrtd": zero, "rtmr0": zero, "rtmr1": zero, "rtmr2": zero, "rtmr3": zero},
        "image": {"name": "cofferdam", "release": "0.1.0", "digests": {}},
    });
    fs::write(paths::APPLIANCE, appliance.to_string()).unwrap();
}

fn master_key(byte: u8) -> SecretMemory {
    // No volumes.
    let key = [[byte; 32].as_slice(), &[0; 4]].concat();
    SecretMemory::holding(&key).unwrap()
}

/// The vault's process; killed when dropped.
struct VaultProcess(Child);

impl VaultProcess {
    /// Starts the vault and waits until it answers. `None` when this kernel cannot confine it.
    fn start(key: &SecretMemory) -> Option<Self> {
        // As PID 1 does: a copy, of which the shell below hands on the descriptor and nothing else.
        let key = key.copy().unwrap();
        fcntl(key.file(), FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        let script = match key.file().as_raw_fd() {
            paths::KEY_FD => "exec \"$0\" vault".to_owned(),
            number => format!("exec \"$0\" vault 3<&{number} {number}<&-"),
        };
        let program = env!("CARGO_BIN_EXE_cofferd");
        let mut role = Self(
            Command::new("/bin/sh")
                .args(["-c", &script, program])
                .env_clear()
                .uid(uid(&VAULT))
                .gid(uid(&VAULT))
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let asking = client::request(
                paths::VAULT_SOCKET,
                Method::GET,
                "/v1/key",
                "",
                1024,
                Duration::from_secs(5),
            );
            if block_on(asking).is_ok() {
                return Some(role);
            }
            if role.0.try_wait().unwrap().is_some() {
                let mut said = String::new();
                role.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
                assert!(said.contains("cannot confine"), "{said}");
                return None;
            }
            assert!(Instant::now() < deadline, "the vault does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for VaultProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_confined_vault_serves_its_peers_and_survives_a_kill() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: running the vault as PID 1 does needs root");
        return;
    }
    let key = SigningKey::from_bytes(&[3; 32]);
    prepare(&key);
    let master = master_key(7);
    let Some(role) = VaultProcess::start(&master) else {
        println!("SKIPPED: this kernel cannot confine the vault; the boot of the image tests it");
        return;
    };
    let web = 100_000;
    let store = fs::metadata(paths::VAULT_STORE).unwrap();
    assert_eq!((store.uid(), store.mode() & 0o7777), (uid(&VAULT), 0o600));

    let (status, body) = ask_as(web, "GET /v1/key", "");
    assert_eq!(status, 200);
    let reply: KeyReply = serde_json::from_str(&body).unwrap();
    let vault_key: [u8; 32] = reply.public_key.into();

    assert_eq!(lease_as(web).0, 409);
    for stranger in [web, uid(&PUBLISH), 0] {
        assert_eq!(operate(stranger, &key, &vault_key).0, 403, "uid {stranger} relays");
    }
    assert_eq!(operate(uid(&FRONT), &SigningKey::from_bytes(&[4; 32]), &vault_key).0, 401);
    assert_eq!(operate(uid(&FRONT), &key, &vault_key).0, 200);
    let leased = format!("{{\"values\":{{\"{PASSWORD}\":\"{}\"}}}}", base64::encode(VALUE));
    assert_eq!(lease_as(web), (200, leased.clone()));
    for stranger in [165_536, uid(&PUBLISH), uid(&FRONT), 65_534, 0] {
        assert_eq!(lease_as(stranger).0, 403, "uid {stranger} leases");
    }

    // The key is not in the environment, not at a descriptor, and the memory is nobody's to read: not for a process
    // of the same uid.
    let pid = role.0.id();
    for path in ["mem", "environ", "fd/3", "maps"] {
        let path = format!("/proc/{pid}/{path}");
        let outcome = Command::new("/bin/cat").arg(&path).uid(uid(&VAULT)).gid(uid(&VAULT)).output().unwrap();
        assert!(!outcome.status.success() && outcome.stdout.is_empty(), "{path} was read");
    }

    let killed = Instant::now();
    role.kill();
    let role = VaultProcess::start(&master).unwrap();
    assert_eq!(lease_as(web), (200, leased), "after a kill the right secret is there");
    assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
    role.kill();

    // With another key the store is neither opened nor replaced, and everybody is told.
    let role = VaultProcess::start(&master_key(8)).unwrap();
    for (uid, question) in [(web, "POST /v1/lease"), (uid(&FRONT), "POST /v1/operator"), (0, "GET /v1/key")] {
        let (status, body) = ask_as(uid, question, "{}");
        assert_eq!(status, 503);
        assert!(
            body.contains("the vault is parked: the store was sealed under another master key"),
            "{body}"
        );
    }
    role.kill();
    let role = VaultProcess::start(&master).unwrap();
    assert_eq!(lease_as(web).0, 200, "the right key still opens it");
    role.kill();
}
