//! The two keys that PID 1 makes for its roles: they outlive the role's process, never the machine.
//!
//! Each is in a sealed memfd: it cannot be changed, grown or executed by whoever inherits it. PID 1 keeps
//! only the descriptor and wipes its own copy of the bytes.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use cofferdam_protocol::Digest;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use p256::elliptic_curve::Generate;
use p256::pkcs8::{EncodePrivateKey, EncodePublicKey};
use zeroize::Zeroizing;

/// `MFD_NOEXEC_SEAL` (Linux 6.3): the file can never be made executable.
const NO_EXECUTION: MFdFlags = MFdFlags::from_bits_retain(0x0008);

/// Why a key could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    /// The kernel gave no randomness.
    #[error("cannot draw random bytes")]
    Random(#[source] getrandom::Error),
    /// A P-256 key could not be encoded.
    #[error("cannot encode the TLS key")]
    Encode(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The memfd could not be made or sealed.
    #[error("cannot seal the key in memory")]
    Memory(#[source] Errno),
    /// The memfd could not be written.
    #[error("cannot write the key to memory")]
    Write(#[source] io::Error),
}

/// A key in a sealed memfd.
pub(crate) type Sealed = Rc<OwnedFd>;

/// 32 random bytes: the vault's master key.
///
/// # Errors
///
/// [`KeyError`].
pub(crate) fn master() -> Result<Sealed, KeyError> {
    let mut bytes = Zeroizing::new([0_u8; 32]);
    getrandom::fill(bytes.as_mut_slice()).map_err(KeyError::Random)?;
    seal(c"vault-key", bytes.as_slice())
}

/// A P-256 key as PKCS#8 DER, and the digest of its SubjectPublicKeyInfo DER.
///
/// # Errors
///
/// [`KeyError`].
pub(crate) fn tls() -> Result<(Sealed, Digest), KeyError> {
    let key = p256::SecretKey::try_generate().map_err(KeyError::Random)?;
    let private = key.to_pkcs8_der().map_err(|error| KeyError::Encode(error.into()))?;
    let public = key.public_key().to_public_key_der().map_err(|error| KeyError::Encode(error.into()))?;
    let digest = Digest::of(public.as_bytes());
    Ok((seal(c"tls-key", private.as_bytes())?, digest))
}

fn seal(name: &std::ffi::CStr, bytes: &[u8]) -> Result<Sealed, KeyError> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING | NO_EXECUTION;
    let memory = memfd_create(name, flags).map_err(KeyError::Memory)?;
    let mut file = std::fs::File::from(memory);
    file.write_all(bytes).map_err(KeyError::Write)?;
    let memory = OwnedFd::from(file);
    let seals =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals)).map_err(KeyError::Memory)?;
    Ok(Rc::new(memory))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn contents(key: &Sealed) -> Vec<u8> {
        let file = std::fs::File::from(key.try_clone().unwrap());
        let mut bytes = vec![0; 256];
        let length = file.read_at(&mut bytes, 0).unwrap();
        bytes.truncate(length);
        bytes
    }

    #[test]
    fn a_sealed_key_cannot_be_changed() {
        let key = master().unwrap();
        assert_eq!(contents(&key).len(), 32);
        let mut file = std::fs::File::from(key.try_clone().unwrap());
        assert_eq!(file.write(b"x").unwrap_err().raw_os_error(), Some(Errno::EPERM as i32));
        assert_eq!(file.set_len(0).unwrap_err().raw_os_error(), Some(Errno::EPERM as i32));
        assert_ne!(contents(&key), contents(&master().unwrap()));
    }

    #[test]
    fn the_tls_keys_digest_is_that_of_its_public_half() {
        use p256::pkcs8::DecodePrivateKey;
        let (key, digest) = tls().unwrap();
        let secret = p256::SecretKey::from_pkcs8_der(&contents(&key)).unwrap();
        let public = secret.public_key().to_public_key_der().unwrap();
        assert_eq!(digest, Digest::of(public.as_bytes()));
    }
}
