#!/usr/bin/python3
"""From a stranger's compose app to a verified appliance on this machine, in the four commands that
README shows; what its operator does with it then; and what is left when somebody interrupts.

One boot for `coffer up --simulate`, and one that is interrupted.
"""

import glob
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.parse
import urllib.request

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from harness import ROOT, World, free_port, wait_for, workload_files
from process import Failed, run

IMAGE = os.environ.get("COFFERDAM_IMAGE", os.path.join(ROOT, "cofferdam-simulator.efi"))
TOOLS = os.environ.get("COFFERDAM_TOOLS", os.path.join(ROOT, "target", "debug"))
SECRET = "a-strangers-own-secret-value"
COMPOSE = """services:
  web:
    image: {image}
    command: [/probe]
    user: "1000:1000"
    environment:
      GREETING_SECRET: ${{GREETING_SECRET}}
      GREETING: ${{GREETING:-hello stranger}}
    ports: ["{port}:8080"]
    volumes: ["kept:/kept"]
volumes: {{kept: {{}}}}
"""


def processes_of(folder):
    """The processes that name this folder on their command lines, or stand in it."""
    found = []
    for path in glob.glob("/proc/[0-9]*"):
        try:
            with open(path + "/cmdline", "rb") as file:
                words = file.read()
            place = os.readlink(path + "/cwd")
        except OSError:
            continue
        if os.fsencode(folder) in words or place.startswith(folder):
            found.append(words.replace(b"\0", b" ").decode(errors="replace")[:200])
    return found


class Up(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="cofferdam-up-")
        cls.addClassCleanup(shutil.rmtree, cls.folder, True)
        cls.world = World(os.path.join(cls.folder, "world"), TOOLS)
        cls.world.start_services()
        cls.addClassCleanup(cls.world.stop)
        cls.image = cls.world.push_image(
            "stranger/web", workload_files(), {"Entrypoint": ["/probe"], "WorkingDir": "/"}
        )
        cls.app = os.path.join(cls.folder, "app")
        cls.port = free_port()
        cls.environment = {
            **cls.world.environment(),
            "HOME": cls.folder,
            "COFFER_CHECKOUT": ROOT,
            "XDG_STATE_HOME": os.path.join(cls.folder, "state"),
            "XDG_CONFIG_HOME": os.path.join(cls.folder, "config"),
        }
        cls.addClassCleanup(cls.coffer, "down")

    @classmethod
    def coffer(cls, *words, timeout=400, **options):
        done = subprocess.run(
            [os.path.join(TOOLS, "coffer"), *words],
            cwd=options.pop("cwd", cls.folder),
            env=cls.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            **options,
        )
        return done.returncode, done.stdout, done.stderr

    def ok(self, *words, **options):
        code, out, err = self.coffer(*words, **options)
        self.assertEqual(code, 0, f"coffer {' '.join(words)}\n{out}{err}")
        return out

    def stranger(self):
        """The repository that somebody else has made."""
        source = os.path.join(self.folder, "theirs")
        os.makedirs(source)
        for name, text in (
            ("compose.yaml", COMPOSE.format(image=self.image, port=self.port)),
            (".env", f"GREETING_SECRET={SECRET}\n"),
        ):
            with open(os.path.join(source, name), "w", encoding="utf-8") as file:
                file.write(text)
        git = ["git", "-C", source, "-c", "user.name=them", "-c", "user.email=them@example.org"]
        run([*git, "init", "-q"])
        run([*git, "add", "."])
        run([*git, "commit", "-q", "-m", "App"])
        return source

    def get(self, port, path="/"):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", path)
        answer = connection.getresponse()
        said = answer.status, answer.read().decode()
        connection.close()
        return said

    def answers(self, port):
        try:
            return self.get(port)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def test_four_commands_lead_from_a_compose_app_to_a_verified_appliance(self):
        run(["git", "clone", "-q", self.stranger(), self.app])
        self.ok("import", "stranger/app", "--secrets", "secrets.env", cwd=self.app)
        up = ["up", "--simulate", "--secrets", "secrets.env", "--json", "--image", IMAGE]
        up += ["--port", str(free_port())]
        up += ["--registry", f"{self.image.split('/')[0]}={self.world.ca}"]
        came = json.loads(self.ok(*up, cwd=self.app))
        self.assertTrue(came["simulated"])
        self.assertEqual(came["state"], "running")
        local = int(came["listen"].rsplit(":", 1)[1])
        wait_for("coffer connect", 60, lambda: self.answers(local))
        status, answer = self.get(local)
        self.assertEqual(status, 200)
        self.assertIn("hello stranger", answer)
        mounts = self.get(local, "/file?path=/kept")
        self.assertEqual(mounts[0], 200, mounts)

        state = os.path.join(self.folder, "state", "coffer", "up", "stranger+app")
        self.assertEqual(os.stat(state).st_mode & 0o777, 0o700)
        code, _, err = self.coffer(*up, cwd=self.app)
        self.assertNotEqual(code, 0)
        self.assertIn("hint:", err)

        trust = ["--reference", came["reference"], "--root", came["root"]]
        trust += ["--github-api", came["github_api"], "--github-ca", came["github_ca"]]
        self.assertEqual(self.doctored(trust), ("ok", []))
        self.orders(trust, local)
        self.followed(trust, local)
        scraped, exporter = self.scraped(trust)

        self.assertIn("is down", self.ok("down"))
        # No figure outlives the appliance that it is of.
        with self.assertRaises(urllib.error.HTTPError) as no:
            urllib.request.urlopen(scraped, timeout=90)
        self.assertEqual(no.exception.code, 503)
        exporter.send_signal(signal.SIGINT)
        self.assertEqual(exporter.wait(30), 130)
        self.assertFalse(os.path.exists(state))
        self.assertEqual(processes_of(state), [])
        self.assertEqual(self.coffer("down")[0], 1)

    def doctored(self, trust):
        """(the verdict, the codes of what is not well), as `coffer doctor` has them."""
        said = json.loads(self.ok("doctor", "stranger/app", "--json", *trust))
        return said["verdict"], [one["code"] for one in said["findings"] if one["severity"] != "ok"]

    def orders(self, trust, local):
        """Stop, start and restart, by an operator and by nobody else."""

        def service():
            return json.loads(self.ok("status", "stranger/app", "--json", *trust))["services"][0]

        before = service()
        text = self.ok("restart", "stranger/app", "web", "--wait", *trust)
        self.assertEqual(text, "web: running\n")
        self.assertNotEqual(service()["pid"], before["pid"])
        self.ok("stop", "stranger/app", "web", "--wait", *trust)
        self.assertEqual(service()["state"], "stopped")
        self.assertFalse(self.answers(local))
        self.assertEqual(self.doctored(trust), ("warning", ["service-stopped"]))
        table = self.ok("top", "stranger/app", *trust)
        self.assertRegex(table, r"web +stopped|web +\d+/\d+")

        run(
            [
                "ssh-keygen",
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-f",
                os.path.join(self.folder, "other"),
            ]
        )
        stranger = ["--key", os.path.join(self.folder, "other")]
        code, _, err = self.coffer("start", "stranger/app", "web", *trust, *stranger)
        self.assertEqual(code, 4, err)
        self.assertEqual(service()["state"], "stopped")
        code, _, err = self.coffer("start", "stranger/app", "nobody", *trust)
        self.assertEqual(code, 1, err)
        self.assertIn("there is no such service", err)

        self.ok("start", "stranger/app", "web", "--wait", *trust)
        wait_for("the service", 60, lambda: self.answers(local))
        console = open(
            os.path.join(self.folder, "state/coffer/up/stranger+app/machine.log"), encoding="utf-8"
        )
        with console:
            said = console.read()
        self.assertRegex(said, r"audit: restart-service .*status=200 operator=\S+ service=web")
        self.assertRegex(said, r"audit: stop-service .*status=200 .* service=web")
        self.assertNotRegex(said, r"audit: start-service .*status=40[13].*service=web")

    def scraped(self, trust):
        """A real Prometheus scrapes the appliance; returns what it scrapes, and who serves that."""
        ports = free_port(), free_port()
        exporter, server = (f"127.0.0.1:{port}" for port in ports)
        place = os.path.join(self.folder, "prometheus")
        os.makedirs(place)
        known = [{"targets": [exporter]}]
        job = {"job_name": "cofferdam", "scrape_interval": "5s", "scrape_timeout": "5s"}
        with open(os.path.join(place, "prometheus.yml"), "w", encoding="utf-8") as file:
            json.dump({"scrape_configs": [{**job, "static_configs": known}]}, file)

        def start(words, log):
            with open(os.path.join(place, log), "wb") as out:
                process = subprocess.Popen(
                    words, env=self.environment, stdout=out, stderr=subprocess.STDOUT
                )
            self.addCleanup(process.wait)
            self.addCleanup(process.send_signal, signal.SIGINT)
            return process

        tool = os.path.join(TOOLS, "coffer")
        scraped = start([tool, "top", "stranger/app", "--metrics", exporter, *trust], "coffer.log")
        storage = f"--storage.tsdb.path={place}/data"
        config = f"--config.file={place}/prometheus.yml"
        start(["prometheus", config, storage, f"--web.listen-address={server}"], "prometheus.log")

        def value(query):
            address = f"http://{server}/api/v1/query?query=" + urllib.parse.quote(query)
            try:
                with urllib.request.urlopen(address, timeout=10) as answer:
                    found = json.load(answer)["data"]["result"]
            except OSError:
                return None
            return float(found[0]["value"][1]) if found else None

        running = 'cofferdam_service_state{service="web",state="running"}'
        try:
            wait_for("what Prometheus scrapes", 90, lambda: value(running) == 1.0, 1)
        except Failed:
            for log in ("coffer.log", "prometheus.log"):
                with open(os.path.join(place, log), encoding="utf-8") as file:
                    print(log, file.read()[-3000:], sep=": ", file=sys.stderr)
            print(value("up"), value("scrape_duration_seconds"), file=sys.stderr)
            raise
        self.assertEqual(value('up{job="cofferdam"}'), 1.0)
        for query in (
            'cofferdam_service_memory_bytes{service="web"}',
            'cofferdam_service_cpu_seconds_total{service="web"}',
            'cofferdam_role_memory_bytes{role="front"}',
            'cofferdam_role_memory_bytes{role="vault"}',
            "cofferdam_evidence_expiry_timestamp_seconds - time()",
            "cofferdam_connections_total",
            "cofferdam_evidence_documents_total",
            "cofferdam_quotes_total",
            "cofferdam_store_secrets",
            "cofferdam_store_bytes",
        ):
            self.assertGreater(value(query), 0, query)
        self.assertEqual(value('cofferdam_service_state{service="web",state="failed"}'), 0.0)
        # A page in a browser here, whose own name leads to this machine now.
        page = urllib.request.Request(f"http://{exporter}/metrics", headers={"Host": "page.test"})
        with self.assertRaises(urllib.error.HTTPError) as no:
            urllib.request.urlopen(page, timeout=30)
        self.assertEqual(no.exception.code, 421)
        return f"http://{exporter}/metrics", scraped

    def followed(self, trust, local):
        """A log goes on while it is read, and without the secret."""
        log = os.path.join(self.folder, "follow.log")
        with open(log, "wb") as out:
            follow = subprocess.Popen(
                [os.path.join(TOOLS, "coffer"), "logs", "stranger/app", "web", "-f", *trust],
                env=self.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:

            def lines():
                with open(log, encoding="utf-8") as file:
                    return file.read()

            wait_for("the log", 60, lambda: "probe listens" in lines())
            before = lines()
            connection = http.client.HTTPConnection("127.0.0.1", local, timeout=30)
            connection.request("GET", "/leak")
            connection.getresponse().read()
            connection.close()
            wait_for("what is new in the log", 30, lambda: len(lines()) > len(before))
            wait_for("the redacted secret", 30, lambda: "[redacted:" in lines())
            self.assertNotIn(SECRET, lines())
        finally:
            follow.send_signal(signal.SIGINT)
            self.assertEqual(follow.wait(30), 130)
        since = self.ok("logs", "stranger/app", "web", "--since", "10m", *trust)
        self.assertIn("[redacted:", since)
        self.assertEqual(self.ok("logs", "stranger/app", "web", "--since", "1ms", *trust), "")


class Interrupted(unittest.TestCase):
    def test_ctrl_c_leaves_nothing_of_the_demo(self):
        room = tempfile.mkdtemp(prefix="cofferdam-interrupted-")
        self.addCleanup(shutil.rmtree, room, True)
        with open(os.path.join(room, "log"), "wb") as log:
            demo = subprocess.Popen(
                [
                    os.path.join(ROOT, "ci", "demo"),
                    "--image",
                    IMAGE,
                    "--measurements",
                    self.measurements(room),
                    "--one-boot",
                ],
                env={**os.environ, "TMPDIR": room, "COFFERDAM_TOOLS": TOOLS},
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.addCleanup(lambda: demo.poll() is None and os.killpg(demo.pid, signal.SIGKILL))

        def folders():
            return glob.glob(os.path.join(room, "cofferdam-demo-*"))

        def boots():
            return any(
                os.path.exists(os.path.join(path, "first", "qemu.pid")) for path in folders()
            )

        wait_for("the demo's machine", 120, lambda: boots() or demo.poll() is not None)
        self.assertIsNone(demo.poll(), self.log(room))
        self.assertNotEqual(processes_of(room), [])
        # As a terminal does it: everything in the foreground gets it, twice.
        os.killpg(demo.pid, signal.SIGINT)
        time.sleep(0.5)
        if demo.poll() is None:
            os.killpg(demo.pid, signal.SIGINT)
        self.assertEqual(demo.wait(90), 130, self.log(room))
        self.assertEqual(folders(), [])
        self.assertEqual(processes_of(room), [])

    @staticmethod
    def log(room):
        with open(os.path.join(room, "log"), encoding="utf-8", errors="replace") as file:
            return re.sub(r"\r", "\n", file.read())[-3000:]

    @staticmethod
    def measurements(room):
        """Reference values of this very image, as the demo demands them."""
        folder = os.path.join(room, "measurements")
        os.makedirs(folder)
        tool = os.path.join(TOOLS, "coffer")
        mrtd = run([os.path.join(TOOLS, "tdx-sim"), "mrtd"]).strip()
        command = [tool, "measure", IMAGE, "--boot", "simulator", "--mrtd", mrtd]
        command += ["--save", os.path.join(folder, "image.json")]
        run([*command, "--save-platform", os.path.join(folder, "platform.json")])
        return folder


if __name__ == "__main__":
    unittest.main(verbosity=2)
