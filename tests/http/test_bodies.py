"""How slowly a body may come, and that nothing after it is hurried: on the mock clock."""

import pytest
import trio

from bloomd.http.bodies import STALL_SECONDS, bounded, read_json
from bloomd.http.problems import Problem

SCOPE = {"type": "http", "path": "/", "query_string": b"", "headers": []}
GONE = {"type": "http.disconnect"}


def piece(body, *, more):
    return {"type": "http.request", "body": body, "more_body": more}


async def receive_all(*coming):
    """What an application gets that receives until the client has gone; each message comes after so many seconds."""
    left, got = list(coming), []

    async def receive():
        seconds, message = left.pop(0)
        await trio.sleep(seconds)
        return message

    async def app(scope, receive, send):
        while GONE not in got:
            got.append(await receive())

    async def send(message):
        pytest.fail(f"nothing is to be sent: {message}")

    await bounded(app, lambda scope: 10)(SCOPE, receive, send)
    return got


async def test_a_body_that_stalls_is_refused(autojump_clock):
    with pytest.raises(Problem) as caught:
        await receive_all((0, piece(b"a", more=True)), (STALL_SECONDS + 1, piece(b"b", more=False)))
    assert caught.value.status == 408
    assert trio.current_time() == STALL_SECONDS


async def test_after_the_body_the_client_may_wait_as_long_as_it_likes(autojump_clock):
    """An event stream, or a claim that waits, receives until the client goes, which may be in an hour."""
    body = [(STALL_SECONDS - 1, piece(b"a", more=True)), (STALL_SECONDS - 1, piece(b"b", more=False))]
    assert len(await receive_all(*body, (3600, GONE))) == 3


async def test_the_last_piece_of_a_body_is_counted_too(autojump_clock):
    with pytest.raises(Problem) as caught:
        await receive_all((0, piece(b"a" * 10, more=True)), (0, piece(b"b", more=False)))
    assert caught.value.status == 413


async def test_our_limit_is_the_only_one():
    """Litestar has one of 10 MB of its own."""
    pieces = [piece(b'["', more=True), *[piece(b"x" * (1 << 20), more=True)] * 15, piece(b'"]', more=False)]

    class Request:
        headers = {"content-type": "application/json"}  # noqa: RUF012

        async def receive(self):
            return pieces.pop(0)

    [text] = await read_json(Request())
    assert len(text) == 15 << 20
