//! Who signed a commit: what GitHub sends of it is judged, and not what GitHub says about it.
//!
//! GitHub sends the two texts that a signature is of (`verification.payload` and `verification.signature`). Put together as git
//! puts them they are the commit's object, whose name is the commit's: so nobody can send the text of another commit. Then
//! the signature (OpenSSH's PROTOCOL.sshsig, namespace `git`) has to be of one of the signers. That GitHub calls a commit verified is no
//! evidence and is not read: it says that of each of GitHub's own keys, and of every key that a user put there.
//!
//! Git puts the signature at the end of the headers, as header `gpgsig` whose further lines begin with a space. An object that
//! another program made otherwise is refused, as is one with two signatures.

use std::fmt;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, UnparsedPublicKey};
use cofferdam_protocol::{Commit as CommitId, Fingerprint, SignerKey, SignerPublic, Timestamp, shorten};
use ssh_key::public::{EcdsaPublicKey, KeyData};
use ssh_key::{Algorithm, EcdsaCurve, HashAlg, SshSig};

use super::object;

/// Bound on the signed text of a commit in bytes: its message is most of it.
pub const MAX_PAYLOAD: usize = 256 * 1024;

/// Bound on a signature in bytes. An SSH signature has about 300; one of PGP is read as far as its first line.
pub const MAX_SIGNATURE: usize = 16 * 1024;

/// Parents that a commit may have.
const MAX_PARENTS: usize = 64;

/// What a signature of git's says that it is for.
const NAMESPACE: &str = "git";

const SSH_BEGINS: &str = "-----BEGIN SSH SIGNATURE-----\n";

/// A commit whose whole text was seen, and which one of the signers signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedCommit {
    /// Its name.
    pub id: CommitId,
    /// The name of its root directory.
    pub tree: CommitId,
    /// The commits that it follows.
    pub parents: Vec<CommitId>,
    /// When it was made, as its committer says.
    pub committed: Timestamp,
    /// Whose signature it has.
    pub signer: SignerKey,
}

/// Why a commit does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// It has no signature.
    #[error("it is not signed")]
    Unsigned,
    /// It is signed by other means than SSH keys.
    #[error("it is signed with {0}, and only SSH signatures count")]
    Foreign(Foreign),
    /// The signature is by nobody who is a signer.
    #[error("it is signed by {0}, which is no signer's key")]
    Stranger(Fingerprint),
    /// The signature is for something else than git.
    #[error("its signature is for `{0}` instead of git")]
    Namespace(String),
    /// The signature is not of this text.
    #[error("its signature is wrong")]
    Wrong,
    /// The signature cannot be read.
    #[error("its signature is not in the format of OpenSSH")]
    Armor,
    /// The texts are not those of the commit that was asked for.
    #[error("what GitHub sends is not the signed text of this commit")]
    NotThisCommit,
    /// The text is not a commit's.
    #[error("it is not a commit: {0}")]
    Malformed(&'static str),
    /// It is larger than any commit has to be.
    #[error("it is too large: a commit has at most {MAX_PAYLOAD} bytes, and a signature {MAX_SIGNATURE}")]
    TooLarge,
}

/// What a commit is signed with that is no SSH key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// OpenPGP: what GitHub signs with when somebody merges or edits on its pages.
    Pgp,
    /// X.509.
    X509,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pgp => "PGP, as GitHub signs what is merged on its pages",
            Self::X509 => "X.509",
        })
    }
}

/// Judges what GitHub sends as the signed text and the signature of the commit `id`.
///
/// # Errors
/// [`SignatureError`]: the first thing that keeps it from counting.
pub fn verify(
    id: CommitId,
    payload: Option<&str>,
    signature: Option<&str>,
    signers: &[SignerKey],
) -> Result<SignedCommit, SignatureError> {
    let (Some(payload), Some(signature)) = (payload, signature) else {
        return Err(SignatureError::Unsigned);
    };
    if payload.len() > MAX_PAYLOAD || signature.len() > MAX_SIGNATURE {
        return Err(SignatureError::TooLarge);
    }
    // First whether it is this commit at all: nothing else that is said here would be about it.
    let whole = with_signature(payload, signature)?;
    if object::name("commit", whole.as_bytes()) != Some(id) {
        return Err(SignatureError::NotThisCommit);
    }
    if signature.starts_with("-----BEGIN PGP ") {
        return Err(SignatureError::Foreign(Foreign::Pgp));
    }
    if signature.starts_with("-----BEGIN SIGNED MESSAGE-----") {
        return Err(SignatureError::Foreign(Foreign::X509));
    }
    let signer = signer(payload.as_bytes(), signature, signers)?;
    let Headers { tree, parents, committed } = headers(payload)?;
    Ok(SignedCommit { id, tree, parents, committed, signer: signer.clone() })
}

/// The commit's object: the signed text with the signature after its last header.
fn with_signature(payload: &str, signature: &str) -> Result<String, SignatureError> {
    let (headers, message) =
        payload.split_once("\n\n").ok_or(SignatureError::Malformed("it has no message"))?;
    if headers.split('\n').any(|line| line.starts_with("gpgsig")) {
        return Err(SignatureError::Malformed("it has more than one signature"));
    }
    let signature = signature.strip_suffix('\n').unwrap_or(signature).replace('\n', "\n ");
    Ok(format!("{headers}\ngpgsig {signature}\n\n{message}"))
}

/// Which of the signers made the signature.
fn signer<'k>(
    payload: &[u8],
    signature: &str,
    signers: &'k [SignerKey],
) -> Result<&'k SignerKey, SignatureError> {
    if !signature.starts_with(SSH_BEGINS) {
        return Err(SignatureError::Armor);
    }
    let signature = SshSig::from_pem(signature).map_err(|_| SignatureError::Armor)?;
    if signature.version() != SshSig::VERSION || !signature.reserved().is_empty() {
        return Err(SignatureError::Armor);
    }
    if signature.namespace() != NAMESPACE {
        return Err(SignatureError::Namespace(shorten(signature.namespace(), 40)));
    }
    let by = signature.public_key();
    let signer = signers.iter().find(|signer| is(signer.public(), by));
    let signer = signer.ok_or_else(|| {
        let print = by.fingerprint(HashAlg::Sha256).sha256();
        print.map_or(SignatureError::Armor, |print| SignatureError::Stranger(print.into()))
    })?;
    // Of a hash that `ssh-keygen` does not use the signature does not parse.
    let signed = SshSig::signed_data(NAMESPACE, signature.hash_alg(), payload);
    let signed = signed.map_err(|_| SignatureError::Armor)?;
    let bytes = signature.signature_bytes();
    let verified = match (signer.public(), signature.algorithm()) {
        (SignerPublic::Ed25519(key), Algorithm::Ed25519) => {
            UnparsedPublicKey::new(&ED25519, key).verify(&signed, bytes).is_ok()
        }
        (SignerPublic::EcdsaP256(key), Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }) => {
            let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key);
            fixed(bytes).is_some_and(|bytes| key.verify(&signed, &bytes).is_ok())
        }
        _ => false,
    };
    if verified { Ok(signer) } else { Err(SignatureError::Wrong) }
}

/// Whether a signer's key is the one that a signature names.
fn is(signer: &SignerPublic, by: &KeyData) -> bool {
    match (signer, by) {
        (SignerPublic::Ed25519(key), KeyData::Ed25519(by)) => *key == by.0,
        (SignerPublic::EcdsaP256(key), KeyData::Ecdsa(EcdsaPublicKey::NistP256(by))) => key == by.as_bytes(),
        _ => false,
    }
}

/// The two numbers of an ECDSA signature, which SSH writes with their lengths and without leading zeros (RFC 5656 §3.1.2), at their
/// full length one after the other.
fn fixed(mut numbers: &[u8]) -> Option<[u8; 64]> {
    let mut out = [0; 64];
    for half in out.chunks_exact_mut(32) {
        let (length, rest) = numbers.split_first_chunk::<4>()?;
        let (number, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        let number = number.strip_prefix(&[0]).unwrap_or(number);
        half.get_mut(32usize.checked_sub(number.len())?..)?.copy_from_slice(number);
        numbers = rest;
    }
    numbers.is_empty().then_some(out)
}

/// What is read of a commit's headers.
struct Headers {
    tree: CommitId,
    parents: Vec<CommitId>,
    committed: Timestamp,
}

/// Root directory, parents, author and committer, which git writes first and in this order.
fn headers(payload: &str) -> Result<Headers, SignatureError> {
    const TREE: SignatureError = SignatureError::Malformed("it does not begin with its tree");
    const PEOPLE: SignatureError =
        SignatureError::Malformed("its author and its committer do not follow its parents");
    let mut lines = payload.split('\n');
    let tree = lines.next().and_then(|line| line.strip_prefix("tree ")).ok_or(TREE)?;
    let tree = tree.parse().map_err(|_| TREE)?;
    let mut parents = Vec::new();
    let mut line = lines.next();
    while let Some(parent) = line.and_then(|line| line.strip_prefix("parent ")) {
        parents.push(parent.parse().map_err(|_| SignatureError::Malformed("a parent is not a commit"))?);
        if parents.len() > MAX_PARENTS {
            return Err(SignatureError::Malformed("it has more than 64 parents"));
        }
        line = lines.next();
    }
    line.filter(|line| line.starts_with("author ")).ok_or(PEOPLE)?;
    let committer = lines.next().and_then(|line| line.strip_prefix("committer ")).ok_or(PEOPLE)?;
    let committed = time(committer).ok_or(SignatureError::Malformed("its committer has no time"))?;
    Ok(Headers { tree, parents, committed })
}

/// The time in `NAME <ADDRESS> SECONDS ±HHMM`. The zone says nothing of which moment it was.
fn time(person: &str) -> Option<Timestamp> {
    let (person, zone) = person.rsplit_once(' ')?;
    let (person, seconds) = person.rsplit_once(' ')?;
    let zone = zone.strip_prefix(['+', '-'])?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let plain = seconds == "0" || !seconds.is_empty() && digits(seconds) && !seconds.starts_with('0');
    if !plain || zone.len() != 4 || !digits(zone) || !person.ends_with('>') {
        return None;
    }
    Timestamp::from_unix(seconds.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_committers_time_has_one_spelling_and_ends_with_the_year_9999() {
        let at = |text: &str| time(text).map(Timestamp::unix);
        assert_eq!(at("Alice <a@example.org> 1798761600 +0100"), Some(1_798_761_600));
        assert_eq!(at("A > 1 +0000 <> 0 -0000"), Some(0));
        assert_eq!(at("<> 253402300799 +0000"), Some(253_402_300_799));
        for wrong in [
            "",
            "Alice <a@example.org>",
            "Alice <a@example.org> +0100",
            "Alice <a@example.org> 01 +0100",
            "Alice <a@example.org> +1 +0100",
            "Alice <a@example.org> -1 +0100",
            "Alice <a@example.org>  +0100",
            "Alice <a@example.org> 1 0100",
            "Alice <a@example.org> 1 +01000",
            "Alice <a@example.org> 1 +01:0",
            "Alice <a@example.org> 1 +0100 ",
            "Alice 1 +0100",
            "<> 253402300800 +0000",
            "<> 99999999999999999999999 +0000",
        ] {
            assert_eq!(at(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn the_numbers_of_an_ecdsa_signature_are_put_at_their_full_length_or_refused() {
        let number = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
        let both = |r: &[u8], s: &[u8]| [number(r), number(s)].concat();
        let out = fixed(&both(&[1], &[0, 0x80, 2])).unwrap();
        assert_eq!((out[31], out[62], out[63]), (1, 0x80, 2));
        assert_eq!(out.iter().filter(|byte| **byte != 0).count(), 3);
        let full = [0xff; 32];
        assert_eq!(fixed(&both(&full, &full)), Some([0xff; 64]));
        let longer = [1; 33];
        for wrong in [
            Vec::new(),
            number(&full),
            both(&longer, &[1]),
            [both(&[1], &[1]), vec![0]].concat(),
            vec![0xff, 0xff, 0xff, 0xff, 1],
        ] {
            assert_eq!(fixed(&wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn the_head_of_a_commit_is_its_tree_and_its_parents_in_their_order() {
        let (a, b, c) = ("a".repeat(40), "b".repeat(40), "c".repeat(40));
        let people = "author A <a@b> 1 +0000\ncommitter C <c@d> 2 +0000\n";
        let rest = format!("{people}\nparent {c}\n");
        let found = headers(&format!("tree {a}\nparent {c}\nparent {b}\n{rest}")).unwrap();
        assert_eq!(found.tree, a.parse().unwrap());
        assert_eq!(found.parents, [c.parse().unwrap(), b.parse().unwrap()]);
        assert_eq!(found.committed.unix(), 2);
        assert!(headers(&format!("tree {a}\n{rest}")).unwrap().parents.is_empty());
        let many = format!("parent {b}\n").repeat(MAX_PARENTS + 1);
        for wrong in [
            rest.clone(),
            format!("parent {b}\ntree {a}\n{rest}"),
            format!("tree {}\n{rest}", a.to_uppercase()),
            format!("tree {a}\nparent HEAD\n{rest}"),
            format!("tree {a}\n{many}{rest}"),
            format!("tree {a}\nauthor A <a@b> 1 +0000\n\n{people}"),
            format!("tree {a}\n\n{people}"),
        ] {
            assert!(headers(&wrong).is_err(), "{wrong}");
        }
    }
}
