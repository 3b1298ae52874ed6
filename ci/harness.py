"""The world around one appliance, on loopback: registry, development GitHub, simulated platform,
QEMU.

Responsible for starting and stopping what `ci/demo` and the boot tests share, and for running
`coffer` as a person would. Everything lives in one folder; only processes started here are ended.
Never anything simulated beyond the TDX device itself: the registry is Debian's, the kernel, the
firmware and the TPM are real, and the GitHub differs from the real one in its address alone.
"""

import base64
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request

from process import Failed, run

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONTRACT = os.path.join(ROOT, "..", "shared", "contracts", "github-releases.openapi.json")
REPOSITORY = "acme/app"
GITHUB_TOKEN = "development-token-0123456789"
HOST_FROM_GUEST = "10.0.2.2"
# How long firmware and kernel may take before anything of the image speaks: 10 s, three times that
# under load.
BEFORE_PID_1_SECONDS = 120
# Somebody ended the script. Set before the exception, which Python drops when it comes in the
# middle of a destructor.
INTERRUPTED = threading.Event()
# A declaration's state that operators open.
OPERATOR = "{provider: operator}"
# On the console of an appliance whose state is not open.
SEALED = "sealed: an operator opens the state"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(what, seconds, condition, interval=0.2):
    """Polls until `condition` gives something true, and returns that."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {seconds} s")
        time.sleep(interval)


def image_layers(files):
    """One gzipped layer, the same bytes for the same files: `{path: (mode, bytes | symlink
    target)}`.
    """
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, (mode, content) in sorted(files.items()):
            entry = tarfile.TarInfo(path)
            entry.mode = mode
            if content is None:
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
            elif isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return raw.getvalue(), gzip.compress(raw.getvalue(), mtime=0)


def write_oci_layout(folder, files, config):
    """An OCI image layout with one image; returns its manifest digest (OCI Image Format 1.1)."""
    blobs = os.path.join(folder, "blobs", "sha256")
    os.makedirs(blobs, exist_ok=True)

    def blob(data):
        digest = hashlib.sha256(data).hexdigest()
        with open(os.path.join(blobs, digest), "wb") as file:
            file.write(data)
        return f"sha256:{digest}", len(data)

    def described(media_type, data, **more):
        digest, size = blob(data)
        return {"mediaType": media_type, "digest": digest, "size": size, **more}

    plain, packed = image_layers(files)
    layer = described("application/vnd.oci.image.layer.v1.tar+gzip", packed)
    image = {
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(plain).hexdigest()]},
    }
    configuration = described(
        "application/vnd.oci.image.config.v1+json", json.dumps(image).encode()
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": configuration,
        "layers": [layer],
    }
    described_manifest = described(
        "application/vnd.oci.image.manifest.v1+json",
        json.dumps(manifest).encode(),
        annotations={"org.opencontainers.image.ref.name": "latest"},
    )
    with open(os.path.join(folder, "index.json"), "w", encoding="utf-8") as file:
        json.dump({"schemaVersion": 2, "manifests": [described_manifest]}, file)
    with open(os.path.join(folder, "oci-layout"), "w", encoding="utf-8") as file:
        json.dump({"imageLayoutVersion": "1.0.0"}, file)
    return described_manifest["digest"]


class Control:
    """The simulator's own serial port: asks tdx-sim, which runs outside of all roles, for what a
    host cannot do.
    """

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(path)
        self.file = self.socket.makefile("rw", newline="\n")

    def ask(self, command):
        self.file.write(command + "\n")
        self.file.flush()
        return json.loads(self.file.readline())

    def close(self):
        self.file.close()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Qmp:
    """The protocol in which QEMU takes commands and answers them (QEMU, interop/qmp-spec)."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(path)
        self.file = self.socket.makefile("rw", newline="\n")
        self.file.readline()
        self.ask("qmp_capabilities")

    def ask(self, command, **arguments):
        self.file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.file.flush()
        for line in self.file:
            answer = json.loads(line)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise Failed(f"{command}: {answer['error']['desc']}")
        raise Failed(f"{command}: QEMU has ended")

    def until(self, query, status, seconds=60):
        """Asks until the answer has this status."""
        wait_for(
            f"{query}: {status}", seconds, lambda: self.ask(query).get("status") == status, 0.05
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()


class World:
    """The services around the appliance; a context manager that ends what it started."""

    def __init__(self, folder, target):
        self.folder, self.target = os.path.abspath(folder), target
        self.processes = []
        self.making_operator = threading.Lock()
        os.makedirs(self.folder, exist_ok=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # A second Ctrl-C, or a terminal that closes, must not leave half of it running.
        before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
        for number, _ in before:
            signal.signal(number, signal.SIG_IGN)
        try:
            self.stop()
        finally:
            for number, handler in before:
                signal.signal(number, handler)

    def stop(self):
        for process in reversed(self.processes):
            self.end(process)
        self.processes.clear()

    @staticmethod
    def end(process, seconds=40):
        # ci/boot gives a machine 30 s to power off before it ends it.
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def environment(self):
        """For `coffer`: nothing of this user's settings, and a cache of this world's own."""
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("COFFER_", "GITHUB_"))
        }
        return {
            **environment,
            "XDG_CACHE_HOME": self.path("cache"),
            "XDG_STATE_HOME": self.path("state"),
        }

    def start(self, name, command, **options):
        if command[0] == self.tool("coffer"):
            key = self.path("operator.key")
            options.setdefault("env", {**self.environment(), "COFFER_KEY": key})
        log = open(self.path(name + ".log"), "ab")
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, **options
        )
        log.close()
        self.processes.append(process)
        return process

    def listening(self, name, process, port):
        def ready():
            if process.poll() is not None:
                with open(self.path(name + ".log"), encoding="utf-8", errors="replace") as file:
                    raise Failed(f"{name} ended: {file.read()[-2000:]}")
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_for(f"{name} on port {port}", 30, ready)

    # -- the services -----------------------------------------------------------------------------

    def start_services(self, registry=True):
        """TLS, simulated platform, its collateral service, development GitHub and perhaps a
        registry.
        """
        run([os.path.join(ROOT, "ci", "tls"), self.path("tls")])
        self.ca = self.path("tls", "ca.pem")
        certificate, key = self.path("tls", "server.pem"), self.path("tls", "server.key")
        if not os.path.exists(self.path("platform", "platform.seed")):
            run([self.tool("tdx-sim"), "platform", "new", self.path("platform")])
        self.mrtd = run([self.tool("tdx-sim"), "mrtd"]).strip()

        self.pccs_port = free_port()
        pccs = self.start(
            "pccs",
            [
                self.tool("tdx-sim"),
                "pccs",
                "--listen",
                f"127.0.0.1:{self.pccs_port}",
                "--platform",
                self.path("platform"),
                "--tls-cert",
                certificate,
                "--tls-key",
                key,
            ],
        )
        started = [("pccs", pccs, self.pccs_port)]
        if registry:
            started.append(self.start_registry(certificate, key))
        self.github_port = free_port()
        os.makedirs(self.path("repos"), exist_ok=True)
        command = [
            "/usr/bin/python3",
            os.path.join(ROOT, "ci", "github", "server.py"),
            "--listen",
            f"127.0.0.1:{self.github_port}",
            "--root",
            self.path("repos"),
            "--tls-cert",
            certificate,
            "--tls-key",
            key,
            "--token",
            GITHUB_TOKEN,
            "--state",
            self.path("releases.json"),
            "--faults",
            self.path("faults.json"),
            "--scenario",
            self.path("scenario.json"),
            "--log",
            self.path("github-requests.log"),
            "--verbose",
        ]
        if os.path.exists(CONTRACT):
            command += ["--contract", CONTRACT, "--violations", self.path("violations")]
        github = self.start("github", command)
        started.append(("github", github, self.github_port))
        for name, process, port in started:
            self.listening(name, process, port)
        self.github_api = f"https://127.0.0.1:{self.github_port}/api/v3"

    def start_registry(self, certificate, key):
        """(name, process, port) of a registry with this certificate."""
        self.registry_port = free_port()
        with open(self.path("registry.yml"), "w", encoding="utf-8") as file:
            file.write(
                f"version: 0.1\nlog: {{level: warn}}\nstorage: "
                f"{{filesystem: {{rootdirectory: {self.path('registry')}}}}}\n"
                f"http: {{addr: '127.0.0.1:{self.registry_port}', "
                f"tls: {{certificate: {certificate}, key: {key}}}}}\n"
            )
        process = self.start("registry", ["docker-registry", "serve", self.path("registry.yml")])
        self.registry_process = process
        return "registry", process, self.registry_port

    def start_authority(self, port):
        """Pebble, which speaks ACME and checks every name at this port of the machine. Returns the
        YAML of a declaration's `certificate` for `shop.example.test`; `authority.pem` is the root.
        """
        acme, management, names, asked = free_port(), free_port(), free_port(), free_port()
        settings = {
            "listenAddress": f"127.0.0.1:{acme}",
            "managementListenAddress": f"127.0.0.1:{management}",
            "certificate": self.path("tls", "server.pem"),
            "privateKey": self.path("tls", "server.key"),
            "httpPort": 1,
            "tlsPort": port,
        }
        with open(self.path("pebble.json"), "w", encoding="utf-8") as file:
            json.dump({"pebble": settings}, file)
        off = ["-http01", "", "-https01", "", "-tlsalpn01", ""]
        self.start(
            "names",
            [
                "pebble-challtestsrv",
                "-defaultIPv4",
                "127.0.0.1",
                "-defaultIPv6",
                "",
                "-dns01",
                f"127.0.0.1:{names}",
                "-management",
                f"127.0.0.1:{asked}",
                *off,
            ],
        )
        command = ["pebble", "-strict", "-config", self.path("pebble.json")]
        command += ["-dnsserver", f"127.0.0.1:{names}"]
        environment = {**os.environ, "PEBBLE_VA_NOSLEEP": "1"}
        authority = self.start("authority", command, env=environment)
        self.listening("authority", authority, management)
        context = ssl.create_default_context(cafile=self.ca)
        url = f"https://127.0.0.1:{management}/roots/0"
        with urllib.request.urlopen(url, context=context, timeout=20) as answer:
            root = answer.read()
        with open(self.path("authority.pem"), "wb") as file:
            file.write(root)
        with open(self.ca, encoding="utf-8") as file:
            ca = "".join(f"    {line}" for line in file)
        return (
            "certificate:\n  names: [shop.example.test]\n  terms_agreed: true\n"
            f"  directory: https://{HOST_FROM_GUEST}:{acme}/dir\n  ca: |\n{ca}"
        )

    def tool(self, name):
        return os.path.join(self.target, name)

    def push_image(self, name, files, config):
        """Builds and pushes an image; returns the reference by digest as the guest names it."""
        layout = self.path("oci", name.replace("/", "_"))
        shutil.rmtree(layout, ignore_errors=True)
        write_oci_layout(layout, files, config)
        return self.push_layout(layout, "latest", name)

    def push_layout(self, layout, tag, name):
        """Pushes the image `tag` of an OCI layout; returns its reference by digest as the guest
        names it.
        """
        with open(os.path.join(layout, "index.json"), encoding="utf-8") as file:
            listed = json.load(file)["manifests"]
        digest = next(one["digest"] for one in listed if tag in one["annotations"].values())
        trust = self.path("registry-trust")
        os.makedirs(trust, exist_ok=True)
        shutil.copy(self.ca, os.path.join(trust, "ca.crt"))
        run(
            [
                "skopeo",
                "--insecure-policy",
                "copy",
                "--preserve-digests",
                "--dest-cert-dir",
                trust,
                f"oci:{layout}:{tag}",
                f"docker://127.0.0.1:{self.registry_port}/{name}:latest",
            ]
        )
        return f"{HOST_FROM_GUEST}:{self.registry_port}/{name}@{digest}"

    # -- the repository ---------------------------------------------------------------------------

    def git(self, *arguments, repository=REPOSITORY):
        folder = self.path("repos", *repository.split("/"))
        return run(
            [
                "git",
                "-C",
                folder,
                "-c",
                "user.name=demo",
                "-c",
                "user.email=demo@example.org",
                "-c",
                "commit.gpgsign=false",
                *arguments,
            ]
        ).strip()

    def commit(self, declaration, message="Declare", branch="main", repository=REPOSITORY):
        """Commits `cofferdam.yaml` and returns the commit."""
        folder = self.path("repos", *repository.split("/"))
        if not os.path.isdir(os.path.join(folder, ".git")):
            os.makedirs(folder, exist_ok=True)
            self.git("init", "-q", "-b", "main", repository=repository)
        if branch != "main":
            self.git("checkout", "-q", "-B", branch, "main", repository=repository)
        with open(os.path.join(folder, "cofferdam.yaml"), "w", encoding="utf-8") as file:
            file.write(declaration)
        self.git("add", "cofferdam.yaml", repository=repository)
        self.git("commit", "-q", "--allow-empty", "-m", message, repository=repository)
        commit = self.git("rev-parse", "HEAD", repository=repository)
        if branch != "main":
            self.git("checkout", "-q", "main", repository=repository)
        return commit

    def operator(self):
        """The operator's key, made once; returns the line for a declaration."""
        with self.making_operator:  # machines are booted from several threads
            if not os.path.exists(self.path("operator.key")):
                run(
                    [
                        "ssh-keygen",
                        "-q",
                        "-t",
                        "ed25519",
                        "-N",
                        "",
                        "-C",
                        "operator@demo",
                        "-f",
                        self.path("operator.key"),
                    ]
                )
        with open(self.path("operator.key.pub"), encoding="utf-8") as file:
            return file.read().strip()

    def declaration(self, port, services, repository=REPOSITORY, state=None, volumes=None):
        """A declaration for this world; `services` is the indented YAML of the services, `state`
        and `volumes` are mappings in YAML's flow style.
        """
        sealed = f"state: {state}\n" if state else ""
        sealed += f"volumes: {volumes}\n" if volumes else ""
        with open(self.ca, encoding="utf-8") as file:
            ca = "".join(f"    {line}" for line in file)
        return (
            f"version: 1\n{sealed}repository: {repository}\nendpoint: 127.0.0.1:{port}\n"
            f"operators:\n  - name: demo\n    key: {self.operator()}\n"
            f"github:\n  api: https://{HOST_FROM_GUEST}:{self.github_port}/api/v3\n  token: "
            f"secret://cofferdam/github/token\n  ca: |\n{ca}"
            f"attestation:\n  collateral: https://{HOST_FROM_GUEST}:{self.pccs_port}\n  ca: |\n{ca}"
            f"registries:\n  - host: {HOST_FROM_GUEST}:{self.registry_port}\n    ca: |\n"
            + ca.replace("    ", "      ")
            + f"services:\n{services}"
        )

    def imported(self, files):
        """What `coffer import` makes of a folder with these files, compose.yaml among them: the
        declaration's text, and the name of the file with its secrets.
        """
        project, out = self.path("project"), self.path("imported.yaml")
        for name, text in files.items():
            path = os.path.join(project, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        # Before `coffer import` would make one.
        self.operator()
        secrets = self.path("secrets.env")
        options = ["--offline", "--file", out, "--secrets", secrets]
        self.coffer_ok("import", REPOSITORY, os.path.join(project, "compose.yaml"), *options)
        with open(out, encoding="utf-8") as file:
            return file.read(), secrets

    def api(self, method, path, body=None):
        """A call of the GitHub API with the token, as its thief would make it."""
        url = path if path.startswith("https:") else self.github_api + path
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {
            "Authorization": f"Bearer {GITHUB_TOKEN}",
            "User-Agent": "thief",
            "Content-Type": "application/octet-stream",
        }
        request = urllib.request.Request(url, data=data, method=method, headers=headers)
        with urllib.request.urlopen(
            request, context=ssl.create_default_context(cafile=self.ca), timeout=20
        ) as answer:
            raw = answer.read()
        return json.loads(raw) if raw else None

    def asked_github(self):
        """The requests to GitHub so far, as it logged them."""
        try:
            with open(self.path("github-requests.log"), encoding="utf-8") as file:
                return [json.loads(line) for line in file]
        except FileNotFoundError:
            return []

    @staticmethod
    def forged_tag(document):
        """The tag that a release of this document would have (design: Release)."""
        claims = base64.b64decode(json.loads(document)["claims"])
        digest = hashlib.sha512(b"cofferdam/claims/v1\0" + claims).hexdigest()
        issued = json.loads(claims)["issued_at"].replace("-", "").replace(":", "")
        return f"attest-{issued}-{digest[:8]}"

    # -- the appliance ----------------------------------------------------------------------------

    def boot(self, name, *about):
        """Boots an image; the returned process ends with the machine. `about` as of `power_on`."""
        machine = self.power_on(name, *about)
        for _ in range(2):
            if not self.stands_still(name, machine):
                break
            # Seen with other work on both processors, in the firmware or in the kernel, whose own
            # messages are not on this console.
            print(f"{name}: stood still before PID 1, begun anew", file=sys.stderr, flush=True)
            self.cut_power(name, machine)
            shutil.rmtree(self.path(name))
            os.remove(self.path(name + ".log"))
            machine = self.power_on(name, *about)
        return machine

    def power_on(self, name, image, declaration, commit, port, *more):
        """Starts QEMU with `image`, and waits for nothing."""
        path = self.path(name + ".yaml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(declaration)
        command = [
            os.path.join(ROOT, "ci", "boot"),
            image,
            "--declaration",
            path,
            "--commit",
            commit,
            "--port",
            str(port),
            "--seed",
            self.path("platform", "platform.seed"),
            "--dir",
            self.path(name),
            *more,
        ]
        return self.start(name, command)

    def stands_still(self, name, machine, resumed=False):
        """Whether the firmware has named the image and nothing of the image has run since. A
        machine that was saved after that goes on without naming it.
        """
        deadline = time.monotonic() + BEFORE_PID_1_SECONDS
        while machine.poll() is None and time.monotonic() < deadline:
            before, started, after = self.console(name).partition("BdsDxe: starting ")
            said = after.partition("\n")[2] if started else before
            if "SIMULATED" in said or "cofferd" in said:
                return False
            time.sleep(0.2)
        named = resumed or "BdsDxe: starting " in self.console(name)
        return machine.poll() is None and named

    def console(self, name):
        try:
            with open(self.path(name + ".log"), encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def wait_console(self, name, process, text, seconds):
        """Waits for a line on the console that contains `text`; fails early when the machine ends
        or parks.
        """

        def seen():
            console = self.console(name)
            for line in console.splitlines():
                if text in line:
                    return line
            if "parked" in console or process.poll() is not None:
                raise Failed(f"{name} did not come to {text!r}:\n{console[-4000:]}")
            return None

        try:
            return wait_for(f"{name}: {text!r} on the console", seconds, seen)
        except Failed as failed:
            end = self.console(name)[-2000:]
            if end in str(failed):  # of one that ended or parked
                raise
            raise Failed(f"{failed}; it ends with:\n{end}") from None

    def control(self, name):
        """The simulator's control port of a machine booted with --control."""
        return Control(self.path(name, "control.sock"))

    # -- coffer -----------------------------------------------------------------------------------

    def references(self, image):
        """Reference values predicted from the image's file, never from a boot: the image's half and
        the platform's. An image that is a disk has its UKI beside it.
        """
        base, ending = os.path.splitext(image)
        measured = [base + ".efi", "--disk", image] if ending == ".raw" else [image]
        paths = [
            self.path(f"{os.path.basename(image)}.{half}.json") for half in ("image", "platform")
        ]
        run(
            [
                self.tool("coffer"),
                "measure",
                *measured,
                "--boot",
                "simulator",
                "--mrtd",
                self.mrtd,
                "--save",
                paths[0],
                "--save-platform",
                paths[1],
            ]
        )
        return paths

    def trust_options(self, image):
        return self.trust_in(self.references(image))

    def trust_in(self, references):
        """The options that name these reference values and the simulated platform's root."""
        return [
            *(option for path in references for option in ("--reference", path)),
            "--root",
            self.path("platform", "root.pem"),
        ]

    def github_options(self):
        return ["--github-api", self.github_api, "--github-ca", self.ca]

    def coffer(self, *arguments, stdin=None, env=None, limit=300):
        """Runs `coffer`; returns (exit code, stdout, stderr)."""
        environment = {**self.environment(), "COFFER_KEY": self.path("operator.key"), **(env or {})}
        done = subprocess.run(
            [self.tool("coffer"), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=limit,
        )
        return done.returncode, done.stdout, done.stderr

    def coffer_ok(self, *arguments, **options):
        code, out, err = self.coffer(*arguments, **options)
        if code != 0:
            raise Failed(f"coffer {' '.join(arguments)} exited with {code}\n{out}{err}")
        return out

    def cut_power(self, name, process):
        """Ends QEMU at once, as a host that takes the power away."""
        with open(self.path(name, "qemu.pid"), encoding="ascii") as file:
            os.kill(int(file.read()), signal.SIGKILL)
        process.wait(20)

    def monitor(self, name, command):
        """Gives QEMU's monitor one command, as a person at the host would."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(self.path(name, "monitor.sock"))
            monitor.sendall(command.encode() + b"\n")
            time.sleep(0.2)

    def power_off(self, name, process, seconds=40):
        """Presses the power button and waits for the machine to end by itself."""
        self.monitor(name, "system_powerdown")
        process.wait(seconds)


def workload_files():
    """The files of the workload's image: the probe and two users."""
    with open(os.path.join(ROOT, "build", "probe"), "rb") as file:
        probe = file.read()
    passwd = b"root:x:0:0::/:/\nprobe:x:1000:1000::/:/\n"
    return {
        "probe": (0o755, probe),
        "etc": (0o755, None),
        "etc/passwd": (0o644, passwd),
        "tmp": (0o1777, None),
    }


def tamper_claims(document, **changes):
    """An attestation whose claims were changed after the quote, as bytes."""
    evidence = json.loads(document)
    claims = json.loads(base64.b64decode(evidence["claims"]))
    claims.update(changes)
    evidence["claims"] = base64.b64encode(
        json.dumps(claims, separators=(",", ":")).encode()
    ).decode()
    return json.dumps(evidence).encode()


def stop_on_signals():
    """SIGTERM and SIGINT end the script through its `with` blocks."""

    def stop(*_):
        INTERRUPTED.set()
        raise SystemExit(130)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
