"""What the makers of vectors share: bytes that follow from a name, base64, and where vectors lie.

Another implementation of the formats than the appliance's, by Python's `cryptography` (44 or newer,
which ci/install does not bring): nothing but a person who changes a format runs these. `--check`
makes the vector anew and compares it with the one that lies there.
"""

import base64
import hashlib
import json
import os
import sys

VECTORS = os.path.join(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
    "policy",
    "vectors",
)


def text(data):
    return base64.b64encode(data).decode()


def named(name, length):
    """Bytes that follow from a name."""
    parts = (
        hashlib.sha256(f"cofferdam vector {name} {number}".encode()).digest()
        for number in range(-(-length // 32))
    )
    return b"".join(parts)[:length]


def main(name, document):
    """Writes a vector, or with --check compares it; the exit code."""
    made = json.dumps(document, indent=1) + "\n"
    path = os.path.join(VECTORS, name)
    if sys.argv[1:] == ["--check"]:
        with open(path, encoding="utf-8") as file:
            same = file.read() == made
        print(f"{name}: {'as it is made' if same else 'another one'}")
        return 0 if same else 1
    with open(path, "w", encoding="utf-8") as file:
        file.write(made)
    return 0
