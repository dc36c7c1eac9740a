"""Following events: what the daemon sends to whom, and what `bloomd-ctl` makes of it."""

import json
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio
import trio.testing

from bloomd.control import events
from bloomd.control.codes import INVALID_PARAMS, UNAVAILABLE
from bloomd.control.events import ALIVE_SECONDS, Subscribe
from bloomd.control.following import SILENCE_SECONDS
from bloomd.control.listener import bind, unbind
from bloomd.control.peer import Peer
from bloomd.control.server import Call, ControlError, ControlServer, Method
from bloomd.ctl import _parser
from bloomd.errors import Unavailable
from bloomd.node import Node
from bloomd.runtime.events import TYPES
from bloomd.runtime.recent import Event, position_of

QUIET = cast("Sequence[Event]", "quiet")
NEVER = trio.Event()


def event(id: str | None) -> Event:
    return Event(id, "task", "T", msgspec.Raw(b'{"action":"task.created","entity_id":"T","timestamp":1700000000000}'))


class Feed:
    """A feed whose one subscription gives these batches; it is quiet for ever after `QUIET`."""

    def __init__(self, *batches: Sequence[Event] | Exception) -> None:
        self._batches = list(batches)
        self.last_id = "0-0"
        self.asked: tuple[object, object] | None = None

    @asynccontextmanager
    async def subscribe(self, after: str | None, *, types: Sequence[str]) -> AsyncGenerator["Feed"]:
        self.asked = (after, types)
        if after:
            position_of(after)
        self.last_id = after or self.last_id
        yield self

    async def batch(self) -> Sequence[Event]:
        await trio.lowlevel.checkpoint()
        batch = self._batches.pop(0) if self._batches else ()
        if isinstance(batch, Exception):
            raise batch
        if batch is QUIET:
            await trio.sleep_forever()
        self.last_id = next((each.id for each in reversed(batch) if each.id), self.last_id)
        return batch


class Client:
    """Notes what it is sent, some of which takes it a while."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.heard: list[tuple[float, str, str | None]] = []
        self._seconds = seconds
        self._turn = trio.Lock()  # one line after the other, in the order in which they were given

    async def notify(self, method: str, params: object) -> None:
        if self._seconds:
            async with self._turn:
                await trio.sleep(self._seconds)
        id = params.id if isinstance(params, Event) else cast("dict[str, str]", params)["id"]
        self.heard.append((trio.current_time(), method, id))


async def follow(feed: Feed, client: Client, *, stopping: trio.Event = NEVER, **params: Any) -> None:
    node = cast("Node", SimpleNamespace(feed=feed, stopping=stopping))
    call = Call(Peer(0, 0, 0, frozenset()), client.notify)
    await events.method(node).run(Subscribe(**params), call)


def test_a_client_waits_longer_than_the_daemon_is_ever_silent() -> None:
    assert SILENCE_SECONDS >= 3 * ALIVE_SECONDS


async def test_in_a_quiet_time_the_daemon_says_that_it_is_there(autojump_clock: trio.testing.MockClock) -> None:
    client = Client()
    began = trio.current_time()
    with trio.move_on_after(3.5 * ALIVE_SECONDS):
        await follow(Feed([event("7-1")], QUIET), client)
    assert [(round(at - began), method, id) for at, method, id in client.heard if method == "event"] == [
        (0, "event", "7-1")
    ]
    alive = [(round(at - began), id) for at, method, id in client.heard if method == "alive"]
    assert alive[1:] == [(round(n * ALIVE_SECONDS), "7-1") for n in (1, 2, 3)]


async def test_where_to_go_on_is_never_ahead_of_what_was_told(autojump_clock: trio.testing.MockClock) -> None:
    """To a client so slow that it is reassured between the events of one batch."""
    client = Client(seconds=ALIVE_SECONDS * 0.7)
    first = [event("7-1"), event(None), event("7-2"), event("7-3"), event("7-4")]
    with pytest.raises(ControlError):
        await follow(Feed(first, [event("8-1"), event("8-2")]), client)
    told = "0-0"
    for _, method, id in client.heard:
        if method == "alive":
            assert id == told
        told = id or told
    assert [id for _, method, id in client.heard if method == "event"] == [
        "7-1", None, "7-2", "7-3", "7-4", "8-1", "8-2",
    ]  # fmt: skip
    assert len([None for _, method, _ in client.heard if method == "alive"]) > 2


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((), "these events were not read as fast as they came"),
        (Unavailable("PostgreSQL does not answer"), "PostgreSQL does not answer"),
    ],
)
async def test_an_end_that_may_pass_says_so(batch: Any, words: str) -> None:
    with pytest.raises(ControlError, match=words) as end:
        await follow(Feed([event("7-1")], batch), Client())
    assert end.value.code == UNAVAILABLE


async def test_when_the_daemon_stops_so_does_the_following(autojump_clock: trio.testing.MockClock) -> None:
    stopping = trio.Event()
    client = Client()
    async with trio.open_nursery() as nursery:

        async def stop() -> None:
            await trio.sleep(1)
            stopping.set()

        nursery.start_soon(stop)
        with pytest.raises(ControlError, match="bloomd stops") as end:
            await follow(Feed(QUIET), client, stopping=stopping)
    assert end.value.code == UNAVAILABLE
    heard = len(client.heard)
    for _ in range(20):
        with pytest.raises(ControlError, match="bloomd stops"):
            await follow(Feed(QUIET), client, stopping=stopping)
    assert len(client.heard) == heard, "nobody is told that the daemon is there, because it is not"


async def test_what_is_asked_is_checked_and_handed_on() -> None:
    feed = Feed()
    with pytest.raises(ControlError):
        await follow(feed, Client(), types=["task", "probe"], after="7-1")
    assert feed.asked == ("7-1", ["task", "probe"])
    with pytest.raises(ControlError):
        await follow(feed, Client())
    assert feed.asked == (None, TYPES)
    for wrong, words in (
        ({"types": ["tusk"]}, "no events are of type tusk"),
        ({"after": "yesterday"}, "id of an event"),
    ):
        with pytest.raises(ControlError, match=words) as refused:
            await follow(feed, Client(), **wrong)
        assert refused.value.code == INVALID_PARAMS


def test_the_help_names_the_types_there_are() -> None:
    [commands] = [action.choices for action in _parser()._actions if isinstance(action.choices, dict)]
    *most, rest = TYPES
    told = " ".join(commands["events"].format_help().split())
    assert f"only these: {', '.join(most)}, and {rest} for all else" in told


class Telling:
    """A daemon that tells its followers what it is given to tell, and notes where they wanted to begin."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.asked: list[Subscribe] = []
        self.say, self._to_say = trio.open_memory_channel[tuple[str, object] | ControlError](100)

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        listener = bind(self._path, "no-such-group")
        try:
            server = ControlServer([Method("events", self._events, Subscribe)], group="x", audit=lambda *_: None)
            await server.serve(listener.socket, task_status=task_status)
        finally:
            unbind(listener)

    async def _events(self, params: Subscribe, call: Call) -> object:
        self.asked.append(params)
        async for said in self._to_say.clone():
            if isinstance(said, ControlError):
                raise said
            await call.notify(*said)
        return None


class Follower:
    """`bloomd-ctl events` with little patience."""

    def __init__(self, path: str, nursery: trio.Nursery, *arguments: str) -> None:
        hasty = "from bloomd.control import following; following.SILENCE_SECONDS = 0.5; following.RETRY_SECONDS = 0.05"
        code = f"import sys; from bloomd import ctl; {hasty}; sys.exit(ctl.main(sys.argv[1:]))"
        self._command = [sys.executable, "-c", code, "-s", path, *arguments]
        self._nursery = nursery

    async def __aenter__(self) -> "Follower":
        run = partial(trio.run_process, self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        self.process: trio.Process = await self._nursery.start(run)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.process.kill()
        await self.process.wait()

    async def code(self) -> int:
        with trio.fail_after(20):
            return await self.process.wait()

    async def line(self, *, of: str = "stdout") -> str:
        stream = cast("trio.abc.ReceiveStream", getattr(self.process, of))
        line = b""
        with trio.fail_after(20):
            while not line.endswith(b"\n") and (byte := await stream.receive_some(1)):
                line += byte
        return line.decode()


EVENT = {
    "id": "7-1", "type": "task", "entity_id": "T",
    "data": {"action": "task.created", "timestamp": 1_700_000_000_000, "actor": "ci", "detail": "\x1b[2J"},
}  # fmt: skip


@pytest.fixture
async def telling(path: str, nursery: trio.Nursery) -> Telling:
    daemon = Telling(path)
    await nursery.start(daemon.serve)
    return daemon


async def test_a_quiet_time_is_no_reason_to_give_up(telling: Telling, path: str, nursery: trio.Nursery) -> None:
    async with Follower(path, nursery, "events") as follower:
        for _ in range(8):
            await telling.say.send(("alive", {"id": "6-1"}))
            await trio.sleep(0.2)
        await telling.say.send(("event", EVENT))
        line = await follower.line()
        assert line.endswith("  task.created       T  ci  \N{REPLACEMENT CHARACTER}[2J\n")
        follower.process.send_signal(signal.SIGINT)
        assert await follower.code() == 130
        assert await follower.line(of="stderr") == "\n"
    assert telling.asked == [Subscribe()]


async def test_a_daemon_that_falls_silent_is_asked_again_from_where_it_was(
    telling: Telling, path: str, nursery: trio.Nursery
) -> None:
    async with Follower(path, nursery, "-o", "json", "events", "--types", "task,worker") as follower:
        await telling.say.send(("alive", {"id": "6-1"}))
        silent = "did not answer within 0.5 seconds: busy or stuck; waiting for its return\n"
        assert (await follower.line(of="stderr")).endswith(silent)
        await telling.say.send(("event", EVENT))
        assert await follower.line(of="stderr") == "bloomd-ctl: bloomd is there again\n"
        assert json.loads(await follower.line()) == EVENT
        await telling.say.send(("event", EVENT | {"id": None}))
        assert json.loads(await follower.line())["id"] is None
        await telling.say.send(ControlError("bloomd stops", UNAVAILABLE))
        assert await follower.line(of="stderr") == "bloomd-ctl: bloomd stops; waiting for its return\n"
        while len(telling.asked) < 3:
            await trio.sleep(0.01)
    types = ["task", "worker"]
    assert telling.asked[0] == Subscribe(types, None)
    assert telling.asked[1] == Subscribe(types, "6-1")
    assert telling.asked[-1] == Subscribe(types, "7-1")


@pytest.mark.parametrize("at_once", [True, False])
async def test_what_will_not_pass_is_not_waited_for(
    telling: Telling, path: str, nursery: trio.Nursery, at_once: bool
) -> None:
    if not at_once:
        await telling.say.send(("alive", {"id": "6-1"}))
    refusal = ControlError("PostgreSQL is away", UNAVAILABLE) if at_once else ControlError("no such id", INVALID_PARAMS)
    await telling.say.send(refusal)
    async with Follower(path, nursery, "events") as follower:
        assert await follower.line(of="stderr") == f"bloomd-ctl: {refusal}\n"
        assert await follower.code() == 1


async def test_a_daemon_that_was_never_there_is_not_waited_for(path: str, nursery: trio.Nursery) -> None:
    async with Follower(path, nursery, "events") as follower:
        assert "there is no socket" in await follower.line(of="stderr")
        assert await follower.code() == 3
