//! SMBIOS tables: what is left out of them, beside what real firmware measured; and what is refused.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use cofferdam_attest::reference::ProcessorId;
use cofferdam_measure::smbios::{Smbios, SmbiosError};
use common::synthetic::{structure, table};
use proptest::prelude::*;
use serde::Deserialize;
use sha2::{Digest as _, Sha384};

/// `data/smbios.json`: tables of QEMU 10.0.2 as Debian's ovmf-generic 2026.08+ds-2 installed them, and the digest that a TPM's log
/// shows for each. `ci/tests/test_acpi_tables.py --write` made it.
#[derive(Deserialize)]
struct Measured {
    machines: Vec<Machine>,
}

#[derive(Deserialize)]
struct Machine {
    machine: String,
    processor: ProcessorId,
    table: String,
    measured: String,
}

fn machines() -> Vec<Machine> {
    let measured: Measured = serde_json::from_str(include_str!("data/smbios.json")).unwrap();
    assert_eq!(measured.machines.len(), 3);
    measured.machines
}

fn digest(smbios: &Smbios) -> String {
    hex::encode(Sha384::digest(smbios.measured()))
}

#[test]
fn the_digest_is_that_which_firmware_measured() {
    for machine in machines() {
        let smbios = Smbios::parse(&hex::decode(&machine.table).unwrap()).unwrap();
        assert!(smbios.names_processor());
        assert_eq!(digest(&smbios), machine.measured, "{}", machine.machine);
        // The same processor changes nothing, another one everything.
        assert_eq!(digest(&smbios.clone().with_processor(machine.processor)), machine.measured);
        let other = "F2 06 0C 00 FF FB AB 1F".parse().unwrap();
        assert_ne!(digest(&smbios.with_processor(other)), machine.measured);
    }
}

#[test]
fn nothing_of_the_machine_but_shape_version_and_processor_is_in_a_real_table() {
    let [two, four, _] = <[Machine; 3]>::try_from(machines()).ok().unwrap();
    let text =
        |machine: &Machine| String::from_utf8_lossy(&hex::decode(&machine.table).unwrap()).into_owned();
    for name in ["QEMU", "Standard PC (Q35 + ICH9, 2009)", "pc-q35-10.0", "CPU 0", "DIMM 0", "2026.08+ds-2"] {
        assert!(text(&two).contains(name) && text(&four).contains(name), "{name}");
    }
    // More processors in one socket change numbers of cores, which are left out.
    let cores = |count: u8| {
        let mut structure = structure(4, 0x400, 0x30, &[]);
        for at in [0x23, 0x24, 0x25, 0x2a, 0x2c, 0x2e] {
            structure[at] = count;
        }
        Smbios::parse(&table(&[structure])).unwrap()
    };
    assert_eq!(cores(2), cores(64));
}

/// The formatted part of type `kind` with every byte set but for strings, then the same with what is left out at zero.
fn left_out(kind: u8, length: u8, strings: &[usize], numbers: &[(usize, usize)]) {
    let mut full = structure(kind, 1, length, &["one", "two", "three"]);
    full[4..usize::from(length)].fill(0x5a);
    for (index, at) in strings.iter().enumerate() {
        full[*at] = u8::try_from(index % 3 + 1).unwrap();
    }
    let mut expected = full.clone();
    for (at, size) in numbers.iter().copied().chain(strings.iter().map(|at| (*at, 1))) {
        expected[at..at + size].fill(0);
    }
    let texts = usize::from(length);
    for number in 0..strings.len().min(3) {
        let (start, size) = [(0, 3), (4, 3), (8, 5)][number];
        expected[texts + start..texts + start + size].fill(b' ');
    }
    let measured = Smbios::parse(&table(&[full])).unwrap();
    assert_eq!(hex::encode(measured.measured()), hex::encode(table(&[expected])), "type {kind}");
}

#[test]
fn what_identifies_a_single_machine_is_left_out() {
    left_out(0, 0x18, &[], &[]);
    left_out(1, 0x1b, &[0x07], &[(0x08, 16), (0x18, 1)]);
    left_out(2, 0x0f, &[0x07, 0x0a], &[]);
    left_out(3, 0x16, &[0x07, 0x08], &[]);
    left_out(4, 0x30, &[0x20, 0x21, 0x22], &[(0x11, 1), (0x16, 2), (0x23, 3), (0x2a, 6)]);
    left_out(17, 0x28, &[0x18, 0x19, 0x1a], &[]);
    left_out(19, 0x1f, &[], &[]);
    left_out(22, 0x1a, &[0x07], &[(0x10, 4)]);
    left_out(23, 0x0d, &[], &[(0x05, 2)]);
    left_out(27, 0x0f, &[], &[(0x0c, 2)]);
    left_out(39, 0x16, &[0x08, 0x09, 0x0a], &[]);
    // A structure of an older version ends before the field.
    left_out(1, 0x08, &[0x07], &[]);
    left_out(4, 0x1a, &[], &[(0x11, 1), (0x16, 2)]);
    left_out(23, 0x06, &[], &[]);
    for kind in [11, 15, 18, 31, 33, 128, 255] {
        let mut full = structure(kind, 1, 8, &["text"]);
        full[4..8].fill(0x5a);
        let mut expected = full.clone();
        expected[4..].fill(0);
        assert_eq!(Smbios::parse(&table(&[full])).unwrap().measured(), table(&[expected]), "type {kind}");
    }
}

#[test]
fn a_table_that_firmware_would_not_read_in_one_way_is_refused() {
    let parse = |structures: &[Vec<u8>]| Smbios::parse(&table(structures)).map(|_| ());
    let plain = |handle| structure(9, handle, 6, &[]);
    assert_eq!(parse(&[]), Ok(()));
    assert_eq!(parse(&[plain(1), plain(2)]), Ok(()));
    assert_eq!(parse(&[plain(1), plain(1)]), Err(SmbiosError::Handle(1)));
    assert_eq!(parse(&[plain(0xfeff)]), Err(SmbiosError::Handle(0xfeff)), "that of the end");
    assert_eq!(parse(&[plain(0xff00)]), Err(SmbiosError::Handle(0xff00)));
    let mut short = plain(1);
    short[1] = 3;
    assert_eq!(parse(&[short]), Err(SmbiosError::CutOff(1)));
    let mut long = plain(1);
    long[1] = 0xff;
    assert_eq!(parse(&[long]), Err(SmbiosError::CutOff(0)));
    // An empty string before another one ends the row for one reader and not for the next.
    let mut empty = structure(9, 1, 6, &["x"]);
    empty.insert(6, 0);
    assert_eq!(parse(&[empty]), Err(SmbiosError::CutOff(6)));
    // A field that names a string which is not there makes the firmware write over another one.
    for (number, strings) in [(1, &[][..]), (2, &["one"]), (255, &["one"])] {
        let mut system = structure(1, 1, 0x1b, strings);
        system[7] = number;
        assert_eq!(parse(&[system]), Err(SmbiosError::NoString { kind: 1, number }));
    }
    let whole = table(&[plain(1)]);
    for length in 0..whole.len() {
        assert!(matches!(Smbios::parse(&whole[..length]), Err(SmbiosError::CutOff(_))), "cut at {length}");
    }
    assert_eq!(Smbios::parse(&[&whole[..], &[0]].concat()), Err(SmbiosError::Behind(whole.len())));
    assert!(!Smbios::parse(&whole).unwrap().names_processor());
    let small = structure(4, 1, 0x0f, &[]);
    assert!(!Smbios::parse(&table(&[small])).unwrap().names_processor(), "no room for it");
}

proptest! {
    #[test]
    fn damage_never_panics_and_never_changes_the_length(changes in prop::collection::vec((0_usize..400, any::<u8>()), 1..6)) {
        let mut bytes = hex::decode(&machines()[0].table).unwrap();
        for (at, value) in changes {
            let at = at.min(bytes.len() - 1);
            bytes[at] = value;
        }
        if let Ok(smbios) = Smbios::parse(&bytes) {
            prop_assert_eq!(smbios.measured().len(), bytes.len());
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let _ = Smbios::parse(&bytes);
    }
}
