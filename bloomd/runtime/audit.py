"""The audit trail. Changes of tasks and workers write their entry in their own statement; this is for all else.

There are indexes for the time, the action and the entity of an entry, and none for its actor and the entity's type:
these are compared on the way along one of the others. So that nobody's page makes PostgreSQL read a whole trail for an
actor who never did anything, a page looks at so many entries and no more. It may therefore have fewer than were asked
for, or none, and still be followed by another.
"""

import msgspec

from bloomd.runtime.database import Database
from bloomd.runtime.model import AuditEntry
from bloomd.runtime.pages import END_OF_TIME, Page

# A page looks at so many entries, in a fortieth of a second.
LOOKED_AT = 20_000

# There are so many actions in a trail, or far fewer: they are words of ours.
MOST_ACTIONS = 1000

ADD = """
INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
VALUES (gen_random_uuid(), bloom_now_ms(), %(action)s, %(entity_type)s, %(entity_id)s, %(actor)s, %(detail)s)
"""

# The entries that fit; and the last one that was looked at, from which the next page goes on.
FIND = """
SELECT *
  FROM (SELECT id, timestamp, action, entity_type, entity_id, actor, detail,
               row_number() OVER (ORDER BY timestamp DESC, id DESC) AS place,
               (%(actor)s::varchar IS NULL OR actor = %(actor)s)
               AND (%(entity_type)s::varchar IS NULL OR entity_type = %(entity_type)s) AS fits
          FROM audit_logs
         WHERE (timestamp, id) < (%(at)s, %(before)s)
           AND (%(actions)s::varchar[] IS NULL OR action = ANY (%(actions)s))
           AND (%(entity_id)s::varchar IS NULL OR entity_id = %(entity_id)s)
           AND timestamp >= %(since)s
         ORDER BY timestamp DESC, id DESC
         LIMIT %(looked_at)s) AS looked
 WHERE fits OR place = %(looked_at)s
 ORDER BY timestamp DESC, id DESC
 LIMIT %(limit)s
"""

# The actions that begin so. The index has them one after the other: a step for each action, not for each entry. A list
# of them finds the entries by the index, which a pattern does only where the collation is C.
ACTIONS = """
WITH RECURSIVE known AS (
    (SELECT action FROM audit_logs ORDER BY action LIMIT 1)
    UNION ALL
    SELECT next.action
      FROM known,
           LATERAL (SELECT action FROM audit_logs WHERE action > known.action ORDER BY action LIMIT 1) AS next
), first AS (
    SELECT action FROM known LIMIT %(most)s
)
SELECT action FROM first WHERE starts_with(action, %(prefix)s)
"""


class Wanted(msgspec.Struct, frozen=True):
    """Which entries. What is None does not matter."""

    action: str | None = None
    """With a `*` at its end, all that begin so."""
    entity_id: str | None = None
    entity_type: str | None = None
    actor: str | None = None
    since: int = 0
    """Not older than this, in epoch milliseconds."""
    until: int = END_OF_TIME
    """Older than this."""


class Found(msgspec.Struct, frozen=True):
    entries: list[AuditEntry]
    next: Page | None
    """Where there may be more; None at the end."""


class _Looked(AuditEntry, frozen=True, kw_only=True):
    place: int
    fits: bool


class _Action(msgspec.Struct, frozen=True):
    action: str


async def add(
    database: Database, action: str, *, entity_type: str, entity_id: str, actor: str, detail: str = ""
) -> None:
    """Record something that has no row of its own to change."""
    await database.execute(ADD, action=action, entity_type=entity_type, entity_id=entity_id, actor=actor, detail=detail)
    database.on_change()


async def find(database: Database, page: Page, wanted: Wanted) -> Found:
    """A page of those wanted, newest first.

    Raises:
        Unavailable: no database at the moment.
    """
    page = page.before(wanted.until)
    looked = await database.listing(
        _Looked,
        FIND,
        actions=await _actions(database, wanted.action),
        entity_id=wanted.entity_id,
        entity_type=wanted.entity_type,
        actor=wanted.actor,
        since=wanted.since,
        at=page.at,
        before=page.id,
        limit=page.limit,
        looked_at=LOOKED_AT,
    )
    entries = [msgspec.convert(each, AuditEntry, from_attributes=True) for each in looked if each.fits]
    if looked and (len(looked) == page.limit or looked[-1].place == LOOKED_AT):
        return Found(entries, Page(page.limit, looked[-1].timestamp, looked[-1].id))
    return Found(entries, None)


async def listing(
    database: Database, page: Page, *, action: str | None = None, entity_id: str | None = None
) -> list[AuditEntry]:
    """The entries of a page, newest first."""
    return (await find(database, page, Wanted(action=action, entity_id=entity_id))).entries


async def _actions(database: Database, action: str | None) -> list[str] | None:
    """The actions that this one stands for; None for all."""
    if action is None or not action.endswith("*"):
        return None if action is None else [action]
    found = await database.rows(_Action, ACTIONS, prefix=action[:-1], most=MOST_ACTIONS)
    return [each.action for each in found]
