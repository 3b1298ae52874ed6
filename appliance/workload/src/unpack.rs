//! Unpacking an image's layers into a directory, one over the other (OCI image-spec 1.1, "Layer Changeset").
//!
//! The bytes of a layer are what its publisher made, so nothing in it is believed: a name is taken apart and
//! refused when it climbs, the directory it lies in is resolved by the kernel inside the root
//! (openat2(2), RESOLVE_IN_ROOT: a link that points out leads back in), and the last part is never followed. A directory that a
//! link on the way points to, and that is not there yet, is made where the link points inside the root, as other engines do.
//! Device nodes are left out, setuid and setgid bits of files are dropped, ids outside the
//! container's range become nobody's, extended attributes (and with them file capabilities) are not
//! carried over. Every byte that comes out of a decoder is charged, entries are counted, no directory is walked twice for one
//! layer, and the time is bounded, so a bomb of any kind ends as an error with the disk not full.

use std::cell::Cell;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fchmodat, fstat, fstatat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, mkfifoat, symlinkat, unlinkat};
use tar::{Archive, Entry, EntryType};

use crate::OUTSIDE_ID;

/// Who owns a file whose owner is outside the container's range: nobody, as everywhere.
const NOBODY: u64 = 65_534;
/// Headers, long names and extended headers of one entry; real ones are below 10 KiB.
const MAX_HEADER: u64 = 1 << 20;
/// Parts of one name. Real images stay below 40; the bound also bounds every walk over the result.
const MAX_DEPTH: usize = 128;
/// Links that are followed to where one name lies: the kernel's own bound (path_resolution(7)).
const MAX_LINKS: u32 = 40;
/// PATH_MAX without its zero byte.
const MAX_PATH: usize = 4095;
/// Entries of all layers of an image, and so of one layer, with the directories that are made on the way: nearly twice the
/// files of a Debian on which this project is built. Each takes some 40 µs and 4 KiB of memory.
const MAX_ENTRIES: u64 = 1 << 18;
/// What one image may take to unpack, without the time in which it is fetched. Seven images of 600 MB together need some two
/// minutes of two emulated processors.
const MAX_TIME: Duration = Duration::from_secs(600);
/// A directory entry, an inode and a page of small change in a tmpfs.
const ENTRY_COST: u64 = 4096;
/// `.wh.NAME` removes NAME of the layers below.
const WHITEOUT: &[u8] = b".wh.";
/// Removes all that the layers below put into its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive or its compression is broken.
    #[error("the layer is not a sound archive")]
    Archive(#[source] io::Error),
    /// A name or a hard link's target that climbs out of the root, or an empty or over-long one.
    #[error("the layer names {0:?}, which is not a path inside the image")]
    Path(PathBuf),
    /// An entry of a kind that no image needs.
    #[error("the layer holds {path:?} of the type {kind:?}, which is not supported")]
    Kind {
        /// The entry.
        path: PathBuf,
        /// Its tar type flag.
        kind: char,
    },
    /// More than the bound on unpacked bytes.
    #[error("the image unpacks to more than {0}")]
    TooLarge(Room),
    /// More files, directories and links than the bound.
    #[error("the image has more than {0} entries")]
    TooMany(u64),
    /// Longer than the bound on time.
    #[error("the image takes more than {0:?} to unpack")]
    Slow(Duration),
    /// The file system refused.
    #[error("cannot {verb} {path:?}")]
    File {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Where an image lies, and how many bytes it may have there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// In the memory of the service that pulls it.
    Memory(u64),
    /// In what of the state disk is free for images.
    Disk(u64),
}

impl Room {
    /// In bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Memory(bytes) | Self::Disk(bytes) => bytes,
        }
    }
}

impl std::fmt::Display for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = self.bytes() >> 20;
        match self {
            Self::Memory(_) => write!(f, "the {mib} MiB of memory that its service has: raise `mem_limit`"),
            Self::Disk(_) => {
                write!(
                    f,
                    "the {mib} MiB that are free for images on the state disk: raise `images` in `state`"
                )
            }
        }
    }
}

/// How much of everything an image may take.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    bytes: u64,
    entries: u64,
    time: Duration,
}

/// A root file system in the making.
pub struct Unpacker {
    root: OwnedFd,
    /// Whether owners are set: only a process with CAP_CHOWN over the range can.
    own: bool,
    room: Room,
    limit: Bounds,
    left: Bounds,
    skipped_devices: u64,
    /// For the content of one file after the other.
    buffer: Vec<u8>,
}

/// What one layer did so far, by the inodes of the root, which is one file system.
#[derive(Default)]
struct Layer {
    /// What it brought: a whiteout removes only what lies below it.
    brought: HashSet<u64>,
    /// Directories in which nothing of the layers below is left.
    cleared: HashSet<u64>,
}

impl Unpacker {
    /// Starts in the empty directory `root`; no more than `room` will be written below it.
    ///
    /// # Errors
    ///
    /// The directory cannot be opened.
    pub fn new(root: &Path, room: Room, own: bool) -> Result<Self, UnpackError> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(root, flags, Mode::empty()).map_err(file("open", root))?;
        let limit = Bounds { bytes: room.bytes(), entries: MAX_ENTRIES, time: MAX_TIME };
        Ok(Self { root, own, room, limit, left: limit, skipped_devices: 0, buffer: vec![0; 64 << 10] })
    }

    /// With this much time.
    #[cfg(test)]
    pub(crate) fn hurried(root: &Path, time: Duration) -> Result<Self, UnpackError> {
        let mut unpacker = Self::new(root, Room::Memory(1 << 30), false)?;
        unpacker.limit.time = time;
        unpacker.left.time = time;
        Ok(unpacker)
    }

    /// How many device nodes were left out.
    pub fn skipped_devices(&self) -> u64 {
        self.skipped_devices
    }

    /// A reader that ends with an error when the image's time is over. It belongs below a layer's decoder, which may read for
    /// ever without giving anything out.
    pub(crate) fn timed<R: Read>(&self, inner: R) -> impl Read + use<R> {
        Timed { inner, until: Instant::now().checked_add(self.left.time) }
    }

    /// Unpacks one layer, a plain tar archive, over what is there.
    ///
    /// # Errors
    ///
    /// [`UnpackError`]; the root is then half a root and has to be thrown away.
    pub fn layer(&mut self, archive: impl Read) -> Result<(), UnpackError> {
        let begun = Instant::now();
        let outcome = self.entries(self.timed(archive));
        self.left.time = self.left.time.saturating_sub(begun.elapsed());
        // Whatever it was that then failed.
        if self.left.time.is_zero() { Err(UnpackError::Slow(self.limit.time)) } else { outcome }
    }

    fn entries(&mut self, archive: impl Read) -> Result<(), UnpackError> {
        let allowance = Rc::new(Cell::new(MAX_HEADER));
        let mut archive = Archive::new(Metered { inner: archive, allowance: Rc::clone(&allowance) });
        let mut layer = Layer::default();
        for entry in archive.entries().map_err(UnpackError::Archive)? {
            let mut entry = entry.map_err(UnpackError::Archive)?;
            self.count(MAX_HEADER.saturating_sub(allowance.get()))?;
            allowance.set(u64::MAX);
            self.entry(&mut entry, &mut layer)?;
            // What the entry did not read is no file's content, and still had to be unpacked.
            let mut rest = entry.take(self.left.bytes.saturating_add(1));
            let rest = io::copy(&mut rest, &mut io::sink()).map_err(UnpackError::Archive)?;
            self.charge(rest)?;
            allowance.set(MAX_HEADER);
        }
        Ok(())
    }

    /// One more entry, with a header of so many bytes.
    fn count(&mut self, header: u64) -> Result<(), UnpackError> {
        let more = self.left.entries.checked_sub(1);
        self.left.entries = more.ok_or(UnpackError::TooMany(self.limit.entries))?;
        self.charge(header.max(ENTRY_COST))
    }

    fn charge(&mut self, bytes: u64) -> Result<(), UnpackError> {
        let left = self.left.bytes.checked_sub(bytes);
        self.left.bytes = left.ok_or(UnpackError::TooLarge(self.room))?;
        Ok(())
    }

    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>, layer: &mut Layer) -> Result<(), UnpackError> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let path = inside(&entry.path().map_err(UnpackError::Archive)?)?;
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            return self.set_root(entry);
        };
        let parent = self.parent(&path)?;
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            let directory = path.parent().unwrap_or(Path::new(""));
            return if name.as_bytes() == OPAQUE {
                clear(&parent, directory, layer, 0)
            } else if hidden.is_empty() || hidden.starts_with(WHITEOUT) || hidden == b"." || hidden == b".." {
                // `.wh..wh.*` is reserved for other storage drivers' own use.
                Ok(())
            } else {
                remove(&parent, OsStr::from_bytes(hidden), directory, 0)
            };
        }
        if matches!(kind, EntryType::Block | EntryType::Char) {
            self.skipped_devices = self.skipped_devices.saturating_add(1);
            return Ok(());
        }
        self.make(entry, &parent, &name, &path)?;
        let made = fstatat(&parent, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
        layer.brought.insert(made.map_err(file("look at", &path))?.st_ino);
        Ok(())
    }

    /// The image's `/` itself may be an entry: only its mode and owner are taken.
    fn set_root<R: Read>(&self, entry: &Entry<'_, R>) -> Result<(), UnpackError> {
        let path = Path::new("/");
        if self.own {
            let (uid, gid) = owner(entry)?;
            fchown(&self.root, Some(uid), Some(gid)).map_err(file("own", path))?;
        }
        fchmod(&self.root, mode(entry, 0o1777)?).map_err(file("set the mode of", path))
    }

    /// Opens the directory that `path` lies in, and makes what is missing of it.
    fn parent(&mut self, path: &Path) -> Result<OwnedFd, UnpackError> {
        let directory = path.parent().unwrap_or(Path::new(""));
        match in_root(&self.root, directory, DIRECTORY) {
            Err(Errno::ENOENT) => {}
            found => return found.map_err(file("open", directory)),
        }
        let directory = self.target(directory)?;
        let mut so_far = PathBuf::new();
        let mut last = in_root(&self.root, &so_far, DIRECTORY).map_err(file("open", &so_far))?;
        for component in directory.components() {
            so_far.push(component);
            last = match in_root(&self.root, &so_far, DIRECTORY) {
                Err(Errno::ENOENT) => {
                    self.count(0)?;
                    mkdirat(&last, component.as_os_str(), Mode::from_bits_truncate(0o755))
                        .map_err(file("make", &so_far))?;
                    in_root(&self.root, &so_far, DIRECTORY)
                }
                found => found,
            }
            .map_err(file("open", &so_far))?;
        }
        Ok(last)
    }

    /// Where `directory` leads to inside the root when nothing needs to be there: a path without links and without `..`.
    fn target(&self, directory: &Path) -> Result<PathBuf, UnpackError> {
        let mut real = PathBuf::new();
        let mut links = 0;
        // What is still to be walked, the next part last.
        let mut ahead = parts(directory);
        while let Some(part) = ahead.pop() {
            if part == ".." {
                real.pop();
                continue;
            }
            match self.link(&real, &part)? {
                Some(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(file("follow the links of", directory)(Errno::ELOOP));
                    }
                    if target.is_absolute() {
                        real.clear();
                    }
                    ahead.extend(parts(&target));
                }
                None => real.push(part),
            }
        }
        if real.components().count() > MAX_DEPTH { Err(UnpackError::Path(real)) } else { Ok(real) }
    }

    /// Where the link `name` in `directory` points; `None` when it is no link, or is not there.
    fn link(&self, directory: &Path, name: &OsStr) -> Result<Option<PathBuf>, UnpackError> {
        let found = in_root(&self.root, directory, DIRECTORY).and_then(|open| readlinkat(&open, name));
        match found {
            Ok(target) => Ok(Some(target.into())),
            Err(Errno::ENOENT | Errno::EINVAL) => Ok(None),
            Err(errno) => Err(file("open", &directory.join(name))(errno)),
        }
    }

    fn make<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> Result<(), UnpackError> {
        let kind = entry.header().entry_type();
        let keeps = kind == EntryType::Directory && kind_of(parent, name)? == Some(SFlag::S_IFDIR);
        if !keeps {
            remove(parent, name, path.parent().unwrap_or(Path::new("")), 0)?;
        }
        match kind {
            EntryType::Directory => {
                if !keeps {
                    mkdirat(parent, name, Mode::from_bits_truncate(0o700)).map_err(file("make", path))?;
                }
                self.finish(entry, parent, name, path, 0o1777)
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.regular(entry, parent, name, path)
            }
            EntryType::Symlink => {
                let target = link_target(entry)?;
                symlinkat(target.as_os_str(), parent, name).map_err(file("link", path))?;
                self.own(entry, parent, name, path)
            }
            EntryType::Link => {
                let target = inside(&link_target(entry)?)?;
                let source = target.file_name().ok_or_else(|| UnpackError::Path(target.clone()))?;
                let directory = target.parent().unwrap_or(Path::new(""));
                let from = in_root(&self.root, directory, DIRECTORY).map_err(file("open", directory))?;
                // Without AT_SYMLINK_FOLLOW the link itself would be linked, not where it points.
                linkat(&from, source, parent, name, AtFlags::empty()).map_err(file("link", path))
            }
            EntryType::Fifo => {
                mkfifoat(parent, name, Mode::from_bits_truncate(0o600)).map_err(file("make", path))?;
                self.finish(entry, parent, name, path, 0o777)
            }
            other => Err(UnpackError::Kind { path: path.to_owned(), kind: char::from(other.as_byte()) }),
        }
    }

    fn regular<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> Result<(), UnpackError> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened =
            openat(parent, name, flags, Mode::from_bits_truncate(0o600)).map_err(file("make", path))?;
        let mut target = File::from(opened);
        // One byte more than allowed tells "exactly as much" from "too much".
        let mut content = entry.take(self.left.bytes.saturating_add(1));
        let written = copy(&mut content, &mut target, &mut self.buffer, path)?;
        self.charge(written)?;
        if self.own {
            let (uid, gid) = owner(entry)?;
            fchown(&target, Some(uid), Some(gid)).map_err(file("own", path))?;
        }
        fchmod(&target, mode(entry, 0o777)?).map_err(file("set the mode of", path))?;
        let time = time(entry);
        futimens(&target, &time, &time).map_err(file("set the time of", path))
    }

    /// Owner, then mode: changing the owner may drop mode bits.
    fn finish<R: Read>(
        &self,
        entry: &Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        mask: u32,
    ) -> Result<(), UnpackError> {
        self.own(entry, parent, name, path)?;
        // The entry was just made or checked here and nobody else writes: it is no symbolic link.
        fchmodat(parent, name, mode(entry, mask)?, nix::sys::stat::FchmodatFlags::FollowSymlink)
            .map_err(file("set the mode of", path))
    }

    fn own<R: Read>(
        &self,
        entry: &Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> Result<(), UnpackError> {
        if !self.own {
            return Ok(());
        }
        let (uid, gid) = owner(entry)?;
        fchownat(parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(file("own", path))
    }
}

const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_RDONLY).union(OFlag::O_CLOEXEC);
const NO_LINK: OFlag = DIRECTORY.union(OFlag::O_NOFOLLOW);

/// Opens `path` with `root` as its `/`: neither `..` nor a link leads out (openat2(2)).
pub(crate) fn in_root(root: &OwnedFd, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how)
}

/// A path of the archive as a path below the root. A leading `/` or `./` means the root, as everywhere.
fn inside(path: &Path) -> Result<PathBuf, UnpackError> {
    let refused = || UnpackError::Path(path.to_owned());
    let mut clean = PathBuf::new();
    let mut depth = 0_usize;
    for component in path.components() {
        match component {
            Component::Normal(part) if part.len() <= 255 => {
                clean.push(part);
                depth = depth.saturating_add(1);
            }
            Component::CurDir | Component::RootDir => {}
            _ => return Err(refused()),
        }
    }
    let bytes = path.as_os_str().as_bytes();
    if depth > MAX_DEPTH || bytes.len() > MAX_PATH || bytes.contains(&0) { Err(refused()) } else { Ok(clean) }
}

/// The parts of a path, the first one last, without those that lead nowhere else.
fn parts(path: &Path) -> Vec<OsString> {
    let parts = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    parts.rev().map(|part| part.as_os_str().to_owned()).collect()
}

fn link_target<R: Read>(entry: &Entry<'_, R>) -> Result<PathBuf, UnpackError> {
    let target = entry.link_name().map_err(UnpackError::Archive)?.unwrap_or_default().into_owned();
    let bytes = target.as_os_str().as_bytes();
    if bytes.is_empty() || bytes.len() > MAX_PATH || bytes.contains(&0) {
        return Err(UnpackError::Path(target));
    }
    Ok(target)
}

fn owner<R: Read>(entry: &Entry<'_, R>) -> Result<(Uid, Gid), UnpackError> {
    let fields = entry.header().as_old();
    let in_range = |id: io::Result<u64>, field: &[u8]| {
        // A field that was left empty means 0 to every other reader of tar.
        let empty = field.iter().all(|byte| matches!(byte, 0 | b' '));
        let id = if empty { 0 } else { id.map_err(UnpackError::Archive)? };
        Ok(if id < u64::from(OUTSIDE_ID) { id } else { NOBODY } as u32)
    };
    Ok((
        Uid::from_raw(in_range(entry.header().uid(), &fields.uid)?),
        Gid::from_raw(in_range(entry.header().gid(), &fields.gid)?),
    ))
}

fn mode<R: Read>(entry: &Entry<'_, R>, mask: u32) -> Result<Mode, UnpackError> {
    Ok(Mode::from_bits_truncate(entry.header().mode().map_err(UnpackError::Archive)? & mask))
}

/// The time of last change; one that does not read is the epoch.
fn time<R: Read>(entry: &Entry<'_, R>) -> TimeSpec {
    let seconds = entry.header().mtime().ok().and_then(|seconds| i64::try_from(seconds).ok());
    TimeSpec::new(seconds.unwrap_or_default(), 0)
}

fn copy(from: &mut impl Read, to: &mut File, buffer: &mut [u8], path: &Path) -> Result<u64, UnpackError> {
    let mut total = 0_u64;
    loop {
        let count = from.read(buffer).map_err(UnpackError::Archive)?;
        let Some(chunk) = buffer.get(..count).filter(|chunk| !chunk.is_empty()) else { return Ok(total) };
        to.write_all(chunk).map_err(|source| UnpackError::File {
            verb: "write",
            path: path.to_owned(),
            source,
        })?;
        total = total.saturating_add(chunk.len() as u64);
    }
}

/// What is at `name`, without following it; `None` when nothing is.
fn kind_of(parent: &OwnedFd, name: &OsStr) -> Result<Option<SFlag>, UnpackError> {
    match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(file_kind(&stat))),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(file("look at", Path::new(name))(errno)),
    }
}

/// The file type bits of a stat.
pub(crate) fn file_kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// The names in a directory, without `.` and `..`.
pub(crate) fn names(directory: &OwnedFd, path: &Path) -> Result<Vec<OsString>, UnpackError> {
    // A descriptor of its own: reading moves the offset.
    let mut own = Dir::openat(directory, ".", NO_LINK, Mode::empty()).map_err(file("read", path))?;
    let mut names = Vec::new();
    for entry in own.iter() {
        let entry = entry.map_err(file("read", path))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

/// Removes `name` and all below it. Nothing there is fine.
pub(crate) fn remove(parent: &OwnedFd, name: &OsStr, path: &Path, depth: usize) -> Result<(), UnpackError> {
    let child = path.join(name);
    match kind_of(parent, name)? {
        None => Ok(()),
        Some(SFlag::S_IFDIR) => {
            // Links let a tree grow deeper than one name may be; the walk stays bounded.
            if depth > MAX_DEPTH.saturating_mul(8) {
                return Err(UnpackError::Path(child));
            }
            let directory = openat(parent, name, NO_LINK, Mode::empty()).map_err(file("open", &child))?;
            for below in names(&directory, &child)? {
                remove(&directory, &below, &child, depth.saturating_add(1))?;
            }
            unlinkat(parent, name, UnlinkatFlags::RemoveDir).map_err(file("remove", &child))
        }
        Some(_) => unlinkat(parent, name, UnlinkatFlags::NoRemoveDir).map_err(file("remove", &child)),
    }
}

/// Removes from a directory what the layers below put there, and keeps the directories of theirs that this layer put something
/// into.
fn clear(directory: &OwnedFd, path: &Path, layer: &mut Layer, depth: usize) -> Result<(), UnpackError> {
    let own = fstat(directory).map_err(file("look at", path))?;
    if !layer.cleared.insert(own.st_ino) {
        return Ok(());
    }
    if depth > MAX_DEPTH.saturating_mul(8) {
        return Err(UnpackError::Path(path.to_owned()));
    }
    for name in names(directory, path)? {
        let child = path.join(&name);
        let stat = fstatat(directory, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(file("look at", &child))?;
        let is_directory = file_kind(&stat) == SFlag::S_IFDIR;
        if is_directory {
            let below =
                openat(directory, name.as_os_str(), NO_LINK, Mode::empty()).map_err(file("open", &child))?;
            clear(&below, &child, layer, depth.saturating_add(1))?;
        }
        if layer.brought.contains(&stat.st_ino) {
            continue;
        }
        let flag = if is_directory { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
        match unlinkat(directory, name.as_os_str(), flag) {
            Err(Errno::ENOTEMPTY | Errno::EEXIST) if is_directory => {}
            removed => removed.map_err(file("remove", &child))?,
        }
    }
    Ok(())
}

/// What becomes of an error of a call that did `verb` to `path`.
pub(crate) fn file(verb: &'static str, path: &Path) -> impl FnOnce(Errno) -> UnpackError {
    let path = path.to_owned();
    move |errno| UnpackError::File { verb, path, source: errno.into() }
}

/// Reads until a point in time.
struct Timed<R> {
    inner: R,
    until: Option<Instant>,
}

impl<R: Read> Read for Timed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.until.is_some_and(|until| Instant::now() >= until) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.inner.read(buffer)
    }
}

/// Counts down what may still be read before the next entry's content.
struct Metered<R> {
    inner: R,
    allowance: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let left = self.allowance.get();
        self.allowance.set(
            left.checked_sub(count as u64)
                .ok_or_else(|| io::Error::other("an entry's headers are too long"))?,
        );
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use nix::unistd::geteuid;
    use tar::{Builder, Header};

    use super::*;

    /// A tar archive of entries (name, type, mode, link target, content), with names as they are given.
    fn archive(entries: &[Given<'_>]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (name, kind, mode, target, content) in entries {
            let mut header = Header::new_gnu();
            // The library refuses to write `..`; an attacker would not.
            let old = header.as_old_mut();
            old.name[..name.len()].copy_from_slice(name.as_bytes());
            old.linkname[..target.len()].copy_from_slice(target.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            header.set_uid(7);
            header.set_gid(70_000);
            header.set_mtime(1_000_000_000);
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    /// What [`archive`] takes.
    type Given<'a> = (&'a str, EntryType, u32, &'a str, &'a [u8]);

    const FILE: EntryType = EntryType::Regular;
    const LINK: EntryType = EntryType::Symlink;
    const DIR: EntryType = EntryType::Directory;

    struct Image {
        outer: tempfile::TempDir,
        unpacker: Unpacker,
    }

    impl Image {
        /// A root one level below the temporary directory, so that an escape would be seen beside it.
        fn new(limit: u64) -> Self {
            let outer = tempfile::tempdir().unwrap();
            let root = outer.path().join("root");
            std::fs::create_dir(&root).unwrap();
            let unpacker = Unpacker::new(&root, Room::Memory(limit), geteuid().is_root()).unwrap();
            Self { outer, unpacker }
        }

        /// With other bounds than those on bytes, too.
        fn bounded(entries: u64, time: Duration) -> Self {
            let mut image = Self::new(1 << 30);
            image.unpacker.limit = Bounds { entries, time, ..image.unpacker.limit };
            image.unpacker.left = image.unpacker.limit;
            image
        }

        fn root(&self) -> PathBuf {
            self.outer.path().join("root")
        }

        fn layer(&mut self, entries: &[Given<'_>]) -> Result<(), UnpackError> {
            self.unpacker.layer(archive(entries).as_slice())
        }

        fn read(&self, path: &str) -> Option<String> {
            std::fs::read_to_string(self.root().join(path)).ok()
        }

        /// Everything below the temporary directory but not below the root.
        fn escaped(&self) -> Vec<OsString> {
            let names = std::fs::read_dir(self.outer.path()).unwrap().map(|entry| entry.unwrap().file_name());
            names.filter(|name| name != "root").collect()
        }
    }

    #[test]
    fn names_that_climb_are_refused() {
        for name in ["../evil", "a/../../evil", "/../evil", "a/.."] {
            let mut image = Image::new(1 << 20);
            let error = image.layer(&[(name, FILE, 0o644, "", b"x")]).unwrap_err();
            assert!(matches!(error, UnpackError::Path(_)), "{name}: {error}");
            assert!(image.escaped().is_empty());
        }
        let deep = "d/".repeat(45);
        let mut image = Image::new(1 << 20);
        image.layer(&[(&deep, DIR, 0o755, "", b"")]).unwrap();
    }

    #[test]
    fn absolute_names_and_links_stay_inside() {
        let mut image = Image::new(1 << 20);
        let outside = image.outer.path().to_str().unwrap().to_owned();
        image
            .layer(&[
                ("/absolute", FILE, 0o644, "", b"inside"),
                ("up", LINK, 0o777, "../../../../../..", b""),
                ("up/evil1", FILE, 0o644, "", b"x"),
                ("away", LINK, 0o777, &outside, b""),
            ])
            .unwrap();
        assert_eq!(image.read("absolute").as_deref(), Some("inside"));
        // The link leads to the root itself.
        assert_eq!(image.read("evil1").as_deref(), Some("x"));
        // An absolute link leads to that path below the root, which is not there yet.
        image.layer(&[("away/evil2", FILE, 0o644, "", b"x")]).unwrap();
        assert_eq!(image.read(&format!("{}/evil2", outside.trim_start_matches('/'))).as_deref(), Some("x"));
        assert!(image.escaped().is_empty(), "{:?}", image.escaped());
    }

    #[test]
    fn what_a_link_points_to_is_made_inside_the_root() {
        let mut image = Image::new(1 << 20);
        image
            .layer(&[
                ("var/run", LINK, 0o777, "/run", b""),
                ("var/run/lock/file", FILE, 0o644, "", b"absolute"),
                ("a/relative", LINK, 0o777, "../b/./c", b""),
                ("a/relative/file", FILE, 0o644, "", b"relative"),
                ("climbs", LINK, 0o777, "../../../../../../etc/x", b""),
                ("climbs/file", FILE, 0o644, "", b"climbs"),
                ("one", LINK, 0o777, "two/deep", b""),
                ("two", LINK, 0o777, "/three/../four", b""),
                ("one/file", FILE, 0o644, "", b"chain"),
            ])
            .unwrap();
        for (path, content) in [
            ("run/lock/file", "absolute"),
            ("b/c/file", "relative"),
            ("etc/x/file", "climbs"),
            ("four/deep/file", "chain"),
        ] {
            assert_eq!(image.read(path).as_deref(), Some(content), "{path}");
        }
        assert!(image.root().join("var/run").symlink_metadata().unwrap().is_symlink(), "the link stays");
        assert!(!image.root().join("three").exists(), "what is only passed through is not made");
        assert!(image.escaped().is_empty(), "{:?}", image.escaped());
    }

    #[test]
    fn a_later_layer_may_make_what_a_link_points_to() {
        let mut image = Image::new(1 << 20);
        image
            .layer(&[("data", LINK, 0o777, "srv/data", b""), ("data/early", FILE, 0o644, "", b"1")])
            .unwrap();
        image.layer(&[("srv/data", DIR, 0o750, "", b""), ("data/late", FILE, 0o644, "", b"2")]).unwrap();
        assert_eq!(image.read("srv/data/early").as_deref(), Some("1"));
        assert_eq!(image.read("srv/data/late").as_deref(), Some("2"));
        assert_eq!(image.root().join("srv/data").metadata().unwrap().mode() & 0o7777, 0o750);
        // Another layer may as well put something else there.
        image.layer(&[("srv/data", FILE, 0o644, "", b"file")]).unwrap();
        let error = image.layer(&[("data/later", FILE, 0o644, "", b"3")]).unwrap_err();
        assert!(matches!(error, UnpackError::File { .. }), "{error}");
    }

    #[test]
    fn links_without_end_are_refused() {
        let names: Vec<String> = (0..=42).map(|index| format!("l{index}")).collect();
        let chain: Vec<_> = names
            .windows(2)
            .map(|pair| (pair[0].as_str(), LINK, 0o777, pair[1].as_str(), &b""[..]))
            .collect();
        let loops: [&[Given<'_>]; 4] = [
            &[("l0", LINK, 0o777, "l0", b"")],
            &[("l0", LINK, 0o777, "l1", b""), ("l1", LINK, 0o777, "/l0", b"")],
            &[("l0", LINK, 0o777, "l0/more", b"")],
            &chain,
        ];
        for entries in loops {
            let mut image = Image::new(1 << 20);
            image.layer(entries).unwrap();
            let error = image.layer(&[("l0/x", FILE, 0o644, "", b"x")]).unwrap_err();
            let UnpackError::File { source, .. } = &error else { panic!("{error}") };
            assert_eq!(source.raw_os_error(), Some(Errno::ELOOP as i32), "{entries:?}");
            assert!(image.escaped().is_empty());
        }
    }

    #[test]
    fn a_file_replaces_a_link_and_never_follows_it() {
        let mut image = Image::new(1 << 20);
        image.layer(&[("victim", FILE, 0o644, "", b"old"), ("name", LINK, 0o777, "victim", b"")]).unwrap();
        image.layer(&[("name", FILE, 0o644, "", b"new")]).unwrap();
        assert_eq!(
            (image.read("victim").as_deref(), image.read("name").as_deref()),
            (Some("old"), Some("new"))
        );
    }

    #[test]
    fn hard_links_reach_only_what_is_inside() {
        let mut image = Image::new(1 << 20);
        std::fs::write(image.outer.path().join("secret"), "host").unwrap();
        image.layer(&[("a", FILE, 0o644, "", b"x"), ("b", EntryType::Link, 0o644, "/a", b"")]).unwrap();
        assert_eq!(image.read("b").as_deref(), Some("x"));
        let climbing = image.layer(&[("c", EntryType::Link, 0o644, "../secret", b"")]).unwrap_err();
        assert!(matches!(climbing, UnpackError::Path(_)), "{climbing}");
        image
            .layer(&[("s", LINK, 0o777, "../secret", b""), ("d", EntryType::Link, 0o644, "s", b"")])
            .unwrap();
        assert!(image.root().join("d").symlink_metadata().unwrap().is_symlink(), "the link itself is linked");
    }

    #[test]
    fn whiteouts_remove_what_lies_below_and_only_that() {
        let mut image = Image::new(1 << 20);
        image
            .layer(&[
                ("d/one", FILE, 0o644, "", b"1"),
                ("d/two/deep", FILE, 0o644, "", b"2"),
                ("o/old", FILE, 0o644, "", b"o"),
                ("o/both/old", FILE, 0o644, "", b"o"),
            ])
            .unwrap();
        image
            .layer(&[
                ("d/.wh.two", FILE, 0o644, "", b""),
                ("d/.wh.never", FILE, 0o644, "", b""),
                ("o/new", FILE, 0o644, "", b"n"),
                ("o/both/new", FILE, 0o644, "", b"n"),
                ("o/.wh..wh..opq", FILE, 0o644, "", b""),
                (".wh...", FILE, 0o644, "", b""),
            ])
            .unwrap();
        assert_eq!(image.read("d/one").as_deref(), Some("1"));
        assert!(!image.root().join("d/two").exists());
        assert_eq!((image.read("o/old"), image.read("o/both/old")), (None, None));
        assert_eq!(image.read("o/new").as_deref(), Some("n"));
        assert_eq!(image.read("o/both/new").as_deref(), Some("n"));
        assert!(image.outer.path().exists());
    }

    #[test]
    fn an_opaque_directory_keeps_what_its_own_layer_brought_by_whatever_name() {
        let mut image = Image::new(1 << 20);
        image
            .layer(&[
                ("o/old", FILE, 0o644, "", b"o"),
                ("o/in/old", FILE, 0o644, "", b"o"),
                ("l", LINK, 0o777, "o", b""),
            ])
            .unwrap();
        image
            .layer(&[
                ("l/in/new", FILE, 0o644, "", b"n"),
                ("o/.wh..wh..opq", FILE, 0o644, "", b""),
                ("l/.wh..wh..opq", FILE, 0o644, "", b""),
                ("o/after", FILE, 0o644, "", b"n"),
                ("o/in/.wh..wh..opq", FILE, 0o644, "", b""),
            ])
            .unwrap();
        assert_eq!((image.read("o/old"), image.read("o/in/old")), (None, None));
        assert_eq!(
            (image.read("o/in/new").as_deref(), image.read("o/after").as_deref()),
            (Some("n"), Some("n"))
        );
    }

    #[test]
    fn no_directory_is_walked_twice_for_one_layer() {
        // Walked each time, these would be 50 million looks at a file.
        let files: Vec<String> = (0..10_000).map(|index| format!("d/f{index}")).collect();
        let mut entries: Vec<_> =
            files.iter().map(|name| (name.as_str(), FILE, 0o644, "", &b""[..])).collect();
        entries.extend([("d/.wh..wh..opq", FILE, 0o644, "", &b""[..]); 5_000]);
        let mut image = Image::bounded(20_000, Duration::from_secs(20));
        image.layer(&entries).unwrap();
        assert_eq!(std::fs::read_dir(image.root().join("d")).unwrap().count(), 10_000);
    }

    #[test]
    fn a_whiteout_does_not_follow_a_link_out() {
        let mut image = Image::new(1 << 20);
        std::fs::write(image.outer.path().join("kept"), "x").unwrap();
        image.layer(&[("up", LINK, 0o777, "..", b"")]).unwrap();
        image
            .layer(&[("up/.wh.kept", FILE, 0o644, "", b""), ("up/.wh..wh..opq", FILE, 0o644, "", b"")])
            .unwrap();
        assert_eq!(std::fs::read_to_string(image.outer.path().join("kept")).unwrap(), "x");
    }

    #[test]
    fn rights_are_cut_and_devices_left_out() {
        let mut image = Image::new(1 << 20);
        image
            .layer(&[
                ("su", FILE, 0o6755, "", b"x"),
                ("sticky", DIR, 0o7777, "", b""),
                ("mem", EntryType::Char, 0o666, "", b""),
                ("sda", EntryType::Block, 0o666, "", b""),
                ("pipe", EntryType::Fifo, 0o4666, "", b""),
            ])
            .unwrap();
        let mode =
            |name: &str| image.root().join(name).symlink_metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("su"), mode("sticky"), mode("pipe")), (0o755, 0o1777, 0o666));
        assert!(!image.root().join("mem").exists() && !image.root().join("sda").exists());
        assert_eq!(image.unpacker.skipped_devices(), 2);
        let metadata = std::fs::metadata(image.root().join("su")).unwrap();
        assert_eq!(metadata.mtime(), 1_000_000_000);
        if geteuid().is_root() {
            assert_eq!((metadata.uid(), metadata.gid()), (7, 65_534), "an id outside the range is nobody's");
        }
    }

    #[test]
    fn a_bomb_ends_at_the_bound() {
        let mut image = Image::new(1 << 20);
        let bomb = vec![0_u8; 2 << 20];
        let error = image.layer(&[("zeros", FILE, 0o644, "", &bomb)]).unwrap_err();
        assert!(matches!(error, UnpackError::TooLarge(_)), "{error}");
        assert!(std::fs::metadata(image.root().join("zeros")).unwrap().len() <= 1 << 20);
        // Entries count too, or a million empty files would be free.
        let mut image = Image::new(1 << 20);
        let names: Vec<String> = (0..400).map(|index| format!("f{index}")).collect();
        let entries: Vec<_> = names.iter().map(|name| (name.as_str(), FILE, 0o644, "", &b""[..])).collect();
        assert!(matches!(image.layer(&entries), Err(UnpackError::TooLarge(_))));
    }

    #[test]
    fn what_is_not_written_is_charged_too() {
        let bomb = vec![0_u8; 2 << 20];
        for (name, kind) in [("d", DIR), ("mem", EntryType::Char), ("l", EntryType::Fifo), (".wh.x", FILE)] {
            let mut image = Image::new(1 << 20);
            let error = image.layer(&[(name, kind, 0o755, "", &bomb)]).unwrap_err();
            assert!(matches!(error, UnpackError::TooLarge(_)), "{name}: {error}");
        }
        // Below the bound on one header, and above the bound on the image.
        let long = "n".repeat(700 << 10);
        let mut image = Image::new(1 << 20);
        let entry = ("././@LongLink", EntryType::GNULongName, 0o644, "", long.as_bytes());
        let error = image.layer(&[entry, (".wh.x", FILE, 0o644, "", b"")]).unwrap_err();
        assert!(matches!(error, UnpackError::Path(_)), "{error}");
        assert!(image.unpacker.left.bytes < 400 << 10);
    }

    #[test]
    fn entries_are_counted_over_all_layers_and_with_what_is_made_for_them() {
        let mut image = Image::bounded(10, MAX_TIME);
        image.layer(&[("a/b/c/d", FILE, 0o644, "", b"")]).unwrap();
        image.layer(&[("l", LINK, 0o777, "x/y", b""), ("l/z/f", FILE, 0o644, "", b"")]).unwrap();
        image.layer(&[("one", FILE, 0o644, "", b"")]).unwrap();
        let error = image.layer(&[("more", FILE, 0o644, "", b"")]).unwrap_err();
        assert!(matches!(error, UnpackError::TooMany(10)), "{error}");
        assert!(!image.root().join("more").exists());
    }

    #[test]
    fn time_is_bounded_over_all_layers() {
        let mut image = Image::bounded(MAX_ENTRIES, Duration::from_millis(300));
        // Whole entries without end, which replace one another.
        struct Endless(Vec<u8>, usize);
        impl Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let rest = &self.0[self.1..];
                let count = rest.len().min(buffer.len());
                buffer[..count].copy_from_slice(&rest[..count]);
                self.1 = (self.1 + count) % self.0.len();
                Ok(count)
            }
        }
        let entry = archive(&[("f", FILE, 0o644, "", b"")])[..512].to_vec();
        image.unpacker.left.bytes = u64::MAX;
        image.unpacker.left.entries = u64::MAX;
        let error = image.unpacker.layer(Endless(entry, 0)).unwrap_err();
        assert!(matches!(error, UnpackError::Slow(_)), "{error}");
        assert!(
            matches!(image.layer(&[]).unwrap_err(), UnpackError::Slow(_)),
            "the next layer has no time left"
        );
    }

    #[test]
    fn a_header_without_end_is_refused() {
        let mut image = Image::new(1 << 30);
        let name = vec![b'n'; 3 << 20];
        let error = image.layer(&[("././@LongLink", EntryType::GNULongName, 0o644, "", &name)]).unwrap_err();
        assert!(matches!(error, UnpackError::Archive(_)), "{error}");
    }

    #[test]
    fn what_is_no_archive_says_so() {
        let mut image = Image::new(1 << 20);
        assert!(matches!(image.unpacker.layer(&[b'x'; 1024][..]), Err(UnpackError::Archive(_))));
        let whole = archive(&[("a", FILE, 0o644, "", &[b'x'; 4000])]);
        assert!(matches!(image.unpacker.layer(&whole[..2000]), Err(UnpackError::Archive(_))));
        let cut = flate2::read::GzDecoder::new(&b"\x1f\x8bnot gzip"[..]);
        assert!(matches!(image.unpacker.layer(cut), Err(UnpackError::Archive(_))));
    }
}
