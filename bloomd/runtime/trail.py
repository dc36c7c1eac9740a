"""The audit trail read forwards, in an order in which nothing ever appears before a place where a reader has been.

That order is (xact, seq), up to the oldest transaction that still runs; `migrations/0009_events.sql` says why. It also
means that a transaction which has written and stays open, in whatever database of the server, holds back what was
committed after it began.

A reader's place is an entry that it has seen, never the horizon: after a crash, the server gives the numbers of those
transactions to others of which nothing had reached the disk.
"""

import msgspec
import structlog
import trio

from bloomd.runtime.database import Database
from bloomd.runtime.model import AuditEntry
from bloomd.runtime.recent import Event, Position, id_of

log = structlog.stdlib.get_logger(__name__)

# What is beyond the horizon and not ahead of all transactions is held back. What is ahead of them came from another
# server, with a restored database, and says nothing.
ENTRIES = """
WITH now AS MATERIALIZED (
    SELECT pg_snapshot_xmin(snapshot)::text::bigint AS horizon, pg_snapshot_xmax(snapshot)::text::bigint AS ahead
      FROM pg_current_snapshot() AS snapshot
), entry AS (
    SELECT id, timestamp, action, entity_type, entity_id, actor, detail, xact, seq
      FROM audit_logs
     WHERE (xact, seq) > (%(xact)s, %(seq)s)
       AND xact < (SELECT horizon FROM now)
     ORDER BY xact, seq
     LIMIT 500
)
SELECT horizon,
       EXISTS (SELECT FROM audit_logs WHERE xact >= horizon AND xact < ahead)             AS held_back,
       (SELECT coalesce(json_agg(entry ORDER BY entry.xact, entry.seq), '[]') FROM entry) AS entries
  FROM now
"""
PAGE = 500

# The trail is pruned from its old end: what came after a position is all there when the oldest entry is no newer than
# it, or the very first is among the oldest: of transactions at one time the later may have taken it. (An empty trail
# was pruned, or never had an entry.)
BEGINNING = """
WITH now AS MATERIALIZED (
    SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS horizon
)
SELECT horizon,
       coalesce((SELECT json_build_array(xact, seq)
                   FROM audit_logs
                  WHERE xact < (SELECT horizon FROM now)
                  ORDER BY xact DESC, seq DESC
                  LIMIT 1), '[0, 0]') AS newest,
       coalesce((SELECT bool_or((xact, seq) <= (%(xact)s, %(seq)s) OR seq = 1)
                   FROM (SELECT xact, seq
                           FROM audit_logs
                          WHERE xact IS NOT NULL
                          ORDER BY xact, seq
                          LIMIT 100) AS oldest),
                (SELECT NOT is_called FROM audit_logs_seq)) AS kept
  FROM now
"""

# When entries are held back and none come, the next look comes after this, then after twice that, up to the poll.
HELD_BACK_SECONDS = 0.005

# Should a wake-up be lost, what happened is seen after this long.
POLL_SECONDS = 1.0

# After so long it is no busy moment any more: somebody has left a transaction open.
WARN_SECONDS = 10.0
WARNING = (
    "events are held back by a transaction that has written and stays open; find it with: "
    "SELECT pid, datname, usename, xact_start, query FROM pg_stat_activity WHERE backend_xid IS NOT NULL "
    "ORDER BY xact_start"
)

# These stand for themselves; every other first word of an action is `audit`.
_OWN_TYPES = ("task", "lease", "worker", "probe")


class Entry(AuditEntry, frozen=True):
    xact: int
    seq: int

    @property
    def position(self) -> Position:
        return self.xact, self.seq


class Entries(msgspec.Struct, frozen=True):
    horizon: int
    """All transactions before this one have ended."""
    held_back: bool
    """Whether there are entries beyond the horizon."""
    entries: list[Entry]

    @property
    def complete(self) -> bool:
        """Whether these are all up to the horizon."""
        return len(self.entries) < PAGE


class Beginning(msgspec.Struct, frozen=True):
    horizon: int
    newest: Position
    """Of the latest entry below the horizon; (0, 0) when there is none."""
    kept: bool
    """Whether all that came after the position is still there."""


async def after(database: Database, position: Position) -> Entries:
    """The entries that come next, a page at the most.

    Raises:
        Unavailable: no database at the moment.
    """
    xact, seq = position
    [found] = await database.rows(Entries, ENTRIES, xact=xact, seq=seq)
    return found


async def beginning(database: Database, position: Position) -> Beginning:
    """Where somebody begins to read, and whether it can be at this position.

    Raises:
        Unavailable: no database at the moment.
    """
    xact, seq = position
    [found] = await database.rows(Beginning, BEGINNING, xact=xact, seq=seq)
    return found


def event_of(entry: Entry) -> Event:
    """The event that tells of an entry."""
    word = entry.action.partition(".")[0]
    return Event(
        id=id_of(entry.position),
        type=word if word in _OWN_TYPES else "audit",
        entity_id=entry.entity_id,
        data=msgspec.Raw(_encoder.encode(msgspec.convert(entry, AuditEntry, from_attributes=True))),
    )


class Patience:
    """How long to wait for the next look at the trail, from what the last one found."""

    def __init__(self) -> None:
        self._fruitless = 0
        self._since = trio.current_time()
        self._warned = False

    def after(self, found: Entries) -> float:
        """Seconds until the next look, if no wake-up comes before. Says in the log when entries are held back long."""
        if found.entries or not found.held_back:
            self._fruitless = 0
            self._since = trio.current_time()
            self._warned = False
        else:
            self._fruitless += 1
        if not found.held_back:
            return POLL_SECONDS
        if not self._warned and trio.current_time() - self._since > WARN_SECONDS:
            self._warned = True
            log.warning(WARNING)
        return min(HELD_BACK_SECONDS * 2 ** min(self._fruitless, 10), POLL_SECONDS)


_encoder = msgspec.json.Encoder()
