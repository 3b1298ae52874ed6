"""ci/boot: the command lines it builds and the disks it makes.

Run with `python3 ci/tests/test_boot.py`.
"""

import calendar
import contextlib
import errno
import importlib.machinery
import importlib.util
import io
import itertools
import json
import os
import shlex
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import unittest
import unittest.mock

CI = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, CI)
LOADER = importlib.machinery.SourceFileLoader("boot", os.path.join(CI, "boot"))
boot = importlib.util.module_from_spec(importlib.util.spec_from_loader("boot", LOADER))
LOADER.exec_module(boot)
tdxhost = boot.tdxhost

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def printed(*arguments):
    """The commands that `ci/boot --print` shows, each as a list of words."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = boot.main([*arguments, "--print"])
    assert code == 0, out.getvalue()
    return [shlex.split(line) for line in out.getvalue().splitlines()]


def values(command, option):
    return [value for name, value in itertools.pairwise(command) if name == option]


class TrustDomain(unittest.TestCase):
    """The command line for a TDX host; no such host is here, so it is checked word by word."""

    def setUp(self):
        self.commands = printed(
            "--tdx",
            "cofferdam.efi",
            "--declaration",
            "cofferdam.yaml",
            "--commit",
            COMMIT,
            "--port",
            "8443",
        )
        self.qemu = self.commands[-1]

    def test_the_guest_is_a_trust_domain_with_quotes_over_vsock(self):
        objects = [json.loads(value) for value in values(self.qemu, "-object")]
        self.assertEqual(
            objects,
            [
                {
                    "qom-type": "tdx-guest",
                    "id": "tdx0",
                    "sept-ve-disable": True,
                    "quote-generation-socket": {"type": "vsock", "cid": "2", "port": "4050"},
                }
            ],
        )
        machine = values(self.qemu, "-machine")[0].split(",")
        self.assertEqual(machine[0], "q35")
        self.assertIn("confidential-guest-support=tdx0", machine)
        self.assertIn("kernel-irqchip=split", machine)
        self.assertIn("smm=off", machine)

    def test_it_runs_on_the_processor_itself_with_tdvf(self):
        self.assertEqual(values(self.qemu, "-accel"), ["kvm"])
        self.assertEqual(values(self.qemu, "-cpu"), ["host"])
        self.assertEqual(values(self.qemu, "-bios"), [boot.TDVF])

    def test_there_is_no_tpm_no_flash_and_no_simulated_platform(self):
        self.assertEqual([command[0] for command in self.commands], ["cd", "qemu-system-x86_64"])
        words = " ".join(self.qemu)
        for absent in ("tpm", "pflash", "tdx-sim", "-kernel"):
            self.assertNotIn(absent, words)

    def test_it_gets_the_image_the_declaration_and_the_port(self):
        drives = [value.split("file=")[1] for value in values(self.qemu, "-drive")]
        self.assertEqual(drives, ["esp.img", "declaration.img"])
        self.assertIn(
            "virtio-blk-pci,drive=declaration,serial=cofferdam-decl", values(self.qemu, "-device")
        )
        self.assertEqual(
            values(self.qemu, "-netdev"), ["user,id=net,hostfwd=tcp:127.0.0.1:8443-:443"]
        )

    def test_the_address_of_the_quote_service_can_be_told(self):
        qemu = printed("--tdx", "cofferdam.efi", "--qgs", "3:4051")[-1]
        self.assertEqual(
            json.loads(values(qemu, "-object")[0])["quote-generation-socket"],
            {"type": "vsock", "cid": "3", "port": "4051"},
        )

    def test_what_belongs_to_the_simulator_is_refused(self):
        for option in (["--direct"], ["--seed", "seed"], ["--control"]):
            with (
                contextlib.redirect_stderr(io.StringIO()),
                self.assertRaises(SystemExit) as refused,
            ):
                boot.main(["--tdx", "cofferdam.efi", *option, "--print"])
            self.assertEqual(refused.exception.code, 2)


class TdxHost(unittest.TestCase):
    """What `ci/boot --tdx` says a machine lacks; no TDX host is here, so its files are made."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = folder.name
        self.write("proc/cpuinfo", "flags\t\t: fpu tdx_host_platform vme\n")
        self.write("sys/module/kvm_intel/parameters/tdx", "Y\n")
        self.write("dev/kvm", "")
        self.write("tdvf.fd", "")
        self.said = {"--version": "QEMU emulator version 10.1.2 (Debian)", "help": "tdx-guest\n"}
        self.answer = None

    def write(self, path, text):
        full = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "w", encoding="utf-8") as file:
            file.write(text)

    def dial(self, address):
        self.dialled = address
        if self.answer:
            raise self.answer

    def look(self):
        return tdxhost.look(
            ("2", "4050"),
            os.path.join(self.root, "tdvf.fd"),
            self.root,
            lambda *command: self.said.get(command[-1]),
            self.dial,
        )

    def lacking(self):
        return [finding for finding in self.look() if finding.holds is not True]

    def test_a_host_that_has_all_lacks_nothing(self):
        self.assertEqual(self.lacking(), [])
        self.assertEqual(self.dialled, (2, 4050))

    def test_each_thing_that_is_missing_is_named_with_what_to_do(self):
        def is_missing(word, hint):
            (found,) = self.lacking()
            self.assertIs(found.holds, False)
            self.assertIn(word, found.what)
            self.assertIn(hint, found.hint)
            self.assertIn(f"hint: {found.hint}", tdxhost.text(self.look()))
            self.setUp()

        self.write("proc/cpuinfo", "flags\t\t: fpu vme\n")
        is_missing("BIOS", "SEAM Loader")
        self.write("sys/module/kvm_intel/parameters/tdx", "N\n")
        is_missing("kernel", "kvm_intel.tdx=1")
        os.unlink(os.path.join(self.root, "sys/module/kvm_intel/parameters/tdx"))
        is_missing("kernel", "6.16")
        os.unlink(os.path.join(self.root, "dev/kvm"))
        is_missing("/dev/kvm", "load kvm_intel")
        self.said["--version"] = "QEMU emulator version 10.0.8"
        is_missing("(10.0)", "backports")
        del self.said["--version"]
        is_missing("not installed", "backports")
        self.said["help"] = "rng-random\n"
        is_missing("built with TDX", "backports")
        os.unlink(os.path.join(self.root, "tdvf.fd"))
        is_missing("tdvf.fd", "ci/install")
        self.answer = OSError(errno.ECONNRESET, "reset")
        is_missing("2:4050", "qgsd")
        self.answer = OSError(errno.ENODEV, "no device")
        is_missing("2:4050", "vsock_loopback")

    def test_a_service_that_does_not_answer_in_time_stops_nobody(self):
        self.answer = TimeoutError()
        self.assertEqual([finding.holds for finding in self.lacking()], [None])

    def test_nothing_is_started_where_something_is_missing(self):
        err = io.StringIO()
        found = [tdxhost.Finding(False, "a processor", "buy one")]
        with (
            contextlib.redirect_stderr(err),
            unittest.mock.patch.object(boot.tdxhost, "look", lambda *_: found),
            unittest.mock.patch.object(boot, "run_machine", self.fail),
        ):
            self.assertEqual(boot.main(["--tdx", "cofferdam.efi"]), 1)
            self.assertEqual(boot.main(["--tdx", "--check"]), 1)
        self.assertIn("buy one", err.getvalue())
        found[0] = tdxhost.Finding(None, "a service", "start it")
        with (
            contextlib.redirect_stderr(err),
            unittest.mock.patch.object(boot.tdxhost, "look", lambda *_: found),
        ):
            self.assertEqual(boot.main(["--tdx", "--check"]), 0)


class Simulated(unittest.TestCase):
    def test_firmware_and_tpm_measure_the_image(self):
        _, setup, swtpm, qemu = printed("cofferdam-simulator.efi", "--seed", "seed")
        self.assertEqual(setup[0], "swtpm_setup")
        self.assertIn("sha384", values(setup, "--pcr-banks")[0].split(","))
        self.assertEqual(swtpm[:2], ["swtpm", "socket"])
        self.assertIn("tpm-crb,tpmdev=tpm0", values(qemu, "-device"))
        self.assertIn("virtio-blk-pci,drive=seed,serial=tdx-sim-seed", values(qemu, "-device"))
        self.assertNotIn("-kernel", qemu)

    def test_the_hypervisor_can_hand_over_the_image_instead_of_a_disk(self):
        qemu = printed("image.efi", "--seed", "seed", "--kernel", "--append", "quiet")[-1]
        self.assertEqual(values(qemu, "-kernel"), [os.path.abspath("image.efi")])
        self.assertEqual(values(qemu, "-append"), ["quiet"])
        self.assertNotIn("virtio-blk-pci,drive=esp", qemu)
        self.assertIn("tpm-crb,tpmdev=tpm0", values(qemu, "-device"))
        for options in (
            ["--append", "quiet"],
            ["--kernel", "--direct"],
            ["--kernel", "--beside", "a=b"],
        ):
            with (
                contextlib.redirect_stderr(io.StringIO()),
                self.assertRaises(SystemExit) as refused,
            ):
                boot.main(["image.efi", *options, "--print"])
            self.assertEqual(refused.exception.code, 2)

    def test_a_clock_that_counts_instructions_takes_one_thread(self):
        qemu = printed("image.efi", "--seed", "seed", "--icount", "0")[-1]
        self.assertEqual(values(qemu, "-icount"), ["shift=0"])
        self.assertEqual(values(qemu, "-accel"), ["tcg,thread=single"])
        self.assertEqual(values(printed("image.efi", "--seed", "seed")[-1], "-icount"), [])
        with contextlib.redirect_stderr(io.StringIO()), self.assertRaises(SystemExit) as refused:
            boot.main(["image.efi", "--tdx", "--icount", "0", "--print"])
        self.assertEqual(refused.exception.code, 2)

    def test_the_clock_is_the_hosts_or_wrong_by_what_is_said(self):
        self.assertEqual(values(printed("image.efi", "--seed", "seed")[-1], "-rtc"), [])
        qemu = printed("image.efi", "--seed", "seed", "--clock-ahead", "-3600")[-1]
        base = values(qemu, "-rtc")[0].removeprefix("base=")
        said = calendar.timegm(time.strptime(base, "%Y-%m-%dT%H:%M:%S"))
        self.assertAlmostEqual(said, time.time() - 3600, delta=60)

    def test_every_disk_is_read_only_and_the_network_card_brings_no_program(self):
        qemu = printed(
            "cofferdam-simulator.efi",
            "--seed",
            "seed",
            "--declaration",
            "d",
            "--commit",
            COMMIT,
            "--forward",
            "8080:80",
        )[-1]
        for drive in values(qemu, "-drive"):
            self.assertTrue("readonly=on" in drive or drive.endswith("file=vars.fd"), drive)
        self.assertIn("virtio-net-pci,netdev=net,romfile=", values(qemu, "-device"))
        self.assertEqual(values(qemu, "-netdev"), ["user,id=net,hostfwd=tcp:127.0.0.1:8080-:80"])


class DeclarationDisk(unittest.TestCase):
    def test_header_exact_bytes_and_padding(self):
        disk = boot.declaration_disk(COMMIT, b"version: 1\n")
        self.assertEqual(len(disk) % 512, 0)
        self.assertEqual(
            disk.rstrip(b"\0"), f"cofferdam-declaration/v1 {COMMIT} 11\nversion: 1\n".encode()
        )

    def test_an_address_is_behind_the_length(self):
        disk = boot.declaration_disk(COMMIT, b"version: 1\n", "address=10.0.2.15/24")
        header = f"cofferdam-declaration/v1 {COMMIT} 11 address=10.0.2.15/24\n"
        self.assertTrue(disk.startswith(header.encode() + b"version: 1\n"))

    def test_a_disk_that_is_full_to_the_sector_has_no_padding(self):
        header = len(f"cofferdam-declaration/v1 {COMMIT} 400\n")
        self.assertEqual(len(boot.declaration_disk(COMMIT, b"x" * (512 - header))), 512)

    def test_bounds(self):
        for commit, declaration in (
            (COMMIT, b""),
            (COMMIT, b"x" * (boot.MAX_DECLARATION + 1)),
            (COMMIT.upper(), b"x"),
            (None, b"x"),
            (COMMIT + "\n", b"x"),
        ):
            with self.assertRaises(boot.Failed):
                boot.declaration_disk(commit, declaration)
        self.assertEqual(len(boot.declaration_disk(COMMIT, b"x" * boot.MAX_DECLARATION)) % 512, 0)


class Cloud(unittest.TestCase):
    """Disks as a cloud attaches and imports them; ci/tests/test_gce.py boots from such."""

    def test_a_disk_is_started_as_it_is_and_all_are_on_nvme(self):
        more = ["--declaration", "c.yaml", "--commit", COMMIT, "--state", "state.img"]
        qemu = printed("cofferdam-gce.raw", "--nvme", *more)[-1]
        drives = [value.split("file=")[1] for value in values(qemu, "-drive")]
        self.assertIn(os.path.abspath("cofferdam-gce.raw"), drives)
        self.assertNotIn("esp.img", drives)
        devices = values(qemu, "-device")
        namespaces = [f"nvme-ns,drive={name},bus=nvme" for name in ("esp", "declaration", "state")]
        self.assertEqual([name for name in devices if "nvme-ns" in name], namespaces)
        self.assertNotIn("virtio-blk", " ".join(devices))
        writable = [value for value in values(qemu, "-drive") if "readonly=off" in value]
        self.assertEqual(len(writable), 1)
        self.assertIn("id=state", writable[0])

    def test_a_disk_is_changed_by_nobody(self):
        for option in (["--direct"], ["--kernel"], ["--beside", "a=b"]):
            with (
                contextlib.redirect_stderr(io.StringIO()),
                self.assertRaises(SystemExit) as refused,
            ):
                boot.main(["cofferdam-gce.raw", *option, "--print"])
            self.assertEqual(refused.exception.code, 2)

    def test_the_declarations_disk_is_written_for_an_import(self):
        with tempfile.TemporaryDirectory() as folder:
            declaration = os.path.join(folder, "cofferdam.yaml")
            with open(declaration, "wb") as file:
                file.write(b"version: 1\n")
            packed = os.path.join(folder, "declaration.tar.gz")
            words = ["--declaration", declaration, "--commit", COMMIT]
            self.assertEqual(boot.main(["--cloud-disk", packed, *words]), 0)
            with tarfile.open(packed) as archive:
                (entry,) = archive.getmembers()
                self.assertEqual((entry.name, entry.size), ("disk.raw", 1 << 30))
                expected = boot.declaration_disk(COMMIT, b"version: 1\n")
                with archive.extractfile(entry) as disk:
                    self.assertEqual(disk.read(4096), expected.ljust(4096, b"\0"))


class Oversized(unittest.TestCase):
    """A file of 1 TiB without contents, a device without an end, and an archive that unpacks to too
    much.
    """

    def test_inputs_are_refused_before_they_are_read(self):
        # ci/boot works in its run's folder.
        self.addCleanup(os.chdir, os.getcwd())
        with tempfile.TemporaryDirectory() as folder:
            sparse = os.path.join(folder, "sparse")
            with open(sparse, "wb") as file:
                file.truncate(1 << 40)
            for image, more in (
                (sparse, []),
                ("/dev/null", ["--declaration", sparse, "--commit", COMMIT]),
                ("/dev/null", ["--seed", sparse]),
            ):
                said = io.StringIO()
                with contextlib.redirect_stderr(said):
                    self.assertEqual(
                        boot.main([image, "--dir", os.path.join(folder, "run"), "--kernel", *more]),
                        1,
                    )
                self.assertRegex(said.getvalue(), "sparse has more than [0-9]+ bytes")
            with self.assertRaisesRegex(boot.uki.Malformed, "/dev/zero has more than 4096 bytes"):
                boot.uki.read("/dev/zero", 4096)
            with open(sparse, "r+b") as file:
                file.truncate(4096)
            self.assertEqual(boot.uki.read(sparse, 4096), bytes(4096))
            with self.assertRaisesRegex(boot.uki.Malformed, "more than 4095 bytes"):
                boot.uki.read(sparse, 4095)

    def test_what_is_packed_unpacks_within_bounds(self):
        packed = subprocess.run(
            ["zstd", "-q"], input=bytes(1 << 22), capture_output=True, check=True
        ).stdout
        self.assertEqual(boot.uki.unpack(["zstd", "-dcq"], packed, 1 << 22), bytes(1 << 22))
        with self.assertRaisesRegex(boot.uki.Malformed, "unpacks it to more than 4194303 bytes"):
            boot.uki.unpack(["zstd", "-dcq"], packed, (1 << 22) - 1)
        with self.assertRaisesRegex(boot.uki.Malformed, "cannot unpack it"):
            boot.uki.unpack(["zstd", "-dcq"], packed[:40])
        with self.assertRaisesRegex(boot.uki.Malformed, "cannot unpack it"):
            boot.uki.unpack(["zstd", "-dcq"], b"no archive", whole=False)


class Uki(unittest.TestCase):
    def image(self):
        """Headers of 0x200 bytes with room for six sections, and one of them."""
        pe = bytearray(0x400)
        struct.pack_into("<I", pe, 0x3C, 0x40)
        struct.pack_into("<H12xH", pe, 0x46, 1, 112)
        struct.pack_into("<II", pe, 0x58 + 32, 0x1000, 0x200)
        struct.pack_into("<II", pe, 0x58 + 56, 0x2000, 0x200)
        struct.pack_into("<8sIIII", pe, 0xC8, b".cmdline", 5, 0x1000, 0x200, 0x200)
        pe[0x200:0x205] = b"quiet"
        return bytes(pe)

    def test_variants_have_what_they_are_asked_for(self):
        def names(image):
            return [entry.name for entry in boot.uki.table(image)]

        image = self.image()
        self.assertEqual(boot.uki.rebuilt(image, boot.uki.table(image)), image)
        more = boot.uki.added(image, ".ucode", b"microcode")
        self.assertEqual(boot.uki.section(more, ".ucode"), b"microcode")
        self.assertEqual(names(more), [".cmdline", ".ucode"])
        self.assertEqual(boot.uki.table(more)[1].address, 0x2000)
        self.assertEqual(names(boot.uki.removed(more, ".cmdline")), [".ucode"])
        changed = boot.uki.variant(image, {".cmdline": b"debug"})
        self.assertEqual(
            (boot.uki.section(changed, ".cmdline"), boot.uki.table(changed)[0].address),
            (b"debug", 0x2000),
        )
        self.assertNotEqual(boot.uki.checksum(image, 7), image)
        with self.assertRaises(boot.uki.Malformed):
            boot.uki.variant(image, {".linux": b""})
        with self.assertRaises(boot.uki.Malformed):
            boot.uki.rebuilt(image, boot.uki.table(image) * 20)

    def test_a_section_without_its_padding(self):
        self.assertEqual(boot.uki.section(self.image(), ".cmdline"), b"quiet")

    def test_other_files_are_refused(self):
        for image, name in ((self.image(), ".linux"), (b"", ".linux"), (b"MZ" * 40, ".linux")):
            with self.assertRaises(boot.uki.Malformed):
                boot.uki.section(image, name)


if __name__ == "__main__":
    unittest.main()
