"""A workload turns on its machine: its neighbours answer, and the doctor says whose it is."""

import contextlib
import http.client

from attacks.stage import PREFIX, SOON
from attacks.table import Scenario, Wrong, must
from harness import REPOSITORY

ATTACKER = "attacker"
# Starts in an hour from which on the doctor speaks of it.
OFTEN = 3
SECONDS = 3


def turn(stage, path):
    """What the attacker says to that, if anything."""
    with contextlib.suppress(OSError, http.client.HTTPException, Wrong):
        return stage.get(path, ATTACKER, seconds=SECONDS + SOON)
    return "was ended"


def back(stage):
    def answers():
        return "released" in stage.get("/release", ATTACKER, seconds=10)

    stage.until("the attacker", answers)


def beside(stage, kind):
    """It takes all there is of a kind and keeps it; others go on."""
    before = stage.starts()
    came = turn(stage, f"/exhaust?kind={kind}&seconds={SECONDS}").strip()
    seen = stage.answers()
    back(stage)
    after = stage.starts()
    others = {n: c for n, c in after.items() if c != before[n] and ATTACKER not in n}
    return must(not others, f"{came[:120]}; {seen}; others that were started again: {others}")


def exhausts(kind):
    return lambda stage: beside(stage, kind)


def crashes(stage):
    for _ in range(OFTEN + 1):
        before = stage.service(ATTACKER)["restarts"]
        turn(stage, "/crash")
        stage.until("its next start", lambda n=before: stage.service(ATTACKER)["restarts"] > n)
        stage.until("the attacker", lambda: stage.get("/", ATTACKER, seconds=10))
    return f"{OFTEN + 1} crashes; {stage.answers()}", stage.diagnosed("service-restarts")


def eats_memory(stage):
    seen = beside(stage, "memory")
    events = stage.operator("GET", "/v1/events").body.decode()
    return must("out-of-memory" in events, seen), stage.diagnosed("service-restarts")


def floods_its_log(stage):
    seen = beside(stage, "output")
    path = f"{PREFIX}/v1/logs?service=open&tail=10"
    log = stage.operator("GET", path.removeprefix(PREFIX))
    return must(log.status == 200 and b"probe listens" in log.body, f"{seen}; a neighbour's log")


def stopped(stage):
    stage.world.coffer_ok("stop", REPOSITORY, ATTACKER, "--wait", *stage.options)
    said = stage.diagnosed("service-stopped", exit_code=0)
    with stage.peer(ATTACKER) as peer:
        answer = peer.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    stage.world.coffer_ok("start", REPOSITORY, ATTACKER, "--wait", *stage.options)
    stage.until("the attacker", lambda: stage.get("/", ATTACKER, seconds=10))
    return must(answer.status == 503, f"{answer}; {stage.answers()}"), said


def nobody_else(stage):
    status = stage.until("all services", stage.running)
    restarts = {one["name"]: one["restarts"] for one in status["services"]}
    return must(restarts["web"] == 0, f"{stage.answers()}; {stage.calm()}; restarts {restarts}")


KINDS = ["processes", "processor", "descriptors", "tcp"]
GROUP = "workloads"
SCENARIOS = [
    Scenario(GROUP, "one that crashes again and again harms nobody, and is named", crashes),
    Scenario(GROUP, "one that takes all memory ends itself, and is named", eats_memory),
    Scenario(GROUP, "one that floods its log harms nobody's log", floods_its_log, True),
    *(Scenario(GROUP, f"one that takes all {k} harms nobody", exhausts(k), True) for k in KINDS),
    Scenario(GROUP, "one that an operator stops says so, and comes back when told", stopped),
    Scenario(GROUP, "afterwards the others run as they did", nobody_else),
]
