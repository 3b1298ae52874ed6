//! The certificate that browsers accept, as several roles see it: what is claimed of it, and whether a chain is one for this key.
//!
//! `publish` orders it, `front` shows it, `evidence` claims its key and its account. None of them believes what another says of it
//! further than it can check.

use std::path::Path;

use cofferdam_attest::ratls;
use cofferdam_protocol::certificate::{CertificateClaim, CertificateStatus, MAX_BYTES};
use cofferdam_protocol::{Digest, HttpsUrl};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::front::untrusted_file;

/// Most certificates in a chain: its own, and those of a few authorities above.
const MAX_CERTIFICATES: usize = 8;

/// Seconds by which the clock may be behind the authority's.
const SKEW: u64 = 300;

/// What is claimed: what PID 1 decided, and the account's URL as soon as `publish` knows it from the authority. The file `status` is
/// that role's, which alone holds the account's key: one that has fallen could order certificates itself, so it gains nothing by lying here.
pub(crate) fn claim(decided: Option<CertificateClaim>, status: &Path) -> Option<CertificateClaim> {
    let mut claim = decided?;
    let said = untrusted_file::contents(status, MAX_BYTES as u64);
    let said = said.and_then(|bytes| CertificateStatus::parse(&bytes).ok()).map(|status| status.claim);
    claim.account = said
        .filter(|said| CertificateClaim { account: None, ..said.clone() } == claim)
        .and_then(|said| said.account)
        .filter(|account| of_authority(&claim.directory, account.as_str()));
    Some(claim)
}

/// Whether a URL is one of the authority that has this directory.
pub(crate) fn of_authority(directory: &HttpsUrl, url: &str) -> bool {
    url.strip_prefix(directory.origin()).is_some_and(|rest| rest.starts_with('/'))
}

/// Why a chain of certificates is not shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChainError {
    /// Not PEM.
    #[error("the certificates are not PEM")]
    Pem,
    /// Too few or too many.
    #[error("{0} certificates in a chain; there can be 1 to {MAX_CERTIFICATES}")]
    Count(usize),
    /// The first one does not parse.
    #[error("the certificate cannot be read")]
    Malformed(#[from] ratls::RatlsError),
    /// It is for another key.
    #[error("the certificate is for the key {0}, which is not the appliance's")]
    OtherKey(Digest),
    /// It is for other names.
    #[error("the certificate is for other names than were asked for")]
    OtherNames,
    /// It is not valid now.
    #[error("the certificate is not valid now")]
    Validity,
}

/// Certificates for browsers.
#[derive(Debug)]
pub(crate) struct Chain {
    /// The appliance's own first.
    pub(crate) certificates: Vec<CertificateDer<'static>>,
    /// Begin of its validity, seconds since the Unix epoch.
    pub(crate) not_before: u64,
    /// End of its validity.
    pub(crate) not_after: u64,
}

impl Chain {
    /// Reads a chain whose first certificate has to be for this key and exactly these names, and valid at `now`. Whether browsers accept
    /// who has signed it is theirs to know.
    ///
    /// # Errors
    ///
    /// [`ChainError`].
    pub(crate) fn read(pem: &[u8], key: Digest, names: &[String], now: u64) -> Result<Self, ChainError> {
        let certificates: Vec<_> =
            CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|_| ChainError::Pem)?;
        let own = certificates.first().filter(|_| certificates.len() <= MAX_CERTIFICATES);
        let own = own.ok_or(ChainError::Count(certificates.len()))?;
        let found = ratls::spki_sha256(own)?;
        if found != key {
            return Err(ChainError::OtherKey(found));
        }
        let sorted = |mut names: Vec<String>| {
            names.sort();
            names
        };
        if sorted(ratls::dns_names(own)?) != sorted(names.to_vec()) {
            return Err(ChainError::OtherNames);
        }
        let (not_before, not_after) = ratls::validity(own)?;
        // The host's clock may be behind the authority's, who need not date it back.
        if now.saturating_add(SKEW) < not_before || now >= not_after {
            return Err(ChainError::Validity);
        }
        Ok(Self { certificates, not_before, not_after })
    }

    /// When it is due for renewal, in seconds since the Unix epoch.
    pub(crate) fn renew_at(&self) -> u64 {
        ratls::renew_at(self.not_before, self.not_after.saturating_sub(self.not_before))
    }
}
