#!/usr/bin/python3
"""The kernel of an image against a hostile host: ci/tests/test_kernel.py [IMAGE] (default:
cofferdam.efi)

Starts the image's kernel and initramfs directly, with an ACPI table of the attacker's added to the
machine's.
"""

import os
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import guest
import uki

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))

IMAGE = os.path.join(ROOT, "cofferdam.efi")
# PID 1's first line: the tables were read before that.
STARTED = "mount:"


def boot(image, folder, *arguments):
    """The console of a machine up to PID 1's first line."""
    with open(image, "rb") as file:
        data = file.read()
    for name, section in (("linux", ".linux"), ("initrd", ".initrd")):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(uki.section(data, section))
    command_line = uki.section(data, ".cmdline").rstrip(b"\0").decode()
    return guest.console(folder, "2G", command_line, arguments, STARTED)


class Kernel(unittest.TestCase):
    def test_aml_of_the_host_does_not_reach_ram(self):
        with tempfile.TemporaryDirectory(prefix="cofferdam-kernel-") as folder:
            table = os.path.join(folder, "badaml")
            subprocess.run(
                ["iasl", "-p", table, os.path.join(HERE, "badaml.asl")],
                stdout=subprocess.DEVNULL,
                check=True,
            )
            console = boot(IMAGE, folder, "-acpitable", f"file={table}.aml")
        self.assertIn("AML 1", console, "the attack did not run")
        self.assertNotIn("AML 2", console, "AML wrote to RAM")
        self.assertIn("AML tried to access RAM at 0x3f000000; refused", console)
        self.assertIn(STARTED, console, "the boot did not go on")


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        IMAGE = sys.argv.pop(1)
    unittest.main()
