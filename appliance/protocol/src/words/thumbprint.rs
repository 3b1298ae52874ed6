//! Fingerprints of keys as JSON Web Keys have them.

use std::fmt;
use std::str::FromStr;

use super::base64;
use super::error::WordError;
use super::text::as_text;

as_text!(Thumbprint);

/// RFC 7638 thumbprint of a public key, as ACME writes it: SHA-256 in base64url without padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Thumbprint([u8; 32]);

impl From<[u8; 32]> for Thumbprint {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl FromStr for Thumbprint {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let bytes = base64::decode_url(text).and_then(|bytes| bytes.try_into().ok()).map(Self);
        bytes
            .filter(|read| read.to_string() == text)
            .ok_or_else(|| WordError::new("not a thumbprint: 43 characters of base64url"))
    }
}

impl fmt::Display for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base64::encode_url(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thumbprint_has_one_spelling() {
        // RFC 7638 §3.1.
        let text = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs";
        assert_eq!(text.parse::<Thumbprint>().unwrap().to_string(), text);
        let padded = format!("{text}=");
        for bad in ["", "AAAA", &padded, &text.replace('-', "+"), &text.replace("Xs", "Xt")] {
            assert!(bad.parse::<Thumbprint>().is_err(), "{bad}");
        }
    }
}
