//! The keys that PID 1 makes for its roles: they outlive the role's process. Those that the state decides outlive the machine with it.
//!
//! Each lies in memory that the kernel itself does not map ([`SecretMemory`]), and each run of a role gets a copy of its own.

use std::rc::Rc;

use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use cofferdam_attest::ratls::{self, RatlsError};
use cofferdam_declaration::Certificate;
use cofferdam_protocol::Digest;
use cofferdam_protocol::certificate::CertificateClaim;
use nix::errno::Errno;
use p256::elliptic_curve::Generate;
use p256::pkcs8::{EncodePrivateKey, EncodePublicKey};
use zeroize::Zeroizing;

use crate::roles::facts::CertificateFacts;
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
    /// A key cannot be derived from the state's.
    #[error("cannot derive the keys of the certificate")]
    Derive,
    /// A request for the certificate cannot be made.
    #[error("cannot ask for the certificate")]
    Request(#[from] RatlsError),
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

/// What the certificate that browsers accept is made with.
pub(crate) struct CertificateKeys {
    /// For `front`: the attested key's PKCS#8, and behind it that of the key that browsers are shown.
    pub(crate) front: KeyFile,
    /// For `publish`: the ACME account's.
    pub(crate) account: KeyFile,
    /// What everybody may know.
    pub(crate) facts: CertificateFacts,
}

/// Separates these keys from all others that come from the same master key.
const CERTIFICATE_KEYS: &[u8] = b"cofferdam/certificate/v1";

/// Derives both keys from the state's master key, so that they are the same for as long as the state is, and are kept nowhere.
///
/// # Errors
///
/// [`KeyError`].
pub(crate) fn certificate(
    declared: &Certificate,
    vault: &KeyFile,
    tls: &KeyFile,
) -> Result<CertificateKeys, KeyError> {
    let master = vault.bytes().first_chunk::<32>().ok_or(KeyError::Derive)?;
    let (browser, account) = (derived(master, b"browser")?, derived(master, b"account")?);
    let both = Zeroizing::new([tls.bytes(), browser.as_slice()].concat());
    let held = |bytes: &[u8]| SecretMemory::holding(bytes).map(Rc::new).map_err(KeyError::Memory);
    Ok(CertificateKeys {
        front: held(&both)?,
        account: held(&account)?,
        facts: CertificateFacts {
            declared: declared.clone(),
            claim: CertificateClaim {
                key: ratls::key_sha256(&browser)?,
                directory: declared.directory.clone(),
                account_key: ratls::thumbprint(&account)?,
                account: None,
            },
            request: ratls::request(&browser, &declared.names)?,
        },
    })
}

/// The P-256 key of this purpose, as PKCS#8 DER. Of all 256-bit numbers one in 2^32 is no such key; then the next one is taken.
fn derived(master: &[u8; 32], purpose: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let secret = Salt::new(HKDF_SHA256, CERTIFICATE_KEYS).extract(master);
    (0..=u8::MAX)
        .find_map(|attempt| {
            let mut scalar = Zeroizing::new([0; 32]);
            let info = [purpose, &[attempt]];
            secret.expand(&info, HKDF_SHA256).ok()?.fill(scalar.as_mut()).ok()?;
            let key = p256::SecretKey::from_slice(scalar.as_ref()).ok()?;
            Some(key.to_pkcs8_der().ok()?.to_bytes())
        })
        .ok_or(KeyError::Derive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificates_keys_are_the_states() {
        let declared = crate::roles::testing::declaration(
            "certificate: {names: [app.example.org], terms_agreed: true}\nservices:\n  web:\n    image: r.example/web@sha256:0000000000000000000000000000000000000000000000000000000000000000\n",
        );
        let declared = declared.certificate.unwrap();
        let (tls, tls_key) = tls().unwrap();
        let (one, other) = (master().unwrap(), master().unwrap());
        let keys = certificate(&declared, &one, &tls).unwrap();
        let again = certificate(&declared, &one, &super::tls().unwrap().0).unwrap();
        assert_eq!(keys.facts.claim, again.facts.claim, "another boot of the same state");
        assert_ne!(keys.facts.claim, certificate(&declared, &other, &tls).unwrap().facts.claim);
        assert_ne!(keys.facts.claim.key, tls_key);
        let rest = keys.front.bytes().strip_prefix(tls.bytes()).unwrap();
        assert_eq!(ratls::key_sha256(rest).unwrap(), keys.facts.claim.key);
        assert_eq!(ratls::thumbprint(keys.account.bytes()).unwrap(), keys.facts.claim.account_key);
        assert_ne!(rest, keys.account.bytes());
    }

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
