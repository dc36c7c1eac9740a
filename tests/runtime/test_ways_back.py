"""Every migration's way back: the schema before it, to the letter of `pg_dump`, and the rows that were in it."""

import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
import pytest

from bloomd.errors import Misconfigured
from bloomd.objects.contents import Contents
from bloomd.postgres import Connection, Pool
from bloomd.postgres.migrate import migrate, migrate_to, plan
from bloomd.postgres.migrations import Migration
from bloomd.runtime import artifacts, completion, keys, leases, projects, tasks, tokens, uploads, workers
from bloomd.runtime.database import Database
from bloomd.runtime.model import Completion, NewPolicy, NewTask, NewWorker, Retry
from bloomd.runtime.pages import Page
from bloomd.runtime.projects import NewProject
from bloomd.runtime.schema import MIGRATIONS, refuse_while_in_use
from bloomd.runtime.uploads import NewArtifact
from bloomd.settings.model import Minio

NOWHERE = Contents(Minio)  # no object store

LATEST = MIGRATIONS[-1].version
TABLES = re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", MIGRATIONS[0].sql)

# Of what the guards change, as the Node.js runtime may have had it: other types, its own defaults, no nulls.
STRICT = """
ALTER TABLE llm_tasks
    ALTER COLUMN context_id TYPE text,     ALTER COLUMN context_id SET NOT NULL,
    ALTER COLUMN status     TYPE text,     ALTER COLUMN status     SET NOT NULL,
    ALTER COLUMN status     SET DEFAULT 'queued',
    ALTER COLUMN policy     SET DEFAULT '{"budget": 0, "timeout_sec": 120}', ALTER COLUMN policy SET NOT NULL,
    ALTER COLUMN max_attempts SET DEFAULT 3;
ALTER TABLE runtime_artifacts ALTER COLUMN finalized SET DEFAULT false, ALTER COLUMN finalized SET NOT NULL;
ALTER TABLE workers ALTER COLUMN node_id SET NOT NULL, ALTER COLUMN db_sha TYPE text,
                    ALTER COLUMN db_sha SET DEFAULT '-';
ALTER TABLE runtime_settings ALTER COLUMN value SET NOT NULL;
ALTER TABLE managed_projects ALTER COLUMN name SET NOT NULL, ALTER COLUMN clone_status SET DEFAULT 'pending';
"""
# An early version of it had fewer tables; and there may be a table of somebody else.
EARLY = "DROP TABLE managed_projects, project_node_status; CREATE TABLE sessions (sid varchar PRIMARY KEY, sess json)"


def schema_of(conninfo: str) -> str:
    pg_dump = shutil.which("pg_dump")
    assert pg_dump, "this needs the client programs of PostgreSQL"
    dump = subprocess.run([pg_dump, "-s", conninfo], check=True, capture_output=True, text=True).stdout
    return re.sub(r"^\\(un)?restrict \w+$", "", dump, flags=re.MULTILINE)  # a random word in each dump


@pytest.fixture
async def connection(database: str) -> AsyncIterator[Connection[Any]]:
    async with Pool(database, size=1, application_name="test") as pool, pool.connection() as connection:
        yield connection


def silent(_: str) -> None:
    pass


async def test_each_way_back_gives_the_schema_before_it(database: str, connection: Connection[Any]) -> None:
    before: dict[int, str] = {}
    for migration in MIGRATIONS:
        before[migration.version] = schema_of(database)
        await migrate_to(connection, MIGRATIONS, migration.version, report=silent)
    latest = schema_of(database)
    for migration in reversed(MIGRATIONS[1:]):
        way = await migrate_to(connection, MIGRATIONS, migration.version - 1, report=silent)
        assert (way.back, way.forward) == ((migration,), ())
        assert schema_of(database) == before[migration.version], migration
    await migrate(connection, MIGRATIONS, report=silent)
    assert schema_of(database) == latest


@pytest.mark.parametrize("todays", ["", STRICT, EARLY], ids=["loose", "strict", "early"])
async def test_the_way_to_0_gives_the_schema_of_the_nodejs_runtime(
    database: str, connection: Connection[Any], todays: str
) -> None:
    with psycopg.connect(database, autocommit=True) as other:
        other.execute(MIGRATIONS[0].sql.encode())
        other.execute(todays.encode())
    before = schema_of(database)
    for _ in range(2):
        await migrate(connection, MIGRATIONS, report=silent)
        assert schema_of(database) != before
        way = await migrate_to(connection, MIGRATIONS, 0, report=silent)
        assert way.back == tuple(reversed(MIGRATIONS))
        assert schema_of(database) == before


async def test_a_database_that_bloomd_made_ends_with_the_same_tables(
    postgres_server: Any, database: str, connection: Connection[Any]
) -> None:
    await migrate(connection, MIGRATIONS, report=silent)
    await migrate_to(connection, MIGRATIONS, 0, report=silent)
    other = postgres_server.create_database()
    postgres_server.execute(MIGRATIONS[0].sql, dbname=psycopg.conninfo.conninfo_to_dict(other)["dbname"])
    assert schema_of(database) == schema_of(other)
    postgres_server.drop_database(other)


async def test_what_an_earlier_bloomd_did_not_note_is_named(database: str, connection: Connection[Any]) -> None:
    await migrate_to(connection, MIGRATIONS, 13, report=silent)
    await connection.execute("DROP TABLE bloomd_adopted")
    await migrate(connection, MIGRATIONS, report=silent)
    latest = schema_of(database)
    for version in (15, 4):
        way = await plan(connection, MIGRATIONS, version)
        assert ("NOT NULL and defaults" in str([*map(str, way.losses)])) == (version == 4)
        await migrate_to(connection, MIGRATIONS, version, report=silent)
        await migrate(connection, MIGRATIONS, report=silent)
        assert schema_of(database) == latest
    await migrate_to(connection, MIGRATIONS, 0, report=silent)
    made = "SELECT count(*) FROM information_schema.columns WHERE table_name = 'llm_tasks' AND is_nullable = 'YES'"
    assert await (await connection.execute(made)).fetchone() == (13,)


# From 0019 on, an output stands in the artifact only that is made of it.
OUTPUT = """
DO $$ BEGIN
    IF EXISTS (SELECT FROM information_schema.columns WHERE column_name = 'output_shared') THEN
        UPDATE llm_results SET output = content FROM runtime_artifacts AS a WHERE a.id = artifact_id AND output_shared;
    END IF;
END $$
"""


@pytest.fixture
def rows(conninfo: str) -> Callable[[], dict[str, Any]]:
    """What is in the Node.js runtime's columns, of all its tables."""
    columns = {
        table: ", ".join(re.findall(r"^    (\w+) ", body, re.MULTILINE))
        for table, body in re.findall(r"CREATE TABLE IF NOT EXISTS (\w+) \((.+?)\n\);", MIGRATIONS[0].sql, re.DOTALL)
    }
    assert list(columns) == TABLES

    def run() -> dict[str, Any]:
        with psycopg.connect(conninfo) as connection, connection.transaction(force_rollback=True):
            connection.execute(OUTPUT)
            return {
                table: connection.execute(f"SELECT {columns[table]} FROM {table} ORDER BY 1".encode()).fetchall()
                for table in TABLES
            }

    return run


TEXT = "a" + "щось " * 250_000  # the first of its pieces ends within a letter
BINARY = b"\0\xff" * 10


@pytest.fixture
async def filled(db: Database, sql: Callable[..., list[tuple[Any, ...]]]) -> dict[str, str]:
    """Every table has something in it, most of it by way of the rules; the ids of three artifacts."""
    await workers.register(
        db, NewWorker(name="w1"), capabilities={"claude_cli": True, "max_concurrency": 4, "labels": ["gpu"]}, actor="t"
    )
    wanted = [
        NewTask(
            prompt="a",
            context_id="c",
            priority=5,
            labels=["gpu"],
            idempotency_key="k",
            policy=NewPolicy(timeout_sec=60),
        ),
        NewTask(prompt="b", pinned_worker_id="w1"),
        NewTask(prompt="c", not_before=253_402_300_799_000),
        NewTask(prompt="d", context_hints=["h"], desired_format="json"),
    ]
    first, second, _, last = [made.task for made in await tasks.create(db, wanted, actor="t")]
    held = (await leases.lease(db, first.id, actor="t")).lease
    ids: dict[str, str] = {}
    for name, content in {"short": b"x", "long": TEXT.encode(), "binary": BINARY}.items():
        pieces = [content, b""]

        async def read(pieces: list[bytes] = pieces) -> bytes:
            return pieces.pop(0)

        said = NewArtifact(lease_id=held.id, name=name, content_type="text/x")
        ids[name] = (await uploads.upload(db, said, read, actor="t")).artifact.id
    done = Completion(status="success", lease_id=held.id, output="result")
    await completion.complete(db, first.id, done, retry=Retry(), actor="t")
    await leases.lease(db, second.id, actor="t")
    project = await projects.create(db, NewProject(name="p", repo_url="https://h/x"), actor="t")
    await keys.add(db, "k", actor="t")
    await tokens.add(db, "w1", actor="t")
    await tokens.enrol(db, "w2", actor="t")
    sql("INSERT INTO project_node_status (project_id, node_id, clone_status) VALUES (%s, 'w1', 'cloned')", project.id)
    sql("INSERT INTO users (username, password) VALUES ('u', 'p')")
    sql("INSERT INTO runtime_settings VALUES ('admin_key', 'secret')")
    sql("UPDATE queue_state SET paused = true, reason = 'test'")
    sql("UPDATE workers SET cordoned = true")
    sql("UPDATE leases SET deadline_at = expires_at WHERE status = 'active'")
    sql("UPDATE llm_tasks SET progress = '{}', priority = 5, labels = '[\"gpu\"]' WHERE id = %s", last.id)
    sql("INSERT INTO leaders VALUES ('leader', 'h', 'n1', 3, 0, 1)")
    sql("INSERT INTO conversations VALUES (md5('c'), 'w1', 1) ON CONFLICT DO NOTHING")
    sql("INSERT INTO membridge_agents (name, url, said, registered_at) VALUES ('w1', '', 'online', 1)")
    sql("INSERT INTO membridge_projects VALUES ('e5', 'p', 'manual', 1)")
    sql("INSERT INTO membridge_nodes VALUES ('e5', 'w1', NULL, NULL, NULL, '[]', 1, 1)")
    sql("INSERT INTO membridge_leaderships VALUES ('e5', 'w1', 1, 1, 2)")
    sql("INSERT INTO membridge_jobs VALUES ('j', 'push', 'p', 'e5', 'w1', 'done', '', 1, 2)")
    sql("INSERT INTO session_secret (secret) VALUES ('s')")
    sql("INSERT INTO ended_sessions VALUES ('s', 253402300799000)")
    sql("INSERT INTO objects_left VALUES ('minio://b/k', 1)")
    sql("INSERT INTO backup_schedule (at, since) VALUES ('03:30', 1)")
    sql("INSERT INTO backups (id, node, file, due_at, started_at) VALUES ('b', 'n', '/f', 1, 1)")
    sql("INSERT INTO samples VALUES (1, 1, 1, 1, 1, 1, 1, 1, 1, 1)")
    return ids


async def test_no_row_of_the_nodejs_runtimes_columns_is_lost(
    db: Database, conninfo: str, sql: Callable[..., Any], rows: Callable[..., Any], filled: dict[str, str]
) -> None:
    every = [name for (name,) in sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")]
    empty = [name for name in every if not sql(f"SELECT EXISTS (SELECT FROM {name})")[0][0]]
    assert empty == ["bloomd_adopted"], "nothing was adopted; any other table is to be filled above"
    before = rows()
    async with Pool(conninfo, size=1, application_name="test") as pool, pool.connection() as connection:
        await migrate_to(connection, MIGRATIONS, 0, report=silent)
        assert {name for (name,) in sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")} == set(TABLES)
        content = dict(sql("SELECT id, content FROM runtime_artifacts"))
        assert [content[filled[name]] for name in ("short", "long", "binary")] == ["x", TEXT, None]
        sql("UPDATE runtime_artifacts SET content = NULL WHERE id = %s", filled["long"])
        assert rows() == before
        sql("UPDATE runtime_artifacts SET content = %s WHERE id = %s", TEXT, filled["long"])

        report: list[str] = []
        await migrate(connection, MIGRATIONS, report=report.append)
        assert report == [], "nothing had to be repaired"
    sql("UPDATE runtime_artifacts SET content = NULL WHERE id = %s", filled["long"])
    assert rows() == before
    sql("UPDATE runtime_artifacts SET content = %s WHERE id = %s", TEXT, filled["long"])
    assert (await artifacts.content(db, NOWHERE, filled["long"])).size == len(TEXT.encode())
    # The rules go on with what is there: the attempt under way ends, and another one begins.
    [running] = await leases.listing(db, Page(), status="active")
    await completion.complete(db, running.task_id, Completion(status="success"), retry=Retry(), actor="t")
    [queued, *_] = await tasks.listing(db, Page(), status="queued")
    assert (await leases.lease(db, queued.id, actor="t")).lease.worker_id == "w1"


async def test_each_step_back_and_forward_keeps_the_rows(
    conninfo: str, rows: Callable[..., Any], sql: Callable[..., Any], filled: dict[str, str]
) -> None:
    sql("DELETE FROM artifact_pieces WHERE artifact_id = %s", filled["long"])
    before = rows()
    async with Pool(conninfo, size=1, application_name="test") as pool, pool.connection() as connection:
        for version in range(LATEST - 1, -1, -1):
            for to in (version, version + 1, version):
                await migrate_to(connection, MIGRATIONS, to, report=silent)
                assert rows() == before, to


async def test_what_is_lost_is_told_beforehand(conninfo: str, sql: Callable[..., Any], filled: dict[str, str]) -> None:
    sql("UPDATE runtime_artifacts SET url = 'minio://b/r', content = NULL WHERE name = 'result'")
    async with Pool(conninfo, size=1, application_name="test") as pool, pool.connection() as connection:
        way = await plan(connection, MIGRATIONS, 0)
    told = {loss.what: loss.rows for loss in way.losses}
    every = [what for migration in MIGRATIONS if migration.back for what, _ in migration.back.loses]
    kept = {what for what in every if what.startswith(("NOT NULL and defaults", "error messages"))}
    assert set(every) - set(told) == kept, "everything is filled but these"
    assert told["named API keys: only the one in the configuration is left"] == 1
    assert told["labels of tasks that have not ended: any worker takes them"] == 1


async def test_an_empty_database_loses_nothing(conninfo: str) -> None:
    async with Pool(conninfo, size=1, application_name="test") as pool, pool.connection() as connection:
        assert (await plan(connection, MIGRATIONS, 0)).losses == ()


@pytest.mark.parametrize("migration", MIGRATIONS, ids=str)
def test_every_table_that_goes_is_counted(migration: Migration) -> None:
    assert migration.back
    derived = {"tallies", "leaders", "uploads", "bloomd_adopted"}
    gone = re.findall(r"^DROP TABLE (?:IF EXISTS )?(.+);", migration.back.sql, re.MULTILINE)
    tables = {table for names in gone for table in names.split(", ")} - derived
    assert tables <= set(re.findall(r"\w+", " ".join(source for _, source in migration.back.loses)))
    comments = re.findall(r"^-- (?:loses:| FROM).*", migration.back.sql, re.MULTILINE)
    assert len(comments) == 2 * len(migration.back.loses), "each is read"


async def test_it_is_refused_while_a_bloomd_is_there(conninfo: str, sql: Callable[..., Any]) -> None:
    async with Pool(conninfo, size=1, application_name="bloomd migrate") as pool, pool.connection() as connection:
        await refuse_while_in_use(connection)
        async with Pool(conninfo, size=1) as daemon, daemon.connection():
            with pytest.raises(Misconfigured, match="connected from this machine; stop it first"):
                await refuse_while_in_use(connection)
        sql("INSERT INTO leaders VALUES ('leader', 'h', 'alpha', 1, 0, bloom_now_ms() + 5000)")
        with pytest.raises(Misconfigured, match="the node alpha leads"):
            await refuse_while_in_use(connection)
        for end in ("bloom_now_ms()", "bloom_now_ms() + 86400000"):
            sql(f"UPDATE leaders SET expires_at = {end}")
            await refuse_while_in_use(connection)
        await migrate_to(connection, MIGRATIONS, 7, report=silent)
        await refuse_while_in_use(connection)
