//! Opening a state with the key of a key server.
//!
//! The server's answer comes from `publish`, which nothing makes trustworthy: what counts is the server's signature, which covers the key of this
//! start of the vault, so that neither another server's key nor an answer to somebody else is taken. After the state has opened, its epoch and
//! root are reported, under the mark of the key; not before the server has acknowledged them, signed, is the state handed over. So nothing
//! uses a state of which the witness does not know, and a disk from before is told from then on.
//!
//! Such an attempt is not counted: nobody guesses a key of 32 bytes that is signed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use cofferdam_attest::keyserve::{self as sealing, Kek};
use cofferdam_protocol::Digest;
use cofferdam_protocol::keyserve::{
    EpochAck, EpochReport, MAX_DETAIL, PeerNews, PeerReply, ReleaseAnswer, Witnessed,
};
use cofferdam_protocol::operator::Signature;
use cofferdam_protocol::unseal::{PeerStatus, SealDisk, Witness};
use ed25519_dalek::VerifyingKey;

use super::key::{self, Secret};
use super::open::Sheets;
use super::slot::Way;
use super::survey::OnDisk;
use super::{Opened, Sealed, StateError};
use crate::KeyError;
use crate::store::Root;

/// The key server of the declaration.
pub(super) struct KeyServer {
    key: VerifyingKey,
    /// Which slot is its: the beginning of the SHA-256 of its key.
    pub(super) id: [u8; 8],
    /// Who speaks for it.
    uid: u32,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    kek: Option<Kek>,
    witnessed: Option<Witnessed>,
    trouble: Option<String>,
    /// An operator has made the state in this boot, and has said this of others.
    made: Option<Witness>,
    /// What has opened and is not acknowledged yet.
    pending: Option<(Opened, EpochReport)>,
}

impl KeyServer {
    /// A key server with this Ed25519 key, whose answers the peer with this uid brings.
    pub(super) fn new(key: &[u8; 32], uid: u32) -> Result<Self, KeyError> {
        let refused = || KeyError("the key server".to_owned());
        let verifying = VerifyingKey::from_bytes(key).map_err(|_| refused())?;
        if verifying.is_weak() {
            return Err(refused());
        }
        let digest: [u8; 32] = *Digest::of(key).as_bytes();
        let id = digest.first_chunk().copied().ok_or_else(refused)?;
        Ok(Self { key: verifying, id, uid, inner: Mutex::default() })
    }

    /// What operators see of it.
    pub(super) fn status(&self) -> PeerStatus {
        let inner = self.lock();
        PeerStatus {
            has_key: inner.kek.is_some(),
            epoch: inner.witnessed.map(|known| known.epoch),
            trouble: inner.trouble.clone(),
        }
    }

    /// The key for a slot of a new state with this salt.
    pub(super) fn slot_key(&self, salt: &[u8; key::SALT]) -> Result<Secret, StateError> {
        let inner = self.lock();
        match &inner.kek {
            Some(kek) => key::peer_key(kek, salt),
            None => Err(StateError::NoPeer(
                inner.trouble.clone().unwrap_or_else(|| "it has not answered yet".to_owned()),
            )),
        }
    }

    /// An operator has made the state: it is another one than the server knows.
    pub(super) fn made(&self, witness: &Witness) {
        let mut inner = self.lock();
        inner.made = Some(*witness);
        inner.witnessed = None;
    }

    fn signed(&self, input: &[u8], signature: &Signature) -> Result<(), StateError> {
        let signature = ed25519_dalek::Signature::from_bytes(signature.as_bytes());
        self.key.verify_strict(input, &signature).map_err(|_| StateError::PeerSignature)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change is one assignment.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of a state from elsewhere.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    pub(super) at_least: u64,
    pub(super) witness: Witness,
    pub(super) witnessed: Option<Witnessed>,
}

impl Known {
    /// Refuses an older copy, another state, and a second copy that has gone on by itself.
    pub(super) fn admits(&self, state: &[u8; 16], root: &Root) -> Result<(), StateError> {
        let known = self.witnessed.as_ref();
        if let Some(known) = known.filter(|known| known.state.as_bytes() != state) {
            return Err(StateError::OtherState { epoch: known.epoch });
        }
        let expected = known.map_or(0, |known| known.epoch).max(self.at_least);
        if root.epoch < expected {
            return Err(StateError::OlderCopy { found: root.epoch, expected });
        }
        match known.filter(|known| known.epoch == root.epoch && *known.root.as_bytes() != root.digest) {
            Some(_) => Err(StateError::Copied { epoch: root.epoch }),
            None => Ok(()),
        }
    }
}

impl Sealed {
    /// The same with a key server of the declaration: its Ed25519 key, and the uid of the peer that speaks for it.
    ///
    /// # Errors
    /// [`KeyError`] as for operators.
    pub fn with_key_server(mut self, key: &[u8; 32], uid: u32) -> Result<Self, KeyError> {
        self.key_server = Some(KeyServer::new(key, uid)?);
        Ok(self)
    }

    /// Takes what the peer with this uid has of the key server; `None` where it has no say. It blocks while the store is read.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn peer_news(&self, uid: u32, news: &PeerNews) -> Option<Result<PeerReply, StateError>> {
        let server = self.key_server.as_ref().filter(|server| server.uid == uid)?;
        let taken = match news {
            PeerNews::Look {} => Ok(()),
            PeerNews::Answer(answer) => self.take_answer(server, answer),
            PeerNews::Acknowledged(ack) => self.take_ack(server, ack),
            PeerNews::Trouble { detail } => {
                let shown = detail.chars().filter(|c| !c.is_control()).take(MAX_DETAIL);
                server.lock().trouble = Some(shown.collect());
                Ok(())
            }
        };
        Some(taken.map(|()| self.peer_reply(server)))
    }

    fn peer_reply(&self, server: &KeyServer) -> PeerReply {
        let disk = match self.on_disk() {
            OnDisk::Blank { .. } => SealDisk::Blank,
            OnDisk::Sealed { .. } => SealDisk::Sealed,
            OnDisk::Open => SealDisk::Open,
        };
        let inner = server.lock();
        let report = inner.pending.as_ref().map(|(_, report)| report.clone());
        PeerReply { disk, has_key: inner.kek.is_some(), report }
    }

    fn take_answer(&self, server: &KeyServer, answer: &ReleaseAnswer) -> Result<(), StateError> {
        let repository = &self.boot.repository;
        server.signed(&answer.signing_input(repository, &self.public_key().into()), &answer.signature)?;
        let kek = sealing::open(self.private_key(), &answer.nonce, &answer.key)
            .map_err(|_| StateError::PeerSignature)?;
        let made = {
            let mut inner = server.lock();
            inner.kek = Some(kek.clone());
            // Of a state that an operator gives up here the server may still tell.
            if inner.made.is_none() {
                inner.witnessed = answer.witnessed;
            }
            inner.trouble = None;
            inner.pending = None;
            inner.made.is_some()
        };
        let opened = self.open_with(server, &kek)?;
        let Some((state, mut opened)) = opened else { return Ok(()) };
        opened.fresh = made;
        let shown = Witnessed { state: state.into(), epoch: opened.epoch, root: opened.root.into() };
        let mut report =
            EpochReport { repository: repository.clone(), opened: shown, fresh: made, mac: [0; 32].into() };
        report.mac = sealing::report_mac(&kek, &report).map_err(|_| StateError::Derive)?.into();
        server.lock().pending = Some((opened, report));
        Ok(())
    }

    /// Opens what is there; `None` where there is nothing to open, or nothing any more.
    fn open_with(&self, server: &KeyServer, kek: &Kek) -> Result<Option<([u8; 16], Opened)>, StateError> {
        let _attempt = self.begin()?;
        let OnDisk::Sealed { sheet, other, place } = self.on_disk() else { return Ok(None) };
        self.admits(&sheet.current)?;
        let ours = |way: &Way| matches!(way, Way::Peer(id) if *id == server.id);
        let slot = sheet.slots.iter().find(|slot| ours(&slot.way)).cloned().ok_or(StateError::NoSuchWay)?;
        let key = key::peer_key(kek, &slot.salt)?;
        let state = sheet.header.identity;
        let known = {
            let inner = server.lock();
            Known { at_least: 0, witness: inner.made.unwrap_or_default(), witnessed: inner.witnessed }
        };
        let sheets = Sheets { sheet, other, place, next: None };
        let attempt = (slot, key, (|| StateError::WrongPeer) as fn() -> _);
        Ok(Some((state, self.open(&sheets, &attempt, &known)?)))
    }

    fn take_ack(&self, server: &KeyServer, ack: &EpochAck) -> Result<(), StateError> {
        let _attempt = self.begin()?;
        let opened = {
            let mut inner = server.lock();
            let Some((_, report)) = &inner.pending else { return Ok(()) };
            server.signed(&EpochAck::signing_input(&report.repository, &report.opened), &ack.signature)?;
            inner.pending.take().map(|(opened, _)| opened)
        };
        // An operator may have opened it meanwhile: then that is what is handed over.
        if !matches!(self.on_disk(), OnDisk::Open) {
            self.publish(opened);
        }
        Ok(())
    }
}
