#!/usr/bin/python3
"""What a machine says when something is changed, and what `coffer measure --explain` makes of it:
one real boot per row.

Each boot changes one thing of one image or of how it is started. The firmware, the TPM and the boot
stub measure it; the explanation has to name what was changed, or to say that nothing known explains
it, and is never certain of anything else. The TDX device is SIMULATED. Two machines run at a time;
the processor is emulated, so it takes a few minutes.
"""

import concurrent.futures
import http.client
import json
import os
import ssl
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import uki
from harness import ROOT, World, free_port, wait_for
from process import Failed, run

IMAGE = os.environ.get("COFFERDAM_IMAGE", os.path.join(ROOT, "cofferdam-simulator.efi"))
TOOLS = os.environ.get("COFFERDAM_TOOLS", os.path.join(ROOT, "target", "debug"))
# Machines at a time, of one processor each.
MACHINES = int(os.environ.get("COFFERDAM_MACHINES", "2"))
SERVICES = "  web:\n    image: 10.0.2.2:1/none@sha256:" + "0" * 64 + "\n"
WORDS = b"other.word=1"
# Stands for the image's own command line, without which no simulated device starts.
OWN = "OWN "
EXTRA = "EFI/BOOT/BOOTX64.EFI.extra.d/"


def command_line(image, more):
    return uki.variant(
        image, {".cmdline": uki.section(image, ".cmdline").rstrip(b"\0\n") + b" " + more}
    )


def initrd(image):
    own = uki.section(image, ".initrd")
    return uki.variant(
        image,
        {".initrd": own + bytes(-len(own) % 4) + uki.file_archive("other", b"one more file\n")},
    )


def kernel_checksum(image):
    return uki.variant(image, {".linux": uki.checksum(uki.section(image, ".linux"), 0x01020304)})


def moved(image):
    """The same sections, .osrel and .uname behind all others in memory."""
    return uki.variant(image, {name: uki.section(image, name) for name in (".osrel", ".uname")})


def addon(image, words):
    """An addon: a PE file of the image's own stub with a command line and no kernel."""
    own = [
        entry
        for entry in uki.table(image)
        if entry.name in (".text", ".rodata", ".data", ".sbat", ".sdmagic", ".reloc")
    ]
    return uki.rebuilt(image, [*own, uki.Entry(".cmdline", words)])


# What is changed; how the image is made; how it is started ({file beside it: contents}, options of
# ci/boot); the causes that the explanation has to name, most telling first; those that it has to
# name with the changed file at hand (None: not asked).
CASES = [
    ("nothing", lambda image: image, {}, [], [], None),
    (
        "the command line",
        lambda image: command_line(image, WORDS),
        {},
        [],
        ["command_line"],
        ["command_line"],
    ),
    ("the initrd", initrd, {}, [], ["initrd"], ["initrd"]),
    (
        ".osrel removed",
        lambda image: uki.removed(image, ".osrel"),
        {},
        [],
        ["section_removed"],
        ["section_removed"],
    ),
    (
        ".ucode added",
        lambda image: uki.added(
            image, ".ucode", uki.file_archive("kernel/x86/none", b"no microcode")
        ),
        {},
        [],
        ["section_added"],
        ["section_added"],
    ),
    (
        ".pcrpkey added",
        lambda image: uki.added(image, ".pcrpkey", b"a public key"),
        {},
        [],
        ["section_added"],
        ["section_added"],
    ),
    (
        ".pcrsig added",
        lambda image: uki.added(image, ".pcrsig", b"{}"),
        {},
        [],
        ["tampered"],
        ["section_added"],
    ),
    (
        "a second .cmdline",
        lambda image: uki.added(image, ".cmdline", WORDS),
        {},
        [],
        ["tampered"],
        ["section_added"],
    ),
    ("sections moved", moved, {}, [], ["tampered"], ["image_layout"]),
    ("an overlay", lambda image: image + b"appended.", {}, [], ["overlay"], ["overlay"]),
    ("the image's PE checksum", lambda image: uki.checksum(image, 0x01020304), {}, [], [], None),
    ("the kernel's PE checksum", kernel_checksum, {}, [], ["checksum"], ["checksum"]),
    ("a letter of the stub", uki.stub_byte, {}, [], ["tampered"], ["stub_code"]),
    ("-kernel", lambda image: image, {}, ["--kernel"], ["kernel_boot"], None),
    (
        "-kernel and -append",
        lambda image: image,
        {},
        ["--kernel", "--append", OWN + WORDS.decode()],
        ["kernel_boot", "loader_command_line"],
        None,
    ),
    ("an addon", lambda image: image, {EXTRA + "words.addon.efi": WORDS}, [], ["addon"], None),
    (
        "an addon for every image",
        lambda image: image,
        {"loader/addons/words.addon.efi": WORDS},
        [],
        ["addon"],
        None,
    ),
    (
        "a credential",
        lambda image: image,
        {EXTRA + "word.cred": b"a credential"},
        [],
        ["initrd"],
        None,
    ),
]


class Explained(unittest.TestCase):
    """One boot per case, two at a time; then one test for each."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="cofferdam-explain-")
        cls.addClassCleanup(cls.folder.cleanup)
        cls.world = world = World(cls.folder.name, TOOLS)
        cls.addClassCleanup(world.stop)
        world.start_services()
        cls.image = uki.read(IMAGE)
        cls.references = world.references(IMAGE)
        cls.collateral = json.loads(
            run([world.tool("tdx-sim"), "collateral", "--platform", world.path("platform")])
        )
        chosen = os.environ.get("COFFERDAM_CASES")
        cls.cases = [case for case in CASES if not chosen or case[0] in chosen.split(",")]
        with concurrent.futures.ThreadPoolExecutor(MACHINES) as pool:
            cls.booted = dict(
                zip((case[0] for case in cls.cases), pool.map(cls.boot, range(len(cls.cases))))
            )

    @classmethod
    def boot(cls, number):
        """Boots a case; the path of its image and of its evidence, or why there is none."""
        world, (_, make, beside, options, _, _) = cls.world, cls.cases[number]
        own = uki.section(cls.image, ".cmdline").rstrip(b"\0\n").decode() + " "
        name, port, options = (
            f"case-{number}",
            free_port(),
            [option.replace(OWN, own) for option in options],
        )
        image, document = world.path(name + ".efi"), world.path(name + ".json")
        with open(image, "wb") as file:
            file.write(make(cls.image))
        for place, content in beside.items():
            path = world.path(f"{name}-{os.path.basename(place)}")
            with open(path, "wb") as file:
                file.write(addon(cls.image, content) if place.endswith(".addon.efi") else content)
            options += ["--beside", f"{place}={path}"]
        declaration = world.declaration(port, SERVICES)
        machine = world.boot(name, image, declaration, "0" * 40, port, "--cpus", "1", *options)
        try:
            world.wait_console(name, machine, "launched", 240)
            evidence = json.loads(wait_for("evidence", 120, lambda: fetch(port), 0.5))
            # A machine that has just started may not have fetched it yet.
            evidence["collateral"] = evidence.get("collateral") or cls.collateral
            with open(document, "w", encoding="utf-8") as file:
                json.dump(evidence, file)
            return image, document
        except Failed as failed:
            return failed
        finally:
            world.end(machine)

    def explained(self, name, *more):
        """What `coffer measure --explain` makes of a case's evidence: (exit code, explanation)."""
        booted = self.booted[name]
        if isinstance(booted, Failed):
            self.fail(str(booted))
        image, document = booted
        more = [image if word == "BOOTED" else word for word in more]
        code, out, err = self.world.coffer(
            "measure",
            IMAGE,
            "--boot",
            "simulator",
            "--mrtd",
            self.world.mrtd,
            "--explain",
            document,
            "--json",
            *more,
        )
        self.assertIn(code, (0, 3), out + err)
        return code, json.loads(out)["explanation"]

    def test_every_change_is_named(self):
        rows = []
        for name, _, _, _, wanted, with_file in self.cases:
            with self.subTest(name):
                code, explanation = self.explained(name, *self.root())
                rows.append((name, words(explanation)))
                self.assertEqual(reasons(explanation), wanted, json.dumps(explanation, indent=1))
                self.assertEqual((code, explanation["unexplained"]), (3 if wanted else 0, []))
                # RTMR1 as predicted proves image and stub; then what was added to the initrd is
                # certain. Nothing else is.
                certain = {
                    cause["reason"]
                    for cause in explanation["causes"]
                    if cause["certainty"] == "certain"
                }
                self.assertEqual(certain, set(wanted) if name == "a credential" else set())
                if with_file is not None:
                    code, explanation = self.explained(name, *self.root(), "--booted", "BOOTED")
                    rows.append(("  with the file", words(explanation)))
                    self.assertEqual(
                        reasons(explanation), with_file, json.dumps(explanation, indent=1)
                    )
                    self.assertEqual((code, explanation["unexplained"]), (3, []))
                    self.assertEqual(
                        {cause["certainty"] for cause in explanation["causes"]}, {"certain"}
                    )
        print("\n" + "\n".join(f"{made:28} -> {named}" for made, named in rows))

    def root(self):
        return ["--root", self.world.path("platform", "root.pem")]

    def test_nothing_is_certain_without_a_verified_chain(self):
        for name, *_ in self.cases:
            for more in ([], ["--booted", "BOOTED"]):
                _, explanation = self.explained(name, *more)
                self.assertNotIn(
                    "certain", [cause["certainty"] for cause in explanation["causes"]], name
                )

    def test_appraising_says_the_same(self):
        code, out, err = self.world.coffer(
            "appraise", self.booted[self.cases[-1][0]][1], *self.world.trust_in(self.references)
        )
        wanted = self.cases[-1][4]
        self.assertEqual(code, 3 if wanted else 0, out + err)

    def test_started_by_the_hypervisor_is_predicted_too(self):
        for name in ("-kernel", "nothing"):
            if name not in self.booted:
                self.skipTest("not among the cases that were asked for")
        code, explanation = self.explained("-kernel", "--boot", "simulator-kernel")
        self.assertEqual((code, explanation["causes"]), (0, []), json.dumps(explanation, indent=1))
        # And the way from a disk is no such start.
        document = self.booted["nothing"][1]
        code, out, err = self.world.coffer(
            "measure", IMAGE, "--boot", "simulator-kernel", "--explain", document, "--json"
        )
        self.assertEqual(code, 3, out + err)
        self.assertEqual(reasons(json.loads(out)["explanation"]), ["event_moved"])

    def test_an_addon_is_named(self):
        for name in ("an addon", "an addon for every image"):
            if name in self.booted:
                _, explanation = self.explained(name)
                sentence = explanation["causes"][0]["sentence"]
                self.assertIn("words.addon.efi", sentence)
                self.assertIn(WORDS.decode(), sentence)


def reasons(explanation):
    return [cause["reason"] for cause in explanation["causes"]]


def words(explanation):
    return (
        ", ".join(f"{cause['reason']} ({cause['certainty']})" for cause in explanation["causes"])
        or "as predicted"
    )


def fetch(port):
    """The appliance's evidence document; None while it does not answer."""
    context = ssl._create_unverified_context()  # the certificate is what the document is about
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context)
    try:
        connection.request("GET", "/.well-known/cofferdam/evidence")
        answer = connection.getresponse()
        body = answer.read(1 << 20)
        return body if answer.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


if __name__ == "__main__":
    unittest.main(verbosity=2)
