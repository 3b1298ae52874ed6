#!/usr/bin/python3
"""State that survives: a disk that only an operator opens, over power cuts, with real boots.

Four boots of the simulator image with one disk. The first makes the state and its volumes and is
cut off. The second opens it and still has the secret, and what a service wrote into its volume. The
third is given a copy of the disk from before, which is refused until an operator accepts the loss.
The fourth is of another image, which needs a statement. The services' image is pulled once: from
the second boot on there is no registry.
"""

import base64
import hashlib
import http.client
import json
import os
import shutil
import socket
import ssl
import sys
import tempfile
import unittest

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import uki
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

STATE = OPERATOR.replace("}", ", images: 64m}")
IMAGE = os.environ.get("COFFERDAM_IMAGE", os.path.join(ROOT, "cofferdam-simulator.efi"))
TOOLS = os.environ.get("COFFERDAM_TOOLS", os.path.join(ROOT, "target", "debug"))
PASSPHRASE = "correct horse battery staple"
SECRET = "secret://demo/web/value"
TOKEN = "secret://cofferdam/github/token"
VALUE = "what survives a power cut and is long enough"
SERVICES = """  web:
    image: {image}
    environment: {{GREETING_SECRET: secret://demo/web/value}}
    ports: [{{target: 8080, published: 443, auth: none}}]
    volumes:
      - kept:/kept
      - {{type: volume, source: shared, target: /shared, read_only: true}}
      - {{type: volume, source: programs, target: /programs, exec: true}}
  other:
    image: {image}
    volumes: ["shared:/elsewhere"]
"""
# The last one is nobody's.
VOLUMES = "{kept: {size: 128m}, shared: {size: 64m}, programs: {size: 64m}, unused: {size: 64m}}"


class State(unittest.TestCase):
    """The checks run in the order of their names: each boot goes on from the one before."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="cofferdam-state-")
        cls.addClassCleanup(cls.folder.cleanup)
        cls.world = world = World(cls.folder.name, TOOLS)
        cls.addClassCleanup(world.stop)
        world.start_services()
        config = {"Entrypoint": ["/probe"], "WorkingDir": "/"}
        kept = {"kept": (0o751, None), "kept/of-the-image": (0o640, b"of the image")}
        image = world.push_image("test/probe", {**workload_files(), **kept}, config)
        cls.port, cls.disk = free_port(), world.path("state.img")
        services = SERVICES.format(image=image)
        declaration = world.declaration(cls.port, services, state=STATE, volumes=VOLUMES)
        cls.declaration = declaration + world.start_authority(cls.port)
        cls.commit = world.commit(cls.declaration)
        known = [*world.trust_options(IMAGE), *world.github_options()]
        cls.options = ["--endpoint", f"127.0.0.1:{cls.port}", *known]

    @classmethod
    def boot(cls, name, until, disk, image=IMAGE):
        more = ("--state", disk)
        machine = cls.world.boot(name, image, cls.declaration, cls.commit, cls.port, *more)
        cls.world.wait_console(name, machine, until, 240)
        return machine

    def coffer(self, *words, stdin=None):
        return self.world.coffer(*words, REPOSITORY, *self.options, stdin=stdin)

    def says(self, code, text, *words, stdin=None):
        """Runs `coffer`; its exit code and a part of what it prints are these."""
        got, out, err = self.coffer(*words, stdin=stdin)
        self.assertEqual(got, code, f"{words}: {out}\n{err}")
        self.assertIn(text, out + err)
        return out

    def put(self, name, value):
        self.world.coffer_ok("secret", "put", REPOSITORY, name, *self.options, stdin=value)

    def status(self):
        """What `coffer status` says, or None while it cannot."""
        code, out, _ = self.coffer("status", "--json")
        return json.loads(out) if code == 0 else None

    def runs(self):
        def running():
            status = self.status()
            return status and all(one["state"] == "running" for one in status["services"])

        wait_for("the services run", 120, running, 1)

    def ask(self, path):
        """What the service `web` answers."""
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, context=context, timeout=60
        )
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def ask_other(self, path):
        """What the service `other` answers, through `web`."""
        return self.ask(f"/dependency?host=other&ask={path}")

    def published(self):
        status = self.status()
        return status and status["publish"]["state"] == "published"

    def test_1_a_state_is_made_with_a_passphrase_and_a_recovery_key(self):
        machine = self.boot("first", SEALED, self.disk)
        wait_for("the operators' interface", 60, lambda: self.coffer("seal", "status")[0] == 5, 1)
        self.says(5, "blank", "seal", "status")
        self.says(5, "coffer", "status")
        self.says(5, "sealed", "secret", "list")
        out = self.says(0, "cofferdam-recovery-1-", "seal", "init", stdin=PASSPHRASE)
        type(self).recovery = out.strip().splitlines()[-1]
        self.world.wait_console("first", machine, "launched", 120)
        self.put(SECRET, VALUE)
        self.runs()
        self.volumes_are_new()
        self.the_image_is_nobodys_to_write()
        type(self).shown = self.browsers_accept_it()
        self.strangers_are_not_answered()
        self.world.cut_power("first", machine)
        self.assertIn(": to be pulled onto the disk", self.world.console("first"))
        self.world.end(self.world.registry_process)
        shutil.copyfile(self.disk, self.world.path("older.img"))

    def the_image_is_nobodys_to_write(self):
        """Root of a container writes, and nobody else sees that, nor a later boot."""
        self.assertEqual(self.ask("/volume/put?path=/written&text=by-web"), "put\n")
        self.assertEqual(self.ask("/volume/read?path=/written"), "by-web")
        self.assertNotIn("written", json.loads(self.ask_other("/volume/names?path=/")))

    def the_image_is_kept(self, name):
        """The services came up from what the disk has, as it was pulled."""
        console = self.world.console(name)
        self.assertIn(": kept on the disk", console)
        self.assertNotIn("to be pulled", console)
        for names in (self.ask("/volume/names?path=/"), self.ask_other("/volume/names?path=/")):
            self.assertNotIn("written", json.loads(names))

    def browsers_accept_it(self):
        """What clients that know nothing of attestation are shown by its name, and nobody else."""

        def valid():
            status = self.status()
            held = status and status.get("certificate")
            return held if held and held["state"] == "valid" else None

        held = wait_for("the certificate for browsers", 150, valid, 0.5)
        root, name = self.world.path("authority.pem"), "shop.example.test"
        context = ssl.create_default_context(cafile=root)
        address = ("127.0.0.1", self.port)
        with (
            socket.create_connection(address, timeout=60) as raw,
            context.wrap_socket(raw, server_hostname=name) as stream,
        ):
            shown = stream.getpeercert(binary_form=True)
        with (
            self.assertRaises(ssl.SSLCertVerificationError),
            socket.create_connection(address, timeout=60) as raw,
        ):
            context.wrap_socket(raw, server_hostname="other.example.test")
        url = f"https://{name}:{self.port}"
        command = ["curl", "-sS", "-i", "--cacert", root]
        command += ["--resolve", f"{name}:{self.port}:127.0.0.1"]
        evidence = run([*command, f"{url}/.well-known/cofferdam/evidence"])
        claims = json.loads(base64.b64decode(json.loads(evidence.splitlines()[-1])["claims"]))
        for answer in (evidence, run([*command, f"{url}/file?path=/probe"])):
            self.assertRegex(answer, "^HTTP/2 200")
            self.assertIn(f"cofferdam-attested-key: {claims['tls_key']}", answer)
        spki = x509.load_der_x509_certificate(shown).public_key()
        spki = spki.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.assertEqual(claims["certificate"]["key"], f"sha256:{hashlib.sha256(spki).hexdigest()}")
        self.assertIn(held["claim"]["account"], self.coffer("status")[1])
        return shown, held["claim"], held["expires_at"]

    def strangers_are_not_answered(self):
        """Nobody asks about the name any more: a challenge is refused, and coffer was always shown
        the attested key, or it would not have said anything.
        """
        context = ssl._create_unverified_context()
        context.set_alpn_protocols(["acme-tls/1"])
        with (
            self.assertRaises(ssl.SSLError),
            socket.create_connection(("127.0.0.1", self.port), timeout=60) as raw,
        ):
            context.wrap_socket(raw, server_hostname="shop.example.test")

    def volumes_are_new(self):
        """An empty volume has what the image has there; what is written is for whoever sees it."""
        self.assertEqual(json.loads(self.ask("/volume/names?path=/kept")), ["of-the-image"])
        self.assertEqual(json.loads(self.ask("/volume/names?path=/shared")), [])
        size, owner, group, mode, _ = json.loads(self.ask("/file?path=/kept/of-the-image"))
        self.assertEqual((size, owner, group, mode), (12, 0, 0, 0o640))
        self.assertEqual(self.ask("/volume/put?path=/kept/of-the-image&text=mine"), "put\n")
        self.assertEqual(self.ask(f"/volume/put?path=/kept/put&text={'x' * 3000}"), "put\n")
        for number in range(20):
            answer = self.ask(f"/volume/append?path=/kept/lines&text=line-{number}")
            self.assertEqual(answer, "appended\n")
        self.assertEqual(self.ask_other("/volume/names?path=/kept"), '["of-the-image"]\n')
        self.assertIn("EROFS", self.ask("/volume/put?path=/shared/a&text=x"))
        self.assertEqual(self.ask_other("/volume/put?path=/elsewhere/from-other"), "put\n")
        self.assertEqual(json.loads(self.ask("/volume/names?path=/shared")), ["from-other"])
        attempts = json.loads(self.ask("/volume/attempts?path=/kept"))
        self.assertEqual(attempts.pop("copy"), "ok")
        self.assertNotIn("ok", attempts.values(), attempts)
        self.assertEqual(attempts["execute"], "EACCES")
        attempts = json.loads(self.ask("/volume/attempts?path=/programs"))
        self.assertEqual(attempts.pop("execute"), "ok")
        self.assertEqual([name for name, was in attempts.items() if was == "ok"], ["copy"])

    def volumes_are_kept(self):
        """What was acknowledged before the power cut, and nothing of the image's once more."""
        self.assertEqual(self.ask("/volume/read?path=/kept/of-the-image"), "mine")
        self.assertEqual(self.ask("/volume/read?path=/kept/put"), "x" * 3000)
        lines = "".join(f"line-{number}\n" for number in range(20))
        self.assertEqual(self.ask("/volume/read?path=/kept/lines"), lines)
        # The program was not flushed: it may be there or not.
        names = set(json.loads(self.ask("/volume/names?path=/kept"))) - {"program"}
        self.assertEqual(names, {"lines", "of-the-image", "put"})
        self.assertEqual(self.ask_other("/volume/names?path=/kept"), '["of-the-image"]\n')

    def test_2_another_boot_has_it_again_and_only_with_the_passphrase(self):
        machine = self.boot("second", SEALED, self.disk)
        wait_for("the operators' interface", 60, lambda: self.coffer("seal", "status")[0] == 5, 1)
        self.says(5, "sealed", "seal", "status")
        self.says(4, "passphrase", "unseal", stdin="incorrect horse battery")
        self.says(0, "open", "unseal", stdin=PASSPHRASE)
        self.world.wait_console("second", machine, "launched", 120)
        # Nobody has put it again.
        self.runs()
        self.volumes_are_kept()
        self.the_image_is_kept("second")
        # The same certificate, for the same key and account: nothing was ordered.
        self.assertEqual(self.browsers_accept_it(), self.shown)
        self.assertIn(SECRET, self.coffer("secret", "list")[1])
        self.says(0, "open", "seal", "status")
        self.put(TOKEN, GITHUB_TOKEN)
        wait_for("the release attestation", 120, self.published, 1)
        wait_for("the anchor of this boot", 60, lambda: "state-0000001" in self.tags(), 1)
        self.says(0, "the releases know epoch", "seal", "status")
        self.verified(0, "state_anchors")
        claim = self.shown[1]
        self.verified(0, f"browsers: key {claim['key']}, account {claim['account']}")
        wait_for("the vault has heard of it", 30, lambda: self.heard("second"), 1)
        self.world.cut_power("second", machine)

    def verified(self, code, text):
        """What `coffer verify` says, which asks no appliance."""
        got, out, err = self.world.coffer("verify", REPOSITORY, *self.options[2:])
        self.assertEqual(got, code, f"{out}\n{err}")
        self.assertIn(text, out + err)

    def heard(self, name):
        """The number counts when the vault has taken it down."""
        return "the anchor state-0000001 is published" in self.world.console(name)

    def tags(self):
        """The releases by their tags."""
        releases = self.world.api("GET", f"/repos/{REPOSITORY}/releases?per_page=100")
        return {entry["tag_name"]: entry["id"] for entry in releases}

    def forget(self, beginning):
        """Deletes releases, as a thief of the token would."""
        for tag, number in self.tags().items():
            if tag.startswith(beginning):
                self.world.api("DELETE", f"/repos/{REPOSITORY}/releases/{number}")

    def test_3_an_older_copy_of_the_disk_is_noticed_and_left_as_it_is(self):
        older = self.world.path("older.img")
        machine = self.boot("third", SEALED, older)
        wait_for("the operators' interface", 60, lambda: self.coffer("seal", "status")[0] == 5, 1)
        self.says(3, "older", "unseal", stdin=PASSPHRASE)
        self.says(5, "sealed", "seal", "status")
        self.assertNotIn("launched", self.world.console("third"))
        self.says(3, "older", "unseal", "--recovery", stdin=self.recovery)
        # The attestations are gone: the anchor of the second boot knows it as well.
        self.forget("attest-")
        self.says(3, "older", "unseal", stdin=PASSPHRASE)
        self.says(7, "requires a witness", "unseal", "--without-witness", stdin=PASSPHRASE)
        self.accept_the_loss(machine)
        self.world.cut_power("third", machine)
        type(self).disk = older

    def accept_the_loss(self, machine):
        """The older copy goes on as the state, and everybody is told."""
        self.says(0, "open", "unseal", "--accept-loss", stdin=PASSPHRASE)
        self.world.wait_console("third", machine, "launched", 120)
        self.assertIn("the loss of the state", self.world.console("third"))
        self.runs()
        self.volumes_are_kept()
        listed = self.coffer("secret", "list")[1]
        self.assertIn(SECRET, listed)
        self.assertNotIn(TOKEN, listed)
        self.put(TOKEN, GITHUB_TOKEN)
        wait_for("the release attestation", 120, self.published, 1)
        wait_for("the anchor of this boot", 60, lambda: "state-0000002" in self.tags(), 1)
        self.verified(0, "the loss of the state of epoch")

    def test_4_the_disk_holds_nothing_that_can_be_read(self):
        texts = (VALUE, PASSPHRASE, GITHUB_TOKEN, SECRET, self.recovery)
        secrets = [text.encode() for text in texts]
        for path in (self.world.path("state.img"), self.disk):
            with open(path, "rb") as file:
                while block := file.read(16 << 20):
                    for secret in secrets:
                        self.assertNotIn(secret, block)

    def test_5_another_image_opens_it_with_a_statement_only(self):
        with open(IMAGE, "rb") as file:
            image = file.read()
        line = uki.section(image, ".cmdline").rstrip(b"\0\n")
        following = self.world.path("next.efi")
        with open(following, "wb") as file:
            file.write(uki.variant(image, {".cmdline": line + b" cofferdam.next=1"}))
        self.options = [*self.options, "--reference", self.world.references(following)[0]]
        machine = self.boot("next", SEALED, self.disk, following)
        wait_for("the operators' interface", 60, lambda: self.coffer("seal", "status")[0] == 5, 1)
        self.says(5, "a statement only", "seal", "status")
        self.says(5, "is not this one's", "unseal", stdin=PASSPHRASE)
        statement = self.world.path("upgrade.json")
        self.says(0, "version 2", "seal", "allow-upgrade", "-o", statement)
        self.says(0, "open", "unseal", "--upgrade", statement, stdin=PASSPHRASE)
        self.world.wait_console("next", machine, "launched", 120)
        self.says(0, "lineage 2", "seal", "status")
        self.runs()
        self.the_image_is_kept("next")
        self.assertIn(SECRET, self.coffer("secret", "list")[1])
        wait_for("the anchor of this boot", 120, lambda: "state-0000003" in self.tags(), 1)
        self.verified(0, "state_anchors")
        self.forget("state-0000002")
        self.verified(3, "state-0000002 of the state was published and is gone")
        self.says(3, "is gone", "seal", "status")
        self.world.cut_power("next", machine)


if __name__ == "__main__":
    unittest.main(verbosity=2)
