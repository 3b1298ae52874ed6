"""Reads a UKI: the sections of a PE file, and the initramfs in one of them. Never writes one."""

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
