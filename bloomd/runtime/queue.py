"""The queue as a whole: paused, for a time or until somebody resumes it, or open.

While it is paused nobody gets a lease, in whichever way it is asked for; what is leased already goes on.
"""

import msgspec

from bloomd.runtime.database import Database
from bloomd.runtime.refusals import Invalid

READ = """
SELECT NOT bloom_queue_is_open() AS paused, until, reason FROM queue_state
"""

# Says the same again, or pauses until a time that is over: nothing happens, and no audit entry is written.
SET = """
WITH before AS (
    SELECT * FROM queue_state FOR UPDATE
), state AS (
    UPDATE queue_state
       SET paused = %(paused)s, until = %(until)s, reason = %(reason)s
      FROM before
     WHERE (before.paused, before.until, before.reason)
           IS DISTINCT FROM (%(paused)s, %(until)s::bigint, %(reason)s::text)
       AND coalesce(%(until)s::bigint > bloom_now_ms(), true)
    RETURNING queue_state.*
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), CASE WHEN paused THEN 'queue.paused' ELSE 'queue.resumed' END,
           'queue', 'queue', %(actor)s,
           concat_ws(': ', 'until ' || to_char(to_timestamp(until / 1000.0) AT TIME ZONE 'UTC',
                                               'YYYY-MM-DD"T"HH24:MI:SS"Z"'), reason)
      FROM state
)
SELECT paused, until, reason FROM state
"""


class QueueState(msgspec.Struct, frozen=True):
    paused: bool
    """Whether it is paused now: a pause whose time is over is none."""
    until: int | None = None
    """Epoch milliseconds; None for a pause that somebody has to end."""
    reason: str | None = None


async def read(database: Database) -> QueueState:
    """How the queue is now."""
    [state] = await database.rows(QueueState, READ)
    return state if state.paused else QueueState(paused=False)


async def pause(database: Database, *, until: int | None = None, reason: str | None = None, actor: str) -> QueueState:
    """Hand out no task until this time (epoch ms), or until `resume`. Pausing again changes time and reason.

    Raises:
        Invalid: the time is over.
    """
    changed = await database.change(QueueState, SET, paused=True, until=until, reason=reason, actor=actor)
    state = await read(database)
    if not changed and not (state.paused and state.until == until):
        raise Invalid("until: this time is over; it is in milliseconds since 1970")
    return state


async def resume(database: Database, *, actor: str) -> QueueState:
    """Hand out tasks again."""
    await database.change(QueueState, SET, paused=False, until=None, reason=None, actor=actor)
    database.on_offer()
    return await read(database)
