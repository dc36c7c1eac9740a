"""Makes a backup: one snapshot of the database, dumped and counted; the objects to which it refers; the configuration.

A session exports the snapshot and stays in its transaction; pg_dump reads by it, and so do the counts. Whoever writes
meanwhile does not wait, and nothing of what he writes is in the archive. The objects come after it; until then the
session keeps them from being removed.
"""

import socket
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio
from psycopg import sql

from bloomd import __version__
from bloomd.backup.archive import (
    CONFIGURATION,
    DUMP,
    FORMAT,
    HEAD,
    MEMORY,
    OBJECTS,
    WARNING,
    Head,
    Manifest,
    Writer,
    writing,
)
from bloomd.backup.objects import Referring, Trouble, save, save_memory, store_of
from bloomd.backup.objects import referring as objects_of
from bloomd.backup.programs import output, target
from bloomd.backup.progress import Follow, Quiet
from bloomd.errors import Misconfigured
from bloomd.postgres import Connection, Pool, binaries
from bloomd.postgres.migrate import status
from bloomd.runtime.objects import OBJECTS_LOCK
from bloomd.runtime.schema import MIGRATIONS
from bloomd.settings import Settings

TABLES = """
SELECT nspname, relname
  FROM pg_class
  JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE relkind IN ('r', 'p')
   AND nspname !~ '^pg_|^information_schema$'
 ORDER BY 1, 2
"""

# Time limits that a server or a role may have, as far as this version has them.
NO_LIMITS = """
SELECT set_config(name, '0', false)
  FROM pg_settings
 WHERE name IN ('idle_in_transaction_session_timeout', 'idle_session_timeout', 'lock_timeout', 'statement_timeout',
                'transaction_timeout')
"""


async def back_up(
    settings: Settings,
    file: Path,
    *,
    configuration: list[Path],
    objects: bool = True,
    memory: bool = False,
    force: bool = False,
    follow: Follow = Quiet,
) -> Manifest:
    """Make the archive `file`.

    Args:
        configuration: the files that belong to it.
        objects: also what the database refers to in the object store.
        memory: also the bucket of the agents' memory.
        force: replace a file that is there.

    Returns:
        What is in it; and what should be, and is not.

    Raises:
        Unavailable: the database or the store is away, pg_dump failed, or the file cannot be written.
        Misconfigured: the file is there already, this machine's pg_dump is too old, or the store refuses our settings.
    """
    with writing(file, force=force) as writer:
        async with _at_the_database(settings.database.url) as connection:
            holds = [name for name, asked in ((OBJECTS, objects), (MEMORY, memory)) if asked]
            rows, referring = await _database(connection, settings, writer, holds, follow)
            trouble = Trouble()
            if objects and referring:
                trouble = await save(store_of(settings), referring, writer, follow)
            # Had the session ended meanwhile, somebody may have removed objects.
            await connection.execute("SELECT pg_advisory_unlock_shared(%s)", [OBJECTS_LOCK])
        if memory:
            await save_memory(store_of(settings), settings.minio.memory_bucket, writer, follow)
        places = await trio.to_thread.run_sync(_configuration, configuration, writer, follow)
        seal = partial(writer.seal, rows=rows, configuration=places)
        return await trio.to_thread.run_sync(partial(seal, missing=trouble.missing, damaged=trouble.damaged))


@asynccontextmanager
async def _at_the_database(conninfo: str) -> AsyncGenerator[Connection[Any]]:
    """A session that may be long, and during which no object is removed that a snapshot refers to."""
    async with Pool(conninfo, size=1, application_name="bloomd backup") as pool, pool.connection() as connection:
        await connection.execute(NO_LIMITS)
        await connection.execute("SELECT pg_advisory_lock_shared(%s)", [OBJECTS_LOCK])
        yield connection


async def _database(
    connection: Connection[Any], settings: Settings, writer: Writer, holds: list[str], follow: Follow
) -> tuple[dict[str, int], list[Referring]]:
    """Write one snapshot; how many rows each table has in it, and what is in the object store."""
    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        referring = await objects_of(connection) if OBJECTS in holds else []
        if referring and settings.minio.endpoint is None:
            raise Misconfigured(
                f"the content of {len(referring)} artifacts is in an object store, and none is configured:"
                " set minio.endpoint, or leave them out with --no-objects"
            )
        await _dump(connection, settings.database.url, writer, holds, follow)
        return await counts(connection), referring
    finally:
        await connection.clean_up("ROLLBACK")


async def _dump(connection: Connection[Any], conninfo: str, writer: Writer, holds: list[str], follow: Follow) -> None:
    major = connection.info.server_version // 10000
    program, version = await trio.to_thread.run_sync(binaries.client, "pg_dump", major)
    schema = await status(connection, MIGRATIONS)
    [snapshot] = await (await connection.execute("SELECT pg_export_snapshot()")).fetchone() or ("",)
    head = Head(
        format=FORMAT,
        warning=WARNING,
        bloomd=__version__,
        schema=schema.current,
        server=connection.info.parameter_status("server_version") or str(major),
        pg_dump=version,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        host=socket.gethostname(),
        holds=holds,
    )
    writer.add(HEAD, msgspec.json.format(msgspec.json.encode(head)))
    progress = follow("database", None)
    where, environment = target(conninfo)
    command = [program, "--format=custom", "--no-password", f"--snapshot={snapshot}", f"--dbname={where}"]
    writer.begin(DUMP)
    async with aclosing(output(command, environment=environment)) as dump:
        async for data in dump:
            await trio.to_thread.run_sync(writer.write, data)
            progress.passed(len(data))
    writer.end()
    progress.ended()


async def counts(connection: Connection[Any]) -> dict[str, int]:
    """How many rows each table has, as this connection's transaction sees them."""
    found: dict[str, int] = {}
    for schema, name in await (await connection.execute(TABLES)).fetchall():
        counting = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(schema, name))
        [found[f"{schema}.{name}"]] = await (await connection.execute(counting)).fetchone() or (0,)
    return found


def _configuration(files: list[Path], writer: Writer, follow: Follow) -> dict[str, str]:
    """Write these; where each was."""
    progress = follow("configuration", None)
    places: dict[str, str] = {}
    for number, path in enumerate(files, 1):
        name = f"{CONFIGURATION}/{number}-{path.name}"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise Misconfigured(f"{path}: {error.strerror}") from error
        writer.add(name, data)
        places[name] = str(path.absolute())
        progress.passed(len(data))
    if files:
        progress.ended()
    return places
