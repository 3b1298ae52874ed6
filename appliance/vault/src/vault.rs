//! The engine: a store, the grants, the operators, and the rules that hold between them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cofferdam_protocol::vault::{Affected, GivenOrder};
use cofferdam_protocol::{Digest, Repository, SecretRef, SecretValue};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::orders::Orders;
use crate::state::Sealed;
use crate::witness::Told;
use crate::{Audit, Grants, KeyServer, Operators, Store, StoreError};

/// Most requests that wait at the same time, of all peers: 64 services and `publish`, with all that each may have, so that none
/// keeps another out.
pub const MAX_WAITERS: usize = MAX_WAITERS_PER_PEER * 65;
/// Most requests that one peer may have waiting, so that one service cannot take the places of the others.
pub const MAX_WAITERS_PER_PEER: usize = 4;

/// What the declaration and the build decide. Fixed while the vault runs.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Who may lease what.
    pub grants: Grants,
    /// What a change of a secret does to the services that are given it.
    pub affected: BTreeMap<SecretRef, Vec<Affected>>,
    /// Who may change what is stored.
    pub operators: Operators,
    /// The uid of the front: the only peer that relays operators' requests.
    pub front_uid: u32,
    /// The uid of `publish`: the only peer that says which anchors are published, and speaks for key servers.
    pub publish_uid: u32,
    /// The declared services, with the uids of their shims.
    pub services: BTreeMap<String, u32>,
    /// For each service with such dependencies: those that an operator restarts it with.
    pub restarts_with: BTreeMap<String, BTreeSet<String>>,
    /// Shortest value in bytes, not counting line breaks, that is accepted: what is shorter cannot be redacted from a workload's
    /// output without shredding it.
    pub min_value: usize,
}

/// The vault: everything that the socket can ask for.
pub struct Vault {
    pub(crate) store: Store,
    pub(crate) rules: Rules,
    pub(crate) clock: Box<dyn Fn() -> u64 + Send + Sync>,
    audit: Box<dyn Fn(&Audit<'_>) + Send + Sync>,
    /// Signalled after every change of the store.
    pub(crate) changed: Notify,
    waiters: Waiters,
    pub(crate) orders: Orders,
    /// Those that wait for an order: apart, so that they take nobody's place who waits for a secret.
    listeners: Waiters,
    pub(crate) told: Option<Told>,
    pub(crate) slots: Option<Sealed>,
}

/// Why a lease was not given, or a change not waited for.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// At least one reference is not granted to this peer. It says nothing about what is stored.
    #[error("not granted: {}", list(.0))]
    NotGranted(Vec<SecretRef>),
    /// These references hold no secret, and the wait is over.
    #[error("missing: {}", list(.0))]
    Missing(Vec<SecretRef>),
    /// Too many requests are waiting.
    #[error("too many requests are waiting")]
    Busy,
    /// The store failed.
    #[error("the store failed")]
    Store(#[source] StoreError),
}

impl Vault {
    /// Puts the parts together. `clock` gives the wall clock in Unix seconds; `audit` takes one event per operation.
    pub fn new(
        store: Store,
        rules: Rules,
        clock: impl Fn() -> u64 + Send + Sync + 'static,
        audit: impl Fn(&Audit<'_>) + Send + Sync + 'static,
    ) -> Self {
        Self {
            store,
            rules,
            clock: Box::new(clock),
            audit: Box::new(audit),
            changed: Notify::new(),
            waiters: Waiters::default(),
            orders: Orders::default(),
            listeners: Waiters::default(),
            told: None,
            slots: None,
        }
    }

    /// The same with the key slots of its state, which operators can change.
    #[must_use]
    pub fn with_slots(mut self, slots: Sealed) -> Self {
        self.slots = Some(slots);
        self
    }

    /// The same with the key servers of the declaration, who are told of the commits of this appliance's state.
    #[must_use]
    pub fn with_key_servers(mut self, repository: Repository, servers: Vec<KeyServer>) -> Self {
        self.told = Some(Told::new(repository, servers));
        self
    }

    /// The X25519 public key to which operators seal secrets.
    pub fn public_key(&self) -> [u8; 32] {
        self.store.keys().public_key()
    }

    /// Leases all of `references` to the peer with this uid, or none. Waits up to `wait`, on the monotonic clock, for
    /// those that are missing.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub async fn lease(
        &self,
        uid: u32,
        references: &[SecretRef],
        wait: Duration,
    ) -> Result<Vec<SecretValue>, LeaseError> {
        self.granted(uid, references)?;
        let deadline = Instant::now() + wait;
        let mut place = None;
        loop {
            // Armed before looking, so that a put between the look and the wait is not slept through.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let missing: Vec<_> =
                references.iter().filter(|reference| !self.store.contains(reference)).cloned().collect();
            if missing.is_empty()
                && let Some(values) = self.read_all(references)?
            {
                return Ok(values);
            }
            if Instant::now() >= deadline {
                return Err(LeaseError::Missing(missing));
            }
            if place.is_none() {
                place = Some(self.waiters.enter(uid).ok_or(LeaseError::Busy)?);
            }
            // Whether it is signalled or over, the next turn looks again.
            let _ = tokio::time::timeout_at(deadline, changed).await;
        }
    }

    /// The next order after this one for the service whose shim has this uid, or `None` when the wait is over.
    ///
    /// # Errors
    /// [`LeaseError::Busy`].
    pub(crate) async fn order(
        &self,
        uid: u32,
        after: u32,
        wait: Duration,
    ) -> Result<Option<GivenOrder>, LeaseError> {
        let _place = self.listeners.enter(uid).ok_or(LeaseError::Busy)?;
        Ok(self.orders.next(uid, after, wait).await)
    }

    /// Waits up to `wait`, on the monotonic clock, until [`Store::revision`] of these is another than `known`, and says which it is then.
    ///
    /// # Errors
    /// [`LeaseError::NotGranted`] and [`LeaseError::Busy`].
    pub async fn changed(
        &self,
        uid: u32,
        references: &[SecretRef],
        known: Option<&Digest>,
        wait: Duration,
    ) -> Result<Digest, LeaseError> {
        self.granted(uid, references)?;
        let deadline = Instant::now() + wait;
        let mut place = None;
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let revision = self.store.revision(references);
            if known != Some(&revision) || Instant::now() >= deadline {
                return Ok(revision);
            }
            if place.is_none() {
                place = Some(self.waiters.enter(uid).ok_or(LeaseError::Busy)?);
            }
            let _ = tokio::time::timeout_at(deadline, changed).await;
        }
    }

    /// That this peer may have all of these.
    fn granted(&self, uid: u32, references: &[SecretRef]) -> Result<(), LeaseError> {
        let refused = references.iter().filter(|reference| !self.rules.grants.allows(uid, reference));
        let refused: Vec<_> = refused.cloned().collect();
        if refused.is_empty() { Ok(()) } else { Err(LeaseError::NotGranted(refused)) }
    }

    /// All values, or `None` when one has been removed in the meantime.
    fn read_all(&self, references: &[SecretRef]) -> Result<Option<Vec<SecretValue>>, LeaseError> {
        references
            .iter()
            .map(|reference| self.store.get(reference))
            .collect::<Result<_, _>>()
            .map_err(LeaseError::Store)
    }

    pub(crate) fn audit(&self, event: &Audit<'_>) {
        (self.audit)(event);
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault")
            .field("store", &self.store)
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

/// Counts waiting requests by peer.
#[derive(Clone, Default)]
struct Waiters(Arc<Mutex<BTreeMap<u32, usize>>>);

/// A place among the waiting; given back when dropped, also when the peer has gone away.
struct Place {
    waiters: Waiters,
    uid: u32,
}

impl Waiters {
    fn enter(&self, uid: u32) -> Option<Place> {
        let mut counts = self.lock();
        let all: usize = counts.values().sum();
        let own = counts.entry(uid).or_default();
        if all >= MAX_WAITERS || *own >= MAX_WAITERS_PER_PEER {
            return None;
        }
        *own += 1;
        Some(Place { waiters: self.clone(), uid })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.waiters.lock();
        if let Some(count) = counts.get_mut(&self.uid) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.uid);
            }
        }
    }
}

fn list(references: &[SecretRef]) -> String {
    references.iter().map(SecretRef::as_str).collect::<Vec<_>>().join(", ")
}
