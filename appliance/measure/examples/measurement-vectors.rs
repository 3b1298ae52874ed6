//! Writes `policy/vectors/measurement.json` anew: `cargo run -p cofferdam-measure --example measurement-vectors`.
//!
//! Only when the format or a case changes: the file is frozen, and `tests/vectors.rs` holds the library against it. With
//! `--seeds DIR` it writes the same files as seeds for fuzzing instead.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::synthetic::{
    MARK, PAGE, VOLUME_PAGES, firmware, keys, loader, put, sections, structure, table, uki,
};
use common::vectors::{ImageCase, PlatformCase, Vectors, encode, image, platform};
use serde_json::Value;

const ABOUT: &str = "Synthetic firmware and images, and every event and register that follows from them. A case takes a file, \
writes the bytes of put into it (offset, hexadecimal), and expects either a reference (a platform or image half) with what is \
left open, or a refusal. The words of refusals and of what is open are this implementation's.";

fn main() -> std::io::Result<()> {
    let with_keys = firmware(&keys(), &sections(), false);
    let without_keys = firmware(&[], &sections(), false);
    let plain = uki(b"console=hvc0 quiet\0", b"initial file systems");
    let mut arguments = std::env::args().skip(1);
    if let (Some("--seeds"), Some(folder)) = (arguments.next().as_deref(), arguments.next()) {
        return seeds(Path::new(&folder), &[&with_keys, &without_keys], &plain);
    }
    let files =
        [("firmware with keys", &with_keys), ("firmware without keys", &without_keys), ("image", &plain)];
    let files: BTreeMap<String, String> =
        files.into_iter().map(|(name, bytes)| (name.to_owned(), encode(bytes))).collect();
    let mut platforms = platform_cases(with_keys.len());
    for case in &mut platforms {
        case.expect = platform(&files, case);
    }
    let mut images = image_cases(&plain);
    for case in &mut images {
        case.expect = image(&files, case);
    }
    let vectors = Vectors {
        format: "cofferdam measurements of firmware and images".to_owned(),
        version: 1,
        about: ABOUT.to_owned(),
        files,
        platforms,
        images,
    };
    let mut json = serde_json::to_vec_pretty(&vectors)?;
    json.push(b'\n');
    std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policy/vectors/measurement.json"), json)
}

/// One file per target and case, in folders named for the targets.
fn seeds(folder: &Path, firmware: &[&[u8]], uki: &[u8]) -> std::io::Result<()> {
    for target in ["pe", "uki", "firmware"] {
        let seeds = if target == "firmware" { firmware } else { &[uki][..] };
        std::fs::create_dir_all(folder.join(target))?;
        for (index, seed) in seeds.iter().enumerate() {
            std::fs::write(folder.join(target).join(index.to_string()), seed)?;
        }
    }
    Ok(())
}

fn platform_cases(length: usize) -> Vec<PlatformCase> {
    let metadata = length - 1024;
    let section = |index: usize, field: usize| metadata + 16 + 32 * index + field;
    let entry = length - 32 - 18 - 22;
    let code = VOLUME_PAGES * PAGE;
    let of = |name: &str, keys: bool, memory_mib, tables, put: &[(usize, &str)]| PlatformCase {
        name: name.to_owned(),
        file: if keys { "firmware with keys" } else { "firmware without keys" }.to_owned(),
        put: put.iter().map(|(at, bytes)| (*at, (*bytes).to_owned())).collect(),
        memory_mib,
        cpus: 2,
        tables,
        processor: None,
        expect: Value::Null,
    };
    let newer = [(code + 64, "51454d552046572043464700")];
    let smbios = |identification: &str| PlatformCase {
        processor: identification.parse().ok(),
        ..of("firmware that measures files and SMBIOS tables", false, 2048, Some(with_smbios()), &newer)
    };
    let refused = |name: &str, at, bytes: &str| of(name, true, 2048, None, &[(at, bytes)]);
    vec![
        of("everything is known", false, 2048, Some(tables(&[])), &[]),
        of("memory is split at 2 GiB", false, 4096, Some(tables(&[])), &[]),
        of("memory is just not split", false, 2815, Some(tables(&[])), &[]),
        of("without tables", false, 2048, None, &[]),
        of("Secure Boot is on", true, 2048, Some(tables(&[1])), &[]),
        of("firmware that measures files", false, 2048, Some(tables(&[])), &newer),
        smbios("f2060c00fffbab1f"),
        PlatformCase { name: "SMBIOS tables of an unnamed processor".to_owned(), ..smbios("") },
        of("a build for all machines", false, 2048, Some(tables(&[])), &[(code + MARK, "00")]),
        of("less memory than the firmware needs", true, 8, None, &[]),
        of("more memory than is predicted", true, u64::MAX, None, &[]),
        refused("no table of GUIDs", length - 48, "00"),
        refused("no entry for TDX", entry + 6, "00"),
        refused("an entry of no length", entry + 4, "0000"),
        refused("an entry longer than the table", entry + 4, "ffff"),
        refused("descriptor outside of the file", entry, "ffffffff"),
        refused("no signature", metadata, "00"),
        refused("another version", metadata + 8, "02"),
        refused("too many sections", metadata + 12, "ffffffff"),
        refused("length that does not fit", metadata + 4, "00"),
        refused("sections overlap in memory", section(3, 8), "00f081"),
        refused("sections overlap in the file", section(0, 0), "00100000"),
        refused("a section behind the file", section(0, 0), "00f0ffff"),
        refused("an address near the limit", section(2, 8), "00f0ffffffffffff"),
        refused("a size near the limit", section(2, 16), "00f0ffffffffffff"),
        refused("no whole pages", section(2, 16), "01"),
        refused("raw data shorter than memory", section(0, 4), "00100000"),
        refused("raw data where zeros belong", section(2, 4), "00100000"),
        refused("a kind that is not loaded", section(2, 24), "04"),
        refused("an attribute that hosts treat differently", section(2, 28), "02"),
    ]
}

/// The files of a machine. An empty `secure_boot`: the firmware has no such variable.
fn tables(secure_boot: &[u8]) -> BTreeMap<String, String> {
    let files: [(&str, Vec<u8>); 9] = [
        ("etc/table-loader", loader(&["etc/acpi/rsdp", "etc/acpi/tables"])),
        ("etc/acpi/rsdp", b"RSD PTR synthetic".to_vec()),
        ("etc/acpi/tables", b"DSDT synthetic".to_vec()),
        ("BootMenu", vec![0, 0]),
        ("bootorder", b"/pci@i0cf8/scsi@1/disk@0,0\0".to_vec()),
        ("BootOrder", vec![0, 0, 1, 0]),
        ("Boot0000", b"boot manager".to_vec()),
        ("Boot0001", b"disk".to_vec()),
        ("SecureBoot", secure_boot.to_vec()),
    ];
    files.into_iter().map(|(name, bytes)| (name.to_owned(), encode(&bytes))).collect()
}

/// The same with a SMBIOS table: serial number, UUID and number of cores are left out, the processor is the one that is named.
fn with_smbios() -> BTreeMap<String, String> {
    let mut system = structure(1, 0x100, 0x1b, &["maker", "serial number"]);
    put(&mut system, 4, &[1, 0, 0, 2]);
    put(&mut system, 8, &[0x5a; 17]);
    let mut processor = structure(4, 0x400, 0x2a, &["CPU 0"]);
    put(&mut processor, 4, &[1]);
    put(&mut processor, 8, b"emulated");
    put(&mut processor, 0x23, &[2, 2, 2]);
    let mut files = tables(&[]);
    files.insert("smbios".to_owned(), encode(&table(&[system, processor])));
    files
}

fn image_cases(image: &[u8]) -> Vec<ImageCase> {
    let of = |name: &str, at: usize, bytes: &str| ImageCase {
        name: name.to_owned(),
        file: "image".to_owned(),
        put: if bytes.is_empty() { Vec::new() } else { vec![(at, bytes.to_owned())] },
        expect: Value::Null,
    };
    let find = |text: &[u8]| image.windows(text.len()).position(|window| window == text).unwrap();
    let table = 0x98 + 240;
    vec![
        of("plain", 0, ""),
        of("another command line", find(b"quiet"), "6465627567"),
        of("another initrd", find(b"initial"), "49"),
        of("another checksum, the same digests", 0x98 + 64, "01020304"),
        of("no MZ", 0, "00"),
        of("headers outside of the file", 0x3c, "ffffffff"),
        of("no 64-bit image", 0x98, "0b01"),
        of("too many sections", 0x86, "ffff"),
        of("sizes of headers near the limit", 0x98 + 60, "ffffffff"),
        of("a section with a size near the limit", table + 16, "ffffffff"),
        of("a section that starts near the limit", table + 20, "ffffffff"),
        of("overlapping sections", table + 40 + 20, "00040000"),
        of("a section that is not predicted", table + 3 * 40, "2e70726f66696c65"),
        of("no kernel", table + 6 * 40, "2e6e6f6e65"),
        of("a command line that is no text", find(b"quiet"), "ff"),
        of("another version of the stub", find(b"257.13"), "323632"),
        of("no boot stub", table, "2e6e6f6e65"),
    ]
}
