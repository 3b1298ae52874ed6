#!/usr/bin/python3
"""Images as the official ones are written start and serve unchanged in a booted appliance: root
entry points that prepare their data and become another user, a port below 1024, logs linked to
/dev/stdout, users by name, layers of gzip and of zstd.

One boot of the simulator image with the reference images of ci/images, whose Python server asks
each of the others by its name. The databases keep their data in volumes. COFFERDAM_IMAGES=all takes
MariaDB and php-fpm, too; else it is a list of names with commas. COFFERDAM_RESTARTS=100 ends each
of them so many times.

As root, what nginx and Redis do is recorded on this machine before (`coffer up --learn`), and they
run under those profiles. So does a second Python server, which is then asked for more.
"""

import http.client
import json
import os
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import images
from harness import OPERATOR, REPOSITORY, ROOT, SEALED, World, free_port, wait_for
from imagefiles import ANSWERS, IMAGES
from process import Failed

IMAGE = os.environ.get("COFFERDAM_IMAGE", os.path.join(ROOT, "cofferdam-simulator.efi"))
TOOLS = os.environ.get("COFFERDAM_TOOLS", os.path.join(ROOT, "target", "debug"))
CHOSEN = os.environ.get("COFFERDAM_IMAGES", "nginx,redis,postgres,python,node")
NAMES = list(IMAGES) if CHOSEN == "all" else CHOSEN.split(",")
MEMORY = "6G" if len(NAMES) > 5 else "4G"
# How often each service is ended, with its shim.
RESTARTS = int(os.environ.get("COFFERDAM_RESTARTS", "0"))
# Bytes that redaction and quoting could stumble over.
PASSWORD = "it's a \\ password"
REFERENCE = "secret://demo/database/password"
VARIABLES = {
    "postgres": f"POSTGRES_PASSWORD: {REFERENCE}",
    "mariadb": f"MARIADB_ROOT_PASSWORD: {REFERENCE}",
    "python": f"PASSWORD: {REFERENCE}",
}
# Where a database keeps its data.
VOLUMES = {"postgres": "/var/lib/postgresql/data", "mariadb": "/var/lib/mysql"}
# How those are used that are recorded first: their port, and what asks it until it answers.
ASK = "for _ in $(seq 300); do {} && exit; sleep 0.1; done; exit 1"
USES = {
    "nginx": (80, ASK.format("busybox wget -q -O /dev/null http://127.0.0.1:$COFFER_PORT_80/")),
    "redis": (
        6379,
        ASK.format(
            "printf 'PING\\r\\nQUIT\\r\\n' | busybox nc 127.0.0.1 $COFFER_PORT_6379 | grep -q PONG"
        ),
    ),
}
# A Python server that is asked for itself alone while it is recorded.
NARROW = "narrow"
# Making a container on this machine takes root.
LEARNS = os.geteuid() == 0
PASSPHRASE = "correct horse battery staple"
# A database makes itself at its first start, on an emulated processor.
START = 420


class Images(unittest.TestCase):
    """Checks that share one boot."""

    @classmethod
    def setUpClass(cls):
        folder = cls.enterClassContext(tempfile.TemporaryDirectory(prefix="cofferdam-images-"))
        cls.world = cls.enterClassContext(World(folder, TOOLS))
        try:
            cls.start(cls.world)
        except BaseException:
            print(cls.world.console("appliance")[-6000:], file=sys.stderr)
            raise

    @classmethod
    def start(cls, world):
        layout = images.compose(tuple(NAMES))
        cls.published = free_port()
        world.start_services()
        port = free_port()
        services = ""
        for name in NAMES:
            services += f"  {name}:\n    image: {world.push_layout(layout, name, f'ref/{name}')}\n"
            if LEARNS and name in USES:
                service = services.splitlines()[-1] + f'\n    ports: ["8444:{USES[name][0]}"]\n'
                services += cls.profile(world, port, name, service, USES[name][1])
            if name in VARIABLES:
                services += f"    environment: {{{VARIABLES[name]}}}\n"
            if name in VOLUMES:
                services += f'    volumes: ["{name}:{VOLUMES[name]}"]\n'
            if name == "python":
                others = ", ".join(other for other in NAMES if other != name)
                services += f'    ports: ["443:8080"]\n    depends_on: [{others}]\n'
        if LEARNS and "python" in NAMES:
            services += cls.narrow(world, port, world.push_layout(layout, "python", "ref/python"))
        volumes = ", ".join(f"{name}: {{size: 320m}}" for name in NAMES if name in VOLUMES)
        declaration = world.declaration(port, services, state=OPERATOR, volumes=f"{{{volumes}}}")
        commit = world.commit(declaration)
        machine = ["--memory", MEMORY, "--control", "--state", world.path("state.img")]
        machine += ["--forward", f"{cls.published}:{cls.published}"]
        appliance = world.boot("appliance", IMAGE, declaration, commit, port, *machine)
        begun = time.monotonic()
        world.wait_console("appliance", appliance, SEALED, 240)
        known = [*world.trust_options(IMAGE), *world.github_options()]
        cls.options = ["--endpoint", f"127.0.0.1:{port}", *known]
        status = ["seal", "status", REPOSITORY, *cls.options]
        wait_for("the operators' interface", 90, lambda: world.coffer(*status)[0] == 5, 1)
        world.coffer_ok("seal", "init", REPOSITORY, *cls.options, stdin=PASSPHRASE)
        world.wait_console("appliance", appliance, "launched", 240)
        status = ["status", REPOSITORY, *cls.options]
        wait_for("the first status", 90, lambda: world.coffer(*status)[0] == 0, 1)
        code, out, err = world.coffer(
            "secret", "put", REPOSITORY, "demo/database/password", *cls.options, stdin=PASSWORD
        )
        if code != 0:
            raise Failed(out + err)
        wait_for("the services", START, cls.all_run, 2)
        print(f"all run after {time.monotonic() - begun:.0f} s", file=sys.stderr)
        cls.listen = free_port()
        connect = [world.tool("coffer"), "connect", REPOSITORY]
        process = world.start(
            "connect", [*connect, "--listen", f"127.0.0.1:{cls.listen}", *cls.options]
        )
        world.listening("connect", process, cls.listen)
        if LEARNS and "python" in NAMES:
            cls.narrowed = free_port()
            listen = ["--port", str(cls.published), "--listen", f"127.0.0.1:{cls.narrowed}"]
            process = world.start("narrow", [*connect, *listen, *cls.options])
            world.listening("narrow", process, cls.narrowed)

    @staticmethod
    def profile(world, port, name, service, use):
        """What a service does, as a part of its declaration."""
        file = world.path(f"{name}.yaml")
        with open(file, "w", encoding="utf-8") as out:
            out.write(world.declaration(port, f"  {name}:\n{service}"))
        options = ["--learn", name, "--print", file]
        printed = world.coffer_ok("up", *options, "--", "/bin/sh", "-c", use)
        return "".join(f"    {line}\n" for line in printed.splitlines())

    @classmethod
    def narrow(cls, world, port, image):
        """The declaration of the second Python server."""
        service = f'    image: {image}\n    ports: ["{cls.published}:8080"]\n'
        service += "    environment: {PASSWORD: none}\n"
        use = ASK.format("busybox wget -q -O /dev/null http://127.0.0.1:$COFFER_PORT_8080/self")
        return f"  {NARROW}:\n{service}" + cls.profile(world, port, NARROW, service, use)

    @classmethod
    def services(cls):
        out = cls.world.coffer_ok("status", REPOSITORY, *cls.options, "--json")
        return json.loads(out)["services"]

    @classmethod
    def all_run(cls):
        services = cls.services()
        for service in services:
            if service["state"] in ("failed", "exited", "restarting") or service.get("restarts"):
                code, out, err = cls.world.coffer("logs", REPOSITORY, service["name"], *cls.options)
                raise Failed(f"{service}\n{code} {out[-3000:]}{err[-1000:]}")
        return all(service["state"] == "running" for service in services)

    def ask(self, name, port=None):
        connection = http.client.HTTPConnection("127.0.0.1", port or self.listen, timeout=120)
        try:
            connection.request("GET", f"/{name}")
            return connection.getresponse().read().decode()
        except OSError as error:
            return f"{type(error).__name__}: {error}"
        finally:
            connection.close()

    def serves(self, name):
        """Asks until the answer is right: a database needs its time, and its caller waits."""
        begun, answer = time.monotonic(), ""
        while ANSWERS[name] not in answer and time.monotonic() - begun < START:
            answer = self.ask(name)
            time.sleep(0 if ANSWERS[name] in answer else 2)
        if ANSWERS[name] not in answer:
            log = name if name in NAMES else "python"
            answer += "\n" + self.world.coffer_ok("logs", REPOSITORY, log, *self.options)[-3000:]
        self.assertIn(ANSWERS[name], answer)

    def test_1_each_serves(self):
        for name in (*(name for name in NAMES if name != "python"), "self"):
            with self.subTest(name):
                begun = time.monotonic()
                self.serves(name)
                print(f"{name}: {time.monotonic() - begun:.1f} s", file=sys.stderr)

    def test_2_logs_that_are_linked_to_the_output_are_there(self):
        if "nginx" not in NAMES:
            self.skipTest("nginx is not among the chosen")
        said = self.world.coffer_ok("logs", REPOSITORY, "nginx", *self.options)
        self.assertIn('"GET / HTTP/1.1" 200', said)
        self.assertIn("start worker process", said)

    def test_3_nobody_started_again_and_no_log_has_the_password(self):
        for service in self.services():
            with self.subTest(service["name"]):
                self.assertEqual((service["state"], service["restarts"]), ("running", 0))
                said = self.world.coffer_ok("logs", REPOSITORY, service["name"], *self.options)
                self.assertNotIn(PASSWORD, said)

    def test_5_a_recorded_server_does_what_was_seen_and_nothing_else(self):
        if not (LEARNS and "python" in NAMES and "redis" in NAMES):
            self.skipTest("recording takes root, and Python and Redis")
        self.assertIn(ANSWERS["self"], self.ask("self", self.narrowed))
        # The other one, without a profile, is answered. A resolver does not say what was refused.
        refused = "Operation not permitted|Temporary failure in name resolution"
        self.assertRegex(self.ask("redis", self.narrowed), refused)
        self.assertIn(ANSWERS["self"], self.ask("self", self.narrowed))

    def pid(self, name):
        """The process of a service that runs; None while it does not."""
        found = next(service for service in self.services() if service["name"] == name)
        return found.get("pid") if found["state"] == "running" else None

    @unittest.skipUnless(RESTARTS, "COFFERDAM_RESTARTS=100 ends each service a hundred times")
    def test_4_each_serves_whenever_it_is_started_again(self):
        for _ in range(RESTARTS):
            for name in NAMES:
                with self.world.control("appliance") as control:
                    before = self.pid(name)
                    self.assertTrue(control.ask(f"kill shim {name}")["killed"])

                def again(name=name, before=before):
                    return self.pid(name) not in (None, before)

                wait_for(f"{name} runs again", START, again, 0.2)
                self.serves("self" if name == "python" else name)
        for service in self.services():
            said = self.world.coffer_ok("logs", REPOSITORY, service["name"], *self.options)
            self.assertNotIn(PASSWORD, said, service["name"])
        counted = {role["name"]: role["restarts"] for role in self.roles()}
        self.assertEqual({counted[f"shim {name}"] for name in NAMES}, {RESTARTS}, counted)

    def roles(self):
        out = self.world.coffer_ok("status", REPOSITORY, *self.options, "--json")
        return json.loads(out)["roles"]


if __name__ == "__main__":
    unittest.main(verbosity=2)
