"""The invariants of contract section 4 under concurrency, and against a psql session. One test or more for each."""

import random
from contextlib import suppress

import psycopg
import pytest
import trio
from invariants import TABLES, TRAIL, broken

from bloomd.membridge.agents import Agent
from bloomd.runtime import completion, expiry, leases, liveness, stats, tasks, workers
from bloomd.runtime.heartbeats import Beat, heartbeat
from bloomd.runtime.model import Completion, Metrics, Retry
from bloomd.runtime.refusals import Conflict, LeaseLost, NotFound, NoWorker, Refusal

RETRY = Retry(first_seconds=0.001, max_seconds=0.001)


async def every(*calls):
    """Run them all at once; what each gave or raised."""
    outcomes = [None] * len(calls)

    async def run(index, call):
        try:
            outcomes[index] = await call()
        except Refusal as refusal:
            outcomes[index] = refusal

    async with trio.open_nursery() as nursery:
        for index, call in enumerate(calls):
            nursery.start_soon(run, index, call)
    return outcomes


def given(outcomes):
    return [outcome for outcome in outcomes if not isinstance(outcome, Refusal)]


async def test_1_one_active_lease_of_a_task(db, new_task, new_worker, sql):
    for name in range(5):
        await new_worker(f"w{name}", max_concurrency=10)
    task = await new_task()
    outcomes = await every(*[lambda: leases.lease(db, task.id, actor="test")] * 20)
    assert len(given(outcomes)) == 1
    assert all(isinstance(outcome, Conflict) for outcome in outcomes if outcome not in given(outcomes))
    assert sql("SELECT count(*) FROM leases WHERE status = 'active'") == [(1,)]


async def test_1_psql_cannot_make_a_second_one(db, new_task, new_worker, sql):
    await new_worker(max_concurrency=5)
    task = await new_task()
    await leases.lease(db, task.id, actor="test")
    with pytest.raises(psycopg.errors.UniqueViolation):
        sql("INSERT INTO leases SELECT gen_random_uuid(), task_id, worker_id, 1, 2, 300, 'active' FROM leases")


@pytest.mark.parametrize("named", [True, False])
async def test_2_a_worker_never_holds_more_than_it_may(db, new_task, new_worker, sql, named):
    await new_worker("w1", max_concurrency=5)
    queued = [await new_task() for _ in range(24)]
    worker = "w1" if named else None
    outcomes = await every(
        *[lambda id=task.id: leases.lease(db, id, worker_id=worker, actor="test") for task in queued]
    )
    assert len(given(outcomes)) == 5
    assert all(isinstance(outcome, NoWorker) for outcome in outcomes if outcome not in given(outcomes))
    assert sql("SELECT active_leases FROM workers") == [(5,)]


async def test_2_a_full_worker_never_hides_a_free_one(db, new_task, new_worker, sql):
    """Those that wait for the row of the favourite go on to the next one when it is full: no false refusals."""
    for name in range(4):
        await new_worker(f"w{name}", max_concurrency=5)
    queued = [await new_task() for _ in range(20)]
    outcomes = await every(*[lambda id=task.id: leases.lease(db, id, actor="test") for task in queued])
    assert len(given(outcomes)) == 20
    assert sql("SELECT active_leases FROM workers") == [(5,)] * 4


async def test_2_psql_cannot_overfill_a_worker(db, new_task, new_worker, sql):
    await new_worker("w1", max_concurrency=1)
    first, second = await new_task(), await new_task()
    await leases.lease(db, first.id, actor="test")
    with pytest.raises(psycopg.errors.CheckViolation, match="worker w1 has no free capacity"):
        sql("INSERT INTO leases VALUES ('x', %s, 'w1', 1, 2, 300, 'active')", second.id)
    sql("INSERT INTO leases VALUES ('x', %s, 'w1', 1, 2, 300, 'released')", second.id)
    with pytest.raises(psycopg.errors.CheckViolation):
        sql("UPDATE leases SET status = 'active' WHERE id = 'x'")
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        sql("INSERT INTO leases VALUES ('y', %s, 'nobody', 1, 2, 300, 'active')", second.id)
    sql("DELETE FROM leases WHERE status = 'active'")
    assert sql("SELECT active_leases FROM workers") == [(0,)]


async def test_2_psql_cannot_make_the_count_wrong(db, new_task, new_worker, sql):
    await new_worker("w1", max_concurrency=1)
    first, second = await new_task(), await new_task()
    await leases.lease(db, first.id, actor="test")
    sql("UPDATE workers SET active_leases = 0")
    assert sql("SELECT active_leases FROM workers") == [(1,)]
    with pytest.raises(NoWorker):
        await leases.lease(db, second.id, actor="test")
    for statement in (
        "DELETE FROM workers",
        "DELETE FROM llm_tasks",
        "TRUNCATE leases",
        "TRUNCATE workers",
        "TRUNCATE llm_tasks",
    ):
        with pytest.raises(psycopg.errors.RestrictViolation):
            sql(statement)
    sql("ALTER TABLE workers DISABLE TRIGGER workers_deleted")
    sql("DELETE FROM workers")
    assert (await new_worker("w1", max_concurrency=1)).active_leases == 1


async def test_2_workers_removed_by_force_while_they_are_given_tasks(db, new_task, new_worker, sql):
    async def use(name):
        for _ in range(6):
            task = await new_task(max_attempts=10)
            try:
                await leases.lease(db, task.id, worker_id=name, actor="test")
                await completion.complete(db, task.id, Completion(status="success"), retry=RETRY, actor="test")
            except Refusal:
                pass

    async def remove(name):
        for _ in range(4):
            await new_worker(name, max_concurrency=3)
            with suppress(Refusal):
                await workers.remove(db, name, force=RETRY, actor="test")

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for name in ("a", "b"):
                for _ in range(3):
                    nursery.start_soon(use, name)
                nursery.start_soon(remove, name)
    assert sql("SELECT id FROM leases WHERE status = 'active' AND worker_id NOT IN (SELECT id FROM workers)") == []
    assert (
        sql(
            "SELECT id FROM workers WHERE active_leases <> "
            "(SELECT count(*) FROM leases WHERE worker_id = workers.id AND status = 'active')"
        )
        == []
    )


async def test_3_an_expired_or_superseded_lease_is_refused(db, new_task, new_worker, sql, epoch):
    await new_worker(max_concurrency=2)
    task = await new_task()
    old = (await leases.lease(db, task.id, actor="test")).lease
    sql("UPDATE leases SET expires_at = 1")
    late = Completion(status="success", output="late", lease_id=old.id)
    with pytest.raises(LeaseLost):
        await completion.complete(db, task.id, late, retry=RETRY, actor="test")
    await expiry.expire(db, retry=RETRY, epoch=epoch)
    sql("UPDATE llm_tasks SET retry_at = NULL")
    await leases.lease(db, task.id, actor="test")
    outcomes = await every(
        *[lambda: completion.complete(db, task.id, late, retry=RETRY, actor="test")] * 10,
        *[lambda: heartbeat(db, task.id, Beat(lease_id=old.id), actor="test")] * 10,
    )
    assert all(isinstance(outcome, LeaseLost) for outcome in outcomes)
    assert (await tasks.one(db, task.id)).status == "leased"


@pytest.mark.parametrize("named", [True, False])
async def test_4_one_result_of_an_attempt(db, new_task, new_worker, sql, named):
    await new_worker()
    task = await new_task()
    lease = (await leases.lease(db, task.id, actor="test")).lease
    outcomes = await every(
        *[
            lambda n=n: completion.complete(
                db,
                task.id,
                Completion(
                    status="success",
                    output=f"output {n}",
                    metrics=Metrics(duration_ms=n),
                    lease_id=lease.id if named else None,
                ),
                retry=RETRY,
                actor="test",
            )
            for n in range(20)
        ]
    )
    answers = given(outcomes)
    assert len(answers) == (20 if named else 1)
    assert len({answer.artifact.id for answer in answers}) == 1
    assert sql("SELECT count(*), count(DISTINCT lease_id) FROM llm_results") == [(1, 1)]
    assert sql("SELECT count(*) FROM runtime_artifacts") == [(1,)]
    with pytest.raises(psycopg.errors.UniqueViolation):
        sql("INSERT INTO llm_results (id, lease_id) VALUES ('x', %s)", lease.id)
    with pytest.raises(psycopg.errors.UniqueViolation):
        sql(
            "INSERT INTO runtime_artifacts (id, task_id, lease_id, name) "
            "SELECT 'x', task_id, lease_id, name FROM runtime_artifacts"
        )


async def test_4_a_repeated_completion_is_answered_as_the_first_time(db, new_task, new_worker):
    await new_worker()
    task = await new_task(max_attempts=1)
    lease = (await leases.lease(db, task.id, actor="test")).lease
    said = Completion(status="error", error_message="boom", lease_id=lease.id)
    first = await completion.complete(db, task.id, said, retry=RETRY, actor="test")
    await tasks.requeue(db, task.id, actor="test")
    await leases.lease(db, task.id, actor="test")
    assert await completion.complete(db, task.id, said, retry=RETRY, actor="test") == first


async def test_5_expiries_completions_and_heartbeats_at_once_strand_nothing(db, new_task, new_worker, sql, epoch):
    await new_worker(max_concurrency=30)
    queued = [await new_task(max_attempts=10) for _ in range(20)]
    for task in queued:
        await leases.lease(db, task.id, actor="test")
    sql("UPDATE leases SET expires_at = bloom_now_ms() + 30")
    calls = []
    for task in queued:
        calls.append(lambda id=task.id: heartbeat(db, id, Beat(), actor="test"))
        calls.append(
            lambda id=task.id: completion.complete(db, id, Completion(status="error"), retry=RETRY, actor="test")
        )
        calls.append(lambda: expiry.expire(db, retry=RETRY, epoch=epoch))
    await every(*calls)
    sql("UPDATE leases SET expires_at = 1 WHERE status = 'active'")
    await expiry.expire(db, retry=RETRY, epoch=epoch)
    assert sql("SELECT status, count(*) FROM llm_tasks GROUP BY status") == [("queued", 20)]
    assert sql("SELECT active_leases FROM workers") == [(0,)]


@pytest.mark.parametrize("status", ["leased", "running"])
async def test_5_an_expired_lease_strands_no_task(db, new_task, new_worker, sql, status, epoch):
    await new_worker()
    task = await new_task(max_attempts=2)
    for expected in ("queued", "dead"):
        lease = (await leases.lease(db, task.id, actor="test")).lease
        if status == "running":
            await heartbeat(db, task.id, Beat(), actor="test")
        sql("UPDATE leases SET expires_at = 1 WHERE id = %s", lease.id)
        assert [lost.task_status for lost in await expiry.expire(db, retry=RETRY, epoch=epoch)] == [expected]
        sql("UPDATE llm_tasks SET retry_at = NULL")
    assert sql("SELECT active_leases FROM workers") == [(0,)]
    assert "expired" in str((await tasks.one(db, task.id)).error_message)


async def test_5_a_task_that_somebody_stranded_is_rescued(db, new_task, new_worker, sql, epoch):
    await new_worker(max_concurrency=3)
    stranded, working = await new_task(), await new_task()
    for task in (stranded, working):
        await leases.lease(db, task.id, actor="test")
    sql("UPDATE leases SET status = 'expired' WHERE task_id = %s", stranded.id)
    assert await expiry.rescue(db, epoch=epoch) == []
    sql("UPDATE llm_tasks SET updated_at = updated_at - 10001")
    assert await expiry.rescue(db, epoch=epoch) == [stranded.id]
    assert await expiry.rescue(db, epoch=epoch) == []
    assert (await tasks.one(db, stranded.id)).status == "queued"
    assert (await tasks.one(db, working.id)).status == "leased"


async def test_6_an_old_lease_never_touches_a_newer_one(db, new_task, new_worker, sql, epoch):
    await new_worker(max_concurrency=2)
    task = await new_task()
    current = (await leases.lease(db, task.id, actor="test")).lease
    sql("DROP INDEX leases_one_active_per_task")  # as in a database that today's runtime wrote
    sql("INSERT INTO leases VALUES ('old', %s, 'w1', 1, 2, 300, 'active')", task.id)
    [ended] = await expiry.expire(db, retry=RETRY, epoch=epoch)
    assert (ended.lease_id, ended.task_status) == ("old", None)
    assert (await tasks.one(db, task.id)).lease_id == current.id


async def test_6_sweepers_at_once_end_each_lease_once(db, new_task, new_worker, sql, epoch):
    await new_worker(max_concurrency=30)
    for _ in range(30):
        await leases.lease(db, (await new_task()).id, actor="test")
    sql("UPDATE leases SET expires_at = 1")
    sweeps = await every(*[lambda: expiry.expire(db, retry=RETRY, epoch=epoch)] * 8)
    ended = [lost.lease_id for sweep in sweeps for lost in sweep]
    assert len(ended) == len(set(ended)) == 30
    assert sql("SELECT count(*) FROM audit_logs WHERE action = 'lease.expired'") == [(30,)]


async def test_7_no_change_without_its_audit_entry(db, new_task, new_worker, sql, epoch):
    """The audit table refuses: then nothing has changed either."""
    await new_worker()
    task = await new_task()
    sql("ALTER TABLE audit_logs ADD CONSTRAINT never CHECK (false) NOT VALID")
    with pytest.raises(psycopg.errors.CheckViolation):
        await leases.lease(db, task.id, actor="test")
    with pytest.raises(psycopg.errors.CheckViolation):
        await new_task()
    assert (await tasks.one(db, task.id)).status == "queued"
    assert sql("SELECT count(*) FROM leases") == [(0,)]
    assert sql("SELECT count(*) FROM llm_tasks") == [(1,)]
    sql("ALTER TABLE audit_logs DROP CONSTRAINT never")
    await leases.lease(db, task.id, actor="test")
    sql("ALTER TABLE audit_logs ADD CONSTRAINT never CHECK (false) NOT VALID")
    for change in (
        lambda: heartbeat(db, task.id, Beat(), actor="test"),
        lambda: completion.complete(db, task.id, Completion(status="success"), retry=RETRY, actor="test"),
        lambda: workers.register(db, workers.NewWorker(name="w2"), actor="test"),
        lambda: workers.remove(db, "w1", force=RETRY, actor="test"),
        lambda: liveness.mark_silent(db, offline_after=-1, mirrored=False, epoch=epoch),
        lambda: liveness.mirror(db, [Agent(id="w3")], offline_after=60, epoch=epoch),
    ):
        with pytest.raises(psycopg.errors.CheckViolation):
            await change()
    sql("UPDATE leases SET expires_at = 1")
    with pytest.raises(psycopg.errors.CheckViolation):
        await expiry.expire(db, retry=RETRY, epoch=epoch)
    assert sql("SELECT status FROM leases") == [("active",)]
    assert sql("SELECT id, status FROM workers") == [("w1", "online")]
    assert sql("SELECT count(*) FROM llm_results") == [(0,)]


async def test_a_storm_leaves_every_invariant_whole(db, new_worker, sql, epoch):
    """Leases, heartbeats, completions, expiries, requeues and cancellations, all at once, on few tasks and workers."""
    for name in range(3):
        await new_worker(f"w{name}", max_concurrency=3)
    created = await tasks.create(
        db, [tasks.NewTask(prompt=f"p{n}", max_attempts=10, context_id=f"c{n % 3}") for n in range(12)], actor="test"
    )
    ids = [each.task.id for each in created]
    chance = random.Random(7)

    async def client():
        for _ in range(60):
            id, act = chance.choice(ids), chance.random()
            with trio.move_on_after(0.002 if chance.random() < 0.2 else 30):
                try:
                    if act < 0.45:
                        await leases.lease(db, id, worker_id=chance.choice([None, "w0"]), actor="storm")
                    elif act < 0.65:
                        await heartbeat(db, id, Beat(), actor="storm")
                    elif act < 0.8:
                        outcome = chance.choice(["success", "error"])
                        await completion.complete(db, id, Completion(status=outcome), retry=RETRY, actor="storm")
                    elif act < 0.9:
                        await expiry.expire(db, retry=RETRY, epoch=epoch)
                    else:
                        await db.execute(
                            "UPDATE leases SET expires_at = 1 WHERE task_id = %(id)s AND status = 'active'", id=id
                        )
                except (Conflict, NotFound, NoWorker):
                    pass
            if act > 0.95:
                with trio.move_on_after(5):
                    await db.execute(
                        "UPDATE llm_tasks SET status = 'queued', attempts = 0, lease_id = NULL, worker_id = NULL, "
                        "retry_at = NULL WHERE id = %(id)s AND status IN ('completed', 'dead')",
                        id=id,
                    )

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(client)

    entries = "7: a lease without its entry"
    assert broken(sql, TABLES, {entries: TRAIL[entries]}) == {}
    assert sql("SELECT count(*) FROM leases")[0][0] > 50
    counter = stats.Counter(db)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(counter.run)
        counts = await counter.read()
        nursery.cancel_scope.cancel()
    assert sum(counts.by_status.values()) == 12
