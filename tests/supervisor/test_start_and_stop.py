"""Order, needs, and the ordinary end."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
from actors import Actor, Story, settled
from trio.testing import MockClock

from bloomd.errors import Misconfigured, Unavailable
from bloomd.supervisor import Change, Service, State, Supervisor, UnknownService
from bloomd.supervisor.supervisor import START_PATIENCE

NewActor = Callable[..., Actor]


async def test_services_start_in_order_and_stop_in_reverse(
    autojump_clock: MockClock, actor: NewActor, story: Story
) -> None:
    a, b = actor("a", start_seconds=1), actor("b")
    supervisor = Supervisor([a.service(), b.service()])
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        assert repr(supervisor) == "<Supervisor a=running b=running>"
        assert b.began == [1.0]
        supervisor.stop()
    assert story == ["a begins", "b begins", "b ends", "a ends"]
    assert repr(supervisor) == "<Supervisor a=stopped b=stopped>"


async def test_the_one_that_finishes_for_others_stops_first(
    autojump_clock: MockClock, actor: NewActor, story: Story
) -> None:
    front, data = actor("front"), actor("data")
    supervisor = Supervisor(
        [actor("socket").service(), front.service(stops_first=True, ask_to_stop=front.finish), data.service()]
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        del story[:]
        supervisor.stop()
    assert story == ["front is asked", "front finishes", "front ends", "data ends", "socket ends"]


async def test_a_service_starts_when_what_it_needs_is_running(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    base, upper = actor("base", before=Unavailable("no answer")), actor("upper")
    supervisor = Supervisor([base.service(), upper.service(needs=("base",))])
    await nursery.start(supervisor.run)
    assert [(s.name, s.state, s.cause) for s in supervisor.status()] == [
        ("base", State.WAITING, "no answer"),
        ("upper", State.WAITING, "needs base"),
    ]
    base.before = None
    await settled(supervisor, "upper", State.RUNNING, within=60)
    assert upper.began == base.began[-1:]


async def test_a_running_service_outlives_what_it_needed_to_start(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    base, upper = actor("base"), actor("upper")
    supervisor = Supervisor([base.service(), upper.service(needs=("base",))])
    await nursery.start(supervisor.run)
    await supervisor.stop_service("base")
    await trio.sleep(100)
    assert supervisor.state("upper") is State.RUNNING
    assert len(upper.began) == 1


async def test_a_start_that_hangs_holds_up_the_others_for_a_while_only(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    slow, other = actor("slow", start_seconds=1000), actor("other")
    supervisor = Supervisor([slow.service(), other.service()])
    await nursery.start(supervisor.run)
    assert repr(supervisor) == "<Supervisor slow=starting other=running>"
    assert other.began == [START_PATIENCE]
    await settled(supervisor, "slow", State.RUNNING)
    assert trio.current_time() == 1000


async def test_stopping_while_a_service_is_still_starting_waits_for_nothing(
    autojump_clock: MockClock, actor: NewActor, story: Story
) -> None:
    supervisor = Supervisor(
        [actor("a").service(), actor("slow", start_seconds=1000).service(), actor("never").service()]
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        await trio.sleep(1)
        supervisor.stop()
    assert story == ["a begins", "slow begins", "slow ends", "a ends"]
    assert trio.current_time() == 1


async def test_a_stop_before_the_start_is_not_forgotten_and_holds_once(
    autojump_clock: MockClock, actor: NewActor, story: Story
) -> None:
    supervisor = Supervisor([actor("a").service()])
    supervisor.stop()
    await supervisor.run()
    assert story == []
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        assert supervisor.state("a") is State.RUNNING
        supervisor.stop()


async def test_cancelling_ends_all_and_the_next_run_starts_afresh(autojump_clock: MockClock, actor: NewActor) -> None:
    a = actor("a")
    supervisor = Supervisor([a.service(), actor("waits", before=Unavailable("away")).service()])
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        nursery.cancel_scope.cancel()
    assert [(s.state, s.retry_in) for s in supervisor.status()] == [(State.STOPPED, None)] * 2
    await supervisor.stop_service("a")  # nothing is left over from the life that was cut short
    supervisor.start_service("a")
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        assert supervisor.state("a") is State.RUNNING
        supervisor.stop()
    assert len(a.began) == 2


async def test_services_that_are_not_configured_are_absent(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    configured = {"a": False, "b": True}
    a, b = actor("a"), actor("b")
    supervisor = Supervisor(
        [a.service(configured=lambda: configured["a"]), b.service(configured=lambda: configured["b"])]
    )
    await nursery.start(supervisor.run)
    assert repr(supervisor) == "<Supervisor b=running>"
    with pytest.raises(UnknownService, match=r"no service is called 'a'; there are: b$"):
        supervisor.start_service("a")

    configured.update(a=True, b=False)
    assert supervisor.state("b") is State.RUNNING  # it still lives, so it is still shown
    await supervisor.restart(["a", "b"], "reload")
    assert repr(supervisor) == "<Supervisor a=running>"
    assert not b.alive


async def test_a_service_that_is_no_longer_configured_is_not_retried(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    configured = True
    broken = actor("broken", before=ValueError("oops"))
    supervisor = Supervisor([broken.service(configured=lambda: configured)])
    await nursery.start(supervisor.run)
    await settled(supervisor, "broken", State.FAILED)
    configured = False
    await supervisor.restart(["broken"], "reload")
    assert supervisor.status() == []
    tries = len(broken.began)
    await trio.sleep(1000)
    assert len(broken.began) == tries
    configured, broken.before = True, None
    await supervisor.restart(["broken"], "reload")
    assert supervisor.state("broken") is State.RUNNING


async def test_configured_is_asked_again_at_each_change(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    configured = True
    a, b = actor("a", before=ValueError("oops")), actor("b", before=Misconfigured("wrong"))
    other = actor("other")
    services = [s.service(configured=lambda: configured) for s in (a, b)]
    supervisor = Supervisor([*services, other.service()])
    await nursery.start(supervisor.run)
    assert repr(supervisor) == "<Supervisor a=backoff b=failed other=running>"
    configured, a.before, b.before = False, None, None
    await trio.sleep(100)
    assert repr(supervisor) == "<Supervisor other=running>"
    configured = True
    other.crash(ValueError("a change of state"))
    await settled(supervisor, "a", State.RUNNING)
    await settled(supervisor, "b", State.RUNNING)


async def test_started_said_twice_or_too_late_changes_nothing(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    async def eager(*, task_status: trio.TaskStatus[Any]) -> None:
        try:
            task_status.started()
            task_status.started()
            await trio.sleep_forever()
        finally:
            task_status.started()

    supervisor = Supervisor([Service("eager", eager)])
    await nursery.start(supervisor.run)
    await supervisor.stop_service("eager")
    assert [change.state for change in supervisor.status()[0].changes] == ["starting", "running", "stopping", "stopped"]


async def test_changes_are_kept_and_published_with_time_and_cause(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    seen: list[Change] = []
    now = 1000.0
    supervisor = Supervisor([actor("a").service()], observe=seen.append, wall_clock=lambda: now)
    await nursery.start(supervisor.run)
    now = 1010.0
    await supervisor.stop_service("a")
    assert seen == [
        Change("a", State.STARTING, 1000.0, "start"),
        Change("a", State.RUNNING, 1000.0, "start"),
        Change("a", State.STOPPING, 1010.0, "stopped by hand"),
        Change("a", State.STOPPED, 1010.0, "stopped by hand"),
    ]
    assert supervisor.status()[0].changes == tuple(seen)
    assert supervisor.status()[0].since == 1010.0


async def test_an_observer_that_fails_is_logged_and_harms_nobody(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery, logs: list[Any]
) -> None:
    seen: list[State] = []

    def fail(_: Change) -> None:
        raise ZeroDivisionError

    supervisor = Supervisor([actor("a").service()], observe=fail)
    supervisor.observe(lambda change: seen.append(change.state))
    await nursery.start(supervisor.run)
    assert seen == [State.STARTING, State.RUNNING]
    assert {entry["event"] for entry in logs} == {"observer failed"}


@pytest.mark.parametrize(
    ("names", "needs", "complaint"),
    [
        (["a", "a"], [(), ()], "unique"),
        (["a/b"], [()], "no slash"),
        (["a", "b"], [("b",), ()], "'a' needs b, which must come before it"),
    ],
)
def test_a_tree_that_cannot_be_is_refused(
    actor: NewActor, names: list[str], needs: list[tuple[str, ...]], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        Supervisor([actor(name).service(needs=need) for name, need in zip(names, needs, strict=True)])
