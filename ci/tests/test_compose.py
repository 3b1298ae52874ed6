#!/usr/bin/python3
"""A compose file becomes a declaration that runs: what is in its mounted files, in an address with
a password and in Compose's own configs is what the services get, measured, redacted, read-only.
As root, both services are recorded before (`coffer up --learn`), and run under their own profiles.

One boot of the simulator image; the services are busybox.
"""

import hashlib
import http.client
import json
import os
import re
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from harness import REPOSITORY, ROOT, World, free_port, wait_for

IMAGE = os.environ.get("COFFERDAM_IMAGE", os.path.join(ROOT, "cofferdam-simulator.efi"))
TOOLS = os.environ.get("COFFERDAM_TOOLS", os.path.join(ROOT, "target", "debug"))
BUSYBOX = "/bin/busybox"
PASSWORD = "s3cr-et~pass.word"
# Making a container on this machine takes root.
LEARNS = os.geteuid() == 0
# Until it answers.
USE = """\
for _ in $(seq 300); do
    busybox wget -q -O - "http://127.0.0.1:$COFFER_PORT_8080/index.html" && exit
    sleep 0.1
done
exit 1
"""
PAGE = "<h1>proxied for $host by ${nobody}</h1>\n"
COMPOSE = """\
name: shop
services:
  web:
    image: IMAGE
    command: [busybox, httpd, -f, -p, "8080", -h, /www]
    ports: ["443:8080"]
    depends_on: [db]
    volumes: ["./www:/www:ro"]
  db:
    image: IMAGE
    command: sh /start.sh
    environment:
      POSTGRES_PASSWORD: ${DB_PASSWORD}
      DATABASE_URL: postgres://app:${DB_PASSWORD}@db/shop?x=$$y
    volumes: [./start.sh:/start.sh:ro]
    configs: [{source: dsn, target: /etc/db/dsn, mode: "0400"}]
configs:
  dsn: {content: "password=${DB_PASSWORD}"}
"""
START = """\
cd /
for it in "$POSTGRES_PASSWORD" "$DATABASE_URL" "$(cat /etc/db/dsn)"; do
    printf 'sum %s\\n' "$(printf %s "$it" | sha256sum | cut -c1-64)"
    echo "said $it"
done
for it in /start.sh /etc/db/dsn; do
    (echo x >> $it || rm -f $it || umount $it) 2> /dev/null || echo "kept $it"
done
echo done
exec sleep 100000
"""


class Compose(unittest.TestCase):
    """Checks that share one boot."""

    @classmethod
    def setUpClass(cls):
        folder = cls.enterClassContext(tempfile.TemporaryDirectory(prefix="cofferdam-compose-"))
        cls.world = cls.enterClassContext(World(folder, TOOLS))
        try:
            cls.start(cls.world)
        except BaseException:
            print(cls.world.console("appliance")[-6000:], file=sys.stderr)
            raise

    @classmethod
    def start(cls, world):
        world.start_services()
        with open(BUSYBOX, "rb") as file:
            files = {"bin/busybox": (0o755, file.read()), "tmp": (0o1777, None)}
        for name in ("sh", "cat", "cut", "sha256sum", "rm", "umount", "sleep"):
            files[f"bin/{name}"] = (0o777, "busybox")
        image = world.push_image("test/busybox", files, {"Env": ["PATH=/bin"]})
        imported, secrets = world.imported(
            {
                "compose.yaml": COMPOSE.replace("IMAGE", image),
                ".env": f"DB_PASSWORD={PASSWORD}\n",
                "www/index.html": PAGE,
                "www/other.html": "never asked for while it was recorded",
                "start.sh": START,
            }
        )
        assert PASSWORD not in imported, imported
        configs, services = re.search(
            r"^(configs:\n.*)^services:\n(.*)", imported, re.MULTILINE | re.DOTALL
        ).groups()
        port = free_port()
        declaration = world.declaration(port, services) + configs
        if LEARNS:
            declaration = cls.learn(world, declaration, secrets)
        commit = world.commit(declaration)
        appliance = world.boot("appliance", IMAGE, declaration, commit, port, "--memory", "2G")
        world.wait_console("appliance", appliance, "launched", 240)
        known = [*world.trust_options(IMAGE), *world.github_options()]
        cls.options = ["--endpoint", f"127.0.0.1:{port}", *known]
        status = ["status", REPOSITORY, *cls.options]
        wait_for("the first status", 120, lambda: world.coffer(*status)[0] == 0, 1)
        world.coffer_ok("secret", "put", REPOSITORY, "--env-file", secrets, *cls.options)
        wait_for("the services", 180, cls.all_run, 1)
        cls.listen = free_port()
        connect = [world.tool("coffer"), "connect", REPOSITORY, *cls.options]
        process = world.start("connect", [*connect, "--listen", f"127.0.0.1:{cls.listen}"])
        world.listening("connect", process, cls.listen)

    @staticmethod
    def learn(world, declaration, secrets):
        """The declaration with a profile of each service."""
        file = world.path("learned.yaml")
        with open(file, "w", encoding="utf-8") as out:
            out.write(declaration)
        for name, use in (("web", USE), ("db", "sleep 3")):
            options = ["--learn", name, file, "--secrets", secrets]
            world.coffer_ok("up", *options, "--", "/bin/sh", "-c", use)
        with open(file, encoding="utf-8") as learned:
            text = learned.read()
        assert all(line in text.splitlines() for line in declaration.splitlines()), text
        assert text.count("    profile:\n") == 2, text
        return text

    @classmethod
    def all_run(cls):
        out = cls.world.coffer_ok("status", REPOSITORY, *cls.options, "--json")
        return all(one["state"] == "running" for one in json.loads(out)["services"])

    def test_1_a_mounted_directory_is_served_as_it_was(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.listen, timeout=60)
        try:
            connection.request("GET", "/index.html")
            self.assertEqual(connection.getresponse().read().decode(), PAGE)
        finally:
            connection.close()

    def test_2_secrets_are_whole_where_they_belong_and_nowhere_else(self):
        def said():
            text = self.world.coffer_ok("logs", REPOSITORY, "db", *self.options)
            return text if "done" in text else None

        log = wait_for("the log", 60, said, 1)
        for value in (
            PASSWORD,
            f"postgres://app:{PASSWORD}@db/shop?x=$y",
            f"password={PASSWORD}",
        ):
            self.assertIn(f"sum {hashlib.sha256(value.encode()).hexdigest()}", log)
        self.assertNotIn(PASSWORD, log)
        self.assertIn("said [redacted:secret://shop/env/db_password]", log)
        self.assertIn("said [redacted:DATABASE_URL]", log)
        self.assertIn("said password=[redacted:secret://shop/env/db_password]", log)
        for path in ("/start.sh", "/etc/db/dsn"):
            self.assertIn(f"kept {path}", log)

    @unittest.skipUnless(LEARNS, "recording takes root")
    def test_3_what_was_not_recorded_is_closed(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.listen, timeout=60)
        try:
            connection.request("GET", "/other.html")
            answer = connection.getresponse()
            self.assertIn(answer.status, (403, 404), answer.read())
        finally:
            connection.close()


if __name__ == "__main__":
    unittest.main(verbosity=2)
