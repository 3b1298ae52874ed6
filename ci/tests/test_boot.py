"""ci/boot: the command lines it builds and the disks it makes. Run with `python3 -m unittest discover ci/tests`."""

import contextlib
import importlib.machinery
import importlib.util
import io
import json
import os
import shlex
import struct
import sys
import unittest

CI = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, CI)
LOADER = importlib.machinery.SourceFileLoader("boot", os.path.join(CI, "boot"))
boot = importlib.util.module_from_spec(importlib.util.spec_from_loader("boot", LOADER))
LOADER.exec_module(boot)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def printed(*arguments):
    """The commands that `ci/boot --print` shows, each as a list of words."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = boot.main([*arguments, "--print"])
    assert code == 0, out.getvalue()
    return [shlex.split(line) for line in out.getvalue().splitlines()]


def values(command, option):
    return [value for name, value in zip(command, command[1:]) if name == option]


class TrustDomain(unittest.TestCase):
    """The command line for a TDX host; no such host is here, so its words are checked one by one."""

    def setUp(self):
        self.commands = printed("--tdx", "cofferdam.efi", "--declaration", "cofferdam.yaml", "--commit", COMMIT, "--port", "8443")
        self.qemu = self.commands[-1]

    def test_the_guest_is_a_trust_domain_with_quotes_over_vsock(self):
        objects = [json.loads(value) for value in values(self.qemu, "-object")]
        self.assertEqual(objects, [{"qom-type": "tdx-guest", "id": "tdx0", "sept-ve-disable": True,
                                    "quote-generation-socket": {"type": "vsock", "cid": "2", "port": "4050"}}])
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
        self.assertIn("virtio-blk-pci,drive=declaration,serial=cofferdam-decl", values(self.qemu, "-device"))
        self.assertEqual(values(self.qemu, "-netdev"), ["user,id=net,hostfwd=tcp:127.0.0.1:8443-:443"])

    def test_the_address_of_the_quote_service_can_be_told(self):
        qemu = printed("--tdx", "cofferdam.efi", "--qgs", "3:4051")[-1]
        self.assertEqual(json.loads(values(qemu, "-object")[0])["quote-generation-socket"], {"type": "vsock", "cid": "3", "port": "4051"})

    def test_what_belongs_to_the_simulator_is_refused(self):
        for option in (["--direct"], ["--seed", "seed"], ["--control"]):
            with contextlib.redirect_stderr(io.StringIO()), self.assertRaises(SystemExit) as refused:
                boot.main(["--tdx", "cofferdam.efi", *option, "--print"])
            self.assertEqual(refused.exception.code, 2)


class Simulated(unittest.TestCase):
    def test_firmware_and_tpm_measure_the_image(self):
        _, setup, swtpm, qemu = printed("cofferdam-simulator.efi", "--seed", "seed")
        self.assertEqual(setup[0], "swtpm_setup")
        self.assertIn("sha384", values(setup, "--pcr-banks")[0].split(","))
        self.assertEqual(swtpm[:2], ["swtpm", "socket"])
        self.assertIn("tpm-crb,tpmdev=tpm0", values(qemu, "-device"))
        self.assertIn("virtio-blk-pci,drive=seed,serial=tdx-sim-seed", values(qemu, "-device"))
        self.assertNotIn("-kernel", qemu)

    def test_every_disk_is_read_only_and_the_network_card_brings_no_program(self):
        qemu = printed("cofferdam-simulator.efi", "--seed", "seed", "--declaration", "d", "--commit", COMMIT, "--forward", "8080:80")[-1]
        for drive in values(qemu, "-drive"):
            self.assertTrue("readonly=on" in drive or drive.endswith("file=vars.fd"), drive)
        self.assertIn("virtio-net-pci,netdev=net,romfile=", values(qemu, "-device"))
        self.assertEqual(values(qemu, "-netdev"), ["user,id=net,hostfwd=tcp:127.0.0.1:8080-:80"])


class DeclarationDisk(unittest.TestCase):
    def test_header_exact_bytes_and_padding(self):
        disk = boot.declaration_disk(COMMIT, b"version: 1\n")
        self.assertEqual(len(disk) % 512, 0)
        self.assertEqual(disk.rstrip(b"\0"), f"cofferdam-declaration/v1 {COMMIT} 11\nversion: 1\n".encode())

    def test_a_disk_that_is_full_to_the_sector_has_no_padding(self):
        header = len(f"cofferdam-declaration/v1 {COMMIT} 400\n")
        self.assertEqual(len(boot.declaration_disk(COMMIT, b"x" * (512 - header))), 512)

    def test_bounds(self):
        for commit, declaration in ((COMMIT, b""), (COMMIT, b"x" * (boot.MAX_DECLARATION + 1)), (COMMIT.upper(), b"x"), (None, b"x"), (COMMIT + "\n", b"x")):
            with self.assertRaises(boot.Refused):
                boot.declaration_disk(commit, declaration)
        self.assertEqual(len(boot.declaration_disk(COMMIT, b"x" * boot.MAX_DECLARATION)) % 512, 0)


class Uki(unittest.TestCase):
    def image(self):
        pe = bytearray(0x200)
        struct.pack_into("<I", pe, 0x3c, 0x80)
        struct.pack_into("<H12xH", pe, 0x86, 1, 0)
        struct.pack_into("<8sI8xI", pe, 0x98, b".cmdline", 5, 0x100)
        pe[0x100:0x105] = b"quiet"
        return bytes(pe)

    def test_a_section_without_its_padding(self):
        self.assertEqual(boot.uki.section(self.image(), ".cmdline"), b"quiet")

    def test_other_files_are_refused(self):
        for image, name in ((self.image(), ".linux"), (b"", ".linux"), (b"MZ" * 40, ".linux")):
            with self.assertRaises(boot.uki.Malformed):
                boot.uki.section(image, name)


if __name__ == "__main__":
    unittest.main()
