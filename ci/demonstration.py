"""What `ci/demo` shows: one appliance from its boot to a redacted log, and over a power cut.

Every step runs `coffer` as a person would, and fails when it does not do what it is there to show.
"""

import http.client
import json
import os
import time

from harness import GITHUB_TOKEN, OPERATOR, REPOSITORY, SEALED, free_port, wait_for, workload_files
from process import Failed, run

SECRET = "correct-horse-battery-staple"
PASSPHRASE = "what opens the state of the demo"
SERVICES = """  web:
    image: {image}
    command: [/probe]
    user: "1000:1000"
    environment:
      GREETING_SECRET: secret://demo/greeting/value
    secrets:
      - secret://demo/greeting/value
    ports: ["443:8080"]
    restart: always
"""


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    if answer.status != 200:
        raise Failed(f"GET {path}: {answer.status} {body}")
    return body


class Demonstration:
    """One appliance, what is known of it, and what is shown of it at the end."""

    def __init__(self, world, image, measurements, step):
        self.world, self.image, self.step = world, image, step
        self.known = [*world.trust_in([measurements]), *world.github_options()]
        self.port, self.listen, self.disk = free_port(), free_port(), world.path("state.img")
        self.shown = {
            "repository": REPOSITORY,
            "endpoint": f"127.0.0.1:{self.port}",
            "listen": f"127.0.0.1:{self.listen}",
        }

    def run(self, one_boot=False):
        """The steps from the image to the redacted log, and over a power cut; what is shown."""
        self.declare()
        machine = self.first_boot()
        self.verify()
        self.secret()
        self.call()
        if not one_boot:
            self.over_a_power_cut(machine)
        return self.shown

    def coffer(self, *words, endpoint=None, stdin=None):
        """Runs `coffer` for the repository: (exit code, what it printed)."""
        at = ["--endpoint", f"127.0.0.1:{endpoint}"] if endpoint else []
        code, out, err = self.world.coffer(*words, *at, *self.known, stdin=stdin)
        return code, out, out + err

    def coffer_ok(self, *words, **options):
        code, out, text = self.coffer(*words, **options)
        if code != 0:
            raise Failed(f"coffer {' '.join(words)} exited with {code}\n{text}")
        return out

    def once_it_answers(self, what, *words, endpoint, stdin):
        """The same while it cannot be reached: (exit code, what it printed)."""

        def attempt():
            code, _, text = self.coffer(*words, endpoint=endpoint, stdin=stdin)
            if code == 6:
                time.sleep(0.5)
                return None
            return code, text

        return wait_for(what, 90, attempt)

    def declare(self):
        world = self.world
        reference = self.step(
            "push the workload to the registry",
            lambda: world.push_image(
                "demo/web", workload_files(), {"Entrypoint": ["/probe"], "WorkingDir": "/"}
            ),
        )
        services = SERVICES.format(image=reference)
        self.declaration = world.declaration(self.port, services, state=OPERATOR)
        self.shown["commit"] = world.commit(self.declaration)
        file = os.path.join(world.path("repos", *REPOSITORY.split("/")), "cofferdam.yaml")
        run([world.tool("coffer"), "check", file])

    def boot(self, name, port, disk):
        """Boots until the appliance waits for what opens its state."""
        more = ("--state", disk)
        commit = self.shown["commit"]
        machine = self.world.boot(name, self.image, self.declaration, commit, port, *more)
        self.world.wait_console(name, machine, SEALED, 180)
        return machine

    def first_boot(self):
        machine = self.step(
            "boot through OVMF and the TPM", lambda: self.boot("first", self.port, self.disk)
        )

        def make():
            code, text = self.once_it_answers(
                "the appliance", "seal", "init", REPOSITORY, endpoint=self.port, stdin=PASSPHRASE
            )
            if code != 0:
                raise Failed(text)
            self.world.wait_console("first", machine, "launched", 90)

        self.step("verify the appliance, make its sealed state, launch", make)
        return machine

    def verify(self):
        self.step(
            "hand it the GitHub token",
            lambda: self.coffer_ok(
                "secret",
                "put",
                REPOSITORY,
                "cofferdam/github/token",
                endpoint=self.port,
                stdin=GITHUB_TOKEN,
            ),
        )
        self.shown["verified"] = self.step(
            "release attestation published and verified", self.published
        )

    def published(self, other_than=None):
        """The newest release, verified, once there is one with another tag."""
        save = ("--save", self.world.path("attestation.json"))

        def newest():
            code, out, text = self.coffer("verify", REPOSITORY, "--json", *save)
            if code == 3:
                raise Failed(text)
            verified = json.loads(out) if code == 0 else None
            return verified if verified and verified["release"]["tag"] != other_than else None

        return wait_for("a release attestation", 120, newest, 1)

    def status(self):
        return json.loads(self.coffer_ok("status", REPOSITORY, "--json"))

    def running(self):
        status = self.status()
        return status if all(one["state"] == "running" for one in status["services"]) else None

    def secret(self):
        services = self.status()["services"]
        self.shown["waited_for"] = [service.get("missing") for service in services]
        self.step(
            "put the workload's secret",
            lambda: self.coffer_ok(
                "secret", "put", REPOSITORY, "demo/greeting/value", stdin=SECRET
            ),
        )
        self.shown["status"] = self.step(
            "the workload runs", lambda: wait_for("the workload", 90, self.running, 0.5)
        )

    def call(self):
        world = self.world
        listen = ("--listen", f"127.0.0.1:{self.listen}")
        world.start("connect", [world.tool("coffer"), "connect", REPOSITORY, *listen, *self.known])
        self.shown["answer"] = self.step(
            "call the workload through coffer connect",
            lambda: wait_for("coffer connect", 60, self.answer),
        )
        get(self.listen, "/leak")

        def log():
            text = self.coffer_ok("logs", REPOSITORY, "web", "--tail", "200")
            return text if "[redacted:" in text else None

        redacted = self.step(
            "read the workload's redacted log", lambda: wait_for("the log", 30, log, 0.5)
        )
        if SECRET in redacted:
            raise Failed("the log shows the secret")
        self.shown["log"] = redacted.splitlines()

    def answer(self):
        try:
            return get(self.listen, "/")
        except (OSError, http.client.HTTPException, Failed):
            return None

    def over_a_power_cut(self, machine):
        """The same disk at another boot, and an old copy of it beside that."""
        world, older = self.world, self.world.path("older.img")

        def again():
            world.cut_power("first", machine)
            run(["cp", "--sparse=always", self.disk, older])
            return self.boot("second", self.port, self.disk)

        second = self.step("cut the power and boot again with the same disk", again)

        def opened():
            code, text = self.once_it_answers(
                "the appliance", "unseal", REPOSITORY, endpoint=self.port, stdin=PASSPHRASE
            )
            if code != 0:
                raise Failed(text)
            world.wait_console("second", second, "launched", 90)
            return wait_for("the workload's answer", 120, self.answer, 0.5)

        answer = self.step("open the state; the workload answers, nothing was put", opened)
        before = self.shown["verified"]["release"]["tag"]
        released = self.step("the second boot's attestation", lambda: self.published(before))
        port = free_port()

        def refused():
            third = self.boot("third", port, older)
            code, text = self.once_it_answers(
                "the appliance", "unseal", REPOSITORY, endpoint=port, stdin=PASSPHRASE
            )
            world.cut_power("third", third)
            if code != 3 or "launched" in world.console("third"):
                raise Failed(f"the old copy of the disk was not refused: {code}: {text}")
            return next(line for line in text.splitlines() if line.startswith("error: "))

        old_copy = self.step("boot with the old copy of the disk: refused", refused)
        self.shown["state"] = {
            "answer": answer,
            "release": released["release"]["tag"],
            "old_copy": old_copy,
        }
