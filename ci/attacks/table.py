"""Scenarios, and the table of what came of them.

A scenario is a claim, and a function of the stage that tries it. It returns what was seen, or that
and what `coffer doctor` said; a claim that does not hold is raised as `Wrong`. Times are printed
and never judged.
"""

import time
from typing import NamedTuple

from OpenSSL import SSL

from process import Failed


class Wrong(Exception):
    """What was seen is not what was claimed."""


class Scenario(NamedTuple):
    group: str
    claim: str
    act: object
    # Only tried in the long form.
    long: bool = False


class Row(NamedTuple):
    group: str
    claim: str
    seen: str
    doctor: str
    seconds: float
    holds: bool


def must(holds, seen):
    """`seen`, or `Wrong` with it."""
    if not holds:
        raise Wrong(seen)
    return seen


def tried(stage, scenario):
    """The row of one scenario. One that fails keeps the others from nothing."""
    began = time.monotonic()
    try:
        came = scenario.act(stage)
        seen, doctor = came if isinstance(came, tuple) else (came, "")
        holds = True
    except (Wrong, Failed, OSError, SSL.Error, ValueError, LookupError) as error:
        seen, doctor, holds = f"{type(error).__name__}: {error}", "", False
    seconds = time.monotonic() - began
    return Row(scenario.group, scenario.claim, str(seen), doctor, seconds, holds)


def cell(text, most=300):
    """Text that keeps to its cell."""
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= most else line[: most - 1] + "…"


def markdown(rows):
    lines = ["| # | what | claim | seen | doctor | s | |", "|---|---|---|---|---|---|---|"]
    for number, row in enumerate(rows, 1):
        words = [row.group, row.claim, row.seen, row.doctor or "-"]
        outcome = "holds" if row.holds else "**WRONG**"
        cells = [str(number), *map(cell, words), f"{row.seconds:.1f}", outcome]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def all_of(stage, scenarios):
    """The rows of all of them, each said as it comes: who ends this has what came until then."""
    rows = []
    for scenario in scenarios:
        row = tried(stage, scenario)
        rows.append(row)
        word = "holds" if row.holds else "WRONG"
        took = f"({row.seconds:.1f} s)"
        print(f"{word}: {row.group}: {row.claim} {took}: {cell(row.seen)}", flush=True)
    return rows
