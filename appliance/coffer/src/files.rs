//! Reading the files that the user names: bounded, with errors that name the file and the limit.
//!
//! A regular file says how long it is and is refused before it is read; of everything else (pipes, devices) no more is read
//! than one byte over the limit.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use cofferdam_protocol::read;
use zeroize::Zeroizing;

use crate::failure::{Failure, Outcome};

/// Reads a file of at most `largest` bytes.
pub(crate) fn read(path: &Path, largest: usize) -> Outcome<Vec<u8>> {
    read_secret(path, largest).map(|mut bytes| std::mem::take(&mut *bytes))
}

/// As [`read`]; `-` is standard input.
pub(crate) fn read_or_stdin(path: &Path, largest: usize) -> Outcome<Vec<u8>> {
    read(if path == Path::new("-") { Path::new("/dev/stdin") } else { path }, largest)
}

/// As [`read`], for bytes that are wiped after use.
pub(crate) fn read_secret(path: &Path, largest: usize) -> Outcome<Zeroizing<Vec<u8>>> {
    let (file, length) = open(path)?;
    let too_large = || Failure::usage(format!("{} has more than {largest} bytes", path.display()));
    let limit = u64::try_from(largest).unwrap_or(u64::MAX);
    if length.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    // Reserved once, so that no half-read copy stays behind when the buffer grows.
    let mut bytes = Zeroizing::new(Vec::with_capacity(largest.min(1 << 20).saturating_add(1)));
    match read::bounded_into(file, limit, &mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) if error.kind() == ErrorKind::FileTooLarge => Err(too_large()),
        Err(error) => Err(failed(path)(error)),
    }
}

/// Reads the first `largest` bytes of a file and, if it has more, one byte of those: for a format that judges its own size.
pub(crate) fn read_beginning(path: &Path, largest: usize) -> Outcome<Vec<u8>> {
    let (file, _) = open(path)?;
    let limit = u64::try_from(largest).unwrap_or(u64::MAX).saturating_add(1);
    read::beginning(file, limit).map_err(failed(path))
}

/// The file and, where it is a regular one, its length.
fn open(path: &Path) -> Outcome<(File, Option<u64>)> {
    let file = File::open(path).map_err(failed(path))?;
    let about = file.metadata().map_err(failed(path))?;
    Ok((file, about.is_file().then_some(about.len())))
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Failure {
    move |error| Failure::usage(format!("cannot read {}: {error}", path.display()))
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

/// Writes a new file that only its owner can read; nothing that is there is overwritten.
pub(crate) fn write_new(path: &Path, text: &[u8]) -> Outcome {
    let failed = |error: std::io::Error| Failure::failed(format!("cannot write {}: {error}", path.display()));
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    // Written whole under another name, then linked: an existing key is never overwritten, not even by a race, and no
    // half-written one is left behind.
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(failed)?;
    let written = file
        .write_all(text)
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::hard_link(&temporary, path));
    let _ = std::fs::remove_file(&temporary);
    written.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of 1 TiB without contents, and a device without an end.
    #[test]
    fn what_is_too_large_is_refused_before_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let sparse = folder.path().join("sparse");
        File::create(&sparse).unwrap().set_len(1 << 40).unwrap();
        // Half a terabyte is within no memory: reading would fail the test, or never end.
        let refused = read(&sparse, 1 << 39).unwrap_err();
        assert!(refused.message.ends_with("has more than 549755813888 bytes"), "{}", refused.message);
        assert!(read_text(&sparse, 1 << 20).is_err());
        assert_eq!(read_beginning(&sparse, 10).unwrap().len(), 11);
        let endless = read(Path::new("/dev/zero"), 1 << 20).unwrap_err();
        assert_eq!(endless.message, "/dev/zero has more than 1048576 bytes");
        let exact = folder.path().join("exact");
        std::fs::write(&exact, [7; 10]).unwrap();
        assert_eq!(read(&exact, 10).unwrap(), [7; 10]);
        assert!(read(&exact, 9).is_err());
        assert!(read(folder.path(), 10).is_err(), "a directory");
    }
}
