"""Bulk requeue and cancel: exactly what matches, once, with one audit entry that always tells the truth."""

import itertools
import json
import random
import time
from contextlib import suppress

import psycopg
import pytest
import trio

from bloomd.errors import Unavailable
from bloomd.runtime import bulk, completion, leases, tasks
from bloomd.runtime.bulk import CANCEL, REQUEUE, BadFilter, Outcome, TaskFilter
from bloomd.runtime.claims import Claim, claim
from bloomd.runtime.heartbeats import Beat, heartbeat
from bloomd.runtime.model import Completion, Retry
from bloomd.runtime.refusals import Refusal, TaskCancelled

RETRY = Retry(first_seconds=0.001, max_seconds=0.001)

BROKEN = {
    "two active leases": "SELECT task_id FROM leases WHERE status = 'active' GROUP BY task_id HAVING count(*) > 1",
    "over capacity": "SELECT id FROM workers WHERE active_leases > bloom_capacity(capabilities)",
    "wrong count": "SELECT id FROM workers WHERE active_leases <> "
    "(SELECT count(*) FROM leases WHERE worker_id = workers.id AND status = 'active')",
    "stranded": "SELECT id FROM llm_tasks WHERE status IN ('leased', 'running') AND NOT EXISTS "
    "(SELECT FROM leases WHERE leases.id = llm_tasks.lease_id AND leases.status = 'active')",
    "lease of a task that does not run": "SELECT id FROM leases WHERE status = 'active' AND NOT EXISTS "
    "(SELECT FROM llm_tasks WHERE lease_id = leases.id AND status IN ('leased', 'running'))",
    "not ready": "SELECT id FROM llm_tasks WHERE status = 'queued' AND NOT ready AND retry_at IS NULL",
}


@pytest.fixture
def small(monkeypatch):
    """Batches and pages of a size that a few tasks fill."""
    monkeypatch.setattr(bulk, "BATCH", 5)
    monkeypatch.setattr(bulk, "PAGE", 20)


@pytest.fixture
def fill(sql):
    """Tasks of this status, straight into the table: `t0000`, `t0001`, ..."""
    numbers = itertools.count()

    def insert(count, status="failed", **columns):
        columns = {"prompt": "p", "attempts": 3, "error_message": "boom", **columns}
        first = next(numbers)
        for _ in range(count - 1):
            next(numbers)
        sql(
            f"INSERT INTO llm_tasks (id, status, {', '.join(columns)}) "
            f"SELECT 't' || lpad(n::text, 6, '0'), %s, {', '.join(['%s'] * len(columns))} "
            f"FROM generate_series({first}, {first + count - 1}) AS n",
            status,
            *columns.values(),
        )

    return insert


@pytest.fixture
def moves(sql):
    """How often a task went into this status, as a trigger counts it."""
    sql("CREATE TABLE moves (id varchar, status varchar)")
    sql(
        "CREATE FUNCTION note_move() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO moves VALUES (NEW.id, NEW.status); RETURN NULL; END $$"
    )
    sql(
        "CREATE TRIGGER moved AFTER UPDATE ON llm_tasks FOR EACH ROW "
        "WHEN (OLD.status <> NEW.status) EXECUTE FUNCTION note_move()"
    )
    return lambda status: sql("SELECT count(*) FROM moves WHERE status = %s", status)[0][0]


def statuses(sql):
    return dict(sql("SELECT status, count(*) FROM llm_tasks GROUP BY status"))


def recorded(sql, action):
    """The details of the entries of this action, in the order of the events."""
    return [
        json.loads(row[0]) for row in sql("SELECT detail FROM audit_logs WHERE action = %s ORDER BY xact, seq", action)
    ]


def broken(sql):
    return {name: rows for name, query in BROKEN.items() if (rows := sql(query))}


async def test_requeued_tasks_are_as_good_as_new(db, sql, fill):
    far = sql("SELECT bloom_now_ms() + 3600000")[0][0]
    fill(2, "failed", agent_slug="a")
    fill(2, "dead", agent_slug="a", lease_id="gone", worker_id="w1", progress='"half"', progress_at=1, ready=False)
    fill(2, "cancelled", agent_slug="a", not_before=far)
    fill(2, "queued", agent_slug="a", retry_at=far, ready=False)
    fill(2, "queued", agent_slug="a")
    fill(2, "completed", agent_slug="a")
    fill(2, "dead", agent_slug="b")
    assert await bulk.count(db, REQUEUE, TaskFilter(agent_slug="a")) == 8
    assert await bulk.run(db, REQUEUE, TaskFilter(agent_slug="a"), actor="me") == Outcome(8, 8)
    assert statuses(sql) == {"queued": 10, "completed": 2, "dead": 2}
    assert sql(
        "SELECT DISTINCT attempts, retry_at, error_message, lease_id, worker_id, progress, progress_at, "
        "ready = (not_before IS NULL) FROM llm_tasks WHERE status = 'queued' AND id NOT IN ('t000008', 't000009')"
    ) == [(0, None, None, None, None, None, None, True)]
    assert sql("SELECT DISTINCT attempts FROM llm_tasks WHERE id IN ('t000008', 't000009')") == [(3,)]
    assert sql("SELECT entity_type, actor FROM audit_logs") == [("task", "me")]
    assert recorded(sql, "tasks.requeued") == [{"filter": {"agent_slug": "a"}, "changed": 8}]


async def test_cancelled_tasks_end_with_their_leases(db, sql, new_task, new_worker):
    await new_worker("w1", max_concurrency=5)
    leased, running, queued, other = [await new_task(context_id=c) for c in ("c", "c", "c", "d")]
    for task in (leased, running, other):
        await leases.lease(db, task.id, actor="test")
    await heartbeat(db, running.id, Beat(), actor="test")
    told = []
    db.on_offer = lambda: told.append("offer")
    db.on_change = lambda: told.append("change")
    assert await bulk.run(db, CANCEL, TaskFilter(context_id="c"), actor="me") == Outcome(3, 3)
    assert told == ["change", "offer"]
    assert statuses(sql) == {"cancelled": 3, "leased": 1}
    assert sql("SELECT status, outcome, ended_at IS NULL, count(*) FROM leases GROUP BY 1, 2, 3 ORDER BY 1") == [
        ("active", None, True, 1),
        ("released", "cancelled", False, 2),
    ]
    assert sql("SELECT active_leases FROM workers") == [(1,)]
    assert {(await tasks.one(db, task.id)).worker_id for task in (leased, running)} == {"w1"}
    assert (await tasks.one(db, queued.id)).lease_id is None
    for beat in (Beat(), Beat(lease_id=(await tasks.one(db, running.id)).lease_id)):
        with pytest.raises(TaskCancelled):
            await heartbeat(db, running.id, beat, actor="test")


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        (TaskFilter(status="dead"), {"dead"}),
        (TaskFilter(status=["dead", "failed"]), {"dead", "failed"}),
        (TaskFilter(agent_slug="a"), {"agent"}),
        (TaskFilter(context_id="c"), {"context"}),
        (TaskFilter(context_id="", agent_slug=""), {"dead", "failed", "old", "worker"}),
        (TaskFilter(worker_id="w"), {"worker"}),
        (TaskFilter(before=1001), {"old"}),
        (TaskFilter(before=1000), set()),
        (TaskFilter(status="dead", worker_id="w"), set()),
        (TaskFilter(agent_slug="%"), set()),
    ],
)
async def test_only_what_matches_all_conditions(db, sql, filter, expected):
    insert = "INSERT INTO llm_tasks (id, prompt, status, agent_slug, context_id, worker_id, created_at) VALUES "
    for id, status, agent, context, worker, created in (
        ("dead", "dead", "", "", None, 2000),
        ("failed", "failed", "", "", None, 2000),
        ("agent", "cancelled", "a", "", None, 2000),
        ("context", "cancelled", "", "c", None, 2000),
        ("worker", "cancelled", "", "", "w", 2000),
        ("old", "cancelled", "", "", None, 1000),
        ("completed", "completed", "a", "c", "w", 1000),
    ):
        sql(insert + "(%s, 'p', %s, %s, %s, %s, %s)", id, status, agent, context, worker, created)
    assert await bulk.count(db, REQUEUE, filter) == len(expected)
    assert statuses(sql).get("queued", 0) == 0
    assert sql("SELECT count(*) FROM audit_logs") == [(0,)]
    assert await bulk.run(db, REQUEUE, filter, actor="me") == Outcome(len(expected), len(expected))
    assert {id for (id,) in sql("SELECT id FROM llm_tasks WHERE status = 'queued'")} == expected
    assert len(recorded(sql, "tasks.requeued")) == bool(expected)


@pytest.mark.parametrize(
    ("action", "filter", "text"),
    [
        (CANCEL, TaskFilter(), "It needs a condition, or it would cancel everything"),
        (REQUEUE, TaskFilter(), "set one or more of `status`, `agent_slug`, `context_id`, `worker_id`, `before`"),
        (CANCEL, TaskFilter(status="dead"), "'dead' cannot be cancelled, only 'queued', 'leased' or 'running'"),
        (REQUEUE, TaskFilter(status=["dead", "running"]), "'running' cannot be requeued, only 'failed', 'dead', 'canc"),
    ],
)
async def test_filters_that_are_refused(db, action, filter, text):
    with pytest.raises(BadFilter, match=text):
        await bulk.count(db, action, filter)
    with pytest.raises(BadFilter, match=text):
        await bulk.run(db, action, filter, actor="me")


@pytest.mark.usefixtures("small")
async def test_a_task_that_fails_again_meanwhile_is_requeued_once(db, sql, fill, moves):
    fill(50)
    later = sql("SELECT max(created_at) + 1 FROM llm_tasks")[0][0]

    def fail_again():
        sql("UPDATE llm_tasks SET status = 'failed' WHERE status = 'queued'")

    db.on_offer = fail_again
    with trio.fail_after(20):
        assert await bulk.run(db, REQUEUE, TaskFilter(status="failed"), actor="me") == Outcome(50, 50)
    assert moves("queued") == 50
    assert recorded(sql, "tasks.requeued") == [{"filter": {"status": "failed"}, "changed": 50}]

    def one_more():
        sql(
            "INSERT INTO llm_tasks (id, prompt, status, created_at) VALUES (gen_random_uuid(), 'p', 'failed', %s)",
            later,
        )
        sql("INSERT INTO llm_tasks (id, prompt, status, created_at) "
            "VALUES ('u' || gen_random_uuid(), 'p', 'failed', %s)", later)  # fmt: skip

    db.on_offer = one_more
    assert await bulk.run(db, REQUEUE, TaskFilter(status="failed"), actor="me") == Outcome(50, 50)
    assert statuses(sql) == {"queued": 50, "failed": 20}


async def test_tasks_from_before_the_clock_went_back_are_found(db, new_task, shift_clock):
    await new_task()
    shift_clock(-3_600_000)
    assert await bulk.run(db, CANCEL, TaskFilter(status="queued"), actor="me") == Outcome(1, 1)


async def test_a_lease_made_while_the_task_is_waited_for_ends_too(db, sql, held, new_task, new_worker):
    """The statement that waits cannot see the lease; without a second look it would outlive its task."""
    await new_worker()
    task = await new_task()
    outcomes = []

    async def cancel():
        outcomes.append(await bulk.run(db, CANCEL, TaskFilter(agent_slug=""), actor="me"))

    leasing = (
        "WITH lease AS (INSERT INTO leases (id, task_id, worker_id, expires_at, ttl_seconds) "
        f"VALUES ('l', '{task.id}', 'w1', bloom_now_ms() + 300000, 300)) "
        f"UPDATE llm_tasks SET status = 'leased', lease_id = 'l', worker_id = 'w1' WHERE id = '{task.id}'"
    )
    async with held(leasing, cancel):
        pass
    assert outcomes == [Outcome(1, 1)]
    assert sql("SELECT status, outcome FROM leases") == [("released", "cancelled")]
    assert broken(sql) == {}


async def test_workers_are_locked_before_their_leases(db, sql, held, new_task, new_worker):
    """Whoever holds the worker may go on to wait for the lease's end: the other way round it would be a deadlock."""
    await new_worker()
    await leases.lease(db, (await new_task()).id, actor="test")

    async def cancel():
        await bulk.run(db, CANCEL, TaskFilter(status="leased"), actor="me")

    async with held("SELECT FROM workers FOR UPDATE", cancel):
        assert len(sql("SELECT id FROM leases FOR UPDATE NOWAIT")) == 1
    assert broken(sql) == {}
    assert statuses(sql) == {"cancelled": 1}


async def test_a_task_that_went_on_is_left_alone(db, sql, held, fill):
    fill(3, "queued")
    outcomes = []

    async def cancel():
        outcomes.append(await bulk.run(db, CANCEL, TaskFilter(status="queued"), actor="me"))

    done = "UPDATE llm_tasks SET status = 'completed' WHERE id = 't000001'"
    async with held(done, cancel):
        pass
    assert outcomes == [Outcome(matched=3, changed=2)]
    assert statuses(sql) == {"cancelled": 2, "completed": 1}
    assert recorded(sql, "tasks.cancelled") == [{"filter": {"status": "queued"}, "changed": 2}]


@pytest.mark.usefixtures("small")
async def test_whatever_ends_it_half_way_the_entry_is_right(db, sql, fill, moves):
    fill(400)
    seconds, ended_early = 0.001, 0
    while True:
        with trio.move_on_after(seconds) as scope:
            await bulk.run(db, REQUEUE, TaskFilter(status="failed"), actor="me")
        counted = [entry["changed"] for entry in recorded(sql, "tasks.requeued")]
        assert sum(counted) == moves("queued") == statuses(sql).get("queued", 0)
        if not scope.cancelled_caught:
            break
        ended_early += 1
        seconds *= 1.2
    assert ended_early >= 3
    await bulk.run(db, REQUEUE, TaskFilter(status="failed"), actor="me")
    assert statuses(sql) == {"queued": 400}


@pytest.mark.usefixtures("small")
async def test_a_lost_connection_is_told_with_what_was_done(db, sql, held, fill):
    fill(50)
    refused = []

    async def requeue():
        with pytest.raises(Unavailable) as error:
            await bulk.run(db, REQUEUE, TaskFilter(status="failed"), actor="me")
        refused.append(str(error.value))

    async with held("SELECT FROM llm_tasks WHERE id = 't000022' FOR UPDATE", requeue):
        sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    assert "; 20 tasks were done before, and the same request does the others" in refused[0]
    assert statuses(sql) == {"queued": 20, "failed": 30}
    assert recorded(sql, "tasks.requeued") == [{"filter": {"status": "failed"}, "changed": 20}]


async def test_a_batch_that_changes_nothing_has_no_entry(db, sql, held, fill):
    fill(1)

    async def requeue():
        assert await bulk.run(db, REQUEUE, TaskFilter(status="failed"), actor="me") == Outcome(matched=1, changed=0)

    async with held("UPDATE llm_tasks SET status = 'completed'", requeue):
        pass
    assert sql("SELECT count(*) FROM audit_logs") == [(0,)]


async def test_a_lease_that_has_ended_keeps_its_end(db, sql, new_task, new_worker):
    """As a task has it that somebody stranded."""
    await new_worker()
    await leases.lease(db, (await new_task()).id, actor="test")
    sql("UPDATE leases SET status = 'expired', ended_at = 1")
    assert await bulk.run(db, CANCEL, TaskFilter(status="leased"), actor="me") == Outcome(1, 1)
    assert sql("SELECT status, ended_at FROM leases") == [("expired", 1)]


async def test_no_batch_without_its_entry(db, sql, fill):
    fill(5)
    sql("ALTER TABLE audit_logs ADD CONSTRAINT never CHECK (false) NOT VALID")
    with pytest.raises(psycopg.errors.CheckViolation):
        await bulk.run(db, REQUEUE, TaskFilter(status="failed"), actor="me")
    assert statuses(sql) == {"failed": 5}


@pytest.mark.usefixtures("small")
async def test_the_entry_moves_to_the_end_of_the_events(db, sql, fill):
    """Whoever follows the events has seen the first batch; the others must not stay unseen."""
    fill(20)
    places = []

    def note():
        places.append(sql("SELECT (xact, seq), detail::jsonb -> 'changed' FROM audit_logs")[0])

    db.on_change = note
    await bulk.run(db, REQUEUE, TaskFilter(status="failed"), actor="me")
    assert [changed for _, changed in places] == [5, 10, 15, 20]
    assert len({place for place, _ in places}) == 4


@pytest.mark.usefixtures("small")
async def test_a_storm_of_cancels_and_requeues_breaks_nothing(db, sql, new_worker, moves):
    """Workers claim, heartbeat and complete while everything is cancelled and requeued under their hands."""
    for name in range(3):
        await new_worker(f"w{name}", max_concurrency=8)
    chance = random.Random(11)
    outcomes = {CANCEL: 0, REQUEUE: 0}
    over = trio.Event()

    async def work(name):
        while not over.is_set():
            held = [each.task.id for each in await claim(db, Claim(name, max=4), actor="storm")]
            for id in held:
                for call in (
                    lambda id=id: heartbeat(db, id, Beat(), actor="storm"),
                    lambda id=id: completion.complete(
                        db, id, Completion(status=chance.choice(["success", "error"])), retry=RETRY, actor="storm"
                    ),
                ):
                    with suppress(Refusal):
                        await call()
            await trio.lowlevel.checkpoint()

    async def steer(action):
        while outcomes[action] < 200:
            filter = chance.choice([
                TaskFilter(context_id=f"c{chance.randrange(4)}"),
                TaskFilter(worker_id=f"w{chance.randrange(3)}"),
                TaskFilter(status=list(action.statuses)),
            ])  # fmt: skip
            outcome = await bulk.run(db, action, filter, actor="storm")
            assert outcome.changed <= outcome.matched
            outcomes[action] += outcome.changed

    async def feed():
        while not over.is_set():
            new = [tasks.NewTask(prompt="p", max_attempts=2, context_id=f"c{n}") for n in range(4)]
            await tasks.create(db, new, actor="storm")
            await db.execute("UPDATE llm_tasks SET ready = true WHERE status = 'queued' AND retry_at <= bloom_now_ms()")
            await trio.sleep(0.01)

    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            for name in range(3):
                nursery.start_soon(work, f"w{name}")
                nursery.start_soon(work, f"w{name}")
            nursery.start_soon(feed)
            async with trio.open_nursery() as steering:
                for action in (CANCEL, CANCEL, REQUEUE, REQUEUE):
                    steering.start_soon(steer, action)
            over.set()
    assert broken(sql) == {}
    for action, status in ((CANCEL, "cancelled"), (REQUEUE, None)):
        counted = sum(entry["changed"] for entry in recorded(sql, f"tasks.{action.done}"))
        assert counted == outcomes[action]
        if status:
            assert counted == moves(status)


@pytest.mark.slow
async def test_twenty_thousand(db, sql, new_worker):
    sql("INSERT INTO llm_tasks (id, prompt, status, agent_slug) "
        "SELECT gen_random_uuid(), 'p', 'dead', 'a' FROM generate_series(1, 20000)")  # fmt: skip
    began = time.monotonic()
    assert await bulk.run(db, REQUEUE, TaskFilter(agent_slug="a"), actor="me") == Outcome(20000, 20000)
    assert await bulk.run(db, CANCEL, TaskFilter(agent_slug="a"), actor="me") == Outcome(20000, 20000)
    assert time.monotonic() - began < 30
    assert [len(recorded(sql, name)) for name in ("tasks.requeued", "tasks.cancelled")] == [1, 1]
