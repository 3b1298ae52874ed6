//! Stage `unseal`: the appliance has its state, and with it the vault's key and the numbers of its services.
//!
//! Without a disk for it the state is in memory, made anew at each boot. With one, the vault, `evidence` and `front` run in this stage,
//! and `publish` to fetch the collateral of the evidence and to ask key servers; nobody else does: an operator appraises the appliance on their very connection and sends what opens the disk, which only the vault can
//! read, and so does a key server. It opens the state, authenticates it as a whole, hands its key to PID 1 ([`handover`]) and ends. Then they are
//! ended, and how the state is kept and what opened it is measured before anything uses it: the statement first, where an operator let
//! this image have the state of another one.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use cofferdam_attest::event_log::payload;
use cofferdam_declaration::{StateSource, Volume};
use cofferdam_protocol::Digest;
use cofferdam_protocol::state::State;
use nix::errno::Errno;

use super::Boot;
use super::attached::{self, AttachedError, Purpose};
use super::keys::{self, KeyError};
use super::launch::{self, LaunchError, Launched};
use super::measure::Measured;
use super::numbers::Numbers;
use super::services;
use super::volumes::{self, Place, VolumeError};
use crate::roles::{EVIDENCE, FRONT, Key, PUBLISH, Role, VAULT};
use crate::system::cgroup::CgroupError;
use crate::system::console::say;
use crate::system::handover::volumes::Sealed;
use crate::system::handover::{self, Handover, HandoverError};
use crate::system::spawn::{Handed, KeyFile};
use crate::system::supervise::Tier;
use crate::system::sys::SecretMemory;
use crate::system::tdx::TdxError;

/// Who runs while the state is not open.
const WAITING: [&Role; 4] = [&VAULT, &EVIDENCE, &FRONT, &PUBLISH];
/// How long the answer to the operator who opened the state may take to leave the machine.
const ANSWER: Duration = Duration::from_secs(1);

/// Why the stage failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnsealError {
    /// A key.
    #[error("cannot make the keys")]
    Key(#[from] KeyError),
    /// A register.
    #[error("cannot measure how the state is kept")]
    Registers(#[from] TdxError),
    /// The declaration wants a state disk.
    #[error("the declaration keeps its state on a disk, and it is not there")]
    Disk(#[from] AttachedError),
    /// The disk cannot be had.
    #[error("cannot open the state disk")]
    Open(#[source] io::Error),
    /// Not for us to write to.
    #[error("the state disk is read-only: the host has to attach it for writing")]
    ReadOnly,
    /// No memory for the key.
    #[error("cannot keep the key in memory of its own")]
    Memory(#[source] Errno),
    /// A control group.
    #[error("cannot make the control groups")]
    Cgroup(#[from] CgroupError),
    /// What the roles read.
    #[error("cannot start what an operator speaks to")]
    Prepare(#[source] Box<LaunchError>),
    /// What the vault left.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// A volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

/// What holds after this stage.
pub(crate) struct Unsealed {
    /// How the state is kept: the claims and every text about it follow from this.
    pub(crate) state: State,
    /// The disk that it is kept on.
    pub(crate) disk: Option<Rc<File>>,
    /// What the vault starts with ([`handover::launch`]).
    pub(crate) vault_key: KeyFile,
    /// Whether volumes were made at this boot, which the vault has to record before a service writes to one.
    pub(crate) new_volumes: bool,
    /// The private key that TLS is served with.
    pub(crate) tls: KeyFile,
    /// Digest of its public half's SubjectPublicKeyInfo.
    pub(crate) tls_key: Digest,
    /// The services that had a number before.
    pub(crate) numbers: Numbers,
}

/// Opens the state, or makes it.
///
/// # Errors
///
/// [`UnsealError`].
pub(super) fn establish(boot: &mut Boot, measured: &mut Measured) -> Result<Unsealed, UnsealError> {
    let (tls, tls_key) = keys::tls()?;
    match &measured.declaration.state {
        StateSource::Memory => {
            measured.measure(&payload::State::memory())?;
            let numbers = Numbers::default();
            Ok(Unsealed {
                state: State::Memory,
                disk: None,
                vault_key: keys::master()?,
                new_volumes: false,
                tls,
                tls_key,
                numbers,
            })
        }
        StateSource::Operator | StateSource::Peer(_) => {
            let disk = open()?;
            let Handover { vault, opened_by, epoch, fresh, volumes, lineage, upgrade, continuity } =
                wait(boot, measured, &disk, &tls, tls_key)?;
            if let Some(upgrade) = upgrade {
                measured.measure(&upgrade)?;
            }
            let (key, continued) = (opened_by, Some(continuity));
            measured.measure(&payload::State::Disk { fresh, key, epoch, lineage, continuity: continued })?;
            let places = places(&measured.declaration.sealed_volumes(), volumes)?;
            let new_volumes = places.iter().any(|place| !place.made);
            let existing = handover::launch::first(places.len());
            let volumes = volumes::establish(&disk, places)?;
            boot.supervisor.at_the_end(|| volumes.close());
            let state = State::Open { epoch: epoch.get(), continuity };
            say(&format!("state: {state}"));
            let vault_key = handover::launch::holding(&vault, existing).map_err(UnsealError::Memory)?;
            let (vault_key, numbers) = (Rc::new(vault_key), Numbers::default());
            Ok(Unsealed { state, disk: Some(disk), vault_key, new_volumes, tls, tls_key, numbers })
        }
    }
}

/// The declared volumes, each with what the vault says of it.
fn places(declared: &[Volume], sealed: Vec<Sealed>) -> Result<Vec<Place>, HandoverError> {
    if declared.len() != sealed.len() {
        return Err(HandoverError::Incomplete);
    }
    let place = |(volume, sealed): (&Volume, Sealed)| {
        let Sealed { offset, length, key, made } = sealed;
        Place { name: volume.name.clone(), offset, length, key, made }
    };
    Ok(declared.iter().zip(sealed).map(place).collect())
}

/// The disk. Not for itself (O_EXCL): the device mapper takes it like that for the volumes, and the vault has its lock on it.
fn open() -> Result<Rc<File>, UnsealError> {
    let device = attached::find(Purpose::State)?.device;
    if attached::is_read_only(&device).map_err(UnsealError::Open)? {
        return Err(UnsealError::ReadOnly);
    }
    let file = OpenOptions::new().read(true).write(true).open(device);
    Ok(Rc::new(file.map_err(UnsealError::Open)?))
}

/// Lets operators open the state, however long that takes.
fn wait(
    boot: &mut Boot,
    measured: &Measured,
    disk: &Rc<File>,
    tls: &KeyFile,
    tls_key: Digest,
) -> Result<Handover, UnsealError> {
    let state = State::Sealed;
    let appliance = launch::appliance(measured, tls_key, None, state, boot.phases.clone());
    let prepared = appliance.and_then(|appliance| {
        launch::prepare(&services::before_launch(&measured.declaration), &Launched { appliance })
    });
    prepared.map_err(|error| UnsealError::Prepare(Box::new(error)))?;
    boot.supervisor.state_is(state.to_string());
    let memory = Rc::new(SecretMemory::new(handover::LENGTH).map_err(UnsealError::Memory)?);
    for role in WAITING {
        let key = role.key().and_then(|key| match key {
            Key::Vault => Some(Handed::Shared(memory.clone())),
            Key::Tls => Some(Handed::Copy(tls.clone())),
            // There is none before there is a state that decides it.
            Key::Account => None,
        });
        let mut spec = role.spec(None, key)?;
        spec.lent = launch::lent(boot, role, Some(disk));
        if role.name() == VAULT.name() {
            boot.supervisor.keep_until_done(role.name().to_owned(), Tier::Role, spec);
        } else {
            boot.supervisor.keep(role.name().to_owned(), Tier::Role, spec);
        }
        launch::await_socket(boot, role);
    }
    match &measured.declaration.state {
        StateSource::Peer(servers) => {
            let urls: Vec<String> = servers.iter().map(|server| server.url.to_string()).collect();
            say(&format!("sealed: a key server opens the state: {}", urls.join(", ")));
        }
        _ => say("sealed: an operator opens the state with `coffer unseal`"),
    }
    boot.supervisor.run_until_done(VAULT.name());
    boot.supervisor.run_until(ANSWER, || false);
    boot.supervisor.release(&WAITING.map(Role::name));
    // Whoever finds one in the next stage is to find somebody behind it.
    for socket in WAITING.into_iter().filter_map(Role::socket) {
        let _ = fs::remove_file(socket);
    }
    Ok(handover::read(&memory)?)
}
