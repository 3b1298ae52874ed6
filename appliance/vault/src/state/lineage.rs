//! Who may open a state now, and what a statement makes of that.
//!
//! It stands in the sheet of key slots, under the sheet's tag and apart from what the slots authenticate, so that it can become
//! another one without what opens them:
//!
//! ```text
//! offset  length
//!      0       8  version, from 1
//!      8       1  length of the repository's name
//!      9     151  the name, OWNER/REPO
//!    160      48  MRTD of the image
//!    208      96  its RTMR1, RTMR2
//!    304       1  length of the name of its release
//!    305      63  the name
//!    368       1  number of operators, 1 to 32
//!    369      31  zero
//!    400    1024  their Ed25519 public keys, ascending; those that there are not are zero
//! ```
//!
//! The image, the repository and the operators of a boot have to be these, or a statement ([`cofferdam_protocol::upgrade`]) that one of these
//! operators has signed names them. RTMR0 is the machine's shape and stays out: a state is not lost because memory was added, and
//! whoever opens it has appraised the machine first.

use cofferdam_protocol::unseal::Lineage;
use cofferdam_protocol::upgrade::{MAX_OPERATORS, SignedStatement, Successor};
use cofferdam_protocol::{Fingerprint, Repository};

use super::slot::{is_release, take};
use super::{Boot, MAX_RELEASE};
use crate::{AuthenticationError, Operators};

/// Length in bytes.
pub(super) const CURRENT: usize = KEYS + MAX_OPERATORS * KEY;
const KEYS: usize = 400;
const KEY: usize = 32;
/// GitHub's names have at most 140 characters.
const REPOSITORY: usize = 151;

/// Why an image, a repository or operators do not get a state, or a statement does not help them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineageError {
    /// Left to another repository.
    #[error("the state was sealed by an appliance of {0}")]
    OtherRepository(Repository),
    /// Left to another image.
    #[error("the state was sealed by another image, {release}: its {register} is not this one's")]
    OtherImage {
        /// The image's release, as the state names it.
        release: String,
        /// Which measurement differs.
        register: &'static str,
    },
    /// Left to other operators.
    #[error("the state was sealed under other operators than this declaration names")]
    OtherOperators,
    /// The statement is signed by somebody else.
    #[error("the statement is signed by {0}, which is no operator of the state")]
    Stranger(Fingerprint),
    /// The signature is not that key's over this statement.
    #[error("the signature of the statement does not match it")]
    Signature,
    /// A statement of before, or one that was used.
    #[error("the statement is for version {statement}, and the state is at version {state} already")]
    Version {
        /// The statement's.
        statement: u64,
        /// The state's.
        state: u64,
    },
    /// A statement about another repository's state.
    #[error("the statement is about the state of {statement}, and this one is of {state}")]
    From {
        /// The statement's.
        statement: Repository,
        /// The state's.
        state: Repository,
    },
    /// A statement for another repository's appliance.
    #[error("the statement lets an appliance of {0} open the state")]
    ToRepository(Repository),
    /// A statement for another image.
    #[error("the statement lets another image open the state: its {register} is not this one's")]
    ToImage {
        /// Which measurement differs.
        register: &'static str,
    },
    /// A statement for other operators.
    #[error("the statement names other operators than this declaration")]
    ToOperators,
    /// Both sheets of key slots are from before a statement, and the store is not.
    #[error("an older sheet of key slots: it is at version {sheet}, and the store at version {store}")]
    OlderSheet {
        /// The sheet's version.
        sheet: u64,
        /// The store's.
        store: u64,
    },
}

/// Who may open a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Current {
    pub(super) version: u64,
    pub(super) repository: Repository,
    pub(super) mrtd: [u8; 48],
    /// RTMR1 and RTMR2.
    pub(super) rtmr: [[u8; 48]; 2],
    pub(super) release: String,
    /// Ascending.
    pub(super) operators: Vec<[u8; KEY]>,
}

impl Current {
    /// Whoever makes the state: this boot, and its declaration's operators.
    pub(super) fn first(boot: &Boot, operators: &Operators) -> Self {
        Self::of(1, boot, operators)
    }

    fn of(version: u64, boot: &Boot, operators: &Operators) -> Self {
        let [_, rtmr @ ..] = boot.rtmr;
        let (repository, release) = (boot.repository.clone(), boot.release.clone());
        Self { version, repository, mrtd: boot.mrtd, rtmr, release, operators: operators.keys() }
    }

    /// Whether this boot may open the state without a statement.
    pub(super) fn admits(&self, boot: &Boot, operators: &Operators) -> Result<(), LineageError> {
        if !self.repository.is_same(&boot.repository) {
            return Err(LineageError::OtherRepository(self.repository.clone()));
        }
        if let Some(register) = differs(&self.mrtd, self.rtmr.each_ref(), boot) {
            return Err(LineageError::OtherImage { release: self.release.clone(), register });
        }
        if self.operators != operators.keys() {
            return Err(LineageError::OtherOperators);
        }
        Ok(())
    }

    /// What becomes of it when this boot opens the state with a statement.
    pub(super) fn with(
        &self,
        signed: &SignedStatement,
        boot: &Boot,
        operators: &Operators,
    ) -> Result<Self, LineageError> {
        let statement = &signed.statement;
        let input = statement.signing_input().map_err(|_| LineageError::Signature)?;
        // They were a declaration's, whose keys are usable.
        let signers = Operators::new(self.operators.iter().map(|key| ("", *key)));
        signers
            .map_err(|_| LineageError::Signature)?
            .verify(&signed.key, &signed.signature, &input)
            .map_err(|error| match error {
                AuthenticationError::UnknownKey => LineageError::Stranger(signed.key),
                AuthenticationError::Signature => LineageError::Signature,
            })?;
        if statement.version <= self.version {
            return Err(LineageError::Version { statement: statement.version, state: self.version });
        }
        if !statement.from.is_same(&self.repository) {
            let (statement, state) = (statement.from.clone(), self.repository.clone());
            return Err(LineageError::From { statement, state });
        }
        let Successor { repository, mrtd, rtmr1, rtmr2, operators: named } = &statement.to;
        if !repository.is_same(&boot.repository) {
            return Err(LineageError::ToRepository(repository.clone()));
        }
        if let Some(register) = differs(mrtd, [rtmr1, rtmr2], boot) {
            return Err(LineageError::ToImage { register });
        }
        if !named.iter().map(|key| *key.as_bytes()).eq(operators.keys()) {
            return Err(LineageError::ToOperators);
        }
        Ok(Self::of(statement.version, boot, operators))
    }

    /// What an operator is told before the state is open.
    pub(super) fn describe(&self, boot: &Boot, operators: &Operators) -> Lineage {
        let [rtmr1, rtmr2] = self.rtmr;
        Lineage {
            version: self.version,
            repository: self.repository.clone(),
            release: self.release.clone(),
            mrtd: self.mrtd,
            rtmr1,
            rtmr2,
            operators: self.operators.iter().map(Fingerprint::of).collect(),
            needs_statement: self.admits(boot, operators).err().map(|error| error.to_string()),
        }
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(CURRENT);
        bytes.extend(self.version.to_be_bytes());
        text(&mut bytes, &self.repository.to_string(), REPOSITORY);
        bytes.extend(self.mrtd.iter().chain(self.rtmr.as_flattened()));
        text(&mut bytes, &self.release, MAX_RELEASE);
        bytes.push(u8::try_from(self.operators.len()).unwrap_or(0));
        bytes.resize(KEYS, 0);
        bytes.extend(self.operators.iter().take(MAX_OPERATORS).flatten());
        bytes.resize(CURRENT, 0);
        bytes
    }

    /// Reads what [`Current::write`] has written; that nothing else is there, the caller finds by writing it again.
    pub(super) fn read(rest: &mut &[u8]) -> Option<Self> {
        let version = u64::from_be_bytes(take(rest)?);
        let repository = read_text::<REPOSITORY>(rest)?.parse().ok()?;
        let mrtd = take(rest)?;
        let rtmr = [take(rest)?, take(rest)?];
        let release = read_text::<MAX_RELEASE>(rest)?;
        let [count] = take(rest)?;
        let _: [u8; 31] = take(rest)?;
        let keys: [u8; MAX_OPERATORS * KEY] = take(rest)?;
        let operators: Vec<[u8; KEY]> = keys.as_chunks().0.iter().take(usize::from(count)).copied().collect();
        let ordered = !operators.is_empty() && operators.is_sorted_by(|one, next| one < next);
        let current = Self { version, repository, mrtd, rtmr, release, operators };
        (version > 0 && is_release(&current.release) && ordered).then_some(current)
    }
}

/// The first measurement that is not this boot's.
fn differs(mrtd: &[u8; 48], [rtmr1, rtmr2]: [&[u8; 48]; 2], boot: &Boot) -> Option<&'static str> {
    let [_, boot_rtmr1, boot_rtmr2] = &boot.rtmr;
    let registers = [("MRTD", mrtd, &boot.mrtd), ("RTMR1", rtmr1, boot_rtmr1), ("RTMR2", rtmr2, boot_rtmr2)];
    registers.into_iter().find(|(_, known, present)| known != present).map(|(register, ..)| register)
}

/// A byte of length and so many bytes of place. Both texts were measured when they were read or named.
fn text(bytes: &mut Vec<u8>, text: &str, place: usize) {
    bytes.push(u8::try_from(text.len()).unwrap_or(0));
    let end = bytes.len().saturating_add(place);
    bytes.extend(text.bytes().take(place));
    bytes.resize(end, 0);
}

fn read_text<const N: usize>(rest: &mut &[u8]) -> Option<String> {
    let [length] = take(rest)?;
    let place: [u8; N] = take(rest)?;
    let text = place.get(..usize::from(length)).and_then(|text| str::from_utf8(text).ok())?;
    Some(text.to_owned())
}
