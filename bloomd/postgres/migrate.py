"""Migrations of a schema, forward in order of their numbers and back again.

What has been applied is written in the table `bloomd_migrations`, each row in the same transaction as what it stands
for, so a crash leaves a migration either done or not begun. A way back takes the row away in the same manner, and the
last one the table. The one exception are files that cannot run in a transaction (`migrations` has their form): the row
comes or goes last, and after a crash they are run again from the first, so they have to be repeatable. An interrupted
CREATE INDEX CONCURRENTLY leaves an invalid index, which IF NOT EXISTS would keep: drop it first.

Any number of nodes may start at once. One of them gets an advisory lock and migrates; the others ask for it again and
again. They do not wait inside PostgreSQL: a waiting statement holds a snapshot, for whose end a concurrent index build
waits, which is what the others wait for.

A migration that waits for a table makes everybody wait who comes after it. So it waits briefly, gives way, and tries
again, until it has the table or its patience is over. Outside of transactions nothing is waited for that would hold up
others, so there it may take as long as it likes.

A migration reports what it found and repaired with RAISE NOTICE.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import trio
from psycopg.errors import Diagnostic, LockNotAvailable

from bloomd.errors import Misconfigured, Unavailable
from bloomd.postgres.connection import Connection
from bloomd.postgres.migrations import Migration

# Arbitrary, and the same in every version of the program.
LOCK_KEY = 0x626C6F6F6D64  # "bloomd"
LOCK_POLL_SECONDS = 0.1

# How long the others stand behind a migration that waits for a table, and how long they then have it to themselves:
# somewhat more than a request takes, and time enough for all that have been waiting.
LOCK_TIMEOUT_MS = 2000
GIVE_WAY_SECONDS = 1.0
LOCK_ATTEMPTS = 10

# What RAISE NOTICE gives its message.
RAISED = "00000"

_CREATE_TABLE = """
    CREATE TABLE IF NOT EXISTS bloomd_migrations (
        version    integer     PRIMARY KEY,
        name       text        NOT NULL,
        checksum   text        NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now()
    )"""
_RECORD = "INSERT INTO bloomd_migrations (version, name, checksum) VALUES (%s, %s, %s)"
_FORGET = "DELETE FROM bloomd_migrations WHERE version = %s"
_FORGET_ALL = "DROP TABLE bloomd_migrations"


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """How a database's schema compares with the migrations that this program has."""

    current: int
    """The highest version that is applied; 0 for none."""
    latest: int
    """The highest version that this program has; 0 for none."""
    pending: tuple[Migration, ...]
    """What is still to be applied."""
    newer: bool
    """Whether something is applied that this program does not know."""
    changed: tuple[Migration, ...] = ()
    """What is applied in another form than this program has it."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that a way back discards."""

    migration: Migration
    what: str
    rows: int

    def __str__(self) -> str:
        return f"{self.what} ({self.rows})"


@dataclass(frozen=True, slots=True)
class Plan:
    """The way from what the database has to a version."""

    back: tuple[Migration, ...]
    """What is undone, the newest first."""
    forward: tuple[Migration, ...]
    """What is applied after that, in order."""
    losses: tuple[Loss, ...]
    """What is discarded by that, as far as there is any of it now."""


async def status(conn: Connection[Any], migrations: Sequence[Migration]) -> SchemaStatus:
    """Compare; changes nothing, and needs no table."""
    applied = await _applied(conn)
    known = {migration.version for migration in migrations}
    return SchemaStatus(
        current=max(applied, default=0),
        latest=max(known, default=0),
        pending=tuple(migration for migration in migrations if migration.version not in applied),
        newer=not known.issuperset(applied),
        changed=tuple(
            migration
            for migration in migrations
            if migration.version in applied and applied[migration.version] != migration.checksum
        ),
    )


async def plan(conn: Connection[Any], migrations: Sequence[Migration], to: int) -> Plan:
    """The way to a version; changes nothing.

    Raises:
        Misconfigured: there is none.
    """
    if to and to not in {migration.version for migration in migrations}:
        latest = max((migration.version for migration in migrations), default=0)
        raise Misconfigured(f"there is no schema {to}: this program knows those from 0 to {latest}")
    compared = await status(conn, migrations)
    _refuse_foreign(compared)
    back = [m for m in reversed(migrations) if m.version > to and m not in compared.pending]
    if final := [migration for migration in back if migration.back is None]:
        raise Misconfigured(f"there is no way back from migration {final[0]}: nothing was changed")
    return Plan(
        back=tuple(back),
        forward=tuple(migration for migration in compared.pending if migration.version <= to),
        losses=tuple(await _losses(conn, back)),
    )


async def migrate(
    conn: Connection[Any], migrations: Sequence[Migration], report: Callable[[str], None]
) -> list[Migration]:
    """Apply what is pending, in order; return it. For the rest see `migrate_to`."""
    latest = max((migration.version for migration in migrations), default=0)
    return list((await migrate_to(conn, migrations, latest, report=report)).forward)


async def migrate_to(
    conn: Connection[Any],
    migrations: Sequence[Migration],
    to: int,
    *,
    report: Callable[[str], None],
    agree: Callable[[Plan], Awaitable[None]] | None = None,
    applied: Callable[[Migration], None] = lambda migration: None,
    undone: Callable[[Migration], None] = lambda migration: None,
) -> Plan:
    """Bring the schema to this version, forward or back; return the way that led there.

    Args:
        conn: in autocommit mode, and nobody else's meanwhile.
        report: called with each notice that a migration raises.
        agree: called once, before anything is changed and while nobody else can migrate; what it raises ends it.
        applied: called with each migration when it is committed.
        undone: called with each migration when its way back is committed.

    Raises:
        Misconfigured: there is no way to this version, or the database was migrated by another version of the program,
            which only a person can sort out.
        Unavailable: a table was in use all the time.
    """
    async with _alone(conn):
        way = await plan(conn, migrations, to)
        if agree:
            await agree(way)
        for migration in way.back:
            await _undo(conn, migration, report)
            undone(migration)
        if way.forward:
            await conn.execute(_CREATE_TABLE)
        for migration in way.forward:
            await _apply(conn, migration, report)
            applied(migration)
        return way


async def _losses(conn: Connection[Any], back: Sequence[Migration]) -> list[Loss]:
    found: list[Loss] = []
    for migration in back:
        for what, source in migration.back.loses if migration.back else []:
            cursor = await conn.execute(f"SELECT count(*) FROM {source}".encode())
            row = await cursor.fetchone()
            if row and row[0]:
                found.append(Loss(migration, what, row[0]))
    return found


async def _applied(conn: Connection[Any]) -> dict[int, str]:
    """Version and checksum of what the database has."""
    cursor = await conn.execute("SELECT to_regclass('bloomd_migrations') IS NOT NULL")
    if await cursor.fetchone() != (True,):
        return {}
    cursor = await conn.execute("SELECT version, checksum FROM bloomd_migrations")
    return dict(await cursor.fetchall())


def _refuse_foreign(compared: SchemaStatus) -> None:
    if compared.newer:
        raise Misconfigured(
            f"the database's schema (version {compared.current}) is newer than this program knows "
            f"(version {compared.latest}): install the version that migrated it, or a later one"
        )
    if compared.changed:
        names = ", ".join(map(str, compared.changed))
        raise Misconfigured(
            f"applied to the database in another form than this program has: migration {names}; "
            "a migration is never changed once it has been released, so one of the two is no release"
        )


async def _apply(conn: Connection[Any], migration: Migration, report: Callable[[str], None]) -> None:
    async def record() -> None:
        await conn.execute(_RECORD, (migration.version, migration.name, migration.checksum))

    await _run(conn, migration, record, report)


async def _undo(conn: Connection[Any], migration: Migration, report: Callable[[str], None]) -> None:
    async def record() -> None:
        await conn.execute(_FORGET, [migration.version])
        if not await _applied(conn):
            await conn.execute(_FORGET_ALL)

    assert migration.back, "a plan has no other"
    await _run(conn, migration.back, record, report)


async def _run(
    conn: Connection[Any], script: Migration, record: Callable[[], Awaitable[None]], report: Callable[[str], None]
) -> None:
    """Run it, and what records that; report its notices once it is done."""
    for attempt in range(1, LOCK_ATTEMPTS + 1):
        notices: list[str] = []
        try:
            with _notices(conn, notices):
                await (_in_transaction if script.in_transaction else _one_by_one)(conn, script, record)
        except LockNotAvailable as error:
            if attempt == LOCK_ATTEMPTS:
                raise Unavailable(
                    f"migration {script} needs a table that another session did not let go of: end that session's "
                    "transaction (pg_stat_activity has it), and try again"
                ) from error
            await trio.sleep(GIVE_WAY_SECONDS)
        else:
            for notice in notices:
                report(notice)
            return


async def _in_transaction(conn: Connection[Any], script: Migration, record: Callable[[], Awaitable[None]]) -> None:
    async with conn.transaction():
        await conn.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}".encode())
        await conn.execute(script.before.encode())
        await conn.execute(script.sql.encode())
        await record()


async def _one_by_one(conn: Connection[Any], script: Migration, record: Callable[[], Awaitable[None]]) -> None:
    for statement in script.statements:
        await conn.execute(statement.encode())
    await record()


@asynccontextmanager
async def _alone(conn: Connection[Any]) -> AsyncGenerator[None]:
    """Hold the advisory lock, on a session without the limits that are meant for everyday statements."""
    try:
        while not await _try_lock(conn):  # noqa: ASYNC110 (another node's event: only the database has it)
            await trio.sleep(LOCK_POLL_SECONDS)
        await conn.execute("SET statement_timeout = 0")
        await conn.execute("SET client_min_messages = notice")
        yield
    finally:
        await conn.clean_up(
            f"SELECT pg_advisory_unlock({LOCK_KEY})", "RESET statement_timeout", "RESET client_min_messages"
        )


async def _try_lock(conn: Connection[Any]) -> bool:
    cursor = await conn.execute("SELECT pg_try_advisory_lock(%s)", [LOCK_KEY])
    return await cursor.fetchone() == (True,)


@contextmanager
def _notices(conn: Connection[Any], found: list[str]) -> Generator[None]:
    def handle(notice: Diagnostic) -> None:
        # "relation ... already exists, skipping" and the like have states of their own.
        if notice.sqlstate == RAISED:
            found.append(notice.message_primary or "")

    conn.add_notice_handler(handle)
    try:
        yield
    finally:
        conn.remove_notice_handler(handle)
