//! Strict JSON and base64: the same bounds and refusals for every document of this crate.
//!
//! serde refuses unknown fields (`deny_unknown_fields`) and duplicate keys of a struct; this module adds the
//! size bound before the parser runs, refuses lists where an object belongs (serde reads a struct from a list of its
//! fields' values), and knows standard base64 with padding (RFC 4648 §4) as the only encoding of bytes.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

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
    /// A list of values where the format has an object with names.
    #[error("a list where an object belongs: {0}")]
    List(String),
}

/// Parses one JSON value of at most `limit` bytes; anything but JSON white space after it is refused, and so is a list
/// where `T` is an object, however deep.
///
/// # Errors
/// [`JsonError`] says which of these rules is broken.
pub fn from_json<T: DeserializeOwned + Serialize>(bytes: &[u8], limit: usize) -> Result<T, JsonError> {
    if bytes.len() > limit {
        return Err(JsonError::TooLarge { got: bytes.len(), limit });
    }
    let read: T = serde_json::from_slice(bytes).map_err(JsonError::Shape)?;
    // What was read is written again: where that gives an object, the text has to have one too.
    let written = serde_json::to_value(&read).map_err(JsonError::Shape)?;
    let text: Value = serde_json::from_slice(bytes).map_err(JsonError::Shape)?;
    match list_for_object(&text, &written) {
        Some(place) => Err(JsonError::List(place)),
        None => Ok(read),
    }
}

/// Where `text` has a list and `written` an object: a JSON Pointer (RFC 6901) without its escapes, `/` for the whole.
fn list_for_object(text: &Value, written: &Value) -> Option<String> {
    let below = |name: String, text: &Value, written: &Value| {
        list_for_object(text, written).map(|rest| format!("/{name}{}", rest.trim_end_matches('/')))
    };
    match (text, written) {
        (Value::Array(_), Value::Object(_)) => Some("/".to_owned()),
        (Value::Array(text), Value::Array(written)) => {
            text.iter().zip(written).enumerate().find_map(|(at, (a, b))| below(at.to_string(), a, b))
        }
        (Value::Object(text), Value::Object(written)) => text
            .iter()
            .find_map(|(name, value)| below(name.clone(), value, written.get(name).unwrap_or(&Value::Null))),
        _ => None,
    }
}

/// Standard base64 with padding (RFC 4648 §4), the only alphabet of our formats.
pub(crate) fn b64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Decodes [`b64`]; anything but the canonical encoding is refused.
pub fn unb64(text: &str) -> Option<Vec<u8>> {
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
pub fn is_lower_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether `text` is `sha256:` and 64 lower-case hex digits.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|digits| is_lower_hex(digits, 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        a: u8,
    }

    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        inner: Inner,
        list: Vec<Inner>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        maybe: Option<Inner>,
    }

    #[test]
    fn a_list_is_never_an_object_however_deep() {
        let read = |json: &str| from_json::<Outer>(json.as_bytes(), 100);
        assert!(read(r#"{"inner":{"a":1},"list":[{"a":2}],"maybe":null}"#).is_ok());
        for (json, place) in [
            (r#"[{"a":1},[],null]"#, "/"),
            (r#"{"inner":[1],"list":[]}"#, "/inner"),
            (r#"{"inner":{"a":1},"list":[{"a":2},[3]]}"#, "/list/1"),
            (r#"{"inner":{"a":1},"list":[],"maybe":[1]}"#, "/maybe"),
        ] {
            assert!(serde_json::from_str::<Outer>(json).is_ok(), "serde alone takes {json}");
            assert!(matches!(read(json), Err(JsonError::List(found)) if found == place), "{json}");
        }
    }
}
