"""ci/acpi-tables: the real firmware on the real QEMU; what a machine's shape changes, and that nothing else does.

Run with `python3 ci/tests/test_acpi_tables.py`; about two minutes. Needs the package ovmf or ovmf-inteltdx.
"""

import os
import struct
import subprocess
import tempfile
import unittest

CI = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILT = os.path.join(os.path.dirname(CI), "build", "firmware", "OVMF.inteltdx.fd")
FIRMWARE = [path for path in (BUILT, "/usr/share/ovmf/OVMF.inteltdx.ms.fd", "/usr/share/ovmf/OVMF.fd") if os.path.exists(path)]


def take(folder, *arguments):
    """Runs the script; returns the files that it wrote, by name."""
    target = os.path.join(folder, "-".join(arguments).replace("--", "") or "plain")
    subprocess.run([os.path.join(CI, "acpi-tables"), "--firmware", FIRMWARE[0], *arguments, target],
                   check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300)
    files = {}
    for name in os.listdir(target):
        with open(os.path.join(target, name), "rb") as file:
            files[name] = file.read()
    return files


def tables(blob):
    """The tables in etc/acpi/tables, by signature."""
    found, at = {}, 0
    while blob[at:at + 4].strip(b"\0"):
        length, = struct.unpack_from("<I", blob, at + 4)
        found[blob[at:at + 4].decode()] = blob[at:at + length]
        at += length
    return found


def ram(e820):
    return sorted((start, length) for start, length, kind in struct.iter_unpack("<QQI", e820) if kind == 1)


@unittest.skipUnless(FIRMWARE, "no firmware that starts with -bios is installed")
class Shapes(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with tempfile.TemporaryDirectory() as folder:
            cls.plain = take(folder)
            cls.again = take(folder, "--memory", "2G", "--cpus", "2")
            cls.large = take(folder, "--memory", "4G")
            cls.unsplit = take(folder, "--memory", "2560M")
            cls.four = take(folder, "--cpus", "4")

    def changed(self, other):
        one, two = tables(self.plain["etc-acpi-tables"]), tables(other["etc-acpi-tables"])
        self.assertEqual(list(one), list(two))
        return {name for name in one if one[name] != two[name]}

    def test_the_same_machine_has_the_same_files(self):
        self.assertEqual(self.plain, self.again)
        self.assertEqual(list(tables(self.plain["etc-acpi-tables"])), ["FACS", "DSDT", "FACP", "APIC", "MCFG", "WAET", "RSDT"])

    def test_processors_are_in_the_dsdt_and_in_the_apic_table(self):
        # The tables behind the DSDT move, so the RSDT's checksum-less pointers and the loader's offsets change too.
        self.assertLessEqual({"DSDT", "APIC"}, self.changed(self.four))
        self.assertLessEqual(self.changed(self.four), {"DSDT", "APIC", "RSDT", "FACP"})
        self.assertNotEqual(self.plain["etc-table-loader"], self.four["etc-table-loader"])

    def test_memory_moves_the_hole_below_4_gib_and_nothing_else(self):
        self.assertEqual(self.changed(self.large), set(), "both have 2 GiB below it")
        self.assertEqual(self.changed(self.unsplit), {"DSDT"})
        for other in (self.large, self.unsplit):
            self.assertEqual(self.plain["etc-table-loader"], other["etc-table-loader"])

    def test_memory_lies_where_the_prediction_says(self):
        gib = 1 << 30
        self.assertEqual(ram(self.plain["etc-e820"]), [(0, 2 * gib)])
        self.assertEqual(ram(self.unsplit["etc-e820"]), [(0, 2560 << 20)])
        self.assertEqual(ram(self.large["etc-e820"]), [(0, 2 * gib), (4 * gib, 2 * gib)])

    def test_boot_variables_do_not_depend_on_the_shape(self):
        names = sorted(name for name in self.plain if name.startswith("Boot"))
        self.assertIn("BootOrder", names)
        for other in (self.large, self.unsplit, self.four):
            self.assertEqual({name: self.plain[name] for name in names}, {name: other[name] for name in names})


if __name__ == "__main__":
    unittest.main()
