"""Whatever is done to the queue is counted, in whichever way it is done, and once."""

from collections.abc import Callable

import pytest
import trio
from prometheus_client.samples import Sample

from bloomd.runtime import bulk, claims, completion, expiry, leases, releases, tasks, workers
from bloomd.runtime.bulk import TaskFilter
from bloomd.runtime.claims import Claim
from bloomd.runtime.model import Completion, NewTask, Retry
from bloomd.runtime.refusals import Refusal

SUCCESS = Completion(status="success", output="hello")
AT_ONCE = Retry(first_seconds=0.001, max_seconds=0.001)


@pytest.fixture
def counted(db) -> Callable[[], dict[str, float]]:
    """What has been counted since the last call: every figure that is not 0, without the buckets."""
    known: dict[str, float] = {}

    def name(sample: Sample) -> str:
        return " ".join([sample.name.removeprefix("bloomd_"), *sample.labels.values()])

    def since() -> dict[str, float]:
        now = {
            name(sample): sample.value
            for family in db.meters.registry.collect()
            for sample in family.samples
            if not sample.name.endswith(("_bucket", "_seconds_sum"))
        }
        grown = {name: value - known.get(name, 0.0) for name, value in now.items()}
        known.update(now)
        return {name: value for name, value in grown.items() if value}

    return since


@pytest.fixture
def seconds(db) -> Callable[[str], float]:
    """The sum of a histogram."""
    return lambda name: sum(
        sample.value
        for family in db.meters.registry.collect()
        for sample in family.samples
        if sample.name == f"bloomd_{name}_seconds_sum"
    )


@pytest.fixture
def leased(db, new_worker, new_task, counted):
    """A task that is leased, and its lease; what came before is not counted any more."""

    async def leased(**fields):
        await new_worker("w1", max_concurrency=8)
        task = await new_task(**fields)
        lease = (await leases.lease(db, task.id, actor="test")).lease
        counted()
        return task, lease

    return leased


async def test_creation_counts_what_is_new(db, counted):
    new = [NewTask(prompt="x", idempotency_key="a"), NewTask(prompt="x"), NewTask(prompt="x", idempotency_key="a")]
    await tasks.create(db, new, actor="test")
    assert counted() == {"tasks_created_total": 2}
    await tasks.create(db, new[:1], actor="test")
    assert counted() == {}


async def test_a_lease_and_a_claim_count_the_same(db, new_worker, new_task, counted):
    await new_worker("w1", max_concurrency=8)
    first, *_ = [await new_task() for _ in range(4)]
    counted()
    await leases.lease(db, first.id, actor="test")
    assert counted() == {"claims_total": 1, "task_wait_seconds_count": 1}
    assert len(await claims.claim(db, Claim("w1", max=5), actor="test")) == 3
    assert counted() == {"claims_total": 3, "task_wait_seconds_count": 3}
    assert await claims.claim(db, Claim("w1", max=5), actor="test") == []
    assert counted() == {}


@pytest.mark.parametrize("way", ["lease", "claim"])
@pytest.mark.parametrize(
    ("created", "put_back", "not_before", "retry_at"),
    [
        (20, 20, None, None),
        (3600, 20, None, None),
        (3600, 3600, 20, None),
        (3600, 3600, None, 20),
        (3600, 20, 3600, 3600),
    ],
)
async def test_the_wait_begins_when_a_task_can_be_claimed(
    db, new_worker, new_task, sql, seconds, way, created, put_back, not_before, retry_at
):
    """Not when it was created, when it was put back into the queue, or its time came, later."""
    await new_worker()
    task = await new_task()
    sql(
        "UPDATE llm_tasks SET created_at = created_at - %s * 1000, updated_at = updated_at - %s * 1000, "
        "not_before = created_at - %s * 1000, retry_at = created_at - %s * 1000",
        *(created, put_back, not_before, retry_at),
    )
    if way == "lease":
        await leases.lease(db, task.id, actor="test")
    else:
        await claims.claim(db, Claim("w1"), actor="test")
    assert 20 <= seconds("task_wait") < 50


async def test_a_task_that_is_requeued_waits_from_then_on(db, new_worker, new_task, sql, seconds):
    await new_worker()
    task = await new_task()
    await tasks.cancel(db, task.id, actor="test")
    sql("UPDATE llm_tasks SET created_at = created_at - 3600000, updated_at = updated_at - 3600000")
    await tasks.requeue(db, task.id, actor="test")
    await leases.lease(db, task.id, actor="test")
    assert seconds("task_wait") < 30


async def test_a_claim_that_comes_too_late_is_counted_as_given_back(db, new_worker, new_task, counted):
    await new_worker()
    await new_task()
    counted()
    with trio.CancelScope() as scope:
        scope.cancel()
        await claims.claim(db, Claim("w1"), actor="test")
    assert counted() == {"claims_total": 1, "task_wait_seconds_count": 1, "task_run_seconds_count released": 1}


async def test_a_success(db, leased, sql, counted, seconds):
    task, lease = await leased()
    sql("UPDATE leases SET started_at = started_at - 20000")
    once = Completion(status="success", lease_id=lease.id)
    for _ in range(2):  # said again, it changes nothing
        await completion.complete(db, task.id, once, retry=AT_ONCE, actor="test")
    assert counted() == {
        "task_run_seconds_count success": 1,
        "task_attempts_count completed": 1,
        "task_attempts_sum completed": 1,
    }
    assert 20 <= seconds("task_run") < 50


async def test_many_completions(db, new_worker, new_task, counted):
    await new_worker("w1", max_concurrency=8)
    for _ in range(3):
        await new_task(max_attempts=1)
    held = await claims.claim(db, Claim("w1", max=3), actor="test")
    counted()
    said = [
        Completion(status=status, lease_id=each.lease.id)
        for status, each in zip(("success", "error", "success"), held, strict=True)
    ]
    for _ in range(2):
        outcomes = await completion.complete_many(db, said, retry=AT_ONCE, actor="test")
        assert not any(isinstance(each, Refusal) for each in outcomes)
    assert counted() == {
        "task_run_seconds_count success": 2,
        "task_run_seconds_count error": 1,
        "task_attempts_count completed": 2,
        "task_attempts_sum completed": 2,
        "task_attempts_count dead": 1,
        "task_attempts_sum dead": 1,
    }


async def test_an_error_ends_the_attempt_and_the_last_one_the_task(db, leased, counted, sql):
    task, _ = await leased(max_attempts=2)
    error = Completion(status="error", error_message="no")
    await completion.complete(db, task.id, error, retry=AT_ONCE, actor="test")
    assert counted() == {"task_run_seconds_count error": 1}
    sql("UPDATE llm_tasks SET retry_at = NULL")
    await leases.lease(db, task.id, actor="test")
    counted()
    await completion.complete(db, task.id, error, retry=AT_ONCE, actor="test")
    assert counted() == {
        "task_run_seconds_count error": 1,
        "task_attempts_count dead": 1,
        "task_attempts_sum dead": 2,
    }


async def test_a_permanent_error(db, leased, counted):
    task, _ = await leased()
    await completion.complete(db, task.id, Completion(status="error", retryable=False), retry=AT_ONCE, actor="test")
    assert counted() == {
        "task_run_seconds_count error": 1,
        "task_attempts_count failed": 1,
        "task_attempts_sum failed": 1,
    }


@pytest.mark.parametrize("outcome", ["expired", "deadline"])
@pytest.mark.parametrize("max_attempts", [1, 2])
async def test_rescued_leases(db, leased, sql, epoch, counted, outcome, max_attempts):
    await leased(max_attempts=max_attempts)
    column = {"expired": "expires_at", "deadline": "deadline_at"}[outcome]
    sql(f"UPDATE leases SET {column} = bloom_now_ms() - 1")
    await expiry.expire(db, retry=AT_ONCE, epoch=epoch)
    dead = {"task_attempts_count dead": 1, "task_attempts_sum dead": 1} if max_attempts == 1 else {}
    assert counted() == {f"task_run_seconds_count {outcome}": 1, "leases_rescued_total": 1, **dead}
    await expiry.expire(db, retry=AT_ONCE, epoch=epoch)
    assert counted() == {}


async def test_stranded_tasks(db, leased, sql, epoch, counted):
    await leased()
    sql("UPDATE leases SET status = 'released'")
    sql("UPDATE llm_tasks SET updated_at = 0")
    await expiry.rescue(db, epoch=epoch)
    assert counted() == {"tasks_stranded_total": 1}


async def test_what_is_given_back(db, leased, counted):
    _, lease = await leased()
    for _ in range(2):  # said again, it changes nothing
        await releases.release(db, [releases.Release(lease.id)], actor="test")
    assert counted() == {"task_run_seconds_count released": 1}


async def test_cancelled_under_way(db, leased, counted):
    task, _ = await leased()
    await tasks.cancel(db, task.id, actor="test")
    assert counted() == {
        "task_run_seconds_count cancelled": 1,
        "task_attempts_count cancelled": 1,
        "task_attempts_sum cancelled": 1,
    }


async def test_cancelled_while_it_was_queued(db, new_task, counted):
    task = await new_task()
    counted()
    await tasks.cancel(db, task.id, actor="test")
    assert counted() == {"task_attempts_count cancelled": 1}


async def test_cancelled_in_bulk(db, leased, new_task, counted):
    await leased(context_id="c")
    await new_task(context_id="c")
    counted()
    await bulk.run(db, bulk.CANCEL, TaskFilter(context_id="c"), actor="test")
    assert counted() == {
        "task_run_seconds_count cancelled": 1,
        "task_attempts_count cancelled": 2,
        "task_attempts_sum cancelled": 1,
    }


async def test_a_worker_that_is_removed_loses_its_leases(db, leased, counted):
    await leased()
    await workers.remove(db, "w1", force=AT_ONCE, actor="test")
    assert counted() == {"task_run_seconds_count expired": 1, "leases_rescued_total": 1}


async def test_what_is_refused_is_not_counted(db, new_task, counted):
    task = await new_task()
    counted()
    for refused in (
        lambda: leases.lease(db, task.id, actor="test"),
        lambda: completion.complete(db, task.id, SUCCESS, retry=AT_ONCE, actor="test"),
    ):
        with pytest.raises(Refusal):
            await refused()
    assert counted() == {}
