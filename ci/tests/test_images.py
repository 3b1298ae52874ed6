#!/usr/bin/python3
"""Images as the official ones are written start and serve unchanged in a booted appliance: root
entry points that prepare their data and become another user, a port below 1024, logs linked to
/dev/stdout, users by name, layers of gzip and of zstd.

A compose file with the reference images of ci/images, imported with `coffer import`; the Python
server asks each of the others by its name. The databases keep their data in volumes, and the images
lie on the state disk. The simulator image is booted, its power cut, and booted again without a
registry: all have their data. COFFERDAM_IMAGES=all takes MariaDB and php-fpm, too; else it is a
list of names with commas. COFFERDAM_RESTARTS=100 ends each of them so many times.

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
VARIABLES = {
    "postgres": "POSTGRES_PASSWORD",
    "mariadb": "MARIADB_ROOT_PASSWORD",
    "python": "PASSWORD",
}
# Where a database keeps its data.
VOLUMES = {
    "redis": "/data",
    "postgres": "/var/lib/postgresql/data",
    "mariadb": "/var/lib/mysql",
}
# What it is given to keep.
WORD = "kept-over-a-power-cut"
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
        cls.port = free_port()
        pushed = {name: world.push_layout(layout, name, f"ref/{name}") for name in NAMES}
        services, volumes, secrets = cls.imported(world, pushed)
        for name in USES.keys() & NAMES if LEARNS else ():
            # The declaration has the image alone in that line.
            line = next(line for line in services.splitlines() if pushed[name] in line) + "\n"
            service = f'{line}    ports: ["8444:{USES[name][0]}"]\n'
            profile = cls.profile(world, cls.port, name, service, USES[name][1])
            services = services.replace(line, line + profile)
        if LEARNS and "python" in NAMES:
            services += cls.narrow(world, cls.port, pushed["python"])
        state = OPERATOR.replace("}", ", images: 2gb}")
        cls.declaration = world.declaration(cls.port, services, state=state) + volumes
        cls.commit = world.commit(cls.declaration)
        known = [*world.trust_options(IMAGE), *world.github_options()]
        cls.options = ["--endpoint", f"127.0.0.1:{cls.port}", *known]
        begun = time.monotonic()
        cls.cut_while_images_are_pulled(world)
        cls.boot(world, "appliance", "unseal")
        world.coffer_ok("secret", "put", REPOSITORY, "--env-file", secrets, *cls.options)
        wait_for("the services", START, cls.all_run, 2)
        print(f"all run after {time.monotonic() - begun:.0f} s", file=sys.stderr)
        cls.listen, process = cls.connect(world, "connect")
        world.listening("connect", process, cls.listen)
        if LEARNS and "python" in NAMES:
            port = ["--port", str(cls.published)]
            cls.narrowed, process = cls.connect(world, "narrow", *port)
            world.listening("narrow", process, cls.narrowed)

    @classmethod
    def imported(cls, world, pushed):
        """What `coffer import` makes of a compose file: services, volumes, the file of secrets."""
        compose = "services:\n"
        for name, image in pushed.items():
            compose += f"  {name}:\n    image: {image}\n"
            if name in VARIABLES:
                compose += f'    environment: {{{VARIABLES[name]}: "${{DATABASE_PASSWORD}}"}}\n'
            if name in VOLUMES:
                compose += f'    volumes: ["{name}:{VOLUMES[name]}"]\n'
            if name == "python":
                compose += '    ports: ["443:8080"]\n    depends_on:\n'
                for other in NAMES:
                    restart = str(other == "postgres").lower()
                    condition = f"{{condition: service_started, restart: {restart}}}"
                    compose += f"      {other}: {condition}\n" if other != name else ""
        kept = "".join(f"  {name}:\n" for name in NAMES if name in VOLUMES)
        compose += f"volumes:\n{kept}" if kept else ""
        quoted = PASSWORD.replace("\\", "\\\\")
        environment = f'DATABASE_PASSWORD="{quoted}"\n'
        imported, secrets = world.imported({"compose.yaml": compose, ".env": environment})
        head, services = imported.split("services:\n")
        volumes = head[head.index("volumes:\n") :] if "volumes:\n" in head else ""
        # Less than a disk of its own, which is slow to make under emulation.
        return services, volumes.replace("size: 1gb", "size: 320m"), secrets

    @classmethod
    def cut_while_images_are_pulled(cls, world):
        """A first boot that ends in the midst of that: the next one pulls what was not whole."""
        cls.boot(world, "cut", "init")

        def pulling():
            return "pulling" in (service["state"] for service in cls.services())

        wait_for("a pull", 60, pulling)
        world.cut_power("cut", cls.machine)

    @classmethod
    def boot(cls, world, name, verb):
        """Boots the appliance, and has its operator make or open the state."""
        machine = ["--memory", MEMORY, "--control"]
        machine += ["--state", world.path("state.img"), "--state-mib", "4096"]
        machine += ["--forward", f"{cls.published}:{cls.published}"]
        about = (IMAGE, cls.declaration, cls.commit, cls.port, *machine)
        cls.machine = world.boot(name, *about)
        world.wait_console(name, cls.machine, SEALED, 240)
        status = ["seal", "status", REPOSITORY, *cls.options]
        wait_for("the operators' interface", 90, lambda: world.coffer(*status)[0] == 5, 1)
        words = ["seal", "init"] if verb == "init" else [verb]
        world.coffer_ok(*words, REPOSITORY, *cls.options, stdin=PASSPHRASE)
        world.wait_console(name, cls.machine, "launched", 240)
        status = ["status", REPOSITORY, *cls.options]
        wait_for("the first status", 90, lambda: world.coffer(*status)[0] == 0, 1)

    @classmethod
    def connect(cls, world, name, *more):
        listen = free_port()
        connect = [world.tool("coffer"), "connect", REPOSITORY, *more]
        connect += ["--listen", f"127.0.0.1:{listen}", *cls.options]
        return listen, world.start(name, connect)

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
            if service["state"] in ("failed", "exited") or service.get("restarts"):
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

    @unittest.skipUnless({"postgres", "python"} <= set(NAMES), "takes PostgreSQL and Python")
    def test_6_a_restart_of_a_database_restarts_its_client_after_it(self):
        def since():
            return {one["name"]: (one["since"], one.get("pid")) for one in self.services()}

        before = since()
        said = self.world.coffer_ok(
            "restart", REPOSITORY, "postgres", "--wait", *self.options, limit=START
        )
        self.assertEqual(said, "postgres: running\npython: running\n")
        after = since()
        changed = {name for name in after if after[name] != before[name]}
        self.assertEqual(changed, {"postgres", "python"})
        self.assertGreaterEqual(after["python"][0], after["postgres"][0])
        self.serves("postgres")

    def test_7_all_have_their_data_after_a_power_cut_and_nothing_is_pulled(self):
        databases = [name for name in NAMES if name in VOLUMES]
        for name in databases:
            self.assertEqual(json.loads(self.ask(f"kept/{name}/{WORD}")), WORD, name)
        self.world.cut_power("appliance", self.machine)
        self.assertIn(": to be pulled onto the disk", self.world.console("appliance"))
        self.world.end(self.world.registry_process)
        begun = time.monotonic()
        self.boot(self.world, "again", "unseal")
        # Nobody puts the secrets again.
        wait_for("the services", START, self.all_run, 2)
        print(f"all run again after {time.monotonic() - begun:.0f} s", file=sys.stderr)
        self.assertNotIn("to be pulled", self.world.console("again"))
        type(self).listen, process = self.connect(self.world, "connect-again")
        self.world.listening("connect-again", process, self.listen)
        for name in (*(name for name in NAMES if name != "python"), "self"):
            self.serves(name)
        for name in databases:
            self.assertEqual(json.loads(self.ask(f"kept/{name}")), WORD, name)

    def roles(self):
        out = self.world.coffer_ok("status", REPOSITORY, *self.options, "--json")
        return json.loads(out)["roles"]


if __name__ == "__main__":
    unittest.main(verbosity=2)
