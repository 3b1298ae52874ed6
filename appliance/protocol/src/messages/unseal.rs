//! Opening the state of an appliance: what an operator asks for, and what they send.
//!
//! Both are requests of the operators' interface ([`super::operator`]), served by an appliance that waits in the stage `unseal`.
//! What opens the state travels sealed to the key of the claim `vault_key`, which is another one at each boot: `front` relays it and cannot
//! read it.

use std::fmt;
use std::num::NonZeroU64;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::event::Register;
use super::operator::SEAL_TAG;
use super::state::Rollback;
use super::upgrade::SignedStatement;
use crate::json::{self, JsonError};
use crate::{Base64Array, Base64Bytes, Fingerprint, Repository, base64, hex};

/// `GET`: whether the state is open, and what opens it. The reply is a [`SealStatus`].
pub const SEAL: &str = "/v1/seal";
/// `POST` with a [`SealedKey`]: an [`UnsealRequest`]. The reply is a [`SealStatus`].
pub const UNSEAL: &str = "/v1/unseal";

/// `POST` with a [`SealedKey`], while the state is open: a [`RekeyRequest`]. The reply is 204.
pub const REKEY: &str = "/v1/seal/rekey";

/// Longest passphrase in bytes.
pub const MAX_PASSPHRASE: usize = 1024;
/// Shortest passphrase in bytes.
pub const MIN_PASSPHRASE: usize = 12;
/// Most shares that a key is divided into, and most that are needed.
pub const MAX_SHARES: u8 = 16;
/// Longest [`UnsealRequest`] in bytes of JSON.
pub const MAX_PLAIN: usize = 16 * 1024;
/// Largest body in bytes.
pub const MAX_BODY: usize = 32 * 1024;

/// What travels: an [`UnsealRequest`] as JSON, sealed to the appliance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedKey {
    /// HPKE encapsulated key.
    pub enc: Base64Array<32>,
    /// Ciphertext and tag.
    pub ciphertext: Base64Bytes<SEAL_TAG, MAX_BODY>,
}

impl SealedKey {
    /// Reads a body.
    ///
    /// # Errors
    /// It is too large or not of this shape.
    pub fn parse(body: &[u8]) -> Result<Self, JsonError> {
        json::from_json(body, MAX_BODY)
    }
}

/// What an operator wants with the state. Each enum here is tagged from outside: a tag inside would make the parser keep copies.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum UnsealRequest {
    /// Make a state on a blank disk.
    Create {
        /// The first way to open it.
        method: NewMethod,
        /// The way that is there when everything else is lost: 32 random bytes, which the operator has been shown.
        recovery: SecretBytes,
        /// What is known of states from elsewhere.
        #[serde(default, skip_serializing_if = "Witness::is_plain")]
        witness: Witness,
    },
    /// Open what is there.
    Open {
        /// With what.
        key: OpeningKey,
        /// The lowest epoch that is believed: what the newest release attestation or another witness knows of.
        at_least: u64,
        /// What else is known of it from elsewhere.
        #[serde(default, skip_serializing_if = "Witness::is_plain")]
        witness: Witness,
        /// What lets this appliance open it, where the state was left to another image, repository or other operators.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        upgrade: Option<Box<SignedStatement>>,
    },
}

/// What replaces a way to open a state that is open.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RekeyRequest {
    /// What opens it now: the passphrase or the recovery key.
    pub key: OpeningKey,
    /// What takes its place.
    pub new: NewKey,
}

/// Another way to open a state.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum NewKey {
    /// Instead of the passphrase or the shares that operators have. Key servers are the declaration's.
    Method(NewMethod),
    /// Instead of the recovery key: 32 random bytes, which the operator has been shown.
    Recovery {
        /// The key.
        recovery: SecretBytes,
    },
}

/// What an operator has heard from the witnesses of a state, or did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Witness {
    /// None was asked, or none could be reached. Refused where the declaration requires one.
    #[serde(default)]
    pub unwitnessed: bool,
    /// The state that the operator gives up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gives_up: Option<GivenUp>,
}

impl Witness {
    /// One was asked, and nothing is given up.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// A state, or what is newer in another copy of it, that an operator gives up: the one that opens or is made comes after it in every number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GivenUp {
    /// Its highest epoch that a witness knows.
    pub epoch: NonZeroU64,
    /// The highest number of its anchors; 0 where there is none.
    pub anchor: u64,
}

/// The way to open a new state.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum NewMethod {
    /// A passphrase of [`MIN_PASSPHRASE`] to [`MAX_PASSPHRASE`] bytes.
    Passphrase {
        /// Its bytes: UTF-8.
        passphrase: SecretBytes,
    },
    /// A key of 32 random bytes, which the operator's machine has divided into shares.
    Shares {
        /// The key.
        key: SecretBytes,
        /// Names the division; every share carries it.
        set: Base64Array<8>,
        /// How many shares open the state: 2 to [`MAX_SHARES`].
        threshold: u8,
        /// How many there are: up to [`MAX_SHARES`].
        shares: u8,
    },
    /// The keys of the declared key servers, which the appliance has of them already.
    Peer {},
}

/// What opens a state.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum OpeningKey {
    /// The passphrase.
    Passphrase {
        /// Its bytes.
        passphrase: SecretBytes,
    },
    /// The recovery key.
    Recovery {
        /// Its 32 bytes.
        recovery: SecretBytes,
    },
    /// One share. The appliance keeps it until there are enough.
    Share {
        /// The division that it belongs to.
        set: Base64Array<8>,
        /// Which one: from 1.
        index: u8,
        /// 32 bytes.
        share: SecretBytes,
    },
}

/// Bytes that open something: base64 in JSON, cleared when dropped.
pub struct SecretBytes(pub Zeroizing<Vec<u8>>);

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted:key]")
    }
}

impl Serialize for SecretBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(base64::encode(&*self.0)))
    }
}

impl<'de> Deserialize<'de> for SecretBytes {
    /// Straight from the text, without a copy of it that nobody clears.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = SecretBytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("standard base64 with padding")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<SecretBytes, E> {
                // Not the text itself in the error.
                let bytes =
                    base64::decode(text).ok_or_else(|| E::custom("not standard base64 with padding"))?;
                Ok(SecretBytes(Zeroizing::new(bytes)))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// What was sealed is no [`Sealable`] of that kind, or is too long. It says nothing about the text, which holds a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a request about what opens a state")]
pub struct UnsealRequestError;

/// What is sealed to the appliance: an [`UnsealRequest`], or a [`RekeyRequest`].
pub trait Sealable: Serialize + serde::de::DeserializeOwned {
    /// The bytes that are sealed.
    ///
    /// # Errors
    /// It is longer than [`MAX_PLAIN`].
    fn write(&self) -> Result<Zeroizing<Vec<u8>>, UnsealRequestError> {
        // Of full length from the start, so that growing leaves no copy behind.
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_PLAIN));
        serde_json::to_writer(&mut *text, self).map_err(|_| UnsealRequestError)?;
        if text.len() <= MAX_PLAIN { Ok(text) } else { Err(UnsealRequestError) }
    }

    /// Reads what was sealed, with no copy of it but the keys.
    ///
    /// # Errors
    /// It is too long or not of this shape.
    fn parse(text: &[u8]) -> Result<Self, UnsealRequestError> {
        if text.len() > MAX_PLAIN {
            return Err(UnsealRequestError);
        }
        serde_json::from_slice(text).map_err(|_| UnsealRequestError)
    }
}

impl Sealable for UnsealRequest {}
impl Sealable for RekeyRequest {}

/// Whether the state is open, and what opens it: the reply to [`SEAL`] and [`UNSEAL`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealStatus {
    /// What is on the disk.
    pub disk: SealDisk,
    /// The ways that open it; none where there is nothing to open.
    pub methods: Vec<Method>,
    /// Milliseconds until the next attempt is looked at; each wrong one doubles it.
    pub wait_ms: u64,
    /// Who may open it, where there is something to open. As the disk says it: true as soon as the state has opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<Lineage>,
    /// What there is of the key servers, where the declaration names some.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerStatus>,
    /// Why the keys of the key servers that there are have not opened it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unopened: Option<String>,
    /// What the declaration says of witnesses.
    #[serde(default)]
    pub rollback: Rollback,
}

/// Who may open a state now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lineage {
    /// Rises with each statement that let somebody else open it; 1 where it was made.
    pub version: u64,
    /// The repository of the declaration.
    pub repository: Repository,
    /// What the image calls itself.
    pub release: String,
    /// MRTD.
    #[serde(with = "hex::array")]
    pub mrtd: Register,
    /// RTMR1.
    #[serde(with = "hex::array")]
    pub rtmr1: Register,
    /// RTMR2.
    #[serde(with = "hex::array")]
    pub rtmr2: Register,
    /// Whose statements count.
    pub operators: Vec<Fingerprint>,
    /// Why this appliance opens it with a statement only, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs_statement: Option<String>,
}

/// What is on the state disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SealDisk {
    /// Zeros: a state can be made.
    Blank,
    /// A state, closed.
    Sealed,
    /// A state that this boot opened or made.
    Open,
}

/// One way to open the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "method", deny_unknown_fields)]
pub enum Method {
    /// A passphrase.
    Passphrase,
    /// Shares of a key.
    Shares {
        /// The division that counts.
        set: Base64Array<8>,
        /// How many are needed.
        threshold: u8,
        /// How many there are.
        shares: u8,
        /// How many the appliance has been given since its boot.
        given: u8,
    },
    /// The key of a key server.
    Peer,
    /// The recovery key.
    Recovery,
}

/// What an appliance has of a key server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerStatus {
    /// Its address, as declared.
    pub server: String,
    /// Whether its key is there.
    pub has_key: bool,
    /// The newest epoch of a state that it knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// What stands in the way, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> SecretBytes {
        SecretBytes(Zeroizing::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn a_request_is_read_as_it_was_written_and_prints_without_its_keys() {
        let requests = [
            UnsealRequest::Create {
                method: NewMethod::Passphrase { passphrase: bytes("correct horse") },
                recovery: bytes("0123456789abcdef0123456789abcdef"),
                witness: Witness {
                    unwitnessed: true,
                    gives_up: Some(GivenUp { epoch: 41.try_into().unwrap(), anchor: 3 }),
                },
            },
            UnsealRequest::Open {
                key: OpeningKey::Share { set: [7; 8].into(), index: 2, share: bytes("battery staple") },
                at_least: 9,
                witness: Witness::default(),
                upgrade: None,
            },
        ];
        for request in requests {
            let text = request.write().unwrap();
            let again = UnsealRequest::parse(&text).unwrap();
            assert_eq!(again.write().unwrap(), text);
            let printed = format!("{again:?}");
            assert!(!printed.contains("horse") && !printed.contains("staple"), "{printed}");
        }
        let unpadded = r#"{"open":{"key":{"passphrase":{"passphrase":"Y29ycmVjdA"}},"at_least":1}}"#;
        for wrong in
            [unpadded, "{}", r#"{"open":{"at_least":1}}"#, r#"{"create":{},"open":{}}"#, r#"{"close":{}}"#]
        {
            assert!(UnsealRequest::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_request_for_another_key_is_read_as_it_was_written_and_shows_nothing() {
        let key = || OpeningKey::Passphrase { passphrase: bytes("correct horse") };
        let method = NewMethod::Passphrase { passphrase: bytes("battery staple") };
        for new in [NewKey::Method(method), NewKey::Recovery { recovery: bytes("battery staple") }] {
            let request = RekeyRequest { key: key(), new };
            let text = request.write().unwrap();
            let again = RekeyRequest::parse(&text).unwrap();
            assert_eq!(again.write().unwrap(), text);
            let printed = format!("{again:?}");
            assert!(!printed.contains("horse") && !printed.contains("staple"), "{printed}");
            assert!(UnsealRequest::parse(&text).is_err(), "one is never taken for the other");
        }
    }

    #[test]
    fn a_status_has_the_words_of_the_interface() {
        let status = SealStatus {
            disk: SealDisk::Sealed,
            methods: vec![
                Method::Passphrase,
                Method::Shares { set: [1; 8].into(), threshold: 2, shares: 3, given: 1 },
                Method::Recovery,
            ],
            wait_ms: 0,
            lineage: None,
            peers: Vec::new(),
            unopened: None,
            rollback: Rollback::Warn,
        };
        let text = r#"{"disk":"sealed","methods":[{"method":"passphrase"},{"method":"shares","set":"AQEBAQEBAQE=","threshold":2,"shares":3,"given":1},{"method":"recovery"}],"wait_ms":0,"rollback":"warn"}"#;
        assert_eq!(serde_json::to_string(&status).unwrap(), text);
        assert_eq!(serde_json::from_str::<SealStatus>(text).unwrap(), status);
    }
}
