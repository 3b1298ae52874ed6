//! Small synthetic images and firmware, the same bytes every time: for tests, for the frozen vectors and as seeds for fuzzing.

#![allow(dead_code, clippy::indexing_slicing, clippy::unwrap_used, unreachable_pub)]

/// Offsets within the headers that [`pe`] writes.
pub const OPTIONAL: usize = 0x98;
const COFF: usize = 0x84;
const SECTION_TABLE: usize = OPTIONAL + 240;

/// A PE32+ image with the given sections, laid out as a linker would: headers of `headers` bytes, sections at multiples of 512.
pub fn pe(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let headers = 0x400;
    let mut image = vec![0_u8; headers];
    put(&mut image, 0, b"MZ");
    put(&mut image, 0x3c, &0x80_u32.to_le_bytes());
    put(&mut image, 0x80, b"PE\0\0");
    put(&mut image, COFF + 2, &u16::try_from(sections.len()).unwrap().to_le_bytes());
    put(&mut image, COFF + 16, &240_u16.to_le_bytes());
    put(&mut image, OPTIONAL, &0x20b_u16.to_le_bytes());
    put(&mut image, OPTIONAL + 60, &u32::try_from(headers).unwrap().to_le_bytes());
    put(&mut image, OPTIONAL + 108, &16_u32.to_le_bytes());
    for (index, (name, data)) in sections.iter().enumerate() {
        let header = SECTION_TABLE + index * 40;
        let start = image.len();
        let padded = data.len().next_multiple_of(0x200);
        put(&mut image, header, name.as_bytes());
        put(&mut image, header + 8, &u32::try_from(data.len()).unwrap().to_le_bytes());
        put(&mut image, header + 16, &u32::try_from(padded).unwrap().to_le_bytes());
        put(&mut image, header + 20, &u32::try_from(start).unwrap().to_le_bytes());
        image.extend_from_slice(data);
        image.resize(start + padded, 0);
    }
    image
}

/// A kernel: a PE image with the setup header of the Linux boot protocol 2.15 over its (unused) section headers.
pub fn kernel(code: &[u8]) -> Vec<u8> {
    let mut kernel = pe(&[(".text", code)]);
    put(&mut kernel, 0x202, b"HdrS");
    put(&mut kernel, 0x206, &0x020f_u16.to_le_bytes());
    kernel[0x211] = 1;
    kernel
}

/// `.sdmagic` of a boot stub whose measurements are known.
pub const MAGIC: &[u8] = b"#### LoaderInfo: systemd-stub 257.13 ####";

/// A UKI with a kernel of [`kernel`] and the sections of ours.
pub fn uki(command_line: &[u8], initrd: &[u8]) -> Vec<u8> {
    let kernel = kernel(b"kernel code");
    pe(&[
        (".sdmagic", MAGIC),
        (".osrel", b"ID=cofferdam\n"),
        (".cmdline", command_line),
        (".uname", b"7.3.4"),
        (".sbat", b"sbat,1\n"),
        (".initrd", initrd),
        (".linux", &kernel),
    ])
}

/// One section of TDVF metadata: offset and length in the file, address and size in memory, type, attributes.
pub type Section = (u32, u32, u64, u64, u32, u32);

/// A page.
pub const PAGE: usize = 4096;
/// Where in the code [`firmware`] holds the text by which a build for TDX alone is known.
pub const MARK: usize = 128;
/// Pages of the configuration volume of [`firmware`], and of its code behind.
pub const VOLUME_PAGES: usize = 2;
pub const CODE_PAGES: usize = 2;

/// The sections of [`firmware`]: as Debian's, smaller.
pub fn sections() -> Vec<Section> {
    let volume = u32::try_from(VOLUME_PAGES * PAGE).unwrap();
    let code = u32::try_from(CODE_PAGES * PAGE).unwrap();
    let top = 0x1_0000_0000_u64;
    let code_address = top - u64::from(code);
    vec![
        (volume, code, code_address, u64::from(code), 0, 1),
        (0, volume, code_address - u64::from(volume), u64::from(volume), 1, 0),
        (0, 0, 0x81_0000, 0x1_0000, 3, 0),
        (0, 0, 0x80_b000, 0x2000, 3, 0),
        (0, 0, 0x80_9000, 0x2000, 2, 0),
        (0, 0, 0x80_0000, 0x6000, 3, 0),
    ]
}

/// A firmware: a configuration volume with these variables, two pages of code, the metadata with these sections and the table of
/// GUIDs. `measures_files` puts in the text by which firmware of 2025 is known.
pub fn firmware(variables: &[Variable], sections: &[Section], measures_files: bool) -> Vec<u8> {
    let mut file = volume(variables, VOLUME_PAGES * PAGE);
    let code_start = file.len();
    file.extend((0..CODE_PAGES * PAGE).map(|index| u8::try_from(index % 251).unwrap()));
    put(&mut file, code_start + MARK, b"TdxTable\0");
    if measures_files {
        put(&mut file, code_start + 64, b"QEMU FW CFG\0");
    }
    let end = file.len();
    let metadata = end - 1024;
    put(&mut file, metadata, b"TDVF");
    put(&mut file, metadata + 4, &u32::try_from(16 + 32 * sections.len()).unwrap().to_le_bytes());
    put(&mut file, metadata + 8, &1_u32.to_le_bytes());
    put(&mut file, metadata + 12, &u32::try_from(sections.len()).unwrap().to_le_bytes());
    for (index, (offset, length, address, size, kind, attributes)) in sections.iter().enumerate() {
        let at = metadata + 16 + 32 * index;
        put(&mut file, at, &offset.to_le_bytes());
        put(&mut file, at + 4, &length.to_le_bytes());
        put(&mut file, at + 8, &address.to_le_bytes());
        put(&mut file, at + 16, &size.to_le_bytes());
        put(&mut file, at + 24, &kind.to_le_bytes());
        put(&mut file, at + 28, &attributes.to_le_bytes());
    }
    // Two entries, read from the end: the footer with the table's whole length, then the descriptor's distance.
    let footer = end - 32 - 18;
    put(&mut file, footer, &40_u16.to_le_bytes());
    put(&mut file, footer + 2, &FOOTER);
    let entry = footer - 22;
    put(&mut file, entry, &1024_u32.to_le_bytes());
    put(&mut file, entry + 4, &22_u16.to_le_bytes());
    put(&mut file, entry + 6, &METADATA);
    file
}

const FOOTER: [u8; 16] = hex16("de82b596b21ff745baeaa366c55a082d");
const METADATA: [u8; 16] = hex16("35657ae44a989847865e4685a7bf8ec2");
/// EFI_GLOBAL_VARIABLE and the owner of db and dbx.
pub const GLOBAL: [u8; 16] = hex16("61dfe48bca93d211aa0d00e098032b8c");
pub const DATABASE: [u8; 16] = hex16("cbb219d73a3d9645a3bcdad00e67656f");

/// A variable of the store: name, owner, value, state.
pub type Variable<'a> = (&'a str, [u8; 16], &'a [u8], u8);
/// The state of a variable that counts.
pub const ADDED: u8 = 0x3f;

/// The keys that a firmware with Secure Boot is delivered with.
pub fn keys() -> Vec<Variable<'static>> {
    vec![
        ("KEK", GLOBAL, b"key exchange key", ADDED),
        ("PK", GLOBAL, b"platform key", ADDED),
        ("db", DATABASE, b"what may start", 0x3d),
        ("db", DATABASE, b"what may be started", ADDED),
        ("dbx", DATABASE, b"what may not", ADDED),
    ]
}

/// A firmware volume of `length` bytes that holds a variable store.
pub fn volume(variables: &[Variable], length: usize) -> Vec<u8> {
    let mut out = vec![0xff_u8; length];
    out[..72].fill(0);
    put(&mut out, 16, &hex16("8d2bf1ff96768b4ca9852747075b4f50"));
    put(&mut out, 32, &u64::try_from(length).unwrap().to_le_bytes());
    put(&mut out, 40, b"_FVH");
    put(&mut out, 48, &72_u16.to_le_bytes());
    out[72..100].fill(0);
    put(&mut out, 72, &hex16("782cf3aa7b949a43a1802e144ec37792"));
    put(&mut out, 88, &u32::try_from(length - 72).unwrap().to_le_bytes());
    put(&mut out, 92, &[0x5a, 0xfe]);
    let mut at = 100;
    for (name, owner, value, state) in variables {
        let wide: Vec<u8> = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        out[at..at + 60].fill(0);
        put(&mut out, at, &[0xaa, 0x55, *state]);
        put(&mut out, at + 4, &0x27_u32.to_le_bytes());
        put(&mut out, at + 36, &u32::try_from(wide.len()).unwrap().to_le_bytes());
        put(&mut out, at + 40, &u32::try_from(value.len()).unwrap().to_le_bytes());
        put(&mut out, at + 44, owner);
        put(&mut out, at + 60, &wide);
        put(&mut out, at + 60 + wide.len(), value);
        // Offsets are multiples of four from the store's beginning, which is at one.
        at = (at + 60 + wide.len() + value.len()).next_multiple_of(4);
    }
    out
}

/// A loader's script that allocates these files, in this order, and then points into one of them.
pub fn loader(files: &[&str]) -> Vec<u8> {
    let mut script = Vec::new();
    for file in files {
        let mut entry = vec![0_u8; 128];
        put(&mut entry, 0, &1_u32.to_le_bytes());
        put(&mut entry, 4, file.as_bytes());
        script.extend_from_slice(&entry);
    }
    let mut entry = vec![0_u8; 128];
    put(&mut entry, 0, &2_u32.to_le_bytes());
    script.extend_from_slice(&entry);
    script
}

/// A SMBIOS structure: type, handle, length of its formatted part, strings.
pub fn structure(kind: u8, handle: u16, length: u8, strings: &[&str]) -> Vec<u8> {
    let mut structure = vec![kind, length];
    structure.extend_from_slice(&handle.to_le_bytes());
    structure.resize(usize::from(length), 0);
    for string in strings {
        structure.extend_from_slice(string.as_bytes());
        structure.push(0);
    }
    structure.extend_from_slice(if strings.is_empty() { &[0, 0] } else { &[0] });
    structure
}

/// A SMBIOS table of these structures, with the end that firmware gives it.
pub fn table(structures: &[Vec<u8>]) -> Vec<u8> {
    [structures.concat(), vec![127, 4, 0xff, 0xfe, 0, 0]].concat()
}

/// Overwrites bytes.
pub fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

const fn hex16(text: &str) -> [u8; 16] {
    let digits = text.as_bytes();
    let mut out = [0; 16];
    let mut index = 0;
    while index < 16 {
        out[index] = digit(digits[2 * index]) << 4 | digit(digits[2 * index + 1]);
        index += 1;
    }
    out
}

const fn digit(byte: u8) -> u8 {
    if byte <= b'9' { byte - b'0' } else { byte - b'a' + 10 }
}
