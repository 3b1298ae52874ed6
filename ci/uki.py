"""Reads a UKI: the sections of a PE file, and the initramfs in one of them; makes a variant of one for tests."""

import struct
import subprocess


class Malformed(Exception):
    """The file is not a UKI, or not one of ours."""


def section(image, name):
    """The bytes of the section `name`, without the padding at its end."""
    try:
        header = struct.unpack_from("<I", image, 0x3c)[0]
        sections, optional = struct.unpack_from("<H12xH", image, header + 6)
        for entry in range(header + 24 + optional, header + 24 + optional + 40 * sections, 40):
            found, size, offset = struct.unpack_from("<8sI8xI", image, entry)
            if found.rstrip(b"\0") == name.encode():
                return image[offset:offset + size]
    except struct.error as error:
        raise Malformed(f"not a PE file: {error}") from error
    raise Malformed(f"no section {name}: not a UKI")


def variant(image, contents):
    """The UKI with other contents in some sections: {name: bytes}. Those get new addresses behind all others; the file is
    laid out anew, without gaps."""
    image = bytearray(image)
    header = struct.unpack_from("<I", image, 0x3c)[0]
    count, optional_size = struct.unpack_from("<H12xH", image, header + 6)
    optional = header + 24
    section_alignment, file_alignment = struct.unpack_from("<II", image, optional + 32)
    size_of_image, size_of_headers = struct.unpack_from("<II", image, optional + 56)
    table = range(optional + optional_size, optional + optional_size + 40 * count, 40)
    raw = {entry: struct.unpack_from("<8sIIII", image, entry) for entry in table}
    missing, out = set(contents), image[:size_of_headers]
    for entry, (name, size, address, length, offset) in sorted(raw.items(), key=lambda item: item[1][4]):
        name = name.rstrip(b"\0").decode()
        content = image[offset:offset + length] if length else b""
        if name in contents:
            missing.discard(name)
            content, size, address = contents[name], len(contents[name]), size_of_image
            size_of_image += -(-size // section_alignment) * section_alignment
        out += bytes(-len(out) % file_alignment)
        start = len(out)
        out += content + bytes(-len(content) % file_alignment)
        struct.pack_into("<IIII", out, entry + 8, size, address, len(out) - start, start if content else 0)
    if missing:
        raise Malformed(f"no section {', '.join(sorted(missing))}")
    struct.pack_into("<I", out, optional + 56, size_of_image)
    return bytes(out)


def file_archive(name, content):
    """A cpio archive (newc) of one file, as it may follow an initramfs."""
    def entry(number, mode, name, content):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)
    return entry(1, 0o100444, name, content) + entry(0, 0, "TRAILER!!!", b"")


def initramfs(image):
    """The entries of the initramfs: {name: (mode, uid, gid, mtime, content)}."""
    done = subprocess.run(["zstd", "-dc"], input=section(image, ".initrd"), capture_output=True, check=False)
    if done.returncode != 0:
        raise Malformed(f"the initramfs is not zstd: {done.stderr.decode().strip()}")
    archive, at, entries = done.stdout, 0, {}
    while True:
        if archive[at:at + 6] != b"070701":
            raise Malformed(f"no cpio (newc) header at byte {at} of the initramfs")
        _, mode, uid, gid, _, mtime, size, _, _, _, _, name_size, _ = (
            int(archive[at + 6 + 8 * field:at + 14 + 8 * field], 16) for field in range(13))
        content = at + 110 + name_size + (-(110 + name_size) % 4)
        name = archive[at + 110:at + 109 + name_size].decode()
        if name == "TRAILER!!!":
            return entries
        if name in entries:
            raise Malformed(f"{name} is twice in the initramfs")
        entries[name] = (mode, uid, gid, mtime, archive[content:content + size])
        at = content + size + (-size % 4)
