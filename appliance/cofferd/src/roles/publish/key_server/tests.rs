//! A real vault with a closed state, real evidence, and a key server that is away, refuses, and releases.

use std::sync::Mutex;
use std::time::Instant;

use axum::extract::State;
use axum::routing::post;
use axum::{Extension, Json, Router};
use cofferdam_attest::claims::Claims;
use cofferdam_attest::keyserve as sealing;
use cofferdam_declaration::Declaration;
use cofferdam_protocol::keyserve::{Refusal, ServerNonce, Witnessed};
use cofferdam_protocol::unseal::{NewMethod, SecretBytes, UnsealRequest, Witness};
use cofferdam_vault::state::{Boot, MIN_DISK, Sealed, sealed_router};
use cofferdam_vault::{FileDisk, KeyServer, Operators, Peer};
use ed25519_dalek::{Signer as _, SigningKey};
use tokio::net::{TcpListener, UnixListener};
use zeroize::Zeroizing;

use super::super::tests::World;
use super::super::{Time, wait};
use super::*;
use crate::roles::clock::Steps;
use crate::roles::{FRONT, PUBLISH};

const NONCE_BYTES: [u8; 32] = [0x6e; 32];

/// A key server for one vault.
struct Keys {
    signer: SigningKey,
    kek: sealing::Kek,
    vault_key: [u8; 32],
    refuses: Mutex<bool>,
    known: Mutex<Option<Witnessed>>,
}

impl Keys {
    fn sign(&self, input: &[u8]) -> cofferdam_protocol::operator::Signature {
        self.signer.sign(input).to_bytes().into()
    }

    async fn serve(self: Arc<Self>, listener: TcpListener) {
        let routes = Router::new()
            .route(NONCE, post(async || Json(NonceReply { nonce: NONCE_BYTES.into() })))
            .route(RELEASE, post(release))
            .route(REPORT, post(report))
            .with_state(self);
        axum::serve(listener, routes).await.unwrap();
    }
}

async fn release(
    State(keys): State<Arc<Keys>>,
    body: axum::body::Bytes,
) -> Result<Json<ReleaseAnswer>, (StatusCode, Json<Refused>)> {
    let evidence = Evidence::parse(&body).unwrap();
    assert!(evidence.collateral.is_some(), "the server asks nobody for it");
    let claims = Claims::decode(&evidence.claims).unwrap();
    assert_eq!(claims.nonce.unwrap().as_bytes(), NONCE_BYTES);
    if *keys.refuses.lock().unwrap() {
        let refused = Refused { refused: Refusal::Measurement, detail: "rtmr2: is\nanother".into() };
        return Err((StatusCode::FORBIDDEN, Json(refused)));
    }
    let nonce: ServerNonce = NONCE_BYTES.into();
    let vault_key = keys.vault_key.into();
    let key = sealing::seal(&vault_key, &nonce, &keys.kek).unwrap();
    let witnessed = *keys.known.lock().unwrap();
    let mut answer = ReleaseAnswer { nonce, key, witnessed, upgrade: None, signature: [0; 64].into() };
    answer.signature = keys.sign(&answer.signing_input(&claims.repository, &vault_key).unwrap());
    Ok(Json(answer))
}

async fn report(State(keys): State<Arc<Keys>>, body: axum::body::Bytes) -> Json<EpochAck> {
    let report: EpochReport = keyserve::parse(&body).unwrap();
    assert!(sealing::is_authentic(&keys.kek, &report));
    *keys.known.lock().unwrap() = Some(report.opened);
    Json(EpochAck { signature: keys.sign(&EpochAck::signing_input(&report.repository, &report.opened)) })
}

/// A vault with a blank disk, at a socket.
fn vault(world: &mut World, keys: &[&SigningKey]) -> Arc<Sealed> {
    let directory = world.paths.directory.clone();
    let disk = std::fs::File::options().read(true).write(true).create_new(true).open(directory.join("disk"));
    let disk = disk.unwrap();
    disk.set_len(MIN_DISK).unwrap();
    let boot = Boot {
        repository: "acme/room".parse().unwrap(),
        mrtd: [1; 48],
        rtmr: [[2; 48]; 3],
        release: "0.1.0".into(),
    };
    let operator = SigningKey::from_bytes(&[1; 32]).verifying_key().to_bytes();
    let operators = Operators::new([("alice", operator)]).unwrap();
    let uid = PUBLISH.uid().unwrap();
    let sealed = Sealed::find(FileDisk::new(disk).unwrap(), boot, operators, FRONT.uid().unwrap(), |_| {});
    let servers = keys.iter().map(|key| KeyServer::new("keys", &key.verifying_key().to_bytes()).unwrap());
    let sealed = Arc::new(sealed.unwrap().with_key_servers(servers.collect(), uid));
    world.paths.vault = directory.join("sealed.sock");
    let listener = UnixListener::bind(&world.paths.vault).unwrap();
    let service = sealed_router(sealed.clone()).layer(Extension(Peer { uid }));
    tokio::spawn(async move { axum::serve(listener, service).await });
    sealed
}

async fn until(
    what: &str,
    sealed: &Sealed,
    wanted: impl Fn(&cofferdam_protocol::unseal::PeerStatus) -> bool,
) {
    let begun = Instant::now();
    while !wanted(&sealed.status().peers[0]) {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}: {:?}", sealed.status());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_server_that_is_away_or_refuses_is_said_and_asked_again_until_the_state_is_open() {
    let mut world = World::new().await;
    let signer = SigningKey::from_bytes(&[0x5e; 32]);
    let sealed = vault(&mut world, &[&signer]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let url = format!("http://{address}").parse().unwrap();
    world.settings.key_servers =
        vec![KeyServerFacts { url, key: signer.verifying_key().to_bytes(), ca: None }];
    let role = tokio::spawn(wait(
        world.settings.clone(),
        world.paths.clone(),
        Time { clock: None, steps: Steps::made().1 },
    ));
    let says = |text: &'static str| {
        move |peer: &cofferdam_protocol::unseal::PeerStatus| {
            peer.trouble.as_ref().is_some_and(|trouble| trouble.contains(text))
        }
    };
    until("away", &sealed, says("no answer from 127.0.0.1")).await;

    let keys = Arc::new(Keys {
        signer,
        kek: Zeroizing::new([0x4e; 32]),
        vault_key: sealed.public_key(),
        refuses: Mutex::new(true),
        known: Mutex::default(),
    });
    tokio::spawn(keys.clone().serve(TcpListener::bind(address).await.unwrap()));
    until("refused", &sealed, says("refused: measurement: rtmr2: isanother")).await;
    assert!(!sealed.status().peers[0].has_key);

    *keys.refuses.lock().unwrap() = false;
    until("released", &sealed, |peer| peer.has_key && peer.trouble.is_none()).await;
    let recovery = SecretBytes(Zeroizing::new(vec![7; 32]));
    let maker = sealed.clone();
    let made = tokio::task::spawn_blocking(move || {
        let witness = Witness::default();
        maker.unseal(&UnsealRequest::Create { method: NewMethod::Peer {}, recovery, witness })
    });
    assert_eq!(made.await.unwrap().unwrap().disk, SealDisk::Sealed);
    let opened = tokio::time::timeout(Duration::from_secs(60), sealed.opened()).await.unwrap();
    assert!(opened.fresh);
    assert_eq!(keys.known.lock().unwrap().unwrap().epoch, opened.epoch);
    role.abort();
}

#[test]
fn the_declared_key_server_is_a_fact_before_and_after_the_launch() {
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIL3eMexUl4rWPV2mlvLRouVrCagc04WaQr3bjVft2JOy";
    let text = format!(
        "version: 1\nrepository: acme/room\nendpoint: room.example:443\noperators: [{{name: alice, key: {key}}}]\n\
         state: {{provider: peer, peers: [{{url: 'http://keys.example:7443', key: {key}}}]}}\n\
         services: {{web: {{image: 'r.example/web@sha256:{}'}}}}\n",
        "0".repeat(64)
    );
    let declaration = Declaration::parse(text.as_bytes()).unwrap();
    let servers = crate::boot::waiting_facts(&declaration).key_servers;
    assert_eq!(servers[0].url.as_str(), "http://keys.example:7443");
    assert_eq!(crate::boot::first_facts(&declaration).key_servers, servers);
}
