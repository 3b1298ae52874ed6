//! What collateral says about itself: when each of its parts holds, and for which platform it was made.
//!
//! Nothing here is believed before dcap-qvl has verified the signatures; it decides whether collateral that does not fit is
//! false (3) or only the wrong one to check this platform with at this time (6).

use cofferdam_protocol::Timestamp;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_cert::Certificate;
use x509_cert::crl::CertificateList;
use x509_cert::der::Decode as _;

use super::chain::{certificates, signed_by};
use crate::evidence::Collateral;

/// One part's validity, seconds since the Unix epoch.
struct Window {
    part: &'static str,
    from: u64,
    to: u64,
    /// The last second in which it holds: `to` itself, but not of a revocation list, which ends with its `nextUpdate`.
    last: u64,
}

/// The validity of every part of collateral.
pub(super) struct Windows {
    windows: Vec<Window>,
    /// Parts whose dates cannot be read.
    pub(super) unreadable: Vec<&'static str>,
}

/// TCB info and QE identity, as far as it concerns dates and platform (PCS API v4).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Signed {
    issue_date: String,
    next_update: String,
    fmspc: Option<String>,
}

impl Windows {
    pub(super) fn read(collateral: &Collateral) -> Self {
        let mut all = Self { windows: Vec::new(), unreadable: Vec::new() };
        all.add("TCBInfo", signed(&collateral.tcb_info).and_then(|signed| signed.window()));
        all.add("QE Identity", signed(&collateral.qe_identity).and_then(|signed| signed.window()));
        all.add_list("root's revocation list", list(&collateral.root_ca_crl));
        all.add_list("PCK's revocation list", list(&collateral.pck_crl));
        for (part, chain) in [
            ("certificate of the TCB info's signer", &collateral.tcb_info_issuer_chain),
            ("certificate of the QE identity's signer", &collateral.qe_identity_issuer_chain),
            ("certificate of the PCK's revocation list", &collateral.pck_crl_issuer_chain),
        ] {
            for der in certificates(chain.as_bytes()).unwrap_or_default() {
                all.add(part, certificate(&der));
            }
        }
        all
    }

    fn add(&mut self, part: &'static str, window: Option<(u64, u64)>) {
        match window {
            Some((from, to)) => self.windows.push(Window { part, from, to, last: to }),
            None => self.unreadable.push(part),
        }
    }

    fn add_list(&mut self, part: &'static str, window: Option<(u64, u64)>) {
        match window {
            Some((from, to)) => self.windows.push(Window { part, from, to, last: to.saturating_sub(1) }),
            None => self.unreadable.push(part),
        }
    }

    /// Parts that were issued after `now`, in words.
    pub(super) fn issued_after(&self, now: u64) -> Option<String> {
        let future = self.windows.iter().filter(|window| window.from > now);
        words(future.map(|window| (format!("{} issue date is in the future", window.part), window.from)))
    }

    /// Parts that have expired at `now`, in words.
    pub(super) fn expired(&self, now: u64) -> Option<String> {
        let expired = self.windows.iter().filter(|window| window.last < now);
        words(expired.map(|window| (format!("{} expired", window.part), window.to)))
    }

    /// The latest time before `now` at which every part and the certificates of `chain` held: a second before the first of
    /// them ended, because a revocation list's `nextUpdate` is itself no longer within it.
    pub(super) fn last_common(&self, chain: &[Vec<u8>], now: u64) -> Option<u64> {
        let of_chain: Option<Vec<(u64, u64)>> = chain.iter().map(|der| certificate(der)).collect();
        let windows = self.windows.iter().map(|window| (window.from, window.to)).chain(of_chain?);
        let (from, to) = windows
            .fold((0, now), |(from, to), window| (from.max(window.0), to.min(window.1.saturating_sub(1))));
        (from <= to).then_some(to)
    }
}

/// Each with its time, joined; `None` when there is none.
fn words(parts: impl Iterator<Item = (String, u64)>) -> Option<String> {
    let parts: Vec<String> = parts.map(|(text, at)| format!("{text} ({})", Timestamp::shown(at))).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// A certificate of the PCK chain that does not hold at `now`, in words.
pub(super) fn chain_outside_its_time(chain: &[Vec<u8>], now: u64) -> Option<String> {
    chain.iter().filter_map(|der| certificate(der)).find_map(|(from, to)| match now {
        now if now > to => Some(format!("a certificate of the PCK chain expired ({})", Timestamp::shown(to))),
        now if now < from => Some("a certificate of the PCK chain is not valid yet".to_owned()),
        _ => None,
    })
}

/// Whether the TCB info is for another FMSPC than `fmspc`; what it says.
pub(super) fn other_fmspc(collateral: &Collateral, fmspc: [u8; 6]) -> Option<String> {
    let said = signed(&collateral.tcb_info)?.fmspc?.to_ascii_lowercase();
    (said != hex::encode(fmspc)).then_some(said)
}

/// Whether the PCK's revocation list is by another CA than the issuer of the PCK certificate; its common name.
pub(super) fn other_issuer(collateral: &Collateral, leaf: &[u8]) -> Option<String> {
    let list: CertificateList = CertificateList::from_der(&collateral.pck_crl).ok()?;
    let leaf = Certificate::from_der(leaf).ok()?;
    let issuer = &list.tbs_cert_list.issuer;
    let name = || issuer.common_name().ok().flatten().map(|name| name.value().into_owned());
    (issuer != leaf.tbs_certificate().issuer()).then(|| name().unwrap_or_default())
}

/// `pck_crl_issuer_chain` has to be what it says: the CA that issued the PCK certificate and signed its revocation
/// list, then the root or nothing. What is wrong with it, in words.
pub(super) fn list_issuer_problem(
    collateral: &Collateral,
    chain: &[Vec<u8>],
    root: &[u8],
) -> Option<&'static str> {
    let Some(issuers) = certificates(collateral.pck_crl_issuer_chain.as_bytes()) else {
        return Some("pck_crl_issuer_chain is malformed");
    };
    let read = |der: &Vec<u8>| Certificate::from_der(der).ok();
    let (Some(ca), Some(issuer), Ok(root)) = (chain.get(1), issuers.first(), Certificate::from_der(root))
    else {
        return Some("pck_crl_issuer_chain names nobody");
    };
    let (Some(ca), Some(issuer)) = (read(ca), read(issuer)) else {
        return Some("pck_crl_issuer_chain is malformed");
    };
    let (ca, tbs, root) = (ca.tbs_certificate().clone(), issuer.tbs_certificate(), root.tbs_certificate());
    let same = |one: &x509_cert::TbsCertificate, other: &x509_cert::TbsCertificate| {
        one.subject() == other.subject() && one.subject_public_key_info() == other.subject_public_key_info()
    };
    if !same(tbs, &ca) {
        return Some("pck_crl_issuer_chain does not begin with the issuer of the PCK certificate");
    }
    if !signed_by(&issuer, root.subject_public_key_info()) {
        return Some("pck_crl_issuer_chain does not lead to the root");
    }
    match issuers.get(1).map(|der| Certificate::from_der(der)) {
        None => None,
        Some(Ok(last)) if issuers.len() == 2 && same(last.tbs_certificate(), root) => None,
        Some(_) => Some("pck_crl_issuer_chain holds more than the issuer and the root"),
    }
}

fn signed(text: &str) -> Option<Signed> {
    serde_json::from_str(text).ok()
}

impl Signed {
    fn window(&self) -> Option<(u64, u64)> {
        let unix = |text: &str| {
            let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
            u64::try_from(time.unix_timestamp()).ok()
        };
        Some((unix(&self.issue_date)?, unix(&self.next_update)?))
    }
}

/// A list without an end has none to be trusted after: dcap-qvl refuses it.
fn list(der: &[u8]) -> Option<(u64, u64)> {
    let list: CertificateList = CertificateList::from_der(der).ok()?;
    let list = list.tbs_cert_list;
    let to = list.next_update?.to_unix_duration().as_secs();
    Some((list.this_update.to_unix_duration().as_secs(), to))
}

fn certificate(der: &[u8]) -> Option<(u64, u64)> {
    let certificate = Certificate::from_der(der).ok()?;
    let validity = certificate.tbs_certificate().validity();
    Some((validity.not_before.to_unix_duration().as_secs(), validity.not_after.to_unix_duration().as_secs()))
}
