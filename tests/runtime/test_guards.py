"""Guards one by one: what a constraint, a trigger or a condition in a statement refuses, and nothing else refuses.

`test_invariants.py` shows that the rules hold as a whole. Where several guards stand behind one another, such a test
passes without any single one of them; so here each is alone, by rows that only a hand in psql could make, or by another
session that holds just what the guard is about.
"""

import json
from contextlib import contextmanager, suppress

import psycopg
import pytest
import trio

from bloomd.membridge.agents import Agent
from bloomd.membridge.polls import PollResult
from bloomd.runtime import (
    claims,
    completion,
    expiry,
    keys,
    leases,
    liveness,
    queue,
    releases,
    stats,
    tasks,
    trail,
    waiting_room,
    workers,
)
from bloomd.runtime.claims import Claim, claim
from bloomd.runtime.heartbeats import Beat, heartbeat, heartbeat_many
from bloomd.runtime.ids import Id
from bloomd.runtime.leader import CAMPAIGN, Leader, Leadership
from bloomd.runtime.model import Completion, Retry
from bloomd.runtime.refusals import Conflict, Invalid, LeaseLost, NoWorker, Refusal, TaskCancelled
from bloomd.runtime.releases import Release

RETRY = Retry(0.001, 0.001)
LONG = Retry(600, 600)
FAR = 4_102_444_800_000
MANY = "abcdefgh"
"""Names of workers and tasks, of which `a` comes first."""

SHUFFLED = "dgbahcfe"
"""Whose task each of them is: `a` comes neither first nor last when workers are taken as the tasks come."""

LEASE = "INSERT INTO leases (id, task_id, worker_id, expires_at, ttl_seconds, status) VALUES (%s, %s, %s, %s, 300, %s)"
"""A lease as a hand in psql makes one."""


@pytest.fixture
def locked(conninfo):
    """Another session holds what a statement locks, while the block runs."""

    @contextmanager
    def lock(statement):
        with psycopg.connect(conninfo) as other:
            other.execute(statement.encode())
            yield other
            other.rollback()

    return lock


@pytest.fixture
async def leased(db, new_task, new_worker):
    """A task that worker w1 has claimed, and its lease."""
    await new_worker(max_concurrency=2)
    await new_task("x")
    [got] = await claim(db, Claim("w1"), actor="test")
    return got


@pytest.fixture
async def fleet(sql, new_worker):
    """Tasks a to h, leased to workers that are not in this order."""
    for name in MANY:
        await new_worker(name)
    sql("UPDATE workers SET alive_at = 1, status = 'offline'")
    sql(f"INSERT INTO llm_tasks (id, prompt) SELECT unnest(string_to_array('{','.join(MANY)}', ',')), 'x'")
    for name, worker in zip(MANY, SHUFFLED, strict=True):
        sql(LEASE, f"lease-{name}", name, worker, FAR, "active")
    sql("UPDATE llm_tasks SET status = 'leased', lease_id = 'lease-' || id")


def completed(**fields):
    return Completion(status="success", output="done", **fields)


class TestRows:
    """What cannot be written, whoever writes it."""

    @pytest.mark.parametrize(
        ("constraint", "statement"),
        [
            ("llm_tasks_policy", """UPDATE llm_tasks SET policy = '{"timeout_sec": "1", "budget": 0}'"""),
            ("llm_tasks_policy", """UPDATE llm_tasks SET policy = '{"timeout_sec": 1}'"""),
            ("llm_tasks_policy", """UPDATE llm_tasks SET policy = '{"timeout_sec": 0, "budget": 0}'"""),
            ("llm_tasks_policy", """UPDATE llm_tasks SET policy = '{"timeout_sec": 3601, "budget": 0}'"""),
            ("llm_tasks_policy", """UPDATE llm_tasks SET policy = '{"timeout_sec": 1.5, "budget": 0}'"""),
            ("llm_tasks_policy", "INSERT INTO llm_tasks (id, prompt, policy) VALUES ('t', 'x', '{}')"),
            ("llm_tasks_context_hints", "UPDATE llm_tasks SET context_hints = '[1]'"),
            ("llm_tasks_context_hints", "UPDATE llm_tasks SET context_hints = '{}'"),
            ("llm_tasks_labels", "UPDATE llm_tasks SET labels = '[1]'"),
            ("llm_tasks_desired_format", "UPDATE llm_tasks SET desired_format = 'xml'"),
            ("llm_tasks_lease", "UPDATE llm_tasks SET lease_id = NULL"),
            ("llm_tasks_lease", "UPDATE llm_tasks SET status = 'queued'"),
            ("llm_tasks_lease", "INSERT INTO llm_tasks (id, prompt, status) VALUES ('t', 'x', 'running')"),
            ("llm_tasks_status", "UPDATE llm_tasks SET status = 'paused'"),
            ("leases_status", "UPDATE leases SET status = 'paused'"),
            ("leases_outcome", "UPDATE leases SET outcome = 'nice'"),
            ("workers_capabilities", "UPDATE workers SET capabilities = '[]'"),
            ("workers_ip_addrs", "UPDATE workers SET ip_addrs = '{}'"),
            ("workers_source", "UPDATE workers SET source = 'nobody'"),
            ("workers_status", "UPDATE workers SET status = 'asleep'"),
        ],
    )
    async def test_what_cannot_be(self, leased, sql, constraint, statement):
        with pytest.raises(psycopg.errors.CheckViolation) as refused:
            sql(statement)
        assert refused.value.diag.constraint_name == constraint

    def test_what_the_rules_read_is_never_null(self, sql):
        """A condition on a null is neither true nor false, and the rule is not kept."""
        read = {
            "leases": "task_id worker_id started_at expires_at ttl_seconds status serial",
            "llm_tasks": "context_id labels policy status created_at updated_at attempts max_attempts priority ready",
            "workers": "url status capabilities active_leases capacity cordoned draining",
            "runtime_artifacts": "task_id",
            "audit_logs": "timestamp action",
            "artifact_pieces": "data",
            "uploads": "lease_id",
            "tallies": "change",
            "samples": "created completed failed dead cancelled",
            "leaders": "holder epoch expires_at",
            "queue_state": "paused",
            "api_keys": "hash",
        }
        nullable = set(sql("SELECT table_name, column_name FROM information_schema.columns WHERE is_nullable = 'YES'"))
        assert {(table, column) for table, columns in read.items() for column in columns.split()} & nullable == set()

    def test_the_queue_has_one_state(self, sql):
        with pytest.raises(psycopg.errors.UniqueViolation):
            sql("INSERT INTO queue_state DEFAULT VALUES")
        with pytest.raises(psycopg.errors.CheckViolation):
            sql("INSERT INTO queue_state (one) VALUES (false)")

    def test_no_two_keys_are_one(self, sql):
        key = "INSERT INTO api_keys (name, hash, created_at, created_by) VALUES (%s, 'h', 1, 'test')"
        sql(key, "one")
        with pytest.raises(psycopg.errors.UniqueViolation):
            sql(key, "other")


class TestCounts:
    """The count of a worker's leases (invariant 2), and of everything."""

    @pytest.mark.parametrize(
        ("said", "capacity"), [(5, 5), (2.9, 2), (33, 32), (-1, 0), ("7", 1), (None, 1), (True, 1)]
    )
    async def test_the_capacity_is_what_the_capabilities_say(self, new_worker, sql, said, capacity):
        await new_worker()
        sql("UPDATE workers SET capabilities = %s", json.dumps({"max_concurrency": said}))
        assert sql("SELECT capacity FROM workers") == [(capacity,)]
        sql("UPDATE workers SET capacity = 20")
        assert sql("SELECT capacity FROM workers") == [(capacity,)]

    async def test_a_lease_moved_to_another_worker_moves_the_count(self, db, leased, new_task, new_worker, sql):
        await new_worker("w2")
        sql("UPDATE leases SET worker_id = 'w2'")
        assert sql("SELECT id, active_leases FROM workers ORDER BY id") == [("w1", 0), ("w2", 1)]
        other = await new_task()
        await leases.lease(db, other.id, worker_id="w1", actor="test")
        with pytest.raises(psycopg.errors.CheckViolation, match="worker w2 has no free capacity"):
            sql("UPDATE leases SET worker_id = 'w2' WHERE task_id = %s", other.id)

    async def test_a_lease_that_ended_frees_and_takes_nothing(self, leased, sql):
        sql(LEASE, "e", "t", "w1", 1, "released")
        sql("UPDATE leases SET status = 'expired' WHERE id = 'e'")
        assert sql("SELECT active_leases FROM workers") == [(1,)]
        sql("DELETE FROM leases WHERE id = 'e'")
        assert sql("SELECT active_leases FROM workers") == [(1,)]

    @pytest.mark.parametrize("end", ["UPDATE leases SET status = 'expired'", "DELETE FROM leases"])
    async def test_a_count_that_is_wrong_does_not_go_below_nothing(self, leased, sql, end):
        sql(
            "ALTER TABLE workers DISABLE TRIGGER workers_counted; UPDATE workers SET active_leases = 0; "
            "ALTER TABLE workers ENABLE TRIGGER workers_counted"
        )
        sql(end)
        assert sql("SELECT active_leases FROM workers") == [(0,)]

    async def test_a_worker_that_comes_back_counts_what_its_name_still_holds(
        self, db, leased, new_task, sql, new_worker
    ):
        done = await new_task()
        await leases.lease(db, done.id, actor="test")
        await completion.complete(db, done.id, completed(), retry=RETRY, actor="test")
        sql("ALTER TABLE workers DISABLE TRIGGER workers_deleted")
        sql("DELETE FROM workers")
        assert (await new_worker()).active_leases == 1

    async def test_tables_emptied_at_once_are_counted_as_empty(self, db, leased, sql):
        await completion.complete(db, leased.task.id, completed(), retry=RETRY, actor="test")
        sql("TRUNCATE leases, llm_tasks")
        [counted] = await db.rows(stats.Stats, stats.COUNT, least=None)
        assert (counted.by_status, counted.leases) == ({}, 0)

    async def test_a_status_that_stays_is_not_tallied(self, leased, sql):
        [before] = sql("SELECT count(*) FROM tallies")
        sql("UPDATE llm_tasks SET status = status")
        assert sql("SELECT count(*) FROM tallies") == [before]


class TestLockOrder:
    """Several rows are locked in order of id: whoever waits for the first one holds none of the others."""

    @pytest.fixture
    def waits_for_the_first(self, held, sql):
        async def check(table, call, id="id", name="a"):
            """Nothing beyond the one that somebody holds is locked."""
            async with held(f"SELECT FROM {table} WHERE {id} = '{name}' FOR UPDATE", call):
                free = sql(f"SELECT {id} FROM {table} WHERE {id} > '{name}' ORDER BY {id} FOR UPDATE SKIP LOCKED")
                assert "".join(found for (found,) in free) == MANY[MANY.index(name) + 1 :]

        return check

    @pytest.fixture
    def together(self, db, fleet, epoch, sql):
        """Each way in which many leases are changed at once, begun at the wrong end."""
        ids = [f"lease-{name}" for name in reversed(MANY)]

        async def expire():
            sql("UPDATE leases SET expires_at = 1")
            assert len(await expiry.expire(db, retry=RETRY, epoch=epoch)) == len(MANY)

        async def beat():
            await heartbeat_many(db, [Beat(id) for id in ids], actor="test")

        async def complete():
            said = [completed(lease_id=id) for id in ids]
            await completion.complete_many(db, said, retry=RETRY, actor="test")

        async def release():
            await releases.release(db, [Release(id) for id in ids], actor="test")

        return {"expire": expire, "heartbeat": beat, "complete": complete, "release": release}

    @pytest.mark.parametrize("way", ["heartbeat", "complete", "release"])
    async def test_tasks_are_locked_in_order(self, waits_for_the_first, together, way):
        await waits_for_the_first("llm_tasks", together[way])

    @pytest.mark.parametrize("way", ["expire", "heartbeat", "complete", "release"])
    @pytest.mark.parametrize("name", ["a", "e"])
    async def test_workers_are_locked_in_order(self, waits_for_the_first, together, way, name):
        await waits_for_the_first("workers", together[way], name=name)

    @pytest.mark.parametrize("way", ["mirror", "silent", "polls", "signs of life"])
    async def test_workers_that_are_heard_of_are_locked_in_order(self, db, waits_for_the_first, fleet, epoch, sql, way):
        names = list(reversed(MANY))

        async def hear():
            if way == "mirror":
                agents = [Agent(id=name, status="online") for name in names]
                await liveness.mirror(db, agents, epoch, offline_after=60)
            elif way == "silent":
                await liveness.mark_silent(db, offline_after=60, mirrored=False, epoch=epoch)
            elif way == "polls":
                await liveness.record_polls(db, [PollResult(id=name, ok=True) for name in names], epoch)
            else:
                await claims.sign_of_life(db, names, actor="test")

        if way == "silent":
            sql("UPDATE workers SET status = 'online'")
        await waits_for_the_first("workers", hear)

    async def test_keys_that_were_used_are_locked_in_order(self, db, waits_for_the_first, sql):
        for name in MANY:
            sql(
                "INSERT INTO api_keys (name, hash, created_at, created_by) VALUES (%s, %s, 1, 'test')", name, f"#{name}"
            )

        async def note():
            await keys.note_uses(db, {f"#{name}": 1.0 for name in reversed(MANY)})

        await waits_for_the_first("api_keys", note, id="name")

    async def test_many_leases_made_at_once_take_capacity_in_order(self, waits_for_the_first, fleet, sql):
        sql("DELETE FROM leases")

        async def insert():
            await trio.to_thread.run_sync(
                sql,
                "INSERT INTO leases (id, task_id, worker_id, expires_at, ttl_seconds) "
                "SELECT id, id, id, 1, 300 FROM workers ORDER BY id DESC",
            )

        await waits_for_the_first("workers", insert)

    async def test_many_leases_deleted_at_once_free_it_in_order(self, waits_for_the_first, fleet, sql):
        async def delete():
            await trio.to_thread.run_sync(sql, "DELETE FROM leases")

        await waits_for_the_first("workers", delete)


class TestTimes:
    """A task that has to wait is not ready, and goes by the clock all the same."""

    async def test_what_waits_is_not_ready(self, db, leased, new_task, sql, epoch):
        ready = "SELECT ready FROM llm_tasks WHERE id = %s"
        later = await new_task(not_before=FAR)
        assert sql(ready, later.id) == [(False,)]
        await tasks.cancel(db, later.id, actor="test")
        await tasks.requeue(db, later.id, actor="test")
        assert sql(ready, later.id) == [(False,)]

        id = leased.task.id
        await releases.release(db, [Release(leased.lease.id, retry_after_seconds=60)], actor="test")
        assert sql(ready, id) == [(False,)]
        assert sql("SELECT retry_at = updated_at + 60000 FROM llm_tasks WHERE id = %s", id) == [(True,)]

        async def again():
            await tasks.requeue(db, id, actor="test")
            [got] = await claim(db, Claim("w1"), actor="test")
            assert got.task.id == id

        await again()
        await completion.complete(db, id, Completion("error"), retry=LONG, actor="test")
        assert sql(ready, id) == [(False,)]
        await again()
        sql("UPDATE leases SET expires_at = 1 WHERE status = 'active'")
        await expiry.expire(db, retry=LONG, epoch=epoch)
        assert sql(ready, id) == [(False,)]
        assert sql("SELECT retry_at > updated_at + 300000 FROM llm_tasks WHERE id = %s", id) == [(True,)]

    async def test_a_claimed_lease_never_outlasts_its_deadline(self, db, new_task, new_worker, sql):
        await new_worker()
        await new_task()
        [got] = await claim(db, Claim("w1", ttl_seconds=3600), actor="test")
        assert got.lease.expires_at == got.lease.deadline_at
        beaten = await heartbeat(db, got.task.id, Beat(), actor="test")
        assert beaten.expires_at == got.lease.deadline_at

    @pytest.mark.parametrize("column", ["not_before", "retry_at"])
    async def test_a_claim_goes_by_the_clock_not_by_ready(self, db, new_task, new_worker, sql, column):
        await new_worker()
        await new_task()
        sql(f"UPDATE llm_tasks SET {column} = {FAR}, ready = true")
        assert await claim(db, Claim("w1"), actor="test") == []

    async def test_promoted_is_what_is_due(self, db, sql, epoch):
        task = (
            "INSERT INTO llm_tasks (id, prompt, status, ready, not_before, retry_at) VALUES (%s, 'x', %s, %s, %s, %s)"
        )
        sql(task, "due", "queued", False, 1, None)
        sql(task, "without a time", "queued", False, None, None)
        sql(task, "later", "queued", False, 1, FAR)
        sql(task, "ready", "queued", True, None, None)
        sql(task, "ended", "dead", False, 1, None)
        assert await expiry.promote(db, epoch=epoch) == 2
        assert sql("SELECT id FROM llm_tasks WHERE NOT ready ORDER BY id") == [("ended",), ("later",)]


class TestLease:
    """Who gets a task that somebody names."""

    async def test_nobody_while_the_queue_is_paused(self, db, new_task, new_worker):
        await new_worker()
        task = await new_task()
        await queue.pause(db, reason="quota", actor="test")
        with pytest.raises(NoWorker, match="The queue is paused: quota"):
            await leases.lease(db, task.id, actor="test")

    @pytest.mark.parametrize("column", ["not_before", "retry_at"])
    async def test_nobody_before_its_time(self, db, new_task, new_worker, sql, column):
        await new_worker()
        task = await new_task()
        sql(f"UPDATE llm_tasks SET {column} = {FAR}")
        with pytest.raises(Conflict, match=f"not before its {column.removesuffix('_at')}"):
            await leases.lease(db, task.id, actor="test")

    async def test_nobody_when_it_was_leased_while_it_was_waited_for(self, db, new_task, new_worker, held):
        await new_worker("w1")
        await new_worker("w2")
        task = await new_task()
        refused = []

        async def lease():
            with pytest.raises(Conflict, match="Task status is 'leased'") as refusal:
                await leases.lease(db, task.id, actor="test")
            refused.append(refusal)

        leasing = (
            "WITH lease AS (INSERT INTO leases (id, task_id, worker_id, expires_at, ttl_seconds) "
            f"VALUES ('l', '{task.id}', 'w1', {FAR}, 300)) "
            f"UPDATE llm_tasks SET status = 'leased', lease_id = 'l' WHERE id = '{task.id}'"
        )
        async with held(leasing, lease):
            pass
        assert refused

    async def test_the_worker_of_a_context_while_it_is_at_it(self, db, new_task, new_worker):
        await new_worker("w1", max_concurrency=2)
        first, second, third = [await new_task(context_id="c") for _ in range(3)]
        await leases.lease(db, first.id, actor="test")
        await new_worker("w2", max_concurrency=8)
        assert (await leases.lease(db, second.id, actor="test")).worker.id == "w1"
        for task in (first, second):
            await completion.complete(db, task.id, completed(), retry=RETRY, actor="test")
        assert (await leases.lease(db, third.id, actor="test")).worker.id == "w2"

    async def test_no_worker_has_the_context_of_those_without_one(self, db, new_task, new_worker):
        await new_worker("w1", max_concurrency=3)
        await leases.lease(db, (await new_task()).id, actor="test")
        await new_worker("w2", max_concurrency=8)
        assert (await leases.lease(db, (await new_task()).id, actor="test")).worker.id == "w2"

    async def test_the_worker_named_and_no_other(self, db, new_task, new_worker):
        await new_worker("w1", max_concurrency=8)
        await leases.lease(db, (await new_task(context_id="c")).id, actor="test")
        await new_worker("w2", max_concurrency=2)
        for context in ("", "c"):
            task = await new_task(context_id=context)
            assert (await leases.lease(db, task.id, worker_id="w2", actor="test")).worker.id == "w2"
        with pytest.raises(NoWorker):
            await leases.lease(db, (await new_task()).id, worker_id="w2", actor="test")

    async def test_the_one_that_the_task_is_pinned_to(self, db, new_task, new_worker):
        await new_worker("w1", max_concurrency=8)
        await new_worker("w2")
        first, second = [await new_task(pinned_worker_id="w2") for _ in range(2)]
        assert (await leases.lease(db, first.id, actor="test")).worker.id == "w2"
        with pytest.raises(NoWorker):
            await leases.lease(db, second.id, actor="test")

    async def test_the_freest_then_the_liveliest(self, db, new_task, new_worker, sql):
        for name, room, heard in (("w1", 1, 9), ("w2", 2, 1), ("w3", 2, 2), ("w4", 2, None)):
            await new_worker(name, max_concurrency=room)
            sql("UPDATE workers SET last_heartbeat = %s WHERE id = %s", heard, name)
        got = [(await leases.lease(db, (await new_task()).id, actor="test")).worker.id for _ in range(4)]
        assert got == ["w3", "w2", "w4", "w1"]

    async def test_one_that_is_busy_being_leased_is_passed_over(self, db, new_task, new_worker, locked):
        await new_worker("w1", max_concurrency=8)
        await new_worker("w2")
        task = await new_task()
        with locked("SELECT FROM workers WHERE id = 'w1' FOR UPDATE"), trio.fail_after(5):
            assert (await leases.lease(db, task.id, actor="test")).worker.id == "w2"

    async def test_one_that_is_busy_is_waited_for_when_no_other_suits(self, db, new_task, new_worker, held):
        await new_worker()
        task = await new_task()
        got = []

        async def lease():
            got.append(await leases.lease(db, task.id, actor="test"))

        async with held("SELECT FROM workers FOR UPDATE", lease):
            assert got == []
        assert got[0].worker.id == "w1"

    async def test_naming_one_that_can_be_called_is_no_sign_of_its_life(self, db, new_task, new_worker):
        await new_worker(url="http://10.0.0.1:8001", status="offline")
        with pytest.raises(NoWorker):
            await leases.lease(db, (await new_task()).id, worker_id="w1", actor="test")
        assert (await workers.one(db, "w1")).status == "offline"


class TestClaim:
    """What one claim takes, and whom it waits for."""

    async def test_without_a_task_it_waits_for_nobody(self, db, new_task, new_worker, locked):
        await new_worker()
        await new_task(labels=["gpu"])
        with locked("SELECT FROM workers FOR UPDATE"), trio.fail_after(5):
            assert await claim(db, Claim("w1"), actor="test") == []

    async def test_it_passes_over_what_somebody_holds(self, db, new_task, new_worker, locked):
        await new_worker(max_concurrency=2)
        first, second = await new_task(), await new_task()
        with locked(f"SELECT FROM llm_tasks WHERE id = '{first.id}' FOR UPDATE"), trio.fail_after(5):
            assert [got.task.id for got in await claim(db, Claim("w1", 2), actor="test")] == [second.id]

    async def test_it_locks_no_more_than_it_takes(self, db, new_task, new_worker, sql):
        await new_worker(max_concurrency=2)
        for _ in range(6):
            await new_task()
        asked = {"worker_id": "w1", "max": 100, "labels": None, "ttl_seconds": None, "grace": 30, "actor": "test"}
        async with db.transaction() as connection:
            await connection.execute(claims.CLAIM, asked)
            assert len(sql("SELECT id FROM llm_tasks FOR UPDATE SKIP LOCKED")) == 4

    async def test_the_first_of_all_kinds(self, db, new_task, new_worker):
        await new_worker(max_concurrency=3, labels=["gpu"])
        for prompt, priority, labels in (("a", 0, []), ("b", 9, ["gpu"]), ("c", 5, []), ("d", 1, ["gpu"])):
            await new_task(prompt, priority=priority, labels=labels)
        assert [got.task.prompt for got in await claim(db, Claim("w1", 2), actor="test")] == ["b", "c"]
        assert [got.task.prompt for got in await claim(db, Claim("w1", 2), actor="test")] == ["d"]

    async def test_it_counts_an_attempt(self, db, leased):
        assert (leased.task.attempts, (await tasks.one(db, leased.task.id)).attempts) == (1, 1)

    async def test_two_of_a_context_do_not_take_the_place_of_another(self, db, new_task, new_worker, sql):
        await new_worker(max_concurrency=2, labels=["gpu"])
        sql("""UPDATE workers SET capabilities = capabilities || '{"sessions": true}'""")
        for prompt, context, labels in (("a1", "a", []), ("a2", "a", []), ("b1", "b", ["gpu"])):
            await new_task(prompt, context_id=context, labels=labels)
        assert [got.task.prompt for got in await claim(db, Claim("w1", 2), actor="test")] == ["a1", "b1"]

    async def test_one_that_is_cancelled_while_the_answer_is_on_its_way(
        self, db, new_task, new_worker, sql, monkeypatch
    ):
        await new_worker()
        await new_task()
        change = db.change
        with trio.CancelScope() as scope:

            async def answer_late(*args, **parameters):
                answer = await change(*args, **parameters)
                scope.cancel()
                await trio.lowlevel.checkpoint()
                return answer

            monkeypatch.setattr(db, "change", answer_late)
            await claim(db, Claim("w1"), actor="test")
        assert scope.cancelled_caught
        assert sql("SELECT status, outcome FROM leases") == [("released", "released")]

    async def test_those_without_a_context_have_no_turn(self, db, new_task, new_worker, sql):
        await new_worker(max_concurrency=2)
        sql("""UPDATE workers SET capabilities = capabilities || '{"sessions": true}'""")
        for _ in range(2):
            await new_task()
            assert len(await claim(db, Claim("w1"), actor="test")) == 1

    async def test_a_turn_that_another_got_first_is_no_error(self, db, new_task, new_worker, held, sql):
        await new_worker()
        sql("""UPDATE workers SET capabilities = capabilities || '{"sessions": true}'""")
        await new_worker("w2")
        await new_task(context_id="c")
        got = []

        async def ask():
            got.append(await claim(db, Claim("w1"), actor="test"))

        other = (
            "INSERT INTO leases (id, task_id, worker_id, expires_at, ttl_seconds, context_id, serial) "
            f"VALUES ('l', 'other', 'w2', {FAR}, 300, 'c', true)"
        )
        async with held(other, ask):
            pass
        assert got == [[]]
        assert sql("SELECT status FROM llm_tasks") == [("queued",)]

    @pytest.mark.parametrize("sessions", [False, True])
    @pytest.mark.parametrize(
        ("task", "called"),
        [
            ({}, {"w4"}),
            ({"labels": ["gpu"]}, {"w1"}),
            ({"labels": ["arm"]}, set()),
            ({"pinned_worker_id": "w2"}, {"w2"}),
            ({"pinned_worker_id": "w5"}, set()),
        ],
        ids=["the one that waits longest", "by its labels", "by no labels", "by its pin", "none that is cordoned"],
    )
    async def test_who_is_called_for_a_task(self, db, new_task, new_worker, sql, task, called, sessions):
        await new_worker("w1", labels=["gpu"])
        for name in ("w2", "w3", "w4", "w5"):
            await new_worker(name)
        sql("UPDATE workers SET cordoned = true WHERE id = 'w5'")
        sql("UPDATE workers SET capabilities = capabilities || %s", json.dumps({"sessions": sessions}))

        async def those_called():
            waiting = json.dumps([{"id": name, "labels": None} for name in ("w5", "w4", "w3", "w2", "w1")])
            asked = {"waiting": waiting, "many": 64, "few": 4}
            return {each.id for each in await db.rows(Id, waiting_room.COULD_CLAIM, **asked)}

        assert await those_called() == set()
        await new_task(**task)
        assert await those_called() == called
        await queue.pause(db, actor="test")
        assert await those_called() == set()

    async def test_nobody_with_sessions_is_called_out_of_turn(self, db, new_task, new_worker, sql):
        await new_worker("w1")
        await leases.lease(db, (await new_task(context_id="c")).id, actor="test")
        await new_worker("w2")
        sql("""UPDATE workers SET capabilities = capabilities || '{"sessions": true}'""")
        await new_task(context_id="c")
        waiting = json.dumps([{"id": "w2", "labels": None}])
        assert await db.rows(Id, waiting_room.COULD_CLAIM, waiting=waiting, many=64, few=4) == []

    async def test_what_it_leaves_is_offered_to_the_others(self, db, new_task, new_worker):
        await new_worker(max_concurrency=2, labels=["gpu"])
        for labels in ([], ["gpu"]):
            await new_task(labels=labels)
        offers = []
        db.on_offer = lambda: offers.append(1)
        for expected in ([1], [1]):
            assert len(await claim(db, Claim("w1"), actor="test")) == 1
            assert offers == expected

    async def test_turns_are_waited_for_in_order(self, db, conninfo, new_task, new_worker, held, sql):
        """By the hash of the context, of which that of `a` is the first; whoever waits for it holds no other."""
        for name in ("w1", "w2", "w3"):
            await new_worker(name, max_concurrency=8)
        sql("""UPDATE workers SET capabilities = capabilities || '{"sessions": true}'""")
        for context in reversed(MANY):
            await new_task(context_id=context)

        async def ask():
            assert len(await claim(db, Claim("w1", 8), actor="test")) == len(MANY) - 1

        def turns(worker, contexts):
            return (
                "INSERT INTO leases (id, task_id, worker_id, expires_at, ttl_seconds, context_id, serial) "
                f"SELECT name, name, '{worker}', {FAR}, 300, name, true FROM string_to_table('{contexts}', ',') AS name"
            )

        async with held(turns("w2", "a"), ask):
            with psycopg.connect(conninfo, options="-c lock_timeout=5000") as other:
                other.execute(turns("w3", ",".join(MANY[1:])).encode())
                other.rollback()


class TestFencing:
    """A lease that does not hold its task any more changes nothing, in whichever way it lost it."""

    @pytest.fixture(params=["heartbeat", "complete", "release"])
    def say(self, request, db):
        """Speak for a task by a lease, in each way there is; gives the refusal."""

        async def say(task_id, lease_id):
            try:
                if request.param == "heartbeat":
                    await heartbeat(db, task_id, Beat(lease_id, progress=1), actor="test")
                elif request.param == "complete":
                    said = completed(lease_id=lease_id)
                    await completion.complete(db, task_id, said, retry=RETRY, actor="test")
                else:
                    [answer] = await releases.release(db, [Release(lease_id)], actor="test")
                    return answer if isinstance(answer, Refusal) else None
            except Refusal as refusal:
                return refusal

        return say

    STATE = """
    SELECT (SELECT jsonb_agg(llm_tasks ORDER BY id) FROM llm_tasks), (SELECT jsonb_agg(leases ORDER BY id) FROM leases),
           (SELECT count(*) FROM llm_results)
    """

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE llm_tasks SET status = 'completed'",
            "UPDATE leases SET status = 'expired', outcome = 'expired', ended_at = 1",
            "UPDATE leases SET expires_at = 1",
            "UPDATE leases SET deadline_at = 1",
        ],
        ids=["the task has ended", "the lease has ended", "expired", "past its deadline"],
    )
    async def test_each_condition_is_looked_at(self, leased, say, sql, change):
        sql(change)
        before = sql(self.STATE)
        assert isinstance(await say(leased.task.id, leased.lease.id), Refusal)
        assert sql(self.STATE) == before

    async def test_an_old_lease_beside_the_current_one(self, leased, say, sql):
        """As in a database that today's runtime wrote."""
        sql("DROP INDEX leases_one_active_per_task")
        sql(LEASE, "old", leased.task.id, "w1", FAR, "active")
        before = sql(self.STATE)
        assert isinstance(await say(leased.task.id, "old"), LeaseLost)
        assert sql(self.STATE) == before
        assert await say(leased.task.id, leased.lease.id) is None
        assert sql("SELECT status, expires_at FROM leases WHERE id = 'old'") == [("active", FAR)]

    async def test_what_was_decided_while_it_waited_for_the_task_stays(self, leased, say, sql, held):
        refused = []

        async def speak():
            refused.append(await say(leased.task.id, leased.lease.id))

        async with held("UPDATE llm_tasks SET status = 'cancelled'", speak):
            pass
        assert isinstance(refused[0], Refusal)
        assert sql("SELECT status FROM llm_tasks") == [("cancelled",)]
        assert sql("SELECT status FROM leases") == [("active",)]
        assert sql("SELECT count(*) FROM llm_results") == [(0,)]

    async def test_without_a_lease_named_one_that_has_ended_does_not_count(self, db, leased, sql):
        sql("UPDATE leases SET status = 'expired'")
        with pytest.raises(Conflict, match="The lease of this task has expired"):
            await completion.complete(db, leased.task.id, completed(), retry=RETRY, actor="test")

    async def test_a_worker_that_is_not_the_one(self, db, leased, sql):
        with pytest.raises(LeaseLost, match="another worker than w2"):
            said = completed(worker_id="w2")
            await completion.complete(db, leased.task.id, said, retry=RETRY, actor="test")
        assert sql("SELECT status FROM leases") == [("active",)]

    async def test_a_cancelled_task_is_told_as_such(self, db, leased, say):
        await tasks.cancel(db, leased.task.id, actor="test")
        assert isinstance(await say(leased.task.id, leased.lease.id), TaskCancelled)

    async def test_only_the_first_heartbeat_is_in_the_trail(self, db, leased, sql):
        for _ in range(3):
            await heartbeat(db, leased.task.id, Beat(progress=5), actor="test")
        assert sql("SELECT count(*) FROM audit_logs WHERE action = 'task.running'") == [(1,)]

    async def test_a_lease_of_another_task_proves_nothing(self, db, leased, new_task):
        other = await new_task()
        said = completed(lease_id=leased.lease.id)
        for _ in ("active", "completed"):
            with pytest.raises(LeaseLost, match="never had this lease"):
                await completion.complete(db, other.id, said, retry=RETRY, actor="test")
            await completion.complete(db, leased.task.id, said, retry=RETRY, actor="test")

    async def test_a_lease_made_while_a_heartbeat_waits_counts(self, db, leased, sql, held):
        answers = []

        async def beat():
            answers.append(await heartbeat(db, leased.task.id, Beat(), actor="test"))

        another = (
            "UPDATE leases SET status = 'released'; "
            "INSERT INTO leases (id, task_id, worker_id, expires_at, ttl_seconds) "
            f"VALUES ('new', '{leased.task.id}', 'w1', {FAR}, 300); UPDATE llm_tasks SET lease_id = 'new'"
        )
        async with held(another, beat):
            pass
        assert [lease.id for lease in answers] == ["new"]

    async def test_said_twice_at_once_counts_once(self, db, leased, sql):
        id = leased.lease.id
        beats = await heartbeat_many(db, [Beat(id), Beat(id)], actor="test")
        assert [lease.id for lease in beats] == [id, id]
        said = [Completion("error", error_message="first", lease_id=id), completed(lease_id=id)]
        first, again = await completion.complete_many(db, said, retry=RETRY, actor="test")
        assert first == again
        assert sql("SELECT error_message FROM llm_results") == [("first",)]

    async def test_given_back_twice_at_once_counts_once(self, db, leased, sql):
        back = [Release(leased.lease.id, reason) for reason in ("one", "other")]
        answers = await releases.release(db, back, actor="test")
        assert [lease.id for lease in answers] == [leased.lease.id] * 2
        assert sql("SELECT count(*) FROM audit_logs WHERE action = 'task.released'") == [(1,)]

    async def test_a_task_without_attempts_is_given_back_too(self, db, leased, sql):
        sql("UPDATE llm_tasks SET attempts = 0")
        await releases.release(db, [Release(leased.lease.id)], actor="test")
        assert sql("SELECT attempts FROM llm_tasks") == [(0,)]


class TestCancel:
    async def test_what_has_ended_stays_as_it_is(self, db, leased, sql):
        sql("UPDATE llm_tasks SET status = 'completed'")
        with pytest.raises(Conflict, match="Task status is 'completed'"):
            await tasks.cancel(db, leased.task.id, actor="test")
        assert sql("SELECT status FROM leases") == [("active",)]

    async def test_a_lease_that_has_ended_keeps_its_end(self, db, leased, sql):
        sql("UPDATE leases SET status = 'expired', outcome = 'expired', ended_at = 1")
        with suppress(Conflict):
            await tasks.cancel(db, leased.task.id, actor="test")
        assert sql("SELECT status, outcome, ended_at FROM leases") == [("expired", "expired", 1)]

    async def test_a_lease_of_the_task_that_it_does_not_name_is_let_alone(self, db, leased, sql):
        sql("DROP INDEX leases_one_active_per_task")
        sql(LEASE, "old", leased.task.id, "w1", FAR, "active")
        await tasks.cancel(db, leased.task.id, actor="test")
        assert sql("SELECT status FROM leases WHERE id = 'old'") == [("active",)]


class TestSweeper:
    """What the sweeper ends, and whom it waits for: nobody."""

    @pytest.fixture
    def when_it_has_looked(self, held, sql):
        """Stop the sweeper's statement when it has its snapshot, and has locked nothing yet."""
        sql(
            "CREATE OR REPLACE FUNCTION bloom_leads(of_epoch bigint) RETURNS boolean LANGUAGE plpgsql VOLATILE AS "
            "$$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN true; END $$"
        )
        return lambda sweep: held("SELECT pg_advisory_xact_lock(1)", sweep)

    @pytest.mark.parametrize("of_another", ["released", "active"])
    async def test_a_batch_has_room_for_what_is_due_only(self, db, leased, sql, epoch, monkeypatch, of_another):
        monkeypatch.setattr(expiry, "SWEEP_BATCH", 1)
        sql("UPDATE leases SET expires_at = 1")
        sql("INSERT INTO llm_tasks (id, prompt, status, lease_id) VALUES ('!', 'x', 'running', 'l')")
        sql(LEASE, "l", "!", "w1", FAR if of_another == "active" else 1, of_another)
        assert [lost.lease_id for lost in await expiry.expire(db, retry=RETRY, epoch=epoch)] == [leased.lease.id]

    async def test_a_batch_at_a_time(self, db, fleet, sql, epoch, monkeypatch):
        monkeypatch.setattr(expiry, "SWEEP_BATCH", 5)
        sql("UPDATE leases SET expires_at = 1")
        assert [len(await expiry.expire(db, retry=RETRY, epoch=epoch)) for _ in range(3)] == [5, 3, 0]

    async def test_the_workers_own_leases_and_no_others(self, db, fleet, sql):
        sql("UPDATE leases SET expires_at = 1")
        await workers.remove(db, "a", force=RETRY, actor="test")
        assert sql("SELECT worker_id FROM leases WHERE status <> 'active'") == [("a",)]

    @pytest.mark.parametrize("way", ["expire", "rescue", "promote"])
    async def test_a_task_that_somebody_holds_is_passed_over(self, db, leased, sql, epoch, locked, way):
        if way == "expire":
            sql("UPDATE leases SET expires_at = 1")
        elif way == "rescue":
            sql("UPDATE leases SET status = 'expired'")
            sql("UPDATE llm_tasks SET updated_at = 1")
        else:
            sql("UPDATE llm_tasks SET status = 'queued', lease_id = NULL, ready = false")

        async def sweep():
            if way == "expire":
                return len(await expiry.expire(db, retry=RETRY, epoch=epoch))
            if way == "rescue":
                return len(await expiry.rescue(db, epoch=epoch))
            return await expiry.promote(db, epoch=epoch)

        with locked("SELECT FROM llm_tasks FOR UPDATE"), trio.fail_after(5):
            assert await sweep() == 0
        assert await sweep() == 1

    @pytest.mark.parametrize("meanwhile", ["completed", "prolonged"])
    async def test_a_lease_that_changed_after_it_looked(self, db, leased, sql, when_it_has_looked, meanwhile):
        expired = []

        async def sweep():
            expired.extend(await expiry.expire(db, retry=RETRY, epoch=1))

        sql("UPDATE leases SET expires_at = 1")
        async with when_it_has_looked(sweep):
            if meanwhile == "completed":
                sql("UPDATE leases SET status = 'released', outcome = 'success'")
                sql("UPDATE llm_tasks SET status = 'completed'")
            else:
                sql("UPDATE leases SET expires_at = %s", FAR)
        assert expired == []
        kept = ("released", "success") if meanwhile == "completed" else ("active", None)
        assert sql("SELECT status, outcome FROM leases") == [kept]

    async def test_a_stranded_task_that_was_leased_after_it_looked(self, db, leased, sql, when_it_has_looked):
        rescued = []

        async def rescue():
            rescued.extend(await expiry.rescue(db, epoch=1))

        sql("UPDATE leases SET status = 'expired'")
        sql("UPDATE llm_tasks SET updated_at = 1")
        async with when_it_has_looked(rescue):
            sql(LEASE, "new", leased.task.id, "w1", FAR, "active")
            sql("UPDATE llm_tasks SET lease_id = 'new', updated_at = bloom_now_ms()")
        assert rescued == []
        assert sql("SELECT status, lease_id FROM llm_tasks") == [("leased", "new")]

    async def test_a_task_that_has_ended_keeps_its_end(self, db, leased, sql, epoch):
        sql("UPDATE llm_tasks SET status = 'completed'")
        sql("UPDATE leases SET expires_at = 1")
        [lost] = await expiry.expire(db, retry=RETRY, epoch=epoch)
        assert lost.task_status is None
        assert sql("SELECT status FROM llm_tasks") == [("completed",)]

    async def test_only_what_is_under_way_can_be_stranded(self, db, sql, epoch):
        for status in ("queued", "completed", "failed", "dead", "cancelled"):
            sql("INSERT INTO llm_tasks (id, prompt, status, updated_at) VALUES (%s, 'x', %s, 1)", status, status)
        assert await expiry.rescue(db, epoch=epoch) == []

    async def test_a_stranded_task_without_attempts_left_is_dead(self, db, leased, sql, epoch):
        sql("UPDATE leases SET status = 'expired'")
        sql("UPDATE llm_tasks SET updated_at = 1, attempts = max_attempts")
        await expiry.rescue(db, epoch=epoch)
        assert sql("SELECT status FROM llm_tasks") == [("dead",)]


class TestLeader:
    async def test_one_whose_time_is_over_can_do_nothing_though_nobody_has_followed(self, db, leased, sql, epoch):
        sql("UPDATE leases SET expires_at = 1")
        sql("UPDATE leaders SET expires_at = bloom_now_ms()")
        assert await expiry.expire(db, retry=RETRY, epoch=epoch) == []
        assert sql("SELECT status FROM leases") == [("active",)]

    async def test_an_impossible_row_of_its_own_is_a_new_epoch_when_it_trusts_itself_no_more(self, db, sql):
        said = {"holder": "h", "node": "n", "ttl_ms": 6000}
        await db.rows(Leader, CAMPAIGN, epoch=None, **said)
        sql("UPDATE leaders SET expires_at = %s", FAR)
        [leader] = await db.rows(Leader, CAMPAIGN, epoch=None, **said)
        assert (leader.epoch, leader.here) == (2, True)

    async def test_who_does_not_lead_any_more_has_nothing_to_resign(self, db, sql):
        leadership = Leadership(db, "n")
        async with trio.open_nursery() as nursery:
            await nursery.start(leadership.run)
            sql("UPDATE leaders SET expires_at = 1")
            nursery.cancel_scope.cancel()
        assert sql("SELECT count(*) FROM audit_logs WHERE action = 'leader.resigned'") == [(0,)]


class TestOperators:
    async def test_a_pause_until_a_time_that_is_over_is_none(self, db, sql):
        with pytest.raises(Invalid, match="this time is over"):
            await queue.pause(db, until=1, actor="ann")
        assert sql("SELECT paused FROM queue_state") == [(False,)]
        assert sql("SELECT count(*) FROM audit_logs") == [(0,)]

    async def test_a_worker_that_holds_leases_is_not_removed(self, db, leased):
        with pytest.raises(Conflict, match="Worker holds 1 active leases"):
            await workers.remove(db, "w1", actor="test")

    async def test_removal_by_force_tries_again_when_a_task_was_held(self, db, leased, sql, locked, monkeypatch):
        end_all_of = expiry.end_all_of
        with locked("SELECT FROM llm_tasks FOR UPDATE") as other:

            async def end_then_let_go(*args, **kwargs):
                ended = await end_all_of(*args, **kwargs)
                other.rollback()
                return ended

            monkeypatch.setattr(expiry, "end_all_of", end_then_let_go)
            await workers.remove(db, "w1", force=RETRY, actor="test")
        assert sql("SELECT count(*) FROM workers") == [(0,)]

    @pytest.mark.parametrize("what", ["pause", "cordon"])
    async def test_two_who_say_the_same_at_once_are_one(self, db, new_worker, sql, held, what):
        await new_worker()
        said = {
            "pause": ("UPDATE queue_state SET paused = true", lambda: queue.pause(db, actor="ann")),
            "cordon": ("UPDATE workers SET cordoned = true", lambda: workers.cordon(db, "w1", actor="ann")),
        }
        statement, say = said[what]
        async with held(statement, say):
            pass
        assert sql("SELECT count(*) FROM audit_logs WHERE actor = 'ann'") == [(0,)]


class TestTrail:
    """Invariant 7, one change after the other: while the audit trail refuses its entry, nothing has changed."""

    CHANGES = {  # noqa: RUF012
        "create": lambda db, got: tasks.create(db, [tasks.NewTask(prompt="x")], actor="test"),
        "requeue": lambda db, got: tasks.requeue(db, "gone", actor="test"),
        "cancel": lambda db, got: tasks.cancel(db, got.task.id, actor="test"),
        "lease": lambda db, got: leases.lease(db, "waits", actor="test"),
        "lease, a sign of life": lambda db, got: leases.lease(db, "waits", worker_id="w2", actor="test"),
        "claim": lambda db, got: claim(db, Claim("w1"), actor="test"),
        "claim, a sign of life": lambda db, got: claims.sign_of_life(db, ["w2"], actor="test"),
        "heartbeat": lambda db, got: heartbeat(db, got.task.id, Beat(), actor="test"),
        "complete": lambda db, got: completion.complete(db, got.task.id, completed(), retry=RETRY, actor="test"),
        "release": lambda db, got: releases.release(db, [Release(got.lease.id)], actor="test"),
        "expire": lambda db, got: expiry.expire(db, retry=RETRY, epoch=1),
        "rescue": lambda db, got: expiry.rescue(db, epoch=1),
        "register": lambda db, got: workers.register(db, workers.NewWorker(name="w3"), actor="test"),
        "remove": lambda db, got: workers.remove(db, "w2", actor="test"),
        "cordon": lambda db, got: workers.cordon(db, "w1", actor="test"),
        "pause": lambda db, got: queue.pause(db, actor="test"),
        "mirror": lambda db, got: liveness.mirror(db, [Agent(id="w4")], 1, offline_after=60),
        "silence": lambda db, got: liveness.mark_silent(db, offline_after=-60, mirrored=False, epoch=1),
        "polls": lambda db, got: liveness.record_polls(db, [PollResult(id="w2", ok=True)], 1),
    }
    STATE = """
    SELECT (SELECT jsonb_agg(llm_tasks ORDER BY id) FROM llm_tasks), (SELECT jsonb_agg(leases ORDER BY id) FROM leases),
           (SELECT jsonb_agg(workers ORDER BY id) FROM workers), (SELECT jsonb_agg(queue_state) FROM queue_state),
           (SELECT count(*) FROM llm_results), (SELECT count(*) FROM runtime_artifacts)
    """

    @pytest.mark.parametrize("change", CHANGES)
    async def test_7_nothing_without_its_entry(self, db, leased, new_worker, sql, epoch, change):
        await new_worker("w2", status="offline")
        task = "INSERT INTO llm_tasks (id, prompt, status, lease_id, updated_at) VALUES (%s, 'x', %s, %s, 1)"
        sql(task, "waits", "queued", None)
        sql(task, "gone", "dead", None)
        sql(task, "stranded", "leased", "nothing")
        if change == "expire":
            sql("UPDATE leases SET expires_at = 1")
        sql("ALTER TABLE audit_logs ADD CONSTRAINT never CHECK (false) NOT VALID")
        before = sql(self.STATE)
        with pytest.raises(psycopg.errors.CheckViolation, match="never"):
            await self.CHANGES[change](db, leased)
        assert sql(self.STATE) == before

    ENTRIES = "INSERT INTO audit_logs (id, action, entity_id, xact, seq) "

    async def test_nothing_is_read_while_something_earlier_may_come(self, db, sql, locked):
        async def read():
            return [entry.entity_id for entry in (await trail.after(db, (0, 0))).entries]

        with locked("INSERT INTO audit_logs (id, action, entity_id) VALUES ('1', 'test', 'early')") as other:
            sql("INSERT INTO audit_logs (id, action, entity_id) VALUES ('2', 'test', 'later')")
            assert await read() == []
            other.commit()
            assert await read() == ["early", "later"]

    async def test_a_page_is_the_earliest_by_transaction_not_by_number(self, db, sql):
        sql(
            self.ENTRIES
            + "SELECT n, 'test', n, CASE WHEN n <= 400 THEN 2 ELSE 1 END, n FROM generate_series(1, 800) AS n"
        )
        page = (await trail.after(db, (0, 0))).entries
        assert [entry.seq for entry in page] == [*range(401, 801), *range(1, 101)]
