#!/usr/bin/python3
"""A state that a key server opens: `coffer keyserve` on this machine, an appliance in QEMU.

Three boots with one disk. The first makes the state with the server's key. The second opens it by
itself, but only once the server, which is away at first, is back. The third is given a copy of the
disk from before, and then the disk itself under a declaration of the host's own.
"""

import json
import os
import shutil
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from harness import HOST_FROM_GUEST, REPOSITORY, ROOT, World, free_port, wait_for
from process import run

IMAGE = os.environ.get("COFFERDAM_IMAGE", os.path.join(ROOT, "cofferdam-simulator.efi"))
TOOLS = os.environ.get("COFFERDAM_TOOLS", os.path.join(ROOT, "target", "debug"))
SECRET = "secret://demo/web/value"
SERVICES = f"  none:\n    image: registry.invalid/none@sha256:{'0' * 64}\n"


class KeyServer(unittest.TestCase):
    """The checks run in the order of their names: each boot goes on from the one before."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="cofferdam-keyserve-")
        cls.addClassCleanup(cls.folder.cleanup)
        cls.world = world = World(cls.folder.name, TOOLS)
        cls.addClassCleanup(world.stop)
        world.start_services()
        cls.port, cls.disk, cls.at = free_port(), world.path("state.img"), free_port()
        cls.key = world.path("keyserve.key")
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "keys", "-f", cls.key])
        with open(cls.key + ".pub", encoding="utf-8") as file:
            public = file.read().strip()
        url = f"http://{HOST_FROM_GUEST}:{cls.at}"
        state = f'{{provider: peer, peers: [{{url: "{url}", key: "{public}"}}]}}'
        cls.declaration = world.declaration(cls.port, SERVICES, state=state)
        cls.commit = world.commit(cls.declaration)
        cls.trust = world.trust_options(IMAGE)
        cls.options = ["--endpoint", f"127.0.0.1:{cls.port}", *cls.trust, *world.github_options()]
        world.coffer_ok("keyserve", "add", REPOSITORY, "--data", world.path("keys"))

    @classmethod
    def serve(cls):
        """Starts the key server."""
        world = cls.world
        words = ["keyserve", "--data", world.path("keys"), "--key", cls.key]
        words += ["--listen", f"127.0.0.1:{cls.at}", *cls.trust, *world.github_options()]
        server = world.start("keyserve", [world.tool("coffer"), *words])
        world.listening("keyserve", server, cls.at)
        return server

    @classmethod
    def boot(cls, name, disk, declaration=None):
        declaration = declaration or cls.declaration
        more = ("--state", disk)
        machine = cls.world.boot(name, IMAGE, declaration, cls.commit, cls.port, *more)
        cls.world.wait_console(name, machine, "sealed: a key server", 240)
        return machine

    def coffer(self, *words, stdin=None):
        return self.world.coffer(*words, REPOSITORY, *self.options, stdin=stdin)

    def waits_for(self, text):
        """`coffer seal status` says that the state is closed, and why."""

        def said():
            code, out, err = self.coffer("seal", "status")
            return code == 5 and text in out + err

        wait_for(f"seal status says {text!r}", 90, said, 1)

    def server_says(self, text):
        wait_for(f"the server says {text!r}", 90, lambda: text in self.world.console("keyserve"))

    def test_1_an_operator_makes_the_state_with_the_servers_key(self):
        type(self).server = self.serve()
        machine = self.boot("first", self.disk)
        self.world.wait_console("first", machine, "an operator makes a state", 90)
        code, out, err = self.coffer("seal", "init", "--peer")
        self.assertEqual(code, 0, out + err)
        self.assertIn("cofferdam-recovery-1-", out)
        self.world.wait_console("first", machine, "launched", 120)
        put = ("secret", "put", REPOSITORY, SECRET, *self.options)
        self.world.coffer_ok(*put, stdin="kept by nobody but the vault")
        self.world.cut_power("first", machine)
        shutil.copyfile(self.disk, self.world.path("older.img"))

    def test_2_the_next_boot_waits_for_the_server_and_opens_by_itself(self):
        self.world.end(self.server)
        machine = self.boot("second", self.disk)
        self.world.wait_console("second", machine, "trying again", 90)
        self.waits_for("no key of it yet")
        self.assertNotIn("launched", self.world.console("second"))
        self.serve()
        self.world.wait_console("second", machine, "launched", 180)

        def listed():
            code, out, _ = self.coffer("secret", "list", "--json")
            return code == 0 and json.loads(out)["secrets"]

        held = wait_for("the operators' interface", 60, listed, 1)
        self.assertEqual([one["reference"] for one in held], [SECRET])
        self.world.cut_power("second", machine)

    def test_3_an_older_copy_and_another_declaration_get_nothing(self):
        machine = self.boot("third", self.world.path("older.img"))
        self.waits_for("older")
        self.assertNotIn("launched", self.world.console("third"))
        self.world.cut_power("third", machine)
        others = self.declaration.replace("name: demo", "name: host")
        machine = self.boot("fourth", self.disk, others)
        self.server_says("declaration")
        self.world.wait_console("fourth", machine, "refused", 90)
        self.assertNotIn("launched", self.world.console("fourth"))
        self.world.cut_power("fourth", machine)


if __name__ == "__main__":
    unittest.main(verbosity=2)
