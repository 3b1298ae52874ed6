//! Lower-case hex, the only notation of digests, registers and commits in our formats.

/// Writes bytes as lower-case hex.
pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    hex::encode(bytes)
}

/// Whether `text` is exactly `digits` lower-case hex digits.
pub fn is_lower(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Reads exactly `N` bytes from `2 * N` lower-case digits.
pub fn decode_array<const N: usize>(text: &str) -> Option<[u8; N]> {
    if !is_lower(text, N.checked_mul(2)?) {
        return None;
    }
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

/// serde of `[u8; N]` as lower-case hex: `#[serde(with = "hex::array")]`.
pub mod array {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    /// Writes lower-case hex.
    ///
    /// # Errors
    /// The serializer's own.
    pub fn serialize<S: Serializer, const N: usize>(
        bytes: &[u8; N],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::encode(bytes))
    }

    /// Reads exactly `2 * N` lower-case digits.
    ///
    /// # Errors
    /// Anything else.
    pub fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
        deserializer: D,
    ) -> Result<[u8; N], D::Error> {
        let text = String::deserialize(deserializer)?;
        super::decode_array(&text)
            .ok_or_else(|| D::Error::custom(format!("not {} lower-case hex digits", N.saturating_mul(2))))
    }
}

/// serde of `Option<[u8; N]>` as [`array`], absent when `None` (use with `default` and `skip_serializing_if`).
pub mod array_option {
    use serde::{Deserializer, Serializer};

    /// Writes lower-case hex.
    ///
    /// # Errors
    /// The serializer's own.
    pub fn serialize<S: Serializer, const N: usize>(
        bytes: &Option<[u8; N]>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => super::array::serialize(bytes, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// Reads what is there; null is refused.
    ///
    /// # Errors
    /// Anything but `2 * N` lower-case digits.
    pub fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
        deserializer: D,
    ) -> Result<Option<[u8; N]>, D::Error> {
        super::array::deserialize(deserializer).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lower_case_of_the_right_length_is_read() {
        assert_eq!(decode_array("00ff"), Some([0, 255]));
        for wrong in ["", "0", "00f", "00FF", "00ff00", "00fg", " 0ff", "0é0"] {
            assert_eq!(decode_array::<2>(wrong), None, "{wrong:?}");
        }
    }
}
