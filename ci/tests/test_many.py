#!/usr/bin/python3
"""Many services in one boot: 50 in ten rows start one after the other and stop in reverse, one that
ends again and again delays nobody, what was declared happens to each when a secret changes, an
operator's order comes before that, and the events say all of it.

Their workload is a shell of busybox, so that what is seen is what the appliance does for each.
"""

import concurrent.futures
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from harness import REPOSITORY, ROOT, World, free_port, wait_for, workload_files

IMAGE = os.environ.get("COFFERDAM_IMAGE", os.path.join(ROOT, "cofferdam-simulator.efi"))
TOOLS = os.environ.get("COFFERDAM_TOOLS", os.path.join(ROOT, "target", "debug"))
BUSYBOX = "/bin/busybox"
ROWS, COLUMNS = 10, 5
SECRET = "secret://demo/many/value"
OTHER = "secret://demo/other/value"
WAIT = "while :; do sleep 99 & wait $$!; done"
TELL = "md5sum </run/secrets/value"
# Seconds after which a change is acted upon, and a few more.
SETTLES = 4
# What each does when its secret changes: how it is declared, and what its shell runs.
CHANGING = {
    "keeps": ("nothing", f"{TELL}; {WAIT}"),
    "restarts": ("restart", f"{TELL}; {WAIT}"),
    "hears": ("signal HUP", f"trap '{TELL}' HUP; {TELL}; {WAIT}"),
    "watches": ("notify", "exec /probe watch /run/secrets value"),
}


def grid():
    """{name: names that it depends on}: each depends on two of the row before."""
    name = "s{}-{}".format
    return {
        name(row, column): [
            name(row - 1, column),
            name(row - 1, (column + 1) % COLUMNS),
        ]
        if row
        else []
        for row in range(ROWS)
        for column in range(COLUMNS)
    }


def services(image):
    def service(name, script, more=""):
        words = json.dumps(["sh", "-c", script])
        return f"  {name}:\n    image: {image}\n    command: {words}\n    mem_limit: 32m\n{more}"

    # The last of the graph come first: nothing starts in this order because it is declared in it.
    rows = [
        service(name, f"echo up; {WAIT}", f"    depends_on: {json.dumps(needs)}\n")
        for name, needs in reversed(grid().items())
    ]
    rows.append(service("crashes", "exit 7"))
    other = f"    secrets: [{{source: {OTHER}, target: value}}]\n    on_change: restart\n"
    rows.append(service("falls", f"{TELL}; exit 7", other))
    rows.append(service("after", f"echo up; {WAIT}", "    depends_on: [crashes]\n"))
    given = f"    secrets: [{{source: {SECRET}, target: value}}]\n"
    rows += [
        service(name, script, f"{given}    on_change: {word}\n")
        for name, (word, script) in CHANGING.items()
    ]
    return "".join(rows)


class Many(unittest.TestCase):
    """Checks that share one boot; they run in the order of their names."""

    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="cofferdam-many-")
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
        with open(BUSYBOX, "rb") as file:
            files = {"bin": (0o755, None), "bin/busybox": (0o755, file.read())}
        files["probe"] = workload_files()["probe"]
        applets = ("sh", "sleep", "md5sum")
        files |= {f"bin/{name}": (0o777, "busybox") for name in applets}
        image = world.push_image("test/busybox", files, {"WorkingDir": "/"})
        cls.port = free_port()
        declaration = world.declaration(cls.port, services(image))
        commit = world.commit(declaration)
        memory = ("--memory", "4G")
        cls.appliance = world.boot("appliance", IMAGE, declaration, commit, cls.port, *memory)
        known = [*world.trust_options(IMAGE), *world.github_options()]
        cls.options = ["--endpoint", f"127.0.0.1:{cls.port}", *known]
        world.wait_console("appliance", cls.appliance, "launched", 240)
        cls.launched = time.monotonic()
        cls.first = wait_for("a secret put", 120, lambda: cls.put("the first value of it"), 1)
        cls.put("another first value", OTHER)

    @classmethod
    def put(cls, value, name=SECRET):
        """What `secret put` answers; None when it is too early."""
        code, out, _ = cls.world.coffer(
            "secret", "put", REPOSITORY, name, *cls.options, "--json", stdin=value
        )
        return json.loads(out) if code == 0 else None

    def order(self, word, name):
        self.world.coffer_ok(word, REPOSITORY, name, "--wait", *self.options)

    def events(self):
        """{(role, service): its events}."""
        printed = self.world.coffer_ok("events", REPOSITORY, *self.options, "--json")
        found = {}
        for event in map(json.loads, printed.splitlines()):
            found.setdefault((event["role"], event.get("service")), []).append(event)
        return printed, found

    @classmethod
    def status(cls):
        said = json.loads(cls.world.coffer_ok("status", REPOSITORY, *cls.options, "--json"))
        return {service["name"]: service for service in said["services"]}

    def lines(self, name):
        printed = self.world.coffer_ok("logs", REPOSITORY, name, *self.options, "--json")
        return [json.loads(line)["line"] for line in printed.splitlines()]

    def sums(self, name):
        """What a service printed of its secret file: the MD5 sum, or how long it is."""
        return [line.split()[0] for line in self.lines(name) if line.endswith(" -")]

    def test_1_fifty_start_in_order_and_one_that_crashes_delays_nobody(self):
        wanted = {*grid(), "after", *CHANGING}

        def all_run():
            found = self.status()
            states = {name: found[name]["state"] for name in wanted}
            return set(states.values()) == {"running"} and found

        found = wait_for("the services", 300, all_run, 2)
        print(f"\n{len(found)} services after {time.monotonic() - self.launched:.0f} s")
        self.assertGreaterEqual(found["crashes"]["restarts"], 1)
        self.assertEqual(found["crashes"]["exit_code"], 7)
        since = {name: found[name]["since"] for name in wanted}
        early = [
            (name, need)
            for name, needs in grid().items()
            for need in needs
            if since[name] < since[need]
        ]
        self.assertEqual(early, [])
        self.assertEqual({found[name]["restarts"] for name in wanted}, {0})

    def test_2_a_secret_that_changes_does_to_each_what_is_declared(self):
        words = [{"service": name, "on_change": word} for name, (word, _) in CHANGING.items()]
        self.assertEqual(self.first["services"], words)
        values = ("the first value of it", "the second one of it", "the third of it")

        def seen(name, count):
            """Waits until a service has printed the first values of its secret."""
            sums = [hashlib.md5(value.encode()).hexdigest() for value in values]
            sums = [str(len(value)) for value in values] if name == "watches" else sums
            what = f"{name} with {count} values"
            wait_for(what, 60, lambda: self.sums(name) == sums[:count], 1)

        for name in CHANGING:
            seen(name, 1)
        for count, value in enumerate(values[1:], 2):
            self.assertEqual(self.put(value)["services"], words)
            for name in CHANGING:
                seen(name, 1 if name == "keeps" else count)
        found = self.status()
        restarts = {name: found[name]["restarts"] for name in CHANGING}
        self.assertEqual(restarts, {"keeps": 0, "restarts": 2, "hears": 0, "watches": 0})
        self.assertEqual({found[name]["restarts"] for name in grid()}, {0})

    def test_3_an_operators_order_comes_before_a_change(self):
        def md5(value):
            return hashlib.md5(value.encode()).hexdigest()

        # While the change is made, or before it: the service is stopped then, and stays so.
        with concurrent.futures.ThreadPoolExecutor() as both:
            put = both.submit(self.put, "the fourth of it")
            self.order("stop", "restarts")
            self.assertIsNotNone(put.result())
        self.assertIsNotNone(self.put("the fifth of it"))
        time.sleep(2 * SETTLES)
        self.assertEqual(self.status()["restarts"]["state"], "stopped")
        sums = self.sums("restarts")
        self.assertNotIn(md5("the fifth of it"), sums)
        self.order("start", "restarts")
        last = [md5("the fifth of it")]
        wait_for("its start", 60, lambda: self.sums("restarts") == sums + last, 1)
        time.sleep(2 * SETTLES)
        self.assertEqual(self.sums("restarts"), sums + last, "it starts once")
        # What changes while a service waits to be started again is there when it is.
        self.assertEqual(self.sums("falls")[-1], md5("another first value"))
        self.assertIsNotNone(self.put("another second value", OTHER))
        second = md5("another second value")
        wait_for("its next start", 120, lambda: self.sums("falls")[-1] == second, 1)

    def test_4_events_say_what_happened_and_no_value(self):
        log = os.path.join(self.folder.name, "events.log")

        def told():
            with open(log, encoding="utf-8") as text:
                return text.read().count("shim hears: secrets were put again: signal HUP")

        with open(log, "wb") as out:
            follow = subprocess.Popen(
                [os.path.join(TOOLS, "coffer"), "events", REPOSITORY, "-f", *self.options],
                env={**self.world.environment(), "COFFER_KEY": self.world.path("operator.key")},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            before = wait_for("the events", 60, told, 1)
            put = self.put("the sixth of it")
            wait_for("the next one", 60, lambda: told() > before, 1)
        finally:
            follow.terminate()
            follow.wait(20)
        self.assertIsNotNone(put)
        printed, found = self.events()
        kinds = [event["event"]["kind"] for event in found["shim", "restarts"]]
        self.assertGreaterEqual(kinds.count("secrets-changed"), 2)
        self.assertNotIn("secrets-changed", [e["event"]["kind"] for e in found["shim", "keeps"]])
        states = [event["event"].get("state") for event in found["shim", "restarts"]]
        self.assertIn("stopped", states)
        # What operators did is not displaced by who starts again and again and has a ring for that.
        acts = [(e["event"]["operation"], e["event"].get("service")) for e in found["vault", None]]
        for act in (("put", None), ("stop-service", "restarts"), ("start-service", "restarts")):
            self.assertIn(act, acts)
        self.assertGreaterEqual(acts.count(("put", None)), 6)
        self.assertEqual({e["event"]["operation"] for e in found["vault", "falls"]}, {"lease"})
        for ring in found.values():
            numbers = [event["number"] for event in ring]
            self.assertEqual(numbers, list(range(numbers[0], numbers[0] + len(numbers))))
        for value in ("first value", "second one of it", "second value", "fifth of it", "sixth of"):
            self.assertNotIn(value, printed)
        count = len(printed.splitlines())
        print(f"\n{count} events of {len(found)} rings, {len(printed)} bytes")

    def test_5_they_stop_in_reverse_order(self):
        self.world.power_off("appliance", self.appliance, 150)
        console = self.world.console("appliance")
        ended = re.findall(r"shim (s\d-\d) ended", console.split("power-off: power button")[1])
        self.assertEqual(sorted(ended), sorted(grid()))
        late = [
            (name, need)
            for name, needs in grid().items()
            for need in needs
            if ended.index(name) > ended.index(need)
        ]
        self.assertEqual(late, [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
