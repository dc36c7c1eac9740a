"""PostgreSQL's own programs, as processes: no password is ever on their command line."""

import os
import subprocess
import tempfile
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from pathlib import Path

import trio
from psycopg.conninfo import make_conninfo

from bloomd.backup.archive import CHUNK, BadArchive
from bloomd.errors import Unavailable
from bloomd.postgres.conninfo import parse


def target(conninfo: str) -> tuple[str, dict[str, str]]:
    """A connection string without its secrets, and the environment that has them. (Others cannot read that.)"""
    params = parse(conninfo)
    environment = dict(os.environ)
    for name, variable in (("password", "PGPASSWORD"), ("sslpassword", "PGSSLPASSWORD")):
        secret = params.pop(name, None)
        if secret is not None:
            environment[variable] = str(secret)
    return make_conninfo("", **params), environment


async def output(
    command: list[str | Path], *, environment: dict[str, str] | None = None, input: Iterator[bytes] | None = None
) -> AsyncGenerator[bytes]:
    """What a program writes. To be closed (`aclosing`), which ends the program.

    Raises:
        Unavailable: the program failed; the text has its last words.
    """
    with tempfile.TemporaryFile() as complaints:
        fed = None if input is None else _feed(input)
        try:
            process = await trio.lowlevel.open_process(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL if fed is None else fed,
                stdout=subprocess.PIPE,
                stderr=complaints,
                env=environment,
                start_new_session=True,  # Ctrl-C is for us
            )
        finally:
            if fed is not None:
                os.close(fed)
        assert process.stdout is not None
        try:
            async for data in process.stdout:
                yield bytes(data)
            if await process.wait():
                complaints.seek(0)
                lines = complaints.read(CHUNK).decode(errors="replace").strip().splitlines()
                said = lines[0] if lines else f"it ended with {process.returncode}"
                raise Unavailable(f"{Path(command[0]).name} failed: {said}")
        finally:
            with trio.CancelScope(shield=True):
                process.kill()
                await process.wait()
                await process.stdout.aclose()


def _feed(input: Iterator[bytes]) -> int:
    """A pipe to read this from: a thread writes it, until nobody reads any more."""
    reading, writing = os.pipe()

    def write() -> None:
        # What cannot be read was said to be whole before; the program misses its end, and says so.
        with os.fdopen(writing, "wb") as pipe, suppress(OSError, BadArchive):
            for data in input:
                pipe.write(data)

    threading.Thread(target=write, daemon=True).start()
    return reading
