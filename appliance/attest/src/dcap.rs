//! DCAP: is the quote genuine, and in which state is the platform that made it?
//!
//! dcap-qvl walks the chain link by link (root → TCB info and QE identity signers; root → PCK CA → PCK certificate, with both
//! revocation lists; PCK → quoting enclave's report; report → attestation key; key → quote) and matches the TCB levels at
//! a given time. This module gives it one trust root at a time and the cryptography, and closes what it
//! leaves open: bytes that no signature covers, lists from the future, an issuer chain that nobody reads. It also tells what
//! is false from what could not be checked: collateral that has expired, or is for another platform, says nothing about
//! this one. Nothing here decides whether a TCB status is good enough.

use std::sync::LazyLock;

use dcap_qvl::{PckCertFlag, QuoteClaims};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use crate::evidence::Collateral;
use crate::quote::Quote;
pub use backend::OwnConfig;
use backend::Refusal;
use chain::{broken_signature, certificates, choose_root, is_self_signed};
use endorsements::Windows;

mod backend;
mod chain;
mod ecdsa;
mod endorsements;

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
    /// PPID of the PCK certificate, hex.
    pub ppid: String,
    /// Platform instance id of the PCK certificate, hex; absent in those of the processor CA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform_instance_id: Option<String>,
    /// CPUSVN of the PCK certificate, hex.
    pub cpu_svn: String,
    /// Security version of the provisioning certification enclave.
    pub pce_svn: u16,
    /// Security version of the quoting enclave.
    pub qe_svn: u16,
    /// Status of the quoting enclave's own TCB level.
    pub qe_tcb_status: String,
    /// Date of the quoting enclave's own TCB level, RFC 3339.
    pub qe_tcb_date: String,
    /// PCK certificate's flags; absent for certificates of the processor CA.
    pub dynamic_platform: Option<bool>,
    /// Likewise.
    pub cached_keys: Option<bool>,
    /// Likewise.
    pub smt_enabled: Option<bool>,
    /// When the first part of the collateral expires, seconds since the Unix epoch.
    pub collateral_expires: u64,
    /// What of the collateral has expired, in words: then all of this is as of `collateral_expires`, and nobody knows what
    /// is true now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expired: Option<String>,
    /// SHA-256 of the root certificate that the chain ends in, hex.
    pub root: String,
    /// Whether that root was named by the user and is not Intel's.
    pub simulated: bool,
}

/// Verifies what needs no collateral: that the quote is signed, under one of the roots. It says nothing about revocation or
/// about the platform's state.
///
/// # Errors
/// [`DcapError`] says which signature is false. A quote without a chain of its own passes: nobody can tell.
pub fn signatures(raw: &[u8], quote: &Quote, roots: &Roots, now: u64) -> Result<(), DcapError> {
    let (kind, certification) = &quote.pck_certification;
    if *kind != CERT_PCK_CHAIN {
        return Ok(());
    }
    let chain = certificates(certification).ok_or(DcapError::Pem)?;
    let (root, _) = choose_root(&chain, roots)?;
    let reason = endorsements::chain_outside_its_time(&chain, now)
        .or_else(|| broken_signature(raw, &chain, root).map(str::to_owned));
    reason.map_or(Ok(()), |reason| Err(DcapError::Broken { stage: Stage::Chain, reason }))
}

/// Verifies the chain of `raw` (whose parsed form is `quote`) at `now` (seconds since the Unix epoch). Collateral that has
/// expired is verified at the last time when it held, so that what is false is found all the same.
///
/// # Errors
/// [`DcapError`] says which link is broken, or what is missing to tell: see [`DcapError::is_false`].
pub fn verify(
    raw: &[u8],
    quote: &Quote,
    collateral: &Collateral,
    roots: &Roots,
    now: u64,
) -> Result<Platform, DcapError> {
    let (kind, certification) = &quote.pck_certification;
    let in_quote = *kind == CERT_PCK_CHAIN;
    let chain = if in_quote {
        certificates(certification).ok_or(DcapError::Pem)?
    } else {
        // Nothing signs the type: a chain that calls itself something else is no chain that lies elsewhere.
        if certificates(certification).is_some_and(|chain| !chain.is_empty()) {
            return Err(DcapError::MisnamedChain(*kind));
        }
        let pem = collateral.pck_certificate_chain.as_deref().ok_or(DcapError::NoPckChain(*kind))?;
        certificates(pem.as_bytes()).ok_or(DcapError::Pem)?
    };
    let (root, simulated) = choose_root(&chain, roots)?;
    let found = endorsed(raw, collateral, in_quote, &chain, root, now);
    match found {
        Ok((claims, expired)) => Ok(Platform { expired, ..platform(claims, root, simulated) }),
        Err(error) if error.is_false() => Err(error),
        // False outweighs unknown.
        Err(error) => match broken_signature(raw, &chain, root) {
            Some(reason) => Err(DcapError::Broken { stage: Stage::Chain, reason: reason.to_owned() }),
            None => Err(error),
        },
    }
}

/// The quote with its collateral: what dcap-qvl found, and what of the collateral has expired.
fn endorsed(
    raw: &[u8],
    collateral: &Collateral,
    in_quote: bool,
    chain: &[Vec<u8>],
    root: &[u8],
    now: u64,
) -> Result<(QuoteClaims, Option<String>), DcapError> {
    let broken = |stage, reason: String| DcapError::Broken { stage, reason };
    let windows = Windows::read(collateral);
    if let Some(reason) = windows.issued_after(now) {
        return Err(broken(Stage::Collateral, reason));
    }
    let expired = windows.expired(now);
    let at = match &expired {
        None => now,
        Some(reason) => {
            if let Some(reason) = endorsements::chain_outside_its_time(chain, now) {
                return Err(broken(Stage::Chain, reason));
            }
            windows.last_common(chain, now).ok_or_else(|| DcapError::Expired(reason.clone()))?
        }
    };
    let claims = backend::verify(raw, collateral, in_quote, root, at)
        .map_err(|refusal| judge(refusal, collateral, chain))?;
    if let Some(part) = windows.unreadable.first() {
        return Err(broken(Stage::Collateral, format!("{part} has no readable dates")));
    }
    match endorsements::list_issuer_problem(collateral, chain, root) {
        Some(problem) => Err(broken(Stage::Chain, problem.to_owned())),
        None => Ok((claims, expired)),
    }
}

/// Whether a refusal is one, or only says that the collateral is for another platform.
fn judge(refusal: Refusal, collateral: &Collateral, chain: &[Vec<u8>]) -> DcapError {
    let Refusal { stage, reason, other_fmspc, no_list } = refusal;
    let leaf = chain.first().map(Vec::as_slice).unwrap_or_default();
    let extension = backend::pck_extension(leaf);
    if other_fmspc
        && let Some(extension) = &extension
        && let Some(said) = endorsements::other_fmspc(collateral, extension.fmspc)
    {
        let found = hex::encode(extension.fmspc);
        let reason = format!("the TCB info is for another platform: FMSPC {said}, this one is {found}");
        return DcapError::OtherPlatform { stage: Stage::Level, reason };
    }
    if no_list && let Some(issuer) = endorsements::other_issuer(collateral, leaf) {
        let reason = format!("the revocation list is for another platform: it is by {issuer}");
        return DcapError::OtherPlatform { stage: Stage::Chain, reason };
    }
    // What the platform is, where the reason is that it is not good enough.
    let facts = extension.filter(|_| stage == Stage::Level).map(|pck| {
        let (fmspc, cpu, pce) = (hex::encode(pck.fmspc), hex::encode(pck.cpu_svn), pck.pce_svn);
        format!(" (FMSPC {fmspc}, CPUSVN {cpu}, PCESVN {pce})")
    });
    DcapError::Broken { stage, reason: format!("{reason}{}", facts.unwrap_or_default()) }
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
        ppid: hex::encode(&claims.platform.pck.ppid),
        platform_instance_id: claims.platform.pck.platform_instance_id.map(hex::encode),
        cpu_svn: hex::encode(claims.platform.pck.cpu_svn),
        pce_svn: claims.platform.pck.pce_svn,
        qe_svn: claims.qe.report.isv_svn,
        qe_tcb_status: claims.qe.tcb_level.tcb_status.to_string(),
        qe_tcb_date: claims.qe.tcb_level.tcb_date,
        dynamic_platform: flag(claims.platform.pck.dynamic_platform),
        cached_keys: flag(claims.platform.pck.cached_keys),
        smt_enabled: flag(claims.platform.pck.smt_enabled),
        collateral_expires: claims.earliest_expiration_date,
        expired: None,
        root: hex::encode(Sha256::digest(root)),
        simulated,
    }
}

/// A part of the verification, each reported under its own name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Signatures and revocation, from the root to the quote.
    Chain,
    /// The dates of the collateral.
    Collateral,
    /// The quoting enclave against its identity.
    Enclave,
    /// The platform's security versions and its TDX module against the TCB info.
    Level,
    /// TD attributes.
    Attributes,
    /// Service TDs.
    ServiceTd,
}

/// Why a quote is not genuine, or why nobody can tell.
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
    /// The quote has a chain under another type.
    #[error("certification data of type {0} is a PCK certificate chain, which is type 5")]
    MisnamedChain(u16),
    /// The chain ends in a root that nobody named.
    #[error("PCK certificate chain ends in an untrusted root: {issuer} (sha256 {digest})")]
    UnknownRoot {
        /// Common name of the issuer of the chain's last certificate.
        issuer: String,
        /// SHA-256 of that certificate, hex.
        digest: String,
    },
    /// A link is broken, revoked, or below what is accepted.
    #[error("{reason}")]
    Broken {
        /// Where.
        stage: Stage,
        /// Why.
        reason: String,
    },
    /// The collateral is for another platform.
    #[error("{reason}")]
    OtherPlatform {
        /// What could not be checked for want of the right one.
        stage: Stage,
        /// What it is for.
        reason: String,
    },
    /// Parts of the collateral have expired, and there was no time at which all of them held.
    #[error("{0}")]
    Expired(String),
}

impl DcapError {
    /// Whether something was checked and is false; otherwise it could not be checked.
    #[must_use]
    pub fn is_false(&self) -> bool {
        !matches!(self, Self::NoPckChain(_) | Self::OtherPlatform { .. } | Self::Expired(_))
    }
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
