//! The options of `coffer appraise`.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use clap::Args;
use cofferdam_attest::claims::is_endpoint;
use cofferdam_attest::release::Tag;

use super::{Github, Trust, commit};

/// What to appraise.
#[derive(Debug, Args)]
pub(crate) struct Appraise {
    /// The evidence document
    #[arg(required_unless_present_any = ["quote", "show_policy"], conflicts_with = "quote")]
    pub(crate) file: Option<PathBuf>,
    /// A bare TDX quote
    #[arg(long, value_name = "FILE")]
    pub(crate) quote: Option<PathBuf>,
    /// Collateral, for a document that carries none or to use instead of its own
    #[arg(long, value_name = "FILE")]
    pub(crate) collateral: Option<PathBuf>,
    /// The time to appraise at (default: now)
    #[arg(long, value_name = "RFC3339")]
    pub(crate) at: Option<String>,
    /// What to print: every check by name, or an EAT Attestation Result (draft-ietf-rats-ear, JSON, not signed)
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "checks")]
    pub(crate) format: Format,
    /// Print the complete policy that applies, and appraise nothing
    #[arg(long, conflicts_with_all = ["file", "quote", "collateral", "at", "format"])]
    pub(crate) show_policy: bool,
    #[command(flatten)]
    pub(crate) expected: Expected,
    #[command(flatten)]
    pub(crate) trust: Trust,
    #[command(flatten)]
    pub(crate) github: Github,
}

/// What is known from elsewhere.
#[derive(Debug, Args)]
#[command(next_help_heading = "What the evidence must say")]
pub(crate) struct Expected {
    /// The repository that it speaks for
    #[arg(long, value_name = "OWNER/REPO", conflicts_with = "quote")]
    pub(crate) repository: Option<String>,
    /// The commit of the declaration
    #[arg(long, value_name = "SHA", value_parser = commit, conflicts_with = "quote")]
    pub(crate) commit: Option<String>,
    /// The declaration: its digest, or a file that holds it
    #[arg(long, value_name = "sha256:HEX|FILE", conflicts_with = "quote")]
    pub(crate) declaration: Option<String>,
    /// Where clients connect
    #[arg(long, value_name = "HOST:PORT", value_parser = endpoint, conflicts_with = "quote")]
    pub(crate) endpoint: Option<String>,
    /// The key seen on the connection: SHA-256 of its SubjectPublicKeyInfo
    #[arg(long, value_name = "sha256:HEX", value_parser = digest, conflicts_with = "quote")]
    pub(crate) tls_key: Option<String>,
    /// The nonce that was sent: 16 to 64 bytes in base64 or base64url
    #[arg(long, value_name = "BASE64", value_parser = nonce, conflicts_with = "quote")]
    pub(crate) nonce: Option<Nonce>,
    /// The connection that it came over: RFC 9266 tls-exporter, 32 bytes in base64 or base64url
    #[arg(long, value_name = "BASE64", value_parser = binding, conflicts_with = "quote")]
    pub(crate) channel_binding: Option<Binding>,
    /// The tag of the release that carried it
    #[arg(long, value_name = "TAG", value_parser = tag, conflicts_with = "quote")]
    pub(crate) tag: Option<Tag>,
}

/// What is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Every check by its name
    Checks,
    /// EAT Attestation Result
    Ear,
}

/// 16 to 64 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nonce(pub(crate) Vec<u8>);

/// 32 bytes, which clap shall not take for a list of values.
pub(crate) type Binding = [u8; 32];

fn endpoint(text: &str) -> Result<String, String> {
    if is_endpoint(text) { Ok(text.to_owned()) } else { Err("an endpoint is HOST:PORT".to_owned()) }
}

/// `sha256:` and 64 lower-case hex digits.
pub(crate) fn digest(text: &str) -> Result<String, String> {
    let hex = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64);
    match hex.is_some_and(|hex| hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))) {
        true => Ok(text.to_owned()),
        false => Err("a digest is sha256: and 64 lower-case hexadecimal digits".to_owned()),
    }
}

fn nonce(text: &str) -> Result<Nonce, String> {
    bytes(text)
        .filter(|bytes| (16..=64).contains(&bytes.len()))
        .map(Nonce)
        .ok_or_else(|| "a nonce is 16 to 64 bytes in base64 or base64url".to_owned())
}

fn binding(text: &str) -> Result<Binding, String> {
    bytes(text)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| "a channel binding is 32 bytes in base64 or base64url".to_owned())
}

fn tag(text: &str) -> Result<Tag, String> {
    Tag::parse(text).ok_or_else(|| "a tag is attest-<yyyymmddThhmmssZ>-<8 hexadecimal digits>".to_owned())
}

/// As the claims have it (RFC 4648 §4), or as the request for evidence has it (§5, without padding).
fn bytes(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).or_else(|_| URL_SAFE_NO_PAD.decode(text)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_has_its_shape() {
        assert_eq!(nonce("AAAAAAAAAAAAAAAAAAAAAA=="), Ok(Nonce(vec![0; 16])));
        assert_eq!(nonce("AAAAAAAAAAAAAAAAAAAAAA"), Ok(Nonce(vec![0; 16])));
        assert_eq!(nonce("_______________________________________w").map(|nonce| nonce.0.len()), Ok(29 + 1));
        for bad in ["", "AAAA", "AAAAAAAAAAAAAAAAAAAAA", "not base64!!!!!!!!!!!!!!"] {
            assert!(nonce(bad).is_err(), "{bad}");
        }
        assert!(binding("AAAAAAAAAAAAAAAAAAAAAA==").is_err());
        assert!(binding("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").is_ok());
        assert!(endpoint("shop.example:8443").is_ok() && endpoint("shop.example").is_err());
        assert!(tag("attest-20260102T030405Z-0a1b2c3d").is_ok() && tag("v1.0.0").is_err());
        let hex = "0123456789abcdef".repeat(4);
        assert!(digest(&format!("sha256:{hex}")).is_ok());
        assert!(digest(&hex).is_err() && digest(&format!("sha256:{}", hex.to_uppercase())).is_err());
    }
}
