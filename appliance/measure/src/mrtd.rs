//! MRTD: what the TDX module measures while the host builds a trust domain.
//!
//! Responsible for hashing the two operations of which the initial contents are made, in the order in which a host
//! issues them. Sources: Intel TDX Module ABI reference, TDH.MEM.PAGE.ADD and TDH.MR.EXTEND ("the extension buffer"); QEMU
//! `target/i386/kvm/tdx.c` (one KVM_TDX_INIT_MEM_REGION per section, in the order of the metadata); Linux
//! `arch/x86/kvm/vmx/tdx.c` (a page is added and, in a measured region, extended at once).

use cofferdam_attest::event_log::Register;
use cofferdam_attest::reference::{Mrtd, PageOrder};
use sha2::{Digest as _, Sha384};

use crate::tdvf::{PAGE, Section, Tdvf};

/// TDH.MR.EXTEND covers this many bytes.
const CHUNK: usize = 256;
/// Both operations extend the hash by a buffer of this length: the name, zeros, the address at 16, zeros.
const BUFFER: usize = 128;

/// MRTD of a firmware for both orders, the one of mainline Linux first.
#[must_use]
pub fn mrtd(firmware: &Tdvf<'_>) -> Vec<Mrtd> {
    vec![
        Mrtd { order: PageOrder::SinglePass, value: single_pass(firmware) },
        Mrtd { order: PageOrder::TwoPass, value: two_pass(firmware) },
    ]
}

/// Each page is added and, in a measured section, extended before the next is added: Linux 6.16 and later.
#[must_use]
pub fn single_pass(firmware: &Tdvf<'_>) -> Register {
    let mut hash = Sha384::new();
    for section in firmware.sections() {
        for (address, page) in pages(firmware, section) {
            add(&mut hash, address);
            extend(&mut hash, section, address, page);
        }
    }
    hash.finalize().into()
}

/// All pages of a section are added, then all are extended: some kernels and QEMUs with patches from before 6.16, among
/// them Ubuntu 24.04's for TDX.
#[must_use]
pub fn two_pass(firmware: &Tdvf<'_>) -> Register {
    let mut hash = Sha384::new();
    for section in firmware.sections() {
        for (address, _) in pages(firmware, section) {
            add(&mut hash, address);
        }
        for (address, page) in pages(firmware, section) {
            extend(&mut hash, section, address, page);
        }
    }
    hash.finalize().into()
}

/// The pages of a section: address and, for a section from the file, contents.
fn pages<'a>(firmware: &Tdvf<'a>, section: &Section) -> impl Iterator<Item = (u64, &'a [u8])> {
    let contents = firmware.raw(section).chunks(PAGE as usize).chain(std::iter::repeat(&[][..]));
    section.memory.clone().step_by(PAGE as usize).zip(contents)
}

/// TDH.MEM.PAGE.ADD: the page's address counts, its contents do not.
fn add(hash: &mut Sha384, address: u64) {
    hash.update(buffer(b"MEM.PAGE.ADD", address));
}

/// TDH.MR.EXTEND for every chunk of the page, when the section is measured.
fn extend(hash: &mut Sha384, section: &Section, page_address: u64, page: &[u8]) {
    if !section.extended {
        return;
    }
    for (address, chunk) in (page_address..).step_by(CHUNK).zip(page.chunks(CHUNK)) {
        hash.update(buffer(b"MR.EXTEND", address));
        hash.update(chunk);
    }
}

fn buffer(name: &[u8], address: u64) -> [u8; BUFFER] {
    let mut buffer = [0; BUFFER];
    let bytes = name.iter().chain(std::iter::repeat(&0)).take(16).copied().chain(address.to_le_bytes());
    for (to, from) in buffer.iter_mut().zip(bytes) {
        *to = from;
    }
    buffer
}
