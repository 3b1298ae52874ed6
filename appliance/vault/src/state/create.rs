//! How a state is made: its keys, its slots, and the order in which they reach the disk.
//!
//! It is responsible for a state that is there as a whole or not at all (see [`super`]). It never writes over a state.

use std::collections::BTreeMap;
use std::io;

use cofferdam_protocol::unseal::{NewMethod, SecretBytes, Witness};

use super::attempts::{check_passphrase, key_bytes};
use super::key::{self, Cost, Secret, StateKey, random};
use super::lineage::Current;
use super::open::{continuity, give_up, keys, opened};
use super::sheet::{self, Header, SHEET, Sheet};
use super::slot::{Image, Set, Slot, Way};
use super::survey::SHEETS;
use super::{Boot, Opened, STORE, Sealed, StateError};
use crate::store::volumes;
use crate::{Disk as _, Store, StoreError, Window};

/// Written at once while what is left of an unfinished store is cleared.
const CLEAR: usize = 64 * 1024;

impl Sealed {
    pub(super) fn create(
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
            Sheet::seal(header.clone(), number, current, (0, slots.clone()), nonce, &state.sheet()?)
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
        if let (NewMethod::Peer {}, Some(servers)) = (method, &self.key_servers) {
            servers.made(witness);
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
        let header = header.write();
        let mut slots = match method {
            NewMethod::Peer {} => {
                let servers = self.key_servers.as_ref().ok_or(StateError::NoKeyServer)?;
                let keys = servers.keys()?;
                let slots = keys.iter().map(|(id, kek)| self.server_slot(&header, id, kek, state));
                slots.collect::<Result<_, _>>()?
            }
            method => vec![new_slot(&self.boot, self.cost, &header, method, state)?],
        };
        slots.push(recovery_slot(&self.boot, &header, recovery, state)?);
        Ok(slots)
    }
}

/// A slot for what operators open a state with.
pub(super) fn new_slot(
    boot: &Boot,
    cost: Option<Cost>,
    header: &[u8],
    method: &NewMethod,
    state: &StateKey,
) -> Result<Slot, StateError> {
    let mut salt = [0; key::SALT];
    random(&mut salt)?;
    let (way, key) = match method {
        NewMethod::Passphrase { passphrase } => {
            let passphrase = check_passphrase(passphrase)?;
            let cost = cost.map_or_else(Cost::calibrate, Ok)?;
            (Way::Passphrase(cost), key::passphrase_key(passphrase, &salt, cost)?)
        }
        NewMethod::Shares { key, set, threshold, shares } => {
            let set = Set::new(*set.as_bytes(), *threshold, *shares)?;
            (Way::Shares(set), key::shares_key(key_bytes(key)?, &salt)?)
        }
        NewMethod::Peer {} => return Err(StateError::NoSuchWay),
    };
    seal(boot, way, salt, header, &key, state)
}

/// A slot for a recovery key.
pub(super) fn recovery_slot(
    boot: &Boot,
    header: &[u8],
    recovery: &SecretBytes,
    state: &StateKey,
) -> Result<Slot, StateError> {
    let mut salt = [0; key::SALT];
    random(&mut salt)?;
    let key = key::recovery_key(key_bytes(recovery)?, &salt)?;
    seal(boot, Way::Recovery, salt, header, &key, state)
}

fn seal(
    boot: &Boot,
    way: Way,
    salt: [u8; key::SALT],
    header: &[u8],
    key: &Secret,
    state: &StateKey,
) -> Result<Slot, StateError> {
    let mut nonce = [0; _];
    random(&mut nonce)?;
    Slot::seal(way, salt, Image::of(boot)?, nonce, header, key, state)
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
