//! What the collateral of a quote depends on: which platform family, and which of Intel's authorities certified it.
//!
//! Intel SGX PCK certificate and CRL profile specification, §1.3: FMSPC is in the SGX extension of the PCK
//! certificate, which a quote carries as certification data of type 5. Nothing here verifies anything: what is
//! fetched for a lie verifies nothing.

use cofferdam_attest::quote::Quote;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_cert::Certificate;
use x509_cert::der::asn1::{AnyRef, ObjectIdentifier};
use x509_cert::der::{Decode as _, Reader as _, SliceReader};

/// Certification data that is a PEM chain, leaf first.
const PEM_CHAIN: u16 = 5;

/// The SGX extension, and FMSPC inside it.
const SGX_EXTENSION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1");
const FMSPC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1.4");

/// Why collateral for a quote cannot even be asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PckError {
    /// The quote's certification data is of another type.
    #[error("the quote carries certification data of type {0}, not a certificate chain")]
    Type(u16),
    /// No certificate in the chain, or one that does not parse.
    #[error("the quote's PCK certificate does not parse")]
    Certificate,
    /// The extension or the FMSPC in it is missing.
    #[error("the quote's PCK certificate has no FMSPC")]
    Fmspc,
    /// The issuer is neither the processor nor the platform authority.
    #[error("the quote's PCK certificate is from an unknown authority")]
    Issuer,
}

/// What a provisioning certification service is asked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pck {
    /// 12 upper-case hex digits.
    pub(crate) fmspc: String,
    /// `processor` or `platform`.
    pub(crate) ca: &'static str,
}

impl Pck {
    /// Reads both from the quote's PCK certificate.
    ///
    /// # Errors
    /// [`PckError`] says what is missing.
    pub(crate) fn of(quote: &Quote) -> Result<Self, PckError> {
        let (kind, data) = &quote.pck_certification;
        if *kind != PEM_CHAIN {
            return Err(PckError::Type(*kind));
        }
        let leaf =
            CertificateDer::pem_slice_iter(data).next().and_then(Result::ok).ok_or(PckError::Certificate)?;
        let leaf = Certificate::from_der(&leaf).map_err(|_| PckError::Certificate)?;
        let leaf = leaf.tbs_certificate();
        let extension = leaf
            .extensions()
            .and_then(|all| all.iter().find(|extension| extension.extn_id == SGX_EXTENSION))
            .ok_or(PckError::Fmspc)?;
        let fmspc = member(extension.extn_value.as_bytes(), FMSPC).ok_or(PckError::Fmspc)?;
        if fmspc.len() != 6 {
            return Err(PckError::Fmspc);
        }
        // The common name alone: printing a whole name pulls the names of all known attributes into the program.
        let issuer = leaf.issuer().common_name().ok().flatten().ok_or(PckError::Issuer)?;
        let ca =
            match (issuer.value().contains("PCK Processor CA"), issuer.value().contains("PCK Platform CA")) {
                (true, false) => "processor",
                (false, true) => "platform",
                _ => return Err(PckError::Issuer),
            };
        Ok(Self { fmspc: hex::encode_upper(fmspc), ca })
    }
}

/// The value under `wanted` in a `SEQUENCE OF SEQUENCE { OBJECT IDENTIFIER, ANY }`.
fn member(sequence: &[u8], wanted: ObjectIdentifier) -> Option<Vec<u8>> {
    let sequence = AnyRef::from_der(sequence).ok()?;
    let mut members = SliceReader::new(sequence.value()).ok()?;
    while !members.is_finished() {
        let entry: AnyRef<'_> = members.decode().ok()?;
        let mut entry = SliceReader::new(entry.value()).ok()?;
        let name: ObjectIdentifier = entry.decode().ok()?;
        let value: AnyRef<'_> = entry.decode().ok()?;
        if name == wanted {
            return Some(value.value().to_vec());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use cofferdam_attest::quote;

    use super::*;
    use crate::roles::testing;

    #[test]
    fn a_simulated_quote_names_its_platform() {
        let bytes = testing::quote(&testing::platform(), &[], &[0; 64]);
        let quote = quote::parse(&bytes).unwrap();
        let fmspc = hex::encode_upper(tdx_sim::FMSPC);
        assert_eq!(Pck::of(&quote).unwrap(), Pck { fmspc, ca: "platform" });
    }

    #[test]
    fn a_hardware_quote_names_its_platform() {
        let file = "../../../shared/fixtures/tdx-hardware/phala-sample/tdx_quote";
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let Ok(bytes) = std::fs::read(&file) else {
            println!("skipped: {} is not there", file.display());
            return;
        };
        let quote = quote::parse(quote::trim_padding(&bytes).unwrap()).unwrap();
        assert_eq!(Pck::of(&quote).unwrap(), Pck { fmspc: "B0C06F000000".to_owned(), ca: "platform" });
    }

    #[test]
    fn quotes_without_a_usable_chain_are_refused() {
        let bytes = testing::quote(&testing::platform(), &[], &[0; 64]);
        let good = quote::parse(&bytes).unwrap();
        let with = |kind, data: &[u8]| Quote { pck_certification: (kind, data.to_vec()), ..good.clone() };
        assert!(matches!(Pck::of(&with(3, b"")), Err(PckError::Type(3))));
        assert!(matches!(Pck::of(&with(5, b"")), Err(PckError::Certificate)));
        let junk = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(Pck::of(&with(5, junk)), Err(PckError::Certificate)));
        let root = testing::platform().root_pem();
        assert!(matches!(Pck::of(&with(5, root.as_bytes())), Err(PckError::Fmspc)));
    }
}
