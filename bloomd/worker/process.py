"""One run of a program: its prompt on stdin, what it says within bounds, and nothing left of it afterwards.

The program leads a process group of its own, and has a mark of the run in its environment (`guard.py`). It is over
when the leader is: whoever else is in the group then, or has the mark, is asked to end (TERM), and made to (KILL) when
it has not within `END_SECONDS`; so is everybody when the time is up, and when whoever waits here is cancelled. A child
that got rid of both, and holds the pipes open, is not waited for.

Its stdout is kept up to a limit, and read beyond it, so that a program which floods it ends in its own time; of stderr
the end is kept.
"""

import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import msgspec
import trio

from bloomd.exchange import KIB, MIB
from bloomd.worker import guard

STDOUT_LIMIT = 8 * MIB
STDERR_TAIL = 16 * KIB

# From asking a group to end to ending it.
END_SECONDS = 5.0

# For what the pipes still hold when everybody is gone, should somebody outside the group keep them open.
DRAIN_SECONDS = 1.0

_CHUNK = 64 * KIB

# How often it is looked whether a group that was asked to end has ended: nothing tells.
_LOOK_SECONDS = 0.02


class NotStarted(Exception):
    """The program cannot be run; the text says why."""


class Said:
    """What a program has said until now."""

    def __init__(self) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.cut = False
        """Whether stdout was longer than what is kept of it."""

    def __repr__(self) -> str:
        return f"<Said {len(self.stdout)} bytes{' and more' if self.cut else ''}>"

    @property
    def last_line(self) -> str:
        """The last whole line of stderr that is not blank."""
        lines = self.stderr.rpartition(b"\n")[0].decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def hear_stdout(self, chunk: bytes) -> None:
        room = STDOUT_LIMIT - len(self.stdout)
        self.stdout += chunk[:room]
        self.cut = self.cut or len(chunk) > room

    def hear_stderr(self, chunk: bytes) -> None:
        self.stderr += chunk
        del self.stderr[:-STDERR_TAIL]


class Ended(msgspec.Struct, frozen=True):
    """How a run ended and what was said in it."""

    exit_code: int
    """Negative: the signal that ended it."""
    timed_out: bool
    stdout: bytes
    stderr: bytes
    cut: bool = False


async def run(
    command: Sequence[str],
    prompt: bytes,
    *,
    directory: Path,
    environ: Mapping[str, str],
    seconds: float,
    said: Said,
    started: Callable[[int], Awaitable[None]],
) -> Ended:
    """Run the program to its end, or to its time's.

    Args:
        seconds: what it may take.
        said: is filled while it runs.
        started: is told the process group as soon as there is one.

    Raises:
        NotStarted: it cannot be run.
    """
    run = uuid4().hex
    try:
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=directory,
            env={**environ, guard.RUN: run},
            start_new_session=True,
        )
    except OSError as error:
        raise NotStarted(f"`{command[0]}` cannot be run: {error.strerror or error}") from error
    assert process.stdin
    assert process.stdout
    assert process.stderr
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_feed, process.stdin, prompt)
            nursery.start_soon(_hear, process.stdout, said.hear_stdout)
            nursery.start_soon(_hear, process.stderr, said.hear_stderr)
            try:
                await started(process.pid)
                with trio.move_on_after(seconds) as time:
                    await process.wait()
            finally:
                await _end(process, f"{guard.RUN}={run}")
            nursery.cancel_scope.deadline = trio.current_time() + DRAIN_SECONDS
    finally:
        for pipe in (process.stdin, process.stdout, process.stderr):
            with trio.CancelScope(shield=True):  # closing a pipe waits for nobody
                await pipe.aclose()
    assert process.returncode is not None
    return Ended(process.returncode, time.cancelled_caught, bytes(said.stdout), bytes(said.stderr), said.cut)


async def _feed(stdin: trio.abc.SendStream, prompt: bytes) -> None:
    with suppress(trio.BrokenResourceError):  # it has read enough
        await stdin.send_all(prompt)
    await stdin.aclose()


async def _hear(pipe: trio.abc.ReceiveStream, hear: Callable[[bytes], None]) -> None:
    while chunk := await pipe.receive_some(_CHUNK):
        hear(bytes(chunk))


async def _end(process: trio.Process, mark: str) -> None:
    """Return when nobody of its run is there any more. Takes what it takes, whoever is cancelled: see `END_SECONDS`."""
    with trio.CancelScope(shield=True):  # what is left running now nobody would ever end
        await _tell(process.pid, mark, signal.SIGTERM)
        with trio.move_on_after(END_SECONDS):
            await process.wait()
            while _is_there(process.pid) or await trio.to_thread.run_sync(guard.groups, mark):  # noqa: ASYNC110
                await trio.sleep(_LOOK_SECONDS)
        await _tell(process.pid, mark, signal.SIGKILL)
        await process.wait()


async def _tell(group: int, mark: str, number: int) -> None:
    for each in {group, *await trio.to_thread.run_sync(guard.groups, mark)}:
        _signal(each, number)


def _is_there(group: int) -> bool:
    """Whether a group whose leader is gone has members that run. Those that have become our children are reaped."""
    with suppress(ChildProcessError):
        os.waitpid(-group, os.WNOHANG)
    return _signal(group, 0) and _runs(group)


def _runs(group: int) -> bool:
    """Whether a group is more than what its parents have not reaped yet, which may take an init system seconds."""
    try:
        processes = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:  # not Linux
        return True
    for name in processes:
        with suppress(OSError):
            state, _, of, *_ = Path(f"/proc/{name}/stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(of) == group and state not in "ZX":
                return True
    return not processes


def _signal(group: int, number: int) -> bool:
    """Whether there was somebody to tell.

    The number of a group is not given to another one as long as it has a member; that it is within the instant after
    its leader was reaped, numbers being given in turn, does not happen.
    """
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # the latter is what macOS says of one that only awaits its reaping
        return False
    return True
