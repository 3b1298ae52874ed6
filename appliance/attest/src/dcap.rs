//! DCAP: is the quote genuine, and in which state is the platform that made it?
//!
//! dcap-qvl walks the chain link by link (root → TCB info and QE identity signers; root → PCK CA → PCK certificate, with both
//! revocation lists; PCK → quoting enclave's report; report → attestation key; key → quote) and matches the TCB levels at
//! a given time. This module gives it one trust root at a time and aws-lc-rs as its only cryptography, and closes what it
//! leaves open: bytes that no signature covers. Nothing here decides whether a TCB status is good enough.

use std::sync::LazyLock;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use dcap_qvl::config::{Config, CryptoProvider};
use dcap_qvl::signature::DerSigEncoder;
use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::x509::X509CertBackend;
use dcap_qvl::{PckCertFlag, QuoteClaims, QuoteCollateralV3, QuotePolicy};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm, alg_id,
};
use serde::Serialize;
use sha2::{Digest as _, Sha256, Sha384};
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, Encode as _};
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use crate::evidence::Collateral;
use crate::quote::Quote;
use crate::strict;

/// Intel SGX Root CA, valid until 2049 (certificates.trustedservices.intel.com). Were it ever not to parse, nothing would verify.
const INTEL_ROOT_PEM: &str = include_str!("../../../policy/intel-sgx-root-ca.pem");

static INTEL_ROOT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let certificate = CertificateDer::from_pem_slice(INTEL_ROOT_PEM.as_bytes());
    certificate.map(|der| der.to_vec()).unwrap_or_default()
});

/// Certification data that is a PEM chain, leaf first.
const CERT_PCK_CHAIN: u16 = 5;

/// The roots that a chain may end in: Intel's always, others only when named by the user.
#[derive(Debug, Clone, Default)]
pub struct Roots {
    extra: Vec<Vec<u8>>,
}

impl Roots {
    /// Only Intel's root.
    pub fn intel() -> Self {
        Self::default()
    }

    /// Adds the self-signed certificates of a PEM file (one to eight); what they vouch for is reported as simulated.
    ///
    /// # Errors
    /// [`RootError`] when the file holds none, too many, or one that is not a self-signed P-256 certificate.
    pub fn with_pem(mut self, pem: &str) -> Result<Self, RootError> {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let certificates = certificates.map_err(|_| RootError::Pem)?;
        if !(1..=8).contains(&certificates.len()) {
            return Err(RootError::Count(certificates.len()));
        }
        for der in certificates {
            let certificate = Certificate::from_der(&der).map_err(|_| RootError::Certificate)?;
            if !is_self_signed(&certificate) {
                return Err(RootError::Certificate);
            }
            if der.as_ref() != INTEL_ROOT.as_slice() {
                self.extra.push(der.to_vec());
            }
        }
        Ok(self)
    }

    /// Each root with whether it is a simulator's, Intel's first.
    fn all(&self) -> impl Iterator<Item = (&[u8], bool)> {
        std::iter::once((INTEL_ROOT.as_slice(), false))
            .chain(self.extra.iter().map(|der| (der.as_slice(), true)))
    }
}

/// A genuine quote's platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Platform {
    /// TCB status in Intel's words, merged from platform, TDX module and quoting enclave.
    pub tcb_status: String,
    /// Security advisories that apply at that status.
    pub advisories: Vec<String>,
    /// `tcbEvaluationDataNumber` of the collateral.
    pub tcb_evaluation_data_number: u32,
    /// Date of the matched TCB level, RFC 3339.
    pub tcb_date: String,
    /// Family, model, stepping, platform and custom SKU, 12 hex digits.
    pub fmspc: String,
    /// PCK certificate's flags; absent for certificates of the processor CA.
    pub dynamic_platform: Option<bool>,
    /// Likewise.
    pub cached_keys: Option<bool>,
    /// Likewise.
    pub smt_enabled: Option<bool>,
    /// When the first part of the collateral expires, seconds since the Unix epoch.
    pub collateral_expires: u64,
    /// SHA-256 of the root certificate that the chain ends in, hex.
    pub root: String,
    /// Whether that root was named by the user and is not Intel's.
    pub simulated: bool,
}

/// Verifies the chain of `raw` (whose parsed form is `quote`) at `now` (seconds since the Unix epoch).
///
/// # Errors
/// [`DcapError`] says which link is broken; all of its cases mean "checked and false".
pub fn verify(
    raw: &[u8],
    quote: &Quote,
    collateral: &Collateral,
    roots: &Roots,
    now: u64,
) -> Result<Platform, DcapError> {
    let (kind, certification) = &quote.pck_certification;
    let chain = if *kind == CERT_PCK_CHAIN {
        certificates(certification).ok_or(DcapError::Pem)?
    } else {
        let pem = collateral.pck_certificate_chain.as_deref().ok_or(DcapError::NoPckChain(*kind))?;
        certificates(pem.as_bytes()).ok_or(DcapError::Pem)?
    };
    let (root, simulated) = choose_root(&chain, roots)?;
    let collateral = to_qvl(collateral, *kind == CERT_PCK_CHAIN);
    QuoteVerifier::<AwsLcConfig>::new_with_config(root.to_vec())
        .verify_with_policy(raw, collateral, now, &QuotePolicy::claims_only(now))
        .map(|claims| platform(claims, root, simulated))
        .map_err(|error| DcapError::Chain(reason(&format!("{error:#}"))))
}

/// The verifier's reason in words where it prints a structure of its own.
fn reason(text: &str) -> String {
    match text.split_once("CrlExpired") {
        Some(_) => "a revocation list has expired".to_owned(),
        None => text.to_owned(),
    }
}

/// The root that the chain's last certificate is, or that issued it. A chain that carries its root has to carry a true copy.
fn choose_root<'a>(chain: &[Vec<u8>], roots: &'a Roots) -> Result<(&'a [u8], bool), DcapError> {
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

fn is_self_signed(certificate: &Certificate) -> bool {
    let tbs = certificate.tbs_certificate();
    tbs.subject() == tbs.issuer() && signed_by(certificate, tbs.subject_public_key_info())
}

/// Whether `key` (P-256) signed `certificate` with ECDSA and SHA-256. The algorithm is stated twice, and only the inner
/// statement is signed: both have to agree (RFC 5280 §4.1.1.2).
fn signed_by(certificate: &Certificate, key: &SubjectPublicKeyInfoOwned) -> bool {
    let (Ok(tbs), Some(key), Some(signature)) = (
        certificate.tbs_certificate().to_der(),
        key.subject_public_key.as_bytes(),
        certificate.signature().as_bytes(),
    ) else {
        return false;
    };
    certificate.signature_algorithm() == certificate.tbs_certificate().signature()
        && UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key).verify(&tbs, signature).is_ok()
}

/// Certificates of a PEM chain, as quotes carry it: CERTIFICATE blocks, line breaks, and zero bytes at the end. No
/// signature covers this text, so nothing else may hide in it; in particular the base64 has to be canonical.
fn certificates(pem: &[u8]) -> Option<Vec<Vec<u8>>> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let line_break = ['\r', '\n'];
    let mut rest = std::str::from_utf8(pem).ok()?.trim_end_matches('\0').trim_end_matches(line_break);
    let mut out = Vec::new();
    while !rest.is_empty() {
        let (body, after) = rest.strip_prefix(BEGIN)?.strip_prefix(line_break)?.split_once(END)?;
        out.push(strict::unb64(&body.replace(line_break, ""))?);
        rest = after.trim_start_matches(line_break);
    }
    Some(out)
}

/// Collateral in dcap-qvl's type; a PCK chain in it is used only when the quote has none of its own.
fn to_qvl(collateral: &Collateral, quote_has_chain: bool) -> QuoteCollateralV3 {
    QuoteCollateralV3 {
        pck_crl_issuer_chain: collateral.pck_crl_issuer_chain.clone(),
        root_ca_crl: collateral.root_ca_crl.clone(),
        pck_crl: collateral.pck_crl.clone(),
        tcb_info_issuer_chain: collateral.tcb_info_issuer_chain.clone(),
        tcb_info: collateral.tcb_info.clone(),
        tcb_info_signature: collateral.tcb_info_signature.clone(),
        qe_identity_issuer_chain: collateral.qe_identity_issuer_chain.clone(),
        qe_identity: collateral.qe_identity.clone(),
        qe_identity_signature: collateral.qe_identity_signature.clone(),
        pck_certificate_chain: collateral.pck_certificate_chain.clone().filter(|_| !quote_has_chain),
    }
}

fn platform(claims: QuoteClaims, root: &[u8], simulated: bool) -> Platform {
    let flag = |flag| match flag {
        PckCertFlag::True => Some(true),
        PckCertFlag::False => Some(false),
        PckCertFlag::Undefined => None,
    };
    Platform {
        tcb_status: claims.tcb.status.to_string(),
        advisories: claims.tcb.advisory_ids,
        tcb_evaluation_data_number: claims.tcb.eval_data_number,
        tcb_date: claims.platform.tcb_level.tcb_date,
        fmspc: hex::encode(claims.platform.pck.fmspc),
        dynamic_platform: flag(claims.platform.pck.dynamic_platform),
        cached_keys: flag(claims.platform.pck.cached_keys),
        smt_enabled: flag(claims.platform.pck.smt_enabled),
        collateral_expires: claims.earliest_expiration_date,
        root: hex::encode(Sha256::digest(root)),
        simulated,
    }
}

/// dcap-qvl's audited parsers with aws-lc-rs underneath.
struct AwsLcConfig;

impl Config for AwsLcConfig {
    type X509 = X509CertBackend;
    type SigEncoder = DerSigEncoder;
    type Crypto = AwsLc;
}

/// The cryptography that DCAP needs: ECDSA P-256 with SHA-256, and two hashes.
struct AwsLc;

impl CryptoProvider for AwsLc {
    fn sig_algo() -> &'static dyn SignatureVerificationAlgorithm {
        &EcdsaP256
    }

    fn sha256(data: &[u8]) -> [u8; 32] {
        Sha256::digest(data).into()
    }

    fn sha384(data: &[u8]) -> [u8; 48] {
        Sha384::digest(data).into()
    }
}

#[derive(Debug)]
struct EcdsaP256;

impl SignatureVerificationAlgorithm for EcdsaP256 {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, public_key)
            .verify(message, signature)
            .map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P256
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_SHA256
    }
}

/// Why a quote is not genuine.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DcapError {
    /// The PCK chain is no clean PEM chain.
    #[error("PCK certificate chain is malformed")]
    Pem,
    /// Not leaf and CA, with or without the root.
    #[error("PCK certificate chain of {0} certificates")]
    ChainLength(usize),
    /// The quote has no chain and the collateral neither.
    #[error("certification data of type {0} without a PCK certificate chain in the collateral")]
    NoPckChain(u16),
    /// The chain ends in a root that nobody named.
    #[error("PCK certificate chain ends in an untrusted root: {issuer} (sha256 {digest})")]
    UnknownRoot {
        /// Common name of the issuer of the chain's last certificate.
        issuer: String,
        /// SHA-256 of that certificate, hex.
        digest: String,
    },
    /// A link is broken, expired or revoked.
    #[error("{0}")]
    Chain(String),
}

/// Why a file of extra roots was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RootError {
    /// Not PEM.
    #[error("trust roots are not PEM certificates")]
    Pem,
    /// None, or too many.
    #[error("{0} trust roots in one file, 1 to 8 allowed")]
    Count(usize),
    /// Not a root.
    #[error("trust root is not a self-signed P-256 certificate")]
    Certificate,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{self, PHALA_AT};
    use crate::quote;

    #[test]
    fn intels_root_is_the_one_that_intel_publishes() {
        // Fingerprint of Intel_SGX_Provisioning_Certification_RootCA.cer.
        assert_eq!(
            hex::encode(Sha256::digest(INTEL_ROOT.as_slice())),
            "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
        );
    }

    #[test]
    fn a_hardware_quote_verifies_against_intels_root() {
        let Some((raw, collateral)) = fixtures::phala() else { return };
        let raw = quote::trim_padding(&raw).unwrap();
        let quote = quote::parse(raw).unwrap();
        let collateral = Collateral::parse(&collateral).unwrap();
        let platform = verify(raw, &quote, &collateral, &Roots::intel(), PHALA_AT).unwrap();
        assert_eq!(platform.tcb_status, "UpToDate");
        assert!(!platform.simulated);
        assert_eq!(platform.fmspc, "b0c06f000000");
    }
}
