"""What is known of every request: its id, how long it took, how it ended. And HEAD, which is GET without the body."""

import os
import re
from collections.abc import Callable

import structlog
import trio

from bloomd.http.asgi import App, Message, Receive, Scope, Send
from bloomd.http.latency import Latency
from bloomd.http.problems import Problem, problem_of

log = structlog.stdlib.get_logger(__name__)

# Somebody else's id is taken over when it is harmless in a log and a header.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{8,128}")

# Any other is somebody's invention, and no label of a metric.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
]


def observed(app: App, latency: Latency, verbose: Callable[[], bool]) -> App:
    """Give each request its id, count and log it, and answer what nothing else has answered.

    Args:
        verbose: whether requests that went well are logged at all, as `debug`: dropping a line takes longer than this.
    """

    async def observe(scope: Scope, receive: Receive, send: Send) -> None:
        request_id = _request_id(scope)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        scope["state"] = {"request_id": request_id, "head": method == "HEAD"}
        if method == "HEAD":
            scope = {**scope, "method": "GET"}
        status = 0

        async def annotated(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                present = {name for name, _ in message["headers"]}
                extra = [(name, value) for name, value in _HEADERS if name not in present]
                headers = [*message["headers"], *extra, (b"x-request-id", request_id.encode())]
                await send({**message, "headers": headers})
            elif method == "HEAD" and message["type"] == "http.response.body":
                await send({**message, "body": b""})
            else:
                await send(message)

        began = trio.current_time()
        structlog.contextvars.bind_contextvars(request_id=request_id)  # for this task, which ends with the request
        try:
            if scope["http_version"] not in ("1.0", "1.1"):
                refusal = "HTTP/1.1 is spoken here; a proxy in front must not pass an Upgrade on"
                raise Problem(505, refusal, headers={"connection": "close"})
            await app(scope, receive, annotated)
        except Exception as error:
            problem = problem_of(error)
            if problem is None:
                log.exception("request failed", method=method, path=scope["path"])
                problem = Problem(500, f"This is a bug in bloomd; its log has the details under {request_id}")
            if status:
                raise  # the answer has begun: all that is left is to break it off
            await problem.send(annotated)
        finally:
            seconds = trio.current_time() - began
            latency.add(method, _route(scope), status, seconds)
            if status >= 400 or verbose():
                (log.info if status >= 400 else log.debug)(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    ms=round(seconds * 1000, 1),
                    **_who(scope),
                )

    return observe


def _who(scope: Scope) -> dict[str, str]:
    caller = scope["state"].get("caller")
    return {"client": caller.client, "actor": caller.actor} if caller else {}


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value.decode()
    return os.urandom(16).hex()


def _route(scope: Scope) -> str:
    """The route's template: a label that does not grow with the number of tasks."""
    return str(scope.get("path_template") or "other")
