"""The control socket's server: who may call what, and what every answer is when something goes wrong.

A method is a coroutine with a name. It gets its parameters as a Struct, already checked, and returns a value or raises:

================================  ==========================================================================
`ControlError`, `Misconfigured`  the caller can do something about it: its text is the answer
`Refusal`                         the rules say no: its text is the answer
`BadCursor`, `BadFilter`          a parameter is none of ours: its name and the text are the answer
`Unavailable`                     something is away: its text is the answer, with a code that says "try later"
anything else                     a bug of ours: logged with its traceback, and the client learns nothing but that
================================  ==========================================================================

Whatever happens in one call, or to one client, the others do not notice.
"""

import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
import structlog
import trio

from bloomd.control.codes import (
    BUSY,
    FAILED,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    NOT_PERMITTED,
    UNAVAILABLE,
)
from bloomd.control.connection import Connection
from bloomd.control.peer import Peer, may_command, peer_of
from bloomd.control.protocol import Request, encode_error, encode_result
from bloomd.errors import Misconfigured, Unavailable, one_line
from bloomd.runtime.bulk import BadFilter
from bloomd.runtime.pages import BadCursor
from bloomd.runtime.refusals import Refusal

log = structlog.stdlib.get_logger(__name__)

# Operators, their scripts and a few watching terminals; each costs a descriptor that the HTTP API may need more.
MAX_CLIENTS = 64
# Who is turned away for want of room is owed one line, and no more patience than that.
_REFUSAL_SECONDS = 1.0


class ControlError(Exception):
    """The answer to a call that cannot be done; the text is a sentence for the operator."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Call:
    """One call while it runs: who made it, and the way to send more than its result."""

    peer: Peer
    notify: Callable[[str, object], Awaitable[None]]
    """Sends a notification to this client; waits for one that reads slowly. One that does not read is dropped."""

    @property
    def user(self) -> str:
        return self.peer.user


class NoParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For a method that takes none."""


P = TypeVar("P", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Method(Generic[P]):
    """One thing that can be asked over the socket."""

    name: str
    run: Callable[[P, Call], Awaitable[object]]
    """Returns what msgspec can encode. It is cancelled when its client goes away."""
    params: type[P]
    """Forbid unknown fields in it, and a misspelt parameter is an error that names it."""
    mutating: bool = False
    """Whether each call, also a refused or failed one, is audited."""
    leaves_trace: bool = False
    """Whether what it changes writes its own audit entry, with the caller as its actor: success is not told twice."""
    public: bool = False
    """Whether those may call it, too, who may do nothing else."""


SUCCESS = "ok"

Audit = Callable[[Call, Method[Any], Mapping[str, Any], str], None]
"""Told the call, its method, its parameters and its outcome: `SUCCESS`, or the error in one line. It must not wait."""


class ControlServer:
    """Answers on a listening Unix socket."""

    def __init__(self, methods: Iterable[Method[Any]], *, group: str, audit: Audit, own_uid: int | None = None) -> None:
        self._methods = {method.name: method for method in methods}
        self._group = group
        self._audit = audit
        self._own_uid = os.geteuid() if own_uid is None else own_uid
        self._clients = 0

    def __repr__(self) -> str:
        return f"<ControlServer {self._clients} of {MAX_CLIENTS} clients>"

    async def serve(
        self, listening: socket.socket, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled. The listening socket stays open: it is the caller's, and outlives a restart."""
        own = trio.SocketListener(trio.socket.from_stdlib_socket(listening.dup()))
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._welcome, [own])
            task_status.started()

    async def _welcome(self, stream: trio.SocketStream) -> None:
        if self._clients >= MAX_CLIENTS:
            await _turn_away(stream)
            return
        self._clients += 1
        try:
            connection = Connection(stream)
            call = Call(peer_of(stream.socket), connection.notify)
            await connection.run(lambda request: self._answer(request, call))
        except Exception:
            log.exception("control connection failed")
        finally:
            self._clients -= 1

    async def _answer(self, request: Request, call: Call) -> bytes:
        try:
            return encode_result(request.id, await self._perform(request, call))
        except ControlError as error:
            code, message = error.code, str(error)
        except BadCursor as error:
            code, message = INVALID_PARAMS, f"cursor: {error}"
        except BadFilter as error:
            code, message = INVALID_PARAMS, f"filter: {error}"
        except Unavailable as error:
            code, message = UNAVAILABLE, str(error)
        except (Misconfigured, Refusal) as error:
            code, message = FAILED, str(error)
        except Exception:
            log.exception("control method failed", method=request.method, user=call.user)
            code, message = (
                INTERNAL_ERROR,
                f"{request.method} failed because of a bug in bloomd; its log has the details",
            )
        return encode_error(request.id, code, message)

    async def _perform(self, request: Request, call: Call) -> object:
        method = self._methods.get(request.method)
        if method is None:
            known = ", ".join(self._methods)
            raise ControlError(f"there is no method {request.method!r}; there are {known}", METHOD_NOT_FOUND)
        outcome = "cancelled: the client went away"
        try:
            self._permit(method, call)
            result = await method.run(_checked(method, request.params), call)
            outcome = SUCCESS
            return result
        except Exception as error:
            outcome = one_line(error)
            raise
        finally:
            if method.mutating:
                self._audit(call, method, request.params, outcome)

    def _permit(self, method: Method[Any], call: Call) -> None:
        if method.public or may_command(call.peer, self._group, self._own_uid):
            return
        who = f"members of the group {self._group}, bloomd's own user and root may"
        raise ControlError(f"{call.user} may not call {method.name}; {who}", NOT_PERMITTED)


def _checked(method: Method[P], params: dict[str, Any]) -> P:
    try:
        return msgspec.convert(params, method.params)
    except msgspec.ValidationError as error:
        raise ControlError(f"params of {method.name}: {error}", INVALID_PARAMS) from error


async def _turn_away(stream: trio.SocketStream) -> None:
    line = encode_error(None, BUSY, f"busy: {MAX_CLIENTS} clients are connected already; try again later")
    with suppress(trio.BrokenResourceError), trio.move_on_after(_REFUSAL_SECONDS):
        await stream.send_all(line)
