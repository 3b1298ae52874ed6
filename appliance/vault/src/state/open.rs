//! How a state is opened: what has to be true of its sheets and its store before anything of it is handed over.
//!
//! It is responsible for the order of those checks, and of the writes with which a statement leaves a state to its successor.

use std::num::NonZeroU64;
use std::sync::Arc;

use cofferdam_protocol::Digest;
use cofferdam_protocol::state::{Continuity, MAX_ANCHOR};
use cofferdam_protocol::unseal::Witness;
use cofferdam_protocol::upgrade::SignedStatement;
use tokio::time::Instant;

use super::attempts::Try;
use super::key::{self, Secret, StateKey};
use super::lineage::Current;
use super::peer::Known;
use super::sheet::Sheet;
use super::slot::Slot;
use super::survey::{OnDisk, SHEETS};
use super::{LineageError, Opened, Sealed, StateError, StateKeys, Upgrade, VolumeKey};
use crate::store::{Anchors, Opening, Root};
use crate::{Keys, Store, Volume};

pub(super) struct Sheets {
    pub(super) sheet: Arc<Sheet>,
    pub(super) other: Option<Arc<Sheet>>,
    pub(super) place: usize,
    /// What a statement makes of it.
    pub(super) next: Option<(Current, Upgrade)>,
}

impl Sealed {
    /// What the state's lineage becomes, where a statement says so; without one it has to be this boot's.
    pub(super) fn successor(
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

    /// Opens it. Whatever that has written, it is known afterwards what is on the disk.
    pub(super) fn open(&self, sheets: &Sheets, tried: &Try, known: &Known) -> Result<Opened, StateError> {
        let opened = self.opened_with(sheets, tried, known);
        if opened.is_err() {
            self.look_again();
        }
        opened
    }

    /// Tries a key; with a right one the sheets have authenticated.
    pub(super) fn unlock(
        &self,
        Sheets { sheet, other, .. }: &Sheets,
        (slot, key, wrong): &Try,
    ) -> Result<(StateKey, Secret), StateError> {
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
        Ok((state, sheet_key))
    }

    fn opened_with(&self, sheets: &Sheets, tried: &Try, known: &Known) -> Result<Opened, StateError> {
        let Sheets { sheet, other, place, next } = sheets;
        let (state, sheet_key) = self.unlock(sheets, tried)?;
        let store = Store::open(self.store()?, keys(&state)?, None)?;
        let root = store.root();
        known.admits(&sheet.header.identity, root.epoch, &root.digest)?;
        is_newest(sheet, &store)?;
        let volumes = store.place_volumes(&self.volumes, sheet.header.length)?;
        let current = next.as_ref().map(|(current, _)| current);
        let (sheet, place) = match (current, self.follow(sheet, &state)?) {
            (None, None) => (sheet.clone(), *place),
            (current, slots) => self.write_next(sheets, current, slots, &sheet_key)?,
        };
        give_up(&store, &known.witness)?;
        let witnessing = self.key_servers.as_ref().map(|servers| servers.witnessing(sheet.header.identity));
        store.count_opening(&Opening { lineage: sheet.current.version, slots: sheet.changes, witnessing })?;
        let (root, continuity) = (store.root(), continuity(&store, &known.witness)?);
        drop(store);
        let behind = |other: &Arc<Sheet>| other.current != sheet.current || other.slots != sheet.slots;
        if other.as_ref().is_none_or(behind) {
            self.put(SHEETS, other_place(place), &sheet.write())?;
        }
        self.lock().on_disk = OnDisk::Sealed { sheet: sheet.clone(), other: Some(sheet.clone()), place };
        let upgrade = next.as_ref().map(|(_, upgrade)| *upgrade);
        let opened = opened(&state, volumes, &tried.0, &root, continuity)?;
        Ok(Opened { lineage: sheet.current.version, upgrade, ..opened })
    }

    /// Writes the sheet with another successor or other slots over the older one, and says where it is.
    pub(super) fn write_next(
        &self,
        sheets: &Sheets,
        current: Option<&Current>,
        slots: Option<Vec<Slot>>,
        key: &Secret,
    ) -> Result<(Arc<Sheet>, usize), StateError> {
        let sheet = sheets.sheet.next(current, slots, key)?;
        let place = other_place(sheets.place);
        self.put(SHEETS, place, &sheet.write())?;
        Ok((Arc::new(sheet), place))
    }
}

/// Whether the store knows of no later sheet than this one.
pub(super) fn is_newest(sheet: &Sheet, store: &Store) -> Result<(), StateError> {
    let (lineage, slots) = (store.lineage(), store.slot_changes());
    if sheet.current.version < lineage {
        return Err(LineageError::OlderSheet { sheet: sheet.current.version, store: lineage }.into());
    }
    if sheet.changes < slots {
        return Err(StateError::OlderSlots { sheet: sheet.changes, store: slots });
    }
    Ok(())
}

pub(super) fn other_place(place: usize) -> usize {
    1 - place.min(1)
}

pub(super) fn keys(state: &StateKey) -> Result<Keys, StateError> {
    Keys::derive(state.vault()?).map_err(|_| StateError::Derive)
}

pub(super) fn opened(
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
pub(super) fn give_up(store: &Store, witness: &Witness) -> Result<(), StateError> {
    match &witness.gives_up {
        Some(given_up) => Ok(store.give_up(given_up.epoch.get(), given_up.anchor)?),
        None => Ok(()),
    }
}

/// What PID 1 measures of the state's past.
pub(super) fn continuity(store: &Store, witness: &Witness) -> Result<Continuity, StateError> {
    let Anchors { first, published } = store.anchors();
    let number = |number: u64| NonZeroU64::new(number).ok_or(StateError::Derive);
    Ok(Continuity {
        anchor: number(published.saturating_add(1).min(MAX_ANCHOR))?,
        first_anchor: number(first)?,
        unwitnessed: witness.unwitnessed,
        accepted_loss: witness.gives_up.map(|given_up| given_up.epoch),
    })
}
