//! How the appliance keeps its state, as PID 1 writes it down and the roles read it.

use std::fmt;

use serde::{Deserialize, Serialize};

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
    },
}

impl State {
    /// The claim `state_epoch`: 0 for a state that is in memory or not open.
    pub fn epoch(self) -> u64 {
        match self {
            Self::Memory | Self::Sealed => 0,
            Self::Open { epoch } => epoch,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("in memory only, lost at power-off"),
            Self::Sealed => f.write_str("sealed, waiting for its key"),
            Self::Open { epoch } => write!(f, "on disk, open at epoch {epoch}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_claim_and_the_text_follow_from_the_state() {
        for (state, json, epoch, text) in [
            (State::Memory, r#""memory""#, 0, "in memory only, lost at power-off"),
            (State::Sealed, r#""sealed""#, 0, "sealed, waiting for its key"),
            (State::Open { epoch: 7 }, r#"{"open":{"epoch":7}}"#, 7, "on disk, open at epoch 7"),
        ] {
            assert_eq!(serde_json::to_string(&state).unwrap(), json);
            assert_eq!(serde_json::from_str::<State>(json).unwrap(), state);
            assert_eq!((state.epoch(), state.to_string().as_str()), (epoch, text));
        }
        for wrong in [r#""open""#, r#"{"open":{}}"#, r#"{"open":{"epoch":1,"x":2}}"#, r#""lost""#] {
            assert!(serde_json::from_str::<State>(wrong).is_err(), "{wrong}");
        }
    }
}
