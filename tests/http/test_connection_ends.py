"""When the server closes a connection: idle for too long, and at the end of its own time. Time is the mock clock's."""

from contextlib import suppress

import pytest
import trio
import trio.testing
from raw_http import GET, MEGABYTE, Client, careless, echo, respond, serving
from servers import free_port

from bloomd.http.connections import LINGER_SECONDS
from bloomd.http.server import KEEP_ALIVE_SECONDS, Binds, HttpServer
from bloomd.settings.model import Http


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
            await trio.sleep(3)
        await trio.sleep(2 * KEEP_ALIVE_SECONDS)
        assert closed == [(number, 3 * number + KEEP_ALIVE_SECONDS) for number in range(4)]


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


async def test_a_client_that_goes_on_sending_after_its_answer_is_left(autojump_clock):
    async with serving(careless) as server:
        client = await server.connect()
        await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n12345")
        assert (await client.answer())[0] == 200
        began = trio.current_time()
        assert await client.rest() == b""
        with suppress(trio.BrokenResourceError):
            while True:
                await client.send(b"x")
                await trio.sleep(0.1)
        assert trio.current_time() - began == pytest.approx(LINGER_SECONDS, abs=0.3)


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


async def test_nothing_follows_a_piece_of_which_a_part_may_be_missing(autojump_clock):
    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with trio.move_on_after(10):
            await send({"type": "http.response.body", "body": b"x" * 50 * MEGABYTE, "more_body": True})
        await send({"type": "http.response.body", "body": b"the next"})

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET)
        await trio.sleep(11)
        assert b"the next" not in await client.rest()


async def test_a_piece_that_need_not_wait_leaves_whole_and_the_answer_can_end():
    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with trio.CancelScope() as scope:
            scope.cancel()
            await send({"type": "http.response.body", "body": b"piece", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async with serving(app) as server:
        client = await server.connect()
        for _ in range(2):
            await client.send(GET)
            assert (await client.answer())[2] == b"piece"


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
