//! The words: small values that are parsed once, each into a type that can hold nothing else.
//!
//! A parser here takes the text of one value and says in a [`WordError`] what is wrong with it and, where it knows, what to
//! write instead. Every length is bounded, because each of these texts ends in a claim, a file name, a URL or a log line.

mod access_token;
mod address;
pub mod base64;
mod branch;
mod chain;
mod commit;
mod digest;
mod error;
pub mod hex;
pub mod json;
mod operator_key;
pub mod read;
mod repository;
mod secret_ref;
mod secret_value;
mod signer_key;
mod text;
mod thumbprint;
mod timestamp;

pub use access_token::AccessToken;
pub use address::{Endpoint, HttpUrl, HttpsUrl, ImageReference, RegistryHost, parse_port};
pub use base64::{Base64Array, Base64Bytes};
pub use branch::Branch;
pub use chain::error_chain;
pub use commit::Commit;
pub use digest::Digest;
pub use error::WordError;
pub use operator_key::{Fingerprint, OperatorKey};
pub use repository::Repository;
pub use secret_ref::{SECRET_SCHEME, SecretRef};
pub use secret_value::SecretValue;
pub use signer_key::{SignerKey, SignerPublic};
pub use text::{is_deceptive, is_name, is_service_name, parse_decimal, shorten, visible};
pub use thumbprint::Thumbprint;
pub use timestamp::{Timestamp, TimestampMillis, unix_seconds};
