//! The block file under a store: a disk, a file, or memory.
//!
//! It is responsible for bytes at offsets and for nothing else. It is untrusted: whatever it returns is authenticated
//! by its reader, and it may lose, tear and reorder what was written since the last [`Disk::sync`].

use std::fmt::{self, Debug};
use std::fs::{File, TryLockError};
use std::io::{self, Seek as _, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A block file of fixed length.
#[allow(clippy::len_without_is_empty, reason = "an empty disk is refused like any other that is too small")]
pub trait Disk: Debug + Send + Sync + 'static {
    /// Its length in bytes.
    ///
    /// # Errors
    /// When it cannot be found out.
    fn len(&self) -> io::Result<u64>;

    /// Fills `out` with the bytes from `offset`.
    ///
    /// # Errors
    /// When they cannot be read, or end before `out` is full.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// When it takes them not or in part.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Returns when everything that was written is there after a power cut.
    ///
    /// # Errors
    /// When that is not certain.
    fn sync(&self) -> io::Result<()>;

    /// Whether every byte is zero.
    ///
    /// # Errors
    /// As [`Disk::read_at`].
    fn is_blank(&self) -> io::Result<bool> {
        holds_zeros(self)
    }
}

/// A file or a block device, locked against a second store on it for as long as this value lives.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
}

impl FileDisk {
    /// Takes over an open file and locks it.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when somebody else holds the lock.
    pub fn new(file: File) -> io::Result<Self> {
        match file.try_lock() {
            Ok(()) => Ok(Self { file }),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Disk for FileDisk {
    fn len(&self) -> io::Result<u64> {
        // The metadata of a block device says 0.
        (&self.file).seek(SeekFrom::End(0))
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn is_blank(&self) -> io::Result<bool> {
        let metadata = self.file.metadata()?;
        // A file that is one hole needs no reading.
        Ok((metadata.is_file() && metadata.blocks() == 0) || holds_zeros(self)?)
    }
}

/// A part of a disk as a disk of its own: nothing outside it can be reached.
#[derive(Clone, Debug)]
pub struct Window {
    disk: Arc<dyn Disk>,
    offset: u64,
    length: u64,
}

impl Window {
    /// These bytes of a disk.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] when the disk does not have them all, and what it says when asked for its length.
    pub fn new(disk: Arc<dyn Disk>, range: Range<u64>) -> io::Result<Self> {
        let length = range.end.checked_sub(range.start).filter(|_| range.end != u64::MAX);
        let length = length.ok_or(io::ErrorKind::UnexpectedEof)?;
        if disk.len()? < range.end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self { disk, offset: range.start, length })
    }

    /// Where `length` bytes from `offset` are on the disk.
    fn place(&self, offset: u64, length: usize) -> io::Result<u64> {
        let end = offset.checked_add(length as u64).filter(|end| *end <= self.length);
        let place = end.and_then(|_| self.offset.checked_add(offset));
        place.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Disk for Window {
    fn len(&self) -> io::Result<u64> {
        Ok(self.length)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(self.place(offset, out.len())?, out)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write_at(self.place(offset, bytes.len())?, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.sync()
    }
}

/// Memory that outlives the store on it: clones share the bytes.
#[derive(Clone)]
pub struct MemoryDisk(Arc<Mutex<Vec<u8>>>);

impl MemoryDisk {
    /// Zeros of this length.
    pub fn new(length: usize) -> Self {
        Self::holding(vec![0; length])
    }

    /// These bytes.
    pub fn holding(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(bytes)))
    }

    /// A copy of everything.
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Debug for MemoryDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryDisk({} bytes)", self.lock().len())
    }
}

impl Disk for MemoryDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.lock();
        let part = usize::try_from(offset).ok().and_then(|start| bytes.get(start..)?.get(..out.len()));
        out.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, new: &[u8]) -> io::Result<()> {
        let mut bytes = self.lock();
        let part =
            usize::try_from(offset).ok().and_then(|start| bytes.get_mut(start..)?.get_mut(..new.len()));
        part.ok_or(io::ErrorKind::StorageFull)?.copy_from_slice(new);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

fn holds_zeros<D: Disk + ?Sized>(disk: &D) -> io::Result<bool> {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    let mut buffer = vec![0; ZEROS.len()];
    let (mut offset, length) = (0, disk.len()?);
    while offset < length {
        let take = usize::try_from(length - offset).unwrap_or(usize::MAX).min(ZEROS.len());
        let Some((part, zeros)) = buffer.get_mut(..take).zip(ZEROS.get(..take)) else { break };
        disk.read_at(offset, part)?;
        if part != zeros {
            return Ok(false);
        }
        offset = offset.saturating_add(take as u64);
    }
    Ok(true)
}
