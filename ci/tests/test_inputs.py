"""ci/fetch and ci/lock against a Debian archive on loopback: what is locked is what is taken, from
wherever it can be had.

Run with `python3 ci/tests/test_inputs.py`. Packages are real ones, tiny and made here; apt, its
signatures and dpkg are the machine's.
"""

import concurrent.futures
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import archive
import lockfile
import loopback

TESTS = os.path.dirname(os.path.abspath(__file__))
CI = os.path.dirname(TESTS)
ROOT = os.path.dirname(CI)

REQUEST = """[rust]
release = "1.0.0"
target = "x86_64-unknown-linux-musl"
[tools]
suites = ["trixie", "trixie-security"]
packages = ["compiler"]
[mkosi]
suites = ["testing"]
packages = ["mkosi"]
[firmware]
suites = ["testing"]
packages = ["ovmf-inteltdx"]
"""
CRATE = b"a crate's archive"
MOMENT = "20261122T000000Z"
LATER = "20261123T000000Z"


def path_of(package):
    name = os.path.basename(package)
    return f"pool/main/{name[0]}/{name.split('_')[0]}/{name}"


class Tree:
    """A source tree with ci/ and a lock alone, and a toolchain that only says its version."""

    def __init__(self, folder):
        self.root, self.home = os.path.join(folder, "tree"), os.path.join(folder, "home")
        os.makedirs(os.path.join(self.root, "image"))
        os.makedirs(self.home)
        os.makedirs(os.path.join(self.root, "ci"))
        for name in ("archive.py", "lockfile.py", "process.py", "fetch", "lock"):
            shutil.copy(os.path.join(CI, name), os.path.join(self.root, "ci", name))
        os.makedirs(os.path.join(self.root, "image/base/usr/lib"))
        checksum = hashlib.sha256(CRATE).hexdigest()
        crate = f'[[package]]\nname = "a"\nversion = "1"\nchecksum = "{checksum}"\n'
        for path, text in (
            ("image/inputs.toml", REQUEST),
            ("Cargo.lock", crate),
            ("image/base/usr/lib/os-release", 'VERSION_ID="9.9.9"\n'),
        ):
            with open(os.path.join(self.root, path), "w", encoding="utf-8") as file:
                file.write(text)
        self.rust = self.toolchain(os.path.join(folder, "toolchain"))

    @staticmethod
    def toolchain(sysroot):
        # This cargo has all crates when the registry's cache has the one of Cargo.lock.
        files = {
            "bin/rustc": "#!/bin/sh\necho 'release: 1.0.0'\necho 'commit-hash: " + "a" * 40 + "'\n",
            "bin/cargo": '#!/bin/sh\ncase "$*" in *--offline*) test -e '
            '"$CARGO_HOME/registry/cache/x/a-1.crate";; *) mkdir -p '
            '"$CARGO_HOME/registry/cache/x"; '
            f'printf %s "{CRATE.decode()}" > "$CARGO_HOME/registry/cache/x/a-1.crate";; esac\n',
        }
        for name in lockfile.components({"target": "x86_64-unknown-linux-musl"}):
            own = {
                "rustc-x86_64-unknown-linux-gnu": "bin/rustc",
                "cargo-x86_64-unknown-linux-gnu": "bin/cargo",
            }.get(name, f"lib/{name}")
            files.setdefault(own, name)
            files[f"lib/rustlib/manifest-{name}"] = f"file:{own}\n"
        for path, content in files.items():
            full = os.path.join(sysroot, path)
            os.makedirs(os.path.dirname(full), exist_ok=True)
            with open(full, "w", encoding="utf-8") as file:
                file.write(content)
            os.chmod(full, 0o755 if path.startswith("bin/") else 0o644)
        return sysroot

    def run(self, script, *options, path=None):
        environment = {
            "PATH": path or "/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": self.home,
            "LC_ALL": "C.UTF-8",
            "COFFERDAM_RELEASES": "",
        }
        done = subprocess.run(
            [os.path.join(self.root, "ci", script), *options],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=300,
        )
        return done.returncode, done.stdout + done.stderr

    def lay_toolchain(self):
        os.makedirs(os.path.join(self.root, "build"), exist_ok=True)
        os.symlink(self.rust, os.path.join(self.root, "build/rust"))

    def lock(self, packages):
        """Writes the lock: {group: [(path, package file, its version)]}."""
        groups = {}
        for group in lockfile.GROUPS:
            groups[group] = []
            for path, package in packages.get(group, []):
                name, version, architecture = (
                    os.path.basename(package).removesuffix(".deb").split("_")
                )
                groups[group].append(
                    archive.Package(
                        name,
                        version,
                        architecture,
                        archive.sha256(package),
                        os.path.getsize(package),
                        "debian",
                        path,
                    )
                )
        rust = lockfile.toolchain(self.rust, {"target": "x86_64-unknown-linux-musl"})
        lockfile.Lock(MOMENT, rust, groups).save(os.path.join(self.root, lockfile.TREE))

    def used(self):
        return lockfile.Lock.load(os.path.join(self.root, lockfile.USED))

    def holds(self, path):
        full = os.path.join(self.root, "build", path)
        if not os.path.exists(full):
            return None
        with open(full, encoding="utf-8") as file:
            return file.read()


class Fetching(unittest.TestCase):
    """Where locked files are taken from, in which order, and what happens when they are nowhere."""

    @classmethod
    def setUpClass(cls):
        cls.archive = loopback.Archive(["trixie", "trixie-security", "testing"])
        cls.made = tempfile.TemporaryDirectory()
        folder = cls.made.name
        base = {"usr/share/base": "base", "usr/bin/mawk": "mawk", "etc/base": "etc"}
        cls.packages = {
            "base-files": loopback.deb(folder, "base-files", "1", base, "Essential: yes\n"),
            "library": loopback.deb(folder, "library", "1", {"usr/share/library": "one"}),
            "compiler": loopback.deb(
                folder, "compiler", "14", {"usr/bin/gcc": "fourteen"}, "Depends: library\n"
            ),
            "mkosi": loopback.deb(
                folder,
                "mkosi",
                "27",
                {"usr/lib/python3/dist-packages/mkosi/__main__.py": "print(27)"},
            ),
            "ovmf-inteltdx": loopback.deb(
                folder,
                "ovmf-inteltdx",
                "1",
                {
                    "usr/share/ovmf/OVMF.inteltdx.ms.fd": "storecode",
                    "usr/share/OVMF/OVMF_VARS_4M.fd": "STORE",
                },
            ),
        }
        cls.newer = loopback.deb(
            folder, "compiler", "15", {"usr/bin/gcc": "fifteen"}, "Depends: library\n"
        )

    @classmethod
    def tearDownClass(cls):
        cls.archive.close()
        cls.made.cleanup()

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.tree = Tree(self.folder)
        self.tree.lay_toolchain()
        self.paths = {name: path_of(package) for name, package in self.packages.items()}

        def both(*names):
            return [(self.paths[name], self.packages[name]) for name in names]

        self.tree.lock(
            {
                "tools": both("base-files", "compiler", "library"),
                "mkosi": both("mkosi"),
                "firmware": both("ovmf-inteltdx"),
            }
        )
        shutil.rmtree(self.archive.root)
        os.makedirs(self.archive.root)
        self.archive.index({})
        del self.archive.asked[:]

    def serve(self, below, *names):
        for name in names or self.packages:
            self.archive.put(self.paths[name], self.packages[name], below)

    def fetch(self, *options, snapshot="http://127.0.0.1:9/nothing"):
        return self.tree.run(
            "fetch",
            "--archive",
            self.archive.url,
            "--keyring",
            self.archive.keyring,
            "--snapshot",
            snapshot,
            *options,
        )

    def asked(self, part):
        return [path for path in self.archive.asked if part in path]

    def test_the_live_archive_first_and_nobody_the_second_time(self):
        self.serve("debian")
        code, said = self.fetch(snapshot=self.archive.base)
        self.assertEqual(code, 0, said)
        self.assertEqual(self.asked("/archive/"), [])
        self.assertEqual(self.tree.holds("tools/usr/bin/gcc"), "fourteen")
        self.assertEqual(self.tree.holds("tools/usr/bin/awk"), "mawk")
        self.assertEqual(self.tree.holds("mkosi-program/mkosi/__main__.py"), "print(27)")
        self.assertEqual(self.tree.holds("firmware/OVMF.inteltdx.fd"), "STOREcode")
        self.assertEqual(
            lockfile.Lock.load(os.path.join(self.tree.root, lockfile.TREE)).text(),
            self.tree.used().text(),
        )
        del self.archive.asked[:]
        code, said = self.fetch()
        self.assertEqual((code, self.archive.asked), (0, []), said)

    def test_a_build_needs_no_firmware(self):
        self.serve("debian", "base-files", "compiler", "library", "mkosi")
        packed = os.path.join(self.folder, "inputs.tar")
        code, said = self.fetch("--build", "--exact", "--pack", packed)
        self.assertEqual(code, 0, said)
        self.assertIsNone(self.tree.holds("firmware/OVMF.inteltdx.fd"))
        with tarfile.open(packed) as members:
            self.assertEqual(sum(name.startswith("debs/") for name in members.getnames()), 4)

    def test_what_the_archive_dropped_comes_from_its_state_at_the_time_or_a_day_later(self):
        self.serve("debian", "base-files", "library", "mkosi", "ovmf-inteltdx")
        self.serve(f"archive/debian/{LATER}", "compiler")
        code, said = self.fetch("--exact", snapshot=self.archive.base)
        self.assertEqual(code, 0, said)
        wanted = [
            f"/{state}/{self.paths['compiler']}"
            for state in ("debian", f"archive/debian/{MOMENT}", f"archive/debian/{LATER}")
        ]
        self.assertEqual(list(dict.fromkeys(self.asked("compiler"))), wanted)
        self.assertEqual(self.tree.holds("tools/usr/bin/gcc"), "fourteen")

    def test_then_from_the_address_of_a_release(self):
        self.serve("debian", "base-files", "library", "mkosi", "ovmf-inteltdx")
        self.archive.put(
            f"debs/{os.path.basename(self.packages['compiler'])}",
            self.packages["compiler"],
            "inputs",
        )
        code, said = self.fetch(
            "--exact", "--inputs", f"{self.archive.base}/inputs", snapshot=self.archive.base
        )
        self.assertEqual(code, 0, said)
        self.assertEqual(
            list(dict.fromkeys(path.split("/")[1] for path in self.asked("compiler"))),
            ["debian", "archive", "inputs"],
        )

    def test_a_folder_or_a_tar_file_of_inputs_needs_no_network(self):
        self.serve("debian")
        packed = os.path.join(self.folder, "inputs.tar")
        code, said = self.fetch("--pack", packed)
        self.assertEqual(code, 0, said)
        with tarfile.open(packed) as members:
            names = members.getnames()
        folder = self.unpacked(packed)
        self.assertEqual(names.count("crates/cache/x/a-1.crate"), 1)
        self.assertEqual(sum(name.startswith("debs/") for name in names), 5)
        self.assertEqual(sum(name.startswith("rust/") for name in names), 4)
        for place in (packed, folder):
            with tempfile.TemporaryDirectory() as other:
                tree = Tree(other)
                shutil.copy(
                    os.path.join(self.tree.root, lockfile.TREE),
                    os.path.join(tree.root, lockfile.TREE),
                )
                shutil.rmtree(tree.rust)
                del self.archive.asked[:]
                code, said = tree.run("fetch", "--offline", "--inputs", place)
                self.assertEqual((code, self.archive.asked), (0, []), said)
                self.assertEqual(tree.holds("tools/usr/bin/gcc"), "fourteen")
                self.assertEqual(tree.used().text(), self.tree.used().text())

    def unpacked(self, packed):
        folder = os.path.join(self.folder, "inputs")
        os.makedirs(folder)
        subprocess.run(["tar", "--extract", "--file", packed, "--directory", folder], check=True)
        return folder

    def inputs(self):
        """A folder with all inputs, and a tree that has nothing but its lock."""
        self.serve("debian")
        packed = os.path.join(self.folder, "inputs.tar")
        code, said = self.fetch("--pack", packed)
        self.assertEqual(code, 0, said)
        tree = Tree(os.path.join(self.folder, "other"))
        shutil.copy(
            os.path.join(self.tree.root, lockfile.TREE), os.path.join(tree.root, lockfile.TREE)
        )
        shutil.rmtree(tree.rust)
        return tree, self.unpacked(packed)

    def test_a_toolchain_of_other_content_is_not_run(self):
        tree, folder = self.inputs()
        ran = os.path.join(self.folder, "ran")
        forged = Tree.toolchain(os.path.join(self.folder, "forged"))
        with open(os.path.join(forged, "bin/rustc"), "a", encoding="utf-8") as file:
            file.write(f"touch {ran}\n")
        part = os.path.join(folder, "rust/rustc-x86_64-unknown-linux-gnu.tar.zst")
        subprocess.run(
            [
                "tar",
                "--create",
                "--zstd",
                "--file",
                part,
                "--directory",
                forged,
                "bin/rustc",
                "lib/rustlib/manifest-rustc-x86_64-unknown-linux-gnu",
            ],
            check=True,
        )
        for options in (["--offline"], []):
            code, said = tree.run(
                "fetch", "--inputs", folder, "--archive", self.archive.url, *options
            )
            self.assertEqual(code, 1, said)
            self.assertIn("cannot be had", said)
            self.assertFalse(os.path.exists(ran))

    def test_a_toolchain_with_a_file_too_many_is_not_taken(self):
        tree, folder = self.inputs()
        part = os.path.join(folder, "rust/rustc-x86_64-unknown-linux-gnu.tar.zst")
        root = os.path.join(self.folder, "more")
        os.makedirs(root)
        subprocess.run(["tar", "--extract", "--file", part, "--directory", root], check=True)
        with open(os.path.join(root, "lib/libextra.so"), "w", encoding="utf-8") as file:
            file.write("x")
        subprocess.run(
            ["tar", "--create", "--zstd", "--file", part, "--directory", root, "bin", "lib"],
            check=True,
        )
        code, said = tree.run("fetch", "--offline", "--inputs", folder)
        self.assertEqual(code, 1, said)
        self.assertIsNone(tree.holds("rust/lib/libextra.so"))

    def test_crates_that_cargo_lock_does_not_name_are_not_taken(self):
        tree, folder = self.inputs()
        crate = os.path.join(folder, "crates/cache/x/a-1.crate")
        for path, content in (
            ("crates/src/x/a-1/lib.rs", "fn evil() {}"),
            ("crates/cache/x/b-1.crate", "another"),
        ):
            os.makedirs(os.path.dirname(os.path.join(folder, path)), exist_ok=True)
            with open(os.path.join(folder, path), "w", encoding="utf-8") as file:
                file.write(content)
        code, said = tree.run("fetch", "--offline", "--inputs", folder)
        self.assertEqual(code, 0, said)
        self.assertEqual(tree.holds("cargo/registry/cache/x/a-1.crate"), CRATE.decode())
        self.assertIsNone(tree.holds("cargo/registry/src/x/a-1/lib.rs"))
        self.assertIsNone(tree.holds("cargo/registry/cache/x/b-1.crate"))
        shutil.rmtree(os.path.join(tree.root, "build/cargo"))
        with open(crate, "ab") as file:
            file.write(b"!")
        code, said = tree.run("fetch", "--offline", "--inputs", folder)
        self.assertEqual(code, 1, said)
        self.assertIn("a-1.crate is not what Cargo.lock names", said)

    def test_offline_asks_no_address(self):
        code, said = self.fetch("--offline", "--inputs", f"{self.archive.base}/inputs.tar")
        self.assertEqual((code, self.archive.asked), (2, []), said)

    def test_two_at_once_share_the_cache(self):
        self.serve("debian")
        trees = [self.tree, Tree(os.path.join(self.folder, "second"))]
        trees[1].lay_toolchain()
        trees[1].home = self.tree.home
        shutil.copy(
            os.path.join(self.tree.root, lockfile.TREE), os.path.join(trees[1].root, lockfile.TREE)
        )
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            ended = list(
                pool.map(
                    lambda tree: tree.run(
                        "fetch",
                        "--exact",
                        "--archive",
                        self.archive.url,
                        "--snapshot",
                        "http://127.0.0.1:9/x",
                    ),
                    trees,
                )
            )
        self.assertEqual([code for code, _ in ended], [0, 0], ended)
        self.assertEqual(len(self.asked("compiler")), 1)

    def test_without_a_named_place_the_release_has_its_inputs(self):
        tree, _ = self.inputs()
        shutil.rmtree(os.path.join(self.archive.root, "debian"))
        self.archive.index({})
        os.makedirs(os.path.join(self.archive.root, "v9.9.9"))
        shutil.copy(
            os.path.join(self.folder, "inputs.tar"),
            os.path.join(self.archive.root, "v9.9.9/cofferdam-inputs.tar"),
        )
        tree.toolchain(tree.rust)
        tree.lay_toolchain()
        code, said = tree.run(
            "fetch",
            "--exact",
            "--archive",
            self.archive.url,
            "--snapshot",
            "http://127.0.0.1:9/x",
            "--releases",
            self.archive.base,
        )
        self.assertEqual((code, tree.holds("tools/usr/bin/gcc")), (0, "fourteen"), said)

    def test_a_name_that_is_gone_is_said(self):
        self.serve("debian", "base-files", "library", "mkosi", "ovmf-inteltdx")
        self.archive.index(
            {
                "trixie": [
                    (self.paths[name], self.packages[name]) for name in ("base-files", "library")
                ]
            }
        )
        code, said = self.fetch()
        self.assertEqual(code, 1, said)
        self.assertIn(
            "the live archive has nothing instead: the archive has no compiler any more", said
        )
        self.assertIn("--inputs a release's inputs", said)

    def test_other_bytes_are_not_taken_whoever_serves_them(self):
        self.serve("debian", "base-files", "library", "mkosi", "ovmf-inteltdx")
        with open(self.packages["compiler"], "rb") as file:
            forged = bytearray(file.read())
        forged[-1] ^= 1
        path = os.path.join(self.folder, "forged.deb")
        with open(path, "wb") as file:
            file.write(forged)
        self.archive.put(self.paths["compiler"], path)
        self.archive.put(f"debs/{os.path.basename(self.packages['compiler'])}", path, "inputs")
        code, said = self.fetch("--exact", "--inputs", os.path.join(self.archive.root, "inputs"))
        self.assertEqual(code, 1, said)
        self.assertIn("1 of the locked packages cannot be had: compiler_14_all.deb", said)
        self.serve(f"archive/debian/{MOMENT}", "compiler")
        code, said = self.fetch("--exact", snapshot=self.archive.base)
        self.assertEqual((code, self.tree.holds("tools/usr/bin/gcc")), (0, "fourteen"), said)

    def test_a_kept_file_that_changed_is_fetched_again(self):
        self.serve("debian")
        self.assertEqual(self.fetch()[0], 0)
        kept = os.path.join(
            self.tree.home,
            ".cache/cofferdam/inputs/debs",
            os.path.basename(self.packages["compiler"]),
        )
        with open(kept, "ab") as file:
            file.write(b"!")
        code, said = self.fetch()
        self.assertEqual(code, 0, said)
        self.assertEqual(archive.sha256(kept), archive.sha256(self.packages["compiler"]))

    def moved(self):
        """The archive has dropped compiler 14 for 15."""
        self.serve("debian", "base-files", "library", "mkosi", "ovmf-inteltdx")
        self.archive.put(path_of(self.newer), self.newer)
        self.archive.index(
            {
                "trixie": [
                    (self.paths[name], self.packages[name]) for name in ("base-files", "library")
                ]
                + [(path_of(self.newer), self.newer)]
            }
        )

    def test_an_archive_that_moved_on_is_resolved_anew_and_said(self):
        self.moved()
        code, said = self.fetch()
        self.assertEqual(code, 0, said)
        self.assertIn(
            "1 of the locked packages cannot be had: compiler_14_all.deb; resolving tools from the "
            "live archive",
            said,
        )
        self.assertIn("moved: compiler 14 -> 15", said)
        self.assertEqual(self.tree.holds("tools/usr/bin/gcc"), "fifteen")
        self.assertEqual(
            lockfile.Lock.load(os.path.join(self.tree.root, lockfile.TREE)).moved(self.tree.used()),
            ["compiler 14 -> 15"],
        )
        # As soon as the locked one can be had again, it counts.
        self.serve("debian", "compiler")
        code, said = self.fetch()
        self.assertEqual((code, self.tree.holds("tools/usr/bin/gcc")), (0, "fourteen"), said)
        self.assertNotIn("moved", said)

    def test_exact_refuses_what_moved_and_names_the_remedy(self):
        self.moved()
        for options in (["--exact"], ["--offline"]):
            code, said = self.fetch(*options)
            self.assertEqual(code, 1, said)
            self.assertIn("--inputs a release's inputs", said)
            self.assertIsNone(self.tree.holds("made-by-ci-install"))
            self.assertIsNone(self.tree.holds("tools/usr/bin/gcc"))

    def test_an_archive_signed_by_another_is_not_asked_what_it_has(self):
        self.moved()
        other = loopback.Archive(["trixie"])
        self.addCleanup(other.close)
        code, said = self.tree.run(
            "fetch",
            "--archive",
            self.archive.url,
            "--keyring",
            other.keyring,
            "--snapshot",
            "http://127.0.0.1:9/x",
        )
        self.assertEqual(code, 1, said)
        self.assertIn("the live archive has nothing instead", said)

    def test_no_archive_at_all_is_an_error_with_a_remedy_and_soon(self):
        began = time.monotonic()
        code, said = self.tree.run(
            "fetch", "--archive", "http://127.0.0.1:9/debian", "--snapshot", "http://127.0.0.1:9/x"
        )
        self.assertEqual(code, 1, said)
        self.assertIn("hint: check the network; --archive URL names a mirror", said)
        self.assertLess(time.monotonic() - began, 120)

    def test_a_toolchain_of_other_content_is_said_and_exact_refuses_it(self):
        self.serve("debian")
        with open(os.path.join(self.tree.rust, "bin/cargo"), "a", encoding="utf-8") as file:
            file.write("# patched\n")
        code, said = self.fetch("--exact")
        self.assertEqual(code, 1, said)
        self.assertIn("the toolchain rust 1.0.0 with the content of the lock cannot be had", said)
        code, said = self.fetch()
        self.assertEqual(code, 0, said)
        self.assertIn("other content in cargo-x86_64-unknown-linux-gnu", said)

    def test_hostile_inputs_unpack_nowhere_else(self):
        for name, kind in (
            ("../escaped", tarfile.REGTYPE),
            ("debs/link", tarfile.SYMTYPE),
            ("debs/hard", tarfile.LNKTYPE),
            ("debs/device", tarfile.CHRTYPE),
        ):
            path = os.path.join(self.folder, "hostile.tar")
            with tarfile.open(path, "w") as members:
                member = tarfile.TarInfo(name)
                member.type, member.linkname, member.size = (
                    kind,
                    "/etc/passwd",
                    1 if kind == tarfile.REGTYPE else 0,
                )
                members.addfile(member, io.BytesIO(b"x"))
            code, said = self.fetch("--offline", "--inputs", path)
            self.assertEqual(code, 1, said)
            self.assertNotIn("Traceback", said)
        self.assertFalse(
            [name for base, _, names in os.walk(self.folder) for name in names if name == "escaped"]
        )

    def test_the_lock_is_made_from_what_the_archive_has_now(self):
        self.moved()
        self.archive.index(
            {
                "trixie": [
                    (self.paths[name], self.packages[name]) for name in ("base-files", "library")
                ]
                + [(path_of(self.newer), self.newer)],
                "testing": [
                    (self.paths[name], self.packages[name]) for name in ("mkosi", "ovmf-inteltdx")
                ],
            }
        )
        tools = os.path.join(self.folder, "bin")
        os.makedirs(tools)
        for name, text in (("rustup", "exit 0"), ("rustc", f"echo {self.tree.rust}")):
            with open(os.path.join(tools, name), "w", encoding="utf-8") as file:
                file.write(f"#!/bin/sh\n{text}\n")
            os.chmod(os.path.join(tools, name), 0o755)

        def lock(*options):
            return self.tree.run(
                "lock",
                "--archive",
                self.archive.url,
                "--keyring",
                self.archive.keyring,
                *options,
                path=f"{tools}:/usr/bin:/bin:/usr/sbin:/sbin",
            )

        before = self.tree.root + "/" + lockfile.TREE
        digest = archive.sha256(before)
        code, said = lock("--check")
        self.assertEqual((code, said, archive.sha256(before)), (0, "compiler 14 -> 15\n", digest))
        code, said = lock()
        self.assertEqual(code, 0, said)
        new = lockfile.Lock.load(before)
        self.assertEqual(
            [package.name for package in new.groups["tools"]], ["base-files", "compiler", "library"]
        )
        self.assertEqual(new.versions("tools")["compiler"], "15")
        self.assertEqual(lock("--check")[1], "nothing moved\n")


class Locks(unittest.TestCase):
    """What is a lock, and what is not."""

    @classmethod
    def setUpClass(cls):
        cls.path = os.path.join(ROOT, lockfile.TREE)

    def test_the_trees_own_lock_is_as_it_would_be_written(self):
        with open(self.path, encoding="utf-8") as file:
            self.assertEqual(lockfile.tree().text(), file.read())

    def test_it_names_all_that_inputs_toml_asks_for(self):
        request, lock = lockfile.request(), lockfile.tree()
        for group in lockfile.GROUPS:
            self.assertLessEqual(set(request[group]["packages"]), lock.versions(group).keys())
        self.assertEqual(
            (lock.rust["release"], lock.rust["target"]),
            (request["rust"]["release"], request["rust"]["target"]),
        )
        self.assertEqual(sorted(lock.rust["components"]), sorted(lockfile.components(lock.rust)))

    def test_anything_else_is_refused_with_its_place(self):
        with open(self.path, encoding="utf-8") as file:
            good = json.load(file)

        def package(value):
            return lambda lock: lock["tools"][0].update(value)

        changes = {
            "unknown field": lambda lock: lock.update(more=1),
            "no format": lambda lock: lock.pop("format"),
            "other format": lambda lock: lock.update(format="x/v9"),
            "leaves the pool": package({"path": "pool/../../etc/passwd.deb"}),
            "absolute": package({"path": "/etc/passwd.deb"}),
            "short digest": package({"sha256": "00"}),
            "upper case": package({"sha256": "A" * 64}),
            "shell": package({"name": "a;reboot"}),
            "another archive": package({"archive": "ubuntu"}),
            "negative": package({"size": -1}),
            "a truth": package({"size": True}),
            "huge": package({"size": 1 << 40}),
            "no list": lambda lock: lock.update(tools={}),
            "a number": lambda lock: lock.update(tools=1),
            "no toolchain": lambda lock: lock["rust"].update(components={}),
        }
        for name, change in changes.items():
            value = json.loads(json.dumps(good))
            change(value)
            with tempfile.NamedTemporaryFile("w", suffix=".lock", encoding="utf-8") as file:
                json.dump(value, file)
                file.flush()
                if name == "no list":
                    self.assertEqual(lockfile.Lock.load(file.name).groups["tools"], [], name)
                    continue
                with self.assertRaises(lockfile.Invalid, msg=name) as raised:
                    lockfile.Lock.load(file.name)
                self.assertIn(file.name, str(raised.exception))

    def test_a_lock_without_end_is_not_read_to_its_end(self):
        with self.assertRaisesRegex(lockfile.Invalid, "larger than"):
            lockfile.Lock.load("/dev/zero")

    def test_another_file_of_the_same_version_has_moved(self):
        one, other = lockfile.tree(), lockfile.tree()
        package = other.groups["tools"][0]
        other.groups["tools"][0] = archive.Package(
            **{**vars(package), "sha256": hashlib.sha256(b"").hexdigest()}
        )
        self.assertEqual(
            one.moved(other), [f"{package.name} {package.version} -> {package.version}"]
        )
        self.assertEqual(one.moved(lockfile.tree()), [])


class Addresses(unittest.TestCase):
    """The archive is the machine's, and no address of one stands in the tree."""

    def test_what_is_given_counts(self):
        self.assertEqual(
            archive.archives("http://mirror.example.org/debian/"),
            {
                "debian": "http://mirror.example.org/debian",
                "debian-security": "http://mirror.example.org/debian-security",
            },
        )
        for wrong in (
            "ftp://mirror.example.org/debian",
            "mirror",
            "http://a b/debian",
            "file:///etc",
        ):
            with self.assertRaises(archive.Unavailable):
                archive.archives(wrong)

    def test_the_machines_own_otherwise(self):
        os.environ["APT_CONFIG"] = ""
        self.addCleanup(os.environ.pop, "APT_CONFIG")
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "mirrors"), "w", encoding="utf-8") as file:
                file.write("https://mirror.example.org/debian\nhttps://second.example.org/debian\n")
            with open(os.path.join(folder, "apt.conf"), "w", encoding="utf-8") as file:
                file.write(
                    f'Dir::Etc::SourceList "{folder}/sources.list";\nDir::Etc::SourceParts '
                    '"/dev/null";\n'
                )
            os.environ["APT_CONFIG"] = os.path.join(folder, "apt.conf")
            for first in ("http://mirror.example.org/debian", f"mirror+file:{folder}/mirrors"):
                with open(os.path.join(folder, "sources.list"), "w", encoding="utf-8") as file:
                    file.write(
                        "deb http://vendor.example.com/linux/debian trixie stable\n"
                        f"deb {first} trixie main\ndeb "
                        "http://elsewhere.example.org/debian-security trixie-security main\n"
                    )
                found = archive.archives()
                self.assertEqual(
                    found["debian"].split("://")[1], "mirror.example.org/debian", first
                )
                self.assertEqual(
                    found["debian-security"], "http://elsewhere.example.org/debian-security", first
                )

    def test_no_archive_is_named_in_the_tree(self):
        hosts = "|".join(
            rf"{host}\.{domain}"
            for host, domain in (
                ("deb", r"debian\.org"),
                ("snapshot", r"debian\.org"),
                ("security", r"debian\.org"),
                ("static", r"crates\.io"),
                ("registry", r"npmjs\.org"),
            )
        )
        done = subprocess.run(
            [
                "git",
                "-c",
                "safe.directory=*",
                "-C",
                ROOT,
                "grep",
                "-nIE",
                f"({hosts})",
                "--",
                ".",
                ":!*.lock",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual((done.returncode, done.stdout), (1, ""))


class Words(unittest.TestCase):
    """What was not installed is said, with the remedy, before anything is done."""

    def test_mkosi_without_ci_install(self):
        if not shutil.which("mkosi"):
            self.skipTest("mkosi is not installed")
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(os.path.join(ROOT, "mkosi.conf"), folder)
            done = subprocess.run(
                ["mkosi", "build"], cwd=folder, capture_output=True, text=True, check=False
            )
        self.assertEqual(done.returncode, 1)
        self.assertIn("build/made-by-ci-install", done.stderr)

    def test_an_image_of_another_lock_than_what_was_laid_down(self):
        with tempfile.TemporaryDirectory() as folder:
            repo = os.path.join(folder, "cofferdam")
            os.makedirs(os.path.join(repo, "image"))
            os.makedirs(os.path.join(repo, "build"))
            for name in ("build", "inputs.lock"):
                shutil.copy(os.path.join(ROOT, "image", name), os.path.join(repo, "image", name))
            with open(
                os.path.join(repo, "build/made-by-ci-install"), "w", encoding="utf-8"
            ) as file:
                file.write("0" * 64 + "\n")
            done = subprocess.run(
                [os.path.join(repo, "image/build")],
                capture_output=True,
                text=True,
                check=False,
                env=os.environ | {"SRCDIR": folder},
            )
        self.assertEqual(done.returncode, 1)
        self.assertIn("of another image/inputs.lock\nhint: run ci/install --build", done.stderr)

    def test_reproduce_on_a_bare_machine(self):
        done = subprocess.run(
            ["/usr/bin/python3", os.path.join(CI, "reproduce")],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/nonexistent"},
        )
        self.assertEqual(done.returncode, 1)
        self.assertIn("is not installed\nhint: run ci/install --build", done.stderr)

    def test_install_says_what_it_adds_before_it_does(self):
        with tempfile.TemporaryDirectory() as home:
            for option in ("--build", "--no-image"):
                done = subprocess.run(
                    [os.path.join(CI, "install"), option, "--plan", "--inputs=none"],
                    capture_output=True,
                    text=True,
                    check=False,
                    env={"PATH": "/usr/bin:/bin", "HOME": home},
                )
                self.assertEqual((done.returncode, done.stdout), (0, ""), done.stderr)
                self.assertEqual(
                    "/usr/local/bin/mkosi" in done.stderr,
                    option == "--build" and not shutil.which("mkosi", path="/usr/bin:/bin"),
                    done.stderr,
                )
                self.assertEqual(os.listdir(home), [])


if __name__ == "__main__":
    unittest.main()
