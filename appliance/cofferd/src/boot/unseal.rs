//! Stage `unseal`: the appliance has its state, and with it the vault's key and the numbers of its services.
//!
//! How the state is kept is measured here, before anything uses it. So far there is one way: in memory, made anew at each boot.

use cofferdam_attest::event_log::payload;

use super::keys::{self, KeyError};
use super::measure::Measured;
use super::numbers::Numbers;
use crate::system::spawn::KeyFile;
use crate::system::tdx::TdxError;
use cofferdam_protocol::state::State;

/// Why the stage failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnsealError {
    /// The vault's key.
    #[error("cannot make the vault's key")]
    Key(#[from] KeyError),
    /// A register.
    #[error("cannot measure how the state is kept")]
    Registers(#[from] TdxError),
}

/// What holds after this stage.
pub(crate) struct Unsealed {
    /// How the state is kept: the claims and every text about it follow from this.
    pub(crate) state: State,
    /// The vault's master key.
    pub(crate) vault_key: KeyFile,
    /// The services that had a number before.
    pub(crate) numbers: Numbers,
}

/// Opens the state, or makes it.
///
/// # Errors
///
/// [`UnsealError`].
pub(crate) fn establish(measured: &mut Measured) -> Result<Unsealed, UnsealError> {
    measured.measure(&payload::State::memory())?;
    Ok(Unsealed { state: State::Memory, vault_key: keys::master()?, numbers: Numbers::default() })
}
