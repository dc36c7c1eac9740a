"""One request to the control plane: the key, the route, the body, the answer.

Plain ASGI: fifteen routes that take and give JSON need no framework. The key is judged before the route, and before a
byte of the body is read, so whoever has none learns nothing but how `/health` is. Errors are `{"detail": "..."}`, as
the clients of a Membridge know them.
"""

import hmac
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec
import structlog
import trio

from bloomd.errors import Misconfigured, Unavailable, one_line
from bloomd.exchange import MIB
from bloomd.membridge.client import KEY_HEADER
from bloomd.membridge.server.bodies import Refused, decode
from bloomd.membridge.server.plane import ROUTES, Call, Handler, Plane, Reply
from bloomd.runtime.refusals import Conflict, NotFound

log = structlog.stdlib.get_logger(__name__)

# ASGI (https://asgi.readthedocs.io).
Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# What an agent says of itself has some hundred bytes; its capabilities may have some KiB.
BODY_LIMIT = MIB

# A client that sends nothing of its body for this long is not sending it.
STALL_SECONDS = 30.0

# How long a client should leave us alone while PostgreSQL is away: it may be back in a second.
RETRY_AFTER_SECONDS = 2

_HEADERS = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
_KEY_HEADER = KEY_HEADER.lower().encode()


def create_app(plane: Plane, key: Callable[[], str]) -> App:
    """The control plane as an ASGI application.

    Args:
        key: what clients have to send at the moment.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008, "reason": "there are no websockets here"})
            return
        headers = list(_HEADERS)
        try:
            reply = await _answer(plane, key(), scope, receive, headers)
        except Exception as error:
            reply = _error(error, headers)
            if reply.status == 500:
                log.exception("membridge request failed", method=scope["method"], path=scope["path"])
        if reply.status >= 400:
            log.info("membridge request", method=scope["method"], path=scope["path"], status=reply.status)
        await _send(reply, scope, headers, send)

    return app


async def _answer(plane: Plane, key: str, scope: Scope, receive: Receive, headers: list[tuple[bytes, bytes]]) -> Reply:
    if scope["http_version"] not in ("1.0", "1.1"):
        raise Refused(505, "HTTP/1.1 is spoken here; a proxy in front must not pass an Upgrade on")
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    if (method, scope["raw_path"]) != ("GET", b"/health") and not _has_key(scope, key.encode()):
        raise Refused(401, f"Send the admin key in the header {KEY_HEADER}")
    handlers, captured = _route(scope["raw_path"])
    if not handlers:
        raise Refused(404, "Not Found")
    if method not in handlers:
        allowed = {*handlers, *(["HEAD"] if "GET" in handlers else [])}
        headers.append((b"allow", ", ".join(sorted(allowed)).encode()))
        raise Refused(405, "Method Not Allowed")
    body = decode(await _body(scope, receive)) if method == "POST" else {}
    query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
    return await handlers[method](plane, Call(captured, query, body))


def _has_key(scope: Scope, key: bytes) -> bool:
    return any(name == _KEY_HEADER and hmac.compare_digest(value, key) for name, value in scope["headers"])


_ROUTES = [(method, pattern.encode().split(b"/"), handler) for method, pattern, handler in ROUTES]


def _route(raw_path: bytes) -> tuple[dict[str, Handler], list[str]]:
    """What there is at this path, by method, and what it has in the open places. Only those may be written with `%`."""
    parts = raw_path.split(b"/")
    handlers: dict[str, Handler] = {}
    captured: list[str] = []
    for method, pattern, handler in _ROUTES:
        if len(pattern) == len(parts) and all(want in (b"{}", part) for want, part in zip(pattern, parts, strict=True)):
            handlers[method] = handler
            captured = [_name(part) for want, part in zip(pattern, parts, strict=True) if want == b"{}"]
    return handlers, captured


def _name(part: bytes) -> str:
    try:
        name = unquote(part.decode("ascii"), errors="strict")
    except UnicodeDecodeError as error:
        raise Refused(400, "The path is not UTF-8") from error
    if "\0" in name:
        raise Refused(400, "A NUL character cannot be stored, so nothing has one")
    return name


async def _body(scope: Scope, receive: Receive) -> bytes:
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > BODY_LIMIT:
            raise _too_large()
    body = bytearray()
    more = True
    while more:
        with trio.move_on_after(STALL_SECONDS) as stall:
            message = await receive()
            if message["type"] != "http.request":
                raise Refused(400, "The connection ended before the body did")
            body += message["body"]
            more = message.get("more_body", False)
        if stall.cancelled_caught:
            raise Refused(408, f"The body did not come: nothing for {STALL_SECONDS:.0f} s")
        if len(body) > BODY_LIMIT:
            raise _too_large()
    return bytes(body)


def _too_large() -> Refused:
    return Refused(413, f"The body is larger than {BODY_LIMIT} bytes")


def _error(error: Exception, headers: list[tuple[bytes, bytes]]) -> Reply:
    match error:
        case Refused():
            status, detail = error.status, error.detail
        case NotFound():
            status, detail = 404, one_line(error)
        case Conflict():
            status, detail = 409, one_line(error)
        case Unavailable() | Misconfigured():
            status, detail = 503, one_line(error)
            headers.append((b"retry-after", str(RETRY_AFTER_SECONDS).encode()))
        case _:
            status, detail = 500, "This is a bug in bloomd; its log has the details"
    if status in (408, 413):
        headers.append((b"connection", b"close"))  # the rest of the body is not wanted
    return Reply({"detail": detail}, status)


async def _send(reply: Reply, scope: Scope, headers: list[tuple[bytes, bytes]], send: Send) -> None:
    content = b"" if reply.status == 204 else msgspec.json.encode(reply.content)
    if reply.status != 204:
        headers.append((b"content-length", str(len(content)).encode()))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    body = b"" if scope["method"] == "HEAD" else content
    await send({"type": "http.response.body", "body": body, "more_body": False})
