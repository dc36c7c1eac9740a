"""A database that today's runtime left behind: its tables without any guard, and rows in impossible states."""

import psycopg
import pytest

from bloomd.postgres import Pool
from bloomd.postgres.migrate import migrate, status
from bloomd.runtime import artifacts, expiry, leases, tasks, workers
from bloomd.runtime.database import Database
from bloomd.runtime.model import Retry
from bloomd.runtime.pages import Page
from bloomd.runtime.schema import MIGRATIONS

# As the Node.js program's own migration makes them (contract, section 7): no foreign keys, no indexes, no constraints.
TABLES = """
CREATE TABLE llm_tasks (id varchar PRIMARY KEY, context_id varchar NOT NULL, agent_slug varchar NOT NULL,
    prompt text NOT NULL, context_hints jsonb, policy jsonb, desired_format varchar, status varchar NOT NULL,
    created_at bigint NOT NULL, updated_at bigint NOT NULL, lease_id varchar, worker_id varchar, attempts integer,
    max_attempts integer);
CREATE TABLE leases (id varchar PRIMARY KEY, task_id varchar NOT NULL, worker_id varchar NOT NULL,
    started_at bigint NOT NULL, expires_at bigint NOT NULL, ttl_seconds integer NOT NULL, status varchar NOT NULL,
    last_heartbeat bigint, context_id varchar);
CREATE TABLE workers (id varchar PRIMARY KEY, node_id varchar, url varchar, status varchar NOT NULL, capabilities jsonb,
    last_heartbeat bigint, ip_addrs jsonb, obs_count integer, db_sha varchar, registered_at bigint,
    active_leases integer, agent_version varchar, os_info varchar, install_method varchar);
CREATE TABLE runtime_artifacts (id varchar PRIMARY KEY, task_id varchar NOT NULL, job_id varchar, type varchar NOT NULL,
    created_at bigint NOT NULL, finalized boolean, url varchar, entity_refs jsonb, tags jsonb, content text);
CREATE TABLE llm_results (id varchar PRIMARY KEY, task_id varchar NOT NULL, worker_id varchar, artifact_id varchar,
    status varchar NOT NULL, output text, error_message text, metrics jsonb, completed_at bigint NOT NULL);
CREATE TABLE audit_logs (id varchar PRIMARY KEY, timestamp bigint NOT NULL, action varchar NOT NULL,
    entity_type varchar NOT NULL, entity_id varchar NOT NULL, actor varchar NOT NULL, detail text);
CREATE TABLE runtime_settings (key varchar PRIMARY KEY, value text NOT NULL);
CREATE TABLE users (id varchar PRIMARY KEY DEFAULT gen_random_uuid(), username text NOT NULL UNIQUE,
    password text NOT NULL);
"""

ROWS = """
INSERT INTO workers (id, url, status, capabilities, active_leases, registered_at) VALUES
    ('w1', 'http://10.0.0.1:8001', 'online', '{"claude_cli": true, "max_concurrency": 2, "labels": []}', 7, 1000),
    ('w2', NULL, 'busy', NULL, NULL, NULL);
INSERT INTO llm_tasks VALUES
    ('two-leases', 'c', 'a', 'p', '[]', '{"timeout_sec": 60, "budget": 5}', 'text', 'leased', 1, 1, 'l1', 'w1', 1, 3),
    ('stranded',   'c', 'a', 'p', '[]', '{"timeout_sec": 60, "budget": 0}', 'json', 'running', 2, 2, 'l3', 'w1', 1, 3),
    ('last-try',   'c', 'a', 'p', '[]', '{"timeout_sec": 60, "budget": 0}', 'text', 'running', 3, 3, 'l4', 'w1', 3, 3),
    ('done',       'c', 'a', 'p', NULL, NULL, NULL, 'completed', 4, 4, 'l5', 'w1', NULL, NULL),
    ('half',       'c', 'a', 'p', '[]', '{"timeout_sec": 1.5, "budget": 0}', 'text', 'queued', 9, 9, NULL, NULL, 0, 3),
    ('odd',        'c', 'a', 'p', '[{"k": 1}, "s"]', '{"timeout_sec": 9999, "budget": "x"}', 'xml', 'paused', 5, 5,
     NULL, NULL, 0, 99),
    ('over-1',     'c', 'a', 'p', '[]', '{"timeout_sec": 60, "budget": 0}', 'text', 'leased', 6, 6, 'l6', 'w1', 1, 3),
    ('over-2',     'c', 'a', 'p', '[]', '{"timeout_sec": 60, "budget": 0}', 'text', 'leased', 7, 7, 'l7', 'w1', 1, 3),
    ('queued',     'c', 'a', 'p', '[]', '{"timeout_sec": 60, "budget": 0}', 'text', 'queued', 8, 8, 'l8', 'w1', 1, 3);
INSERT INTO leases VALUES
    ('l1', 'two-leases', 'w1', 10, 99999999999999, 300, 'active', NULL, 'c'),
    ('l2', 'two-leases', 'w1', 20, 99999999999999, 300, 'active', NULL, 'c'),
    ('l3', 'stranded',   'w1', 10, 20, 300, 'expired', NULL, 'c'),
    ('l4', 'last-try',   'w1', 10, 20, 300, 'expired', NULL, 'c'),
    ('l5', 'done',       'w1', 10, 99999999999999, 300, 'active', NULL, 'c'),
    ('l6', 'over-1',     'w1', 30, 99999999999999, 300, 'active', NULL, 'c'),
    ('l7', 'over-2',     'w1', 40, 99999999999999, 300, 'active', NULL, 'c'),
    ('l8', 'queued',     'w9', 40, 99999999999999, 300, 'active', NULL, 'c');
INSERT INTO runtime_artifacts VALUES
    ('a1', 'done', NULL, 'LLM_RESULT', 5, true, NULL, '[]', '[]', 'привіт'),
    ('a2', 'done', NULL, 'LLM_RESULT', 6, NULL, 'minio://bloom-artifacts/artifacts/done/6.json', NULL, NULL, NULL);
INSERT INTO llm_results VALUES
    ('r1', 'done', 'w1', 'a1', 'success', 'привіт', NULL, '{"duration_ms": 5}', 5),
    ('r2', 'done', 'w1', 'a2', 'success', 'привіт', NULL, '{"duration_ms": 5}', 6);
INSERT INTO audit_logs VALUES ('e1', 5, 'task_completed', 'task', 'done', 'system', NULL);
INSERT INTO runtime_settings VALUES ('membridge_server_url', 'http://127.0.0.1:8000');
"""


@pytest.fixture
def todays(database):
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(TABLES)
        connection.execute(ROWS)
    return database


async def test_a_database_of_todays_runtime_is_adopted_and_the_repairs_reported(todays, epoch):
    report: list[str] = []
    async with Pool(todays, size=2) as pool:
        async with pool.connection() as connection:
            assert (await status(connection, MIGRATIONS)).current == 0
            await migrate(connection, MIGRATIONS, report=report.append)
            assert (await status(connection, MIGRATIONS)).current == MIGRATIONS[-1].version
            assert await migrate(connection, MIGRATIONS, report=report.append) == []
        db = Database()
        db.open(pool)
        found = {task.id: task for task in await tasks.listing(db, Page())}
        assert {id: task.status for id, task in found.items()} == {
            "two-leases": "leased",
            "stranded": "queued",
            "last-try": "dead",
            "done": "completed",
            "odd": "failed",
            "over-1": "leased",
            "over-2": "queued",
            "queued": "queued",
            "half": "queued",
        }
        assert found["two-leases"].lease_id == "l1"
        assert found["odd"].context_hints == ['{"k": 1}', "s"]
        assert found["odd"].policy.timeout_sec == 120
        assert found["odd"].desired_format == "text"
        assert found["odd"].max_attempts == 3
        assert found["queued"].lease_id is None
        assert found["half"].policy.timeout_sec == 120
        active = {lease.id for lease in await leases.listing(db, Page(), status="active")}
        assert active == {"l1", "l6"}
        fleet = {worker.id: worker for worker in await workers.listing(db, Page())}
        assert (fleet["w1"].active_leases, fleet["w1"].url) == (2, "http://10.0.0.1:8001")
        assert (fleet["w2"].status, fleet["w2"].url, fleet["w2"].active_leases) == ("unknown", "", 0)
        assert (await artifacts.one(db, "a1")).size == len("привіт".encode())
        assert (await artifacts.one(db, "a2")).url == "minio://bloom-artifacts/artifacts/done/6.json"
        assert await expiry.expire(db, retry=Retry(), epoch=epoch) == []
    assert report == [
        "3 tasks had missing or impossible values: defaults filled in",
        "1 tasks had context hints that are not text: written as text",
        "1 tasks with an unknown status: now failed",
        "2 workers had missing or impossible values: defaults filled in",
        "2 active leases of tasks that do not run: expired",
        "1 active leases beside another one of the same task: expired",
        "1 active leases beyond their worker's capacity: expired",
        "3 leased or running tasks without an active lease: queued again, or dead",
        "1 queued tasks named a lease: cleared",
        "2 workers had a wrong count of leases: corrected",
        "1 artifacts had missing values: defaults filled in",
    ]


async def test_the_old_programs_inserts_still_work(todays):
    """On the migrated schema the Node.js runtime could be started again: its statements name only its own columns."""
    async with Pool(todays, size=1) as pool, pool.connection() as connection:
        await migrate(connection, MIGRATIONS, report=lambda line: None)
        await connection.execute(
            "INSERT INTO llm_tasks (id, context_id, agent_slug, prompt, context_hints, policy, desired_format, status, "
            "created_at, updated_at, lease_id, worker_id, attempts, max_attempts) "
            "VALUES ('n', 'c', 'a', 'p', '[]', '{\"timeout_sec\": 60, \"budget\": 0}', 'text', 'queued', 1, 1, NULL, "
            "NULL, 0, 3)"
        )
        await connection.execute("INSERT INTO runtime_artifacts (id, task_id, content) VALUES ('an', 'n', 'x')")
        await connection.execute("INSERT INTO workers (id, node_id, status) VALUES ('wn', 'wn', 'online')")
    async with Pool(todays, size=1) as pool:
        db = Database()
        db.open(pool)
        assert "n" in {task.id for task in await tasks.listing(db, Page())}
        assert (await artifacts.one(db, "an")).tags == []
        assert "wn" in {worker.id for worker in await workers.listing(db, Page())}
