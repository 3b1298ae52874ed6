"""Makes of an image one in which a program of ours (ci/bench-guest.rs) looks on and says on the
console what it sees.
"""

import json
import os

import uki
from harness import ROOT
from process import run


def program(folder):
    """The bytes of the program, as one static file."""
    guest = os.path.join(folder, "guest")
    compiler = ["rustc", "--edition", "2024", "-O", "-C", "panic=abort", "-C", "strip=symbols"]
    target = ["--target", "x86_64-unknown-linux-musl", "-o", guest]
    run([*compiler, *target, os.path.join(ROOT, "ci", "bench-guest.rs")])
    with open(guest, "rb") as file:
        return file.read()


def words(image):
    """The image's own command line, but for who is first."""
    line = uki.section(image, ".cmdline").rstrip(b"\0\n").split()
    return [word for word in line if not word.startswith(b"rdinit=")]


def observed(image, content, *more):
    """The image with `content` as its first program, which executes the image's own; `more` are
    words for it (`NAME=VALUE`).
    """
    initrd = uki.section(image, ".initrd")
    added = uki.file_archive("observer", content, 0o100755)
    line = b" ".join([*words(image), b"rdinit=/observer", *map(str.encode, more)])
    return uki.variant(
        image, {".initrd": initrd + bytes(-len(initrd) % 4) + added, ".cmdline": line}
    )


def all_seen(console, what):
    """All that it said under this name, in order."""
    lines = [line for line in console.splitlines() if f"{what}: " in line]
    return [json.loads(line.split(f"{what}: ", 1)[1]) for line in lines]


def seen(console, what):
    """What it said last under this name; None before the first time."""
    said = all_seen(console, what)
    return said[-1] if said else None
