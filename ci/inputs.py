"""What the image is made of: the files of the source tree that decide its bytes, and what was laid
down beside them.

Responsible for: the one list of those files (INPUTS, NOT_INPUTS) and a digest over them. The digest
is of what is there, committed or not, and does not depend on measurements/, documents or ci/, so
that committing measurements does not change what they are of. image/inputs.lock is among them; what
was used instead of it, where the archive moved on, is said by `build`.
"""

import hashlib
import os
import re
import stat

import lockfile
from process import Failed, run

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Files and directories that mkosi reads or the compilers read for it.
INPUTS = [
    "Cargo.lock",
    "Cargo.toml",
    "appliance",
    "image",
    "mkosi.conf",
    "mkosi.profiles",
    "policy",
]
# What mkosi and cargo would also read if somebody put it there; the tools tree is an output.
ALSO = re.compile(r"mkosi\.(?!tools).+|mkosi\.tools\.conf|\.cargo|rust-toolchain(?:\.toml)?")
# What lies below those and never reaches the image: documents, tests and what is only for them. A
# crate's page that is compiled into its documentation is among them: documentation is no code. Of
# the crates that no image holds only the manifest counts, which cargo reads for the workspace.
NOT_INPUTS = re.compile(
    r"(?!image/base/)(?:.*/)?[^/]+\.md|appliance/[^/]+/(?:tests|fuzz|benches|examples)/.*|"
    r"appliance/(?:coffer|measure)/(?!Cargo\.toml$).*|policy/vectors/.*|"
    r"policy/declaration\.schema\.json"
)


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
                raise Failed(f"{top} is not there: this is not Cofferdam's source tree")
            found.append(top)
        for folder, directories, names in os.walk(path):
            links = [name for name in directories if os.path.islink(os.path.join(folder, name))]
            found += [os.path.relpath(os.path.join(folder, name), root) for name in names + links]
    return sorted(path for path in found if not NOT_INPUTS.fullmatch(path))


def digest(root=ROOT):
    """`sha256:<64 hex>` over all inputs: for each its mode as git has it, its path and its
    content's SHA-256, NUL after each.
    """
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
            raise Failed(f"{path} is neither a file nor a link")
        total.update(f"{mode}\0{path}\0{hashlib.sha256(content).hexdigest()}\0".encode())
    return f"sha256:{total.hexdigest()}"


def git(root, *arguments):
    """What git prints about the repository `root`, whoever owns it."""
    return run(["git", "-c", "safe.directory=*", "-C", root, *arguments])


def commit(root=ROOT):
    """(commit, whether an input differs from it)."""
    changed = git(
        root,
        "status",
        "--porcelain",
        "-z",
        "--untracked-files=all",
        "--no-renames",
        "--",
        *tops(root),
    ).split("\0")
    return git(root, "rev-parse", "HEAD").strip(), any(
        entry and not NOT_INPUTS.fullmatch(entry[3:]) for entry in changed
    )


def used():
    """The lock of what ci/fetch laid down."""
    found = lockfile.used()
    if found is None or not os.path.exists(os.path.join(ROOT, "build/made-by-ci-install")):
        raise Failed("what a build takes from elsewhere is not there\nhint: run ci/install --build")
    return found


def moved():
    """Sentences: what was laid down instead of what the lock names."""
    return lockfile.tree().moved(used())


def build(root=ROOT):
    """All of it, as `coffer measure --build` takes it."""
    revision, modified = commit(root)
    lock = used()
    toolchain = {
        "mkosi": lock.versions("mkosi")["mkosi"],
        "rustc": lock.rust["release"],
        "rustc-commit": lock.rust["commit"],
        "target": lock.rust["target"],
    }
    toolchain |= dict(lock.rust["components"].items())
    return {
        "commit": revision,
        "modified": modified,
        "inputs": digest(root),
        "snapshot": lock.resolved,
        "toolchain": toolchain,
        "packages": dict(sorted(lock.versions("tools").items())),
    }
