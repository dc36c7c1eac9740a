"""The mirror's rounds: when they happen, what is seen of them, and that an outage changes nothing."""

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing
from peers import MembridgePeer, old_agent

from bloomd.errors import Misconfigured, Unavailable
from bloomd.membridge.agents import Agent
from bloomd.membridge.client import MembridgeClient
from bloomd.membridge.sync import Sync, SyncOutcome
from bloomd.runtime.liveness import Mirrored
from bloomd.supervisor import Backoff, Service, State, Supervisor

EPOCH = 7


class Scripted:
    """Stands in for the client where only time matters."""

    def __init__(self) -> None:
        self.rounds: list[float] = []
        self.trouble: Exception | None = None
        self.seconds = 0.0

    async def agents(self) -> list[Agent]:
        self.rounds.append(trio.current_time())
        await trio.sleep(self.seconds)
        if self.trouble:
            raise self.trouble
        return [Agent("w1"), Agent("w2")]


async def mirror(agents: list[Agent], epoch: int) -> Mirrored:
    return Mirrored(added=len(agents), changed=0)


def sync_of(client: object, interval: float = 10.0, mirror: Callable[..., Awaitable[Mirrored]] = mirror) -> Sync:
    return Sync(lambda: client, lambda: interval, mirror, wall_clock=lambda: 1_700_000_000.0)  # type: ignore[arg-type, return-value]  # Scripted


async def test_a_round_at_once_and_every_interval(autojump_clock: trio.testing.MockClock) -> None:
    client = Scripted()
    client.seconds = 2.0
    sync = sync_of(client)
    with trio.move_on_after(35):
        await sync.run(EPOCH)
    assert client.rounds == [0.0, 10.0, 20.0, 30.0]
    assert sync.status.outcome == SyncOutcome(agents=2, added=2, changed=0, offline=0, seconds=2.0)
    assert (sync.status.last_success, sync.status.failures, sync.status.error) == (1_700_000_000.0, 0, None)
    assert sync.status.agents == 2


async def test_started_after_the_first_round(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    client = Scripted()
    client.seconds = 3.0
    await nursery.start(sync_of(client).run, EPOCH)
    assert trio.current_time() == 3.0


async def test_a_failed_round_ends_run_and_keeps_what_was(autojump_clock: trio.testing.MockClock) -> None:
    client = Scripted()
    sync = sync_of(client)
    await sync.now(EPOCH)
    outcome = sync.status.outcome
    for failures, trouble in enumerate((Unavailable("away"), Misconfigured("refused")), 1):
        client.trouble = trouble
        with pytest.raises(Unavailable, match=str(trouble)):
            await sync.run(EPOCH)
        assert (sync.status.failures, sync.status.error) == (failures, str(trouble))
        assert (sync.status.outcome, sync.status.last_success) == (outcome, 1_700_000_000.0)
    client.trouble = None
    await sync.now(EPOCH)
    assert (sync.status.failures, sync.status.error) == (0, None)


async def test_a_mirror_that_fails_is_a_failed_round() -> None:
    async def database_away(agents: list[Agent], epoch: int) -> Mirrored:
        raise Unavailable("PostgreSQL: away")

    sync = sync_of(Scripted(), mirror=database_away)
    with pytest.raises(Unavailable, match="PostgreSQL"):
        await sync.now(EPOCH)
    assert (sync.status.failures, sync.status.error) == (1, "PostgreSQL: away")


async def test_now_works_in_a_long_interval_and_without_the_service(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    client = Scripted()
    sync = sync_of(client, interval=3600.0)
    await sync.now(EPOCH)
    await nursery.start(sync.run, EPOCH)
    await trio.sleep(5)
    assert (await sync.now(EPOCH)).agents == 2
    assert client.rounds == [0.0, 0.0, 5.0]


async def test_now_joins_a_round_under_way(autojump_clock: trio.testing.MockClock) -> None:
    client = Scripted()
    client.seconds = 1.0
    sync = sync_of(client)
    outcomes: list[SyncOutcome] = []

    async def now() -> None:
        outcomes.append(await sync.now(EPOCH))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(now)
    assert client.rounds == [0.0]
    assert len(outcomes) == 5
    assert len(set(map(id, outcomes))) == 1


async def test_who_joins_a_failing_round_hears_of_it(autojump_clock: trio.testing.MockClock) -> None:
    client = Scripted()
    client.seconds, client.trouble = 1.0, Unavailable("away")
    sync = sync_of(client)
    heard = 0

    async def now() -> None:
        nonlocal heard
        with pytest.raises(Unavailable, match="away"):
            await sync.now(EPOCH)
        heard += 1

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(now)
    assert (heard, client.rounds) == (3, [0.0])


async def test_who_joins_a_round_that_is_given_up_does_its_own(autojump_clock: trio.testing.MockClock) -> None:
    client = Scripted()
    client.seconds = 2.0
    sync = sync_of(client)
    async with trio.open_nursery() as nursery:

        async def impatient() -> None:
            with trio.move_on_after(1.0):
                await sync.now(EPOCH)

        nursery.start_soon(impatient)
        await trio.sleep(0.5)
        assert (await sync.now(EPOCH)).agents == 2
    assert client.rounds == [0.0, 1.0]


async def test_wake_begins_the_next_round(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    client = Scripted()
    sync = sync_of(client, interval=3600.0)
    await nursery.start(sync.run, EPOCH)
    await trio.sleep(7)
    sync.wake()
    await trio.sleep(1)
    assert client.rounds == [0.0, 7.0]


async def test_a_round_that_fails_for_old_settings_is_repeated(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    client = Scripted()
    client.seconds, client.trouble = 5.0, Unavailable("the settings have changed meanwhile")
    sync = sync_of(client)
    nursery.start_soon(sync.run, EPOCH)
    await trio.sleep(1)
    sync.wake()
    await trio.sleep(4.5)
    client.trouble = None
    await trio.sleep(5)
    assert client.rounds == [0.0, 5.0]
    assert sync.status.failures == 0


async def test_the_supervisor_shows_an_outage_and_its_end(
    peer: MembridgePeer, client: MembridgeClient, nursery: trio.Nursery
) -> None:
    mirrored: list[list[str]] = []

    async def mirror(agents: list[Agent], epoch: int) -> Mirrored:
        mirrored.append([agent.id for agent in agents])
        return Mirrored(added=0, changed=0)

    peer.agents = [old_agent("w1")]
    sync = Sync(lambda: client, lambda: 0.02, mirror)
    root = Supervisor([Service("sync", partial(sync.run, EPOCH), retry=Backoff(first=0.01, cap=0.02))])

    def in_state(state: State, root: Supervisor) -> bool:
        return root.state("sync") is state

    with trio.fail_after(10):
        await nursery.start(root.run)
        await root.wait_until(partial(in_state, State.RUNNING))
        peer.mode = "500"
        await root.wait_until(partial(in_state, State.WAITING))
        rounds = len(mirrored)
        (status,) = root.status()
        assert "answered 500 to GET /agents" in (status.last_error or "")
        assert (sync.status.outcome, sync.status.failures) != (None, 0)
        assert len(mirrored) == rounds
        peer.mode = "ok"
        await root.wait_until(partial(in_state, State.RUNNING))
        root.stop()
    assert mirrored[-1] == ["w1"]
    assert sync.status.failures == 0
