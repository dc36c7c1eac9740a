"""Errors as clients see them: RFC 9457 problem+json, with `error` repeating `detail` for older clients."""

from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Any, cast

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from bloomd.errors import Misconfigured, Unavailable, one_line
from bloomd.http.asgi import Send
from bloomd.membridge.errands import AgentFailed
from bloomd.runtime.bulk import BadFilter
from bloomd.runtime.pages import BadCursor
from bloomd.runtime.refusals import Conflict, Invalid, LeaseLost, NotFound, NoWorker, Refusal, TaskCancelled

MEDIA_TYPE = "application/problem+json"
TYPES = "urn:problem-type:bloomd:"

# How long a client should leave a server alone whose database or workers are away: either may be back in a second.
RETRY_AFTER_SECONDS = 2


class FieldError(msgspec.Struct, frozen=True):
    """What is wrong with one field of a body."""

    field: str
    """Its path: `policy.timeout_sec`, `[3].prompt`."""
    message: str


class Problem(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        type: str | None = None,
        errors: list[FieldError] | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = dict(headers or {})
        self.body: dict[str, Any] = {
            "type": TYPES + type if type else "about:blank",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "detail": detail,
            "error": detail,
            **({"errors": errors} if errors else {}),
            **(extra or {}),
        }

    @property
    def content(self) -> bytes:
        return msgspec.json.encode(self.body)

    async def send(self, send: Send) -> None:
        """Answer with it, outside Litestar."""
        content = self.content
        headers = {"content-type": MEDIA_TYPE, "content-length": str(len(content)), **self.headers}
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": encoded})
        await send({"type": "http.response.body", "body": content, "more_body": False})


_REFUSALS: list[tuple[type[Refusal], int, str]] = [
    (Invalid, 400, "invalid"),
    (NotFound, 404, "not-found"),
    (TaskCancelled, 409, "cancelled"),
    (LeaseLost, 409, "lease-lost"),
    (Conflict, 409, "conflict"),
    (NoWorker, 503, "no-worker"),
]


def problem_of(error: Exception) -> Problem | None:
    """The answer to an error that is nobody's bug; None for a bug."""
    match error:
        case Problem():
            return error
        case Refusal():
            status, type = next((status, type) for kind, status, type in _REFUSALS if isinstance(error, kind))
            headers = {"retry-after": str(RETRY_AFTER_SECONDS)} if status == 503 else {}
            return Problem(status, one_line(error), type=type, headers=headers)
        case BadCursor():
            return Problem(400, one_line(error), errors=[FieldError("cursor", one_line(error))])
        case BadFilter():
            return Problem(400, f"filter: {error}", type="invalid", errors=[FieldError("filter", str(error))])
        case AgentFailed():
            return Problem(502, one_line(error), type="agent-failed")
        case Unavailable():
            return Problem(503, one_line(error), type="unavailable", headers={"retry-after": str(RETRY_AFTER_SECONDS)})
        case Misconfigured():
            return Problem(503, one_line(error), type="misconfigured")
        case HTTPException():
            return _of_litestar(error)
        case _:
            return None


def answer(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Litestar's exception handler. A bug is passed on to `observe.py`."""
    problem = problem_of(error)
    if problem is None:
        raise error
    return Response(problem.content, status_code=problem.status, media_type=MEDIA_TYPE, headers=problem.headers)


def allow(methods: Collection[str]) -> str:
    """The Allow header of a path with these methods. Where there is GET there is HEAD."""
    return ", ".join(sorted({*methods, *(["HEAD"] if "GET" in methods else [])}))


def _of_litestar(error: HTTPException) -> Problem:
    status = error.status_code
    if status == 404:
        return Problem(404, "There is no such path; GET /api/schema lists what there is")
    if status == 405:
        headers = {"allow": allow((error.headers or {}).get("allow", "").split(", "))}
        return Problem(405, "This path does not take this method; see the Allow header", headers=headers)
    extra = cast("list[dict[str, Any]]", error.extra) if isinstance(error.extra, list) else []
    errors = [FieldError(str(item.get("key", "")), str(item.get("message", ""))) for item in extra]
    detail = "; ".join(f"{item.field}: {item.message}" for item in errors) or error.detail
    return Problem(status, detail, errors=errors, headers=error.headers)
