//! Making a certificate with evidence in it, and the key that it is for.

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use ciborium::Value;
use cofferdam_protocol::Digest;
use rcgen::{CertificateParams, CustomExtension, DnType, SerialNumber, SigningKey};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{MAX_EVIDENCE, MAX_LIFETIME, RatlsError};
use crate::evidence::MEDIA_TYPE;

/// The object identifier of the extension ([`super::CMW_OID`]).
const CMW_OID: &[u64] = &[2, 23, 133, 5, 4, 9];

/// A new P-256 key as PKCS#8 DER.
///
/// # Errors
/// [`RatlsError::Key`] when the random generator fails.
pub fn generate_key() -> Result<Zeroizing<Vec<u8>>, RatlsError> {
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
        .map_err(|_| RatlsError::Key)?;
    Ok(Zeroizing::new(document.as_ref().to_vec()))
}

/// The claim `tls_key` of a P-256 key in PKCS#8 DER: the digest of its SubjectPublicKeyInfo.
///
/// # Errors
/// [`RatlsError::Key`] when it is not such a key.
pub fn key_sha256(key_pkcs8: &[u8]) -> Result<Digest, RatlsError> {
    let spki = Key::load(key_pkcs8)?.pair.public_key().as_der().map_err(|_| RatlsError::Key)?;
    Ok(Digest::of(spki.as_ref()))
}

/// Makes the certificate (DER) for a P-256 key in PKCS#8 DER.
///
/// `names` become subject alternative names (DNS names or IP addresses); times are seconds since the Unix epoch.
///
/// # Errors
/// [`RatlsError`] for an unusable key or name, evidence above [`MAX_EVIDENCE`] or a lifetime outside 1..=[`MAX_LIFETIME`].
pub fn certificate(
    key_pkcs8: &[u8],
    evidence_json: &[u8],
    names: &[String],
    not_before: u64,
    lifetime: u64,
) -> Result<Vec<u8>, RatlsError> {
    if evidence_json.len() > MAX_EVIDENCE {
        return Err(RatlsError::TooLarge(evidence_json.len()));
    }
    if !(1..=MAX_LIFETIME).contains(&lifetime) {
        return Err(RatlsError::Lifetime(lifetime));
    }
    let key = Key::load(key_pkcs8)?;
    let mut params = CertificateParams::new(names.to_vec()).map_err(RatlsError::Certificate)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "cofferdam");
    params.not_before = date(not_before)?;
    params.not_after = date(not_before.saturating_add(lifetime))?;
    params.serial_number = Some(serial(evidence_json, not_before));
    params.custom_extensions.push(CustomExtension::from_oid_content(CMW_OID, cmw(evidence_json)?));
    let certificate = params.self_signed(&key).map_err(RatlsError::Certificate)?;
    Ok(certificate.der().to_vec())
}

/// The CMW record: `[media type, bytes]`.
fn cmw(evidence_json: &[u8]) -> Result<Vec<u8>, RatlsError> {
    let record = Value::Array(vec![Value::Text(MEDIA_TYPE.to_owned()), Value::Bytes(evidence_json.to_vec())]);
    let mut out = Vec::new();
    ciborium::into_writer(&record, &mut out).map_err(|_| RatlsError::Extension)?;
    Ok(out)
}

fn date(unix: u64) -> Result<OffsetDateTime, RatlsError> {
    let unix = i64::try_from(unix).map_err(|_| RatlsError::Lifetime(unix))?;
    OffsetDateTime::from_unix_timestamp(unix).map_err(|_| RatlsError::Lifetime(unix.unsigned_abs()))
}

/// A serial number that differs whenever evidence or time do; positive, 16 bytes (RFC 5280 §4.1.2.2).
fn serial(evidence_json: &[u8], not_before: u64) -> SerialNumber {
    let mut hash = Sha256::new();
    hash.update(evidence_json);
    hash.update(not_before.to_be_bytes());
    let mut bytes: Vec<u8> = hash.finalize().iter().take(16).copied().collect();
    if let Some(first) = bytes.first_mut() {
        *first = *first & 0x3f | 0x40;
    }
    SerialNumber::from(bytes)
}

/// A P-256 key that rcgen can sign with.
pub(super) struct Key {
    pub(super) pair: EcdsaKeyPair,
}

impl Key {
    pub(super) fn load(pkcs8: &[u8]) -> Result<Self, RatlsError> {
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8).map_err(|_| RatlsError::Key)?;
        Ok(Self { pair })
    }
}

impl rcgen::PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = self.pair.sign(&SystemRandom::new(), message);
        signature.map(|bytes| bytes.as_ref().to_vec()).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

#[cfg(test)]
mod tests {
    use x509_cert::Certificate;
    use x509_cert::der::Decode as _;

    use super::super::{evidence_from_certificate, renew_at, spki_sha256, validity};
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn made(evidence: &[u8]) -> (Zeroizing<Vec<u8>>, Vec<u8>) {
        let key = generate_key().unwrap();
        let names = ["appliance.example".to_owned(), "127.0.0.1".to_owned()];
        let der = certificate(&key, evidence, &names, NOW, MAX_LIFETIME).unwrap();
        (key, der)
    }

    #[test]
    fn evidence_and_key_come_back_out() {
        let (key, der) = made(b"{\"version\":1}");
        assert_eq!(evidence_from_certificate(&der).unwrap().unwrap(), b"{\"version\":1}");
        assert_eq!(spki_sha256(&der).unwrap(), key_sha256(&key).unwrap());
        assert_eq!(validity(&der).unwrap(), (NOW, NOW + MAX_LIFETIME));
        let parsed = Certificate::from_der(&der).unwrap();
        let extension = parsed.tbs_certificate().extensions().unwrap().iter();
        let critical: Vec<_> = extension
            .filter(|e| e.extn_id.to_string() == super::super::CMW_OID)
            .map(|e| e.critical)
            .collect();
        assert_eq!(critical, [false]);
        assert_eq!(renew_at(NOW, MAX_LIFETIME), NOW + 16 * 3600);
    }

    #[test]
    fn limits_are_enforced() {
        let key = generate_key().unwrap();
        let large = vec![b'x'; MAX_EVIDENCE + 1];
        assert!(matches!(certificate(&key, &large, &[], NOW, 60), Err(RatlsError::TooLarge(_))));
        assert!(matches!(certificate(&key, b"{}", &[], NOW, 86_401), Err(RatlsError::Lifetime(_))));
        assert!(matches!(certificate(&key, b"{}", &[], NOW, 0), Err(RatlsError::Lifetime(_))));
        assert!(matches!(certificate(b"no key", b"{}", &[], NOW, 60), Err(RatlsError::Key)));
    }

    #[test]
    fn untyped_or_damaged_extensions_are_refused() {
        let key = Key::load(&generate_key().unwrap()).unwrap();
        let with = |content: Vec<u8>, critical: bool, times: usize| {
            let mut params = CertificateParams::default();
            params.serial_number = Some(SerialNumber::from(1u64));
            for _ in 0..times {
                let mut extension = CustomExtension::from_oid_content(CMW_OID, content.clone());
                extension.set_criticality(critical);
                params.custom_extensions.push(extension);
            }
            params.self_signed(&key).map(|c| evidence_from_certificate(c.der()))
        };
        let good = cmw(b"{}").unwrap();
        assert_eq!(with(good.clone(), false, 1).unwrap().unwrap().unwrap(), b"{}");
        assert_eq!(with(good.clone(), false, 0).unwrap().unwrap(), None);
        assert!(with(good.clone(), true, 1).unwrap().is_err());
        if let Ok(read) = with(good.clone(), false, 2) {
            assert!(read.is_err());
        }
        assert!(with([good, vec![0]].concat(), false, 1).unwrap().is_err());
        assert!(with(b"{}".to_vec(), false, 1).unwrap().is_err());
        let mut untyped = Vec::new();
        ciborium::into_writer(&Value::Bytes(b"{}".to_vec()), &mut untyped).unwrap();
        assert!(with(untyped, false, 1).unwrap().is_err());
        let mut other = Vec::new();
        let parts = vec![Value::Text("text/plain".into()), Value::Bytes(b"{}".to_vec())];
        ciborium::into_writer(&Value::Array(parts), &mut other).unwrap();
        assert!(with(other, false, 1).unwrap().is_err());
        assert!(evidence_from_certificate(b"junk").is_err());
    }
}
