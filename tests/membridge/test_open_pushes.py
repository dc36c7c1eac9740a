"""Pushes while they are open: who may end them, and what they outlive."""

from typing import Any

import pytest
import trio
import trio.testing
from peers import Peer, Reply, Request, reply, serving
from pushing import Pushing, until

from bloomd.errors import Unavailable
from bloomd.membridge import dispatch as module
from bloomd.membridge.dispatch import Dispatcher, PushFailed
from bloomd.runtime import pushes, releases, tasks
from bloomd.runtime.leases import Wanted
from bloomd.runtime.refusals import LeaseLost, NoWorker, TaskCancelled
from bloomd.runtime.releases import Release


@pytest.mark.parametrize(
    ("end", "refusal"), [("cancel", TaskCancelled), ("release", LeaseLost), ("expire", PushFailed)]
)
async def test_a_lease_that_ends_first_ends_the_push(pushing: Pushing, end: str, refusal: type[Exception]) -> None:
    """And a completion that comes later counts for nothing."""
    await pushing.worker()
    pushing.agent.gate = trio.Event()
    id = await pushing.task()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end, pushing, id, end)
        with pytest.raises(refusal):
            await pushing.dispatch(id)
    pushing.agent.gate.set()
    await until(lambda: len(pushing.agent.callbacks) == 2)
    assert pushing.agent.callbacks == [("heartbeat", 200), ("complete", 409)]
    assert (await pushing.look(id)).status != "completed"


async def _end(pushing: Pushing, id: str, end: str) -> None:
    await until(lambda: pushing.agent.callbacks)
    match end:
        case "cancel":
            await tasks.cancel(pushing.database, id, actor="test")
        case "release":
            [(lease_id,)] = pushing.sql("SELECT id FROM leases")
            await releases.release(pushing.database, [Release(lease_id)], actor="test")
        case _:
            pushing.sql(
                "UPDATE leases SET status = 'expired', outcome = 'expired', ended_at = bloom_now_ms();"
                "UPDATE llm_tasks SET status = 'queued', lease_id = NULL, worker_id = NULL"
            )


async def test_the_lease_is_renewed_while_the_push_is_open(pushing: Pushing) -> None:
    await pushing.worker()
    pushing.agent.does, pushing.agent.gate = "silent", trio.Event()
    id = await pushing.task()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pushing.dispatch, id)
        await until(lambda: pushing.agent.executed)
        [(first,)] = pushing.sql("SELECT expires_at FROM leases")
        pushing.sql("UPDATE leases SET ttl_seconds = 9, expires_at = bloom_now_ms() + 6000")
        [push] = pushing.dispatcher._open.values()
        push.renew_at = trio.current_time()
        [(short,)] = pushing.sql("SELECT expires_at FROM leases")
        assert short < first
        await until(lambda: pushing.sql("SELECT expires_at FROM leases") > [(short,)])
        assert push.renew_at > trio.current_time()
        assert (await pushing.look(id)).status == "leased"
        pushing.agent.gate.set()
    assert (await pushing.look(id)).status == "completed"


async def test_a_push_goes_on_when_nobody_waits_any_more(pushing: Pushing) -> None:
    await pushing.worker()
    pushing.agent.gate = trio.Event()
    id = await pushing.task()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pushing.dispatch, id)
        await until(lambda: pushing.agent.executed)
        nursery.cancel_scope.cancel()
    assert repr(pushing.dispatcher) == "<Dispatcher 1 pushes open>"
    pushing.agent.gate.set()
    await until(lambda: repr(pushing.dispatcher) == "<Dispatcher 0 pushes open>")
    assert (await pushing.look(id)).status == "completed"
    assert pushing.agent.callbacks == [("heartbeat", 200), ("complete", 200)]


async def test_who_goes_away_while_leasing_strands_nothing(pushing: Pushing, monkeypatch: pytest.MonkeyPatch) -> None:
    await pushing.worker()
    id = await pushing.task()
    lease = pushes.lease
    async with trio.open_nursery() as nursery:

        async def lease_and_go(*arguments: Any, **options: Any) -> Any:
            leased = await lease(*arguments, **options)
            nursery.cancel_scope.cancel()
            await trio.lowlevel.checkpoint()
            return leased

        monkeypatch.setattr(pushes, "lease", lease_and_go)
        nursery.start_soon(pushing.dispatch, id)
    await until(lambda: pushing.outcomes() == [("released", "success")])
    assert (await pushing.look(id)).status == "completed"


@pytest.mark.parametrize("does", ["silent", "not-ok", "no-claude"])
async def test_what_happened_is_recorded_when_the_database_is_back(
    pushing: Pushing, does: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECORD_SECONDS", 0.01)
    await pushing.worker()
    pushing.agent.does, pushing.agent.gate = does, trio.Event()
    id = await pushing.task()
    outcome: list[str] = []

    async def dispatch() -> None:
        try:
            outcome.append((await pushing.dispatch(id)).task_status)
        except PushFailed:
            outcome.append("failed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dispatch)
        await until(lambda: pushing.agent.requests)
        pushing.database.close("PostgreSQL is away")
        pushing.agent.gate.set()
        for _ in range(3):  # tries to look, or to record
            pushing.database.doubted = trio.Event()
            await pushing.database.doubted.wait()
        assert outcome == []
        pushing.database.open(pushing.pool)
    assert outcome == {"silent": ["completed"], "not-ok": ["queued"], "no-claude": ["failed"]}[does]
    assert (await pushing.look(id)).lease_id is None or does == "silent"


async def test_a_stop_drops_the_pushes_and_leaves_the_leases(pushing: Pushing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "START_SECONDS", 0.01)
    await pushing.worker()
    pushing.agent.gate = trio.Event()
    id = await pushing.task()
    other = Dispatcher(pushing.database, pushing.wakeups, lambda: pushing.rules)
    with pytest.raises(Unavailable, match="the service `dispatch` does not run"):
        await other.dispatch(Wanted(id), actor="test")
    async with trio.open_nursery() as waiting, trio.open_nursery() as service:
        await service.start(other.run)
        waiting.start_soon(_dropped, other, id)
        await until(lambda: pushing.agent.callbacks)
        service.cancel_scope.cancel()
    assert pushing.outcomes() == [("active", None)]
    assert (await pushing.look(id)).status == "running"
    pushing.agent.gate.set()
    await until(lambda: len(pushing.agent.callbacks) == 2)
    assert (await pushing.look(id)).status == "completed"


async def _dropped(dispatcher: Dispatcher, id: str) -> None:
    with pytest.raises(Unavailable, match="worker w1 may complete the task"):
        await dispatcher.dispatch(Wanted(id), actor="test")


async def test_nobody_waits_when_the_daemon_stops(pushing: Pushing) -> None:
    await pushing.worker()
    pushing.agent.gate = trio.Event()
    id = await pushing.task()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_dropped, pushing.dispatcher, id)
        await until(lambda: pushing.agent.callbacks)
        pushing.dispatcher.close()
    with pytest.raises(Unavailable):
        await pushing.dispatch(await pushing.task())
    assert not await pushing.dispatcher.push(await pushing.task())
    assert repr(pushing.dispatcher) == "<Dispatcher 1 pushes open>"


async def test_many_at_once_stay_within_what_the_workers_can_take(pushing: Pushing) -> None:
    busy = most = 0
    all_busy = trio.Event()
    answered: list[str] = []

    async def execute(request: Request) -> Reply:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        if busy == 5:
            all_busy.set()
        await all_busy.wait()
        busy -= 1
        answered.append(request.json["task_id"])
        return reply({"ok": True, "output": "Hello"})

    async with serving(Peer(execute)) as agent:
        await pushing.worker("a", url=agent.url, max_concurrency=3)
        await pushing.worker("b", url=agent.url, max_concurrency=2)
        ids = [await pushing.task() for _ in range(12)]

        async def push(id: str) -> None:
            while True:
                try:
                    await pushing.dispatch(id)
                    return
                except NoWorker:
                    await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            for id in ids:
                nursery.start_soon(push, id)
    assert sorted(answered) == sorted(ids)
    assert most == 5
    assert pushing.sql("SELECT sum(active_leases) FROM workers") == [(0,)]


async def test_whoever_comes_before_the_service_runs_waits_for_it(pushing: Pushing) -> None:
    await pushing.worker()
    other = Dispatcher(pushing.database, pushing.wakeups, lambda: pushing.rules)
    outcome: list[str] = []

    async def dispatch() -> None:
        outcome.append((await other.dispatch(Wanted(await pushing.task()), actor="test")).task_status)

    async with trio.open_nursery() as service, trio.open_nursery() as waiting:
        waiting.start_soon(dispatch)
        await trio.testing.wait_all_tasks_blocked(0.05)
        await service.start(other.run)
        await until(lambda: outcome)
        service.cancel_scope.cancel()
    assert outcome == ["completed"]
