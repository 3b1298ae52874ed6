//! What GitHub said in earlier runs and cannot have changed, so that it need not be asked again.
//!
//! Entries lie in the user's cache directory, but nothing there is believed because it is there: each entry carries a MAC under
//! a key that is kept elsewhere (in the user's state directory, and theirs alone), over the question as well as the answer. Whoever can write
//! to the cache alone can make `coffer` ask more and cannot make it accept anything. Never an error: a cache that cannot be
//! read or written, or whose key is not ours alone, is as good as none. Within one run every answer is remembered anyway.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use aws_lc_rs::hmac;
use cofferdam_github as github;
use cofferdam_protocol::{hex, read};
use nix::unistd::geteuid;
use zeroize::Zeroizing;

/// Largest entry: the largest file that GitHub gives in JSON, with room for its name.
const MAX_ENTRY: usize = github::MAX_FILE + (64 << 10);
/// Most entries, and most bytes of all of them; the oldest go first.
const MAX_ENTRIES: usize = 256;
const MAX_TOTAL: u64 = 32 << 20;
/// Most bytes that are remembered within a run.
const MAX_MEMORY: usize = 16 << 20;
/// Length of a MAC and of its key.
const MAC: usize = 32;
/// Domain separators of what is put under the key.
const ENTRY: &[u8] = b"cofferdam/cache/entry/v1";
const NAME: &[u8] = b"cofferdam/cache/name/v1";

/// The cache of this run and, where possible, of earlier ones.
pub(crate) struct DiskCache {
    disk: Option<Disk>,
    memory: Mutex<Memory>,
}

struct Disk {
    folder: PathBuf,
    key: hmac::Key,
}

#[derive(Default)]
struct Memory {
    entries: HashMap<String, Vec<u8>>,
    bytes: usize,
}

impl DiskCache {
    /// The cache where this user's environment says: `XDG_CACHE_HOME` and `XDG_STATE_HOME`, or below `HOME`.
    pub(crate) fn of_user() -> Self {
        match (place("XDG_CACHE_HOME", ".cache"), key_place()) {
            (Some((cache, _)), Some((key, _))) => {
                Self::at(&cache.join("coffer/github"), &key, geteuid().as_raw())
            }
            _ => Self { disk: None, memory: Mutex::default() },
        }
    }

    /// The cache in `folder` under the key in the file `key`; both are made when they are not there. What is not `user`'s alone
    /// vouches for nothing.
    fn at(folder: &Path, key: &Path, user: u32) -> Self {
        let private = |path: &Path| DirBuilder::new().recursive(true).mode(0o700).create(path).ok();
        let disk = || {
            let place = key.parent()?;
            private(place)?;
            let about = fs::metadata(place).ok()?;
            // Who may write to the folder may put another key there.
            (about.uid() == user && about.mode() & 0o022 == 0).then_some(())?;
            let key = read_key(key, user).or_else(|| make_key(key))?;
            private(folder)?;
            Some(Disk { folder: folder.to_owned(), key: hmac::Key::new(hmac::HMAC_SHA256, &*key) })
        };
        Self { disk: disk(), memory: Mutex::default() }
    }
}

/// Where the key is, which decides what is believed of the cache, and whether `XDG_STATE_HOME` says so.
pub(crate) fn key_place() -> Option<(PathBuf, bool)> {
    let (state, named) = place("XDG_STATE_HOME", ".local/state")?;
    Some((state.join("coffer/cache.key"), named))
}

/// Where this user's programs keep what they need from one run to the next.
pub(crate) fn state_place() -> Option<PathBuf> {
    place("XDG_STATE_HOME", ".local/state").map(|(path, _)| path)
}

/// The folder that `variable` names (then with `true`), or the one below the home directory.
fn place(variable: &str, below_home: &str) -> Option<(PathBuf, bool)> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let named = absolute(variable).map(|path| (path, true));
    named.or_else(|| absolute("HOME").map(|home| (home.join(below_home), false)))
}

impl github::Cache for DiskCache {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        let known = self.memory.lock().ok()?.entries.get(key).cloned();
        known.or_else(|| self.disk.as_ref()?.get(key))
    }

    fn put(&self, key: &str, value: &[u8]) {
        if let Ok(mut memory) = self.memory.lock() {
            memory.put(key, value);
        }
        if let Some(disk) = self.disk.as_ref().filter(|_| value.len() <= MAX_ENTRY) {
            // A full or read-only disk costs the next run a request.
            let _ = disk.put(key, value);
        }
    }
}

impl Memory {
    fn put(&mut self, key: &str, value: &[u8]) {
        let old = self.entries.remove(key).map_or(0, |old| old.len());
        self.bytes = self.bytes.saturating_sub(old);
        if self.bytes.saturating_add(value.len()) <= MAX_MEMORY {
            self.bytes = self.bytes.saturating_add(value.len());
            self.entries.insert(key.to_owned(), value.to_vec());
        }
    }
}

impl Disk {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        let entry = read_regular(&self.path(key), MAX_ENTRY + MAC)?;
        let (mac, value) = entry.split_at_checked(MAC)?;
        hmac::verify(&self.key, &authenticated(key, value), mac).ok()?;
        Some(value.to_vec())
    }

    fn put(&self, key: &str, value: &[u8]) -> std::io::Result<()> {
        let mac = hmac::sign(&self.key, &authenticated(key, value));
        let path = self.path(key);
        // Several runs may write at once: each its own file, and then one name or the other.
        let new = path.with_extension(format!("{}.new", std::process::id()));
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        let written = file.write_all(mac.as_ref()).and_then(|()| file.write_all(value));
        if let Err(error) = written.and_then(|()| fs::rename(&new, &path)) {
            let _ = fs::remove_file(&new);
            return Err(error);
        }
        self.prune()
    }

    /// Removes the oldest entries beyond the bounds. Only files are entries; one that cannot be looked at or removed (another
    /// run was faster, most likely) keeps no other from going.
    fn prune(&self) -> std::io::Result<()> {
        let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.folder)?.flatten() {
            let Ok(about) = entry.metadata() else { continue };
            if let Ok(modified) = about.modified()
                && about.is_file()
            {
                files.push((modified, about.len(), entry.path()));
            }
        }
        files.sort();
        let (mut count, mut total) = (files.len(), files.iter().map(|(_, length, _)| *length).sum::<u64>());
        for (_, length, path) in files {
            if count <= MAX_ENTRIES && total <= MAX_TOTAL {
                break;
            }
            if fs::remove_file(path).is_ok() {
                (count, total) = (count.saturating_sub(1), total.saturating_sub(length));
            }
        }
        Ok(())
    }

    /// An entry's name says nothing about the question: private repositories have names too.
    fn path(&self, key: &str) -> PathBuf {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(NAME);
        context.update(key.as_bytes());
        self.folder.join(hex::encode(context.sign()))
    }
}

/// What the MAC covers: the question with its length, then the answer.
fn authenticated(key: &str, value: &[u8]) -> Vec<u8> {
    let length = u64::try_from(key.len()).unwrap_or(u64::MAX).to_be_bytes();
    [ENTRY, &length, key.as_bytes(), value].concat()
}

/// The key, when it is a file of `user`'s that nobody else can read or write.
fn read_key(path: &Path, user: u32) -> Option<Zeroizing<[u8; MAC]>> {
    let about = fs::symlink_metadata(path).ok()?;
    if about.mode() & 0o077 != 0 || about.uid() != user {
        return None;
    }
    let bytes = Zeroizing::new(read_regular(path, MAC)?);
    <[u8; MAC]>::try_from(bytes.as_slice()).ok().map(Zeroizing::new)
}

/// Makes the key; of two runs that do it at once the second finds no place for its own and goes without.
fn make_key(path: &Path) -> Option<Zeroizing<[u8; MAC]>> {
    let mut key = Zeroizing::new([0; MAC]);
    getrandom::fill(&mut *key).ok()?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).ok()?;
    if file.write_all(&*key).is_err() {
        let _ = fs::remove_file(path);
        return None;
    }
    Some(key)
}

/// The bytes of a regular file of at most `most` bytes: nothing else is even opened.
fn read_regular(path: &Path, most: usize) -> Option<Vec<u8>> {
    let limit = u64::try_from(most).ok()?;
    let about = fs::symlink_metadata(path).ok().filter(|about| about.is_file() && about.len() <= limit)?;
    let mut bytes = Vec::with_capacity(usize::try_from(about.len()).ok()?);
    read::bounded_into(fs::File::open(path).ok()?, limit, &mut bytes).ok().map(|()| bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use cofferdam_github::Cache as _;

    use super::*;

    fn cache(root: &Path) -> DiskCache {
        of(root, geteuid().as_raw())
    }

    fn of(root: &Path, user: u32) -> DiskCache {
        DiskCache::at(&root.join("cache/coffer/github"), &root.join("state/coffer/cache.key"), user)
    }

    fn files(root: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(root.join("cache/coffer/github")).unwrap();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    #[test]
    fn an_entry_outlives_the_run_and_is_nobody_elses_to_read() {
        let root = tempfile::tempdir().unwrap();
        cache(root.path()).put("question", b"answer");
        assert_eq!(cache(root.path()).get("question").unwrap(), b"answer");
        assert_eq!(cache(root.path()).get("another question"), None);
        cache(root.path()).put("question", b"newer");
        assert_eq!(cache(root.path()).get("question").unwrap(), b"newer");
        let paths = files(root.path());
        assert_eq!(paths.len(), 1);
        for path in [&paths[0], &root.path().join("state/coffer/cache.key")] {
            assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o600);
        }
        assert!(!paths[0].to_string_lossy().contains("question"));
    }

    #[test]
    fn a_changed_moved_or_foreign_entry_is_no_entry() {
        let root = tempfile::tempdir().unwrap();
        let first = cache(root.path());
        first.put("one", b"1");
        let path = files(root.path()).remove(0);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&path, changed).unwrap();
            assert_eq!(cache(root.path()).get("one"), None, "byte {at}");
        }
        for changed in [&whole[..whole.len() - 1], &whole[..MAC - 1], b"", &[&whole[..], b"x"].concat()] {
            fs::write(&path, changed).unwrap();
            assert_eq!(cache(root.path()).get("one"), None);
        }
        // The answer to another question, and one that another key vouches for.
        fs::write(&path, &whole).unwrap();
        first.put("two", b"2");
        let other = files(root.path()).into_iter().find(|other| *other != path).unwrap();
        fs::copy(&path, &other).unwrap();
        assert_eq!(cache(root.path()).get("two"), None);
        assert_eq!(cache(root.path()).get("one").unwrap(), b"1");
        fs::write(root.path().join("state/coffer/cache.key"), [7; MAC]).unwrap();
        assert_eq!(cache(root.path()).get("one"), None);
    }

    #[test]
    fn a_key_that_others_can_read_vouches_for_nothing() {
        let root = tempfile::tempdir().unwrap();
        cache(root.path()).put("one", b"1");
        let key = root.path().join("state/coffer/cache.key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(cache(root.path()).get("one"), None);
        fs::remove_file(&key).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &key).unwrap();
        assert_eq!(cache(root.path()).get("one"), None);
    }

    #[test]
    fn a_key_of_another_user_or_where_others_can_put_one_vouches_for_nothing() {
        let root = tempfile::tempdir().unwrap();
        cache(root.path()).put("one", b"1");
        let me = geteuid().as_raw();
        // Key and folder have one owner, but it is not the user.
        assert_eq!(of(root.path(), me + 1).get("one"), None);
        assert!(read_key(&root.path().join("state/coffer/cache.key"), me + 1).is_none());
        let folder = root.path().join("state/coffer");
        for mode in [0o770, 0o720, 0o702, 0o777] {
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(cache(root.path()).get("one"), None, "{mode:o}");
        }
        // Nor is a new one made there.
        fs::remove_file(folder.join("cache.key")).unwrap();
        assert!(cache(root.path()).disk.is_none() && !folder.join("cache.key").exists());
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(cache(root.path()).disk.is_some());
    }

    #[test]
    fn where_nothing_can_be_written_the_run_remembers_and_nothing_fails() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cache"), b"a file in the way").unwrap();
        let unwritable = cache(root.path());
        unwritable.put("one", b"1");
        assert_eq!(unwritable.get("one").unwrap(), b"1");
        assert_eq!(cache(root.path()).get("one"), None);
        // A fifo would make a reader wait.
        let root = tempfile::tempdir().unwrap();
        cache(root.path()).put("one", b"1");
        let path = files(root.path()).remove(0);
        fs::remove_file(&path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert_eq!(cache(root.path()).get("one"), None);
    }

    #[test]
    fn what_is_no_file_keeps_nothing_from_being_removed() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let folder = root.path().join("cache/coffer/github");
        // The oldest there is.
        fs::create_dir(folder.join("0")).unwrap();
        std::os::unix::fs::symlink("/nowhere", folder.join("1")).unwrap();
        for n in 0..MAX_ENTRIES + 10 {
            cache.put(&n.to_string(), b"x");
        }
        let entries =
            files(root.path()).iter().filter(|path| path.symlink_metadata().unwrap().is_file()).count();
        assert_eq!(entries, MAX_ENTRIES);
        assert!(folder.join("0").is_dir());
    }

    #[test]
    fn it_does_not_grow_beyond_its_bounds() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        for n in 0..MAX_ENTRIES + 10 {
            cache.put(&n.to_string(), b"x");
        }
        assert_eq!(files(root.path()).len(), MAX_ENTRIES);
        let large = vec![0; 1 << 20];
        for n in 0..40 {
            cache.put(&format!("large {n}"), &large);
        }
        let total: u64 = files(root.path()).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
        assert!(total <= MAX_TOTAL, "{total}");
        assert!(cache.memory.lock().unwrap().bytes <= MAX_MEMORY);
        cache.put("too large", &vec![0; MAX_ENTRY + 1]);
        assert!(files(root.path()).iter().all(|path| fs::metadata(path).unwrap().len() <= 2 << 20));
    }
}
