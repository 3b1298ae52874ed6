//! What was seen of a service, and the smallest profile that lets it do the same again.
//!
//! A profile is looked up when a service starts, so a path in it has to be there then. Files that come and go are therefore named by
//! their directories: where something was written, in file systems of the service's own, and where many files of one directory were used.

use std::collections::{BTreeMap, BTreeSet};

use cofferdam_declaration::{MAX_PROFILE_PATHS, Paths, Profile};

use super::calls;

/// Names in one directory that are kept; with more it is the directory that is used.
const MAX_NAMES: usize = 64;
/// Directories that are kept; no service has more, and memory is bounded.
const MAX_DIRECTORIES: usize = 16_384;
/// Names in one directory that are written down one by one, unless there is no room for so many.
const FEW: usize = 16;

/// What is done with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Access {
    Read,
    Write,
    Execute,
}

/// Everything that was seen.
#[derive(Debug, Default)]
pub(super) struct Record {
    calls: BTreeSet<&'static str>,
    /// Names by their directories; `None` for all of them.
    seen: BTreeMap<(Access, String), Option<BTreeSet<String>>>,
    /// Something was left out, because there was too much of it.
    overflowed: bool,
}

impl Record {
    /// A system call was made. Those that no service may make are refused anyway.
    pub(super) fn call(&mut self, number: u64) {
        self.calls.extend(calls::name(number));
    }

    /// A path, absolute and without links, was used.
    pub(super) fn path(&mut self, access: Access, path: &str) {
        let (directory, name) = match path.rsplit_once('/') {
            Some(("", name)) => ("/", name),
            Some(split) => split,
            None => return,
        };
        let key = (access, directory.to_owned());
        if self.seen.len() >= MAX_DIRECTORIES && !self.seen.contains_key(&key) {
            self.overflowed = true;
            return;
        }
        let names = self.seen.entry(key).or_insert_with(|| Some(BTreeSet::new()));
        if let Some(known) = names {
            known.insert(name.to_owned());
            if known.len() > MAX_NAMES {
                *names = None;
            }
        }
    }

    /// Whether there is nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Whether it is whole.
    pub(super) fn is_whole(&self) -> bool {
        !self.overflowed
    }

    /// The profile. What lies below one of `own`, file systems of the service's own, is named by that.
    pub(super) fn profile(&self, own: &[String]) -> Profile {
        let mut write = self.list(Access::Write, own, &BTreeSet::new());
        shorten(&mut write);
        let mut read = self.list(Access::Read, own, &write);
        shorten(&mut read);
        let mut execute = self.list(Access::Execute, own, &write);
        shorten(&mut execute);
        let all = |paths: BTreeSet<String>| paths.into_iter().collect();
        Profile {
            system_calls: Some(self.calls.iter().map(|call| (*call).to_owned()).collect()),
            paths: Some(Paths { read: all(read), write: all(write), execute: all(execute) }),
        }
    }

    /// The paths of one kind; those in `written` directories are named by them.
    fn list(&self, access: Access, own: &[String], written: &BTreeSet<String>) -> BTreeSet<String> {
        let mut list = BTreeSet::new();
        let whole = |path: &str| {
            let known = own.iter().chain(written).find(|directory| below(path, directory));
            known.cloned()
        };
        for ((kind, directory), names) in &self.seen {
            if *kind != access {
                continue;
            }
            match names {
                _ if whole(directory).is_some() => list.extend(whole(directory)),
                None => {
                    list.insert(directory.clone());
                }
                Some(names) if names.len() > FEW => {
                    list.insert(directory.clone());
                }
                Some(names) => list.extend(names.iter().map(|name| {
                    let path =
                        if directory == "/" { format!("/{name}") } else { format!("{directory}/{name}") };
                    whole(&path).unwrap_or(path)
                })),
            }
        }
        list
    }
}

/// Leaves out what lies below something else in the list, and names directories instead of what is in them until there is room.
fn shorten(list: &mut BTreeSet<String>) {
    let mut few = FEW;
    loop {
        let all = list.clone();
        list.retain(|path| !ancestors(path).any(|other| all.contains(other)));
        if list.len() <= MAX_PROFILE_PATHS {
            return;
        }
        few /= 2;
        let mut counted: BTreeMap<String, usize> = BTreeMap::new();
        for path in list.iter() {
            *counted.entry(parent(path)).or_default() += 1;
        }
        *list = list
            .iter()
            .map(|path| {
                let directory = parent(path);
                if counted.get(&directory).is_some_and(|count| *count > few) {
                    directory
                } else {
                    path.clone()
                }
            })
            .collect();
    }
}

/// The directories that a path lies in, from the nearest one to the root.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let nearest = path.rsplit_once('/').filter(|_| path != "/").map(|(directory, _)| directory);
    std::iter::successors(nearest, |directory| directory.rsplit_once('/').map(|(above, _)| above))
        .map(|directory| if directory.is_empty() { "/" } else { directory })
}

fn parent(path: &str) -> String {
    ancestors(path).next().unwrap_or("/").to_owned()
}

/// Whether a path is this directory or in it.
fn below(path: &str, directory: &str) -> bool {
    directory == "/"
        || path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(record: &Record) -> Paths {
        record.profile(&["/proc".to_owned(), "/data".to_owned()]).paths.unwrap()
    }

    #[test]
    fn a_profile_names_files_one_by_one_and_by_directory_what_comes_and_goes() {
        let mut record = Record::default();
        for number in [0, 257, 165, 0x4000_0000] {
            record.call(number);
        }
        for (access, path) in [
            (Access::Read, "/etc/passwd"),
            (Access::Read, "/proc/17/status"),
            (Access::Read, "/data/a/b"),
            (Access::Read, "/run/app/pid"),
            (Access::Write, "/run/app"),
            (Access::Write, "/dev/null"),
            (Access::Execute, "/usr/bin/app"),
        ] {
            record.path(access, path);
        }
        for file in 0..40 {
            record.path(Access::Read, &format!("/usr/lib/app/{file}"));
        }
        assert_eq!(
            record.profile(&[]).system_calls.unwrap().into_iter().collect::<Vec<_>>(),
            ["openat", "read"]
        );
        let found = paths(&record);
        assert_eq!(found.read, ["/data", "/etc/passwd", "/proc", "/run/app", "/usr/lib/app"]);
        assert_eq!(found.write, ["/dev/null", "/run/app"]);
        assert_eq!(found.execute, ["/usr/bin/app"]);
    }

    #[test]
    fn the_directories_above_a_path_end_at_the_root() {
        assert_eq!(ancestors("/a/b/c").collect::<Vec<_>>(), ["/a/b", "/a", "/"]);
        assert_eq!(ancestors("/a").collect::<Vec<_>>(), ["/"]);
        assert_eq!(ancestors("/").count(), 0);
    }

    #[test]
    fn a_profile_and_what_is_kept_for_it_are_bounded() {
        let mut record = Record::default();
        for directory in 0..20_000 {
            record.path(Access::Read, &format!("/many/{directory}/file"));
        }
        for file in 0..100_000 {
            record.path(Access::Write, &format!("/spool/{file}"));
        }
        assert!(record.seen.len() <= MAX_DIRECTORIES && !record.is_whole());
        let found = paths(&record);
        assert!(found.read.len() <= MAX_PROFILE_PATHS && !found.read.is_empty(), "{}", found.read.len());
        assert!(found.read.iter().all(|path| path.starts_with("/many")), "{:?}", found.read);
        // The directories came first, and the spool's alone was too much.
        assert!(found.write.is_empty());
    }
}
