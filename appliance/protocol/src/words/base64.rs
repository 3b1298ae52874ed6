//! Bytes in JSON and in headers: standard base64 with padding (RFC 4648 §4), in its one canonical spelling.
//!
//! The URL-safe alphabet (RFC 4648 §5) is for queries only.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{
    GeneralPurpose, GeneralPurposeConfig, STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD,
};

use super::error::WordError;

/// The URL-safe alphabet, padding as the writer likes.
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Standard base64 with padding.
pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

/// Decodes [`encode`]; anything but the canonical encoding is refused.
pub fn decode(text: impl AsRef<[u8]>) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// Length of [`encode`] for so many bytes; `None` when there is no such length.
pub fn encoded_len(bytes: usize) -> Option<usize> {
    base64::encoded_len(bytes, true)
}

/// Encodes into a buffer of exactly [`encoded_len`] bytes, so that no other copy is made; `None` when it is shorter.
pub fn encode_into(bytes: &[u8], buffer: &mut [u8]) -> Option<()> {
    STANDARD.encode_slice(bytes, buffer).ok().map(|_| ())
}

/// Standard base64 without padding, as OpenSSH writes fingerprints.
pub fn encode_unpadded(bytes: impl AsRef<[u8]>) -> String {
    STANDARD_NO_PAD.encode(bytes)
}

/// Decodes [`encode_unpadded`]; anything but the canonical encoding is refused.
pub fn decode_unpadded(text: &str) -> Option<Vec<u8>> {
    STANDARD_NO_PAD.decode(text).ok()
}

/// URL-safe base64 without padding, for a query.
pub fn encode_url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Decodes the URL-safe alphabet with or without padding.
pub fn decode_url(text: impl AsRef<[u8]>) -> Option<Vec<u8>> {
    URL_SAFE.decode(text).ok()
}

/// Exactly `N` bytes, in text as base64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Base64Array<const N: usize>([u8; N]);

impl<const N: usize> Base64Array<N> {
    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; N] {
        &self.0
    }
}

impl<const N: usize> From<[u8; N]> for Base64Array<N> {
    fn from(bytes: [u8; N]) -> Self {
        Self(bytes)
    }
}

impl<const N: usize> From<Base64Array<N>> for [u8; N] {
    fn from(bytes: Base64Array<N>) -> Self {
        bytes.0
    }
}

impl<const N: usize> FromStr for Base64Array<N> {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        decode(text)
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| WordError::new(format!("not {N} bytes as standard base64 with padding")))
    }
}

impl<const N: usize> fmt::Display for Base64Array<N> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&encode(self.0))
    }
}

impl<const N: usize> fmt::Debug for Base64Array<N> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// `MIN` to `MAX` bytes, in text as base64.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Base64Bytes<const MIN: usize, const MAX: usize>(Vec<u8>);

impl<const MIN: usize, const MAX: usize> Base64Bytes<MIN, MAX> {
    /// Takes over the bytes.
    ///
    /// # Errors
    /// There are fewer than `MIN` or more than `MAX`.
    pub fn new(bytes: Vec<u8>) -> Result<Self, WordError> {
        if (MIN..=MAX).contains(&bytes.len()) { Ok(Self(bytes)) } else { Err(Self::wrong()) }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Gives the bytes away.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn wrong() -> WordError {
        WordError::new(format!("not {MIN} to {MAX} bytes as standard base64 with padding"))
    }
}

impl<const MIN: usize, const MAX: usize> FromStr for Base64Bytes<MIN, MAX> {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        decode(text).ok_or_else(Self::wrong).and_then(Self::new)
    }
}

impl<const MIN: usize, const MAX: usize> fmt::Display for Base64Bytes<MIN, MAX> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&encode(&self.0))
    }
}

impl<const MIN: usize, const MAX: usize> fmt::Debug for Base64Bytes<MIN, MAX> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl<const N: usize> serde::Serialize for Base64Array<N> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, const N: usize> serde::Deserialize<'de> for Base64Array<N> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <String as serde::Deserialize>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl<const MIN: usize, const MAX: usize> serde::Serialize for Base64Bytes<MIN, MAX> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, const MIN: usize, const MAX: usize> serde::Deserialize<'de> for Base64Bytes<MIN, MAX> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <String as serde::Deserialize>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// serde of `Vec<u8>` whose bound is the document's: `#[serde(with = "base64::bytes")]`.
pub mod bytes {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    /// Writes base64.
    ///
    /// # Errors
    /// The serializer's own.
    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::encode(bytes))
    }

    /// Reads base64.
    ///
    /// # Errors
    /// Anything but the canonical encoding.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::decode(&text).ok_or_else(|| D::Error::custom("not standard base64 with padding"))
    }
}

/// serde of `Option<Vec<u8>>` as [`bytes`], absent when `None` (use with `default` and `skip_serializing_if`).
pub mod bytes_option {
    use serde::{Deserializer, Serializer};

    /// Writes base64.
    ///
    /// # Errors
    /// The serializer's own.
    pub fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => super::bytes::serialize(bytes, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// Reads what is there; null is refused.
    ///
    /// # Errors
    /// Anything but the canonical encoding.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
        super::bytes::deserialize(deserializer).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_one_spelling() {
        assert_eq!(decode("AQI="), Some(vec![1, 2]));
        for wrong in ["AQI", "AQI==", "AQJ=", "AQ I=", "AQI=\n", "_-8=", "="] {
            assert_eq!(decode(wrong), None, "{wrong:?}");
        }
        assert_eq!(decode_url("_-8"), Some(vec![255, 239]));
        assert_eq!(decode_url("_-8="), Some(vec![255, 239]));
    }

    #[test]
    fn lengths_are_part_of_the_type() {
        assert!("AQI=".parse::<Base64Array<2>>().is_ok() && "AQI=".parse::<Base64Array<3>>().is_err());
        assert!("AQI=".parse::<Base64Bytes<1, 2>>().is_ok() && "AQI=".parse::<Base64Bytes<3, 4>>().is_err());
        assert!(Base64Bytes::<1, 2>::new(vec![0; 3]).is_err());
        let json = serde_json::to_string(&Base64Array::from([1, 2])).unwrap();
        assert_eq!(json, "\"AQI=\"");
        assert_eq!(serde_json::from_str::<Base64Array<2>>(&json).unwrap(), Base64Array::from([1, 2]));
    }
}
