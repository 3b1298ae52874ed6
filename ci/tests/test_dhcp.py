#!/usr/bin/python3
"""A DHCP server that is silent, lies, refuses, forgets, and is good again.

The network is this program, which answers the frames that the machine sends. What the appliance
says of each is on its console, and it goes on asking whatever it was told.
"""

import os
import socket
import struct
import sys
import tempfile
import threading
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from harness import ROOT, World, free_port, wait_for
from process import Failed

IMAGE = os.environ.get("COFFERDAM_IMAGE", os.path.join(ROOT, "cofferdam-simulator.efi"))
TOOLS = os.environ.get("COFFERDAM_TOOLS", os.path.join(ROOT, "target", "debug"))
SERVER, CLIENT = (socket.inet_aton(text) for text in ("10.0.2.2", "10.0.2.15"))
OWN = bytes.fromhex("525400000002")
EVERYBODY = b"\xff" * 6
# Message types and options of RFC 2132.
DISCOVER, OFFER, REQUEST, ACK, NAK = 1, 2, 3, 5, 6
MASK, ROUTER, LEASE, TYPE, SERVER_ID, T1, T2, END = 1, 3, 51, 53, 54, 58, 59, 255
COOKIE = bytes.fromhex("63825363")
BOOTP = 236
# The shortest lease that is taken, and when its client begins to ask for more.
SECONDS, RENEWAL, REBINDING = 60, 5, 40
# Never pulled: this network leads nowhere.
SERVICES = f"  web: {{image: registry.example/web@sha256:{'1' * 64}}}\n"


def checksum(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def options(data):
    """The options of a DHCP message, by number."""
    found, at = {}, BOOTP + len(COOKIE)
    while at < len(data) and data[at] != END:
        if data[at] == 0:
            at += 1
            continue
        length = data[at + 1]
        found[data[at]] = data[at + 2 : at + 2 + length]
        at += 2 + length
    return found


class Network:
    """One machine's network card, and a DHCP server that does what it is told to."""

    def __init__(self, path):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(1)
        # What it answers from now on: types by those asked, the address, how much of each.
        self.answers, self.address, self.length = {}, CLIENT, None
        self.asked = []
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        # A machine that is begun anew comes again.
        while True:
            machine, _ = self.listener.accept()
            with machine:
                while frame := self.frame(machine):
                    for answer in self.answer(frame):
                        machine.sendall(struct.pack(">I", len(answer)) + answer)

    def frame(self, machine):
        head = machine.recv(4, socket.MSG_WAITALL)
        return machine.recv(struct.unpack(">I", head)[0], socket.MSG_WAITALL) if head else b""

    def answer(self, frame):
        kind = frame[12:14]
        if kind == b"\x08\x06" and frame[38:42] == SERVER:
            head = frame[6:12] + OWN + frame[12:14] + frame[14:20] + b"\0\2"
            yield head + OWN + SERVER + frame[22:32]
        if kind == b"\x08\0" and frame[23] == 17 and frame[36:38] == b"\0\x43":
            yield from self.dhcp(frame[6:12], frame[42:])

    def dhcp(self, hardware, message):
        asked = options(message)[TYPE][0]
        self.asked.append(asked)
        answer = self.answers.get(asked)
        if answer is None:
            return
        said = {
            TYPE: bytes([answer]),
            SERVER_ID: SERVER,
            MASK: b"\xff\xff\xff\0",
            ROUTER: SERVER,
            **{
                n: struct.pack(">I", s)
                for n, s in ((LEASE, SECONDS), (T1, RENEWAL), (T2, REBINDING))
            },
        }
        body = bytearray(b"\2\1\6\0" + message[4:8] + bytes(BOOTP - 8))
        body[16:20], body[28:34] = (bytes(4) if answer == NAK else self.address), hardware
        listed = b"".join(bytes([n, len(value)]) + value for n, value in said.items())
        body = (body + COOKIE + listed + bytes([END]))[: self.length]
        udp = struct.pack(">4H", 67, 68, 8 + len(body), 0) + body
        head = struct.pack(">BBHIBBH", 0x45, 0, 20 + len(udp), 0, 64, 17, 0) + SERVER + b"\xff" * 4
        head = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
        yield EVERYBODY + OWN + b"\x08\0" + head + udp


class Dhcp(unittest.TestCase):
    def test_whatever_the_server_does_the_appliance_says_it_and_asks_on(self):
        with (
            tempfile.TemporaryDirectory(prefix="cofferdam-dhcp-") as folder,
            World(folder, TOOLS) as world,
        ):
            world.start_services()
            network = Network(world.path("frames.sock"))
            declaration = world.declaration(443, SERVICES)
            about = (IMAGE, declaration, "1" * 40, free_port())
            machine = world.boot("appliance", *about, "--frames", world.path("frames.sock"))
            count = 0

            def said(text, seconds=120):
                """Waits until the console has said this once more."""
                nonlocal count

                def so():
                    lines = world.console("appliance").splitlines()
                    found = [n for n, line in enumerate(lines) if text in line and n >= count]
                    return found and (found[0], lines[found[0]])

                def alive():
                    self.assertIsNone(machine.poll())
                    return so()

                try:
                    at, line = wait_for(f"{text!r} on the console", seconds, alive)
                except Failed as failed:
                    raise Failed(f"{failed}:\n{world.console('appliance')[-4000:]}") from None
                count = at + 1
                return line

            # Nobody answers.
            self.assertIn("asking", said("no DHCP server gives an address"))
            # An address that no machine can have.
            network.answers, network.address = (
                {DISCOVER: OFFER, REQUEST: ACK},
                bytes([127, 0, 0, 1]),
            )
            self.assertIn("127.0.0.1", said("the DHCP server's answer is not used"))
            # Half of a message, in its header and in its options.
            for length in (100, BOOTP + 6):
                network.address, network.length = CLIENT, length
                asked = len(network.asked)
                wait_for("more questions", 60, lambda asked=asked: len(network.asked) > asked + 1)
            # What was offered is refused.
            network.length, network.answers = None, {DISCOVER: OFFER, REQUEST: NAK}
            said("refuses the address (NAK)")
            # At last one that can be used; the boot goes on.
            network.answers = {DISCOVER: OFFER, REQUEST: ACK}
            line = said("leased: address=10.0.2.15/24")
            self.assertIn(f"from the DHCP server 10.0.2.2 for {SECONDS} s", line)
            said("launched")
            # It is taken away when it is to be renewed, and given back.
            network.answers = {REQUEST: NAK}
            self.assertIn("lost", said("refuses the address (NAK)"))
            network.answers = {DISCOVER: OFFER, REQUEST: ACK}
            said("leased: address=10.0.2.15/24")
            # Nobody answers until it has run out.
            network.answers = {}
            self.assertIn("lost", said("the lease ran out and was not renewed"))
            network.answers = {DISCOVER: OFFER, REQUEST: ACK}
            said("leased: address=10.0.2.15/24")
            self.assertNotIn("parked", world.console("appliance"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
