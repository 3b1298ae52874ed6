"""What a machine needs before it can start a trust domain, and what to do where that is missing.

Looks only; nothing is changed. What cannot be told from here is said as such and stops nobody.
"""

import errno
import os
import re
import socket
import subprocess
from typing import NamedTuple

# The first QEMU whose `tdx-guest` starts trust domains.
QEMU = (10, 1)
PAGE = "docs/tdx-host.md"


class Finding(NamedTuple):
    """`holds` is True, False, or None where it could not be told."""

    holds: bool | None
    what: str
    hint: str


def read(*path):
    try:
        with open(os.path.join(*path), encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return None


def said(*command):
    """What a program prints, or None."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def processor(root):
    flags = read(root, "proc/cpuinfo")
    holds = None if flags is None else " tdx_host_platform" in flags
    what = "processor and BIOS offer TDX (flag tdx_host_platform)"
    return Finding(holds, what, f"switch on TME, TME-MT, TDX, SEAM Loader and SGX: {PAGE}")


def kernel(root):
    answer = read(root, "sys/module/kvm_intel/parameters/tdx")
    what = "the kernel's KVM has TDX (kvm_intel.tdx)"
    return Finding(
        (answer or "N").strip() in ("Y", "1"),
        what,
        "Linux 6.16 or newer with CONFIG_KVM_INTEL_TDX, started with kvm_intel.tdx=1",
    )


def kvm(root):
    device = os.path.join(root, "dev/kvm")
    holds = os.access(device, os.R_OK | os.W_OK)
    hint = "add this user to the group kvm" if os.path.exists(device) else "load kvm_intel"
    return Finding(holds, "/dev/kvm can be opened", hint)


def qemu(say):
    text = say("qemu-system-x86_64", "--version")
    found = re.search(r"version (\d+)\.(\d+)", text or "")
    version = tuple(map(int, found.groups())) if found else None
    has = "not installed" if version is None else ".".join(map(str, version))
    objects = say("qemu-system-x86_64", "-object", "help") if version else None
    knows = objects is None or "tdx-guest" in objects
    return Finding(
        version is not None and version >= QEMU and knows,
        f"QEMU is 10.1 or newer, built with TDX ({has})",
        "Debian 13 has it in trixie-backports",
    )


def firmware(path):
    hint = "ci/install makes it; --firmware names another"
    return Finding(os.path.isfile(path), f"TDVF firmware: {os.path.basename(path)}", hint)


def quotes(dial, address):
    """QEMU asks this service in the guest's name, from the host to the host (vsock CID 2)."""
    what = f"a quote generation service answers at vsock {':'.join(address)}"
    hint = "start Intel's qgsd, which needs SGX and Intel's collateral; --qgs names another"
    try:
        dial(tuple(map(int, address)))
    except TimeoutError:
        return Finding(None, what, hint)
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.EAFNOSUPPORT):
            hint = f"load vsock_loopback; {hint}"
        return Finding(False, f"{what} ({error.strerror})", hint)
    return Finding(True, what, hint)


def dialled(address):
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as vsock:
        vsock.settimeout(5)
        vsock.connect(address)


def look(qgs, firmware_path, root="/", say=said, dial=dialled):
    """Every finding, in the order in which a person would mend them."""
    return [
        processor(root),
        kernel(root),
        kvm(root),
        qemu(say),
        firmware(firmware_path),
        quotes(dial, qgs),
    ]


def text(findings):
    marks = {True: "ok", False: "missing", None: "not told"}
    lines = []
    for finding in findings:
        lines.append(f"  {marks[finding.holds]:<9}{finding.what}")
        if finding.holds is not True:
            lines.append(f"           hint: {finding.hint}")
    return "\n".join(lines)
