"""Composes the reference images of `imagefiles.py` as one OCI layout, of Debian's packages.

Packages are taken in whatever versions the archive of this machine's apt has now, and unpacked
without running anything of them. All images share one base layer; layers are packed by gzip and by
zstd. The layout lies in the user's cache directory under a name made of the packages' digests and
of these files, so that the same is composed once.
"""

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time

import archive
from imagefiles import IMAGES, USERS
from process import Failed, run

# What one run may download; today it is 170 MB.
MAX_DOWNLOAD = 400_000_000
# Layouts that are kept, this one too.
KEPT = 3
# Seconds after which a package that was not used goes.
UNUSED = 30 * 86400
# Documents and languages, and what no server needs: the compiler of PostgreSQL's queries, perl.
LEFT_OUT = re.compile(
    r"usr/share/(doc|man|locale|info|lintian|bash-completion|bug|zoneinfo/(posix|right))/.*"
    r"|usr/lib/systemd/.*|etc/(init\.d|systemd|cron\.[a-z]*|logrotate\.d|pam\.d)/.*"
    r"|usr/share/(i18n|perl|perl5|mime|applications|icons|pixmaps|gdb|gcc|zsh)/.*"
    r"|usr/lib/postgresql/[0-9]+/lib/(bitcode/.*|llvmjit.*)|usr/share/postgresql/[0-9]+/man/.*"
    r"|usr/lib/x86_64-linux-gnu/(gconv/(?!UTF|UNICODE|ISO8859-1\.|gconv-modules).*|perl.*|systemd/.*)"
    r"|var/(lib|cache)/(dpkg|apt|debconf)/.*"
)
# Packages that hold nothing which an image starts.
UNNEEDED = re.compile(
    r"(adduser|apt|cdebconf|debconf.*|dpkg|dmsetup|dbus.*|gcc-12-base|init-system-helpers|iproute2"
    r"|libbpf.*|libcryptsetup.*|libdevmapper.*|libelf1|libjson-perl"
    r"|libjson-c5|libip4tc.*|libkmod.*|libllvm.*|libperl.*|libz3.*|locales.*|lsb-.*|openssl"
    r"|passwd|perl.*|postgresql-client-common|postgresql-common.*|procps|psmisc|redis-sentinel"
    r"|ssl-cert|systemd.*|libsystemd-shared|sysvinit-utils|tar|ucf|netbase|nginx-common)"
)
# Where Debian keeps what other systems have at the top.
MERGED = ("bin", "sbin", "lib", "lib64")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BASE = ("base-files", "base-passwd", "bash", "coreutils", "dash", "findutils", "grep", "libc-bin")
BASE += ("sed", "util-linux", "zlib1g", "libssl3 | libssl3t64", "libstdc++6", "hostname")


# --- Packages


def closures(addresses, names):
    """{image: its packages} for these and for `base`, as the archive has them now."""
    with tempfile.TemporaryDirectory(prefix="cofferdam-apt-") as state:
        with open("/etc/os-release", encoding="utf-8") as file:
            release = re.search(r"^VERSION_CODENAME=(\w+)", file.read(), re.MULTILINE).group(1)
        suites = [release, f"{release}-updates", f"{release}-security"]
        options = archive.apt_options(state, addresses, suites, archive.KEYRING)
        archive.apt(["apt-get", *options, "update"])
        known = archive.apt(["apt-cache", *options, "pkgnames"]).split()

        def closure(packages):
            # One of several names, where Debian's releases differ.
            wanted = [
                next(name for name in choice.split(" | ") if name in known) for choice in packages
            ]
            said = archive.apt(["apt-get", *options, "install", "--print-uris", "-qq", *wanted])
            lines = [line for line in said.splitlines() if line.startswith("'")]
            found = [archive.parse(line, addresses) for line in lines]
            return sorted(package for package in found if not UNNEEDED.fullmatch(package.name))

        found = {"base": closure(BASE)}
        for name in names:
            base = set(found["base"])
            found[name] = [one for one in closure(IMAGES[name].packages) if one not in base]
        return found


def fetched(addresses, packages, folder):
    """Downloads what is not there yet, and removes what was not used for a month."""
    absent = {
        package: package.url(addresses)
        for package in packages
        if not archive.holds(os.path.join(folder, package.file), package)
    }
    size = sum(package.size for package in absent)
    if size > MAX_DOWNLOAD:
        raise Failed(f"the packages are {size} bytes, and {MAX_DOWNLOAD} at most are downloaded")
    archive.download(absent, folder)
    lost = [one.file for one in absent if not os.path.exists(os.path.join(folder, one.file))]
    if lost:
        raise Failed(f"the archive did not give {', '.join(lost[:5])}\nhint: run ci/images again")
    for package in packages:
        os.utime(os.path.join(folder, package.file))
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.getmtime(path) < time.time() - UNUSED:
            os.unlink(path)


# --- Layers


def merged(path):
    """A path of a package, below the root, with what is at the top where /usr has it."""
    path = path.removeprefix("./").strip("/")
    return f"usr/{path}" if path.split("/", 1)[0] in MERGED else path


class Layer:
    """A tar archive in the making, with each path once."""

    def __init__(self):
        self.raw = io.BytesIO()
        self.archive = tarfile.open(fileobj=self.raw, mode="w", format=tarfile.PAX_FORMAT)
        self.names = set()

    def add(self, entry, content=None):
        entry.uname = entry.gname = ""
        entry.mtime = 0
        if entry.name and entry.name not in self.names:
            self.names.add(entry.name)
            self.archive.addfile(entry, content)

    def package(self, path):
        """The files of a package, without those that are left out."""
        command = ["dpkg-deb", "--fsys-tarfile", path]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE) as process,
            tarfile.open(fileobj=process.stdout, mode="r|") as files,
        ):
            for entry in files:
                entry.name = merged(entry.name)
                if LEFT_OUT.fullmatch(entry.name) or entry.name in ("usr/lib64", "lib64"):
                    if entry.name == "usr/lib64":
                        self.directory("usr/lib64")
                    continue
                if entry.islnk():
                    entry.linkname = merged(entry.linkname)
                self.add(entry, files.extractfile(entry) if entry.isreg() else None)
            # The rest of the stream is padding.
        if process.returncode not in (0, -13):
            raise Failed(f"dpkg-deb cannot read {path}")

    def directory(self, path, mode=0o755, owner=0):
        entry = tarfile.TarInfo(path)
        entry.type, entry.mode, entry.uid, entry.gid = tarfile.DIRTYPE, mode, owner, owner
        self.add(entry)

    def link(self, path, target):
        entry = tarfile.TarInfo(path)
        entry.type, entry.mode, entry.linkname = tarfile.SYMTYPE, 0o777, target
        self.add(entry)

    def files(self, files):
        for path, (mode, owner, content) in files.items():
            if content is None:
                self.directory(path, mode, owner)
            elif isinstance(content, tuple):
                self.link(path, content[1])
            else:
                body = content.encode()
                entry = tarfile.TarInfo(path)
                entry.mode, entry.uid, entry.gid, entry.size = mode, owner, owner, len(body)
                self.add(entry, io.BytesIO(body))

    def bytes(self):
        self.archive.close()
        return self.raw.getvalue()


def base_layer(packages, folder):
    """The layer that all images share, with users and the links of a merged /usr."""
    layer = Layer()
    for name in MERGED:
        layer.link(name, f"usr/{name}")
        layer.directory(f"usr/{name}")
    for package in packages:
        layer.package(os.path.join(folder, package.file))
    with tempfile.TemporaryDirectory() as scratch:
        master = next(package for package in packages if package.name == "base-passwd")
        run(["dpkg-deb", "--extract", os.path.join(folder, master.file), scratch])
        files = {"etc/nsswitch.conf": (0o644, 0, "passwd: files\ngroup: files\nhosts: files dns\n")}
        for name, line in (
            ("passwd", "{0}:x:{1}:{1}::/home/{0}:/bin/sh\n"),
            ("group", "{0}:x:{1}:\n"),
        ):
            with open(f"{scratch}/usr/share/base-passwd/{name}.master", encoding="utf-8") as file:
                known = file.read().replace(":*:", ":x:")
            users = "".join(line.format(*user) for user in USERS.items())
            if name == "group":
                # What a user is in beside their own group counts, too.
                users = users.replace("app:x:1000:\n", "app:x:1000:\nhelpers:x:1500:app\n")
            files[f"etc/{name}"] = (0o644, 0, known + users)
    layer.files(files)
    return layer.bytes()


def linked(layer, name):
    """Programs under the names that Debian's installation scripts would give them."""
    for path in sorted(layer.names):
        for pattern, link in (
            (r"usr/lib/postgresql/[0-9]+/bin/([a-z_]+)", "usr/local/bin/{}"),
            (r"usr/sbin/(php-fpm)[0-9.]+", "usr/local/sbin/{}"),
        ):
            if found := re.fullmatch(pattern, path):
                layer.link(link.format(found.group(1)), f"/{path}")
    return layer


class Layout:
    """An OCI image layout in the making."""

    def __init__(self, folder):
        self.folder, self.manifests = folder, []
        self.blobs = os.path.join(folder, "blobs", "sha256")
        os.makedirs(self.blobs)

    def blob(self, media_type, data):
        digest = hashlib.sha256(data).hexdigest()
        with open(os.path.join(self.blobs, digest), "wb") as file:
            file.write(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def layer(self, raw, compression):
        """(descriptor, digest of what it unpacks to)"""
        if compression == "gzip":
            packed = gzip.compress(raw, 4, mtime=0)
        else:
            packed = subprocess.run(
                ["zstd", "-q", "-c"], input=raw, stdout=subprocess.PIPE, check=True
            ).stdout
        media_type = f"application/vnd.oci.image.layer.v1.tar+{compression}"
        return self.blob(media_type, packed), "sha256:" + hashlib.sha256(raw).hexdigest()

    def image(self, name, config, layers):
        config = {**config, "Env": [f"PATH={PATH}", *config.get("Env", [])]}
        document = {
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [plain for _, plain in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self.blob(
                "application/vnd.oci.image.config.v1+json", json.dumps(document).encode()
            ),
            "layers": [described for described, _ in layers],
        }
        media_type = manifest["mediaType"]
        found = self.blob(media_type, json.dumps(manifest).encode())
        found["annotations"] = {"org.opencontainers.image.ref.name": name}
        self.manifests.append(found)

    def finish(self):
        for name, content in (
            ("index.json", {"schemaVersion": 2, "manifests": self.manifests}),
            ("oci-layout", {"imageLayoutVersion": "1.0.0"}),
        ):
            with open(os.path.join(self.folder, name), "w", encoding="utf-8") as file:
                json.dump(content, file)


def cache():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "cofferdam", "images")


def compose(names=tuple(IMAGES), given=None):
    """The folder of a layout with these images, composed unless it is there already."""
    addresses = archive.archives(given)
    found = closures(addresses, names)
    scripts = []
    for name in ("images.py", "imagefiles.py"):
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), name), "rb") as file:
            scripts.append(hashlib.sha256(file.read()).hexdigest())
    listed = {name: [package.sha256 for package in found[name]] for name in found}
    key = hashlib.sha256(json.dumps([scripts, listed]).encode()).hexdigest()[:32]
    folder = os.path.join(cache(), key)
    if os.path.exists(os.path.join(folder, "oci-layout")):
        return folder
    packages = os.path.join(cache(), "packages")
    os.makedirs(packages, exist_ok=True)
    fetched(addresses, sorted({one for group in found.values() for one in group}), packages)
    known = [os.path.join(cache(), name) for name in os.listdir(cache()) if name != "packages"]
    for old in sorted(known, key=os.path.getmtime)[: -(KEPT - 1)]:
        shutil.rmtree(old)
    layout = Layout(os.path.join(cache(), f"{key}.new"))
    base = layout.layer(base_layer(found["base"], packages), "gzip")
    for name in names:
        layers = [base]
        layer = Layer()
        for package in found[name]:
            layer.package(os.path.join(packages, package.file))
        layers.append(layout.layer(linked(layer, name).bytes(), IMAGES[name].compression))
        own = Layer()
        own.files(IMAGES[name].files)
        layers.append(layout.layer(own.bytes(), "gzip"))
        layout.image(name, IMAGES[name].config, layers)
    layout.finish()
    os.rename(layout.folder, folder)
    return folder
