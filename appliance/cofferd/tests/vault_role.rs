//! The vault as PID 1 runs it: the real program with its own uid, its filter and its Landlock rules, a key at
//! descriptor 3, peers of other uids, and a kill in between.
//!
//! Works in a mount namespace of its own, so `/run/cofferdam` is this test's. Needs root, and a kernel with
//! the Landlock that the image has; says so and passes otherwise.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cofferd::paths;
use cofferd::system::client;
use cofferdam_attest::operator::{seal_secret, signing_input};
use cofferdam_vault::wire::{KeyReply, OperatorRequest};
use ed25519_dalek::{Signer as _, SigningKey};
use hyper::Method;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Set for the child that asks the vault as somebody else: `METHOD PATH`, the body on standard input.
const ASK: &str = "COFFERDAM_VAULT_ROLE_ASK";
const PASSWORD: &str = "secret://app/db/password";
const VALUE: &[u8] = b"correct horse battery staple";

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
    let body = serde_json::to_vec(&seal_secret(vault_key, PASSWORD, VALUE).unwrap()).unwrap();
    let path = "/.well-known/cofferdam/v1/secrets/app/db/password";
    let signature = key.sign(&signing_input("PUT", path, &body, &[5; 32])).to_bytes();
    let request = OperatorRequest {
        method: "PUT".into(),
        path: path.into(),
        body: STANDARD.encode(&body),
        channel_binding: STANDARD.encode([5; 32]),
        key: cofferdam_vault::fingerprint(&key.verifying_key().to_bytes()),
        signature: STANDARD.encode(signature),
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
    std::os::unix::fs::chown(paths::VAULT_DIR, Some(paths::VAULT_UID), Some(paths::VAULT_UID)).unwrap();
    let public = key.verifying_key().to_bytes();
    let blob = [&[0, 0, 0, 11][..], b"ssh-ed25519", &[0, 0, 0, 32], &public].concat();
    let declaration = format!(
        "version: 1\nrepository: octo/app\nendpoint: 127.0.0.1:8443\noperators:\n  - name: alice\n    key: ssh-ed25519 {} a\n\
         services:\n  web:\n    image: r.example/web@sha256:{}\n    secrets: [{PASSWORD}]\n",
        STANDARD.encode(blob),
        "0".repeat(64)
    );
    fs::write(paths::DECLARATION, declaration).unwrap();
}

fn master_key(byte: u8) -> OwnedFd {
    // Without close-on-exec: the shell below hands it on.
    let memfd = memfd_create("key", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    nix::unistd::write(&memfd, &[byte; 32]).unwrap();
    let seals =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&memfd, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    memfd
}

/// The vault's process; killed when dropped.
struct Role(Child);

impl Role {
    /// Starts the vault and waits until it answers. `None` when this kernel cannot confine it.
    fn start(key: &OwnedFd) -> Option<Self> {
        let program = env!("CARGO_BIN_EXE_cofferd");
        let mut role = Self(
            Command::new("/bin/sh")
                .args(["-c", "exec \"$0\" vault 3<&\"$1\"", program, &key.as_raw_fd().to_string()])
                .env_clear()
                .uid(paths::VAULT_UID)
                .gid(paths::VAULT_UID)
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

impl Drop for Role {
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
    let Some(role) = Role::start(&master) else {
        println!("SKIPPED: this kernel cannot confine the vault; the boot of the image tests it");
        return;
    };
    let web = paths::service_uid(0);
    let store = fs::metadata(paths::VAULT_STORE).unwrap();
    assert_eq!((store.uid(), store.mode() & 0o7777), (paths::VAULT_UID, 0o600));

    let (status, body) = ask_as(web, "GET /v1/key", "");
    assert_eq!(status, 200);
    let reply: KeyReply = serde_json::from_str(&body).unwrap();
    let vault_key: [u8; 32] = STANDARD.decode(reply.public_key).unwrap().try_into().unwrap();

    assert_eq!(lease_as(web).0, 409);
    for stranger in [web, paths::PUBLISH_UID, 0] {
        assert_eq!(operate(stranger, &key, &vault_key).0, 403, "uid {stranger} relays");
    }
    assert_eq!(operate(paths::FRONT_UID, &SigningKey::from_bytes(&[4; 32]), &vault_key).0, 401);
    assert_eq!(operate(paths::FRONT_UID, &key, &vault_key).0, 200);
    let leased = format!("{{\"values\":{{\"{PASSWORD}\":\"{}\"}}}}", STANDARD.encode(VALUE));
    assert_eq!(lease_as(web), (200, leased.clone()));
    for stranger in [paths::service_uid(1), paths::PUBLISH_UID, paths::FRONT_UID, 65_534, 0] {
        assert_eq!(lease_as(stranger).0, 403, "uid {stranger} leases");
    }

    // The key is not in the environment, not at a descriptor, and the memory is nobody's to read: not for a process
    // of the same uid.
    let pid = role.0.id();
    for path in ["mem", "environ", "fd/3", "maps"] {
        let path = format!("/proc/{pid}/{path}");
        let outcome =
            Command::new("/bin/cat").arg(&path).uid(paths::VAULT_UID).gid(paths::VAULT_UID).output().unwrap();
        assert!(!outcome.status.success() && outcome.stdout.is_empty(), "{path} was read");
    }

    let killed = Instant::now();
    role.kill();
    let role = Role::start(&master).unwrap();
    assert_eq!(lease_as(web), (200, leased), "after a kill the right secret is there");
    assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
    role.kill();

    // With another key the store is neither opened nor replaced, and everybody is told.
    let role = Role::start(&master_key(8)).unwrap();
    for (uid, question) in
        [(web, "POST /v1/lease"), (paths::FRONT_UID, "POST /v1/operator"), (0, "GET /v1/key")]
    {
        let (status, body) = ask_as(uid, question, "{}");
        assert_eq!(status, 503);
        assert!(
            body.contains("the vault is parked: the store was sealed under another master key"),
            "{body}"
        );
    }
    role.kill();
    let role = Role::start(&master).unwrap();
    assert_eq!(lease_as(web).0, 200, "the right key still opens it");
    role.kill();
}
