"""Answers in JSON, which nearly all are: the two messages of ASGI, and nothing more.

Litestar's own response looks each time for cookies, background tasks, and other encodings and media types: with a small
body, a tenth of the request.
"""

from typing import Any, TypeVar

from litestar import Response
from litestar.response.base import ASGIResponse
from litestar.serialization import encode_json

T = TypeVar("T")

JSON = "application/json"


class Json(Response[T]):
    """What a route gives, as JSON. Nothing, and other media types, are left to Litestar."""

    def to_asgi_response(self, *args: Any, **defaults: Any) -> ASGIResponse:
        if self.content is None or self.media_type not in (None, JSON):
            return super().to_asgi_response(*args, **defaults)  # pyright: ignore[reportUnknownMemberType]
        content = encode_json(self.content)
        headers = [(name.encode(), str(value).encode()) for name, value in self.headers.items()]
        headers += [(b"content-type", JSON.encode()), (b"content-length", str(len(content)).encode())]
        return _Encoded(self.status_code or defaults["status_code"], headers, content)


class _Encoded(ASGIResponse):
    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], content: bytes) -> None:
        self._start = {"type": "http.response.start", "status": status, "headers": headers}
        self._body = {"type": "http.response.body", "body": content, "more_body": False}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send(self._start)
        await send(self._body)
