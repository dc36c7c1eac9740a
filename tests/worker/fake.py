"""The fake CLI, and what tests ask of the processes that it makes."""

import sys
from pathlib import Path

import trio
from servers import is_running

FAKE = (sys.executable, "-IS", str(Path(__file__).parents[1] / "fake_claude.py"))


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
