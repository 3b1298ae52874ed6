"""Reads a UKI: the sections of a PE file, and the initramfs in one of them; makes variants of one,
and addons, for tests.
"""

import os
import stat
import struct
import subprocess
import threading

from process import Failed

# Ours have less than 20 MiB; others' may be larger. The same bound as that of `coffer measure`.
LARGEST_IMAGE = 512 << 20
# What an initramfs or a kernel of such an image may unpack to.
LARGEST_UNPACKED = 2 << 30


class Malformed(Failed):
    """The file is not a UKI, or not one of ours."""


def read(path, largest=LARGEST_IMAGE):
    """The bytes of a file of at most `largest` bytes; a longer one is refused before it is read, a
    device after that many.
    """
    with open(path, "rb") as file:
        about = os.fstat(file.fileno())
        if stat.S_ISREG(about.st_mode) and about.st_size > largest:
            raise Malformed(f"{path} has more than {largest} bytes")
        return bounded(file, largest, f"{path} has more than {largest} bytes")


def bounded(stream, largest, refusal):
    """What a stream gives until its end; Malformed saying `refusal` beyond `largest` bytes."""
    parts, length = [], 0
    while part := stream.read(1 << 20):
        length += len(part)
        if length > largest:
            raise Malformed(refusal)
        parts.append(part)
    return b"".join(parts)


def unpack(command, packed, largest=LARGEST_UNPACKED, whole=True):
    """What `command` unpacks `packed` to, at most `largest` bytes; unless `whole`, it may complain
    after something is out.
    """
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        feeder = threading.Thread(target=feed, args=(process.stdin, packed), daemon=True)
        feeder.start()
        try:
            plain = bounded(
                process.stdout, largest, f"{command[0]} unpacks it to more than {largest} bytes"
            )
        except Malformed:
            process.kill()
            raise
        said = process.stderr.read(4096).decode(errors="replace").strip()
        if process.wait() != 0 and (whole or not plain):
            raise Malformed(f"{command[0]} cannot unpack it: {said}")
        return plain


def feed(pipe, data):
    """Writes what the other end takes."""
    try:
        with pipe:
            pipe.write(data)
    except OSError:
        pass


def section(image, name):
    """The bytes of the section `name`, without the padding at its end."""
    try:
        header = struct.unpack_from("<I", image, 0x3C)[0]
        sections, optional = struct.unpack_from("<H12xH", image, header + 6)
        for entry in range(header + 24 + optional, header + 24 + optional + 40 * sections, 40):
            found, size, offset = struct.unpack_from("<8sI8xI", image, entry)
            if found.rstrip(b"\0") == name.encode():
                return image[offset : offset + size]
    except struct.error as error:
        raise Malformed(f"not a PE file: {error}") from error
    raise Malformed(f"no section {name}: not a UKI")


class Entry:
    """A section: its name, its size and address in memory, its bytes in the file, and its flags.
    Without an address it gets one behind all others.
    """

    def __init__(self, name, content, size=None, address=None, flags=0x40000040):
        self.name, self.content, self.address, self.flags = name, content, address, flags
        self.size = len(content) if size is None else size


def table(image):
    """The sections in the order of their table."""
    header, _optional, count = layout(image)
    found = []
    for at in range(header, header + 40 * count, 40):
        name, size, address, length, offset, flags = struct.unpack_from("<8sIIII12xI", image, at)
        found.append(
            Entry(
                name.rstrip(b"\0").decode(),
                image[offset : offset + length] if length else b"",
                size,
                address,
                flags,
            )
        )
    return found


def layout(image):
    """Where the table of sections begins, where the optional header, and how many sections there
    are.
    """
    header = struct.unpack_from("<I", image, 0x3C)[0]
    count, optional_size = struct.unpack_from("<H12xH", image, header + 6)
    return header + 24 + optional_size, header + 24, count


def rebuilt(image, sections):
    """The image with these sections, in this order, laid out anew with no gap after its headers."""
    start_of_table, optional, count = layout(image)
    section_alignment, file_alignment = struct.unpack_from("<II", image, optional + 32)
    size_of_image, size_of_headers = struct.unpack_from("<II", image, optional + 56)
    if start_of_table + 40 * len(sections) > size_of_headers:
        raise Malformed(f"there is no room for {len(sections)} sections in the headers")
    out = bytearray(image[:size_of_headers])
    out[start_of_table : start_of_table + 40 * max(count, len(sections))] = bytes(
        40 * max(count, len(sections))
    )
    for number, entry in enumerate(sections):
        address = entry.address
        if address is None:
            address = size_of_image
            size_of_image += -(-entry.size // section_alignment) * section_alignment
        out += bytes(-len(out) % file_alignment)
        start = len(out)
        out += entry.content + bytes(-len(entry.content) % file_alignment)
        struct.pack_into(
            "<8sIIII12xI",
            out,
            start_of_table + 40 * number,
            entry.name.encode(),
            entry.size,
            address,
            len(out) - start,
            start if entry.content else 0,
            entry.flags,
        )
    struct.pack_into("<H", out, optional - 18, len(sections))
    struct.pack_into("<I", out, optional + 56, size_of_image)
    return bytes(out)


def variant(image, contents):
    """The UKI with other contents in some sections: {name: bytes}. Those get new addresses behind
    all others.
    """
    sections = table(image)
    missing = set(contents) - {entry.name for entry in sections}
    if missing:
        raise Malformed(f"no section {', '.join(sorted(missing))}")
    return rebuilt(
        image,
        [
            Entry(entry.name, contents[entry.name], flags=entry.flags)
            if entry.name in contents
            else entry
            for entry in sections
        ],
    )


def added(image, name, content):
    """The image with one section more, behind all others."""
    return rebuilt(image, [*table(image), Entry(name, content)])


def removed(image, name):
    """The image without a section."""
    return rebuilt(image, [entry for entry in table(image) if entry.name != name])


def checksum(image, value):
    """The image with another CheckSum in its header."""
    out = bytearray(image)
    struct.pack_into("<I", out, layout(image)[1] + 64, value)
    return bytes(out)


def stub_byte(image):
    """The image with one letter of a message of its boot stub changed."""
    text = b"Error getting a LoadedImageProtocol handle"
    at = image.find(text)
    if at < 0:
        raise Malformed("the boot stub has no such message")
    return image[:at] + b"e" + image[at + 1 :]


def file_archive(name, content, mode=0o100444):
    """A cpio archive (newc) of one file, as it may follow an initramfs."""

    def entry(number, mode, name, content):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)

    return entry(1, mode, name, content) + entry(0, 0, "TRAILER!!!", b"")


def initramfs(image):
    """The entries of the initramfs: {name: (mode, uid, gid, mtime, content)}."""
    archive, at, entries = unpack(["zstd", "-dcq"], section(image, ".initrd")), 0, {}
    while True:
        if archive[at : at + 6] != b"070701":
            raise Malformed(f"no cpio (newc) header at byte {at} of the initramfs")
        _, mode, uid, gid, _, mtime, size, _, _, _, _, name_size, _ = (
            int(archive[at + 6 + 8 * field : at + 14 + 8 * field], 16) for field in range(13)
        )
        content = at + 110 + name_size + (-(110 + name_size) % 4)
        name = archive[at + 110 : at + 109 + name_size].decode()
        if name == "TRAILER!!!":
            return entries
        if name in entries:
            raise Malformed(f"{name} is twice in the initramfs")
        entries[name] = (mode, uid, gid, mtime, archive[content : content + size])
        at = content + size + (-size % 4)
