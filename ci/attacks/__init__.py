"""What ci/live does to one running appliance: one module for each kind of harm, each a list of
scenarios.
"""

import time

from attacks import deaths, frames, framing, host, opening, operators, peers, releases, workloads
from attacks.table import Scenario, Wrong, all_of, must, tried

# In this order: what the doctor remembers for an hour comes last.
MODULES = (opening, framing, frames, operators, peers, releases, host, deaths, workloads)
GROUPS = [module.GROUP for module in MODULES]
# What is done again and again, and how far a role's memory may grow meanwhile: times, and bytes.
IN_TURN = ("peers", "deaths", "workloads")
GROWTH = 2, 4 << 20


def chosen(only, long):
    """The scenarios of these groups; of the first always, since until then nothing runs."""
    modules = [one for one in MODULES if not only or one is opening or one.GROUP in only]
    return [one for module in modules for one in module.SCENARIOS if long or not one.long]


def in_turn(stage, minutes):
    """One row: rounds of some groups for so long, each with the short form's numbers."""

    def act(stage):
        end, rounds, before = time.monotonic() + 60 * minutes, 0, memory(stage)
        scenarios = [one for one in chosen(IN_TURN, True) if one.group != opening.GROUP]
        stage.long = False
        while time.monotonic() < end:
            wrong = [row for row in all_of(stage, scenarios) if not row.holds]
            rounds += 1
            if wrong:
                raise Wrong(f"in round {rounds}: {wrong[0].claim}: {wrong[0].seen}")
        after, (times, more) = memory(stage), GROWTH
        grown = {n: (b, after[n]) for n, b in before.items() if after[n] > times * b + more}
        kib = ", ".join(f"{n} {b >> 10} to {after[n] >> 10}" for n, b in before.items())
        return must(not grown, f"{rounds} rounds; KiB of {kib}")

    claim = f"{', '.join(IN_TURN)} for {minutes:g} minutes: every claim holds, and no role grows"
    return tried(stage, Scenario("in turn", claim, act))


def memory(stage):
    """Bytes of each role's control group."""
    return {one["name"]: one["memory"] for one in stage.status()["roles"] if one.get("memory")}
