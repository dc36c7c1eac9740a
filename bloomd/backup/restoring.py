"""Brings a backup back, or a plain dump: all of it in one transaction, or none.

::

    verify ─▶ refuse what must not be ─▶ store the objects
           ─▶ BEGIN, drop what is there, run the dump, compare with the manifest,
              have the rows refer to where the objects are now, COMMIT ─▶ migrate

The objects come first: a failure leaves a database that is as before, and some objects to which nothing refers. Without
an object store, their content goes into the database.
"""

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import psycopg
import trio

from bloomd.backup import script
from bloomd.backup.archive import CHUNK, DUMP, MEMORY, OBJECTS, Archive, BadArchive, key_of
from bloomd.backup.making import NO_LIMITS, TABLES, counts
from bloomd.backup.objects import check, destinations, existing, keep_here, put, rename, store_of
from bloomd.backup.programs import output
from bloomd.backup.progress import Follow, Quiet
from bloomd.errors import Misconfigured, one_line
from bloomd.postgres import Connection, Pool, binaries
from bloomd.postgres.migrate import migrate
from bloomd.runtime.schema import MIGRATIONS, explained, refuse_while_in_use
from bloomd.settings import Settings
from bloomd.settings.model import Minio

# The schema that has a place for all that is known of objects.
OBJECTS_SINCE = 19
# The schema that knows of backups.
BACKUPS_SINCE = 21

# So many of the first and of the last objects are looked for, where none should be.
SAMPLE = 20

# What a dump would meet. What an extension has made goes with the extension, which stays.
_DROP = """
DO $$
DECLARE
    each text;
BEGIN
    FOR each IN
        SELECT format('DROP SCHEMA %I CASCADE', nspname)
          FROM pg_namespace
         WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'public')
    LOOP
        EXECUTE each;
    END LOOP;
    FOR each IN
        SELECT format('DROP %s IF EXISTS public.%I CASCADE',
                      CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
                                   WHEN 'f' THEN 'FOREIGN TABLE' WHEN 'c' THEN 'TYPE' ELSE 'TABLE' END, relname)
          FROM pg_class
         WHERE relnamespace = 'public'::regnamespace
           AND relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c')
           AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_class.oid AND deptype = 'e')
    LOOP
        EXECUTE each;
    END LOOP;
    FOR each IN
        SELECT format('DROP ROUTINE IF EXISTS %s CASCADE', oid::regprocedure)
          FROM pg_proc
         WHERE pronamespace = 'public'::regnamespace
           AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_proc.oid AND deptype = 'e')
    LOOP
        EXECUTE each;
    END LOOP;
    FOR each IN
        SELECT format('DROP TYPE IF EXISTS public.%I CASCADE', typname)
          FROM pg_type
         WHERE typnamespace = 'public'::regnamespace
           AND typtype IN ('e', 'd', 'r')
           AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_type.oid AND deptype = 'e')
    LOOP
        EXECUTE each;
    END LOOP;
END $$
"""


def is_plain_dump(file: BinaryIO) -> bool:
    """Whether it is what `pg_dump` writes when no format is asked for."""
    file.seek(0)
    start = file.read(512)
    file.seek(0)
    return b"-- PostgreSQL database dump" in start


def _to_nobody(*_: object) -> None:
    pass


async def look(
    settings: Settings, archive: Archive | None, *, replace: bool, memory: bool = False, copy: bool = False
) -> list[str]:
    """The tables that a restore would replace.

    Args:
        copy: it is not this configuration's own database, so the objects of that are not to be shared.

    Raises:
        Misconfigured: it must not be restored there, or cannot be; the text says why.
        Unavailable: the database is away.
    """
    if archive:
        await _program(archive)
        if archive.head.schema > MIGRATIONS[-1].version:
            raise Misconfigured(
                f"the backup has schema {archive.head.schema}, of bloomd {archive.head.bloomd};"
                f" this bloomd knows {MIGRATIONS[-1].version}: restore it with that version or a newer one"
            )
    if archive and copy and not replace:
        keys = list(destinations(archive, settings.minio.bucket).values())
        bucket = settings.minio.bucket
        if keys and (there := await existing(store_of(settings), [*keys[:SAMPLE], *keys[-SAMPLE:]], bucket)):
            raise Misconfigured(
                f"the bucket {bucket} has objects of this backup already, such as {there[0]}. A copy that shares them"
                " removes them from the original one day: give it a bucket of its own (minio.bucket, in a file for -c),"
                " leave them out (--no-objects), or say --replace when the original is gone"
            )
    if archive and memory:
        bucket = settings.minio.memory_bucket
        there = await existing(store_of(settings), map(key_of, archive.within(MEMORY)), bucket)
        if there and not replace:
            raise Misconfigured(
                f"the bucket {bucket} has {len(there)} of the objects already, such as {there[0]}:"
                " restore without --memory, or say --replace, and they are replaced"
            )
    async with _session(settings.database.url) as connection:
        return await _look(connection, replace=replace)


async def restore(
    settings: Settings,
    file: BinaryIO,
    archive: Archive | None,
    *,
    replace: bool,
    objects: bool = True,
    memory: bool = False,
    follow: Follow = Quiet,
    report: Callable[[str], None] = _to_nobody,
    committed: Callable[[], None] = _to_nobody,
) -> dict[str, int]:
    """Restore an archive, or the plain dump that the file is; how many rows each table has then.

    Args:
        settings: the database and the object store.
        replace: drop what is in the database.
        objects: also the objects, if the archive has them; otherwise the rows refer to where they were.
        memory: also the bucket of the agents' memory.
        report: told what had to be repaired in what an older runtime left.
        committed: called when the database is restored, and may still have to be migrated.

    Raises:
        BadArchive: the dump does not run, or what came of it is not what the backup had; the database is as before.
        Misconfigured: it must not be restored there.
        Unavailable: the database or the store is away.
    """
    conninfo, minio = settings.database.url, settings.minio
    objects = objects and archive is not None and OBJECTS in archive.head.holds
    keys: dict[str, str] = {}
    async with _session(conninfo) as connection:
        await _look(connection, replace=replace)
        if archive and objects and minio.endpoint is not None:
            keys = destinations(archive, minio.bucket)
            await put(store_of(settings), archive, keys, minio.bucket, follow("objects", archive.size_of(keys)))
        if archive and memory:
            members = {member: key_of(member) for member in archive.within(MEMORY)}
            progress = follow("memory", archive.size_of(members))
            await put(store_of(settings), archive, members, minio.memory_bucket, progress)
        settle = partial(_settle, archive, keys, minio, follow) if archive and objects else None
        knows_objects = archive is not None and archive.head.schema >= OBJECTS_SINCE
        in_it = settle if knows_objects else None
        found = await _database(connection, file, archive, replace=replace, settle=in_it, follow=follow)
    committed()
    # In other sessions: the script has changed the settings of that one.
    async with _session(conninfo) as connection:
        with explained():
            await migrate(connection, MIGRATIONS, report=report)
    if settle and not knows_objects:
        async with _session(conninfo) as connection, connection.transaction():
            await settle(connection)
    return found


async def _settle(
    archive: Archive, keys: dict[str, str], minio: Minio, follow: Follow, connection: Connection[Any]
) -> None:
    if minio.endpoint is not None:
        await rename(connection, keys, minio.bucket)
    else:
        await keep_here(connection, archive, follow("objects", archive.size_of(archive.within(OBJECTS))))


async def _database(
    connection: Connection[Any],
    file: BinaryIO,
    archive: Archive | None,
    *,
    replace: bool,
    settle: Callable[[Connection[Any]], Awaitable[None]] | None,
    follow: Follow,
) -> dict[str, int]:
    progress = follow("database", archive.manifest.members[DUMP].size if archive else os.fstat(file.fileno()).st_size)
    source = _plain(file, progress.passed) if archive is None else await _dumped(archive, progress.passed)
    try:
        async with aclosing(source), connection.transaction():
            await refuse_while_in_use(connection)  # somebody may have started one while objects were stored
            if replace:
                await connection.execute(_DROP)
            await script.run(connection, source)
            await connection.execute("RESET search_path")  # which the script has emptied
            found = await counts(connection)
            if archive:
                _compare(found, archive.manifest.rows)
                if OBJECTS in archive.head.holds:
                    await check(connection, archive)
                if archive.head.schema >= BACKUPS_SINCE:
                    await connection.execute("DELETE FROM backups WHERE ended_at IS NULL")  # this one is over
            if settle:
                await settle(connection)
    except psycopg.OperationalError:
        raise  # the server went away: the pool says so
    except psycopg.Error as error:
        raise BadArchive(f"the dump cannot be restored: {one_line(error)}") from error
    progress.ended()
    return found


@asynccontextmanager
async def _session(conninfo: str) -> AsyncGenerator[Connection[Any]]:
    async with Pool(conninfo, size=1, application_name="bloomd restore") as pool, pool.connection() as connection:
        await connection.execute(NO_LIMITS)
        yield connection


async def _look(connection: Connection[Any], *, replace: bool) -> list[str]:
    await refuse_while_in_use(connection)
    tables = [f"{schema}.{name}" for schema, name in await (await connection.execute(TABLES)).fetchall()]
    if tables and not replace:
        raise Misconfigured(
            f"the database is not empty ({len(tables)} tables, such as {tables[0]}):"
            " restore into another (--into), or say --replace, and it loses them"
        )
    return tables


def _compare(found: dict[str, int], told: dict[str, int]) -> None:
    for table in sorted(found.keys() | told.keys()):
        if found.get(table) != told.get(table):
            raise BadArchive(f"{table} would have {found.get(table)} rows, and had {told.get(table)}")


async def _program(archive: Archive) -> Path:
    program, _ = await trio.to_thread.run_sync(binaries.client, "pg_restore", archive.head.pg_dump)
    return program


async def _dumped(archive: Archive, passed: Callable[[int], None]) -> AsyncGenerator[bytes]:
    def chunks() -> Iterator[bytes]:
        for data in archive.chunks(DUMP):
            yield data
            passed(len(data))

    return output([await _program(archive), "--no-owner", "--no-privileges", "--file=-"], input=chunks())


async def _plain(file: BinaryIO, passed: Callable[[int], None]) -> AsyncGenerator[bytes]:
    while data := await trio.to_thread.run_sync(file.read, CHUNK):
        yield data
        passed(len(data))
