#!/usr/bin/python3
"""Images of private registries in a booted appliance: basic and bearer authentication, wrong
credentials, none, and an image that is not there. The registries are Debian's docker-registry.
"""

import json
import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from harness import HOST_FROM_GUEST, REPOSITORY, ROOT, World, free_port, wait_for, workload_files
from registries import PASSWORD, USER, PrivateRegistries

IMAGE = os.environ.get("COFFERDAM_IMAGE", os.path.join(ROOT, "cofferdam-simulator.efi"))
TOOLS = os.environ.get("COFFERDAM_TOOLS", os.path.join(ROOT, "target", "debug"))
MISSING = "sha256:" + "1" * 64
# A pull that failed is tried again after a second, two, four, up to a minute.
PULL_SECONDS = 150


class Imported(unittest.TestCase):
    """`coffer import` against a real registry."""

    def test_a_tag_becomes_the_digest_that_it_leads_to(self):
        with (
            tempfile.TemporaryDirectory(prefix="cofferdam-import-") as folder,
            World(folder, TOOLS) as world,
        ):
            world.start_services()
            digest = world.push_image("team/app", workload_files(), {"Entrypoint": ["/probe"]})
            digest = digest.split("@")[1]
            app, compose = f"127.0.0.1:{world.registry_port}/team/app", world.path("compose.yaml")
            with open(compose, "w", encoding="utf-8") as file:
                file.write(
                    f"services:\n  web: {{image: '{app}'}}\n  other: {{image: '{app}:none'}}\n"
                )
            declaration = world.path("imported.yaml")
            words = ["import", REPOSITORY, compose, "--file", declaration, "--json"]
            code, out, err = world.coffer(*words, "--registry-ca", world.ca)
            self.assertEqual(code, 2, err)
            said = json.loads(out)
            self.assertEqual(len(said["decide"]), 1, said)
            self.assertIn("the registry has no such manifest", said["decide"][0]["what"])
            with open(declaration, encoding="utf-8") as file:
                text = file.read()
            self.assertIn(f"{app}@{digest}", text)
            # Without trust in the registry there is no digest, and nothing weaker instead of it.
            words[4] = world.path("untrusted.yaml")
            code, out, _ = world.coffer(*words)
            self.assertEqual((code, len(json.loads(out)["decide"])), (2, 2), out)


class PrivateImages(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = cls.enterClassContext(tempfile.TemporaryDirectory(prefix="cofferdam-registries-"))
        world = cls.world = cls.enterClassContext(World(folder, TOOLS))
        world.start_services()
        private = cls.enterClassContext(PrivateRegistries(world, HOST_FROM_GUEST))
        cls.port = free_port()
        services = {}
        for name in ("basic", "bearer", "closed"):
            config = {"Entrypoint": ["/probe"], "Labels": {"for": name}}
            digest = world.push_image("team/app", workload_files(), config).split("@")[1]
            services[name] = f"{HOST_FROM_GUEST}:{getattr(private, name)}/team/app@{digest}"
        services["missing"] = f"{HOST_FROM_GUEST}:{private.basic}/team/app@{MISSING}"
        # The image of `basic`, named at a registry that would not let it be pulled.
        services["sharing"] = services["basic"].replace(str(private.basic), str(private.closed))
        declaration = cls.declaration(private, services)
        appliance = world.boot("appliance", IMAGE, declaration, world.commit(declaration), cls.port)
        world.wait_console("appliance", appliance, "launched", 180)
        endpoint = ["--endpoint", f"127.0.0.1:{cls.port}"]
        cls.options = [*endpoint, *world.trust_options(IMAGE), *world.github_options()]
        status = ["status", REPOSITORY, *cls.options]
        wait_for("the first status", 90, lambda: world.coffer(*status)[0] == 0, 1)

    @classmethod
    def declaration(cls, private, services):
        with open(cls.world.ca, encoding="utf-8") as file:
            ca = "".join(f"      {line}" for line in file)
        entries = ""
        for name in ("basic", "bearer", "closed", "tokens"):
            entries += f"  - host: {HOST_FROM_GUEST}:{getattr(private, name)}\n    ca: |\n{ca}"
            if name in ("basic", "bearer"):
                entries += (
                    f"    username: {USER}\n    password: secret://registry/{name}/password\n"
                )
        lines = "".join(
            f'  {name}:\n    image: {image}\n    user: "1000:1000"\n'
            for name, image in services.items()
        )
        plain = cls.world.declaration(cls.port, lines)
        return plain.replace("services:\n", f"{entries}services:\n", 1)

    def service(self, name):
        code, out, err = self.world.coffer("status", REPOSITORY, *self.options, "--json")
        self.assertEqual(code, 0, err)
        return next(entry for entry in json.loads(out)["services"] if entry["name"] == name)

    def wait(self, name, what):
        return wait_for(
            f"{name}: what it waits for", PULL_SECONDS, lambda: what(self.service(name)), 1
        )

    def says(self, name, text):
        self.wait(name, lambda service: text in (service.get("detail") or ""))

    def put(self, name, value):
        code, out, err = self.world.coffer(
            "secret", "put", REPOSITORY, f"registry/{name}/password", *self.options, stdin=value
        )
        self.assertEqual(code, 0, out + err)

    def test_1_a_password_that_is_not_there_is_waited_for(self):
        for name in ("basic", "bearer", "missing"):
            kind = "bearer" if name == "bearer" else "basic"
            wanted = [f"secret://registry/{kind}/password"]
            self.wait(name, lambda service, wanted=wanted: service.get("missing") == wanted)

    def test_1_one_that_shares_an_image_waits_for_who_pulls_it(self):
        self.says("sharing", "the image that basic pulls is not there yet")
        self.assertEqual(self.service("sharing")["state"], "waiting")

    def test_2_without_credentials_the_image_is_said_to_be_private(self):
        self.says("closed", "does not let the image be pulled anonymously")

    def test_3_wrong_credentials_are_said_to_be_wrong(self):
        for name in ("basic", "bearer"):
            self.put(name, "another password")
        for name in ("basic", "bearer"):
            self.says(name, "refuses the user name or the password")

    def test_4_the_right_ones_serve_and_a_missing_image_is_said_to_be_missing(self):
        for name in ("basic", "bearer"):
            self.put(name, PASSWORD)
        for name in ("basic", "bearer"):
            self.wait(name, lambda service: service["state"] == "running")
        self.wait("sharing", lambda service: service["state"] == "running")
        self.says("missing", "has no such manifest")

    def test_5_no_password_is_on_the_console_or_in_a_log(self):
        console = self.world.console("appliance")
        for name in ("basic", "bearer"):
            console += self.world.coffer_ok("logs", REPOSITORY, name, *self.options)
        self.assertNotIn(PASSWORD, console)
        self.assertNotIn("another password", console)


if __name__ == "__main__":
    unittest.main(verbosity=2)
