//! The development PKI's certificates and revocation lists.
//!
//! The shape is that of Intel's (root → PCK platform CA → PCK; root → TCB signing), as Intel's PCK certificate profile
//! 1.5 gives it, so that a real verifier needs no exception. Every subject begins with `SIMULATED`. Validity is fixed,
//! so a certificate is the same bytes each time it is made from the same seed.

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, CrlDistributionPoint,
    CustomExtension, DistinguishedName, DnType, IsCa, Issuer, KeyIdMethod, KeyUsagePurpose, RevocationReason,
    RevokedCertParams, SerialNumber,
};
use time::OffsetDateTime;

use crate::der;
use crate::keys::{Key, Seed};
use crate::machine::Machine;
use crate::platform::PlatformError;

/// 2025-01-01T00:00:00Z: before any image of this project was built.
const NOT_BEFORE: i64 = 1_735_689_600;
/// 2049-12-31T23:59:59Z, the end of Intel's own root; the certificates below it end with it.
const NOT_AFTER: i64 = 2_524_607_999;

/// RFC 6761 keeps `.invalid` from ever resolving: nobody is asked for a simulated CRL by accident.
const ROOT_CRL_URL: &str = "https://simulated.invalid/rootca.crl";
const PCK_CRL_URL: &str = "https://simulated.invalid/sgx/certification/v4/pckcrl?ca=platform&encoding=der";

/// All certificates of one machine and the keys behind them.
pub(crate) struct Certificates {
    pub(crate) root: Certificate,
    pub(crate) platform_ca: Certificate,
    pub(crate) tcb_signing: Certificate,
    pub(crate) pck: Certificate,
    pub(crate) tcb_key: Key,
    pub(crate) pck_key: Key,
    root_key: Key,
    platform_ca_key: Key,
    root_params: CertificateParams,
    platform_ca_params: CertificateParams,
    pck_serial: SerialNumber,
}

impl Certificates {
    pub(crate) fn new(seed: &Seed, machine: &Machine) -> Result<Self, PlatformError> {
        let root_key = seed.key("root")?;
        let platform_ca_key = seed.key("pck-platform-ca")?;
        let tcb_key = seed.key("tcb-signing")?;
        let pck_key = seed.key("pck")?;

        let root_params = authority(seed, "SIMULATED SGX Root CA", &root_key, 1)?;
        let platform_ca_params = authority(seed, "SIMULATED SGX PCK Platform CA", &platform_ca_key, 0)?;
        let tcb_params = leaf(seed, "SIMULATED SGX TCB Signing", &tcb_key, ROOT_CRL_URL)?;
        let mut pck_params = leaf(seed, "SIMULATED SGX PCK Certificate", &pck_key, PCK_CRL_URL)?;
        pck_params
            .custom_extensions
            .push(CustomExtension::from_oid_content(der::SGX_EXTENSION, der::sgx_extension(machine)));
        let pck_serial = serial(seed, "SIMULATED SGX PCK Certificate");

        let root_issuer = Issuer::from_params(&root_params, &root_key);
        let platform_issuer = Issuer::from_params(&platform_ca_params, &platform_ca_key);
        let root = root_params.self_signed(&root_key)?;
        let platform_ca = platform_ca_params.signed_by(&platform_ca_key, &root_issuer)?;
        let tcb_signing = tcb_params.signed_by(&tcb_key, &root_issuer)?;
        let pck = pck_params.signed_by(&pck_key, &platform_issuer)?;
        drop((root_issuer, platform_issuer));
        Ok(Self {
            root,
            platform_ca,
            tcb_signing,
            pck,
            tcb_key,
            pck_key,
            root_key,
            platform_ca_key,
            root_params,
            platform_ca_params,
            pck_serial,
        })
    }

    /// PCK, platform CA, root, as PEM: what a quote carries.
    pub(crate) fn pck_chain(&self) -> String {
        format!("{}{}{}", self.pck.pem(), self.platform_ca.pem(), self.root.pem())
    }

    /// Platform CA, root.
    pub(crate) fn platform_ca_chain(&self) -> String {
        format!("{}{}", self.platform_ca.pem(), self.root.pem())
    }

    /// TCB signing, root.
    pub(crate) fn tcb_chain(&self) -> String {
        format!("{}{}", self.tcb_signing.pem(), self.root.pem())
    }

    /// The root's revocation list: empty.
    pub(crate) fn root_crl(
        &self,
        from: OffsetDateTime,
        to: OffsetDateTime,
    ) -> Result<Vec<u8>, PlatformError> {
        crl(&self.root_params, &self.root_key, Vec::new(), from, to)
    }

    /// The platform CA's revocation list; it names the machine's PCK when `revoked`.
    pub(crate) fn pck_crl(
        &self,
        revoked: bool,
        from: OffsetDateTime,
        to: OffsetDateTime,
    ) -> Result<Vec<u8>, PlatformError> {
        let mut list = Vec::new();
        if revoked {
            list.push(RevokedCertParams {
                serial_number: self.pck_serial.clone(),
                revocation_time: from,
                reason_code: Some(RevocationReason::KeyCompromise),
                invalidity_date: None,
            });
        }
        crl(&self.platform_ca_params, &self.platform_ca_key, list, from, to)
    }
}

fn crl(
    issuer: &CertificateParams,
    key: &Key,
    revoked_certs: Vec<RevokedCertParams>,
    this_update: OffsetDateTime,
    next_update: OffsetDateTime,
) -> Result<Vec<u8>, PlatformError> {
    let list = CertificateRevocationListParams {
        this_update,
        next_update,
        crl_number: SerialNumber::from(1u64),
        issuing_distribution_point: None,
        revoked_certs,
        key_identifier_method: KeyIdMethod::PreSpecified(key.identifier()),
    };
    Ok(list.signed_by(&Issuer::from_params(issuer, key))?.der().to_vec())
}

fn authority(
    seed: &Seed,
    name: &str,
    key: &Key,
    path_length: u8,
) -> Result<CertificateParams, PlatformError> {
    let mut params = subject(seed, name, key, ROOT_CRL_URL)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn leaf(seed: &Seed, name: &str, key: &Key, crl_url: &str) -> Result<CertificateParams, PlatformError> {
    let mut params = subject(seed, name, key, crl_url)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::ContentCommitment];
    Ok(params)
}

fn subject(seed: &Seed, name: &str, key: &Key, crl_url: &str) -> Result<CertificateParams, PlatformError> {
    let mut params = CertificateParams::default();
    let mut dn = DistinguishedName::new();
    dn.push(DnType::CommonName, name);
    dn.push(DnType::OrganizationName, "Cofferdam SIMULATED platform");
    dn.push(DnType::OrganizationalUnitName, "development only, no hardware behind it");
    params.distinguished_name = dn;
    params.not_before = OffsetDateTime::from_unix_timestamp(NOT_BEFORE)?;
    params.not_after = OffsetDateTime::from_unix_timestamp(NOT_AFTER)?;
    params.serial_number = Some(serial(seed, name));
    params.key_identifier_method = KeyIdMethod::PreSpecified(key.identifier());
    params.use_authority_key_identifier_extension = true;
    params.crl_distribution_points = vec![CrlDistributionPoint { uris: vec![crl_url.to_owned()] }];
    Ok(params)
}

/// A positive 20-byte serial number (RFC 5280 §4.1.2.2).
fn serial(seed: &Seed, name: &str) -> SerialNumber {
    let mut bytes: [u8; 20] = seed.identifier(name);
    if let Some(first) = bytes.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    SerialNumber::from_slice(&bytes)
}
