//! What QEMU before 10.2 does to a kernel that it is given with `-kernel`.
//!
//! It writes into the kernel's setup header, as a boot loader would, and the firmware measures the kernel with those changes.
//! That is not how an image of ours is started; this module is responsible for the digest that results when the kernel
//! out of it is, so that the difference can be named. Sources: QEMU `hw/i386/x86-common.c` (`x86_load_linux`); Linux
//! `Documentation/arch/x86/boot.rst` (the setup header). Newer QEMU leaves the header of a confidential guest's kernel alone.

use cofferdam_attest::event_log::Register;

use crate::bytes::{slice, u16_at};
use crate::pe::Image;

/// `HdrS` at 0x202; the protocol's version behind it.
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
/// Since this version all the fields below are there.
const OLDEST: u16 = 0x0203;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const HEAP_END: usize = 0x224;
const CMD_LINE: usize = 0x228;
/// "QEMU, revision 0".
const QEMU: u8 = 0xb0;
const LOADED_HIGH: u8 = 0x01;
const CAN_USE_HEAP: u8 = 0x80;
/// Where QEMU puts the command line, and the heap's end behind the setup code at 0x10000.
const CMD_LINE_ADDRESS: u32 = 0x20000;
const HEAP_END_OFFSET: u16 = 0xfe00;
/// Memory below 4 GiB of a q35 machine with 2 GiB or with 2.75 GiB and more, without the room that QEMU keeps for ACPI tables.
const INITRD_LIMIT: u32 = 0x8000_0000 - 0x2_8000 - 1;
const PAGE_MASK: u32 = 0xfff;

/// The Authenticode digest of the kernel as QEMU hands it over, with an initrd of that many bytes or without one. `None` when it
/// has no header to write into.
pub(crate) fn patched_digest(kernel: &[u8], initrd: Option<usize>) -> Option<Register> {
    if slice(kernel, MAGIC, 4).ok()? != b"HdrS" || u16_at(kernel, VERSION).ok()? < OLDEST {
        return None;
    }
    let flags = *kernel.get(LOADFLAGS)?;
    if flags & LOADED_HIGH == 0 {
        return None;
    }
    let mut patched = kernel.to_vec();
    write(&mut patched, CMD_LINE, &CMD_LINE_ADDRESS.to_le_bytes())?;
    write(&mut patched, TYPE_OF_LOADER, &[QEMU, flags | CAN_USE_HEAP])?;
    write(&mut patched, HEAP_END, &HEAP_END_OFFSET.to_le_bytes())?;
    if let Some(length) = initrd {
        let length = u32::try_from(length).ok()?;
        let address = INITRD_LIMIT.checked_sub(length)? & !PAGE_MASK;
        write(&mut patched, RAMDISK_IMAGE, &address.to_le_bytes())?;
        write(&mut patched, RAMDISK_SIZE, &length.to_le_bytes())?;
    }
    Image::parse(&patched).ok()?.authenticode_sha384().ok()
}

fn write(bytes: &mut [u8], at: usize, value: &[u8]) -> Option<()> {
    let field = bytes.get_mut(at..at.checked_add(value.len())?)?;
    field.copy_from_slice(value);
    Some(())
}
