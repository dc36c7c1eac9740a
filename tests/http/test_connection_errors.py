"""What is no request that can be served, and what goes wrong under way: answered, closed, and nobody else notices."""

import pytest
from raw_http import GET, echo, serving

from bloomd.http import connections
from bloomd.http.latency import Latency
from bloomd.http.observe import observed


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


async def test_an_error_after_the_answer_harms_nobody():
    async def app(scope, receive, send):
        await echo(scope, receive, send)
        raise RuntimeError("a bug")

    async with serving(app) as server:
        client = await server.connect()
        for _ in range(3):
            await client.send(GET)
            assert (await client.answer())[0] == 200


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
