//! What a key server keeps: one file for each appliance that an operator has added.
//!
//! ```text
//! DIR/OWNER+REPO.json   the appliance: its key, and the newest of its state that was reported; mode 0600
//! DIR/server.lock       held by the server as long as it runs
//! DIR/change.lock       held for each change of a file, by the server and by `coffer keyserve add`, `forget`
//! ```
//!
//! The names are in lower case: GitHub's do not depend on it. A file is written whole under another name, made durable and then renamed, so
//! that after a kill there is the old one or the new one. One that cannot be read is an error: a key is never made anew where there may
//! be one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use cofferdam_attest::keyserve::Kek;
use cofferdam_protocol::keyserve::Witnessed;
use cofferdam_protocol::unseal::SecretBytes;
use cofferdam_protocol::upgrade::{self, SignedStatement};
use cofferdam_protocol::{Digest, Repository, Timestamp};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::failure::{Failure, Outcome, chain};
use crate::files;

/// Most appliances of one server.
const MOST: usize = 1024;
/// Largest file in bytes: 64 digests of declarations are 5 KiB, a statement has [`upgrade::MAX_BYTES`].
const LARGEST: usize = 16 * 1024 + upgrade::MAX_BYTES;
/// Most declarations that are given for one appliance.
pub(crate) const MOST_DECLARATIONS: usize = 64;
const VERSION: u32 = 1;

/// One appliance.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Appliance {
    version: u32,
    pub(crate) repository: Repository,
    /// The declarations that get the key; where there are none, GitHub is asked for the repository's.
    pub(crate) declarations: Vec<Digest>,
    /// Made when it is first asked for.
    key: Option<SecretBytes>,
    /// When it was.
    pub(crate) first_released: Option<Timestamp>,
    /// The newest of its state that was reported.
    pub(crate) witnessed: Option<Witnessed>,
    /// When it was.
    pub(crate) reported: Option<Timestamp>,
    /// The version of its lineage, as it was reported.
    #[serde(default)]
    pub(crate) lineage: Option<u64>,
    /// What lets the next image open it.
    #[serde(default)]
    pub(crate) upgrade: Option<SignedStatement>,
}

impl Appliance {
    /// The key, if it was made.
    pub(crate) fn key(&self) -> Option<Kek> {
        let bytes: &[u8; 32] = self.key.as_ref()?.0.as_slice().try_into().ok()?;
        Some(Zeroizing::new(*bytes))
    }

    pub(crate) fn set_key(&mut self, key: &Kek, now: Option<Timestamp>) {
        self.key = Some(SecretBytes(Zeroizing::new(key.to_vec())));
        self.first_released = now;
    }
}

/// The directory.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    directory: PathBuf,
}

impl Store {
    /// Opens the directory, or makes it: it is nobody else's to read.
    pub(crate) fn open(directory: &Path) -> Outcome<Self> {
        let failed =
            |error: std::io::Error| Failure::failed(format!("cannot use {}: {error}", directory.display()));
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let about = fs::metadata(directory).map_err(failed)?;
        if !about.is_dir() {
            return Err(Failure::usage(format!("{} is no directory", directory.display())));
        }
        let (mode, owner) = (about.mode() & 0o777, about.uid());
        if mode & 0o077 != 0 || owner != nix::unistd::geteuid().as_raw() {
            return Err(Failure::usage(format!(
                "{} is not this user's alone (mode {mode:03o}, owner {owner}), and it holds keys",
                directory.display()
            ))
            .hint(format!("chmod 700 {}", directory.display())));
        }
        Ok(Self { directory: directory.to_owned() })
    }

    /// What keeps a second server out as long as it lives.
    pub(crate) fn serve(&self) -> Outcome<File> {
        let file = self.lock_file("server.lock")?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => {
                Err(Failure::failed(format!("another key server uses {}", self.directory.display()))
                    .hint("two servers with copies of one directory know different states: run one"))
            }
            Err(fs::TryLockError::Error(error)) => Err(self.failed("lock", &error)),
        }
    }

    /// Adds an appliance, or changes which declarations get its key. True when it is new.
    pub(crate) fn add(&self, repository: &Repository, declarations: Vec<Digest>) -> Outcome<bool> {
        let _lock = self.change()?;
        let found = self.read(repository)?;
        let new = found.is_none();
        if new && self.all()?.len() >= MOST {
            return Err(Failure::failed(format!("a key server has at most {MOST} appliances")));
        }
        let appliance = match found {
            Some(found) => Appliance { declarations, ..found },
            None => Appliance {
                version: VERSION,
                repository: repository.clone(),
                declarations,
                key: None,
                first_released: None,
                witnessed: None,
                reported: None,
                lineage: None,
                upgrade: None,
            },
        };
        self.write(&appliance)?;
        Ok(new)
    }

    /// Changes an appliance as a whole; nothing is written where `change` has nothing to write. `None` when there is none.
    pub(crate) fn update<T>(
        &self,
        repository: &Repository,
        change: impl FnOnce(&mut Appliance) -> Outcome<(bool, T)>,
    ) -> Outcome<Option<T>> {
        let _lock = self.change()?;
        let Some(mut appliance) = self.read(repository)? else { return Ok(None) };
        let (changed, result) = change(&mut appliance)?;
        if changed {
            self.write(&appliance)?;
        }
        Ok(Some(result))
    }

    /// The appliance of this repository.
    pub(crate) fn read(&self, repository: &Repository) -> Outcome<Option<Appliance>> {
        let path = self.path(repository);
        if !path.try_exists().map_err(|error| self.failed("look into", &error))? {
            return Ok(None);
        }
        let bytes = files::read_secret(&path, LARGEST).map_err(|failure| Failure::failed(failure.message))?;
        let damaged = |why: &str| {
            Failure::failed(format!("{} is damaged: {why}", path.display()))
                .hint("bring back a copy; a key is not made anew where there was one")
        };
        // Not by the general parser, which would leave copies of the key behind.
        let appliance: Appliance = serde_json::from_slice(&bytes).map_err(|error| damaged(&chain(&error)))?;
        let key = appliance.key.as_ref().map_or(32, |key| key.0.len());
        match (appliance.version, key) {
            (VERSION, 32) if appliance.repository.is_same(repository) => Ok(Some(appliance)),
            (VERSION, 32) => Err(damaged("it is another repository's")),
            (VERSION, _) => Err(damaged("its key is not one")),
            (other, _) => Err(damaged(&format!("its version is {other}"))),
        }
    }

    /// All appliances by name.
    pub(crate) fn all(&self) -> Outcome<Vec<Appliance>> {
        let entries = fs::read_dir(&self.directory).map_err(|error| self.failed("read", &error))?;
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(|error| self.failed("read", &error))?.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(".json"));
            names.extend(name.and_then(|name| name.replacen('+', "/", 1).parse::<Repository>().ok()));
        }
        names.sort_by_key(ToString::to_string);
        let read = names.iter().filter_map(|name| self.read(name).transpose());
        read.collect()
    }

    fn write(&self, appliance: &Appliance) -> Outcome {
        let path = self.path(&appliance.repository);
        let new = path.with_extension("new");
        // Of full length from the start, so that growing leaves no copy of the key behind.
        let mut text = Zeroizing::new(Vec::with_capacity(LARGEST));
        serde_json::to_writer_pretty(&mut *text, appliance)
            .map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))?;
        text.push(b'\n');
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&new, &path))
            .and_then(|()| File::open(&self.directory)?.sync_all());
        written.map_err(|error| self.failed("write to", &error))
    }

    fn path(&self, repository: &Repository) -> PathBuf {
        // Neither half of a name has a plus sign.
        let name = repository.to_string().to_ascii_lowercase().replacen('/', "+", 1);
        self.directory.join(format!("{name}.json"))
    }

    fn change(&self) -> Outcome<File> {
        let file = self.lock_file("change.lock")?;
        file.lock().map_err(|error| self.failed("lock", &error))?;
        Ok(file)
    }

    fn lock_file(&self, name: &str) -> Outcome<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.open(self.directory.join(name)).map_err(|error| self.failed("lock", &error))
    }

    fn failed(&self, what: &str, error: &std::io::Error) -> Failure {
        Failure::failed(format!("cannot {what} {}: {error}", self.directory.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn store() -> (tempfile::TempDir, Store, Repository) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("keys")).unwrap();
        (folder, store, "Acme/Shop".parse().unwrap())
    }

    fn with_key(store: &Store, repository: &Repository) -> Kek {
        let key = Zeroizing::new([7; 32]);
        let set = store.update(repository, |appliance| {
            appliance.set_key(&key, None);
            Ok((true, ()))
        });
        assert_eq!(set.unwrap(), Some(()));
        key
    }

    #[test]
    fn an_appliance_is_read_as_it_was_written_whatever_the_case_of_its_name() {
        let (folder, store, repository) = store();
        assert!(store.read(&repository).unwrap().is_none());
        assert!(store.update(&repository, |_| Ok((true, ()))).unwrap().is_none(), "nobody added it");
        assert!(store.add(&repository, Vec::new()).unwrap());
        let key = with_key(&store, &repository);
        let declared = Digest::of(b"declared");
        assert!(!store.add(&"acme/shop".parse().unwrap(), vec![declared]).unwrap());
        let read = store.read(&"ACME/shop".parse().unwrap()).unwrap().unwrap();
        assert_eq!((read.key().unwrap(), &read.declarations[..]), (key, &[declared][..]), "the key stays");
        assert!(!format!("{read:?}").contains("Bwc"), "{read:?}");
        assert_eq!(store.all().unwrap().len(), 1);
        let path = folder.path().join("keys/acme+shop.json");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(folder.path().join("keys")).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn what_others_can_read_is_not_used() {
        let (folder, _, _) = store();
        for mode in [0o710, 0o701, 0o750, 0o777] {
            fs::set_permissions(folder.path().join("keys"), fs::Permissions::from_mode(mode)).unwrap();
            let failure = Store::open(&folder.path().join("keys")).unwrap_err();
            assert!(failure.message.contains("is not this user's alone"), "{}", failure.message);
        }
    }

    #[test]
    fn a_second_server_finds_the_first_and_waits_for_no_one() {
        let (_folder, store, repository) = store();
        let first = store.serve().unwrap();
        assert!(store.clone().serve().unwrap_err().message.contains("another key server uses"));
        // Adding goes on beside it.
        assert!(store.add(&repository, Vec::new()).unwrap());
        drop(first);
        assert!(store.serve().is_ok());
    }

    /// A kill between two system calls leaves what was written so far of the new file, and the old one.
    #[test]
    fn a_kill_while_writing_leaves_the_old_file_or_the_new_one() {
        let (folder, store, repository) = store();
        store.add(&repository, Vec::new()).unwrap();
        let key = with_key(&store, &repository);
        let path = folder.path().join("keys/acme+shop.json");
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(path.with_extension("new"), &whole[..cut]).unwrap();
            assert_eq!(store.read(&repository).unwrap().unwrap().key().unwrap(), key);
            assert_eq!(store.all().unwrap().len(), 1, "what was not finished is no appliance");
        }
        store.add(&repository, vec![Digest::of(b"x")]).unwrap();
        assert!(!path.with_extension("new").exists());
        assert_eq!(store.read(&repository).unwrap().unwrap().key().unwrap(), key);
    }

    #[test]
    fn a_damaged_file_is_an_error_and_its_key_is_never_made_anew() {
        let (folder, store, repository) = store();
        store.add(&repository, Vec::new()).unwrap();
        with_key(&store, &repository);
        let path = folder.path().join("keys/acme+shop.json");
        let whole = fs::read(&path).unwrap();
        let text = String::from_utf8(whole.clone()).unwrap();
        let long = vec![b' '; LARGEST + 1];
        let other = text.replace("Acme/Shop", "acme/other").into_bytes();
        let short = text.replace("BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=", "Bwc=").into_bytes();
        let version = text.replace("\"version\": 1", "\"version\": 2").into_bytes();
        for damaged in [&whole[..whole.len() / 2], b"", b"{}", &long, &other, &short, &version] {
            assert_ne!(damaged, whole);
            fs::write(&path, damaged).unwrap();
            assert!(store.read(&repository).is_err(), "{}", String::from_utf8_lossy(damaged));
            assert!(store.update(&repository, |_| Ok((true, ()))).is_err());
            assert!(store.add(&repository, Vec::new()).is_err());
            assert_eq!(fs::read(&path).unwrap(), damaged, "it is left as it is");
        }
    }
}
