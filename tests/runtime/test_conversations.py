"""The conversation of a context stays with the worker that has it, beyond the lease, for as long as it is there."""

import pytest
from psycopg.types.json import Jsonb

from bloomd.runtime import claims, completion, tasks, waiting_room, workers
from bloomd.runtime.claims import Claim
from bloomd.runtime.explain import explain
from bloomd.runtime.heartbeats import Beat, heartbeat
from bloomd.runtime.ids import Id
from bloomd.runtime.leases import lease
from bloomd.runtime.model import Completion, Retry


@pytest.fixture
async def two(new_worker, sql):
    """Workers that keep sessions."""
    await new_worker("w1")
    await new_worker("w2")
    sql("""UPDATE workers SET capabilities = capabilities || '{"sessions": true}'""")


@pytest.fixture
def claim(db):
    """Claim for a worker; the prompts that it gets."""

    async def claim(worker, max=1):
        await claims.sign_of_life(db, [worker], actor="test")
        return [got.task.prompt for got in await claims.claim(db, Claim(worker, max), actor="test")]

    return claim


@pytest.fixture
def finish(db):
    """End what a worker has."""

    async def finish(worker, status="success"):
        for held in await workers.active_leases(db, worker):
            said = Completion(status=status, output="Hello", lease_id=held.id)
            await completion.complete(db, held.task_id, said, retry=Retry(0.001, 0.001), actor="test")

    return finish


@pytest.fixture
async def talk(two, new_task, claim, finish):
    """A conversation that w1 has."""
    await new_task("first", context_id="c")
    assert await claim("w1") == ["first"]
    await finish("w1")


async def test_the_next_of_the_context_is_for_who_has_the_conversation(talk, new_task, claim):
    await new_task("second", context_id="c")
    await new_task("other", context_id="d")
    assert await claim("w2", 2) == ["other"]
    assert await claim("w1") == ["second"]


async def test_it_waits_for_a_worker_that_is_full(talk, db, new_task, claim, finish):
    await new_task("other", priority=9)
    assert await claim("w1") == ["other"]
    second = await new_task("second", context_id="c")
    assert await claim("w2") == []
    [reason] = (await explain(db, second.id)).reasons
    assert reason.code == "conversation"
    assert reason.sentence == "It waits for worker w1, which has the conversation of its context and no room now."
    await finish("w1")
    [reason] = (await explain(db, second.id)).reasons
    assert (reason.code, "worker w1 could take it" in reason.sentence) == ("claimable", True)
    assert await claim("w1") == ["second"]


@pytest.mark.parametrize(
    "gone",
    [
        "UPDATE workers SET status = 'offline' WHERE id = 'w1'",
        "UPDATE workers SET cordoned = true WHERE id = 'w1'",
        "UPDATE workers SET draining = true WHERE id = 'w1'",
        "UPDATE workers SET asked_at = bloom_now_ms() - 61000 WHERE id = 'w1'",
        "UPDATE workers SET status = 'error' WHERE id = 'w1'",
        "UPDATE workers SET capabilities = capabilities - 'sessions' WHERE id = 'w1'",
        "UPDATE workers SET capabilities = capabilities || '{\"claude_cli\": false}' WHERE id = 'w1'",
        "DELETE FROM workers WHERE id = 'w1'",
    ],
)
async def test_when_that_worker_is_gone_another_begins_anew(talk, new_task, claim, finish, sql, gone):
    sql(gone)
    await new_task("second", context_id="c")
    assert await claim("w2") == ["second"]
    await finish("w2")
    back = """capabilities || '{"sessions": true, "claude_cli": true}'"""
    sql(f"UPDATE workers SET status = 'online', cordoned = false, draining = false, capabilities = {back}")
    await new_task("third", context_id="c")
    assert await claim("w1") == []
    assert await claim("w2") == ["third"]


async def test_a_task_that_it_cannot_do_is_for_others(talk, new_task, claim, sql):
    sql("""UPDATE workers SET capabilities = capabilities || '{"labels": ["gpu"]}' WHERE id = 'w2'""")
    await new_task("with a label", context_id="c", labels=["gpu"])
    assert await claim("w2") == ["with a label"]


async def test_a_pin_comes_before_it(talk, new_task, claim):
    await new_task("pinned", context_id="c", pinned_worker_id="w2")
    assert await claim("w2") == ["pinned"]


async def test_an_attempt_that_failed_keeps_nobody_else_away(two, db, new_task, claim, finish, sql):
    await new_task("first", context_id="c")
    assert await claim("w1") == ["first"]
    await finish("w1", "error")
    sql("UPDATE llm_tasks SET retry_at = NULL, ready = true")
    assert await claim("w2") == ["first"]


async def test_who_keeps_no_sessions_does_not_care(talk, db, new_task, new_worker, claim):
    await new_worker("w3")
    await new_task("second", context_id="c")
    assert await claim("w3") == ["second"]
    third = await new_task("third", context_id="c")
    assert (await lease(db, third.id, worker_id="w2", actor="test")).worker.id == "w2"


async def test_who_has_the_conversation_is_called(talk, db, new_task):
    waiting = Jsonb([{"id": "w2", "labels": None}, {"id": "w1", "labels": None}])

    async def called():
        return {each.id for each in await db.rows(Id, waiting_room.COULD_CLAIM, waiting=waiting, many=64, few=4)}

    second = await new_task("second", context_id="c")
    assert await called() == {"w1"}
    await tasks.cancel(db, second.id, actor="test")
    await new_task("other", context_id="d")
    assert await called() == {"w2"}


async def test_one_that_paused_itself_gives_its_contexts_up_though_it_works_on_something_else(
    db, new_task, new_worker, claim, finish, sql
):
    """Its heartbeats say that it lives, not that it takes tasks."""
    await new_worker("w1", max_concurrency=2)
    await new_worker("w2")
    sql("""UPDATE workers SET capabilities = capabilities || '{"sessions": true}'""")
    await new_task("first", context_id="c")
    assert await claim("w1") == ["first"]
    await finish("w1")
    long = await new_task("long", priority=9)
    assert await claim("w1") == ["long"]
    await new_task("second", context_id="c")
    sql("UPDATE workers SET status = 'error', alive_at = 0, asked_at = 0 WHERE id = 'w1'")
    await heartbeat(db, long.id, Beat(), actor="test")
    assert sql("SELECT status, alive_at > 0 FROM workers WHERE id = 'w1'") == [("error", True)]
    assert await claim("w2") == ["second"]
    await finish("w1")
    assert sql("SELECT status FROM workers WHERE id = 'w1'") == [("error",)]


async def test_a_full_one_keeps_its_contexts_however_long_it_is_at_work(talk, new_task, claim, sql):
    await new_task("long", priority=9)
    assert await claim("w1") == ["long"]
    sql("UPDATE workers SET asked_at = bloom_now_ms() - 3600000 WHERE id = 'w1'")
    await new_task("second", context_id="c")
    assert await claim("w2") == []


async def test_nobody_is_quicker_than_one_that_has_just_finished(talk, new_task, claim, finish, sql):
    await new_task("long", priority=9)
    assert await claim("w1") == ["long"]
    sql("UPDATE workers SET asked_at = bloom_now_ms() - 3600000 WHERE id = 'w1'")
    await new_task("second", context_id="c")
    await finish("w1")
    assert await claim("w2") == []
    assert await claim("w1") == ["second"]


async def test_a_claim_says_who_has_the_conversation(talk, db, new_task, finish):
    async def claimed(worker):
        [got] = await claims.claim(db, Claim(worker), actor="test")
        return got.holds_conversation

    await new_task(context_id="c")
    assert await claimed("w1")
    await finish("w1")
    await new_task(context_id="c", pinned_worker_id="w2")
    assert not await claimed("w2")
    await finish("w2")
    await new_task(context_id="c", pinned_worker_id="w1")
    assert not await claimed("w1")  # what w1 remembers lacks a turn
    await new_task()
    assert not await claimed("w2")


async def test_tasks_that_wait_for_one_worker_hide_none_that_others_could_do(
    talk, db, new_task, new_worker, claim, sql
):
    """A call looks at the first 64 of a list only."""
    await new_task("long", priority=9)
    assert await claim("w1") == ["long"]
    for _ in range(64):
        await new_task(context_id="c")
    await new_task("free")
    waiting = Jsonb([{"id": "w2", "labels": None}])
    called = await db.rows(Id, waiting_room.COULD_CLAIM, waiting=waiting, many=64, few=4)
    assert [each.id for each in called] == ["w2"]
    assert await claim("w2") == ["free"]
