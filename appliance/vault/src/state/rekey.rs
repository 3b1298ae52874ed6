//! Replacing a way to open a state that is open: another passphrase, other shares, another recovery key.
//!
//! It takes a key that opens the state now, as opening it does, attempts counted: the state's own key is nowhere in memory after the
//! launch. It is one of the vault's operators who asks, so it takes both. Key servers are not replaced here: they follow the
//! declaration (see `peer`).
//!
//! The state's key stays the same, and with it everything that is sealed. So who has an older copy of the disk *and* what opened that
//! has the state's key; a new state takes another one.
//!
//! # Order
//!
//! The sheet with the new slot goes over the older one; then the store commits how often slots were changed; then the same sheet goes over the
//! other one. Each is durable before the next one begins, and the operator hears of it after the last. From the first on the
//! newer sheet counts, from the second on an older one opens nothing, whatever becomes of the newer one.

use cofferdam_protocol::unseal::{NewKey, NewMethod, OpeningKey, RekeyRequest};

use super::create::{new_slot, recovery_slot};
use super::open::{Sheets, is_newest, keys, other_place};
use super::slot::{Slot, Way};
use super::survey::{OnDisk, SHEETS};
use super::{Sealed, StateError};
use crate::Store;

impl Sealed {
    /// Replaces a way to open the state of which `store` is open. It blocks for as long as the passphrases take.
    ///
    /// # Errors
    /// [`StateError`]. What cannot be written may be there in part; then either the former way or the new one opens the state.
    pub fn rekey(&self, store: &Store, request: &RekeyRequest) -> Result<(), StateError> {
        let _attempt = self.begin()?;
        self.wait_is_over()?;
        let OnDisk::Sealed { sheet, other, place } = self.on_disk() else { return Err(StateError::Blank) };
        let replaced = self.replace(store, &Sheets { sheet, other, place, next: None }, request);
        if replaced.is_err() {
            self.look_again();
        }
        replaced
    }

    fn replace(&self, store: &Store, sheets: &Sheets, request: &RekeyRequest) -> Result<(), StateError> {
        // Shares come one at a time and for one opening.
        if matches!(request.key, OpeningKey::Share { .. }) {
            return Err(StateError::NoSuchWay);
        }
        let sheet = &sheets.sheet;
        let tried = self.slot_key(sheet, &request.key)?.ok_or(StateError::NoSuchWay)?;
        let (state, sheet_key) = self.unlock(sheets, &tried)?;
        // The slots could be those of another state that the same key opens.
        if keys(&state)?.id() != store.keys().id() {
            return Err(StateError::OtherSlots);
        }
        is_newest(sheet, store)?;
        let header = sheet.header.write();
        let stays = |slot: &&Slot| match request.new {
            NewKey::Recovery { .. } => slot.way != Way::Recovery,
            NewKey::Method(_) => !matches!(slot.way, Way::Passphrase(_) | Way::Shares(_)),
        };
        let mut slots: Vec<Slot> = sheet.slots.iter().filter(stays).cloned().collect();
        match &request.new {
            NewKey::Method(NewMethod::Peer {}) => return Err(StateError::NoSuchWay),
            NewKey::Method(method) => {
                slots.insert(0, new_slot(&self.boot, self.cost, &header, method, &state)?);
            }
            NewKey::Recovery { recovery } => {
                slots.push(recovery_slot(&self.boot, &header, recovery, &state)?);
            }
        }
        let (sheet, place) = self.write_next(sheets, None, Some(slots), &sheet_key)?;
        store.slots_changed(sheet.changes)?;
        self.put(SHEETS, other_place(place), &sheet.write())?;
        self.lock().on_disk = OnDisk::Sealed { other: Some(sheet.clone()), sheet, place };
        Ok(())
    }
}
