//! Files that others read while they are written, directories with an owner, and bounded reads of files that others made.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

use cofferdam_protocol::read;

/// Replaces `path` by a file with these bytes, mode 0644: a reader sees the old bytes or the new, never a mix.
///
/// # Errors
///
/// What the file system says.
pub fn replace(path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
    let path = path.as_ref();
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    match fs::remove_file(&name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&name)?;
    file.write_all(bytes)?;
    fs::rename(&name, path)
}

/// Makes a directory, and those above it, with this owner and mode; one that is there gets them too.
///
/// # Errors
///
/// What the file system says.
pub fn directory(path: impl AsRef<Path>, uid: u32, gid: u32, mode: u32) -> io::Result<()> {
    fs::create_dir_all(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    chown(path, Some(uid), Some(gid))
}

/// Reads a file of at most `limit` bytes.
///
/// # Errors
///
/// What the file system says; `FileTooLarge` when there is more.
pub fn read_bounded(path: impl AsRef<Path>, limit: u64) -> io::Result<Vec<u8>> {
    read::bounded(fs::File::open(path)?, limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replacing_leaves_one_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("status.json");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn one_byte_more_than_the_limit_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        fs::write(&path, b"1234").unwrap();
        assert_eq!(read_bounded(&path, 4).unwrap(), b"1234");
        assert_eq!(read_bounded(&path, 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
