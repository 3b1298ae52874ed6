//! Strict JSON and base64: the same bounds and refusals for every document of this crate.
//!
//! serde refuses unknown fields (`deny_unknown_fields`) and duplicate keys of a struct; this module adds the
//! size bound before the parser runs and standard base64 with padding (RFC 4648 §4) as the only encoding of bytes.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;

/// Why a JSON document was refused before its meaning was looked at.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// The document is larger than its format allows (sizes in bytes).
    #[error("{got} bytes, at most {limit} allowed")]
    TooLarge {
        /// Size of the document.
        got: usize,
        /// Limit of the format.
        limit: usize,
    },
    /// Not JSON, or not of this shape: unknown field, duplicate key, wrong type, trailing bytes.
    #[error("not of the expected shape")]
    Shape(#[source] serde_json::Error),
}

/// Parses one JSON value of at most `limit` bytes; anything but JSON white space after it is refused.
pub(crate) fn from_json<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, JsonError> {
    if bytes.len() > limit {
        return Err(JsonError::TooLarge { got: bytes.len(), limit });
    }
    serde_json::from_slice(bytes).map_err(JsonError::Shape)
}

/// Standard base64 with padding (RFC 4648 §4), the only alphabet of our formats.
pub(crate) fn b64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Decodes [`b64`]; anything but the canonical encoding is refused.
pub(crate) fn unb64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// serde representation of bytes as [`b64`].
pub(crate) mod base64_bytes {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::b64(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::unb64(&text).ok_or_else(|| D::Error::custom("not standard base64 with padding"))
    }
}

/// serde representation of `Option<Vec<u8>>` as [`b64`], absent when `None` (use with `default` and `skip_serializing_if`).
pub(crate) mod base64_option {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(
        bytes: &Option<Vec<u8>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => serializer.serialize_str(&super::b64(bytes)),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Vec<u8>>, D::Error> {
        let text = String::deserialize(deserializer)?;
        match super::unb64(&text) {
            Some(bytes) => Ok(Some(bytes)),
            None => Err(D::Error::custom("not standard base64 with padding")),
        }
    }
}

/// serde representation of a 48-byte register as 96 lower-case hex digits, absent when `None`.
pub(crate) mod register_option {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(
        value: &Option<[u8; 48]>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.serialize_str(&hex::encode(value)),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<[u8; 48]>, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::register(&text).map(Some).ok_or_else(|| D::Error::custom("not 96 lower-case hex digits"))
    }
}

/// serde representation of a 48-byte register as 96 lower-case hex digits.
pub(crate) mod register_hex {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(value: &[u8; 48], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(value))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 48], D::Error> {
        let text = String::deserialize(deserializer)?;
        super::register(&text).ok_or_else(|| D::Error::custom("not 96 lower-case hex digits"))
    }
}

/// A map of strings whose keys are unique: serde's own maps take duplicates and keep the last.
pub(crate) fn unique_map<'de, D>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    struct Unique;
    impl<'de> serde::de::Visitor<'de> for Unique {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            out.write_str("an object of strings with unique keys")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = BTreeMap::new();
            while let Some((key, value)) = map.next_entry::<String, String>()? {
                if found.insert(key, value).is_some() {
                    return Err(serde::de::Error::custom("duplicate key"));
                }
            }
            Ok(found)
        }
    }
    deserializer.deserialize_map(Unique)
}

/// A 48-byte register from exactly 96 lower-case hex digits.
pub(crate) fn register(text: &str) -> Option<[u8; 48]> {
    if !is_lower_hex(text, 96) {
        return None;
    }
    let mut out = [0; 48];
    hex::decode_to_slice(text, &mut out).ok()?;
    Some(out)
}

/// Whether `text` is exactly `digits` lower-case hex digits.
pub(crate) fn is_lower_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether `text` is `sha256:` and 64 lower-case hex digits.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|digits| is_lower_hex(digits, 64))
}
