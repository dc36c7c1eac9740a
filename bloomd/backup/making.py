"""Makes a backup: one snapshot of the database, dumped and counted, and the files of the configuration.

A session exports the snapshot and stays in its transaction; pg_dump reads by it, and so do the counts. Whoever writes
meanwhile does not wait, and nothing of what he writes is in the archive.
"""

import socket
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import trio
from psycopg import sql

from bloomd import __version__
from bloomd.backup.archive import DUMP, FORMAT, HEAD, WARNING, Head, Writer, writing
from bloomd.backup.programs import output, target
from bloomd.backup.progress import Progress
from bloomd.errors import Misconfigured
from bloomd.postgres import Connection, Pool, binaries
from bloomd.postgres.migrate import status
from bloomd.runtime.schema import MIGRATIONS

TABLES = """
SELECT nspname, relname
  FROM pg_class
  JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE relkind IN ('r', 'p')
   AND nspname !~ '^pg_|^information_schema$'
 ORDER BY 1, 2
"""


async def back_up(conninfo: str, file: Path, *, configuration: list[Path], force: bool) -> None:
    """Make the archive `file`.

    Raises:
        Unavailable: the database is away, pg_dump failed, or the file cannot be written.
        Misconfigured: the file is there already, or this machine's pg_dump is too old.
    """
    with writing(file, force=force) as writer:
        async with Pool(conninfo, size=1, application_name="bloomd backup") as pool, pool.connection() as connection:
            await connection.execute("SET idle_in_transaction_session_timeout = 0")
            await connection.execute("SET statement_timeout = 0")
            await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            try:
                rows = await _database(connection, conninfo, writer)
            finally:
                await connection.clean_up("ROLLBACK")
        progress = Progress("configuration")
        places: dict[str, str] = {}
        for number, path in enumerate(configuration, 1):
            name = f"configuration/{number}-{path.name}"
            data = _read(path)
            writer.add(name, data)
            places[name] = str(path.absolute())
            progress.passed(len(data))
        if configuration:
            progress.ended()
        writer.seal(rows=rows, configuration=places)


async def _database(connection: Connection[Any], conninfo: str, writer: Writer) -> dict[str, int]:
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
    )
    writer.add(HEAD, msgspec.json.format(msgspec.json.encode(head)))
    progress = Progress("database")
    where, environment = target(conninfo)
    command = [program, "--format=custom", "--no-password", f"--snapshot={snapshot}", f"--dbname={where}"]
    writer.begin(DUMP)
    async with aclosing(output(command, environment=environment)) as dump:
        async for data in dump:
            await trio.to_thread.run_sync(writer.write, data)
            progress.passed(len(data))
    writer.end()
    progress.ended()
    return await counts(connection)


async def counts(connection: Connection[Any]) -> dict[str, int]:
    """How many rows each table has, as this connection's transaction sees them."""
    found: dict[str, int] = {}
    for schema, name in await (await connection.execute(TABLES)).fetchall():
        counting = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(schema, name))
        [found[f"{schema}.{name}"]] = await (await connection.execute(counting)).fetchone() or (0,)
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Misconfigured(f"{path}: {error.strerror}") from error
