#!/usr/bin/python3
"""What leaves the appliance: the names that a service declares, and nothing else.

One boot of the simulator image, in a network of public addresses (documentation's 203.0.113.0/24,
in which the host is the second), with a resolver and servers of this test's own. The resolver is
what QEMU's user network takes from /etc/resolv.conf, so that the machine is started with another
one of those: it needs root, as a resolver's port does.

With names, GitHub and the certification service are two servers, which no other test has: so the
machine is started with a wrong clock, too, that they mend.
"""

import contextlib
import http.client
import json
import os
import re
import socket
import ssl
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from harness import (
    GITHUB_TOKEN,
    HOST_FROM_GUEST,
    REPOSITORY,
    ROOT,
    Qmp,
    free_port,
    wait_for,
    workload_files,
)
from outside import HOST, NETWORK, Outside, Zone

IMAGE = os.environ.get("COFFERDAM_IMAGE", os.path.join(ROOT, "cofferdam-simulator.efi"))
TOOLS = os.environ.get("COFFERDAM_TOOLS", os.path.join(ROOT, "target", "debug"))
# How wrong the machine's clock is when it starts, and how long it stands still later.
AHEAD, PAUSE = 3600, 12
SERVICES = """  web:
    image: {image}
    ports: [{{published: 443, target: 8080, auth: none}}]
    egress:
      - api.example.org:{tls}
      - "*.many.example.org:{tls}"
      - moves.example.org:{tls}
      - db.example.net:{raw}/tcp
  alone:
    image: {image}
    user: "1000:1000"
    ports: [{{published: 8444, target: 8080, auth: none}}]
"""


class Server:
    """A server that says which TLS server name it was called by, or what it was sent instead."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.called = []
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            connection, _ = self.listener.accept()
            with connection:
                said = connection.recv(4096)
                # The probe's hello ends with the name.
                name = re.search(rb"[a-z. ]+$", said.rstrip(b"\n"), re.IGNORECASE)[0]
                self.called.append(name.decode())
                connection.sendall(b"reached by " + name)


@unittest.skipUnless(os.geteuid() == 0, "a resolver's port needs root")
class Egress(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        folder = cls.enterClassContext(tempfile.TemporaryDirectory(prefix="cofferdam-egress-"))
        world = cls.world = cls.enterClassContext(Outside(folder, TOOLS))
        world.start_services()
        cls.zone, cls.tls, cls.raw = Zone(), Server(), Server()
        servers = {"github.example.test": world.github_port, "pcs.example.test": world.pccs_port}
        names = ["api.example.org", "db.example.net", *servers]
        cls.zone.names = {name: [HOST] for name in names}
        cls.ports = {"web": free_port(), "alone": free_port()}
        image = world.push_image("test/probe", workload_files(), {"Entrypoint": ["/probe"]})
        services = SERVICES.format(image=image, tls=cls.tls.port, raw=cls.raw.port)
        declaration = world.declaration(cls.ports["web"], services)
        for name, port in servers.items():
            declaration = declaration.replace(f"{HOST_FROM_GUEST}:{port}", f"{name}:{port}")
        declaration = declaration.replace(HOST_FROM_GUEST, HOST)
        more = ["--clock-ahead", str(AHEAD)]
        more += ["--net", NETWORK, "--control", "--forward", f"{cls.ports['alone']}:8444"]
        commit = world.commit(declaration)
        appliance = world.boot("appliance", IMAGE, declaration, commit, cls.ports["web"], *more)
        try:
            world.wait_console("appliance", appliance, "launched", 240)
            endpoint = ["--endpoint", f"127.0.0.1:{cls.ports['web']}"]
            cls.options = [*endpoint, *world.trust_options(IMAGE), *world.github_options()]
            wait_for("both services", 120, cls.running, 1)
        except BaseException:
            print(world.console("appliance")[-6000:], file=sys.stderr)
            raise

    @classmethod
    def running(cls):
        code, out, _ = cls.world.coffer("status", REPOSITORY, *cls.options, "--json")
        states = [service["state"] for service in json.loads(out)["services"]] if code == 0 else []
        return states == ["running", "running"]

    def ask(self, path, service="web"):
        """What the probe of a service answers: whoever it is, since only the way out is tested."""
        context = ssl._create_unverified_context()
        port = self.ports[service]
        call = http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=context)
        with contextlib.closing(call):
            call.request("GET", path)
            answer = call.getresponse()
            text = answer.read().decode()
        self.assertEqual(answer.status, 200, text)
        return text.strip()

    def outside(self, host, port=None, server=None, service="web"):
        server = f"&server={server}" if server else ""
        return self.ask(f"/outside?host={host}&port={port or self.tls.port}{server}", service)

    def denied(self, target, why, allow=None, service="web"):
        """Waits until `coffer status` says that this was denied."""

        def shown():
            out = self.world.coffer_ok("status", REPOSITORY, *self.options, "--json")
            found = next(one for one in json.loads(out)["services"] if one["name"] == service)
            for one in found.get("egress", {}).get("latest", []):
                if (one["target"], one["why"], one.get("allow")) == (target, why, allow):
                    return one
            return None

        return wait_for(f"{target} {why} in the status", 30, shown, 1)

    def was_set(self, way, seconds):
        """Waits until the console says that the clock was set by about so much."""
        said = re.compile(rf"the clock was set {way} by (\d+)\.\d s")

        def seen():
            found = map(int, said.findall(self.world.console("appliance")))
            return any(abs(by - seconds) < 8 for by in found)

        wait_for(f"the clock set {way} by {seconds} s", 120, seen)

    def test_a_clock_that_the_host_set_wrong_is_set_right(self):
        world, secret = self.world, "secret://cofferdam/github/token"
        self.was_set("back", AHEAD)
        world.coffer_ok("secret", "put", REPOSITORY, secret, *self.options, stdin=GITHUB_TOKEN)
        wait_for("a publication", 90, lambda: self.publishes() == 0, 1)
        known = self.options[2:]
        # Nothing with dates of the future was left: not the release, not the connection's.
        world.coffer_ok("verify", REPOSITORY, *known)
        status = json.loads(world.coffer_ok("status", REPOSITORY, *known, "--json"))
        self.assertLess(abs(status["clock"]["ahead_s"]), 6)
        self.assertEqual(status["clock_set"]["change"]["how"], "stepped")
        told = world.coffer_ok("events", REPOSITORY, *known)
        self.assertIn("the clock was set back by", told)
        self.assertIn("as github.example.test and pcs.example.test said", self.told())

    def test_what_stood_still_is_found_out_and_set_right(self):
        """The last, since PID 1 does not listen for 30 s after it has set the clock."""
        with Qmp(self.world.path("appliance", "qmp.sock")) as qmp:
            qmp.ask("stop")
            time.sleep(PAUSE)
            qmp.ask("cont")
        # Whoever asks GitHub for something finds it out.
        self.assertEqual(self.publishes(), 0)
        self.was_set("forward", PAUSE)
        self.world.coffer_ok("verify", REPOSITORY, *self.options[2:])

    def publishes(self):
        return self.world.coffer("publish", REPOSITORY, *self.options)[0]

    def told(self):
        return self.world.coffer_ok("status", REPOSITORY, *self.options)

    def test_a_declared_name_is_reached_by_its_own_server_name(self):
        said = self.outside("api.example.org", server="api.example.org")
        self.assertEqual(said, "reached by api.example.org")
        self.assertEqual(
            self.outside("db.example.net", self.raw.port), "reached by this is not TLS"
        )

    def test_another_server_name_at_the_same_address_is_refused(self):
        called = len(self.tls.called)
        self.assertEqual(self.outside("api.example.org", server="cdn.example.org"), "access denied")
        self.assertEqual(len(self.tls.called), called, "nobody is told")
        entry = f"cdn.example.org:{self.tls.port}"
        self.denied(f"{entry}@api.example.org", "server-name", entry)
        # The neighbour's own name, which is at the same address.
        self.zone.names["cdn.example.org"] = [HOST]
        self.assertEqual(self.ask("/names?name=cdn.example.org"), "[]")
        self.denied("cdn.example.org", "name", "cdn.example.org:443")

    def test_addresses_and_other_ports_are_refused_at_once(self):
        self.assertEqual(self.outside(HOST, server="api.example.org"), "ECONNRESET")
        self.denied(f"{HOST}:{self.tls.port}", "address")
        for address in (HOST, "169.254.169.254", "10.0.2.2", "8.8.8.8"):
            self.assertEqual(self.outside(address, 80), "ECONNREFUSED", address)
            self.denied(f"{address}:80", "address")
        self.assertEqual(self.outside("api.example.org", 8443), "ECONNREFUSED")
        self.denied("api.example.org:8443", "port", "api.example.org:8443")
        self.assertEqual(self.outside("api.example.org"), "ECONNRESET")
        target = f"api.example.org:{self.tls.port}"
        self.denied(target, "not-tls", target + "/tcp")
        out = self.world.coffer_ok("status", REPOSITORY, *self.options)
        self.assertIn(f'allow: egress: ["{target}/tcp"]', out)

    def test_quic_other_resolvers_and_ipv6_are_refused_at_once(self):
        self.assertEqual(self.ask("/outside-udp?host=api.example.org&port=443"), "ECONNREFUSED")
        self.denied("api.example.org:443/udp", "udp")
        self.assertEqual(self.ask("/outside-udp?host=8.8.8.8&port=53"), "ECONNREFUSED")
        self.denied("8.8.8.8:53/udp", "udp")
        self.assertIn(self.outside("2001:db8::1"), ("ENETUNREACH", "EADDRNOTAVAIL"))

    def test_a_name_that_moves_is_followed_and_never_to_the_inside(self):
        moves = "moves.example.org"
        # Inside of the machine, of its network, of the cloud; the service is told no other address.
        for inside in ("127.0.0.1", "10.0.2.2", "169.254.169.254", "168.63.129.16"):
            self.zone.names[moves] = [inside]
            time.sleep(1.2)
            self.assertEqual(self.outside(moves, server=moves), "ECONNRESET", inside)
            self.assertIn("198.18.0.", self.ask(f"/names?name={moves}"))
        self.denied(f"{moves}:{self.tls.port}", "private")
        self.zone.names[moves] = ["10.0.2.2", HOST]
        time.sleep(1.2)
        self.assertEqual(self.outside(moves, server=moves), f"reached by {moves}")

    def test_names_carry_nothing_out(self):
        for name in ("c2VjcmV0.evil.example.net", "a.b.many.example.org", "c2VjcmV0.example.org"):
            self.assertEqual(self.ask(f"/names?name={name}"), "[]", name)
            self.assertNotIn(name, self.zone.asked)
        # A declared one is answered without a question either.
        self.assertIn("198.18.0.", self.ask("/names?name=c2VjcmV0.many.example.org"))
        self.assertNotIn("c2VjcmV0.many.example.org", self.zone.asked)

    def test_a_service_without_destinations_has_no_way_and_no_neighbours(self):
        for host in (HOST, "198.18.0.1", "169.254.169.254"):
            self.assertEqual(self.outside(host, service="alone"), "ENETUNREACH", host)
        self.assertEqual(self.ask("/names?name=api.example.org", "alone"), "[]")
        self.denied("api.example.org", "name", "api.example.org:443", service="alone")
        # The other service passes nothing on, and its gate is not in their network.
        self.assertEqual(self.outside("web", service="alone"), "ECONNREFUSED")
        for host in ("198.18.0.1", "198.19.255.253", HOST):
            path = f"/past-routes?host={host}&port={self.tls.port}"
            self.assertEqual(self.ask(path, "alone"), '["errno 115"]', host)
        self.assertNotIn("egress", self.ask("/own-network", "alone"))
        self.assertIn("route egress 0.0.0.0 over 198.19.255.253", self.ask("/own-network"))

    def test_the_role_comes_back_and_serves_the_same_gates(self):
        with self.world.control("appliance") as control:
            self.assertTrue(control.ask("kill egress").get("killed"))

        def reached():
            said = self.outside("api.example.org", server="api.example.org")
            return said == "reached by api.example.org"

        wait_for("the way outside again", 60, reached, 0.5)


if __name__ == "__main__":
    unittest.main(verbosity=2)
