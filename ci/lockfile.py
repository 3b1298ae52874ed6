"""The lock of everything that a build takes from elsewhere: image/inputs.lock, resolved from
image/inputs.toml.

Responsible for: its format, read strictly; what is in use (build/inputs/inputs.lock, which differs
from the tree's only where the locked files could not be had); the names of what differs; the
content of a Rust toolchain by component.

The format is JSON: `format`, `resolved` (UTC, also the state of the archive to ask a snapshot for),
`rust` (`release`, `commit`, `target`, and in `components` the digest of each, see tree_digest) and
for each group of inputs.toml a list of packages, each as archive.Package has them.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tomllib

import archive
from process import Failed

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TREE = "image/inputs.lock"
REQUEST = "image/inputs.toml"
USED = "build/inputs/inputs.lock"
FORMAT = "cofferdam-inputs/v1"
GROUPS = ["tools", "mkosi", "firmware"]
# Locks are small: 150 packages are 50 KB.
MAX_LOCK = 1 << 20
FIELDS = {
    "name": r"[a-z0-9][a-z0-9+.-]{1,127}",
    "version": r"[A-Za-z0-9.+~:-]{1,127}",
    "architecture": r"amd64|all",
    "sha256": r"[0-9a-f]{64}",
    "archive": r"debian|debian-security",
    "path": r"pool/(?:[A-Za-z0-9.+~_-]+/)+[A-Za-z0-9.+~_-]+\.deb",
}


class Invalid(Failed):
    """A lock that is not one; its text is for people."""


class Lock:
    """One lock, checked."""

    def __init__(self, resolved, rust, groups):
        self.resolved, self.rust, self.groups = resolved, rust, groups

    @classmethod
    def load(cls, path):
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_LOCK + 1)
        except OSError as error:
            raise Invalid(f"{path}: {error.strerror}") from error
        if len(data) > MAX_LOCK:
            raise Invalid(f"{path} is larger than {MAX_LOCK} bytes")
        try:
            return cls.parse(json.loads(data))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Invalid(
                f"{path} is not a lock of inputs: {error}\nhint: ci/lock writes it"
            ) from error

    @classmethod
    def parse(cls, value):
        if value.keys() != {"format", "resolved", "rust", *GROUPS} or value["format"] != FORMAT:
            raise ValueError(f"it has not exactly the fields of {FORMAT}")
        check("resolved", value["resolved"], r"\d{8}T\d{6}Z")
        rust = value["rust"]
        if rust.keys() != {"release", "commit", "target", "components"} or not rust["components"]:
            raise ValueError("rust is not release, commit, target and components")
        for name, pattern in (
            ("release", r"\d+\.\d+\.\d+"),
            ("commit", r"[0-9a-f]{40}"),
            ("target", r"[a-z0-9_-]+"),
        ):
            check(name, rust[name], pattern)
        for name, digest in rust["components"].items():
            check("component", name, r"[a-z0-9_-]+")
            check(name, digest, r"[0-9a-f]{64}")
        return cls(
            value["resolved"],
            rust,
            {group: [package(entry) for entry in value[group]] for group in GROUPS},
        )

    def text(self):
        """As it stands in the file: a line for each package, so that a change is read as one."""
        head = {"format": FORMAT, "resolved": self.resolved, "rust": self.rust}
        lines = [json.dumps(head, indent=1)[:-2]]
        for group in GROUPS:
            entries = ",\n".join(
                "  " + json.dumps(vars(entry)) for entry in sorted(self.groups[group])
            )
            lines.append(f' "{group}": [\n{entries}\n ]')
        return ",\n".join(lines) + "\n}\n"

    def save(self, path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.write(self.text())
        os.replace(f"{path}.new", path)

    def digest(self):
        return hashlib.sha256(self.text().encode()).hexdigest()

    def versions(self, group):
        """{package: version} of a group."""
        return {entry.name: entry.version for entry in self.groups[group]}

    def moved(self, other):
        """Sentences: what `other` has instead of what this lock names. Another file of the same
        version counts.
        """
        found = []
        for group in GROUPS:
            ours, theirs = (
                {entry.name: entry for entry in lock.groups[group]} for lock in (self, other)
            )
            for name in sorted(ours.keys() | theirs.keys()):
                mine, their = ours.get(name), theirs.get(name)
                if mine is None or their is None or mine.sha256 != their.sha256:
                    found.append(
                        f"{name} {mine.version if mine else '(not there)'} -> "
                        f"{their.version if their else '(gone)'}"
                    )
        if self.rust != other.rust:
            components = changed(self.rust["components"], other.rust["components"])
            found.append(
                f"rust {self.rust['release']} ({self.rust['commit'][:9]}) -> "
                f"{other.rust['release']} ({other.rust['commit'][:9]}), "
                f"other content in {', '.join(components) or 'nothing'}"
            )
        return found


def changed(ours, theirs):
    return sorted(
        name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
    )


def check(name, value, pattern):
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise ValueError(f"{name} is {value!r}"[:200])


def package(entry):
    if not isinstance(entry, dict) or entry.keys() != {*FIELDS, "size"}:
        raise ValueError(f"{entry!r} is not a package"[:200])
    for name, pattern in FIELDS.items():
        check(name, entry[name], pattern)
    if ".." in entry["path"].split("/"):
        raise ValueError("a path leaves the archive")
    if type(entry["size"]) is not int or not 0 < entry["size"] <= archive.MAX_FILE:
        raise ValueError(f"{entry['name']} has {entry['size']!r} bytes"[:200])
    return archive.Package(**entry)


def request():
    """What image/inputs.toml asks for."""
    with open(os.path.join(ROOT, REQUEST), "rb") as file:
        return tomllib.load(file)


def release():
    """The release that this tree is of or leads to: os-release's VERSION_ID."""
    with open(os.path.join(ROOT, "image/base/usr/lib/os-release"), encoding="utf-8") as file:
        return dict(line.rstrip("\n").split("=", 1) for line in file if "=" in line)[
            "VERSION_ID"
        ].strip('"')


def tree():
    """The lock of this source tree."""
    return Lock.load(os.path.join(ROOT, TREE))


def used():
    """The lock of what ci/fetch laid down, or None."""
    path = os.path.join(ROOT, USED)
    return Lock.load(path) if os.path.exists(path) else None


# --- The toolchain


def components(rust):
    """The components of a toolchain that a build uses: host tools, and std for host and target."""
    host = "x86_64-unknown-linux-gnu"
    return [f"cargo-{host}", f"rustc-{host}", f"rust-std-{host}", f"rust-std-{rust['target']}"]


def component_files(sysroot, component):
    """The paths of a component's files, as rustup recorded them."""
    with open(
        os.path.join(sysroot, "lib/rustlib", f"manifest-{component}"), encoding="utf-8"
    ) as file:
        lines = file.read().splitlines()
    found = sorted(line.removeprefix("file:") for line in lines if line.startswith("file:"))
    if not found or any(path.startswith("/") or ".." in path.split("/") for path in found):
        raise Invalid(f"{component} of {sysroot} has no list of files")
    return found


def tree_digest(folder, paths):
    """SHA-256 over mode, path and SHA-256 of each file, NUL after each."""
    total = hashlib.sha256()
    for path in paths:
        full = os.path.join(folder, path)
        mode = "755" if os.stat(full).st_mode & 0o100 else "644"
        total.update(f"{mode}\0{path}\0{archive.sha256(full)}\0".encode())
    return total.hexdigest()


def content(sysroot, rust):
    """The digests of a toolchain's components; None where a part is missing."""
    try:
        return {
            name: tree_digest(sysroot, component_files(sysroot, name)) for name in components(rust)
        }
    except (FileNotFoundError, NotADirectoryError):
        return None


def toolchain(sysroot, rust):
    """The `rust` of a lock for the toolchain that lies at `sysroot`; None when there is none or a
    part is missing.

    One of another content than `rust` names is asked for its version, so it has to be this user's
    own.
    """
    found = content(sysroot, rust)
    if found is None or found == rust.get("components"):
        return found and rust
    said = subprocess.run(
        [os.path.join(sysroot, "bin/rustc"), "--version", "--verbose"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    about = dict(re.findall(r"^(release|commit-hash): (\S+)$", said, re.MULTILINE))
    if len(about) != 2:
        return None
    return {
        "release": about["release"],
        "commit": about["commit-hash"],
        "target": rust["target"],
        "components": found,
    }


def rustup(rust, install=True):
    """Where rustup has the toolchain `rust` names, with its targets; None where it has not and
    cannot install it.
    """
    if not shutil.which("rustup"):
        return None
    release, environment = rust["release"], os.environ | {"RUSTUP_AUTO_INSTALL": "0"}

    def sysroot():
        said = subprocess.run(
            ["rustc", f"+{release}", "--print", "sysroot"],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        return said.stdout.strip() if said.returncode == 0 else None

    if install:
        # Never an install over a toolchain that is there: it may be another name of one that is in
        # use.
        command = [
            "rustup",
            "toolchain",
            "install",
            release,
            "--profile",
            "minimal",
            "--target",
            rust["target"],
            "--no-self-update",
        ]
        here = sysroot()
        if here:
            command = ["rustup", "target", "add", "--toolchain", release, rust["target"]]
        if not here or not os.path.exists(
            os.path.join(here, "lib/rustlib", f"manifest-rust-std-{rust['target']}")
        ):
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                env=environment,
            )
            if done.returncode != 0:
                return None
    return sysroot()
