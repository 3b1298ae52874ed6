//! The real verifier (dcap-qvl) over aws-lc-rs, as any relying party would set it up.

#![allow(dead_code, clippy::unwrap_used)]

use dcap_qvl::QuoteCollateralV3;
use dcap_qvl::config::{Config, CryptoProvider};
use dcap_qvl::verify::{QuoteVerifier, VerifiedReport};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, alg_id};
use sha2::Digest;
use tdx_sim::{Collateral, Platform, Seed};

/// 2026-11-22T00:00:00Z.
pub(crate) const NOW: u64 = 1_795_305_600;

pub(crate) struct Crypto;

impl CryptoProvider for Crypto {
    fn sig_algo() -> &'static dyn SignatureVerificationAlgorithm {
        *rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .all
            .iter()
            .find(|a| {
                a.public_key_alg_id() == alg_id::ECDSA_P256 && a.signature_alg_id() == alg_id::ECDSA_SHA256
            })
            .unwrap()
    }

    fn sha256(data: &[u8]) -> [u8; 32] {
        sha2::Sha256::digest(data).into()
    }

    fn sha384(data: &[u8]) -> [u8; 48] {
        sha2::Sha384::digest(data).into()
    }
}

pub(crate) struct Backend;

impl Config for Backend {
    type X509 = dcap_qvl::x509::X509CertBackend;
    type SigEncoder = dcap_qvl::signature::DerSigEncoder;
    type Crypto = Crypto;
}

/// A platform that is the same in every run.
pub(crate) fn platform(byte: u8) -> Platform {
    Platform::from_seed(Seed::from_bytes(&[byte; 32]).unwrap()).unwrap()
}

/// The collateral as it would arrive: through its JSON.
pub(crate) fn parsed(collateral: &Collateral) -> QuoteCollateralV3 {
    serde_json::from_str(&collateral.to_json().unwrap()).unwrap()
}

pub(crate) fn verify(
    root: Vec<u8>,
    quote: &[u8],
    collateral: &QuoteCollateralV3,
    now: u64,
) -> Result<VerifiedReport, String> {
    QuoteVerifier::<Backend>::new_with_config(root)
        .verify(quote, collateral, now)
        .map_err(|error| format!("{error:#}"))
}

/// Intel's root certificate, DER.
pub(crate) fn intel_root() -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../policy/intel-sgx-root-ca.pem");
    CertificateDer::from_pem_file(path).unwrap().to_vec()
}
