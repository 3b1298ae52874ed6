//! Whom a workload runs as: the declaration's numbers, or the image's user, whose names are looked up in
//! the image's own files (passwd(5), group(5)), opened inside its root and bounded.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use cofferdam_declaration::User;
use nix::fcntl::OFlag;

use crate::OUTSIDE_ID;
use crate::unpack::in_root;

/// Real files have some KiB; the lookup reads no more than this.
const MAX_FILE: u64 = 1 << 20;

/// Why there is nobody to run as.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// The image's files do not know the name.
    #[error("the image has no {kind} called {name:?}")]
    Unknown {
        /// `user` or `group`.
        kind: &'static str,
        /// As the image's configuration has it.
        name: String,
    },
    /// Outside the container's ids, or the one that is nobody's.
    #[error("the id {0} is not one that a workload can have (0 to 65534)")]
    OutOfRange(u64),
}

/// A resolved user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// User id inside the container.
    pub uid: u32,
    /// Group id inside the container.
    pub gid: u32,
    /// Absolute; `/` when the image does not know the user.
    pub home: String,
}

/// Resolves the declaration's user, or else the image's `user[:group]`, against the image's root.
///
/// # Errors
///
/// [`UserError`].
pub fn resolve(root: &OwnedFd, declared: Option<User>, image: &str) -> Result<Account, UserError> {
    let passwd = read(root, "etc/passwd");
    match declared {
        Some(user) => {
            by_words(&user.uid.to_string(), user.gid.map(|gid| gid.to_string()).as_deref(), &passwd, "")
        }
        None => {
            let (user, group) = match image.split_once(':') {
                Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
                None => (image, None),
            };
            let user = if user.is_empty() { "0" } else { user };
            by_words(user, group, &passwd, &read(root, "etc/group"))
        }
    }
}

/// A missing or unreadable file knows nobody.
fn read(root: &OwnedFd, path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = in_root(root, Path::new(path), OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
        let file = std::fs::File::from(file);
        if file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            let _ = file.take(MAX_FILE).read_to_end(&mut bytes);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn by_words(user: &str, group: Option<&str>, passwd: &str, groups: &str) -> Result<Account, UserError> {
    // name:password:uid:gid:comment:home:shell
    let by_name = passwd.lines().find(|line| line.split(':').next() == Some(user));
    let number = user.parse::<u64>().ok();
    let by_number = || {
        let number = number?;
        passwd.lines().find(|line| field(line, 2).and_then(|id| id.parse().ok()) == Some(number))
    };
    // As Docker has it, a number is a number even where somebody is called by it.
    let line = if number.is_some() { by_number() } else { by_name };
    let uid = match (number, line.and_then(|line| field(line, 2)?.parse().ok())) {
        (Some(number), _) => number,
        (None, Some(number)) => number,
        (None, None) => return Err(UserError::Unknown { kind: "user", name: crate::image::short(user) }),
    };
    let gid = match group {
        Some(group) => group_id(group, groups)?,
        None => line.and_then(|line| field(line, 3)?.parse().ok()).unwrap_or(0),
    };
    let home = line.and_then(|line| field(line, 5)).filter(|home| home.starts_with('/')).unwrap_or("/");
    Ok(Account { uid: in_range(uid)?, gid: in_range(gid)?, home: home.to_owned() })
}

fn group_id(group: &str, groups: &str) -> Result<u64, UserError> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    // name:password:gid:members
    let line = groups.lines().find(|line| line.split(':').next() == Some(group));
    line.and_then(|line| field(line, 2)?.parse().ok())
        .ok_or_else(|| UserError::Unknown { kind: "group", name: crate::image::short(group) })
}

fn field(line: &str, index: usize) -> Option<&str> {
    line.split(':').nth(index)
}

fn in_range(id: u64) -> Result<u32, UserError> {
    u32::try_from(id).ok().filter(|id| *id < OUTSIDE_ID).ok_or(UserError::OutOfRange(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/srv/app:/bin/false\n7:x:70:70::/:\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:app\n";

    fn account(uid: u32, gid: u32, home: &str) -> Account {
        Account { uid, gid, home: home.into() }
    }

    #[test]
    fn names_and_numbers_resolve_as_docker_resolves_them() {
        let resolve = |user, group| by_words(user, group, PASSWD, GROUP);
        assert_eq!(resolve("app", None).unwrap(), account(1000, 1001, "/srv/app"));
        assert_eq!(resolve("app", Some("wheel")).unwrap(), account(1000, 10, "/srv/app"));
        assert_eq!(resolve("1000", None).unwrap(), account(1000, 1001, "/srv/app"));
        assert_eq!(resolve("4242", None).unwrap(), account(4242, 0, "/"));
        assert_eq!(resolve("7", None).unwrap(), account(7, 0, "/"));
        assert_eq!(resolve("0", Some("5")).unwrap(), account(0, 5, "/root"));
    }

    #[test]
    fn the_unknown_and_the_impossible_are_errors() {
        let resolve = |user, group| by_words(user, group, PASSWD, GROUP);
        assert!(matches!(resolve("nobody", None), Err(UserError::Unknown { kind: "user", .. })));
        assert!(matches!(resolve("app", Some("x")), Err(UserError::Unknown { kind: "group", .. })));
        assert_eq!(resolve("65535", None), Err(UserError::OutOfRange(65535)));
        assert_eq!(resolve("0", Some("4294967296")), Err(UserError::OutOfRange(4_294_967_296)));
        assert!(resolve("-1", None).is_err());
    }

    #[test]
    fn the_files_are_the_images_own() {
        let image = tempfile::tempdir().unwrap();
        std::fs::create_dir(image.path().join("etc")).unwrap();
        // A link that points out of the image leads to the image's own file of that name, which is not there.
        std::os::unix::fs::symlink("/etc/hostname", image.path().join("etc/passwd")).unwrap();
        let root = nix::fcntl::open(image.path(), OFlag::O_DIRECTORY, nix::sys::stat::Mode::empty()).unwrap();
        assert!(resolve(&root, None, "root").is_err());
        std::fs::write(image.path().join("etc/hostname"), PASSWD).unwrap();
        assert_eq!(resolve(&root, None, "app").unwrap(), account(1000, 1001, "/srv/app"));
        assert_eq!(resolve(&root, None, "").unwrap(), account(0, 0, "/root"));
        let declared = Some("1000".parse().unwrap());
        assert_eq!(resolve(&root, declared, "root").unwrap(), account(1000, 1001, "/srv/app"));
    }
}
