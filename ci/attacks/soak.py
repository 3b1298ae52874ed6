"""A steady load for a long while: every request is answered rightly, and nothing grows.

Clients of two services and of the evidence ask all the time, and every few seconds an operator
reads what there is and puts a secret. What each role uses is sampled, and the last samples are held
against the first ones.
"""

import copy
import time

from OpenSSL import SSL

from attacks.deaths import Traffic
from attacks.table import Scenario, Wrong, must, tried
from process import Failed

# Samples, evenly over the time, and how many of the first and of the last are compared.
SAMPLES = 60
COMPARED = 6
# How far what is used may be above what it was: memory and open descriptors of one role, and the
# vault's store, which is in whole blocks.
MEMORY, DESCRIPTORS, STORE = 1 << 20, 8, 1 << 20
PUT_EVERY = 5
# Between one client's requests: an emulated machine is far from its limits then.
PAUSE = 0.2


class Figures:
    """What each role uses: bytes of memory with its files in memory, and descriptors. One that is
    missing is an error and not as good as none.
    """

    def __init__(self, stage):
        status = stage.status()
        # A shim's is in its service's.
        roles = [one for one in status["roles"] if not one["name"].startswith("shim ")]
        self.memory = {one["name"]: one["memory"] for one in roles}
        for one in status["services"]:
            self.memory[f"service {one['name']}"] = one["usage"]["memory"]
        self.store = status["store"]["bytes"]
        self.descriptors = stage.control.ask("descriptors")["descriptors"]

    def grown(self, since):
        """What is more than it was, and by more than it may."""
        bounds = (
            ("memory", self.memory, since.memory, MEMORY),
            ("descriptors", self.descriptors, since.descriptors, DESCRIPTORS),
            ("store", {"vault": self.store}, {"vault": since.store}, STORE),
        )
        return [
            f"{what} of {name}: {before[name]} to {now[name]}"
            for what, now, before, more in bounds
            for name in sorted(before)
            if now[name] > before[name] + more
        ]


def most(figures):
    """The largest of several samples, by each name."""
    top = copy.copy(figures[0])
    for one in figures[1:]:
        top.memory = {n: max(v, one.memory[n]) for n, v in top.memory.items()}
        top.descriptors = {n: max(v, one.descriptors[n]) for n, v in top.descriptors.items()}
        top.store = max(top.store, one.store)
    return top


def pairs(before, after, shift=0):
    """What each was and what it is, for the table."""
    return ", ".join(f"{n} {b >> shift} to {after[n] >> shift}" for n, b in before.items())


def soak(stage, minutes):
    """One row: a steady load for so long."""

    def act(stage):
        starts = stage.starts()
        samples, failed, rounds = [Figures(stage)], [], 0
        began = time.monotonic()
        with Traffic(stage, PAUSE) as traffic:
            for number in range(1, SAMPLES + 1):
                until = began + 60 * minutes * number / SAMPLES
                while time.monotonic() < until:
                    rounds += 1
                    try:
                        stage.operates()
                        stage.put("demo/soak/value", f"the value of round {rounds}")
                    except (OSError, Wrong, SSL.Error, ValueError, Failed) as error:
                        failed.append(f"operator: {error}")
                    time.sleep(max(0, min(PUT_EVERY, until - time.monotonic())))
                samples.append(Figures(stage))
        grown = most(samples[-COMPARED:]).grown(most(samples[:COMPARED]))
        first, last = samples[0], samples[-1]
        seen = (
            f"{traffic.right} answers and {rounds} rounds of an operator; "
            f"KiB of {pairs(first.memory, last.memory, 10)}; "
            f"descriptors of {pairs(first.descriptors, last.descriptors)}; "
            f"KiB of store {first.store >> 10} to {last.store >> 10}"
        )
        failed += traffic.wrong + [f"{traffic.none} without an answer"] * bool(traffic.none)
        died = {n: b for n, b in stage.starts().items() if b != starts[n]}
        return must(not failed and not grown and not died, f"{seen}; {failed[:5]} {grown} {died}")

    claim = f"a steady load for {minutes:g} minutes: every request is answered, and nothing grows"
    return tried(stage, Scenario("soak", claim, act))
