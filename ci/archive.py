"""Debian's archive: where it is, what is in it, and how a file of it is fetched.

Responsible for: the addresses, which are the machine's own (its apt configuration) or the caller's
and never this tree's; resolving names to packages with their SHA-256 through apt, which checks the
archive's signature; downloading by apt, so that the machine's proxies, certificates and credentials
count. A file that has not the SHA-256 that was asked for is no file. The machine's own lists of
packages and what is installed are neither read nor changed.
"""

import dataclasses
import datetime
import glob
import hashlib
import os
import platform
import re
import subprocess
import sys
import tempfile
import urllib.parse

from process import Failed

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
HELPER = "/usr/lib/apt/apt-helper"
# Of one file; the largest today is the kernel's source, 167 MB.
MAX_FILE = 1 << 30
# apt-helper takes them as arguments.
BATCH = 40
# An archive that does not answer is given up after this, and not asked for the next file.
TIMEOUT = 20
URL = re.compile(r"https?://[^\s'\"<>]{1,400}")


class Unavailable(Failed):
    """The archive did not give what was asked for; its text is for people."""


@dataclasses.dataclass(frozen=True, order=True)
class Package:
    """One package file: `name_version_architecture.deb` at `path` below its archive (`debian` or
    `debian-security`).
    """

    name: str
    version: str
    architecture: str
    sha256: str
    size: int
    archive: str
    path: str

    @property
    def file(self):
        """Its name on this machine: that in the archive, whose versions have no epoch."""
        return self.path.rsplit("/", 1)[-1]

    def url(self, addresses):
        return f"{addresses[self.archive]}/{urllib.parse.quote(self.path)}"


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def holds(path, package):
    """Whether `path` is this package, by size and SHA-256."""
    try:
        return os.path.getsize(path) == package.size and sha256(path) == package.sha256
    except FileNotFoundError:
        return False


# --- Addresses


def archives(given=None):
    """{"debian": URL, "debian-security": URL} of the live archive, without a slash at the end.

    From `given` (then security is beside it, with `-security`), or from this machine's apt
    configuration: what calls itself Debian's in the lists that apt has, else what is named like it.
    """
    if given:
        base = checked(given)
        return {"debian": base, "debian-security": f"{base}-security"}
    found = {}
    said = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    for line in said.splitlines():
        origin, label, address = line.split("|", 2)
        if origin.startswith("Debian") and (address := mirror(address)):
            found.setdefault("debian-security" if label == "Debian-Security" else "debian", address)
    said = subprocess.run(
        ["apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI)"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    named = [address for name in [*said.split(), *sources()] if (address := mirror(name))]
    # A vendor's own archive for Debian ends in /debian, too, further down.
    for address in sorted(
        named, key=lambda address: urllib.parse.urlsplit(address).path.count("/")
    ):
        last = address.rsplit("/", 1)[-1]
        if last in ("debian", "debian-security"):
            found.setdefault(last, address)
    if "debian" not in found:
        raise Unavailable(
            "this machine's apt configuration names no Debian archive\nhint: name one with "
            "--archive URL, for example a mirror's address that ends in /debian"
        )
    found.setdefault("debian-security", f"{found['debian']}-security")
    return found


def mirror(address):
    """An address without its last slash; of apt's lists of mirrors the first. None where it is no
    web address.
    """
    if address.startswith("mirror+file:"):
        try:
            with open(
                "/" + address.removeprefix("mirror+file:").strip("/"),
                encoding="utf-8",
                errors="replace",
            ) as file:
                address = next(iter(URL.findall(file.read(1 << 16))), "")
        except OSError:
            return None
    return address.rstrip("/") if URL.fullmatch(address) else None


def sources():
    """Every address in apt's sources files, in both of their forms."""
    for path in ["/etc/apt/sources.list", *sorted(glob.glob("/etc/apt/sources.list.d/*"))]:
        if path.endswith((".list", ".sources")) and os.path.isfile(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                for line in file:
                    if re.match(r"\s*(deb\s|URIs:)", line):
                        yield from re.findall(r"mirror\+file:\S+", line) or URL.findall(line)


def snapshots(given=None):
    """The address of Debian's archive of everything it published, or None.

    `given`, what apt is configured with, or `snapshot.` of the domain that this machine's
    os-release names as Debian's home.
    """
    if given:
        return checked(given)
    said = subprocess.run(
        ["apt-config", "dump", "--format", "%v%n", "Acquire::Snapshots::URI::Origin::Debian"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    if URL.match(said):
        return said.split("/archive/")[0].rstrip("/")
    try:
        about = platform.freedesktop_os_release()
    except OSError:
        return None
    home = urllib.parse.urlsplit(about.get("HOME_URL", "")).hostname or ""
    return (
        f"http://snapshot.{home.removeprefix('www.')}"
        if about.get("ID") == "debian" and home
        else None
    )


def checked(address):
    if not URL.fullmatch(address):
        raise Unavailable(f"{address} is not an address\nhint: it begins with http:// or https://")
    return address.rstrip("/")


def at(address, moment):
    """The archives as they were at a moment, like archives()."""
    if not re.fullmatch(r"\d{8}T\d{6}Z", moment):
        raise Unavailable(f"{moment} is not a moment\nhint: it is written like 20261122T000000Z")
    if address is None:
        raise Unavailable(
            "nothing says where Debian's snapshots are\nhint: name the address with --snapshot URL"
        )
    return {name: f"{address}/archive/{name}/{moment}" for name in ("debian", "debian-security")}


def snapshot_times(moment):
    """The two states in which everything is that the archive held at `moment`: the last one before,
    and one a day later, for what had come in between.
    """
    then = datetime.datetime.strptime(moment, "%Y%m%dT%H%M%SZ")
    return [moment, (then + datetime.timedelta(days=1)).strftime("%Y%m%dT%H%M%SZ")]


# --- Downloads


def download(wanted, folder):
    """Fetches {Package: URL} into `folder`, each as its SHA-256 says; what could not be had is not
    there afterwards.
    """
    os.makedirs(folder, exist_ok=True)
    items = list(wanted.items())
    dead = set()
    for start in range(0, len(items), BATCH):
        batch = [
            (package, url) for package, url in items[start : start + BATCH] if host(url) not in dead
        ]
        if not batch:
            continue
        words = [
            word
            for package, url in batch
            for word in (
                url,
                os.path.join(folder, package.file + ".new"),
                f"SHA256:{package.sha256}",
            )
        ]
        options = [
            "-o",
            "APT::Sandbox::User=root",
            "-o",
            f"Acquire::http::Timeout={TIMEOUT}",
            "-o",
            f"Acquire::https::Timeout={TIMEOUT}",
            "-o",
            "Acquire::Retries=1",
            "-o",
            "Acquire::http::AllowRedirect=true",
        ]
        done = subprocess.run(
            [HELPER, *options, "download-file", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        got = False
        for package, _ in batch:
            path = os.path.join(folder, package.file)
            if os.path.exists(f"{path}.new") and holds(f"{path}.new", package):
                os.chmod(f"{path}.new", 0o644)
                os.replace(f"{path}.new", path)
                got = True
            elif os.path.exists(f"{path}.new"):
                os.unlink(f"{path}.new")
        if not got and re.search(
            r"Could not (?:resolve|connect)|Unable to connect|Connection (?:refused|timed "
            r"out|failed)|Temporary failure|Name or service",
            done.stdout + done.stderr,
        ):
            dead |= {host(url) for _, url in batch}


def host(url):
    return urllib.parse.urlsplit(url).netloc


# --- Resolving names


def resolve(addresses, suites, names, essential, keyring=KEYRING):
    """The packages `names` with all that they depend on (for `essential`: and Debian's essential
    ones), as the archive has them now.
    """
    with tempfile.TemporaryDirectory(prefix="cofferdam-apt-") as state:
        options = apt_options(state, addresses, suites, keyring)
        apt(["apt-get", *options, "update"])
        wanted = [*(["?essential"] if essential else []), *names]
        if essential:
            said = apt(["apt-get", *options, "install", "--print-uris", "-qq", *wanted])
        else:
            said = apt(["apt-get", *options, "download", "--print-uris", "-qq", *wanted])
    found = [parse(line, addresses) for line in said.splitlines() if line.startswith("'")]
    missing = set(names) - {package.name for package in found}
    if missing:
        raise Unavailable(f"the archive did not say where {', '.join(sorted(missing))} is")
    return sorted(found)


def apt_options(state, addresses, suites, keyring):
    """Options for an apt that knows these suites, nothing installed and none of the machine's
    preferences.
    """
    for folder in ("lists/partial", "cache/archives/partial", "etc"):
        os.makedirs(os.path.join(state, folder))
    with open(os.path.join(state, "sources.list"), "w", encoding="utf-8") as file:
        for suite in suites:
            archive = "debian-security" if suite.endswith("-security") else "debian"
            file.write(f"deb [arch=amd64 signed-by={keyring}] {addresses[archive]} {suite} main\n")
    with open(os.path.join(state, "status"), "w", encoding="utf-8"):
        pass
    settings = {
        "Dir::Etc::SourceList": f"{state}/sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State::Lists": f"{state}/lists",
        "Dir::State::Status": f"{state}/status",
        "Dir::State::extended_states": f"{state}/extended",
        "Dir::Cache": f"{state}/cache",
        "APT::Architecture": "amd64",
        "APT::Architectures": "amd64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",
        "Acquire::ForceHash": "SHA256",
        "Acquire::http::Timeout": str(TIMEOUT),
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
    }
    return ["-q", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]


def parse(line, addresses):
    """A line of --print-uris: 'URL' NAME SIZE SHA256:HEX."""
    match = re.fullmatch(r"'([^']+)' (\S+) (\d+) SHA256:([0-9a-f]{64})", line.strip())
    if not match:
        raise Unavailable(f"apt names a package without its SHA-256: {line.strip()[:200]}")
    url, file, size, digest = match.groups()
    # The longer first: one address begins with the other.
    archive = next(
        (
            name
            for name in sorted(addresses, key=len, reverse=True)
            if url.startswith(addresses[name] + "/")
        ),
        None,
    )
    if archive is None:
        raise Unavailable(f"apt names a package from elsewhere: {url}")
    path = urllib.parse.unquote(url[len(addresses[archive]) + 1 :])
    # The archive's path leaves out the version's epoch; apt's own name of the file has it.
    name, version, architecture = urllib.parse.unquote(file).removesuffix(".deb").split("_")
    return Package(name, version, architecture, digest, int(size), archive, path)


def apt(command):
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    gone = re.findall(
        r"^E: (?:Unable to locate package|Package '?)\s*([a-z0-9][a-z0-9+.-]+)",
        done.stderr,
        re.MULTILINE,
    )
    if gone:
        raise Unavailable(f"the archive has no {', '.join(gone)} any more")
    if done.returncode != 0 or re.search(
        r"^(?:W|E): .*(?:Failed to fetch|not signed|NO_PUBKEY)", done.stderr, re.MULTILINE
    ):
        lines = [line for line in done.stderr.splitlines() if line[:2] in ("E:", "W:", "Er")]
        raise Unavailable("\n".join(lines[-4:]) or f"{command[0]}: exit code {done.returncode}")
    return done.stdout


def fetch(url, path, most):
    """Downloads a file of at most `most` bytes, whatever length it says; whether it is there
    afterwards. Its content is for the caller to check.
    """
    done = subprocess.run(
        [
            "prlimit",
            f"--fsize={most}",
            "curl",
            "--fail",
            "--silent",
            "--show-error",
            "--location",
            "--connect-timeout",
            str(TIMEOUT),
            "--retry",
            "2",
            "--output",
            path,
            url,
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode != 0 and os.path.exists(path):
        os.unlink(path)
    return done.returncode == 0


if __name__ == "__main__":
    try:
        print(archives()["debian"])
    except Unavailable as error:
        sys.exit(f"error: {error}")
