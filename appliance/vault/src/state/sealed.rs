//! A state that waits for an operator, and what makes or opens it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cofferdam_attest::operator;
use cofferdam_attest::shares::{self, Share};
use cofferdam_protocol::Digest;
use cofferdam_protocol::state::{Continuity, MAX_ANCHOR, Rollback};
use cofferdam_protocol::unseal::{
    GivenUp, MAX_PASSPHRASE, MIN_PASSPHRASE, Method, NewMethod, OpeningKey, SealDisk, SealStatus, SealedKey,
    SecretBytes, UnsealRequest, Witness,
};
use cofferdam_protocol::upgrade::SignedStatement;
use tokio::sync::Notify;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::attempts::{self, Attempts};
use super::key::{self, Cost, Secret, StateKey, random};
use super::lineage::Current;
use super::peer::{KeyServer, Known};
use super::sheet::{self, Found, Header, SHEET, Sheet};
use super::slot::{Image, Set, Slot, Way};
use super::{Boot, LineageError, MIN_DISK, Opened, SLOTS, STORE, StateError, StateKeys, Upgrade, VolumeKey};
use crate::store::{Anchors, RequestId, Root, volumes};
use crate::{Audit, Disk, Keys, Operators, Store, StoreError, Volume, Wanted, Window};

/// Where the sheets are.
const SHEETS: [u64; 2] = [0, 32 * 1024];
/// Where the counts of attempts are.
const COUNTS: [u64; 2] = [SHEET as u64, 32 * 1024 + SHEET as u64];
/// No state comes after one of this epoch; none will ever have so many commits.
const MAX_EPOCH: u64 = 1 << 62;
/// Written at once while what is left of an unfinished store is cleared.
const CLEAR: usize = 64 * 1024;
/// Most requests that are remembered of one boot. Nobody but an operator can cause one.
const MAX_SPENT: usize = 4096;
/// How long [`Sealed::opened`] waits for answers to be written.
const ANSWERS: Duration = Duration::from_secs(5);

/// A state, closed, with everything that it takes to open it but the key.
pub struct Sealed {
    pub(super) operators: Operators,
    pub(super) front_uid: u32,
    audit: Box<dyn Fn(&Audit<'_>) + Send + Sync>,
    disk: Arc<dyn Disk>,
    pub(super) boot: Boot,
    pub(super) key_server: Option<KeyServer>,
    private: Secret,
    public: [u8; 32],
    cost: Option<Cost>,
    volumes: Vec<Wanted>,
    rollback: Rollback,
    /// Held while an attempt is made.
    attempt: Mutex<()>,
    inner: Mutex<Inner>,
    /// Signalled when the state is open, and after each answer then.
    changed: Notify,
}

struct Inner {
    on_disk: OnDisk,
    attempts: Attempts,
    /// No attempt before this.
    until: Instant,
    given: Vec<Share>,
    spent: BTreeSet<RequestId>,
    opened: Option<Opened>,
    /// Answers to operators that are not written yet.
    answers: usize,
}

/// What is on the disk.
#[derive(Clone, Debug)]
pub(super) enum OnDisk {
    Blank {
        /// The making of a state was cut off.
        unfinished: bool,
    },
    Sealed {
        /// The sheet that counts.
        sheet: Arc<Sheet>,
        /// The other one, where it is whole.
        other: Option<Arc<Sheet>>,
        /// The place of the one that counts: 0 or 1.
        place: usize,
    },
    Open,
}

/// Something about the disk that is in nobody's way and that somebody should know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// One sheet of key slots is damaged; it is written anew when the state opens.
    Sheet,
    /// A count of attempts is damaged, and counts as one more.
    Attempts,
    /// The making of a state was cut off.
    Unfinished,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sheet => "one of the two sheets of key slots is damaged; the other one is in force",
            Self::Attempts => "the count of wrong attempts is damaged and counts as higher",
            Self::Unfinished => "a state was being made here and was not finished: it holds nothing",
        })
    }
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
            key_server: None,
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
        let peer = self.key_server.as_ref().map(KeyServer::status);
        SealStatus { disk, methods, wait_ms: milliseconds(wait), lineage, peer, rollback: self.rollback }
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
    pub(super) fn spend(&self, request: RequestId) -> Result<(), StateError> {
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
                let known = Known { at_least: *at_least, witness: *witness, witnessed: None };
                let opened = self.open(&sheets, &attempt, &known);
                if opened.is_err() && sheets.next.is_some() {
                    self.look_again();
                }
                opened.map(Some)
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

    /// What the state's lineage becomes, where a statement says so; without one it has to be this boot's.
    fn successor(
        &self,
        current: &Current,
        upgrade: Option<&SignedStatement>,
    ) -> Result<Option<(Current, Upgrade)>, StateError> {
        let Some(signed) = upgrade else {
            self.admits(current)?;
            return Ok(None);
        };
        let next = current.with(signed, &self.boot, &self.operators)?;
        let statement = signed.statement.digest().map_err(|_| StateError::Derive)?;
        Ok(Some((next, Upgrade { statement, signer: signed.key })))
    }

    fn wait_is_over(&self) -> Result<(), StateError> {
        match self.lock().until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Ok(()),
            left => Err(StateError::Wait { ms: milliseconds(left) }),
        }
    }

    /// The slot that is tried, with its key and the error if it does not open; `None` while there are too few shares. Counts the attempt.
    fn slot_key(&self, sheet: &Sheet, key: &OpeningKey) -> Result<Option<Try>, StateError> {
        let find = |kind: fn(&Way) -> bool| {
            sheet.slots.iter().find(|slot| kind(&slot.way)).cloned().ok_or(StateError::NoSuchWay)
        };
        let tried = match key {
            OpeningKey::Passphrase { passphrase } => {
                let slot = find(|way| matches!(way, Way::Passphrase(_)))?;
                let Way::Passphrase(cost) = slot.way else { return Err(StateError::NoSuchWay) };
                let passphrase = check_passphrase(passphrase)?;
                self.count()?;
                let key = key::passphrase_key(passphrase, &slot.salt, cost)?;
                (slot, key, (|| StateError::WrongPassphrase) as fn() -> _)
            }
            OpeningKey::Recovery { recovery } => {
                let slot = find(|way| matches!(way, Way::Recovery))?;
                let recovery = key_bytes(recovery)?;
                self.count()?;
                let key = key::recovery_key(recovery, &slot.salt)?;
                (slot, key, (|| StateError::WrongRecovery) as fn() -> _)
            }
            OpeningKey::Share { set, index, share } => {
                let slot = find(|way| matches!(way, Way::Shares(_)))?;
                let Way::Shares(division) = slot.way else { return Err(StateError::NoSuchWay) };
                let Some(given) = self.give(division, set.as_bytes(), *index, share)? else {
                    return Ok(None);
                };
                self.count()?;
                let whole = shares::combine(&given).map_err(|_| StateError::WrongShares)?;
                let key = key::shares_key(&whole, &slot.salt)?;
                (slot, key, (|| StateError::WrongShares) as fn() -> _)
            }
        };
        Ok(Some(tried))
    }

    /// Takes a share; returns all of them, which are forgotten here, when they are enough.
    fn give(
        &self,
        division: Set,
        set: &[u8; 8],
        index: u8,
        share: &SecretBytes,
    ) -> Result<Option<Vec<Share>>, StateError> {
        if *set != division.id {
            return Err(StateError::OtherSet);
        }
        if index == 0 || index > division.shares {
            return Err(StateError::NoSuchShare { index, shares: division.shares });
        }
        let bytes = Zeroizing::new(*key_bytes(share)?);
        let given = &mut self.lock().given;
        if given.iter().any(|share| share.index == index) {
            return Err(StateError::ShareTwice(index));
        }
        given.push(Share { index, bytes });
        let enough = given.len() >= usize::from(division.threshold);
        Ok(enough.then(|| std::mem::take(given)))
    }

    pub(super) fn open(
        &self,
        sheets: &Sheets,
        (slot, key, wrong): &Try,
        known: &Known,
    ) -> Result<Opened, StateError> {
        let Sheets { sheet, other, place, next } = sheets;
        let Some(state) = slot.open(&sheet.header.write(), key) else {
            let mut inner = self.lock();
            inner.until = Instant::now() + inner.attempts.wait();
            return Err(wrong());
        };
        self.set_count(0)?;
        self.lock().given.clear();
        let sheet_key = state.sheet()?;
        if ![Some(sheet), other.as_ref()].into_iter().flatten().all(|sheet| sheet.verify(&sheet_key)) {
            return Err(StateError::Altered);
        }
        let store = Store::open(self.store()?, keys(&state)?, None)?;
        known.admits(&sheet.header.identity, &store.root())?;
        let version = sheet.current.version;
        if version < store.lineage() {
            return Err(LineageError::OlderSheet { sheet: version, store: store.lineage() }.into());
        }
        let volumes = store.place_volumes(&self.volumes, sheet.header.length)?;
        let (sheet, place) = match next {
            None => (sheet.clone(), *place),
            Some((current, _)) => self.write_successor(sheets, current, &sheet_key)?,
        };
        give_up(&store, &known.witness)?;
        store.count_opening(sheet.current.version)?;
        let (root, continuity) = (store.root(), continuity(&store, &known.witness)?);
        drop(store);
        if next.is_some() || other.as_ref().is_none_or(|other| other.current != sheet.current) {
            self.put(SHEETS, other_place(place), &sheet.write())?;
        }
        let upgrade = next.as_ref().map(|(_, upgrade)| *upgrade);
        let opened = opened(&state, volumes, slot, &root, continuity)?;
        Ok(Opened { lineage: sheet.current.version, upgrade, ..opened })
    }

    /// Writes the sheet that a statement has changed over the older one, and says where it is.
    fn write_successor(
        &self,
        sheets: &Sheets,
        current: &Current,
        key: &Secret,
    ) -> Result<(Arc<Sheet>, usize), StateError> {
        let Sheet { header, number, slots, .. } = &*sheets.sheet;
        let number = number.checked_add(1).ok_or(StateError::Altered)?;
        let mut nonce = [0; _];
        random(&mut nonce)?;
        let sheet = Sheet::seal(header.clone(), number, current.clone(), slots.clone(), nonce, key)?;
        let place = other_place(sheets.place);
        self.put(SHEETS, place, &sheet.write())?;
        Ok((Arc::new(sheet), place))
    }

    fn create(
        &self,
        method: &NewMethod,
        recovery: &SecretBytes,
        witness: &Witness,
        unfinished: bool,
    ) -> Result<Opened, StateError> {
        let state = StateKey::random()?;
        let length = self.disk.len().map_err(StateError::Io)?;
        let mut identity = [0; 16];
        random(&mut identity)?;
        let header = Header { identity, length, repository: self.boot.repository.clone() };
        let slots = self.new_slots(&header, method, recovery, &state)?;
        let sheets = [2, 1].map(|number| {
            let mut nonce = [0; _];
            random(&mut nonce)?;
            let current = Current::first(&self.boot, &self.operators);
            Sheet::seal(header.clone(), number, current, slots.clone(), nonce, &state.sheet()?)
        });
        let [first, second] = sheets;
        let (first, second) = (first?.write(), second?.write());

        // Whether they have room, before anything is written.
        volumes::place(&mut BTreeMap::new(), &self.volumes, length, &mut |_| true)
            .map_err(StoreError::Volume)?;
        let place = self.store()?;
        if unfinished {
            self.write(SHEETS, 1, &[0; SHEET])?;
            clear(&place)?;
        } else if !place.is_blank().map_err(StateError::Io)? {
            return Err(StateError::Leftover);
        }
        self.put(SHEETS, 0, &sheet::mark())?;
        let store = Store::create(place, keys(&state)?)?;
        let volumes = store.place_volumes(&self.volumes, length)?;
        give_up(&store, witness)?;
        let (root, continuity) = (store.root(), continuity(&store, witness)?);
        drop(store);
        self.put(SHEETS, 1, &second)?;
        self.put(SHEETS, 0, &first)?;
        let slot = slots.first().ok_or(StateError::NoSuchWay)?;
        if let (NewMethod::Peer {}, Some(server)) = (method, &self.key_server) {
            server.made(witness);
        }
        Ok(Opened { fresh: true, ..opened(&state, volumes, slot, &root, continuity)? })
    }

    /// The slots of a new state: the way that was asked for, and the recovery key.
    fn new_slots(
        &self,
        header: &Header,
        method: &NewMethod,
        recovery: &SecretBytes,
        state: &StateKey,
    ) -> Result<Vec<Slot>, StateError> {
        let (mut salt, mut recovery_salt) = ([0; key::SALT], [0; key::SALT]);
        random(&mut salt)?;
        random(&mut recovery_salt)?;
        let recovery = key::recovery_key(key_bytes(recovery)?, &recovery_salt)?;
        let (way, key) = match method {
            NewMethod::Passphrase { passphrase } => {
                let passphrase = check_passphrase(passphrase)?;
                let cost = self.cost.map_or_else(Cost::calibrate, Ok)?;
                (Way::Passphrase(cost), key::passphrase_key(passphrase, &salt, cost)?)
            }
            NewMethod::Shares { key, set, threshold, shares } => {
                let set = Set::new(*set.as_bytes(), *threshold, *shares)?;
                (Way::Shares(set), key::shares_key(key_bytes(key)?, &salt)?)
            }
            NewMethod::Peer {} => {
                let server = self.key_server.as_ref().ok_or(StateError::NoKeyServer)?;
                (Way::Peer(server.id), server.slot_key(&salt)?)
            }
        };
        let seal = |way, salt, key: &Secret| {
            let mut nonce = [0; _];
            random(&mut nonce)?;
            Slot::seal(way, salt, Image::of(&self.boot)?, nonce, &header.write(), key, state)
        };
        Ok(vec![seal(way, salt, &key)?, seal(Way::Recovery, recovery_salt, &recovery)?])
    }

    /// After a state was not made or not opened: whatever is there now is what counts.
    fn look_again(&self) {
        if let Ok((on_disk, _)) = survey(&*self.disk) {
            self.lock().on_disk = on_disk;
        }
    }

    /// Counts an attempt as a wrong one before it is made.
    fn count(&self) -> Result<(), StateError> {
        let wrong = self.lock().attempts.wrong.saturating_add(1);
        self.set_count(wrong)
    }

    fn set_count(&self, wrong: u32) -> Result<(), StateError> {
        let attempts = self.lock().attempts;
        let (block, after) = attempts.write(wrong);
        self.put(COUNTS, attempts.next, &block)?;
        self.lock().attempts = after;
        Ok(())
    }

    /// Writes to one of two places and makes it durable.
    fn put(&self, places: [u64; 2], place: usize, bytes: &[u8]) -> Result<(), StateError> {
        self.write(places, place, bytes)?;
        self.disk.sync().map_err(StateError::Write)
    }

    fn write(&self, [first, second]: [u64; 2], place: usize, bytes: &[u8]) -> Result<(), StateError> {
        let offset = if place == 0 { first } else { second };
        self.disk.write_at(offset, bytes).map_err(StateError::Write)
    }

    fn store(&self) -> Result<Window, StateError> {
        Window::new(self.disk.clone(), STORE).map_err(StateError::Io)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change is one assignment.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed").field("status", &self.status()).finish_non_exhaustive()
    }
}

/// A slot, the key to try it with, and what it means when it does not open.
pub(super) type Try = (Slot, Secret, fn() -> StateError);

pub(super) struct Sheets {
    pub(super) sheet: Arc<Sheet>,
    pub(super) other: Option<Arc<Sheet>>,
    pub(super) place: usize,
    /// What a statement makes of it.
    pub(super) next: Option<(Current, Upgrade)>,
}

fn other_place(place: usize) -> usize {
    1 - place.min(1)
}

/// Reads what decides about a disk.
fn survey(disk: &dyn Disk) -> Result<(OnDisk, Attempts), StateError> {
    let length = disk.len().map_err(StateError::Io)?;
    let too_small = StateError::TooSmall { length, least: MIN_DISK };
    if length < SLOTS.end {
        return Err(too_small);
    }
    let [first, second] = SHEETS.map(|offset| read(disk, offset, SHEET));
    let (first, second) = (Found::look(&first?), Found::look(&second?));
    let [one_count, other_count] = COUNTS.map(|offset| read(disk, offset, attempts::BLOCK));
    let attempts = Attempts::read([&one_count?, &other_count?]);
    let on_disk = decide(first, second)?;
    match &on_disk {
        OnDisk::Sealed { sheet, .. } => {
            let expected = sheet.header.length;
            if length < expected || length < MIN_DISK {
                return Err(StateError::Truncated { length, expected });
            }
            if length > expected {
                return Err(StateError::Grown { length, expected });
            }
        }
        _ if length < MIN_DISK => return Err(too_small),
        _ => {
            let [first, second] = COUNTS.map(|offset| offset..offset.saturating_add(attempts::BLOCK as u64));
            for Range { start, end } in [first, second, SLOTS.end..STORE.start] {
                let bytes = read(disk, start, usize::try_from(end.saturating_sub(start)).unwrap_or(0))?;
                if bytes.iter().any(|byte| *byte != 0) {
                    return Err(StateError::NotOurs);
                }
            }
        }
    }
    Ok((on_disk, attempts))
}

/// What two places say together.
pub(super) fn decide(first: Found, second: Found) -> Result<OnDisk, StateError> {
    let sealed = |sheet: Box<Sheet>, other: Option<Box<Sheet>>, place| OnDisk::Sealed {
        sheet: Arc::from(sheet),
        other: other.map(Arc::from),
        place,
    };
    match (first, second) {
        (Found::Format(format), _) | (_, Found::Format(format)) => Err(StateError::Format(format)),
        (Found::Altered, _) | (_, Found::Altered) => Err(StateError::Altered),
        (Found::Sheet(first), Found::Sheet(second)) => {
            let same = first.header == second.header && (first.number != second.number || first == second);
            match (same, first.number >= second.number) {
                (false, _) => Err(StateError::TwoStates),
                (true, true) => Ok(sealed(first, Some(second), 0)),
                (true, false) => Ok(sealed(second, Some(first), 1)),
            }
        }
        (Found::Sheet(sheet), _) => Ok(sealed(sheet, None, 0)),
        (_, Found::Sheet(sheet)) => Ok(sealed(sheet, None, 1)),
        (Found::Blank, Found::Blank) => Ok(OnDisk::Blank { unfinished: false }),
        // The second sheet was being written; from zeros, so that what is there of it may look like anything.
        (Found::Mark { whole: true }, _) => Ok(OnDisk::Blank { unfinished: true }),
        (Found::Mark { whole: false }, Found::Blank) => Ok(OnDisk::Blank { unfinished: true }),
        (Found::Damaged, _) | (_, Found::Damaged) => Err(StateError::Damaged),
        _ => Err(StateError::NotOurs),
    }
}

fn read(disk: &dyn Disk, offset: u64, length: usize) -> Result<Vec<u8>, StateError> {
    let mut bytes = vec![0; length];
    disk.read_at(offset, &mut bytes).map_err(|source| StateError::Unreadable { offset, source })?;
    Ok(bytes)
}

/// Makes everything zero, durably, without writing where it is.
fn clear(place: &Window) -> Result<(), StateError> {
    let zeros = vec![0; CLEAR];
    let mut buffer = vec![0; CLEAR];
    let length = place.len().map_err(StateError::Io)?;
    for offset in (0..length).step_by(CLEAR) {
        let unreadable = |source: io::Error| StateError::Unreadable { offset: STORE.start + offset, source };
        place.read_at(offset, &mut buffer).map_err(unreadable)?;
        if buffer != zeros {
            place.write_at(offset, &zeros).map_err(StateError::Write)?;
        }
    }
    place.sync().map_err(StateError::Write)
}

fn keys(state: &StateKey) -> Result<Keys, StateError> {
    Keys::derive(state.vault()?).map_err(|_| StateError::Derive)
}

fn opened(
    state: &StateKey,
    volumes: Vec<Volume>,
    slot: &Slot,
    root: &Root,
    continuity: Continuity,
) -> Result<Opened, StateError> {
    let of_all = state.volumes()?;
    let sealed = |volume: Volume| Ok(VolumeKey { key: key::volume_key(&of_all, &volume.id)?, volume });
    let volumes = volumes.into_iter().map(sealed).collect::<Result<_, StateError>>()?;
    let keys = StateKeys { vault: state.vault()?, volumes };
    let opened_by = Digest::of(slot.write());
    Ok(Opened {
        keys,
        fresh: false,
        opened_by,
        epoch: root.epoch,
        root: root.digest,
        lineage: 1,
        upgrade: None,
        continuity,
    })
}

/// Lets the state come after what an operator gives up.
fn give_up(store: &Store, witness: &Witness) -> Result<(), StateError> {
    match &witness.gives_up {
        Some(given_up) => Ok(store.give_up(given_up.epoch.get(), given_up.anchor)?),
        None => Ok(()),
    }
}

/// What PID 1 measures of the state's past.
fn continuity(store: &Store, witness: &Witness) -> Result<Continuity, StateError> {
    let Anchors { first, published } = store.anchors();
    let number = |number: u64| NonZeroU64::new(number).ok_or(StateError::Derive);
    Ok(Continuity {
        anchor: number(published.saturating_add(1).min(MAX_ANCHOR))?,
        first_anchor: number(first)?,
        unwitnessed: witness.unwitnessed,
        accepted_loss: witness.gives_up.map(|given_up| given_up.epoch),
    })
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

fn check_passphrase(passphrase: &SecretBytes) -> Result<&[u8], StateError> {
    let bytes = passphrase.0.as_slice();
    if !(MIN_PASSPHRASE..=MAX_PASSPHRASE).contains(&bytes.len()) || str::from_utf8(bytes).is_err() {
        return Err(StateError::Passphrase { least: MIN_PASSPHRASE, most: MAX_PASSPHRASE });
    }
    Ok(bytes)
}

fn key_bytes(bytes: &SecretBytes) -> Result<&[u8; 32], StateError> {
    bytes.0.as_slice().try_into().map_err(|_| StateError::KeyLength)
}

fn milliseconds(duration: Duration) -> u64 {
    // Upwards, so that after so long it is over.
    u64::try_from(duration.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)
}
