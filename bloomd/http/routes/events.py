"""What happens, as it happens: Server-Sent Events for any number of readers.

One stream has a task that writes and others that watch for its end: the client goes, the key that let it in is removed,
the daemon stops, or the feed has dropped this reader. Whatever comes first cancels the writing, also one that hangs
because nobody reads.
"""

from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Annotated, cast

import structlog
import trio
from litestar import get
from litestar.params import HeaderParameter, Parameter
from litestar.types import ASGIApp

from bloomd.errors import Unavailable
from bloomd.http.access import until_refused
from bloomd.http.asgi import Receive, Scope, Send
from bloomd.http.problems import FieldError, Problem
from bloomd.http.requests import Req, node_of
from bloomd.node import Node
from bloomd.runtime.events import TYPES, Subscription
from bloomd.runtime.recent import BadPosition, Event, position_of

log = structlog.stdlib.get_logger(__name__)

# So long a browser waits before it connects again; a restart of the daemon takes about as long.
RETRY_MS = 2000

# Something is sent at least so often, so that no proxy on the way thinks that the stream is dead.
KEEPALIVE_SECONDS = 15.0

# Who takes nothing for so long is not reading.
STALL_SECONDS = 30.0

# At the end of the daemon a stream is finished properly if that can be done at once.
FINISH_SECONDS = 1.0

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx passes each event on at once
]


@get(
    "/api/runtime/events",
    summary="Changes of tasks, leases, workers, probes and all else, as Server-Sent Events",
    opt={"media": ("text/event-stream",)},
)
async def events(
    request: Req,
    types: Annotated[str | None, Parameter(description=f"Of {', '.join(TYPES)}, those wanted, with commas.")] = None,
    entity_id: Annotated[str | None, Parameter(description="Only what is about this task, worker, ...")] = None,
    last_event_id: Annotated[str | None, Parameter(description="Go on after this one; as the header.")] = None,
    pulse: Annotated[bool, Parameter(description="Also an event `pulse` at once, and in quiet times.")] = False,
    last_event_id_header: Annotated[str | None, HeaderParameter(name="Last-Event-ID")] = None,
) -> ASGIApp:
    """Each event's data is an entry of the audit trail; those without an id are told once, to who is there.

    An event `reset` says that something may be missing before it: look at everything anew. A `pulse` says nothing: who
    does not see one is behind something that holds the stream back, or has lost it.
    """
    await request.body()
    stream = EventStream(
        node_of(request),
        after=_checked_position(last_event_id_header or last_event_id),
        types=TYPES if types is None else _checked_types(types),
        entity_id=entity_id,
        pulse=pulse,
    )
    return cast("ASGIApp", stream)


class EventStream:
    """The answer, as an ASGI application of its own: Litestar's way to stream does not notice who hangs."""

    def __init__(
        self, node: Node, *, after: str | None, types: Collection[str], entity_id: str | None, pulse: bool = False
    ) -> None:
        self._node = node
        self._after = after
        self._types = types
        self._entity_id = entity_id
        self._pulse = b"event: pulse\ndata: {}\n\n" if pulse else b""
        self._writing = False
        self._gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until one of the ends that there are.

        Raises:
            Unavailable: the database is away, and nothing has been sent yet.
        """
        node = self._node
        async with node.feed.subscribe(self._after, types=self._types, entity_id=self._entity_id) as subscription:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            if not scope["state"]["head"]:
                async with trio.open_nursery() as nursery:
                    end = nursery.cancel_scope.cancel
                    nursery.start_soon(_after, node.stopping.wait, end)
                    nursery.start_soon(_after, subscription.dropped.wait, end)
                    nursery.start_soon(_after, lambda: self._disconnect(receive), end)
                    nursery.start_soon(_after, lambda: until_refused(scope, lambda: node.settings.http, node.keys), end)
                    await self._stream(subscription, send)
                    end()
        if not (self._writing or self._gone):
            with trio.move_on_after(FINISH_SECONDS), suppress(OSError):
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _stream(self, subscription: Subscription, send: Send) -> None:
        told = subscription.last_id
        content = b": bloomd\nretry: %d\nid: %b\n\n" % (RETRY_MS, told.encode()) + self._pulse
        try:
            while content:
                await self._write(content, send)
                batch = None
                with trio.move_on_after(KEEPALIVE_SECONDS):
                    batch = await subscription.batch()
                if batch is None:
                    content = _keepalive(told, subscription.last_id) + self._pulse
                else:
                    content = b"".join(map(_encoded, batch))
                told = subscription.last_id
        except trio.TooSlowError:
            log.info("reader of events dropped", reason=f"it took nothing for {STALL_SECONDS:.0f} s")
        except (Unavailable, OSError):
            pass  # it comes again, and learns then how things are

    async def _write(self, content: bytes, send: Send) -> None:
        self._writing = True
        with trio.fail_after(STALL_SECONDS):
            await send({"type": "http.response.body", "body": content, "more_body": True})
        self._writing = False

    async def _disconnect(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True


async def _after(wait: Callable[[], Awaitable[None]], act: Callable[[], None]) -> None:
    await wait()
    act()


def _encoded(event: Event) -> bytes:
    """One event as it goes over the wire. JSON has no line breaks of its own."""
    id = b"id: %b\n" % event.id.encode() if event.id else b""
    return b"%bevent: %b\ndata: %b\n\n" % (id, event.type.encode(), bytes(event.data))


def _keepalive(told: str, last_id: str) -> bytes:
    """A comment; and where to go on, when events were passed over meanwhile."""
    return b": still here\n\n" if told == last_id else b": still here\nid: %b\n\n" % last_id.encode()


def _checked_types(types: str) -> frozenset[str]:
    asked = frozenset(each.strip() for each in types.split(","))
    if unknown := sorted(asked - set(TYPES)):
        raise _invalid("types", f"there is no type {unknown[0]!r}; there are {', '.join(TYPES)}")
    return asked


def _checked_position(id: str | None) -> str | None:
    if not id:
        return None
    try:
        position_of(id)
    except BadPosition as error:
        raise _invalid("last_event_id", str(error)) from None
    return id


def _invalid(field: str, message: str) -> Problem:
    return Problem(400, f"{field}: {message}", type="invalid", errors=[FieldError(field, message)])


HANDLERS = [events]
