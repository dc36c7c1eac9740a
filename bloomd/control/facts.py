"""What bloomd tells for a bug report, and of its own log. All of it is redacted, and none of it is of tasks.

`log.recent` answers with how many lines it has told. The lines come before that, in notifications that fit a line of
the protocol; each has the `id` to go on after. Following them ends with the connection, so that the last words of a
daemon that stops are heard, too.
"""

import platform
import secrets
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec
import psycopg
import trio
from msgspec import Meta

from bloomd.control.answers_report import BugReport, RecentLines, RunningVersions
from bloomd.control.events import ALIVE_SECONDS
from bloomd.control.machine import packages
from bloomd.control.server import Call, Method, NoParams
from bloomd.errors import Unavailable
from bloomd.logs import RECENT_LINES, Logs
from bloomd.node import Node
from bloomd.redaction import MASK
from bloomd.settings import SECRETS, describe
from bloomd.status import DATABASE_SECONDS, status

# As JSON a character may take six bytes, and a line of the protocol has a mebibyte.
PIECE_LENGTH = 64 * 1024

# No text that matters is longer; the whole answer is to fit a line of the protocol.
TEXT_LIMIT = 2000

# How late a follower may be. Lines may come from any thread, so nothing in the loop tells of them.
LOOK_SECONDS = 0.5

# By which the id of a line is known to be of this daemon, not of one before it.
_MARK = secrets.token_hex(4)

# As they were at the start: an upgrade may have replaced the files since.
_PACKAGES = packages()

# In a report that others read, not even the parts of them that an operator is shown; nor the user of the object store.
_HIDDEN = {*SECRETS, "minio.access_key"} - {"database.url"}


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    lines: Annotated[int, Meta(ge=0, le=RECENT_LINES)] = RECENT_LINES
    """How many of the latest ones."""
    after: str | None = None
    """The id of a line: those that came later, or all when it was told by another daemon."""
    follow: bool = False


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    value: Any


class _Version(msgspec.Struct, frozen=True):
    version: str


def methods(node: Node, logs: Logs) -> Sequence[Method[Any]]:
    """Every method, for this node."""

    async def report(params: NoParams, call: Call) -> BugReport:
        told = BugReport(
            node=node.name,
            at=time.time(),
            config=_file(node, "-c"),
            env_file=_file(node, "--env-file"),
            versions=RunningVersions(
                python=platform.python_version(),
                packages=_PACKAGES,
                libpq=psycopg.pq.version_pretty(psycopg.pq.version()),
                postgresql=await _postgresql(node),
                schema=node.database.schema,
            ),
            status=await status(node),
            settings={"settings": _settings(node), "warnings": list(node.loaded.warnings)},
            limits=_limits(),
        )
        return logs.redaction.within(msgspec.json.decode(msgspec.json.encode(told)), TEXT_LIMIT)

    async def recent(params: Wanted, call: Call) -> RecentLines:
        mark, _, number = (params.after or "").partition("-")
        after = int(number) if mark == _MARK and number.isdecimal() else 0
        last, lines = logs.recent.last, logs.recent.after(after)
        after, lines = last, lines[max(0, len(lines) - params.lines) :]
        told = 0
        alive_at = trio.current_time()
        while True:
            for piece in _pieces(lines):
                after = piece[-1][0]
                clean = [logs.redaction(line) for _, line in piece]  # what was no secret yet when it was written
                await call.notify("lines", {"id": f"{_MARK}-{after}", "lines": clean})
                told += len(piece)
            if not params.follow:
                return RecentLines(lines=told)
            if trio.current_time() >= alive_at:
                await call.notify("alive", {"id": f"{_MARK}-{after}"})
                alive_at = trio.current_time() + ALIVE_SECONDS
            await trio.sleep(LOOK_SECONDS)
            lines = logs.recent.after(after)

    async def redact(params: Value, call: Call) -> Any:
        return logs.redaction.within(params.value, TEXT_LIMIT)

    # Nothing is changed, but who takes such things with him is worth an entry.
    return [
        Method("bugreport", report, NoParams, mutating=True),
        Method("log.recent", recent, Wanted, mutating=True),
        Method("log.redact", redact, Value),
    ]


def _file(node: Node, option: str) -> str | None:
    words = shlex.split(node.config_option)
    return str(Path(words[words.index(option) + 1]).absolute()) if option in words else None


def _limits() -> list[str]:
    return Path("/proc/self/limits").read_text().splitlines()


def _settings(node: Node) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = msgspec.to_builtins(describe(node.loaded))
    for setting in told:
        if setting["key"] in _HIDDEN and setting["value"] is not None:
            setting["value"] = MASK
    return told


async def _postgresql(node: Node) -> str | None:
    with trio.move_on_after(DATABASE_SECONDS), suppress(Unavailable):
        row = await node.database.row(_Version, "SELECT current_setting('server_version') AS version")
        return row.version if row else None
    return None


def _pieces(lines: list[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """The lines in pieces of `PIECE_LENGTH` and at most one line more."""
    piece: list[tuple[int, str]] = []
    length = 0
    for number, line in lines:
        piece.append((number, line))
        length += len(line)
        if length >= PIECE_LENGTH:
            yield piece
            piece, length = [], 0
    if piece:
        yield piece
