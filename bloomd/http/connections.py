"""One client's connection: hypercorn's HTTP/1.1 on a trio stream, made for many small requests.

hypercorn's own `TCPServer` starts and cancels a timer task for each request, and writes the head, the body and the end
of an answer one by one, each with a turn of the event loop: more than half of what a request cost. `Connection` stands
in its place, as what hypercorn's protocol sends to and starts the application with::

    trio.serve_listeners ─▶ Connection ─▶ Http1 (hypercorn's H11Protocol) ─▶ HTTPStream ─▶ the application, in a task
            Idle ────────────┘  ▲                                                │          of its own, fed by an Inbox
                                └────────────────── bytes ◀──────────────────────┘

- An answer whose length is known keeps its head until the first piece of its body, and both leave in one call, without
  a turn of the event loop. The head of any other, and every further piece, leaves at once, with one. What the kernel
  takes at once has left as a whole, also when the application is cancelled meanwhile: a stream can still end properly.
- One task closes the connections that have been idle for too long, instead of a timer for each request.
- HTTP/2 is never entered, neither by its preface nor by an Upgrade: the application is told the version that was asked
  for, and refuses. In hypercorn's HTTP/2 one frame for a stream that is over ends the whole server.
- An answer that comes before the request is complete says that it is the last one, and what still comes is read for a
  moment: a socket that is closed with bytes unread takes the answer away from a client that has not read it yet.
- What goes wrong in one connection ends that one. A client that does not read its answer is dropped when the time to
  finish is over; hypercorn would wait for it for ever.

tests/http/test_hypercorn_pin.py names what of hypercorn is relied on here.
"""

import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from time import time
from typing import Any, cast
from wsgiref.handlers import format_date_time

import h11
import structlog
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Request, Response
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from bloomd.http.asgi import App, Message, Scope

log = structlog.stdlib.get_logger(__name__)

READ_BYTES = 1 << 16

# Of one request, as much waits for the application: what a body may usually have. For more the client waits.
INBOX_BYTES = 1 << 23

# So long what a client still sends after its answer is read and thrown away.
LINGER_SECONDS = 2.0


async def serve(
    app: App,
    listening: socket.socket,
    config: Config,
    stop: trio.Event,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve on this socket until `stop`, and close it; then finish what runs, and drop it at the end of the time.

    Of the configuration it takes `graceful_timeout`, `keep_alive_timeout`, and what hypercorn's protocol reads.
    """
    context = WorkerContext(None)
    idle = Idle(config.keep_alive_timeout)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))

    async def connect(stream: trio.SocketStream) -> None:
        try:
            await Connection(app, config, context, idle, stream).run()
        except* Exception:
            log.exception("a connection failed")

    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            accepting.start_soon(idle.run)
            accepting.start_soon(partial(trio.serve_listeners, connect, [listener], handler_nursery=connections))
            task_status.started()
            await stop.wait()
            accepting.cancel_scope.cancel()
        await context.terminated.set()
        idle.close_all()
        connections.cancel_scope.deadline = trio.current_time() + config.graceful_timeout


class Connection:
    """A connection, as hypercorn's protocol sees it: its `send` and its task group."""

    def __init__(
        self, app: App, config: Config, context: WorkerContext, idle: "Idle", stream: trio.SocketStream
    ) -> None:
        self._app = app
        self._config = config
        self._context = context
        self._idle = idle
        self._stream = stream
        self._lock = trio.Lock()
        self.holding = False
        """Whether to keep what is sent, so that it leaves together with what is sent next."""
        self._held = b""
        self.unfinished = False
        """Whether the client is still sending the request that is being answered."""
        self._lingering: trio.CancelScope | None = None
        self._protocol: Http1
        self._nursery: trio.Nursery

    async def run(self) -> None:
        """Answer requests until either side closes."""
        ours = self._stream.socket
        try:
            client, server = _address(ours.family, ours.getpeername()), _address(ours.family, ours.getsockname())
        except OSError:
            return  # the client has gone already
        self._protocol = Http1(self, self._app, self._config, self._context, client, server)
        try:
            async with trio.open_nursery() as self._nursery:
                self._idle.add(self)
                if not self._context.terminated.is_set():
                    await self._read()
        finally:
            self.close()

    def close(self) -> None:
        """Close the socket. Whoever reads or writes it stops."""
        self._idle.remove(self)
        self._stream.socket.close()

    async def _read(self) -> None:
        ours = self._stream.socket
        data = b"?"
        while data and ours.fileno() >= 0:
            try:
                # After an answer there is nothing to read yet: trying first, as trio does, would be for nothing.
                await trio.lowlevel.wait_readable(ours)
                data = os.read(ours.fileno(), READ_BYTES)
            except BlockingIOError:
                continue
            except (trio.ClosedResourceError, OSError):
                break
            if not self._lingering:
                await self._protocol.handle(RawData(data))
        if self._lingering:
            self._lingering.cancel()
        await self._protocol.handle(Closed())

    async def _linger(self, patience: trio.CancelScope) -> None:
        with patience, suppress(OSError):
            self._stream.socket.shutdown(socket.SHUT_WR)
            await trio.sleep(LINGER_SECONDS)
        self.close()

    async def send(self, event: Event) -> None:
        """What the protocol has to say: bytes for the client, the end, or whether it waits for a request."""
        if isinstance(event, RawData):
            data = event.data
            if self.holding:
                self._held += data
            elif self._held:
                data, self._held = self._held + data, b""
                await self._write_at_once(data)
            elif data:
                await self._write_at_once(data)
                await trio.lowlevel.cancel_shielded_checkpoint()  # who streams lets others work; this piece has left
        elif isinstance(event, Updated):
            (self._idle.add if event.idle else self._idle.remove)(self)
        else:
            await self.send(RawData(b""))
            if self.unfinished:
                self._lingering = trio.CancelScope()
                self._nursery.start_soon(self._linger, self._lingering)
            else:
                self.close()
            await self._protocol.handle(Closed())

    async def _write_at_once(self, data: bytes) -> None:
        """Write without a turn of the event loop, when nobody else does and the kernel takes it all."""
        written = 0
        if not self._lock.locked():
            with suppress(OSError):
                written = os.write(self._stream.socket.fileno(), data)
        if written < len(data):
            await self._write(data[written:])

    async def _write(self, data: bytes) -> None:
        try:
            async with self._lock:
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self._protocol.handle(Closed())
        except trio.Cancelled:
            self.close()  # nobody knows how much of it has left
            raise

    async def spawn_app(
        self, app: Any, config: Config, scope: Scope, send: Callable[[Message | None], Awaitable[None]]
    ) -> Callable[[Message], Awaitable[None]]:
        """Start the application on a request. What this gives takes what the client sends."""
        inbox = Inbox(config.max_app_queue_size)
        self._nursery.start_soon(_answer, app, scope, inbox, send)
        return inbox.put

    def spawn(self, func: Callable[..., Awaitable[object]], *args: Any) -> None:
        self._nursery.start_soon(func, *args)


def _address(family: int, address: Any) -> tuple[str, int] | None:
    return None if family == socket.AF_UNIX else (address[0], address[1])


async def _answer(app: App, scope: Scope, inbox: "Inbox", send: Callable[[Message | None], Awaitable[None]]) -> None:
    try:
        await app(scope, inbox.receive, send)
    except* Exception:
        log.exception("an answer was broken off", path=scope["path"])
    finally:
        await send(None)


class Idle:
    """The connections that wait for a request. Those that do so for too long are closed."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[Connection, float] = {}
        """In the order of their times."""

    def add(self, connection: Connection) -> None:
        self._since[connection] = trio.current_time()

    def remove(self, connection: Connection) -> None:
        self._since.pop(connection, None)

    async def run(self) -> None:
        """Sleep until the first is due. One that becomes idle meanwhile is due later, so nobody is closed too late."""
        while True:
            now = trio.current_time()
            await trio.sleep_until(next(iter(self._since.values()), now) + self._seconds)
            due = trio.current_time() - self._seconds
            for connection, since in list(self._since.items()):
                if since <= due:
                    connection.close()

    def close_all(self) -> None:
        for connection in list(self._since):
            connection.close()


class Inbox:
    """What a client sends with one request, on its way to the application."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._messages: deque[Message] = deque()
        self._bytes = 0
        self._ended = False
        self._arrived = _Bell()
        self._taken = _Bell()

    async def put(self, message: Message) -> None:
        """Add a message; wait while there are too many, or too large ones. The last one says that it has ended."""
        if message["type"].endswith(".disconnect"):
            self._ended = True
            self._taken.ring()
        elif self._messages and message.get("body") == b"" and not message["more_body"]:
            self._messages[-1]["more_body"] = False  # the end of the body, of which the last piece is still here
            return
        while (len(self._messages) >= self._limit or self._bytes >= INBOX_BYTES) and not self._ended:
            await self._taken.heard()
        self._messages.append(message)
        self._bytes += len(message.get("body", b""))
        self._arrived.ring()

    async def receive(self) -> Message:
        """The next message; the last one again and again."""
        while not self._messages:
            await self._arrived.heard()
        if self._ended and len(self._messages) == 1:
            await trio.lowlevel.checkpoint()
            return self._messages[0]
        self._taken.ring()
        message = self._messages.popleft()
        self._bytes -= len(message.get("body", b""))
        return message


class _Bell:
    """Wakes who waits at the moment. It costs nothing as long as nobody does, which is usual for a small request."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: trio.Event | None = None

    def ring(self) -> None:
        if self._event is not None:
            self._event.set()
            self._event = None

    async def heard(self) -> None:
        if self._event is None:
            self._event = trio.Event()
        await self._event.wait()


class Http1(H11Protocol):
    """hypercorn's HTTP/1.1, which holds the heads of short answers and knows no way into HTTP/2."""

    def __init__(
        self,
        connection: Connection,
        app: App,
        config: Config,
        context: WorkerContext,
        client: tuple[str, int] | None,
        server: tuple[str, int] | None,
    ) -> None:
        group, state = cast("Any", connection), ConnectionState({})
        super().__init__(cast("Any", app), config, context, group, state, False, client, server, connection.send)
        self._sender = connection

    async def stream_send(self, event: StreamEvent) -> None:
        if isinstance(event, Response):
            if event.status_code >= 200:
                self._sender.unfinished = self.connection.their_state is h11.SEND_BODY
                if self._sender.unfinished or self.context.terminated.is_set():
                    event.headers.append((b"connection", b"close"))
            self._sender.holding = any(name == b"content-length" for name, _ in event.headers)
            try:
                await super().stream_send(event)
            finally:
                self._sender.holding = False
        else:
            await super().stream_send(event)

    async def _check_protocol(self, event: h11.Request) -> None:
        """Nothing here changes the protocol."""

    async def _create_stream(self, request: h11.Request) -> None:
        headers = list(request.headers)
        names = dict(headers)
        upgrade = names[b"upgrade"].lower() if b"upgrade" in names else b""
        if upgrade == b"websocket":
            await super()._create_stream(request)
            return
        # As in hypercorn, with a body an Upgrade to HTTP/2 is not taken up.
        http2 = upgrade == b"h2c" and not names.keys() & {b"content-length", b"transfer-encoding"}
        self.stream = HTTPStream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=headers,
                http_version="2" if http2 else request.http_version.decode(),
                method=request.method.decode("ascii").upper(),
                raw_path=request.target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1


class Dated(Config):
    """hypercorn's configuration, which formats the date once a second instead of for each answer."""

    def __init__(self) -> None:
        super().__init__()
        self._second = 0
        self._date = b""

    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:
        second = int(time())
        if second != self._second:
            self._second, self._date = second, format_date_time(second).encode()
        return [(b"date", self._date)]
