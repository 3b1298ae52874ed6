//! What lets another image, another repository or other operators open a state: a statement, signed by one of the operators that the
//! state knows.
//!
//! A statement is about the state of one repository and allows exactly one successor: an image by its measurements, the repository of
//! its declaration, and the operators that this names. Its version has to be above the state's, and becomes the state's, so that
//! it counts once and whoever wants to go back needs a statement of their own.
//!
//! It travels as a file, and then in an [`UnsealRequest`](super::unseal::UnsealRequest). What is signed is the domain, a zero byte and the
//! statement as JSON on one line, with its members in the order of the types here: the file may be indented. Making and checking the
//! signature is for those who have the cryptography.

use serde::{Deserialize, Serialize};

use super::event::Register;
use super::operator::Signature;
use crate::json::{self, JsonError};
use crate::{Base64Array, Digest, Fingerprint, Repository, hex};

/// Most operators of a state: as many as a declaration may name.
pub const MAX_OPERATORS: usize = 32;
/// Largest file in bytes; one with the most operators has less than 4 KiB.
pub const MAX_BYTES: usize = 8 * 1024;

/// Domain separator of [`Statement::signing_input`]; a zero byte follows it.
const DOMAIN: &[u8] = b"cofferdam/upgrade/v1";

/// What is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// What the state's version becomes. It has to be above what it is.
    pub version: u64,
    /// The repository that the state belongs to now.
    pub from: Repository,
    /// Who may open it then.
    pub to: Successor,
}

/// Who may open a state: everything but the machine's shape (RTMR0).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Successor {
    /// The repository of the declaration.
    pub repository: Repository,
    /// MRTD.
    #[serde(with = "hex::array")]
    pub mrtd: Register,
    /// RTMR1.
    #[serde(with = "hex::array")]
    pub rtmr1: Register,
    /// RTMR2.
    #[serde(with = "hex::array")]
    pub rtmr2: Register,
    /// The Ed25519 public keys of the declaration's operators (RFC 8032, 32 bytes each): 1 to [`MAX_OPERATORS`], ascending, none twice.
    pub operators: Vec<Base64Array<32>>,
}

/// A statement with its signature: the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedStatement {
    /// What is allowed.
    pub statement: Statement,
    /// Which key signed.
    pub key: Fingerprint,
    /// Its Ed25519 signature of [`Statement::signing_input`].
    pub signature: Signature,
}

impl Statement {
    /// The bytes that an operator's key signs: domain 00 JSON.
    ///
    /// # Errors
    /// It cannot be written: nothing is signed then.
    pub fn signing_input(&self) -> Result<Vec<u8>, JsonError> {
        Ok([DOMAIN, &json::to_vec(self)?].join(&0))
    }

    /// Names the statement, whoever signed it: SHA-256 of [`Statement::signing_input`].
    ///
    /// # Errors
    /// As [`Statement::signing_input`].
    pub fn digest(&self) -> Result<Digest, JsonError> {
        Ok(Digest::of(self.signing_input()?))
    }
}

impl Successor {
    /// Whether there are as many operators as there may be, each once and in order: there is one way to write them.
    pub fn is_ordered(&self) -> bool {
        (1..=MAX_OPERATORS).contains(&self.operators.len())
            && self.operators.is_sorted_by(|one, next| one.as_bytes() < next.as_bytes())
    }
}

impl SignedStatement {
    /// Reads a file.
    ///
    /// # Errors
    /// It is too large or not of this shape. Whether the operators are in order, [`Successor::is_ordered`] says.
    pub fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        json::from_json(bytes, MAX_BYTES)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn signed() -> SignedStatement {
        let to = Successor {
            repository: "acme/shop".parse().unwrap(),
            mrtd: [1; 48],
            rtmr1: [2; 48],
            rtmr2: [3; 48],
            operators: vec![[4; 32].into(), [5; 32].into()],
        };
        let statement = Statement { version: 2, from: "acme/shop".parse().unwrap(), to };
        SignedStatement { statement, key: Fingerprint::of(&[4; 32]), signature: [6; 64].into() }
    }

    #[test]
    fn what_is_signed_does_not_depend_on_the_file() {
        let signed = signed();
        let input = signed.statement.signing_input().unwrap();
        assert!(input.starts_with(b"cofferdam/upgrade/v1\0{\"version\":2,\"from\":\"acme/shop\",\"to\":{"));
        let pretty = json::to_vec_pretty(&signed).unwrap();
        let read = SignedStatement::parse(&pretty).unwrap();
        assert_eq!((read.statement.signing_input().unwrap(), &read), (input, &signed));
        let other = Statement { version: 3, ..signed.statement.clone() };
        assert_ne!(other.digest().unwrap(), signed.statement.digest().unwrap());
    }

    #[test]
    fn a_file_is_read_strictly() {
        let text = String::from_utf8(json::to_vec(&signed()).unwrap()).unwrap();
        assert!(SignedStatement::parse(text.as_bytes()).is_ok());
        for wrong in [
            text.replacen("\"version\":2", "\"version\":-2", 1),
            text.replacen("\"version\":2", "\"version\":2,\"version\":2", 1),
            text.replacen("\"version\":2", "\"version\":2,\"more\":1", 1),
            text.replacen("\"version\":2,", "", 1),
            text.replacen("acme/shop", "acme", 1),
            text.replacen("SHA256:", "MD5:", 1),
            text.replacen("0101", "01", 1),
            format!("{text}{text}"),
            format!("{text}{}", " ".repeat(MAX_BYTES)),
        ] {
            assert!(SignedStatement::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn operators_are_written_in_one_order() {
        let with = |keys: &[u8]| {
            let operators = keys.iter().map(|byte| [*byte; 32].into()).collect();
            Successor { operators, ..signed().statement.to }.is_ordered()
        };
        let most: Vec<u8> = (0..=32).collect();
        assert!(with(&[1]) && with(&[1, 2]) && with(&most[..32]));
        assert!(!with(&[]) && !with(&[2, 1]) && !with(&[1, 1]) && !with(&most));
        // As bytes, not as numbers of another order.
        let (mut low, mut high) = ([0; 32], [0; 32]);
        (low[31], high[0]) = (255, 1);
        let to = Successor { operators: vec![low.into(), high.into()], ..signed().statement.to };
        assert!(to.is_ordered());
    }
}
