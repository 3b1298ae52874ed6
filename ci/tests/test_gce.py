#!/usr/bin/python3
"""The disk of the profile `gce`: what is on it, and two boots from NVMe with the state kept.

All of the appliance's disks are namespaces of one NVMe controller, the declaration's as large as a
cloud makes it. QEMU has no gVNIC and this machine no TDX: the network card is virtio's, the device
simulated, whose seed alone is a virtio disk, since a real one has none.

Needs what `ci/mkosi --profile simulator,gce build` makes, with a kernel of its own, and is skipped
where that is not: COFFERDAM_GCE names another disk. Two boots.
"""

import http.client
import importlib.machinery
import importlib.util
import json
import os
import ssl
import struct
import subprocess
import sys
import tarfile
import tempfile
import unittest
import zlib

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from harness import (
    GITHUB_TOKEN,
    OPERATOR,
    REPOSITORY,
    ROOT,
    SEALED,
    World,
    free_port,
    wait_for,
    workload_files,
)
from process import run

DISK = os.environ.get("COFFERDAM_GCE", os.path.join(ROOT, "cofferdam-gce-simulator.raw"))
TOOLS = os.environ.get("COFFERDAM_TOOLS", os.path.join(ROOT, "target", "debug"))
THERE = os.path.exists(DISK)
SKIPPED = f"{DISK} is not there: `ci/mkosi --profile simulator,gce build` makes it"
PASSPHRASE = "correct horse battery staple"
SECRET = "secret://demo/web/value"
TOKEN = "secret://cofferdam/github/token"
VALUE = "what survives a power cut and is long enough"
SERVICES = """  web:
    image: {image}
    environment: {{GREETING_SECRET: secret://demo/web/value}}
    ports: [{{target: 8080, published: 443, auth: none}}]
    volumes: ["kept:/kept"]
"""
SECTOR = 512
EPOCH = "1767225600"


def writer():
    """image/gce/disk as a module."""
    loader = importlib.machinery.SourceFileLoader("disk", os.path.join(ROOT, "image/gce/disk"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("disk", loader))
    # Nothing is left beside it: files below image/ are inputs of the build.
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def started(raw):
    """What firmware would start from a disk, as mtools reads it."""
    command = ["mtype", "-i", f"{raw}@@1M", "::EFI/BOOT/BOOTX64.EFI"]
    return subprocess.run(command, capture_output=True, check=True).stdout


def same(one, other):
    return subprocess.run(["cmp", "--silent", one, other], check=False).returncode == 0


class Disk(unittest.TestCase):
    """What the writer makes, read by other programs than itself."""

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="cofferdam-gce-")
        cls.addClassCleanup(folder.cleanup)
        cls.folder = folder.name
        # Neither a whole number of clusters nor of sectors.
        cls.uki = os.urandom(3 * 4096 + 1000)
        cls.raw, cls.packed = cls.made("one")

    @classmethod
    def made(cls, name):
        folder = os.path.join(cls.folder, name)
        os.mkdir(folder)
        with open(os.path.join(folder, "image.efi"), "wb") as file:
            file.write(cls.uki)
        environment = {**os.environ, "OUTPUTDIR": folder, "SOURCE_DATE_EPOCH": EPOCH}
        run([sys.executable, "-B", os.path.join(ROOT, "image/gce/disk")], env=environment)
        return os.path.join(folder, "image.raw"), os.path.join(folder, "image.tar.gz")

    def test_the_disk_follows_from_the_image_alone(self):
        again, packed_again = self.made("two")
        self.assertTrue(same(self.raw, again) and same(self.packed, packed_again))

    def test_the_image_is_where_firmware_looks_and_nothing_else_is_there(self):
        part = f"{self.raw}@@1M"
        self.assertEqual(started(self.raw), self.uki)
        names = run(["mdir", "-b", "-/", "-a", "-i", part, "::"]).split()
        self.assertEqual([n for n in names if not n.endswith("/")], ["::/EFI/BOOT/BOOTX64.EFI"])
        self.assertIn("serial number: C0FFE4DA", run(["minfo", "-i", part]))

    def test_the_archive_holds_the_same_as_the_cloud_wants_it(self):
        with tarfile.open(self.packed) as archive:
            (entry,) = archive.getmembers()
        self.assertEqual((entry.name, entry.size, entry.mtime), ("disk.raw", 1 << 30, int(EPOCH)))
        run(["tar", "--extract", "--gzip", "--file", self.packed, "--directory", self.folder])
        self.assertTrue(same(self.raw, os.path.join(self.folder, "disk.raw")))
        self.assertLess(os.path.getsize(self.packed), 1 << 20)

    def test_both_tables_are_whole_and_name_each_other(self):
        last = (1 << 30) // SECTOR - 1
        with open(self.raw, "rb") as file:
            for at, other, entries in ((1, last, 2), (last, 1, last - 32)):
                file.seek(at * SECTOR)
                header = file.read(SECTOR)
                named = struct.unpack_from("<QQ", header, 24) + struct.unpack_from("<Q", header, 72)
                self.assertEqual(named, (at, other, entries))
                blank = header[:16] + bytes(4) + header[20:92]
                self.assertEqual(struct.unpack_from("<I", header, 16)[0], zlib.crc32(blank))
                file.seek(entries * SECTOR)
                table = file.read(32 * SECTOR)
                self.assertEqual(struct.unpack_from("<I", header, 88)[0], zlib.crc32(table))

    def test_an_image_that_does_not_fit_is_refused(self):
        disk = writer()
        _, _, clusters = disk.geometry()
        # FAT32 begins here (Microsoft's specification); fewer clusters would be read as FAT16.
        self.assertGreaterEqual(clusters, 65525)
        size = disk.CLUSTER * SECTOR
        with self.assertRaises(SystemExit):
            disk.file_system(bytes((clusters - 2) * size))


@unittest.skipUnless(THERE, SKIPPED)
class Boots(unittest.TestCase):
    """The checks run in the order of their names: the second boot goes on from the first."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="cofferdam-gce-")
        cls.addClassCleanup(cls.folder.cleanup)
        cls.world = world = World(cls.folder.name, TOOLS)
        cls.addClassCleanup(world.stop)
        world.start_services()
        config = {"Entrypoint": ["/probe"], "WorkingDir": "/"}
        image = world.push_image("test/probe", workload_files(), config)
        cls.port, cls.state = free_port(), world.path("state.img")
        services = SERVICES.format(image=image)
        volumes = "{kept: {size: 64m}}"
        cls.declaration = world.declaration(cls.port, services, state=OPERATOR, volumes=volumes)
        cls.commit = world.commit(cls.declaration)
        known = [*world.trust_options(DISK), *world.github_options()]
        cls.options = ["--endpoint", f"127.0.0.1:{cls.port}", *known]

    def boot(self, name):
        more = ("--nvme", "--state", self.state)
        machine = self.world.boot(name, DISK, self.declaration, self.commit, self.port, *more)
        self.world.wait_console(name, machine, SEALED, 240)
        wait_for("the operators' interface", 60, lambda: self.coffer("seal", "status")[0] == 5, 1)
        return machine

    def coffer(self, *words, stdin=None):
        return self.world.coffer(*words, REPOSITORY, *self.options, stdin=stdin)

    def says(self, code, text, *words, stdin=None):
        got, out, err = self.coffer(*words, stdin=stdin)
        self.assertEqual(got, code, f"{words}: {out}\n{err}")
        self.assertIn(text, out + err)

    def put(self, name, value):
        self.world.coffer_ok("secret", "put", REPOSITORY, name, *self.options, stdin=value)

    def status(self):
        code, out, _ = self.coffer("status", "--json")
        return json.loads(out) if code == 0 else None

    def runs(self):
        def running():
            status = self.status()
            return status and all(one["state"] == "running" for one in status["services"])

        wait_for("the service runs", 120, running, 1)

    def published(self):
        status = self.status()
        return status and status["publish"]["state"] == "published"

    def ask(self, path):
        context = ssl._create_unverified_context()
        at = http.client.HTTPSConnection("127.0.0.1", self.port, context=context, timeout=60)
        try:
            at.request("GET", path)
            return at.getresponse().read().decode()
        finally:
            at.close()

    def test_0_the_disk_is_the_images(self):
        with open(os.path.splitext(DISK)[0] + ".efi", "rb") as file:
            self.assertEqual(started(DISK), file.read())

    def test_1_it_boots_from_nvme_verifies_and_keeps_its_state_there(self):
        machine = self.boot("first")
        self.says(0, "cofferdam-recovery-1-", "seal", "init", stdin=PASSPHRASE)
        self.world.wait_console("first", machine, "launched", 120)
        self.put(SECRET, VALUE)
        self.put(TOKEN, GITHUB_TOKEN)
        self.runs()
        self.assertEqual(self.ask("/volume/put?path=/kept/put&text=kept"), "put\n")
        wait_for("the release attestation", 120, self.published, 1)
        # Registers that were predicted from the files, the disk's partition table among them.
        code, out, err = self.world.coffer("verify", REPOSITORY, *self.options[2:])
        self.assertEqual(code, 0, out + err)
        self.without_the_disks_table()
        self.world.cut_power("first", machine)

    def without_the_disks_table(self):
        """Values of the same image on a disk without a table are refused: it counts."""
        image, platform = self.world.references(os.path.splitext(DISK)[0] + ".efi")
        trust = [*self.world.trust_in([image, platform]), *self.world.github_options()]
        code, out, err = self.world.coffer("verify", REPOSITORY, *trust)
        self.assertEqual(code, 3, out + err)

    def test_2_another_boot_has_its_state_again(self):
        machine = self.boot("second")
        self.says(4, "passphrase", "unseal", stdin="incorrect horse battery")
        self.says(0, "open", "unseal", stdin=PASSPHRASE)
        self.world.wait_console("second", machine, "launched", 120)
        self.runs()
        self.assertEqual(self.ask("/volume/read?path=/kept/put"), "kept")
        self.assertIn(SECRET, self.coffer("secret", "list")[1])
        self.world.cut_power("second", machine)


if __name__ == "__main__":
    if not THERE:
        print(f"test_gce: the boots are skipped: {SKIPPED}", file=sys.stderr)
    unittest.main(verbosity=2)
