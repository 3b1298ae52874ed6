//! Sealing a secret to a vault, and opening it there: nobody in between can read it.
//!
//! What a request looks like and what its signature covers is [`cofferdam_protocol::operator`]'s.

#[cfg(not(target_family = "wasm"))]
use cofferdam_protocol::Base64Bytes;
use cofferdam_protocol::operator::{MAX_SECRET, SEAL_TAG, SealedSecret};
use cofferdam_protocol::unseal::SealedKey;
use cofferdam_protocol::{Base64Array, SecretRef};
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::{Kem as _, X25519HkdfSha256};
use hpke::{Deserializable as _, OpModeR, Serializable as _};
use zeroize::Zeroizing;

const SECRET_INFO: &[u8] = b"cofferdam/secret/v1";
const UNSEAL_INFO: &[u8] = b"cofferdam/unseal/v1";

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
    reference: &SecretRef,
    value: &[u8],
) -> Result<SealedSecret, OperatorError> {
    if value.len() > MAX_SECRET {
        return Err(OperatorError::TooLong);
    }
    let (enc, ciphertext) = seal(vault_key, SECRET_INFO, reference.as_str().as_bytes(), value)?;
    Ok(SealedSecret { enc, ciphertext })
}

/// Opens what [`seal_secret`] sealed under the same reference.
///
/// # Errors
/// [`OperatorError::Open`] for a wrong key, another reference or damaged bytes, without saying which.
pub fn open_secret(
    private_key: &[u8; 32],
    reference: &SecretRef,
    sealed: &SealedSecret,
) -> Result<Zeroizing<Vec<u8>>, OperatorError> {
    if sealed.ciphertext.as_bytes().len() > MAX_SECRET + SEAL_TAG {
        return Err(OperatorError::TooLong);
    }
    open(private_key, SECRET_INFO, reference.as_str().as_bytes(), &sealed.enc, sealed.ciphertext.as_bytes())
}

/// Seals what opens a state to the appliance that waits for it, as [`seal_secret`] seals a value. The connection is the signature's
/// matter, and the key another one at each boot.
///
/// # Errors
/// [`OperatorError::Key`] when the key is not usable.
#[cfg(not(target_family = "wasm"))]
pub fn seal_key(vault_key: &[u8; 32], request: &[u8]) -> Result<SealedKey, OperatorError> {
    let (enc, ciphertext) = seal(vault_key, UNSEAL_INFO, b"", request)?;
    Ok(SealedKey { enc, ciphertext })
}

/// Opens what [`seal_key`] sealed.
///
/// # Errors
/// [`OperatorError::Open`] for a wrong key or damaged bytes, without saying which.
pub fn open_key(private_key: &[u8; 32], sealed: &SealedKey) -> Result<Zeroizing<Vec<u8>>, OperatorError> {
    open(private_key, UNSEAL_INFO, b"", &sealed.enc, sealed.ciphertext.as_bytes())
}

/// Seals to a vault: the encapsulated key and what it opens. `info` says what for, so that nothing opens as something else.
#[cfg(not(target_family = "wasm"))]
fn seal<const MAX: usize>(
    vault_key: &[u8; 32],
    info: &[u8],
    associated: &[u8],
    plain: &[u8],
) -> Result<(Base64Array<32>, Base64Bytes<SEAL_TAG, MAX>), OperatorError> {
    let public =
        <X25519HkdfSha256 as hpke::Kem>::PublicKey::from_bytes(vault_key).map_err(|_| OperatorError::Key)?;
    let (enc, ciphertext) = hpke::single_shot_seal::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
        &hpke::OpModeS::Base,
        &public,
        info,
        plain,
        associated,
    )
    .map_err(|_| OperatorError::Key)?;
    let ciphertext = Base64Bytes::new(ciphertext).map_err(|_| OperatorError::TooLong)?;
    Ok((<[u8; 32]>::from(enc.to_bytes()).into(), ciphertext))
}

/// Opens what [`seal`] sealed for the same.
fn open(
    private_key: &[u8; 32],
    info: &[u8],
    associated: &[u8],
    enc: &Base64Array<32>,
    ciphertext: &[u8],
) -> Result<Zeroizing<Vec<u8>>, OperatorError> {
    let private = <X25519HkdfSha256 as hpke::Kem>::PrivateKey::from_bytes(private_key)
        .map_err(|_| OperatorError::Key)?;
    let enc = <X25519HkdfSha256 as hpke::Kem>::EncappedKey::from_bytes(enc.as_bytes())
        .map_err(|_| OperatorError::Open)?;
    hpke::single_shot_open::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &private,
        &enc,
        info,
        ciphertext,
        associated,
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
