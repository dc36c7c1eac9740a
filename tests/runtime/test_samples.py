"""Samples of the queue: what they count, who takes them, how long they stay."""

from operator import attrgetter

import pytest
import trio
from servers import eventually

from bloomd.runtime import bulk, leases, samples, tasks
from bloomd.runtime.completion import complete
from bloomd.runtime.model import Completion, NewTask, Retry
from bloomd.runtime.samples import KEPT_MS, Sampler, history
from bloomd.runtime.stats import add_up

RETRY = Retry(0.001, 0.001)

THROUGHPUT = attrgetter("created", "completed", "failed", "dead", "cancelled")
DEPTH = attrgetter("queued", "leased", "running", "free")


@pytest.fixture
def sample(db, epoch):
    """Take one, and tell it."""

    async def take():
        before = len(await history(db))
        await Sampler(db).sample(epoch)
        told = await history(db)
        assert len(told) == before + 1
        await trio.sleep(0.002)  # of one millisecond there is one at most
        return told[-1]

    return take


@pytest.fixture
def finish(db):
    async def finish(task, **said):
        await leases.lease(db, task.id, actor="test")
        await complete(db, task.id, Completion(**said), retry=RETRY, actor="test")

    return finish


async def test_what_happened_since_the_one_before(db, sql, new_task, new_worker, finish, sample):
    await new_worker(max_concurrency=5)
    await new_task()
    assert THROUGHPUT(await sample()) == (None,) * 5
    assert THROUGHPUT(await sample()) == (0, 0, 0, 0, 0)
    done, wrong, broken, gone, *rest = [
        each.task for each in await tasks.create(db, [NewTask(prompt="x", max_attempts=1)] * 7, actor="test")
    ]
    assert THROUGHPUT(await sample()) == (7, 0, 0, 0, 0)
    await finish(done, status="success")
    await finish(wrong, status="error", retryable=False)
    await finish(broken, status="error")
    await tasks.cancel(db, gone.id, actor="test")
    assert THROUGHPUT(await sample()) == (0, 1, 1, 1, 1)
    await tasks.requeue(db, gone.id, actor="test")
    assert THROUGHPUT(await sample()) == (0, 0, 0, 0, 0)
    await bulk.run(db, bulk.CANCEL, bulk.TaskFilter(before=1 << 53), actor="test")
    assert THROUGHPUT(await sample()) == (0, 0, 0, 0, len(rest) + 2)
    await new_task()
    sql("DELETE FROM llm_tasks WHERE status = 'dead'")
    sql("TRUNCATE leases, llm_tasks")
    assert THROUGHPUT(await sample()) == (1, 0, 0, 0, 0)


async def test_how_full_it_is(db, sql, new_task, new_worker, sample):
    await new_worker("w1", max_concurrency=4)
    for name, change in (
        ("offline", "status = 'offline'"),
        ("cordoned", "cordoned = true"),
        ("draining", "draining = true"),
        ("plain", """capabilities = capabilities || '{"claude_cli": false}'"""),
    ):
        await new_worker(name, max_concurrency=8)
        sql(f"UPDATE workers SET {change} WHERE id = '{name}'")
    made = [await new_task() for _ in range(4)]
    for each in made[:2]:
        await leases.lease(db, each.id, actor="test")
    sql("UPDATE llm_tasks SET status = 'running' WHERE id = %s", made[0].id)
    assert DEPTH(await sample()) == (2, 1, 1, 2)


async def test_adding_up_lowers_nothing(db, new_task, new_worker, finish, sample, epoch, monkeypatch):
    monkeypatch.setattr("bloomd.runtime.stats.MANY_TALLIES", 0)
    await new_worker()
    await sample()
    await finish(await new_task(), status="success")
    await add_up(db, epoch=epoch)
    await finish(await new_task(), status="success")
    await add_up(db, epoch=epoch)
    assert THROUGHPUT(await sample()) == (2, 2, 0, 0, 0)


async def test_only_the_leader_takes_and_prunes(db, sql, epoch, sample):
    await sample()
    sql("UPDATE samples SET at = at - %s", 2 * KEPT_MS)
    await Sampler(db).sample(epoch - 1)
    assert sql("SELECT count(*) FROM samples") == [(1,)]
    await Sampler(db).sample(epoch)
    assert sql("SELECT at > bloom_now_ms() - 60000 FROM samples") == [(True,)]


OLD = "INSERT INTO samples SELECT at, 0, 0, 0, 0, 0, 0, 0, 0, 0 FROM generate_series(%s::bigint, %s::bigint, 1) AS at"


async def test_what_is_too_old_or_to_come_goes_in_batches(db, sql, epoch, monkeypatch):
    monkeypatch.setattr(samples, "BATCH", 5)
    sql(OLD, 1, 12)
    [[now]] = sql("SELECT bloom_now_ms()")
    kept = now - KEPT_MS + 600_000
    sql(OLD, kept, kept)
    sql(OLD, now + 3_600_000, now + 3_600_004)
    await Sampler(db).sample(epoch)
    assert [at for (at,) in sql("SELECT at FROM samples ORDER BY at LIMIT 1")] == [kept]
    assert sql("SELECT count(*) FROM samples") == [(2,)]


async def test_from_when_on(db, sql, new_task, epoch, sample, shift_clock):
    await sample()
    await new_task()
    shift_clock(2 * 3_600_000)
    second = await sample()
    assert second.created == 1  # in all the time in which there was none
    assert [each.created for each in await history(db)] == [None, 1]
    assert await history(db, second.at) == [second]
    assert await history(db, second.at + 1) == []


async def test_it_begins_at_once(db, nursery, epoch, sql):
    await nursery.start(Sampler(db).run, epoch)
    await trio.to_thread.run_sync(eventually, lambda: sql("SELECT count(*) FROM samples") == [(1,)])
