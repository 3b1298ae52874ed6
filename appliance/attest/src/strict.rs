//! Strict JSON, base64 and hex: the words of [`cofferdam_protocol`] under the names that this crate knew them by.

pub use cofferdam_protocol::base64::{
    bytes as base64_bytes, bytes_option as base64_option, decode as unb64, encode as b64,
};
pub use cofferdam_protocol::hex::{
    array as register_hex, array_option as register_option, decode_array as register,
    is_lower as is_lower_hex,
};
pub use cofferdam_protocol::json::{JsonError, from_json, unique_map};

/// Whether `text` is `sha256:` and 64 lower-case hex digits.
pub fn is_sha256(text: &str) -> bool {
    text.parse::<cofferdam_protocol::Digest>().is_ok()
}
