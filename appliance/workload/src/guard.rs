//! Making programs execute-only, so that the kernel starts them with unreadable memory (see the parent module).
//!
//! After the last layer every regular file that anybody may execute is looked at. A statically linked
//! program gets the guard's owner and mode 0711; a dynamically linked one names its interpreter
//! (`PT_INTERP`), and that file gets them. Shared libraries and scripts stay as they are: they
//! are opened for reading by the programs that use them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstatat};
use nix::unistd::{Gid, Uid, fchown};

use crate::GUARD_ID;
use crate::unpack::{UnpackError, file, file_kind, in_root, names};

/// Program headers that are read; the kernel itself takes at most 64 KiB of them.
const MAX_HEADERS: usize = 128;
/// Entries of a dynamic section that are read; real ones have some 30.
const MAX_DYNAMIC: u64 = 1024;
/// PATH_MAX, as the kernel bounds the interpreter's name.
const MAX_INTERPRETER: u64 = 4096;

/// What a file is to execve.
#[derive(Debug, PartialEq, Eq)]
enum Program {
    /// Runs by itself.
    Static,
    /// Is loaded by this file.
    Dynamic(PathBuf),
    /// A script, a shared library, or nothing that runs.
    Other,
}

/// Makes the programs below `root` execute-only. `own` is false where owners cannot be set; then only the
/// modes change. Returns the guarded paths, sorted.
///
/// # Errors
///
/// The tree cannot be walked or a file's owner cannot be set.
pub fn guard(root: &OwnedFd, own: bool) -> Result<Vec<PathBuf>, UnpackError> {
    let mut found = BTreeSet::new();
    // By name: a descriptor for each directory that waits would be more than a process may have.
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let directory =
            in_root(root, &path, OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).map_err(file("open", &path))?;
        for name in names(&directory, &path)? {
            let child = path.join(&name);
            let stat = fstatat(&directory, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(file("look at", &child))?;
            let kind = file_kind(&stat);
            if kind == SFlag::S_IFDIR {
                pending.push(child);
            } else if kind == SFlag::S_IFREG && stat.st_mode & 0o111 != 0 {
                let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let opened = openat(&directory, name.as_os_str(), flags, Mode::empty())
                    .map_err(file("open", &child))?;
                match classify(&mut File::from(opened)) {
                    Program::Static => drop(found.insert(child)),
                    Program::Dynamic(interpreter) => drop(found.insert(interpreter)),
                    Program::Other => {}
                }
            }
        }
    }
    let guarded = found.into_iter().filter_map(|path| close(root, &path, own).transpose());
    guarded.collect()
}

/// Gives one file its owner and mode. `None` when there is no regular file, as with the interpreter of
/// another C library: a program that cannot be loaded needs no guard.
fn close(root: &OwnedFd, path: &Path, own: bool) -> Result<Option<PathBuf>, UnpackError> {
    let Ok(target) = in_root(root, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK) else { return Ok(None) };
    let stat = nix::sys::stat::fstat(&target).map_err(file("look at", path))?;
    if file_kind(&stat) != SFlag::S_IFREG {
        return Ok(None);
    }
    if own {
        let (uid, gid) = (Uid::from_raw(GUARD_ID), Gid::from_raw(GUARD_ID));
        fchown(&target, Some(uid), Some(gid)).map_err(file("own", path))?;
    }
    fchmod(&target, Mode::from_bits_truncate(0o711)).map_err(file("set the mode of", path))?;
    Ok(Some(path.to_owned()))
}

/// Looks at a file's ELF headers (gABI; System V ABI for x86-64). What does not read as ELF is `Other`.
fn classify(file: &mut (impl Read + Seek)) -> Program {
    look(file).unwrap_or(Program::Other)
}

const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_SONAME: u64 = 14;
const DT_FLAGS_1: u64 = 0x6fff_fffb;
const DF_1_PIE: u64 = 0x0800_0000;

fn look(file: &mut (impl Read + Seek)) -> io::Result<Program> {
    let mut header = [0_u8; 64];
    file.read_exact(&mut header)?;
    // 64 bit, little-endian: the rest of the world does not run here.
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Ok(Program::Other);
    }
    let (kind, entry) = (u16_at(&header, 16), u64_at(&header, 24));
    let (offset, size, count) = (u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56));
    // ET_EXEC, ET_DYN; Elf64_Phdr has 56 bytes.
    if !matches!(kind, 2 | 3) || size != 56 {
        return Ok(Program::Other);
    }
    let mut dynamic = None;
    for index in 0..usize::from(count).min(MAX_HEADERS) {
        file.seek(SeekFrom::Start(offset.saturating_add(56 * index as u64)))?;
        let mut segment = [0_u8; 56];
        file.read_exact(&mut segment)?;
        let (start, length) = (u64_at(&segment, 8), u64_at(&segment, 32));
        match u32_at(&segment, 0) {
            PT_INTERP => return interpreter(file, start, length),
            PT_DYNAMIC => dynamic = Some((start, length)),
            _ => {}
        }
    }
    // Position-independent and without an interpreter: a static program or a shared library.
    let is_program = match (kind, dynamic) {
        (2, _) => true,
        (_, Some((start, length))) => entry != 0 && is_static_pie(file, start, length)?,
        (_, None) => entry != 0,
    };
    Ok(if is_program { Program::Static } else { Program::Other })
}

fn interpreter(file: &mut (impl Read + Seek), start: u64, length: u64) -> io::Result<Program> {
    file.seek(SeekFrom::Start(start))?;
    let mut name = Vec::new();
    file.take(length.min(MAX_INTERPRETER)).read_to_end(&mut name)?;
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(Program::Dynamic(PathBuf::from(std::ffi::OsStr::from_bytes(name))))
}

/// A linker marks a static-pie program with DF_1_PIE; where it does not, a library is known by its name.
fn is_static_pie(file: &mut (impl Read + Seek), start: u64, length: u64) -> io::Result<bool> {
    file.seek(SeekFrom::Start(start))?;
    let mut has_name = false;
    for _ in 0..(length / 16).min(MAX_DYNAMIC) {
        let mut entry = [0_u8; 16];
        file.read_exact(&mut entry)?;
        match (u64_at(&entry, 0), u64_at(&entry, 8)) {
            (0, _) => break,
            (DT_FLAGS_1, flags) if flags & DF_1_PIE != 0 => return Ok(true),
            (DT_SONAME, _) => has_name = true,
            _ => {}
        }
    }
    Ok(!has_name)
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|tail| tail.first_chunk()).copied().unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(bytes, at))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// An ELF file of one program header and, behind it, that segment's content.
    fn elf(kind: u16, entry: u64, segment: u32, content: &[u8]) -> Vec<u8> {
        let mut file = vec![0_u8; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[16..18].copy_from_slice(&kind.to_le_bytes());
        file[24..32].copy_from_slice(&entry.to_le_bytes());
        file[32..40].copy_from_slice(&64_u64.to_le_bytes());
        file[54..56].copy_from_slice(&56_u16.to_le_bytes());
        file[56..58].copy_from_slice(&1_u16.to_le_bytes());
        let mut header = [0_u8; 56];
        header[..4].copy_from_slice(&segment.to_le_bytes());
        header[8..16].copy_from_slice(&120_u64.to_le_bytes());
        header[32..40].copy_from_slice(&(content.len() as u64).to_le_bytes());
        file.extend_from_slice(&header);
        file.extend_from_slice(content);
        file
    }

    fn dynamic(entries: &[(u64, u64)]) -> Vec<u8> {
        entries.iter().flat_map(|(tag, value)| [tag.to_le_bytes(), value.to_le_bytes()].concat()).collect()
    }

    fn kind(bytes: &[u8]) -> Program {
        classify(&mut Cursor::new(bytes))
    }

    #[test]
    fn programs_are_told_from_libraries() {
        let interpreter = Program::Dynamic("/lib/ld-musl-x86_64.so.1".into());
        assert_eq!(kind(&elf(3, 1, PT_INTERP, b"/lib/ld-musl-x86_64.so.1\0")), interpreter);
        assert_eq!(kind(&elf(2, 1, PT_INTERP, b"/lib/ld-musl-x86_64.so.1\0")), interpreter);
        assert_eq!(kind(&elf(2, 1, 1, b"")), Program::Static);
        assert_eq!(
            kind(&elf(3, 1, PT_DYNAMIC, &dynamic(&[(DT_FLAGS_1, DF_1_PIE), (0, 0)]))),
            Program::Static
        );
        assert_eq!(kind(&elf(3, 1, PT_DYNAMIC, &dynamic(&[(4, 4), (0, 0)]))), Program::Static);
        assert_eq!(kind(&elf(3, 1, PT_DYNAMIC, &dynamic(&[(DT_SONAME, 1), (0, 0)]))), Program::Other);
        assert_eq!(kind(&elf(3, 0, PT_DYNAMIC, &dynamic(&[(4, 4)]))), Program::Other);
        assert_eq!(kind(&elf(1, 1, 1, b"")), Program::Other, "an object file");
    }

    #[test]
    fn what_is_no_elf_runs_by_something_else() {
        for bytes in [&b""[..], b"#!/bin/sh\n", b"\x7fELF", &[0; 64], &elf(3, 1, PT_DYNAMIC, b"")[..80]] {
            assert_eq!(kind(bytes), Program::Other);
        }
        // A header that promises more than there is.
        let mut file = elf(2, 1, 1, b"");
        file[56..58].copy_from_slice(&u16::MAX.to_le_bytes());
        assert_eq!(kind(&file), Program::Other);
    }

    #[test]
    fn this_very_program_is_recognised() {
        let own = std::env::current_exe().unwrap();
        assert_ne!(classify(&mut File::open(own).unwrap()), Program::Other);
    }

    #[test]
    fn static_programs_and_interpreters_become_execute_only_and_nothing_else_changes() {
        let image = tempfile::tempdir().unwrap();
        let put = |path: &str, content: &[u8], mode: u32| {
            let path = image.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        put("bin/static", &elf(2, 1, 1, b""), 0o755);
        put("bin/dynamic", &elf(3, 1, PT_INTERP, b"/lib64/ld.so\0"), 0o755);
        put("bin/lost", &elf(3, 1, PT_INTERP, b"/nowhere\0"), 0o755);
        put("bin/not-executable", &elf(2, 1, 1, b""), 0o644);
        put("bin/script", b"#!/bin/static\n", 0o755);
        put("usr/lib/ld.so", &elf(3, 1, PT_DYNAMIC, &dynamic(&[(DT_SONAME, 1), (0, 0)])), 0o755);
        put("usr/lib/libc.so", &elf(3, 0, PT_DYNAMIC, &dynamic(&[(DT_SONAME, 1), (0, 0)])), 0o755);
        std::os::unix::fs::symlink("/usr/lib", image.path().join("lib64")).unwrap();
        let root = nix::fcntl::open(image.path(), OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        let own = nix::unistd::geteuid().is_root();
        let guarded = guard(&root, own).unwrap();
        assert_eq!(guarded, [PathBuf::from("/lib64/ld.so"), PathBuf::from("bin/static")]);
        let mode =
            |path: &str| std::fs::metadata(image.path().join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("usr/lib/ld.so"), mode("bin/static")), (0o711, 0o711));
        for path in ["bin/dynamic", "bin/lost", "bin/script", "usr/lib/libc.so"] {
            assert_eq!(mode(path), 0o755, "{path}");
        }
        assert_eq!(mode("bin/not-executable"), 0o644);
        if own {
            let metadata = std::fs::metadata(image.path().join("bin/static")).unwrap();
            assert_eq!(std::os::unix::fs::MetadataExt::uid(&metadata), GUARD_ID);
        }
    }
}
