#!/usr/bin/python3
"""A state that key servers open: three servers, an appliance in QEMU, and one boot after the other.

Two of the servers are `coffer keyserve` on this machine, the third is the same program as a service
of another appliance, whose own state has the server's keys. The first boot makes the state with the
keys of all three. In the second one server is gone for good and the other appliance is without
power: a single server is not enough, so it waits until the other appliance is back. The third is
given a copy of the disk from before, and then the disk itself under a declaration of the host's
own.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from harness import (
    HOST_FROM_GUEST,
    REPOSITORY,
    ROOT,
    SEALED,
    World,
    free_port,
    wait_for,
)
from process import Failed, run

IMAGE = os.environ.get("COFFERDAM_IMAGE", os.path.join(ROOT, "cofferdam-simulator.efi"))
TOOLS = os.environ.get("COFFERDAM_TOOLS", os.path.join(ROOT, "target", "debug"))
SECRET = "secret://demo/web/value"
SERVICES = f"  none:\n    image: registry.invalid/none@sha256:{'0' * 64}\n"
# The appliance that has a key server for a service.
KEYS = "acme/keys"
PASSPHRASE = "correct horse battery staple"
UNWITNESSED = "{provider: operator, rollback: warn}"
KEYSERVE = """  keyserve:
    image: {image}
    command: {command}
    user: "1000:1000"
    restart: always
    ports: [{{target: 7443, published: 7443, app_protocol: tcp, tls: passthrough, auth: none}}]
    volumes: ["keys:/keys"]
    secrets: [secret://acme/keyserve/key]
    configs: [image, platform, root]
configs:
{configs}"""


def coffer_files(coffer):
    """`coffer` and what it is linked with, for an image."""
    with tempfile.TemporaryDirectory() as folder:
        small = os.path.join(folder, "coffer")
        run(["strip", "-o", small, coffer])
        with open(small, "rb") as file:
            # The volume is as the directory that it lies over.
            files = {"coffer": (0o755, file.read()), "keys": (0o777, None)}
    listed = subprocess.run(["ldd", coffer], capture_output=True, text=True, check=False).stdout
    for path in sorted(set(re.findall(r"(/\S+) \(0x", listed))):
        with open(path, "rb") as file:
            files[path.lstrip("/")] = (0o755, file.read())
    return files


class KeyServers(unittest.TestCase):
    """The checks run in the order of their names: each boot goes on from the one before."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="cofferdam-keyserve-")
        cls.addClassCleanup(cls.folder.cleanup)
        cls.world = world = World(cls.folder.name, TOOLS)
        cls.addClassCleanup(world.stop)
        world.start_services()
        cls.port, cls.disk = free_port(), world.path("state.img")
        cls.trust = world.trust_options(IMAGE)
        cls.options = ["--endpoint", f"127.0.0.1:{cls.port}", *cls.trust, *world.github_options()]
        cls.at = {name: free_port() for name in ("near", "spare", "inside")}
        peers = [cls.peer(name) for name in cls.at]
        state = f"{{provider: peer, peers: [{', '.join(peers)}]}}"
        cls.declaration = world.declaration(cls.port, SERVICES, state=state)
        cls.commit = world.commit(cls.declaration)
        cls.declare_keys()

    @classmethod
    def peer(cls, name):
        """Makes a server's signing key; the server as a declaration names it."""
        key = cls.world.path(f"{name}.key")
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", key])
        with open(key + ".pub", encoding="utf-8") as file:
            public = file.read().strip()
        return f'{{url: "http://{HOST_FROM_GUEST}:{cls.at[name]}", key: "{public}"}}'

    @classmethod
    def declare_keys(cls):
        """The declaration of the appliance that has a server, with all that it decides by."""
        world = cls.world
        entry = {"Entrypoint": ["/coffer"], "WorkingDir": "/"}
        image = world.push_image("acme/coffer", coffer_files(world.tool("coffer")), entry)
        references = [path for path in cls.trust if path.endswith(".json")]
        files = dict(zip(("image", "platform"), references), root=world.path("platform/root.pem"))
        texts = {}
        for name, path in files.items():
            with open(path, encoding="utf-8") as file:
                texts[name] = file.read()
        configs = "".join(
            f"  {name}: {{content: {json.dumps(text.replace('$', '$$'))}}}\n"
            for name, text in texts.items()
        )
        digest = f"sha256:{hashlib.sha256(cls.declaration.encode()).hexdigest()}"
        command = ["keyserve", "--listen", "0.0.0.0:7443", "--data", "/keys/of"]
        command += ["--key", "/run/secrets/keyserve.key", "--add", f"{REPOSITORY}={digest}"]
        command += ["--reference", "/image", "--reference", "/platform", "--root", "/root"]
        services = KEYSERVE.format(image=image, command=json.dumps(command), configs=configs)
        cls.keys_port, volumes = free_port(), "{keys: {size: 64m}}"
        cls.keys = world.declaration(
            cls.keys_port, services, repository=KEYS, state=UNWITNESSED, volumes=volumes
        )
        cls.keys_commit = world.commit(cls.keys, repository=KEYS)
        cls.keys_options = ["--endpoint", f"127.0.0.1:{cls.keys_port}"]
        cls.keys_options += [*cls.trust, *world.github_options()]

    @classmethod
    def serve(cls, name):
        """Starts a key server on this machine."""
        world = cls.world
        data, key = world.path(name), world.path(f"{name}.key")
        words = ["keyserve", "--data", data, "--key", key, "--add", REPOSITORY]
        words += ["--listen", f"127.0.0.1:{cls.at[name]}", *cls.trust, *world.github_options()]
        server = world.start(f"keyserve-{name}", [world.tool("coffer"), *words])
        world.listening(f"keyserve-{name}", server, cls.at[name])
        return server

    def serve_inside(self, name, *verb):
        """Starts the appliance that has a key server, and opens its state."""
        world = self.world
        disk = ("--state", world.path("keys.img"), "--forward", f"{self.at['inside']}:7443")
        machine = world.boot(name, IMAGE, self.keys, self.keys_commit, self.keys_port, *disk)
        world.wait_console(name, machine, SEALED, 240)

        def waits():
            return world.coffer("seal", "status", KEYS, *self.keys_options)[0] == 5

        wait_for("the operators' interface", 60, waits, 1)
        world.coffer_ok(*verb, KEYS, *self.keys_options, stdin=PASSPHRASE)
        world.wait_console(name, machine, "launched", 180)
        return machine

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

    def serves(self):
        """The server in the other appliance has what it needs and says whom it serves."""

        shown = []

        def said():
            shown[:] = self.world.coffer("logs", KEYS, "keyserve", *self.keys_options)
            return "releases keys to 1 appliances" in shown[1]

        try:
            wait_for("the server in the appliance", 120, said, 1)
        except Failed as failed:
            raise Failed(f"{failed}: {shown}") from None

    def server_says(self, text):
        log = "keyserve-near"
        wait_for(f"the server says {text!r}", 90, lambda: text in self.world.console(log))

    def test_1_an_operator_makes_the_state_with_the_keys_of_all(self):
        cls, world = type(self), self.world
        self.serve("near")
        cls.spare = self.serve("spare")
        cls.inside = self.serve_inside("keys-first", "seal", "init")
        with open(world.path("inside.key"), encoding="utf-8") as file:
            put = ("secret", "put", KEYS, "secret://acme/keyserve/key", *self.keys_options)
            world.coffer_ok(*put, stdin=file.read())
        machine = self.boot("first", self.disk)
        self.serves()
        world.wait_console("first", machine, "an operator makes a state", 120)
        code, out, err = self.coffer("seal", "init", "--peer")
        self.assertEqual(code, 0, out + err)
        self.assertIn("cofferdam-recovery-1-", out)
        world.wait_console("first", machine, "launched", 120)
        put = ("secret", "put", REPOSITORY, SECRET, *self.options)
        world.coffer_ok(*put, stdin="kept by nobody but the vault")
        world.cut_power("first", machine)
        shutil.copyfile(self.disk, world.path("older.img"))

    def test_2_the_next_boot_waits_for_a_majority_and_opens_by_itself(self):
        world = self.world
        world.end(self.spare)
        world.cut_power("keys-first", self.inside)
        machine = self.boot("second", self.disk)
        world.wait_console("second", machine, "trying again", 90)
        self.waits_for("1 of 3")
        self.assertNotIn("launched", world.console("second"))
        # Its own state has the keys and the secret that it signs with; nobody is asked how new
        # that is.
        given = world.path("keys.yaml")
        with open(given, "w", encoding="utf-8") as file:
            file.write(self.keys)
        verb = ("unseal", "--without-witness", "--declaration", given)
        self.serve_inside("keys-second", *verb)
        self.assertIn("UNWITNESSED", world.console("keys-second"))
        self.assertNotIn("UNWITNESSED", world.console("keys-first"))
        world.wait_console("second", machine, "launched", 240)

        def listed():
            code, out, _ = self.coffer("secret", "list", "--json")
            return code == 0 and json.loads(out)["secrets"]

        held = wait_for("the operators' interface", 60, listed, 1)
        self.assertEqual([one["reference"] for one in held], [SECRET])
        world.cut_power("second", machine)

    def test_3_an_older_copy_and_another_declaration_get_nothing(self):
        world = self.world
        machine = self.boot("third", world.path("older.img"))
        self.waits_for("older")
        self.assertNotIn("launched", world.console("third"))
        world.cut_power("third", machine)
        others = self.declaration.replace("name: demo", "name: host")
        machine = self.boot("fourth", self.disk, others)
        self.server_says("declaration")
        world.wait_console("fourth", machine, "refused", 90)
        self.assertNotIn("launched", world.console("fourth"))
        world.cut_power("fourth", machine)


if __name__ == "__main__":
    unittest.main(verbosity=2)
