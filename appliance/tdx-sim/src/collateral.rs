//! Collateral: what a verifier fetches from a provisioning certification service to judge a quote.
//!
//! Shapes: Intel PCS API v4, "Get TDX TCB Info" (version 3) and "Get TDX QE Identity" (version 2), fields in the
//! service's own order because the signature covers the bytes. [`Collateral`] is the JSON shape that verifiers
//! exchange (binary fields in lower-case hex).

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::certificates::Certificates;
use crate::machine;
use crate::platform::PlatformError;

/// How long before "now" fresh collateral was issued, in seconds: a guest's clock may lag its host's.
const BACKDATED: i64 = 3600;
/// How long fresh collateral is valid, in seconds: 30 days, as Intel's.
const LIFETIME: i64 = 30 * 24 * 3600;
/// Intel counts its TCB recoveries; the number must only be one that a policy may set as a minimum.
const EVALUATION_NUMBER: u32 = 17;

/// How collateral deviates from that of a healthy machine, for tests of a verifier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CollateralOptions {
    /// The TCB info ended yesterday.
    pub expired_tcb_info: bool,
    /// The QE identity ended yesterday.
    pub expired_qe_identity: bool,
    /// The PCK revocation list ended yesterday.
    pub expired_pck_crl: bool,
    /// The root's revocation list ended yesterday.
    pub expired_root_crl: bool,
    /// The PCK revocation list names this machine's PCK certificate.
    pub revoked_pck: bool,
    /// The TCB info asks for more than this machine has: its level is `OutOfDate` with an advisory.
    pub out_of_date: bool,
    /// This machine's TCB level is `Revoked`.
    pub revoked_tcb: bool,
}

impl CollateralOptions {
    /// Everything that carries a date has expired.
    pub fn expired() -> Self {
        Self {
            expired_tcb_info: true,
            expired_qe_identity: true,
            expired_pck_crl: true,
            expired_root_crl: true,
            ..Self::default()
        }
    }
}

/// Collateral of one machine at one time. Serializes to the JSON that `--collateral` files hold.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Collateral {
    /// PEM: platform CA, root.
    pub pck_crl_issuer_chain: String,
    /// DER.
    #[serde(serialize_with = "hex::serialize")]
    pub root_ca_crl: Vec<u8>,
    /// DER.
    #[serde(serialize_with = "hex::serialize")]
    pub pck_crl: Vec<u8>,
    /// PEM: TCB signing, root.
    pub tcb_info_issuer_chain: String,
    /// The exact JSON that is signed.
    pub tcb_info: String,
    /// r ‖ s.
    #[serde(serialize_with = "hex::serialize")]
    pub tcb_info_signature: Vec<u8>,
    /// PEM: TCB signing, root.
    pub qe_identity_issuer_chain: String,
    /// The exact JSON that is signed.
    pub qe_identity: String,
    /// r ‖ s.
    #[serde(serialize_with = "hex::serialize")]
    pub qe_identity_signature: Vec<u8>,
}

impl Collateral {
    /// The JSON document.
    pub fn to_json(&self) -> Result<String, PlatformError> {
        Ok(serde_json::to_string(self)?)
    }
}

/// Validity of one part, in Unix seconds.
#[derive(Clone, Copy)]
struct Window {
    from: OffsetDateTime,
    to: OffsetDateTime,
}

impl Window {
    fn new(now: u64, expired: bool) -> Result<Self, PlatformError> {
        let now = i64::try_from(now).map_err(|_| PlatformError::Time)?;
        let day = 24 * 3600;
        let (from, to) = match expired {
            false => (now.saturating_sub(BACKDATED), now.saturating_add(LIFETIME)),
            true => (now.saturating_sub(LIFETIME + day), now.saturating_sub(day)),
        };
        Ok(Self {
            from: OffsetDateTime::from_unix_timestamp(from)?,
            to: OffsetDateTime::from_unix_timestamp(to)?,
        })
    }
}

pub(crate) fn collateral(
    certificates: &Certificates,
    now: u64,
    options: CollateralOptions,
) -> Result<Collateral, PlatformError> {
    let tcb_info = serde_json::to_string(&tcb_info(Window::new(now, options.expired_tcb_info)?, options)?)?;
    let qe_identity = serde_json::to_string(&qe_identity(Window::new(now, options.expired_qe_identity)?)?)?;
    let root_crl = Window::new(now, options.expired_root_crl)?;
    let pck_crl = Window::new(now, options.expired_pck_crl)?;
    Ok(Collateral {
        pck_crl_issuer_chain: certificates.platform_ca_chain(),
        root_ca_crl: certificates.root_crl(root_crl.from, root_crl.to)?,
        pck_crl: certificates.pck_crl(options.revoked_pck, pck_crl.from, pck_crl.to)?,
        tcb_info_issuer_chain: certificates.tcb_chain(),
        tcb_info_signature: certificates.tcb_key.sign_raw(tcb_info.as_bytes()).to_vec(),
        tcb_info,
        qe_identity_issuer_chain: certificates.tcb_chain(),
        qe_identity_signature: certificates.tcb_key.sign_raw(qe_identity.as_bytes()).to_vec(),
        qe_identity,
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TcbInfo {
    id: &'static str,
    version: u8,
    issue_date: String,
    next_update: String,
    fmspc: String,
    pce_id: String,
    tcb_type: u32,
    tcb_evaluation_data_number: u32,
    tdx_module: TdxModule,
    tdx_module_identities: Vec<TdxModuleIdentity>,
    tcb_levels: Vec<TcbLevel<PlatformTcb>>,
}

#[derive(Serialize, Clone)]
#[serde(rename_all = "camelCase")]
struct TdxModule {
    mrsigner: String,
    attributes: String,
    attributes_mask: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TdxModuleIdentity {
    id: String,
    #[serde(flatten)]
    module: TdxModule,
    tcb_levels: Vec<TcbLevel<EnclaveTcb>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TcbLevel<T> {
    tcb: T,
    tcb_date: &'static str,
    tcb_status: &'static str,
    #[serde(rename = "advisoryIDs", skip_serializing_if = "Vec::is_empty")]
    advisory_ids: Vec<&'static str>,
}

#[derive(Serialize)]
struct PlatformTcb {
    sgxtcbcomponents: Vec<Component>,
    pcesvn: u16,
    tdxtcbcomponents: Vec<Component>,
}

#[derive(Serialize)]
struct Component {
    svn: u8,
}

#[derive(Serialize)]
struct EnclaveTcb {
    isvsvn: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct QeIdentity {
    id: &'static str,
    version: u8,
    issue_date: String,
    next_update: String,
    tcb_evaluation_data_number: u32,
    miscselect: &'static str,
    miscselect_mask: &'static str,
    attributes: String,
    attributes_mask: String,
    mrsigner: String,
    isvprodid: u16,
    tcb_levels: Vec<TcbLevel<EnclaveTcb>>,
}

/// Dates of TCB levels: the newest is later than the one it superseded; nothing else depends on them.
const NEWEST_DATE: &str = "2026-02-11T00:00:00Z";
const CURRENT_DATE: &str = "2025-05-14T00:00:00Z";
const OLD_DATE: &str = "2024-03-13T00:00:00Z";
/// No such advisory exists.
const ADVISORY: &str = "SIMULATED-SA-00001";

fn tcb_info(window: Window, options: CollateralOptions) -> Result<TcbInfo, PlatformError> {
    // Signer all zeros means Intel's module, attributes must be zero: as in every TCB info there is.
    let module =
        TdxModule { mrsigner: "0".repeat(96), attributes: "0".repeat(16), attributes_mask: "F".repeat(16) };
    let [svn, major, ..] = machine::TEE_TCB_SVN;
    let identity = TdxModuleIdentity {
        id: format!("TDX_{major:02X}"),
        module: module.clone(),
        tcb_levels: vec![level(EnclaveTcb { isvsvn: u16::from(svn) }, CURRENT_DATE, "UpToDate")],
    };

    let machine_status = match options {
        CollateralOptions { revoked_tcb: true, .. } => "Revoked",
        CollateralOptions { out_of_date: true, .. } => "OutOfDate",
        _ => "UpToDate",
    };
    let mut tcb_levels = Vec::new();
    if machine_status != "UpToDate" {
        tcb_levels.push(level(platform_tcb(1, machine::PCE_SVN + 1), NEWEST_DATE, "UpToDate"));
    }
    tcb_levels.push(level(platform_tcb(0, machine::PCE_SVN), CURRENT_DATE, machine_status));
    tcb_levels.push(level(platform_tcb(0, 5), OLD_DATE, "OutOfDate"));

    Ok(TcbInfo {
        id: "TDX",
        version: 3,
        issue_date: window.from.format(&Rfc3339)?,
        next_update: window.to.format(&Rfc3339)?,
        fmspc: hex::encode_upper(machine::FMSPC),
        pce_id: hex::encode_upper(machine::PCE_ID),
        tcb_type: 0,
        tcb_evaluation_data_number: EVALUATION_NUMBER,
        tdx_module: module,
        tdx_module_identities: vec![identity],
        tcb_levels,
    })
}

/// The machine's own versions, with the first SGX component raised by `above`.
fn platform_tcb(above: u8, pcesvn: u16) -> PlatformTcb {
    let mut components: Vec<Component> = machine::CPU_SVN.iter().map(|svn| Component { svn: *svn }).collect();
    if let Some(first) = components.first_mut() {
        first.svn += above;
    }
    PlatformTcb {
        sgxtcbcomponents: components,
        pcesvn,
        tdxtcbcomponents: machine::TEE_TCB_SVN.iter().map(|svn| Component { svn: *svn }).collect(),
    }
}

fn qe_identity(window: Window) -> Result<QeIdentity, PlatformError> {
    Ok(QeIdentity {
        id: "TD_QE",
        version: 2,
        issue_date: window.from.format(&Rfc3339)?,
        next_update: window.to.format(&Rfc3339)?,
        tcb_evaluation_data_number: EVALUATION_NUMBER,
        miscselect: "00000000",
        miscselect_mask: "FFFFFFFF",
        attributes: hex::encode_upper(machine::QE_ATTRIBUTES_EXPECTED),
        attributes_mask: hex::encode_upper(machine::QE_ATTRIBUTES_MASK),
        mrsigner: hex::encode_upper(machine::qe_signer()),
        isvprodid: machine::QE_PRODUCT,
        tcb_levels: vec![level(EnclaveTcb { isvsvn: machine::QE_SVN }, CURRENT_DATE, "UpToDate")],
    })
}

fn level<T>(tcb: T, tcb_date: &'static str, tcb_status: &'static str) -> TcbLevel<T> {
    let advisory_ids = if tcb_status == "UpToDate" { Vec::new() } else { vec![ADVISORY] };
    TcbLevel { tcb, tcb_date, tcb_status, advisory_ids }
}
