"""What an event stream sends and how it ends, on the mock clock."""

from types import SimpleNamespace

import pytest
import trio
from event_trail import Trail

from bloomd.errors import Unavailable
from bloomd.http.routes.events import KEEPALIVE_SECONDS, STALL_SECONDS, EventStream
from bloomd.runtime import trail
from bloomd.runtime.events import TYPES, Feed
from bloomd.runtime.wakeups import Wakeups
from bloomd.settings.model import Http


class Client:
    """Who reads a stream, as its ASGI messages; `reads` says whether it takes what is sent."""

    def __init__(self):
        self.sent = []
        self.reads = trio.Event()
        self.reads.set()
        self.leaves = trio.Event()
        self.ended = trio.Event()

    async def send(self, message):
        await self.reads.wait()
        self.sent.append((trio.current_time(), message))

    async def receive(self):
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    @property
    def start(self):
        return self.sent[0][1]

    @property
    def text(self):
        return b"".join(message["body"] for _, message in self.sent[1:]).decode()

    @property
    def finished(self):
        return self.sent[-1][1].get("more_body") is False


def node_on(database):
    """What a stream sees of a node, to which no key is needed."""
    wakeups = Wakeups(database)
    return SimpleNamespace(
        database=database,
        wakeups=wakeups,
        feed=Feed(database, wakeups, kept_bytes=20_000),
        stopping=trio.Event(),
        settings=SimpleNamespace(http=Http()),
        keys=SimpleNamespace(empty=True, changed=trio.Event()),
    )


def scope(*, head=False):
    return {"state": {"head": head}, "headers": []}


@pytest.fixture
async def node(nursery):
    made = node_on(Trail())
    await nursery.start(made.feed.run)
    return made


@pytest.fixture
def open_stream(node, nursery):
    async def open_stream(*, types=TYPES, head=False, pulse=False):
        client = Client()

        async def run():
            stream = EventStream(node, after=None, types=types, entity_id=None, pulse=pulse)
            await stream(scope(head=head), client.receive, client.send)
            client.ended.set()

        nursery.start_soon(run)
        await trio.sleep(1)
        return client

    return open_stream


async def test_it_begins_with_how_to_come_again(autojump_clock, open_stream):
    client = await open_stream()
    headers = dict(client.start["headers"])
    assert client.start["status"] == 200
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"x-accel-buffering"] == b"no"
    assert client.text == ": bloomd\nretry: 2000\nid: 0-0\n\n"


async def test_an_event_is_three_lines(autojump_clock, node, open_stream):
    client = await open_stream()
    before = client.text
    node.database.write()
    node.wakeups.change()
    await trio.sleep(1)
    [id, event, data, end] = client.text.removeprefix(before).split("\n", 3)
    assert (id, event, end) == ("id: 100-1", "event: task", "\n")
    assert data.startswith('data: {"id":"100",')
    before = client.text
    node.feed.live("probe", {"name": "minio", "state": "down"})
    await trio.sleep(1)
    assert client.text.removeprefix(before) == 'event: probe\ndata: {"name":"minio","state":"down"}\n\n'


async def test_in_quiet_times_a_comment_keeps_it_alive(autojump_clock, open_stream):
    client = await open_stream()
    del client.sent[1:]
    await trio.sleep(4 * KEEPALIVE_SECONDS)
    assert client.text == 4 * ": still here\n\n"


async def test_a_pulse_shows_a_browser_which_sees_no_comments_that_events_come_through(autojump_clock, open_stream):
    pulse = "event: pulse\ndata: {}\n\n"
    client = await open_stream(pulse=True)
    assert client.text.endswith(f"id: 0-0\n\n{pulse}")
    del client.sent[1:]
    await trio.sleep(2 * KEEPALIVE_SECONDS)
    assert client.text == 2 * f": still here\n\n{pulse}"


async def test_what_is_passed_over_moves_the_id_on(autojump_clock, node, open_stream):
    """Else a reader that wants little would read it all again when it comes back."""
    client = await open_stream(types=["worker"])
    del client.sent[1:]
    for _ in range(10):
        node.database.write()
        node.wakeups.change()
        await trio.sleep(1)
    await trio.sleep(KEEPALIVE_SECONDS)
    assert client.text == f": still here\nid: {node.database.ids[-1]}\n\n"


async def test_head_has_no_body_and_no_end_to_wait_for(autojump_clock, node, open_stream):
    client = await open_stream(head=True)
    assert client.ended.is_set()
    assert (client.start["status"], client.text, client.finished) == (200, "", True)
    assert node.feed.subscribers == 0


async def test_it_ends_with_the_daemon_and_is_finished(autojump_clock, node, open_stream):
    client = await open_stream()
    node.stopping.set()
    began = trio.current_time()
    await client.ended.wait()
    assert trio.current_time() == began
    assert client.finished
    assert node.feed.subscribers == 0


async def test_it_ends_with_the_daemon_though_nobody_reads(autojump_clock, node, open_stream):
    """An answer that was cut off in the middle is not finished: what would follow is no chunk any more."""
    client = await open_stream()
    client.reads = trio.Event()
    node.database.write()
    node.wakeups.change()
    await trio.sleep(1)
    node.stopping.set()
    began = trio.current_time()
    await client.ended.wait()
    assert trio.current_time() == began
    client.reads.set()
    assert not client.finished


async def test_it_ends_when_the_client_goes(autojump_clock, node, open_stream):
    client = await open_stream()
    client.leaves.set()
    await client.ended.wait()
    assert not client.finished
    assert node.feed.subscribers == 0


async def test_it_ends_when_a_key_is_needed_that_it_has_not(autojump_clock, node, open_stream):
    client = await open_stream()
    node.keys.empty = False
    node.keys.changed.set()
    await client.ended.wait()
    assert client.finished


async def test_who_takes_nothing_for_long_is_let_go(autojump_clock, node, open_stream):
    client = await open_stream()
    client.reads = trio.Event()
    began = trio.current_time()
    await client.ended.wait()
    assert trio.current_time() - began == pytest.approx(KEEPALIVE_SECONDS + STALL_SECONDS, abs=1.1)
    assert not client.finished
    assert node.feed.subscribers == 0


async def test_who_reads_too_slowly_for_all_that_happens_is_let_go_at_once(autojump_clock, node, open_stream):
    slow, quick = await open_stream(), await open_stream()
    slow.reads = trio.Event()
    began = trio.current_time()
    while not slow.ended.is_set():
        node.database.write(times=20)
        node.wakeups.change()
        await trio.sleep(0.1)
    assert trio.current_time() - began < 2
    assert not slow.finished
    node.database.write()
    node.wakeups.change()
    await trio.sleep(1)
    assert quick.text.count("event: task") == len(node.database.ids)
    assert node.feed.subscribers == 1


async def test_a_database_that_goes_away_while_one_catches_up_ends_the_stream(autojump_clock):
    """It comes again, and is told 503 until the database is back."""
    database, client = Trail(), Client()
    database.write(times=3)
    database.fails = lambda query: query == trail.ENTRIES
    node = node_on(database)
    stream = EventStream(node, after=database.ids[0], types=TYPES, entity_id=None)
    await stream(scope(), client.receive, client.send)
    assert client.finished
    assert "event:" not in client.text


async def test_without_a_database_there_is_no_stream(autojump_clock):
    database, client = Trail(), Client()
    database.fails = lambda query: True
    node = node_on(database)
    with pytest.raises(Unavailable):
        await EventStream(node, after=None, types=TYPES, entity_id=None)(scope(), client.receive, client.send)
    assert client.sent == []
    assert node.feed.subscribers == 0
