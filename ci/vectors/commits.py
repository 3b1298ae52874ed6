"""A repository whose commits are signed with SSH keys, for the makers of vectors."""

import os
import re
import subprocess

IDENTITY = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Alice",
    "GIT_AUTHOR_EMAIL": "alice@example.org",
    "GIT_COMMITTER_NAME": "Alice",
    "GIT_COMMITTER_EMAIL": "alice@example.org",
    "GIT_AUTHOR_DATE": "1798761600 +0000",
    "GIT_COMMITTER_DATE": "1798761600 +0100",
}
KINDS = {
    "alice": "ed25519",
    "bob": "ecdsa",
    "retired": "ed25519",
    "mallory": "ed25519",
    "rsa": "rsa",
}


class Room:
    """A repository and its signers' keys."""

    def __init__(self, folder):
        self.folder = folder
        self.git("init", "-q")

    def run(self, *command, data=b"", check=True, **environment):
        return subprocess.run(
            command,
            input=data,
            cwd=self.folder,
            capture_output=True,
            check=check,
            timeout=60,
            env={**os.environ, **IDENTITY, **environment},
        )

    def git(self, *arguments, data=b"", **environment):
        return self.run("git", *arguments, data=data, **environment).stdout.decode().strip()

    def key(self, name):
        kind = KINDS[name]
        bits = {"ecdsa": ["-b", "256"], "rsa": ["-b", "2048"]}.get(kind, [])
        comment = f"{name}@example.org"
        self.run("ssh-keygen", "-q", "-t", kind, *bits, "-N", "", "-C", comment, "-f", name)
        with open(os.path.join(self.folder, name + ".pub"), encoding="ascii") as file:
            return file.read().strip()

    def commit(self, message, *parents, by=None, encoding=None):
        """What git itself makes."""
        settings = ["-c", "gpg.format=ssh"]
        settings += ["-c", f"user.signingKey={self.folder}/{by}.pub"] if by else []
        settings += ["-c", f"i18n.commitEncoding={encoding}"] if encoding else []
        arguments = [argument for parent in parents for argument in ("-p", parent)]
        arguments += ["-S"] if by else []
        tree = self.git("write-tree")
        data = message.encode(encoding or "utf-8")
        return self.git(*settings, "commit-tree", tree, *arguments, data=data)

    def text(self, commit):
        return self.run("git", "cat-file", "commit", commit).stdout.decode()

    def store(self, text):
        data = text.encode()
        return self.git("hash-object", "-t", "commit", "-w", "--literally", "--stdin", data=data)

    def sign(self, by, text, namespace="git", hashed="sha512"):
        command = ["ssh-keygen", "-Y", "sign", "-q", "-n", namespace, "-f", by, "-O"]
        return self.run(*command, f"hashalg={hashed}", data=text.encode()).stdout.decode()


def join(payload, signature):
    """The object of a payload and its signature."""
    headers, message = payload.split("\n\n", 1)
    header = "gpgsig " + signature.removesuffix("\n").replace("\n", "\n ")
    return f"{headers}\n{header}\n\n{message}"


def take_apart(text):
    """What GitHub says of an object: the text without its signatures, and the first of them."""
    pattern = r"^gpgsig (.*(?:\n .*)*)\n"
    headers, message = text.split("\n\n", 1)
    found = re.findall(pattern, headers + "\n", re.MULTILINE)
    payload = re.sub(pattern, "", headers + "\n", flags=re.MULTILINE) + "\n" + message
    return payload, found[0].replace("\n ", "\n") + "\n" if found else None
