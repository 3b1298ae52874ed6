//! A sealed volume: a file system in a region of a disk that belongs to the host.
//!
//! ```text
//! ext4            mounted, in the appliance alone
//! dm-crypt        each block encrypted and authenticated with its number (AEAD)
//! dm-integrity    keeps random number and tag of each block, and writes both or neither (journal)
//! dm-linear       the region; nothing above can reach beyond it
//! the disk        the host's
//! ```
//!
//! # Duties
//!
//! - Where a volume was made, its superblock is compared and authenticated before the kernel sees it ([`SuperblockError`]), and nothing is
//!   written when it is not the right one. The kernel would make a new one of zeros; that happens only where [`make`](Volume::make) is asked
//!   for, on a head that was cleared before.
//! - What the kernel made of a table is read back before it is used ([`mapper`](crate::system::mapper)).
//! - A new volume is written before it is read: the whole of an empty file system ([`template`]), which then grows to the length of the
//!   device without a read of what was never written.
//! - Whatever fails, nothing of the volume stays mounted or mapped.
//!
//! # Prohibitions
//!
//! - Nothing of the disk decides about anything here: no header, no label, no size. Where a volume lies and with which key is an argument.
//! - A block that is not authentic is an error of that read (`EILSEQ`); it is never repaired, replaced or skipped.
//!
//! What cannot be seen here: an older copy of a block with its tag, in its own place. And what a write left in the journal when the power went can
//! be taken back by a host that damages the journal: the blocks are then what they were before.

mod geometry;
mod tables;
mod template;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::RangeInclusive;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use aws_lc_rs::error::Unspecified;
use nix::errno::Errno;
use nix::libc::O_DIRECT;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::syncfs;

pub use self::geometry::SuperblockError;
use self::geometry::{BLOCK, Block, Geometry};
pub use self::tables::Cipher;
use self::tables::Keys;
use self::template::Template;
use super::files;
use super::mapper::{self, Mapper, MapperError, Mapping};
use super::sys::resize_ext4;

/// No setuid program and no device of a volume works.
const FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
/// Metadata that is not authentic: nothing is written any more.
const OPTIONS: &str = "errors=remount-ro";
/// What every mke2fs makes and nobody here needs: a new volume is empty.
const LOST_AND_FOUND: &str = "lost+found";
const SECTOR: u64 = 512;

/// Where a volume lies.
#[derive(Debug, Clone, Copy)]
pub struct Region<'a> {
    /// What its mappings are called; without `/`, at most 100 bytes.
    pub name: &'a str,
    /// The disk. Nobody has it for himself (O_EXCL): the device mapper takes it for all its mappings together.
    pub disk: &'a File,
    /// In bytes, a multiple of 4096.
    pub offset: u64,
    /// In bytes, a multiple of 4096.
    pub length: u64,
}

/// Why a volume is not there.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The disk ends before the volume does.
    #[error("the disk is too short: it has {disk} bytes, and the volume ends at {end}")]
    Short {
        /// Bytes of the disk.
        disk: u64,
        /// End of the volume in bytes.
        end: u64,
    },
    /// Offset or length.
    #[error("a volume is 64 MiB to 1 TiB long and lies at a multiple of 4096 bytes")]
    Region,
    /// What it begins with is not its own.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// The device mapper.
    #[error(transparent)]
    Mapper(#[from] MapperError),
    /// The disk, or one of the devices above it.
    #[error("cannot {0}")]
    Device(&'static str, #[source] io::Error),
    /// The image's own file.
    #[error("the image has no template of a file system")]
    Template,
    /// A key could not be derived.
    #[error("cannot derive the keys of the volume")]
    Keys,
    /// The file system.
    #[error("its file system does not open")]
    Mount(#[source] Errno),
    /// The new file system.
    #[error("cannot let the new file system grow to {0} blocks")]
    Grow(u64, #[source] Errno),
}

impl From<Unspecified> for VolumeError {
    fn from(_: Unspecified) -> Self {
        Self::Keys
    }
}

/// Shortest and longest volume: the template, the journal of dm-integrity and room to grow; up to where an ext4 grows without being converted,
/// which would read what was never written.
pub const LENGTHS: RangeInclusive<u64> = 64 << 20..=1 << 40;

/// What an open volume takes of the kernel's memory, in bytes: three copies of dm-integrity's journal, buffers for tags, pools of dm-crypt, the
/// file system's own. Measured in a guest.
pub const KERNEL_BYTES: u64 = 32 << 20;

/// The device of a volume, without its file system. Removed when dropped.
#[derive(Debug)]
pub struct Sealed {
    // In the order in which they have to go.
    crypt: Mapping,
    integrity: Mapping,
    place: Mapping,
    length: u64,
}

/// A mounted volume. Unmounted and removed when dropped.
#[derive(Debug)]
pub struct Volume {
    // In the order in which they have to go.
    mounted: Mounted,
    sealed: Sealed,
}

#[derive(Debug)]
struct Mounted(Option<PathBuf>);

/// A block in memory where a device can read and write it itself, past the page cache.
#[repr(C, align(4096))]
struct Aligned(Block);

impl Sealed {
    /// Opens the device of a volume that was made.
    ///
    /// # Errors
    ///
    /// [`VolumeError`]; nothing was written up to where the tables are resumed.
    pub fn open(region: Region<'_>, key: &[u8; 32], cipher: Cipher) -> Result<Self, VolumeError> {
        Self::establish(region, key, cipher, false)
    }

    /// Makes the device of a new volume: whatever the region holds is lost.
    ///
    /// # Errors
    ///
    /// [`VolumeError`].
    pub fn make(region: Region<'_>, key: &[u8; 32], cipher: Cipher) -> Result<Self, VolumeError> {
        Self::establish(region, key, cipher, true)
    }

    fn establish(region: Region<'_>, key: &[u8; 32], cipher: Cipher, new: bool) -> Result<Self, VolumeError> {
        let Region { name, mut disk, offset, length } = region;
        let aligned = [offset, length].iter().all(|bytes| bytes.is_multiple_of(BLOCK));
        let end = offset
            .checked_add(length)
            .filter(|_| aligned && LENGTHS.contains(&length))
            .ok_or(VolumeError::Region)?;
        let bytes = disk.seek(SeekFrom::End(0)).map_err(device("read the length of the disk"))?;
        if bytes < end {
            return Err(VolumeError::Short { disk: bytes, end });
        }
        let geometry = Geometry::new(length / SECTOR, cipher.tag()).ok_or(VolumeError::Region)?;
        let keys = Keys::new(key);
        let number = disk.metadata().map_err(device("look at the disk"))?.rdev();

        let mapper: Rc<Mapper> = Mapper::open()?;
        let target = Keys::place(&mapper::number(number), offset / SECTOR, length / SECTOR);
        let place = mapper.map(&format!("place:{name}"), &target)?;
        if new {
            clear(&place.path()).map_err(device("clear the head of the volume"))?;
        } else {
            let block = head(&place.path()).map_err(device("read the head of the volume"))?;
            geometry.check(&block.0, &keys.superblock()?)?;
        }
        let target = keys.integrity(&place.number(), &geometry)?;
        let integrity = mapper.map(&format!("tags:{name}"), &target)?;
        let target = keys.crypt(&integrity.number(), cipher, &geometry)?;
        let crypt = mapper.map(&format!("volume:{name}"), &target)?;
        Ok(Self { crypt, integrity, place, length: geometry.provided() * SECTOR })
    }

    /// Where the device is.
    pub fn path(&self) -> PathBuf {
        self.crypt.path()
    }

    /// Its length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Removes it.
    ///
    /// # Errors
    ///
    /// [`MapperError`]: somebody still has it open.
    pub fn close(self) -> Result<(), MapperError> {
        self.crypt.remove()?;
        self.integrity.remove()?;
        self.place.remove()
    }
}

impl Volume {
    /// Opens a volume that was made, and mounts it.
    ///
    /// # Errors
    ///
    /// [`VolumeError`]; nothing stays mounted or mapped.
    pub fn open(region: Region<'_>, key: &[u8; 32], cipher: Cipher, at: &Path) -> Result<Self, VolumeError> {
        let sealed = Sealed::open(region, key, cipher)?;
        let mounted = Mounted::new(&sealed, at)?;
        Ok(Self { mounted, sealed })
    }

    /// Makes a volume, and mounts it. `template` is the image's file of an empty file system. When this returns, all of it is on the disk.
    ///
    /// # Errors
    ///
    /// [`VolumeError`]; nothing stays mounted or mapped.
    pub fn make(
        region: Region<'_>,
        key: &[u8; 32],
        cipher: Cipher,
        template: &Path,
        at: &Path,
    ) -> Result<Self, VolumeError> {
        let file = files::read_bounded(template, template::LONGEST).map_err(device("read the template"))?;
        let template = Template::new(&file).ok_or(VolumeError::Template)?;
        let sealed = Sealed::make(region, key, cipher)?;
        let opened = OpenOptions::new().write(true).open(sealed.path());
        let written = opened.and_then(|mut opened| template.write(&mut opened, sealed.length));
        written.map_err(device("write the new file system"))?;
        let mounted = Mounted::new(&sealed, at)?;
        let root = File::open(at).map_err(device("open the new file system"))?;
        let blocks = sealed.length / BLOCK;
        resize_ext4(root.as_fd(), blocks).map_err(|errno| VolumeError::Grow(blocks, errno))?;
        fs::remove_dir(at.join(LOST_AND_FOUND)).map_err(device("empty the new file system"))?;
        syncfs(&root).map_err(|errno| VolumeError::Device("write the new file system", errno.into()))?;
        Ok(Self { mounted, sealed })
    }

    /// Unmounts it and removes its device.
    ///
    /// # Errors
    ///
    /// Somebody still uses it; what was written is on the disk all the same, up to the last sync.
    pub fn close(self) -> Result<(), VolumeError> {
        self.mounted.close()?;
        Ok(self.sealed.close()?)
    }
}

impl Mounted {
    fn new(sealed: &Sealed, at: &Path) -> Result<Self, VolumeError> {
        mount(Some(&sealed.path()), at, Some("ext4"), FLAGS, Some(OPTIONS)).map_err(VolumeError::Mount)?;
        Ok(Self(Some(at.to_owned())))
    }

    fn close(mut self) -> Result<(), VolumeError> {
        let Some(at) = self.0.take() else { return Ok(()) };
        umount2(&at, MntFlags::empty())
            .map_err(|errno| VolumeError::Device("unmount the volume", errno.into()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(at) = self.0.take() {
            let _ = umount2(&at, MntFlags::empty());
        }
    }
}

/// The block where the superblock is, as the disk has it now.
fn head(place: &Path) -> io::Result<Box<Aligned>> {
    let mut block = Box::new(Aligned([0; BLOCK as usize]));
    let mut opened = OpenOptions::new().read(true).custom_flags(O_DIRECT).open(place)?;
    opened.read_exact(&mut block.0)?;
    Ok(block)
}

/// Writes zeros where the superblock is.
fn clear(place: &Path) -> io::Result<()> {
    let mut opened = OpenOptions::new().write(true).custom_flags(O_DIRECT).open(place)?;
    opened.write_all(&Aligned([0; BLOCK as usize]).0)?;
    opened.sync_all()
}

fn device(step: &'static str) -> impl FnOnce(io::Error) -> VolumeError {
    move |source| VolumeError::Device(step, source)
}
