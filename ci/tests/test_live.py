#!/usr/bin/python3
"""The short form of ci/live: attacks and failures of one running appliance; and what judges them is
tried with what is wrong.

Attackers have addresses of their own in a network namespace, which needs root.
"""

import os
import sys
import tempfile
import unittest
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from attacks import chosen, framing, soak, table
from attacks.stage import is_over, staged
from attacks.table import Scenario, Wrong
from harness import ROOT

IMAGE = os.environ.get("COFFERDAM_IMAGE", os.path.join(ROOT, "cofferdam-simulator.efi"))
TOOLS = os.environ.get("COFFERDAM_TOOLS", os.path.join(ROOT, "target", "debug"))


@unittest.skipUnless(os.geteuid() == 0, "a network namespace needs root")
class Live(unittest.TestCase):
    def test_every_claim_of_the_table_holds(self):
        scenarios = chosen(None, False)
        self.assertGreaterEqual(len(scenarios), 60)
        with (
            tempfile.TemporaryDirectory(prefix="cofferdam-live-") as folder,
            staged(folder, TOOLS, IMAGE) as stage,
        ):
            rows = table.all_of(stage, scenarios)
            # So short a one is only about the requests.
            rows.append(soak.soak(stage, 0.1))
            wrong = [f"{row.group}: {row.claim}: {row.seen}" for row in rows if not row.holds]
            if wrong:
                print(stage.world.console("appliance")[-6000:], file=sys.stderr)
        print(table.markdown(rows), file=sys.stderr)
        self.assertEqual(wrong, [])
        self.assertEqual(len(rows), len(scenarios) + 1)


class Judging(unittest.TestCase):
    """What must be found wrong, is."""

    def test_a_request_that_two_servers_read_differently_is_one_no_more(self):
        head = b"POST / HTTP/1.1\r\nhost: a\r\n"
        chunked = head + b"transfer-encoding: chunked\r\n\r\n"
        self.assertEqual(framing.heard(chunked + b"1\r\na\r\n0\r\n\r\n")[1], "a")
        for wrong in (
            b"",
            head,
            head + b"content-length: 3\r\n\r\nabcGET /smuggled HTTP/1.1\r\n\r\n",
            head + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc",
            head + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            head + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
            head + b"host: b\r\n\r\n",
            head + b"x: y\r\n z\r\n\r\n",
            head + b"x : y\r\n\r\n",
            head + b"x: y\nz: 1\r\n\r\n",
            chunked + b"1\r\na\r\n",
            chunked + b"1;\r\na\r\n0\r\n\r\n",
            chunked + b"1\r\nab\r\n0\r\n\r\n",
            chunked + b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        ):
            with self.assertRaises(Wrong, msg=wrong):
                framing.heard(wrong)

    def test_a_document_over_another_nonce_is_refused(self):
        claims = "eyJub25jZSI6ICJBQUFBIn0="  # {"nonce": "AAAA"}
        document = f'{{"claims": "{claims}", "quote": "AA"}}'
        self.assertTrue(is_over(document, bytes(3)))
        with self.assertRaises(Wrong):
            is_over(document, b"xyz")
        # In a tree whose root the claims do not carry.
        tree = '"challenge": {"nonce": "AAAA", "index": 0, "path": []}'
        with self.assertRaises(Wrong):
            is_over(f'{{"claims": "e30=", "quote": "AA", {tree}}}', bytes(3))

    def test_what_has_grown_in_a_soak_is_named_and_what_is_missing_is_an_error(self):
        def figures(memory, open_ones, store):
            status = {
                "roles": [{"name": "vault", "memory": memory}],
                "services": [{"name": "web", "usage": {"memory": 1}}],
                "store": {"bytes": store},
            }
            stage = mock.Mock()
            stage.status.return_value = status
            stage.control.ask.return_value = {"descriptors": {"vault": open_ones}}
            return soak.Figures(stage)

        first, mib = figures(0, 10, 0), 1 << 20
        self.assertEqual(figures(mib, 18, mib).grown(first), [])
        grown = soak.most([figures(mib + 1, 0, 0), figures(0, 19, mib + 1)]).grown(first)
        self.assertEqual(
            [line.split(":")[0] for line in grown],
            [
                "memory of vault",
                "descriptors of vault",
                "store of vault",
            ],
        )
        first.memory["front"] = 1
        with self.assertRaises(KeyError):
            figures(0, 0, 0).grown(first)

    def test_a_scenario_that_fails_is_wrong_and_keeps_the_next_from_nothing(self):
        def broken(_):
            raise Wrong("seen")

        scenarios = [Scenario("a", "b", broken), Scenario("a", "c", lambda _: ("d", "e"))]
        rows = table.all_of(None, scenarios)
        self.assertEqual([row.holds for row in rows], [False, True])
        said = table.markdown(rows)
        self.assertIn("| 1 | a | b | Wrong: seen | - | 0.0 | **WRONG** |", said)
        self.assertIn("| 2 | a | c | d | e | 0.0 | holds |", said)


if __name__ == "__main__":
    unittest.main(verbosity=2)
