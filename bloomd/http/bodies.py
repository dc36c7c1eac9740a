"""What clients send: how much and how slowly it may come, and from bytes to a checked Struct with all its errors.

PostgreSQL's text has no NUL, so one is refused wherever it may stand: in the path, the query or the body.
"""

import re
from collections.abc import Awaitable, Callable, Iterator
from types import UnionType
from typing import Any, TypeVar, cast, get_args, get_origin

import msgspec
import trio
from litestar import Request

from bloomd.http.asgi import App, Message, Receive, Scope, Send
from bloomd.http.problems import FieldError, Problem

T = TypeVar("T")

# A client that sends nothing of its body for this long is not sending it.
STALL_SECONDS = 30.0

# Up to here a float is exact, so `60.0` is the integer that JSON Schema, and a client in JavaScript, take it for.
MAX_EXACT = float(1 << 53)

_JSON = re.compile(r"application/(json|[\w.-]+\+json)\s*(;|$)", re.IGNORECASE)


def bounded(app: App, max_bytes: Callable[[Scope], int]) -> App:
    """Refuse what is larger than allowed, by its declared length before a byte is read, and what stalls.

    Args:
        max_bytes: what the body of this request may have.
    """

    async def bound(scope: Scope, receive: Receive, send: Send) -> None:
        if "\x00" in scope["path"] or b"%00" in scope["query_string"]:
            await Problem(400, "A NUL character cannot be stored, so nothing has one", type="invalid").send(send)
            return
        limit = max_bytes(scope)
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > limit:
                await _too_large(limit).send(send)
                return
        received, complete = 0, False

        async def count() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()  # what comes now is that the client goes, in its own time
            with trio.move_on_after(STALL_SECONDS) as stall:
                message = await receive()
                if message["type"] == "http.request":
                    received += len(message["body"])
                    complete = not message.get("more_body", False)
                    if received > limit:
                        raise _too_large(limit)
                return message
            if stall.cancelled_caught:
                raise Problem(408, f"The body did not come: nothing for {STALL_SECONDS:.0f} s")
            raise AssertionError("unreachable")

        await app(scope, count, send)

    return bound


def in_pieces(request: Request[Any, Any, Any]) -> Callable[[], Awaitable[bytes]]:
    """The body of any content type, as it comes: each call gives the next bytes, and none at the end.

    Raises:
        Problem: 400, the client has gone before the end; and what `bounded` refuses.
    """
    more = True

    async def next_piece() -> bytes:
        nonlocal more
        piece = b""
        while more and not piece:
            message = await request.receive()
            if message["type"] != "http.request":
                raise Problem(400, "The connection ended before the body did", type="malformed")
            piece, more = message["body"], message["more_body"]
        return piece

    return next_piece


async def read(request: Request[Any, Any, Any], type: type[T]) -> T:
    """The body as a `type`. An empty body is `{}`; unknown fields are ignored.

    Raises:
        Problem: 415 not JSON by its content type; 400 malformed, not of this type (with every error), or holding a NUL.
    """
    return convert(await read_json(request), type)


async def read_json(request: Request[Any, Any, Any]) -> Any:
    """The body as plain values.

    Raises:
        Problem: 415 not JSON by its content type; 400 malformed, or holding a NUL.
    """
    body = await _whole(request)
    if not body.strip():
        return {}
    content_type = request.headers.get("content-type", "")
    if not _JSON.match(content_type):
        raise Problem(415, f"The body must be application/json, not {content_type or 'without a content type'}")
    try:
        value = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, f"The body is not valid JSON: {error}", type="malformed") from error
    if rb"\u0000" in body and (holding := next(_with_nul(value, ""), None)) is not None:
        raise invalid([FieldError(holding, "a NUL character cannot be stored")])
    return value


def _number(text: str) -> int | float:
    """A number that is written with a point or an exponent; an integer when it is one."""
    number = float(text)
    return int(number) if number.is_integer() and abs(number) <= MAX_EXACT else number


_decoder = msgspec.json.Decoder(float_hook=_number)


async def _whole(request: Request[Any, Any, Any]) -> bytes:
    """The body. Litestar's way to read it takes longer than decoding it, and has a limit of its own."""
    pieces: list[bytes] = []
    next_piece = in_pieces(request)
    while piece := await next_piece():
        pieces.append(piece)
    return b"".join(pieces)


def convert(value: object, type: type[T]) -> T:
    """A `type` from plain values.

    Raises:
        Problem: 400 with every error.
    """
    try:
        return msgspec.convert(value, type)
    except msgspec.ValidationError as error:
        raise invalid(list(_errors(value, type, "")) or [FieldError("", str(error))]) from error


def invalid(errors: list[FieldError]) -> Problem:
    """The answer to a body with these errors."""
    detail = "; ".join(f"{error.field}: {error.message}" if error.field else error.message for error in errors)
    return Problem(400, detail, type="invalid", errors=errors)


def _too_large(limit: int) -> Problem:
    return Problem(413, f"The body is larger than {limit} bytes", headers={"connection": "close"})


def _errors(value: object, type: Any, path: str) -> Iterator[FieldError]:
    """Every error of a value, where msgspec stops at the first one."""
    struct = _struct(type)
    if isinstance(value, dict) and struct:
        given = cast("dict[str, object]", value)
        for field in msgspec.structs.fields(struct):
            where = f"{path}.{field.name}" if path else field.name
            if field.name in given:
                yield from _errors(given[field.name], field.type, where)
            elif field.required:
                yield FieldError(where, "is required")
        if struct.__struct_config__.forbid_unknown_fields:
            known = struct.__struct_encode_fields__
            for name in given:
                if name not in known:
                    yield FieldError(f"{path}.{name}" if path else name, f"is unknown; there are {', '.join(known)}")
    elif isinstance(value, list) and get_origin(type) is list and _struct(get_args(type)[0]):
        for index, item in enumerate(cast("list[object]", value)):
            yield from _errors(item, get_args(type)[0], f"{path}[{index}]")
    else:
        try:
            msgspec.convert(value, type)
        except msgspec.ValidationError as error:
            yield FieldError(path, _rule(type) or str(error))


def _rule(annotation: Any) -> str | None:
    """What a type says itself of its values, better than a pattern does: the end of a sentence that begins with the
    field."""
    metas = (meta for part in (annotation, *get_args(annotation)) for meta in getattr(part, "__metadata__", ()))
    return next((meta.extra["rule"] for meta in metas if isinstance(meta, msgspec.Meta) and meta.extra), None)


def _struct(annotation: Any) -> type[msgspec.Struct] | None:
    """The Struct that a field of this type may hold, if any."""
    parts = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return next((part for part in parts if isinstance(part, type) and issubclass(part, msgspec.Struct)), None)


def _with_nul(value: object, path: str) -> Iterator[str]:
    """The paths of the strings that hold a NUL."""
    if isinstance(value, str):
        if "\x00" in value:
            yield path
    elif isinstance(value, list):
        for index, item in enumerate(cast("list[object]", value)):
            yield from _with_nul(item, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, item in cast("dict[str, object]", value).items():
            where = f"{path}.{key}" if path else key
            if "\x00" in key:
                yield where.replace("\x00", "")
            yield from _with_nul(item, where)
