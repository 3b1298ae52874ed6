"""Running other programs, as everything under ci/ does it.

Responsible for the one way to run a command that must succeed, and for the one error of a step that
did not do what it must. A module whose failures a caller tells apart derives its own error from
`Failed`.
"""

import os
import signal
import subprocess

# What is said of a log's end.
LOG_TAIL = 3000


class Failed(Exception):
    """A step that did not do what it must; its text is for people."""


def run(command, log=None, **options):
    """Runs a command that must succeed and returns what it prints; the error shows its output.

    With `log` all output is appended to that file, and nothing is returned. Other options are those
    of subprocess.
    """
    if log:
        code, output = run_logged(command, log, **options)
    else:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        if "input" not in streams:
            streams.setdefault("stdin", subprocess.DEVNULL)
        done = subprocess.run(command, text=True, check=False, **streams)
        code, output = done.returncode, (done.stdout or "") + (done.stderr or "")
    if code != 0:
        raise Failed(f"{' '.join(map(str, command))}: exit code {code}\n{output}".rstrip())
    return None if log else done.stdout


def run_logged(command, log, **options):
    """(exit code, the log's end) of a command in a session of its own, which ends with this
    program.
    """
    streams = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, **options}
    with (
        open(log, "ab") as file,
        subprocess.Popen(command, stdout=file, start_new_session=True, **streams) as process,
    ):
        try:
            process.wait()
        except BaseException:
            end_session(process)
            raise
    with open(log, "rb") as file:
        file.seek(max(0, os.path.getsize(log) - LOG_TAIL))
        return process.returncode, file.read().decode("utf-8", "replace")


def end_session(process):
    """Ends a process and all of its session; first it gets the time to clean up, as mkosi its
    mounts.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(20)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            pass
