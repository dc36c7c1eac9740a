"""A worker of this machine's own beside the daemon: `bloomd dev --worker`.

It is `bloomd worker` in a process of its own, as on any other machine, and goes with the daemon, however that ends.
When keys are asked for, it has a token, which it keeps from one start to the next.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import trio

from bloomd.errors import Misconfigured, Unavailable
from bloomd.http.access import is_off
from bloomd.node import Node
from bloomd.postgres.cluster import end_with_parent
from bloomd.settings import Tcp, parse_bind
from bloomd.worker.claude import environment

NAME = "local"

# What it runs when the daemon stops is ended and given back; the next start gives back what this was too short for.
STOP_SECONDS = 5.0

# A key of the settings is noticed this late, one with a name at once.
LOOK_SECONDS = 2.0

# Of sysexits.h: it cannot work with its settings, and has said why.
BAD_CONFIGURATION = 78

_COMMAND = (sys.executable, "-c", "from bloomd.cli import main; main()", "worker", "-c")


def local_url(binds: Sequence[str]) -> str:
    """Where this machine reaches an HTTP API that listens there: at the first address of TCP.

    Raises:
        Misconfigured: it listens on no such address.
    """
    for bind in map(parse_bind, binds):
        if isinstance(bind, Tcp):
            host = "localhost" if bind.host in (None, "0.0.0.0", "::") else bind.host
            return f"http://[{host}]:{bind.port}" if ":" in host else f"http://{host}:{bind.port}"
    raise Misconfigured("http.bind has no TCP address, by which a worker could reach it")


class Companion:
    def __init__(self, node: Node, directory: Path, url: Callable[[], str]) -> None:
        """
        Args:
            directory: where it works, and keeps its token.
            url: of the daemon's HTTP API.
        """
        self._node = node
        self._directory = directory
        self._url = url

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the worker running until cancelled.

        Raises:
            Misconfigured: it cannot begin, because there is no Claude CLI, for example.
            Unavailable: it has ended for another reason.
        """
        file = await self._configure()
        process = _start(file)
        try:
            task_status.started()
            code = await self._exit_code_while_it_is_let_in(process)
        finally:
            with trio.CancelScope(shield=True):
                await _end(process)
        if code is None:
            raise Unavailable("keys are asked for from now on: the worker begins anew, with a token")
        if code == BAD_CONFIGURATION:
            (self._directory / "token").unlink(missing_ok=True)  # in case it was revoked: the next start gets another
            raise Misconfigured("the worker cannot work here, and has said why on standard error")
        raise Unavailable(f"the worker has ended with exit code {code}")

    async def _exit_code_while_it_is_let_in(self, process: "subprocess.Popen[bytes]") -> int | None:
        """What it has ended with; None when it runs without a token and has to have one now."""
        code: int | None = None

        async def watch() -> None:
            while is_off(self._node.settings.http, self._node.keys):
                with trio.move_on_after(LOOK_SECONDS):
                    await self._node.keys.changed.wait()
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            if is_off(self._node.settings.http, self._node.keys):
                nursery.start_soon(watch)
            code = await _exit_code(process)
            nursery.cancel_scope.cancel()
        return code

    async def _configure(self) -> Path:
        """Write the worker's own configuration, a token included when one is needed; its path."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        worker = {
            "server": self._url(),
            "name": NAME,
            "root": str(self._directory / "root"),
            "max_concurrency": 2,
            "grace_seconds": STOP_SECONDS,
            **await self._token(),
        }
        file = self._directory / "worker.yaml"
        file.write_text(json.dumps({"worker": worker}, indent=2))  # JSON is YAML
        return file

    async def _token(self) -> dict[str, str]:
        if is_off(self._node.settings.http, self._node.keys):
            return {}
        file = self._directory / "token"
        if not file.exists():
            made = await self._node.keys.add_token(NAME, actor="bloomd")
            file.touch(mode=0o600)
            file.write_text(made.secret)
        return {"token_file": str(file)}


def _start(file: Path) -> "subprocess.Popen[bytes]":
    # Not trio's way to start a process: that forks in a thread, and with that thread the process would end.
    return subprocess.Popen(
        [*_COMMAND, str(file)],
        stdin=subprocess.DEVNULL,
        env=_environment(os.environ),
        start_new_session=True,  # Ctrl-C is for the daemon, which stops the worker first
        preexec_fn=end_with_parent,
    )


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """What its program needs, and how to write its log: the daemon's keys are not for it, nor are its settings."""
    return environment(ours) | {name: ours[name] for name in ("NODE_ENV",) if name in ours}


async def _exit_code(process: "subprocess.Popen[bytes]") -> int:
    """What it has ended with, once it has."""
    descriptor = os.pidfd_open(process.pid)
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)
    return process.wait()


async def _end(process: "subprocess.Popen[bytes]") -> None:
    for _ in range(2):  # the second time: at once
        if process.poll() is None:
            process.terminate()
            await trio.sleep(0.1)
    if process.poll() is None:
        with trio.move_on_after(STOP_SECONDS):
            await _exit_code(process)
    if process.poll() is None:
        process.kill()
        await _exit_code(process)
