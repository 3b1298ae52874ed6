"""ci/reproduce, ci/measurements, ci/release and the workflows, without building anything.

Run with `python3 ci/tests/test_reproduce.py`.
"""

import base64
import functools
import hashlib
import http.server
import importlib.machinery
import importlib.util
import io
import json
import os
import pwd
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import unittest
import urllib.request

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import imagediff
import inputs
import lockfile

CI = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROOT = os.path.dirname(CI)


def script(name):
    """A script of ci/ as a module."""
    loader = importlib.machinery.SourceFileLoader(name, os.path.join(CI, name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


demo, measurements, release, reproduce = (
    script(name) for name in ("demo", "measurements", "release", "reproduce")
)

TIME = 1767225600


def elf(text=b"\x90" * 64, data=b"constant"):
    """A 64-bit ELF file with the sections .note.gnu.build-id (a digest of the others), .text,
    .rodata and .shstrtab.
    """
    names = b"\0.text\0.rodata\0.shstrtab\0.note.gnu.build-id\0"
    body, headers = b"", [bytes(64)]
    for name, kind, content in (
        (25, 7, hashlib.sha256(text + data).digest()),
        (1, 1, text),
        (7, 1, data),
        (15, 3, names),
    ):
        headers.append(
            struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, 64 + len(body), len(content), 0, 0, 1, 0)
        )
        body += content
    start = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    start += struct.pack(
        "<HHIQQQIHHHHHH",
        2,
        62,
        1,
        0,
        0,
        64 + len(body),
        0,
        64,
        56,
        0,
        64,
        len(headers),
        len(headers) - 1,
    )
    return start + body + b"".join(headers)


def cpio(files):
    """An initramfs of {name: (mtime, content)}."""
    archive = b""
    for number, (name, (mtime, content)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))]):
        fields = [number, 0o100644, 0, 0, 1, mtime, len(content), 0, 0, 0, 0, len(name) + 1, 0]
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        archive += bytes(-len(archive) % 4) + content
        archive += bytes(-len(archive) % 4)
    return archive


def uki(
    files=None, cmdline=b"console=ttyS0 quiet", timestamp=0, kernel=b"MZ not a kernel", level="-19"
):
    """A PE file with the sections of a UKI."""
    files = files or {"init": (TIME, elf()), "etc/motd": (TIME, b"welcome")}
    packed = subprocess.run(
        ["zstd", "-cq", level], input=cpio(files), capture_output=True, check=True
    ).stdout
    parts = [(b".cmdline", cmdline), (b".linux", kernel), (b".initrd", packed)]
    start = bytearray(b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x80)).ljust(0x80, b"\0")
    start += b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, len(parts), timestamp, 0, 0, 240, 0x22E)
    start += struct.pack("<H", 0x20B).ljust(240, b"\0")
    offset, table, body = 0x400, b"", b""
    for number, (name, content) in enumerate(parts):
        padded = content + bytes(-len(content) % 512)
        table += struct.pack(
            "<8sIIIIIIHHI",
            name,
            len(content),
            0x1000 * (number + 1),
            len(padded),
            offset + len(body),
            0,
            0,
            0,
            0,
            0x40000040,
        )
        body += padded
    return bytes((start + table).ljust(offset, b"\0") + body)


class Difference(unittest.TestCase):
    """Each way in which two images can differ is named."""

    def first(self, other, one=None):
        found = imagediff.compare(one or uki(), other)
        self.assertTrue(found, "no difference found")
        return found[0]

    def test_the_same_image_has_no_difference(self):
        self.assertEqual(imagediff.compare(uki(), uki()), [])

    def test_one_file_of_the_initramfs(self):
        said = self.first(uki({"init": (TIME, elf()), "etc/motd": (TIME, b"welcoMe")}))
        self.assertEqual(said, "section .initrd: etc/motd: byte 5: 6d65 and 4d65")

    def test_a_section_of_a_program(self):
        said = self.first(
            uki({"init": (TIME, elf(data=b"constanT")), "etc/motd": (TIME, b"welcome")})
        )
        self.assertIn(
            "section .initrd: init: ELF section .rodata: byte 7: 74 and 54; in the file: byte 64",
            said,
        )

    def test_a_program_that_grew(self):
        said = self.first(
            uki({"init": (TIME, elf(text=b"\x90" * 80)), "etc/motd": (TIME, b"welcome")})
        )
        self.assertIn("init: ELF section .text: byte 64 (64 and 80 bytes)", said)

    def test_a_file_that_only_one_has(self):
        said = self.first(uki({"init": (TIME, elf())}))
        self.assertEqual(said, "section .initrd: etc/motd is only in the first")

    def test_the_order_of_the_initramfs(self):
        files = {"etc/motd": (TIME, b"welcome"), "init": (TIME, elf())}
        found = imagediff.compare(uki(), uki(files))
        self.assertTrue(any("ino is 0 in one and 1 in the other" in said for said in found), found)

    def test_the_time_of_a_file(self):
        said = self.first(uki({"init": (TIME, elf()), "etc/motd": (TIME + 1, b"welcome")}))
        self.assertEqual(
            said, f"section .initrd: etc/motd: mtime is {TIME} in one and {TIME + 1} in the other"
        )

    def test_the_command_line(self):
        said = self.first(uki(cmdline=b"console=ttyS1 quiet"))
        self.assertEqual(
            said,
            "section .cmdline: byte 12: 30207175696574 and 31207175696574: 'console=ttyS0 quiet' "
            "and 'console=ttyS1 quiet'",
        )

    def test_a_field_of_the_header(self):
        self.assertEqual(
            self.first(uki(timestamp=TIME)),
            f"header: COFF TimeDateStamp is 0x0 in one and 0x{TIME:x} in the other",
        )

    def test_contents_are_named_before_headers(self):
        found = imagediff.compare(uki(), uki(cmdline=b"console=ttyS0 quiet longer", timestamp=1))
        self.assertIn("section .cmdline", found[0])
        self.assertTrue(any("TimeDateStamp" in said for said in found[1:]))

    def test_the_same_files_packed_differently(self):
        files = {"init": (TIME, elf()), "large": (TIME, bytes(range(256)) * 500 + b"x" * 99999)}
        self.assertIn(
            "the same archive, packed differently", self.first(uki(files, level="-1"), uki(files))
        )

    def test_the_kernel_inside_its_packing(self):
        def kernel(data):
            packed = subprocess.run(
                ["zstd", "-cq"], input=elf(data=data), capture_output=True, check=True
            ).stdout
            image = bytearray(1024)
            image[:2], image[0x1F1], image[0x202:0x206] = b"MZ", 1, b"HdrS"
            struct.pack_into("<II", image, 0x248, 0, len(packed))
            return bytes(image) + packed

        said = self.first(
            uki(kernel=kernel(b"built by root")), uki(kernel=kernel(b"built by them"))
        )
        self.assertIn("section .linux: the unpacked kernel: ELF section .rodata: byte 9", said)

    def test_padding_and_what_is_no_image(self):
        changed = bytearray(uki())
        changed[-1] ^= 1
        self.assertIn("outside of headers and sections", self.first(bytes(changed)))
        self.assertIn("not a PE file", self.first(b"short"))

    def test_the_command_says_it_with_its_exit_code(self):
        with tempfile.TemporaryDirectory() as folder:
            paths = [os.path.join(folder, name) for name in ("a.efi", "b.efi")]
            for path, image in zip(paths, (uki(), uki(cmdline=b"quiet"))):
                with open(path, "wb") as file:
                    file.write(image)

            def run(*which):
                return subprocess.run(
                    [os.path.join(CI, "reproduce"), "--compare", *which],
                    capture_output=True,
                    text=True,
                    check=False,
                )

            self.assertEqual(
                (run(paths[0], paths[0]).returncode, run(paths[0], paths[0]).stdout),
                (0, "the same\n"),
            )
            different = run(*paths)
            self.assertEqual(different.returncode, 1)
            self.assertIn("section .cmdline", different.stdout)


class Ways(unittest.TestCase):
    """The two builds differ in everything that the log claims."""

    def test_the_two_sides_share_no_setting(self):
        sides = [
            reproduce.Side(number, "/nowhere", pwd.getpwuid(os.getuid()), cores)
            for number, cores in enumerate(([0], [0, 1]))
        ]
        about = [side.describe() for side in sides]
        for key in about[0].keys() - {"user", "uid"}:
            self.assertNotEqual(about[0][key], about[1][key], key)
        self.assertNotEqual(len(about[0]["directory"]), len(about[1]["directory"]))
        for key in ("TZ", "LC_ALL", "MAKEFLAGS", "CARGO_BUILD_JOBS", "HOME"):
            self.assertNotEqual(sides[0].environment()[key], sides[1].environment()[key], key)
        self.assertNotEqual(sides[0].laid, sides[1].laid)


# A builder instead of mkosi: its image holds what a list names of its surroundings, a file each.
BUILDER = """#!/usr/bin/python3
import os, socket, sys
if "--version" in sys.argv:
    sys.exit(print("mkosi 0"))
sys.path.insert(0, os.path.join(os.getcwd(), "ci/tests"))
from test_reproduce import TIME, uki
PREFIX = "--environment="
words = [word.removeprefix(PREFIX) for word in sys.argv if word.startswith(PREFIX)]
given = dict(word.split("=", 1) for word in words)
os.umask(mask := os.umask(0))
conf = os.stat("mkosi.conf")
seen = {"directory": os.getcwd(), "length": len(os.getcwd()), "uid": os.getuid(), "umask": mask,
        "host": socket.gethostname(), "user": os.environ["USER"], "home": os.environ["HOME"],
        "processors": len(os.sched_getaffinity(0)),
        "mtime": int(conf.st_mtime), "mode": conf.st_mode,
        "earlier": os.path.exists("build/mkosi"), "start": os.times().elapsed,
        **{name: given[name] for name in ("TZ", "LC_ALL", "MAKEFLAGS", "CARGO_BUILD_JOBS")}}
if "sleep" in LEAKS:
    print("asleep", flush=True)
    os.execv("/bin/sleep", ["sleep", "987.654"])
os.makedirs("build/mkosi")
with open("cofferdam.efi", "wb") as file:
    leaked = {name: str(seen[name]).encode() if name in LEAKS else b"" for name in seen}
    file.write(uki({name: (TIME, content) for name, content in leaked.items()}))
"""


def arguments():
    """The command lines of all processes."""
    for process in os.listdir("/proc"):
        try:
            with open(f"/proc/{process}/cmdline", "rb") as file:
                yield file.read()
        except OSError:
            pass


class Surroundings(unittest.TestCase):
    """What the log says to differ does reach the builder, and what leaks into the image is found;
    with a builder that takes no time.
    """

    def run_with(self, leaks, *options):
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            builder = os.path.join(folder, "mkosi")
            with open(builder, "w", encoding="utf-8") as file:
                file.write(BUILDER.replace("LEAKS", repr(leaks)))
            os.chmod(builder, 0o755)
            done = subprocess.run(
                [
                    os.path.join(CI, "reproduce"),
                    "--bare",
                    "--mkosi",
                    builder,
                    "--log",
                    folder,
                    *options,
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            with open(os.path.join(folder, "log.json"), encoding="utf-8") as file:
                return done.returncode, json.load(file), done.stdout + done.stderr

    def setUp(self):
        if os.getuid() != 0:
            self.skipTest("wants root, for the second user")

    def test_what_does_not_leak_is_the_same_for_all_pairs(self):
        users = [entry.pw_name for entry in pwd.getpwall()]
        code, log, said = self.run_with(["earlier"], "--pairs", "2")
        self.assertEqual(code, 0, said)
        self.assertEqual([pair["same"] for pair in log["pairs"]], [True, True])
        self.assertEqual(
            len({about["sha256"] for pair in log["pairs"] for about in pair["builds"]}), 1
        )
        self.assertEqual([entry.pw_name for entry in pwd.getpwall()], users)

    def test_each_that_leaks_is_found_at_its_place(self):
        leaks = [
            "directory",
            "length",
            "uid",
            "umask",
            "host",
            "user",
            "home",
            "processors",
            "mtime",
            "mode",
            "start",
            "TZ",
            "LC_ALL",
            "MAKEFLAGS",
            "CARGO_BUILD_JOBS",
        ]
        if len(os.sched_getaffinity(0)) == 1:
            leaks = [
                name
                for name in leaks
                if name not in ("processors", "MAKEFLAGS", "CARGO_BUILD_JOBS")
            ]
        code, log, said = self.run_with(leaks, "--together")
        self.assertEqual(code, 1, said)
        found = " ".join(log["pairs"][0]["differences"])
        for name in leaks:
            self.assertIn(f"section .initrd: {name}: byte", found)

    def test_one_that_is_ended_leaves_nothing(self):
        users = [entry.pw_name for entry in pwd.getpwall()]
        for options in ([], ["--together"]):
            with tempfile.TemporaryDirectory() as folder:
                os.chmod(folder, 0o755)
                os.mkdir(os.path.join(folder, "work"))
                builder = os.path.join(folder, "mkosi")
                with open(builder, "w", encoding="utf-8") as file:
                    file.write(BUILDER.replace("LEAKS", repr(["sleep"])))
                os.chmod(builder, 0o755)
                command = [
                    os.path.join(CI, "reproduce"),
                    "--bare",
                    "--mkosi",
                    builder,
                    "--log",
                    folder,
                    "--work",
                    os.path.join(folder, "work"),
                    *options,
                ]
                running = subprocess.Popen(
                    command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
                for _ in range(3000):
                    logs = [
                        os.path.join(base, name)
                        for base, _, names in os.walk(os.path.join(folder, "work"))
                        for name in names
                        if name in ("a.log", "b.log")
                    ][:2]
                    if (
                        len([path for path in logs if os.path.getsize(path)]) == 1 + bool(options)
                        or running.poll() is not None
                    ):
                        break
                    time.sleep(0.1)
                self.assertIsNone(running.poll(), "it ended by itself")
                self.assertIn(b"987.654", b" ".join(arguments()))
                running.terminate()
                running.wait(120)
                self.assertNotIn(b"987.654", b" ".join(arguments()))
                self.assertEqual(os.listdir(os.path.join(folder, "work")), [])
                self.assertEqual([entry.pw_name for entry in pwd.getpwall()], users)

    def test_a_pair_that_is_not_the_given_image(self):
        code, log, said = self.run_with([], "--against", os.path.join(ROOT, "Cargo.toml"))
        self.assertEqual(code, 1, said)
        self.assertIn("both differ from", log["pairs"][0]["differences"][0])


class Inputs(unittest.TestCase):
    """What the digest of the inputs covers, and what it does not."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = folder.name
        for path in (
            "Cargo.lock",
            "Cargo.toml",
            "mkosi.conf",
            "appliance/cofferd/src/main.rs",
            "image/build",
            "mkosi.profiles/simulator/mkosi.conf",
            "policy/seccomp/front.json",
            "policy/vectors/redact.json",
            "measurements/0.1.0/cofferdam.json",
            "README.md",
            "ci/test",
            "image/README.md",
            "appliance/cofferd/tests/all.rs",
            "image/base/etc/notes.md",
        ):
            self.write(path, path)
        self.before = inputs.digest(self.root)

    def write(self, path, content):
        full = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "w", encoding="utf-8") as file:
            file.write(content)
        os.chmod(full, 0o644)

    def test_every_input_counts(self):
        for path in inputs.files(self.root):
            self.write(path, "other")
            self.assertNotEqual(inputs.digest(self.root), self.before, path)
            self.write(path, path)
            self.assertEqual(inputs.digest(self.root), self.before)

    def test_measurements_documents_tests_and_outputs_do_not(self):
        for path in (
            "measurements/0.1.0/cofferdam.json",
            "README.md",
            "ci/test",
            "image/README.md",
            "policy/vectors/redact.json",
            "appliance/cofferd/tests/all.rs",
            "mkosi.tools/usr/bin/cc",
            "mkosi.tools.manifest",
            "build/tools/usr/bin/cc",
        ):
            self.write(path, "other")
            self.assertEqual(inputs.digest(self.root), self.before, path)

    def test_what_enters_the_image_counts_whatever_it_is_called(self):
        self.write("image/base/etc/notes.md", "other")
        self.assertNotEqual(inputs.digest(self.root), self.before)

    def test_what_mkosi_and_cargo_pick_up_by_themselves_counts(self):
        for path in (
            "mkosi.extra/etc/motd",
            "mkosi.local.conf",
            "mkosi.tools.conf",
            ".cargo/config.toml",
            "rust-toolchain.toml",
        ):
            self.write(path, "x")
            self.assertNotEqual(inputs.digest(self.root), self.before, path)
            os.unlink(os.path.join(self.root, path))
            self.assertEqual(inputs.digest(self.root), self.before)

    def test_umask_does_not_and_the_execute_bit_does(self):
        path = os.path.join(self.root, "image/build")
        os.chmod(path, 0o600)
        self.assertEqual(inputs.digest(self.root), self.before)
        os.chmod(path, 0o755)
        self.assertNotEqual(inputs.digest(self.root), self.before)

    def test_a_moved_file_counts(self):
        os.rename(os.path.join(self.root, "image/build"), os.path.join(self.root, "image/built"))
        self.assertNotEqual(inputs.digest(self.root), self.before)

    def test_modified_is_about_inputs_only(self):
        git = ["git", "-C", self.root, "-c", "user.name=dev", "-c", "user.email=dev@example.org"]
        for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
            subprocess.run([*git, *command], check=True)
        self.assertFalse(inputs.commit(self.root)[1])
        self.write("measurements/0.1.0/cofferdam.json", "other")
        self.write("image/README.md", "other")
        self.assertFalse(inputs.commit(self.root)[1])
        self.write("image/new", "untracked")
        self.assertTrue(inputs.commit(self.root)[1])


def half(**build):
    """A small image half."""
    about = {
        "commit": "0" * 40,
        "inputs": "sha256:1",
        "toolchain": {"rustc": "1.95.0"},
        "packages": {"gcc": "14", "musl-tools": "1.2.5-3"},
    } | build
    return {
        "version": 1,
        "kind": "image",
        "image": {
            "name": "cofferdam",
            "digests": {"command_line": "c", "initrd": "i", "kernel": "k", "uki": "u"},
        },
        "build": about,
        "boots": [
            {
                "platform": "tdx",
                "rtmr1": "1",
                "rtmr2": "2",
                "events": [
                    {"mr": 1, "cause": "uki", "digest": "a"},
                    {"mr": 2, "cause": "initrd", "digest": "b"},
                ],
            }
        ],
    }


class Judgement(unittest.TestCase):
    """ci/measurements --check: what is a failure, and what it says."""

    def judge(self, committed, fresh):
        verdict, sentences = measurements.judge(committed, fresh)
        return verdict, "\n".join(sentences)

    def other_bits(self, **build):
        fresh = half(**build)
        fresh["image"]["digests"] |= {"kernel": "other", "uki": "other"}
        return fresh

    def test_the_same_is_right_whatever_commit_it_was_built_from(self):
        self.assertEqual(
            self.judge(half(), half(commit="1" * 40, modified=True)),
            (measurements.SAME, "as committed: u"),
        )

    def test_none_committed(self):
        self.assertEqual(
            self.judge(None, half()),
            (measurements.WRONG, "measurements/ have none: run ci/measurements and commit"),
        )

    def test_same_bits_pass_whatever_moved_and_what_moved_is_listed(self):
        moved = {
            "toolchain": {"rustc": "1.95.0", "mkosi": "28"},
            "packages": {"gcc": "15", "musl-tools": "1.2.5-3", "new": "1"},
            "snapshot": "20261122T000000Z",
        }
        verdict, said = self.judge(half(), half(**moved))
        self.assertEqual(verdict, measurements.SAME)
        for part in (
            "3 moved, and the bits are the same",
            "mkosi: none there, 28 here",
            "gcc: 14 there, 15 here",
            "new: none there, 1 here",
        ):
            self.assertIn(part, said)
        self.assertNotIn("musl-tools", said)
        verdict, said = self.judge(half(), half(inputs="sha256:2"))
        self.assertEqual(verdict, measurements.SAME)
        self.assertIn("another one than measurements/ are of, and gives the same bits", said)

    def test_other_bits_of_another_source_tree(self):
        verdict, said = self.judge(
            half(), self.other_bits(inputs="sha256:2", packages={"gcc": "15"})
        )
        self.assertEqual(verdict, measurements.WRONG)
        self.assertIn("another source tree: run ci/measurements and commit", said)

    def test_other_bits_where_inputs_moved_cannot_be_told(self):
        for build, part in (
            ({"toolchain": {"rustc": "1.96.0"}}, "rustc: 1.95.0 there, 1.96.0 here"),
            ({"packages": {"gcc": "15", "musl-tools": "1.2.5-3"}}, "gcc: 14 there, 15 here"),
        ):
            verdict, said = self.judge(half(), self.other_bits(**build))
            self.assertEqual(verdict, measurements.MOVED)
            self.assertIn(part, said)
            self.assertIn("kernel is k there and other here", said)
            self.assertIn("--inputs", said)

    def test_other_bits_of_the_same_inputs_are_wrong_and_named(self):
        fresh = half()
        fresh["image"]["digests"] |= {"initrd": "other", "uki": "other"}
        fresh["boots"][0]["events"][1]["digest"] = "other"
        verdict, said = self.judge(half(), fresh)
        self.assertEqual(verdict, measurements.WRONG)
        self.assertIn("OTHER BITS: initrd is i there and other here", said)

    def test_another_event_or_register_is_wrong_and_named(self):
        fresh = half()
        fresh["boots"][0]["events"][1]["digest"] = "other"
        self.assertIn(
            'tdx: event 1, "initrd": b there and other here', self.judge(half(), fresh)[1]
        )
        fresh = half()
        fresh["boots"][0]["rtmr2"] = "3"
        self.assertIn('boots[0].rtmr2 is "2" there and "3" here', self.judge(half(), fresh)[1])


class ReleasedImage(unittest.TestCase):
    """ci/demo takes a release's image only where it is the very image of measurements/, and of this
    very tree.
    """

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.served = os.path.join(self.folder, "served")
        os.makedirs(os.path.join(self.served, "v9.9.9"))
        self.asked = []
        outer = self

        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                outer.asked.append(self.path)

        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Quiet, directory=self.served)
        )
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        before = demo.released_half, os.environ.get("XDG_CACHE_HOME")
        self.addCleanup(setattr, demo, "released_half", before[0])
        self.addCleanup(
            lambda: (
                os.environ.pop("XDG_CACHE_HOME")
                if before[1] is None
                else os.environ.update(XDG_CACHE_HOME=before[1])
            )
        )
        os.environ["XDG_CACHE_HOME"] = os.path.join(self.folder, "cache")
        self.half = {
            "image": {"digests": {"uki": "sha256:" + hashlib.sha256(b"image").hexdigest()}}
        }
        demo.released_half = lambda: ("9.9.9", self.half)

    def serve(self, content):
        with open(os.path.join(self.served, "v9.9.9/cofferdam-simulator.efi"), "wb") as file:
            file.write(content)

    def test_the_right_one_is_taken_and_kept(self):
        self.serve(b"image")
        path = demo.released_image(self.url)
        with open(path, "rb") as file:
            self.assertEqual(file.read(), b"image")
        self.assertEqual((demo.released_image(self.url), len(self.asked)), (path, 1))
        with open(path, "ab") as file:
            file.write(b"!")
        self.assertIsNone(demo.released_image(self.url))

    def test_another_image_is_not(self):
        self.serve(b"another")
        self.assertIsNone(demo.released_image(self.url))
        self.assertEqual(os.listdir(os.path.join(self.folder, "cache/cofferdam/images")), [])

    def test_without_a_release_it_is_built(self):
        self.assertIsNone(demo.released_image(self.url))
        self.assertIsNone(demo.released_image("http://127.0.0.1:9"))
        self.assertIsNone(demo.released_image(""))

    def test_a_tree_that_is_not_the_releases_takes_none(self):
        before = inputs.digest
        self.addCleanup(setattr, inputs, "digest", before)
        self.addCleanup(setattr, demo.inputs, "digest", before)
        demo.released_half = script("demo").released_half
        with open(
            os.path.join(ROOT, "measurements", lockfile.release(), "cofferdam-simulator.json"),
            encoding="utf-8",
        ) as file:
            committed = json.load(file)["build"]["inputs"]
        demo.released_half.__globals__["inputs"].digest = lambda: committed
        self.assertEqual(demo.released_half()[0], lockfile.release())
        demo.released_half.__globals__["inputs"].digest = lambda: "sha256:other"
        self.assertIsNone(demo.released_half())


class Workflows(unittest.TestCase):
    """Least permission, nothing unpinned, nothing overwritten."""

    @classmethod
    def setUpClass(cls):
        try:
            import yaml
        except ImportError as error:
            raise unittest.SkipTest("python3-yaml is not installed") from error
        cls.folder, cls.flows = os.path.join(ROOT, ".github/workflows"), {}
        for name in sorted(os.listdir(cls.folder)):
            with open(os.path.join(cls.folder, name), encoding="utf-8") as file:
                cls.flows[name] = (text := file.read(), yaml.safe_load(text))

    def jobs(self):
        for name, (_, flow) in self.flows.items():
            for job, about in flow["jobs"].items():
                yield f"{name}: {job}", flow, about

    def test_every_action_is_pinned_by_commit_with_its_version_beside(self):
        seen = 0
        for name, (text, _) in self.flows.items():
            for line in text.splitlines():
                if "uses:" in line:
                    seen += 1
                    self.assertRegex(
                        line, r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", name
                    )
        self.assertGreater(seen, 5)

    def test_every_container_is_pinned_by_digest(self):
        for name, _, job in self.jobs():
            if "container" in job:
                self.assertRegex(job["container"]["image"], r"@sha256:[0-9a-f]{64}$", name)

    def test_every_job_says_its_permissions_and_only_those_expected_write(self):
        writes = {}
        for name, flow, job in self.jobs():
            permissions = job.get("permissions", flow.get("permissions"))
            self.assertIsInstance(permissions, dict, name)
            writes[name] = {key for key, value in permissions.items() if value == "write"}
        self.assertEqual(
            {name: kinds for name, kinds in writes.items() if kinds},
            {
                "release.yml: attest": {"id-token", "attestations"},
                "release.yml: publish": {"contents"},
            },
        )

    def test_what_may_sign_runs_nothing_of_the_repository(self):
        job = self.flows["release.yml"][1]["jobs"]["attest"]
        self.assertFalse(
            [
                step
                for step in job["steps"]
                if "checkout" in step.get("uses", "") or "ci/" in step.get("run", "")
            ]
        )

    def test_checkouts_leave_no_token_behind(self):
        for name, _, job in self.jobs():
            for step in job["steps"]:
                if "actions/checkout" in step.get("uses", ""):
                    self.assertIs(step["with"]["persist-credentials"], False, name)

    def test_no_expression_reaches_a_shell(self):
        for name, _, job in self.jobs():
            for step in job["steps"]:
                self.assertNotIn("${{", step.get("run", ""), name)

    def test_nothing_is_overwritten(self):
        for name, (text, _) in self.flows.items():
            self.assertNotRegex(
                text, r"clobber|overwrite: true|gh release (?:delete|upload|edit)", name
            )

    def test_the_order_is_build_attest_publish(self):
        jobs = self.flows["release.yml"][1]["jobs"]
        self.assertEqual([jobs["attest"]["needs"], jobs["publish"]["needs"]], ["build", "attest"])
        runs = " ; ".join(step.get("run", "") for step in jobs["build"]["steps"])
        for command in (
            "ci/release check",
            "ci/measurements --check",
            "ci/reproduce",
            "ci/release stage",
        ):
            self.assertIn(command, runs)

    def test_the_predicate_types_are_those_that_publishing_demands(self):
        steps = {
            step.get("id"): step for step in self.flows["release.yml"][1]["jobs"]["attest"]["steps"]
        }
        self.assertNotIn("predicate-type", steps["provenance"]["with"])
        for name in ("measurements", "measurements-simulator"):
            self.assertEqual(steps[name]["with"]["predicate-type"], release.MEASUREMENTS)


class Release(unittest.TestCase):
    """ci/release against the development GitHub: once, whole, and in order."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        root = cls.folder.name
        subprocess.run([os.path.join(CI, "tls"), root], check=True)
        repo = os.path.join(root, "repos/acme/cofferdam")
        os.makedirs(repo)
        cls.git = ["git", "-C", repo, "-c", "user.name=dev", "-c", "user.email=dev@example.org"]
        for command in (
            ["init", "-q", "-b", "main"],
            ["commit", "-q", "--allow-empty", "-m", "first"],
            ["tag", "v" + lockfile.release()],
        ):
            subprocess.run([*cls.git, *command], check=True)
        cls.commit = subprocess.run(
            [*cls.git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
        ).stdout.strip()
        cls.faults = os.path.join(root, "faults")
        contract = os.path.join(ROOT, "..", "shared/contracts/github-releases.openapi.json")
        cls.violations = os.path.join(root, "violations")
        checked = (
            ["--contract", contract, "--violations", cls.violations]
            if os.path.exists(contract)
            else []
        )
        if not checked:
            print(
                "skipped: validation against GitHub's API description (../shared is not there)",
                file=sys.stderr,
            )
        cls.state = os.path.join(root, "state")
        cls.server = subprocess.Popen(
            [
                sys.executable,
                os.path.join(CI, "github/server.py"),
                "--root",
                os.path.join(root, "repos"),
                "--token",
                "t",
                "--state",
                cls.state,
                "--faults",
                cls.faults,
                "--tls-cert",
                os.path.join(root, "server.pem"),
                "--tls-key",
                os.path.join(root, "server.key"),
                *checked,
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        cls.api = cls.server.stdout.readline().split()[-1]
        cls.tag = "v" + lockfile.release()

    @classmethod
    def tearDownClass(cls):
        cls.server.terminate()
        cls.server.wait()
        cls.server.stdout.close()
        cls.folder.cleanup()

    def setUp(self):
        os.environ["SSL_CERT_FILE"] = os.path.join(self.folder.name, "ca.pem")
        self.addCleanup(os.environ.pop, "SSL_CERT_FILE")
        self.work = tempfile.TemporaryDirectory()
        self.addCleanup(self.work.cleanup)
        self.github = release.GitHub(self.api, "acme/cofferdam", "t")
        for entry in self.github.releases(self.tag):
            # Tests begin without a release; the script itself has no way to delete one.
            request = urllib.request.Request(
                entry["url"],
                method="DELETE",
                headers={"Authorization": "Bearer t", "User-Agent": "test"},
            )
            urllib.request.urlopen(request, timeout=20).close()
        self.stage()

    def tearDown(self):
        if os.path.exists(self.violations):
            with open(self.violations, encoding="utf-8") as file:
                self.assertEqual(file.read(), "")

    def stage(self):
        """A source tree with images and measurements, staged, with bundles."""
        source, self.files = (
            os.path.join(self.work.name, "source"),
            os.path.join(self.work.name, "release"),
        )
        for path, content in (
            (f"measurements/{self.tag[1:]}/cofferdam.json", "cofferdam.efi"),
            (f"measurements/{self.tag[1:]}/cofferdam-simulator.json", "cofferdam-simulator.efi"),
            ("measurements/platforms/simulator.json", None),
        ):
            full = os.path.join(source, path)
            os.makedirs(os.path.dirname(full), exist_ok=True)
            value = {"kind": "platform"}
            if content:
                with open(os.path.join(source, content), "wb") as file:
                    file.write(content.encode())
                value = {
                    "image": {
                        "digests": {"uki": "sha256:" + hashlib.sha256(content.encode()).hexdigest()}
                    }
                }
            with open(full, "w", encoding="utf-8") as file:
                json.dump(value, file)
        self.source = source
        deb = lockfile.archive.Package(
            "gcc",
            "14",
            "amd64",
            hashlib.sha256(b"deb").hexdigest(),
            3,
            "debian",
            "pool/main/g/gcc/gcc_14_amd64.deb",
        )
        rust = {
            "release": "1.95.0",
            "commit": "0" * 40,
            "target": "musl",
            "components": {"rustc": "0" * 64},
        }
        lockfile.Lock(
            "20261122T000000Z",
            rust,
            {group: [deb] if group == "tools" else [] for group in lockfile.GROUPS},
        ).save(os.path.join(source, lockfile.TREE))
        self.parts = {
            "debs/gcc_14_amd64.deb": b"deb",
            "rust/rustc.tar.zst": b"rust",
            "crates/cache/x/a-1.crate": b"crate",
        }
        with open(os.path.join(source, "Cargo.lock"), "w", encoding="utf-8") as file:
            file.write(
                '[[package]]\nname = "a"\nversion = "1"\nchecksum = '
                f'"{hashlib.sha256(b"crate").hexdigest()}"\n'
            )
        self.pack(self.parts)
        release.stage(self.tag, self.files, source)
        self.sums = {
            name: release.sha256(os.path.join(self.files, name))
            for name in os.listdir(self.files)
            if name != release.SUMS
        }
        for name, predicate in release.STATEMENTS.items():
            image = name.removeprefix("measurements-")
            if predicate == release.PROVENANCE:
                self.bundle(name, predicate, self.sums, {"buildDefinition": {}})
            else:
                with open(
                    os.path.join(self.files, f"reference-{image}.json"), encoding="utf-8"
                ) as file:
                    self.bundle(
                        name,
                        predicate,
                        {f"{image}.efi": self.sums[f"{image}.efi"]},
                        json.load(file),
                    )

    def pack(self, parts):
        os.makedirs(os.path.join(self.source, "build"), exist_ok=True)
        with tarfile.open(os.path.join(self.source, "build", release.INPUTS), "w") as members:
            for name, content in parts.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                members.addfile(member, io.BytesIO(content))

    def bundle(self, name, predicate, subjects, said):
        statement = {
            "_type": "https://in-toto.io/Statement/v1",
            "predicateType": predicate,
            "predicate": said,
            "subject": [
                {"name": subject, "digest": {"sha256": digest}}
                for subject, digest in subjects.items()
            ],
        }
        with open(os.path.join(self.files, f"{name}.sigstore.json"), "w", encoding="utf-8") as file:
            json.dump(
                {
                    "dsseEnvelope": {
                        "payload": base64.b64encode(json.dumps(statement).encode()).decode()
                    }
                },
                file,
            )

    def publish(self):
        return release.publish(self.github, "acme/cofferdam", self.tag, self.commit, self.files)

    def refused(self, pattern):
        with self.assertRaisesRegex(release.Failed, pattern):
            self.publish()

    def fault(self, *faults):
        with open(self.faults, "w", encoding="utf-8") as file:
            json.dump(list(faults), file)
        self.addCleanup(lambda: os.path.exists(self.faults) and os.unlink(self.faults))

    def test_everything_is_published_and_only_once(self):
        self.assertIn(self.tag, self.publish())
        (entry,) = self.github.releases(self.tag)
        self.assertFalse(entry["draft"])
        self.assertEqual(
            {asset["name"] for asset in entry["assets"]},
            {*self.sums, release.SUMS, *(f"{name}.sigstore.json" for name in release.STATEMENTS)},
        )
        self.assertIn("reference-cofferdam.json", self.sums)
        self.assertIn(release.INPUTS, self.sums)
        self.assertIn("reference-platform-simulator.json", self.sums)
        self.refused("there is a release of .* already.*never overwritten")
        self.assertEqual(self.github.releases(self.tag), [entry])

    def test_a_draft_that_is_there_is_not_touched(self):
        draft = self.github.must(
            "POST",
            "/releases",
            {
                "tag_name": self.tag,
                "draft": True,
                "target_commitish": self.commit,
                "name": "by hand",
                "body": "",
            },
        )
        self.refused("there is a draft of")
        self.assertEqual([entry["id"] for entry in self.github.releases(self.tag)], [draft["id"]])

    def test_a_failed_upload_leaves_a_draft_that_nobody_sees(self):
        self.fault({"method": "POST", "path": "/assets$", "status": 502, "times": 1})
        self.refused("502")
        (entry,) = self.github.releases(self.tag)
        self.assertTrue(entry["draft"])
        self.assertEqual(self.github.call("GET", f"/releases/tags/{self.tag}")[0], 404)
        self.refused("there is a draft of")

    def test_the_release_is_a_draft_until_all_is_there(self):
        seen = []
        must = self.github.must

        def watched(method, url, body=None):
            if method != "GET":
                seen.append(
                    (
                        method,
                        "assets" if "assets" in url else "release",
                        self.github.call("GET", f"/releases/tags/{self.tag}")[0],
                    )
                )
            return must(method, url, body)

        self.github.must = watched
        self.publish()
        self.assertEqual(seen[0], ("POST", "release", 404))
        self.assertEqual(set(seen[1:-1]), {("POST", "assets", 404)})
        self.assertEqual(seen[-1], ("PATCH", "release", 404))

    def test_other_bytes_on_github_stay_a_draft(self):
        must = self.github.must
        self.github.must = lambda method, url, body=None: must(
            method, url, body + b"!" if isinstance(body, bytes) and "cofferdam.efi" in url else body
        )
        self.refused("stays a draft")
        self.assertEqual(self.github.call("GET", f"/releases/tags/{self.tag}")[0], 404)

    def test_another_tag_and_another_commit(self):
        with self.assertRaisesRegex(release.Failed, "the tag has to be"):
            release.check(self.github, "v99.0.0", self.commit)
        with self.assertRaisesRegex(release.Failed, "on GitHub and"):
            release.check(self.github, self.tag, "0" * 40)

    def test_inputs_that_are_not_those_of_the_lock_are_not_staged(self):
        again = os.path.join(self.work.name, "again")
        for change, said in (
            (lambda parts: parts.pop("debs/gcc_14_amd64.deb"), "lacks debs/gcc_14"),
            (
                lambda parts: parts.update({"debs/gcc_14_amd64.deb": b"other"}),
                "not what the lock names",
            ),
            (lambda parts: parts.pop("rust/rustc.tar.zst"), "lacks rust/rustc"),
            (lambda parts: parts.pop("crates/cache/x/a-1.crate"), "lacks the crates"),
            (
                lambda parts: parts.update({"crates/cache/x/a-1.crate": b"forged"}),
                "a-1.crate of .* is not what Cargo.lock names",
            ),
        ):
            parts = dict(self.parts)
            change(parts)
            self.pack(parts)
            with self.assertRaisesRegex(release.Failed, said):
                release.stage(self.tag, again, self.source)
            shutil.rmtree(again)
        os.unlink(os.path.join(self.source, "build", release.INPUTS))
        with self.assertRaisesRegex(release.Failed, "is not there"):
            release.stage(self.tag, again, self.source)

    def test_files_that_changed_after_staging(self):
        with open(os.path.join(self.files, "cofferdam.efi"), "ab") as file:
            file.write(b"!")
        self.refused("cofferdam.efi is not what SHA256SUMS says")

    def test_a_file_that_was_not_staged(self):
        with open(os.path.join(self.files, "surprise"), "wb") as file:
            file.write(b"!")
        self.refused("surprise")

    def test_provenance_that_is_missing_of_another_type_or_about_other_bytes(self):
        path = os.path.join(self.files, "provenance.sigstore.json")
        os.unlink(path)
        self.refused("provenance.sigstore.json is missing")
        self.bundle("provenance", "https://slsa.dev/provenance/v0.2", self.sums, {})
        self.refused("provenance.sigstore.json is a https://slsa.dev/provenance/v0.2")
        self.bundle("provenance", release.PROVENANCE, self.sums | {"cofferdam.efi": "0" * 64}, {})
        self.refused("about other bytes")
        with open(path, "w", encoding="utf-8") as file:
            file.write("{}")
        self.refused("not a bundle with a statement")
        self.assertEqual(self.github.releases(self.tag), [])

    def test_measurements_that_are_signed_differently(self):
        self.bundle(
            "measurements-cofferdam",
            release.MEASUREMENTS,
            {"cofferdam.efi": self.sums["cofferdam.efi"]},
            {"other": 1},
        )
        self.refused("states other measurements")

    def test_measurements_of_another_image_are_not_staged(self):
        with open(os.path.join(self.source, "cofferdam.efi"), "ab") as file:
            file.write(b"!")
        with self.assertRaisesRegex(release.Failed, "is of another image"):
            release.stage(self.tag, os.path.join(self.work.name, "again"), self.source)


if __name__ == "__main__":
    unittest.main()
