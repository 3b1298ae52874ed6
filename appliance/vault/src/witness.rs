//! An open state's key servers are told of its commits for as long as the appliance runs: those that were away when it opened as soon as they are
//! back, and all of them when something was put since.
//!
//! It never makes anybody wait: what is stored is stored whether a server knows of it or not. `publish` asks what has to be said, says it,
//! and brings the signature back; it is believed no more than while the state is closed.

use std::sync::{Mutex, PoisonError};

use cofferdam_protocol::Repository;
use cofferdam_protocol::keyserve::{
    EpochAck, EpochReport, PeerNews, PeerReply, PeerReport, ServerId, Witnessed,
};
use cofferdam_protocol::unseal::SealDisk;

use crate::{KeyServer, Store};

/// Whom to tell.
pub(crate) struct Told {
    repository: Repository,
    servers: Mutex<Vec<Server>>,
}

struct Server {
    declared: KeyServer,
    /// What it was last asked to take down.
    reported: Option<Witnessed>,
    /// What it has taken down.
    acknowledged: Option<Witnessed>,
}

/// Why news of a server is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WitnessError {
    /// Nobody needs a key any more.
    #[error("the state is open")]
    Open,
    /// The declaration does not name it.
    #[error("the declaration names no such key server")]
    NoKeyServer,
    /// It is somebody else's, or for something else.
    #[error("the acknowledgement is not signed by that key server for this state")]
    Signature,
    /// A mark cannot be made, which the lengths that are used exclude.
    #[error("a report cannot be marked")]
    Mark,
}

impl Told {
    pub(crate) fn new(repository: Repository, servers: Vec<KeyServer>) -> Self {
        let server = |declared| Server { declared, reported: None, acknowledged: None };
        Self { repository, servers: Mutex::new(servers.into_iter().map(server).collect()) }
    }

    /// What is still to be said of the present commit, after what is new.
    pub(crate) fn news(&self, store: &Store, news: &PeerNews) -> Result<PeerReply, WitnessError> {
        match news {
            PeerNews::Look {} => {}
            PeerNews::Acknowledged { server, ack } => self.acknowledged(server, ack)?,
            _ => return Err(WitnessError::Open),
        }
        Ok(PeerReply { disk: SealDisk::Open, ask: Vec::new(), reports: self.reports(store)? })
    }

    fn acknowledged(&self, id: &ServerId, ack: &EpochAck) -> Result<(), WitnessError> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let found = servers.iter_mut().find(|server| server.declared.id() == *id);
        let server = found.ok_or(WitnessError::NoKeyServer)?;
        let reported = server.reported.ok_or(WitnessError::Signature)?;
        let input = EpochAck::signing_input(&self.repository, &reported);
        if !server.declared.has_signed(&input, &ack.signature) {
            return Err(WitnessError::Signature);
        }
        server.acknowledged = Some(reported);
        Ok(())
    }

    fn reports(&self, store: &Store) -> Result<Vec<PeerReport>, WitnessError> {
        let Some(witnesses) = store.witnesses() else { return Ok(Vec::new()) };
        let root = store.root();
        let opened = Witnessed { state: witnesses.state.into(), epoch: root.epoch, root: root.digest.into() };
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let behind = servers.iter_mut().filter(|server| server.acknowledged != Some(opened));
        let report = |server: &mut Server| {
            // Without one it has never released its key to this state: there is nothing that it would believe.
            let key = witnesses.keys.get(server.declared.id().as_bytes())?;
            server.reported = Some(opened);
            let (repository, fresh) = (self.repository.clone(), witnesses.fresh);
            let report =
                EpochReport { repository, opened, fresh, lineage: store.lineage(), mac: [0; 32].into() };
            let mac = key.mac(&report).map_err(|_| WitnessError::Mark);
            let report = mac.map(|mac| EpochReport { mac: mac.into(), ..report });
            Some(report.map(|report| PeerReport { server: server.declared.id(), report }))
        };
        behind.filter_map(report).collect()
    }
}
