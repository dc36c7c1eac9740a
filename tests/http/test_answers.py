"""What routes give, as messages of ASGI."""

import msgspec
import pytest
from litestar import Litestar, Response, get

from bloomd.http.answers import Json


class Thing(msgspec.Struct):
    name: str


@get("/data")
async def data() -> Thing:
    return Thing("é")


@get("/created")
async def created() -> Response[list[Thing]]:
    return Json([Thing("a")], status_code=201, headers={"link": "<next>"})


@get("/text", media_type="text/plain")
async def text() -> str:
    return "plain"


@get("/gone", status_code=204)
async def gone() -> None:
    """Nothing to say."""


async def answer(path):
    """Status, headers, body, and how many messages they took."""
    app = Litestar([data, created, text, gone], response_class=Json, openapi_config=None, logging_config=None)
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": [], "state": {}}
    await app(scope, None, send)
    start, *bodies = sent
    return start["status"], dict(start["headers"]), b"".join(each["body"] for each in bodies), len(sent)


@pytest.mark.parametrize(
    ("path", "status", "headers", "body"),
    [
        ("/data", 200, {b"content-type": b"application/json", b"content-length": b"13"}, '{"name":"é"}'.encode()),
        (
            "/created",
            201,
            {b"link": b"<next>", b"content-type": b"application/json", b"content-length": b"14"},
            b'[{"name":"a"}]',
        ),
        ("/text", 200, {b"content-type": b"text/plain; charset=utf-8", b"content-length": b"5"}, b"plain"),
        ("/gone", 204, {}, b""),
    ],
)
async def test_what_a_route_gives_is_sent(path, status, headers, body):
    assert await answer(path) == (status, headers, body, 2)
