//! The role without its process: key, rules, store file, socket, and the client that the other roles use.

use std::os::unix::fs::PermissionsExt as _;

use cofferdam_attest::operator::seal_secret;
use cofferdam_declaration::Declaration;
use cofferdam_protocol::operator::{Order, PREFIX, secret_path, signing_input};
use cofferdam_protocol::vault::{MAX_REFERENCES, OperatorRequest};
use cofferdam_protocol::{Base64Bytes, Fingerprint, SecretRef, SecretValue, base64};
use cofferdam_vault::Answer;
use ed25519_dalek::{Signer as _, SigningKey};
use hyper::Method;

use super::*;
use crate::roles::PUBLISH;
use crate::roles::testing::facts;
use crate::system::client;
use crate::system::client::vault::{Lease, LeaseError};

const DECLARATION: &str = "\
version: 1
repository: octo/app
endpoint: 127.0.0.1:8443
operators:
  - name: alice
    key: OPERATOR
github:
  token: secret://cofferdam/github/token
services:
  web:
    image: registry.example:5000/web@sha256:0000000000000000000000000000000000000000000000000000000000000000
    environment:
      PASSWORD: secret://app/db/password
      MODE: production
  db:
    image: registry.example:5000/db@sha256:0000000000000000000000000000000000000000000000000000000000000000
    secrets: [secret://app/db/password, {source: secret://app/db/key, target: key}]
";

/// Runs a test's future on this thread.
fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn declaration(key: &SigningKey) -> Declaration {
    let public = key.verifying_key().to_bytes();
    let blob = [&[0, 0, 0, 11][..], b"ssh-ed25519", &[0, 0, 0, 32], &public].concat();
    let line = format!("ssh-ed25519 {} alice@laptop", base64::encode(blob));
    Declaration::parse(DECLARATION.replace("OPERATOR", &line).as_bytes()).unwrap()
}

fn keys(byte: u8) -> Keys {
    Keys::derive(cofferdam_vault::MasterKey::take(&mut [byte; 32])).unwrap()
}

fn reference(text: &str) -> SecretRef {
    text.parse().unwrap()
}

fn put(vault: &Vault, key: &SigningKey, name: &str, value: &[u8], connection: u8) -> Answer {
    let sealed = seal_secret(&vault.public_key(), &reference(name), value).unwrap();
    let body = serde_json::to_vec(&sealed).unwrap();
    let path = format!("{PREFIX}{}", secret_path(&reference(name)));
    let signature = key.sign(&signing_input("PUT", &path, &body, &[connection; 32]));
    vault.operate(
        FRONT.uid().unwrap(),
        &OperatorRequest {
            method: "PUT".into(),
            path,
            body: Base64Bytes::new(body).unwrap(),
            channel_binding: [connection; 32].into(),
            key: Fingerprint::of(&key.verifying_key().to_bytes()),
            signature: signature.to_bytes().into(),
        },
    )
}

#[test]
fn each_service_is_granted_its_own_references_and_publish_the_token() {
    let rules = rules(&facts(&declaration(&SigningKey::from_bytes(&[3; 32])))).unwrap();
    let (web, db) = (100_000, 165_537);
    let allowed = |uid, text| rules.grants.allows(uid, &reference(text));
    for (uid, password, key, token) in [
        (web, true, false, false),
        (db, true, true, false),
        (PUBLISH.uid().unwrap(), false, false, true),
        (FRONT.uid().unwrap(), false, false, false),
        (0, false, false, false),
        (231_072, false, false, false),
    ] {
        assert_eq!(allowed(uid, "secret://app/db/password"), password, "{uid}");
        assert_eq!(allowed(uid, "secret://app/db/key"), key, "{uid}");
        assert_eq!(allowed(uid, "secret://cofferdam/github/token"), token, "{uid}");
    }
}

#[test]
fn what_the_vault_takes_the_redactor_can_hide() {
    let key = SigningKey::from_bytes(&[3; 32]);
    let store = Store::create(cofferdam_vault::MemoryDisk::new(16 << 20), keys(1)).unwrap();
    let vault = Vault::new(store, rules(&facts(&declaration(&key))).unwrap(), || 0, |_| {});
    let password = "secret://app/db/password";
    for (value, connection) in [
        (&b"abc"[..], 1),
        (b"abcd", 2),
        (b"abc\n", 3),
        (b"a\nb\nc\nd\n", 4),
        (b"\r\n\r\n\r\n", 5),
        (b"    ", 6),
        (&[0; 4], 7),
        (&[0xFF; 64 * 1024], 8),
    ] {
        let taken = put(&vault, &key, password, value, connection).status == StatusCode::OK;
        let hidden = cofferdam_redact::Redactor::new([(password, value)]).is_ok();
        assert_eq!(taken, hidden, "{value:.20?}");
    }
    const { assert!(cofferdam_redact::MAX_SECRETS >= MAX_REFERENCES) };
}

#[test]
fn a_store_is_made_once_and_then_only_opened() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    // What a vault leaves that was killed while it made the store.
    fs::write(path.with_extension("new"), b"half a store").unwrap();
    let store = open(&path, keys(1)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!path.with_extension("new").exists());
    let secret = SecretValue::new(reference("secret://app/db/password"), b"correct horse".to_vec());
    store.put(&secret, 0, &[0; 32]).unwrap();
    drop(store);

    let store = open(&path, keys(1)).unwrap();
    assert_eq!(store.get(secret.reference()).unwrap().unwrap().expose(), b"correct horse");
    // While another vault has it, it is worth trying again.
    assert!(open(&path, keys(1)).is_err_and(|error| error.may_pass()));
    drop(store);
    assert!(
        open(&path, keys(2)).is_err_and(|error| {
            !error.may_pass() && matches!(error, StoreError::Disk(DiskError::OtherKey))
        })
    );

    // Neither an empty file nor garbage is taken for the absence of a store.
    for content in [&b""[..], b"garbage", &[0; 4096]] {
        fs::write(&path, content).unwrap();
        assert!(open(&path, keys(1)).is_err_and(|error| !error.may_pass()));
        assert_eq!(fs::read(&path).unwrap(), content, "a store that does not open is left as it is");
    }
}

#[test]
fn the_key_is_taken_whole_and_what_was_handed_over_is_cleared() {
    let mut handed = SecretMemory::new(launch::LENGTH).unwrap();
    launch::write(&mut handed, |key| key.fill(7), 0);
    let lent = || SecretMemory::open(handed.file().try_clone_to_owned().unwrap()).unwrap();
    let (key, volumes) = launch::take(lent()).unwrap();
    assert_eq!((&handed.bytes()[..32], volumes), (&[0; 32][..], 0));
    let memory = Box::new(SecretKeys::new().unwrap());
    assert_eq!(Keys::derive_into(memory, key).unwrap().id(), keys(7).id());
    for wrong in [32, 35, 37] {
        let handed = SecretMemory::holding(&vec![7; wrong]).unwrap();
        assert!(launch::take(handed).is_none(), "{wrong} bytes are no key");
    }
    let plain = tempfile::tempfile().unwrap();
    plain.set_len(32).unwrap();
    assert!(SecretMemory::open(plain.into()).is_err());
}

#[test]
fn a_parked_vault_says_why_to_everybody() {
    block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("vault.sock");
        let listener = unix::bind(&socket).unwrap();
        let serving = tokio::spawn(listen::serve(
            listener,
            parked("the store was sealed under another master key", State::Memory).unwrap(),
        ));
        for (method, path) in
            [(Method::GET, "/v1/key"), (Method::POST, "/v1/lease"), (Method::POST, "/v1/operator")]
        {
            let (status, body) =
                client::request(&socket, method, path, Vec::new(), 1024, Duration::from_secs(5))
                    .await
                    .unwrap();
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
            let reply: ErrorReply = serde_json::from_slice(&body).unwrap();
            assert_eq!(reply.error, "the vault is parked: the store was sealed under another master key");
            assert!(reply.hint.unwrap().contains("restart"));
        }
        serving.abort();
    });
}

/// The vault as the role runs it, on a socket of this test, for this test's own uid.
struct Running {
    directory: tempfile::TempDir,
    vault: Arc<Vault>,
    serving: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(granted: &[&str], key: &SigningKey) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut rules = rules(&facts(&declaration(key))).unwrap();
        for text in granted {
            rules.grants.allow(nix::unistd::geteuid().as_raw(), reference(text));
        }
        let store = open(&directory.path().join("store"), keys(1)).unwrap();
        let vault = Arc::new(Vault::new(store, rules, || 0, |_| {}));
        let listener = unix::bind(&directory.path().join("vault.sock")).unwrap();
        let serving = tokio::spawn(listen::serve(listener, router(vault.clone())));
        Self { directory, vault, serving }
    }

    async fn lease(&self, references: &[&str], wait: Duration) -> Result<Lease, LeaseError> {
        let references: Vec<_> = references.iter().map(|text| reference(text)).collect();
        client::vault::lease_at(&self.directory.path().join("vault.sock"), &references, wait).await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[test]
fn a_role_leases_over_the_socket() {
    block_on(async {
        let key = SigningKey::from_bytes(&[3; 32]);
        let (password, token) = ("secret://app/db/password", "secret://app/db/key");
        let running = Running::start(&[password, token], &key);
        let socket = running.directory.path().join("vault.sock");
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o666);

        // Nothing there: said at once, and said again when the wait is over.
        let missing = running.lease(&[password], Duration::ZERO).await.unwrap_err();
        assert!(matches!(missing, LeaseError::Missing(references) if references == [reference(password)]));

        // A wait ends with the put.
        let large = vec![0xA5; cofferdam_vault::store::MAX_VALUE];
        let both = [password, token];
        let waiting = running.lease(&both, Duration::from_secs(60));
        let putting = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(put(&running.vault, &key, password, b"correct horse", 1).status, StatusCode::OK);
            assert_eq!(put(&running.vault, &key, token, &large, 2).status, StatusCode::OK);
        };
        let (lease, ()) = tokio::join!(waiting, putting);
        let lease = lease.unwrap();
        assert_eq!(lease[&reference(password)].expose(), b"correct horse");
        assert_eq!(lease[&reference(token)].expose(), large);
        assert!(!format!("{lease:?}").contains("correct"));

        // Not granted to this uid: refused, and not waited for.
        let refused =
            running.lease(&["secret://cofferdam/github/token"], Duration::from_secs(60)).await.unwrap_err();
        assert!(matches!(refused, LeaseError::Refused(_)), "{refused}");
    });
}

#[test]
fn a_lease_outlasts_a_restart_of_the_vault() {
    block_on(async {
        let key = SigningKey::from_bytes(&[3; 32]);
        let password = "secret://app/db/password";
        let running = Running::start(&[password], &key);
        assert_eq!(put(&running.vault, &key, password, b"correct horse", 1).status, StatusCode::OK);
        let socket = running.directory.path().join("vault.sock");
        running.serving.abort();
        fs::remove_file(&socket).unwrap();
        let one = [password];
        let waiting = running.lease(&one, Duration::from_secs(60));
        let restarting = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            listen::serve(unix::bind(&socket).unwrap(), router(running.vault.clone())).await;
        };
        let lease = tokio::select! {
            lease = waiting => lease.unwrap(),
            () = restarting => unreachable!("a vault serves until it is dropped"),
        };
        assert_eq!(lease[&reference(password)].expose(), b"correct horse");

        // And without one it is an error when the wait is over, not before and not never.
        fs::remove_file(&socket).unwrap();
        let started = Instant::now();
        let error = running.lease(&[password], Duration::from_millis(300)).await.unwrap_err();
        assert!(matches!(error, LeaseError::Unreachable(_)), "{error}");
        assert!(started.elapsed() < Duration::from_secs(2));
    });
}

#[test]
fn a_shim_that_is_killed_while_it_waits_leaves_its_place() {
    block_on(async {
        let key = SigningKey::from_bytes(&[3; 32]);
        let password = "secret://app/db/password";
        let running = Running::start(&[password], &key);
        let one = [password];
        // Far more generations of waiting shims than there are places, each gone before the next comes.
        for _ in 0..5 * cofferdam_vault::MAX_WAITERS_PER_PEER {
            let waiting = running.lease(&one, Duration::from_secs(30));
            assert!(tokio::time::timeout(Duration::from_millis(20), waiting).await.is_err());
        }
        let missing = running.lease(&one, Duration::from_millis(200)).await.unwrap_err();
        assert!(matches!(missing, LeaseError::Missing(_)), "{missing}");
    });
}

#[test]
fn a_reply_is_bounded() {
    block_on(async {
        let key = SigningKey::from_bytes(&[3; 32]);
        let running = Running::start(&[], &key);
        let socket = running.directory.path().join("vault.sock");
        let key =
            client::request(&socket, Method::GET, "/v1/key", Vec::new(), 10, Duration::from_secs(5)).await;
        assert!(matches!(key, Err(client::ClientError::TooLarge(10))));
        let listener = tokio::net::UnixListener::bind(running.directory.path().join("mute.sock")).unwrap();
        let mute = running.directory.path().join("mute.sock");
        let silence =
            client::request(&mute, Method::GET, "/", Vec::new(), 10, Duration::from_millis(50)).await;
        assert!(matches!(silence, Err(client::ClientError::Timeout(_))));
        drop(listener);
    });
}

#[test]
fn strangers_fill_neither_the_console_nor_the_ring() {
    let folder = tempfile::tempdir().unwrap();
    let lines = Lines::new(&folder.path().join("events"), &[("web".to_owned(), 70_000)].into());
    let start = Instant::now();
    let audit = |operation, status| Audit {
        uid: 102,
        operation,
        operator: None,
        references: &[],
        service: Some("web"),
        status,
    };
    let stranger = audit(Operation::Authenticate, 401);
    let written: usize = (0..1000).map(|_| lines.happened(&stranger, start).len()).sum();
    assert_eq!(written, FLOOD_LINES as usize);
    // Nor does a service that asks for what is not its own; what is done is always written.
    assert!(lines.happened(&audit(Operation::Changed, 403), start).is_empty());
    let lease = audit(Operation::Lease, 200);
    let text = |happened: Vec<Happened>| happened.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(text(lines.happened(&lease, start)), ["lease uid=102 status=200 service=web"]);
    let later = text(lines.happened(&stranger, start + FLOOD_WINDOW));
    assert_eq!(later, ["991 further requests were refused", "authenticate uid=102 status=401 service=web"]);
    // What a shim that has fallen asks for is its own, and hides nobody else's.
    let fallen = Audit { uid: 70_000, ..audit(Operation::Changed, 403) };
    let written: usize = (0..1000).map(|_| lines.happened(&fallen, start).len()).sum();
    assert_eq!(written, FLOOD_LINES as usize);
    let sink = lines.sink();
    sink(&audit(Operation::Put, 200));
    for _ in 0..2000 {
        sink(&Audit { uid: 70_000, ..audit(Operation::Lease, 200) });
    }
    let told = |path: PathBuf| std::fs::read_to_string(path).unwrap();
    let events = folder.path().join("events");
    assert!(told(events.clone()).contains("\"put\"") && !told(events.clone()).contains("lease"));
    assert!(told(ring(&events, "web")).contains("lease"));
    let lines = Lines::new(&events, &BTreeMap::new());
    // Whoever looks again and again leaves nothing behind.
    for (operation, status) in [(Operation::Allow, 204), (Operation::List, 200), (Operation::Lease, 409)] {
        assert!(lines.happened(&audit(operation, status), start).is_empty());
    }
    let shown = [stranger, audit(Operation::OpenState, 200), audit(Operation::Order(Order::Stop), 200)];
    assert_eq!(shown.map(|it| on_console(&it)), [true; 3]);
    assert_eq!([lease, audit(Operation::Put, 200)].map(|it| on_console(&it)), [false; 2]);
}
