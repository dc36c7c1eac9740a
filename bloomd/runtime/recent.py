"""The latest events, kept once for all who follow them: each reader only remembers how far it is.

The events stand in the order of their positions, and nothing between `start` and `head` is missing: whoever has seen
everything up to `start` can go on here. The oldest are forgotten when they take too much memory, but never those that
have just come; a reader that has not come past them by then is too slow.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence

import msgspec
import trio

# What the latest events may take in memory, together: some ten thousand of the usual size.
KEPT_BYTES = 8 << 20

# What an event takes beside its data.
_OVERHEAD_BYTES = 500

_BIGGEST = 2**63 - 1
_ID = re.compile(r"([0-9]{1,19})-([0-9]{1,19})")

Position = tuple[int, int]
"""Of an entry of the audit trail: the transaction that wrote it, and its number."""


class BadPosition(ValueError):
    """This is no id of an event: an id is two numbers with a hyphen between them."""


class Event(msgspec.Struct, frozen=True):
    """Something that happened."""

    id: str | None
    """Its position as text; None for what is told only to those who follow at that moment."""
    type: str
    entity_id: str
    data: msgspec.Raw
    """A JSON object."""


def position_of(id: str) -> Position:
    """The position that the id of an event names.

    Raises:
        BadPosition: it is no such id.
    """
    if match := _ID.fullmatch(id):
        xact, seq = int(match[1]), int(match[2])
        if max(xact, seq) <= _BIGGEST:
            return xact, seq
    raise BadPosition(str(BadPosition.__doc__))


def id_of(position: Position) -> str:
    return f"{position[0]}-{position[1]}"


class Recent:
    """Events are numbered from 0; `first` is the number of the oldest that is kept, `end` that of the next to come."""

    def __init__(self, start: Position, *, kept_bytes: int = KEPT_BYTES) -> None:
        self.start = start
        """Where what is kept begins: all that comes after this position is here."""
        self.head = start
        """How far it goes."""
        self.first = 0
        self.arrived = trio.Event()
        """Fired, and replaced, when there are new ones."""
        self._kept_bytes = kept_bytes
        self._events: list[Event] = []
        self._positions: list[Position] = []
        self._bytes = 0

    def __repr__(self) -> str:
        return f"<Recent {len(self._events)} events, {id_of(self.start)} to {id_of(self.head)}>"

    @property
    def end(self) -> int:
        return self.first + len(self._events)

    def add(self, entries: Iterable[tuple[Position, Event]]) -> None:
        """Add what comes after `head`, in order."""
        before = self.end
        for position, event in entries:
            self.head = position
            self._append(event)
        self._forget(before)
        self.wake()

    def add_live(self, event: Event) -> None:
        """Add an event that has no position of its own."""
        self._append(event)
        self._forget(self.end - 1)
        self.wake()

    def wake(self) -> None:
        """Let those who wait for `arrived` look."""
        self.arrived.set()
        self.arrived = trio.Event()

    def number_after(self, position: Position) -> int:
        """The number of the first kept event that comes after this position."""
        return self.first + bisect_right(self._positions, position)

    def since(self, number: int, limit: int) -> Sequence[Event]:
        """At most `limit` events from this number on, which must be kept still."""
        begin = number - self.first
        return self._events[begin : begin + limit]

    def _append(self, event: Event) -> None:
        self._events.append(event)
        self._positions.append(self.head)
        self._bytes += _size(event)

    def _forget(self, before: int) -> None:
        """Forget the oldest, of those with numbers before this one, until the rest has room."""
        forgotten = 0
        while self._bytes > self._kept_bytes and self.first + forgotten < before:
            self._bytes -= _size(self._events[forgotten])
            forgotten += 1
        if forgotten:
            self.start = self._positions[forgotten - 1]
            self.first += forgotten
            del self._events[:forgotten], self._positions[:forgotten]


def _size(event: Event) -> int:
    return len(bytes(event.data)) + _OVERHEAD_BYTES
