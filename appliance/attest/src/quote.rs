//! TDX quotes: their exact layout, and nothing about whether to believe them.
//!
//! Layouts: Intel TDX DCAP Quoting Library API, appendix A.3 (version 4) and A.4 (version 5), with ECDSA P-256
//! signature data that carries a QE report certification (type 6) around a PCK chain (type 5). Every length has to
//! agree with the bytes: a quote that ends early or goes on after its end is refused, so that there is exactly
//! one encoding of what was signed.

use crate::event_log::Register;

/// Largest accepted quote in bytes; real ones are about 5 KiB.
pub const MAX_BYTES: usize = 32 * 1024;

const HEADER_BYTES: usize = 48;
const BODY_10_BYTES: usize = 584;
const BODY_15_BYTES: usize = 648;
/// TDX 1.5 with what it knows about its service TDs and its creation; the first 648 bytes are those of 1.5.
const BODY_15_EX_BYTES: usize = 885;
const QE_REPORT_BYTES: usize = 384;
/// TEE type of TDX in the header.
const TEE_TDX: u32 = 0x81;
/// Attestation key type: ECDSA with P-256.
const KEY_ECDSA_P256: u16 = 2;
/// Certification data that holds the QE's report (and, inside, the PCK chain).
const CERT_QE_REPORT: u16 = 6;

/// What a quote says about its TD. Multi-byte numbers are little-endian in the quote and native here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    /// Format version: 4 or 5.
    pub version: u16,
    /// Whether the body is that of TDX 1.5 (with a second TCB SVN and a service TD) rather than 1.0.
    pub tdx_15: bool,
    /// Security versions of the TDX module and its loader.
    pub tee_tcb_svn: [u8; 16],
    /// Measurement of the TDX module.
    pub mr_seam: Register,
    /// Signer of the TDX module; zero for Intel's.
    pub mr_signer_seam: Register,
    /// Attributes of the TDX module.
    pub seam_attributes: u64,
    /// Attributes of the TD, see [`attributes`].
    pub td_attributes: u64,
    /// Extended features that the TD may use (the layout of XCR0 and IA32_XSS).
    pub xfam: u64,
    /// Initial contents of the TD.
    pub mrtd: Register,
    /// Software-defined identity of the TD's configuration.
    pub mr_config_id: Register,
    /// Software-defined identity of the TD's owner.
    pub mr_owner: Register,
    /// Software-defined configuration of the owner.
    pub mr_owner_config: Register,
    /// RTMR0-3.
    pub rtmr: [Register; 4],
    /// What the TD asked to be bound into the quote.
    pub report_data: [u8; 64],
    /// Measurement of the service TDs bound to this TD; absent in TDX 1.0, zero when there are none.
    pub mr_service_td: Option<Register>,
    /// Certification data inside the QE report certification: its type and its bytes (type 5: PEM, leaf first).
    pub pck_certification: (u16, Vec<u8>),
}

/// Bits of [`Quote::td_attributes`] (Intel TDX Module ABI specification 348551, table of TD_ATTRIBUTES).
pub mod attributes {
    /// The host can read and change the TD.
    pub const DEBUG: u64 = 1 << 0;
    /// The host can profile the TD (bits 4-6).
    pub const PROFILING: u64 = 0b111 << 4;
    /// Instruction-count based single-step defence.
    pub const ICSSD: u64 = 1 << 16;
    /// A hash of the extended service TD structure enters the report.
    pub const SERVTD_EXT: u64 = 1 << 17;
    /// Linear address space separation.
    pub const LASS: u64 = 1 << 27;
    /// A host that removes a page causes an exit instead of an exception inside the TD.
    pub const SEPT_VE_DISABLE: u64 = 1 << 28;
    /// The TD can be migrated by a migration TD.
    pub const MIGRATABLE: u64 = 1 << 29;
    /// Supervisor protection keys.
    pub const PKS: u64 = 1 << 30;
    /// Key Locker.
    pub const KL: u64 = 1 << 31;
    /// TDX Connect provisioning agent.
    pub const TPA: u64 = 1 << 62;
    /// Performance monitoring.
    pub const PERFMON: u64 = 1 << 63;

    /// Every bit that has a meaning here, with its name; all others must be zero.
    pub const NAMES: &[(u64, &str)] = &[
        (DEBUG, "DEBUG"),
        (PROFILING, "PROFILING"),
        (ICSSD, "ICSSD"),
        (SERVTD_EXT, "SERVTD_EXT"),
        (LASS, "LASS"),
        (SEPT_VE_DISABLE, "SEPT_VE_DISABLE"),
        (MIGRATABLE, "MIGRATABLE"),
        (PKS, "PKS"),
        (KL, "KL"),
        (TPA, "TPA"),
        (PERFMON, "PERFMON"),
    ];

    /// Names of the bits set in `value`, unnamed ones as `RESERVED(0x…)`.
    pub fn describe(value: u64) -> String {
        super::describe(value, NAMES)
    }
}

/// Bits of [`Quote::xfam`] (Intel SDM volume 1 §13.1, XCR0 and IA32_XSS).
pub mod xfam {
    /// Every feature with a name; AVX512 (5-7), CET (11-12) and AMX (17-18) are groups that go together.
    pub const NAMES: &[(u64, &str)] = &[
        (1 << 0, "X87"),
        (1 << 1, "SSE"),
        (1 << 2, "AVX"),
        (0b111 << 5, "AVX512"),
        (1 << 8, "PT"),
        (1 << 9, "PKRU"),
        (1 << 10, "PASID"),
        (0b11 << 11, "CET"),
        (1 << 14, "UINTR"),
        (1 << 15, "LBR"),
        (0b11 << 17, "AMX"),
        (1 << 19, "APX"),
    ];

    /// Names of the bits set in `value`, unnamed ones as `RESERVED(0x…)`.
    pub fn describe(value: u64) -> String {
        super::describe(value, NAMES)
    }
}

/// Names of the bits set in `value`, those without a name as `RESERVED(0x…)`.
fn describe(value: u64, table: &[(u64, &str)]) -> String {
    let mut names: Vec<String> =
        table.iter().filter(|(bit, _)| value & bit != 0).map(|(_, name)| (*name).to_owned()).collect();
    let reserved = table.iter().fold(value, |rest, (bit, _)| rest & !bit);
    if reserved != 0 {
        names.push(format!("RESERVED({reserved:#x})"));
    }
    if names.is_empty() { "none".to_owned() } else { names.join(" ") }
}

/// Parses a quote that is exactly as long as its own length fields say.
///
/// # Errors
/// [`QuoteError`] names what does not fit.
pub fn parse(bytes: &[u8]) -> Result<Quote, QuoteError> {
    let (quote, rest) = parse_prefix(bytes)?;
    match rest.len() {
        0 => Ok(quote),
        extra => Err(QuoteError::Trailing(extra)),
    }
}

/// The quote without the zero bytes that some guest interfaces deliver after it. Only for files saved from raw
/// hardware interfaces: evidence must carry the exact quote.
///
/// # Errors
/// [`QuoteError::Trailing`] when anything but zeros follows, else as [`parse`].
pub fn trim_padding(bytes: &[u8]) -> Result<&[u8], QuoteError> {
    let (_, rest) = parse_prefix(bytes)?;
    if rest.iter().any(|b| *b != 0) {
        return Err(QuoteError::Trailing(rest.len()));
    }
    bytes.get(..bytes.len() - rest.len()).ok_or(QuoteError::Truncated("quote"))
}

fn parse_prefix(bytes: &[u8]) -> Result<(Quote, &[u8]), QuoteError> {
    if bytes.len() > MAX_BYTES {
        return Err(QuoteError::TooLarge(bytes.len()));
    }
    let mut rest = Reader { bytes };
    let mut header = Reader { bytes: rest.take(HEADER_BYTES, "header")? };
    let version = header.u16("header")?;
    let key_type = header.u16("header")?;
    let tee = header.u32("header")?;
    if tee != TEE_TDX {
        return Err(QuoteError::NotTdx(tee));
    }
    if key_type != KEY_ECDSA_P256 {
        return Err(QuoteError::KeyType(key_type));
    }
    let body_bytes = match version {
        4 => BODY_10_BYTES,
        5 => read_body_descriptor(&mut rest)?,
        other => return Err(QuoteError::Version(other)),
    };
    let body = rest.take(body_bytes, "TD report")?;
    let signature_bytes = rest.u32("signature length")? as usize;
    let signature = rest.take(signature_bytes, "signature data")?;
    let pck_certification = parse_signature_data(signature)?;
    let quote = parse_body(version, body, pck_certification)?;
    Ok((quote, rest.bytes))
}

/// Version 5 says what its body is: type 2 (TDX 1.0), 3 (TDX 1.5) or 4 (1.5 extended), and how long.
fn read_body_descriptor(rest: &mut Reader<'_>) -> Result<usize, QuoteError> {
    let kind = rest.u16("body descriptor")?;
    let size = rest.u32("body descriptor")? as usize;
    match (kind, size) {
        (2, BODY_10_BYTES) | (3, BODY_15_BYTES) | (4, BODY_15_EX_BYTES) => Ok(size),
        _ => Err(QuoteError::Body { kind, size }),
    }
}

fn parse_body(version: u16, body: &[u8], pck_certification: (u16, Vec<u8>)) -> Result<Quote, QuoteError> {
    let tdx_15 = body.len() >= BODY_15_BYTES;
    let mut body = Reader { bytes: body };
    let name = "TD report";
    Ok(Quote {
        version,
        tdx_15,
        tee_tcb_svn: body.array(name)?,
        mr_seam: body.array(name)?,
        mr_signer_seam: body.array(name)?,
        seam_attributes: u64::from_le_bytes(body.array(name)?),
        td_attributes: u64::from_le_bytes(body.array(name)?),
        xfam: u64::from_le_bytes(body.array(name)?),
        mrtd: body.array(name)?,
        mr_config_id: body.array(name)?,
        mr_owner: body.array(name)?,
        mr_owner_config: body.array(name)?,
        rtmr: [body.array(name)?, body.array(name)?, body.array(name)?, body.array(name)?],
        report_data: body.array(name)?,
        mr_service_td: if tdx_15 {
            body.take(16, name)?; // TEE_TCB_SVN_2
            Some(body.array(name)?)
        } else {
            None
        },
        pck_certification,
    })
}

/// Walks the signature data so that each of its lengths fits its container exactly.
fn parse_signature_data(bytes: &[u8]) -> Result<(u16, Vec<u8>), QuoteError> {
    let mut rest = Reader { bytes };
    rest.take(64, "signature")?;
    rest.take(64, "attestation key")?;
    let kind = rest.u16("certification data")?;
    let size = rest.u32("certification data")? as usize;
    let mut inner = Reader { bytes: rest.take(size, "certification data")? };
    rest.end("signature data")?;
    if kind != CERT_QE_REPORT {
        return Err(QuoteError::Certification(kind));
    }
    inner.take(QE_REPORT_BYTES, "QE report")?;
    inner.take(64, "QE report signature")?;
    let auth = usize::from(inner.u16("QE authentication data")?);
    inner.take(auth, "QE authentication data")?;
    let pck_kind = inner.u16("PCK certification data")?;
    let pck_size = inner.u32("PCK certification data")? as usize;
    let pck = inner.take(pck_size, "PCK certification data")?.to_vec();
    inner.end("certification data")?;
    Ok((pck_kind, pck))
}

/// A cursor that cannot run past its end and names what it was reading when it would have.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], QuoteError> {
        let (head, tail) = self.bytes.split_at_checked(count).ok_or(QuoteError::Truncated(what))?;
        self.bytes = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], QuoteError> {
        self.take(N, what)?.try_into().map_err(|_| QuoteError::Truncated(what))
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, QuoteError> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, QuoteError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn end(&self, what: &'static str) -> Result<(), QuoteError> {
        match self.bytes.len() {
            0 => Ok(()),
            extra => Err(QuoteError::Excess { what, extra }),
        }
    }
}

/// Why bytes are not a TDX quote.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum QuoteError {
    /// Larger than [`MAX_BYTES`].
    #[error("quote of {0} bytes, at most {MAX_BYTES} allowed")]
    TooLarge(usize),
    /// The bytes end inside the named part.
    #[error("quote is truncated in its {0}")]
    Truncated(&'static str),
    /// Bytes follow the end of the quote.
    #[error("{0} bytes after the end of the quote")]
    Trailing(usize),
    /// A part is longer than what it holds.
    #[error("{extra} unexpected bytes at the end of the {what}")]
    Excess {
        /// The part.
        what: &'static str,
        /// How many bytes.
        extra: usize,
    },
    /// Neither version 4 nor 5.
    #[error("quote of version {0}, only 4 and 5 are known")]
    Version(u16),
    /// Not TDX.
    #[error("quote of TEE type {0:#x}, not TDX")]
    NotTdx(u32),
    /// Not ECDSA P-256.
    #[error("attestation key type {0}, only ECDSA P-256 is known")]
    KeyType(u16),
    /// Version 5 with an unknown body.
    #[error("TD report of type {kind} with {size} bytes is unknown")]
    Body {
        /// Type of the body.
        kind: u16,
        /// Its declared length in bytes.
        size: usize,
    },
    /// The certification data is not a QE report certification.
    #[error("certification data of type {0}, only QE report certification is known")]
    Certification(u16),
}
