"""The rooms of ARCHITECTURE.md against `cargo metadata`: no crate depends on one that they forbid.

Run with `python3 ci/tests/test_architecture.py`. Dependencies of tests are no arrows. The crates of
PURE reach neither tokio nor reqwest, by whatever way.
"""

import json
import os
import re
import subprocess
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TABLE = ["room", "may depend on"]
# Usable in a browser, in a gateway, anywhere: what they need of the world is given to them.
PURE = {
    "cofferdam-attest",
    "cofferdam-declaration",
    "cofferdam-measure",
    "cofferdam-protocol",
    "cofferdam-redact",
}
NEVER = {"reqwest", "tokio"}


def rooms(page):
    """{crate: the crates that it may depend on}, from the page's table of rooms."""
    found, inside = {}, False
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells[:2] == TABLE:
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not set(cells[0]) <= set("-: "):
            (crate,) = re.findall(r"`([a-z0-9-]+)`", cells[0])
            if crate in found:
                raise ValueError(f"{crate} stands in the table twice")
            found[crate] = set(re.findall(r"`([a-z0-9-]+)`", cells[1]))
    return found


def arrows(metadata):
    """{crate: the workspace's crates that it depends on, tests aside}."""
    members = set(metadata["workspace_members"])
    packages = [package for package in metadata["packages"] if package["id"] in members]
    names = {package["name"] for package in packages}
    return {
        package["name"]: {
            dependency["name"]
            for dependency in package["dependencies"]
            if dependency["kind"] != "dev" and dependency["name"] in names
        }
        for package in packages
    }


def strangers(allowed, drawn):
    """Sentences: what the table does not allow, or does not know."""
    found = [f"{crate} is not in the table" for crate in sorted(drawn.keys() - allowed.keys())]
    found += [f"{crate} is no crate" for crate in sorted(allowed.keys() - drawn.keys())]
    for crate in sorted(drawn.keys() & allowed.keys()):
        found += [
            f"{crate} depends on {other}, which the table does not allow"
            for other in sorted(drawn[crate] - allowed[crate])
        ]
        found += [
            f"{crate} may depend on {other}, which is no crate"
            for other in sorted(allowed[crate] - drawn.keys())
        ]
    return found


def circles(allowed):
    """The crates that may depend on themselves, by whatever way."""

    def reached(crate):
        seen, waiting = set(), [crate]
        while waiting:
            for other in allowed.get(waiting.pop(), set()) - seen:
                seen.add(other)
                waiting.append(other)
        return seen

    return sorted(crate for crate in allowed if crate in reached(crate))


def ways(metadata, crate, wanted):
    """How a crate comes to others by what it is built from: [[crate, …, other]], shortest first."""
    names = {package["id"]: package["name"] for package in metadata["packages"]}
    below = {
        node["id"]: [
            dependency["pkg"]
            for dependency in node["deps"]
            if any(kind["kind"] is None for kind in dependency["dep_kinds"])
        ]
        for node in metadata["resolve"]["nodes"]
    }
    members = set(metadata["workspace_members"])
    (start,) = [one for one in members if names[one] == crate]
    paths, waiting = {start: [crate]}, [start]
    for one in waiting:
        for other in below[one]:
            if other not in paths:
                paths[other] = [*paths[one], names[other]]
                waiting.append(other)
    return [path for path in paths.values() if path[-1] in wanted]


class Rooms(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        command = ["cargo", "metadata", "--offline", "--locked", "--format-version", "1"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        cls.metadata = json.loads(done.stdout)
        with open(os.path.join(ROOT, "ARCHITECTURE.md"), encoding="utf-8") as file:
            cls.allowed = rooms(file.read())

    def test_no_crate_depends_on_one_that_the_table_does_not_allow(self):
        self.assertEqual("\n".join(strangers(self.allowed, arrows(self.metadata))), "")

    def test_the_table_has_no_circle(self):
        self.assertEqual(circles(self.allowed), [])

    def test_what_is_pure_reaches_neither_a_runtime_nor_a_client(self):
        for crate in sorted(PURE):
            self.assertEqual(ways(self.metadata, crate, NEVER), [], crate)


class OfThisTest(unittest.TestCase):
    """What it would say of a tree that is not as drawn."""

    PAGE = (
        "| room | may depend on |\n|---|---|\n| `a` (lib) | `b` |\n| `b` | - |\n\n| `c` | `a` |\n"
    )

    def metadata(self, *arrows, kind=None):
        names = ["a", "b", "tokio"]
        return {
            "workspace_members": ["a 1", "b 1"],
            "packages": [
                {
                    "id": f"{name} 1",
                    "name": name,
                    "dependencies": [
                        {"name": other, "kind": kind} for one, other in arrows if one == name
                    ],
                }
                for name in names
            ],
            "resolve": {
                "nodes": [
                    {
                        "id": f"{name} 1",
                        "deps": [
                            {"pkg": f"{other} 1", "dep_kinds": [{"kind": kind}]}
                            for one, other in arrows
                            if one == name
                        ],
                    }
                    for name in names
                ]
            },
        }

    def test_the_table_is_read_to_its_end(self):
        self.assertEqual(rooms(self.PAGE), {"a": {"b"}, "b": set()})
        with self.assertRaisesRegex(ValueError, "twice"):
            rooms(self.PAGE.replace("`b` |", "`a` |"))

    def test_an_arrow_that_is_not_drawn_is_named(self):
        allowed = rooms(self.PAGE)
        self.assertEqual(strangers(allowed, arrows(self.metadata(("a", "b")))), [])
        said = strangers(allowed, arrows(self.metadata(("b", "a"))))
        self.assertEqual(said, ["b depends on a, which the table does not allow"])
        self.assertEqual(strangers(allowed, arrows(self.metadata(("b", "a"), kind="dev"))), [])
        self.assertEqual(
            strangers({"a": {"d"}}, arrows(self.metadata())),
            ["b is not in the table", "a may depend on d, which is no crate"],
        )
        more = {"a": set(), "b": set(), "c": set()}
        self.assertEqual(strangers(more, arrows(self.metadata())), ["c is no crate"])

    def test_a_circle_is_found(self):
        self.assertEqual(circles({"a": {"b"}, "b": {"a"}, "c": {"a"}}), ["a", "b"])

    def test_a_way_to_a_runtime_is_found_however_long(self):
        found = ways(self.metadata(("a", "b"), ("b", "tokio")), "a", NEVER)
        self.assertEqual(found, [["a", "b", "tokio"]])
        self.assertEqual(ways(self.metadata(("a", "tokio"), kind="dev"), "a", NEVER), [])


if __name__ == "__main__":
    unittest.main()
