"""Says where two images differ: the section of the UKI, in .initrd the file, in a program the
section.

Responsible for: naming the first place that explains a difference, as a path of places from the
outside to the inside. Contents come before headers, because a header repeats what contents decide
(sizes, offsets, checksums); a header is named first only when no content differs. Never: deciding
what may differ. Two images are the same or they are not.
"""

import struct

import uki

# How many differing files or fields are listed besides the first.
MOST = 20
# What is shown around the first differing byte.
SHOWN = 16

# The COFF header after "PE\0\0" (PE/COFF specification, section 3.3): offset, size, name.
COFF = [
    (0, 2, "Machine"),
    (2, 2, "NumberOfSections"),
    (4, 4, "TimeDateStamp"),
    (8, 4, "PointerToSymbolTable"),
    (12, 4, "NumberOfSymbols"),
    (16, 2, "SizeOfOptionalHeader"),
    (18, 2, "Characteristics"),
]
# The PE32+ optional header (section 3.4), the same way.
OPTIONAL = [
    (0, 2, "Magic"),
    (2, 2, "LinkerVersion"),
    (4, 4, "SizeOfCode"),
    (8, 4, "SizeOfInitializedData"),
    (12, 4, "SizeOfUninitializedData"),
    (16, 4, "AddressOfEntryPoint"),
    (20, 4, "BaseOfCode"),
    (24, 8, "ImageBase"),
    (32, 4, "SectionAlignment"),
    (36, 4, "FileAlignment"),
    (40, 4, "OperatingSystemVersion"),
    (44, 4, "ImageVersion"),
    (48, 4, "SubsystemVersion"),
    (52, 4, "Win32VersionValue"),
    (56, 4, "SizeOfImage"),
    (60, 4, "SizeOfHeaders"),
    (64, 4, "CheckSum"),
    (68, 2, "Subsystem"),
    (70, 2, "DllCharacteristics"),
    (72, 8, "SizeOfStackReserve"),
    (80, 8, "SizeOfStackCommit"),
    (88, 8, "SizeOfHeapReserve"),
    (96, 8, "SizeOfHeapCommit"),
    (104, 4, "LoaderFlags"),
    (108, 4, "NumberOfRvaAndSizes"),
]
# A section's entry (section 4), after its name.
ENTRY = [
    (8, 4, "VirtualSize"),
    (12, 4, "VirtualAddress"),
    (16, 4, "SizeOfRawData"),
    (20, 4, "PointerToRawData"),
    (24, 12, "relocations and line numbers"),
    (36, 4, "Characteristics"),
]
# The cpio header's fields (newc), each eight hexadecimal digits after the magic.
CPIO = [
    "ino",
    "mode",
    "uid",
    "gid",
    "nlink",
    "mtime",
    "filesize",
    "devmajor",
    "devminor",
    "rdevmajor",
    "rdevminor",
    "namesize",
    "check",
]
# Sections of a program that hold a digest of the others: they explain nothing.
DIGESTS = {".note.gnu.build-id", ".gnu_debuglink"}
# How compressed data begins, and what unpacks it.
PACKED = [
    (b"\x28\xb5\x2f\xfd", ["zstd", "-dcq"]),
    (b"\xfd7zXZ\0", ["xz", "-dcq"]),
    (b"\x1f\x8b", ["gzip", "-dcq"]),
    (b"\x02\x21\x4c\x18", ["lz4", "-dcq"]),
]


def compare(left, right):
    """Where the images `left` and `right` differ: a list of sentences, the telling one first; empty
    when they do not.
    """
    if left == right:
        return []
    try:
        found = executable(left, right, "")
    except uki.Malformed as error:
        found = [f"{error}; {bytes_at(left, right)}"]
    return found or [f"outside of headers and sections: {bytes_at(left, right)}"]


def executable(left, right, where):
    """PE files: their sections in order, then their headers, then what lies outside of both."""
    ours, theirs = sections(left), sections(right)
    names = [[name for name, *_ in table] for table in (ours, theirs)]
    if names[0] != names[1]:
        return [
            f"{where}the sections are {' '.join(names[0])} in one and {' '.join(names[1])} in the "
            "other"
        ]
    found = []
    for (name, one), (_, other) in zip(ours, theirs):
        if one != other:
            found += content(one, other, f"{where}section {name}", READERS.get(name))
    found += [f"{where}header: {sentence}" for sentence in headers(left, right)]
    return found


def sections(image):
    """[(name, content)] in the order of the section table."""
    try:
        header = struct.unpack_from("<I", image, 0x3C)[0]
        count, optional = struct.unpack_from("<H12xH", image, header + 6)
        table = [
            struct.unpack_from("<8sI4xII", image, header + 24 + optional + 40 * entry)
            for entry in range(count)
        ]
    except struct.error as error:
        raise uki.Malformed(f"not a PE file: {error}") from error
    return [
        (
            name.rstrip(b"\0").decode("ascii", "replace"),
            image[offset : offset + (min(size, raw) if size else raw)],
        )
        for name, size, raw, offset in table
    ]


def headers(left, right):
    """The fields that differ between two files' PE headers."""
    found = []
    starts = [struct.unpack_from("<I", image, 0x3C)[0] for image in (left, right)]
    if left[: starts[0]] != right[: starts[1]]:
        found.append(f"MS-DOS stub: {bytes_at(left[: starts[0]], right[: starts[1]])}")
    count, optional = struct.unpack_from("<H12xH", left, starts[0] + 6)
    fields = [(4 + offset, size, f"COFF {name}") for offset, size, name in COFF]
    fields += [
        (24 + offset, size, f"optional header {name}")
        for offset, size, name in OPTIONAL
        if offset + size <= optional
    ]
    fields += [
        (24 + offset, 8, f"data directory {(offset - 112) // 8}")
        for offset in range(112, optional - 7, 8)
    ]
    for number in range(count):
        at = 24 + optional + 40 * number
        name = left[starts[0] + at : starts[0] + at + 8].rstrip(b"\0").decode("ascii", "replace")
        fields += [(at + offset, size, f"section {name} {field}") for offset, size, field in ENTRY]
    for offset, size, name in fields:
        one, other = (
            image[start + offset : start + offset + size]
            for image, start in zip((left, right), starts)
        )
        if one != other:
            found.append(
                f"{name} is 0x{int.from_bytes(one, 'little'):x} in one and "
                f"0x{int.from_bytes(other, 'little'):x} in the other"
            )
    return found[:MOST]


def content(one, other, where, reader=None):
    """Two contents of one place that differ; `reader` looks inside when it understands both."""
    if reader:
        try:
            inside = reader(one, other, where)
        except uki.Malformed as error:
            inside = [f"{where}: {error}; {bytes_at(one, other)}"]
        if inside:
            return inside
    return [f"{where}: {bytes_at(one, other)}"]


def text(one, other, where):
    """Text: both in full, when they are short."""
    if max(len(one), len(other)) > 4096:
        return []
    return [
        f"{where}: {bytes_at(one, other)}: {one.decode('utf-8', 'replace')!r} and "
        f"{other.decode('utf-8', 'replace')!r}"
    ]


def initrd(one, other, where):
    """Two initramfs: the entries' order, their headers and their contents."""
    plain = unpack(one), unpack(other)
    if plain[0] == plain[1]:
        return [f"{where}: the same archive, packed differently: {bytes_at(one, other)}"]
    ours, theirs = entries(plain[0]), entries(plain[1])
    found = []
    for name in list(dict.fromkeys([*ours, *theirs])):
        if name not in ours or name not in theirs:
            found.append(
                f"{where}: {name} is only in the {'second' if name not in ours else 'first'}"
            )
            continue
        (head, body), (their_head, their_body) = ours[name], theirs[name]
        if body != their_body:
            found += content(
                body, their_body, f"{where}: {name}", elf if body[:4] == b"\x7fELF" else None
            )
        for field, mine, their in zip(CPIO, head, their_head):
            if mine != their and not (field == "filesize" and body != their_body):
                form = oct if field == "mode" else str
                found.append(
                    f"{where}: {name}: {field} is {form(mine)} in one and {form(their)} in the "
                    "other"
                )
    if not found and list(ours) != list(theirs):
        place = next(number for number, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1])
        found.append(
            f"{where}: the order: entry {place} is {list(ours)[place]} in one and "
            f"{list(theirs)[place]} in the other"
        )
    if len(found) > MOST:
        found = [*found[:MOST], f"{where}: and {len(found) - MOST} more"]
    return found


def entries(archive):
    """{name: (header fields, content)} of a cpio archive (newc), in its order."""
    at, found = 0, {}
    while True:
        if archive[at : at + 6] != b"070701":
            raise uki.Malformed(f"no cpio header at byte {at} of the initramfs")
        try:
            fields = [
                int(archive[at + 6 + 8 * field : at + 14 + 8 * field], 16) for field in range(13)
            ]
        except ValueError as error:
            raise uki.Malformed(f"a cpio header at byte {at} that is not hexadecimal") from error
        size, name_size = fields[6], fields[11]
        body = at + 110 + name_size + (-(110 + name_size) % 4)
        name = archive[at + 110 : at + 109 + name_size].decode("utf-8", "replace")
        if name == "TRAILER!!!":
            return found
        found[name] = (fields, archive[body : body + size])
        at = body + size + (-size % 4)


def kernel(one, other, where):
    """Two Linux kernels: the sections of the PE that they are, and the packed ELF file inside."""
    packed = payload(one), payload(other)
    if None not in packed and packed[0] != packed[1]:
        plain = unpack(packed[0]), unpack(packed[1])
        if plain[0] != plain[1]:
            return content(plain[0], plain[1], f"{where}: the unpacked kernel", elf)
        return [f"{where}: the same kernel, packed differently: {bytes_at(*packed)}"]
    return executable(one, other, f"{where}: ")


def payload(image):
    """The packed kernel in a bzImage (Documentation/arch/x86/boot.rst: setup_sects, payload_offset,
    payload_length).
    """
    if len(image) < 0x250 or image[0x202:0x206] != b"HdrS":
        return None
    start = ((image[0x1F1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    return image[start + offset : start + offset + length]


def elf(one, other, where):
    """Two ELF files: the first section, by name, that differs."""
    tables = elf_sections(one), elf_sections(other)
    if None in tables:
        return []
    consequence = []
    for (name, ours), (their_name, theirs) in zip(*tables):
        if name != their_name:
            return [f"{where}: a section is {name} in one and {their_name} in the other"]
        if ours != theirs:
            inside, whole = bytes_at(ours, theirs), bytes_at(one, other)
            found = f"{where}: ELF section {name}: {inside}; in the file: {whole}"
            if name not in DIGESTS:
                return [found]
            consequence.append(found)
    if consequence:
        return consequence
    if len(tables[0]) != len(tables[1]):
        return [f"{where}: {len(tables[0])} ELF sections in one and {len(tables[1])} in the other"]
    return [f"{where}: outside of the ELF sections: {bytes_at(one, other)}"]


def elf_sections(program):
    """[(name, content)] of a 64-bit little-endian ELF file in its table's order; None for any other
    file.
    """
    try:
        if program[:6] != b"\x7fELF\x02\x01":
            return None
        (table,) = struct.unpack_from("<Q", program, 0x28)
        size, count, names = struct.unpack_from("<HHH", program, 0x3A)
        headers_ = [
            struct.unpack_from("<IIQQQQ", program, table + size * number) for number in range(count)
        ]
        _, _, _, _, start, length = headers_[names]
    except (struct.error, IndexError):
        return None
    strings, found = program[start : start + length], []
    for name, kind, _, _, offset, length in headers_:
        # SHT_NOBITS has a size and no bytes.
        body = b"" if kind == 8 else program[offset : offset + length]
        found.append(
            (strings[name:].split(b"\0")[0].decode("ascii", "replace") or "(without a name)", body)
        )
    return found


def unpack(data):
    """Compressed data unpacked, by how it begins."""
    for magic, command in PACKED:
        if data.startswith(magic):
            # What follows the frame (a kernel's length, padding) makes some of them complain after
            # all is out.
            return uki.unpack(command, data, whole=False)
    return data


def bytes_at(one, other):
    """The first differing byte of two contents, and what is there."""
    place = next(
        (
            number
            for number in range(0, min(len(one), len(other)), 4096)
            if one[number : number + 4096] != other[number : number + 4096]
        ),
        min(len(one), len(other)) // 4096 * 4096,
    )
    end = min(len(one), len(other))
    while place < end and one[place] == other[place]:
        place += 1
    sizes = "" if len(one) == len(other) else f" ({len(one)} and {len(other)} bytes)"
    left, right = (data[place : place + SHOWN].hex() or "the end" for data in (one, other))
    return f"byte {place}{sizes}: {left} and {right}"


READERS = {
    ".initrd": initrd,
    ".linux": kernel,
    ".cmdline": text,
    ".osrel": text,
    ".uname": text,
    ".sbat": text,
}
