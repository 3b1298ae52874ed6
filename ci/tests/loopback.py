"""A Debian archive on loopback, signed with a key of its own, for tests of what a build takes from
elsewhere.

Responsible for: packages made on the spot or repacked under another version, the indices of a suite
with their signature, a server that writes down what it was asked for, and the same files as
snapshots serve them.
"""

import gzip
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import tempfile
import threading
import urllib.parse

KEY = """%no-protection
Key-Type: eddsa
Key-Curve: ed25519
Name-Real: Loopback archive
Expire-Date: 0
%commit
"""


def deb(folder, name, version, files, fields=""):
    """Makes NAME_VERSION_all.deb with {path: content}; returns its path."""
    with tempfile.TemporaryDirectory() as root:
        for path, content in {
            **files,
            "DEBIAN/control": f"Package: {name}\nVersion: {version}\nArchitecture: "
            f"all\nMaintainer: nobody <nobody@example.org>\n{fields}Description: "
            "test\n",
        }.items():
            full = os.path.join(root, path)
            os.makedirs(os.path.dirname(full), exist_ok=True)
            with open(full, "w", encoding="utf-8") as file:
                file.write(content)
        os.chmod(root, 0o755)
        path = os.path.join(folder, f"{name}_{version.split(':')[-1]}_all.deb")
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Znone", "--build", root, path],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return path


def repack(path, folder, change=None):
    """The package under a version with `+moved`; `change` may alter the unpacked files. Returns
    (package, version, path).
    """
    with tempfile.TemporaryDirectory() as root:
        subprocess.run(["dpkg-deb", "--raw-extract", path, root], check=True)
        control = os.path.join(root, "DEBIAN/control")
        with open(control, encoding="utf-8") as file:
            text = file.read()
        name, version = (
            re.search(rf"^{field}: (.+)$", text, re.MULTILINE)[1]
            for field in ("Package", "Version")
        )
        architecture = re.search(r"^Architecture: (.+)$", text, re.MULTILINE)[1]
        with open(control, "w", encoding="utf-8") as file:
            file.write(re.sub(r"^(Version: .+)$", r"\1+moved", text, flags=re.MULTILINE))
        if change:
            change(root)
        target = os.path.join(folder, f"{name}_{version.split(':')[-1]}+moved_{architecture}.deb")
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Znone", "--build", root, target],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return name, f"{version}+moved", target


class Archive:
    """`url` is where it is, `keyring` who signs it, `asked` what it was asked for; files lie below
    `root`.
    """

    def __init__(self, suites):
        self.folder = tempfile.TemporaryDirectory(prefix="cofferdam-loopback-")
        self.root = os.path.join(self.folder.name, "served")
        self.suites, self.asked = suites, []
        # A short path: gpg's agent has a socket there.
        self.home = tempfile.mkdtemp(prefix="gpg-", dir="/tmp")
        self.keyring = os.path.join(self.folder.name, "keyring.gpg")
        self.gpg("--gen-key", "-", given=KEY.encode())
        with open(self.keyring, "wb") as file:
            file.write(self.gpg("--export"))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.base = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.url = f"{self.base}/debian"
        os.makedirs(self.root)

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        subprocess.run(
            ["gpgconf", "--homedir", self.home, "--kill", "all"], check=False, capture_output=True
        )
        shutil.rmtree(self.home, ignore_errors=True)
        self.folder.cleanup()

    def gpg(self, *words, given=b""):
        return subprocess.run(
            ["gpg", "--homedir", self.home, "--batch", "--quiet", "--yes", *words],
            input=given,
            check=True,
            capture_output=True,
        ).stdout

    def handler(self):
        archive = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def __init__(self, *arguments):
                super().__init__(*arguments, directory=archive.root)

            def do_GET(self):
                archive.asked.append(urllib.parse.unquote(self.path))
                super().do_GET()

            def log_message(self, *_):
                pass

        return Handler

    def put(self, path, package, below="debian"):
        """Serves a package at a path of the pool; `below` is the archive, or a state of it in a
        snapshot.
        """
        full = os.path.join(self.root, below, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        shutil.copyfile(package, full)

    def index(self, packages):
        """Writes the indices: {suite: [(path below the archive, package file)]}; suites that are
        not named are empty.
        """
        for suite in self.suites:
            archive = "debian-security" if suite.endswith("-security") else "debian"
            listed = b"".join(
                self.entry(path, package) for path, package in packages.get(suite, [])
            )
            folder = os.path.join(self.root, archive, "dists", suite)
            os.makedirs(os.path.join(folder, "main/binary-amd64"), exist_ok=True)
            sums = []
            for name, content in (
                ("main/binary-amd64/Packages", listed),
                ("main/binary-amd64/Packages.gz", gzip.compress(listed, mtime=0)),
            ):
                with open(os.path.join(folder, name), "wb") as file:
                    file.write(content)
                sums.append(f" {hashlib.sha256(content).hexdigest()} {len(content)} {name}")
            release = (
                f"Origin: Debian\nLabel: Debian\nSuite: {suite}\nCodename: {suite}\nArchitectures: "
                "amd64 all\nComponents: main\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n"
                + "\n".join(sums)
                + "\n"
            )
            with open(os.path.join(folder, "InRelease"), "wb") as file:
                file.write(self.gpg("--clearsign", given=release.encode()))

    @staticmethod
    def entry(path, package):
        control = subprocess.run(
            ["dpkg-deb", "--field", package], check=True, capture_output=True
        ).stdout
        with open(package, "rb") as file:
            content = file.read()
        return (
            control
            + f"Filename: {path}\nSize: {len(content)}\n".encode()
            + f"SHA256: {hashlib.sha256(content).hexdigest()}\n\n".encode()
        )
