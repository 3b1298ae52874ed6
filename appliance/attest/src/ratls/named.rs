//! What the certificate that browsers accept takes beside an authority: the request for it, the answer to a challenge about a name, and
//! the names that one is for.

use aws_lc_rs::signature::KeyPair as _;
use cofferdam_protocol::{Thumbprint, base64};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName};
use sha2::{Digest as _, Sha256};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use zeroize::Zeroizing;

use super::make::Key;
use super::{RatlsError, generate_key};

/// `subjectAltName`.
const NAMES_OID: &str = "2.5.29.17";

/// A request (PKCS #10, DER) for a certificate of a P-256 key in PKCS#8 DER, for these DNS names and with nothing else in it.
///
/// # Errors
/// [`RatlsError`] for an unusable key or name.
pub fn request(key_pkcs8: &[u8], names: &[String]) -> Result<Vec<u8>, RatlsError> {
    let key = Key::load(key_pkcs8)?;
    let mut params = CertificateParams::new(names.to_vec()).map_err(RatlsError::Certificate)?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(&key).map_err(RatlsError::Certificate)?.der().to_vec())
}

/// The certificate (DER) that answers a challenge about `name` over TLS (RFC 8737 §3), and its key in PKCS#8 DER, which is its alone.
///
/// # Errors
/// [`RatlsError`] for an unusable name.
pub fn answer(name: &str, authorization: &[u8; 32]) -> Result<(Vec<u8>, Zeroizing<Vec<u8>>), RatlsError> {
    let pkcs8 = generate_key()?;
    let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(RatlsError::Certificate)?;
    params.distinguished_name = DistinguishedName::new();
    // rcgen draws one with a crypto provider only.
    params.serial_number = Some(rcgen::SerialNumber::from(1_u64));
    params.custom_extensions.push(CustomExtension::new_acme_identifier(authorization));
    let certificate = params.self_signed(&Key::load(&pkcs8)?).map_err(RatlsError::Certificate)?;
    Ok((certificate.der().to_vec(), pkcs8))
}

/// The RFC 7638 thumbprint of a P-256 key in PKCS#8 DER.
///
/// # Errors
/// [`RatlsError::Key`] when it is not such a key.
pub fn thumbprint(key_pkcs8: &[u8]) -> Result<Thumbprint, RatlsError> {
    Ok(<[u8; 32]>::from(Sha256::digest(jwk(key_pkcs8)?)).into())
}

/// The public half of a P-256 key in PKCS#8 DER as a JSON Web Key (RFC 7518 §6.2.1), in the spelling that its thumbprint is made of.
///
/// # Errors
/// [`RatlsError::Key`] when it is not such a key.
pub fn jwk(key_pkcs8: &[u8]) -> Result<String, RatlsError> {
    let key = Key::load(key_pkcs8)?;
    // Uncompressed: 4, then both coordinates.
    let point = key.pair.public_key().as_ref().get(1..).unwrap_or_default();
    let (x, y) = point.split_at_checked(32).ok_or(RatlsError::Key)?;
    let (x, y) = (base64::encode_url(x), base64::encode_url(y));
    Ok(format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#))
}

/// The DNS names that a certificate (DER) is for, in lower case.
///
/// # Errors
/// [`RatlsError::Malformed`] when it is not a certificate, or for something that is not a DNS name.
pub fn dns_names(der: &[u8]) -> Result<Vec<String>, RatlsError> {
    let certificate = Certificate::from_der(der).map_err(|_| RatlsError::Malformed)?;
    let extensions = certificate.tbs_certificate().extensions().map(Vec::as_slice).unwrap_or_default();
    let mut found = extensions.iter().filter(|extension| extension.extn_id.to_string() == NAMES_OID);
    let (Some(extension), None) = (found.next(), found.next()) else { return Err(RatlsError::Malformed) };
    let names =
        SubjectAltName::from_der(extension.extn_value.as_bytes()).map_err(|_| RatlsError::Malformed)?;
    let name = |name: &GeneralName| match name {
        GeneralName::DnsName(name) => Ok(name.as_str().to_ascii_lowercase()),
        _ => Err(RatlsError::Malformed),
    };
    names.0.iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::super::spki_sha256;
    use super::*;

    #[test]
    fn an_answer_is_for_its_name_and_has_the_critical_extension() {
        let (der, key) = answer("shop.example", &[7; 32]).unwrap();
        assert_eq!(dns_names(&der).unwrap(), ["shop.example"]);
        assert_eq!(spki_sha256(&der).unwrap(), super::super::key_sha256(&key).unwrap());
        let parsed = Certificate::from_der(&der).unwrap();
        let extensions = parsed.tbs_certificate().extensions().unwrap();
        let found = extensions.iter().find(|e| e.extn_id.to_string() == "1.3.6.1.5.5.7.1.31").unwrap();
        assert!(found.critical);
        assert_eq!(found.extn_value.as_bytes(), [[4, 32].as_slice(), &[7; 32]].concat());
        assert_ne!(answer("shop.example", &[7; 32]).unwrap().1, key, "a key of its own");
        assert!(dns_names(b"junk").is_err());
    }

    #[test]
    fn a_request_names_the_key_and_the_names() {
        use x509_cert::der::Encode as _;
        let key = generate_key().unwrap();
        let der = request(&key, &["a.example".to_owned(), "b.example".to_owned()]).unwrap();
        let read = x509_cert::request::CertReq::from_der(&der).unwrap();
        let spki = read.info.public_key.to_der().unwrap();
        assert_eq!(cofferdam_protocol::Digest::of(&spki), super::super::key_sha256(&key).unwrap());
        for name in [b"a.example", b"b.example"] {
            assert!(der.windows(name.len()).any(|part| part == name));
        }
    }

    #[test]
    fn a_thumbprint_is_that_of_the_public_key() {
        let key = generate_key().unwrap();
        assert_eq!(jwk(&key).unwrap().len(), 43 + 43 + 40);
        assert_eq!(thumbprint(&key).unwrap(), thumbprint(&key).unwrap());
        assert_ne!(thumbprint(&key).unwrap(), thumbprint(&generate_key().unwrap()).unwrap());
        assert!(thumbprint(b"no key").is_err());
    }
}
