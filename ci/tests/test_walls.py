#!/usr/bin/python3
"""What one workload does stays with that workload: escapes as root, and taking all there is.

One boot of the simulator image with three services of one image: `root` and `user` attack, with uid
0 and 1000, and `neighbour` does its work. For each kind of exhaustion (examples/probe/exhaust.rs)
the attacker takes all that it gets and keeps it, while the neighbour answers, `coffer status`
answers and an operator puts a secret. Afterwards no role and no other service was started again.
Nothing is judged by how long it took beyond a generous bound; the times are printed.

COFFERDAM_MINUTES=120 and the class AllInTurn take all of it again and again in a boot of their own.

Another boot has a kernel that keeps much of the memory to itself (vm.min_free_kbytes), as if
somebody who is not charged had taken it: the machine runs out before a service reaches its limit.
"""

import contextlib
import http.client
import json
import os
import sys
import tempfile
import time
import types
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import observer
import uki
from harness import REPOSITORY, ROOT, World, free_port, wait_for, workload_files
from process import Failed

IMAGE = os.environ.get("COFFERDAM_IMAGE", os.path.join(ROOT, "cofferdam-simulator.efi"))
TOOLS = os.environ.get("COFFERDAM_TOOLS", os.path.join(ROOT, "target", "debug"))
# Kinds from uid 0, chosen by name or all; from uid 1000 these.
CHOSEN = os.environ.get("COFFERDAM_KINDS")
# How long all kinds are tried in turn, instead of once.
MINUTES = float(os.environ.get("COFFERDAM_MINUTES", "0"))
# What only our kernel charges to whoever causes it.
CHARGED = ["netlink", "ofd-locks", "posix-locks"]
AS_USER = [
    "memory",
    "processes",
    "descriptors",
    "netlink",
    "ofd-locks",
    "signals",
    "ptys",
    "dev-shm",
]
# Seconds that a kind may go on without meeting a bound.
SECONDS = 12
# For an answer while the emulated processors are taken: far more than it takes, and far less than a
# hang.
PATIENCE = 60
# Bytes of a file of the image that the three services share.
LARGE = 48 << 20
SERVICES = """  root:
    image: {image}
    environment: {{GREETING_SECRET: secret://demo/root/value}}
    ports: ["443:8080"]
    restart: always
  user:
    image: {image}
    user: "1000:1000"
    environment: {{GREETING_SECRET: secret://demo/user/value}}
    ports: ["8445:8080"]
    healthcheck: {{test: [CMD, /probe, sick], interval: 1s, timeout: 5s, retries: 1}}
    restart: always
  neighbour:
    image: {image}
    user: "1000:1000"
    environment: {{GREETING_SECRET: secret://demo/neighbour/value}}
    ports: ["8444:8080"]
    restart: always
"""
PORTS = {"root": 443, "user": 8445, "neighbour": 8444}


class Booted(unittest.TestCase):
    """An appliance with these services, of which each is reached by `coffer connect`."""

    maxDiff = None
    services, ports = SERVICES, types.MappingProxyType(PORTS)

    @classmethod
    def image(cls):
        return IMAGE

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="cofferdam-walls-")
        cls.addClassCleanup(cls.folder.cleanup)
        cls.world = world = World(cls.folder.name, TOOLS)
        cls.addClassCleanup(world.stop)
        try:
            cls.start(world)
        except BaseException:
            print(world.console("appliance")[-6000:], file=sys.stderr)
            raise

    @classmethod
    def start(cls, world):
        world.start_services()
        # Packed it is small; in memory it is as large as it says.
        files = {**workload_files(), "large": (0o644, bytes(LARGE)), "open": (0o666, bytes(8192))}
        files["setuid"] = (0o6755, b"no program")
        image = world.push_image("test/probe", files, {"Entrypoint": ["/probe"], "WorkingDir": "/"})
        outer = {name: free_port() for name in cls.ports}
        declaration = world.declaration(outer["root"], cls.services.format(image=image))
        forwards = [
            word
            for name, port in cls.ports.items()
            if name != "root"
            for word in ("--forward", f"{outer[name]}:{port}")
        ]
        booted = cls.image()
        appliance = world.boot(
            "appliance", booted, declaration, world.commit(declaration), outer["root"], *forwards
        )
        world.wait_console("appliance", appliance, "launched", 240)
        known = [*world.trust_options(booted), *world.github_options()]
        cls.options = ["--endpoint", f"127.0.0.1:{outer['root']}", *known]
        wait_for(
            "the first status",
            90,
            lambda: world.coffer("status", REPOSITORY, *cls.options)[0] == 0,
            1,
        )
        for name in cls.ports:
            cls.put(f"demo/{name}/value", f"the secret of {name}, which is long enough")
        cls.listen = {}
        wait_for("the services", 120, cls.all_run, 1)
        for name, port in outer.items():
            cls.listen[name] = free_port()
            process = world.start(
                f"connect-{name}",
                [
                    world.tool("coffer"),
                    "connect",
                    REPOSITORY,
                    "--listen",
                    f"127.0.0.1:{cls.listen[name]}",
                    "--endpoint",
                    f"127.0.0.1:{port}",
                    *known,
                ],
            )
            world.listening(f"connect-{name}", process, cls.listen[name])

    @classmethod
    def status(cls):
        return json.loads(cls.world.coffer_ok("status", REPOSITORY, *cls.options, "--json"))

    @classmethod
    def all_run(cls):
        services = cls.status()["services"]
        running = [service for service in services if service["state"] == "running"]
        return len(running) == len(cls.ports)

    @classmethod
    def put(cls, name, value):
        cls.world.coffer_ok("secret", "put", REPOSITORY, name, *cls.options, stdin=value)

    @classmethod
    def ask(cls, name, path, timeout=PATIENCE):
        connection = http.client.HTTPConnection("127.0.0.1", cls.listen[name], timeout=timeout)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode(errors="replace")
        finally:
            connection.close()

    def is_calm(self):
        console = self.world.console("appliance")
        for word in ("Kernel panic", "parked", "BUG:", "Oops"):
            self.assertNotIn(word, console)


class Exhausting(Booted):
    """What each kind of exhaustion is judged by."""

    def runs(self):
        """How often each role and each service but the attackers was started."""
        status = self.status()
        roles = {role["name"]: role.get("restarts") for role in status["roles"]}
        services = {
            service["name"]: service["restarts"]
            for service in status["services"]
            if service["name"] == "neighbour"
        }
        return {**roles, **services}

    def service(self, name):
        """What `coffer status` says about a service."""
        return next(one for one in self.status()["services"] if one["name"] == name)

    def memory(self, name):
        """What a service uses, in MiB."""
        return self.service(name)["usage"]["memory"] >> 20

    def charged(self, before):
        """What a service came to in MiB, once that is its own: it uses more than before, or its
        own limit has ended it meanwhile.
        """
        now = self.service(before["name"])
        killed = now.get("killed") if now["restarts"] > before["restarts"] else None
        if killed and killed["why"] == "out-of-memory":
            used = killed["limit"]
        else:
            used = now.get("usage", before["usage"])["memory"]
        return (used - before["usage"]["memory"] > 16 << 20) and used >> 20

    def back(self, name):
        """The attacker answers again: what it held is given back, or it was started again."""

        def answers():
            with contextlib.suppress(OSError, http.client.HTTPException):
                return "released" in self.ask(name, "/release", timeout=10)
            return False

        wait_for(f"{name} answers", 120, answers, 1)

    def exhaust(self, name, kind):
        """One row: what the attacker came to, and how long the others took meanwhile."""
        if kind in CHARGED:
            # Status follows every five seconds.
            time.sleep(6)
        before, attacker = self.runs(), self.service(name)
        had = attacker["usage"]["memory"] >> 20
        try:
            answer = json.loads(
                self.ask(name, f"/exhaust?kind={kind}&seconds={SECONDS}", SECONDS + PATIENCE)
            )
            came = f"{answer['count']}, then {answer['stopped']}"
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            # Its connection ended with it.
            came = "was ended"
        took = {}
        for what, action in (
            ("neighbour", lambda: self.assertIn("hello", self.ask("neighbour", "/"))),
            ("status", self.status),
            ("secret put", lambda: self.put("demo/other/value", f"as {kind} is exhausted")),
        ):
            began = time.monotonic()
            try:
                action()
            except (OSError, Failed, http.client.HTTPException) as error:
                print(self.world.console("appliance")[-3000:], file=sys.stderr)
                self.fail(f"{what} while {kind} is exhausted ({came}): {error!r}")
            took[what] = time.monotonic() - began
        has = self.memory(name)
        if kind in CHARGED and came != "was ended":
            has = wait_for(
                f"{kind} counts as memory of {name}, {had} MiB before",
                20,
                lambda: self.charged(attacker),
                1,
            )
        self.back(name)
        self.assertEqual(self.runs(), before, f"{kind}: somebody else was started again")
        times = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in took.items())
        print(f"\n{name}: {kind}: {came}; {had} to {has} MiB; {times}", file=sys.stderr)
        return came


class Walls(Exhausting):
    """Checks that share one boot; they run in the order of their names."""

    def test_10_root_reaches_nothing(self):
        for attacker in PORTS:
            with self.subTest(attacker=attacker):
                attempts = json.loads(self.ask(attacker, "/attack", timeout=120))
                self.assertGreater(len(attempts), 120)
                through = [attempt for attempt in attempts if not attempt["refused"]]
                print(f"\n{attacker}: {len(attempts)} attempts", file=sys.stderr)
                self.assertEqual({row["name"]: row["answer"] for row in through}, {}, attacker)

    def test_11_root_has_its_nine_capabilities_and_user_none(self):
        rights = json.loads(self.ask("root", "/whoami"))
        nine = "00000000000005fb"
        wanted = {"CapPrm": nine, "CapEff": nine, "CapBnd": nine, "NoNewPrivs": "1"}
        self.assertLessEqual(wanted.items(), rights.items())
        self.assertEqual([rights[name] for name in ("CapInh", "CapAmb")], ["0" * 16, "0" * 16])
        rights = json.loads(self.ask("user", "/whoami"))
        self.assertEqual([rights[name] for name in ("CapPrm", "CapEff")], ["0" * 16, "0" * 16])

    def test_12_services_of_one_image_have_one_copy_that_none_of_them_changes(self):
        time.sleep(6)
        # The first of the declaration has pulled it.
        memory = {name: self.memory(name) for name in PORTS}
        print(f"\nMiB with an image of {LARGE >> 20} MiB: {memory}", file=sys.stderr)
        self.assertGreaterEqual(memory["root"], LARGE >> 20)
        for name in ("user", "neighbour"):
            self.assertLess(memory[name], LARGE >> 21, name)
        files = {
            "/large": [LARGE, 0, 0, 0o644, 0],
            "/open": [8192, 0, 0, 0o666, 0],
            "/setuid": [10, 0, 0, 0o755, sum(b"no program")],
        }

        def seen(name):
            return {path: json.loads(self.ask(name, f"/file?path={path}")) for path in files}

        for name in PORTS:
            self.assertEqual(seen(name), files, name)
        spoilt = {
            name: json.loads(self.ask(name, "/spoil?path=/open")) for name in ("root", "user")
        }
        print(f"\nspoilt: {spoilt}", file=sys.stderr)
        # Each has its own layer above, in which it does as it likes with what it may.
        ways = ("write", "map", "chmod", "chown")
        self.assertEqual({spoilt["root"][way] for way in ways}, {"ok"})
        self.assertEqual([spoilt["user"][way] for way in ("write", "chmod")], ["ok", "EPERM"])
        self.assertNotEqual(seen("root"), files)
        self.assertEqual(json.loads(self.ask("root", "/spoil?path=/setuid"))["replace"], "ok")
        self.assertEqual(seen("neighbour"), files)
        # Its next start finds what was pulled.
        for name in ("root", "user"):
            with contextlib.suppress(OSError, http.client.HTTPException):
                self.ask(name, "/exit?code=1")
            self.back(name)
            self.assertEqual(seen(name), files, name)

    def test_20_root_takes_all_there_is(self):
        kinds = json.loads(self.ask("root", "/kinds"))
        self.assertGreaterEqual(len(kinds), 15)
        for kind in CHOSEN.split(",") if CHOSEN else kinds:
            with self.subTest(kind=kind):
                self.exhaust("root", kind)

    def test_21_a_user_takes_all_there_is(self):
        for kind in CHOSEN.split(",") if CHOSEN else AS_USER:
            with self.subTest(kind=kind):
                self.exhaust("user", kind)

    def test_22_two_services_take_memory_at_once(self):
        before = self.runs()
        self.exhaust("user", "memfd")
        for name in ("root", "user"):
            with contextlib.suppress(OSError, http.client.HTTPException):
                self.ask(name, "/exhaust?kind=memory&seconds=1", timeout=5)
        self.assertIn("hello", self.ask("neighbour", "/"))
        for name in ("root", "user"):
            self.back(name)
        self.assertEqual(self.runs(), before)

    def test_23_a_probe_of_health_that_makes_processes_is_its_services_own(self):
        before, had = self.runs(), self.service("user")["restarts"]

        def health(state):
            return lambda: self.service("user").get("health", {}).get("state") == state

        wait_for("a healthy service", 60, health("healthy"), 1)
        self.assertIn("Ok", self.ask("user", "/sick"))
        wait_for("an unhealthy one", 60, health("unhealthy"), 1)
        took = {}
        for what, action in (
            ("neighbour", lambda: self.assertIn("hello", self.ask("neighbour", "/"))),
            ("secret put", lambda: self.put("demo/other/value", "as a probe makes processes")),
            ("itself", lambda: self.assertIn("hello", self.ask("user", "/"))),
        ):
            began = time.monotonic()
            action()
            took[what] = round(time.monotonic() - began, 1)
        usage = self.service("user")["usage"]
        print(f"\nuser: a probe makes processes: {usage}; {took}", file=sys.stderr)
        self.assertLessEqual(usage["processes"], usage["processes_limit"] + 1)
        self.assertIn("Ok", self.ask("user", "/well"))
        wait_for("a healthy service again", 60, health("healthy"), 1)
        self.assertEqual((self.runs(), self.service("user")["restarts"]), (before, had))

    def test_90_the_console_is_calm(self):
        self.is_calm()


@unittest.skipUnless(MINUTES, "COFFERDAM_MINUTES=120 takes all there is in turn for two hours")
class AllInTurn(Exhausting):
    """For as long as somebody has time: afterwards everything is as it was."""

    @classmethod
    def image(cls):
        own = uki.read(IMAGE)
        path = cls.world.path("observed.efi")
        with open(path, "wb") as file:
            file.write(observer.observed(own, observer.program(cls.folder.name)))
        return path

    def used(self):
        """Anonymous KiB of each role, and open files, as an observer in the machine counts them."""
        # Two of its looks.
        time.sleep(12)
        console = self.world.console("appliance")
        memory = observer.seen(console, "memory")
        return {name: kib for name, (kib, *_) in memory.items()}, observer.seen(
            console, "descriptors"
        )

    def test_all_there_is_in_turn(self):
        (memory, files), end = self.used(), time.monotonic() + 60 * MINUTES
        rounds, kinds = 0, json.loads(self.ask("root", "/kinds"))
        while time.monotonic() < end:
            for name, chosen in (("root", kinds), ("user", AS_USER)):
                for kind in chosen:
                    self.exhaust(name, kind)
            rounds += 1
        after, left = self.used()
        print(
            f"\n{rounds} rounds\nKiB before {memory}\nKiB after  {after}\n"
            f"open files {files} before, {left} after",
            file=sys.stderr,
        )
        self.assertEqual(memory.keys(), after.keys())
        for name, before in memory.items():
            self.assertLess(after[name], 2 * before + 1024, name)
        self.assertLess(left, files + 200)
        self.is_calm()


class MachineOutOfMemory(Booted):
    """What takes memory that is counted to nobody ends itself, and nobody else."""

    services = """  root:
    image: {image}
    environment: {{GREETING_SECRET: secret://demo/root/value}}
    ports: ["443:8080"]
    restart: always
    mem_limit: 974m
  neighbour:
    image: {image}
    environment: {{GREETING_SECRET: secret://demo/neighbour/value}}
    ports: ["8444:8080"]
    restart: always
    mem_limit: 64m
"""
    ports = types.MappingProxyType({"root": 443, "neighbour": 8444})

    @classmethod
    def image(cls):
        own = uki.read(IMAGE)
        # The second, since what is free would else be kept apart by each processor in proportion.
        words = uki.section(own, ".cmdline").rstrip(b"\0\n") + b"".join(
            b" sysctl.vm." + word
            for word in (b"min_free_kbytes=1048000", b"percpu_pagelist_high_fraction=1000")
        )
        path = cls.world.path("little-memory.efi")
        with open(path, "wb") as file:
            file.write(uki.variant(own, {".cmdline": words}))
        return path

    def test_10_the_service_that_took_it_ends_and_nobody_else(self):
        began = time.monotonic()
        with contextlib.suppress(OSError, http.client.HTTPException):
            self.ask("root", "/exhaust?kind=memory&seconds=30", timeout=60)

        def ended():
            services = {service["name"]: service for service in self.status()["services"]}
            return services["root"]["state"] == "restarting" and services

        try:
            services = wait_for("root to be ended", 50, ended, 1)
        except BaseException:
            console = self.world.console("appliance").splitlines()
            print(*(line for line in console if "audit" not in line), sep="\n", file=sys.stderr)
            raise
        print(f"\nended after {time.monotonic() - began:.1f} s", file=sys.stderr)
        self.assertIn("took memory that is counted to nobody", services["root"]["detail"])
        self.assertEqual(services["neighbour"]["restarts"], 0)
        roles = {role["name"]: role["restarts"] for role in self.status()["roles"]}
        self.assertGreaterEqual(roles.pop("reserve"), 1)
        self.assertEqual(set(roles.values()), {0}, roles)
        self.assertIn("hello", self.ask("neighbour", "/"))
        self.put("demo/other/value", "after the machine ran out of memory")
        for line in ("the machine ran out of memory", "shim root: ended: it took memory"):
            self.assertIn(line, self.world.console("appliance"))

    def test_90_the_console_is_calm(self):
        self.is_calm()


if __name__ == "__main__":
    unittest.main(verbosity=2)
