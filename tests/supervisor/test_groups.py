"""A supervisor as a service of another."""

from collections.abc import Callable

import pytest
import trio
from actors import Actor, Story, settled
from trio.testing import MockClock

from bloomd.errors import Misconfigured
from bloomd.supervisor import Change, EssentialServiceFailed, Service, State, Supervisor, UnknownService

NewActor = Callable[..., Actor]


def paths(supervisor: Supervisor) -> dict[str, State]:
    return {status.name: status.state for status in supervisor.status()}


async def test_names_are_paths_and_changes_go_up(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    seen: list[Change] = []
    disks = Supervisor([actor("sda").service()])
    probes = Supervisor([actor("minio").service(), Service("disks", disks.run, group=disks)])
    root = Supervisor([Service("probes", probes.run, group=probes), actor("b").service()], observe=seen.append)
    await nursery.start(root.run)
    assert list(paths(root)) == ["probes", "probes/minio", "probes/disks", "probes/disks/sda", "b"]
    assert set(paths(root).values()) == {State.RUNNING}
    assert [change.service for change in seen if change.state is State.RUNNING] == [
        "probes/minio", "probes/disks/sda", "probes/disks", "probes", "b",
    ]  # fmt: skip
    await root.stop_service("probes/disks/sda")
    assert root.state("probes/disks/sda") is State.STOPPED
    await root.restart(["probes/minio", "probes/disks/sda", "b"], "reload")
    assert paths(root)["probes/disks/sda"] is State.STOPPED
    root.start_service("probes/disks/sda")
    await settled(root, "probes/disks/sda", State.RUNNING, within=1)
    with pytest.raises(UnknownService, match="'nothing'"):
        root.start_service("probes/nothing")


async def test_a_group_stops_in_order_and_lets_its_services_finish(
    autojump_clock: MockClock, actor: NewActor, story: Story
) -> None:
    a, b = actor("a", finish_seconds=20), actor("b", finish_seconds=20)
    group = Supervisor([s.service(ask_to_stop=s.finish, stop_seconds=30) for s in (a, b)])
    root = Supervisor([actor("first").service(), Service("group", group.run, group=group, stop_seconds=1)])
    async with trio.open_nursery() as nursery:
        await nursery.start(root.run)
        del story[:]
        root.stop()
    assert story == ["b is asked", "b finishes", "b ends", "a is asked", "a finishes", "a ends", "first ends"]
    assert trio.current_time() == 40


async def test_hurry_reaches_the_services_of_a_group_and_keeps_their_order(
    autojump_clock: MockClock, actor: NewActor, story: Story
) -> None:
    a, b = actor("a", finish_seconds=20), actor("b", finish_seconds=20)
    group = Supervisor([s.service(ask_to_stop=s.finish, stop_seconds=30) for s in (a, b)])
    root = Supervisor([actor("first").service(), Service("group", group.run, group=group)])
    async with trio.open_nursery() as nursery:
        await nursery.start(root.run)
        del story[:]
        root.stop()
        await trio.sleep(1)
        root.hurry()
    assert story == ["b is asked", "b ends", "a ends", "first ends"]
    assert trio.current_time() == 1


async def test_a_group_that_is_still_starting_can_be_stopped(
    autojump_clock: MockClock, actor: NewActor, story: Story
) -> None:
    group = Supervisor([actor("a").service(), actor("slow", start_seconds=1000).service()])
    root = Supervisor([Service("group", group.run, group=group)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(root.run)
        await trio.sleep(1)
        root.stop()
    assert story == ["a begins", "slow begins", "slow ends", "a ends"]
    assert trio.current_time() == 1


async def test_a_failed_service_of_a_group_fails_alone(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    bad = actor("bad", before=ValueError("oops"))
    group = Supervisor([bad.service(), actor("good").service()])
    root = Supervisor([Service("group", group.run, group=group)])
    await nursery.start(root.run)
    await settled(root, "group/bad", State.FAILED, within=60)
    assert paths(root) == {"group": State.RUNNING, "group/bad": State.FAILED, "group/good": State.RUNNING}
    bad.before = None
    assert root.retry_failed("reload") == ["group/bad"]
    await settled(root, "group/bad", State.RUNNING, within=1)


async def test_an_essential_failure_in_a_group_fails_the_group_once(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    bad = actor("bad")
    group = Supervisor([actor("good").service(), bad.service(essential=True)])
    root = Supervisor([Service("group", group.run, group=group), actor("other").service()])
    await nursery.start(root.run)
    bad.before = Misconfigured("wrong")
    bad.crash(Misconfigured("wrong"))
    await settled(root, "group", State.FAILED, within=1)
    assert root.status()[0].last_error == "essential service bad has failed: wrong"
    assert paths(root) == {
        "group": State.FAILED,
        "group/good": State.STOPPED,
        "group/bad": State.FAILED,
        "other": State.RUNNING,
    }
    bad.before = None
    assert root.retry_failed("reload") == ["group", "group/bad"]
    await settled(root, "group", State.RUNNING, within=1)
    assert set(paths(root).values()) == {State.RUNNING}


async def test_an_essential_failure_in_an_essential_group_ends_the_root(
    autojump_clock: MockClock, actor: NewActor, story: Story
) -> None:
    group = Supervisor([actor("bad", during=Misconfigured("wrong")).service(essential=True)])
    root = Supervisor([actor("a").service(), Service("group", group.run, group=group, essential=True)])
    with pytest.raises(EssentialServiceFailed, match="group has failed: essential service bad has failed: wrong"):
        await root.run()
    assert story[-1] == "a ends"


async def test_a_stopped_group_starts_again_with_all_but_what_was_stopped_by_hand(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    group = Supervisor([actor(name).service() for name in "abc"])
    root = Supervisor([Service("group", group.run, group=group)])
    await nursery.start(root.run)
    await root.stop_service("group/a")
    await root.stop_service("group")
    assert set(paths(root).values()) == {State.STOPPED}
    await root.stop_service("group/b")
    root.start_service("group/b")  # there is nobody to run it yet
    await root.restart(["group/c"], "reload")
    assert set(paths(root).values()) == {State.STOPPED}
    root.start_service("group")
    await settled(root, "group", State.RUNNING, within=1)
    assert paths(root) == {
        "group": State.RUNNING,
        "group/a": State.STOPPED,
        "group/b": State.RUNNING,
        "group/c": State.RUNNING,
    }
    assert root.status()[1].cause == "stopped by hand"


async def test_a_group_and_its_service_can_be_restarted_together(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    a = actor("a")
    group = Supervisor([a.service()])
    root = Supervisor([Service("group", group.run, group=group)])
    await nursery.start(root.run)
    await root.restart(["group/a", "group"], "reload")
    assert set(paths(root).values()) == {State.RUNNING}
    assert len(a.began) == 2


async def test_a_group_that_is_not_configured_is_absent_with_all_it_holds(
    autojump_clock: MockClock, actor: NewActor, nursery: trio.Nursery
) -> None:
    group = Supervisor([actor("a").service()])
    root = Supervisor([Service("group", group.run, group=group, configured=lambda: False)])
    await nursery.start(root.run)
    assert root.status() == []
