"""Roles die while clients ask: whoever gets an answer gets the right one, and soon all do again."""

import contextlib
import http.client
import threading
import time

from OpenSSL import SSL

from attacks.stage import ADDRESSES
from attacks.table import Scenario, Wrong, must
from process import Failed

ROLES = "vault front publish evidence bridge egress reserve network"
NAMES = [*ROLES.split(), "shim open"]
# Those that clients notice at once; ci/tests/test_appliance.py has each of them die, too.
SERVING = ("vault", "front", "evidence", "shim open")
TIMES = {False: 1, True: 20}


class Traffic:
    """Clients of two services and of the evidence, each of an address of its own."""

    def __init__(self, stage, pause=0.02):
        # The emulated processors are for others, too.
        self.stage, self.pause, self.over = stage, pause, threading.Event()
        self.right, self.none, self.wrong = 0, 0, []
        self.lock = threading.Lock()
        self.threads = [
            threading.Thread(target=self.go_on, args=(act,), daemon=True)
            for act in (
                lambda: self.service("open", ADDRESSES[0]),
                lambda: self.service("attacker", ADDRESSES[1]),
                lambda: stage.fresh(ADDRESSES[2]),
            )
        ]

    def service(self, name, source):
        # A 5xx in the appliance's own words is no answer of the service's.
        with self.stage.connection(name, source, 30) as call:
            call.request("GET", "/")
            answer = call.getresponse()
            body = answer.read()
        if answer.status == 200 and not body.startswith(f"hello {name}".encode()):
            raise Wrong(f"{name}: {body[:200]}")
        if answer.status not in (200, 502, 503):
            raise Wrong(f"{name}: {answer.status} {body[:200]}")
        return answer.status == 200

    def go_on(self, act):
        while not self.over.is_set():
            right = False
            try:
                right = act()
            except (OSError, http.client.HTTPException):
                pass
            except (Wrong, ValueError) as error:
                with self.lock:
                    self.wrong.append(str(error))
            with self.lock:
                self.right, self.none = self.right + bool(right), self.none + (not right)
            time.sleep(self.pause)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join(60)


def serves(stage, name):
    """Whether what this role is for is to be had."""
    if name == "vault":
        return stage.operator("GET", "/v1/secrets").status == 200
    if name == "publish":
        return stage.operator("POST", "/v1/publish").status == 202
    if name == "evidence":
        return stage.fresh()
    if name == "bridge":
        return stage.get("/dependency?host=attacker&port=8080").startswith("hello attacker")
    return stage.get("/").startswith("hello open")


def death(name):
    def act(stage):
        took = []
        with Traffic(stage) as traffic:
            for _ in range(TIMES[stage.long]):
                before = stage.starts()[name]
                answer = stage.control.ask(f"kill {name}")
                if not answer["killed"]:
                    raise Wrong(f"{answer}")
                began = time.monotonic()

                def again(before=before):
                    # The status first: what served before may serve without the role for a while.
                    roles = {one["name"]: one for one in stage.status()["roles"]}
                    role = roles[name]
                    started = role["restarts"] > before and role["state"] == "running"
                    return started and serves(stage, name)

                stage.until(f"{name} again", again)
                took.append(time.monotonic() - began)
        times = f"again after {took[0]:.1f} s, at worst {max(took):.1f} s of {len(took)}"
        seen = f"{times}; {traffic.right} right answers, {traffic.none} none"
        return must(not traffic.wrong and traffic.right, f"{seen}, wrong {traffic.wrong[:3]}")

    return act


def both(stage):
    """Two that need each other, and who serves them, at once."""
    with Traffic(stage) as traffic:
        for name in ("vault", "evidence", "front"):
            stage.control.ask(f"kill {name}")
        stage.until("all of it", stage.answers)
    return must(not traffic.wrong, f"{traffic.right} right, wrong {traffic.wrong[:3]}")


def told(stage):
    # The scenario before has killed the vault, which is back after its pause.
    seen = f"{stage.until('all of it', stage.answers)}; {stage.calm()}"
    return seen, stage.diagnosed("role-ended", exit_code=0)


def without_it(stage):
    """An operator reads the status while there is no vault: it is killed until it stays away."""
    for _ in range(40):
        with contextlib.suppress(OSError, SSL.Error, Failed):
            stage.control.ask("kill vault")
        answer = stage.operator("GET", "/v1/secrets")
        if answer.status != 200:
            return must(
                answer.status == 503 and stage.status(), f"the vault: {answer}; status: 200"
            )
    raise Wrong("the vault was never away")


GROUP = "deaths"
SCENARIOS = [
    *(
        Scenario(GROUP, f"{n} dies under load: no wrong answer", death(n), n not in SERVING)
        for n in NAMES
    ),
    Scenario(GROUP, "vault, evidence and front die at once: no wrong answer", both),
    Scenario(GROUP, "without a vault an operator still reads the status", without_it),
    Scenario(GROUP, "afterwards all is served, and the doctor names the deaths", told),
]
