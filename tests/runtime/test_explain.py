"""Why a task does not run: a test for each reason, and that the claim agrees."""

import pytest

from bloomd.runtime import claims, queue, releases, tasks, workers
from bloomd.runtime.completion import complete
from bloomd.runtime.explain import explain
from bloomd.runtime.leases import lease
from bloomd.runtime.model import Completion, Retry
from bloomd.runtime.pages import Page
from bloomd.runtime.refusals import NotFound
from bloomd.runtime.releases import Release

LONG = Retry(600, 600)


@pytest.fixture
def why(db):
    """The codes and sentences of a task's reasons; while there is one, no worker's claim gets the task."""

    async def ask(task):
        explanation = await explain(db, task.id)
        if explanation.status == "queued":
            claimable = [reason.code for reason in explanation.reasons] == ["claimable"]
            for worker in await workers.listing(db, Page()):
                # A claim is a sign of life, which an explanation is not: so only the statement itself is asked.
                got = [each.task.id for each in await claims.claim(db, claims.Claim(worker.id, 100), actor="test")]
                assert task.id not in got or claimable, explanation
        return [(reason.code, reason.sentence) for reason in explanation.reasons]

    return ask


@pytest.fixture
def has(sql):
    """Change what is known of a worker."""

    def change(name, assignment):
        sql(f"UPDATE workers SET {assignment} WHERE id = '{name}'")

    return change


async def fill(db, new_task, worker="w1"):
    """Give the worker something to do."""
    task = await new_task("something else", pinned_worker_id=worker)
    return await lease(db, task.id, worker_id=worker, actor="test")


async def test_nothing_keeps_it(db, new_task, new_worker):
    task = await new_task()
    await new_worker()
    assert (await explain(db, task.id)).reasons[0].code == "claimable"
    assert (await explain(db, task.id)).reasons[0].sentence == (
        "Nothing keeps it: 1 worker could take it, and will when asking for work."
    )


async def test_the_queue_is_paused(db, new_task, new_worker, why):
    await new_worker()
    task = await new_task()
    await queue.pause(db, until=4102444800000, reason="the quota is used up", actor="test")
    assert await why(task) == [
        ("queue-paused", "The queue is paused until 2100-01-01 00:00:00 UTC: the quota is used up.")
    ]
    await queue.pause(db, actor="test")
    assert await why(task) == [("queue-paused", "The queue is paused.")]


async def test_not_before_its_time(new_task, new_worker, why):
    await new_worker()
    task = await new_task(not_before=4102444800000)
    assert await why(task) == [("not-before", "It may not start before 2100-01-01 00:00:00 UTC.")]


async def test_it_waits_for_its_retry(db, new_task, new_worker, why):
    await new_worker()
    task = await new_task()
    await lease(db, task.id, actor="test")
    await complete(db, task.id, Completion("error", error_message="no quota"), retry=LONG, actor="test")
    [(code, sentence)] = await why(task)
    assert code == "retry-delay"
    assert sentence.startswith("Attempt 1 of 3 did not succeed: no quota; the next may start at 20")


async def test_no_worker_is_known(new_task, why):
    assert await why(await new_task()) == [("no-worker", "No worker is known; register one.")]


async def test_no_worker_is_online(new_task, new_worker, has, why):
    await new_worker("w1")
    await new_worker("w2")
    has("w1", "status = 'offline'")
    has("w2", "status = 'error'")
    assert await why(await new_task()) == [("no-worker-online", "No worker is online (2 workers known).")]


async def test_none_has_the_claude_cli(new_task, new_worker, has, why):
    await new_worker()
    has("w1", """capabilities = '{"claude_cli": false}'""")
    assert await why(await new_task()) == [("no-claude", "The only online worker does not have the Claude CLI.")]


async def test_none_has_the_label(new_task, new_worker, why):
    await new_worker("w1")
    await new_worker("w2", labels=["eu"])
    assert await why(await new_task(labels=["gpu"])) == [
        ("no-label", "None of the 2 online workers has the label gpu.")
    ]
    assert await why(await new_task(labels=["gpu", "fast", "eu"])) == [
        ("no-label", "None of the 2 online workers has the labels gpu, fast.")
    ]


async def test_none_has_all_labels(new_task, new_worker, why):
    await new_worker("w1", labels=["gpu"])
    await new_worker("w2", labels=["eu"])
    assert await why(await new_task(labels=["gpu", "eu"])) == [
        ("no-label", "None of the 2 online workers has all of its labels: gpu, eu.")
    ]


async def test_all_suitable_ones_are_full(db, new_task, new_worker, why):
    for name in ("w1", "w2"):
        await new_worker(name, labels=["gpu"])
        await fill(db, new_task, name)
    await new_worker("w3")
    assert await why(await new_task(labels=["gpu"])) == [("workers-full", "All 2 suitable workers are full.")]


async def test_suitable_ones_are_full_cordoned_and_draining(db, new_task, new_worker, why):
    for name in ("w1", "w2", "w3"):
        await new_worker(name)
    await fill(db, new_task, "w1")
    await workers.cordon(db, "w2", actor="test")
    await workers.drain(db, "w3", actor="test")
    assert await why(await new_task()) == [
        ("workers-draining", "Of the 3 suitable workers 1 is draining."),
        ("workers-cordoned", "Of the 3 suitable workers 1 is cordoned."),
        ("workers-full", "Of the 3 suitable workers 1 is full."),
    ]


@pytest.mark.parametrize(("hold_back", "state"), [(workers.cordon, "cordoned"), (workers.drain, "draining")])
async def test_the_only_one_is_held_back(db, new_task, new_worker, why, hold_back, state):
    await new_worker()
    await hold_back(db, "w1", actor="test")
    assert await why(await new_task()) == [(f"workers-{state}", f"The only suitable worker is {state}.")]


async def test_those_that_could_have_paused(new_task, new_worker, has, why):
    """It is the worker that says so, so it may say anything."""
    paused = """status = 'error', capabilities = capabilities || jsonb_build_object('paused_because', """
    for number in range(1, 5):
        await new_worker(f"w{number}", labels=["eu"])
    has("w1", paused + """repeat('a limit ', 100), 'paused_until', 4102444800000)""")
    has("w2", paused + """'not logged in', 'paused_until', '1e300'::jsonb)""")
    has("w3", paused + """'it was', 'paused_until', 7)""")
    has("w4", paused + """7, 'paused_until', 'x')""")
    online, first, second = await why(await new_task(labels=["eu"]))
    assert online == ("no-worker-online", "No worker is online (4 workers known).")
    assert (first[0], len(first[1]) < 400) == ("workers-paused", True)
    assert first[1].startswith("Worker w1 is paused until 2100-01-01 00:00:00 UTC: a limit a limit")
    assert second == ("workers-paused", "Worker w2 is paused: not logged in.")
    assert [code for code, _ in await why(await new_task(labels=["gpu"]))] == ["no-worker-online"]
    pinned = await why(await new_task(pinned_worker_id="w2"))
    assert pinned == [("workers-paused", "It is pinned to worker w2, which is paused: not logged in.")]
    await new_worker("w5")
    assert "no-label" in [code for code, _ in await why(await new_task(labels=["eu"]))]


class TestPinned:
    async def test_to_nobody(self, new_task, new_worker, why):
        await new_worker()
        task = await new_task(pinned_worker_id="w9")
        assert await why(task) == [("pinned-worker-away", "It is pinned to worker w9, which is not known.")]

    async def test_to_one_that_is_away(self, new_task, new_worker, has, why):
        await new_worker("w1")
        await new_worker("w2")
        has("w1", "status = 'offline'")
        task = await new_task(pinned_worker_id="w1")
        assert await why(task) == [("pinned-worker-away", "It is pinned to worker w1, which is offline, not online.")]

    async def test_to_one_that_is_full(self, db, new_task, new_worker, why):
        await new_worker("w1")
        await new_worker("w2")
        await fill(db, new_task)
        task = await new_task(pinned_worker_id="w1")
        assert await why(task) == [("workers-full", "It is pinned to worker w1, which is full: 1 of 1 lease held.")]

    async def test_to_one_without_its_label(self, new_task, new_worker, why):
        await new_worker("w1")
        await new_worker("w2", labels=["gpu"])
        task = await new_task(pinned_worker_id="w1", labels=["gpu"])
        assert await why(task) == [
            ("no-label", "It is pinned to worker w1, which does not have all of its labels: gpu.")
        ]

    async def test_to_one_that_is_cordoned(self, db, new_task, new_worker, why):
        await new_worker()
        await workers.cordon(db, "w1", actor="test")
        task = await new_task(pinned_worker_id="w1")
        assert await why(task) == [("workers-cordoned", "It is pinned to worker w1, which is cordoned.")]

    async def test_to_one_that_could(self, db, new_task, new_worker):
        await new_worker()
        task = await new_task(pinned_worker_id="w1")
        assert [reason.code for reason in (await explain(db, task.id)).reasons] == ["claimable"]


async def test_another_task_of_its_context_is_under_way(db, new_task, new_worker, has, why):
    await new_worker(max_concurrency=4)
    has("w1", """capabilities = capabilities || '{"sessions": true}'""")
    first = await new_task(context_id="c")
    await lease(db, first.id, actor="test")
    [(code, sentence)] = await why(await new_task(context_id="c"))
    assert code == "context-turn"
    assert sentence.startswith(f"It waits for its turn: task {first.id} of the same context is under way on worker w1")


async def test_every_reason_at_once(db, new_task, why):
    task = await new_task(not_before=4102444800000)
    await queue.pause(db, actor="test")
    assert [code for code, _ in await why(task)] == ["queue-paused", "not-before", "no-worker"]


async def test_what_it_does_instead(db, new_task, new_worker, sql):
    await new_worker()
    task = await new_task(max_attempts=1)

    async def reason():
        [reason] = (await explain(db, task.id)).reasons
        return reason.code, reason.sentence.partition(" at 20")[0]

    await lease(db, task.id, actor="test")
    assert await reason() == ("leased", "It is leased to worker w1, which has not shown yet that it works on it.")
    sql("UPDATE llm_tasks SET status = 'running'")
    assert await reason() == ("running", "It runs on worker w1, attempt 1 of 1.")
    await complete(db, task.id, Completion("error", error_message="no"), retry=LONG, actor="test")
    assert await reason() == ("dead", "It is dead after 1 attempt: no. Requeue it to try again.")
    await tasks.requeue(db, task.id, actor="test")
    await tasks.cancel(db, task.id, actor="test")
    assert await reason() == ("cancelled", "It was cancelled")
    with pytest.raises(NotFound):
        await explain(db, "nope")


async def test_for_agents_that_tasks_are_pushed_to(new_task, new_worker, why, has):
    await new_worker(url="http://127.0.0.1:1", max_concurrency=2)
    task = await new_task()
    will = "and will when it is dispatched, by hand or with tasks.auto_dispatch."
    assert await why(task) == [("claimable", f"Nothing keeps it: 1 worker could take it, {will}")]
    has("w1", "asked_at = 1")
    [(_, sentence)] = await why(await new_task())
    assert sentence.endswith("and will when asking for work.")


async def test_given_back_before_it_was_an_attempt(db, new_task, new_worker, why):
    await new_worker()
    task = await new_task()
    got = await lease(db, task.id, actor="test")
    await releases.release(db, [Release(got.lease.id, retry_after_seconds=600)], actor="test")
    [(code, sentence)] = await why(task)
    assert (code, sentence.partition(" at 20")[0]) == ("retry-delay", "It was given back; the next attempt may start")
