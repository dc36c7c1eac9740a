"""Wake-ups: who waits for a change, or for a task to claim, need not wait for its next poll, on whatever node it is.

::

    a commit on this node ──▶ change(), offer() ──▶ who waits here, at once
                                      │
                                      └──▶ run: one NOTIFY, coalesced ──▶ the listening connection of each node
                                                                              └──▶ notified() ──▶ who waits there

NOTIFY never stands in the transaction that it tells of: one that notifies takes a lock of the whole cluster for its
commit, so all commits would stand in one line. It is sent afterwards, by a statement of its own that need not be
durable, and one speaks for all that happened within `PAUSE_SECONDS`.

A wake-up can be lost (a node dies between commit and NOTIFY, a listener is cut) and says nothing but "look again". So
whoever waits polls as well, in a rhythm of its own; and when a listener is back, everybody is woken.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator

import msgspec
import structlog
import trio

from bloomd.runtime.database import Database

log = structlog.stdlib.get_logger(__name__)

CHANGES = "bloom_changes"
MESSAGES = "bloom_live"

# What the listening connection listens for on our behalf.
CHANNELS = (CHANGES, MESSAGES)

SEND = """
SELECT set_config('synchronous_commit', 'off', true), pg_notify(channel, payload)::text
  FROM unnest(%(channels)s::text[], %(payloads)s::text[]) AS notification (channel, payload)
"""

# Between two notifications. A waiting claim elsewhere is woken within milliseconds when there was quiet before, and a
# busy node costs the others fifty wake-ups a second at the most.
PAUSE_SECONDS = 0.02

# PostgreSQL takes payloads shorter than 8000 bytes.
PAYLOAD_BYTES = 7999

# The most that one message may have, so that it fits with its sender and its brackets.
MESSAGE_BYTES = PAYLOAD_BYTES - 32


class Wakeups:
    """Wakes those who wait on this node, and tells the other nodes.

    To wait, take the event, look whether there is what you want, and only then wait for the event: one that is fired
    while you look is not missed. It is replaced by a new one when it is fired.
    """

    def __init__(self, database: Database) -> None:
        self.changes = trio.Event()
        """Fired when something was changed, here or on another node: there may be new entries in the audit trail."""
        self.offers = trio.Event()
        """Fired when there may be a task to claim for somebody who found none before."""
        self.on_message: Callable[[msgspec.Raw], None] = _nobody
        """Called with each message (JSON) that another node has sent by `tell`."""
        self._database = database
        self._name = secrets.token_hex(4)
        self._changed = False
        self._offered = False
        self._messages: dict[str, bytes] = {}
        self._something = trio.Event()

    def __repr__(self) -> str:
        return f"<Wakeups {self._name}>"

    def change(self) -> None:
        """Something was changed here, and has been committed."""
        self._changed = True
        self._something.set()
        self._wake_changes()

    def offer(self) -> None:
        """A commit made here lets a task be claimed that could not be claimed before, or by more workers."""
        self._offered = True
        self._something.set()
        self._wake_offers()

    def tell(self, key: str, message: bytes) -> None:
        """Send a message (JSON of at most `MESSAGE_BYTES`) to the other nodes; of those with one key only the newest.

        Nothing is kept for a node that does not listen at the moment.
        """
        self._messages.pop(key, None)
        self._messages[key] = message
        self._something.set()

    def wake_all(self) -> None:
        """Whatever may have happened: the listener was away, and is back."""
        self._wake_changes()
        self._wake_offers()

    def notified(self, channel: str, payload: str) -> None:
        """Take a notification of one of `CHANNELS`. What this node has sent itself it knows already."""
        sender, _, said = payload.partition(" ")
        if sender == self._name:
            return
        if channel == MESSAGES:
            self._hear(said)
        else:
            self._wake_changes()
            if said == "offer":
                self._wake_offers()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell the other nodes, until cancelled: at once after a time of quiet, else every `PAUSE_SECONDS`.

        Raises:
            Unavailable: the database is away. The other nodes then look when their listeners are back.
        """
        task_status.started()
        while True:
            await self._something.wait()
            self._something = trio.Event()
            notifications = list(self._taken())
            await self._database.execute(
                SEND,
                channels=[channel for channel, _ in notifications],
                payloads=[f"{self._name} {said}" for _, said in notifications],
            )
            await trio.sleep(PAUSE_SECONDS)

    def _taken(self) -> Iterator[tuple[str, str]]:
        """What there is to send, by channel; it counts as sent from now on."""
        if self._changed or self._offered:
            yield CHANGES, "offer" if self._offered else "change"
        self._changed = self._offered = False
        messages, self._messages = self._messages, {}
        for chunk in chunks(messages.values(), MESSAGE_BYTES):
            yield MESSAGES, chunk.decode()

    def _hear(self, said: str) -> None:
        try:
            messages = msgspec.json.decode(said, type=list[msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.warning("strange notification ignored", channel=MESSAGES, error=str(error))
            return
        for message in messages:
            self.on_message(message)

    def _wake_changes(self) -> None:
        self.changes.set()
        self.changes = trio.Event()

    def _wake_offers(self) -> None:
        self.offers.set()
        self.offers = trio.Event()


def chunks(messages: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """JSON arrays that hold these messages in their order, as few as can be with `limit` bytes inside the brackets."""
    chunk: list[bytes] = []
    size = 0
    for message in messages:
        if chunk and size + 1 + len(message) > limit:
            yield b"[" + b",".join(chunk) + b"]"
            chunk, size = [], 0
        size += len(message) + (1 if chunk else 0)
        chunk.append(message)
    if chunk:
        yield b"[" + b",".join(chunk) + b"]"


def _nobody(message: msgspec.Raw) -> None:
    """Who hears messages while nobody wants them."""
