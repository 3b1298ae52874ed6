#!/usr/bin/python3
"""Sealed volumes on a disk of a hostile host: ci/tests/test_volumes.py [IMAGE] (default:
cofferdam.efi)

Starts the image's kernel directly, with the program appliance/cofferd/examples/volume as its first
one: it makes and opens volumes as PID 1 of the appliance does, by the same library. Between two
starts the host does to the disks what a host can. No firmware and no appliance: about a minute.
"""

import hashlib
import hmac
import os
import re
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import guest
import uki

IMAGE = os.path.join(guest.ROOT, "cofferdam.efi")
MIB = 1 << 20
AEAD = "INTEGRITY AEAD ERROR"
# Where volumes lie, in MiB: the disk with two large ones, and one with two of the least length.
ONE, TEN = "1,1024,1", "1025,10240,2"
LEAST = 64
A, B = f"0,{LEAST},3", f"{LEAST},{LEAST},4"
FILLED = "8,5"
# A block's number, then where it is: `struct superblock` and `get_data_sector` of
# drivers/md/dm-integrity.c, for the length of our journal.
JOURNAL, RUN, TAG = 3960, 256, 32
FLAGS, VERSION, SECTIONS, SALT = 24, 8, 12, 48
# The most that a new volume of 10 GiB may write: its file system's 12 MiB twice over (once into the
# journal), descriptors of 80 groups, and what dm-integrity begins with.
MOST_WRITTEN = 64 * MIB


def place(block):
    """Where a block of a volume is in its region, and its tag; both in bytes."""
    sector = block * 8
    area, offset = sector >> 15, sector & 32767
    run = 8 + JOURNAL + (area << 15) + area * RUN
    return (run + RUN + offset) * 512, run * 512 + offset // 8 * TAG


def derived(byte, name, length):
    """One of the keys of a volume whose key is 32 times this byte, as a table has it."""
    key = hmac.digest(b"cofferdam/volume/v1", bytes([byte]) * 32, "sha256")
    return hmac.digest(key, name + b"\1", "sha256")[:length].hex()


class Volumes(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="cofferdam-volumes-")
        cls.addClassCleanup(folder.cleanup)
        cls.folder = folder.name
        cls.machine = guest.Guest(uki.read(IMAGE), cls.folder)

    def path(self, name):
        return os.path.join(self.folder, name)

    def disk(self, name, size):
        with open(self.path(name), "wb") as file:
            file.truncate(size)

    def boot(self, words, *disks, kill=None):
        """The console of a machine that does these words, up to its end, or to its being killed
        when a line has `kill` in it.
        """
        return self.machine.boot([*words, "off"], [self.path(disk) for disk in disks], kill)

    def ok(self, console, word):
        """What the program said when it had done this word."""
        found = re.search(rf"volume: {re.escape(word)}: (ok|error:) ?(.*)", console)
        self.assertIsNotNone(found, f"{word} was not done:\n{console}")
        self.assertEqual(found[1], "ok", f"{word}: {found[2]}")
        return found[2]

    def refused(self, console, word):
        found = re.search(rf"volume: {re.escape(word)}: (ok|error:) ?(.*)", console)
        self.assertIsNotNone(found, f"{word} was not done:\n{console}")
        self.assertEqual(found[1], "error:", f"{word} was done: {found[2]}")
        return found[2]

    def test_a_volume_is_made_filled_and_there_again(self):
        self.disk("large", 12 << 30)
        made = [f"make,one,vda,{ONE}", "written,vda", f"make,ten,vda,{TEN}", "written,vda"]
        work = [
            "nodes",
            "held,one",
            f"fill,one,{FILLED}",
            f"fill,ten,{FILLED}",
            f"verify,one,{FILLED}",
        ]
        console = self.boot([*made, *work, "close,one", "close,ten"], "large")
        for word in (*made, *work, "close,one", "close,ten"):
            said = self.ok(console, word)
            if word.startswith("make"):
                print(f"{word}: {said}", file=sys.stderr)
                self.assertIn("0 entries", said)
        self.assertIn("busy", self.ok(console, "held,one"))
        nodes = self.ok(console, "nodes").rstrip("; ").split("; ")
        self.assertEqual(len(nodes), 7, nodes)
        for node in nodes:
            self.assertTrue(node.endswith(" 600 0:0"), node)
        # Everything that the kernel said is in the console.
        for byte in (1, 2):
            for name, length in ((b"blocks", 16), (b"journal mac", 32), (b"journal crypt", 32)):
                self.assertNotIn(derived(byte, name, length), console)
        before, after = (int(n) for n in re.findall(r"written,vda: ok (\d+)", console))
        print(f"10 GiB: {(after - before) / 2048:.0f} MiB written", file=sys.stderr)
        self.assertLess((after - before) * 512, MOST_WRITTEN)
        # The kernel never read what it had not written.
        self.assertNotIn(AEAD, console)

        again = [f"open,one,vda,{ONE}", f"open,ten,vda,{TEN}"]
        again += [f"verify,one,{FILLED}", f"verify,ten,{FILLED}", "close,one", "close,ten"]
        # Looks at blocks that were never written, too: after everything else.
        judged = [f"fsck,one,vda,{ONE}", f"fsck,ten,vda,{TEN}"]
        console = self.boot([*again, *judged], "large")
        for word in (*again, *judged):
            self.ok(console, word)
        self.assertNotIn(AEAD, console[: console.index("close,ten: ok")])

    def test_power_is_cut_while_a_volume_is_made_and_while_it_is_written(self):
        self.disk("cut", 2 * LEAST * MIB)
        make = f"make,a,vda,{A}"
        console = self.boot([make], "cut", kill="resizing filesystem")
        self.assertNotIn(f"{make}: ok", console)
        # Nobody was told that it is there: it is made again, over what there is of it.
        console = self.boot([make, "keep,a"], "cut", kill="keep,a: ok")
        self.ok(console, make)
        # What was written to the journals is brought to its place, and nothing is half there.
        words = [f"open,a,vda,{A}", "kept,a", f"fill,a,{FILLED}", f"verify,a,{FILLED}", "close,a"]
        console = self.boot([*words, f"fsck,a,vda,{A}"], "cut")
        for word in (*words, f"fsck,a,vda,{A}"):
            self.ok(console, word)

    def test_a_block_that_cannot_be_read_is_an_error_of_that_read_alone(self):
        self.disk("failing", 2 * LEAST * MIB)
        words = [f"make,a,vda,{A}", f"make,b,vda,{B}", f"fill,a,{FILLED}", f"fill,b,{FILLED}"]
        console = self.boot([*words, "where,a", "close,a", "close,b"], "failing")
        sector = place(int(self.ok(console, "where,a")) + 3)[0] // 512
        with open(self.path("errors"), "w", encoding="utf-8") as file:
            file.write(f'[inject-error]\nevent = "read_aio"\nsector = "{sector}"\n')
        disk = f"blkdebug:{self.path('errors')}:{self.path('failing')}"
        words = [f"open,a,vda,{A}", f"open,b,vda,{B}", f"verify,a,{FILLED}", f"verify,b,{FILLED}"]
        words += ["keep,a", "kept,a", "close,a", "close,b"]
        console = self.machine.boot([*words, "off"], [disk])
        self.assertIn("os error 5", self.refused(console, f"verify,a,{FILLED}"))
        for word in words:
            if word != f"verify,a,{FILLED}":
                self.ok(console, word)

    def test_what_a_host_does_to_the_disk_is_told_by_name(self):
        self.disk("whole", 2 * LEAST * MIB)
        words = [f"make,a,vda,{A}", f"make,b,vda,{B}", f"fill,a,{FILLED}", "where,a"]
        console = self.boot([*words, "close,a", "close,b"], "whole")
        for word in words:
            self.ok(console, word)
        first = int(self.ok(console, "where,a"))
        with open(self.path("whole"), "rb") as file:
            whole = file.read()

        def bits(at, mask):
            def change(data):
                data[at] ^= mask

            return change

        def fill(start, end, byte=0):
            def change(data):
                data[start:end] = bytes([byte]) * (end - start)

            return change

        def other_region(data):
            data[: LEAST * MIB] = data[LEAST * MIB :]

        def shorter(data):
            del data[LEAST * MIB // 2 :]

        def swap(data):
            for one, two, length in zip(place(first), place(first + 5), (4096, TAG), strict=True):
                data[one : one + length], data[two : two + length] = (
                    data[two : two + length],
                    data[one : one + length],
                )

        block, tag = place(first + 3)
        refused = {
            "the flag cleared": (bits(FLAGS, 0x10), "lacks the flag fix_hmac"),
            "the superblock zeroed": (
                fill(0, 4096),
                "its superblock is all zeros, and there was one",
            ),
            "other flags": (bits(FLAGS, 0x06), "has the flag recalculating, dirty_bitmap besides"),
            "no journal_mac": (bits(FLAGS, 0x01), "lacks the flag journal_mac"),
            "an older version": (bits(VERSION, 1), "has version 4 instead of 5"),
            "another geometry": (bits(SECTIONS, 1), "has another length of the journal"),
            "another salt": (bits(SALT, 1), "is not authentic"),
            "something else": (fill(0, 4096, 0xAA), "something else where its superblock was"),
            "another volume's region": (other_region, "is not authentic"),
            "a truncated disk": (shorter, "the disk is too short"),
            "a smaller disk than the volume": (lambda data: None, "the disk is too short"),
            "a volume that should be larger": (
                lambda data: None,
                "its superblock has another length",
            ),
            "a wrong key": (lambda data: None, "is not authentic"),
            "the file system's head": (bits(place(0)[0], 1), "its file system does not open"),
        }
        other = {
            "a wrong key": f"0,{LEAST},9",
            "a smaller disk than the volume": f"0,{2 * LEAST + 1},3",
            "a volume that should be larger": f"0,{LEAST + 1},3",
        }
        # Their volumes open, and the file system's own blocks are written; the read is an error.
        read = {
            "two blocks swapped": swap,
            "a block zeroed": fill(block, block + 4096),
            "a block and its tag zeroed": lambda data: (
                fill(block, block + 4096)(data),
                fill(tag, tag + TAG)(data),
            ),
            "a bit of a block": bits(block + 1000, 4),
            "a bit of a tag": bits(tag, 1),
        }
        changes = {name: change for name, (change, _) in refused.items()} | read
        words, disks, digests = [], [], {}
        for number, (name, change) in enumerate(changes.items()):
            data = bytearray(whole)
            change(data)
            disk = f"attack-{number}"
            with open(self.path(disk), "wb") as file:
                file.write(data)
            digests[name] = hashlib.sha256(data).hexdigest()
            device = f"vd{chr(ord('a') + number)}"
            where = other.get(name, f"0,{LEAST},3")
            words.append(f"open,v{number},{device},{where}")
            if name in read:
                words.append(f"verify,v{number},{FILLED}")
            disks.append(disk)
        console = self.boot(words, *disks)
        for number, name in enumerate(changes):
            with self.subTest(name):
                opened = next(word for word in words if word.startswith(f"open,v{number},"))
                if name in read:
                    self.ok(console, opened)
                    why = self.refused(console, f"verify,v{number},{FILLED}")
                    self.assertRegex(why, r"os error (5|84)\b")
                    continue
                self.assertIn(refused[name][1], self.refused(console, opened))
                with open(self.path(f"attack-{number}"), "rb") as file:
                    self.assertEqual(
                        hashlib.sha256(file.read()).hexdigest(), digests[name], "it was written to"
                    )

    def test_a_disk_that_vanishes_under_load_takes_its_own_volume_along_and_no_other(self):
        self.disk("gone", LEAST * MIB)
        self.disk("stays", LEAST * MIB)
        b = f"vdb,0,{LEAST},4"
        others = ["keep,b", "kept,b", f"verify,b,{FILLED}", "close,b"]
        words = [f"make,a,vda,{A}", f"make,b,{b}", f"fill,b,{FILLED}", "load,a", *others, "off"]
        disks = [self.path("gone"), self.path("stays")]
        console = self.machine.boot(words, disks, host=("load,a begins", 2, "drive_del d0"))
        for word in words[:-1]:
            self.ok(console, word)
        count, why = re.fullmatch(r"(\d+) files, then (.*)", self.ok(console, "load,a")).groups()
        self.assertRegex(why, r"os error (5|30)\b")
        self.assertGreater(int(count), 0)
        # It is there again: with every file whose flush was acknowledged.
        words = [f"open,a,vda,{A}", f"loaded,a,{count}", "close,a", f"fsck,a,vda,{A}"]
        console = self.boot([*words, f"open,b,{b}", f"verify,b,{FILLED}", "kept,b"], *disks)
        for word in (*words, f"open,b,{b}", f"verify,b,{FILLED}", "kept,b"):
            self.ok(console, word)

    def test_a_disk_that_is_read_only_is_not_opened(self):
        self.disk("fixed", LEAST * MIB)
        self.ok(self.boot([f"make,a,vda,{A}", "close,a"], "fixed"), f"make,a,vda,{A}")
        console = self.machine.boot(
            [f"open,a,vda,{A}", "off"], [self.path("fixed")], drive=",readonly=on"
        )
        self.assertIn("does not open", self.refused(console, f"open,a,vda,{A}"))

    def test_an_older_block_with_its_tag_is_taken_and_without_it_is_an_error(self):
        """What docs/state.md says that remains."""
        self.disk("before", LEAST * MIB)
        words = [f"make,a,vda,{A}", "fill,a,8,5", "where,a", "close,a"]
        console = self.boot(words, "before")
        first = int(self.ok(console, "where,a"))
        with open(self.path("before"), "rb") as file:
            before = file.read()
        words = [f"open,a,vda,{A}", "overwrite,a,8,6", "where,a", "verify,a,8,6", "close,a"]
        console = self.boot(words, "before")
        for word in words:
            self.ok(console, word)
        self.assertEqual(int(self.ok(console, "where,a")), first)
        with open(self.path("before"), "rb") as file:
            after = file.read()
        block, tag = place(first + 3)
        self.assertNotEqual(before[block : block + 4096], after[block : block + 4096])
        for name, parts in (("both", ((block, 4096), (tag, TAG))), ("block", ((block, 4096),))):
            data = bytearray(after)
            for at, length in parts:
                data[at : at + length] = before[at : at + length]
            with open(self.path(name), "wb") as file:
                file.write(data)
        with open(self.path("all"), "wb") as file:
            file.write(before)
        opened = [f"open,v{at},vd{letter},{A}" for at, letter in enumerate("abc")]
        read = ["verify,v0,8,6", "verify,v1,8,6", "verify,v2,8,5"]
        console = self.boot([*opened, *read], "both", "block", "all")
        for word in opened:
            self.ok(console, word)
        self.assertIn("MiB 0 of the large file is another one", self.refused(console, read[0]))
        self.assertRegex(self.refused(console, read[1]), r"os error (5|84)\b")
        self.ok(console, read[2])

    def test_a_damaged_journal_takes_back_writes_and_makes_none_up(self):
        self.disk("journal", LEAST * MIB)
        words = [f"make,a,vda,{A}", f"fill,a,{FILLED}", "close,a"]
        console = self.boot(words, "journal")
        for word in words:
            self.ok(console, word)
        console = self.boot([f"open,a,vda,{A}", "keep,a"], "journal", kill="keep,a: ok")
        self.ok(console, "keep,a")
        with open(self.path("journal"), "rb") as file:
            data = file.read()
        start, end = 4096, 4096 + JOURNAL * 512
        altered = bytearray(data)
        # Content alone, and not what says in each sector that it belongs to a commit.
        for at in range(start, end, 512):
            altered[at] ^= 1
        taken = bytearray(data)
        taken[start:end] = bytes([0xAA]) * (end - start)
        for name, content in (("altered", altered), ("taken", taken)):
            with open(self.path(name), "wb") as file:
                file.write(content)
        words = [f"open,{name},vd{name},{A}" for name in "ab"]
        words += ["kept,a", "kept,b", f"verify,a,{FILLED}", f"verify,b,{FILLED}"]
        console = self.boot(words, "altered", "taken")
        error = r"error: .*os error (5|84)\b"
        for name in "ab":
            if f"open,{name},vd{name},{A}: ok" not in console:
                opened = self.refused(console, f"open,{name},vd{name},{A}")
                self.assertIn("its file system does not open", opened)
                continue
            # As the kernel had brought it to its place already, or not; and nothing else.
            self.assertRegex(console, rf"volume: kept,{name}: (ok|error: No such file|{error})")
            self.assertRegex(console, rf"volume: verify,{name},{FILLED}: (ok|{error})")


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        IMAGE = sys.argv.pop(1)
    unittest.main()
