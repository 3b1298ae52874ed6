//! How the appliance keeps its state, as PID 1 writes it down and the roles read it.

use std::fmt;
use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

/// What holds where no witness says how new a state on a disk has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rollback {
    /// The state stays closed.
    #[default]
    Require,
    /// It opens, and that is said wherever the state is spoken of.
    Warn,
}

/// Why an older copy of this boot's state would have been noticed, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Continuity {
    /// The number of this boot's anchor: a release whose tag says it.
    pub anchor: NonZeroU64,
    /// The lowest number that belongs to this state. From there on to the one before `anchor` every anchor was published.
    pub first_anchor: NonZeroU64,
    /// No witness said how new the state has to be.
    #[serde(default, skip_serializing_if = "is_false")]
    pub unwitnessed: bool,
    /// The epoch of a state that an operator gave up at this boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_loss: Option<NonZeroU64>,
}

/// The last number of an anchor: tags have seven digits.
pub const MAX_ANCHOR: u64 = 9_999_999;

impl Continuity {
    /// Whether the numbers are those of anchors, in their order.
    pub fn is_ordered(&self) -> bool {
        self.first_anchor <= self.anchor && self.anchor.get() <= MAX_ANCHOR
    }
}

impl fmt::Display for Continuity {
    /// What somebody should know of it, each behind a comma; often nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.unwitnessed {
            f.write_str(", UNWITNESSED: an older copy would not have been noticed")?;
        }
        match self.accepted_loss {
            Some(epoch) => write!(f, ", the loss of the state of epoch {epoch} was accepted"),
            None => Ok(()),
        }
    }
}

// serde passes a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(value: &bool) -> bool {
    !value
}

/// How the state is kept. What is claimed and said about it follows from this value alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum State {
    /// In memory, under a key that was drawn at this boot.
    Memory,
    /// On a disk, under a key that is not there: there is no vault.
    Sealed,
    /// On a disk that this boot opened.
    Open {
        /// Number of the store's commit at this boot's opening. It rises with each opening and each change, so that an older copy of
        /// the disk has a lower one.
        epoch: u64,
        /// What there is against older copies.
        continuity: Continuity,
    },
}

impl State {
    /// The claim `state_epoch`: 0 for a state that is in memory or not open.
    pub fn epoch(self) -> u64 {
        match self {
            Self::Memory | Self::Sealed => 0,
            Self::Open { epoch, .. } => epoch,
        }
    }

    /// The claim `state_continuity`: only of a state on a disk that is open.
    pub fn continuity(self) -> Option<Continuity> {
        match self {
            Self::Memory | Self::Sealed => None,
            Self::Open { continuity, .. } => Some(continuity),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("in memory only, lost at power-off"),
            Self::Sealed => f.write_str("sealed, waiting for its key"),
            Self::Open { epoch, continuity } => write!(f, "on disk, open at epoch {epoch}{continuity}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(number: u64) -> NonZeroU64 {
        number.try_into().unwrap()
    }

    #[test]
    fn the_claim_and_the_text_follow_from_the_state() {
        let plain = Continuity {
            anchor: number(3),
            first_anchor: number(1),
            unwitnessed: false,
            accepted_loss: None,
        };
        let open = State::Open { epoch: 7, continuity: plain };
        let lost = Continuity { unwitnessed: true, accepted_loss: Some(number(41)), ..plain };
        let lost = State::Open { epoch: 42, continuity: lost };
        for (state, json, epoch, text) in [
            (State::Memory, r#""memory""#, 0, "in memory only, lost at power-off"),
            (State::Sealed, r#""sealed""#, 0, "sealed, waiting for its key"),
            (
                open,
                r#"{"open":{"epoch":7,"continuity":{"anchor":3,"first_anchor":1}}}"#,
                7,
                "on disk, open at epoch 7",
            ),
            (
                lost,
                r#"{"open":{"epoch":42,"continuity":{"anchor":3,"first_anchor":1,"unwitnessed":true,"accepted_loss":41}}}"#,
                42,
                "on disk, open at epoch 42, UNWITNESSED: an older copy would not have been noticed, the loss of the state of epoch 41 was accepted",
            ),
        ] {
            assert_eq!(serde_json::to_string(&state).unwrap(), json);
            assert_eq!(serde_json::from_str::<State>(json).unwrap(), state);
            assert_eq!((state.epoch(), state.to_string().as_str()), (epoch, text));
        }
        for wrong in [
            r#""open""#,
            r#"{"open":{}}"#,
            r#"{"open":{"epoch":1}}"#,
            r#"{"open":{"epoch":1,"continuity":{"anchor":0,"first_anchor":1}}}"#,
            r#"{"open":{"epoch":1,"continuity":{"anchor":1,"first_anchor":1},"x":2}}"#,
            r#""lost""#,
        ] {
            assert!(serde_json::from_str::<State>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_numbers_of_anchors_are_in_their_order_and_have_an_end() {
        let of = |first: u64, anchor: u64| Continuity {
            anchor: number(anchor),
            first_anchor: number(first),
            unwitnessed: false,
            accepted_loss: None,
        };
        assert!(of(1, 1).is_ordered() && of(5, MAX_ANCHOR).is_ordered());
        assert!(!of(2, 1).is_ordered() && !of(1, MAX_ANCHOR + 1).is_ordered());
    }
}
