#!/usr/bin/python3
"""One boot of the simulator image, many checks; and the boots that a host must not get away with.

Real kernel, firmware, TPM, registry and clients; the TDX device is SIMULATED. Takes a few minutes,
since QEMU emulates the processor.
"""

import base64
import contextlib
import hashlib
import http.client
import http.server
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import uki
from harness import (
    CONTRACT,
    GITHUB_TOKEN,
    REPOSITORY,
    ROOT,
    World,
    free_port,
    tamper_claims,
    wait_for,
    workload_files,
)
from process import Failed

IMAGE = os.environ.get("COFFERDAM_IMAGE", os.path.join(ROOT, "cofferdam-simulator.efi"))
TOOLS = os.environ.get("COFFERDAM_TOOLS", os.path.join(ROOT, "target", "debug"))
# QEMU's own network.
ADDRESS = "address=10.0.2.15/24 gateway=10.0.2.2 resolvers=10.0.2.3"
SECRET = "p@ss/w0rd+with-odd~bytes:and,length"
OTHER_SECRET = "another-services-own-secret-value"
SERVICES = """  web:
    image: {image}
    command: [/probe]
    user: "1000:1000"
    environment:
      GREETING_SECRET: secret://demo/greeting/value
      PLAIN: visible
      GREETING: hello web
    secrets:
      - source: secret://demo/greeting/value
        target: greeting
    ports:
      - "443:8080"
      - {{published: 8446, target: 8080, auth: tokens}}
    depends_on: {{neighbour: {{condition: service_healthy}}}}
    healthcheck: {{test: [CMD, /probe, healthy], interval: 2s}}
    networks: {{default: {{aliases: [www]}}}}
    restart: always
  neighbour:
    image: {image}
    command: [/probe]
    user: "1000:1000"
    environment:
      GREETING_SECRET: secret://demo/neighbour/value
      GREETING: hello neighbour
      ALSO: "81 50001"
    secrets:
      - source: secret://demo/neighbour/value
        target: neighbour
    ports: ["8444:8080", {{published: 8447, target: 8080, auth: none, redact_responses: true}}]
    networks: {{default: , between: {{aliases: [peer.internal]}}}}
    expose: [81]
    healthcheck: {{http: 8080/, interval: 1s}}
    restart: on-failure:3
  apart:
    image: {image}
    command: [/probe]
    user: "1000:1000"
    environment: {{GREETING: hello apart}}
    ports: [{{published: 8445, target: 8080, auth: none}}]
    networks: [between]
    healthcheck: {{tcp: 9, interval: 1s, retries: 2}}
    restart: always
networks:
  between:
    internal: true
tokens:
  - name: ci
    hash: {hash}
"""


def request(port, path, method="GET", body=None, timeout=60):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()


def contents(path):
    with open(path, "rb") as file:
        return file.read()


class Appliance(unittest.TestCase):
    """Checks that share one boot; they run in the order of their names."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="cofferdam-test-")
        cls.world = world = World(cls.folder.name, TOOLS)
        try:
            cls.start(world)
        except BaseException:
            print(world.console("appliance")[-6000:], file=sys.stderr)
            world.stop()
            raise

    @classmethod
    def start(cls, world):
        world.start_services()
        cls.trust, cls.github = world.trust_options(IMAGE), world.github_options()
        cls.port, cls.neighbour_port, cls.apart_port = free_port(), free_port(), free_port()
        cls.token_port, cls.redacted_port = free_port(), free_port()
        image = world.push_image(
            "test/probe",
            workload_files(),
            {"Entrypoint": ["/probe"], "WorkingDir": "/", "Env": ["FROM_IMAGE=yes"]},
        )
        made = json.loads(world.coffer_ok("token", "new", "ci", "--json"))
        cls.token = made["token"]
        services = SERVICES.format(image=image, hash=made["hash"])
        # Whoever operates it signs its declarations, too.
        followed = f"signers:\n  - {world.operator()}\nfollow: {{interval: 10s}}\n"
        cls.declaration = world.declaration(cls.port, services) + followed
        cls.commit = world.commit(cls.declaration)
        # GitHub has a bad day first: the appliance has to come through.
        with open(world.path("faults.json"), "w", encoding="utf-8") as file:
            json.dump(
                [
                    {"method": "POST", "path": "/releases$", "status": 500, "times": 1},
                    {
                        "method": "POST",
                        "path": "/releases$",
                        "status": 403,
                        "times": 1,
                        "headers": {"Retry-After": "1", "X-RateLimit-Remaining": "0"},
                        "body": '{"message":"API rate limit exceeded"}',
                    },
                    {
                        "method": "POST",
                        "path": "/assets$",
                        "status": 502,
                        "times": 1,
                        "body": "<html>bad gateway",
                    },
                ],
                file,
            )
        cls.appliance = world.boot(
            "appliance",
            IMAGE,
            cls.declaration,
            cls.commit,
            cls.port,
            "--forward",
            f"{cls.neighbour_port}:8444",
            "--forward",
            f"{cls.apart_port}:8445",
            "--forward",
            f"{cls.token_port}:8446",
            "--forward",
            f"{cls.redacted_port}:8447",
            # The host sets the address; the other boots have theirs by DHCP.
            "--address",
            ADDRESS,
            "--control",
        )
        world.wait_console("appliance", cls.appliance, "launched", 240)
        cls.endpoint = ["--endpoint", f"127.0.0.1:{cls.port}"]

        def token():
            code, out, err = world.coffer(
                "secret",
                "put",
                REPOSITORY,
                "cofferdam/github/token",
                *cls.endpoint,
                *cls.trust,
                *cls.github,
                stdin=GITHUB_TOKEN,
            )
            if code == 3:
                raise Failed(out + err)
            return code == 0

        wait_for("the GitHub token stored", 120, token, 1)
        cls.waiting = wait_for("a service that waits", 90, cls.waiting_services, 1)
        for name, value in (
            ("demo/greeting/value", SECRET),
            ("demo/neighbour/value", OTHER_SECRET),
        ):
            world.coffer_ok(
                "secret",
                "put",
                REPOSITORY,
                name,
                *cls.endpoint,
                *cls.trust,
                *cls.github,
                stdin=value,
            )
        wait_for("the services", 120, lambda: cls.running(cls.status()), 1)
        wait_for(
            "the release attestation",
            120,
            lambda: cls.status()["publish"]["state"] == "published",
            1,
        )
        cls.listen, cls.neighbour_listen, cls.apart_listen = free_port(), free_port(), free_port()
        for name, listen, more in (
            ("connect", cls.listen, []),
            (
                "connect-neighbour",
                cls.neighbour_listen,
                ["--endpoint", f"127.0.0.1:{cls.neighbour_port}"],
            ),
            (
                "connect-apart",
                cls.apart_listen,
                ["--endpoint", f"127.0.0.1:{cls.apart_port}"],
            ),
        ):
            process = world.start(
                name,
                [
                    world.tool("coffer"),
                    "connect",
                    REPOSITORY,
                    "--listen",
                    f"127.0.0.1:{listen}",
                    *more,
                    *cls.trust,
                    *cls.github,
                ],
            )
            world.listening(name, process, listen)
        cls.control = world.control("appliance")

    @classmethod
    def tearDownClass(cls):
        cls.control.close()
        cls.world.stop()
        cls.folder.cleanup()

    @classmethod
    def status(cls):
        return json.loads(
            cls.world.coffer_ok(
                "status", REPOSITORY, *cls.endpoint, *cls.trust, *cls.github, "--json"
            )
        )

    @classmethod
    def waiting_services(cls):
        found = {
            service["name"]: service.get("missing")
            for service in cls.status()["services"]
            if service["state"] == "waiting" and service.get("missing")
        }
        return found if len(found) == 2 else None

    @staticmethod
    def running(status):
        return len(status["services"]) == 3 and all(
            service["state"] == "running" for service in status["services"]
        )

    def coffer(self, *arguments, **options):
        return self.world.coffer(*arguments, **options)

    def appraise(self, document, *more, trust=None):
        """`coffer appraise` of a document; returns the exit code and all that it said."""
        path = self.world.path("appraised.json")
        with open(path, "wb") as file:
            file.write(document)
        code, out, err = self.coffer(
            "appraise",
            path,
            "--repository",
            REPOSITORY,
            *more,
            *(self.trust if trust is None else trust),
        )
        return code, out + err

    def attestation(self):
        path = self.world.path("attestation.json")
        if not os.path.exists(path):
            self.world.coffer_ok("verify", REPOSITORY, *self.trust, *self.github, "--save", path)
        with open(path, "rb") as file:
            return file.read()

    def log(self, service="web", tail=2000):
        return self.world.coffer_ok(
            "logs",
            REPOSITORY,
            service,
            "--tail",
            str(tail),
            *self.endpoint,
            *self.trust,
            *self.github,
        )

    # -- 1: what holds --

    def test_10_verify_accepts_and_says_simulated(self):
        code, out, err = self.coffer("verify", REPOSITORY, *self.trust, *self.github, "--json")
        self.assertEqual(code, 0, out + err)
        verified = json.loads(out)
        self.assertEqual(
            (verified["schema_version"], verified["verdict"], verified["simulated"]),
            (1, "accepted", True),
        )
        self.assertEqual(verified["claims"]["commit"], self.commit)
        code, out, _ = self.coffer("verify", REPOSITORY, *self.trust, *self.github)
        self.assertEqual(code, 0)
        self.assertIn("SIMULATED", out)
        self.assertEqual(self.appraise(self.attestation())[0], 0)

    def test_11_registers_are_those_predicted_from_the_file(self):
        image, platform = (json.loads(contents(path)) for path in self.world.references(IMAGE))
        status = self.status()
        registers = status["registers"]
        for name in ("rtmr1", "rtmr2"):
            self.assertEqual(registers[name], image["boots"][0][name], name)
        self.assertEqual(registers["mrtd"], platform["mrtd"][0]["value"])
        program = hashlib.sha256(uki.initramfs(uki.read(IMAGE))["init"][4]).hexdigest()
        self.assertEqual(status["image"]["digests"], {"cofferd": f"sha256:{program}"})

    def test_12_services_waited_for_their_secrets_by_name(self):
        self.assertEqual(
            self.waiting,
            {
                "web": ["secret://demo/greeting/value"],
                "neighbour": ["secret://demo/neighbour/value"],
            },
        )

    def test_13_the_workload_answers_through_connect(self):
        self.assertEqual(request(self.listen, "/")[0], 200)
        keys = json.loads(request(self.listen, "/env-keys")[1])
        for key in ("GREETING_SECRET", "PLAIN", "FROM_IMAGE"):
            self.assertIn(key, keys)
        self.assertEqual(request(self.listen, f"/secret-is?value={SECRET}")[1], "true\n")
        self.assertEqual(
            request(self.neighbour_listen, f"/secret-is?value={OTHER_SECRET}")[1], "true\n"
        )
        self.assertEqual(
            [file["name"] for file in json.loads(request(self.listen, "/secret-files")[1])],
            ["greeting"],
        )

    def test_13_who_calls_is_asked_unless_the_port_says_none(self):
        def direct(port, path="/headers", **headers):
            context = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
            try:
                connection.request("GET", path, headers=headers)
                answer = connection.getresponse()
                scheme = answer.getheader("WWW-Authenticate")
                return answer.status, scheme, json.loads(answer.read())
            finally:
                connection.close()

        bearer = {"Authorization": f"Bearer {self.token}"}
        # A port in its short form is for operators; a token does not help there.
        for headers in ({}, bearer):
            status, scheme, body = direct(self.port, **headers)
            self.assertEqual((status, scheme), (401, "Cofferdam-Operator"), body)
            self.assertIn("coffer connect", body["hint"])
        status, body = request(self.listen, "/headers")
        self.assertEqual(status, 200)
        self.assertIn("x-cofferdam-caller: operator:demo", json.loads(body))
        # Tokens, which the service does not see, and which nobody else may name.
        self.assertEqual(direct(self.token_port)[:2], (401, "Bearer"))
        wrong = direct(self.token_port, Authorization=f"Bearer {self.token[:-1]}")
        self.assertEqual(wrong[0], 401)
        forged = {"X-Cofferdam-Caller": "operator:alice", "X_Cofferdam_Caller": "operator:alice"}
        status, _, headers = direct(self.token_port, **bearer, **forged)
        self.assertEqual(status, 200)
        callers = [header for header in headers if "caller" in header]
        self.assertEqual(callers, ["x-cofferdam-caller: token:ci"])
        self.assertNotIn(self.token, str(headers))
        # Everybody's: nobody is named.
        status, _, headers = direct(self.apart_port, **forged)
        self.assertEqual((status, [each for each in headers if "caller" in each]), (200, []))

    def test_13_answers_are_redacted_at_the_port_that_says_so_alone(self):
        encoded = base64.b64encode(OTHER_SECRET.encode()).decode()
        plain = request(self.neighbour_listen, "/tell")
        self.assertEqual(plain, (200, f"told: {OTHER_SECRET} {encoded}\n"))
        mask = "[redacted:secret://demo/neighbour/value]"
        context = ssl._create_unverified_context()
        told = http.client.HTTPSConnection(
            "127.0.0.1", self.redacted_port, context=context, timeout=60
        )
        try:
            # Several answers on one connection.
            for _ in range(2):
                told.request("GET", "/tell", headers={"Accept-Encoding": "gzip"})
                answer = told.getresponse()
                self.assertEqual(answer.status, 200)
                self.assertEqual(answer.getheader("X-Told"), mask)
                self.assertEqual(answer.getheader("Transfer-Encoding"), "chunked")
                self.assertEqual(answer.read().decode(), f"told: {mask} {mask}\n")
            told.request("GET", "/headers", headers={"Accept-Encoding": "gzip"})
            self.assertIn("accept-encoding: identity", json.loads(told.getresponse().read()))
            upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
            told.request("GET", "/tell", headers=upgrade)
            answer = told.getresponse()
            self.assertEqual(answer.status, 502)
            self.assertIn("WebSocket", json.loads(answer.read())["error"])
        finally:
            told.close()

    def test_14_status_says_where_state_lives(self):
        status = self.status()
        self.assertIn("memory", status["state"])
        self.assertIn("in memory only", self.world.console("appliance"))
        self.assertEqual(
            [phase["name"] for phase in status["phases"]],
            ["mount", "measure", "network", "unseal", "launch"],
        )

    def test_14_the_address_that_the_host_set_is_measured_and_shown(self):
        network = self.status()["network"]
        self.assertEqual(network["state"], "static")
        self.assertEqual(network["settings"]["address"], "10.0.2.15")
        self.assertIn(f"network: static: {ADDRESS}", self.world.console("appliance"))
        events = json.loads(self.attestation())["event_log"]
        machine = next(event for event in events if event["event"] == "machine")
        measured = json.loads(base64.b64decode(machine["payload"]))["network"]
        self.assertEqual((measured["prefix"], measured["gateway"]), (24, "10.0.2.2"))

    def test_15_github_saw_only_what_its_contract_allows(self):
        if not os.path.exists(CONTRACT):
            self.skipTest("GitHub's API description is not beside the checkout")
        violations = self.world.path("violations")
        self.assertFalse(os.path.exists(violations) and open(violations, encoding="utf-8").read())
        with open(self.world.path("faults.json"), encoding="utf-8") as file:
            self.assertEqual(
                [fault["times"] for fault in json.load(file)], [0, 0, 0], "every fault was met"
            )

    def test_16_secrets_are_listed_without_values(self):
        out = self.world.coffer_ok("secret", "list", REPOSITORY, *self.trust, *self.github)
        self.assertIn("secret://demo/greeting/value", out)
        self.assertNotIn(SECRET, out)

    def test_17_verify_and_secret_put_ask_github_little(self):
        """Four requests of the API when nothing is known, one when all is; the real appliance, and
        GitHub's own log.
        """

        def asked(*arguments, **options):
            time.sleep(0.5)
            before = len(self.world.asked_github())
            self.world.coffer_ok(*arguments, *self.trust, *self.github, **options)
            time.sleep(0.5)
            # The appliance asks too, in its own name.
            own = [
                entry
                for entry in self.world.asked_github()[before:]
                if "coffer/" in (entry["user_agent"] or "")
            ]
            return sum(entry["kind"] == "api" for entry in own)

        verify, put = ("verify", REPOSITORY), ("secret", "put", REPOSITORY, "demo/greeting/value")
        shutil.rmtree(self.world.path("cache"), ignore_errors=True)
        cold, warm = asked(*verify), asked(*verify)
        shutil.rmtree(self.world.path("cache"), ignore_errors=True)
        put_cold, put_warm = (asked(*put, stdin=SECRET) for _ in range(2))
        print(
            f"\nAPI requests: verify {cold} cold, {warm} warm; secret put {put_cold} cold, "
            f"{put_warm} warm",
            file=sys.stderr,
        )
        self.assertLessEqual(max(cold, put_cold), 4)
        self.assertEqual((warm, put_warm), (1, 1))

    # -- 2: what must be refused --

    def test_20_changed_claims_are_refused_by_name(self):
        other = "sha256:" + "0" * 64
        changes = {
            "endpoint": "127.0.0.1:1",
            "tls_key": other,
            "repository": "acme/other",
            "commit": "0" * 40,
            "declaration": other,
            "issued_at": "2026-01-01T00:00:00Z",
            "expires_at": "2099-01-01T00:00:00Z",
        }
        for name, value in changes.items():
            code, said = self.appraise(tamper_claims(self.attestation(), **{name: value}))
            self.assertEqual(code, 3, f"{name}: {said}")
            self.assertIn(name, said)

    def test_21_a_changed_event_log_is_refused(self):
        evidence = json.loads(self.attestation())
        log = evidence["event_log"]
        own = [index for index, event in enumerate(log) if event["mr"] == 3]
        swapped = list(log)
        swapped[own[0]], swapped[own[1]] = swapped[own[1]], swapped[own[0]]
        for name, changed in {
            "reordered": swapped,
            "cut": log[:-1],
            "extended": [*log, log[-1]],
            "unknown": [*log, {"mr": 3, "event": "surprise", "payload": ""}],
            "firmware": [event for event in log if event["mr"] != 2],
        }.items():
            code, said = self.appraise(json.dumps({**evidence, "event_log": changed}).encode())
            self.assertEqual(code, 3, f"{name}: {said}")

    def test_22_damaged_quotes_and_documents_are_refused(self):
        evidence = json.loads(self.attestation())
        quote = base64.b64decode(evidence["quote"])
        flipped = [
            bytes(quote[:at]) + bytes([quote[at] ^ 1]) + bytes(quote[at + 1 :])
            for at in (0, 40, 48 + 120, 48 + 136, 48 + 520, 640, len(quote) - 40)
        ]
        for changed in (quote[:-1], quote[:100], b"", quote + b"\1", quote + b"\0", *flipped):
            code, said = self.appraise(
                json.dumps({**evidence, "quote": base64.b64encode(changed).decode()}).encode()
            )
            self.assertEqual(code, 3, said)
        for document in (
            self.attestation() + b" x",
            b"{",
            b"[]",
            b"",
            self.attestation().replace(b'"version":1', b'"version":1,"version":1', 1),
            json.dumps({**evidence, "surprise": 1}).encode(),
        ):
            self.assertEqual(self.appraise(document)[0], 3)

    def test_220_flawed_quotes_and_bad_collateral_are_refused(self):
        """The appliance's own quote, signed again by the same platform but broken in one way; then
        good, with bad collateral.
        """
        evidence = json.loads(self.attestation())
        like, platform = self.world.path("like.quote"), self.world.path("platform")
        with open(like, "wb") as file:
            file.write(base64.b64decode(evidence["quote"]))

        def quote(*options):
            return subprocess.run(
                [
                    self.world.tool("tdx-sim"),
                    "quote",
                    "--platform",
                    platform,
                    "--like",
                    like,
                    *options,
                ],
                check=True,
                capture_output=True,
            ).stdout

        def collateral(*options):
            return json.loads(
                subprocess.run(
                    [self.world.tool("tdx-sim"), "collateral", "--platform", platform, *options],
                    check=True,
                    capture_output=True,
                ).stdout
            )

        def appraised(quote, collateral):
            return self.appraise(
                json.dumps(
                    {
                        **evidence,
                        "quote": base64.b64encode(quote).decode(),
                        "collateral": collateral,
                    }
                ).encode()
            )

        self.assertEqual(appraised(quote(), collateral())[0], 0, "signed again without a flaw")
        for options in (
            ["--debug"],
            *(
                ["--flaw", flaw]
                for flaw in (
                    "foreign-pck",
                    "foreign-pck-key",
                    "broken-qe-binding",
                    "foreign-attestation-key",
                    "tampered-body",
                    "debug-qe",
                )
            ),
        ):
            code, said = appraised(quote(*options), collateral())
            self.assertEqual(code, 3, f"{options}: {said}")
        for option in ("--revoked-pck", "--revoked-tcb", "--out-of-date"):
            code, said = appraised(quote(), collateral(option))
            self.assertEqual(code, 3, f"{option}: {said}")
        code, said = appraised(quote(), collateral("--expired"))
        self.assertEqual(code, 6, said)
        code, said = appraised(quote("--flaw", "foreign-pck-key"), collateral("--expired"))
        self.assertEqual(code, 3, said)

    def test_23_what_was_not_named_is_not_trusted(self):
        without_root = [
            option
            for option in self.trust
            if option not in ("--root", self.world.path("platform", "root.pem"))
        ]
        self.assertEqual(self.appraise(self.attestation(), trust=without_root)[0], 3)
        code, said = self.appraise(
            self.attestation(), trust=["--root", self.world.path("platform", "root.pem")]
        )
        self.assertEqual(code, 6, said)

    def test_24_could_not_check_is_not_no(self):
        evidence = json.loads(self.attestation())
        del evidence["collateral"]
        self.assertEqual(self.appraise(json.dumps(evidence).encode())[0], 6)
        unreachable = [
            "--github-api",
            f"https://127.0.0.1:{free_port()}/api/v3",
            "--github-ca",
            self.world.ca,
        ]
        self.assertEqual(
            self.coffer("verify", REPOSITORY, *self.trust, *unreachable, "--timeout", "5s")[0], 6
        )
        self.assertEqual(self.coffer("verify", "acme/none", *self.trust, *self.github)[0], 6)
        self.assertEqual(self.coffer("verify", "not a repository", *self.trust, *self.github)[0], 2)
        self.assertEqual(self.coffer("frobnicate")[0], 2)

    def test_25_time_is_bounded(self):
        for at, name in (("2020-01-01T00:00:00Z", "before"), ("2099-01-01T00:00:00Z", "after")):
            self.assertEqual(self.appraise(self.attestation(), "--at", at)[0], 3, name)

    def test_26_other_reference_values_name_register_and_event(self):
        with open(IMAGE, "rb") as file:
            image = bytearray(file.read())
        at = image.index(b"console=ttyS0")
        image[at + len("console=ttyS0") - 1] ^= 1
        other = self.world.path("other.efi")
        with open(other, "wb") as file:
            file.write(image)
        code, out, err = self.coffer(
            "verify", REPOSITORY, *self.world.trust_options(other), *self.github
        )
        self.assertEqual(code, 3)
        self.assertRegex(out + err, r"rtmr1.*EV_EFI_BOOT_SERVICES_APPLICATION")
        self.assertIn("command line", out + err, "the cause in words")
        # The same offline, from the files, by the verb that is made for it.
        path = self.world.path("attestation.json")
        code, out, err = self.coffer("measure", other, "--boot", "simulator", "--explain", path)
        self.assertEqual(code, 3, out + err)
        self.assertIn("command line", out + err)
        self.assertEqual(
            self.coffer("measure", IMAGE, "--boot", "simulator", "--explain", path)[0], 0
        )

    def test_27_a_stolen_github_token_cannot_redirect_clients(self):
        """Whoever holds the token publishes a newer release with claims of their own: not believed,
        said, and in nobody's way.
        """
        forged = tamper_claims(
            self.attestation(),
            endpoint="127.0.0.1:1",
            issued_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 60)),
        )
        digest = self.world.forged_tag(forged)
        release = self.world.api(
            "POST",
            f"/repos/{REPOSITORY}/releases",
            {"tag_name": digest, "target_commitish": self.commit, "draft": True},
        )
        self.world.api(
            "POST", release["upload_url"].split("{")[0] + "?name=attestation.json", forged
        )
        self.world.api("PATCH", f"/repos/{REPOSITORY}/releases/{release['id']}", {"draft": False})
        try:
            code, out, err = self.coffer("verify", REPOSITORY, *self.trust, *self.github, "--json")
            self.assertEqual(code, 0, out + err)
            verified = json.loads(out)
            self.assertEqual(verified["claims"]["endpoint"], f"127.0.0.1:{self.port}")
            self.assertNotEqual(verified["release"]["tag"], digest)
            self.assertEqual(
                [
                    (skipped["tag"], skipped["verdict"])
                    for skipped in verified["skipped"]["attestations"]
                ],
                [(digest, "rejected")],
            )
        finally:
            self.world.api("DELETE", f"/repos/{REPOSITORY}/releases/{release['id']}")

    def test_27_reference_values_come_from_a_release(self):
        """As our own release carries them: assets reference-*.json, others are passed over."""
        root = ["--root", self.world.path("platform", "root.pem")]
        image, platform = map(contents, self.world.references(IMAGE))
        releases = {
            "v0.1.0": {
                "reference-image.json": image,
                "reference-platform.json": platform,
                "SHA256SUMS": b"none\n",
            },
            "v0.1.1": {"reference-image.json": image[:-3]},
            "v0.1.2": {"SHA256SUMS": b"none\n"},
        }
        expected = {"v0.1.0": 0, "v0.1.1": 6, "v0.1.2": 6, "v0.1.3": 6}
        made = []
        try:
            for tag, assets in releases.items():
                release = self.world.api(
                    "POST",
                    f"/repos/{REPOSITORY}/releases",
                    {"tag_name": tag, "target_commitish": self.commit, "draft": True},
                )
                made.append(release["id"])
                for name, content in assets.items():
                    self.world.api(
                        "POST", release["upload_url"].split("{")[0] + f"?name={name}", content
                    )
                self.world.api(
                    "PATCH", f"/repos/{REPOSITORY}/releases/{release['id']}", {"draft": False}
                )
            for tag, code in expected.items():
                found, said = self.appraise(
                    self.attestation(),
                    *self.github,
                    trust=["--reference", f"github:{REPOSITORY}@{tag}", *root],
                )
                self.assertEqual(found, code, f"{tag}: {said}")
            self.world.coffer_ok(
                "verify",
                REPOSITORY,
                "--reference",
                f"github:{REPOSITORY}@v0.1.0",
                *root,
                *self.github,
            )
        finally:
            for number in made:
                self.world.api("DELETE", f"/repos/{REPOSITORY}/releases/{number}")

    def test_28_a_man_in_the_middle_gets_no_secret(self):
        """He holds a certificate of his own and relays everything to the real appliance, evidence
        included.
        """
        seen = []
        endpoint_port = self.port

        class Middle(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def relay(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                seen.append((self.command, self.path, body))
                context = ssl._create_unverified_context()
                upstream = http.client.HTTPSConnection(
                    "127.0.0.1", endpoint_port, context=context, timeout=60
                )
                upstream.request(
                    self.command,
                    self.path,
                    body or None,
                    {key: value for key, value in self.headers.items() if key.lower() != "host"},
                )
                answer = upstream.getresponse()
                data = answer.read()
                upstream.close()
                self.send_response(answer.status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_DELETE = relay

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Middle)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(
            self.world.path("tls", "server.pem"), self.world.path("tls", "server.key")
        )
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            middle = f"127.0.0.1:{server.server_address[1]}"
            code, out, err = self.coffer(
                "secret",
                "put",
                REPOSITORY,
                "demo/greeting/value",
                "--endpoint",
                middle,
                *self.trust,
                *self.github,
                stdin=SECRET,
            )
        finally:
            server.shutdown()
            server.server_close()
        self.assertEqual(code, 3, out + err)
        self.assertIn("tls_key", out + err)
        self.assertTrue(seen, "the man in the middle was asked")
        self.assertEqual({method for method, _, _ in seen}, {"GET"})
        self.assertFalse(
            any(body for _, _, body in seen), "nothing was sent before the verification"
        )

    def test_29_a_stranger_is_not_an_operator(self):
        key = self.world.path("stranger.key")
        if not os.path.exists(key):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        for verb in (["secret", "list"], ["status"]):
            code, out, err = self.coffer(
                *verb, REPOSITORY, *self.trust, *self.github, env={"COFFER_KEY": key}
            )
            self.assertEqual(code, 4, out + err)
        code, out, err = self.coffer(
            "logs", REPOSITORY, "web", *self.trust, *self.github, env={"COFFER_KEY": key}
        )
        self.assertEqual(code, 4, out + err)

    # -- 3: the workload's walls --

    def test_30_the_workload_reaches_nothing(self):
        """The table: each attempt from a second process of the same uid, and from the other
        service.
        """
        for where, port in (
            ("same container", self.listen),
            ("other service", self.neighbour_listen),
        ):
            attempts = json.loads(request(port, "/attack", timeout=120)[1])
            print(
                f"\n{where}: "
                + ", ".join(f"{attempt['name']}: {attempt['answer']}" for attempt in attempts),
                file=sys.stderr,
            )
            self.assertGreater(len(attempts), 40)
            for attempt in attempts:
                self.assertTrue(attempt["refused"], f"{where}: {attempt}")

    def test_31_output_is_redacted_and_complete(self):
        self.assertEqual(request(self.listen, "/leak", timeout=60)[0], 200)
        text = wait_for(
            "the end of the output",
            30,
            lambda: (lambda log: log if "after the leak" in log else None)(self.log()),
            1,
        )
        forms = {
            SECRET,
            SECRET.encode().hex(),
            SECRET.encode().hex().upper(),
            "".join(f"%{byte:02X}" for byte in SECRET.encode()),
        }
        for prefix in (b"", b"x", b"xy"):
            encoded = base64.b64encode(prefix + SECRET.encode() + b".").decode()
            forms.add(encoded[4 if prefix else 0 : -4])
        for form in forms:
            self.assertNotIn(form, text)
        for line in (
            "plain",
            "to stderr",
            "in two writes",
            "base64, shifted by 0",
            "base64, shifted by 1",
            "base64, shifted by 2",
            "hex",
            "upper-case hex",
            "percent-encoded",
        ):
            self.assertRegex(text, rf"(?m)^{line}: \S{{0,4}}\[redacted:[^]]+\]\S{{0,4}} :end$")

    def test_32_a_prompt_without_newline_is_not_held_back(self):
        request(self.listen, "/slow-prompt")
        wait_for("the prompt", 15, lambda: "What is your name? " in self.log(), 1)

    def test_33_services_reach_each_other_only_as_declared(self):
        """web is in the default network, apart in the network between, neighbour in both."""

        def reached(listen, host, port=8080):
            status, body = request(listen, f"/dependency?host={host}&port={port}")
            return body if status == 200 else None

        def rows(listen, path):
            return json.loads(request(listen, path)[1])

        web, neighbour, apart = self.listen, self.neighbour_listen, self.apart_listen
        # Every port by name and alias, published or not, in both directions, whoever depends on
        # whom.
        for listen, host, port, who in (
            (web, "neighbour", 8080, "neighbour"),
            (web, "NEIGHBOUR", 81, "neighbour"),
            (web, "neighbour", 50001, "neighbour"),
            (web, "www", 8080, "web"),
            (neighbour, "web", 8080, "web"),
            (neighbour, "www", 8080, "web"),
            (neighbour, "apart", 8080, "apart"),
            (apart, "neighbour", 81, "neighbour"),
            (apart, "peer.internal", 81, "neighbour"),
        ):
            self.assertEqual(
                (reached(listen, host, port) or "nothing").split(" from")[0], f"hello {who}", host
            )
        # Nothing between networks, by name or by address, also not past the routes or through the
        # service that is in both; and no way out.
        addresses = {
            name: rows(listen, f"/names?name={name}")[0]
            for listen, name in ((web, "web"), (apart, "apart"))
        }
        for name, expected in (("apart", []), ("peer.internal", []), ("nobody", [])):
            self.assertEqual(rows(web, f"/names?name={name}"), expected, name)
        # Each asker is told the address in the network that it shares.
        (in_default,), (in_between,) = (
            rows(listen, "/names?name=neighbour") for listen in (web, apart)
        )
        self.assertNotEqual(in_default, in_between)
        host = f"10.0.2.2&port={self.world.registry_port}"
        for listen, others in (
            (web, [addresses["apart"], in_between]),
            (apart, [addresses["web"], in_default]),
        ):
            for other in (*others, "192.0.2.1"):
                self.assertIsNone(reached(listen, other, 81), other)
                self.assertEqual(rows(listen, f"/past-routes?host={other}&port=81"), ["errno 115"])
            self.assertEqual(request(listen, f"/dependency?host={host}")[0], 502)
            own = rows(listen, "/own-network")
            self.assertEqual(own[-2:], ["nameserver 127.0.0.11", "options ndots:0"])
            network = addresses["web" if listen == web else "apart"].split(".")[1]
            self.assertEqual(own[0], f"route eth0 10.{network}.0.0 over 0.0.0.0")
            self.assertEqual(set(own[1:-2]) - {"inet6 lo"}, set(), own)
        # Nobody takes another's address, or answers names instead of the resolver.
        for address, port in ((in_default, 8080), ("10.1.7.7", 8080), ("127.0.0.11", 53)):
            attempts = rows(web, f"/take?address={address}&port={port}")
            self.assertEqual(len(attempts), 10, attempts)
            for attempt in attempts:
                # Listening at an address that is not there hears nobody, since nobody is told that
                # it is there; sending from one is refused.
                if attempt == "tcp freebind: ok" and address != "127.0.0.11":
                    continue
                self.assertNotIn(": ok", attempt, (address, attempt))

    # -- 4: deaths --

    def published(self):
        return self.status()["publish"].get("tag")

    def test_39_health_is_probed_and_waited_for_and_shown_without_secrets(self):
        def services():
            found = {service["name"]: service for service in self.status()["services"]}
            states = {
                name: (service.get("health") or {}).get("state") for name, service in found.items()
            }
            expected = {"web": "healthy", "neighbour": "healthy", "apart": "unhealthy"}
            return found if states == expected else None

        found = wait_for("the probes", 30, services, 1)
        self.assertLess(found["neighbour"]["since"], found["web"]["since"])
        self.assertEqual(found["neighbour"]["health"]["output"], "HTTP 200")
        self.assertIn("refused", found["apart"]["health"]["output"])
        # The probe is the workload's own: it has its secret, and what it prints of it is not shown.
        self.assertEqual(
            found["web"]["health"]["output"], "exit code 0: [redacted:secret://demo/greeting/value]"
        )

    def test_40_killed_roles_come_back_with_what_they_had(self):
        before = self.published()
        # What was pulled is there for good: nobody who comes back asks the registry.
        shutil.rmtree(self.world.path("registry"))
        for role in (
            "vault",
            "front",
            "publish",
            "evidence",
            "bridge",
            "egress",
            "reserve",
            "shim web",
        ):
            answer = self.control.ask(f"kill {role}")
            self.assertTrue(answer.get("killed"), f"{role}: {answer}")
            began = time.monotonic()

            def serving(role=role):
                try:
                    status = self.status() if role in ("front", "vault", "evidence") else None
                    return request(self.listen, "/", timeout=5)[0] == 200 and (
                        status is None or self.running(status)
                    )
                except (OSError, http.client.HTTPException, Failed):
                    return False

            wait_for(f"serving again after {role} died", 60, serving, 0.1)
            print(
                f"\n{role}: serving again after {time.monotonic() - began:.1f} s", file=sys.stderr
            )
            # Both ways, since both ends of a pair of interfaces go with either process.
            for listen, host in ((self.listen, "neighbour"), (self.neighbour_listen, "web")):

                def joined(listen=listen, host=host):
                    with contextlib.suppress(OSError, http.client.HTTPException):
                        path = f"/dependency?host={host}&port=8080"
                        return request(listen, path, timeout=20)[0] == 200
                    return False

                wait_for(f"{host} in its network after {role} died", 60, joined, 0.2)
        self.world.coffer_ok("verify", REPOSITORY, *self.trust, *self.github)
        self.assertEqual(self.published(), before, "the published attestation is still true")
        self.assertEqual(request(self.listen, f"/secret-is?value={SECRET}")[1], "true\n")

    def test_41_the_restart_policy_is_followed(self):
        for code in (0, 7):
            with contextlib.suppress(OSError, http.client.HTTPException):
                request(self.listen, f"/exit?code={code}", timeout=5)

            def back():
                try:
                    return request(self.listen, "/", timeout=5)[0] == 200
                except (OSError, http.client.HTTPException):
                    return False

            wait_for("restart: always", 30, back, 0.2)
        with contextlib.suppress(OSError, http.client.HTTPException):
            request(self.neighbour_listen, "/exit?code=0", timeout=5)

        def ended():
            service = next(
                service for service in self.status()["services"] if service["name"] == "neighbour"
            )
            return service["state"] == "exited" and service.get("exit_code") == 0

        wait_for("restart: on-failure leaves a service that ended well", 20, ended, 0.5)

    def test_45_a_deleted_release_is_published_again_when_an_operator_asks(self):
        tag = self.status()["publish"]["tag"]
        release = self.world.api("GET", f"/repos/{REPOSITORY}/releases/tags/{tag}")
        self.world.api("DELETE", f"/repos/{REPOSITORY}/releases/{release['id']}")
        code, out, err = self.coffer("verify", REPOSITORY, *self.trust, *self.github)
        self.assertNotEqual(code, 0, out + err)
        said = self.world.coffer_ok(
            "publish", REPOSITORY, *self.endpoint, *self.trust, *self.github
        )
        self.assertIn("published attest-", said)
        self.assertNotIn(tag, said)
        # From now on by the release alone: no quote is made for what is read.
        self.world.coffer_ok("status", REPOSITORY, *self.trust, *self.github)
        said = self.world.coffer_ok("publish", REPOSITORY, *self.trust, *self.github)
        self.assertIn(self.status()["publish"]["tag"], said)

    def test_80_a_release_from_the_future_blinds_nobody(self):
        release = self.world.api(
            "POST",
            f"/repos/{REPOSITORY}/releases",
            {
                "tag_name": "attest-29991231T235959Z-00000000",
                "target_commitish": self.commit,
                "draft": True,
            },
        )
        self.world.api("PATCH", f"/repos/{REPOSITORY}/releases/{release['id']}", {"draft": False})
        self.world.coffer_ok("verify", REPOSITORY, *self.trust, *self.github)

    def test_81_an_old_declaration_is_refused_unless_asked_for(self):
        """The default branch moves on; a host that starts the old declaration again must not get
        new secrets for it.
        """
        self.world.commit(self.declaration.replace("name: demo", "name: successor"))
        for verb in (
            ["verify", REPOSITORY],
            ["secret", "list", REPOSITORY],
            ["secret", "list", REPOSITORY, *self.endpoint],
        ):
            code, out, err = self.coffer(*verb, *self.trust, *self.github)
            self.assertEqual(code, 3, out + err)
            self.assertIn("default branch", out + err)
        self.world.coffer_ok(
            "verify", REPOSITORY, "--commit", self.commit, *self.trust, *self.github
        )
        code, out, err = self.coffer(
            "verify", REPOSITORY, "--commit", "0" * 40, *self.trust, *self.github
        )
        self.assertEqual(code, 3, out + err)

    def test_82_what_a_signer_signed_is_newer_and_nothing_else(self):
        """The commit that the last test has made is unsigned; then a signer puts one on top."""
        # The default branch has moved on.
        options = ["--commit", self.commit, *self.trust, *self.github]

        def status():
            return json.loads(self.world.coffer_ok("status", REPOSITORY, *options, "--json"))

        def found(state):
            def look():
                seen = status().get("follow", {})
                return seen if seen.get("found", {}).get("state") == state else None

            return wait_for(f"a head of the branch that is {state}", 60, look, 1)

        unsigned = self.world.git("rev-parse", "main")
        refused = found("refused")
        self.assertEqual((refused["branch"], refused["found"]["why"]), ("main", "unsigned"))
        self.assertEqual(refused["found"]["commit"], unsigned)
        code, out, err = self.coffer("doctor", REPOSITORY, *options)
        self.assertEqual(code, 1, out + err)
        self.assertIn("[commit-refused]", out)
        self.assertIn("git commit --allow-empty -S", out)
        settings = ["-c", "gpg.format=ssh"]
        settings += ["-c", f"user.signingKey={self.world.path('operator.key.pub')}"]
        self.world.git(*settings, "commit", "-q", "-S", "--allow-empty", "-m", "Approve")
        signed = self.world.git("rev-parse", "main")
        options = ["--commit", signed, *self.trust, *self.github]
        self.changed(signed, "applied", options)
        events = self.world.coffer_ok("events", REPOSITORY, *options, "--json")
        events = [json.loads(line)["event"] for line in events.splitlines()]
        states = [event["found"]["state"] for event in events if event["kind"] == "follow"]
        self.assertEqual(states[:3], ["current", "refused", "newer"])
        newer = next(event for event in events if event.get("found", {}).get("state") == "newer")
        newer = newer["found"]
        self.assertEqual((newer["commit"], newer["signer"]), (signed, "operator@demo"))
        declared = self.world.path("repos", *REPOSITORY.split("/"), "cofferdam.yaml")
        digest = hashlib.sha256(contents(declared)).hexdigest()
        self.assertEqual(newer["declaration"], f"sha256:{digest}")
        seen = found("current")
        self.assertEqual(seen["found"]["commit"], signed)
        self.assertEqual(status()["commit"], signed, "what was signed runs")

    def sign(self, *changes):
        """A commit of a signer's in which the declaration has these texts instead of others."""
        declared = self.world.path("repos", *REPOSITORY.split("/"), "cofferdam.yaml")
        text = contents(declared).decode()
        for old, new in changes:
            self.assertIn(old, text)
            text = text.replace(old, new)
        with open(declared, "w", encoding="utf-8") as file:
            file.write(text)
        settings = ["-c", "gpg.format=ssh"]
        settings += ["-c", f"user.signingKey={self.world.path('operator.key.pub')}"]
        self.world.git(*settings, "commit", "-q", "-S", "-a", "-m", "Change")
        return self.world.git("rev-parse", "main")

    def changed(self, commit, outcome, options):
        """The status once this has become of a commit, and how many seconds it took."""
        began = time.monotonic()

        def look():
            code, out, _ = self.coffer("status", REPOSITORY, *options, "--json")
            # The front may be starting again, and what runs is the other commit until then.
            seen = json.loads(out) if code == 0 else {}
            changes = seen.get("changes", {}).get("changes", [])
            last = changes[-1] if changes else {}
            return seen if last.get("commit") == commit else None

        seen = wait_for(f"what becomes of {commit:.12}", 240, look, 1)
        change = seen["changes"]["changes"][-1]
        self.assertEqual(change["outcome"], outcome, change)
        return seen, time.monotonic() - began

    @staticmethod
    def shims(status):
        return {role["name"]: role["pid"] for role in status["roles"] if "shim" in role["name"]}

    def status_at(self, commit):
        options = ["--commit", commit, *self.trust, *self.github]
        return json.loads(self.world.coffer_ok("status", REPOSITORY, *options, "--json"))

    def test_83_a_signed_commit_is_applied_to_what_it_changes(self):
        """One service differs, in its image too, and one is new; the others do not notice."""
        at = self.world.git("rev-parse", "main")
        # An earlier test has left it ended for good.
        options = ["--commit", at, *self.trust, *self.github]
        self.world.coffer_ok("restart", REPOSITORY, "neighbour", *options)
        wait_for("the services", 120, lambda: self.running(self.status_at(at)), 1)
        before = self.status_at(at)
        declared = self.world.path("repos", *REPOSITORY.split("/"), "cofferdam.yaml")
        apart = re.search(r"  apart:\n    image: (.*)\n", contents(declared).decode())
        image = self.world.push_image(
            "test/late", workload_files(), {"Entrypoint": ["/probe"], "Env": ["LATE=yes"]}
        )
        late = f"  late:\n    image: {image}\n    environment: {{GREETING: hello late}}\n"
        late += "    networks: [between]\n    healthcheck: {tcp: 8080, interval: 1s}\n"
        commit = self.sign(
            (apart[0], apart[0].replace(apart[1], image)),
            ("GREETING: hello apart}", "GREETING: hello changed}"),
            ("{tcp: 9, interval: 1s, retries: 2}", "{tcp: 8080, interval: 1s, retries: 2}"),
            ("networks:\n  between:", f"{late}networks:\n  between:"),
        )
        options = ["--commit", commit, *self.trust, *self.github]
        seen, seconds = self.changed(commit, "applied", options)
        print(f"a change of one service and a new one: {seconds:.1f} s", file=sys.stderr)
        self.assertEqual(seen["commit"], commit)
        states = {one["name"]: one["state"] for one in seen["services"]}
        expected = dict.fromkeys(["web", "neighbour", "apart", "late"], "running")
        self.assertEqual(states, expected)
        old, new = self.shims(before), self.shims(seen)
        for name in ("shim web", "shim neighbour"):
            self.assertEqual(old[name], new[name], "what did not change goes on")
        self.assertNotEqual(old["shim apart"], new["shim apart"])
        self.answers("hello changed")
        # Who was there before finds who has come, by name.
        wait_for(
            "the new service's name",
            30,
            lambda: request(self.neighbour_listen, "/dependency?host=late")[0] == 200,
            1,
        )
        # Whoever follows the repository alone accepts what runs, as released.
        verify = ["verify", REPOSITORY, *self.trust, *self.github]
        wait_for("the release of what runs", 60, lambda: self.coffer(*verify)[0] == 0, 1)

    def answers(self, greeting):
        """The service `apart` comes to answer with this."""

        def look():
            try:
                return greeting in request(self.apart_listen, "/")[1]
            except (OSError, http.client.HTTPException):
                return False

        wait_for(greeting, 60, look, 1)

    def test_84_what_cannot_run_changes_nothing(self):
        good = self.world.git("rev-parse", "main")
        options = ["--commit", good, *self.trust, *self.github]
        before = self.status_at(good)
        declared = self.world.path("repos", *REPOSITORY.split("/"), "cofferdam.yaml")
        lines = contents(declared).decode().splitlines()
        late = next(line for line in reversed(lines) if "test/late@" in line)
        late = f"  late:\n{late}\n"
        # An image that nobody has.
        none = late[: late.index("sha256:")] + "sha256:" + "0" * 64 + "\n"
        seen, _ = self.changed(self.sign((late, none)), "refused", options)
        self.assertIn("images cannot be fetched", seen["changes"]["changes"][-1]["detail"])
        # Only a boot gives it another endpoint.
        ours = f"endpoint: 127.0.0.1:{self.port}\n"
        other = self.sign((none, late), (ours, "endpoint: 127.0.0.1:1\n"))
        seen, _ = self.changed(other, "refused", options)
        self.assertIn("endpoint", seen["changes"]["changes"][-1]["detail"])
        self.assertEqual(seen["commit"], good)
        self.assertEqual(self.shims(before), self.shims(seen))
        # What is not healthy is gone back from, to the image before, too.
        apart = re.search(r"  apart:\n    image: (.*)\n", contents(declared).decode())
        web = re.search(r"  web:\n    image: (.*)\n", contents(declared).decode())
        self.assertNotEqual(apart[1], web[1])
        bad = self.sign(
            (apart[0], apart[0].replace(apart[1], web[1])),
            ("endpoint: 127.0.0.1:1\n", ours),
            ("{tcp: 8080, interval: 1s, retries: 2}", "{tcp: 7, interval: 1s, retries: 1}"),
        )
        seen, seconds = self.changed(bad, "rolled-back", options)
        print(f"there and back: {seconds:.1f} s", file=sys.stderr)
        self.assertIn("apart", seen["changes"]["changes"][-1]["detail"])
        self.assertEqual(seen["commit"], good, "what ran before runs, and is claimed")
        old, new = self.shims(before), self.shims(seen)
        self.assertEqual(old["shim web"], new["shim web"])
        self.assertNotEqual(old["shim apart"], new["shim apart"])
        self.answers("hello changed")

    def test_90_the_power_button_ends_it_in_order(self):
        self.world.power_off("appliance", self.appliance)
        console = self.world.console("appliance")
        self.assertIn("power", console.lower())
        # web depends on neighbour.
        self.assertLess(console.rindex("shim web ended"), console.rindex("shim neighbour ended"))


class Hostile(unittest.TestCase):
    """Boots with a host that cheats."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="cofferdam-test-")
        self.world = World(self.folder.name, TOOLS)
        self.addCleanup(self.folder.cleanup)
        self.addCleanup(self.world.stop)
        self.world.start_services()
        self.github = self.world.github_options()
        self.port = free_port()
        self.declaration = self.world.declaration(
            self.port, "  web:\n    image: 10.0.2.2:1/none@sha256:" + "0" * 64 + "\n"
        )
        self.commit = self.world.commit(self.declaration)

    def put(self, image):
        def attempt():
            code, out, err = self.world.coffer(
                "secret",
                "put",
                REPOSITORY,
                "demo/greeting/value",
                "--endpoint",
                f"127.0.0.1:{self.port}",
                *self.world.trust_options(image),
                *self.github,
                stdin=SECRET,
            )
            return (code, out + err) if code != 6 else None

        return wait_for("an answer", 120, attempt, 1)

    def test_a_declaration_of_the_hosts_own_gets_no_secret(self):
        """The host changes the declaration and names a commit that is real: another operator would
        read the logs. And it withholds the network until the appliance says that it waits.
        """
        changed = self.declaration.replace("name: demo", "name: host")
        appliance = self.world.boot("slipped", IMAGE, changed, self.commit, self.port)
        monitor = self.world.path("slipped", "monitor.sock")
        wait_for("QEMU's monitor", 30, lambda: os.path.exists(monitor))
        self.world.monitor("slipped", "set_link net off")
        self.world.wait_console("slipped", appliance, "s, waiting for one", 240)
        self.world.monitor("slipped", "set_link net on")
        self.world.wait_console("slipped", appliance, "launched", 240)
        code, said = self.put(IMAGE)
        self.assertEqual(code, 3, said)
        self.assertIn("declaration", said)

    def test_a_commit_off_the_branch_gets_no_secret_and_another_image_is_predicted_and_explained(
        self,
    ):
        """The host pushed its declaration to a fork, whose commits GitHub serves under the parent's
        name; and it boots an image with another command line and another initramfs. What that one
        measures is predicted as exactly as ours.
        """
        changed = self.declaration.replace("name: demo", "name: host")
        commit = self.world.commit(changed, branch="fork")
        image = contents(IMAGE)
        initramfs = uki.section(image, ".initrd")
        other = self.world.path("other.efi")
        with open(other, "wb") as file:
            file.write(
                uki.variant(
                    image,
                    {
                        ".cmdline": uki.section(image, ".cmdline").rstrip(b"\0\n")
                        + b" other.word=1",
                        ".initrd": initramfs
                        + bytes(-len(initramfs) % 4)
                        + uki.file_archive("other", b"one more file\n"),
                    },
                )
            )
        appliance = self.world.boot("other", other, changed, commit, self.port)
        self.world.wait_console("other", appliance, "launched", 240)
        code, said = self.put(IMAGE)
        self.assertEqual(code, 3, said)
        self.assertRegex(said, r"rtmr1.*EV_EFI_BOOT_SERVICES_APPLICATION")
        for word in ("rtmr2", ".cmdline and .initrd"):
            self.assertIn(word, said)
        # With the values of the other image its registers are as predicted; only then is the
        # repository asked.
        code, said = self.put(other)
        self.assertEqual(code, 3, said)
        self.assertIn("default branch", said)
        self.assertNotIn("rtmr", said)

    def test_a_declaration_that_does_not_parse_parks(self):
        bad = self.declaration + "repository: acme/twice\n"
        self.world.boot("parked", IMAGE, bad, self.commit, self.port)
        wait_for("parked", 240, lambda: "parked" in self.world.console("parked"))
        last = [line for line in self.world.console("parked").splitlines() if "parked" in line][-1]
        self.assertIn("measure", last)
        with socket.socket() as probe:
            probe.settimeout(2)
            try:
                probe.connect(("127.0.0.1", self.port))
                self.assertEqual(probe.recv(1), b"", "nothing serves")
            except OSError:
                pass


class Demo(unittest.TestCase):
    """The demo trusts the reference values of the very image that it starts, and no others."""

    def test_reference_values_of_another_build_end_it_before_anything_starts(self):
        with tempfile.TemporaryDirectory(prefix="cofferdam-test-") as folder:
            image = contents(IMAGE)
            other, values = os.path.join(folder, "other.efi"), os.path.join(folder, "measurements")
            with open(other, "wb") as file:
                file.write(
                    uki.variant(
                        image,
                        {
                            ".cmdline": uki.section(image, ".cmdline").rstrip(b"\0\n")
                            + b" other.word=1"
                        },
                    )
                )
            os.mkdir(values)
            subprocess.run(
                [
                    os.path.join(TOOLS, "coffer"),
                    "measure",
                    other,
                    "--boot",
                    "simulator",
                    "--save",
                    os.path.join(values, "other.json"),
                    "--quiet",
                ],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            done = subprocess.run(
                [
                    os.path.join(ROOT, "ci", "demo"),
                    "--image",
                    IMAGE,
                    "--measurements",
                    values,
                    "--dir",
                    os.path.join(folder, "demo"),
                ],
                capture_output=True,
                text=True,
                check=False,
                timeout=600,
            )
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn("no reference values of the image", done.stderr)
        self.assertIn("ci/measurements", done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
