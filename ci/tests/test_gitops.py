#!/usr/bin/python3
"""An appliance that follows its repository: what `coffer plan` said is what is measured, images may
lie on the sealed disk, GitHub may be away in the middle, and a power cut leaves the old or the new.

Two boots of the simulator image with one state disk; the checks run in the order of their names.
COFFERDAM_IMAGE and COFFERDAM_TOOLS name another image and other programs.
"""

import http.client
import json
import os
import ssl
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
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

STATE = OPERATOR.replace("}", ", images: 64m}")
IMAGE = os.environ.get("COFFERDAM_IMAGE", os.path.join(ROOT, "cofferdam-simulator.efi"))
TOOLS = os.environ.get("COFFERDAM_TOOLS", os.path.join(ROOT, "target", "debug"))
PASSPHRASE = "correct horse battery staple"
SERVICES = """  web:
    image: {image}
    environment: {{GREETING: hello first}}
    ports: [{{target: 8080, published: 443, auth: none}}]
    volumes: ["kept:/kept"]
  other:
    image: {image}
"""


class Gitops(unittest.TestCase):
    """From one signed commit to the next."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="cofferdam-gitops-")
        cls.addClassCleanup(cls.folder.cleanup)
        cls.world = world = World(cls.folder.name, TOOLS)
        cls.addClassCleanup(world.stop)
        world.start_services()
        config = {"Entrypoint": ["/probe"], "WorkingDir": "/"}
        cls.images = [
            world.push_image("test/one", workload_files(), config),
            world.push_image("test/two", {**workload_files(), "two": (0o644, b"two")}, config),
        ]
        cls.port, cls.disk = free_port(), world.path("state.img")
        services = SERVICES.format(image=cls.images[0])
        volumes = "{kept: {size: 64m}}"
        cls.declaration = world.declaration(cls.port, services, state=STATE, volumes=volumes)
        cls.declaration += f"signers:\n  - {world.operator()}\nfollow: {{interval: 10s}}\n"
        cls.first = world.commit(cls.declaration)
        cls.known = [*world.trust_options(IMAGE), *world.github_options()]
        cls.machine = cls.boot("first")
        cls.world.coffer_ok("seal", "init", REPOSITORY, *cls.options(cls.first), stdin=PASSPHRASE)
        world.wait_console("first", cls.machine, "launched", 240)
        cls.world.coffer_ok(
            "secret",
            "put",
            REPOSITORY,
            "cofferdam/github/token",
            *cls.options(cls.first),
            stdin=GITHUB_TOKEN,
        )
        wait_for("the release", 240, lambda: cls.verify()[0] == 0, 1)

    @classmethod
    def boot(cls, name):
        more = ("--state", cls.disk)
        machine = cls.world.boot(name, IMAGE, cls.declaration, cls.first, cls.port, *more)
        cls.world.wait_console(name, machine, SEALED, 240)
        status = ["seal", "status", REPOSITORY, *cls.options(cls.first)]
        wait_for("the operators' interface", 60, lambda: cls.world.coffer(*status)[0] == 5, 1)
        return machine

    @classmethod
    def options(cls, commit):
        return ["--endpoint", f"127.0.0.1:{cls.port}", "--commit", commit, *cls.known]

    @classmethod
    def verify(cls):
        """As somebody does who knows the repository alone."""
        return cls.world.coffer("verify", REPOSITORY, *cls.known, "--json")

    def ask(self, path):
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, context=context, timeout=60
        )
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def answers(self, greeting):
        def look():
            try:
                return greeting in self.ask("/")
            except (OSError, http.client.HTTPException):
                return False

        wait_for(greeting, 120, look, 1)

    def sign(self, *changes, amend=False):
        """A signer's commit on the branch that is checked out, with these texts for others."""
        declared = self.world.path("repos", *REPOSITORY.split("/"), "cofferdam.yaml")
        with open(declared, encoding="utf-8") as file:
            text = file.read()
        for old, new in changes:
            self.assertIn(old, text)
            text = text.replace(old, new, 1)
        with open(declared, "w", encoding="utf-8") as file:
            file.write(text)
        settings = ["-c", "gpg.format=ssh"]
        settings += ["-c", f"user.signingKey={self.world.path('operator.key.pub')}"]
        more = ["--amend"] if amend else []
        self.world.git(*settings, "commit", "-q", "-S", "-a", "-m", "Change", *more)
        return self.world.git("rev-parse", "HEAD"), declared

    def runs(self, name, commit):
        said = f"commit {commit[:12]} runs"
        wait_for(said, 240, lambda: said in self.world.console(name), 0.5)

    def test_1_what_was_planned_is_what_is_measured(self):
        self.assertEqual(self.ask("/volume/put?path=/kept/mine&text=stays"), "put\n")
        # On a branch that nobody follows; then it is pushed.
        self.world.git("checkout", "-q", "-b", "next")
        commit, declared = self.sign(
            (f"web:\n    image: {self.images[0]}", f"web:\n    image: {self.images[1]}"),
            ("hello first", "hello second"),
        )
        plan = self.world.coffer_ok(
            "plan", REPOSITORY, declared, "--commit", commit, *self.known, "--json"
        )
        plan = json.loads(plan)
        self.assertEqual(len(plan["rtmr3"]), 96)
        self.world.git("checkout", "-q", "main")
        self.world.git("merge", "-q", "--ff-only", "next")
        self.runs("first", commit)
        self.answers("hello second")
        self.assertEqual(self.ask("/volume/read?path=/kept/mine"), "stays")
        verified = wait_for("the release", 120, lambda: self.accepted(commit), 1)
        self.assertEqual(verified["quote"]["rtmr3"], plan["rtmr3"])
        history = self.world.coffer_ok("history", REPOSITORY, *self.known)
        self.assertIn(commit[:12], history)
        self.assertIn(self.first[:12], history)

    def accepted(self, commit):
        code, out, _ = self.verify()
        seen = json.loads(out) if code == 0 else None
        return seen if seen and commit in out else None

    def test_2_github_is_away_in_the_middle_and_nothing_is_lost(self):
        with open(self.world.path("faults.json"), "w", encoding="utf-8") as file:
            fault = {"method": "GET", "status": 502, "times": 2, "body": "<html>bad gateway"}
            paths = ["/git/commits/", "/git/trees/", "/contents/"]
            json.dump([{**fault, "path": path} for path in paths], file)
        commit, _ = self.sign(("hello second", "hello third"))
        self.runs("first", commit)
        away = [entry for entry in self.world.asked_github() if entry.get("status") == 502]
        self.assertGreaterEqual(len(away), 4, "of two questions at least, each asked in vain twice")
        self.answers("hello third")

    def test_3_a_branch_that_was_forced_back_changes_nothing(self):
        good = self.world.git("rev-parse", "main")
        forced, _ = self.sign(("hello third", "hello forced"), amend=True)
        refused = f"commit {forced[:12]} does not count"
        wait_for(refused, 60, lambda: refused in self.world.console("first"), 0.5)
        self.assertIn("hello third", self.ask("/"))
        self.world.git("reset", "-q", "--hard", good)

    def test_4_a_power_cut_leaves_the_old_or_the_new(self):
        commit, _ = self.sign(("hello third", "hello fourth"))
        begun = f"commit {commit[:12]}: ~web"
        wait_for(begun, 120, lambda: begun in self.world.console("first"), 0.05)
        self.world.cut_power("first", self.machine)
        machine = self.boot("second")
        self.world.coffer_ok("unseal", REPOSITORY, *self.options(self.first), stdin=PASSPHRASE)
        self.world.wait_console("second", machine, "launched", 240)
        # The disk's declaration runs, until the branch is looked at.
        self.runs("second", commit)
        self.answers("hello fourth")
        self.assertEqual(self.ask("/volume/read?path=/kept/mine"), "stays")
        wait_for("the release", 120, lambda: self.accepted(commit), 1)
        self.world.power_off("second", machine)


if __name__ == "__main__":
    unittest.main()
