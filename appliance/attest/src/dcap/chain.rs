//! Certificate chains: their PEM text, the root that they end in, and who signed what.

use cofferdam_protocol::base64;
use dcap_qvl::quote::Quote;
use sha2::{Digest as _, Sha256};
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, Encode as _};
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use super::{DcapError, Roots, ecdsa};

/// The root that the chain's last certificate is, or that issued it. A chain that carries its root has to carry a true copy.
pub(super) fn choose_root<'a>(chain: &[Vec<u8>], roots: &'a Roots) -> Result<(&'a [u8], bool), DcapError> {
    // Intel's chains are leaf, PCK CA and root; the root may be left out.
    if !(2..=3).contains(&chain.len()) {
        return Err(DcapError::ChainLength(chain.len()));
    }
    let last = chain.last().and_then(|der| Certificate::from_der(der).ok()).ok_or(DcapError::Pem)?;
    let tbs = last.tbs_certificate();
    for (der, simulated) in roots.all() {
        let Ok(root) = Certificate::from_der(der) else { continue };
        let root = root.tbs_certificate();
        if root.subject() != tbs.issuer() {
            continue;
        }
        let is_root = tbs.subject() == tbs.issuer();
        let same_key = tbs.subject_public_key_info() == root.subject_public_key_info();
        if signed_by(&last, root.subject_public_key_info()) && (!is_root || same_key) {
            return Ok((der, simulated));
        }
    }
    let digest = chain.last().map(|der| hex::encode(Sha256::digest(der))).unwrap_or_default();
    // The common name alone: printing a whole name pulls the names of all known attributes into the program.
    let issuer =
        tbs.issuer().common_name().ok().flatten().map(|name| name.value().into_owned()).unwrap_or_default();
    Err(DcapError::UnknownRoot { issuer, digest })
}

pub(super) fn is_self_signed(certificate: &Certificate) -> bool {
    let tbs = certificate.tbs_certificate();
    tbs.subject() == tbs.issuer() && signed_by(certificate, tbs.subject_public_key_info())
}

/// Whether `key` (P-256) signed `certificate` with ECDSA and SHA-256. The algorithm is stated twice, and only the inner
/// statement is signed: both have to agree (RFC 5280 §4.1.1.2).
pub(super) fn signed_by(certificate: &Certificate, key: &SubjectPublicKeyInfoOwned) -> bool {
    let (Ok(tbs), Some(key), Some(signature)) = (
        certificate.tbs_certificate().to_der(),
        key.subject_public_key.as_bytes(),
        certificate.signature().as_bytes(),
    ) else {
        return false;
    };
    certificate.signature_algorithm() == certificate.tbs_certificate().signature()
        && ecdsa::verify_der(key, &tbs, signature)
}

/// Certificates of a PEM chain, as quotes carry it: CERTIFICATE blocks, line breaks, and zero bytes at the end. No
/// signature covers this text, so nothing else may hide in it; in particular the base64 has to be canonical.
pub(super) fn certificates(pem: &[u8]) -> Option<Vec<Vec<u8>>> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let line_break = ['\r', '\n'];
    let mut rest = std::str::from_utf8(pem).ok()?.trim_end_matches('\0').trim_end_matches(line_break);
    let mut out = Vec::new();
    while !rest.is_empty() {
        let (body, after) = rest.strip_prefix(BEGIN)?.strip_prefix(line_break)?.split_once(END)?;
        out.push(base64::decode(body.replace(line_break, ""))?);
        rest = after.trim_start_matches(line_break);
    }
    Some(out)
}

/// The signatures that need no collateral: root → CA → PCK certificate → quoting enclave's report → attestation key → quote.
/// The first that does not hold, in words. dcap-qvl checks them again; here they are checked where it cannot be asked, so that a
/// forged quote is false and not only unknown.
pub(super) fn broken_signature(raw: &[u8], chain: &[Vec<u8>], root: &[u8]) -> Option<&'static str> {
    let read = |der: &[u8]| Certificate::from_der(der).ok();
    let (Some(leaf), Some(ca), Some(root)) =
        (chain.first().and_then(|der| read(der)), chain.get(1).and_then(|der| read(der)), read(root))
    else {
        return Some("a certificate of the PCK chain is malformed");
    };
    if !signed_by(&ca, root.tbs_certificate().subject_public_key_info()) {
        return Some("the root did not sign the CA of the PCK chain");
    }
    if !signed_by(&leaf, ca.tbs_certificate().subject_public_key_info()) {
        return Some("the CA did not sign the PCK certificate");
    }
    let Ok(quote) = Quote::parse(raw) else { return Some("the quote's signature data is malformed") };
    let signed = raw.get(..quote.signed_length()).unwrap_or_default();
    let data = quote.auth_data.into_v3();
    let pck = leaf.tbs_certificate().subject_public_key_info().subject_public_key.as_bytes();
    if !ecdsa::verify_fixed(pck.unwrap_or_default(), &data.qe_report, &data.qe_report_signature) {
        return Some("the PCK did not sign the quoting enclave's report");
    }
    let bound = Sha256::new()
        .chain_update(data.ecdsa_attestation_key)
        .chain_update(&data.qe_auth_data.data)
        .finalize();
    // Report data are the last 64 bytes of the report; the hash is their first half.
    if data.qe_report.get(320..352) != Some(bound.as_slice()) {
        return Some("the quoting enclave's report does not name the attestation key");
    }
    let key = [&[0x04], data.ecdsa_attestation_key.as_slice()].concat();
    if !ecdsa::verify_fixed(&key, signed, &data.ecdsa_signature) {
        return Some("the attestation key did not sign the quote");
    }
    None
}
