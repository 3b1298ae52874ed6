//! Collateral: what a verifier needs beside the quote, from Intel's provisioning certification service (PCS, API v4)
//! or a service that speaks the same.
//!
//! Four documents under the declared root: the PCK authority's revocation list, the root's revocation list, the TCB info of the
//! platform family and the QE identity of the TDX quoting enclave; their issuers' chains come in headers. Intel's
//! own service publishes the root's list elsewhere: `rootcacrl` is tried first, as caching services have
//! it, and on 404 the list is taken from where the root certificate says it is. Whether the signatures hold is the
//! verifier's business; here only what would make the collateral useless is checked: that it is about this
//! platform and in date.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use axum::http::HeaderMap;
use axum::http::header::DATE;
use cofferdam_attest::evidence::Collateral;
use cofferdam_github::Said;
use cofferdam_protocol::Timestamp;
use reqwest::{Client, StatusCode};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use serde::Deserialize;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_cert::Certificate;
use x509_cert::certificate::Rfc5280;
use x509_cert::crl::CertificateList;
use x509_cert::der::Decode as _;
use x509_cert::ext::pkix::CrlDistributionPoints;
use x509_cert::ext::pkix::name::{DistributionPointName, GeneralName};

use super::pck::Pck;
use super::web::{self, WebError};

/// Bound on each document in bytes. The whole evidence document is at most 256 KiB.
const MAX_DOCUMENT: usize = 128 * 1024;

/// Bound on an issuer chain in a header, decoded: two certificates are about 2 KiB.
const MAX_CHAIN: usize = 16 * 1024;

/// Object identifier of CRL distribution points (RFC 5280 §4.2.1.13).
const DISTRIBUTION_POINTS: &str = "2.5.29.31";

/// Why there is no collateral.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CollateralError {
    /// A document could not be fetched.
    #[error("cannot fetch {what}")]
    Fetch {
        /// Which one.
        what: &'static str,
        /// How that ended.
        #[source]
        source: WebError,
    },
    /// A document came without its issuers' chain.
    #[error("{what} came without a readable issuer chain")]
    Chain {
        /// Which one.
        what: &'static str,
    },
    /// A document is not of its documented shape.
    #[error("{what} is malformed")]
    Malformed {
        /// Which one.
        what: &'static str,
    },
    /// The root certificate does not say where its revocation list is.
    #[error("the root certificate names no https address of its revocation list")]
    NoRootList,
    /// The TCB info is for another platform or technology.
    #[error("the TCB info is not for this platform")]
    OtherPlatform,
    /// A document's own validity has ended.
    #[error("{what} is out of date")]
    OutOfDate {
        /// Which one.
        what: &'static str,
    },
}

/// Names of the documents in messages.
const PCK_LIST: &str = "the PCK revocation list";
const ROOT_LIST: &str = "the root revocation list";
const ROOT_LIST_PATH: &str = "sgx/certification/v4/rootcacrl";
const TCB_INFO: &str = "the TCB info";
const QE_IDENTITY: &str = "the QE identity";

/// A provisioning certification service.
#[derive(Debug)]
pub(crate) struct Pcs {
    root: String,
    client: Client,
    date: Mutex<Option<Said>>,
}

/// `{"tcbInfo":…,"signature":…}`: the signature is over the exact bytes of the first.
#[derive(Deserialize)]
struct SignedTcbInfo<'a> {
    #[serde(borrow, rename = "tcbInfo")]
    tcb_info: &'a RawValue,
    signature: String,
}

/// `{"enclaveIdentity":…,"signature":…}`.
#[derive(Deserialize)]
struct SignedIdentity<'a> {
    #[serde(borrow, rename = "enclaveIdentity")]
    identity: &'a RawValue,
    signature: String,
}

/// The part of TCB info that is looked at here.
#[derive(Deserialize)]
struct TcbInfo {
    id: String,
    fmspc: String,
    #[serde(rename = "nextUpdate")]
    next_update: String,
}

/// The part of a QE identity that is looked at here.
#[derive(Deserialize)]
struct Identity {
    id: String,
    #[serde(rename = "nextUpdate")]
    next_update: String,
}

impl Pcs {
    /// The service under `root`, the part of its addresses before `/sgx/certification/v4`.
    pub(crate) fn new(root: &str, client: Client) -> Self {
        Self { root: root.trim_end_matches('/').to_owned(), client, date: Mutex::new(None) }
    }

    /// Its host, to name it.
    pub(crate) fn host(&self) -> &str {
        let rest = self.root.split_once("://").map_or(self.root.as_str(), |(_, rest)| rest);
        rest.split(['/', ':']).next().unwrap_or_default()
    }

    /// What time the service has said last that it is.
    pub(crate) fn date(&self) -> Option<Said> {
        *self.date.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for the smallest of its documents, so that [`Pcs::date`] has what time it is there.
    ///
    /// # Errors
    /// The document cannot be had.
    pub(crate) async fn ask_time(&self) -> Result<(), CollateralError> {
        self.get(ROOT_LIST, ROOT_LIST_PATH).await.map(drop)
    }

    /// Fetches what a verifier of this platform's quotes needs.
    ///
    /// # Errors
    /// The first document that cannot be had or used.
    pub(crate) async fn fetch(&self, pck: &Pck, now: u64) -> Result<Collateral, CollateralError> {
        let (headers, list) =
            self.get(PCK_LIST, &format!("sgx/certification/v4/pckcrl?ca={}&encoding=der", pck.ca)).await?;
        let pck_crl_issuer_chain = chain(PCK_LIST, &headers, &["sgx-pck-crl-issuer-chain"])?;
        let pck_crl = list_der(&list).ok_or(CollateralError::Malformed { what: PCK_LIST })?;

        let (headers, body) =
            self.get(TCB_INFO, &format!("tdx/certification/v4/tcb?fmspc={}", pck.fmspc)).await?;
        let tcb_info_issuer_chain =
            chain(TCB_INFO, &headers, &["tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain"])?;
        let malformed = CollateralError::Malformed { what: TCB_INFO };
        let signed: SignedTcbInfo<'_> = serde_json::from_slice(&body).map_err(|_| malformed)?;
        let tcb_info = signed.tcb_info.get().to_owned();
        let tcb_info_signature = signature(TCB_INFO, &signed.signature)?;

        let (headers, body) = self.get(QE_IDENTITY, "tdx/certification/v4/qe/identity").await?;
        let qe_identity_issuer_chain = chain(QE_IDENTITY, &headers, &["sgx-enclave-identity-issuer-chain"])?;
        let malformed = CollateralError::Malformed { what: QE_IDENTITY };
        let signed: SignedIdentity<'_> = serde_json::from_slice(&body).map_err(|_| malformed)?;
        let qe_identity = signed.identity.get().to_owned();
        let qe_identity_signature = signature(QE_IDENTITY, &signed.signature)?;

        let root_ca_crl = self.root_list(&qe_identity_issuer_chain).await?;
        let collateral = Collateral {
            pck_crl_issuer_chain,
            root_ca_crl,
            pck_crl,
            tcb_info_issuer_chain,
            tcb_info,
            tcb_info_signature,
            qe_identity_issuer_chain,
            qe_identity,
            qe_identity_signature,
            pck_certificate_chain: None,
        };
        valid_until(&collateral, pck, now)?;
        Ok(collateral)
    }

    async fn get(&self, what: &'static str, path: &str) -> Result<(HeaderMap, Vec<u8>), CollateralError> {
        let asked = Instant::now();
        let answer = web::get(&self.client, &format!("{}/{path}", self.root), MAX_DOCUMENT).await;
        let (headers, body) = answer.map_err(|source| CollateralError::Fetch { what, source })?;
        let date = headers.get(DATE).and_then(|date| Timestamp::from_http_date(date.to_str().ok()?));
        if let Some(date) = date {
            let said = Said { date, asked, answered: Instant::now() };
            *self.date.lock().unwrap_or_else(PoisonError::into_inner) = Some(said);
        }
        Ok((headers, body))
    }

    /// The root's revocation list: from the service, else from where the root certificate says.
    async fn root_list(&self, chain: &str) -> Result<Vec<u8>, CollateralError> {
        let list = match self.get(ROOT_LIST, ROOT_LIST_PATH).await {
            Ok((_, list)) => list,
            Err(CollateralError::Fetch { source: WebError::Status { status, .. }, .. })
                if status == StatusCode::NOT_FOUND =>
            {
                let url = root_list_url(chain).ok_or(CollateralError::NoRootList)?;
                let fetched = web::get(&self.client, &url, MAX_DOCUMENT).await;
                fetched.map_err(|source| CollateralError::Fetch { what: ROOT_LIST, source })?.1
            }
            Err(error) => return Err(error),
        };
        list_der(&list).ok_or(CollateralError::Malformed { what: ROOT_LIST })
    }
}

/// Until when every part of the collateral is in date, in seconds since the Unix epoch.
///
/// # Errors
/// When a part is malformed, already out of date, or about another platform.
pub(crate) fn valid_until(collateral: &Collateral, pck: &Pck, now: u64) -> Result<u64, CollateralError> {
    let malformed = |what| CollateralError::Malformed { what };
    let tcb: TcbInfo = serde_json::from_str(&collateral.tcb_info).map_err(|_| malformed(TCB_INFO))?;
    let qe: Identity = serde_json::from_str(&collateral.qe_identity).map_err(|_| malformed(QE_IDENTITY))?;
    if tcb.id != "TDX" || !tcb.fmspc.eq_ignore_ascii_case(&pck.fmspc) || qe.id != "TD_QE" {
        return Err(CollateralError::OtherPlatform);
    }
    let parts = [
        (TCB_INFO, json_time(&tcb.next_update)),
        (QE_IDENTITY, json_time(&qe.next_update)),
        (PCK_LIST, list_time(&collateral.pck_crl)),
        (ROOT_LIST, list_time(&collateral.root_ca_crl)),
    ];
    let mut until = u64::MAX;
    for (what, time) in parts {
        let time = time.ok_or(malformed(what))?;
        if time <= now {
            return Err(CollateralError::OutOfDate { what });
        }
        until = until.min(time);
    }
    Ok(until)
}

fn json_time(text: &str) -> Option<u64> {
    u64::try_from(OffsetDateTime::parse(text, &Rfc3339).ok()?.unix_timestamp()).ok()
}

/// `nextUpdate` of a revocation list (RFC 5280 §5.1.2.5).
fn list_time(list: &[u8]) -> Option<u64> {
    let list = CertificateList::<Rfc5280>::from_der(list).ok()?;
    Some(list.tbs_cert_list.next_update?.to_unix_duration().as_secs())
}

/// A revocation list as DER. Intel's service sends DER when asked to; caching services also send hex digits or PEM.
fn list_der(bytes: &[u8]) -> Option<Vec<u8>> {
    let der = match bytes.first()? {
        // Hex digits of a list begin with the digit 3, a list itself with the byte 0x30, the digit 0.
        0x30 if CertificateList::<Rfc5280>::from_der(bytes).is_ok() => bytes.to_vec(),
        b'-' => CertificateRevocationListDer::from_pem_slice(bytes).ok()?.to_vec(),
        _ => hex::decode(bytes.trim_ascii()).ok()?,
    };
    CertificateList::<Rfc5280>::from_der(&der).ok()?;
    Some(der)
}

/// An issuer chain from the first of these headers that is there: URL-encoded PEM.
fn chain(what: &'static str, headers: &HeaderMap, names: &[&str]) -> Result<String, CollateralError> {
    let missing = CollateralError::Chain { what };
    let value = names.iter().find_map(|name| headers.get(*name)).ok_or(CollateralError::Chain { what })?;
    let decoded = percent_decode(value.as_bytes()).filter(|text| text.len() <= MAX_CHAIN).ok_or(missing)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(decoded.as_bytes()).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(decoded),
        _ => Err(CollateralError::Chain { what }),
    }
}

/// Undoes URL encoding. A plus sign is a plus sign: base64 has them, and Intel encodes spaces as `%20`.
fn percent_decode(text: &[u8]) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digits = [*rest.next()?, *rest.next()?];
                let mut value = [0];
                hex::decode_to_slice(digits, &mut value).ok()?;
                decoded.extend_from_slice(&value);
            }
            _ => decoded.push(*byte),
        }
    }
    String::from_utf8(decoded).ok()
}

/// A raw ECDSA P-256 signature in hex.
fn signature(what: &'static str, text: &str) -> Result<Vec<u8>, CollateralError> {
    hex::decode(text).ok().filter(|bytes| bytes.len() == 64).ok_or(CollateralError::Malformed { what })
}

/// Where the last certificate of the chain says that its revocation list is.
fn root_list_url(chain: &str) -> Option<String> {
    let root = CertificateDer::pem_slice_iter(chain.as_bytes()).filter_map(Result::ok).last()?;
    let root = Certificate::from_der(&root).ok()?;
    let extension = root
        .tbs_certificate()
        .extensions()?
        .iter()
        .find(|extension| extension.extn_id.to_string() == DISTRIBUTION_POINTS)?;
    let points = CrlDistributionPoints::from_der(extension.extn_value.as_bytes()).ok()?;
    points.0.iter().find_map(|point| match point.distribution_point.as_ref()? {
        DistributionPointName::FullName(names) => names.iter().find_map(|name| match name {
            GeneralName::UniformResourceIdentifier(uri) => {
                Some(uri.to_string()).filter(|uri| uri.starts_with("https://"))
            }
            _ => None,
        }),
        DistributionPointName::NameRelativeToCRLIssuer(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use tdx_sim::CollateralOptions;

    use super::*;
    use crate::roles::testing::platform;

    const NOW: u64 = 1_800_000_000;

    fn pck() -> Pck {
        Pck { fmspc: hex::encode_upper(tdx_sim::FMSPC), ca: "platform" }
    }

    fn collateral(options: CollateralOptions) -> Collateral {
        let made = platform().collateral(NOW, options).unwrap();
        Collateral::parse(made.to_json().unwrap().as_bytes()).unwrap()
    }

    #[test]
    fn collateral_is_good_until_its_first_part_is_not() {
        let good = collateral(CollateralOptions::default());
        let until = valid_until(&good, &pck(), NOW).unwrap();
        assert!(until > NOW);
        assert!(valid_until(&good, &pck(), until - 1).is_ok());
        assert!(matches!(valid_until(&good, &pck(), until), Err(CollateralError::OutOfDate { .. })));
    }

    #[test]
    fn every_part_out_of_date_is_named() {
        let cases = [
            (CollateralOptions { expired_tcb_info: true, ..Default::default() }, TCB_INFO),
            (CollateralOptions { expired_qe_identity: true, ..Default::default() }, QE_IDENTITY),
            (CollateralOptions { expired_pck_crl: true, ..Default::default() }, PCK_LIST),
            (CollateralOptions { expired_root_crl: true, ..Default::default() }, ROOT_LIST),
        ];
        for (options, part) in cases {
            match valid_until(&collateral(options), &pck(), NOW) {
                Err(CollateralError::OutOfDate { what }) => assert_eq!(what, part),
                other => panic!("{part}: {other:?}"),
            }
        }
    }

    #[test]
    fn collateral_of_another_platform_is_refused() {
        let good = collateral(CollateralOptions::default());
        let other = Pck { fmspc: "00906ED50000".to_owned(), ca: "platform" };
        assert!(matches!(valid_until(&good, &other, NOW), Err(CollateralError::OtherPlatform)));
        let sgx = Collateral { tcb_info: good.tcb_info.replace("\"TDX\"", "\"SGX\""), ..good };
        assert!(matches!(valid_until(&sgx, &pck(), NOW), Err(CollateralError::OtherPlatform)));
    }

    #[test]
    fn a_revocation_list_comes_in_three_encodings() {
        let der = collateral(CollateralOptions::default()).root_ca_crl;
        assert_eq!(list_der(&der), Some(der.clone()));
        assert_eq!(list_der(hex::encode(&der).as_bytes()), Some(der.clone()));
        assert_eq!(list_der(format!("{}\n", hex::encode_upper(&der)).as_bytes()), Some(der.clone()));
        use base64::Engine as _;
        let body = base64::engine::general_purpose::STANDARD.encode(&der);
        let pem = |label: &str| format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
        assert_eq!(list_der(pem("X509 CRL").as_bytes()), Some(der.clone()));
        assert_eq!(list_der(pem("CERTIFICATE").as_bytes()), None);
        for bad in [&b""[..], b"0", b"<html>", b"3030", &der[..der.len() - 1], &[&der[..], &[0]].concat()] {
            assert_eq!(list_der(bad), None);
        }
    }

    #[test]
    fn a_chain_is_url_encoded_pem_with_its_plus_signs() {
        let pem = platform().root_pem();
        let encoded: String = pem
            .bytes()
            .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
            .collect();
        let mut headers = HeaderMap::new();
        headers.insert("tcb-info-issuer-chain", encoded.parse().unwrap());
        assert_eq!(chain(TCB_INFO, &headers, &["x", "tcb-info-issuer-chain"]).unwrap(), pem);
        assert_eq!(percent_decode(b"a+b%2Bc%20").as_deref(), Some("a+b+c "));
        for bad in ["", "%", "%zz", "%ff", "hello"] {
            headers.insert("tcb-info-issuer-chain", bad.parse().unwrap());
            assert!(chain(TCB_INFO, &headers, &["tcb-info-issuer-chain"]).is_err(), "{bad}");
        }
        assert!(chain(TCB_INFO, &HeaderMap::new(), &["tcb-info-issuer-chain"]).is_err());
    }

    #[test]
    fn intels_root_says_where_its_revocation_list_is() {
        let pem = include_str!("../../../../../policy/intel-sgx-root-ca.pem");
        let url = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der";
        assert_eq!(root_list_url(pem).as_deref(), Some(url));
        assert_eq!(root_list_url("no certificate"), None);
    }
}
