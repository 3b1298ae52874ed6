"""`ci/bench --only front`: requests a second through the appliance's front, beside nginx in one
guest.

One nginx in one service: its plain port behind `front`, which has the TLS, and its own TLS passed
through untouched, behind which it is a reverse proxy that keeps its connections to the plain port.
So both take the same way into the machine, both answers come from the same server, and what is
compared is one reverse proxy with TLS against the other. A third port, on which nginx answers out
of its own memory, shows what the hop to a server costs either.
"""

import os
import re
import shutil
import ssl
import tempfile
import urllib.request

from guest import libraries
from harness import World, free_port, wait_for
from process import Failed, run

NGINX = "/usr/sbin/nginx"
# Of the load: connections, requests of one run, streams of a connection in HTTP/2, rounds in turn.
CONNECTIONS, REQUESTS, STREAMS, ROUNDS = 4, 400, 8, 3
PROTOCOLS = {"HTTP/1.1": ["--h1"], "HTTP/2": ["-m", str(STREAMS)]}
BODY = "x" * 1024
CONFIGURATION = f"""daemon off;
pid /tmp/nginx.pid;
error_log stderr crit;
events {{ worker_connections 256; }}
http {{
  access_log off;
  keepalive_requests 1000000;
  client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
  server {{ listen 8080; location / {{ return 200 "{BODY}"; }} }}
  ssl_protocols TLSv1.3;
  ssl_certificate /tls/server.pem;
  ssl_certificate_key /tls/server.key;
  upstream plain {{ server 127.0.0.1:8080; keepalive 64; }}
  server {{
    listen 8443 ssl http2;
    location / {{
      proxy_pass http://plain; proxy_http_version 1.1; proxy_set_header Connection "";
    }}
  }}
  server {{ listen 8444 ssl http2; location / {{ return 200 "{BODY}"; }} }}
}}
"""
SERVICES = """  web:
    image: {image}
    user: "1000:1000"
    ports:
      - {{published: 443, target: 8080, auth: none}}
      - {{published: 8443, target: 8443, app_protocol: tcp, tls: passthrough, auth: none}}
      - {{published: 8444, target: 8444, app_protocol: tcp, tls: passthrough, auth: none}}
"""


def files(tls):
    """nginx as this machine has it, with its libraries where they are looked for."""
    found = {"usr/sbin/nginx": (0o755, NGINX)}
    for path in libraries(NGINX):
        inside = path[1:] if path.startswith("/lib64/") else f"lib/{os.path.basename(path)}"
        found[inside] = (0o755, path)
    found["tls/server.pem"] = (0o444, os.path.join(tls, "server.pem"))
    found["tls/server.key"] = (0o444, os.path.join(tls, "server.key"))
    folders = {path[:at] for path in found for at, letter in enumerate(path) if letter == "/"}
    image = dict.fromkeys([*folders, "etc"], (0o755, None))
    image["tmp"] = (0o1777, None)
    image["etc/nginx.conf"] = (0o444, CONFIGURATION.encode())
    image["etc/passwd"] = (0o444, b"root:x:0:0::/:/\nweb:x:1000:1000::/:/\n")
    for name, (mode, path) in found.items():
        with open(path, "rb") as file:
            image[name] = (mode, file.read())
    return image


def loaded(port, protocol):
    """Requests a second; each has to succeed."""
    load = ["h2load", "-c", str(CONNECTIONS), "-n", str(REQUESTS), *PROTOCOLS[protocol]]
    said = run([*load, f"https://127.0.0.1:{port}/"], timeout=300)
    finished = re.search(r"finished in .*?, ([\d.]+) req/s", said)
    if f" {REQUESTS} succeeded" not in said or not finished:
        raise Failed(f"h2load, {protocol}: {said}")
    return float(finished.group(1))


def answers(port):
    try:
        context = ssl._create_unverified_context()
        with urllib.request.urlopen(
            f"https://127.0.0.1:{port}/", context=context, timeout=20
        ) as answer:
            return answer.read().decode() == BODY
    except OSError:
        return False


def measure(image, tools):
    """{protocol: {who: requests a second, the most of the rounds}}."""
    absent = [name for name in ("h2load", "nginx") if not shutil.which(name)]
    if absent:
        raise Failed(f"{' and '.join(absent)} not installed (nghttp2-client, nginx-light)")
    with (
        tempfile.TemporaryDirectory(prefix="cofferdam-bench-") as folder,
        World(os.path.join(folder, "world"), tools) as world,
    ):
        world.start_services()
        config = {"Entrypoint": [NGINX, "-e", "stderr", "-c", "/etc/nginx.conf"]}
        reference = world.push_image("bench/nginx", files(world.path("tls")), config)
        ports = {name: free_port() for name in ("front", "nginx", "without a hop")}
        declaration = world.declaration(ports["front"], SERVICES.format(image=reference))
        commit = world.commit(declaration)
        passed = (("nginx", 8443), ("without a hop", 8444))
        more = [word for name, to in passed for word in ("--forward", f"{ports[name]}:{to}")]
        machine = world.boot("front", image, declaration, commit, ports["front"], *more)
        world.wait_console("front", machine, "launched", 240)
        for name, port in ports.items():
            wait_for(f"{name} answers", 240, lambda at=port: answers(at), 1)
        return rounds(ports)


def rounds(ports):
    """In turn, so that what else the machine does comes to both."""
    found = {protocol: dict.fromkeys(ports, 0.0) for protocol in PROTOCOLS}
    for _ in range(ROUNDS):
        for protocol, best in found.items():
            for name, port in ports.items():
                best[name] = max(best[name], loaded(port, protocol))
    return found


if __name__ == "__main__":
    raise SystemExit("ci/bench --only front")
