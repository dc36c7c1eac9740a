"""Retention: what is old enough goes, whole; what is not, or has not ended, stays; the audit trail tells how much."""

import json
import random

import psycopg
import pytest
import trio

from bloomd.runtime import bulk, completion, leases, retention, tasks, uploads
from bloomd.runtime.model import Completion, Retry
from bloomd.runtime.retention import ENDED, Keep, Pruned, Retention

RETRY = Retry(first_seconds=0.001, max_seconds=0.001)
DAY = 86_400_000
TABLES = ("llm_tasks", "leases", "llm_results", "runtime_artifacts")


@pytest.fixture
def prune(db, epoch):
    """One round with these settings."""

    async def prune(**keep):
        return await Retention(db, lambda: Keep(**keep)).prune(epoch)

    return prune


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(retention, "BATCH", 5)
    monkeypatch.setattr(retention, "PAUSE_SECONDS", 0.0)


@pytest.fixture
def worked_on(db, new_task, new_worker):
    """A task that was leased and completed."""

    async def work(status="success", **fields):
        await new_worker(max_concurrency=10)
        task = await new_task(**fields)
        await leases.lease(db, task.id, actor="test")
        said = Completion(status=status, output="hello", retryable=False)
        return (await completion.complete(db, task.id, said, retry=RETRY, actor="test")).task

    return work


def counts(sql):
    return {table: sql(f"SELECT count(*) FROM {table}")[0][0] for table in TABLES}


def recorded(sql, kind):
    return [
        json.loads(row[0])
        for row in sql("SELECT detail FROM audit_logs WHERE action = 'retention.pruned' AND entity_type = %s", kind)
    ]


async def test_a_task_goes_with_all_that_hangs_on_it(sql, worked_on, prune, shift_clock):
    await worked_on(idempotency_key="k")
    assert counts(sql) == dict.fromkeys(TABLES, 1)
    shift_clock(7 * DAY - 60_000)
    assert await prune(tasks=7.0) == Pruned(0, 0)
    shift_clock(7 * DAY + 60_000)
    assert await prune(tasks=7.0) == Pruned(1, 0)
    assert counts(sql) == dict.fromkeys(TABLES, 0)
    assert sql("SELECT active_leases FROM workers") == [(0,)]
    assert recorded(sql, "task") == [{"keep_days": 7, "pruned": 1}]
    assert await prune(tasks=7.0) == Pruned(0, 0)
    assert recorded(sql, "task") == [{"keep_days": 7, "pruned": 1}]


async def test_what_has_not_ended_is_never_touched(db, sql, new_task, new_worker, worked_on, prune, shift_clock):
    await new_worker(max_concurrency=10)
    queued, leased, running = [await new_task(prompt) for prompt in ("queued", "leased", "running")]
    for task in (leased, running):
        await leases.lease(db, task.id, actor="test")
    sql("UPDATE llm_tasks SET status = 'running' WHERE id = %s", running.id)
    for status in ENDED:
        await new_task(status)
        sql("UPDATE llm_tasks SET status = %s WHERE prompt = %s", status, status)
    shift_clock(36500 * DAY)
    assert await prune(tasks=0.1, audit=0.1) == Pruned(4, 10)
    assert {prompt for (prompt,) in sql("SELECT prompt FROM llm_tasks")} == {"queued", "leased", "running"}
    assert sql("SELECT count(*) FROM leases WHERE status = 'active'") == [(2,)]
    assert queued.id in {id for (id,) in sql("SELECT id FROM llm_tasks")}


async def test_the_days_count_from_the_end(sql, worked_on, prune, shift_clock):
    """Also for a task that was created long before, and goes on to wait for years."""
    old, late = await worked_on(), await worked_on()
    sql("UPDATE llm_tasks SET created_at = created_at - 100 * %s::bigint", DAY)
    shift_clock(2 * DAY)
    sql("UPDATE llm_tasks SET updated_at = bloom_now_ms() WHERE id = %s", late.id)
    assert await prune(tasks=1.0) == Pruned(1, 0)
    assert sql("SELECT id FROM llm_tasks") == [(late.id,)]
    assert old.id != late.id


async def test_nothing_goes_by_default(sql, worked_on, prune, shift_clock):
    await worked_on()
    before = sql("SELECT count(*) FROM audit_logs")
    shift_clock(36500 * DAY)
    assert await prune() == Pruned(0, 0)
    assert counts(sql) == dict.fromkeys(TABLES, 1)
    assert sql("SELECT count(*) FROM audit_logs") == before


async def test_objects_go_after_their_rows_and_what_is_anywhere_else_stays(sql, worked_on, prune, shift_clock):
    task = await worked_on()
    insert = "INSERT INTO runtime_artifacts (id, task_id, url) VALUES (%s, %s, %s)"
    sql(insert, "o", task.id, "minio://bucket/artifacts/o.json")
    sql(insert, "e", task.id, "https://example.org/e")
    shift_clock(2 * DAY)
    assert await prune(tasks=1.0) == Pruned(1, 0)
    assert sql("SELECT id FROM runtime_artifacts") == [("e",)]
    assert sql("SELECT url, since > 0 FROM objects_left") == [("minio://bucket/artifacts/o.json", True)]
    assert counts(sql) == {**dict.fromkeys(TABLES, 0), "runtime_artifacts": 1}


async def test_old_audit_entries_go(sql, prune):
    sql(
        "INSERT INTO audit_logs (id, timestamp, action) "
        "SELECT 'e' || n, bloom_now_ms() - n * 3600000::bigint, 'x' FROM generate_series(0, 99) AS n"
    )
    assert await prune(audit=2.0) == Pruned(0, 52)
    assert sql("SELECT count(*), max(substr(id, 2)::integer) FROM audit_logs WHERE action = 'x'") == [(48, 47)]
    assert recorded(sql, "audit") == [{"keep_days": 2, "pruned": 52}]


@pytest.mark.usefixtures("small")
async def test_one_entry_a_day_for_each_setting(sql, prune, shift_clock):
    shift_clock(-sql("SELECT bloom_now_ms()")[0][0] + 20_000 * DAY)  # a moment after midnight, UTC

    def fill(count):
        sql(
            "INSERT INTO llm_tasks (id, prompt, status, created_at, updated_at) "
            f"SELECT gen_random_uuid(), 'p', 'dead', 1, 1 FROM generate_series(1, {count})"
        )

    fill(12)
    await prune(tasks=3.0)
    fill(11)
    await prune(tasks=3.0)
    fill(1)
    await prune(tasks=4.0)
    shift_clock(-sql("SELECT extract(epoch FROM clock_timestamp())::bigint * 1000")[0][0] + 20_001 * DAY + 1000)
    fill(6)
    await prune(tasks=3.0)
    assert sql(
        "SELECT entity_id, detail::jsonb -> 'keep_days', detail::jsonb -> 'pruned', actor FROM audit_logs ORDER BY 1, 2"
    ) == [
        ("2024-10-04", 3, 23, "bloomd"),
        ("2024-10-04", 4, 1, "bloomd"),
        ("2024-10-05", 3, 6, "bloomd"),
    ]


async def test_entries_that_tell_of_pruning_are_pruned_too_but_not_todays(sql, prune, shift_clock):
    sql("INSERT INTO audit_logs (id, timestamp, action) VALUES ('old', 1, 'x')")
    assert await prune(audit=0.001) == Pruned(0, 1)
    sql("UPDATE audit_logs SET timestamp = 1")
    assert await prune(audit=0.001) == Pruned(0, 0)
    shift_clock(2 * DAY)
    assert await prune(audit=0.001) == Pruned(0, 1)
    assert recorded(sql, "audit") == [{"keep_days": 0.001, "pruned": 1}]


async def test_only_the_leader_of_this_epoch(db, sql, worked_on, prune, shift_clock, epoch):
    await worked_on()
    shift_clock(2 * DAY)
    late = Retention(db, lambda: Keep(tasks=1.0, audit=1.0))
    assert await late.prune(epoch - 1) == Pruned(0, 0)
    assert counts(sql) == dict.fromkeys(TABLES, 1)
    assert (await late.prune(epoch)).tasks == 1


async def test_a_task_that_somebody_holds_is_passed_over(sql, conninfo, new_task, prune, shift_clock):
    held, free = await new_task(), await new_task()
    sql("UPDATE llm_tasks SET status = 'dead'")
    shift_clock(2 * DAY)
    with psycopg.connect(conninfo) as other:
        other.execute("UPDATE llm_tasks SET status = 'queued' WHERE id = %s", [held.id])
        with trio.fail_after(10):
            assert await prune(tasks=1.0) == Pruned(1, 0)
        other.commit()
    assert await prune(tasks=1.0) == Pruned(0, 0)
    assert sql("SELECT id, status FROM llm_tasks") == [(held.id, "queued")]
    assert free.id != held.id


async def test_nothing_goes_without_its_entry(sql, worked_on, prune, shift_clock):
    await worked_on()
    shift_clock(2 * DAY)
    sql("ALTER TABLE audit_logs ADD CONSTRAINT never CHECK (false) NOT VALID")
    for keep in ({"tasks": 1.0}, {"audit": 1.0}):
        before = sql("SELECT count(*) FROM audit_logs")
        with pytest.raises(psycopg.errors.CheckViolation):
            await prune(**keep)
        assert counts(sql) == dict.fromkeys(TABLES, 1)
        assert sql("SELECT count(*) FROM audit_logs") == before


@pytest.mark.usefixtures("small")
async def test_whatever_ends_it_half_way_the_entry_is_right(db, sql, epoch):
    sql(
        "INSERT INTO llm_tasks (id, prompt, status, created_at, updated_at) "
        "SELECT gen_random_uuid(), 'p', 'dead', n, n FROM generate_series(1, 300) AS n"
    )
    sql("INSERT INTO audit_logs (id, timestamp, action) SELECT 'e' || n, n, 'x' FROM generate_series(1, 300) AS n")
    chance = random.Random(5)
    pruner = Retention(db, lambda: Keep(tasks=1.0, audit=1.0))
    ended_early = 0
    for _ in range(30):
        with trio.move_on_after(chance.uniform(0.001, 0.1)) as scope:
            await pruner.prune(epoch)
        ended_early += scope.cancelled_caught
        for kind, left in (
            ("task", "SELECT count(*) FROM llm_tasks"),
            ("audit", "SELECT count(*) FROM audit_logs WHERE action = 'x'"),
        ):
            assert sum(entry["pruned"] for entry in recorded(sql, kind)) == 300 - sql(left)[0][0]
    assert ended_early >= 3
    await pruner.prune(epoch)
    assert [recorded(sql, kind) for kind in ("task", "audit")] == [[{"keep_days": 1, "pruned": 300}]] * 2


@pytest.mark.usefixtures("small")
async def test_beside_requeues_nothing_is_lost(db, sql, prune):
    """A task that is requeued in the moment in which it would go either goes or is queued."""
    sql(
        "INSERT INTO llm_tasks (id, prompt, status, created_at, updated_at) "
        "SELECT 't' || n, 'p', 'dead', n, n FROM generate_series(1, 300) AS n"
    )
    sql("INSERT INTO llm_results (id, task_id) SELECT 'r' || n, 't' || n FROM generate_series(1, 300) AS n")
    pruned, requeued = [], []

    async def requeue():
        requeued.append(await bulk.run(db, bulk.REQUEUE, bulk.TaskFilter(status="dead"), actor="test"))

    async def delete():
        pruned.append((await prune(tasks=1.0)).tasks)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(delete)
        nursery.start_soon(delete)
        await trio.sleep(0.05)
        nursery.start_soon(requeue)
    left = dict(sql("SELECT status, count(*) FROM llm_tasks GROUP BY status"))
    assert left == ({"queued": requeued[0].changed} if requeued[0].changed else {})
    assert sum(pruned) + requeued[0].changed == 300
    assert sql("SELECT task_id FROM llm_results EXCEPT SELECT id FROM llm_tasks") == []
    assert sql("SELECT id FROM llm_tasks EXCEPT SELECT task_id FROM llm_results") == []


async def test_the_service_prunes_at_once_and_every_minute(db, sql, epoch, autojump_clock, monkeypatch):
    """A round that prunes nothing and collects nothing needs no database, so the clock may jump."""

    async def none(database, *, epoch):
        return []

    monkeypatch.setattr(uploads, "collect", none)
    rounds = []
    service = Retention(db, lambda: rounds.append(trio.current_time()) or Keep())
    with trio.move_on_after(150):
        await service.run(epoch)
    assert [round(at - rounds[0]) for at in rounds] == [0, 60, 120]


async def test_a_task_can_be_created_anew_with_the_key_of_one_that_went(db, sql, new_task, prune, shift_clock):
    first = await new_task(idempotency_key="k")
    await tasks.cancel(db, first.id, actor="test")
    shift_clock(2 * DAY)
    await prune(tasks=1.0)
    assert (await new_task(idempotency_key="k")).id != first.id


@pytest.mark.usefixtures("small")
async def test_who_has_an_old_conversation_is_forgotten(sql, prune):
    sql("INSERT INTO conversations SELECT 'old' || n, 'w1', 1 FROM generate_series(1, 12) AS n")
    sql("INSERT INTO conversations VALUES ('new', 'w1', bloom_now_ms())")
    await prune(audit=1)
    assert sql("SELECT count(*) FROM conversations") == [(13,)]
    await prune(tasks=1)
    assert sql("SELECT context FROM conversations") == [("new",)]
