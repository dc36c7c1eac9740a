"""Requests and answers at the socket of a real `HttpServer` on loopback: bytes in, bytes out."""

import re
import socket
from itertools import pairwise

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_http import GET, MEGABYTE, careless, echo, respond, serving

from bloomd.http import connections


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
    """It says so. What the client still sends is read: a reset would take away an answer that it has not read yet."""
    async with serving(careless) as server:
        client = await server.connect()
        await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n12345" % (9 * MEGABYTE))
        await trio.testing.wait_all_tasks_blocked(0.05)
        await client.send(b"x" * 8 * MEGABYTE)
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (200, "close")
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


async def test_the_100_comes_before_an_answer_that_waits_for_nothing():
    """Whichever of the two tasks trio runs first: it draws lots."""
    async with serving(careless) as server:
        for _ in range(20):
            client = await server.connect()
            await client.send(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
            assert [(await client.head())[0] for _ in range(2)] == [100, 200]
            assert await client.rest() == b"ok"


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


async def test_http_1_0_and_connection_close():
    async with serving(careless) as server:
        for request in (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"):
            client = await server.connect()
            await client.send(request)
            status, headers, body = await client.answer()
            assert (status, headers["connection"], body) == (200, "close", b"ok")
            assert await client.rest() == b""
