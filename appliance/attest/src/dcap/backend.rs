//! dcap-qvl with our cryptography as its only one, and the stage of its walk at which it refused.

use dcap_qvl::config::{Config, CryptoProvider};
use dcap_qvl::intel::{PckExtension, parse_pck_extension_with};
use dcap_qvl::signature::DerSigEncoder;
use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::x509::X509CertBackend;
use dcap_qvl::{QuoteClaims, QuoteCollateralV3, QuotePolicy};
use rustls_pki_types::SignatureVerificationAlgorithm;
use sha2::{Digest as _, Sha256, Sha384};

use super::Stage;
use super::ecdsa::EcdsaP256;
use crate::evidence::Collateral;

/// What dcap-qvl says of the FMSPC of the TCB info, after it has verified every signature.
const OTHER_FMSPC: &str = "Fmspc mismatch";
/// What it says when no revocation list is by the issuer of a certificate.
const NO_LIST: &str = "UnknownRevocationStatus";

/// Its refusal.
pub(super) struct Refusal {
    pub(super) stage: Stage,
    pub(super) reason: String,
    /// Everything is signed as it has to be, and the TCB info is for another FMSPC.
    pub(super) other_fmspc: bool,
    /// No revocation list is by the issuer of a certificate.
    pub(super) no_list: bool,
}

/// Verifies `raw` under one root at one time.
pub(super) fn verify(
    raw: &[u8],
    collateral: &Collateral,
    quote_has_chain: bool,
    root: &[u8],
    at: u64,
) -> Result<QuoteClaims, Refusal> {
    QuoteVerifier::<OwnConfig>::new_with_config(root.to_vec())
        .verify_with_policy(raw, to_qvl(collateral, quote_has_chain), at, &QuotePolicy::claims_only(at))
        .map_err(|error| {
            let text = format!("{error:#}");
            Refusal {
                stage: stage(&text),
                other_fmspc: text == OTHER_FMSPC,
                no_list: text.contains(NO_LIST),
                reason: reason(&text),
            }
        })
}

/// The SGX extensions of a PCK certificate (DER).
pub(super) fn pck_extension(der: &[u8]) -> Option<PckExtension> {
    parse_pck_extension_with::<OwnConfig>(der).ok()
}

/// Which part of the walk a refusal belongs to. It only chooses the name under which the refusal is reported: dcap-qvl has
/// no error type, and its version is pinned exactly.
fn stage(text: &str) -> Stage {
    let has = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    let attributes = [
        "Debug mode is enabled",
        "TD profiling is enabled",
        "Reserved bits in TD attributes",
        "TD migration is enabled",
        "SERVTD_EXT is enabled",
        "SEPT_VE_DISABLE is not enabled",
        "Failed to parse TD attributes",
    ];
    if has(&["QE report validation failed"]) {
        Stage::Enclave
    } else if has(&attributes) {
        Stage::Attributes
    } else if has(&["Invalid MR service TD"]) {
        Stage::ServiceTd
    } else if has(&["Signature is invalid", "QE report hash mismatch", "Unknown QE vendor"]) {
        Stage::Chain
    } else if has(&["TCB", "TDX", "tdxModule", "Fmspc", "TcbInfo"])
        && !has(&["chain is too short", "issued directly"])
    {
        Stage::Level
    } else if text.starts_with("QE ") || has(&["QE Identity", "QeIdentity"]) {
        Stage::Enclave
    } else {
        Stage::Chain
    }
}

/// The verifier's reason in words where it prints a structure of its own.
fn reason(text: &str) -> String {
    match text.split_once("CrlExpired") {
        Some(_) => "a revocation list has expired".to_owned(),
        None => text.to_owned(),
    }
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

/// dcap-qvl's audited parsers with our cryptography underneath.
#[derive(Debug)]
pub struct OwnConfig;

impl Config for OwnConfig {
    type X509 = X509CertBackend;
    type SigEncoder = DerSigEncoder;
    type Crypto = Crypto;
}

/// The cryptography that DCAP needs: ECDSA P-256 with SHA-256, and two hashes.
#[derive(Debug)]
pub struct Crypto;

impl CryptoProvider for Crypto {
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
