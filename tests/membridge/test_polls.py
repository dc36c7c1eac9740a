"""Health polls of workers: what an answer says, and that the dead cost the living nothing."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest
import trio
from peers import Peer, reply, serving

from bloomd.errors import Unavailable
from bloomd.membridge import polls as module
from bloomd.membridge.polls import CONCURRENCY, PollResult, Polls, Target
from bloomd.settings.model import Workers

EPOCH = 7
LOOPBACK = ("127.0.0.0/8",)

SAID = {
    "status": "ok", "version": "1.4.0", "os_info": "Alpine 3.20", "hostname": "w1", "secret": "x",
    "capabilities": {"claude_cli": True, "max_concurrency": 99, "labels": ["openrc"]}, "ip_addrs": ["10.0.0.7"],
}  # fmt: skip


@dataclass
class Worker:
    id: str
    url: str


class Fleet:
    """What the database would be: who is to be polled, and what came of it."""

    def __init__(self) -> None:
        self.workers: list[Worker] = []
        self.batches: list[list[PollResult]] = []
        self.settings = Workers(poll_interval=3600.0)
        self.write_seconds = 0.0
        self._recorded = trio.Event()

    def polls(self) -> Polls:
        return Polls(lambda: self.settings, self.list_targets, self.record_many)

    async def list_targets(self) -> Sequence[Target]:
        return self.workers

    async def record_many(self, results: list[PollResult], epoch: int) -> None:
        assert epoch == EPOCH
        self.batches.append(results)
        await trio.sleep(self.write_seconds)
        self._recorded.set()
        self._recorded = trio.Event()

    @property
    def results(self) -> list[PollResult]:
        return [result for batch in self.batches for result in batch]

    async def recorded(self, count: int) -> None:
        with trio.fail_after(10):
            while len(self.results) < count:
                await self._recorded.wait()


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
async def agent() -> AsyncIterator[Peer]:
    async with serving(Peer(lambda _: reply(SAID))) as agent:
        yield agent


async def test_what_an_agent_says_of_itself(fleet: Fleet, agent: Peer, nursery: trio.Nursery) -> None:
    fleet.workers = [Worker("w1", agent.url + "/")]
    await nursery.start(fleet.polls().run, EPOCH)
    await fleet.recorded(1)
    assert fleet.results == [
        PollResult(
            "w1",
            ok=True,
            version="1.4.0",
            os_info="Alpine 3.20",
            hostname="w1",
            capabilities={"claude_cli": True, "max_concurrency": 32, "labels": ["openrc"]},
            ip_addrs=["10.0.0.7"],
        )
    ]
    assert agent.requests[0].path == "/health"
    assert not [name for name in agent.requests[0].headers if name.startswith("x-") or name == "authorization"]


@pytest.mark.parametrize(
    ("mode", "error"),
    [
        ("500", "the agent answered 500 to GET /health"),
        ("redirect", "the agent answered 302 to GET /health"),
        ("html", "the agent's /health is not a JSON object"),
        ("garbage", "the agent: its answer is not HTTP"),
        ("drop", "the agent: the connection was closed before the answer was complete"),
        ("huge", "the agent: its answer is longer than 1 MiB"),
        ("hang", "the agent: no answer within 0.2 s"),
        ("drip", "the agent: no answer within 0.2 s"),
    ],
)
async def test_no_sign_of_life(agent: Peer, mode: str, error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.2 if mode in ("hang", "drip") else 5.0)
    agent.mode = mode
    assert await module.poll("w1", agent.url, LOOPBACK) == PollResult("w1", ok=False, error=error)


async def test_an_address_outside_is_not_asked(fleet: Fleet, agent: Peer, nursery: trio.Nursery) -> None:
    fleet.settings = Workers(allowed_networks=("10.0.0.0/8",))
    fleet.workers = [Worker("w1", agent.url)]
    await nursery.start(fleet.polls().run, EPOCH)
    await fleet.recorded(1)
    (result,) = fleet.results
    assert result.error == "127.0.0.1 is outside workers.allowed_networks"
    assert agent.connections == 0


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h/", "http://", "http://[", "h:8001", "http://127.0.0.1:1/", "http://a..b/", "http://.../", "http://xn--a/",
        "http://" + "a" * 70, "http://127.0.0.1:99999", "http://127.0.0.1:1/\x01", "http://127.0.0.1:1/\ud800", "http://[v1.x]",
    ],
)  # fmt: skip
async def test_a_url_that_leads_nowhere(url: str) -> None:
    result = await module.poll("w1", url, LOOPBACK)
    assert not result.ok
    assert result.error


async def test_hanging_workers_delay_no_other(fleet: Fleet, agent: Peer, nursery: trio.Nursery) -> None:
    """In the first round nobody knows who hangs; fewer than all places are taken, and results are not held back."""
    async with serving(Peer(lambda _: reply({}))) as hanging:
        hanging.mode = "hang"
        dead = [Worker(f"dead{number}", hanging.url) for number in range(CONCURRENCY - 1)]
        fleet.workers = dead + [Worker(f"w{number}", agent.url) for number in range(50)]
        await nursery.start(fleet.polls().run, EPOCH)
        with trio.fail_after(3):
            await fleet.recorded(50)
        assert all(result.ok for result in fleet.results)


async def test_the_silent_come_last(fleet: Fleet, agent: Peer, nursery: trio.Nursery) -> None:
    fleet.settings = Workers(poll_interval=0.01)
    fleet.workers = [Worker("dead", "http://127.0.0.1:1"), Worker("w", agent.url)]
    asked: list[list[str]] = []
    original = module.poll

    async def poll(id: str, url: str, networks: tuple[str, ...]) -> PollResult:
        if not asked or len(asked[-1]) == 2:
            asked.append([])
        asked[-1].append(id)
        return await original(id, url, networks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "poll", poll)
        patch.setattr(module, "CONCURRENCY", 1)
        await nursery.start(fleet.polls().run, EPOCH)
        await fleet.recorded(6)
        nursery.cancel_scope.cancel()
    assert asked[:3] == [["dead", "w"], ["w", "dead"], ["w", "dead"]]


async def test_results_are_written_together(fleet: Fleet, agent: Peer, nursery: trio.Nursery) -> None:
    fleet.workers = [Worker(f"w{number}", agent.url) for number in range(200)]
    fleet.write_seconds = 0.05
    await nursery.start(fleet.polls().run, EPOCH)
    await fleet.recorded(200)
    assert len(fleet.batches) < 50
    assert sorted(result.id for result in fleet.results) == sorted(worker.id for worker in fleet.workers)


async def test_no_more_than_the_places_at_once(fleet: Fleet, agent: Peer, nursery: trio.Nursery) -> None:
    agent.mode = "hang"
    fleet.workers = [Worker(f"w{number}", agent.url) for number in range(3 * CONCURRENCY)]
    await nursery.start(fleet.polls().run, EPOCH)
    await agent.received(CONCURRENCY)
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert agent.connections == CONCURRENCY
    nursery.cancel_scope.cancel()


async def test_a_database_that_is_away_ends_run(fleet: Fleet, agent: Peer) -> None:
    async def away(results: list[PollResult], epoch: int) -> None:
        raise Unavailable("PostgreSQL: away")

    fleet.workers = [Worker("w1", agent.url)]
    fleet.record_many = away  # type: ignore[method-assign]  # the database of this test
    with pytest.RaisesGroup(pytest.RaisesExc(Unavailable, match="PostgreSQL"), flatten_subgroups=True):
        await fleet.polls().run(EPOCH)
