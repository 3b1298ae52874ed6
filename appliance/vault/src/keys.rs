//! The vault's keys, all derived from one master key.
//!
//! ```text
//! master key (32 random bytes that PID 1 keeps)
//!  └ HKDF-SHA256, salt "cofferdam/vault/v1" (RFC 5869)
//!     ├ info "key id"   8 bytes, public: names the master key in every record
//!     ├ info "records"  AES-256 key that wraps each record's own data key
//!     ├ info "pages"    XAES-256-GCM key of the store's pages
//!     └ info "hpke"     X25519 private key of DHKEM(X25519, HKDF-SHA256) (RFC 9180 §7.1); its public
//!                       half is the claim `vault_key`
//! ```
//!
//! Distinct info strings make the keys independent: knowing one says nothing about another or about
//! the master key, which is cleared as soon as the four are derived. HKDF and not a password hash:
//! the master key is random, so there is nothing to slow a guesser down for.

use std::fmt;
use std::ops::DerefMut;

use cofferdam_attest::operator;
use cofferdam_protocol::operator::SealedSecret;
use cofferdam_protocol::unseal::{RekeyRequest, Sealable as _, SealedKey};
use cofferdam_protocol::{SecretRef, SecretValue};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

const SALT: &[u8] = b"cofferdam/vault/v1";
/// Length of [`Keys::id`] in bytes: enough to tell keys apart in an error message, too short to be anything else.
pub(crate) const KEY_ID: usize = 8;

/// The 32 random bytes from which everything is derived.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct MasterKey([u8; 32]);

impl MasterKey {
    /// Takes over the bytes; the caller's copy is cleared.
    pub fn take(bytes: &mut [u8; 32]) -> Self {
        let key = Self(*bytes);
        bytes.zeroize();
        key
    }

    /// The bytes, for whoever hands the key on.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted:master key]")
    }
}

/// Where the secret keys lie: for records, for pages, and for HPKE. It stays in place wherever its owner moves, and
/// clears itself when it is dropped.
pub type KeyMemory = Box<dyn DerefMut<Target = [[u8; 32]; 3]> + Send + Sync>;

/// The derived keys.
pub struct Keys {
    id: [u8; KEY_ID],
    secret: KeyMemory,
    public: [u8; 32],
}

/// A key that could not be derived. It does not happen with the lengths used here; if it did, going on
/// would mean working with a key of zeros.
#[derive(Debug, thiserror::Error)]
#[error("cannot derive the vault's keys")]
pub struct DeriveError;

/// A sealed secret that did not open: made for another appliance, another reference, or altered.
#[derive(Debug, thiserror::Error)]
#[error("the sealed secret does not open with this appliance's key under this reference")]
pub struct UnsealError;

impl Keys {
    /// Derives all keys into memory of the heap and clears the master key.
    ///
    /// # Errors
    /// [`DeriveError`] never in practice; see there.
    pub fn derive(master: MasterKey) -> Result<Self, DeriveError> {
        Self::derive_into(Box::new(Zeroizing::new([[0; 32]; 3])), master)
    }

    /// The same into memory of the caller's choosing.
    ///
    /// # Errors
    /// As [`Keys::derive`].
    pub fn derive_into(mut secret: KeyMemory, master: MasterKey) -> Result<Self, DeriveError> {
        let hkdf = Hkdf::<Sha256>::new(Some(SALT), &master.0);
        let expand = |info: &[u8], out: &mut [u8]| hkdf.expand(info, out).map_err(|_| DeriveError);
        let mut id = [0; KEY_ID];
        expand(b"key id", &mut id)?;
        let [records, pages, hpke] = &mut **secret;
        expand(b"records", records)?;
        expand(b"pages", pages)?;
        expand(b"hpke", hpke)?;
        let public = operator::vault_public_key(hpke).map_err(|_| DeriveError)?;
        Ok(Self { id, secret, public })
    }

    /// Names the master key: 8 bytes, not secret.
    pub fn id(&self) -> [u8; KEY_ID] {
        self.id
    }

    /// The X25519 public key to which secrets are sealed: the claim `vault_key`.
    pub fn public_key(&self) -> [u8; 32] {
        self.public
    }

    /// Opens what an operator's machine sealed for this appliance under this reference.
    ///
    /// # Errors
    /// [`UnsealError`], the same for every cause.
    pub fn unseal(&self, reference: &SecretRef, sealed: &SealedSecret) -> Result<SecretValue, UnsealError> {
        operator::open_secret(self.hpke(), reference, sealed)
            .map(|value| SecretValue::new(reference.clone(), value))
            .map_err(|_| UnsealError)
    }

    /// Opens what an operator's machine sealed about the state's keys.
    pub(crate) fn open_rekey(&self, sealed: &SealedKey) -> Option<RekeyRequest> {
        let text = operator::open_key(self.hpke(), sealed).ok()?;
        RekeyRequest::parse(&text).ok()
    }

    pub(crate) fn records(&self) -> &[u8; 32] {
        let [records, _, _] = &**self.secret;
        records
    }

    pub(crate) fn pages(&self) -> &[u8; 32] {
        let [_, pages, _] = &**self.secret;
        pages
    }

    fn hpke(&self) -> &[u8; 32] {
        let [_, _, hpke] = &**self.secret;
        hpke
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted:vault keys]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(byte: u8) -> Keys {
        Keys::derive(MasterKey::take(&mut [byte; 32])).unwrap()
    }

    #[test]
    fn the_callers_copy_of_the_master_key_is_cleared() {
        let mut bytes = [7; 32];
        let key = MasterKey::take(&mut bytes);
        assert_eq!(bytes, [0; 32]);
        assert_eq!(format!("{key:?}"), "[redacted:master key]");
    }

    #[test]
    fn keys_lie_where_the_caller_wants_them() {
        /// Says when it is looked at, and clears itself.
        struct Elsewhere(Zeroizing<[[u8; 32]; 3]>);
        impl std::ops::Deref for Elsewhere {
            type Target = [[u8; 32]; 3];
            fn deref(&self) -> &Self::Target {
                &self.0
            }
        }
        impl DerefMut for Elsewhere {
            fn deref_mut(&mut self) -> &mut Self::Target {
                &mut self.0
            }
        }
        let memory = Box::new(Elsewhere(Zeroizing::default()));
        let place = std::ptr::from_ref(&**memory).addr();
        let there = Keys::derive_into(memory, MasterKey::take(&mut [1; 32])).unwrap();
        assert_eq!(there.records().as_ptr().addr(), place);
        assert_eq!(there.hpke().as_ptr().addr(), place + 64);
        let usual = keys(1);
        assert_eq!(
            (there.records(), there.pages(), there.public_key()),
            (usual.records(), usual.pages(), usual.public_key())
        );
    }

    #[test]
    fn keys_are_stable_distinct_and_never_zero() {
        let one = keys(1);
        let again = keys(1);
        let two = keys(2);
        assert_eq!((one.id(), one.public_key()), (again.id(), again.public_key()));
        let mut all = Vec::new();
        for keys in [&one, &two] {
            all.extend([*keys.records(), *keys.pages(), *keys.hpke(), keys.public_key()]);
        }
        for (i, key) in all.iter().enumerate() {
            assert_ne!(*key, [0; 32]);
            assert!(!all.iter().skip(i + 1).any(|other| other == key));
        }
        assert_ne!(one.id(), two.id());
        assert_eq!(format!("{one:?}"), "[redacted:vault keys]");
    }

    #[test]
    fn a_sealed_secret_opens_only_here_and_only_under_its_reference() {
        let (here, elsewhere) = (keys(1), keys(2));
        let reference = "secret://app/db/password".parse::<SecretRef>().unwrap();
        let other = "secret://app/db/user".parse::<SecretRef>().unwrap();
        let sealed = operator::seal_secret(&here.public_key(), &reference, b"correct horse").unwrap();
        assert_eq!(here.unseal(&reference, &sealed).unwrap().expose(), b"correct horse");
        assert!(here.unseal(&other, &sealed).is_err());
        assert!(elsewhere.unseal(&reference, &sealed).is_err());
    }
}
