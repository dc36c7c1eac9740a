"""The audit trail as a file: what it holds, and how the sending of it ends; on the mock clock."""

import csv
from datetime import UTC, datetime
from io import StringIO

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from raw_http import GET, serving

from bloomd.errors import Unavailable
from bloomd.http.export import COLUMNS, FORMATS, FORMULA, STALL_SECONDS, ExportAnswer, as_csv, as_json_lines, cell, iso
from bloomd.runtime.audit import Wanted
from bloomd.runtime.model import AuditEntry


def entry(number, **fields):
    return AuditEntry(**({"id": f"e{number}", "timestamp": number, "action": "task.created", "entity_type": "task",
                          "entity_id": "t", "actor": "api-key", "detail": None} | fields))  # fmt: skip


class Trail:
    """In the place of a database: so many entries; it is away from the page with this number on, if any."""

    def __init__(self, entries, *, away_from=None, detail=None):
        self.entries = entries
        self.away_from = away_from
        self.detail = detail
        self.pages = 0

    async def listing(self, looked, query, *, at, limit, **_):
        await trio.lowlevel.checkpoint()
        if self.pages == self.away_from:
            raise Unavailable("the database is away")
        self.pages += 1
        newest = min(self.entries, at - 1)
        return [
            looked(**{name: getattr(entry(number, detail=self.detail), name) for name in AuditEntry.__struct_fields__},
                   place=place, fits=True)
            for place, number in enumerate(range(newest, max(newest - limit, 0), -1), 1)
        ]  # fmt: skip


class Client:
    def __init__(self):
        self.body = []
        self.more = None
        self.headers = None
        self.reads = trio.Event()
        self.reads.set()
        self.leaves = trio.Event()

    async def send(self, message):
        await self.reads.wait()
        if message["type"] == "http.response.start":
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body.append(message["body"])
            self.more = message["more_body"]

    async def receive(self):
        await self.leaves.wait()
        return {"type": "http.disconnect"}


async def fetch(trail, client, *, format="csv", head=False):
    await ExportAnswer(trail, FORMATS[format], Wanted())({"state": {"head": head}}, client.receive, client.send)


async def test_all_of_it_page_by_page(autojump_clock):
    client = Client()
    await fetch(Trail(20_000), client)
    rows = list(csv.reader(StringIO(b"".join(client.body).decode(), newline="")))
    assert rows[0] == list(COLUMNS)
    assert [int(row[1]) for row in rows[1:]] == list(range(20_000, 0, -1))
    assert client.more is False
    assert len(client.body) == 21
    assert max(map(len, client.body)) < 200_000


@pytest.mark.parametrize("format", FORMATS)
async def test_what_it_says_about_itself(autojump_clock, format):
    client = Client()
    await fetch(Trail(3), client, format=format)
    assert client.headers["content-type"].startswith({"csv": "text/csv", "jsonl": "application/jsonl"}[format])
    day = f"{datetime.now(UTC):%Y}"
    assert client.headers["content-disposition"].startswith(f'attachment; filename="bloomd-audit-{day}')
    assert client.headers["content-disposition"].endswith(f'Z.{format}"')


async def test_of_nothing_there_is_a_header_row(autojump_clock):
    client = Client()
    await fetch(Trail(0), client)
    assert b"".join(client.body) == b"time,timestamp,action,entity_type,entity_id,actor,detail,id\r\n"
    client = Client()
    await fetch(Trail(0), client, format="jsonl")
    assert (b"".join(client.body), client.more) == (b"", False)


async def test_head_reads_a_page_and_sends_none(autojump_clock):
    client, trail = Client(), Trail(20_000)
    await fetch(trail, client, head=True)
    assert (client.body, client.more, trail.pages) == ([b""], False, 1)


async def test_no_page_is_read_before_the_one_before_it_is_taken(autojump_clock):
    client, trail = Client(), Trail(20_000)
    client.reads = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch, trail, client)
        await trio.sleep(STALL_SECONDS / 2)
        assert trail.pages == 1
        client.reads.set()
    assert (trail.pages, client.more) == (21, False)


async def test_who_takes_nothing_for_long_is_let_go(autojump_clock):
    client, trail = Client(), Trail(20_000)

    async def stall():
        while trail.pages < 5:
            await trio.lowlevel.checkpoint()
        client.reads = trio.Event()

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stall)
        await fetch(trail, client)
    assert trio.current_time() - began == STALL_SECONDS
    assert (trail.pages < 20, client.more) == (True, True)


async def test_it_ends_when_the_client_goes(autojump_clock):
    client, trail = Client(), Trail(20_000)
    client.leaves.set()
    await fetch(trail, client)
    assert trail.pages < 20
    assert client.more is not False


async def test_without_a_database_there_is_no_file(autojump_clock):
    client = Client()
    with pytest.raises(Unavailable):
        await fetch(Trail(5000, away_from=0), client)
    assert client.headers is None


@pytest.mark.parametrize("away_from", [1, 3, None])
async def test_a_file_that_is_not_whole_does_not_end_as_if_it_were(away_from):
    """Over a real connection: the last chunk is missing, and the connection is closed."""

    async def app(scope, receive, send):
        answer = ExportAnswer(Trail(5000, away_from=away_from), FORMATS["csv"], Wanted())
        await answer({**scope, "state": {"head": False}}, receive, send)

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET)
        status, headers = await client.head()
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        if away_from is None:
            while await client.chunk():
                pass
        else:
            rest = await client.rest()
            assert rest.count(b"api-key") == away_from * 1000
            assert not rest.endswith(b"0\r\n\r\n")


async def test_what_a_reader_that_stalls_does_not_take_is_not_read():
    """Over a real connection: the pages that nobody takes are not read."""
    trail, ended = Trail(1_000_000, detail="x" * 1000), trio.Event()

    async def app(scope, receive, send):
        await ExportAnswer(trail, FORMATS["jsonl"], Wanted())({**scope, "state": {"head": False}}, receive, send)
        ended.set()

    async with serving(app) as server:
        stalled = await server.connect()
        await stalled.send(GET)
        await stalled.head()
        pages = -1
        while pages != trail.pages:  # until the buffers between the two are full
            pages = trail.pages
            await trio.sleep(0.2)
        assert pages < 100
        stalled.stream.socket.close()
        await ended.wait()
        assert trail.pages < 100


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (None, ""),
        ("", ""),
        ("plain = text", "plain = text"),
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("'=1", "'=1"),
    ],
)
def test_no_cell_is_a_formula(text, shown):
    assert cell(text) == shown


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=5, max_size=5))
def test_what_was_written_can_be_read(texts):
    """Whatever it holds."""
    action, type, id, actor, detail = texts
    said = entry(1_700_000_000_123, action=action, entity_type=type, entity_id=id, actor=actor, detail=detail)
    [row] = csv.reader(StringIO(as_csv([said]).decode(), newline=""))
    assert row[:2] == ["2023-11-14T22:13:20.123Z", "1700000000123"]
    assert row[2:7] == [cell(text) for text in texts]
    assert not any(text.startswith(FORMULA) for text in row[2:])
    line = as_json_lines([said])
    assert line.count(b"\n") == 1
    assert msgspec.json.decode(line, type=AuditEntry) == said


@pytest.mark.parametrize(
    ("at", "shown"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000_001, "2023-11-14T22:13:20.001Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        (253_402_300_800_000, ""),
        (2**63 - 1, ""),
    ],
)
def test_times(at, shown):
    assert iso(at) == shown
