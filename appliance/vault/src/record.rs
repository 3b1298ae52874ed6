//! One record as it lies in the store: a header, a wrapped data key, a sealed value.
//!
//! ```text
//! offset  length
//!      0       1  format, 1
//!      1       8  id of the master key
//!      9       8  version of the record, big endian, from 1
//!     17       8  updated_at, Unix seconds, big endian
//!     25      12  nonce of the wrapped key
//!     37      48  data key (32) sealed with AES-256-GCM under the records key, tag last
//!     85      12  nonce of the value
//!     97   n + 16 value sealed with AES-256-GCM under the data key, tag last
//! ```
//!
//! Every write draws a new data key and two new random 96-bit nonces. The data key costs one more
//! AES-GCM call over 32 bytes and buys two things: the long-lived key only ever encrypts random keys,
//! so its nonce bound (NIST SP 800-38D §8.3: 2^32 messages) is about puts and never about bytes; and a
//! change of the master key rewraps 32 bytes per record without touching a value.
//!
//! Both seals authenticate `"cofferdam/vault/record/v1" 00 PURPOSE 00 reference 00 header` (header: the
//! first 25 bytes). So a ciphertext opens only as what it was written as: not under another
//! reference, not as another version, not with another date, not the key in the value's place. That a
//! record is the *latest* one of its name cannot be seen from the record; the index says that.

use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use cofferdam_protocol::{SecretRef, SecretValue};
use zeroize::Zeroizing;

use crate::Keys;
use crate::keys::KEY_ID;

const FORMAT: u8 = 1;
const DOMAIN: &[u8] = b"cofferdam/vault/record/v1";
const NONCE: usize = 12;
const TAG: usize = 16;
const DATA_KEY: usize = 32;
const HEADER: usize = 1 + KEY_ID + 8 + 8;
/// What a record is longer than its value, in bytes.
pub const OVERHEAD: usize = HEADER + NONCE + DATA_KEY + TAG + NONCE + TAG;

/// The authenticated header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Id of the master key under which the record is sealed.
    pub key_id: [u8; KEY_ID],
    /// Counts the puts under this reference since it was last absent, from 1.
    pub version: u64,
    /// When it was put, in Unix seconds of the wall clock: the host's, so for people only.
    pub updated_at: u64,
}

/// Why a record is not usable. Nothing of its content is in the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Shorter than any record.
    #[error("record is cut short")]
    Truncated,
    /// A format that this version does not know.
    #[error("record has the unknown format {0}")]
    Format(u8),
    /// Sealed under another master key.
    #[error("record was sealed under another master key")]
    OtherKey,
    /// It does not authenticate: altered, moved to another name, or another version's.
    #[error("record does not authenticate under its name")]
    Altered,
    /// The system's random number generator failed.
    #[error("no random numbers from the system")]
    Random,
    /// AES-GCM refused to seal: a value beyond its bounds.
    #[error("record cannot be sealed")]
    Seal,
}

/// Seals a value under its own reference. `random` fills a buffer with random bytes: the data key and the nonces.
///
/// # Errors
/// [`RecordError::Random`] and [`RecordError::Seal`].
pub fn seal(
    keys: &Keys,
    secret: &SecretValue,
    version: u64,
    updated_at: u64,
    random: impl Fn(&mut [u8]) -> Result<(), getrandom::Error>,
) -> Result<Vec<u8>, RecordError> {
    let header = encode_header(&Header { key_id: keys.id(), version, updated_at });
    let mut data_key = Zeroizing::new([0; DATA_KEY]);
    let (mut wrap_nonce, mut value_nonce) = ([0; NONCE], [0; NONCE]);
    for buffer in [&mut data_key[..], &mut wrap_nonce, &mut value_nonce] {
        random(buffer).map_err(|_| RecordError::Random)?;
    }
    let aad = |purpose: &[u8]| associated_data(purpose, secret.reference(), &header);
    let wrapped = aes_seal(keys.records(), &wrap_nonce, &*data_key, &aad(b"key"))?;
    let value = aes_seal(&data_key, &value_nonce, secret.expose(), &aad(b"value"))?;
    Ok([&header[..], &wrap_nonce, &wrapped, &value_nonce, &value].concat())
}

/// Opens a record that was found under `reference`.
///
/// # Errors
/// [`RecordError`] for everything that is not exactly what [`seal`] made for this reference.
pub fn open(keys: &Keys, reference: &SecretRef, record: &[u8]) -> Result<(Header, SecretValue), RecordError> {
    let header_bytes = record.first_chunk::<HEADER>().ok_or(RecordError::Truncated)?;
    let header = decode_header(record)?;
    if header.key_id != keys.id() {
        return Err(RecordError::OtherKey);
    }
    let mut rest = Reader(record.get(HEADER..).ok_or(RecordError::Truncated)?);
    let wrap_nonce = rest.array::<NONCE>()?;
    let wrapped = rest.array::<{ DATA_KEY + TAG }>()?;
    let value_nonce = rest.array::<NONCE>()?;
    let aad = |purpose: &[u8]| associated_data(purpose, reference, header_bytes);
    let data_key = aes_open(keys.records(), &wrap_nonce, &wrapped, &aad(b"key"))?;
    let data_key = data_key.first_chunk::<DATA_KEY>().ok_or(RecordError::Altered)?;
    let value = aes_open(data_key, &value_nonce, rest.0, &aad(b"value"))?;
    Ok((header, SecretValue::new(reference.clone(), value)))
}

/// Reads the header without authenticating it: for telling "another key" from "altered".
///
/// # Errors
/// [`RecordError::Truncated`] and [`RecordError::Format`].
pub fn decode_header(record: &[u8]) -> Result<Header, RecordError> {
    let mut reader = Reader(record);
    match reader.array::<1>()? {
        [FORMAT] => Ok(Header {
            key_id: reader.array()?,
            version: u64::from_be_bytes(reader.array()?),
            updated_at: u64::from_be_bytes(reader.array()?),
        }),
        [other] => Err(RecordError::Format(other)),
    }
}

/// What tells a put from every other: the nonce of the value, which is drawn anew each time. `None` when it is no record.
pub(crate) fn put_of(record: &[u8]) -> Option<&[u8]> {
    let start = HEADER + NONCE + DATA_KEY + TAG;
    record.get(start..start + NONCE)
}

/// AES-256-GCM; the result is ciphertext and tag.
pub(crate) fn aes_seal(
    key: &[u8; 32],
    nonce: &[u8; 12],
    plain: &[u8],
    aad: &[u8],
) -> Result<Vec<u8>, RecordError> {
    Aes256Gcm::new(key.into())
        .encrypt(&Nonce::from(*nonce), Payload { msg: plain, aad })
        .map_err(|_| RecordError::Seal)
}

/// Undoes [`aes_seal`]. The tag is compared in constant time, before anything is decrypted.
pub(crate) fn aes_open(
    key: &[u8; 32],
    nonce: &[u8; 12],
    sealed: &[u8],
    aad: &[u8],
) -> Result<Zeroizing<Vec<u8>>, RecordError> {
    Aes256Gcm::new(key.into())
        .decrypt(&Nonce::from(*nonce), Payload { msg: sealed, aad })
        .map(Zeroizing::new)
        .map_err(|_| RecordError::Altered)
}

fn encode_header(header: &Header) -> [u8; HEADER] {
    let mut bytes = [FORMAT; HEADER];
    let fields =
        header.key_id.into_iter().chain(header.version.to_be_bytes()).chain(header.updated_at.to_be_bytes());
    bytes.iter_mut().skip(1).zip(fields).for_each(|(byte, field)| *byte = field);
    bytes
}

fn associated_data(purpose: &[u8], reference: &SecretRef, header: &[u8; HEADER]) -> Vec<u8> {
    [DOMAIN, purpose, reference.as_str().as_bytes(), header].join(&0)
}

/// Takes fixed-size fields off the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(RecordError::Truncated)?;
        self.0 = rest;
        Ok(*field)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::MasterKey;

    fn keys(byte: u8) -> Keys {
        Keys::derive(MasterKey::take(&mut [byte; 32])).unwrap()
    }

    fn secret(reference: &str, value: &[u8]) -> SecretValue {
        SecretValue::new(reference.parse::<SecretRef>().unwrap(), value.to_vec())
    }

    fn sealed(value: &SecretValue, version: u64) -> Vec<u8> {
        seal(&keys(1), value, version, 1_700_000_000, getrandom::fill).unwrap()
    }

    #[test]
    fn a_record_opens_as_what_it_was() {
        let value = secret("secret://app/db/password", b"correct horse");
        let record = sealed(&value, 3);
        assert_eq!(record.len(), 13 + OVERHEAD);
        let (header, opened) = open(&keys(1), value.reference(), &record).unwrap();
        assert_eq!(header, Header { key_id: keys(1).id(), version: 3, updated_at: 1_700_000_000 });
        assert_eq!(opened.expose(), b"correct horse");
        assert!(!record.windows(7).any(|window| window == b"correct"));
    }

    #[test]
    fn every_bit_counts() {
        let value = secret("secret://app/db/password", b"correct horse");
        let record = sealed(&value, 1);
        for position in 0..record.len() {
            for bit in 0..8 {
                let mut altered = record.clone();
                altered[position] ^= 1 << bit;
                assert!(open(&keys(1), value.reference(), &altered).is_err(), "byte {position} bit {bit}");
            }
        }
        for length in 0..record.len() {
            assert!(open(&keys(1), value.reference(), &record[..length]).is_err(), "cut to {length}");
        }
        let mut longer = record;
        longer.push(0);
        assert_eq!(open(&keys(1), value.reference(), &longer).unwrap_err(), RecordError::Altered);
    }

    #[test]
    fn a_record_does_not_move() {
        let (a, b) = (
            secret("secret://app/db/password", b"value of a"),
            secret("secret://app/db/user", b"value of b"),
        );
        let (record_a, record_b) = (sealed(&a, 1), sealed(&b, 1));
        assert_eq!(open(&keys(1), a.reference(), &record_b).unwrap_err(), RecordError::Altered);
        // Not in part either: b's header and key with a's value.
        let mixed = [&record_b[..85], &record_a[85..]].concat();
        assert_eq!(open(&keys(1), b.reference(), &mixed).unwrap_err(), RecordError::Altered);
        // Nor an older version's value under a newer header.
        let (old, new) = (sealed(&a, 1), sealed(&a, 2));
        assert!(open(&keys(1), a.reference(), &[&new[..25], &old[25..]].concat()).is_err());
        assert!(open(&keys(1), a.reference(), &[&new[..85], &old[85..]].concat()).is_err());
    }

    #[test]
    fn another_master_key_is_named_as_such() {
        let value = secret("secret://app/db/password", b"correct horse");
        assert_eq!(open(&keys(2), value.reference(), &sealed(&value, 1)).unwrap_err(), RecordError::OtherKey);
    }

    #[test]
    fn nothing_is_ever_sealed_twice_alike() {
        let value = secret("secret://app/db/password", b"correct horse");
        let (one, two) = (sealed(&value, 1), sealed(&value, 1));
        for range in [25..37, 37..85, 85..97, 97..one.len()] {
            assert_ne!(one[range.clone()], two[range]);
        }
    }

    #[test]
    fn without_random_numbers_nothing_is_sealed() {
        let value = secret("secret://app/db/password", b"correct horse");
        let none = |_: &mut [u8]| Err(getrandom::Error::UNSUPPORTED);
        assert_eq!(seal(&keys(1), &value, 1, 0, none).unwrap_err(), RecordError::Random);
    }

    proptest! {
        #[test]
        fn any_value_survives(value in prop::collection::vec(any::<u8>(), 0..2000), version in 1u64.., at in any::<u64>()) {
            let secret = secret("secret://app/db/password", &value);
            let record = seal(&keys(1), &secret, version, at, getrandom::fill).unwrap();
            let (header, opened) = open(&keys(1), secret.reference(), &record).unwrap();
            prop_assert_eq!(opened.expose(), &value[..]);
            prop_assert_eq!((header.version, header.updated_at), (version, at));
        }

        #[test]
        fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(open(&keys(1), &"secret://a/b/c".parse::<SecretRef>().unwrap(), &bytes).is_err());
        }
    }
}
