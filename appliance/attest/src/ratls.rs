//! RA-TLS: a self-signed certificate whose extension carries the evidence, and the client's side of trusting it.
//!
//! Nobody vouches for the certificate but the evidence: its claims name the SHA-256 of the certificate's public key. A client
//! first proves possession of the key (the handshake), then appraises the evidence, then compares the key; the
//! certificate's names and dates only serve software that insists on them.
//!
//! The extension is the TCG DICE conceptual message wrapper (OID 2.23.133.5.4.9, TCG DICE Attestation Architecture 1.1), not
//! critical. Its value is a CMW record (draft-ietf-rats-msg-wrap §3.1) in CBOR, an array of media type and bytes, placed directly in
//! the extension's OCTET STRING as deployed RA-TLS implementations do. The CBOR tag 60000 of the CCC profile says "raw quote and claims" and
//! is not used: the record's media type says exactly what the bytes are.

use std::sync::Arc;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use ciborium::Value;
use rcgen::{CertificateParams, CustomExtension, DnType, SerialNumber, SigningKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, Encode as _};
use zeroize::Zeroizing;

use crate::evidence::MEDIA_TYPE;

/// Longest validity of a certificate in seconds.
pub const MAX_LIFETIME: u64 = 24 * 3600;

/// Largest evidence in a certificate in bytes: TLS stacks commonly take at most 64 KiB in one handshake message.
pub const MAX_EVIDENCE: usize = 56 * 1024;

/// `tcg-dice-conceptual-message-wrapper`.
const CMW_OID: &[u64] = &[2, 23, 133, 5, 4, 9];
const CMW_OID_TEXT: &str = "2.23.133.5.4.9";

/// Tolerated difference between the client's clock and a certificate's dates, seconds.
const SKEW: u64 = 300;

/// A new P-256 key as PKCS#8 DER.
///
/// # Errors
/// [`RatlsError::Key`] when the random generator fails.
pub fn generate_key() -> Result<Zeroizing<Vec<u8>>, RatlsError> {
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
        .map_err(|_| RatlsError::Key)?;
    Ok(Zeroizing::new(document.as_ref().to_vec()))
}

/// The claim `tls_key` of a P-256 key in PKCS#8 DER: `sha256:<64 hex>` of its SubjectPublicKeyInfo.
///
/// # Errors
/// [`RatlsError::Key`] when it is not such a key.
pub fn key_sha256(key_pkcs8: &[u8]) -> Result<String, RatlsError> {
    let spki =
        Key::load(key_pkcs8)?.pair.public_key().as_der().map_err(|_| RatlsError::Key)?.as_ref().to_vec();
    Ok(format!("sha256:{}", hex::encode(Sha256::digest(&spki))))
}

/// When a certificate that is valid for `lifetime` seconds from `not_before` is due for renewal: after two thirds.
pub fn renew_at(not_before: u64, lifetime: u64) -> u64 {
    not_before.saturating_add(lifetime / 3 * 2)
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

/// The evidence document inside a certificate; `None` when it has no such extension.
///
/// # Errors
/// [`RatlsError`] when the certificate or the extension is malformed, repeated, critical or of another media type.
pub fn evidence_from_certificate(der: &[u8]) -> Result<Option<Vec<u8>>, RatlsError> {
    let certificate = Certificate::from_der(der).map_err(|_| RatlsError::Malformed)?;
    let extensions = certificate.tbs_certificate().extensions().map(Vec::as_slice).unwrap_or_default();
    let mut found = extensions.iter().filter(|extension| extension.extn_id.to_string() == CMW_OID_TEXT);
    let Some(extension) = found.next() else { return Ok(None) };
    if found.next().is_some() || extension.critical {
        return Err(RatlsError::Extension);
    }
    let mut rest = extension.extn_value.as_bytes();
    let record: Value = ciborium::from_reader(&mut rest).map_err(|_| RatlsError::Extension)?;
    if !rest.is_empty() {
        return Err(RatlsError::Extension);
    }
    match record {
        Value::Array(parts) => match parts.as_slice() {
            // The third part is the optional indicator of what kinds of message these are.
            [Value::Text(kind), Value::Bytes(bytes)]
            | [Value::Text(kind), Value::Bytes(bytes), Value::Integer(_)]
                if kind == MEDIA_TYPE && bytes.len() <= MAX_EVIDENCE =>
            {
                Ok(Some(bytes.clone()))
            }
            _ => Err(RatlsError::Extension),
        },
        _ => Err(RatlsError::Extension),
    }
}

/// `sha256:<64 hex>` of a certificate's SubjectPublicKeyInfo, to compare with the claim `tls_key`.
///
/// # Errors
/// [`RatlsError::Malformed`] when the bytes are no certificate.
pub fn spki_sha256(cert_der: &[u8]) -> Result<String, RatlsError> {
    let certificate = Certificate::from_der(cert_der).map_err(|_| RatlsError::Malformed)?;
    let spki = certificate
        .tbs_certificate()
        .subject_public_key_info()
        .to_der()
        .map_err(|_| RatlsError::Malformed)?;
    Ok(format!("sha256:{}", hex::encode(Sha256::digest(&spki))))
}

/// A TLS 1.3 client that accepts a self-signed certificate by its key. With `pin` only the key with that
/// `sha256:<64 hex>` passes. Without, any key passes that the peer proves to hold: use that connection for nothing
/// but fetching evidence whose claims bind its channel and its key.
///
/// # Errors
/// [`RatlsError::Tls`] when the provider cannot do TLS 1.3.
pub fn client_config(pin: Option<String>) -> Result<ClientConfig, RatlsError> {
    let crypto = Arc::new(provider::default_provider());
    let verifier = Arc::new(KeyVerifier { pin, crypto: Arc::clone(&crypto) });
    let mut config = ClientConfig::builder_with_provider(crypto)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(RatlsError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    // A resumed session shows no certificate, so nothing could be compared.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// Accepts certificates by key, never by issuer or name.
#[derive(Debug)]
struct KeyVerifier {
    pin: Option<String>,
    crypto: Arc<CryptoProvider>,
}

impl ServerCertVerifier for KeyVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let bad = |_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding);
        let found = spki_sha256(end_entity).map_err(bad)?;
        let (not_before, not_after) = validity(end_entity).map_err(bad)?;
        if now.as_secs().saturating_add(SKEW) < not_before {
            return Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYet));
        }
        if now.as_secs() > not_after.saturating_add(SKEW) {
            return Err(rustls::Error::InvalidCertificate(CertificateError::Expired));
        }
        match &self.pin {
            Some(pin) if *pin != found => {
                Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.crypto.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

fn validity(der: &[u8]) -> Result<(u64, u64), RatlsError> {
    let certificate = Certificate::from_der(der).map_err(|_| RatlsError::Malformed)?;
    let validity = certificate.tbs_certificate().validity();
    Ok((validity.not_before.to_unix_duration().as_secs(), validity.not_after.to_unix_duration().as_secs()))
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
struct Key {
    pair: EcdsaKeyPair,
}

impl Key {
    fn load(pkcs8: &[u8]) -> Result<Self, RatlsError> {
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

/// Why a certificate was not made or not read.
#[derive(Debug, thiserror::Error)]
pub enum RatlsError {
    /// Not a P-256 key in PKCS#8 DER.
    #[error("TLS key is not a P-256 key in PKCS#8")]
    Key,
    /// Too much evidence for a handshake.
    #[error("evidence of {0} bytes, at most {MAX_EVIDENCE} fit into a certificate")]
    TooLarge(usize),
    /// Not 1 s to 24 h.
    #[error("certificate lifetime of {0} s, at most {MAX_LIFETIME} allowed")]
    Lifetime(u64),
    /// A name that no certificate can hold, or a failed signature.
    #[error("certificate could not be made")]
    Certificate(#[source] rcgen::Error),
    /// Not an X.509 certificate.
    #[error("certificate is malformed")]
    Malformed,
    /// The evidence extension breaks its format.
    #[error("evidence extension is malformed")]
    Extension,
    /// The TLS configuration is impossible.
    #[error("TLS client could not be configured")]
    Tls(#[source] rustls::Error),
}

#[cfg(test)]
mod tests {
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
        let critical: Vec<_> =
            extension.filter(|e| e.extn_id.to_string() == CMW_OID_TEXT).map(|e| e.critical).collect();
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

    #[test]
    fn the_verifier_goes_by_key_and_dates() {
        let (key, der) = made(b"{}");
        let name = ServerName::try_from("appliance.example").unwrap();
        let at = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        let verify = |pin: Option<String>, now| {
            let verifier = KeyVerifier { pin, crypto: Arc::new(provider::default_provider()) };
            verifier.verify_server_cert(&der.clone().into(), &[], &name, &[], at(now)).is_ok()
        };
        let pin = key_sha256(&key).unwrap();
        assert!(verify(Some(pin.clone()), NOW + 60));
        assert!(verify(None, NOW + 60));
        assert!(!verify(Some(format!("sha256:{}", "0".repeat(64))), NOW + 60));
        assert!(!verify(Some(pin.clone()), NOW - SKEW - 1));
        assert!(!verify(Some(pin), NOW + MAX_LIFETIME + SKEW + 1));
    }
}
