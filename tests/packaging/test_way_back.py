"""What bloomd(8) says under "The way back": the Node.js runtime on the database that `bloomd migrate` has left."""

import os
import subprocess
from collections.abc import Iterator
from subprocess import DEVNULL

import psycopg
import pytest
from bloomd_process import BIN
from psycopg import errors

Connection = psycopg.Connection[tuple[object, ...]]

# Statements over the old program's own columns and no other, as its object mapper writes them.
TASK = """
INSERT INTO llm_tasks (id, context_id, agent_slug, prompt, context_hints, policy, desired_format, status, created_at,
                       updated_at, lease_id, worker_id, attempts, max_attempts)
VALUES (%s, 'c', 'a', 'p', '[]', '{"timeout_sec": 120, "budget": 0}', 'text', 'queued', 1, 1, NULL, NULL, 0, 3)
"""
WORKER = """
INSERT INTO workers (id, node_id, url, status, capabilities, last_heartbeat, ip_addrs, obs_count, db_sha, registered_at,
                     active_leases, agent_version, os_info, install_method)
VALUES (%s, %s, '', 'online', '{"claude_cli": true, "max_concurrency": 1, "labels": []}', 1, '[]', 0, '', 1, 0, NULL,
        NULL, NULL)
"""
LEASE = """
INSERT INTO leases (id, task_id, worker_id, started_at, expires_at, ttl_seconds, status, last_heartbeat, context_id)
VALUES (%s, %s, %s, 1, 2, 300, 'active', NULL, 'c')
"""
LEASED = (
    "UPDATE llm_tasks SET status = 'leased', lease_id = %s, worker_id = %s, attempts = 1, updated_at = 2 WHERE id = %s"
)
QUEUED = "UPDATE llm_tasks SET status = 'queued', lease_id = NULL, worker_id = NULL, updated_at = 3 WHERE id = %s"


@pytest.fixture
def old(database: str) -> Iterator[Connection]:
    """The old program's connection, with two tasks and a worker for one of them at a time."""
    subprocess.run(
        [BIN / "bloomd", "migrate"], env={**os.environ, "DATABASE_URL": database}, check=True, stdout=DEVNULL
    )
    with psycopg.connect(database, autocommit=True) as connection:
        for task in ("t1", "t2"):
            connection.execute(TASK, (task,))
        connection.execute(WORKER, ("w", "w"))
        yield connection


def lease(old: Connection, id: str, task: str) -> None:
    old.execute(LEASE, (id, task, "w"))
    old.execute(LEASED, (id, "w", task))


def test_the_old_programs_life_of_a_task_goes_on(old: Connection) -> None:
    lease(old, "l1", "t1")
    old.execute("UPDATE workers SET active_leases = 7, last_heartbeat = 2 WHERE id = 'w'")
    assert old.execute("SELECT active_leases, last_heartbeat FROM workers").fetchone() == (1, 2)
    old.execute("UPDATE leases SET last_heartbeat = 2, expires_at = 9 WHERE id = 'l1'")
    old.execute("UPDATE llm_tasks SET status = 'running', updated_at = 2 WHERE id = 't1'")
    old.execute(
        "INSERT INTO runtime_artifacts (id, task_id, job_id, type, created_at, finalized, url, entity_refs, tags,"
        " content) VALUES ('a', 't1', NULL, 'LLM_RESULT', 3, true, NULL, '[]', '[]', 'x')"
    )
    old.execute(
        "INSERT INTO llm_results (id, task_id, worker_id, artifact_id, status, output, error_message, metrics,"
        " completed_at) VALUES ('r', 't1', 'w', 'a', 'success', 'x', NULL, '{\"duration_ms\": 5}', 3)"
    )
    old.execute("UPDATE leases SET status = 'released' WHERE id = 'l1'")
    old.execute("UPDATE llm_tasks SET status = 'completed', updated_at = 3 WHERE id = 't1'")
    old.execute("INSERT INTO audit_logs VALUES ('e', 3, 'task_completed', 'task', 't1', 'system', NULL)")
    lease(old, "l2", "t2")
    old.execute("UPDATE leases SET status = 'expired' WHERE id = 'l2'")
    old.execute(QUEUED, ("t2",))
    old.execute("DELETE FROM workers WHERE id = 'w'")


def test_its_faults_are_refused(old: Connection) -> None:
    lease(old, "l1", "t1")
    with pytest.raises(errors.UniqueViolation):
        old.execute(LEASE, ("l2", "t1", "w"))
    with pytest.raises(errors.CheckViolation, match="holds 1 of 1"):
        old.execute(LEASE, ("l2", "t2", "w"))
    with pytest.raises(errors.ForeignKeyViolation):
        old.execute(LEASE, ("l2", "t2", "nobody"))
    with pytest.raises(errors.CheckViolation, match="llm_tasks_lease"):
        old.execute("UPDATE llm_tasks SET status = 'queued' WHERE id = 't1'")
    with pytest.raises(errors.CheckViolation, match="llm_tasks_lease"):
        old.execute("UPDATE llm_tasks SET status = 'running' WHERE id = 't2'")
    for table, id in (("workers", "w"), ("llm_tasks", "t1")):
        with pytest.raises(errors.RestrictViolation):
            old.execute(f"DELETE FROM {table} WHERE id = %s".encode(), (id,))
    for wrong in ("status = 'paused'", "policy = '{}'", "context_hints = '[1]'", "prompt = NULL"):
        with pytest.raises(errors.IntegrityError):
            old.execute(f"UPDATE llm_tasks SET {wrong} WHERE id = 't2'".encode())
