//! The options of `coffer appraise`.

use std::path::PathBuf;

use clap::Args;
use cofferdam_attest::release::Tag;
use cofferdam_protocol::evidence::{ChannelBinding, Nonce};
use cofferdam_protocol::{Commit, Digest, Endpoint, Repository, Timestamp, base64};

use super::{Github, Trust};

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
    pub(crate) at: Option<Timestamp>,
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
    pub(crate) repository: Option<Repository>,
    /// The commit of the declaration
    #[arg(long, value_name = "SHA", conflicts_with = "quote")]
    pub(crate) commit: Option<Commit>,
    /// The declaration: its digest, or a file that holds it
    #[arg(long, value_name = "sha256:HEX|FILE", conflicts_with = "quote")]
    pub(crate) declaration: Option<String>,
    /// Where clients connect
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "quote")]
    pub(crate) endpoint: Option<Endpoint>,
    /// The key seen on the connection: SHA-256 of its SubjectPublicKeyInfo
    #[arg(long, value_name = "sha256:HEX", conflicts_with = "quote")]
    pub(crate) tls_key: Option<Digest>,
    /// The nonce that was sent: 16 to 64 bytes in base64 or base64url
    #[arg(long, value_name = "BASE64", value_parser = nonce, conflicts_with = "quote")]
    pub(crate) nonce: Option<Nonce>,
    /// The connection that it came over: RFC 9266 tls-exporter, 32 bytes in base64 or base64url
    #[arg(long, value_name = "BASE64", value_parser = binding, conflicts_with = "quote")]
    pub(crate) channel_binding: Option<ChannelBinding>,
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

fn nonce(text: &str) -> Result<Nonce, String> {
    bytes(text)
        .and_then(|bytes| Nonce::new(bytes).ok())
        .ok_or_else(|| "a nonce is 16 to 64 bytes in base64 or base64url".to_owned())
}

fn binding(text: &str) -> Result<ChannelBinding, String> {
    bytes(text)
        .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
        .map(ChannelBinding::from)
        .ok_or_else(|| "a channel binding is 32 bytes in base64 or base64url".to_owned())
}

fn tag(text: &str) -> Result<Tag, String> {
    Tag::parse(text).ok_or_else(|| "a tag is attest-<yyyymmddThhmmssZ>-<8 hexadecimal digits>".to_owned())
}

/// As the claims have it (RFC 4648 §4), or as the request for evidence has it (§5, without padding).
fn bytes(text: &str) -> Option<Vec<u8>> {
    base64::decode(text).or_else(|| base64::decode_url(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_has_its_shape() {
        let zeros = Nonce::new(vec![0; 16]).unwrap();
        assert_eq!(nonce("AAAAAAAAAAAAAAAAAAAAAA=="), Ok(zeros.clone()));
        assert_eq!(nonce("AAAAAAAAAAAAAAAAAAAAAA"), Ok(zeros));
        assert_eq!(
            nonce("_______________________________________w").map(|nonce| nonce.as_bytes().len()),
            Ok(29 + 1)
        );
        for bad in ["", "AAAA", "AAAAAAAAAAAAAAAAAAAAA", "not base64!!!!!!!!!!!!!!"] {
            assert!(nonce(bad).is_err(), "{bad}");
        }
        assert!(binding("AAAAAAAAAAAAAAAAAAAAAA==").is_err());
        assert!(binding("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").is_ok());
        assert!(tag("attest-20260102T030405Z-0a1b2c3d").is_ok() && tag("v1.0.0").is_err());
    }
}
