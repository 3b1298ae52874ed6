//! A state under the key of a key server: made, opened, witnessed; and false servers, older and copied disks.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that fails panics")]

mod common;

use std::time::Duration;

use cofferdam_attest::keyserve as sealing;
use cofferdam_protocol::keyserve::{EpochAck, EpochReport, PeerNews, PeerReply, ReleaseAnswer, Witnessed};
use cofferdam_protocol::unseal::{Method, NewMethod, SealDisk, UnsealRequest, Witness};
use cofferdam_protocol::upgrade::{SignedStatement, Statement, Successor};
use cofferdam_protocol::{Fingerprint, Repository};
use cofferdam_vault::state::{Boot, MIN_DISK, Opened, Sealed, StateError};
use common::state::*;
use ed25519_dalek::{Signer as _, SigningKey};
use zeroize::Zeroizing;

const PUBLISH: u32 = 103;

/// A key server as `coffer keyserve` is.
struct Server {
    signer: SigningKey,
    kek: Zeroizing<[u8; 32]>,
    known: Option<Witnessed>,
}

impl Server {
    fn new() -> Self {
        Self { signer: SigningKey::from_bytes(&[0x5e; 32]), kek: Zeroizing::new([0x4e; 32]), known: None }
    }

    fn find(&self, disk: &SparseDisk) -> Sealed {
        self.find_as(disk, boot())
    }

    fn find_as(&self, disk: &SparseDisk, boot: Boot) -> Sealed {
        let key = self.signer.verifying_key().to_bytes();
        find_as(disk, boot).unwrap().with_key_server(&key, PUBLISH).unwrap()
    }

    fn answer(&self, sealed: &Sealed) -> ReleaseAnswer {
        let vault_key = sealed.public_key().into();
        let nonce = [9; 32].into();
        let key = sealing::seal(&vault_key, &nonce, &self.kek).unwrap();
        let mut answer = ReleaseAnswer { nonce, key, witnessed: self.known, signature: [0; 64].into() };
        answer.signature = self.sign(&answer.signing_input(&boot().repository, &vault_key));
        answer
    }

    fn sign(&self, input: &[u8]) -> cofferdam_protocol::operator::Signature {
        self.signer.sign(input).to_bytes().into()
    }

    fn acknowledge(&mut self, report: &EpochReport) -> PeerNews {
        assert!(sealing::is_authentic(&self.kek, report));
        self.known = Some(report.opened);
        let signature = self.sign(&EpochAck::signing_input(&report.repository, &report.opened));
        PeerNews::Acknowledged(EpochAck { signature })
    }

    /// A whole opening as `publish` leads it.
    fn open(&mut self, disk: &SparseDisk) -> Opened {
        let sealed = self.find(disk);
        let report = news(&sealed, &PeerNews::Answer(self.answer(&sealed))).unwrap().report.unwrap();
        assert!(opened(&sealed).is_none(), "nothing is handed over that the witness does not know of");
        assert_eq!(news(&sealed, &self.acknowledge(&report)).unwrap().disk, SealDisk::Open);
        let opened = opened(&sealed).unwrap();
        assert_eq!(opened.epoch, report.opened.epoch);
        opened
    }

    /// A disk with a state that was made and opened once.
    fn made(&mut self) -> SparseDisk {
        let disk = SparseDisk::new(MIN_DISK);
        let sealed = self.find(&disk);
        let reply = news(&sealed, &PeerNews::Answer(self.answer(&sealed))).unwrap();
        assert_eq!(reply, PeerReply { disk: SealDisk::Blank, has_key: true, report: None });
        assert_eq!(sealed.unseal(&create()).unwrap().disk, SealDisk::Sealed);
        let report = news(&sealed, &PeerNews::Answer(self.answer(&sealed))).unwrap().report.unwrap();
        assert!(report.fresh);
        news(&sealed, &self.acknowledge(&report)).unwrap();
        assert!(opened(&sealed).unwrap().fresh);
        disk
    }

    fn refusal(&self, disk: &SparseDisk) -> StateError {
        let sealed = self.find(disk);
        news(&sealed, &PeerNews::Answer(self.answer(&sealed))).unwrap_err()
    }
}

fn news(sealed: &Sealed, news: &PeerNews) -> Result<PeerReply, StateError> {
    sealed.peer_news(PUBLISH, news).unwrap()
}

fn opened(sealed: &Sealed) -> Option<Opened> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_millis(50), sealed.opened()).await.ok() })
}

fn create() -> UnsealRequest {
    UnsealRequest::Create {
        method: NewMethod::Peer {},
        recovery: secret_bytes(RECOVERY),
        witness: Witness::default(),
    }
}

#[test]
fn a_state_is_made_with_the_servers_key_and_opens_with_it_at_each_boot() {
    let mut server = Server::new();
    let disk = server.made();
    let sealed = server.find(&disk);
    assert_eq!(sealed.status().methods, [Method::Peer, Method::Recovery]);
    let (one, two) = (server.open(&disk), server.open(&disk));
    assert!(!one.fresh && one.epoch < two.epoch);
    assert_eq!(one.keys.vault.expose(), two.keys.vault.expose());
    // The recovery key opens it without the server.
    find(&disk).unwrap().unseal(&recovery(&RECOVERY)).unwrap();
}

#[test]
fn without_the_servers_key_no_state_is_made() {
    let server = Server::new();
    let disk = SparseDisk::new(MIN_DISK);
    let sealed = server.find(&disk);
    assert!(matches!(sealed.unseal(&create()), Err(StateError::NoPeer(_))));
    news(&sealed, &PeerNews::Trouble { detail: "refused:\n measurement".into() }).unwrap();
    let error = sealed.unseal(&create()).unwrap_err().to_string();
    assert!(error.ends_with("refused: measurement"), "{error}");
    let peer = sealed.status().peer.unwrap();
    assert_eq!((peer.has_key, peer.trouble.as_deref()), (false, Some("refused: measurement")));
    assert!(matches!(find(&disk).unwrap().unseal(&create()), Err(StateError::NoKeyServer)));
    assert_eq!(server.find(&disk).status().disk, SealDisk::Blank, "nothing was written");
    let sealed = server.find(&disk);
    news(&sealed, &PeerNews::Answer(server.answer(&sealed))).unwrap();
    assert_eq!(sealed.unseal(&create()).unwrap().disk, SealDisk::Sealed);
    let long = PeerNews::Trouble { detail: "x".repeat(100_000) };
    news(&sealed, &long).unwrap();
    assert_eq!(sealed.status().peer.unwrap().trouble.unwrap().len(), 500);
}

/// Whoever is between appliance and server, `publish` included.
#[test]
fn a_false_server_neither_opens_a_state_nor_chooses_the_key_of_a_new_one() {
    let mut server = Server::new();
    let disk = server.made();
    let false_server = Server { signer: SigningKey::from_bytes(&[0x66; 32]), ..Server::new() };
    for disk in [disk.clone(), SparseDisk::new(MIN_DISK)] {
        let sealed = server.find(&disk);
        let refused = |answer: ReleaseAnswer| {
            let outcome = news(&sealed, &PeerNews::Answer(answer));
            assert!(matches!(outcome, Err(StateError::PeerSignature)), "{outcome:?}");
        };
        refused(false_server.answer(&sealed));
        refused(server.answer(&server.find(&disk)));
        let other: Repository = "acme/other".parse().unwrap();
        let mut answer = server.answer(&sealed);
        answer.signature = server.sign(&answer.signing_input(&other, &sealed.public_key().into()));
        refused(answer);
        let mut answer = server.answer(&sealed);
        answer.key = false_server.answer(&sealed).key;
        refused(answer);
        let older = ReleaseAnswer { witnessed: None, nonce: [8; 32].into(), ..server.answer(&sealed) };
        refused(older);
        assert!(!sealed.status().peer.unwrap().has_key);
        assert!(opened(&sealed).is_none());
        // Nobody but the one who speaks for the server is heard at all.
        for uid in [0, 1000, PUBLISH + 1, common::FRONT] {
            assert!(sealed.peer_news(uid, &PeerNews::Answer(server.answer(&sealed))).is_none(), "{uid}");
        }
    }
    assert!(find(&disk).unwrap().peer_news(PUBLISH, &PeerNews::Look {}).is_none(), "none is declared");
    let weak = find(&disk).unwrap().with_key_server(
        &{
            let mut key = [0; 32];
            key[0] = 1;
            key
        },
        PUBLISH,
    );
    assert!(weak.is_err());
}

#[test]
fn nothing_is_handed_over_before_the_server_has_acknowledged_that_very_opening() {
    let mut server = Server::new();
    let disk = server.made();
    let sealed = server.find(&disk);
    let answer = PeerNews::Answer(server.answer(&sealed));
    let first = news(&sealed, &answer).unwrap().report.unwrap();
    let forged = PeerNews::Acknowledged(EpochAck { signature: [7; 64].into() });
    assert!(matches!(news(&sealed, &forged), Err(StateError::PeerSignature)));
    let older = server.acknowledge(&first);
    // The acknowledgement was lost, and `publish` begins anew: the next opening is another commit.
    let second = news(&sealed, &answer).unwrap().report.unwrap();
    assert!(second.opened.epoch > first.opened.epoch);
    assert!(matches!(news(&sealed, &older), Err(StateError::PeerSignature)));
    assert_eq!(news(&sealed, &PeerNews::Look {}).unwrap().report, Some(second.clone()), "it is said again");
    assert!(opened(&sealed).is_none());
    // Meanwhile an operator may open it.
    sealed.unseal(&recovery(&RECOVERY)).unwrap();
    news(&sealed, &server.acknowledge(&second)).unwrap();
    assert!(opened(&sealed).unwrap().epoch > second.opened.epoch);
    server.open(&disk);
}

#[test]
fn an_older_copy_another_state_and_a_second_copy_are_refused_by_name() {
    let mut server = Server::new();
    let disk = server.made();
    let old = disk.copy();
    server.open(&disk);
    assert!(matches!(server.refusal(&old), StateError::OlderCopy { .. }));
    // A copy that an operator opens by itself reaches the same number with another root.
    let copy = disk.copy();
    let before = server.known.unwrap();
    server.open(&disk);
    find(&copy).unwrap().unseal(&recovery(&RECOVERY)).unwrap();
    assert_eq!(server.known.unwrap().epoch, before.epoch + 1);
    assert!(matches!(server.refusal(&copy), StateError::Copied { .. }), "{:?}", server.refusal(&copy));
    let another = Server::new().made();
    assert!(matches!(server.refusal(&another), StateError::OtherState { .. }));
    // The server's directory was lost, and it has made another key.
    server.kek = Zeroizing::new([1; 32]);
    assert!(matches!(server.refusal(&disk), StateError::WrongPeer));
    server.kek = Server::new().kek;
    // Another key server than the one that the state was made with.
    server.signer = SigningKey::from_bytes(&[0x77; 32]);
    assert!(matches!(server.refusal(&disk), StateError::NoSuchWay));
    server.signer = Server::new().signer;
    // Another image needs a statement, whatever the server says.
    let mut image = boot();
    image.rtmr[2] = [0xB2; 48];
    let sealed = server.find_as(&disk, image);
    let refused = news(&sealed, &PeerNews::Answer(server.answer(&sealed))).unwrap_err();
    assert!(matches!(refused, StateError::Lineage(_)), "{refused:?}");
    server.open(&disk);
}

/// Another image takes the recovery key once, with its statement. From then on the server opens it for that image, and for no other.
#[test]
fn after_an_upgrade_with_the_recovery_key_the_server_opens_it_again() {
    let mut server = Server::new();
    let disk = server.made();
    server.open(&disk);
    let mut image = boot();
    image.rtmr[2] = [0xB2; 48];
    let key = common::operator_key();
    let [_, rtmr1, rtmr2] = image.rtmr;
    let operators = vec![key.verifying_key().to_bytes().into()];
    let to = Successor { repository: image.repository.clone(), mrtd: image.mrtd, rtmr1, rtmr2, operators };
    let statement = Statement { version: 2, from: boot().repository, to };
    let signature = key.sign(&statement.signing_input().unwrap()).to_bytes().into();
    let signed =
        SignedStatement { statement, key: Fingerprint::of(&key.verifying_key().to_bytes()), signature };
    let UnsealRequest::Open { key, at_least, witness, .. } = recovery(&RECOVERY) else { panic!() };
    let request = UnsealRequest::Open { key, at_least, witness, upgrade: Some(Box::new(signed)) };
    let sealed = server.find_as(&disk, image.clone());
    sealed.unseal(&request).unwrap();
    let by_recovery = opened(&sealed).unwrap();
    assert!(by_recovery.lineage == 2 && by_recovery.upgrade.is_some());

    let sealed = server.find_as(&disk, image);
    let report = news(&sealed, &PeerNews::Answer(server.answer(&sealed))).unwrap().report.unwrap();
    assert!(report.opened.epoch > by_recovery.epoch && !report.fresh);
    news(&sealed, &server.acknowledge(&report)).unwrap();
    let again = opened(&sealed).unwrap();
    assert_eq!((again.lineage, again.upgrade), (2, None));
    assert!(matches!(server.refusal(&disk), StateError::Lineage(_)), "the image before");
}
