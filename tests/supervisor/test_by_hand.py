"""What a person or a reload asks for, also when they ask at a bad moment."""

from collections.abc import Callable

import pytest
import trio
from actors import Actor, Story, settled
from trio.testing import MockClock, wait_all_tasks_blocked

from bloomd.errors import Misconfigured, Unavailable
from bloomd.supervisor import Backoff, State, Supervisor, UnknownService
from bloomd.supervisor.supervisor import START_PATIENCE

NewActor = Callable[..., Actor]


async def test_what_a_person_stops_stays_stopped(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    a = actor("a")
    supervisor = Supervisor([a.service()])
    await nursery.start(supervisor.run)
    await supervisor.stop_service("a")
    assert not a.alive
    assert supervisor.retry_failed("reload") == []
    await supervisor.restart(["a"], "reload")
    await trio.sleep(1000)
    status = supervisor.status()[0]
    assert (status.state, status.cause, status.by_hand, status.last_error) == (
        State.STOPPED,
        "stopped by hand",
        True,
        None,
    )
    supervisor.start_service("a")
    await settled(supervisor, "a", State.RUNNING, within=1)
    assert not supervisor.status()[0].by_hand


async def test_a_restart_by_hand_starts_a_stopped_service(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    supervisor = Supervisor([actor("a").service()])
    await nursery.start(supervisor.run)
    await supervisor.stop_service("a")
    await supervisor.restart_service("a")
    assert [(s.state, s.cause, s.by_hand) for s in supervisor.status()] == [(State.RUNNING, "restarted by hand", False)]


async def test_starting_a_running_service_leaves_it_alone(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    a = actor("a")
    supervisor = Supervisor([a.service()])
    await nursery.start(supervisor.run)
    supervisor.start_service("a")
    await wait_all_tasks_blocked()
    assert len(a.began) == 1


async def test_starting_a_waiting_service_tries_at_once(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    a = actor("a", before=Unavailable("away"))
    supervisor = Supervisor([a.service(retry=Backoff(1000, 1000))])
    await nursery.start(supervisor.run)
    a.before = None
    supervisor.start_service("a")
    await settled(supervisor, "a", State.RUNNING, within=0.001)
    status = supervisor.status()[0]
    assert (status.cause, status.last_error, status.restarts) == ("started by hand", "away", 1)


async def test_starting_what_waits_for_a_sibling_does_not_start_it(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    upper = actor("upper")
    supervisor = Supervisor([actor("base").service(), upper.service(needs=("base",))])
    await nursery.start(supervisor.run)
    await supervisor.stop_service("base")
    await supervisor.restart(["upper"], "reload")
    assert [(s.state, s.cause) for s in supervisor.status()[1:]] == [(State.WAITING, "needs base")]
    supervisor.start_service("upper")
    await wait_all_tasks_blocked()
    assert supervisor.state("upper") is State.WAITING
    assert len(upper.began) == 1


async def test_a_failed_service_that_is_started_has_a_fresh_budget(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    a = actor("a", before=ValueError("oops"))
    supervisor = Supervisor([a.service()])
    await nursery.start(supervisor.run)
    await settled(supervisor, "a", State.FAILED)
    supervisor.start_service("a")
    await settled(supervisor, "a", State.BACKOFF)
    await settled(supervisor, "a", State.FAILED)
    assert len(a.began) == 12
    await supervisor.stop_service("a")
    assert [(s.state, s.by_hand) for s in supervisor.status()] == [(State.STOPPED, True)]


async def test_a_restart_goes_in_order_and_waits_for_each(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery, story: Story
) -> None:
    supervisor = Supervisor([actor(name, start_seconds=1).service() for name in "abc"])
    await nursery.start(supervisor.run)
    del story[:]
    await supervisor.restart(["c", "a"], "reload")
    assert story == ["c ends", "a ends", "a begins", "c begins"]
    assert repr(supervisor) == "<Supervisor a=running b=running c=running>"
    assert trio.current_time() == 5


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (Unavailable("away"), State.WAITING),
        (ValueError("oops"), State.BACKOFF),
        (Misconfigured("wrong"), State.FAILED),
    ],
)
async def test_a_restart_returns_when_the_service_says_why_it_cannot(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery, error: Exception, state: State
) -> None:
    a = actor("a")
    supervisor = Supervisor([a.service()])
    await nursery.start(supervisor.run)
    a.before = error
    await supervisor.restart(["a"], "reload")
    assert supervisor.state("a") is state
    a.before = None
    await supervisor.restart(["a"], "back again")
    assert supervisor.state("a") is State.RUNNING


async def test_a_restart_does_not_wait_for_ever(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    a = actor("a")
    supervisor = Supervisor([a.service()])
    await nursery.start(supervisor.run)
    a.start_seconds = 1000
    await supervisor.restart(["a"], "reload")
    assert supervisor.state("a") is State.STARTING
    assert trio.current_time() == START_PATIENCE


async def test_a_restart_whose_asker_goes_away_is_finished_all_the_same(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    a, b = actor("a"), actor("b", finish_seconds=5)
    supervisor = Supervisor([a.service(), b.service(ask_to_stop=b.finish)])
    await nursery.start(supervisor.run)
    with trio.move_on_after(1):
        await supervisor.restart(["a", "b"], "reload")
    await trio.sleep(10)
    assert (supervisor.state("a"), supervisor.state("b")) == (State.RUNNING, State.RUNNING)
    assert b.began == [0, 5]


async def test_a_stop_whose_asker_goes_away_keeps_its_deadline(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    a = actor("a", finish_seconds=1000)
    supervisor = Supervisor([a.service(ask_to_stop=a.finish, stop_seconds=7)])
    await nursery.start(supervisor.run)
    with trio.move_on_after(1):
        await supervisor.stop_service("a")
    await settled(supervisor, "a", State.STOPPED)
    assert trio.current_time() == 7
    assert supervisor.status()[0].by_hand


async def test_start_during_a_stop_starts_it_again_afterwards(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    a = actor("a", finish_seconds=3)
    supervisor = Supervisor([a.service(ask_to_stop=a.finish)])
    await nursery.start(supervisor.run)
    nursery.start_soon(supervisor.stop_service, "a")
    await settled(supervisor, "a", State.STOPPING)
    supervisor.start_service("a")
    await settled(supervisor, "a", State.RUNNING, within=4)
    assert a.began == [0, 3]
    assert [change.state for change in supervisor.status()[0].changes] == [
        "starting", "running", "stopping", "stopped", "starting", "running",
    ]  # fmt: skip


async def test_a_persons_stop_during_a_reload_wins(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    a = actor("a", finish_seconds=3)
    supervisor = Supervisor([a.service(ask_to_stop=a.finish)])
    await nursery.start(supervisor.run)
    nursery.start_soon(supervisor.restart, ["a"], "reload")
    await settled(supervisor, "a", State.STOPPING)
    await supervisor.stop_service("a")
    await trio.sleep(100)
    assert supervisor.state("a") is State.STOPPED
    assert len(a.began) == 1


async def test_two_restarts_at_once_are_one(autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery) -> None:
    a = actor("a", finish_seconds=3)
    supervisor = Supervisor([a.service(ask_to_stop=a.finish)])
    await nursery.start(supervisor.run)
    async with trio.open_nursery() as both:
        both.start_soon(supervisor.restart, ["a"], "first")
        both.start_soon(supervisor.restart, ["a"], "second")
    assert a.began == [0, 3]
    assert supervisor.state("a") is State.RUNNING


async def test_stopping_a_service_that_is_starting_cancels_it(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery, story: Story
) -> None:
    a = actor("a", start_seconds=10)
    supervisor = Supervisor([a.service(ask_to_stop=a.finish)])
    nursery.start_soon(supervisor.run)
    await trio.sleep(1)
    await supervisor.stop_service("a")
    assert story == ["a begins", "a ends"]  # nothing was usable yet, so there is nothing to finish


async def test_stopping_in_backoff_forgets_the_retry(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    a = actor("a", before=ValueError("oops"))
    supervisor = Supervisor([a.service()])
    await nursery.start(supervisor.run)
    await supervisor.stop_service("a")
    await trio.sleep(100)
    assert len(a.began) == 1
    assert [(s.state, s.retry_in) for s in supervisor.status()] == [(State.STOPPED, None)]


async def test_an_unknown_name_is_refused_with_those_that_exist(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    a = actor("a")
    supervisor = Supervisor([a.service(), actor("b").service()])
    await nursery.start(supervisor.run)
    with pytest.raises(UnknownService, match=r"^no service is called 'c'; there are: a, b$"):
        await supervisor.stop_service("c")
    with pytest.raises(UnknownService, match=r"^no service is called 'a/x': a has no services below it$"):
        await supervisor.stop_service("a/x")
    with pytest.raises(UnknownService):
        await supervisor.restart(["a", "c"], "reload")
    await wait_all_tasks_blocked()
    assert len(a.began) == 1
