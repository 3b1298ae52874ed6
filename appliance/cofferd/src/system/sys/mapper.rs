//! Device-mapper's and ext4's requests: the two that have no safe wrapper anywhere.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::errno::Errno;
use nix::libc;

/// Length of `struct dm_ioctl` (include/uapi/linux/dm-ioctl.h), with which every request begins.
pub(crate) const MAPPER_HEADER: usize = 312;
/// Where its `data_size` is.
const DATA_SIZE: std::ops::Range<usize> = 12..16;

/// Sends request number `command` to `/dev/mapper/control`: a header and what follows it, which the kernel overwrites with its answer. The
/// length is entered here.
///
/// # Errors
///
/// `EINVAL` when the buffer is shorter than the header; what the request says.
pub(crate) fn mapper_request(control: BorrowedFd<'_>, command: u8, buffer: &mut [u8]) -> Result<(), Errno> {
    let length = u32::try_from(buffer.len()).map_err(|_| Errno::EINVAL)?;
    if buffer.len() < MAPPER_HEADER {
        return Err(Errno::EINVAL);
    }
    buffer.get_mut(DATA_SIZE).ok_or(Errno::EINVAL)?.copy_from_slice(&length.to_ne_bytes());
    // _IOWR(0xfd, command, struct dm_ioctl).
    let request =
        (3 << 30) | ((MAPPER_HEADER as libc::c_ulong) << 16) | (0xfd << 8) | libc::c_ulong::from(command);
    // SAFETY: the descriptor is borrowed, hence open. The kernel reads and writes `data_size` bytes at most, which is the buffer's length as
    // entered above, and follows no pointer in it. A file of another kind answers ENOTTY, since no other driver has these numbers.
    Errno::result(unsafe { libc::ioctl(control.as_raw_fd(), request as _, buffer.as_mut_ptr()) }).map(drop)
}

/// Grows the ext4 that `directory` is in to so many blocks (EXT4_IOC_RESIZE_FS).
///
/// # Errors
///
/// What the request says: `ENOSPC` when the device is shorter.
pub(crate) fn resize_ext4(directory: BorrowedFd<'_>, blocks: u64) -> Result<(), Errno> {
    // _IOW('f', 16, __u64), include/uapi/linux/ext4.h.
    const EXT4_IOC_RESIZE_FS: libc::c_ulong = (1 << 30) | (8 << 16) | (0x66 << 8) | 16;
    // SAFETY: the descriptor is borrowed, hence open; the kernel reads eight bytes, which outlive the call.
    Errno::result(unsafe {
        libc::ioctl(directory.as_raw_fd(), EXT4_IOC_RESIZE_FS as _, std::ptr::from_ref(&blocks))
    })
    .map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_request_that_is_too_short_or_goes_to_another_file_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(mapper_request(null.as_fd(), 3, &mut [0; 311]), Err(Errno::EINVAL));
        let mut buffer = [0; 400];
        assert_eq!(mapper_request(null.as_fd(), 3, &mut buffer), Err(Errno::ENOTTY));
        assert_eq!(buffer[12..16], 400_u32.to_ne_bytes());
        assert_eq!(resize_ext4(null.as_fd(), 1), Err(Errno::ENOTTY));
    }
}
