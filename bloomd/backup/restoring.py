"""Brings a backup back, or a plain dump: all of it in one transaction, or none.

::

    verify ─▶ refuse what must not be ─▶ BEGIN, drop what is there, run the dump, compare the counts, COMMIT ─▶ migrate
"""

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, BinaryIO

import psycopg
import trio

from bloomd.backup import script
from bloomd.backup.archive import CHUNK, DUMP, Archive, BadArchive
from bloomd.backup.making import TABLES, counts
from bloomd.backup.programs import output
from bloomd.errors import Misconfigured, one_line
from bloomd.postgres import Connection, Pool, binaries
from bloomd.postgres.migrate import migrate
from bloomd.runtime.schema import MIGRATIONS, explained, refuse_while_in_use

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


async def look(conninfo: str, archive: Archive | None, *, replace: bool) -> list[str]:
    """The tables that a restore would replace.

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
    async with Pool(conninfo, size=1, application_name="bloomd restore") as pool, pool.connection() as connection:
        return await _look(connection, replace=replace)


async def restore(
    conninfo: str, file: BinaryIO, archive: Archive | None, *, replace: bool, passed: Callable[[int], None]
) -> dict[str, int]:
    """Restore an archive, or the plain dump that the file is; how many rows each table has then.

    Raises:
        BadArchive: the dump does not run, or what came of it is not what the backup had; the database is as before.
        Misconfigured: it must not be restored there.
        Unavailable: the database is away.
    """
    async with Pool(conninfo, size=1, application_name="bloomd restore") as pool, pool.connection() as connection:
        await _look(connection, replace=replace)
        source = _plain(file, passed) if archive is None else await _dumped(archive, passed)
        try:
            async with aclosing(source), connection.transaction():
                if replace:
                    await connection.execute(_DROP)
                await script.run(connection, source)
                found = await counts(connection)
                if archive:
                    _compare(found, archive.manifest.rows)
        except psycopg.OperationalError:
            raise  # the server went away: the pool says so
        except psycopg.Error as error:
            raise BadArchive(f"the dump cannot be restored: {one_line(error)}") from error
    # In another session: the script has set that one's search_path and more.
    await _migrate(conninfo)
    return found


async def _look(connection: Connection[Any], *, replace: bool) -> list[str]:
    await refuse_while_in_use(connection)
    tables = [f"{schema}.{name}" for schema, name in await (await connection.execute(TABLES)).fetchall()]
    if tables and not replace:
        raise Misconfigured(
            f"the database is not empty ({len(tables)} tables, such as {tables[0]}):"
            " restore into another (--into), or say --replace, and it loses them"
        )
    return tables


async def _migrate(conninfo: str) -> None:
    async with Pool(conninfo, size=1, application_name="bloomd restore") as pool, pool.connection() as connection:
        with explained():
            await migrate(connection, MIGRATIONS, report=lambda line: print(f"  repaired: {line}"))


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
