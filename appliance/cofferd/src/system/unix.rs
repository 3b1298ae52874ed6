//! Unix sockets that roles serve. Who may say what is decided by the peer's uid (SO_PEERCRED, unix(7)), so anybody may connect.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tokio::net::UnixListener;

/// Makes the socket anew, mode 0666; one that a former run of the role left is removed.
///
/// # Errors
///
/// What unlink(2), bind(2) and chmod(2) say.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o666))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_takes_the_place_of_an_old_one_and_is_open_to_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("role.sock");
        drop(bind(&path).unwrap());
        let _listener = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
        tokio::net::UnixStream::connect(&path).await.unwrap();
    }
}
