//! Sealing a key-encryption key to a waiting vault, and authenticating what that reports of its state afterwards.
//!
//! What the messages look like and what the server's signatures cover is [`cofferdam_protocol::keyserve`]'s; signing is for those who
//! hold a key.

use cofferdam_protocol::evidence::VaultKey;
use cofferdam_protocol::keyserve::{EpochReport, SealedKek, ServerNonce};
use hkdf::Hkdf;
#[cfg(not(target_family = "wasm"))]
use hpke::Serializable as _;
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable as _, OpModeR};
use sha2::Sha256;
use zeroize::Zeroizing;

const KEK_INFO: &[u8] = b"cofferdam/keyserve/kek/v1";
const REPORT_SALT: &[u8] = b"cofferdam/keyserve/report/v1";

/// A key-encryption key: what a key server keeps for an appliance.
pub type Kek = Zeroizing<[u8; 32]>;

/// Sealing, opening or authenticating failed, without a word about the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KekError {
    /// The bytes are no X25519 key that can be used.
    #[error("the vault's key is not usable")]
    Key,
    /// It was sealed to another key or for another nonce, or is damaged.
    #[error("the key of the server does not open")]
    Open,
}

/// Seals `kek` to the vault that made the evidence with this nonce, as secrets are sealed to one (RFC 9180 base mode, DHKEM(X25519,
/// HKDF-SHA256), HKDF-SHA256, AES-256-GCM); the nonce is authenticated. WebAssembly has no random numbers for it.
///
/// # Errors
/// [`KekError::Key`].
#[cfg(not(target_family = "wasm"))]
pub fn seal(vault_key: &VaultKey, nonce: &ServerNonce, kek: &Kek) -> Result<SealedKek, KekError> {
    let public = <X25519HkdfSha256 as hpke::Kem>::PublicKey::from_bytes(vault_key.as_bytes())
        .map_err(|_| KekError::Key)?;
    let (enc, ciphertext) = hpke::single_shot_seal::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
        &hpke::OpModeS::Base,
        &public,
        KEK_INFO,
        kek.as_slice(),
        nonce.as_bytes(),
    )
    .map_err(|_| KekError::Key)?;
    let ciphertext: [u8; 48] = ciphertext.try_into().map_err(|_| KekError::Key)?;
    Ok(SealedKek { enc: <[u8; 32]>::from(enc.to_bytes()).into(), ciphertext: ciphertext.into() })
}

/// Opens what [`seal`] sealed.
///
/// # Errors
/// [`KekError::Open`], without saying why.
pub fn open(private_key: &[u8; 32], nonce: &ServerNonce, sealed: &SealedKek) -> Result<Kek, KekError> {
    let private =
        <X25519HkdfSha256 as hpke::Kem>::PrivateKey::from_bytes(private_key).map_err(|_| KekError::Key)?;
    let enc = <X25519HkdfSha256 as hpke::Kem>::EncappedKey::from_bytes(sealed.enc.as_bytes())
        .map_err(|_| KekError::Open)?;
    let plain = hpke::single_shot_open::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &private,
        &enc,
        KEK_INFO,
        sealed.ciphertext.as_bytes(),
        nonce.as_bytes(),
    );
    let plain = plain.map(Zeroizing::new).map_err(|_| KekError::Open)?;
    let mut kek = Zeroizing::new([0; 32]);
    if plain.len() != kek.len() {
        return Err(KekError::Open);
    }
    kek.copy_from_slice(&plain);
    Ok(kek)
}

/// What authenticates reports: the first half of HKDF-SHA256 (RFC 5869), extraction, with the key-encryption key as its secret. It gives no
/// way back to that, so that an appliance can keep it for reports after its start.
pub struct ReportKey(Zeroizing<[u8; 32]>);

impl ReportKey {
    /// Of a key-encryption key.
    pub fn of(kek: &Kek) -> Self {
        let (prk, _) = Hkdf::<Sha256>::extract(Some(REPORT_SALT), kek.as_slice());
        Self(Zeroizing::new(prk.into()))
    }

    /// One that was kept.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// To be kept.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The MAC of a report: the second half of HKDF-SHA256, expansion, with [`EpochReport::mac_input`] as its info, which makes it a
    /// pseudorandom function of that.
    ///
    /// # Errors
    /// [`KekError::Key`], which no key of this length is.
    pub fn mac(&self, report: &EpochReport) -> Result<[u8; 32], KekError> {
        let mut mac = [0; 32];
        let derived = Hkdf::<Sha256>::from_prk(self.0.as_slice())
            .map_err(|_| KekError::Key)?
            .expand(&report.mac_input(), &mut mac);
        derived.map(|()| mac).map_err(|_| KekError::Key)
    }
}

impl std::fmt::Debug for ReportKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted:report key]")
    }
}

/// [`ReportKey::mac`] under a key-encryption key.
///
/// # Errors
/// As there.
pub fn report_mac(kek: &Kek, report: &EpochReport) -> Result<[u8; 32], KekError> {
    ReportKey::of(kek).mac(report)
}

/// Whether the holder of `kek` made the report. In constant time.
pub fn is_authentic(kek: &Kek, report: &EpochReport) -> bool {
    let Ok(expected) = report_mac(kek, report) else { return false };
    let differs = expected.iter().zip(report.mac.as_bytes()).fold(0, |all, (a, b)| all | (a ^ b));
    std::hint::black_box(differs) == 0
}

#[cfg(test)]
mod tests {
    use cofferdam_protocol::keyserve::{ReleaseAnswer, Witnessed};
    use serde_json::Value;

    use super::*;
    use crate::operator::generate_vault_key;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../../policy/vectors/keyserve.json")).unwrap()
    }

    fn array<const N: usize>(value: &Value) -> [u8; N] {
        hex::decode(value.as_str().unwrap()).unwrap().try_into().unwrap()
    }

    #[test]
    fn a_key_opens_with_its_own_vault_key_and_nonce_alone() {
        let (private, public) = generate_vault_key();
        let (other, _) = generate_vault_key();
        let nonce: ServerNonce = [1; 32].into();
        let kek = Zeroizing::new([7; 32]);
        let sealed = seal(&public.into(), &nonce, &kek).unwrap();
        assert_eq!(open(&private, &nonce, &sealed).unwrap(), kek);
        assert_eq!(open(&other, &nonce, &sealed), Err(KekError::Open));
        assert_eq!(open(&private, &[2; 32].into(), &sealed), Err(KekError::Open));
        for at in 0..48 {
            let mut bytes: [u8; 48] = sealed.ciphertext.into();
            bytes[at] ^= 1;
            let changed = SealedKek { ciphertext: bytes.into(), ..sealed };
            assert_eq!(open(&private, &nonce, &changed), Err(KekError::Open), "{at}");
        }
        assert_eq!(seal(&[0; 32].into(), &nonce, &kek), Err(KekError::Key), "a point of small order");
    }

    #[test]
    fn a_report_is_authentic_with_its_own_key_and_unchanged() {
        let kek = Zeroizing::new([7; 32]);
        let opened = Witnessed { state: [1; 16].into(), epoch: 9, root: [2; 32].into() };
        let mut report = EpochReport {
            repository: "acme/shop".parse().unwrap(),
            opened,
            fresh: false,
            lineage: 1,
            mac: [0; 32].into(),
        };
        report.mac = report_mac(&kek, &report).unwrap().into();
        assert!(is_authentic(&kek, &report));
        assert!(!is_authentic(&Zeroizing::new([8; 32]), &report));
        let changed = EpochReport { fresh: true, ..report.clone() };
        assert!(!is_authentic(&kek, &changed));
        let raised = EpochReport { opened: Witnessed { epoch: 10, ..opened }, ..report.clone() };
        assert!(!is_authentic(&kek, &raised));
        for at in 0..32 {
            let mut mac: [u8; 32] = report.mac.into();
            mac[at] ^= 0x80;
            assert!(!is_authentic(&kek, &EpochReport { mac: mac.into(), ..report.clone() }), "{at}");
        }
    }

    #[test]
    fn keys_and_reports_are_those_of_the_vectors() {
        let vectors = vectors();
        let kek = Zeroizing::new(array(&vectors["kek"]));
        let answer: ReleaseAnswer =
            serde_json::from_str(vectors["answer"]["message"].as_str().unwrap()).unwrap();
        let private = array(&vectors["vault_private_key"]);
        assert_eq!(crate::operator::vault_public_key(&private).unwrap(), array(&vectors["vault_key"]));
        assert_eq!(open(&private, &answer.nonce, &answer.key).unwrap(), kek);
        let report: EpochReport =
            serde_json::from_str(vectors["report"]["message"].as_str().unwrap()).unwrap();
        assert_eq!(hex::encode(report.mac_input()), vectors["report"]["mac_input"]);
        assert!(is_authentic(&kek, &report));
    }
}
