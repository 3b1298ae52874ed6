//! Reading `appliance.json`, the facts of this boot that PID 1 wrote.
//!
//! A role that cannot read it stops: without these facts it could only guess.

use std::path::{Path, PathBuf};

use cofferdam_protocol::facts::{ApplianceFacts, MAX_BYTES};
use cofferdam_protocol::json::JsonError;

use crate::system::files;

/// Why the facts of this boot are not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplianceError {
    /// The file is missing, unreadable or larger than PID 1 could have made it.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not of the shape of [`ApplianceFacts`].
    #[error("{} is not of the expected shape", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// Where and how it differs.
        #[source]
        source: JsonError,
    },
}

/// Reads the file that PID 1 wrote.
///
/// # Errors
/// When it cannot be read, is too large or not of this shape.
pub(crate) fn read(path: &Path) -> Result<ApplianceFacts, ApplianceError> {
    let bytes = files::read_bounded(path, MAX_BYTES as u64)
        .map_err(|source| ApplianceError::Read { path: path.to_owned(), source })?;
    ApplianceFacts::parse(&bytes).map_err(|source| ApplianceError::Shape { path: path.to_owned(), source })
}
