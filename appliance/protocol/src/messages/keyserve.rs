//! What an appliance says to a key server, and what that answers: HTTP/1.1, `POST` with JSON bodies.
//!
//! ```text
//! NONCE    ─▶ NonceReply                                       single use, for a minute
//! RELEASE  evidence document with that nonce ─▶ ReleaseAnswer  the key, sealed to the claim `vault_key`, and what the server knows
//! REPORT   EpochReport ─▶ EpochAck                             the state that has opened, before anything uses it
//! ```
//!
//! The server signs with an Ed25519 key that the declaration names; what the signatures cover is here. An answer is of one start of an
//! appliance, since each has another vault key. A report bears a MAC under the key that was released, so that nobody else can raise what
//! the server knows of a state. Whoever relays all this can read nothing of worth and change nothing: the transport need not be secret.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::evidence::VaultKey;
use super::operator::Signature;
use super::unseal::SealDisk;
use super::upgrade::{self, SignedStatement};
use crate::json::{self, JsonError};
use crate::{Base64Array, Digest, Repository};

/// Without a body: a [`NonceReply`].
pub const NONCE: &str = "/v1/nonce";
/// An evidence document whose claims carry the nonce: a [`ReleaseAnswer`].
pub const RELEASE: &str = "/v1/release";
/// An [`EpochReport`]: an [`EpochAck`].
pub const REPORT: &str = "/v1/report";

/// Most key servers of one appliance: with the recovery key and what operators open it with they fit a sheet of key slots.
pub const MAX_SERVERS: usize = 5;
/// Largest of these messages in bytes: an answer with the largest statement. Evidence has a bound of its own.
pub const MAX_MESSAGE: usize = upgrade::MAX_BYTES + 4096;
/// Longest detail of a [`Refused`] that is shown, in characters.
pub const MAX_DETAIL: usize = 500;

const ANSWER_DOMAIN: &[u8] = b"cofferdam/keyserve/answer/v1";
const ACK_DOMAIN: &[u8] = b"cofferdam/keyserve/ack/v1";
const REPORT_DOMAIN: &[u8] = b"cofferdam/keyserve/report/v2";

/// Names a key server: the beginning of the SHA-256 of its Ed25519 public key.
pub type ServerId = Base64Array<8>;
/// A nonce of the server's.
pub type ServerNonce = Base64Array<32>;

/// Reads one of these messages.
///
/// # Errors
/// It is too large or not of this shape.
pub fn parse<T: serde::de::DeserializeOwned + Serialize>(body: &[u8]) -> Result<T, JsonError> {
    json::from_json(body, MAX_MESSAGE)
}

/// Reply 200 of [`NONCE`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NonceReply {
    /// To be claimed in evidence, once.
    pub nonce: ServerNonce,
}

/// What a witness knows of a state: the newest that was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Witnessed {
    /// Identity of the state: 16 random bytes of its making.
    pub state: Base64Array<16>,
    /// Number of the commit of its last opening.
    pub epoch: u64,
    /// That commit's digest.
    pub root: Base64Array<32>,
}

/// A key-encryption key, sealed to the claim `vault_key` (RFC 9180, as secrets are).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedKek {
    /// HPKE encapsulated key.
    pub enc: Base64Array<32>,
    /// Ciphertext and tag.
    pub ciphertext: Base64Array<48>,
}

/// Reply 200 of [`RELEASE`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseAnswer {
    /// The nonce of the evidence.
    pub nonce: ServerNonce,
    /// The key.
    pub key: SealedKek,
    /// What the server knows of the appliance's state; absent where nothing was reported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witnessed: Option<Witnessed>,
    /// What lets the image of the evidence open the state where another one has sealed it: the server's operator has given it. Who may
    /// sign it, the state knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<SignedStatement>,
    /// The server's signature of [`ReleaseAnswer::signing_input`].
    pub signature: Signature,
}

impl ReleaseAnswer {
    /// The bytes that the server signs:
    /// domain 00 nonce vault-key length repository enc ciphertext known state epoch root statement. The length is one byte; `known` is 1,
    /// or 0 and no state, epoch and root after it; the epoch is 8 bytes, big endian; the repository is in lower case; the statement is
    /// the SHA-256 that names it ([`Statement::digest`](upgrade::Statement::digest)), or nothing where there is none.
    ///
    /// # Errors
    /// The statement cannot be written.
    pub fn signing_input(&self, repository: &Repository, vault_key: &VaultKey) -> Result<Vec<u8>, JsonError> {
        let mut input = [ANSWER_DOMAIN, &[0], self.nonce.as_bytes(), vault_key.as_bytes()].concat();
        input.extend(named(repository));
        input.extend(self.key.enc.as_bytes());
        input.extend(self.key.ciphertext.as_bytes());
        match &self.witnessed {
            None => input.push(0),
            Some(witnessed) => {
                input.push(1);
                input.extend(written(witnessed));
            }
        }
        if let Some(signed) = &self.upgrade {
            input.extend(signed.statement.digest()?.as_bytes());
        }
        Ok(input)
    }
}

/// Body of [`REPORT`]: how new the state is, at its opening and later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochReport {
    /// Whose state.
    pub repository: Repository,
    /// The state's last commit.
    pub opened: Witnessed,
    /// Whether an operator has made it in the boot that reports it: then it may be another state than the one before.
    pub fresh: bool,
    /// The version of its lineage: what the last statement made it, and 1 before.
    pub lineage: u64,
    /// HKDF-SHA256 of [`EpochReport::mac_input`] under the released key.
    pub mac: Base64Array<32>,
}

impl EpochReport {
    /// The bytes that the MAC covers: domain 00 length repository state epoch root fresh lineage. The lineage is 8 bytes, big endian.
    pub fn mac_input(&self) -> Vec<u8> {
        let mut input = [REPORT_DOMAIN, &[0]].concat();
        input.extend(named(&self.repository));
        input.extend(written(&self.opened));
        input.push(u8::from(self.fresh));
        input.extend(self.lineage.to_be_bytes());
        input
    }
}

/// Reply 200 of [`REPORT`]: the server knows it, durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochAck {
    /// The server's signature of [`EpochAck::signing_input`].
    pub signature: Signature,
}

impl EpochAck {
    /// The bytes that the server signs: domain 00 length repository state epoch root.
    pub fn signing_input(repository: &Repository, opened: &Witnessed) -> Vec<u8> {
        let mut input = [ACK_DOMAIN, &[0]].concat();
        input.extend(named(repository));
        input.extend(written(opened));
        input
    }
}

fn named(repository: &Repository) -> Vec<u8> {
    let name = repository.to_string().to_ascii_lowercase();
    // GitHub's names have at most 140 characters.
    let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
    [&[length], name.as_bytes()].concat()
}

fn written(state: &Witnessed) -> Vec<u8> {
    [state.state.as_bytes(), &state.epoch.to_be_bytes()[..], state.root.as_bytes()].concat()
}

/// Every other reply. Nothing authenticates it: it says what to look at, and decides nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    /// Why, by name.
    pub refused: Refusal,
    /// Why, in words. From outside: shown without control characters, up to [`MAX_DETAIL`].
    pub detail: String,
}

/// Why a key server answers no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// The operator has not added this repository.
    Repository,
    /// The registers are none of the reference values.
    Measurement,
    /// The declaration is not the repository's, or none of those that were given.
    Declaration,
    /// The platform's TCB, its attributes or its module are not what the policy demands.
    Tcb,
    /// The quote's chain ends in no root that is accepted: a simulated device, unless its root was named.
    Root,
    /// Claims or collateral are out of date.
    Stale,
    /// The nonce is none of the server's, or was used.
    Nonce,
    /// The evidence is of an appliance that has launched.
    Launched,
    /// The evidence is none, or contradicts itself.
    Evidence,
    /// The image comes before the one that a statement has let open the state.
    Lineage,
    /// The state that opened is older than what the server knows.
    Epoch,
    /// The state that opened is another one than the server knows, or a second copy of it.
    State,
    /// The report is not authentic.
    Report,
    /// Something that is needed to decide could not be had.
    CouldNotCheck,
    /// Too much at once, from this address or from all.
    Busy,
    /// No request of this interface.
    Request,
}

impl Refusal {
    /// As it is written in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Repository => "repository",
            Self::Measurement => "measurement",
            Self::Declaration => "declaration",
            Self::Tcb => "tcb",
            Self::Root => "root",
            Self::Stale => "stale",
            Self::Nonce => "nonce",
            Self::Launched => "launched",
            Self::Evidence => "evidence",
            Self::Lineage => "lineage",
            Self::Epoch => "epoch",
            Self::State => "state",
            Self::Report => "report",
            Self::CouldNotCheck => "could-not-check",
            Self::Busy => "busy",
            Self::Request => "request",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// `POST` at the vault's socket, by `publish` alone: a [`PeerNews`]. The reply is a [`PeerReply`].
pub const PEER: &str = "/v1/peer";

/// What `publish` has of the key servers. The vault judges all of it. Of an open state it hears `Look` and `Acknowledged` only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum PeerNews {
    /// Nothing new: how is the state?
    Look {},
    /// A server's answer.
    Answer {
        /// Whose.
        server: ServerId,
        /// What it says.
        answer: Box<ReleaseAnswer>,
    },
    /// There is none, in words for operators.
    Trouble {
        /// Whose.
        server: ServerId,
        /// At most [`MAX_DETAIL`] characters.
        detail: String,
    },
    /// Every server was asked: the state may be opened with what they said.
    Open {},
    /// A server has taken down what was reported to it.
    Acknowledged {
        /// Which.
        server: ServerId,
        /// Its signature.
        ack: EpochAck,
    },
}

/// How the state is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerReply {
    /// What is on the disk.
    pub disk: SealDisk,
    /// The servers that have to be asked for their keys now.
    pub ask: Vec<ServerId>,
    /// What servers have to take down.
    pub reports: Vec<PeerReport>,
}

/// What one server has to take down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerReport {
    /// Which.
    pub server: ServerId,
    /// What.
    pub report: EpochReport,
}

/// Names the server with this Ed25519 public key.
pub fn server_id(key: &[u8; 32]) -> ServerId {
    let [a, b, c, d, e, f, g, h, ..] = *Digest::of(key).as_bytes();
    [a, b, c, d, e, f, g, h].into()
}

/// How many of so many servers have to know of each opening, so that any as many hold one that knows of the last: more than half.
pub fn quorum(servers: usize) -> usize {
    servers / 2 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_the_name_that_it_prints() {
        use Refusal as R;
        let all = [
            R::Repository,
            R::Measurement,
            R::Declaration,
            R::Tcb,
            R::Root,
            R::Stale,
            R::Nonce,
            R::Launched,
            R::Evidence,
            R::Lineage,
            R::Epoch,
            R::State,
            R::Report,
            R::CouldNotCheck,
            R::Busy,
            R::Request,
        ];
        for refusal in all {
            assert_eq!(serde_json::to_string(&refusal).unwrap(), format!("\"{refusal}\""));
        }
    }

    #[test]
    fn any_two_quorums_have_a_server_in_common() {
        for servers in 1..=MAX_SERVERS {
            assert!(2 * quorum(servers) > servers && quorum(servers) <= servers, "{servers}");
        }
    }

    #[test]
    fn every_field_changes_what_is_signed() {
        let witnessed = Witnessed { state: [1; 16].into(), epoch: 7, root: [2; 32].into() };
        let key = SealedKek { enc: [3; 32].into(), ciphertext: [4; 48].into() };
        let answer = ReleaseAnswer {
            nonce: [5; 32].into(),
            key,
            witnessed: Some(witnessed),
            upgrade: None,
            signature: [0; 64].into(),
        };
        let upgrade = |version| {
            let mut signed = crate::messages::upgrade::tests::signed();
            signed.statement.version = version;
            Some(signed)
        };
        let (ours, other): (Repository, Repository) =
            ("acme/shop".parse().unwrap(), "acme/shoq".parse().unwrap());
        let vault: VaultKey = [6; 32].into();
        let change = |change: &dyn Fn(&mut ReleaseAnswer)| {
            let mut changed = answer.clone();
            change(&mut changed);
            changed.signing_input(&ours, &vault).unwrap()
        };
        let mut all = vec![
            answer.signing_input(&ours, &vault).unwrap(),
            answer.signing_input(&other, &vault).unwrap(),
            answer.signing_input(&ours, &[7; 32].into()).unwrap(),
            change(&|a| a.upgrade = upgrade(2)),
            change(&|a| a.upgrade = upgrade(3)),
            change(&|a| (a.witnessed, a.upgrade) = (None, upgrade(2))),
            change(&|a| a.nonce = [9; 32].into()),
            change(&|a| a.key.enc = [9; 32].into()),
            change(&|a| a.key.ciphertext = [9; 48].into()),
            change(&|a| a.witnessed = None),
            change(&|a| a.witnessed.as_mut().unwrap().state = [9; 16].into()),
            change(&|a| a.witnessed.as_mut().unwrap().epoch = 6),
            change(&|a| a.witnessed.as_mut().unwrap().root = [9; 32].into()),
            EpochAck::signing_input(&ours, &witnessed),
            EpochAck::signing_input(&other, &witnessed),
        ];
        for (fresh, lineage) in [(true, 1), (false, 1), (false, 2)] {
            let (repository, mac) = (ours.clone(), [0; 32].into());
            all.push(EpochReport { repository, opened: witnessed, fresh, lineage, mac }.mac_input());
        }
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
        assert_eq!(
            answer.signing_input(&"Acme/Shop".parse().unwrap(), &vault).unwrap(),
            answer.signing_input(&ours, &vault).unwrap()
        );
    }
}
