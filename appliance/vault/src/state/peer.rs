//! Opening a state with the keys of key servers.
//!
//! Their answers come from `publish`, which nothing makes trustworthy: what counts is a server's signature, which covers the key of this
//! start of the vault, so that neither another server's key nor an answer to somebody else is taken. Any one's key opens the state.
//!
//! Each server is a witness, too: it knows the newest commit that was reported to it. What any of them knows to be newer, or to be another
//! state, is refused. After the state has opened, its epoch and root are reported, under the mark of each server's key, and it is not handed
//! over before a quorum of the declared servers has acknowledged them, signed. Two quorums have a server in common: whoever keeps
//! some of the servers away can choose which of them are asked, and among those is still one that knows of the last opening. With
//! `rollback: warn` one server is enough, and where no quorum has answered that is measured as a state without a witness.
//!
//! Such an attempt is not counted: nobody guesses a key of 32 bytes that is signed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use cofferdam_attest::keyserve::{self as sealing, Kek, ReportKey};
use cofferdam_protocol::keyserve::{
    EpochAck, EpochReport, MAX_DETAIL, PeerNews, PeerReply, PeerReport, ReleaseAnswer, ServerId, Witnessed,
    quorum,
};
use cofferdam_protocol::state::Rollback;
use cofferdam_protocol::unseal::{PeerStatus, SealDisk, Witness};
use cofferdam_protocol::upgrade::SignedStatement;

use super::key::{self, StateKey, random};
use super::lineage::Current;
use super::open::Sheets;
use super::sheet::Sheet;
use super::slot::{Image, Slot, Way};
use super::survey::OnDisk;
use super::{Opened, Sealed, StateError, Upgrade};
use crate::KeyServer;
use crate::store::Witnessing;

/// The key servers of the declaration.
pub(super) struct KeyServers {
    /// Who speaks for them.
    uid: u32,
    inner: Mutex<Inner>,
}

struct Inner {
    servers: Vec<Server>,
    /// An operator has made the state in this boot, and has said this of others.
    made: Option<Witness>,
    /// What has opened and is not acknowledged yet.
    pending: Option<Pending>,
    /// Why nothing has, where keys are there.
    unopened: Option<String>,
}

struct Server {
    declared: KeyServer,
    kek: Option<Kek>,
    witnessed: Option<Witnessed>,
    /// What it gives this image for a state that another one has sealed.
    upgrade: Option<SignedStatement>,
    trouble: Option<String>,
    /// It knows what is pending.
    acknowledged: bool,
}

struct Pending {
    opened: Opened,
    shown: Witnessed,
    /// How many servers have to acknowledge it.
    needed: usize,
}

impl Inner {
    fn server(&mut self, id: &ServerId) -> Result<&mut Server, StateError> {
        let found = self.servers.iter_mut().find(|server| server.declared.id() == *id);
        found.ok_or(StateError::NoKeyServer)
    }
}

impl KeyServers {
    fn new(servers: Vec<KeyServer>, uid: u32) -> Self {
        let server = |declared| Server {
            declared,
            kek: None,
            witnessed: None,
            upgrade: None,
            trouble: None,
            acknowledged: false,
        };
        let servers = servers.into_iter().map(server).collect();
        Self { uid, inner: Mutex::new(Inner { servers, made: None, pending: None, unopened: None }) }
    }

    /// What operators see of them, and why their keys have not opened the state.
    pub(super) fn status(&self) -> (Vec<PeerStatus>, Option<String>) {
        let inner = self.lock();
        let status = |server: &Server| PeerStatus {
            server: server.declared.name.clone(),
            has_key: server.kek.is_some(),
            epoch: server.witnessed.map(|known| known.epoch),
            trouble: server.trouble.clone(),
        };
        (inner.servers.iter().map(status).collect(), inner.unopened.clone())
    }

    /// The keys for the slots of a new state: all of them, so that none of the servers is left out unnoticed.
    pub(super) fn keys(&self) -> Result<Vec<(ServerId, Kek)>, StateError> {
        let inner = self.lock();
        let key = |server: &Server| match &server.kek {
            Some(kek) => Ok((server.declared.id(), kek.clone())),
            None => Err(StateError::NoPeer {
                server: server.declared.name.clone(),
                why: server.trouble.clone().unwrap_or_else(|| "it has not answered yet".to_owned()),
            }),
        };
        inner.servers.iter().map(key).collect()
    }

    /// An operator has made the state: it is another one than the servers know.
    pub(super) fn made(&self, witness: &Witness) {
        let mut inner = self.lock();
        inner.made = Some(*witness);
        for server in &mut inner.servers {
            server.witnessed = None;
        }
    }

    /// What the vault keeps to go on telling them.
    pub(super) fn witnessing(&self, state: [u8; 16]) -> Witnessing {
        let inner = self.lock();
        let keys = inner.servers.iter().map(|server| {
            let key = server.kek.as_ref().map(|kek| *ReportKey::of(kek).expose());
            (server.declared.id().into(), key)
        });
        Witnessing { state, fresh: inner.made.is_some(), servers: keys.collect() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change is one assignment, or one for each server.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of a state from elsewhere.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) at_least: u64,
    pub(super) witness: Witness,
    pub(super) witnessed: Vec<Witnessed>,
}

impl Known {
    /// Refuses an older copy, another state, and a second copy that has gone on by itself.
    pub(super) fn admits(&self, state: &[u8; 16], epoch: u64, root: &[u8; 32]) -> Result<(), StateError> {
        if let Some(known) = self.witnessed.iter().find(|known| known.state.as_bytes() != state) {
            return Err(StateError::OtherState { epoch: known.epoch });
        }
        let expected = self.witnessed.iter().map(|known| known.epoch).fold(self.at_least, u64::max);
        if epoch < expected {
            return Err(StateError::OlderCopy { found: epoch, expected });
        }
        match self.witnessed.iter().any(|known| known.epoch == epoch && known.root.as_bytes() != root) {
            true => Err(StateError::Copied { epoch }),
            false => Ok(()),
        }
    }
}

impl Sealed {
    /// The same with the key servers of the declaration, and the uid of the peer that speaks for them.
    #[must_use]
    pub fn with_key_servers(mut self, servers: Vec<KeyServer>, uid: u32) -> Self {
        self.key_servers = (!servers.is_empty()).then(|| KeyServers::new(servers, uid));
        self
    }

    /// Takes what the peer with this uid has of the key servers; `None` where it has no say. It blocks while the store is read.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn peer_news(&self, uid: u32, news: &PeerNews) -> Option<Result<PeerReply, StateError>> {
        let servers = self.key_servers.as_ref().filter(|servers| servers.uid == uid)?;
        let taken = match news {
            PeerNews::Look {} => Ok(()),
            PeerNews::Answer { server, answer } => self.take_answer(servers, server, answer),
            PeerNews::Acknowledged { server, ack } => self.take_ack(servers, server, ack),
            PeerNews::Open {} => self.open_by_servers(servers),
            PeerNews::Trouble { server, detail } => servers.lock().server(server).map(|server| {
                let shown = detail.chars().filter(|c| !c.is_control()).take(MAX_DETAIL);
                server.trouble = Some(shown.collect());
            }),
        };
        Some(taken.and_then(|()| self.peer_reply(servers)))
    }

    fn peer_reply(&self, servers: &KeyServers) -> Result<PeerReply, StateError> {
        let on_disk = self.on_disk();
        let (disk, reasked) = match on_disk {
            OnDisk::Blank { .. } => (SealDisk::Blank, false),
            OnDisk::Sealed { .. } => (SealDisk::Sealed, true),
            OnDisk::Open => return Ok(PeerReply { disk: SealDisk::Open, ask: vec![], reports: vec![] }),
        };
        let inner = servers.lock();
        // Those that have answered are asked again until something has opened: what they know may have changed.
        let asked =
            inner.servers.iter().filter(|server| server.kek.is_none() || reasked && inner.pending.is_none());
        let ask = asked.map(|server| server.declared.id()).collect();
        let reports = match &inner.pending {
            Some(pending) => self.reports(&inner.servers, pending)?,
            None => Vec::new(),
        };
        Ok(PeerReply { disk, ask, reports })
    }

    fn reports(&self, servers: &[Server], pending: &Pending) -> Result<Vec<PeerReport>, StateError> {
        let report = |server: &Server| {
            let kek = server.kek.as_ref().filter(|_| !server.acknowledged)?;
            let report = EpochReport {
                repository: self.boot.repository.clone(),
                opened: pending.shown,
                fresh: pending.opened.fresh,
                lineage: pending.opened.lineage,
                mac: [0; 32].into(),
            };
            let mac = sealing::report_mac(kek, &report).map_err(|_| StateError::Derive);
            let report = mac.map(|mac| EpochReport { mac: mac.into(), ..report });
            Some(report.map(|report| PeerReport { server: server.declared.id(), report }))
        };
        servers.iter().filter_map(report).collect()
    }

    fn take_answer(
        &self,
        servers: &KeyServers,
        id: &ServerId,
        answer: &ReleaseAnswer,
    ) -> Result<(), StateError> {
        let mut inner = servers.lock();
        let made = inner.made.is_some();
        let server = inner.server(id)?;
        let input = answer
            .signing_input(&self.boot.repository, &self.public_key().into())
            .map_err(|_| StateError::PeerSignature)?;
        if !server.declared.has_signed(&input, &answer.signature) {
            return Err(StateError::PeerSignature);
        }
        let kek = sealing::open(self.private_key(), &answer.nonce, &answer.key)
            .map_err(|_| StateError::PeerSignature)?;
        server.kek = Some(kek);
        // Of a state that an operator gives up here the server may still tell.
        server.witnessed = answer.witnessed.filter(|_| !made);
        server.upgrade.clone_from(&answer.upgrade);
        server.trouble = None;
        let witnessed: Vec<Witnessed> = server.witnessed.into_iter().collect();
        // It answers late: what has opened meanwhile has to be what it knows.
        if let Some(Pending { shown, .. }) = &inner.pending {
            let known = Known { witnessed, ..Known::default() };
            let admitted = known.admits(shown.state.as_bytes(), shown.epoch, shown.root.as_bytes());
            if let Err(error) = admitted {
                inner.pending = None;
                inner.unopened = Some(error.to_string());
                return Err(error);
            }
        }
        Ok(())
    }

    /// Opens what is there with the keys that are there.
    fn open_by_servers(&self, servers: &KeyServers) -> Result<(), StateError> {
        let _attempt = self.begin()?;
        {
            let inner = servers.lock();
            if inner.pending.is_some() || inner.servers.iter().all(|server| server.kek.is_none()) {
                return Ok(());
            }
        }
        let OnDisk::Sealed { sheet, other, place } = self.on_disk() else { return Ok(()) };
        let opened = self.open_with_any(servers, Sheets { sheet, other, place, next: None });
        let mut inner = servers.lock();
        inner.unopened = opened.as_ref().err().map(ToString::to_string);
        inner.pending = Some(opened?);
        for server in &mut inner.servers {
            server.acknowledged = false;
        }
        Ok(())
    }

    /// What the state's lineage becomes with a statement that a server has given, where this boot needs one.
    fn successor_by_servers(
        &self,
        servers: &KeyServers,
        current: &Current,
    ) -> Result<Option<(Current, Upgrade)>, StateError> {
        let Err(refused) = self.admits(current) else { return Ok(None) };
        let given: Vec<_> = servers.lock().servers.iter().filter_map(|it| it.upgrade.clone()).collect();
        let mut last = refused;
        for statement in &given {
            match self.successor(current, Some(statement)) {
                Err(error) => last = error,
                next => return next,
            }
        }
        Err(last)
    }

    fn open_with_any(&self, servers: &KeyServers, sheets: Sheets) -> Result<Pending, StateError> {
        let next = self.successor_by_servers(servers, &sheets.sheet.current)?;
        let sheets = &Sheets { next, ..sheets };
        let (known, tries, needed) = {
            let inner = servers.lock();
            let (all, answered) = (inner.servers.len(), inner.servers.iter().filter(|it| it.kek.is_some()));
            let (answered, quorum) = (answered.count(), quorum(all));
            if answered < quorum && self.rollback == Rollback::Require {
                return Err(StateError::TooFewServers { answered, quorum, all });
            }
            let said = inner.made.unwrap_or_default();
            let witness = Witness { unwitnessed: said.unwitnessed || answered < quorum, ..said };
            let witnessed = inner.servers.iter().filter_map(|server| server.witnessed).collect();
            let tries = inner.servers.iter().filter_map(|server| {
                let slot = slot_of(&sheets.sheet, &server.declared.id())?.clone();
                Some((server.declared.id(), slot, server.kek.clone()?))
            });
            let needed = if answered < quorum { 1 } else { quorum };
            (Known { at_least: 0, witness, witnessed }, tries.collect::<Vec<_>>(), needed)
        };
        let (state, fresh) = (sheets.sheet.header.identity, servers.lock().made.is_some());
        let mut refused = StateError::NoSuchWay;
        for (id, slot, kek) in tries {
            let key = key::peer_key(&kek, &slot.salt)?;
            match self.open(sheets, &(slot, key, || StateError::WrongPeer), &known) {
                Ok(opened) => {
                    let opened = Opened { fresh, ..opened };
                    let (epoch, root) = (opened.epoch, opened.root.into());
                    return Ok(Pending {
                        shown: Witnessed { state: state.into(), epoch, root },
                        opened,
                        needed,
                    });
                }
                // Another one's may.
                Err(StateError::WrongPeer) => {
                    servers.lock().server(&id)?.trouble = Some(StateError::WrongPeer.to_string());
                    refused = StateError::WrongPeer;
                }
                Err(error) => return Err(error),
            }
        }
        Err(refused)
    }

    fn take_ack(&self, servers: &KeyServers, id: &ServerId, ack: &EpochAck) -> Result<(), StateError> {
        let _attempt = self.begin()?;
        let opened = {
            let mut inner = servers.lock();
            let Some(Pending { shown, needed, .. }) = &inner.pending else { return Ok(()) };
            let (input, needed) = (EpochAck::signing_input(&self.boot.repository, shown), *needed);
            let server = inner.server(id)?;
            if !server.declared.has_signed(&input, &ack.signature) {
                return Err(StateError::PeerSignature);
            }
            server.acknowledged = true;
            server.trouble = None;
            if inner.servers.iter().filter(|server| server.acknowledged).count() < needed {
                return Ok(());
            }
            inner.pending.take().map(|pending| pending.opened)
        };
        // An operator may have opened it meanwhile: then that is what is handed over.
        if !matches!(self.on_disk(), OnDisk::Open) {
            self.publish(opened);
        }
        Ok(())
    }

    /// The slots as the declared key servers need them, where they are not so: those that are not declared any more lose theirs, and those whose key
    /// is there get one. Whoever lets this boot have the state has appraised the declaration.
    pub(super) fn follow(&self, sheet: &Sheet, state: &StateKey) -> Result<Option<Vec<Slot>>, StateError> {
        let keys: Vec<(ServerId, Option<Kek>)> = self.key_servers.as_ref().map_or_else(Vec::new, |servers| {
            let inner = servers.lock();
            inner.servers.iter().map(|server| (server.declared.id(), server.kek.clone())).collect()
        });
        let is_declared = |slot: &&Slot| match slot.way {
            Way::Peer(id) => keys.iter().any(|(declared, _)| *declared.as_bytes() == id),
            _ => true,
        };
        let mut slots: Vec<Slot> = sheet.slots.iter().filter(is_declared).cloned().collect();
        let header = sheet.header.write();
        for (id, kek) in keys {
            let Some(kek) = kek else { continue };
            let opens = match slot_of(sheet, &id) {
                Some(slot) => slot.open(&header, &key::peer_key(&kek, &slot.salt)?).is_some(),
                None => false,
            };
            if !opens {
                slots.retain(|slot| slot.way != Way::Peer(id.into()));
                // Before the recovery key, where the others are.
                slots.insert(0, self.server_slot(&header, &id, &kek, state)?);
            }
        }
        Ok((slots != sheet.slots).then_some(slots))
    }

    /// A slot under a key server's key.
    pub(super) fn server_slot(
        &self,
        header: &[u8],
        id: &ServerId,
        kek: &Kek,
        state: &StateKey,
    ) -> Result<Slot, StateError> {
        let (mut salt, mut nonce) = ([0; key::SALT], [0; _]);
        random(&mut salt)?;
        random(&mut nonce)?;
        let key = key::peer_key(kek, &salt)?;
        Slot::seal(Way::Peer((*id).into()), salt, Image::of(&self.boot)?, nonce, header, &key, state)
    }
}

fn slot_of<'s>(sheet: &'s Sheet, id: &ServerId) -> Option<&'s Slot> {
    sheet.slots.iter().find(|slot| slot.way == Way::Peer((*id).into()))
}
