"""Many addresses: silence, slowness, and asking at full rate, while an operator works.

Also two figures: how long operators and fresh evidence take beside eight hostile addresses, next to
the same without them; and how many quotes many nonces take.
"""

import base64
import concurrent.futures
import contextlib
import http.client
import math
import multiprocessing
import os
import socket
import ssl
import statistics
import threading
import time

from attacks.stage import ADDRESSES, HOSTILE, PREFIX, is_over
from attacks.table import Scenario, Wrong, must

# Of each hostile address: threads that ask, and TCP connections that stay silent.
ASKING, SILENT = 4, 10
# Requests of an operator and for evidence that are timed, in each of both states.
TIMED = {False: 10, True: 100}
# Nonces, and connections that ask for them.
NONCES = {False: 400, True: 10_000}
ASKERS = 96
# So that QEMU's user network takes each; a thousand at once are tried by `front`'s own tests.
PACE = 0.02
QUIET = {False: 64, True: 640}


@contextlib.contextmanager
def silent(stage, count, data=b""):
    """So many connections that say this and no more."""
    held, to = [], ("127.0.0.1", stage.hostile_ports["web"])
    try:
        for number in range(count):
            source = HOSTILE[number % len(HOSTILE)]
            peer = socket.create_connection(to, 60, (source, 0))
            held.append(peer)
            peer.sendall(data)
            time.sleep(PACE)
        yield held
    finally:
        for peer in held:
            peer.close()


def silence(data):
    def act(stage):
        with silent(stage, QUIET[stage.long], data):
            seen = stage.answers()
        return f"beside {QUIET[stage.long]} of {len(HOSTILE)} addresses {seen}"

    return act


@contextlib.contextmanager
def crowd(stage, count, *asks):
    """So many who have shaken hands, from each hostile address in turn, and said what `asks` has:
    pairs of where and what, in turn as well.
    """
    peers = []
    try:
        for number in range(count):
            where, text = asks[number % len(asks)]
            peers.append(stage.peer(where, source=HOSTILE[number % len(HOSTILE)]))
            peers[-1].send(text.encode())
        yield peers
    finally:
        for peer in peers:
            peer.raw.close()


def slow_loris(stage):
    """Heads that grow by a byte now and then."""
    with crowd(stage, 64, ("web", "GET / HTTP/1.1\r\nHost: x\r\nX-A: ")) as peers:
        for _ in range(3):
            for peer in peers:
                peer.send(b"a")
            seen = stage.answers()
    return f"beside {len(peers)} heads that drip {seen}"


def slow_bodies(stage):
    """An operator's bodies from strangers, and a service's, that drip."""
    head = f"PUT {PREFIX}/v1/secrets/a/b/c HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n"
    signature = base64.b64encode(bytes(64)).decode()
    forged = f'Cofferdam-Operator key="SHA256:{"A" * 43}", signature="{signature}"'
    put = f"{head}Authorization: {forged}\r\n\r\n"
    post = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n"
    with crowd(stage, 48, ("web", put), ("open", post)) as peers:
        for peer in peers:
            peer.send(b"x")
        seen = stage.answers()
    return f"beside {len(peers)} bodies that drip {seen}"


def slow_readers(stage):
    """Who asks for much and takes nothing of it."""
    large = ("attacker", "GET /stream?mib=64 HTTP/1.1\r\nHost: x\r\n\r\n")
    with crowd(stage, 32, large) as peers:
        seen = stage.answers()
    return f"beside {len(peers)} who take nothing of 64 MiB {seen}"


def half_closed(stage):
    """Who has closed its side leaves nothing behind that others would miss."""
    with crowd(stage, 32, ("open", "GET / HTTP/1.1\r\nHost: x\r\n\r\n")) as peers:
        for peer in peers:
            peer.raw.shutdown(socket.SHUT_WR)
        seen = stage.answers()
        came = sum(peer.answer().status == 200 for peer in peers)
    return f"{came} of {len(peers)} got an answer; {seen}"


def hanging(stage):
    """Requests that hang in one service take no place of another."""
    hang = "GET /dependency?host=attacker&ask=/tell HTTP/1.1\r\nHost: x\r\n\r\n"
    with crowd(stage, 160, ("attacker", hang)) as peers:
        seen = stage.answers()
    return f"beside {len(peers)} requests {seen}"


# -- at full rate --


def nonce():
    value = os.urandom(16)
    return value, f"{PREFIX}/evidence?nonce={base64.urlsafe_b64encode(value).decode().rstrip('=')}"


def connection(port, source):
    context = ssl._create_unverified_context()
    more = {"timeout": 120, "context": context, "source_address": (source, 0)}
    return http.client.HTTPSConnection("127.0.0.1", port, **more)


def hostile(port, sources, started):
    """A process: each address keeps silent connections, and asks for evidence without end."""

    def ask(source):
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                call = connection(port, source)
                with contextlib.closing(call):
                    for _ in range(4):
                        call.request("GET", nonce()[1])
                        call.getresponse().read()
                        started.set()

    def hang(source):
        held = []
        while True:
            with contextlib.suppress(OSError):
                held.append(socket.create_connection(("127.0.0.1", port), 20, (source, 0)))
                if len(held) > SILENT:
                    held.pop(0).close()
            time.sleep(0.05)

    for source in sources:
        for act in [hang, *[ask] * ASKING]:
            threading.Thread(target=act, args=(source,), daemon=True).start()
    time.sleep(3600)


@contextlib.contextmanager
def attack(stage):
    """Eight hostile addresses at full rate, each as fast as it is let."""
    context = multiprocessing.get_context("fork")
    started, port = context.Event(), stage.hostile_ports["web"]
    processes = [
        context.Process(target=hostile, args=(port, HOSTILE[half::2], started), daemon=True)
        for half in range(2)
    ]
    for process in processes:
        process.start()
    try:
        if not started.wait(120):
            raise Wrong("the attackers got nothing at all, so this is no attack")
        time.sleep(2)
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def timed(act, count):
    """(median, 99th percentile) in milliseconds."""
    took = []
    for _ in range(count):
        began = time.monotonic()
        act()
        took.append(1000 * (time.monotonic() - began))
    took.sort()
    return statistics.median(took), took[math.ceil(0.99 * len(took)) - 1]


def lane(stage):
    """The operators' lane: everything is answered, and how fast is printed."""

    def operates():
        answer = stage.operator("GET", "/v1/status")
        if answer.status != 200:
            raise Wrong(f"an operator's status: {answer}")

    def evidence():
        if not stage.fresh():
            raise Wrong("no fresh evidence")

    count, words = TIMED[stage.long], []
    alone = {act: timed(act, count) for act in (operates, evidence)}
    with attack(stage):
        under = {act: timed(act, count) for act in (operates, evidence)}
        stage.put("demo/live/lane", "a secret that is put under attack")
        said = stage.diagnosed(exit_code=0)
    for act, name in ((operates, "operator"), (evidence, "evidence")):
        (median, worst), (median_under, worst_under) = alone[act], under[act]
        words.append(
            f"{name} p50/p99 {median:.0f}/{worst:.0f} ms alone,"
            f" {median_under:.0f}/{worst_under:.0f} ms under attack"
        )
    return f"{'; '.join(words)} ({count} each, all answered)", said


def batched(stage):
    """Each nonce has a document that is over it, and many have one quote."""
    count = NONCES[stage.long]
    lock, left = threading.Lock(), iter(range(count))

    def ask(call):
        quotes = []
        while True:
            with lock:
                if next(left, None) is None:
                    return quotes
            value, path = nonce()
            call.request("GET", path)
            answer = call.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise Wrong(f"nonce refused: {answer.status} {body[:200]}")
            quotes.append(is_over(body, value))

    with contextlib.ExitStack() as stack:
        calls = []
        for number in range(ASKERS):
            call = connection(stage.ports["web"], ADDRESSES[number % 8])
            calls.append(stack.enter_context(contextlib.closing(call)))
            call.connect()
        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(ASKERS) as pool:
            found = [quote for quotes in pool.map(ask, calls) for quote in quotes]
    seconds, quotes = time.monotonic() - began, len({*found})
    seen = f"{count} nonces, {quotes} quotes, {len(found) / seconds:.0f} nonces/s of {ASKERS}"
    return must(len(found) == count and quotes < count / 2, f"{seen} connections")


def nobody_was_harmed(stage):
    return f"{stage.answers()}; {stage.calm()}", stage.diagnosed(exit_code=0)


GROUP = "peers"
HELLO = b"\x16\x03\x01\x02\x00\x01\x00"
SCENARIOS = [
    Scenario(GROUP, "silent TCP from many addresses keeps nobody out", silence(b"")),
    Scenario(GROUP, "handshakes that stand still keep nobody out", silence(HELLO), True),
    Scenario(GROUP, "heads that drip keep nobody out", slow_loris, True),
    Scenario(GROUP, "bodies that drip keep nobody out", slow_bodies),
    Scenario(GROUP, "who does not read keeps nobody out", slow_readers, True),
    Scenario(GROUP, "who has closed its side keeps nobody out", half_closed),
    Scenario(GROUP, "what hangs in one service takes no place of others", hanging, True),
    Scenario(GROUP, "eight addresses at full rate leave operators and evidence their lane", lane),
    Scenario(GROUP, "many nonces share quotes, and each is under its own", batched),
    Scenario(GROUP, "afterwards all is served, and the doctor finds nothing", nobody_was_harmed),
]
