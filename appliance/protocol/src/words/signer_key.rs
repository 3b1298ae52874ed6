//! A signer's key: whose commits of the repository count, as a declaration has it.

use std::fmt;
use std::str::FromStr;

use ssh_key::HashAlg;
use ssh_key::public::{EcdsaPublicKey, KeyData};

use super::error::WordError;
use super::operator_key::Fingerprint;
use super::text::{as_text, is_deceptive};

as_text!(SignerKey);

/// Bound on the line in bytes.
const MAX_LINE: usize = 1024;

/// Bound on the name in bytes: it stands in statuses and on terminals.
const MAX_NAME: usize = 64;

/// A public key that commits are signed with, read from the OpenSSH form. In JSON it is that line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignerKey {
    public: SignerPublic,
    fingerprint: Fingerprint,
    line: String,
    name: String,
}

/// The key itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignerPublic {
    /// RFC 8032, 32 bytes.
    Ed25519([u8; 32]),
    /// A point of NIST P-256, uncompressed (SEC 1 §2.3.3).
    EcdsaP256([u8; 65]),
}

impl SignerKey {
    /// The key itself.
    pub fn public(&self) -> &SignerPublic {
        &self.public
    }

    /// What `ssh-keygen -lf` prints.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The text after the key, or its fingerprint where there is none.
    pub fn name(&self) -> String {
        if self.name.is_empty() { self.fingerprint.to_string() } else { self.name.clone() }
    }
}

impl FromStr for SignerKey {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let hint = "paste one line of an ed25519 or ecdsa .pub file: what `git config user.signingKey` names";
        let wrong = |why: &str| WordError::new(format!("not a signer's key: {why}")).hint(hint);
        if text.contains("PRIVATE KEY") {
            return Err(wrong("this is a private key, and whoever has seen this file has it now"));
        }
        let text = text.trim_end();
        if text.len() > MAX_LINE || text.contains('\n') {
            return Err(wrong("it is not one line of at most 1024 bytes"));
        }
        match text.split(' ').next().unwrap_or_default() {
            "ssh-ed25519" | "ecdsa-sha2-nistp256" => {}
            "ssh-rsa" | "ssh-dss" | "ecdsa-sha2-nistp384" | "ecdsa-sha2-nistp521" => {
                return Err(wrong("only ssh-ed25519 and ecdsa-sha2-nistp256 are accepted"));
            }
            kind if kind.starts_with("sk-") => {
                return Err(wrong("keys of security keys (sk-…) are not accepted yet"));
            }
            _ => return Err(wrong("it does not start with ssh-ed25519 or ecdsa-sha2-nistp256")),
        }
        let key = ssh_key::PublicKey::from_openssh(text).map_err(|_| wrong("it does not decode"))?;
        let public = match key.key_data() {
            KeyData::Ed25519(key) => SignerPublic::Ed25519(key.0),
            KeyData::Ecdsa(EcdsaPublicKey::NistP256(point)) => {
                let point = point.as_bytes().try_into().map_err(|_| wrong("its point is compressed"))?;
                SignerPublic::EcdsaP256(point)
            }
            _ => return Err(wrong("it is not of the kind that it says")),
        };
        let name = text.splitn(3, ' ').nth(2).unwrap_or_default();
        if name.len() > MAX_NAME || name.chars().any(|c| c.is_control() || is_deceptive(c)) {
            return Err(wrong("the name after the key is more than 64 bytes, or not visible"));
        }
        let digest = key.fingerprint(HashAlg::Sha256).sha256().ok_or_else(|| wrong("it does not decode"))?;
        Ok(Self { public, fingerprint: digest.into(), line: text.to_owned(), name: name.to_owned() })
    }
}

impl fmt::Display for SignerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made for this test with `ssh-keygen -t ecdsa -b 256`, and what `ssh-keygen -l` says about it.
    const ECDSA: &str = include_str!("../../tests/data/signer-ecdsa.pub");
    const ECDSA_PRINTED: &str = include_str!("../../tests/data/signer-ecdsa.fingerprint");
    const ED25519: &str = include_str!("../../tests/data/operator.pub");
    const ED25519_PRINTED: &str = include_str!("../../tests/data/operator.fingerprint");

    #[test]
    fn both_kinds_of_keys_have_opensshs_fingerprint_and_are_read_as_they_are_written() {
        for (line, printed) in [(ECDSA, ECDSA_PRINTED), (ED25519, ED25519_PRINTED)] {
            let key: SignerKey = line.parse().unwrap();
            assert_eq!(Some(key.fingerprint().to_string().as_str()), printed.split(' ').nth(1));
            assert_eq!(key.name(), line.trim().splitn(3, ' ').nth(2).unwrap());
            assert_eq!(key.to_string().parse::<SignerKey>().unwrap(), key);
            let nameless: Vec<&str> = line.splitn(3, ' ').take(2).collect();
            let nameless: SignerKey = nameless.join(" ").parse().unwrap();
            assert_eq!(nameless.name(), key.fingerprint().to_string());
        }
    }

    #[test]
    fn what_is_not_one_plain_key_is_refused() {
        let line = ED25519.trim();
        let key = line.split(' ').nth(1).unwrap();
        for wrong in [
            String::new(),
            key.to_owned(),
            format!("namespaces=\"git\" {line}"),
            format!("alice {line}"),
            format!("{line}\n{line}"),
            format!("ecdsa-sha2-nistp256 {key}"),
            format!("ssh-ed25519 {}", key.get(..40).unwrap()),
            format!("ssh-ed25519  {key}"),
            format!("ssh-rsa {key}"),
            format!("sk-ssh-ed25519@openssh.com {key}"),
            format!("ssh-ed25519 {key} {}", "a".repeat(65)),
            format!("ssh-ed25519 {key} a\u{202e}b"),
            "-----BEGIN OPENSSH PRIVATE KEY-----".to_owned(),
        ] {
            assert!(wrong.parse::<SignerKey>().is_err(), "{wrong}");
        }
    }
}
