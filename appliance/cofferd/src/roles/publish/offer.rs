//! Hands PID 1 what may take the place of what runs: a file with the proof, and a byte in a FIFO that says so.
//!
//! PID 1 reads neither: it has the role `admit` judge the file. What it tried and did not keep it writes down, and that is offered no
//! second time.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use cofferdam_github::Candidate;
use cofferdam_protocol::change::{self, Changes};
use cofferdam_protocol::json::JsonError;

use super::Paths;
use crate::system::files;

/// Why PID 1 does not hear of a candidate.
#[derive(Debug, thiserror::Error)]
pub(super) enum OfferError {
    /// What PID 1 wrote cannot be read.
    #[error("what became of earlier commits cannot be read")]
    Changes(#[source] io::Error),
    /// The same, since it is not of its shape.
    #[error("what became of earlier commits is not of the expected shape")]
    Shape(#[source] JsonError),
    /// It cannot be encoded.
    #[error("the commit cannot be written down")]
    Encode(#[source] JsonError),
    /// The file.
    #[error("the commit cannot be written down")]
    Write(#[source] io::Error),
    /// The FIFO.
    #[error("the appliance cannot be told of the commit")]
    Ring(#[source] io::Error),
}

/// Offers a candidate, unless it was tried before. True when it was offered.
///
/// # Errors
///
/// [`OfferError`].
pub(super) fn offer(paths: &Paths, candidate: &Candidate) -> Result<bool, OfferError> {
    let changes = match files::read_bounded(&paths.changes, change::MAX_BYTES as u64) {
        Ok(bytes) => Changes::parse(&bytes).map_err(OfferError::Shape)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Changes::default(),
        Err(error) => return Err(OfferError::Changes(error)),
    };
    if changes.is_final(&candidate.commit()) {
        return Ok(false);
    }
    let bytes = candidate.encode().map_err(OfferError::Encode)?;
    files::replace(paths.own("candidate"), &bytes).map_err(OfferError::Write)?;
    ring(&paths.own("bell")).map_err(OfferError::Ring)?;
    Ok(true)
}

/// Rings. A bell that is full of bytes has been rung.
fn ring(bell: &Path) -> io::Result<()> {
    // Without waiting: PID 1 holds the other end, or there is an error.
    let mut bell = OpenOptions::new().write(true).custom_flags(nix::libc::O_NONBLOCK).open(bell)?;
    if !bell.metadata()?.file_type().is_fifo() {
        return Err(io::Error::other("the bell is no FIFO"));
    }
    match bell.write(&[1]) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}
