from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio
from polling import eventually, one

from bloomd.errors import Misconfigured
from bloomd.postgres import Connection, Pool
from bloomd.postgres.migrate import LOCK_KEY, migrate, status
from bloomd.postgres.migrations import Migration, load

TABLE = Migration(1, "table", "CREATE TABLE t (n int);")
ROWS = Migration(2, "rows", "INSERT INTO t SELECT generate_series(1, 5);\nDO $$ BEGIN RAISE NOTICE '5 rows'; END $$;")
INDEX = Migration(
    3,
    "index",
    "-- transaction: none\n"
    "-- one that a crash left half built is of no use; it goes\n"
    "DROP INDEX CONCURRENTLY IF EXISTS t_n;\n"
    "CREATE INDEX CONCURRENTLY t_n\n    ON t (n);\n",
)
ALL = [TABLE, ROWS, INDEX]


def silent(_: str) -> None:
    pass


async def test_from_nothing_to_the_latest_and_no_further(connection: Connection[Any]) -> None:
    before = await status(connection, ALL)
    assert (before.current, before.latest, before.pending, before.newer) == (0, 3, tuple(ALL), False)
    assert await one(connection, "SELECT to_regclass('bloomd_migrations')") is None, "to look changes nothing"

    assert await migrate(connection, ALL[:1], silent) == [TABLE]
    assert await migrate(connection, ALL, silent) == [ROWS, INDEX]
    assert await migrate(connection, ALL, silent) == []

    after = await status(connection, ALL)
    assert (after.current, after.latest, after.pending, after.newer) == (3, 3, (), False)
    rows = await connection.execute("SELECT version, name, checksum FROM bloomd_migrations ORDER BY version")
    assert await rows.fetchall() == [(m.version, m.name, m.checksum) for m in ALL]
    assert await one(connection, "SELECT indisvalid FROM pg_index WHERE indexrelid = 't_n'::regclass")


async def test_what_a_migration_repaired_is_reported(connection: Connection[Any]) -> None:
    noisy = Migration(1, "noisy", "CREATE TABLE t (); CREATE TABLE IF NOT EXISTS t ();" + ROWS.sql.split("\n")[1])
    await connection.execute("SET client_min_messages = error")
    reports: list[str] = []
    await migrate(connection, [noisy], reports.append)
    assert reports == ["5 rows"], "and not that a table already exists"


async def test_a_statement_timeout_is_not_for_migrations(database: str) -> None:
    slow = Migration(1, "slow", "SELECT pg_sleep(0.2)")
    async with Pool(database, size=1, statement_timeout=0.05) as pool, pool.connection() as connection:
        assert await migrate(connection, [slow], silent) == [slow]
        assert await one(connection, "SHOW statement_timeout") == "50ms"


async def test_an_error_in_the_middle_keeps_what_is_before_and_nothing_of_itself(connection: Connection[Any]) -> None:
    broken = Migration(2, "broken", "INSERT INTO t VALUES (1); SELECT 1 / 0;")
    with pytest.raises(psycopg.errors.DivisionByZero):
        await migrate(connection, [TABLE, broken], silent)
    assert (await status(connection, [TABLE, broken])).pending == (broken,)
    assert await one(connection, "SELECT count(*) FROM t") == 0
    assert await migrate(connection, [TABLE, ROWS], silent) == [ROWS], "the lock is free"


async def test_a_killed_session_in_the_middle(database: str, connection: Connection[Any]) -> None:
    stuck = Migration(2, "stuck", "INSERT INTO t VALUES (1); SELECT pg_sleep(600);")
    victim = await Connection.connect(database)

    async def die() -> None:
        with pytest.raises(psycopg.OperationalError):
            await migrate(victim, [TABLE, stuck], silent)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(die)

        async def killed() -> bool:
            kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
            return bool((await connection.execute(kill, [victim.info.backend_pid])).rowcount)

        await eventually(killed)
    await victim.close()
    assert await migrate(connection, [TABLE, ROWS], silent) == [ROWS]
    assert await one(connection, "SELECT count(*) FROM t") == 5


async def test_an_interrupted_concurrent_index_is_repeated(database: str, connection: Connection[Any]) -> None:
    await migrate(connection, [TABLE, ROWS], silent)
    async with await Connection.connect(database) as blocker, blocker.transaction():
        await blocker.execute("INSERT INTO t VALUES (6)")
        with trio.move_on_after(0.2) as scope:
            await migrate(connection, ALL, silent)
        assert scope.cancelled_caught
    assert await one(connection, "SELECT indisvalid FROM pg_index WHERE indexrelid = 't_n'::regclass") is False
    assert await migrate(connection, ALL, silent) == [INDEX]
    assert await one(connection, "SELECT indisvalid FROM pg_index WHERE indexrelid = 't_n'::regclass")


async def test_nodes_that_race(database: str) -> None:
    applied: list[Migration] = []

    async def node() -> None:
        async with await Connection.connect(database) as connection:
            applied.extend(await migrate(connection, ALL, silent))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(node)
    assert applied == ALL


async def test_waiting_for_another_node_can_be_cancelled_and_leaves_no_lock(
    database: str, connection: Connection[Any]
) -> None:
    async with await Connection.connect(database) as other:
        await other.execute("SELECT pg_advisory_lock(%s)", [LOCK_KEY])
        with trio.move_on_after(0.3) as scope:
            await migrate(connection, ALL, silent)
        assert scope.cancelled_caught
        assert await one(connection, "SELECT to_regclass('t')") is None
        await other.execute("SELECT pg_advisory_unlock(%s)", [LOCK_KEY])
        with trio.move_on_after(0.3):
            await migrate(connection, [Migration(1, "slow", "SELECT pg_sleep(600)")], silent)
        held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        assert await one(other, held) == 0


async def test_a_newer_schema_is_refused(connection: Connection[Any]) -> None:
    await migrate(connection, ALL, silent)
    assert (await status(connection, ALL[:2])).newer
    with pytest.raises(Misconfigured, match=r"version 3\) is newer than this program knows \(version 2\)"):
        await migrate(connection, ALL[:2], silent)


async def test_a_changed_migration_is_refused(connection: Connection[Any]) -> None:
    await migrate(connection, ALL[:2], silent)
    changed = Migration(1, "table", TABLE.sql + " -- better")
    assert (await status(connection, [changed, ROWS])).changed == (changed,)
    with pytest.raises(Misconfigured, match="0001 table"):
        await migrate(connection, [changed, ROWS, INDEX], silent)
    assert (await status(connection, ALL)).pending == (INDEX,)


def test_files_become_migrations_in_order(tmp_path: Path) -> None:
    for migration in reversed(ALL):
        (tmp_path / f"{migration.version:04}_{migration.name}.sql").write_text(migration.sql)
    (tmp_path / "README").write_text("not a migration")
    assert load(tmp_path) == ALL
    assert [m.in_transaction for m in load(tmp_path)] == [True, True, False]
    assert INDEX.statements == ["DROP INDEX CONCURRENTLY IF EXISTS t_n", "CREATE INDEX CONCURRENTLY t_n\n    ON t (n)"]


@pytest.mark.parametrize("name", ["1_short.sql", "0001-dash.sql", "0003_twice.sql"])
def test_a_file_that_is_no_migration_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "0003_index.sql").write_text("SELECT 1")
    (tmp_path / name).write_text("SELECT 1")
    with pytest.raises(ValueError, match="NNNN_name"):
        load(tmp_path)


async def test_who_waits_does_not_hold_up_a_concurrent_index(database: str) -> None:
    """Waiting nodes hold no snapshot, which a concurrent index build would wait for, and it for them."""
    async with await Connection.connect(database) as first, await Connection.connect(database) as second:
        slow = Migration(1, "slow", "CREATE TABLE t (n int); SELECT pg_sleep(0.3);")
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(migrate, first, [slow, INDEX], silent))
                await trio.sleep(0.05)
                nursery.start_soon(partial(migrate, second, [slow, INDEX], silent))
