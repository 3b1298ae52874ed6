"""Debian's archive moves on, with the real packages: what ci/measurements, ci/demo and ci/test then
do.

Run with `python3 ci/tests/test_moved.py` after a build: an archive on loopback serves what is
locked, but for the kernel's source, mkosi and three packages, which it has under other versions
only. Builds the simulator image twice (what was compiled is kept), boots the demo once, and lays
the locked inputs down again at the end.
"""

import glob
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import lockfile
import loopback

TESTS = os.path.dirname(os.path.abspath(__file__))
CI = os.path.dirname(TESTS)
ROOT = os.path.dirname(CI)

MOVED = ["linux-source-7.3", "mkosi", "bc", "patch", "ca-certificates"]


def fewer_certificates(root):
    """Removes a certificate from the package: the bundle in the image gets other bytes."""
    os.unlink(sorted(glob.glob(os.path.join(root, "usr/share/ca-certificates/mozilla/*.crt")))[0])


class Moved(unittest.TestCase):
    """The same bits pass; where they differ, the newcomer's command goes on and says so."""

    @classmethod
    def setUpClass(cls):
        subprocess.run([os.path.join(CI, "fetch"), "--exact"], check=True)
        cls.cache = os.path.join(
            os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "cofferdam"
        )
        cls.lock = lockfile.tree()

    @classmethod
    def tearDownClass(cls):
        subprocess.run([os.path.join(CI, "fetch"), "--exact"], check=True)
        subprocess.run(
            [os.path.join(CI, "mkosi"), "--force", "--profile", "simulator", "build"],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="cofferdam-moved-")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        request = lockfile.request()
        self.archive = loopback.Archive(
            sorted({suite for group in lockfile.GROUPS for suite in request[group]["suites"]})
        )
        self.addCleanup(self.archive.close)
        # A cache without packages: what was fetched before is not to be had. The kernel of this
        # very source is.
        shutil.copytree(
            os.path.join(self.cache, "kernel"), os.path.join(self.folder, "cache/cofferdam/kernel")
        )
        self.environment = os.environ | {
            "XDG_CACHE_HOME": os.path.join(self.folder, "cache"),
            "COFFERDAM_ARCHIVE": self.archive.url,
            "COFFERDAM_KEYRING": self.archive.keyring,
            "COFFERDAM_SNAPSHOT": "http://127.0.0.1:9/none",
            "COFFERDAM_RELEASES": "",
        }

    def serve(self, change=None):
        """The archive with all that is locked, but for MOVED; `change` alters one package's content
        besides.
        """
        listed = {}
        for group in lockfile.GROUPS:
            suite = lockfile.request()[group]["suites"][0]
            for package in self.lock.groups[group]:
                source, path = os.path.join(self.cache, "inputs/debs", package.file), package.path
                if package.name in MOVED:
                    source = loopback.repack(
                        source, self.folder, change if package.name == "ca-certificates" else None
                    )[2]
                    path = os.path.join(os.path.dirname(path), os.path.basename(source))
                self.archive.put(path, source)
                listed.setdefault(suite, []).append((path, source))
        self.archive.index(listed)

    def run_here(self, *command, code=0):
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
        )
        self.assertEqual(done.returncode, code, done.stdout[-3000:] + done.stderr[-3000:])
        return done.stdout + done.stderr

    def build(self):
        said = self.run_here(os.path.join(CI, "fetch"))
        for name in MOVED:
            self.assertIn(f"moved: {name} ", said)
        self.assertEqual(said.count("moved: "), len(MOVED))
        # The kernel's source is the same file in another package, so that the kernel is not built
        # again.
        self.assertNotIn(
            "kernel: unpacking",
            self.run_here(os.path.join(CI, "mkosi"), "--force", "--profile", "simulator", "build"),
        )

    def test_the_same_bits_pass_and_what_moved_is_listed(self):
        self.serve()
        self.build()
        said = self.run_here(
            os.path.join(CI, "measurements"), "--check", "--built", "--only", "cofferdam-simulator"
        )
        self.assertIn("as committed: sha256:", said)
        self.assertIn("the bits are the same", said)
        for name in ("linux-source-7.3", "bc", "patch", "ca-certificates"):
            self.assertRegex(said, rf"  {name}: \S+ there, \S+\+moved here")

    def test_other_bits_are_not_judged_and_the_demo_goes_on(self):
        self.serve(fewer_certificates)
        self.build()
        check = [
            os.path.join(CI, "measurements"),
            "--check",
            "--built",
            "--only",
            "cofferdam-simulator",
        ]
        said = self.run_here(*check, code=6)
        self.assertIn("OTHER INPUTS than the locked", said)
        self.assertIn("initrd is", said)
        own = os.path.join(self.folder, "own")
        self.run_here(*check, "--fallback", own)
        self.assertTrue(glob.glob(os.path.join(own, "*", "cofferdam-simulator.json")))
        said = self.run_here(os.path.join(CI, "demo"), "--one-boot", "--releases", "")
        self.assertIn(
            "reference values are of this build, not of measurements/: 5 locked inputs could not "
            "be had",
            said,
        )
        self.assertIn("workload says", said)


if __name__ == "__main__":
    if not os.path.exists(os.path.join(ROOT, "cofferdam-simulator.efi")):
        sys.exit("test_moved: build the images first")
    unittest.main()
