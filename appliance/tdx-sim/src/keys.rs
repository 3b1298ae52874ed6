//! The platform seed and the P-256 keys that derive from it.
//!
//! Responsible for: turning 32 secret bytes into every key of the simulated machine, the same ones each time, so
//! that a rebooted simulator is still the same machine and a test can be repeated bit by bit.
//! Never: draws randomness (the seed comes from the caller), writes a key anywhere.

use hkdf::Hkdf;
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Bytes of a platform seed.
pub const SEED_LENGTH: usize = 32;

/// Separates these keys from any other use of the same bytes.
const SALT: &[u8] = b"cofferdam/tdx-sim/platform/v1";

/// Why a seed or a key is unusable.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The bytes are not a seed.
    #[error("a platform seed is {SEED_LENGTH} bytes followed by nothing but zeros, this has {0} bytes")]
    Length(usize),
    /// All zeros: a blank disk, not a machine.
    #[error("the platform seed is blank")]
    Blank,
    /// No scalar of the curve came out of 256 expansions: cannot happen with a working SHA-256.
    #[error("no P-256 key can be derived for {0}")]
    Derivation(&'static str),
}

/// The secret that *is* the simulated machine, as fused keys are for a real one. Zeroized on drop.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Seed([u8; SEED_LENGTH]);

impl Seed {
    /// Takes a seed as it lies in a file or on a disk: 32 bytes, then only zeros (a disk is a multiple of 512 bytes).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        let Some((seed, padding)) = bytes.split_first_chunk::<SEED_LENGTH>() else {
            return Err(KeyError::Length(bytes.len()));
        };
        if padding.iter().any(|byte| *byte != 0) {
            return Err(KeyError::Length(bytes.len()));
        }
        if seed.iter().all(|byte| *byte == 0) {
            return Err(KeyError::Blank);
        }
        Ok(Self(*seed))
    }

    /// The seed itself, to hand it to the device process.
    pub fn expose(&self) -> &[u8; SEED_LENGTH] {
        &self.0
    }

    /// The key named `label`: HKDF-SHA-256 (RFC 5869) with a counter until the output is a scalar of P-256.
    pub(crate) fn key(&self, label: &'static str) -> Result<Key, KeyError> {
        for attempt in 0..=u8::MAX {
            let mut scalar = [0u8; 32];
            self.expand(&[b"key", label.as_bytes(), &[attempt]], &mut scalar);
            let key = SigningKey::from_slice(&scalar);
            scalar.zeroize();
            if let Ok(key) = key {
                return Ok(Key::new(key));
            }
        }
        Err(KeyError::Derivation(label))
    }

    /// Bytes that identify something of this machine (a serial number, a PPID) without being secret.
    pub(crate) fn identifier<const N: usize>(&self, label: &str) -> [u8; N] {
        let mut bytes = [0u8; N];
        self.expand(&[b"identifier", label.as_bytes()], &mut bytes);
        bytes
    }

    fn expand(&self, info: &[&[u8]], output: &mut [u8]) {
        let info: Vec<u8> = info.join(&0u8);
        // HKDF-SHA-256 can give 8,160 bytes; nothing here asks for more than 48, so this cannot fail.
        let expanded = Hkdf::<Sha256>::new(Some(SALT), &self.0).expand(&info, output);
        debug_assert!(expanded.is_ok());
    }
}

impl std::fmt::Debug for Seed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Seed([redacted])")
    }
}

/// A P-256 key that signs deterministically (RFC 6979, SHA-256).
pub(crate) struct Key {
    signing: SigningKey,
    /// SEC1 uncompressed: 0x04 ‖ x ‖ y.
    public: [u8; 65],
}

impl Key {
    fn new(signing: SigningKey) -> Self {
        let mut public = [0u8; 65];
        let point = signing.verifying_key().to_sec1_point(false);
        for (to, from) in public.iter_mut().zip(point.as_bytes()) {
            *to = *from;
        }
        Self { signing, public }
    }

    /// x ‖ y, as a quote carries a key.
    pub(crate) fn raw_public(&self) -> [u8; 64] {
        let mut raw = [0u8; 64];
        for (to, from) in raw.iter_mut().zip(self.public.iter().skip(1)) {
            *to = *from;
        }
        raw
    }

    /// r ‖ s, as a quote and the PCS carry a signature.
    pub(crate) fn sign_raw(&self, message: &[u8]) -> [u8; 64] {
        let signature: Signature = self.signing.sign(message);
        signature.to_bytes().into()
    }

    /// The key identifier of its certificates: the first 20 bytes of SHA-256 of the public key (RFC 7093 §2).
    pub(crate) fn identifier(&self) -> Vec<u8> {
        Sha256::digest(self.public).iter().take(20).copied().collect()
    }
}

impl rcgen::PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature: Signature = self.signing.sign(message);
        Ok(signature.to_der().as_bytes().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_32_bytes_and_zeros() {
        let mut disk = vec![7u8; 32];
        assert!(Seed::from_bytes(&disk).is_ok());
        disk.resize(512, 0);
        assert!(Seed::from_bytes(&disk).is_ok());
        disk[511] = 1;
        assert!(matches!(Seed::from_bytes(&disk), Err(KeyError::Length(512))));
        assert!(matches!(Seed::from_bytes(&[1; 31]), Err(KeyError::Length(31))));
        assert!(matches!(Seed::from_bytes(&[0; 512]), Err(KeyError::Blank)));
    }

    #[test]
    fn keys_differ_by_label_and_seed_and_sign_the_same_each_time() {
        let seed = Seed::from_bytes(&[7; 32]).unwrap();
        let other = Seed::from_bytes(&[8; 32]).unwrap();
        let key = seed.key("pck").unwrap();
        assert_eq!(key.raw_public(), seed.key("pck").unwrap().raw_public());
        assert_ne!(key.raw_public(), seed.key("root").unwrap().raw_public());
        assert_ne!(key.raw_public(), other.key("pck").unwrap().raw_public());
        assert_eq!(key.sign_raw(b"m"), key.sign_raw(b"m"));
        assert_ne!(seed.identifier::<16>("a"), seed.identifier::<16>("b"));
    }

    #[test]
    fn a_seed_never_prints_itself() {
        assert_eq!(format!("{:?}", Seed::from_bytes(&[0x41; 32]).unwrap()), "Seed([redacted])");
    }
}
