"""Automatic pushes: what is queued goes to who has a URL and room, and nobody minds who was quicker."""

import pytest
import trio
from pushing import Pushing, until

from bloomd.errors import Unavailable
from bloomd.membridge.autodispatch import AutoDispatch
from bloomd.runtime import pushes, queue

EPOCH = 1


class Switch:
    on = True


@pytest.fixture
def switch() -> Switch:
    return Switch()


@pytest.fixture
def auto(pushing: Pushing, switch: Switch) -> AutoDispatch:
    return AutoDispatch(pushing.database, pushing.wakeups, pushing.dispatcher, enabled=lambda: switch.on)


async def completed(pushing: Pushing, count: int) -> None:
    await until(lambda: pushing.sql("SELECT count(*) FROM llm_tasks WHERE status = 'completed'") == [(count,)])


async def test_queued_tasks_are_pushed_without_being_asked_to(
    pushing: Pushing, auto: AutoDispatch, nursery: trio.Nursery
) -> None:
    before = [await pushing.task() for _ in range(5)]
    await nursery.start(auto.run, EPOCH)
    await pushing.worker(max_concurrency=2)
    await completed(pushing, 5)
    await pushing.task()
    await completed(pushing, 6)
    assert [task["task_id"] for task in pushing.agent.executed][:1] == before[:1]
    assert pushing.sql("SELECT DISTINCT actor FROM audit_logs WHERE action = 'task.leased'") == [("bloomd",)]


async def test_two_that_push_share_the_tasks(pushing: Pushing, auto: AutoDispatch, nursery: trio.Nursery) -> None:
    await pushing.worker(max_concurrency=4)
    for _ in range(12):
        await pushing.task()
    await nursery.start(auto.run, EPOCH)
    other = AutoDispatch(pushing.database, pushing.wakeups, pushing.dispatcher, enabled=lambda: True)
    await nursery.start(other.run, EPOCH)
    await completed(pushing, 12)
    assert len({task["task_id"] for task in pushing.agent.executed}) == len(pushing.agent.executed) == 12


async def test_a_paused_queue_is_left_alone_until_it_is_resumed(
    pushing: Pushing, auto: AutoDispatch, nursery: trio.Nursery
) -> None:
    await pushing.worker()
    await queue.pause(pushing.database, until=None, reason=None, actor="test")
    await pushing.task()
    assert not await auto.round(EPOCH)
    await nursery.start(auto.run, EPOCH)
    await queue.resume(pushing.database, actor="test")
    await completed(pushing, 1)


async def test_it_ends_when_it_is_switched_off(pushing: Pushing, auto: AutoDispatch, switch: Switch) -> None:
    await pushing.worker()
    switch.on = False
    await pushing.task()
    for run in (lambda: auto.run(EPOCH), auto.stand_by):
        with pytest.raises(Unavailable, match=r"tasks\.auto_dispatch is off"):
            await run()
    assert pushing.outcomes() == []


async def test_who_leads_no_more_pushes_nothing(pushing: Pushing, auto: AutoDispatch) -> None:
    await pushing.worker()
    await pushing.task()
    assert not await auto.round(EPOCH + 1)
    assert pushing.outcomes() == []


async def test_a_full_round_is_followed_by_another(
    pushing: Pushing, auto: AutoDispatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushes, "ROUND", 2)
    await pushing.worker(max_concurrency=3)
    pushing.agent.does = "hang"
    for _ in range(4):
        await pushing.task()
    assert await auto.round(EPOCH)
    assert not await auto.round(EPOCH)
    assert pushing.sql("SELECT count(*) FROM leases") == [(3,)]
