"""The questions of `invariants.py`, each put to a database in which its rule was broken by hand."""

import psycopg
import pytest
from invariants import AT_REST, TABLES, TRAIL, broken

from bloomd.runtime import bulk, completion, expiry, leases, queue, releases, tasks, workers
from bloomd.runtime.heartbeats import Beat, heartbeat
from bloomd.runtime.model import Completion, Retry

RETRY = Retry(first_seconds=60, max_seconds=60)

NEW = (
    "INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail) SELECT gen_random_uuid(), 1"
)

# Statements that break the rule, with no trigger and no unique index in their way. `{name}` is the id of a task.
BREAK = {
    "1: two active leases of a task": "INSERT INTO leases SELECT 'second', task_id, worker_id, 1, 2, 3, 'active' "
    "FROM leases WHERE task_id = '{running}'",
    "1: two active leases of a context, for workers that take it one at a time": "UPDATE leases SET serial = true, "
    "context_id = 'c'",
    "2: a worker holds more than it may": "UPDATE workers SET capabilities = '{{\"max_concurrency\": 1}}'",
    "2: a worker's count is not that of its leases": "UPDATE workers SET active_leases = 1",
    "3: a lease spoke after its time": "UPDATE leases SET expires_at = started_at - 1000 WHERE outcome = 'success'",
    "3: a heartbeat after the end": "UPDATE leases SET last_heartbeat = ended_at + 1 WHERE outcome = 'success'",
    "4: a completed attempt without exactly one result": "DELETE FROM llm_results WHERE task_id = '{completed}'",
    "4: a result that its attempt does not know": "UPDATE llm_results SET task_id = 'another' WHERE status = 'success'",
    "4: a result without its artifact": "DELETE FROM runtime_artifacts WHERE task_id = '{completed}'",
    "4: an artifact that no result names": "INSERT INTO runtime_artifacts (id, task_id, lease_id, name) "
    "VALUES ('another', 't', 'l', 'result')",
    "4: a completed task whose last attempt was no success": "UPDATE llm_tasks SET status = 'completed' "
    "WHERE id = '{failed}'",
    "4: two successes of a task": "UPDATE llm_results SET status = 'success', task_id = 'one'",
    "5: a task under way without its active lease": "DELETE FROM leases WHERE task_id = '{running}'",
    "5: an active lease of a task that is elsewhere": "UPDATE llm_tasks SET status = 'dead' WHERE id = '{running}'",
    "5: more attempts than a task may have": "UPDATE leases SET attempt = 4 WHERE task_id = '{running}'",
    "5: a task had to be rescued": f"{NEW}, 'task.rescued', 'task', '{{running}}', 'test', 'now queued'",
    "5: a lease that nobody ends": "UPDATE leases SET expires_at = 1 WHERE task_id = '{running}'",
    "5: a task whose time has come and that no claim finds": "UPDATE llm_tasks SET retry_at = 1 WHERE id = '{retried}'",
    "6: a lease ended before its time": "UPDATE leases SET reason = 'expired' WHERE task_id = '{expired}'",
    "6: a step of another lease than the current one": f"{NEW}, 'lease.expired', 'task', '{{running}}', 'test', "
    "'expired: worker w1, lease ' || id || ', task now queued' FROM leases WHERE task_id = '{completed}'",
    "7: a task without its creation": "DELETE FROM audit_logs WHERE entity_id = '{queued}'",
    "7: a creation without its task": "DELETE FROM llm_tasks WHERE id = '{queued}'",
    "7: a step from where it cannot start": f"{NEW}, 'task.completed', 'task', '{{completed}}', 'test', "
    "'success from worker w1, lease ' || id || ', attempt 1' FROM leases WHERE task_id = '{completed}'",
    "7: a cancellation from elsewhere than it says": "UPDATE audit_logs SET detail = 'it was leased' "
    "WHERE action = 'task.cancelled'",
    "7: a task that is not where its trail ends": "UPDATE llm_tasks SET status = 'dead' WHERE id = '{completed}'",
    "7: a lease without its entry": "DELETE FROM audit_logs WHERE action = 'task.leased' AND entity_id = '{running}'",
    "7: an attempt's end without its entry": "DELETE FROM audit_logs WHERE action = 'task.completed'",
    "7: an entry of an end that was none": "UPDATE leases SET status = 'active' WHERE task_id = '{expired}'",
    "7: more cancelled attempts than cancellations": "UPDATE leases SET outcome = 'cancelled'",
    "7: a worker that is not where its trail ends": "UPDATE workers SET status = 'offline'",
    "7: a worker that came or went twice": f"{NEW}, 'worker.online', 'worker', 'w1', 'test', ''",
    "7: a worker held back otherwise than its trail says": "UPDATE workers SET draining = true, cordoned = false",
    "7: a queue paused otherwise than its trail says": "UPDATE queue_state SET paused = false",
    "a tally that is not the count": "INSERT INTO tallies VALUES ('task:queued', 1)",
    "an epoch without exactly one election": "UPDATE leaders SET epoch = 2",
}


@pytest.fixture
async def scene(db, new_task, new_worker, sql):
    """A life of each kind; the ids of the tasks by how they went."""
    sql("INSERT INTO leaders VALUES ('leader', 'the-test', 'test', 1, 0, 253402300799000)")
    sql(f"{NEW}, 'leader.elected', 'node', 'test', 'test', 'epoch 1'")
    await new_worker("w1", max_concurrency=20)
    ids = {}

    async def leased(name, **fields):
        ids[name] = (await new_task(**fields)).id
        return (await leases.lease(db, ids[name], actor="test")).lease

    await leased("leased")
    await leased("running")
    await heartbeat(db, ids["running"], Beat(), actor="test")
    for name, outcome, retryable in (
        ("completed", "success", True),
        ("retried", "error", True),
        ("failed", "error", False),
    ):
        lease = await leased(name)
        said = Completion(status=outcome, lease_id=lease.id, retryable=retryable)
        await completion.complete(db, ids[name], said, retry=RETRY, actor="test")
    lease = await leased("released")
    await releases.release(db, [releases.Release(lease.id)], actor="test")
    ids["queued"] = (await new_task()).id
    ids["cancelled"] = (await new_task()).id
    await tasks.cancel(db, ids["cancelled"], actor="test")
    await tasks.requeue(db, ids["failed"], actor="test")
    ids["in bulk"] = (await new_task(agent_slug="bulk")).id
    await bulk.run(db, bulk.CANCEL, bulk.TaskFilter(agent_slug="bulk"), actor="test")

    await new_worker("w2", max_concurrency=1)
    ids["expired"] = (await new_task()).id
    await leases.lease(db, ids["expired"], worker_id="w2", actor="test")
    sql("UPDATE leases SET expires_at = bloom_now_ms() - 1 WHERE worker_id = 'w2'")
    assert len(await expiry.expire(db, retry=RETRY, epoch=1)) == 1
    sql("UPDATE leases SET expires_at = ended_at + 1, reason = 'its worker was removed' WHERE worker_id = 'w2'")
    await workers.remove(db, "w2", actor="test")
    await workers.cordon(db, "w1", actor="test")
    await queue.pause(db, actor="test")
    return ids


def test_every_question_is_tried():
    assert BREAK.keys() == {**TABLES, **TRAIL, **AT_REST}.keys()


async def test_a_broken_rule_is_found(scene, conninfo):
    """Each in a transaction that is taken back."""
    with psycopg.connect(conninfo) as connection:

        def ask(question):
            return connection.execute(question.encode()).fetchall()

        assert broken(ask, TABLES, TRAIL, AT_REST) == {}
        for rule, statement in BREAK.items():
            with connection.transaction(force_rollback=True):
                connection.execute(
                    "DROP INDEX leases_one_active_per_task, leases_one_serial_per_context, llm_results_one_per_lease"
                )
                connection.execute("SET LOCAL session_replication_role = replica")
                connection.execute(statement.format(**scene).encode())
                assert rule in broken(ask, TABLES, TRAIL, AT_REST)
