"""ci/acpi-tables: the real firmware on the real QEMU; what a machine's shape changes, that nothing
else does, and that what is predicted from it is what such a firmware measures into a TPM.

Run with `python3 ci/tests/test_acpi_tables.py`; about a minute. Needs the package ovmf or
ovmf-inteltdx; the comparison with a TPM's log needs `target/debug/coffer` and firmware for all
machines, build/firmware/OVMF.fd or the one that is installed. Only edk2 since 2025-05 measures
SMBIOS tables (Debian's ovmf-generic of 2026): with older firmware the comparison is skipped.
`--write FILE` runs the comparison and writes tables and digests that were measured, for
appliance/measure/tests/data.
"""

import importlib.machinery
import importlib.util
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
import unittest

CI = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROOT = os.path.dirname(CI)
BUILT = os.path.join(ROOT, "build", "firmware", "OVMF.inteltdx.fd")
FIRMWARE = [
    path
    for path in (BUILT, "/usr/share/ovmf/OVMF.inteltdx.ms.fd", "/usr/share/ovmf/OVMF.fd")
    if os.path.exists(path)
]
# Builds for TDX alone have no driver for a TPM.
WITH_TPM = [
    path
    for path in (os.path.join(ROOT, "build", "firmware", "OVMF.fd"), "/usr/share/ovmf/OVMF.fd")
    if os.path.exists(path)
]
COFFER = os.path.join(
    os.environ.get("COFFERDAM_TOOLS", os.path.join(ROOT, "target", "debug")), "coffer"
)
# Memory below and above 2.75 GiB, one processor and more, both entry points of SMBIOS.
SHAPES = (
    ("--memory", "2G", "--cpus", "2"),
    ("--memory", "4G", "--cpus", "4"),
    ("--memory", "2560M", "--cpus", "1", "--machine", "pc-q35-9.0"),
)

# Where acpi-tables finds its own.
sys.path.insert(0, CI)
SPECIFICATION = importlib.util.spec_from_loader(
    "acpi_tables",
    importlib.machinery.SourceFileLoader("acpi_tables", os.path.join(CI, "acpi-tables")),
)
acpi_tables = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(acpi_tables)

# TCG PC Client Platform Firmware Profile: what begins a log, digests by algorithm, types of events.
LOG = b"Spec ID Event03\0"
SIZES = {0x04: 20, 0x0B: 32, 0x0C: 48, 0x0D: 64}
SHA384 = 0x0C
EV_SEPARATOR, EV_EFI_HANDOFF_TABLES = 0x4, 0x80000009


def take(folder, *arguments):
    """Runs the script; returns the files that it wrote, by name."""
    target = os.path.join(folder, "-".join(arguments).replace("--", "") or "plain")
    subprocess.run(
        [os.path.join(CI, "acpi-tables"), "--firmware", FIRMWARE[0], *arguments, target],
        check=True,
        capture_output=True,
        timeout=300,
    )
    files = {}
    for name in os.listdir(target):
        with open(os.path.join(target, name), "rb") as file:
            files[name] = file.read()
    return files


def tables(blob):
    """The tables in etc/acpi/tables, by signature."""
    found, at = {}, 0
    while blob[at : at + 4].strip(b"\0"):
        (length,) = struct.unpack_from("<I", blob, at + 4)
        found[blob[at : at + 4].decode()] = blob[at : at + length]
        at += length
    return found


def ram(e820):
    return sorted(
        (start, length) for start, length, kind in struct.iter_unpack("<QQI", e820) if kind == 1
    )


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
        self.assertEqual(
            list(tables(self.plain["etc-acpi-tables"])),
            ["FACS", "DSDT", "FACP", "APIC", "MCFG", "WAET", "RSDT"],
        )

    def test_processors_are_in_the_dsdt_and_in_the_apic_table(self):
        # The tables behind the DSDT move, so the RSDT's checksum-less pointers and the loader's
        # offsets change too.
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

    def test_smbios_tables_tell_memory_and_of_processors_only_their_number(self):
        if "smbios" not in self.plain:
            self.skipTest(f"{FIRMWARE[0]} measures no SMBIOS tables (edk2 before 2025-05)")
        plain, four = self.plain["smbios"], self.four["smbios"]
        self.assertEqual(len(plain), len(four))
        # Numbers of cores and threads: the firmware leaves them out when it measures.
        counts = range(socket_at(plain) + 0x23, socket_at(plain) + 0x26)
        self.assertLessEqual({at for at in range(len(plain)) if plain[at] != four[at]}, set(counts))
        self.assertNotEqual(plain, self.unsplit["smbios"])
        self.assertGreater(
            len(self.large["smbios"]),
            len(plain),
            "the memory above 4 GiB is a structure of its own",
        )

    def test_boot_variables_do_not_depend_on_the_shape(self):
        names = sorted(name for name in self.plain if name.startswith("Boot"))
        self.assertIn("BootOrder", names)
        for other in (self.large, self.unsplit, self.four):
            self.assertEqual(
                {name: self.plain[name] for name in names}, {name: other[name] for name in names}
            )


def tpm_log(memory):
    """The firmware's log in the machine's memory: register, type, digest of the SHA-384 bank."""
    found = []
    for at in memory.occurrences(LOG):
        # The first entry has the old shape: register 0, EV_NO_ACTION, 20 bytes of digest, a length.
        if struct.unpack_from("<II", memory, at - 32) != (0, 3):
            continue
        position, events = at + struct.unpack_from("<I", memory, at - 4)[0], []
        while True:
            register, kind, count = struct.unpack_from("<III", memory, position)
            if register > 23 or not 1 <= count <= len(SIZES):
                break
            position, digests = position + 12, {}
            for _ in range(count):
                (algorithm,) = struct.unpack_from("<H", memory, position)
                digests[algorithm] = memory[position + 2 : position + 2 + SIZES[algorithm]]
                position += 2 + SIZES[algorithm]
            position += 4 + struct.unpack_from("<I", memory, position)[0]
            events.append((register, kind, digests[SHA384].hex()))
        found.append(events)
    return max(found, key=len)


def measure(folder, *arguments):
    """Boots the firmware with a TPM; returns where its tables were written, and the TPM's log."""
    options = acpi_tables.parse(
        ["--firmware", WITH_TPM[0], *arguments, os.path.join(folder, "tables")]
    )
    run = os.path.join(folder, "run")
    state = os.path.join(run, "tpm")
    os.makedirs(state)
    subprocess.run(
        [
            "swtpm_setup",
            "--tpm2",
            "--tpmstate",
            state,
            "--pcr-banks",
            "sha256,sha384",
            "--overwrite",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    socket = os.path.join(run, "swtpm")
    with subprocess.Popen(
        [
            "swtpm",
            "socket",
            "--tpm2",
            "--tpmstate",
            "dir=" + state,
            "--ctrl",
            "type=unixio,path=" + socket,
            "--terminate",
        ],
        stderr=subprocess.DEVNULL,
    ) as tpm:
        try:
            deadline = time.monotonic() + 20
            while not os.path.exists(socket) and time.monotonic() < deadline:
                time.sleep(0.01)
            # The TPM is in the ACPI tables of this machine, too: they are taken from the same run.
            machine = acpi_tables.Machine(
                options,
                run,
                [
                    "-chardev",
                    "socket,id=tpm,path=" + socket,
                    "-tpmdev",
                    "emulator,id=tpm0,chardev=tpm",
                    "-device",
                    "tpm-crb,tpmdev=tpm0",
                ],
            )
            try:
                version, memory, content = acpi_tables.take(machine)
                log = tpm_log(memory)
            finally:
                machine.close()
        finally:
            tpm.kill()
    acpi_tables.write(options, version, content, quiet=True)
    return options, content, log


def socket_at(table):
    """Where the first structure of type 4, a processor, begins in a SMBIOS table."""
    at = 0
    while table[at] != 4:
        at = table.index(b"\0\0", at + table[at + 1]) + 2
    return at


def processor(table):
    """The processor's identification in a SMBIOS table."""
    at = socket_at(table)
    return table[at + 8 : at + 16].hex()


def predict(options, identification):
    done = subprocess.run(
        [
            COFFER,
            "measure",
            "--firmware",
            options.firmware,
            "--memory",
            f"{options.memory}M",
            "--cpus",
            str(options.cpus),
            "--acpi",
            options.folder,
            "--processor",
            identification,
            "--json",
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return json.loads(done.stdout)["platform"]["events"]


@unittest.skipUnless(
    WITH_TPM and os.path.exists(COFFER),
    f"needs {COFFER} and firmware for all machines (package ovmf or ovmf-generic)",
)
class Measured(unittest.TestCase):
    """The firmware for all machines measures the same things into a TPM's registers 1 and 7 as into
    RTMR0.
    """

    def compare(self, shape):
        with tempfile.TemporaryDirectory() as folder:
            options, content, log = measure(folder, *shape)
            table = content.get("smbios")
            if table is None:
                # Such firmware may measure no ACPI tables either, which nothing in its file tells.
                self.assertNotIn(EV_EFI_HANDOFF_TABLES, [kind for _, kind, _ in log])
                self.skipTest(
                    f"{WITH_TPM[0]} measures no SMBIOS tables (edk2 before 2025-05), and there is "
                    "no such event"
                )
            predicted = predict(options, processor(table))
        # What only a trust domain has in RTMR0; a TPM has the firmware's volumes in register 0 and
        # no list of memory.
        predicted = [
            event for event in predicted if event["cause"] not in ("td_hob", "configuration_volume")
        ]
        causes = [
            event["cause"] if isinstance(event["cause"], str) else next(iter(event["cause"]))
            for event in predicted
        ]
        for cause in ("acpi_loader", "acpi_rsdp", "acpi_tables", "smbios_tables"):
            self.assertEqual(causes.count(cause), 1, cause)
        measured = [(kind, digest) for register, kind, digest in log if register in (1, 7)]
        # A TPM's register 1 has a separator of its own when the firmware hands over.
        self.assertEqual(measured.pop()[0], EV_SEPARATOR)
        self.assertEqual(
            [event["digest"] for event in predicted], [digest for _, digest in measured]
        )
        (digest,) = (digest for kind, digest in measured if kind == EV_EFI_HANDOFF_TABLES)
        self.assertEqual(digest, predicted[causes.index("smbios_tables")]["digest"])
        # The firmware adds its own structure and another end to what QEMU made.
        qemu = content["etc/smbios/smbios-tables"][: -len("\x7f\x04hh\0\0")]
        self.assertEqual(table[: len(qemu)], qemu)
        self.assertEqual((table[len(qemu)], table[-6:]), (0, b"\x7f\x04\xff\xfe\0\0"))
        return {
            "memory_mib": options.memory,
            "cpus": options.cpus,
            "machine": options.machine,
            "processor": processor(table),
            "table": table.hex(),
            "measured": digest,
        }

    def test_every_event_is_as_predicted(self):
        for shape in SHAPES:
            with self.subTest(shape=shape):
                self.compare(shape)


def write_fixture(path):
    machines = [Measured().compare(shape) for shape in SHAPES]
    with open(path, "w", encoding="utf-8") as file:
        json.dump(
            {
                "about": "SMBIOS tables as firmware installed them, and the digest that it "
                "extended; ci/tests/test_acpi_tables.py --write",
                "firmware": "sha256:" + acpi_tables.digest(WITH_TPM[0]),
                "machines": machines,
            },
            file,
            indent=2,
        )
        file.write("\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write_fixture(sys.argv[2])
    else:
        unittest.main()
