"""Forward migrations of a schema, from files `NNNN_name.sql` in order of their numbers.

What has been applied is written in the table `bloomd_migrations`, each row in the same transaction as what it stands
for, so a crash leaves a migration either done or not begun. The one exception is a file whose first line says

    -- transaction: none

for statements that cannot run in one, such as CREATE INDEX CONCURRENTLY. These run one by one (each ends with a
semicolon at the end of its line, and holds no other such line), the row comes last, and after a crash they are run
again from the first: they have to be repeatable. An interrupted CREATE INDEX CONCURRENTLY leaves an invalid index,
which IF NOT EXISTS would keep: drop it first.

Any number of nodes may start at once. One of them gets an advisory lock and migrates; the others ask for it again and
again. They do not wait inside PostgreSQL: a waiting statement holds a snapshot, for whose end a concurrent index build
waits, which is what the others wait for.

A migration reports what it found and repaired with RAISE NOTICE.
"""

import hashlib
import re
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Any

import trio
from psycopg.errors import Diagnostic

from bloomd.errors import Misconfigured
from bloomd.postgres.connection import Connection

# Arbitrary, and the same in every version of the program.
LOCK_KEY = 0x626C6F6F6D64  # "bloomd"
LOCK_POLL_SECONDS = 0.1

# What RAISE NOTICE gives its message.
RAISED = "00000"

_FILE_NAME = re.compile(r"(\d{4})_(\w+)\.sql")
_NO_TRANSACTION = "-- transaction: none"

_CREATE_TABLE = """
    CREATE TABLE IF NOT EXISTS bloomd_migrations (
        version    integer     PRIMARY KEY,
        name       text        NOT NULL,
        checksum   text        NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now()
    )"""
_RECORD = "INSERT INTO bloomd_migrations (version, name, checksum) VALUES (%s, %s, %s)"


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def in_transaction(self) -> bool:
        return self.sql.split("\n", 1)[0].strip().lower() != _NO_TRANSACTION

    @property
    def statements(self) -> list[str]:
        """One by one, for a migration that cannot run in a transaction."""
        code = re.sub(r"^\s*--.*$", "", self.sql, flags=re.MULTILINE)
        return [statement.strip() for statement in re.split(r";[ \t]*$", code, flags=re.MULTILINE) if statement.strip()]

    def __str__(self) -> str:
        return f"{self.version:04} {self.name}"


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


def load(directory: Traversable) -> list[Migration]:
    """The migrations in a directory, in order.

    Raises:
        ValueError: a file's name is none, or a number occurs twice.
    """
    found: dict[int, Migration] = {}
    for file in directory.iterdir():
        if not file.name.endswith(".sql"):
            continue
        match = _FILE_NAME.fullmatch(file.name)
        if not match or int(match[1]) in found:
            raise ValueError(f"{file.name}: a migration is named NNNN_name.sql, each number once")
        version = int(match[1])
        found[version] = Migration(version, match[2], file.read_text(encoding="utf-8"))
    return [found[version] for version in sorted(found)]


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


async def migrate(
    conn: Connection[Any],
    migrations: Sequence[Migration],
    report: Callable[[str], None],
    applied: Callable[[Migration], None] = lambda migration: None,
) -> list[Migration]:
    """Apply what is pending, in order; return it.

    Args:
        conn: in autocommit mode, and nobody else's meanwhile.
        report: called with each notice that a migration raises.
        applied: called with each migration when it is committed.

    Raises:
        Misconfigured: the database was migrated by another version of the program, which only a person can sort out.
    """
    async with _alone(conn):
        await conn.execute(_CREATE_TABLE)
        compared = await status(conn, migrations)
        _refuse_foreign(compared)
        with _notices(conn, report):
            for migration in compared.pending:
                await _apply(conn, migration)
                applied(migration)
        return list(compared.pending)


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


async def _apply(conn: Connection[Any], migration: Migration) -> None:
    row = (migration.version, migration.name, migration.checksum)
    if migration.in_transaction:
        async with conn.transaction():
            await conn.execute(migration.sql.encode())
            await conn.execute(_RECORD, row)
    else:
        for statement in migration.statements:
            await conn.execute(statement.encode())
        await conn.execute(_RECORD, row)


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
def _notices(conn: Connection[Any], report: Callable[[str], None]) -> Generator[None]:
    def handle(notice: Diagnostic) -> None:
        # "relation ... already exists, skipping" and the like have states of their own.
        if notice.sqlstate == RAISED:
            report(notice.message_primary or "")

    conn.add_notice_handler(handle)
    try:
        yield
    finally:
        conn.remove_notice_handler(handle)
