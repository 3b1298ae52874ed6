//! The small values of a declaration: each is parsed once, into a type that cannot hold anything else.
//!
//! A parser here takes the text of one scalar and says in a [`ValueError`] what is wrong with it and, where
//! it knows, what to write instead. It knows nothing of YAML; the place is added by whoever read the file.
//! Every length is bounded, because each of these texts ends in a claim, a file name, a URL or a log line.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a scheme marks a secret's reference; the same in a declaration and in an env file.
pub const SECRET_SCHEME: &str = "secret://";

/// Why a text is not the value it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ValueError {
    /// What is wrong, lower case, without a full stop.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl ValueError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

macro_rules! serialize_as_text {
    ($($name:ty),*) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}
pub(crate) use serialize_as_text;

macro_rules! deserialize_from_text {
    ($($name:ty),*) => {$(
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
pub(crate) use deserialize_from_text;

deserialize_from_text!(SecretRef);

serialize_as_text!(Repository, SecretRef, OperatorKey);

/// The identity of an appliance: one GitHub repository, `owner/repo`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    owner: String,
    name: String,
}

impl Repository {
    /// The account that owns the repository.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// The repository's name without its owner.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for Repository {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = |why: &str| {
            ValueError::new(format!("not a GitHub repository: {why}"))
                .hint("write it as owner/repo, for example octo-org/payments")
        };
        if text.starts_with("https://") || text.starts_with("git@") {
            return Err(wrong("a URL"));
        }
        let (owner, name) = text.split_once('/').ok_or_else(|| wrong("there is no `/`"))?;
        // GitHub's own rules: 39 characters, letters, digits and single inner hyphens.
        let owner_ok = (1..=39).contains(&owner.len())
            && owner.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !owner.starts_with('-')
            && !owner.ends_with('-')
            && !owner.contains("--");
        if !owner_ok {
            return Err(wrong("the owner is not an account name"));
        }
        let name_ok = (1..=100).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            && name != "."
            && name != ".."
            && !name.ends_with(".git");
        if !name_ok {
            return Err(wrong("the name is not a repository name"));
        }
        Ok(Self { owner: owner.to_owned(), name: name.to_owned() })
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

/// How a declaration points at a secret: `secret://<namespace>/<name>/<field>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretRef {
    namespace: String,
    name: String,
    field: String,
}

impl SecretRef {
    /// The namespace that holds the secret.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The secret's name within its namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The one value within the secret.
    pub fn field(&self) -> &str {
        &self.field
    }

    /// The name of the file under `/run/secrets` when the declaration gives none: `name.field`.
    pub fn default_target(&self) -> String {
        format!("{}.{}", self.name, self.field)
    }
}

impl FromStr for SecretRef {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = |why: &str| {
            ValueError::new(format!("not a secret's reference: {why}"))
                .hint("write secret://namespace/name/field, for example secret://prod/database/password")
        };
        let path =
            text.strip_prefix(SECRET_SCHEME).ok_or_else(|| wrong("it does not start with secret://"))?;
        let mut parts = path.split('/');
        let (Some(namespace), Some(name), Some(field), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong("it needs exactly a namespace, a name and a field"));
        };
        if ![namespace, name, field].into_iter().all(is_name) {
            return Err(wrong("each part is 1 to 63 of a-z 0-9 . _ - and starts with a letter or a digit"));
        }
        Ok(Self { namespace: namespace.into(), name: name.into(), field: field.into() })
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SECRET_SCHEME}{}/{}/{}", self.namespace, self.name, self.field)
    }
}

/// An operator's Ed25519 public key, read from the OpenSSH form (RFC 8709).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OperatorKey {
    public: [u8; 32],
    fingerprint: String,
    comment: String,
}

impl OperatorKey {
    /// The raw public key (RFC 8032, 32 bytes).
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// What `ssh-keygen -lf` prints: `SHA256:` and the unpadded base64 of the key blob's SHA-256.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The text after the key, often who it belongs to; no more than a note.
    pub fn comment(&self) -> &str {
        &self.comment
    }
}

impl FromStr for OperatorKey {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        const MAX: usize = 1024;
        let hint = "paste one line of an ed25519 .pub file; `ssh-keygen -t ed25519` makes one";
        let wrong = |why: &str| ValueError::new(format!("not an operator's key: {why}")).hint(hint);
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
        let ssh_key::public::KeyData::Ed25519(public) = key.key_data() else {
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
        Ok(Self {
            public: public.0,
            fingerprint: key.fingerprint(ssh_key::HashAlg::Sha256).to_string(),
            comment,
        })
    }
}

impl fmt::Display for OperatorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fingerprint)
    }
}

/// A signal by its number on x86-64 Linux (`signal(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Signal(i32);

impl Signal {
    /// `SIGTERM`, what a service is stopped with unless it says otherwise.
    pub const TERM: Self = Self(15);

    /// The number that `kill(2)` takes.
    pub fn number(self) -> i32 {
        self.0
    }
}

impl FromStr for Signal {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        // The signals that a program can be asked to end with; SIGSTOP and SIGCONT would only hang it.
        const NAMES: &[(&str, i32)] = &[
            ("HUP", 1),
            ("INT", 2),
            ("QUIT", 3),
            ("ABRT", 6),
            ("KILL", 9),
            ("USR1", 10),
            ("USR2", 12),
            ("ALRM", 14),
            ("TERM", 15),
            ("WINCH", 28),
        ];
        let bare = text.strip_prefix("SIG").unwrap_or(text);
        NAMES
            .iter()
            .find(|(name, number)| *name == bare || number.to_string() == text)
            .map(|(_, number)| Self(*number))
            .ok_or_else(|| {
                let names = NAMES.iter().map(|(name, _)| format!("SIG{name}")).collect::<Vec<_>>();
                ValueError::new("not a signal that can stop a service")
                    .hint(format!("one of {}", names.join(", ")))
            })
    }
}

/// Numeric user and group inside the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct User {
    /// 0 to 65535: a service's user namespace maps 65536 ids.
    pub uid: u32,
    /// The group; the image's default for the uid when it is not given.
    pub gid: Option<u32>,
}

impl FromStr for User {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || {
            ValueError::new("not a numeric user of 0 to 65535")
                .hint("write \"uid\" or \"uid:gid\", for example \"1000:1000\"; names live in the image, which is not open yet")
        };
        let id = |text: &str| parse_decimal(text).filter(|id| *id <= 65535).ok_or_else(wrong);
        Ok(match text.split_once(':') {
            Some((uid, gid)) => Self { uid: id(uid)?, gid: Some(id(gid)?) },
            None => Self { uid: id(text)?, gid: None },
        })
    }
}

/// Reads a Compose duration such as `10s`, `1m30s` or `500ms`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, ValueError> {
    // Longer than this and a power-off would wait for one service past any operator's patience.
    const MAX: Duration = Duration::from_secs(600);
    let wrong =
        |why: &str| ValueError::new(format!("not a duration: {why}")).hint("for example 10s, 1m30s or 500ms");
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(wrong("it is empty"));
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at_checked(digits).ok_or_else(|| wrong("it does not read"))?;
        let units = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at_checked(units).ok_or_else(|| wrong("it does not read"))?;
        let number = number.parse::<u32>().map_err(|_| wrong("a number is missing or too large"))?;
        let one = match unit {
            "us" => Duration::from_micros(1),
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return Err(wrong("it needs a unit: us, ms, s, m or h")),
        };
        total = one
            .checked_mul(number)
            .and_then(|part| total.checked_add(part))
            .ok_or_else(|| wrong("it is too large"))?;
        rest = tail;
    }
    if total > MAX {
        return Err(wrong("it is longer than ten minutes"));
    }
    Ok(total)
}

/// Whether a text is a name as references and operators use it: `[a-z0-9][a-z0-9._-]{0,62}`.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// Whether a text is a service's name, `[a-z0-9][a-z0-9-]{0,30}`: it is a host name and a directory.
pub(crate) fn is_service_name(text: &str) -> bool {
    text.len() <= 31 && is_name(text) && !text.contains(['.', '_'])
}

/// A decimal number without sign, leading zero or separators, so that every YAML reader reads the same.
pub(crate) fn parse_decimal(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}
