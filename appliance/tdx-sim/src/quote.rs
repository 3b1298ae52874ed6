//! Quotes of the simulated machine: version 4, TDX 1.0 body, ECDSA P-256.
//!
//! Shape: Intel "TDX DCAP Quoting Library API" 0.9, appendix A.3, little endian:
//! header 48 ‖ body 584 ‖ length 4 ‖ signature 64 ‖ attestation key 64 ‖ certification data type 6 which holds
//! QE report 384 ‖ its signature 64 ‖ QE authentication data ‖ certification data type 5 (PEM chain).

use sha2::{Digest, Sha256};

use crate::certificates::Certificates;
use crate::keys::Key;
use crate::machine::{self, Machine};

/// Bytes before the signature section: header and body.
const SIGNED: usize = 48 + 584;
/// The quoting enclave's authentication data; verifiers take exactly 32 bytes.
const QE_AUTHENTICATION: [u8; 32] = *b"SIMULATED TDX quoting enclave v1";

/// TD attribute bit 0 (TDX module base specification, TD_ATTRIBUTES): the host may read and write the TD's memory.
pub const ATTRIBUTE_DEBUG: u64 = 1;
/// TD attribute bit 28: an EPT violation is never turned into #VE. Linux requires it.
pub const ATTRIBUTE_SEPT_VE_DISABLE: u64 = 1 << 28;
/// Extended features of the simulated TD: x87, SSE, AVX, AVX-512.
pub const DEFAULT_XFAM: u64 = 0xe7;

/// What a TD report says; the rest of a quote belongs to the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdReport {
    /// Measurement of the initial TD.
    pub mrtd: [u8; 48],
    /// Run-time measurement registers 0-3.
    pub rtmr: [[u8; 48]; 4],
    /// What the TD wants attested.
    pub report_data: [u8; 64],
    /// TD attributes.
    pub td_attributes: u64,
    /// Extended features allowed to the TD.
    pub xfam: u64,
    /// MRCONFIGID.
    pub mr_config_id: [u8; 48],
    /// MROWNER.
    pub mr_owner: [u8; 48],
    /// MROWNERCONFIG.
    pub mr_owner_config: [u8; 48],
}

impl TdReport {
    /// The report of a healthy simulated TD with these registers and this report data.
    pub fn new(rtmr: [[u8; 48]; 4], report_data: [u8; 64]) -> Self {
        Self {
            mrtd: machine::mrtd(),
            rtmr,
            report_data,
            td_attributes: ATTRIBUTE_SEPT_VE_DISABLE,
            xfam: DEFAULT_XFAM,
            mr_config_id: [0; 48],
            mr_owner: [0; 48],
            mr_owner_config: [0; 48],
        }
    }

    /// The same with DEBUG set: a TD whose memory its host can read.
    pub fn with_debug(mut self) -> Self {
        self.td_attributes |= ATTRIBUTE_DEBUG;
        self
    }
}

/// How a quote is broken, for tests of a verifier. DEBUG is not here: it is an honest quote of a bad TD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuoteFlaw {
    /// The QE report is signed by, and the chain is that of, another machine under another root.
    ForeignPck,
    /// The chain is this machine's, the QE report is signed by another machine's PCK.
    ForeignPckKey,
    /// The QE report commits to another attestation key than the one that signs.
    BrokenQeBinding,
    /// The body is signed by another attestation key than the one that the quote names.
    ForeignAttestationKey,
    /// One bit of RTMR3 was flipped after signing.
    TamperedBody,
    /// The QE report says that the quoting enclave runs in debug mode.
    DebugQe,
}

/// The keys and certificates that a quote is made with.
pub(crate) struct Signer<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) certificates: &'a Certificates,
    pub(crate) attestation_key: &'a Key,
    /// Another machine, for the flaws that need one.
    pub(crate) foreign: Option<(&'a Certificates, &'a Key)>,
}

impl Signer<'_> {
    pub(crate) fn quote(&self, report: &TdReport, flaw: Option<QuoteFlaw>) -> Vec<u8> {
        let foreign_key = self.foreign.map(|(_, key)| key);
        let foreign_pck = self.foreign.map(|(certificates, _)| certificates);
        let body_key = match flaw {
            Some(QuoteFlaw::ForeignAttestationKey) => foreign_key.unwrap_or(self.attestation_key),
            _ => self.attestation_key,
        };
        let bound_key = match flaw {
            Some(QuoteFlaw::BrokenQeBinding) => foreign_key.unwrap_or(self.attestation_key),
            _ => self.attestation_key,
        };
        let pck_key = match flaw {
            Some(QuoteFlaw::ForeignPck | QuoteFlaw::ForeignPckKey) => {
                &foreign_pck.unwrap_or(self.certificates).pck_key
            }
            _ => &self.certificates.pck_key,
        };
        let chain = match flaw {
            Some(QuoteFlaw::ForeignPck) => foreign_pck.unwrap_or(self.certificates).pck_chain(),
            _ => self.certificates.pck_chain(),
        };

        let mut quote = self.header();
        quote.extend(body(report));
        debug_assert_eq!(quote.len(), SIGNED);
        let signature = body_key.sign_raw(&quote);
        if flaw == Some(QuoteFlaw::TamperedBody) {
            // RTMR3 ends 64 bytes (the report data) before the end of the body.
            if let Some(byte) = quote.get_mut(SIGNED - 65) {
                *byte ^= 1;
            }
        }

        let qe_report = qe_report(&bound_key.raw_public(), flaw == Some(QuoteFlaw::DebugQe));
        let mut qe_data = qe_report.clone();
        qe_data.extend(pck_key.sign_raw(&qe_report));
        qe_data.extend(length16(&QE_AUTHENTICATION));
        qe_data.extend(QE_AUTHENTICATION);
        qe_data.extend(certification(5, chain.as_bytes()));

        let mut section = signature.to_vec();
        section.extend(self.attestation_key.raw_public());
        section.extend(certification(6, &qe_data));
        quote.extend(length32(&section));
        quote.extend(section);
        quote
    }

    fn header(&self) -> Vec<u8> {
        let mut header = Vec::with_capacity(48);
        header.extend(4u16.to_le_bytes()); // version
        header.extend(2u16.to_le_bytes()); // ECDSA-256 with P-256
        header.extend(0x81u32.to_le_bytes()); // TDX
        header.extend([0; 4]); // reserved in version 4
        header.extend(machine::QE_VENDOR);
        header.extend(self.machine.qe_id);
        header
    }
}

fn body(report: &TdReport) -> Vec<u8> {
    let mut body = Vec::with_capacity(584);
    body.extend(machine::TEE_TCB_SVN);
    body.extend(machine::mr_seam());
    body.extend([0; 48]); // MRSIGNERSEAM: zeros for Intel's module
    body.extend([0; 8]); // SEAMATTRIBUTES
    body.extend(report.td_attributes.to_le_bytes());
    body.extend(report.xfam.to_le_bytes());
    body.extend(report.mrtd);
    body.extend(report.mr_config_id);
    body.extend(report.mr_owner);
    body.extend(report.mr_owner_config);
    body.extend(report.rtmr.iter().flatten());
    body.extend(report.report_data);
    body
}

/// SGX REPORT body (Intel SDM 3D table 38-21) of the quoting enclave: report data is SHA-256(key ‖ authentication data).
fn qe_report(attestation_key: &[u8; 64], debug: bool) -> Vec<u8> {
    let mut attributes = machine::QE_ATTRIBUTES;
    if let (true, Some(flags)) = (debug, attributes.first_mut()) {
        *flags |= 0x02;
    }
    let mut report = Vec::with_capacity(384);
    report.extend(machine::CPU_SVN);
    report.extend([0; 4]); // MISCSELECT
    report.extend([0; 28]);
    report.extend(attributes);
    report.extend(machine::qe_enclave());
    report.extend([0; 32]);
    report.extend(machine::qe_signer());
    report.extend([0; 96]);
    report.extend(machine::QE_PRODUCT.to_le_bytes());
    report.extend(machine::QE_SVN.to_le_bytes());
    report.extend([0; 60]);
    report.extend(Sha256::new().chain_update(attestation_key).chain_update(QE_AUTHENTICATION).finalize());
    report.extend([0; 32]);
    debug_assert_eq!(report.len(), 384);
    report
}

/// Type, length, data.
fn certification(kind: u16, data: &[u8]) -> Vec<u8> {
    let mut out = kind.to_le_bytes().to_vec();
    out.extend(length32(data));
    out.extend_from_slice(data);
    out
}

// A quote is about 5 KB, so neither length can overflow.
fn length16(data: &[u8]) -> [u8; 2] {
    u16::try_from(data.len()).unwrap_or(u16::MAX).to_le_bytes()
}

fn length32(data: &[u8]) -> [u8; 4] {
    u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes()
}
