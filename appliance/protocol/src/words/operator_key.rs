//! An operator's key: the public half as a declaration has it, and its fingerprint as OpenSSH prints it.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};
use ssh_key::public::{Ed25519PublicKey, KeyData};

use super::base64;
use super::error::WordError;
use super::text::as_text;

as_text!(Fingerprint);

/// Which key signed: `SHA256:` and the unpadded base64 of the key's SHA-256 in its wire form (RFC 8709 §4), as
/// `ssh-keygen -lf` prints it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    const PREFIX: &str = "SHA256:";

    /// The fingerprint of a raw Ed25519 public key (RFC 8032 §5.1.5).
    pub fn of(key: &[u8; 32]) -> Self {
        let wire = [&[0, 0, 0, 11][..], b"ssh-ed25519", &[0, 0, 0, 32], key].concat();
        Self(Sha256::digest(wire).into())
    }

    /// The SHA-256 itself.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Fingerprint {
    /// From the SHA-256 of a key.
    fn from(digest: [u8; 32]) -> Self {
        Self(digest)
    }
}

impl FromStr for Fingerprint {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        text.strip_prefix(Self::PREFIX)
            .and_then(base64::decode_unpadded)
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| WordError::new("not a fingerprint: it is not SHA256: and 43 characters of base64"))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Self::PREFIX, base64::encode_unpadded(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An operator's Ed25519 public key, read from the OpenSSH form (RFC 8709). In JSON it is its fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OperatorKey {
    public: [u8; 32],
    fingerprint: Fingerprint,
    comment: String,
}

impl OperatorKey {
    /// The raw public key (RFC 8032, 32 bytes).
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// What `ssh-keygen -lf` prints.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The text after the key, often who it belongs to; no more than a note.
    pub fn comment(&self) -> &str {
        &self.comment
    }
}

impl FromStr for OperatorKey {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        const MAX: usize = 1024;
        let hint = "paste one line of an ed25519 .pub file; `ssh-keygen -t ed25519` makes one";
        let wrong = |why: &str| WordError::new(format!("not an operator's key: {why}")).hint(hint);
        if text.contains("PRIVATE KEY") {
            return Err(wrong("this is a private key, and whoever has seen this file has it now"));
        }
        if text.len() > MAX || text.trim_end().contains('\n') {
            return Err(wrong("it is not one line of at most 1024 bytes"));
        }
        let kind = text.split(' ').next().unwrap_or_default();
        if kind != "ssh-ed25519" {
            return Err(match kind {
                "ssh-rsa" | "ssh-dss" => wrong("only ssh-ed25519 is accepted"),
                _ if kind.starts_with("ecdsa-") || kind.starts_with("sk-") => {
                    wrong("only ssh-ed25519 is accepted")
                }
                _ => wrong("it does not start with ssh-ed25519"),
            });
        }
        let key =
            ssh_key::PublicKey::from_openssh(text.trim_end()).map_err(|_| wrong("it does not decode"))?;
        let KeyData::Ed25519(Ed25519PublicKey(public)) = *key.key_data() else {
            return Err(wrong("only ssh-ed25519 is accepted"));
        };
        let comment = text
            .trim_end()
            .splitn(3, ' ')
            .nth(2)
            .unwrap_or_default()
            .chars()
            .filter(|c| !c.is_control())
            .collect();
        Ok(Self { public, fingerprint: Fingerprint::of(&public), comment })
    }
}

impl serde::Serialize for OperatorKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.fingerprint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key made for this test with `ssh-keygen -t ed25519`, and what `ssh-keygen -l` says about it.
    const LINE: &str = include_str!("../../tests/data/operator.pub");
    const PRINTED: &str = include_str!("../../tests/data/operator.fingerprint");

    #[test]
    fn the_fingerprint_is_opensshs() {
        let key: OperatorKey = LINE.parse().unwrap();
        let printed = PRINTED.split(' ').nth(1).unwrap();
        assert_eq!(key.fingerprint().to_string(), printed);
        assert_eq!(printed.parse::<Fingerprint>().unwrap(), key.fingerprint());
        assert_eq!(Fingerprint::of(key.public()), key.fingerprint());
    }

    #[test]
    fn a_fingerprint_has_one_spelling() {
        let printed = PRINTED.split(' ').nth(1).unwrap();
        let digest = printed.strip_prefix("SHA256:").unwrap();
        let mut shorter = printed.to_owned();
        shorter.pop();
        for wrong in [
            digest.to_owned(),
            format!("MD5:{digest}"),
            format!("{printed}="),
            printed.to_lowercase(),
            format!("{shorter}B"),
            shorter,
        ] {
            assert!(wrong.parse::<Fingerprint>().is_err(), "{wrong}");
        }
    }
}
