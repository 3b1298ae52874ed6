//! What an operator signs and seals: requests bound to one TLS connection, secrets that only the vault can open.
//!
//! The network-facing role relays both and can neither forge the one nor read the other.

use std::fmt;

use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::{Kem as _, X25519HkdfSha256};
use hpke::{Deserializable as _, OpModeR, Serializable as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::strict;

/// Largest secret value in bytes.
pub const MAX_SECRET: usize = 64 * 1024;

/// RFC 9266 label of the TLS exporter; the context is empty and the length 32 bytes.
pub const CHANNEL_BINDING_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// Authorization scheme of operator requests.
pub const SCHEME: &str = "Cofferdam-Operator";

const REQUEST_DOMAIN: &[u8] = b"cofferdam/operator/v1";
const SECRET_INFO: &[u8] = b"cofferdam/secret/v1";

/// The bytes that an operator's Ed25519 key signs for one request on one connection:
/// domain 00 method 00 path-and-query 00 SHA-256(body) 00 channel binding.
pub fn signing_input(method: &str, path_and_query: &str, body: &[u8], channel_binding: &[u8; 32]) -> Vec<u8> {
    let parts: [&[u8]; 5] = [
        REQUEST_DOMAIN,
        method.as_bytes(),
        path_and_query.as_bytes(),
        &Sha256::digest(body),
        channel_binding,
    ];
    parts.join(&0u8)
}

/// The `Authorization` header of an operator request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// OpenSSH fingerprint of the key, `SHA256:<43 base64 characters without padding>`.
    pub key: String,
    /// Ed25519 signature of [`signing_input`].
    pub signature: [u8; 64],
}

impl Authorization {
    /// Parses the header's value; `None` when it is not exactly of the shape that [`fmt::Display`] writes.
    pub fn parse(value: &str) -> Option<Self> {
        let rest = value.strip_prefix(SCHEME)?.strip_prefix(" key=\"")?;
        let (key, rest) = rest.split_once("\", signature=\"")?;
        let signature = strict::unb64(rest.strip_suffix('"')?)?.try_into().ok()?;
        let digest = key.strip_prefix("SHA256:")?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'+' || b == b'/';
        (digest.len() == 43 && digest.bytes().all(plain)).then(|| Self { key: key.to_owned(), signature })
    }
}

impl fmt::Display for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME} key=\"{}\", signature=\"{}\"", self.key, strict::b64(&self.signature))
    }
}

/// A secret value sealed to a vault, as it travels in a request's body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedSecret {
    /// HPKE encapsulated key (32 bytes).
    #[serde(with = "strict::base64_bytes")]
    pub enc: Vec<u8>,
    /// Ciphertext and tag.
    #[serde(with = "strict::base64_bytes")]
    pub ciphertext: Vec<u8>,
}

/// A new X25519 key pair for a vault: (private, public). WebAssembly has no random numbers for it.
#[cfg(not(target_family = "wasm"))]
pub fn generate_vault_key() -> (Zeroizing<[u8; 32]>, [u8; 32]) {
    let (private, public) = X25519HkdfSha256::gen_keypair();
    (Zeroizing::new(private.to_bytes().into()), public.to_bytes().into())
}

/// The public key that belongs to `private`.
///
/// # Errors
/// [`OperatorError::Key`] when the bytes are no usable key.
pub fn vault_public_key(private: &[u8; 32]) -> Result<[u8; 32], OperatorError> {
    let private =
        <X25519HkdfSha256 as hpke::Kem>::PrivateKey::from_bytes(private).map_err(|_| OperatorError::Key)?;
    Ok(X25519HkdfSha256::sk_to_pk(&private).to_bytes().into())
}

/// Seals `value` to a vault (RFC 9180 base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM); the
/// reference `secret://…` is authenticated, so a sealed value opens under no other name.
///
/// WebAssembly has no random numbers for it.
///
/// # Errors
/// [`OperatorError`] when the value is too long or the key is not usable.
#[cfg(not(target_family = "wasm"))]
pub fn seal_secret(
    vault_key: &[u8; 32],
    reference: &str,
    value: &[u8],
) -> Result<SealedSecret, OperatorError> {
    if value.len() > MAX_SECRET {
        return Err(OperatorError::TooLong);
    }
    let public =
        <X25519HkdfSha256 as hpke::Kem>::PublicKey::from_bytes(vault_key).map_err(|_| OperatorError::Key)?;
    let (enc, ciphertext) = hpke::single_shot_seal::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
        &hpke::OpModeS::Base,
        &public,
        SECRET_INFO,
        value,
        reference.as_bytes(),
    )
    .map_err(|_| OperatorError::Key)?;
    Ok(SealedSecret { enc: enc.to_bytes().to_vec(), ciphertext })
}

/// Opens what [`seal_secret`] sealed under the same reference.
///
/// # Errors
/// [`OperatorError::Open`] for a wrong key, another reference or damaged bytes, without saying which.
pub fn open_secret(
    private_key: &[u8; 32],
    reference: &str,
    sealed: &SealedSecret,
) -> Result<Zeroizing<Vec<u8>>, OperatorError> {
    if sealed.ciphertext.len() > MAX_SECRET + 16 {
        return Err(OperatorError::TooLong);
    }
    let private = <X25519HkdfSha256 as hpke::Kem>::PrivateKey::from_bytes(private_key)
        .map_err(|_| OperatorError::Key)?;
    let enc = <X25519HkdfSha256 as hpke::Kem>::EncappedKey::from_bytes(&sealed.enc)
        .map_err(|_| OperatorError::Open)?;
    hpke::single_shot_open::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &private,
        &enc,
        SECRET_INFO,
        &sealed.ciphertext,
        reference.as_bytes(),
    )
    .map(Zeroizing::new)
    .map_err(|_| OperatorError::Open)
}

/// Why sealing or opening failed; never says anything about the value.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OperatorError {
    /// Longer than [`MAX_SECRET`].
    #[error("secret is longer than {MAX_SECRET} bytes")]
    TooLong,
    /// The bytes are no X25519 key that can be used.
    #[error("vault key is not usable")]
    Key,
    /// The sealed value does not open.
    #[error("sealed secret does not open")]
    Open,
}
