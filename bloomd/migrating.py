"""`bloomd migrate`: brings the schema to a version, forward or back, and tells what that costs."""

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import trio

from bloomd.postgres import Connection, Pool
from bloomd.postgres.migrate import Plan, migrate_to, plan, status
from bloomd.runtime.schema import MIGRATIONS, explained, refuse_while_in_use
from bloomd.settings import Loaded

OK, PENDING, USAGE = 0, 1, 64


def bring(loaded: Loaded, to: int | None, *, yes: bool) -> int:
    """Bring the schema to this version, or else to the newest; the exit code.

    Args:
        yes: do not ask before something is lost on the way back.
    """
    return trio.run(_bring_to, loaded, _version(to), yes)


def show(loaded: Loaded, to: int | None) -> int:
    """Only tell what would be done; the exit code, by which a script can ask: 1 when something is to be done."""
    return trio.run(_show_way, loaded, _version(to))


def _version(to: int | None) -> int:
    return MIGRATIONS[-1].version if to is None else to


@asynccontextmanager
async def _migrating(loaded: Loaded) -> AsyncGenerator[Connection[Any]]:
    pool = Pool(loaded.settings.database.url, size=1, application_name="bloomd migrate")
    async with pool, pool.connection() as connection:
        with explained():
            yield connection


async def _bring_to(loaded: Loaded, to: int, yes: bool) -> int:
    async with _migrating(loaded) as connection:

        async def agree(way: Plan) -> None:
            if way.back:
                await refuse_while_in_use(connection)
            if way.losses:
                _show_losses(way)
                _confirm(yes)

        try:
            done = await migrate_to(
                connection,
                MIGRATIONS,
                to,
                report=lambda line: print(f"  repaired: {line}"),
                agree=agree,
                applied=lambda migration: print(f"applied {migration}", flush=True),
                undone=lambda migration: print(f"undone {migration}", flush=True),
            )
        except _Declined as error:
            print(f"bloomd: {error}", file=sys.stderr)
            return error.code
    print(f"the schema is at {to}" + ("" if done.forward or done.back else ": nothing to do"))
    return OK


async def _show_way(loaded: Loaded, to: int) -> int:
    async with _migrating(loaded) as connection:
        schema = await status(connection, MIGRATIONS)
        print(f"the schema is at {schema.current}, this bloomd needs {schema.latest}")
        way = await plan(connection, MIGRATIONS, to)
    for migration in way.back:
        print(f"to undo: {migration}")
    for migration in way.forward:
        print(f"to apply: {migration}")
    _show_losses(way)
    return PENDING if way.back or way.forward else OK


def _show_losses(way: Plan) -> None:
    for loss in way.losses:
        print(f"to be lost with {loss.migration}: {loss}", flush=True)


class _Declined(Exception):
    def __init__(self, text: str, code: int) -> None:
        super().__init__(f"{text}: nothing was changed")
        self.code = code


def _confirm(yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise _Declined("this needs --yes, because something is lost", USAGE)
    try:
        answer = input("Lose that, and go back? [yes/no] ")
    except (EOFError, KeyboardInterrupt):
        answer = ""
    if answer.strip().lower() not in {"y", "yes"}:
        raise _Declined("not confirmed", PENDING)
