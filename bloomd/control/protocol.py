"""The language of the control socket: JSON-RPC 2.0, one message a line. Bytes in, requests out; no socket in sight.

::

    client                                              server
    {"jsonrpc":"2.0","id":1,"method":"ping"}     ──▶
                                                 ◀──    {"jsonrpc":"2.0","id":1,"result":{"pong":true}}
    {"jsonrpc":"2.0","id":2,"method":"pnig"}     ──▶
                                                 ◀──    {"jsonrpc":"2.0","id":2,"error":{"code":-32601,"message":"..."}}

Before its result a method may send notifications, which are messages with a `method` and no `id`: that is how a client
subscribes to something.

A line ends with LF (CRLF is tolerated) and has at most `MAX_LINE` bytes before it. JSON is never split over lines, so a
line is a frame: garbage costs its sender one error, and the next line is read as if nothing had happened.

What comes of a line, whatever it holds and however its bytes arrive:

- a request: `Request`, to be answered with a result or an error of the same `id`;
- a notification, which is a request without `id`: `Request` too, never to be answered, not even with an error;
- a notification with params by position: nothing, because it may not be answered;
- anything else: a `Fault`, which is the error to answer with. Its `id` is that of the line when one could be read.

==================================================  ======================================
not JSON, not UTF-8, nested too deeply              -32700
JSON, but no request: no object, no method, ...     -32600
params by position (an array) instead of by name    -32602
more than `MAX_LINE` bytes                          -32600, and the connection is to be closed
==================================================  ======================================

The last row is the only one that ends a conversation: what follows an over-long line cannot be told from the rest of
it, and reading on to its end would let a client make the server read for ever.

Of JSON-RPC 2.0 one thing is left out: a batch (an array of requests) is refused with -32600. Clients that want several
answers send several lines, without waiting in between; answers come in the order of the requests.
"""

from typing import Any, Literal, cast

import msgspec
from msgspec import UNSET, UnsetType

from bloomd.control.codes import INVALID_PARAMS, INVALID_REQUEST, MAX_LINE, PARSE_ERROR

Id = str | int | float | None


class Request(msgspec.Struct, frozen=True):
    method: str
    params: dict[str, Any]
    id: Id
    notification: bool = False
    """Whether the line had no `id`, and is not to be answered."""


class Fault(msgspec.Struct, frozen=True):
    """A line that is no request, as the error that answers it."""

    id: Id
    code: int
    message: str


class Parser:
    """Cuts the bytes of one connection into lines and reads each."""

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self._max_line = max_line
        self._unread = bytearray()
        self._searched = 0
        self.overrun = False
        """Whether a line was too long. Nothing is read after it."""

    def __repr__(self) -> str:
        return f"<Parser {'overrun' if self.overrun else f'{len(self._unread)} bytes of a line'}>"

    @property
    def unfinished(self) -> bool:
        """Whether a line has begun whose end is still to come."""
        return bool(self._unread)

    def feed(self, data: bytes | bytearray) -> list[Request | Fault]:
        """Take the bytes that arrived, and return what their complete lines say, in order."""
        if self.overrun:
            return []
        self._unread += data
        messages: list[Request | Fault] = []
        begin = 0
        while (end := self._unread.find(b"\n", self._searched)) >= 0 and end - begin <= self._max_line:
            message = read_line(bytes(self._unread[begin:end]))
            if message is not None:
                messages.append(message)
            begin = self._searched = end + 1
        length = (len(self._unread) if end < 0 else end) - begin
        if length > self._max_line:
            self.overrun = True
            self._unread.clear()
            messages.append(Fault(None, INVALID_REQUEST, f"line too long: at most {self._max_line} bytes"))
        else:
            del self._unread[:begin]
            self._searched = len(self._unread)
        return messages


class _Envelope(msgspec.Struct):
    jsonrpc: Literal["2.0"]
    method: str
    params: dict[str, Any] | list[Any] = {}
    id: Id | UnsetType = UNSET


def read_line(line: bytes) -> Request | Fault | None:
    """Read one line without its LF. None for a notification that is wrong: nobody may be told."""
    try:
        value = msgspec.json.decode(line)
    except (ValueError, RecursionError) as error:
        return Fault(None, PARSE_ERROR, f"not JSON: {error}")
    if isinstance(value, list):
        return Fault(None, INVALID_REQUEST, "batches are not supported: send one request a line")
    if not isinstance(value, dict):
        return Fault(None, INVALID_REQUEST, "not a request: a request is a JSON object")
    try:
        envelope = msgspec.convert(value, _Envelope)
    except msgspec.ValidationError as error:
        return Fault(_id_of(cast("dict[str, Any]", value)), INVALID_REQUEST, f"not a request: {error}")
    notification = envelope.id is UNSET
    id = None if envelope.id is UNSET else envelope.id
    if isinstance(envelope.params, dict):
        return Request(envelope.method, envelope.params, id, notification)
    return None if notification else Fault(id, INVALID_PARAMS, "params are given by name, as an object")


def _id_of(value: dict[str, Any]) -> Id:
    id = value.get("id")
    return id if isinstance(id, str | int | float) and not isinstance(id, bool) else None


def encode_result(id: Id, result: object) -> bytes:
    return _line({"jsonrpc": "2.0", "id": id, "result": result})


def encode_error(id: Id, code: int, message: str) -> bytes:
    return _line({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})


def encode_notification(method: str, params: object) -> bytes:
    return _line({"jsonrpc": "2.0", "method": method, "params": params})


def encode_request(id: Id, method: str, params: object) -> bytes:
    return _line({"jsonrpc": "2.0", "id": id, "method": method, "params": params})


def _line(message: dict[str, object]) -> bytes:
    return msgspec.json.encode(message) + b"\n"
