"""The audit trail as a stream of events: read once on each node, for everybody there who follows it.

::

    audit trail ──▶ run: one reader ──▶ the latest events (recent.py) ──▶ any number of subscriptions
         │                                                                       ▲
         └──▶ pages, to those who come with a position that lies further back ───┘

Both ways give the same sequence (trail.py), so they meet without a gap or a repetition: whoever has read up to where
the latest events begin goes on with those.

Nobody is waited for. A subscription that has not taken an event by the time when it is forgotten, because the latest
take too much memory, is dropped, and may come again with its position. Without subscriptions nothing is read.

Some events are only told, and stand in no trail (`live`): they have no id, and whoever is not there misses them.
"""

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

import msgspec
import structlog
import trio

from bloomd.errors import Unavailable
from bloomd.runtime import trail
from bloomd.runtime.database import Database
from bloomd.runtime.recent import KEPT_BYTES, Event, Position, Recent, id_of, position_of
from bloomd.runtime.wakeups import MESSAGE_BYTES, Wakeups

log = structlog.stdlib.get_logger(__name__)

TYPES = ("task", "lease", "worker", "probe", "service", "audit")

# The type of the event that says: something may be missing here, look at the whole anew. Every subscription gets it.
RESET = "reset"
RESET_REASON = "what came after the given id cannot be told any more; look at everything anew"

# Between two looks at the trail, however much happens: nobody reads faster, and the database has other work.
PAUSE_SECONDS = 0.02

# And so much more for each reader: to write to one takes some tenths of it, and the event loop has other work, too.
PAUSE_PER_READER_SECONDS = 0.001

# Of those who come, and those who read what they missed, so many ask the database at once: the pool is for the work.
PLACES = 2

# What a subscription takes at once.
BATCH = 500

Missed = Callable[[Position], Awaitable[trail.Entries]]
"""Reads a page of the trail."""


class Feed:
    """Reads the trail for this node, and knows who follows it."""

    def __init__(self, database: Database, wakeups: Wakeups, *, kept_bytes: int = KEPT_BYTES) -> None:
        self.dropped = 0
        """Subscriptions that were too slow, since the start."""
        self._database = database
        self._wakeups = wakeups
        self._wakeups.on_message = self._heard
        self._kept_bytes = kept_bytes
        self._recent: Recent | None = None
        self._subscriptions: set[Subscription] = set()
        self._wanted = trio.Event()
        self._places = trio.CapacityLimiter(PLACES)

    def __repr__(self) -> str:
        return f"<Feed {self.subscribers} subscriptions, {self._recent}>"

    @property
    def subscribers(self) -> int:
        return len(self._subscriptions)

    @asynccontextmanager
    async def subscribe(
        self, after: str | None = None, *, types: Collection[str] = TYPES, entity_id: str | None = None
    ) -> AsyncGenerator["Subscription"]:
        """Follow the events of these types, and of this entity when one is named: those after an id, else from now on.

        When it cannot be told any more what came after that id (it is from before a restore, or entries were pruned),
        the first event is `reset`, and those from now on follow.

        Raises:
            BadPosition: `after` is no id of an event.
            Unavailable: no database at the moment.
        """
        position = position_of(after) if after else None
        subscription = Subscription(types, entity_id)
        self._subscriptions.add(subscription)
        try:
            await self._begin(subscription, position)
            yield subscription
        finally:
            self._leave(subscription)

    def live(self, type: str, data: Mapping[str, Any]) -> None:
        """Tell those who follow at the moment. Of tasks also those on other nodes, who get only the newest of each.

        What it is about is `entity_id` or `name` in the data. Data too large for a notification goes without its
        `progress`.
        """
        event = _live_event(type, data)
        if len(bytes(event.data)) > MESSAGE_BYTES:
            event = _live_event(type, {**data, "progress": None})
        self._tell(event)
        if type == "task" and len(bytes(event.data)) <= MESSAGE_BYTES:
            self._wakeups.tell(event.entity_id, bytes(event.data))

    def begin_anew(self) -> None:
        """Another database is in use: what was read of the one before says nothing of it, so everybody is sent away."""
        self._drop(self._subscriptions)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read while there are subscriptions, until cancelled.

        Raises:
            Unavailable: the database is away. The subscriptions stay, and miss nothing.
        """
        task_status.started()
        patience = trail.Patience()
        while True:
            changes = self._wakeups.changes
            if self._recent is None:
                await self._wanted.wait()
                continue
            found = await self._read(self._recent)
            await trio.sleep(PAUSE_SECONDS + PAUSE_PER_READER_SECONDS * self.subscribers)
            if found.complete:
                with trio.move_on_after(patience.after(found)):
                    await changes.wait()

    async def _read(self, recent: Recent) -> trail.Entries:
        """Take over what is new in the trail."""
        found = await trail.after(self._database, recent.head)
        if recent is not self._recent:
            pass  # for those who wanted it and have gone
        elif found.horizon <= recent.head[0]:
            log.warning("the database went back in time; those who follow its events are sent away to begin anew")
            self._drop(self._subscriptions)
            recent.wake()
        elif found.entries:
            recent.add((entry.position, trail.event_of(entry)) for entry in found.entries)
            self._drop_the_slow(recent)
        return found

    async def _begin(self, subscription: "Subscription", position: Position | None) -> None:
        """Send a subscription to where it has to read."""
        if self._database.away:
            raise Unavailable(self._database.away)
        if self._recent and (position is None or self._recent.start <= position <= self._recent.head):
            subscription.join(self._recent, position or self._recent.head)
            return
        async with self._places:
            found = await trail.beginning(self._database, position or (0, 0))
        if self._recent is None:
            self._recent = Recent(found.newest, kept_bytes=self._kept_bytes)
            self._wanted.set()
        if position is None:
            subscription.join(self._recent, self._recent.head)
        elif found.kept and position[0] <= found.horizon:
            subscription.catch_up(self._recent, position, self._missed)
        else:
            subscription.reset(self._recent)

    async def _missed(self, position: Position) -> trail.Entries:
        async with self._places:
            return await trail.after(self._database, position)

    def _heard(self, message: msgspec.Raw) -> None:
        """Tell what another node has told its own."""
        try:
            data = msgspec.json.decode(message, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.warning("strange message of another node ignored", error=str(error))
            return
        self._tell(_live_event("task", data))

    def _tell(self, event: Event) -> None:
        if self._recent:
            self._recent.add_live(event)
            self._drop_the_slow(self._recent)

    def _drop_the_slow(self, recent: Recent) -> None:
        slow = [each for each in self._subscriptions if each.is_behind(recent)]
        if slow:
            log.warning("readers of events dropped", readers=len(slow), reason="they were too slow")
            self._drop(slow)

    def _drop(self, subscriptions: Iterable["Subscription"]) -> None:
        for subscription in list(subscriptions):
            self.dropped += 1
            subscription.dropped.set()
            self._leave(subscription)

    def _leave(self, subscription: "Subscription") -> None:
        self._subscriptions.discard(subscription)
        if self._recent and not self._subscriptions:
            self._recent = None
            self._wanted = trio.Event()


def _live_event(type: str, data: Mapping[str, Any]) -> Event:
    about = data.get("entity_id") or data.get("name") or ""
    return Event(None, type, str(about), msgspec.Raw(msgspec.json.encode(data)))


class Subscription:
    """One reader's way through the events: `async for event in subscription`, or `batch` by `batch`.

    It either reads pages of what it missed, or knows the number of its next one among the latest.
    """

    def __init__(self, types: Collection[str], entity_id: str | None) -> None:
        self.dropped = trio.Event()
        """Set when this reader was too slow, or has to begin anew for another reason: there comes nothing more."""
        self.last_id: str
        """Where to go on after what was given so far, and after what was passed over because nobody wants it."""
        self._types = frozenset(types)
        self._entity_id = entity_id
        self._recent: Recent
        self._number = 0
        self._skip_to: Position | None = None
        self._missed: Missed | None = None
        self._given: deque[Event] = deque()

    def join(self, recent: Recent, position: Position) -> None:
        """Go on among the latest, after this position; which the reader of this node may not have come to yet."""
        self._recent = recent
        self._missed = None
        self._number = recent.number_after(position)
        self._skip_to = position if position > recent.head else None
        self.last_id = id_of(position)

    def catch_up(self, recent: Recent, position: Position, missed: Missed) -> None:
        """Read what was missed after this position first."""
        self._recent = recent
        self._missed = missed
        self.last_id = id_of(position)

    def reset(self, recent: Recent) -> None:
        """Say that something may be missing, then go on with the latest."""
        self.join(recent, recent.head)
        data = msgspec.json.encode({"reason": RESET_REASON})
        self._given.append(Event(self.last_id, RESET, "", msgspec.Raw(data)))

    def is_behind(self, recent: Recent) -> bool:
        """Whether something was forgotten that it has not taken yet."""
        return self._missed is None and self._number < recent.first

    async def batch(self) -> Sequence[Event]:
        """The next events in their order, as soon as there are some; none when the subscription was dropped.

        Raises:
            Unavailable: the database went away before it had all that it missed.
        """
        await trio.lowlevel.checkpoint()
        while not self.dropped.is_set():
            if self._given:
                given, self._given = self._given, deque()
                return given
            arrived = self._recent.arrived
            events = await self._page(self._missed) if self._missed else self._taken()
            if chosen := [event for event in events if self._wants(event)]:
                return chosen
            if self._missed is None and self._number == self._recent.end:
                await arrived.wait()
        return ()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if not self._given:
            self._given.extend(await self.batch())
        if not self._given:
            raise StopAsyncIteration
        return self._given.popleft()

    async def _page(self, missed: Missed) -> Sequence[Event]:
        """A page of what was missed; from where the latest begin it goes on with those."""
        position = position_of(self.last_id)
        found = await missed(position)
        if found.entries:
            position = found.entries[-1].position
            self.last_id = id_of(position)
        # The latest may have moved on meanwhile, beyond what this page could know of.
        start = self._recent.start
        if position >= start or (found.complete and found.horizon > start[0]):
            self.join(self._recent, max(position, start))
        return [trail.event_of(entry) for entry in found.entries]

    def _taken(self) -> Sequence[Event]:
        """What there is among the latest."""
        recent = self._recent
        events = recent.since(self._number, BATCH)
        self._number += len(events)
        self.last_id = next((event.id for event in reversed(events) if event.id), self.last_id)
        if skip_to := self._skip_to:
            events = [event for event in events if event.id is None or position_of(event.id) > skip_to]
            self._skip_to = None if recent.head >= skip_to and self._number == recent.end else skip_to
        return events

    def _wants(self, event: Event) -> bool:
        return event.type == RESET or (
            event.type in self._types and (self._entity_id is None or event.entity_id == self._entity_id)
        )
