//! Memory for keys that the kernel itself does not map (memfd_secret(2), Linux 5.14; in the image's kernel always on).
//!
//! Neither a bug in the kernel that reads through its map of all memory nor a process that reads another's finds
//! what lies here; it is locked in memory, in no core file, and cleared when it is dropped. Such memory is a file that
//! can be mapped and neither read nor written, so that a key can be handed to a child like any descriptor.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::ftruncate;
use zeroize::Zeroize as _;

/// The largest that is taken from somebody else: one page. Keys have a few hundred bytes.
const MAX: usize = 4096;
/// `SECRETMEM_MAGIC` (include/uapi/linux/magic.h): the type of the file system that only memfd_secret makes files of.
const SECRETMEM: FsType = FsType(0x5345_434d);

/// A few bytes of it, mapped.
pub struct SecretMemory {
    file: OwnedFd,
    start: NonNull<u8>,
    length: NonZeroUsize,
}

// SAFETY: it owns its mapping and hands out references by Rust's rules alone, like a boxed slice.
unsafe impl Send for SecretMemory {}
// SAFETY: as for `Send`.
unsafe impl Sync for SecretMemory {}

impl fmt::Debug for SecretMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted:key]")
    }
}

impl SecretMemory {
    /// New memory of `length` bytes, all zero.
    ///
    /// # Errors
    ///
    /// `ENOSYS` when the kernel has none, `EINVAL` for no bytes or more than a page, `EAGAIN` beyond RLIMIT_MEMLOCK.
    pub fn new(length: usize) -> Result<Self, Errno> {
        let bounded = i64::try_from(length).ok().filter(|_| length <= MAX).ok_or(Errno::EINVAL)?;
        // SAFETY: memfd_secret(2) takes flags, of which the kernel knows O_CLOEXEC (mm/secretmem.c); the descriptor that
        // comes back is nobody else's.
        let file = unsafe {
            let made = Errno::result(libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC))?;
            OwnedFd::from_raw_fd(RawFd::try_from(made).map_err(|_| Errno::EOVERFLOW)?)
        };
        ftruncate(&file, bounded)?;
        Self::map(file, length)
    }

    /// New memory with these bytes.
    ///
    /// # Errors
    ///
    /// As [`SecretMemory::new`].
    pub fn holding(bytes: &[u8]) -> Result<Self, Errno> {
        let mut memory = Self::new(bytes.len())?;
        memory.bytes_mut().copy_from_slice(bytes);
        Ok(memory)
    }

    /// The memory behind a descriptor that somebody else made.
    ///
    /// # Errors
    ///
    /// `EINVAL` when it is not such memory, or more than a page; what mmap(2) says.
    pub fn open(file: OwnedFd) -> Result<Self, Errno> {
        // Any other file could change its length under the mapping; one of these cannot, once it has one.
        if fstatfs(&file)?.filesystem_type() != SECRETMEM {
            return Err(Errno::EINVAL);
        }
        let length = usize::try_from(nix::sys::stat::fstat(&file)?.st_size).map_err(|_| Errno::EINVAL)?;
        Self::map(file, length)
    }

    /// The same bytes in memory of their own: who gets the copy cannot change the original.
    ///
    /// # Errors
    ///
    /// As [`SecretMemory::new`].
    pub fn copy(&self) -> Result<Self, Errno> {
        Self::holding(self.bytes())
    }

    fn map(file: OwnedFd, length: usize) -> Result<Self, Errno> {
        let length = NonZeroUsize::new(length).filter(|length| length.get() <= MAX).ok_or(Errno::EINVAL)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choosing, of a file that has this length for good. It
        // must be shared: the kernel refuses anything else of secret memory.
        let start = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, &file, 0) }?.cast();
        Ok(Self { file, start, length })
    }

    /// What lies in it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has this length and lives as long as `self`; every byte of it is initialised. Another
        // process that holds the file could write meanwhile: PID 1 hands out copies, so there is none.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length.get()) }
    }

    /// What lies in it, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length.get()) }
    }

    /// Leaves what lies in it to whoever else has the file, for the rest of this process's life.
    pub fn leave(self) {
        std::mem::forget(self);
    }

    /// The file, for a child to inherit.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// So many keys of 32 bytes in memory of that kind.
#[derive(Debug)]
pub struct SecretKeys<const COUNT: usize>(SecretMemory);

impl<const COUNT: usize> SecretKeys<COUNT> {
    /// Keys of zeros, to be filled.
    ///
    /// # Errors
    ///
    /// As [`SecretMemory::new`].
    pub fn new() -> Result<Self, Errno> {
        SecretMemory::new(COUNT.saturating_mul(32)).map(Self)
    }
}

impl<const COUNT: usize> Deref for SecretKeys<COUNT> {
    type Target = [[u8; 32]; COUNT];

    fn deref(&self) -> &Self::Target {
        // SAFETY: the memory has exactly this length (see `new`; more than a page was refused), and arrays of bytes
        // need no alignment.
        unsafe { self.0.start.cast().as_ref() }
    }
}

impl<const COUNT: usize> DerefMut for SecretKeys<COUNT> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        // SAFETY: as in `deref`; the borrow is exclusive.
        unsafe { self.0.start.cast().as_mut() }
    }
}

impl Drop for SecretMemory {
    /// Clears it: a descriptor of the file may be alive elsewhere.
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
        // SAFETY: the range is exactly the mapping, which nothing borrows any more.
        let _ = unsafe { munmap(self.start.cast(), self.length.get()) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn bytes_pass_from_hand_to_hand_and_are_cleared() {
        let mut memory = SecretMemory::new(32).unwrap();
        assert_eq!(memory.bytes(), [0; 32]);
        memory.bytes_mut().copy_from_slice(&[7; 32]);
        let again = SecretMemory::open(memory.file().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(again.bytes(), [7; 32]);
        assert_eq!(format!("{again:?}"), "[redacted:key]");
        drop(memory);
        assert_eq!(again.bytes(), [0; 32]);
    }

    #[test]
    fn a_copy_is_its_holders_own() {
        let memory = SecretMemory::holding(b"abc").unwrap();
        let mut copy = memory.copy().unwrap();
        copy.bytes_mut().fill(b'x');
        drop(copy);
        assert_eq!(memory.bytes(), b"abc");
    }

    #[test]
    fn the_file_is_neither_read_nor_written_nor_resized() {
        let memory = SecretMemory::new(32).unwrap();
        let mut file = std::fs::File::from(memory.file().try_clone_to_owned().unwrap());
        assert!(file.read(&mut [0; 32]).is_err());
        assert!(file.write(&[1; 32]).is_err());
        assert!(file.set_len(64).is_err());
        assert!(file.set_len(0).is_err());
    }

    #[test]
    fn keys_are_arrays_in_it() {
        let mut keys = SecretKeys::<3>::new().unwrap();
        assert_eq!(*keys, [[0; 32]; 3]);
        keys[2] = [9; 32];
        assert_eq!(keys.0.bytes()[64..], [9; 32]);
        assert!(SecretKeys::<0>::new().is_err());
    }

    #[test]
    fn what_is_no_such_memory_is_not_taken() {
        assert_eq!(SecretMemory::new(0).unwrap_err(), Errno::EINVAL);
        assert_eq!(SecretMemory::new(MAX + 1).unwrap_err(), Errno::EINVAL);
        let plain = tempfile::tempfile().unwrap();
        plain.set_len(32).unwrap();
        assert_eq!(SecretMemory::open(plain.into()).unwrap_err(), Errno::EINVAL);
    }
}
