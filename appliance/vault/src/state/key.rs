//! The keys of a state: the one that everything hangs from, and those that open a slot.
//!
//! ```text
//! state key (32 random bytes)
//!  └ HKDF-SHA256, salt "cofferdam/state/v1" (RFC 5869)
//!     ├ info "vault"    the vault's master key
//!     ├ info "volumes"  for volumes
//!     └ info "sheet"    authenticates the sheets of key slots
//!
//! volumes      ── HKDF-SHA256, salt "cofferdam/volume/v1", info the volume's id ────────▶ the volume's key
//! passphrase   ── Argon2id (RFC 9106), version 0x13, salt and parameters of the slot ─▶ the slot's key
//! shares' key  ── HKDF-SHA256, salt of the slot, info "cofferdam/state/shares/v1" ────▶ the slot's key
//! recovery key ── HKDF-SHA256, salt of the slot, info "cofferdam/state/recovery/v1" ──▶ the slot's key
//! ```
//!
//! Argon2id only where there is something to guess: the other two are 32 random bytes.

use std::time::{Duration, Instant};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::{Zeroize as _, Zeroizing};

use super::StateError;
use crate::MasterKey;

/// Least and most memory that a slot may ask for, in KiB. Most of what the vault may use stays free beside it: its role has 256 MiB, of
/// which the store takes a few.
const MEMORY: std::ops::RangeInclusive<u32> = 8 * 1024..=128 * 1024;
/// Fewest and most passes that a slot may ask for.
const PASSES: std::ops::RangeInclusive<u32> = 1..=16;
/// Below this no new slot goes, however slow the machine is: OWASP's least for Argon2id.
const LEAST: Cost = Cost { memory: 19 * 1024, passes: 2 };
/// How long a new slot's passphrase should take here.
const GOAL: Duration = Duration::from_secs(1);

const STATE_SALT: &[u8] = b"cofferdam/state/v1";
const SHARES_INFO: &[u8] = b"cofferdam/state/shares/v1";
const VOLUME_SALT: &[u8] = b"cofferdam/volume/v1";
const RECOVERY_INFO: &[u8] = b"cofferdam/state/recovery/v1";

/// Length of a slot's salt in bytes.
pub(super) const SALT: usize = 16;

/// 32 secret bytes that stay where they are when their owner moves.
pub(super) type Secret = Box<Zeroizing<[u8; 32]>>;

/// What Argon2id is asked to do. One lane: the vault has one thread for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    memory: u32,
    passes: u32,
}

impl Cost {
    /// `memory` in KiB, 8 to 128 MiB, and 1 to 16 passes over it; `None` for more or less, so that no disk makes an appliance allocate
    /// or compute without a bound.
    pub fn new(memory: u32, passes: u32) -> Option<Self> {
        (MEMORY.contains(&memory) && PASSES.contains(&passes)).then_some(Self { memory, passes })
    }

    /// Memory in KiB.
    pub fn memory(self) -> u32 {
        self.memory
    }

    /// Passes over the memory.
    pub fn passes(self) -> u32 {
        self.passes
    }

    /// What takes about a second here, and never less than the least that is thought to be enough.
    ///
    /// # Errors
    /// As [`passphrase_key`].
    pub(super) fn calibrate() -> Result<Self, StateError> {
        // The first pass faults the memory in, as it does in each attempt.
        let probe = Self { memory: LEAST.memory, passes: 1 };
        let start = Instant::now();
        drop(passphrase_key(b"calibration", &[0; SALT], probe)?);
        Ok(Self::for_speed(start.elapsed()))
    }

    /// The cost for a machine that takes this long for one pass over the least memory. Memory before passes: it is what
    /// a guesser's hardware lacks.
    fn for_speed(pass: Duration) -> Self {
        // KiB times passes that fit.
        let work = GOAL.as_micros().saturating_mul(u128::from(LEAST.memory)) / pass.as_micros().max(1);
        let bounded =
            |value: u128, least: u32, most: u32| u32::try_from(value).unwrap_or(u32::MAX).clamp(least, most);
        let memory = bounded(work / u128::from(LEAST.passes), LEAST.memory, *MEMORY.end());
        let passes = bounded(work / u128::from(memory), LEAST.passes, *PASSES.end());
        Self { memory, passes }
    }
}

/// The state key.
pub(super) struct StateKey(pub(super) Secret);

impl StateKey {
    pub(super) fn random() -> Result<Self, StateError> {
        let mut key = secret();
        random(&mut key[..])?;
        Ok(Self(key))
    }

    pub(super) fn vault(&self) -> Result<MasterKey, StateError> {
        self.expand(b"vault").map(|mut key| MasterKey::take(&mut key))
    }

    pub(super) fn volumes(&self) -> Result<Secret, StateError> {
        self.expand(b"volumes")
    }

    pub(super) fn sheet(&self) -> Result<Secret, StateError> {
        self.expand(b"sheet")
    }

    fn expand(&self, info: &[u8]) -> Result<Secret, StateError> {
        derive(STATE_SALT, &self.0[..], info)
    }
}

/// The key of a slot that a passphrase opens.
///
/// # Errors
/// [`StateError::Memory`]; the parameters were bounded when [`Cost`] was made.
pub(super) fn passphrase_key(passphrase: &[u8], salt: &[u8; SALT], cost: Cost) -> Result<Secret, StateError> {
    let params = Params::new(cost.memory, cost.passes, 1, Some(32)).map_err(|_| StateError::Derive)?;
    let blocks = params.block_count();
    let mut memory: Vec<Block> = Vec::new();
    memory.try_reserve_exact(blocks).map_err(|_| StateError::Memory { kib: cost.memory })?;
    memory.resize(blocks, Block::new());
    let mut key = secret();
    let outcome = Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password_into_with_memory(
        passphrase,
        salt,
        &mut key[..],
        &mut memory,
    );
    memory.zeroize();
    outcome.map_err(|_| StateError::Derive)?;
    Ok(key)
}

/// The key of a slot that shares open.
pub(super) fn shares_key(key: &[u8; 32], salt: &[u8; SALT]) -> Result<Secret, StateError> {
    derive(salt, key, SHARES_INFO)
}

/// The key of a slot that the recovery key opens.
pub(super) fn recovery_key(key: &[u8; 32], salt: &[u8; SALT]) -> Result<Secret, StateError> {
    derive(salt, key, RECOVERY_INFO)
}

/// The key of one volume.
pub(crate) fn volume_key(volumes: &[u8; 32], id: &[u8; 16]) -> Result<Secret, StateError> {
    derive(VOLUME_SALT, volumes, id)
}

pub(super) fn random(bytes: &mut [u8]) -> Result<(), StateError> {
    getrandom::fill(bytes).map_err(|_| StateError::Random)
}

pub(super) fn secret() -> Secret {
    Box::new(Zeroizing::new([0; 32]))
}

fn derive(salt: &[u8], key: &[u8], info: &[u8]) -> Result<Secret, StateError> {
    let mut out = secret();
    Hkdf::<Sha256>::new(Some(salt), key).expand(info, &mut out[..]).map_err(|_| StateError::Derive)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_bounded_before_it_is_paid() {
        for (memory, passes) in
            [(8191, 2), (128 * 1024 + 1, 2), (u32::MAX, 1), (0, 1), (19456, 0), (19456, 17)]
        {
            assert_eq!(Cost::new(memory, passes), None, "{memory} {passes}");
        }
        for (memory, passes) in [(8192, 1), (128 * 1024, 16)] {
            assert!(Cost::new(memory, passes).is_some());
        }
    }

    #[test]
    fn slow_machines_get_the_least_and_fast_ones_no_more_than_a_slot_may_ask_for() {
        let cost = |micros| Cost::for_speed(Duration::from_micros(micros));
        assert_eq!(cost(u64::MAX), LEAST);
        assert_eq!(cost(10_000_000), LEAST);
        assert_eq!(cost(0), Cost { memory: 128 * 1024, passes: 16 });
        // 19 MiB in 20 ms: 950 MiB in a second, so seven passes over the most memory.
        assert_eq!(cost(20_000), Cost { memory: 128 * 1024, passes: 7 });
        // 19 MiB in 250 ms: two passes over what fits.
        assert_eq!(cost(250_000), Cost { memory: 38 * 1024, passes: 2 });
        for micros in [0, 1, 77, 1000, 19_999, 333_333, 1 << 40] {
            let Cost { memory, passes } = cost(micros);
            assert_eq!(Cost::new(memory, passes), Some(cost(micros)));
        }
    }

    #[test]
    fn keys_are_independent() {
        let state = StateKey(Box::new(Zeroizing::new([1; 32])));
        let (vault, volumes, sheet) =
            (state.vault().unwrap(), state.volumes().unwrap(), state.sheet().unwrap());
        let salt = [2; SALT];
        let all = [
            *vault.expose(),
            **volumes,
            **sheet,
            **shares_key(&[1; 32], &salt).unwrap(),
            **recovery_key(&[1; 32], &salt).unwrap(),
            **recovery_key(&[1; 32], &[3; SALT]).unwrap(),
        ];
        for (place, key) in all.iter().enumerate() {
            assert!(*key != [0; 32] && *key != [1; 32]);
            assert!(!all.iter().skip(place + 1).any(|other| other == key));
        }
    }
}
