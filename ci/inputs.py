"""What the image is made of: the files of the source tree that decide its bytes, the toolchain and the packages.

Responsible for: the one list of those files (INPUTS, NOT_INPUTS) and a digest over them. The digest is of what is there,
committed or not, and does not depend on measurements/, documents or ci/, so that committing
measurements does not change what they are of.
"""

import hashlib
import os
import re
import stat
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Files and directories that mkosi reads or the compilers read for it.
INPUTS = ["Cargo.lock", "Cargo.toml", "appliance", "image", "mkosi.conf", "mkosi.profiles", "policy"]
# What mkosi and cargo would also read if somebody put it there; the tools tree is an output.
ALSO = re.compile(r"mkosi\.(?!tools).+|mkosi\.tools\.conf|\.cargo|rust-toolchain(?:\.toml)?")
# What lies below those and never reaches the image: documents, tests and what is only for them.
# A crate's page that is compiled into its documentation is among them: documentation is no code. Of the crates that no image
# holds only the manifest counts, which cargo reads for the workspace.
NOT_INPUTS = re.compile(r"(?!image/base/)(?:.*/)?[^/]+\.md|appliance/[^/]+/(?:tests|fuzz|benches|examples)/.*|"
                        r"appliance/(?:coffer|measure)/(?!Cargo\.toml$).*|policy/vectors/.*")
# Debian's archive of everything it ever published; a snapshot's name follows the archive's.
SNAPSHOT = re.compile(r"/archive/debian(?:-security)?/(\d{8}T\d{6}Z)/?$")
SOURCES = "image/apt/etc/apt/sources.list.d/mkosi.sources"
DPKG_STATUS = "mkosi.tools/var/lib/dpkg/status"


class Unknown(Exception):
    """Something that a build needs is not there or not readable; its text is for people."""


def tops(root):
    """The files and directories of which all are inputs."""
    return sorted({*INPUTS, *(name for name in os.listdir(root) if ALSO.fullmatch(name))})


def files(root=ROOT):
    """The paths of all inputs, sorted, with `/` between their parts."""
    found = []
    for top in tops(root):
        path = os.path.join(root, top)
        if not os.path.isdir(path):
            if not os.path.lexists(path):
                raise Unknown(f"{top} is not there: this is not Cofferdam's source tree")
            found.append(top)
        for folder, directories, names in os.walk(path):
            links = [name for name in directories if os.path.islink(os.path.join(folder, name))]
            found += [os.path.relpath(os.path.join(folder, name), root) for name in names + links]
    return sorted(path for path in found if not NOT_INPUTS.fullmatch(path))


def digest(root=ROOT):
    """`sha256:<64 hex>` over all inputs: for each its mode as git has it, its path and its content's SHA-256, NUL after each."""
    total = hashlib.sha256()
    for path in files(root):
        full = os.path.join(root, path)
        about = os.lstat(full)
        if stat.S_ISLNK(about.st_mode):
            mode, content = "120000", os.readlink(full).encode()
        elif stat.S_ISREG(about.st_mode):
            # Git knows no other modes, and the rest is the umask's.
            mode = "100755" if about.st_mode & stat.S_IXUSR else "100644"
            with open(full, "rb") as file:
                content = file.read()
        else:
            raise Unknown(f"{path} is neither a file nor a link")
        total.update(f"{mode}\0{path}\0{hashlib.sha256(content).hexdigest()}\0".encode())
    return f"sha256:{total.hexdigest()}"


def git(root, *arguments):
    done = subprocess.run(["git", "-c", "safe.directory=*", "-C", root, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unknown(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout


def commit(root=ROOT):
    """(commit, whether an input differs from it)."""
    changed = git(root, "status", "--porcelain", "-z", "--untracked-files=all", "--no-renames", "--", *tops(root)).split("\0")
    return git(root, "rev-parse", "HEAD").strip(), any(entry and not NOT_INPUTS.fullmatch(entry[3:]) for entry in changed)


def packages(status):
    """{package: version} of what a dpkg status file says is installed."""
    found = {}
    for paragraph in status.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): (.+)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed") and "Package" in fields:
            found[fields["Package"]] = fields.get("Version", "")
    return found


def tools_packages(root=ROOT):
    """{package: version} of the tools tree, from which everything comes that Debian made."""
    try:
        with open(os.path.join(root, DPKG_STATUS), encoding="utf-8") as file:
            found = packages(file.read())
    except OSError as error:
        raise Unknown(f"no tools tree, so no versions: {error}; run mkosi build") from error
    if not found:
        raise Unknown(f"{DPKG_STATUS} names no package")
    return found


def snapshot(text):
    """The snapshot that a sources file names; None for the live archive."""
    uris = [uri for line in re.findall(r"^URIs:(.*)$", text, re.MULTILINE) for uri in line.split()]
    named = {match[1] if (match := SNAPSHOT.search(uri)) else None for uri in uris}
    if len(named) != 1:
        raise Unknown(f"{SOURCES} names more than one state of the archive: run ci/snapshot")
    return named.pop()


def tools_snapshot(root=ROOT):
    """The snapshot from which the tools tree is made."""
    with open(os.path.join(root, SOURCES), encoding="utf-8") as file:
        return snapshot(file.read())


def toolchain(root=ROOT):
    """{name: version} of what compiles and builds and is not Debian's."""
    said = subprocess.run([os.path.join(root, "build/rust/bin/rustc"), "--version", "--verbose"], capture_output=True, text=True, check=False).stdout
    rust = dict(re.findall(r"^(release|commit-hash): (\S+)$", said, re.MULTILINE))
    mkosi = subprocess.run(["mkosi", "--version"], capture_output=True, text=True, check=False).stdout.split()
    if len(rust) != 2 or len(mkosi) != 2:
        raise Unknown("rustc or mkosi does not say its version: run ci/install")
    with open(os.path.join(root, "image/build"), encoding="utf-8") as file:
        target = re.search(r"^target=(\S+)$", file.read(), re.MULTILINE)
    if not target:
        raise Unknown("image/build does not name its target")
    return {"mkosi": mkosi[1], "rustc": rust["release"], "rustc-commit": rust["commit-hash"], "target": target[1]}


def build(root=ROOT):
    """All of it, as `coffer measure --build` takes it."""
    revision, modified = commit(root)
    about = {"commit": revision, "modified": modified, "inputs": digest(root), "toolchain": toolchain(root), "packages": dict(sorted(tools_packages(root).items()))}
    named = tools_snapshot(root)
    return about | ({"snapshot": named} if named else {})
