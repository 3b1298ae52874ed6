"""Private registries for a test, on loopback: Debian's docker-registry with basic authentication,
and with tokens that a service on another port makes (distribution: "Token authentication").

Both serve what was pushed to the world's open registry. User and password are constants, and the
tokens are good for five minutes and for pulling.
"""

import base64
import http.server
import json
import ssl
import subprocess
import threading
import time
import urllib.parse

from harness import free_port

USER = "puller"
PASSWORD = "pull-from-the-private-registry"
# bcrypt of the password, which is all that docker-registry takes in an htpasswd file.
HTPASSWD = f"{USER}:$2b$04$4sGMpISJoBUK0J7jzkKj0uvdfXJWas8bwYd8HuWLh3G6d4kg04/mm\n"
SERVICE = "private"
ISSUER = "test"
LIFETIME = 300


def b64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def der_lines(pem):
    """The base64 body of the first certificate of a PEM file."""
    body = pem.split("-----BEGIN CERTIFICATE-----")[1].split("-----END CERTIFICATE-----")[0]
    return "".join(body.split())


def raw_signature(der):
    """r and s, 32 bytes each, of an ECDSA signature in DER (RFC 7518 section 3.4)."""

    def integer(at):
        length = der[at + 1]
        return der[at + 2 : at + 2 + length].lstrip(b"\0").rjust(32, b"\0"), at + 2 + length

    r, after = integer(2)
    s, _ = integer(after)
    return r + s


class Tokens(http.server.BaseHTTPRequestHandler):
    """Makes a token for whoever knows the password: a JSON Web Token with its certificate."""

    certificate = key = None

    def do_GET(self):
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        wanted = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.headers.get("Authorization") != f"Basic {wanted}":
            return self.reply(401, {"details": "incorrect username or password"})
        access = []
        for scope in query.get("scope", []):
            kind, name, actions = scope.split(":")
            allowed = [action for action in actions.split(",") if action == "pull"]
            access.append({"type": kind, "name": name, "actions": allowed})
        return self.reply(200, {"token": self.token(access), "expires_in": LIFETIME})

    def token(self, access):
        now = int(time.time())
        with open(self.certificate, encoding="utf-8") as file:
            chain = [der_lines(file.read())]
        head = {"typ": "JWT", "alg": "ES256", "x5c": chain}
        claims = {
            "iss": ISSUER,
            "sub": USER,
            "aud": SERVICE,
            "exp": now + LIFETIME,
            "nbf": now - 10,
            "iat": now,
            "jti": str(now),
            "access": access,
        }
        signed = ".".join(b64url(json.dumps(part).encode()) for part in (head, claims))
        signature = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", self.key],
            input=signed.encode(),
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        return f"{signed}.{b64url(raw_signature(signature))}"

    def reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class PrivateRegistries:
    """The registries and the token service; a context manager. Ports: `basic`, `closed` (the same
    once more, for a client without credentials), `bearer`, `tokens`.
    """

    def __init__(self, world, realm_host):
        self.world, self.realm_host = world, realm_host
        self.basic, self.closed, self.bearer, self.tokens = (free_port() for _ in range(4))
        self.server = None

    def __enter__(self):
        world = self.world
        certificate, key = world.path("tls", "server.pem"), world.path("tls", "server.key")
        handler = type("Handler", (Tokens,), {"certificate": certificate, "key": key})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.tokens), handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        with open(world.path("htpasswd"), "w", encoding="utf-8") as file:
            file.write(HTPASSWD)
        for name, port in (("basic", self.basic), ("closed", self.closed)):
            self.start(name, port, f"htpasswd: {{realm: r, path: {world.path('htpasswd')}}}")
        self.start(
            "bearer",
            self.bearer,
            f"token: {{realm: 'https://{self.realm_host}:{self.tokens}/token', service: {SERVICE}, "
            f"issuer: {ISSUER}, rootcertbundle: {world.ca}}}",
        )
        return self

    def start(self, name, port, auth):
        world, config = self.world, self.world.path(f"registry-{name}.yml")
        certificate, key = world.path("tls", "server.pem"), world.path("tls", "server.key")
        with open(config, "w", encoding="utf-8") as file:
            file.write(
                "version: 0.1\nlog: {level: warn}\n"
                f"storage: {{filesystem: {{rootdirectory: {world.path('registry')}}}}}\n"
                f"auth: {{{auth}}}\n"
                f"http: {{addr: '127.0.0.1:{port}', "
                f"tls: {{certificate: {certificate}, key: {key}}}}}\n"
            )
        command = ["docker-registry", "serve", config]
        world.listening(f"registry {name}", world.start(f"registry-{name}", command), port)

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
