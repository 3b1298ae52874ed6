//! What the simulated machine claims to be: its identifiers, its security versions, its quoting enclave.
//!
//! One table, so that the PCK certificate, the collateral and the quotes cannot disagree by accident. Nothing here
//! is secret and nothing imitates an existing processor: every value that is free spells that it is simulated.

use sha2::{Digest, Sha256, Sha384};

use crate::keys::Seed;

/// Family-Model-Stepping-Platform-CustomSKU. Six bytes of ASCII that no Intel processor has.
pub const FMSPC: [u8; 6] = *b"SIMTDX";
/// The only PCE there is.
pub(crate) const PCE_ID: [u8; 2] = [0, 0];

/// SGX TCB component versions of the machine, which are also its CPUSVN. Shape as of a current platform; the numbers
/// only have to agree with the TCB info below.
pub(crate) const CPU_SVN: [u8; 16] = [3, 3, 2, 2, 4, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0];
/// Version of the provisioning certification enclave.
pub(crate) const PCE_SVN: u16 = 11;
/// TEE_TCB_SVN: module version 5 of major version 1, loader 2. Byte 1 selects `TDX_01` among the module identities.
pub(crate) const TEE_TCB_SVN: [u8; 16] = [5, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Intel's vendor id of a quoting enclave: verifiers accept no other.
pub(crate) const QE_VENDOR: [u8; 16] =
    [0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07];
/// Product id of the TD quoting enclave.
pub(crate) const QE_PRODUCT: u16 = 2;
/// Security version of the TD quoting enclave.
pub(crate) const QE_SVN: u16 = 4;
/// SGX attributes of the enclave: INIT, MODE64BIT, PROVISION_KEY; XFRM 0xe7. DEBUG is clear.
pub(crate) const QE_ATTRIBUTES: [u8; 16] = [0x15, 0, 0, 0, 0, 0, 0, 0, 0xe7, 0, 0, 0, 0, 0, 0, 0];
/// What the QE identity asks of the attributes under [`QE_ATTRIBUTES_MASK`]: all but MODE64BIT.
pub(crate) const QE_ATTRIBUTES_EXPECTED: [u8; 16] = [0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// See [`QE_ATTRIBUTES_EXPECTED`].
pub(crate) const QE_ATTRIBUTES_MASK: [u8; 16] =
    [0xfb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];

/// Identifiers that differ from machine to machine.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) ppid: [u8; 16],
    pub(crate) platform_instance: [u8; 16],
    /// Header field "user data" of a quote: which quoting enclave made it.
    pub(crate) qe_id: [u8; 20],
}

impl Machine {
    pub(crate) fn new(seed: &Seed) -> Self {
        Self {
            ppid: seed.identifier("ppid"),
            platform_instance: seed.identifier("platform-instance"),
            qe_id: seed.identifier("qe-id"),
        }
    }
}

/// MRTD of every simulated TD: SHA-384 of a name, because no TDVF was loaded and so none could be measured.
/// The firmware that did run is in RTMR0 and RTMR1 instead.
pub fn mrtd() -> [u8; 48] {
    Sha384::digest(b"cofferdam/tdx-sim/mrtd/v1").into()
}

/// MRSEAM of the module that is not there.
pub(crate) fn mr_seam() -> [u8; 48] {
    Sha384::digest(b"cofferdam/tdx-sim/mrseam/v1").into()
}

/// MRENCLAVE of the quoting enclave that is not there.
pub(crate) fn qe_enclave() -> [u8; 32] {
    Sha256::digest(b"cofferdam/tdx-sim/qe-mrenclave/v1").into()
}

/// MRSIGNER of the quoting enclave that is not there.
pub(crate) fn qe_signer() -> [u8; 32] {
    Sha256::digest(b"cofferdam/tdx-sim/qe-mrsigner/v1").into()
}
