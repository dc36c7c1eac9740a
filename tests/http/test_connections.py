"""The HTTP server at its socket: bytes in, bytes out, against a real `HttpServer` on loopback in this process."""

import re
import socket
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import free_port

from bloomd.http import connections
from bloomd.http.latency import Latency
from bloomd.http.observe import observed
from bloomd.http.server import KEEP_ALIVE_SECONDS, Binds, HttpServer
from bloomd.settings.model import Http

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
MEGABYTE = 1 << 20


class Server:
    """A server on its binds, in a nursery of the test."""

    def __init__(self, bind, http):
        self.bind = bind
        self.http = http
        self.nursery = None
        self.stopped = trio.Event()
        self.clients = []

    async def run(self, *, task_status):
        await self.http.run(task_status=task_status)
        self.stopped.set()

    async def connect(self):
        if self.bind.startswith("unix:"):
            stream = await trio.open_unix_socket(self.bind[5:])
        else:
            stream = await trio.open_tcp_stream("127.0.0.1", int(self.bind.rpartition(":")[2]))
        self.clients.append(Client(stream))
        return self.clients[-1]


@asynccontextmanager
async def serving(app, *, bind=None, drain_seconds=5.0):
    """A server for a test; what hangs fails."""
    binds = Binds()
    bind = bind or f"127.0.0.1:{free_port()}"
    binds.open(Http(bind=(bind,)))
    server = Server(bind, HttpServer(app, binds, drain_seconds=drain_seconds))
    flies = isinstance(trio.lowlevel.current_clock(), trio.testing.MockClock)
    try:
        with trio.fail_after(10_000 if flies else 20):
            async with trio.open_nursery() as nursery:
                server.nursery = nursery
                await nursery.start(server.run)
                yield server
                nursery.cancel_scope.cancel()
    finally:
        for client in server.clients:
            client.stream.socket.close()
        binds.close_all()


class Client:
    """Reads answers one by one, however their bytes come."""

    def __init__(self, stream):
        self.stream = stream
        self.buffer = b""

    async def send(self, data):
        await self.stream.send_all(data)

    async def read(self):
        """What comes next, as it comes; empty at the end."""
        data, self.buffer = self.buffer, b""
        return data or await self.stream.receive_some(MEGABYTE)

    async def until(self, mark):
        while mark not in self.buffer:
            data = await self.stream.receive_some(MEGABYTE)
            assert data, f"the connection ended after {self.buffer!r}"
            self.buffer += data
        found, _, self.buffer = self.buffer.partition(mark)
        return found + mark

    async def exactly(self, count):
        while len(self.buffer) < count:
            data = await self.stream.receive_some(MEGABYTE)
            assert data, f"the connection ended after {len(self.buffer)} bytes"
            self.buffer += data
        found, self.buffer = self.buffer[:count], self.buffer[count:]
        return found

    async def head(self):
        """Status and headers."""
        first, *lines = (await self.until(b"\r\n\r\n")).decode().strip().split("\r\n")
        return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines)

    async def answer(self, *, body=True):
        """Status, headers and body of one answer; `body=False` after a HEAD."""
        status, headers = await self.head()
        content = b""
        if not body:
            pass
        elif "content-length" in headers:
            content = await self.exactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            while chunk := await self.chunk():
                content += chunk
        return status, headers, content

    async def chunk(self):
        content = await self.exactly(int(await self.until(b"\r\n"), 16) + 2)
        return content[:-2]

    async def rest(self):
        """All that still comes."""
        with suppress(trio.BrokenResourceError):
            while data := await self.stream.receive_some(MEGABYTE):
                self.buffer += data
        return self.buffer

    async def is_open(self, seconds):
        """Whether the server keeps it open, and says nothing, for this long."""
        with trio.move_on_after(seconds):
            assert await self.stream.receive_some(1) == b""
            return False
        return True


async def respond(send, body=b"ok", *, status=200, headers=()):
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


async def body_of(receive):
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return body + b"(gone)"
        body += message["body"]
        more = message["more_body"]
    return body


async def echo(scope, receive, send):
    """Answers with the method, the path and the body."""
    assert scope["type"] == "http"
    body = await body_of(receive)
    await respond(send, b"%s %s %s" % (scope["method"].encode(), scope["path"].encode(), body))


async def careless(scope, receive, send):
    """Reads nothing."""
    assert scope["type"] == "http"
    await respond(send)


async def test_a_connection_serves_many_requests():
    async with serving(echo) as server:
        client = await server.connect()
        for number in range(3):
            await client.send(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % number)
            status, headers, body = await client.answer()
            assert (status, body) == (200, b"GET /%d " % number)
            assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d gmt", headers["date"])
            assert "server" not in headers


async def test_a_short_answer_leaves_in_one_write(monkeypatch):
    writes = []
    write = connections.os.write
    monkeypatch.setattr(connections.os, "write", lambda fd, data: writes.append(data) or write(fd, data))
    monkeypatch.setattr(trio.SocketStream, "send_all", None)
    async with serving(careless) as server:
        with socket.create_connection(("127.0.0.1", int(server.bind.rpartition(":")[2]))) as client:
            client.sendall(GET)
            await trio.lowlevel.wait_readable(client)
            answer = client.recv(MEGABYTE)
    assert answer.endswith(b"\r\n\r\nok")
    assert answer in writes


async def test_a_stream_leaves_piece_by_piece():
    """Each piece before there is another: a reader of events waits for none."""
    turn = trio.Semaphore(0)

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for number in range(3):
            await turn.acquire()
            await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
        await turn.acquire()
        await send({"type": "http.response.body", "body": b""})

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET)
        status, headers = await client.head()
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        for number in range(3):
            turn.release()
            assert await client.chunk() == b"data: %d\n\n" % number
        turn.release()
        assert await client.chunk() == b""
        await client.send(GET)
        assert (await client.head())[0] == 200


async def test_a_long_answer_in_pieces_of_which_the_length_is_known():
    piece = b"x" * 100_000

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        headers = [(b"content-length", b"%d" % (30 * len(piece)))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number in range(30):
            await send({"type": "http.response.body", "body": piece, "more_body": number < 29})

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET)
        assert (await client.answer())[2] == 30 * piece
        await client.send(GET)
        assert (await client.answer())[2] == 30 * piece


async def test_whoever_streams_lets_others_work():
    """A client that reads as fast as a handler writes does not get the event loop for itself."""
    others = 0

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        headers = [(b"content-length", b"%d" % 200)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number in range(200):
            await send({"type": "http.response.body", "body": b"x", "more_body": number < 199})

    async def other():
        nonlocal others
        while True:
            others += 1
            await trio.lowlevel.checkpoint()

    async with serving(app) as server:
        client = await server.connect()
        server.nursery.start_soon(other)
        await client.send(GET)
        await client.answer()
        assert others > 100


async def test_head_and_what_has_no_body():
    async def app(scope, receive, send):
        assert scope["type"] == "http"
        match scope["path"]:
            case "/304":
                headers = [(b"etag", b'"x"'), (b"content-length", b"2")]
                await send({"type": "http.response.start", "status": 304, "headers": headers})
                await send({"type": "http.response.body", "body": b""})
            case "/204":
                await send({"type": "http.response.start", "status": 204, "headers": []})
                await send({"type": "http.response.body", "body": b""})
            case _:
                await respond(send)

    async with serving(app) as server:
        client = await server.connect()
        for method, path, status in (("HEAD", "/", 200), ("GET", "/304", 304), ("GET", "/204", 204), ("GET", "/", 200)):
            await client.send(f"{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            assert (await client.answer(body=(path == "/" and method == "GET")))[0] == status
        assert client.buffer == b""


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nhost:"], ids=["silent", "half a head"])
async def test_an_idle_connection_is_closed(autojump_clock, begun):
    async with serving(echo) as server:
        client = await server.connect()
        await client.send(begun)
        assert await client.is_open(KEEP_ALIVE_SECONDS - 1)
        assert not await client.is_open(2)


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nhost:"], ids=["silent", "half a head"])
async def test_a_connection_is_idle_again_after_each_answer(autojump_clock, begun):
    async with serving(echo) as server:
        client = await server.connect()
        for _ in range(3):
            await trio.sleep(KEEP_ALIVE_SECONDS - 1)
            await client.send(GET)
            await client.answer()
        await client.send(begun)
        assert await client.is_open(KEEP_ALIVE_SECONDS - 1)
        assert not await client.is_open(2)


async def test_each_idle_connection_has_its_own_time(autojump_clock):
    async with serving(echo) as server:
        clients, closed = [], []

        async def watch(number, client):
            assert await client.rest() == b""
            closed.append((number, round(trio.current_time() - began)))

        began = trio.current_time()
        for number in range(4):
            clients.append(await server.connect())
            server.nursery.start_soon(watch, number, clients[-1])
            await trio.sleep(7)
        await trio.sleep(2 * KEEP_ALIVE_SECONDS)
        assert closed == [(number, 7 * number + KEEP_ALIVE_SECONDS) for number in range(4)]


async def test_a_connection_with_a_request_under_way_is_not_idle(autojump_clock):
    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await trio.sleep(10 * KEEP_ALIVE_SECONDS)
        await respond(send)

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET)
        assert (await client.answer())[0] == 200
        assert await client.is_open(KEEP_ALIVE_SECONDS - 1)


async def test_a_body_that_comes_slowly_is_not_idle(autojump_clock):
    async with serving(echo) as server:
        client = await server.connect()
        await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n")
        for _ in range(3):
            await trio.sleep(KEEP_ALIVE_SECONDS - 1)
            await client.send(b"x")
        assert (await client.answer())[2] == b"POST / xxx"


async def test_the_drain_finishes_what_runs_and_closes_the_rest(autojump_clock):
    go = trio.Event()

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await go.wait()
        await respond(send)

    async with serving(app, drain_seconds=60) as server:
        idle, begun, busy = [await server.connect() for _ in range(3)]
        await begun.send(b"GET / HTTP/1.1\r\n")
        await busy.send(GET)
        await trio.sleep(1)
        server.http.ask_to_stop()
        assert await idle.rest() == b""
        assert await begun.rest() == b""
        await trio.sleep(5)
        assert not server.stopped.is_set()
        go.set()
        status, headers, _ = await busy.answer()
        assert (status, headers.get("connection")) == (200, "close")
        assert await busy.rest() == b""
        await server.stopped.wait()


async def test_the_drain_ends(autojump_clock):
    """What is not ready in time is told so, and the connection ends."""

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await trio.sleep_forever()

    async with serving(app, drain_seconds=3) as server:
        client = await server.connect()
        await client.send(GET)
        await trio.sleep(1)
        began = trio.current_time()
        server.http.ask_to_stop()
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (500, "close")
        assert await client.rest() == b""
        await server.stopped.wait()
        assert trio.current_time() - began == pytest.approx(3, abs=0.1)


async def test_a_client_that_does_not_read_does_not_prolong_the_drain(autojump_clock):
    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await respond(send, b"x" * 50 * MEGABYTE)

    async with serving(app, drain_seconds=3) as server:
        client = await server.connect()
        await client.send(GET)
        await trio.sleep(1)
        server.http.ask_to_stop()
        with trio.fail_after(4):
            await server.stopped.wait()
        assert len(await client.rest()) < 50 * MEGABYTE


async def test_a_handler_may_limit_the_time_that_a_reader_takes(autojump_clock):
    timed_out = trio.Event()

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        with trio.move_on_after(10) as limit:
            await respond(send, b"x" * 50 * MEGABYTE)
        if limit.cancelled_caught:
            timed_out.set()

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET)
        with trio.fail_after(11):
            await timed_out.wait()
        assert len(await client.rest()) < 50 * MEGABYTE


async def test_a_unix_socket(tmp_path):
    seen = []

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        seen.append(scope["client"])
        await respond(send)

    async with serving(app, bind=f"unix:{tmp_path}/bloomd.sock") as server:
        client = await server.connect()
        await client.send(GET + GET)
        assert [(await client.answer())[0] for _ in range(2)] == [200, 200]
    assert seen == [None, None]


async def test_the_scope_tells_who_and_where():
    scopes = []

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        scopes.append(scope)
        await respond(send)

    async with serving(app) as server:
        client = await server.connect()
        await client.send(b"GET /a%20b?c=%20d HTTP/1.1\r\nHost: x\r\nX-Odd:  spaced  \r\n\r\n")
        await client.answer()
        address, port = client.stream.socket.getsockname()
    [scope] = scopes
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/a b", b"/a%20b", b"c=%20d")
    assert scope["client"] == (address, port)
    assert scope["headers"] == [(b"host", b"x"), (b"x-odd", b"spaced")]
    assert (scope["method"], scope["http_version"], scope["scheme"]) == ("GET", "1.1", "http")


async def test_a_socket_outlives_its_server():
    """A restart of the service closes no listening socket: whoever comes meanwhile waits and is served."""
    binds = Binds()
    port = free_port()
    binds.open(Http(bind=(f"127.0.0.1:{port}",)))
    server = HttpServer(echo, binds, drain_seconds=1)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            server.ask_to_stop()
        client = Client(await trio.open_tcp_stream("127.0.0.1", port))
        await client.send(GET)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            assert (await client.answer())[0] == 200
            nursery.cancel_scope.cancel()
        await client.stream.aclose()
    finally:
        binds.close_all()


async def test_a_chunked_body():
    async with serving(echo) as server:
        client = await server.connect()
        await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await client.send(b"2;extension=1\r\nde\r\n0\r\ntrailer: x\r\n\r\n" + GET)
        assert (await client.answer())[2] == b"POST / abcde"
        assert (await client.answer())[2] == b"GET / "


async def test_a_large_body_that_is_read():
    body = bytes(range(256)) * 4 * 4096

    async with serving(echo) as server:
        client = await server.connect()
        for _ in range(2):
            await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            assert (await client.answer())[2] == b"POST / " + body


async def test_a_large_body_that_is_not_read_for_some_time():
    """It is taken from the client all the same, and the connection stays usable."""
    go = trio.Event()

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await go.wait()
        await respond(send)

    async with serving(app) as server:
        client = await server.connect()
        await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (3 * MEGABYTE))
        await client.send(b"x" * 3 * MEGABYTE)
        await trio.testing.wait_all_tasks_blocked(0.05)
        go.set()
        assert (await client.answer())[0] == 200
        await client.send(GET)
        assert (await client.answer())[0] == 200


async def test_an_answer_before_the_body_has_come_ends_the_connection():
    async with serving(careless) as server:
        client = await server.connect()
        await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n12345")
        assert (await client.answer())[0] == 200
        assert await client.rest() == b""


@pytest.mark.parametrize(("messages", "size"), [(2, 1000), (1000, 2)])
async def test_bodies_that_nobody_reads_are_kept_within_limits(monkeypatch, messages, size):
    """As many messages and bytes as are allowed; the end of the request frees whoever waited to add one."""
    monkeypatch.setattr(connections, "INBOX_BYTES", size)
    inbox = connections.Inbox(limit=messages)
    added = 0

    async def add():
        nonlocal added
        for _ in range(4):
            await inbox.put({"type": "http.request", "body": b"x", "more_body": True})
            added += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(add)
        await trio.testing.wait_all_tasks_blocked()
        assert added == 2
        await inbox.receive()
        await trio.testing.wait_all_tasks_blocked()
        assert added == 3
        await inbox.put({"type": "http.disconnect"})
    assert added == 4


@pytest.mark.parametrize("many", [2, 50])
async def test_pipelined_requests_are_answered_in_order(many):
    requests = b"".join(
        b"POST /%d HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n%03d" % (number, number) for number in range(many)
    )
    async with serving(echo) as server:
        client = await server.connect()
        await client.send(requests)
        assert [(await client.answer())[2] for _ in range(many)] == [
            b"POST /%d %03d" % (number, number) for number in range(many)
        ]


CONVERSATION = (
    GET
    + b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nabcd"
    + b"POST /b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n"
    + b"GET /end HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
)


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(1, len(CONVERSATION) - 1), max_size=12))
def test_how_the_bytes_come_does_not_matter(cuts):
    async def converse():
        async with serving(echo) as server:
            client = await server.connect()
            edges = [0, *sorted(cuts), len(CONVERSATION)]
            for start, end in pairwise(edges):
                await client.send(CONVERSATION[start:end])
                await trio.testing.wait_all_tasks_blocked(0.0005)
            bodies = [(await client.answer())[2] for _ in range(4)]
            assert await client.rest() == b""
            return bodies

    assert trio.run(converse) == [b"GET / ", b"POST /a abcd", b"POST /b abcd", b"GET /end "]


async def test_a_client_that_waits_for_100_continue_gets_it():
    async with serving(echo) as server:
        client = await server.connect()
        await client.send(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        assert (await client.head())[0] == 100
        await client.send(b"hi")
        assert (await client.answer())[2] == b"POST / hi"


@pytest.mark.parametrize("request_", [GET, b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc"])
async def test_a_handler_learns_that_the_client_has_gone(request_):
    """However often it asks."""
    seen, told = [], trio.Event()

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        while len(seen) < 4:
            seen.append(await receive())
        await respond(send)
        told.set()

    async with serving(app) as server:
        client = await server.connect()
        await client.send(request_)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await client.stream.aclose()
        with trio.fail_after(5):
            await told.wait()
    assert [message["type"] for message in seen] == ["http.request"] + 3 * ["http.disconnect"]


async def test_a_handler_that_writes_to_nobody_is_not_held_up():
    done = trio.Event()

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await respond(send, b"x" * 50 * MEGABYTE)
        done.set()

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET)
        await client.exactly(MEGABYTE)
        await client.stream.aclose()
        with trio.fail_after(5):
            await done.wait()


async def test_a_client_that_has_finished_writing_gets_its_answer():
    async with serving(careless) as server:
        client = await server.connect()
        await client.send(GET)
        await client.stream.send_eof()
        assert (await client.answer())[0] == 200
        assert await client.rest() == b""


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nbad header: y\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nhost: x\r\nlong: " + b"x" * 40_000, 431),
    ],
)
async def test_what_is_not_http_is_refused_and_ends_the_connection(request_, status):
    async with serving(echo) as server:
        client = await server.connect()
        await client.send(request_)
        got, headers, _ = await client.answer()
        assert (got, headers["connection"]) == (status, "close")
        assert await client.rest() == b""
        other = await server.connect()
        await other.send(GET)
        assert (await other.answer())[0] == 200


async def test_a_broken_chunk_ends_the_connection():
    async with serving(echo) as server:
        client = await server.connect()
        await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n")
        assert (await client.answer())[0] == 400
        assert await client.rest() == b""


async def test_http_1_0_and_connection_close():
    async with serving(careless) as server:
        for request in (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"):
            client = await server.connect()
            await client.send(request)
            status, headers, body = await client.answer()
            assert (status, headers["connection"], body) == (200, "close", b"ok")
            assert await client.rest() == b""


UPGRADE = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
        b"GET / HTTP/1.1\r\nhost: x\r\n" + UPGRADE + b"\r\n",
    ],
    ids=["preface", "upgrade"],
)
async def test_http_2_is_refused_in_http_1(request_):
    async with serving(observed(echo, Latency(), verbose=lambda: True)) as server:
        client = await server.connect()
        await client.send(request_)
        status, headers, body = await client.answer()
        assert (status, headers["content-type"]) == (505, "application/problem+json")
        assert b"HTTP/1.1 is spoken here" in body
        assert await client.rest() == b""


async def test_an_upgrade_to_http_2_with_a_body_is_ignored():
    async with serving(observed(echo, Latency(), verbose=lambda: True)) as server:
        client = await server.connect()
        await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n" + UPGRADE + b"\r\nhi")
        assert (await client.answer())[::2] == (200, b"POST / hi")


async def test_a_websocket_is_refused():
    async def app(scope, receive, send):
        assert scope["type"] == "websocket"
        await send({"type": "websocket.close", "code": 1008, "reason": "no"})

    async with serving(app) as server:
        client = await server.connect()
        await client.send(
            b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: WebSocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert (await client.answer())[0] == 403
        assert await client.rest() == b""


async def test_an_error_of_the_application_is_a_500():
    async def app(scope, receive, send):
        raise RuntimeError("a bug")

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET)
        status, headers, body = await client.answer()
        assert (status, headers["connection"], body) == (500, "close", b"")
        assert await client.rest() == b""


@pytest.mark.parametrize("length", [[], [(b"content-length", b"9")]], ids=["chunked", "with a length"])
async def test_an_answer_that_fails_halfway_is_broken_off(length):
    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": b"abc", "more_body": True})
        raise RuntimeError("a bug")

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET)
        answer = await client.rest()
        assert b"abc" in answer
        assert not answer.endswith(b"0\r\n\r\n")


async def test_a_head_without_a_body_is_sent_before_the_connection_ends():
    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        raise RuntimeError("a bug")

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET)
        assert (await client.head())[0] == 200
        assert await client.rest() == b""


async def test_an_error_in_one_connection_ends_that_one(monkeypatch):
    class Odd(connections.Http1):
        async def handle(self, event):
            if getattr(event, "data", b"").startswith(b"BUG"):
                raise RuntimeError("a bug")
            await super().handle(event)

    monkeypatch.setattr(connections, "Http1", Odd)
    async with serving(echo) as server:
        bad, good = await server.connect(), await server.connect()
        await bad.send(b"BUG")
        assert await bad.rest() == b""
        await good.send(GET)
        assert (await good.answer())[0] == 200
        assert not server.stopped.is_set()
