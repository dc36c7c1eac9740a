"""Who runs for a worker, found by the marks in its environment; and a process that ends them when the worker is gone.

A process group holds what stays in it, and a program's tools may leave it (setsid). Their environment they inherit:
each program gets a mark of its run, and one of its worker. Who leaves the group and clears the environment, too, is not
found; nor is anybody where there is no /proc.

The guard is this file as a program of its own. It waits for the end of its stdin, whose other end is the worker's and
goes with it, however it goes, and ends at once who has the mark. It needs nothing but Python, and little memory.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress

# A mark is one of these, `=`, and a text of its own.
WORKER, RUN = "BLOOMD_WORKER", "BLOOMD_RUN"

# Whom SIGKILL does not end within this time the kernel is busy with.
_END_SECONDS = 10.0
_LOOK_SECONDS = 0.02


def groups(mark: str) -> set[int]:
    """The process groups of those that have this mark: they are the program's own.

    One that is only waiting to be reaped has no environment any more.
    """
    found: set[int] = set()
    try:
        names = os.listdir("/proc")
    except OSError:
        return found
    for name in names:
        if name.isdigit() and mark.encode() in _environment(name):
            with suppress(ProcessLookupError):
                found.add(os.getpgid(int(name)))
    return found


@contextmanager
def guarded(mark: str) -> Generator[None]:
    """Who has this mark at the end of the block, or of this process, is ended."""
    guard = subprocess.Popen(
        [sys.executable, "-IS", __file__, mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={},
        start_new_session=True,  # a signal to the worker's own is none for it
    )
    assert guard.stdin
    try:
        yield
    finally:
        guard.stdin.close()
        guard.wait()


def _environment(process: str) -> list[bytes]:
    try:
        with open(f"/proc/{process}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:  # it is gone, or somebody else's
        return []


def _guard(mark: str) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # an init system tells all processes of a service
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    until = time.monotonic() + _END_SECONDS
    while (left := groups(mark)) and time.monotonic() < until:
        for group in left:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        time.sleep(_LOOK_SECONDS)


if __name__ == "__main__":
    _guard(sys.argv[1])
