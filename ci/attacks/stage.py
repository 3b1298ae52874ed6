"""One simulated appliance in a network of this program's own, and how it is spoken to.

The network is a namespace with loopback alone, so that attackers have addresses: QEMU's user
network shows connections from 127.0.0.0/8 as one and the same, all others as they are. It needs
root.

QEMU's user network lets two connections wait at each of its ports until it takes them, and of more
the kernel drops what they say: they try again after seconds, up to a minute. That queue is this
network's and not the appliance's, so hostile addresses have ports of their own to the same places.
"""

import base64
import contextlib
import ctypes
import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import struct
import time

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
)
from OpenSSL import SSL

from attacks.table import Wrong
from harness import (
    GITHUB_TOKEN,
    REPOSITORY,
    World,
    free_port,
    wait_for,
    workload_files,
)
from process import Failed, run

# For benchmarks of networks (RFC 2544): nobody's elsewhere.
ADDRESSES = [f"198.18.0.{number}" for number in range(1, 17)]
# Those of attackers that come in great numbers.
HOSTILE = ADDRESSES[8:16]
PREFIX = "/.well-known/cofferdam"
CLONE_NEWNET = 0x40000000
# For whatever has to happen on a machine that does much else.
SOON = 60
SERVICES = """  web:
    image: {image}
    environment: {{GREETING: hello web, GREETING_SECRET: secret://demo/web/value}}
    ports: ["443:8080"]
    restart: always
  open:
    image: {image}
    environment: {{GREETING: hello open, HEARS: "81"}}
    ports:
      - {{published: 8444, target: 8080, auth: none}}
      - {{published: 8445, target: 81, auth: none}}
    restart: always
  attacker:
    image: {image}
    environment: {{GREETING: hello attacker}}
    ports: [{{published: 8446, target: 8080, auth: none}}]
    mem_limit: 128m
    restart: always
"""
# Published ports by what is behind them.
PORTS = {"web": 443, "open": 8444, "heard": 8445, "attacker": 8446}


def own_network():
    """From now on this program, and what it starts, is in a network namespace of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise Failed(f"a network namespace: {os.strerror(ctypes.get_errno())} (root is needed)")
    run(["ip", "link", "set", "lo", "up"])
    for address in ADDRESSES:
        run(["ip", "address", "add", f"{address}/32", "dev", "lo"])


class Answer:
    """The first response of what came on a connection; `status` is 0 where there was none."""

    def __init__(self, data):
        self.data = data
        head, _, self.body = data.partition(b"\r\n\r\n")
        found = re.match(rb"HTTP/1\.1 (\d{3})", head)
        self.status = int(found[1]) if found else 0
        lines = head.split(b"\r\n")[1:]
        self.headers = {
            name.strip().lower().decode("latin-1"): value.strip().decode("latin-1")
            for name, _, value in (line.partition(b":") for line in lines)
        }

    def complete(self):
        length = self.headers.get("content-length")
        return b"\r\n\r\n" in self.data and length and len(self.body) >= int(length)

    def __str__(self):
        text = self.body[:120].decode("utf-8", "replace") if self.status != 200 else ""
        return f"{self.status or 'hung up'} {text}".strip()


class Peer:
    """One TLS connection, of which the binding is known and every byte is this program's choice."""

    def __init__(self, port, source="127.0.0.1", alpn=None, seconds=SOON):
        raw = socket.create_connection(("127.0.0.1", port), seconds, (source, 0))
        raw.settimeout(None)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            raw.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, 0))
        context = SSL.Context(SSL.TLS_METHOD)
        if alpn:
            context.set_alpn_protos([alpn])
        self.raw, self.tls = raw, SSL.Connection(context, raw)
        self.tls.set_connect_state()
        began = time.monotonic()
        try:
            self.tls.do_handshake()
        except SSL.Error as error:
            raw.close()
            took = f"{time.monotonic() - began:.1f} s"
            raise SSL.Error(f"the handshake ended after {took}: {error!r}") from error
        except BaseException:
            raw.close()
            raise
        self.binding = self.tls.export_keying_material(b"EXPORTER-Channel-Binding", 32)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.raw.close()

    def send(self, data):
        """Whether all of it was taken."""
        try:
            self.tls.sendall(data)
        except (SSL.Error, OSError):
            return False
        return True

    def receive(self):
        """What comes next; nothing at the end, however it came."""
        try:
            return self.tls.recv(65536)
        except (SSL.Error, OSError):
            return b""

    def answer(self):
        answer = Answer(b"")
        while not answer.complete():
            piece = self.receive()
            if not piece:
                break
            answer = Answer(answer.data + piece)
        return answer

    def ask(self, data):
        self.send(data)
        return self.answer()


def signed(peer, key, method, path, body=b"", said=None, length=None):
    """An operator's request on this connection; `said` is the body that it is signed for."""
    digest = hashlib.sha256(body if said is None else said).digest()
    words = [b"cofferdam/operator/v1", method.encode(), path.encode(), digest, peer.binding]
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    wire = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + public
    name = base64.b64encode(hashlib.sha256(wire).digest()).decode().rstrip("=")
    signature = base64.b64encode(key.sign(b"\0".join(words))).decode()
    length = len(body) if length is None else length
    return (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n"
        f'Authorization: Cofferdam-Operator key="SHA256:{name}", signature="{signature}"\r\n\r\n'
    ).encode() + body


class Stage:
    """The appliance, as it is when it has launched without a registry and without a secret."""

    def __init__(self, world, image):
        self.world, self.image = world, image
        # Whether the larger numbers are meant.
        self.long = False

    def start(self):
        world = self.world
        world.start_services()
        image = world.push_image("live/probe", workload_files(), {"Entrypoint": ["/probe"]})
        self.ports = {name: free_port() for name in PORTS}
        self.hostile_ports = {name: free_port() for name in PORTS}
        declaration = world.declaration(self.ports["web"], SERVICES.format(image=image))
        self.commit = world.commit(declaration)
        self.options = [*world.trust_options(self.image), *world.github_options()]
        self.registry(False)
        port = self.ports["web"]
        pairs = [
            f"{ports[name]}:{PORTS[name]}"
            for ports in (self.ports, self.hostile_ports)
            for name in PORTS
            if ports[name] != port
        ]
        more = [word for pair in pairs for word in ("--forward", pair)]
        about = (self.image, declaration, self.commit, port, *more, "--control")
        self.machine = world.boot("appliance", *about)
        world.wait_console("appliance", self.machine, "launched", 240)
        with open(world.path("operator.key"), "rb") as file:
            self.key = load_ssh_private_key(file.read(), None)
        self.control = world.control("appliance")

    def registry(self, there):
        world = self.world
        if there:
            command = ["docker-registry", "serve", world.path("registry.yml")]
            world.registry_process = world.start("registry", command)
            world.listening("registry", world.registry_process, world.registry_port)
        else:
            world.end(world.registry_process)

    # -- as a client --

    def peer(self, where="web", source="127.0.0.1", **options):
        ports = self.hostile_ports if source in HOSTILE else self.ports
        return Peer(ports[where], source, **options)

    def ask(self, data, where="web", **options):
        with self.peer(where, **options) as peer:
            return peer.ask(data)

    def get(self, path, where="open", source="127.0.0.1", seconds=SOON):
        """The body of a service's 200; anything else is an error."""
        with self.connection(where, source, seconds) as call:
            call.request("GET", path)
            answer = call.getresponse()
            body = answer.read().decode("utf-8", "replace")
        if answer.status != 200:
            raise Wrong(f"{where}{path}: {answer.status} {body}")
        return body

    def connection(self, where, source="127.0.0.1", seconds=SOON):
        context = ssl._create_unverified_context()
        call = http.client.HTTPSConnection(
            "127.0.0.1",
            self.ports[where],
            timeout=seconds,
            context=context,
            source_address=(source, 0),
        )
        return contextlib.closing(call)

    def fresh(self, source="127.0.0.1"):
        """A document over a nonce of this moment."""
        nonce = os.urandom(16)
        path = f"{PREFIX}/evidence?nonce={base64.urlsafe_b64encode(nonce).decode().rstrip('=')}"
        with self.connection("web", source) as call:
            call.request("GET", path)
            answer = call.getresponse()
            return is_over(answer.read(), nonce) if answer.status == 200 else None

    def answers(self):
        """Everybody who has to be served whatever strangers do, is."""
        if not self.get("/").startswith("hello open"):
            raise Wrong("the service gives another answer")
        if not self.fresh():
            raise Wrong("no fresh evidence")
        return f"service and evidence answer, {self.operates()}"

    # -- as an operator --

    def operator(self, method, path, body=b"", source="127.0.0.1"):
        with self.peer(source=source) as peer:
            return peer.ask(signed(peer, self.key, method, PREFIX + path, body))

    def operates(self):
        """An operator reads the status and asks the vault."""
        for path in ("/v1/status", "/v1/secrets"):
            answer = self.operator("GET", path)
            if answer.status != 200:
                raise Wrong(f"an operator's {path}: {answer}")
        return "an operator too"

    def status(self):
        answer = self.operator("GET", "/v1/status")
        if answer.status != 200:
            raise Wrong(f"status: {answer}")
        return json.loads(answer.body)

    def service(self, name):
        return next(one for one in self.status()["services"] if one["name"] == name)

    def until(self, what, condition, seconds=120):
        """Waits until it is so, whoever does not answer meanwhile."""

        def so():
            with contextlib.suppress(OSError, Wrong, SSL.Error, ValueError, KeyError, Failed):
                return condition()
            return None

        return wait_for(what, seconds, so, 0.2)

    def running(self):
        status = self.status()
        return all(one["state"] == "running" for one in status["services"]) and status

    def put(self, name, value, *at):
        self.world.coffer_ok("secret", "put", REPOSITORY, name, *at, *self.options, stdin=value)

    def give_secrets(self):
        # Before there is a release the appliance proves itself, where it is declared to be.
        at = ["--endpoint", f"127.0.0.1:{self.ports['web']}"]
        self.put("demo/web/value", "the secret of web, long enough", *at)
        self.put("cofferdam/github/token", GITHUB_TOKEN, *at)

    def doctor(self, repository=REPOSITORY, seconds=42):
        """What is not well, by its codes."""
        given = [*self.options, "--timeout", f"{seconds}s", "--json"]
        code, out, err = self.world.coffer("doctor", repository, *given)
        if not out:
            raise Failed(f"coffer doctor exited with {code}: {err}")
        said = json.loads(out)
        findings = said["findings"]
        codes = [one["code"] for one in findings if one["severity"] != "ok"]
        bare = [
            one["code"]
            for one in findings
            if one["severity"] != "ok" and not (one["remedy"] or one["command"])
        ]
        if bare:
            raise Wrong(f"findings without a remedy: {bare}")
        return codes, said["exit_code"]

    def diagnosed(self, *wanted, exit_code=None, **options):
        """Waits until the doctor says all of these; the text for the table."""
        last = []

        def said():
            codes, code = self.doctor(**options)
            codes = list(dict.fromkeys(codes))
            last[:] = [f"{' '.join(codes) or 'ok'} ({code})"]
            fits = set(wanted) <= set(codes) and exit_code in (None, code)
            return last[0] if fits else None

        try:
            return wait_for(f"doctor says {' '.join(wanted) or 'ok'}", SOON, said, 1)
        except Failed as failed:
            raise Wrong(f"{failed}; it says {last}") from None

    # -- as the host --

    def faults(self, *faults):
        """What GitHub does wrong from now on."""
        with open(self.world.path("faults.new"), "w", encoding="utf-8") as file:
            json.dump(faults, file)
        os.replace(self.world.path("faults.new"), self.world.path("faults.json"))

    def starts(self):
        """How often each role and service was started again."""
        status = self.status()
        return {one["name"]: one["restarts"] for one in [*status["roles"], *status["services"]]}

    def calm(self):
        console = self.world.console("appliance")
        for word in ("Kernel panic", "parked", "BUG:", "Oops", "panicked"):
            if word in console:
                raise Wrong(f"{word!r} on the console")
        return "the console is calm"

    def unharmed(self):
        """Everybody is answered."""
        return f"{self.answers()}; {self.calm()}"


def is_over(document, nonce):
    """The digest of a document's quote, if it is over this nonce, alone or in a tree."""
    found = json.loads(document)
    claims = json.loads(base64.b64decode(found["claims"]))
    challenge = found.get("challenge")
    over = base64.b64decode((challenge or claims).get("nonce") or "")
    root = base64.b64decode(claims.get("challenges") or "")
    if over != nonce or (challenge and root_of(challenge) != root):
        raise Wrong("a document that is not over the nonce that was asked for")
    return hashlib.sha256(found["quote"].encode()).hexdigest()


def root_of(challenge):
    """The root that a challenge's path leads to, as `attest` describes it."""
    binding = base64.b64decode(challenge.get("channel_binding") or "")
    leaf = b"\1" + binding if binding else b"\0"
    leaf = b"cofferdam/challenge/v1\0" + leaf + base64.b64decode(challenge["nonce"])
    found, index = hashlib.sha256(leaf).digest(), challenge["index"]
    for sibling in map(base64.b64decode, challenge["path"]):
        pair = sibling + found if index & 1 else found + sibling
        found, index = hashlib.sha256(b"cofferdam/challenge-node/v1\0" + pair).digest(), index >> 1
    return found


@contextlib.contextmanager
def staged(folder, tools, image):
    """A stage on which the appliance has launched."""
    own_network()
    with World(folder, tools) as world:
        stage = Stage(world, image)
        try:
            stage.start()
            yield stage
        except BaseException:
            print(world.console("appliance")[-4000:])
            raise
        finally:
            if hasattr(stage, "control"):
                stage.control.close()
