//! A key slot: the state key, wrapped under the key of one way to open it.
//!
//! ```text
//! offset  length
//!      0       1  kind: 1 passphrase, 2 shares, 3 recovery key
//!      1       1  shares: how many are needed
//!      2       1  shares: how many there are
//!      3       1  passphrase: version of Argon2, 0x13
//!      4       4  passphrase: KiB of memory
//!      8       4  passphrase: passes
//!     12       4  passphrase: lanes, 1
//!     16       8  shares: the set
//!     24      16  salt
//!     40       8  version of the key
//!     48       8  version of the lineage
//!     56      48  MRTD of the image that made the slot
//!    104     144  its RTMR0, RTMR1, RTMR2
//!    248       1  length of the name of its release
//!    249      63  the name
//!    312      24  nonce
//!    336      48  the state key and a tag: XAES-256-GCM, with "cofferdam/state/slot/v1" 00, the header of the sheet and bytes 0 to 311
//!                 as associated data
//!    384     128  zero
//! ```
//!
//! Numbers are big endian. What a kind does not use is zero. There is one way to write a slot: what is read is exactly what would
//! be written again, or it is refused.

use zeroize::Zeroize as _;

use super::StateError;
use super::key::{Cost, SALT, Secret, StateKey, secret};
use crate::state::{Boot, MAX_RELEASE};
use crate::store::seal::{NONCE, Sealer, TAG};
use cofferdam_protocol::unseal::MAX_SHARES;

/// Length of a slot in bytes.
pub(super) const SLOT: usize = 512;
const HEADER: usize = 312;
const DOMAIN: &[u8] = b"cofferdam/state/slot/v1";
const ARGON2_VERSION: u8 = 0x13;

/// How a slot is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Passphrase(Cost),
    Shares(Set),
    Recovery,
}

/// A division of a key into shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) id: [u8; 8],
    pub(super) threshold: u8,
    pub(super) shares: u8,
}

impl Set {
    /// Whether there is such a division.
    pub(super) fn new(id: [u8; 8], threshold: u8, shares: u8) -> Result<Self, StateError> {
        if threshold < 2 || threshold > shares || shares > MAX_SHARES {
            return Err(StateError::Shares { threshold, shares });
        }
        Ok(Self { id, threshold, shares })
    }
}

/// The measurements of the image that made a slot, and what it calls itself. Who may open the state now, the sheet says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Image {
    pub(super) mrtd: [u8; 48],
    pub(super) rtmr: [[u8; 48]; 3],
    pub(super) release: String,
}

impl Image {
    /// The image of this boot.
    pub(super) fn of(boot: &Boot) -> Result<Self, StateError> {
        if !is_release(&boot.release) {
            return Err(StateError::Release(MAX_RELEASE));
        }
        Ok(Self { mrtd: boot.mrtd, rtmr: boot.rtmr, release: boot.release.clone() })
    }
}

/// A slot as it was read or made; only [`Slot::open`] says whether a byte of it is true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) way: Way,
    pub(super) salt: [u8; SALT],
    pub(super) key_version: u64,
    pub(super) lineage: u64,
    pub(super) image: Image,
    nonce: [u8; NONCE],
    wrapped: [u8; 32],
    tag: [u8; TAG],
}

impl Slot {
    /// Wraps the state key. `header` is the sheet's.
    pub(super) fn seal(
        way: Way,
        salt: [u8; SALT],
        image: Image,
        nonce: [u8; NONCE],
        header: &[u8],
        key: &Secret,
        state: &StateKey,
    ) -> Result<Self, StateError> {
        let mut slot =
            Self { way, salt, key_version: 1, lineage: 1, image, nonce, wrapped: [0; 32], tag: [0; TAG] };
        let data = slot.associated_data(header);
        slot.wrapped = **state.0;
        match Sealer::new(key).seal(&nonce, &data, &mut slot.wrapped) {
            Ok(tag) => slot.tag = tag,
            Err(_) => {
                slot.wrapped.zeroize();
                return Err(StateError::Derive);
            }
        }
        Ok(slot)
    }

    /// Unwraps the state key: `None` when the key is another one, or any byte of the slot or of the sheet's header is.
    pub(super) fn open(&self, header: &[u8], key: &Secret) -> Option<StateKey> {
        let mut state = secret();
        state.copy_from_slice(&self.wrapped);
        let data = self.associated_data(header);
        Sealer::new(key).open(&self.nonce, &self.tag, &data, &mut state[..]).ok()?;
        Some(StateKey(state))
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let mut bytes = self.header();
        bytes.extend(self.nonce.iter().chain(&self.wrapped).chain(&self.tag));
        bytes.resize(SLOT, 0);
        bytes
    }

    /// Reads a slot; `None` for anything that [`Slot::write`] does not write.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let rest = &mut &*bytes;
        let [kind, threshold, shares, version] = take(rest)?;
        let [memory, passes, lanes] = [take(rest)?, take(rest)?, take(rest)?].map(u32::from_be_bytes);
        let id = take(rest)?;
        let way = match kind {
            1 if version == ARGON2_VERSION && lanes == 1 => Way::Passphrase(Cost::new(memory, passes)?),
            2 => Way::Shares(Set::new(id, threshold, shares).ok()?),
            3 => Way::Recovery,
            _ => return None,
        };
        let salt = take(rest)?;
        let [key_version, lineage] = [take(rest)?, take(rest)?].map(u64::from_be_bytes);
        let mrtd = take(rest)?;
        let rtmr = [take(rest)?, take(rest)?, take(rest)?];
        let [length] = take(rest)?;
        let name: [u8; MAX_RELEASE] = take(rest)?;
        let release = name.get(..usize::from(length)).and_then(|name| str::from_utf8(name).ok())?;
        let image = Image { mrtd, rtmr, release: is_release(release).then(|| release.to_owned())? };
        let (nonce, wrapped, tag) = (take(rest)?, take(rest)?, take(rest)?);
        let slot = Self { way, salt, key_version, lineage, image, nonce, wrapped, tag };
        (slot.write() == bytes).then_some(slot)
    }

    fn header(&self) -> Vec<u8> {
        let (kind, threshold, shares, version, cost, set) = match &self.way {
            Way::Passphrase(cost) => (1, 0, 0, ARGON2_VERSION, [cost.memory(), cost.passes(), 1], [0; 8]),
            Way::Shares(set) => (2, set.threshold, set.shares, 0, [0; 3], set.id),
            Way::Recovery => (3, 0, 0, 0, [0; 3], [0; 8]),
        };
        let mut bytes = Vec::with_capacity(SLOT);
        bytes.extend([kind, threshold, shares, version]);
        bytes.extend(cost.map(u32::to_be_bytes).as_flattened());
        bytes.extend(set.iter().chain(&self.salt));
        bytes.extend([self.key_version, self.lineage].map(u64::to_be_bytes).as_flattened());
        bytes.extend(self.image.mrtd.iter().chain(self.image.rtmr.as_flattened()));
        // No longer than MAX_RELEASE: it was looked at when the image was read or named.
        bytes.push(u8::try_from(self.image.release.len()).unwrap_or(0));
        bytes.extend(self.image.release.bytes());
        bytes.resize(HEADER, 0);
        bytes
    }

    fn associated_data(&self, header: &[u8]) -> Vec<u8> {
        [DOMAIN, &[0], header, &self.header()].concat()
    }
}

/// Takes as many bytes as the result has.
pub(super) fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

/// Printable ASCII of a bounded length, since it is shown to people.
pub(super) fn is_release(text: &str) -> bool {
    (1..=MAX_RELEASE).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}
