"""What the host does to the machine: takes its network, lets it stand still."""

import time

from attacks.stage import SOON
from attacks.table import Scenario, must
from harness import REPOSITORY, Qmp

# Longer than clocks may differ before the doctor speaks of it.
PAUSE = 45


def link(stage, word):
    stage.world.monitor("appliance", f"set_link net {word}")


def no_network(stage):
    link(stage, "off")
    try:
        said = stage.diagnosed("appliance-away", exit_code=6, seconds=28)
    finally:
        link(stage, "on")
    seen = stage.until("an answer", stage.answers)
    return seen, f"{said}, then {stage.diagnosed(exit_code=0)}"


def moment(stage):
    """A request that is under way while the machine stands still for a moment."""
    with stage.peer("open") as peer, Qmp(stage.world.path("appliance", "qmp.sock")) as qmp:
        qmp.ask("stop")
        peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(2)
        qmp.ask("cont")
        answer = peer.answer()
    return must(answer.body.startswith(b"hello open"), f"{answer.status}; {stage.answers()}")


def clock(stage):
    """The clock is behind then, which nothing in the machine can see by itself."""
    with Qmp(stage.world.path("appliance", "qmp.sock")) as qmp:
        qmp.ask("stop")
        time.sleep(PAUSE)
        qmp.ask("cont")

    def said():
        codes, code = stage.doctor()
        told = {"clock-off", "clocks-differ"} & {*codes}
        return told and f"{' '.join(codes)} ({code})"

    found = stage.until("a word about clocks", said, SOON)
    code, _, _ = stage.world.coffer("verify", REPOSITORY, *stage.options)
    return must(code == 0, f"verify: {code}; {stage.answers()}"), found


GROUP = "host"
SCENARIOS = [
    Scenario(GROUP, "without a network nobody answers, and with it all do again", no_network),
    Scenario(GROUP, "a machine that stands still for a moment loses no request", moment),
    Scenario(GROUP, f"one that stood still for {PAUSE} s: the doctor names clocks", clock, True),
]
