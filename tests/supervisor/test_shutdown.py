"""Finishing: asked to, with a deadline, in a hurry, and while something else is under way."""

from collections.abc import Callable
from typing import Any

import trio
from actors import Actor, Story, settled
from trio.testing import MockClock

from bloomd.errors import Unavailable
from bloomd.supervisor import State, Supervisor

NewActor = Callable[..., Actor]


async def shut_down(supervisor: Supervisor, *, hurry_after: float | None = None) -> float:
    """Run, stop, and tell how long the stop took."""
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        began = trio.current_time()
        supervisor.stop()
        if hurry_after is not None:
            await trio.sleep(hurry_after)
            supervisor.hurry()
    return trio.current_time() - began


async def test_a_service_that_is_asked_finishes_in_its_own_time(
    autojump_clock: MockClock, actor: NewActor, story: Story
) -> None:
    a = actor("a", finish_seconds=4)
    supervisor = Supervisor([a.service(ask_to_stop=a.finish, stop_seconds=5)])
    assert await shut_down(supervisor) == 4
    assert story == ["a begins", "a is asked", "a finishes", "a ends"]
    assert [change.state for change in supervisor.status()[0].changes[-2:]] == [State.STOPPING, State.STOPPED]


async def test_one_that_takes_too_long_is_cancelled(
    autojump_clock: MockClock, actor: NewActor, story: Story, logs: list[Any]
) -> None:
    a = actor("a", finish_seconds=6)
    assert await shut_down(Supervisor([a.service(ask_to_stop=a.finish, stop_seconds=5)])) == 5
    assert story == ["a begins", "a is asked", "a ends"]
    assert [entry["event"] for entry in logs] == ["service was cancelled before it had finished"]


async def test_the_second_signal_ends_the_waiting_for_all(
    autojump_clock: MockClock, actor: NewActor, story: Story
) -> None:
    a, b = actor("a", finish_seconds=100), actor("b", finish_seconds=100)
    services = [s.service(ask_to_stop=s.finish, stop_seconds=50) for s in (a, b)]
    assert await shut_down(Supervisor(services), hurry_after=2) == 2
    assert story == ["a begins", "b begins", "b is asked", "b ends", "a ends"]


async def test_hurry_is_over_when_the_supervisor_runs_again(autojump_clock: MockClock, actor: NewActor) -> None:
    a = actor("a", finish_seconds=3)
    supervisor = Supervisor([a.service(ask_to_stop=a.finish)])
    assert await shut_down(supervisor, hurry_after=1) == 1
    assert await shut_down(supervisor) == 3


async def test_one_that_cannot_be_asked_is_cancelled(
    autojump_clock: MockClock, actor: NewActor, story: Story, logs: list[Any]
) -> None:
    def refuse() -> None:
        raise RuntimeError("no")

    assert await shut_down(Supervisor([actor("a").service(ask_to_stop=refuse)])) == 0
    assert story == ["a begins", "a ends"]
    assert logs[0]["event"] == "service cannot be asked to stop"


async def test_a_crash_while_finishing_is_an_end_like_any_other(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    a = actor("a", finish_seconds=5)
    supervisor = Supervisor([a.service(ask_to_stop=a.finish)])
    await nursery.start(supervisor.run)
    nursery.start_soon(supervisor.stop_service, "a")
    await settled(supervisor, "a", State.STOPPING)
    a.crash(ValueError("oops"))
    await settled(supervisor, "a", State.STOPPED, within=1)
    await trio.sleep(100)
    assert len(a.began) == 1


async def test_shutdown_during_a_stop_by_hand_lets_it_finish(
    autojump_clock: MockClock, actor: NewActor, story: Story
) -> None:
    a = actor("a", finish_seconds=5)
    supervisor = Supervisor([a.service(ask_to_stop=a.finish)])
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        nursery.start_soon(supervisor.stop_service, "a")
        await trio.sleep(1)
        supervisor.stop()
    assert trio.current_time() == 5
    assert story == ["a begins", "a is asked", "a finishes", "a ends"]


async def test_nothing_starts_again_once_its_turn_has_come(autojump_clock: MockClock, actor: NewActor) -> None:
    slow, last = actor("slow", finish_seconds=5), actor("last", finish_seconds=1)
    supervisor = Supervisor([slow.service(ask_to_stop=slow.finish), last.service(ask_to_stop=last.finish)])
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        nursery.start_soon(supervisor.restart, ["slow", "last"], "reload")
        supervisor.stop()
        await settled(supervisor, "slow", State.STOPPING)
        supervisor.start_service("last")
        await supervisor.restart_service("last")
    assert len(last.began) == 1
    assert len(slow.began) == 1
    assert trio.current_time() == 6


async def test_until_its_turn_has_come_a_service_is_still_cared_for(autojump_clock: MockClock, actor: NewActor) -> None:
    data, front = actor("data"), actor("front", finish_seconds=5)
    supervisor = Supervisor([data.service(), front.service(ask_to_stop=front.finish)])
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        supervisor.stop()
        await trio.sleep(1)
        data.crash(ValueError("oops"))
        await settled(supervisor, "data", State.BACKOFF)
        await settled(supervisor, "data", State.RUNNING, within=1)


async def test_shutdown_does_not_wait_for_a_retry(autojump_clock: MockClock, actor: NewActor) -> None:
    assert await shut_down(Supervisor([actor("a", before=Unavailable("away")).service()])) == 0
