//! Reading the files that the user names: bounded, with errors that name the file.

use std::io::Read as _;
use std::path::Path;

use zeroize::Zeroizing;

use crate::failure::{Failure, Outcome};

/// Reads a file of at most `largest` bytes.
pub(crate) fn read(path: &Path, largest: usize) -> Outcome<Vec<u8>> {
    read_secret(path, largest).map(|mut bytes| std::mem::take(&mut *bytes))
}

/// As [`read`], for bytes that are wiped after use.
pub(crate) fn read_secret(path: &Path, largest: usize) -> Outcome<Zeroizing<Vec<u8>>> {
    let failed = |error: std::io::Error| Failure::usage(format!("cannot read {}: {error}", path.display()));
    let file = std::fs::File::open(path).map_err(failed)?;
    let limit = u64::try_from(largest).unwrap_or(u64::MAX).saturating_add(1);
    // Reserved once, so that no half-read copy stays behind when the buffer grows.
    let mut bytes = Zeroizing::new(Vec::with_capacity(largest.min(1 << 20).saturating_add(1)));
    file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > largest {
        return Err(Failure::usage(format!("{} has more than {largest} bytes", path.display())));
    }
    Ok(bytes)
}

/// Reads the first `largest` bytes of a file and, if it has more, one byte of those: for a format that judges its own size.
pub(crate) fn read_beginning(path: &Path, largest: usize) -> Outcome<Vec<u8>> {
    let failed = |error: std::io::Error| Failure::usage(format!("cannot read {}: {error}", path.display()));
    let limit = u64::try_from(largest).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(failed)?.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Reads a UTF-8 file of at most `largest` bytes.
pub(crate) fn read_text(path: &Path, largest: usize) -> Outcome<String> {
    String::from_utf8(read(path, largest)?)
        .map_err(|_| Failure::usage(format!("{} is not UTF-8", path.display())))
}

/// Writes a file that holds no secret.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Outcome {
    std::fs::write(path, bytes)
        .map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))
}
