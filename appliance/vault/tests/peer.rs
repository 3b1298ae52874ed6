//! A state under the key of a key server: made, opened, witnessed; and false servers, older and copied disks.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that fails panics")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};

use cofferdam_attest::keyserve as sealing;
use cofferdam_protocol::keyserve::{
    EpochAck, EpochReport, PeerNews, PeerReply, PeerReport, ReleaseAnswer, ServerId, Witnessed,
};
use cofferdam_protocol::state::Rollback;
use cofferdam_protocol::unseal::{Method, NewMethod, SealDisk, UnsealRequest, Witness};
use cofferdam_protocol::upgrade::{SignedStatement, Statement, Successor};
use cofferdam_protocol::{Fingerprint, Repository};
use cofferdam_vault::state::{Boot, MIN_DISK, Opened, STORE, Sealed, StateError};
use cofferdam_vault::{
    Disk as _, Grants, KeyServer, Keys, MasterKey, Peer, Rules, Store, Vault, Window, router,
};
use common::state::*;
use ed25519_dalek::{Signer as _, SigningKey};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use zeroize::Zeroizing;

const PUBLISH: u32 = 103;

/// A key server as `coffer keyserve` is.
struct Server {
    signer: SigningKey,
    kek: Zeroizing<[u8; 32]>,
    known: Option<Witnessed>,
    upgrade: Option<SignedStatement>,
}

impl Server {
    fn new() -> Self {
        Self::number(0)
    }

    fn number(n: u8) -> Self {
        let (signer, kek) = ([0x5e + n; 32], [0x4e + n; 32]);
        Self { signer: SigningKey::from_bytes(&signer), kek: Zeroizing::new(kek), known: None, upgrade: None }
    }

    fn declared(&self) -> KeyServer {
        KeyServer::new("http://keys.example", &self.signer.verifying_key().to_bytes()).unwrap()
    }

    fn id(&self) -> ServerId {
        self.declared().id()
    }

    fn find(&self, disk: &SparseDisk) -> Sealed {
        self.find_as(disk, boot())
    }

    fn find_as(&self, disk: &SparseDisk, boot: Boot) -> Sealed {
        find_as(disk, boot).unwrap().with_key_servers(vec![self.declared()], PUBLISH)
    }

    /// The answer, brought to a vault.
    fn tell(&self, sealed: &Sealed) -> Result<PeerReply, StateError> {
        self.bring(sealed, self.answer(sealed))
    }

    fn bring(&self, sealed: &Sealed, answer: ReleaseAnswer) -> Result<PeerReply, StateError> {
        news(sealed, &PeerNews::Answer { server: self.id(), answer: Box::new(answer) })
    }

    /// The answer, and what comes of it: what the server has to take down.
    fn begin(&self, sealed: &Sealed) -> Result<EpochReport, StateError> {
        self.tell(sealed)?;
        let mut reports = open(sealed)?.reports;
        assert_eq!(reports.len(), 1);
        assert_eq!(reports[0].server, self.id());
        Ok(reports.remove(0).report)
    }

    fn trouble(&self, detail: &str) -> PeerNews {
        PeerNews::Trouble { server: self.id(), detail: detail.into() }
    }

    fn answer(&self, sealed: &Sealed) -> ReleaseAnswer {
        let vault_key = sealed.public_key().into();
        let nonce = [9; 32].into();
        let key = sealing::seal(&vault_key, &nonce, &self.kek).unwrap();
        let mut answer = ReleaseAnswer {
            nonce,
            key,
            witnessed: self.known,
            upgrade: self.upgrade.clone(),
            signature: [0; 64].into(),
        };
        answer.signature = self.sign(&answer.signing_input(&boot().repository, &vault_key).unwrap());
        answer
    }

    fn sign(&self, input: &[u8]) -> cofferdam_protocol::operator::Signature {
        self.signer.sign(input).to_bytes().into()
    }

    fn acknowledge(&mut self, report: &EpochReport) -> PeerNews {
        assert!(sealing::is_authentic(&self.kek, report));
        self.known = Some(report.opened);
        let signature = self.sign(&EpochAck::signing_input(&report.repository, &report.opened));
        PeerNews::Acknowledged { server: self.id(), ack: EpochAck { signature } }
    }

    /// A whole opening as `publish` leads it.
    fn open(&mut self, disk: &SparseDisk) -> Opened {
        let sealed = self.find(disk);
        let report = self.begin(&sealed).unwrap();
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
        let ask = vec![self.id()];
        let reply = PeerReply { disk: SealDisk::Blank, ask, reports: Vec::new() };
        assert_eq!(news(&sealed, &PeerNews::Look {}).unwrap(), reply);
        assert_eq!(self.tell(&sealed).unwrap(), PeerReply { ask: Vec::new(), ..reply.clone() });
        assert_eq!(
            open(&sealed).unwrap(),
            PeerReply { ask: Vec::new(), ..reply },
            "there is nothing to open"
        );
        assert_eq!(sealed.unseal(&create()).unwrap().disk, SealDisk::Sealed);
        let report = self.begin(&sealed).unwrap();
        assert!(report.fresh);
        news(&sealed, &self.acknowledge(&report)).unwrap();
        assert!(opened(&sealed).unwrap().fresh);
        disk
    }

    fn refusal(&self, disk: &SparseDisk) -> StateError {
        let sealed = self.find(disk);
        self.begin(&sealed).unwrap_err()
    }
}

fn news(sealed: &Sealed, news: &PeerNews) -> Result<PeerReply, StateError> {
    sealed.peer_news(PUBLISH, news).unwrap()
}

fn open(sealed: &Sealed) -> Result<PeerReply, StateError> {
    news(sealed, &PeerNews::Open {})
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
    server.find(&disk).unseal(&recovery(&RECOVERY)).unwrap();
}

#[test]
fn without_the_servers_key_no_state_is_made() {
    let server = Server::new();
    let disk = SparseDisk::new(MIN_DISK);
    let sealed = server.find(&disk);
    assert!(matches!(sealed.unseal(&create()), Err(StateError::NoPeer { .. })));
    news(&sealed, &server.trouble("refused:\n measurement")).unwrap();
    let error = sealed.unseal(&create()).unwrap_err().to_string();
    assert!(error.ends_with("refused: measurement"), "{error}");
    let peer = sealed.status().peers.remove(0);
    assert_eq!((peer.has_key, peer.trouble.as_deref()), (false, Some("refused: measurement")));
    assert!(matches!(find(&disk).unwrap().unseal(&create()), Err(StateError::NoKeyServer)));
    assert_eq!(server.find(&disk).status().disk, SealDisk::Blank, "nothing was written");
    let sealed = server.find(&disk);
    server.tell(&sealed).unwrap();
    assert_eq!(sealed.unseal(&create()).unwrap().disk, SealDisk::Sealed);
    news(&sealed, &server.trouble(&"x".repeat(100_000))).unwrap();
    assert_eq!(sealed.status().peers.remove(0).trouble.unwrap().len(), 500);
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
            let outcome = server.bring(&sealed, answer);
            assert!(matches!(outcome, Err(StateError::PeerSignature)), "{outcome:?}");
        };
        refused(false_server.answer(&sealed));
        refused(server.answer(&server.find(&disk)));
        let other: Repository = "acme/other".parse().unwrap();
        let mut answer = server.answer(&sealed);
        answer.signature = server.sign(&answer.signing_input(&other, &sealed.public_key().into()).unwrap());
        refused(answer);
        let mut answer = server.answer(&sealed);
        answer.key = false_server.answer(&sealed).key;
        refused(answer);
        let older = ReleaseAnswer { witnessed: None, nonce: [8; 32].into(), ..server.answer(&sealed) };
        refused(older);
        assert!(!sealed.status().peers[0].has_key);
        assert!(open(&sealed).unwrap().reports.is_empty() && opened(&sealed).is_none());
        let stranger = false_server.tell(&sealed);
        assert!(matches!(stranger, Err(StateError::NoKeyServer)), "{stranger:?}");
        // Nobody but the one who speaks for the server is heard at all.
        for uid in [0, 1000, PUBLISH + 1, common::FRONT] {
            let answer = Box::new(server.answer(&sealed));
            let answer = PeerNews::Answer { server: server.id(), answer };
            assert!(sealed.peer_news(uid, &answer).is_none(), "{uid}");
        }
    }
    assert!(find(&disk).unwrap().peer_news(PUBLISH, &PeerNews::Look {}).is_none(), "none is declared");
    let mut weak = [0; 32];
    weak[0] = 1;
    assert!(KeyServer::new("weak", &weak).is_err());
}

#[test]
fn nothing_is_handed_over_before_the_server_has_acknowledged_that_very_opening() {
    let mut server = Server::new();
    let disk = server.made();
    let sealed = server.find(&disk);
    let first = server.begin(&sealed).unwrap();
    let forged = PeerNews::Acknowledged { server: server.id(), ack: EpochAck { signature: [7; 64].into() } };
    assert!(matches!(news(&sealed, &forged), Err(StateError::PeerSignature)));
    // One of another state, or of before, is signed for that.
    let other = Witnessed { epoch: first.opened.epoch - 1, ..first.opened };
    let signature = server.sign(&EpochAck::signing_input(&first.repository, &other));
    let other = PeerNews::Acknowledged { server: server.id(), ack: EpochAck { signature } };
    assert!(matches!(news(&sealed, &other), Err(StateError::PeerSignature)));
    // The acknowledgement was lost, and `publish` begins anew: it is said again, and nobody has to be asked.
    let again = PeerReply {
        disk: SealDisk::Sealed,
        ask: Vec::new(),
        reports: vec![PeerReport { server: server.id(), report: first.clone() }],
    };
    assert_eq!(news(&sealed, &PeerNews::Look {}).unwrap(), again);
    assert_eq!(open(&sealed).unwrap(), again, "what has opened is not opened twice");
    assert!(opened(&sealed).is_none());
    // Meanwhile an operator may open it.
    sealed.unseal(&recovery(&RECOVERY)).unwrap();
    news(&sealed, &server.acknowledge(&first)).unwrap();
    assert!(opened(&sealed).unwrap().epoch > first.opened.epoch);
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
    server.find(&copy).unseal(&recovery(&RECOVERY)).unwrap();
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
    let refused = server.begin(&sealed).unwrap_err();
    assert!(matches!(refused, StateError::Lineage(_)), "{refused:?}");
    server.open(&disk);
}

/// Another image takes the recovery key once, with its statement. From then on the server opens it for that image, and for no other.
#[test]
fn after_an_upgrade_with_the_recovery_key_the_server_opens_it_again() {
    let mut server = Server::new();
    let disk = server.made();
    server.open(&disk);
    let image = image(0xB2);
    let signed = statement(2, &image, &common::operator_key());
    let UnsealRequest::Open { key, at_least, witness, .. } = recovery(&RECOVERY) else { panic!() };
    let request = UnsealRequest::Open { key, at_least, witness, upgrade: Some(Box::new(signed)) };
    let sealed = server.find_as(&disk, image.clone());
    sealed.unseal(&request).unwrap();
    let by_recovery = opened(&sealed).unwrap();
    assert!(by_recovery.lineage == 2 && by_recovery.upgrade.is_some());

    let sealed = server.find_as(&disk, image);
    let report = server.begin(&sealed).unwrap();
    assert!(report.opened.epoch > by_recovery.epoch && !report.fresh);
    news(&sealed, &server.acknowledge(&report)).unwrap();
    let again = opened(&sealed).unwrap();
    assert_eq!((again.lineage, again.upgrade), (2, None));
    assert!(matches!(server.refusal(&disk), StateError::Lineage(_)), "the image before");
}

/// Another image, by its RTMR2.
fn image(rtmr2: u8) -> Boot {
    let mut image = boot();
    image.rtmr[2] = [rtmr2; 48];
    image
}

fn statement(version: u64, image: &Boot, key: &SigningKey) -> SignedStatement {
    let [_, rtmr1, rtmr2] = image.rtmr;
    let operators = vec![common::operator_key().verifying_key().to_bytes().into()];
    let to = Successor { repository: image.repository.clone(), mrtd: image.mrtd, rtmr1, rtmr2, operators };
    let statement = Statement { version, from: boot().repository, to };
    let signature = key.sign(&statement.signing_input().unwrap()).to_bytes().into();
    SignedStatement { statement, key: Fingerprint::of(&key.verifying_key().to_bytes()), signature }
}

/// The server's operator has given it the statement: nobody has to be there when the next image starts.
#[test]
fn a_server_with_a_statement_opens_it_for_the_next_image_and_never_again_for_the_one_before() {
    let mut server = Server::new();
    let disk = server.made();
    let (next, other) = (image(0xB2), image(0xC3));
    let refused = |server: &Server, boot: &Boot| {
        let sealed = server.find_as(&disk, boot.clone());
        match server.begin(&sealed).unwrap_err() {
            StateError::Lineage(error) => error.to_string(),
            error => panic!("{error:?}"),
        }
    };
    let stranger = SigningKey::from_bytes(&[0x51; 32]);
    server.upgrade = Some(statement(2, &next, &stranger));
    assert!(refused(&server, &next).contains("no operator of the state"));
    server.upgrade = Some(statement(1, &next, &common::operator_key()));
    assert!(refused(&server, &next).contains("for version 1, and the state is at version 1"));
    server.upgrade = Some(statement(2, &next, &common::operator_key()));
    assert!(refused(&server, &other).contains("its RTMR2 is not this one's"));

    let sealed = server.find_as(&disk, next.clone());
    let report = server.begin(&sealed).unwrap();
    assert_eq!((report.lineage, report.fresh), (2, false));
    news(&sealed, &server.acknowledge(&report)).unwrap();
    let upgraded = opened(&sealed).unwrap();
    assert!(upgraded.lineage == 2 && upgraded.upgrade.is_some());

    // The statement counts once, and the image before needs one of its own.
    let sealed = server.find_as(&disk, next);
    let report = server.begin(&sealed).unwrap();
    news(&sealed, &server.acknowledge(&report)).unwrap();
    assert_eq!(opened(&sealed).unwrap().upgrade, None);
    assert!(refused(&server, &boot()).contains("for version 2, and the state is at version 2"));
    server.upgrade = None;
    assert!(refused(&server, &boot()).contains("another image"));
}

/// Whoever carries it can take it away, and that is all.
#[test]
fn a_statement_that_the_server_has_not_signed_for_is_no_answer() {
    let mut server = Server::new();
    let disk = server.made();
    let next = image(0xB2);
    let given = Some(statement(2, &next, &common::operator_key()));
    let sealed = server.find_as(&disk, next.clone());
    let added = ReleaseAnswer { upgrade: given.clone(), ..server.answer(&sealed) };
    assert!(matches!(server.bring(&sealed, added), Err(StateError::PeerSignature)));
    server.upgrade = given;
    let taken = ReleaseAnswer { upgrade: None, ..server.answer(&sealed) };
    assert!(matches!(server.bring(&sealed, taken), Err(StateError::PeerSignature)));
}

/// Key servers of one declaration.
struct Servers(Vec<Server>);

impl Servers {
    fn new(count: u8) -> Self {
        Self((0..count).map(Server::number).collect())
    }

    fn find(&self, disk: &SparseDisk) -> Sealed {
        let declared = self.0.iter().map(Server::declared).collect();
        find(disk).unwrap().with_key_servers(declared, PUBLISH)
    }

    /// A state that all have the slot of, opened once with those that are there.
    fn made(&mut self, there: &[usize]) -> SparseDisk {
        let disk = SparseDisk::new(MIN_DISK);
        let sealed = self.find(&disk);
        for server in &self.0 {
            assert!(!news(&sealed, &PeerNews::Look {}).unwrap().ask.is_empty());
            server.tell(&sealed).unwrap();
        }
        assert!(news(&sealed, &PeerNews::Look {}).unwrap().ask.is_empty());
        sealed.unseal(&create()).unwrap();
        assert_eq!(sealed.status().methods.len(), self.0.len() + 1);
        assert!(self.lead(&sealed, there).unwrap().unwrap().fresh);
        disk
    }

    /// One round of `publish` with the servers that are there; what is handed over then.
    fn lead(&mut self, sealed: &Sealed, there: &[usize]) -> Result<Option<Opened>, StateError> {
        for (number, server) in self.0.iter().enumerate() {
            match there.contains(&number) {
                true => server.tell(sealed)?,
                false => news(sealed, &server.trouble("no answer"))?,
            };
        }
        for PeerReport { server, report } in open(sealed)?.reports {
            let server = self.0.iter_mut().find(|known| known.id() == server).unwrap();
            news(sealed, &server.acknowledge(&report))?;
        }
        Ok(opened(sealed))
    }

    fn open(&mut self, disk: &SparseDisk, there: &[usize]) -> Result<Option<Opened>, StateError> {
        let sealed = self.find(disk);
        self.lead(&sealed, there)
    }
}

#[test]
fn any_server_opens_the_state_where_more_than_half_know_how_new_it_is() {
    let mut servers = Servers::new(3);
    let disk = servers.made(&[0, 1, 2]);
    for there in [[0, 1], [1, 2], [2, 0]] {
        let opened = servers.open(&disk, &there).unwrap().unwrap();
        assert!(!opened.continuity.unwitnessed, "{there:?}");
    }
    // One alone does not know of an opening that the others were told of.
    for there in [&[0][..], &[1], &[2]] {
        let before = disk.copy();
        let refused = servers.open(&disk, there).unwrap_err();
        assert!(
            matches!(refused, StateError::TooFewServers { answered: 1, quorum: 2, all: 3 }),
            "{refused:?}"
        );
        assert!(disk.same(&before), "nothing was written");
    }
    assert!(servers.open(&disk, &[]).unwrap().is_none());
    // With two of them both have to be there; with five, three.
    for (count, few) in [(2, 1), (4, 2), (5, 2)] {
        let mut servers = Servers::new(count);
        let all: Vec<usize> = (0..usize::from(count)).collect();
        let disk = servers.made(&all);
        assert!(servers.open(&disk, &all[..few]).is_err(), "{few} of {count}");
        assert!(servers.open(&disk, &all[..=few]).unwrap().is_some(), "{} of {count}", few + 1);
    }
}

/// The host decides which servers the appliance can reach.
#[test]
fn whichever_servers_are_kept_away_an_older_copy_is_refused() {
    let mut servers = Servers::new(3);
    let disk = servers.made(&[0, 1, 2]);
    for told in [[0, 1], [1, 2], [2, 0]] {
        let old = disk.copy();
        servers.open(&disk, &told).unwrap().unwrap();
        for there in [&[0, 1][..], &[1, 2], &[2, 0], &[0, 1, 2]] {
            let refused = servers.open(&old.copy(), there).unwrap_err();
            assert!(matches!(refused, StateError::OlderCopy { .. }), "{told:?} {there:?} {refused:?}");
        }
    }
    // Nor another state, nor a copy that has gone on by itself.
    let another = Servers::new(3).made(&[0, 1, 2]);
    assert!(matches!(servers.open(&another, &[1, 2]), Err(StateError::OtherState { .. })));
    let copy = disk.copy();
    servers.open(&disk, &[0, 1]).unwrap().unwrap();
    servers.find(&copy).unseal(&recovery(&RECOVERY)).unwrap();
    assert!(matches!(servers.open(&copy, &[1, 2]), Err(StateError::Copied { .. })));
}

#[test]
fn two_copies_that_boot_at_once_are_not_both_opened() {
    let mut servers = Servers::new(3);
    let disk = servers.made(&[0, 1, 2]);
    let copy = disk.copy();
    let (one, two) = (servers.find(&disk), servers.find(&copy));
    for server in &servers.0 {
        server.tell(&one).unwrap();
        server.tell(&two).unwrap();
    }
    let (first, second) = (open(&one).unwrap().reports, open(&two).unwrap().reports);
    assert_eq!((first.len(), second.len()), (3, 3));
    // The first server hears of one first, the others of the other. A server takes down the first.
    news(&one, &servers.0[0].acknowledge(&first[0].report)).unwrap();
    assert!(opened(&one).is_none(), "one is no quorum");
    news(&two, &servers.0[1].acknowledge(&second[1].report)).unwrap();
    news(&two, &servers.0[2].acknowledge(&second[2].report)).unwrap();
    assert!(opened(&two).is_some());
    // No acknowledgement of the other's counts, and one server's twice is one.
    let signature = servers.0[1].sign(&EpochAck::signing_input(&boot().repository, &second[1].report.opened));
    let of_two = PeerNews::Acknowledged { server: servers.0[1].id(), ack: EpochAck { signature } };
    assert!(matches!(news(&one, &of_two), Err(StateError::PeerSignature)));
    news(&one, &servers.0[0].acknowledge(&first[0].report)).unwrap();
    let signature = servers.0[0].sign(&EpochAck::signing_input(&boot().repository, &first[0].report.opened));
    let borrowed = PeerNews::Acknowledged { server: servers.0[1].id(), ack: EpochAck { signature } };
    assert!(matches!(news(&one, &borrowed), Err(StateError::PeerSignature)));
    assert!(opened(&one).is_none());
    // Who was late to tell tells what it knows: what has opened here is a copy.
    let late = servers.0[1].tell(&one);
    assert!(matches!(late, Err(StateError::Copied { .. })), "{late:?}");
    assert!(news(&one, &PeerNews::Look {}).unwrap().reports.is_empty());
}

#[test]
fn where_the_declaration_only_warns_one_server_opens_it_and_that_is_measured() {
    let mut servers = Servers::new(3);
    let disk = servers.made(&[0, 1, 2]);
    let old = disk.copy();
    servers.open(&disk, &[0, 1]).unwrap().unwrap();
    let warn = |servers: &Servers, disk: &SparseDisk| servers.find(disk).with_rollback(Rollback::Warn);
    let alone = warn(&servers, &disk);
    assert!(servers.lead(&alone, &[2]).unwrap().unwrap().continuity.unwitnessed);
    let two = warn(&servers, &disk);
    assert!(!servers.lead(&two, &[1, 2]).unwrap().unwrap().continuity.unwitnessed);
    // A newer number that one of them knows is refused all the same.
    let refused = warn(&servers, &old);
    assert!(matches!(servers.lead(&refused, &[1]), Err(StateError::OlderCopy { .. })));
}

#[test]
fn a_server_that_has_lost_its_directory_gets_a_slot_again_when_another_opens_the_state() {
    let mut servers = Servers::new(3);
    let disk = servers.made(&[0, 1, 2]);
    servers.0[0] = Server { kek: Zeroizing::new([0x99; 32]), known: None, ..Server::number(0) };
    let alone = servers.find(&disk).with_rollback(Rollback::Warn);
    assert!(matches!(servers.lead(&alone, &[0]), Err(StateError::WrongPeer)));
    assert_eq!(
        alone.status().peers[0].trouble.as_deref(),
        Some("the key of the key server does not open the state")
    );
    servers.open(&disk, &[0, 1]).unwrap().unwrap();
    let alone = servers.find(&disk).with_rollback(Rollback::Warn);
    assert!(servers.lead(&alone, &[0]).unwrap().is_some());
}

/// The slots are those of the servers that the declaration names.
#[test]
fn a_server_that_is_declared_later_gets_a_slot_and_one_that_is_not_any_more_loses_its() {
    let mut servers = Servers::new(2);
    let disk = servers.made(&[0, 1]);
    let old = disk.copy();
    servers.0.push(Server::number(2));
    servers.open(&disk, &[0, 1, 2]).unwrap().unwrap();
    servers.0.remove(0);
    servers.open(&disk, &[0, 1]).unwrap().unwrap();
    let gone = Servers::new(1);
    assert!(matches!(gone.0[0].refusal(&disk.copy()), StateError::NoSuchWay));
    assert_eq!(servers.find(&disk).status().methods, [Method::Peer, Method::Peer, Method::Recovery]);
    // The slots of before beside the store of now: for the server that was taken away.
    let now = disk.copy();
    for place in [0, 32 * 1024] {
        now.write_at(place, &old.bytes(place, 28 * 1024)).unwrap();
    }
    let first = Server { known: None, ..Server::number(0) };
    let refused = first.refusal(&now);
    assert!(matches!(refused, StateError::OlderSlots { sheet: 0, store: 2 }), "{refused:?}");
    assert!(matches!(servers.open(&now, &[0, 1]), Err(StateError::OlderSlots { .. })));
    servers.open(&disk, &[0, 1]).unwrap().unwrap();
    // The provider changed: only what operators have is left, and key servers come back with the recovery key.
    find(&disk).unwrap().unseal(&recovery(&RECOVERY)).unwrap();
    assert_eq!(find(&disk).unwrap().status().methods, [Method::Recovery]);
    let sealed = servers.find(&disk);
    for server in &servers.0 {
        server.tell(&sealed).unwrap();
    }
    assert!(matches!(open(&sealed), Err(StateError::NoSuchWay)));
    sealed.unseal(&recovery(&RECOVERY)).unwrap();
    opened(&sealed).unwrap();
    for server in &mut servers.0 {
        // What an operator has opened is told after the launch; here nobody was.
        server.known = None;
    }
    servers.open(&disk, &[0, 1]).unwrap().unwrap();
}

/// The power goes at each write of an opening that changes slots.
#[test]
fn after_a_power_cut_the_slots_are_the_old_ones_or_the_new_ones() {
    let mut servers = Servers::new(2);
    let made = servers.made(&[0, 1]);
    servers.0.push(Server::number(2));
    let mut whole = 0;
    for writes in 0.. {
        let disk = made.copy();
        disk.with(|disk| disk.writes = writes);
        let mut cut = Servers(vec![Server::number(0), Server::number(1), Server::number(2)]);
        let opened = cut.open(&disk, &[0, 1, 2]);
        disk.with(|disk| disk.writes = usize::MAX);
        // Whatever was acknowledged by then, the state opens with its first servers, and no sheet contradicts the other.
        let mut after = Servers(cut.0);
        after.0.iter_mut().for_each(|server| server.known = None);
        assert!(after.open(&disk, &[0, 1]).unwrap().is_some(), "after {writes} writes");
        if opened.is_ok_and(|opened| opened.is_some()) {
            assert_eq!(after.find(&disk).status().methods.len(), 4);
            whole += 1;
            if whole > 1 {
                break;
            }
        }
        assert!(writes < 1000);
    }
}

/// The vault as it is after the launch.
fn launched(servers: &Servers, disk: &SparseDisk, opened: &Opened) -> Arc<Vault> {
    let mut key = *opened.keys.vault.expose();
    let keys = Keys::derive(MasterKey::take(&mut key)).unwrap();
    let store = Store::open(Window::new(Arc::new(disk.clone()), STORE).unwrap(), keys, None).unwrap();
    let (grants, operators) = (Grants::default(), operators());
    let rules = Rules {
        grants,
        affected: [].into(),
        operators,
        front_uid: common::FRONT,
        publish_uid: PUBLISH,
        services: [].into(),
        restarts_with: [].into(),
        min_value: common::MIN,
    };
    let declared = servers.0.iter().map(Server::declared).collect();
    let vault = Vault::new(store, rules, || common::NOW, |_| {});
    Arc::new(vault.with_key_servers(boot().repository, declared))
}

/// News of `publish` at the socket of an open vault.
fn say(vault: &Arc<Vault>, uid: u32, news: &PeerNews) -> (StatusCode, Option<PeerReply>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let body = Body::from(serde_json::to_vec(news).unwrap());
        let mut request = Request::builder().method("POST").uri("/v1/peer").body(body).unwrap();
        request.extensions_mut().insert(Peer { uid });
        let response = TowerToHyperService::new(router(vault.clone())).call(request).await.unwrap();
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&body).ok())
    })
}

fn behind(vault: &Arc<Vault>) -> Vec<PeerReport> {
    say(vault, PUBLISH, &PeerNews::Look {}).1.unwrap().reports
}

/// Tells these servers what they have to know.
fn tell(servers: &mut Servers, vault: &Arc<Vault>, there: &[usize]) {
    for PeerReport { server, report } in behind(vault) {
        let place = servers.0.iter().position(|known| known.id() == server).unwrap();
        if there.contains(&place) {
            assert_eq!(say(vault, PUBLISH, &servers.0[place].acknowledge(&report)).0, StatusCode::OK);
        }
    }
}

#[test]
fn servers_that_were_away_are_told_while_the_appliance_runs_and_all_of_each_commit() {
    let mut servers = Servers::new(3);
    let disk = servers.made(&[0, 1, 2]);
    let opened = servers.open(&disk, &[0, 1]).unwrap().unwrap();
    let vault = launched(&servers, &disk, &opened);
    // After a restart of the vault everybody is asked; who knows it says so again.
    assert_eq!(behind(&vault).len(), 3);
    tell(&mut servers, &vault, &[0, 1]);
    assert_eq!(behind(&vault).iter().map(|report| report.server).collect::<Vec<_>>(), [servers.0[2].id()]);
    tell(&mut servers, &vault, &[2]);
    assert!(behind(&vault).is_empty());
    assert_eq!(servers.0[2].known.unwrap().epoch, opened.epoch);
    // What was put since cannot be set back unnoticed either.
    let old = disk.copy();
    common::put(&vault, common::PASSWORD, b"correct horse");
    tell(&mut servers, &vault, &[1, 2]);
    assert!(servers.0[1].known.unwrap().epoch > opened.epoch);
    drop(vault);
    assert!(matches!(servers.open(&old, &[0, 1]), Err(StateError::OlderCopy { .. })));
    assert!(servers.open(&disk, &[0, 1]).unwrap().is_some());
}

/// The recovery key needs no server. They hear of it in the same boot.
#[test]
fn an_opening_with_the_recovery_key_is_told_at_that_boot() {
    let mut servers = Servers::new(1);
    let disk = servers.made(&[0]);
    let old = disk.copy();
    let sealed = servers.find(&disk);
    sealed.unseal(&recovery(&RECOVERY)).unwrap();
    let opened = opened(&sealed).unwrap();
    let vault = launched(&servers, &disk, &opened);
    tell(&mut servers, &vault, &[0]);
    assert_eq!(servers.0[0].known.unwrap().epoch, opened.epoch);
    drop(vault);
    assert!(matches!(servers.open(&old, &[0]), Err(StateError::OlderCopy { .. })));
}

#[test]
fn nobody_but_publish_is_told_and_no_false_acknowledgement_is_taken() {
    let mut servers = Servers::new(2);
    let disk = servers.made(&[0, 1]);
    let opened = servers.open(&disk, &[0, 1]).unwrap().unwrap();
    let vault = launched(&servers, &disk, &opened);
    for uid in [0, common::FRONT, common::SERVICE, 65_534] {
        assert_eq!(say(&vault, uid, &PeerNews::Look {}).0, StatusCode::NOT_FOUND, "{uid}");
    }
    let forged =
        |server: ServerId| PeerNews::Acknowledged { server, ack: EpochAck { signature: [7; 64].into() } };
    let first = servers.0[0].id();
    // Before anything was reported, by another server, and by nobody at all.
    for news in [forged(first), forged([9; 8].into()), PeerNews::Open {}, servers.0[0].trouble("away")] {
        assert_eq!(say(&vault, PUBLISH, &news).0, StatusCode::CONFLICT, "{news:?}");
    }
    let reports = behind(&vault);
    assert_eq!(say(&vault, PUBLISH, &forged(first)).0, StatusCode::CONFLICT);
    let signature =
        servers.0[1].sign(&EpochAck::signing_input(&boot().repository, &reports[0].report.opened));
    let of_another = PeerNews::Acknowledged { server: first, ack: EpochAck { signature } };
    assert_eq!(say(&vault, PUBLISH, &of_another).0, StatusCode::CONFLICT);
    assert_eq!(behind(&vault).len(), 2);
}
