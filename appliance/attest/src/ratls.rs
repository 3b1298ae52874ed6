//! RA-TLS: a self-signed certificate whose extension carries the evidence.
//!
//! Nobody vouches for the certificate but the evidence: its claims name the SHA-256 of the certificate's public key. A client
//! first proves possession of the key (the handshake), then appraises the evidence, then compares the key; the
//! certificate's names only serve software that insists on them.
//!
//! Reading a certificate needs nothing but its bytes. Making one and speaking TLS are behind the feature `tls`: only there is
//! rustls used.
//!
//! The extension is the TCG DICE conceptual message wrapper (OID 2.23.133.5.4.9, TCG DICE Attestation Architecture 1.1), not
//! critical. Its value is a CMW record (draft-ietf-rats-msg-wrap §3.1) in CBOR, an array of media type and bytes, placed directly in
//! the extension's OCTET STRING as deployed RA-TLS implementations do. The CBOR tag 60000 of the CCC profile says "raw quote and claims" and
//! is not used: the record's media type says exactly what the bytes are.

use ciborium::Value;
use cofferdam_protocol::Digest;
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, Encode as _};

use crate::evidence::MEDIA_TYPE;

#[cfg(feature = "tls")]
mod client;
#[cfg(feature = "tls")]
mod make;
#[cfg(feature = "tls")]
mod named;

#[cfg(feature = "tls")]
pub use client::{Peer, Refusal, client_config, peer};
#[cfg(feature = "tls")]
pub use make::{certificate, generate_key, key_sha256};
#[cfg(feature = "tls")]
pub use named::{answer, dns_names, jwk, request, thumbprint};

/// Longest validity of a certificate in seconds.
pub const MAX_LIFETIME: u64 = 24 * 3600;

/// Largest evidence in a certificate in bytes: TLS stacks commonly take at most 64 KiB in one handshake message.
pub const MAX_EVIDENCE: usize = 56 * 1024;

/// `tcg-dice-conceptual-message-wrapper`.
const CMW_OID: &str = "2.23.133.5.4.9";

/// When a certificate that is valid for `lifetime` seconds from `not_before` is due for renewal: after two thirds.
pub fn renew_at(not_before: u64, lifetime: u64) -> u64 {
    not_before.saturating_add(lifetime / 3 * 2)
}

/// The evidence document inside a certificate; `None` when it has no such extension.
///
/// # Errors
/// [`RatlsError`] when the certificate or the extension is malformed, repeated, critical or of another media type.
pub fn evidence_from_certificate(der: &[u8]) -> Result<Option<Vec<u8>>, RatlsError> {
    let certificate = Certificate::from_der(der).map_err(|_| RatlsError::Malformed)?;
    let extensions = certificate.tbs_certificate().extensions().map(Vec::as_slice).unwrap_or_default();
    let mut found = extensions.iter().filter(|extension| extension.extn_id.to_string() == CMW_OID);
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

/// Digest of a certificate's SubjectPublicKeyInfo, to compare with the claim `tls_key`.
///
/// # Errors
/// [`RatlsError::Malformed`] when the bytes are no certificate.
pub fn spki_sha256(cert_der: &[u8]) -> Result<Digest, RatlsError> {
    let certificate = Certificate::from_der(cert_der).map_err(|_| RatlsError::Malformed)?;
    let spki = certificate
        .tbs_certificate()
        .subject_public_key_info()
        .to_der()
        .map_err(|_| RatlsError::Malformed)?;
    Ok(Digest::of(&spki))
}

/// When a certificate begins and ceases to be valid, seconds since the Unix epoch.
///
/// # Errors
/// [`RatlsError::Malformed`] when the bytes are no certificate.
pub fn validity(der: &[u8]) -> Result<(u64, u64), RatlsError> {
    let certificate = Certificate::from_der(der).map_err(|_| RatlsError::Malformed)?;
    let validity = certificate.tbs_certificate().validity();
    Ok((validity.not_before.to_unix_duration().as_secs(), validity.not_after.to_unix_duration().as_secs()))
}

/// Why a certificate was not made or not read.
#[derive(Debug, thiserror::Error)]
pub enum RatlsError {
    /// Not a P-256 key in PKCS#8 DER.
    #[cfg(feature = "tls")]
    #[error("TLS key is not a P-256 key in PKCS#8")]
    Key,
    /// Too much evidence for a handshake.
    #[cfg(feature = "tls")]
    #[error("evidence of {0} bytes, at most {MAX_EVIDENCE} fit into a certificate")]
    TooLarge(usize),
    /// Not 1 s to 24 h.
    #[cfg(feature = "tls")]
    #[error("certificate lifetime of {0} s, at most {MAX_LIFETIME} allowed")]
    Lifetime(u64),
    /// A name that no certificate can hold, or a failed signature.
    #[cfg(feature = "tls")]
    #[error("certificate could not be made")]
    Certificate(#[source] rcgen::Error),
    /// Not an X.509 certificate.
    #[error("certificate is malformed")]
    Malformed,
    /// The evidence extension breaks its format.
    #[error("evidence extension is malformed")]
    Extension,
    /// The TLS configuration is impossible.
    #[cfg(feature = "tls")]
    #[error("TLS client could not be configured")]
    Tls(#[source] rustls::Error),
}
