"""One client: three tasks that read what it asks, answer in order, and write.

::

    stream ──▶ _read ──▶ requests ──▶ _answer ──▶ lines ──▶ _write ──▶ stream
                                         │          ▲
                                         └─ notify ─┘

Both queues are bounded. A client that asks faster than it is answered is read no further until it is; one that is
notified of more than it reads holds up the method that notifies it, and nobody else. A client that does not read what
it is sent is dropped when one line could not be written in `WRITE_SECONDS`.

A client that goes away cancels the call that runs for it (with a full queue of requests that is noticed only when an
answer cannot be written). One that only says that it will ask no more (`... | nc -U`) still gets its answers.
"""

import math
import select
from collections.abc import Awaitable, Callable

import structlog
import trio

from bloomd.control.codes import INVALID_REQUEST
from bloomd.control.protocol import Fault, Parser, Request, encode_error, encode_notification

log = structlog.stdlib.get_logger(__name__)

# A line is written by a program, in one go; whoever takes longer holds a place for nothing.
LINE_SECONDS = 10.0
# A reader that makes no room in the kernel's buffer for this long has hung, or was stopped.
WRITE_SECONDS = 10.0
# Lines that may wait to be written, so that a method need not wait for the client before it makes the next.
UNSENT_LINES = 16
# Requests that may wait for their turn, so that a client need not wait for one answer before it sends the next. They
# are few, because each may have come in a line of a mebibyte.
UNANSWERED_REQUESTS = 4
# Nothing wakes us when a half-closed connection is closed for good, so it is looked at.
HANGUP_POLL_SECONDS = 0.5

_CHUNK = 64 * 1024

Answer = Callable[[Request], Awaitable[bytes]]


class Connection:
    """The conversation with one client; `run` ends when either side has nothing more to say."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._requests_in, self._requests = trio.open_memory_channel[Request | Fault](UNANSWERED_REQUESTS)
        self._lines_in, self._lines = trio.open_memory_channel[bytes](UNSENT_LINES)
        self._scope = trio.CancelScope()

    async def run(self, answer: Answer) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                nursery.start_soon(self._answer, answer)
                await self._write()
                nursery.cancel_scope.cancel()

    async def notify(self, method: str, params: object) -> None:
        """Send a notification, as soon as there is room for it. For a method while it runs."""
        await self._lines_in.send(encode_notification(method, params))

    def _drop(self, reason: str) -> None:
        log.info("control client dropped", reason=reason)
        self._scope.cancel()

    async def _read(self) -> None:
        parser = Parser()
        deadline = math.inf
        async with self._requests_in:
            while not parser.overrun and (data := await self._receive(deadline)):
                messages = parser.feed(data)
                for message in messages:
                    await self._requests_in.send(message)
                if not parser.unfinished:
                    deadline = math.inf
                elif messages or deadline == math.inf:
                    deadline = trio.current_time() + LINE_SECONDS
        while not self._hung_up():  # noqa: ASYNC110 (there is no event to wait for)
            await trio.sleep(HANGUP_POLL_SECONDS)
        self._scope.cancel()

    async def _receive(self, deadline: float) -> bytes | bytearray:
        """The next bytes, or none when no more are to be read."""
        with trio.move_on_at(deadline):
            try:
                return await self._stream.receive_some(_CHUNK)
            except trio.BrokenResourceError:
                return b""
        late = Fault(None, INVALID_REQUEST, f"line not finished within {LINE_SECONDS:g} seconds")
        await self._requests_in.send(late)
        return b""

    def _hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self._stream.socket.fileno(), 0)  # POLLHUP is always reported
        return bool(poll.poll(0))

    async def _answer(self, answer: Answer) -> None:
        async with self._lines_in:
            async for request in self._requests:
                if isinstance(request, Fault):
                    await self._lines_in.send(encode_error(request.id, request.code, request.message))
                    continue
                line = await answer(request)
                if not request.notification:
                    await self._lines_in.send(line)

    async def _write(self) -> None:
        async for line in self._lines:
            with trio.move_on_after(WRITE_SECONDS) as scope:
                try:
                    await self._stream.send_all(line)
                except trio.BrokenResourceError:
                    return
            if scope.cancelled_caught:
                self._drop(f"it did not read its answer within {WRITE_SECONDS:g} seconds")
                return
