//! Strict JSON: the same bounds and refusals for every document and message.
//!
//! serde refuses unknown fields (`deny_unknown_fields`) and duplicate keys of a struct; this module adds the
//! size bound before the parser runs and refuses lists where an object belongs (serde reads a struct from a list of its
//! fields' values).

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Why a JSON document was refused before its meaning was looked at, or could not be written.
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
    /// A value that cannot be written as JSON. Whoever would go on with empty bytes would sign or measure nothing.
    #[error("cannot be written as JSON")]
    Write(#[source] serde_json::Error),
}

/// Writes a value as JSON on one line.
///
/// # Errors
/// [`JsonError::Write`].
pub fn to_vec(value: &impl Serialize) -> Result<Vec<u8>, JsonError> {
    serde_json::to_vec(value).map_err(JsonError::Write)
}

/// Writes a value as a file for people: indented, with a final newline, the same bytes for the same value.
///
/// # Errors
/// [`JsonError::Write`].
pub fn to_vec_pretty(value: &impl Serialize) -> Result<Vec<u8>, JsonError> {
    let mut json = serde_json::to_vec_pretty(value).map_err(JsonError::Write)?;
    json.push(b'\n');
    Ok(json)
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

/// A map whose keys are unique: serde's own maps take duplicates and keep the last.
///
/// # Errors
/// A key that occurs twice, or anything but an object of such values.
pub fn unique_map<'de, D, K, V>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    D: serde::Deserializer<'de>,
    K: Deserialize<'de> + Ord,
    V: Deserialize<'de>,
{
    struct Unique<K, V>(std::marker::PhantomData<(K, V)>);
    impl<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>> serde::de::Visitor<'de> for Unique<K, V> {
        type Value = BTreeMap<K, V>;

        fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            out.write_str("an object with unique keys")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = BTreeMap::new();
            while let Some((key, value)) = map.next_entry::<K, V>()? {
                if found.insert(key, value).is_some() {
                    return Err(serde::de::Error::custom("duplicate key"));
                }
            }
            Ok(found)
        }
    }
    deserializer.deserialize_map(Unique(std::marker::PhantomData))
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

    #[derive(Debug, serde::Deserialize)]
    struct Mapped {
        #[serde(deserialize_with = "unique_map")]
        map: BTreeMap<String, u8>,
    }

    #[test]
    fn keys_of_a_map_are_unique() {
        let read = serde_json::from_str::<Mapped>;
        assert_eq!(read(r#"{"map":{"a":1,"b":2}}"#).unwrap().map.len(), 2);
        assert!(read(r#"{"map":{"a":1,"a":1}}"#).is_err());
    }

    #[test]
    fn what_cannot_be_written_is_an_error_and_not_empty() {
        let map = BTreeMap::from([((1, 2), 3)]);
        assert!(matches!(to_vec(&map), Err(JsonError::Write(_))));
        assert_eq!(to_vec(&[1, 2]).unwrap(), b"[1,2]");
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
