//! A state that waits for an operator or a key server: what is known of it, and one request after the other.
//!
//! It is responsible for what everybody sees of a state that is not open, and for letting one attempt at a time through. What a disk
//! says is read by `survey`, a key is tried by `attempts`, a state is made by `create` and opened by `open`.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cofferdam_attest::operator;
use cofferdam_attest::shares::Share;
use cofferdam_protocol::state::{MAX_ANCHOR, Rollback};
use cofferdam_protocol::unseal::{
    GivenUp, Method, NewMethod, SealDisk, SealStatus, Sealable as _, SealedKey, UnsealRequest, Witness,
};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::attempts::Attempts;
use super::key::{Cost, Secret};
use super::lineage::Current;
use super::open::Sheets;
use super::peer::{KeyServers, Known};
use super::slot::{Image, Set, Slot, Way};
use super::survey::{Notice, OnDisk, survey};
use super::{Boot, Opened, STORE, StateError};
use crate::store::RequestId;
use crate::{Audit, Disk, Operators, Wanted, Window};

/// No state comes after one of this epoch; none will ever have so many commits.
const MAX_EPOCH: u64 = 1 << 62;
/// Most requests that are remembered of one boot. Nobody but an operator can cause one.
const MAX_SPENT: usize = 4096;
/// How long [`Sealed::opened`] waits for answers to be written.
const ANSWERS: Duration = Duration::from_secs(5);

/// A state, closed, with everything that it takes to open it but the key.
pub struct Sealed {
    pub(super) operators: Operators,
    pub(super) front_uid: u32,
    pub(super) audit: Box<dyn Fn(&Audit<'_>) + Send + Sync>,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) boot: Boot,
    pub(super) key_servers: Option<KeyServers>,
    pub(super) private: Secret,
    public: [u8; 32],
    pub(super) cost: Option<Cost>,
    pub(super) volumes: Vec<Wanted>,
    pub(super) rollback: Rollback,
    /// Held while an attempt is made.
    pub(super) attempt: Mutex<()>,
    pub(super) inner: Mutex<Inner>,
    /// Signalled when the state is open, and after each answer then.
    pub(super) changed: Notify,
}

pub(super) struct Inner {
    pub(super) on_disk: OnDisk,
    pub(super) attempts: Attempts,
    /// No attempt before this.
    pub(super) until: Instant,
    pub(super) given: Vec<Share>,
    pub(super) spent: BTreeSet<RequestId>,
    pub(super) opened: Option<Opened>,
    /// Answers to operators that are not written yet.
    pub(super) answers: usize,
}

impl Sealed {
    /// Looks at a disk. Nothing is written. Operators are authenticated by `operators`, relayed by the peer with `front_uid`; `audit` takes one
    /// event for each of their requests.
    ///
    /// # Errors
    /// [`StateError`]: what is there, when no operator can make or open a state with it.
    pub fn find(
        disk: impl Disk,
        boot: Boot,
        operators: Operators,
        front_uid: u32,
        audit: impl Fn(&Audit<'_>) + Send + Sync + 'static,
    ) -> Result<Self, StateError> {
        let disk: Arc<dyn Disk> = Arc::new(disk);
        Image::of(&boot)?;
        let (on_disk, attempts) = survey(&*disk)?;
        let (private, public) = operator::generate_vault_key();
        let inner = Inner {
            on_disk,
            attempts,
            until: Instant::now() + attempts.wait(),
            given: Vec::new(),
            spent: BTreeSet::new(),
            opened: None,
            answers: 0,
        };
        Ok(Self {
            operators,
            front_uid,
            audit: Box::new(audit),
            disk,
            boot,
            key_servers: None,
            private: Box::new(private),
            public,
            cost: None,
            volumes: Vec::new(),
            rollback: Rollback::Require,
            attempt: Mutex::new(()),
            inner: Mutex::new(inner),
            changed: Notify::new(),
        })
    }

    /// The same with a cost for new passphrases instead of one that is measured when it is needed.
    #[must_use]
    pub fn with_cost(mut self, cost: Cost) -> Self {
        self.cost = Some(cost);
        self
    }

    /// The same with volumes, which get a place on the disk when the state is opened or made, or else it is not.
    #[must_use]
    pub fn with_volumes(mut self, volumes: Vec<Wanted>) -> Self {
        self.volumes = volumes;
        self
    }

    /// The same with what holds where no witness was asked, instead of [`Rollback::Require`].
    #[must_use]
    pub fn with_rollback(mut self, rollback: Rollback) -> Self {
        self.rollback = rollback;
        self
    }

    /// The X25519 public key to which an operator seals what opens the state: the claim `vault_key` until then. Another one
    /// each time.
    pub fn public_key(&self) -> [u8; 32] {
        self.public
    }

    /// Whether the state is open, and what opens it.
    pub fn status(&self) -> SealStatus {
        let inner = self.lock();
        let (disk, methods, lineage) = match &inner.on_disk {
            OnDisk::Blank { .. } => (SealDisk::Blank, Vec::new(), None),
            OnDisk::Open => (SealDisk::Open, Vec::new(), None),
            OnDisk::Sealed { sheet, .. } => (
                SealDisk::Sealed,
                sheet.slots.iter().map(|slot| method(slot, &inner.given)).collect(),
                Some(sheet.current.describe(&self.boot, &self.operators)),
            ),
        };
        let wait = match inner.on_disk {
            OnDisk::Sealed { .. } => inner.until.saturating_duration_since(Instant::now()),
            _ => Duration::ZERO,
        };
        let (peers, unopened) = self.key_servers.as_ref().map(KeyServers::status).unwrap_or_default();
        let (wait_ms, rollback) = (milliseconds(wait), self.rollback);
        SealStatus { disk, methods, wait_ms, lineage, peers, unopened, rollback }
    }

    /// What somebody should know of the disk.
    pub fn notices(&self) -> Vec<Notice> {
        let inner = self.lock();
        let unfinished = matches!(inner.on_disk, OnDisk::Blank { unfinished: true });
        let sheet = matches!(inner.on_disk, OnDisk::Sealed { other: None, .. });
        let all = [
            (sheet, Notice::Sheet),
            (inner.attempts.damaged, Notice::Attempts),
            (unfinished, Notice::Unfinished),
        ];
        all.into_iter().filter_map(|(there, notice)| there.then_some(notice)).collect()
    }

    /// Does what an operator asks for. It blocks for as long as the passphrase takes and the store is read; [`sealed_router`](super::sealed_router)
    /// has a thread for it. A share that is one too few is no error: the status counts it.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn unseal(&self, request: &UnsealRequest) -> Result<SealStatus, StateError> {
        let opened = self.carry_out(request)?;
        Ok(self.publish(opened))
    }

    /// Resolves once, when the state is open and the operators' answers are written, or were for some seconds not taken. On a
    /// runtime of one thread they have left this process then.
    pub async fn opened(&self) -> Opened {
        let opened = loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(opened) = self.lock().opened.take() {
                break opened;
            }
            changed.await;
        };
        // Whether they are written or the time is over, the state is open.
        let _ = tokio::time::timeout(ANSWERS, self.answered()).await;
        opened
    }

    async fn answered(&self) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.lock().answers == 0 {
                return;
            }
            changed.await;
        }
    }

    /// Marks an answer to an operator as not written yet, or as written.
    pub(super) fn answering(&self, begins: bool) {
        let mut inner = self.lock();
        inner.answers =
            if begins { inner.answers.saturating_add(1) } else { inner.answers.saturating_sub(1) };
        self.changed.notify_waiters();
    }

    /// Opens what an operator has sealed to [`Sealed::public_key`].
    pub(super) fn read(&self, sealed: &SealedKey) -> Option<UnsealRequest> {
        let text = operator::open_key(&self.private, sealed).ok()?;
        UnsealRequest::parse(&text).ok()
    }

    /// Refuses a request that was carried out in this boot: a front could send it again.
    pub(crate) fn spend(&self, request: RequestId) -> Result<(), StateError> {
        let spent = &mut self.lock().spent;
        if spent.len() >= MAX_SPENT || !spent.insert(request) { Err(StateError::Spent) } else { Ok(()) }
    }

    pub(super) fn audit(&self, event: &Audit<'_>) {
        (self.audit)(event);
    }

    /// Makes or opens; nobody sees yet that the state is open.
    pub(super) fn carry_out(&self, request: &UnsealRequest) -> Result<Option<Opened>, StateError> {
        let _attempt = self.begin()?;
        match (request, self.on_disk()) {
            (_, OnDisk::Open) => Err(StateError::Open),
            (UnsealRequest::Create { .. }, OnDisk::Sealed { .. }) => Err(StateError::Occupied),
            (UnsealRequest::Create { method, recovery, witness }, OnDisk::Blank { unfinished }) => {
                self.is_witnessed(witness)?;
                let made = self.create(method, recovery, witness, unfinished);
                if made.is_err() || matches!(method, NewMethod::Peer {}) {
                    self.look_again();
                }
                // Its key server opens it, and witnesses that.
                made.map(|opened| Some(opened).filter(|_| !matches!(method, NewMethod::Peer {})))
            }
            (UnsealRequest::Open { .. }, OnDisk::Blank { .. }) => Err(StateError::Blank),
            (
                UnsealRequest::Open { key, at_least, witness, upgrade },
                OnDisk::Sealed { sheet, other, place },
            ) => {
                self.is_witnessed(witness)?;
                self.wait_is_over()?;
                // Before a key is tried: what is said of the sheet here holds if it authenticates.
                let next = self.successor(&sheet.current, upgrade.as_deref())?;
                let sheets = Sheets { sheet, other, place, next };
                let Some(attempt) = self.slot_key(&sheets.sheet, key)? else { return Ok(None) };
                let known = Known { at_least: *at_least, witness: *witness, witnessed: Vec::new() };
                self.open(&sheets, &attempt, &known).map(Some)
            }
        }
    }

    /// Insists that a witness was asked, where one is required, and that there are numbers after those that are given up.
    fn is_witnessed(&self, witness: &Witness) -> Result<(), StateError> {
        if witness.unwitnessed && self.rollback == Rollback::Require {
            return Err(StateError::Unwitnessed);
        }
        let after = |given_up: &GivenUp| given_up.epoch.get() < MAX_EPOCH && given_up.anchor < MAX_ANCHOR;
        match &witness.gives_up {
            Some(given_up) if !after(given_up) => Err(StateError::NoNumber),
            _ => Ok(()),
        }
    }

    /// Keeps every other attempt out.
    pub(super) fn begin(&self) -> Result<MutexGuard<'_, ()>, StateError> {
        self.attempt.try_lock().map_err(|_| StateError::Busy)
    }

    pub(super) fn on_disk(&self) -> OnDisk {
        self.lock().on_disk.clone()
    }

    pub(super) fn private_key(&self) -> &[u8; 32] {
        &self.private
    }

    /// Refuses a state that was left to another image, repository or other operators.
    pub(super) fn admits(&self, current: &Current) -> Result<(), StateError> {
        Ok(current.admits(&self.boot, &self.operators)?)
    }

    /// Lets everybody know what [`Sealed::carry_out`] has done.
    pub(super) fn publish(&self, opened: Option<Opened>) -> SealStatus {
        if let Some(opened) = opened {
            let mut inner = self.lock();
            inner.on_disk = OnDisk::Open;
            inner.opened = Some(opened);
            drop(inner);
            self.changed.notify_waiters();
        }
        self.status()
    }

    /// After a state was not made or not opened: whatever is there now is what counts.
    pub(super) fn look_again(&self) {
        if let Ok((on_disk, _)) = survey(&*self.disk) {
            self.lock().on_disk = on_disk;
        }
    }

    /// Writes to one of two places and makes it durable.
    pub(super) fn put(&self, places: [u64; 2], place: usize, bytes: &[u8]) -> Result<(), StateError> {
        self.write(places, place, bytes)?;
        self.disk.sync().map_err(StateError::Write)
    }

    pub(super) fn write(
        &self,
        [first, second]: [u64; 2],
        place: usize,
        bytes: &[u8],
    ) -> Result<(), StateError> {
        let offset = if place == 0 { first } else { second };
        self.disk.write_at(offset, bytes).map_err(StateError::Write)
    }

    pub(super) fn store(&self) -> Result<Window, StateError> {
        Window::new(self.disk.clone(), STORE).map_err(StateError::Io)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change is one assignment.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed").field("status", &self.status()).finish_non_exhaustive()
    }
}

fn method(slot: &Slot, given: &[Share]) -> Method {
    match slot.way {
        Way::Passphrase(_) => Method::Passphrase,
        Way::Recovery => Method::Recovery,
        Way::Peer(_) => Method::Peer,
        Way::Shares(Set { id, threshold, shares }) => Method::Shares {
            set: id.into(),
            threshold,
            shares,
            given: u8::try_from(given.len()).unwrap_or(u8::MAX),
        },
    }
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    // Upwards, so that after so long it is over.
    u64::try_from(duration.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)
}
