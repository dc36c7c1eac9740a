"""Going back: in order, one transaction each, agreed beforehand. And a migration gives way to who uses its table."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio
from polling import eventually, one

from bloomd.errors import Misconfigured, Unavailable
from bloomd.postgres import Connection
from bloomd.postgres import migrate as module
from bloomd.postgres.migrate import Plan, migrate, migrate_to, plan, status
from bloomd.postgres.migrations import Migration, load

TABLE = Migration(
    1,
    "table",
    "ALTER TABLE t ALTER n SET DEFAULT 7;",
    Migration(
        1,
        "table",
        "DO $$ BEGIN EXECUTE 'ALTER TABLE t ALTER n SET DEFAULT ' || (SELECT value FROM noted); END $$;\n"
        "DROP TABLE noted;",
    ),
    before="CREATE TABLE noted AS SELECT column_default value FROM information_schema.columns WHERE table_name = 't'",
)
ROWS = Migration(
    2,
    "rows",
    "CREATE TABLE r AS SELECT generate_series(1, 5) AS n;",
    Migration(
        2,
        "rows",
        "-- loses: numbers\n--  FROM r WHERE n > 2\n-- loses: large numbers\n--  FROM r WHERE n > 9\n"
        "DROP TABLE r;\nDO $$ BEGIN RAISE NOTICE 'gone'; END $$;",
    ),
)
INDEX = Migration(
    3,
    "index",
    "-- transaction: none\nDROP INDEX CONCURRENTLY IF EXISTS t_n;\nCREATE INDEX CONCURRENTLY t_n ON t (n);",
    Migration(3, "index", "-- transaction: none\nDROP INDEX CONCURRENTLY IF EXISTS t_n;"),
)
ALL = [TABLE, ROWS, INDEX]


def silent(_: str) -> None:
    pass


@pytest.fixture
async def migrated(connection: Connection[Any]) -> Connection[Any]:
    await connection.execute("CREATE TABLE t (n int DEFAULT 5)")
    await migrate(connection, ALL, silent)
    return connection


async def versions(connection: Connection[Any]) -> Any:
    return await one(connection, "SELECT array_agg(version ORDER BY version) FROM bloomd_migrations")


async def test_back_in_order_and_forward_again(migrated: Connection[Any]) -> None:
    seen: list[object] = []
    undone: list[Migration] = []

    async def agree(way: Plan) -> None:
        seen.append(way)
        assert await versions(migrated) == [1, 2, 3], "nothing has happened yet"

    way = await migrate_to(migrated, ALL, 1, report=seen.append, agree=agree, undone=undone.append)
    assert seen == [way, "gone"]
    assert undone == [INDEX, ROWS] == list(way.back)
    assert [str(loss) for loss in way.losses] == ["numbers (3)"]
    assert await versions(migrated) == [1]
    assert await one(migrated, "SELECT to_regclass('t_n') IS NULL AND to_regclass('r') IS NULL")

    assert (await migrate_to(migrated, ALL, 2, report=silent)).forward == (ROWS,)
    assert await migrate(migrated, ALL, silent) == [INDEX]
    assert await versions(migrated) == [1, 2, 3]
    assert (await migrate_to(migrated, ALL, 3, report=silent)) == Plan((), (), ())


async def test_what_was_noted_before_is_back_at_0_and_no_record_is_left(migrated: Connection[Any]) -> None:
    await migrate_to(migrated, ALL, 0, report=silent)
    assert await one(migrated, "SELECT array_agg(tablename::text) FROM pg_tables WHERE schemaname = 'public'") == ["t"]
    assert await one(migrated, "INSERT INTO t DEFAULT VALUES RETURNING n") == 5
    assert (await migrate_to(migrated, ALL, 0, report=silent)) == Plan((), (), ())
    assert await one(migrated, "SELECT to_regclass('bloomd_migrations')") is None
    assert await migrate(migrated, ALL, silent) == ALL


async def test_an_error_on_the_way_back_keeps_what_was_undone_and_nothing_of_itself(migrated: Connection[Any]) -> None:
    broken = Migration(2, "rows", ROWS.sql, Migration(2, "rows", "DROP TABLE r; SELECT 1 / 0;"))
    with pytest.raises(psycopg.errors.DivisionByZero):
        await migrate_to(migrated, [TABLE, broken, INDEX], 0, report=silent)
    assert await versions(migrated) == [1, 2]
    assert await one(migrated, "SELECT count(*) FROM r") == 5


async def test_who_does_not_agree_changes_nothing(migrated: Connection[Any]) -> None:
    async def refuse(way: Plan) -> None:
        raise Misconfigured("no")

    with pytest.raises(Misconfigured, match="no"):
        await migrate_to(migrated, ALL, 0, report=silent, agree=refuse)
    assert await versions(migrated) == [1, 2, 3]
    assert await one(migrated, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


@pytest.mark.parametrize(
    ("known", "to", "reason"),
    [
        (
            [TABLE, Migration(2, "rows", ROWS.sql), INDEX],
            1,
            "no way back from migration 0002 rows: nothing was changed",
        ),
        (
            [TABLE, Migration(2, "rows", ROWS.sql + " "), INDEX],
            2,
            "in another form than this program has: .* 0002 rows",
        ),
        (ALL[:2], 1, r"version 3\) is newer than this program knows \(version 2\)"),
        (ALL, 4, "no schema 4: this program knows those from 0 to 3"),
        (ALL, -1, "no schema -1"),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_changed(
    migrated: Connection[Any], known: list[Migration], to: int, reason: str
) -> None:
    for attempt in (plan(migrated, known, to), migrate_to(migrated, known, to, report=silent)):
        with pytest.raises(Misconfigured, match=reason):
            await attempt
    assert await versions(migrated) == [1, 2, 3]


async def test_a_version_with_no_way_back_below_the_target_does_not_matter(migrated: Connection[Any]) -> None:
    final = Migration(1, "table", TABLE.sql)
    assert (await plan(migrated, [final, ROWS, INDEX], 1)).back == (INDEX, ROWS)


async def test_it_gives_way_to_who_waits_behind_it(
    database: str, migrated: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody reads the table for long. Who comes next waits behind the migration, but not for as long as it does."""
    assert module.LOCK_TIMEOUT_MS <= 2000, "the others wait so long"
    monkeypatch.setattr(module, "LOCK_TIMEOUT_MS", 300)
    monkeypatch.setattr(module, "GIVE_WAY_SECONDS", 0.1)
    monkeypatch.setattr(module, "LOCK_ATTEMPTS", 1000)
    assert TABLE.back
    noisy = replace(TABLE.back, sql=f"DO $$ BEGIN RAISE NOTICE 'back'; END $$; {TABLE.back.sql}")
    known = [replace(TABLE, back=noisy), ROWS, INDEX]
    reports: list[str] = []
    await migrate_to(migrated, ALL, 1, report=silent)
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
    async with await Connection.connect(database) as reader, await Connection.connect(database) as other:
        async with trio.open_nursery() as nursery, reader.transaction():
            await reader.execute("SELECT * FROM t")

            async def back() -> None:
                await migrate_to(migrated, known, 0, report=reports.append)

            async def is_waiting() -> object:
                return await one(other, waiting)

            nursery.start_soon(back)
            await eventually(is_waiting)
            with trio.fail_after(15):
                await other.execute("SELECT * FROM t")
            assert await status(other, ALL)
        assert await one(other, "SELECT to_regclass('bloomd_migrations')") is None, (
            "once the reader is gone, it goes on"
        )
    assert reports == ["back"], "however often it was tried"


async def test_its_patience_ends_and_says_why(
    database: str, migrated: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_TIMEOUT_MS", 50)
    monkeypatch.setattr(module, "GIVE_WAY_SECONDS", 0.0)
    monkeypatch.setattr(module, "LOCK_ATTEMPTS", 3)
    async with await Connection.connect(database) as reader, reader.transaction():
        await reader.execute("SELECT * FROM r")
        with (
            trio.fail_after(20),
            pytest.raises(Unavailable, match="0002 rows needs a table that another session did not let go of"),
        ):
            await migrate_to(migrated, ALL, 0, report=silent)
    assert await versions(migrated) == [1, 2]
    assert await one(migrated, "SHOW lock_timeout") == "0"


def test_ways_back_are_files_beside_the_migrations(tmp_path: Path) -> None:
    for directory in ("back", "before"):
        (tmp_path / directory).mkdir()
    for migration in ALL:
        name = f"{migration.version:04}_{migration.name}.sql"
        (tmp_path / name).write_text(migration.sql)
        (tmp_path / "before" / name).write_text(migration.before)
        assert migration.back
        (tmp_path / "back" / name).write_text(migration.back.sql)
    assert load(tmp_path) == ALL
    assert load(tmp_path)[0].checksum == Migration(1, "table", TABLE.sql).checksum
    (tmp_path / "back" / "0004_lonely.sql").write_text("")
    with pytest.raises(ValueError, match=r"0004_lonely\.sql: there is no migration of this name"):
        load(tmp_path)
