"""What becomes of a service in trouble, on the mock clock."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import trio
from actors import Actor, Story, settled
from trio.testing import MockClock

from bloomd.errors import Misconfigured, Unavailable
from bloomd.supervisor import Backoff, EssentialServiceFailed, Service, State, Supervisor

NewActor = Callable[..., Actor]


def gaps(times: list[float]) -> list[float]:
    return [round(later - earlier, 6) for earlier, later in itertools.pairwise(times)]


@pytest.mark.parametrize("phase", ["before", "during"])
async def test_a_crashing_service_is_restarted_five_times_and_then_has_failed(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery, logs: list[Any], phase: str
) -> None:
    broken, sibling = actor("broken", **{phase: ValueError("oops")}), actor("sibling")
    supervisor = Supervisor([broken.service(), sibling.service()])
    await nursery.start(supervisor.run)
    await settled(supervisor, "broken", State.FAILED, within=10)
    assert gaps(broken.began) == [0.1, 0.2, 0.4, 0.8, 1.6]
    status, other = supervisor.status()
    assert status.last_error == status.cause == "ValueError: oops (crashed 6 times within 60 s)"
    assert (status.restarts, status.retry_in, status.by_hand) == (5, None, False)
    assert (other.state, other.restarts) == (State.RUNNING, 0)
    crashes = [entry for entry in logs if entry["event"] == "service crashed"]
    assert [type(entry["exc_info"]) for entry in crashes] == [ValueError] * 6
    await trio.sleep(10_000)
    assert len(broken.began) == 6


async def test_rare_crashes_never_spend_the_budget(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    a = actor("a")
    supervisor = Supervisor([a.service()])
    await nursery.start(supervisor.run)
    for _ in range(30):
        await trio.sleep(15)
        a.crash(ValueError("oops"))
        await settled(supervisor, "a", State.BACKOFF)
        await settled(supervisor, "a", State.RUNNING, within=5)
    assert supervisor.status()[0].restarts == 30


async def test_backoff_shows_when_the_next_try_is(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    supervisor = Supervisor([actor("a", before=ValueError("oops")).service()])
    await nursery.start(supervisor.run)
    status = supervisor.status()[0]
    assert (status.state, status.retry_in, status.last_error) == (State.BACKOFF, 0.1, "ValueError: oops")
    await trio.sleep(0.04)
    assert supervisor.status()[0].retry_in == pytest.approx(0.06)


async def test_returning_unasked_is_a_crash(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    async def lazy(*, task_status: trio.TaskStatus[Any]) -> None:
        task_status.started()

    supervisor = Supervisor([Service("lazy", lazy)])
    await nursery.start(supervisor.run)
    await settled(supervisor, "lazy", State.FAILED, within=10)
    assert supervisor.status()[0].cause.startswith("returned without being asked to")


async def test_an_absent_dependency_is_retried_for_ever_and_costs_no_budget(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    a = actor("a", before=ExceptionGroup("", [Unavailable("no answer")]))
    supervisor = Supervisor([a.service(retry=Backoff(0.2, 30.0, jitter=0.3))])
    await nursery.start(supervisor.run)
    await trio.sleep(3600)
    assert supervisor.state("a") in (State.WAITING, State.STARTING)
    delays = gaps(a.began)
    assert len(delays) > 3600 / 30
    for failures, delay in enumerate(delays):
        full = min(30.0, 0.2 * 2**failures)
        assert 0.7 * full <= delay <= full
    assert len(set(delays[-50:])) > 10  # a herd would not stay one

    a.before = ValueError("oops")  # the budget is still whole
    start = len(a.began)
    await settled(supervisor, "a", State.FAILED, within=60)
    assert len(a.began) - start == 6


async def test_an_outage_is_logged_once_and_again_after_it_was_over(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery, logs: list[Any]
) -> None:
    a = actor("a", before=Unavailable("no answer"))
    supervisor = Supervisor([a.service()])
    await nursery.start(supervisor.run)
    await trio.sleep(3600)
    assert [(entry["event"], entry["error"]) for entry in logs] == [("service waits", "no answer")]
    a.before = None
    await settled(supervisor, "a", State.RUNNING)
    a.before = Unavailable("no answer")
    a.crash(Unavailable("no answer"))
    await trio.sleep(3600)
    assert [entry["error"] for entry in logs] == ["no answer"] * 2


async def test_a_slow_refusal_does_not_count_as_having_served(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    frozen = actor("frozen", start_seconds=12, before=Unavailable("timed out"))
    supervisor = Supervisor([frozen.service(retry=Backoff(1, 8, jitter=0))])
    await nursery.start(supervisor.run)
    await trio.sleep(100)
    assert gaps(frozen.began)[:5] == [13, 14, 16, 20, 20]


async def test_after_steady_service_the_first_retry_is_short_again(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    a = actor("a", before=Unavailable("away"))
    supervisor = Supervisor([a.service(retry=Backoff(1, 100, jitter=0))])
    await nursery.start(supervisor.run)
    await trio.sleep(200)
    a.before = None
    await settled(supervisor, "a", State.RUNNING)
    await trio.sleep(60)
    a.crash(Unavailable("away again"))
    await settled(supervisor, "a", State.WAITING)
    assert supervisor.status()[0].retry_in == 1


async def test_misconfigured_fails_at_once_and_waits_for_a_person(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    a = actor("a", before=Misconfigured("wrong password: set database.url"))
    supervisor = Supervisor([a.service(), actor("b").service()])
    await nursery.start(supervisor.run)
    status = supervisor.status()[0]
    assert (status.state, status.last_error) == (State.FAILED, "wrong password: set database.url")
    await trio.sleep(1000)
    assert len(a.began) == 1
    a.before = None
    assert supervisor.retry_failed("reload") == ["a"]
    await settled(supervisor, "a", State.RUNNING, within=1)
    assert supervisor.status()[0].cause == "reload"
    assert supervisor.retry_failed("reload") == []


async def test_an_essential_service_that_fails_ends_everything_in_order(
    autojump_clock: MockClock, actor: NewActor, story: Story
) -> None:
    bad = actor("bad")
    supervisor = Supervisor([actor("a").service(), bad.service(essential=True), actor("c").service()])
    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            bad.crash(Misconfigured("port taken"))
    assert caught.group_contains(EssentialServiceFailed, match="bad has failed: port taken", depth=1)
    assert story[-3:] == ["bad ends", "c ends", "a ends"]
    assert supervisor.state("bad") is State.FAILED


async def test_an_essential_service_is_restarted_like_any_other_first(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    a = actor("a")
    supervisor = Supervisor([a.service(essential=True)])
    await nursery.start(supervisor.run)
    a.crash(ValueError("oops"))
    await settled(supervisor, "a", State.BACKOFF)
    await settled(supervisor, "a", State.RUNNING, within=1)


async def test_an_essential_failure_at_the_start_ends_the_start(
    autojump_clock: MockClock, actor: NewActor, story: Story
) -> None:
    supervisor = Supervisor(
        [actor("bad", before=Misconfigured("no")).service(essential=True), actor("never").service()]
    )
    with pytest.raises(EssentialServiceFailed):
        await supervisor.run()
    assert story == ["bad begins", "bad ends"]


async def test_restarts_wait_for_needs_too(autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery) -> None:
    base, upper = actor("base"), actor("upper")
    supervisor = Supervisor([base.service(), upper.service(needs=("base",))])
    await nursery.start(supervisor.run)
    await supervisor.stop_service("base")
    upper.crash(ValueError("oops"))
    await settled(supervisor, "upper", State.WAITING, within=1)
    status = supervisor.status()[1]
    assert (status.cause, status.retry_in) == ("needs base", None)
    supervisor.start_service("base")
    await settled(supervisor, "upper", State.RUNNING, within=1)
    assert supervisor.status()[1].restarts == 1


async def test_an_error_during_a_stop_is_logged_and_costs_nothing(
    autojump_clock: MockClock, nursery: trio.Nursery, logs: list[Any]
) -> None:
    async def clumsy(*, task_status: trio.TaskStatus[Any]) -> None:
        async with trio.open_nursery() as inner:
            inner.start_soon(trio.sleep_forever)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("stumbled")

    supervisor = Supervisor([Service("clumsy", clumsy)])
    await nursery.start(supervisor.run)
    await supervisor.stop_service("clumsy")
    status = supervisor.status()[0]
    assert (status.state, status.last_error, status.retry_in) == (State.STOPPED, None, None)
    assert "service stopped with an error" in [entry["event"] for entry in logs]
