"""The fake CLI, and what tests ask of the processes that it makes."""

import os
import sys
from pathlib import Path

import trio

FAKE = (sys.executable, "-IS", str(Path(__file__).parents[1] / "fake_claude.py"))


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it is not only waiting to be reaped."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


async def the_pid(file: Path) -> int:
    """The number in a file, as soon as it is there."""
    with trio.fail_after(20):
        while not (await trio.Path(file).exists() and (pid := await trio.Path(file).read_text())):
            await trio.sleep(0.005)
    return int(pid)


async def ends(pid: int) -> None:
    """Return when there is no such process any more."""
    with trio.fail_after(20):
        while is_running(pid):
            await trio.sleep(0.005)
