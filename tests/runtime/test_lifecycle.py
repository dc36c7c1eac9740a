"""The life of a task, one caller at a time."""

import pytest

from bloomd.runtime import artifacts, audit, completion, expiry, leases, tasks
from bloomd.runtime.heartbeats import Beat, heartbeat
from bloomd.runtime.model import Completion, Metrics, Retry
from bloomd.runtime.pages import Page
from bloomd.runtime.refusals import Conflict, LeaseLost, NotFound, NoWorker

SUCCESS = Completion(status="success", output="hello", metrics=Metrics(duration_ms=12))
RETRY = Retry()


async def test_from_create_to_artifact(db, new_task, new_worker):
    await new_worker()
    task = await new_task(context_id="c1", agent_slug="writer", context_hints={"file": "a.txt", "n": 1})
    assert task.status == "queued"
    assert task.context_hints == ["file: a.txt", "n: 1"]

    leased = await leases.lease(db, task.id, actor="test")
    assert leased.worker.active_leases == 1
    assert leased.lease.attempt == 1
    assert leased.lease.expires_at - leased.lease.started_at == leased.lease.ttl_seconds * 1000 == 300_000
    assert (await tasks.one(db, task.id)).status == "leased"

    assert leased.lease.last_heartbeat == leased.lease.started_at
    beaten = await heartbeat(db, task.id, Beat(lease_id=leased.lease.id), actor="test")
    assert beaten.expires_at >= leased.lease.expires_at
    assert (await tasks.one(db, task.id)).status == "running"

    done = await completion.complete(db, task.id, SUCCESS, retry=RETRY, actor="test")
    assert (done.task.status, done.task.lease_id) == ("completed", leased.lease.id)
    assert done.result.output == "hello"
    assert done.result.artifact_id == done.artifact.id
    assert done.result.metrics == {"duration_ms": 12, "tokens_used": None}
    artifact = await artifacts.one(db, done.artifact.id)
    assert (artifact.content, artifact.size) == ("hello", 5)
    actions = [entry.action for entry in await audit.listing(db, Page(), entity_id=task.id)]
    assert actions == ["task.completed", "task.running", "task.leased", "task.created"]


async def test_the_default_ttl_covers_a_long_task(db, new_task, new_worker):
    await new_worker()
    task = await new_task(policy={"timeout_sec": 3600, "budget": 0})
    assert (await leases.lease(db, task.id, actor="test")).lease.ttl_seconds == 3660


async def test_who_may_not_be_leased(db, new_task, new_worker):
    with pytest.raises(NotFound, match="Task not found"):
        await leases.lease(db, "nope", actor="test")
    task = await new_task()
    with pytest.raises(NoWorker, match="No available worker with free capacity"):
        await leases.lease(db, task.id, actor="test")
    await new_worker()
    await leases.lease(db, task.id, actor="test")
    with pytest.raises(Conflict, match="Task status is 'leased', expected 'queued'"):
        await leases.lease(db, task.id, actor="test")
    later = await new_task(not_before=253_402_300_799_000)
    with pytest.raises(Conflict, match="not before its not_before time"):
        await leases.lease(db, later.id, actor="test")


async def test_an_error_is_tried_again_until_it_is_dead(db, new_task, new_worker, sql):
    await new_worker()
    task = await new_task(max_attempts=2)
    failure = Completion(status="error", error_message="boom")
    await leases.lease(db, task.id, actor="test")
    first = await completion.complete(db, task.id, failure, retry=RETRY, actor="test")
    assert (first.task.status, first.task.error_message, first.task.lease_id) == ("queued", "boom", None)
    assert first.task.retry_at is not None
    assert 3_500 <= first.task.retry_at - first.task.updated_at <= 5_000
    with pytest.raises(Conflict, match="not before its retry"):
        await leases.lease(db, task.id, actor="test")
    assert (await tasks.requeue(db, task.id, actor="test")).attempts == 0

    for status in ("queued", "dead"):
        sql("UPDATE llm_tasks SET retry_at = NULL")
        await leases.lease(db, task.id, actor="test")
        assert (await completion.complete(db, task.id, failure, retry=RETRY, actor="test")).task.status == status


@pytest.mark.parametrize(
    ("said", "retry"),
    [
        (Completion(status="error", retryable=False), RETRY),
        (Completion(status="error"), Retry(errors=False)),
    ],
)
async def test_a_permanent_error_fails_the_task(db, new_task, new_worker, said, retry):
    await new_worker()
    task = await new_task()
    await leases.lease(db, task.id, actor="test")
    done = await completion.complete(db, task.id, said, retry=retry, actor="test")
    assert (done.task.status, done.task.error_message) == ("failed", "the worker gave no reason")
    assert (await tasks.requeue(db, task.id, actor="test")).status == "queued"


async def test_requeue_refuses_what_runs_or_is_done(db, new_task, new_worker):
    await new_worker()
    task = await new_task()
    with pytest.raises(Conflict, match="Task status is 'queued'"):
        await tasks.requeue(db, task.id, actor="test")
    await leases.lease(db, task.id, actor="test")
    await completion.complete(db, task.id, SUCCESS, retry=RETRY, actor="test")
    with pytest.raises(Conflict, match="Task status is 'completed'"):
        await tasks.requeue(db, task.id, actor="test")


async def test_only_the_current_lease_counts(db, new_task, new_worker, sql, epoch):
    await new_worker()
    task = await new_task()
    old = (await leases.lease(db, task.id, actor="test")).lease
    sql("UPDATE leases SET expires_at = 1")
    with pytest.raises(LeaseLost, match="expired"):
        await heartbeat(db, task.id, Beat(lease_id=old.id), actor="test")
    with pytest.raises(NotFound, match="No active lease"):
        await heartbeat(db, task.id, Beat(), actor="test")
    with pytest.raises(Conflict, match="expired"):
        await completion.complete(db, task.id, SUCCESS, retry=RETRY, actor="test")
    assert [lost.task_status for lost in await expiry.expire(db, retry=Retry(0.001, 0.001), epoch=epoch)] == ["queued"]
    sql("UPDATE llm_tasks SET retry_at = NULL")
    new = (await leases.lease(db, task.id, actor="test")).lease
    for lost in (old.id, "never-was"):
        with pytest.raises(LeaseLost):
            await heartbeat(db, task.id, Beat(lease_id=lost), actor="test")
        with pytest.raises(LeaseLost):
            named = Completion(status="success", output="late", lease_id=lost)
            await completion.complete(db, task.id, named, retry=RETRY, actor="test")
    with pytest.raises(LeaseLost, match="another worker"):
        await heartbeat(db, task.id, Beat(worker_id="w2"), actor="test")
    assert (await tasks.one(db, task.id)).lease_id == new.id
    assert (await heartbeat(db, task.id, Beat(worker_id="w1"), actor="test")).id == new.id


async def test_repeating_a_completion_gives_the_first_answer(db, new_task, new_worker):
    await new_worker()
    task = await new_task()
    lease = (await leases.lease(db, task.id, actor="test")).lease
    named = Completion(status="success", output="first", lease_id=lease.id)
    first = await completion.complete(db, task.id, named, retry=RETRY, actor="test")
    again = Completion(status="error", error_message="second", lease_id=lease.id)
    assert await completion.complete(db, task.id, again, retry=RETRY, actor="test") == first
    with pytest.raises(Conflict, match="Task status is 'completed', expected 'leased' or 'running'"):
        await completion.complete(db, task.id, SUCCESS, retry=RETRY, actor="test")


async def test_an_idempotency_key_creates_once(db, new_task):
    first = await new_task(idempotency_key="k1")
    assert (await new_task("other words", idempotency_key="k1")) == first


async def test_a_lease_made_while_a_cancel_waits_for_its_task_ends_too(db, sql, held, new_task, new_worker):
    await new_worker()
    task = await new_task()
    leasing = (
        "WITH lease AS (INSERT INTO leases (id, task_id, worker_id, expires_at, ttl_seconds) "
        f"VALUES ('l', '{task.id}', 'w1', bloom_now_ms() + 300000, 300)) "
        f"UPDATE llm_tasks SET status = 'leased', lease_id = 'l', worker_id = 'w1' WHERE id = '{task.id}'"
    )

    async def cancel():
        await tasks.cancel(db, task.id, actor="test")

    async with held(leasing, cancel):
        pass
    assert sql("SELECT status, outcome FROM leases") == [("released", "cancelled")]
    assert sql("SELECT status FROM llm_tasks") == [("cancelled",)]
    assert sql("SELECT active_leases FROM workers") == [(0,)]


async def test_a_worker_that_came_back_meanwhile_does_not_come_back_again(db, sql, held, new_task, new_worker):
    await new_worker()
    task = await new_task()
    sql("UPDATE workers SET status = 'offline'")

    async def name_it():
        await leases.lease(db, task.id, worker_id="w1", actor="test")

    async with held("UPDATE workers SET status = 'online'", name_it):
        pass
    assert sql("SELECT count(*) FROM audit_logs WHERE action = 'worker.online'") == [(0,)]
