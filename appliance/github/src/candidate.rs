//! What proves that a signer signed a file of a commit, whoever passes it on: the commit's text and signature, the object of its root
//! directory, and the file.
//!
//! Each names the next one by its SHA-1, as git does, so that it is judged from its bytes alone: without a network, and by whoever
//! believes nobody but the signers.

use serde::{Deserialize, Serialize};

use cofferdam_protocol::json::{self, JsonError};
use cofferdam_protocol::{Base64Bytes, Commit as CommitId, SignerKey};

use super::MAX_FILE;
use super::object::{self, Named};
use super::signed::{MAX_PAYLOAD, MAX_SIGNATURE, SignatureError, SignedCommit, verify};

/// Bound on the object of a root directory in bytes: some 20,000 entries.
pub const MAX_TREE: usize = 1024 * 1024;

/// Bound on a candidate in JSON, in bytes: its parts as base64, and the members' names.
pub const MAX_CANDIDATE: usize = (MAX_PAYLOAD + MAX_SIGNATURE + MAX_TREE + MAX_FILE) / 3 * 4 + 1024;

/// The proof. What it proves is not known before [`judge`] has said so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    commit: CommitId,
    /// The signed text.
    payload: Base64Bytes<0, MAX_PAYLOAD>,
    /// The signature, in the armor of OpenSSH.
    signature: Base64Bytes<0, MAX_SIGNATURE>,
    /// The object of the root directory.
    tree: Base64Bytes<0, MAX_TREE>,
    /// The bytes of the file.
    file: Base64Bytes<0, MAX_FILE>,
}

/// Why a candidate proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JudgeError {
    /// The commit does not count.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// Another directory than the signed one.
    #[error("its root directory is not the one that was signed")]
    OtherTree,
    /// The directory was signed, and is not one that git would write.
    #[error("its root directory cannot be read")]
    Tree,
    /// The same with two entries of one name.
    #[error("its root directory has more than one {0}")]
    Several(String),
    /// There is no such regular file.
    #[error("it has no file {0} in its root directory")]
    NoFile(String),
    /// Another file than the signed one.
    #[error("its {0} is not the one that was signed")]
    OtherFile(String),
}

impl Candidate {
    /// Puts it together; `None` when a part is larger than its bound.
    pub fn new(
        commit: CommitId,
        payload: String,
        signature: String,
        tree: Vec<u8>,
        file: Vec<u8>,
    ) -> Option<Self> {
        Some(Self {
            commit,
            payload: Base64Bytes::new(payload.into_bytes()).ok()?,
            signature: Base64Bytes::new(signature.into_bytes()).ok()?,
            tree: Base64Bytes::new(tree).ok()?,
            file: Base64Bytes::new(file).ok()?,
        })
    }

    /// The commit that it is said to be about.
    pub fn commit(&self) -> CommitId {
        self.commit
    }

    /// Reads what [`Candidate::encode`] writes.
    ///
    /// # Errors
    /// It is larger than [`MAX_CANDIDATE`], or not of this shape.
    pub fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        json::from_json(bytes, MAX_CANDIDATE)
    }

    /// As JSON.
    ///
    /// # Errors
    /// None that a candidate has.
    pub fn encode(&self) -> Result<Vec<u8>, JsonError> {
        json::to_vec(self)
    }
}

/// Whether one of the signers signed this commit, and with it the bytes of the file `name` in its root directory.
///
/// # Errors
/// [`JudgeError`]: the first thing that is not so. Nothing is read of what no signature vouches for, but the signature.
pub fn judge(
    candidate: &Candidate,
    name: &str,
    signers: &[SignerKey],
) -> Result<(SignedCommit, Vec<u8>), JudgeError> {
    const TEXT: SignatureError = SignatureError::Malformed("it is not UTF-8");
    let payload = std::str::from_utf8(candidate.payload.as_bytes()).map_err(|_| TEXT)?;
    let signature = std::str::from_utf8(candidate.signature.as_bytes()).map_err(|_| TEXT)?;
    let commit = verify(candidate.commit, Some(payload), Some(signature), signers)?;
    let tree = candidate.tree.as_bytes();
    if object::name("tree", tree) != Some(commit.tree) {
        return Err(JudgeError::OtherTree);
    }
    let file = match object::named(tree, name) {
        None => return Err(JudgeError::Tree),
        Some(Named::Several) => return Err(JudgeError::Several(name.to_owned())),
        Some(Named::None) => return Err(JudgeError::NoFile(name.to_owned())),
        Some(Named::File(file)) => file,
    };
    let bytes = candidate.file.as_bytes();
    if object::name("blob", bytes) != Some(file) {
        return Err(JudgeError::OtherFile(name.to_owned()));
    }
    Ok((commit, bytes.to_vec()))
}
