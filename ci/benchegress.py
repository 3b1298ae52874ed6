"""`ci/bench --only egress`: bytes a second through the egress relay, beside plain TCP in one guest.

A service fetches from a server on this machine through the relay, and so does the observer
(bench-guest.rs), in front of which no relay stands. The server has both connections first and then
serves them in turn; it takes the time from its first byte to the client's word that all came.
"""

import os
import queue
import socket
import ssl
import threading
import time
from urllib.request import urlopen

import observer
import uki
from harness import HOST_FROM_GUEST, free_port, wait_for, workload_files
from outside import HOST, NETWORK, Outside, Zone
from process import Failed

NAME = "files.example.org"
MIB, ROUNDS = 32, 3
WHO = ("relay", "plain")
SERVICES = """  web:
    image: {image}
    command: [/probe]
    ports: [{{published: 443, target: 8080, auth: none}}]
    egress: ["{name}:{port}/tcp"]
"""
# Only the way out is measured: it may be whoever answers.
ANYBODY = ssl._create_unverified_context()


class Server:
    """Sends to whoever has said who it is, when it is told to."""

    def __init__(self):
        self.waiting = {who: queue.Queue() for who in WHO}
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            connection, _ = self.listener.accept()
            connection.settimeout(120)
            try:
                self.waiting[connection.recv(5).decode()].put(connection)
            except (OSError, KeyError, UnicodeDecodeError):
                connection.close()

    def sent(self, who):
        """MiB a second to this client."""
        block = bytes(1 << 20)
        with self.waiting[who].get(timeout=120) as connection:
            begun = time.monotonic()
            for _ in range(MIB):
                connection.sendall(block)
            connection.shutdown(socket.SHUT_WR)
            said = connection.makefile().read()
            taken = time.monotonic() - begun
        if said != str(MIB << 20):
            raise Failed(f"{who}: {said!r} of {MIB << 20} bytes came")
        return MIB / taken


def asked(port, path):
    with urlopen(f"https://127.0.0.1:{port}{path}", context=ANYBODY, timeout=300) as answer:
        return answer.read()


def answers(port):
    try:
        return asked(port, "/")
    except OSError:
        return None


def measure(image, tools, folder):
    """{who: MiB a second, the best of the rounds}."""
    if os.geteuid() != 0:
        raise Failed("a resolver's port needs root")
    zone, server = Zone(), Server()
    zone.names = {NAME: [HOST]}
    path = os.path.join(folder, "dialling.efi")
    with open(path, "wb") as file:
        dial = f"dial={HOST}:{server.port}"
        file.write(observer.observed(uki.read(image), observer.program(folder), dial))
    with Outside(os.path.join(folder, "world"), tools) as world:
        world.start_services()
        reference = world.push_image("bench/web", workload_files(), {"Entrypoint": ["/probe"]})
        port = free_port()
        services = SERVICES.format(image=reference, name=NAME, port=server.port)
        declaration = world.declaration(port, services).replace(HOST_FROM_GUEST, HOST)
        commit = world.commit(declaration)
        machine = world.boot("appliance", path, declaration, commit, port, "--net", NETWORK)
        world.wait_console("appliance", machine, "launched", 240)
        wait_for("the service answers", 240, lambda: answers(port), 1)
        return rounds(server, port)


def rounds(server, port):
    """In turn, so that what else the machine does comes to both."""
    best = dict.fromkeys(WHO, 0.0)
    fetch = f"/received?host={NAME}&port={server.port}"
    for _ in range(ROUNDS):
        asking = threading.Thread(target=answers_to, args=(port, fetch), daemon=True)
        asking.start()
        for who in WHO:
            best[who] = max(best[who], server.sent(who))
        asking.join(120)
    return best


def answers_to(port, path):
    # What did not come, the server says.
    try:
        asked(port, path)
    except OSError:
        return
