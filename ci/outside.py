"""A world outside of the appliance with public addresses and names, on loopback, for what egress is
tried with. A resolver's port needs root.
"""

import socket
import threading

from harness import World

# The host as the machine sees it, at an address that egress does not refuse as private.
NETWORK, HOST = "203.0.113.0/24", "203.0.113.2"
# The host's loopback has room for a resolver beside its own.
RESOLVER = "127.0.0.97"


class Zone:
    """A resolver over UDP that says what `names` has, for a second, and remembers what it was
    asked.
    """

    def __init__(self):
        self.names, self.asked = {}, []
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((RESOLVER, 53))
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            message, sender = self.socket.recvfrom(512)
            labels, at = [], 12
            while message[at]:
                labels.append(message[at + 1 : at + 1 + message[at]].decode())
                at += 1 + message[at]
            name, question = ".".join(labels).lower(), message[12 : at + 5]
            self.asked.append(name)
            addresses = self.names.get(name, [])
            flags = b"\x81\x80" if addresses else b"\x81\x83"
            counts = b"\0\1" + len(addresses).to_bytes(2, "big") + bytes(4)
            records = b"".join(
                b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + socket.inet_aton(address) for address in addresses
            )
            self.socket.sendto(message[:2] + flags + counts + question + records, sender)


class Outside(World):
    """A world whose appliance has another resolver than this machine."""

    def start(self, name, command, **options):
        if name == "appliance":
            configuration = self.path("resolv.conf")
            with open(configuration, "w", encoding="utf-8") as file:
                file.write(f"nameserver {RESOLVER}\n")
            script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", script, configuration, *command]
        return super().start(name, command, **options)
