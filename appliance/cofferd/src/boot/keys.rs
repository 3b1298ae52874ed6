//! The two keys that PID 1 makes for its roles: they outlive the role's process, never the machine.
//!
//! Each lies in memory that the kernel itself does not map ([`SecretMemory`]), and each run of a role gets a copy of its own.

use std::rc::Rc;

use cofferdam_protocol::Digest;
use nix::errno::Errno;
use p256::elliptic_curve::Generate;
use p256::pkcs8::{EncodePrivateKey, EncodePublicKey};

use crate::system::handover::launch;
use crate::system::spawn::KeyFile;
use crate::system::sys::SecretMemory;

/// Why a key could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    /// The kernel gave no randomness.
    #[error("cannot draw random bytes")]
    Random(#[source] getrandom::Error),
    /// A P-256 key could not be encoded.
    #[error("cannot encode the TLS key")]
    Encode(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The kernel has no memory for keys.
    #[error("cannot keep the key in memory of its own")]
    Memory(#[source] Errno),
}

/// What the vault starts with when its state is in memory: a random master key, and no volumes.
///
/// # Errors
///
/// [`KeyError`].
pub(crate) fn master() -> Result<KeyFile, KeyError> {
    let mut memory = SecretMemory::new(launch::LENGTH).map_err(KeyError::Memory)?;
    let mut drawn = Ok(());
    launch::write(&mut memory, |key| drawn = getrandom::fill(key), 0);
    drawn.map_err(KeyError::Random)?;
    Ok(Rc::new(memory))
}

/// A P-256 key as PKCS#8 DER, and the digest of its SubjectPublicKeyInfo DER.
///
/// # Errors
///
/// [`KeyError`].
pub(crate) fn tls() -> Result<(KeyFile, Digest), KeyError> {
    let key = p256::SecretKey::try_generate().map_err(KeyError::Random)?;
    let private = key.to_pkcs8_der().map_err(|error| KeyError::Encode(error.into()))?;
    let public = key.public_key().to_public_key_der().map_err(|error| KeyError::Encode(error.into()))?;
    let digest = Digest::of(public.as_bytes());
    let memory = SecretMemory::holding(private.as_bytes()).map_err(KeyError::Memory)?;
    Ok((Rc::new(memory), digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_master_key_is_another_one() {
        let key = master().unwrap();
        assert_eq!(key.bytes().len(), 36);
        assert_ne!(key.bytes()[..32], [0; 32]);
        assert_eq!(key.bytes()[32..], [0; 4]);
        assert_ne!(key.bytes(), master().unwrap().bytes());
    }

    #[test]
    fn the_tls_keys_digest_is_that_of_its_public_half() {
        use p256::pkcs8::DecodePrivateKey;
        let (key, digest) = tls().unwrap();
        let secret = p256::SecretKey::from_pkcs8_der(key.bytes()).unwrap();
        let public = secret.public_key().to_public_key_der().unwrap();
        assert_eq!(digest, Digest::of(public.as_bytes()));
    }
}
