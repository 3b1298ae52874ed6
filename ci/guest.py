"""A machine without firmware: the kernel of an image, and appliance/cofferd/examples/volume as its
first program.

Used by ci/tests/test_volumes.py and ci/bench; ci/tests/test_kernel.py starts an image's own first
program the same way. The program is the debug build, with the machine's
own C library beside it; nothing of it is in an image.
"""

import os
import socket
import subprocess
import sys
import threading
import time

import uki
from process import Failed, run

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# What was built for the tests, where that is known.
TOOLS = os.environ.get("COFFERDAM_TOOLS")
TEMPLATE = "usr/lib/volume-template"
E2FSCK = "/usr/sbin/e2fsck"
SECONDS = 120
# What the kernel says before it starts the first program.
FIRST_PROGRAM = "as init process"
# How long it may take to that; 5 s with nothing beside it.
BEFORE_FIRST_PROGRAM = 60


class Guest:
    """Kernel and initramfs, laid down in `folder`."""

    def __init__(self, image, folder):
        # As the tests have built it: alone it would have other features of its
        # dependencies, which would all be compiled once more.
        if not TOOLS:
            run(["cargo", "test", "--quiet", "--workspace", "--locked", "--no-run"], cwd=ROOT)
        program = os.path.join(folder, "volume")
        built = os.path.join(TOOLS or os.path.join(ROOT, "target", "debug"), "examples", "volume")
        run(["strip", "-o", program, built])
        files = {"init": program, "e2fsck": E2FSCK}
        for path in [*libraries(program), *libraries(E2FSCK)]:
            # The loader at the place that programs name, all else where it looks.
            inside = path[1:] if path.startswith("/lib64/") else f"lib/{os.path.basename(path)}"
            files[inside] = path
        parts = [uki.file_archive(name, b"", 0o40755) for name in ("lib", "lib64")]
        for name, path in files.items():
            with open(path, "rb") as file:
                parts.append(uki.file_archive(name, file.read(), 0o100555))
        parts.append(uki.file_archive("volume-template", uki.initramfs(image)[TEMPLATE][4]))
        self.folder = folder
        with open(os.path.join(folder, "initrd"), "wb") as file:
            file.writelines(parts)
        with open(os.path.join(folder, "linux"), "wb") as file:
            file.write(uki.section(image, ".linux"))

    def boot(self, words, disks, kill=None, seconds=SECONDS, drive="", host=None):
        """The console of a machine that does these words, up to its end, or to its being killed
        when a line has `kill` in it. `drive` is what QEMU is told about each disk besides. `host`
        is a text, seconds, and a command of QEMU's monitor that is given so long after that text.
        """
        drives = []
        for number, disk in enumerate(disks):
            drives += ["-drive", f"file={disk},format=raw,if=none,id=d{number},cache=unsafe{drive}"]
            drives += ["-device", f"virtio-blk-pci,drive=d{number}"]
        line = f"console=ttyS0 panic=-1 -- {' '.join(words)}"
        return console(self.folder, "1G", line, drives, kill, seconds, host)


def console(folder, memory, line, more, until=None, seconds=SECONDS, host=None):
    """What a machine with the kernel and the initramfs of `folder` and this command line says, up
    to its end, or to the line with `until` in it. `host` is as for `Guest.boot`.

    An emulated machine that stands still in its kernel, before any program runs, is begun anew, at
    most twice: seen with other work on both processors, also twice in a row, and no disk is touched
    by then.
    """
    for _ in range(2):
        said = _console(folder, memory, line, more, until, seconds, host)
        if runs(said, until):
            return said
        print("the kernel stood still, begun anew", file=sys.stderr, flush=True)
    return _console(folder, memory, line, more, until, seconds, host)


def runs(said, until):
    """Whether a program has run. A kernel that is told to be quiet does not say so."""
    return FIRST_PROGRAM in said or bool(until and until in said)


def _console(folder, memory, line, more, until, seconds, host):
    text, later, command_of_host = host or (None, 0, "")
    if host:
        more = [*more, "-monitor", "unix:monitor.sock,server=on,wait=off"]
    command = (
        "qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot"
        f" -machine q35 -accel tcg,thread=multi -cpu max -m {memory} -smp 2 -serial stdio"
        " -kernel linux -initrd initrd"
    )
    qemu = subprocess.Popen(
        [*command.split(), "-append", line, *more],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    lines = []

    def stands_still():
        if not runs("".join(lines), until):
            qemu.kill()

    timers = [
        threading.Timer(seconds, qemu.kill),
        threading.Timer(BEFORE_FIRST_PROGRAM, stands_still),
    ]
    for timer in timers:
        timer.start()
    try:
        for said in qemu.stdout:
            lines.append(said)
            if text and text in said:
                time.sleep(later)
                tell(os.path.join(folder, "monitor.sock"), command_of_host)
            if until and until in said:
                break
        return "".join(lines)
    finally:
        for timer in timers:
            timer.cancel()
        qemu.kill()
        qemu.wait()
        qemu.stdout.close()


def tell(path, command):
    """Gives QEMU's monitor one command, and waits until it has taken it."""
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.settimeout(20)
        monitor.connect(path)
        said = monitor.makefile("rw", newline="\n")
        said.write(command + "\nquestion\n")
        said.flush()
        for line in said:
            if "unknown command: 'question'" in line:
                return
        raise Failed(f"{command}: QEMU has ended")


def libraries(program):
    """The files that a program is loaded with."""
    told = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    if told.returncode != 0:
        raise Failed(f"ldd {program}: {told.stderr}")
    return [word for word in told.stdout.split() if word.startswith("/")]
