//! Whom a workload runs as: the declaration's user, or else the image's. Names, and a user's further groups, are looked up in
//! the image's own files (passwd(5), group(5)), opened inside its root and bounded.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use cofferdam_declaration::{IdOrName, User};
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
        /// As the declaration or the image's configuration has it.
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
    /// Every group, that one too, in order and without repeats: a program that changes its group stays in the first one
    /// (CVE-2022-36109 was a runtime that let go of it).
    pub groups: Vec<u32>,
    /// Absolute; `/` when the image does not know the user.
    pub home: String,
}

/// Resolves the declaration's user, or else the image's `user[:group]`, against the image's root, as Docker does: a user without
/// a group is in all groups that list them. The groups `more` come on top.
///
/// # Errors
///
/// [`UserError`].
pub fn resolve(
    root: &OwnedFd,
    declared: Option<&User>,
    image: &str,
    more: &[IdOrName],
) -> Result<Account, UserError> {
    let user = declared.map_or_else(|| image.to_owned(), User::to_string);
    let more: Vec<String> = more.iter().map(IdOrName::to_string).collect();
    by_words(&user, &more, &read(root, "etc/passwd"), &read(root, "etc/group"))
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

fn by_words(words: &str, more: &[String], passwd: &str, groups: &str) -> Result<Account, UserError> {
    let (user, group) = words.split_once(':').unwrap_or((words, ""));
    let user = if user.is_empty() { "0" } else { user };
    // As Docker has it, a number is a number even where somebody is called by it.
    let number = user.parse::<u64>().ok();
    // name:password:uid:gid:comment:home:shell
    let line = passwd.lines().find(|line| match number {
        Some(number) => id(line) == Some(number),
        None => field(line, 0) == Some(user),
    });
    let unknown = || UserError::Unknown { kind: "user", name: cofferdam_registry::image::short(user) };
    let uid = in_range(number.or_else(|| line.and_then(id)).ok_or_else(unknown)?)?;
    let gid = match group {
        "" => in_range(line.and_then(|line| field(line, 3)?.parse().ok()).unwrap_or(0))?,
        group => group_id(group, groups)?,
    };
    let mut all = BTreeSet::from([gid]);
    let name = line.and_then(|line| field(line, 0)).filter(|name| group.is_empty() && !name.is_empty());
    if let Some(name) = name {
        let theirs = groups.lines().filter(|line| {
            field(line, 3).is_some_and(|members| members.split(',').any(|member| member == name))
        });
        for number in theirs.filter_map(id) {
            all.insert(in_range(number)?);
        }
    }
    for group in more {
        all.insert(group_id(group, groups)?);
    }
    let home = line.and_then(|line| field(line, 5)).filter(|home| home.starts_with('/')).unwrap_or("/");
    Ok(Account { uid, gid, groups: all.into_iter().collect(), home: home.to_owned() })
}

fn group_id(group: &str, groups: &str) -> Result<u32, UserError> {
    if let Ok(number) = group.parse() {
        return in_range(number);
    }
    // name:password:gid:members
    let number = groups.lines().find(|line| field(line, 0) == Some(group)).and_then(id);
    in_range(
        number.ok_or_else(|| UserError::Unknown {
            kind: "group",
            name: cofferdam_registry::image::short(group),
        })?,
    )
}

/// The number of a line of passwd or of group.
fn id(line: &str) -> Option<u64> {
    field(line, 2)?.parse().ok()
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

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/srv/app:/bin/false\n7:x:70:70::/:\n\
        :x:71:71::/:\nfar:x:80:80::/:\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:app,root\nvideo:x:44:7,app\nbroken:x:y:app\nempty:x:45:\napplied:x:46:apps\n\
        twice:x:1001:app\nfar:x:70000:far\nlast:x:65535:\n";

    fn account(uid: u32, gid: u32, groups: &[u32], home: &str) -> Account {
        Account { uid, gid, groups: groups.to_vec(), home: home.into() }
    }

    #[test]
    fn names_and_numbers_resolve_as_docker_resolves_them() {
        let resolve = |words| by_words(words, &[], PASSWD, GROUP).unwrap();
        assert_eq!(resolve("app"), account(1000, 1001, &[10, 44, 1001], "/srv/app"));
        assert_eq!(resolve("1000"), account(1000, 1001, &[10, 44, 1001], "/srv/app"));
        assert_eq!(
            resolve("app:wheel"),
            account(1000, 10, &[10], "/srv/app"),
            "a group that is named is the only one"
        );
        assert_eq!(resolve("4242"), account(4242, 0, &[0], "/"));
        // The user of id 7 has no name, and the one called 7 is not meant.
        assert_eq!(resolve("7"), account(7, 0, &[0], "/"));
        assert_eq!(resolve("70"), account(70, 70, &[44, 70], "/"));
        assert_eq!(resolve("71"), account(71, 71, &[71], "/"), "nobody's name is in no group");
        assert_eq!(resolve("0:5"), account(0, 5, &[5], "/root"));
        assert_eq!(resolve(""), account(0, 0, &[0, 10], "/root"));
        assert_eq!(resolve("app:"), resolve("app"));
    }

    #[test]
    fn declared_groups_come_on_top() {
        let more = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(ToString::to_string).collect();
            by_words("app:wheel", &words, PASSWD, GROUP).map(|account| account.groups)
        };
        assert_eq!(more(&["video", "10", "2000"]).unwrap(), [10, 44, 2000]);
        assert!(matches!(more(&["nothing"]), Err(UserError::Unknown { kind: "group", .. })));
        assert_eq!(more(&["last"]), Err(UserError::OutOfRange(65535)));
        assert_eq!(more(&["65535"]), Err(UserError::OutOfRange(65535)));
    }

    #[test]
    fn the_unknown_and_the_impossible_are_errors() {
        let resolve = |words| by_words(words, &[], PASSWD, GROUP);
        assert!(matches!(resolve("nobody"), Err(UserError::Unknown { kind: "user", .. })));
        assert!(matches!(resolve("app:x"), Err(UserError::Unknown { kind: "group", .. })));
        assert!(matches!(resolve("app:broken"), Err(UserError::Unknown { kind: "group", .. })));
        assert_eq!(resolve("65535"), Err(UserError::OutOfRange(65535)));
        assert_eq!(resolve("0:4294967296"), Err(UserError::OutOfRange(4_294_967_296)));
        assert_eq!(
            resolve("far"),
            Err(UserError::OutOfRange(70_000)),
            "a group that cannot be had is not left out"
        );
        assert!(resolve("-1").is_err());
    }

    fn image() -> (tempfile::TempDir, OwnedFd) {
        let image = tempfile::tempdir().unwrap();
        std::fs::create_dir(image.path().join("etc")).unwrap();
        let root = nix::fcntl::open(image.path(), OFlag::O_DIRECTORY, nix::sys::stat::Mode::empty()).unwrap();
        (image, root)
    }

    #[test]
    fn the_files_are_the_images_own() {
        let (image, root) = image();
        // A link that points out of the image leads to the image's own file of that name, which is not there.
        std::os::unix::fs::symlink("/etc/hostname", image.path().join("etc/passwd")).unwrap();
        assert!(resolve(&root, None, "root", &[]).is_err());
        std::fs::write(image.path().join("etc/hostname"), PASSWD).unwrap();
        std::fs::write(image.path().join("etc/group"), GROUP).unwrap();
        let app = account(1000, 1001, &[10, 44, 1001], "/srv/app");
        assert_eq!(resolve(&root, None, "app", &[]).unwrap(), app);
        assert_eq!(resolve(&root, None, "", &[]).unwrap(), account(0, 0, &[0, 10], "/root"));
        for declared in ["1000", "app"] {
            assert_eq!(resolve(&root, Some(&declared.parse().unwrap()), "root", &[]).unwrap(), app);
        }
        let declared: User = "app:video".parse().unwrap();
        let more = ["wheel".parse().unwrap(), IdOrName::Id(5)];
        assert_eq!(
            resolve(&root, Some(&declared), "", &more).unwrap(),
            account(1000, 44, &[5, 10, 44], "/srv/app")
        );
    }

    #[test]
    fn files_that_are_none_or_without_end_know_nobody() {
        let (image, root) = image();
        nix::unistd::mkfifo(&image.path().join("etc/passwd"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("/dev/zero", image.path().join("etc/group")).unwrap();
        assert_eq!(resolve(&root, None, "4", &[]).unwrap(), account(4, 0, &[0], "/"));
        let late = format!("{}\nlate:x:5:5::/:\n", "#".repeat(1 << 20));
        std::fs::remove_file(image.path().join("etc/passwd")).unwrap();
        std::fs::write(image.path().join("etc/passwd"), late).unwrap();
        assert!(resolve(&root, None, "late", &[]).is_err(), "what lies beyond the bound is not read");
    }
}
