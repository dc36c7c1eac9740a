"""Who leads a project of the control plane that bloomd serves itself.

A leadership is a promise with an end: this node is the primary until `expires_at`. Each selection has the next epoch,
so that who acts for an earlier one can be told; epochs are counted under the row's lock, and go on when the project is
removed and comes back. A leadership whose time is over is none.
"""

import msgspec

from bloomd.runtime.database import Database

CURRENT = """
SELECT primary_node_id, epoch, issued_at / 1000.0::float8 AS issued_at, expires_at / 1000.0::float8 AS expires_at
  FROM membridge_leaderships
 WHERE canonical_id = %(canonical_id)s AND expires_at > bloom_now_ms()
"""

# `issued_at` never goes back: one that had to wait for another was asked for before that one was issued.
SELECT = """
WITH leadership AS (
    INSERT INTO membridge_leaderships AS known (canonical_id, primary_node_id, epoch, issued_at, expires_at)
    SELECT %(canonical_id)s, %(primary_node_id)s, 1, now_ms, now_ms + %(lease_ms)s FROM bloom_now_ms() AS now_ms
        ON CONFLICT (canonical_id) DO UPDATE
       SET primary_node_id = excluded.primary_node_id,
           epoch           = known.epoch + 1,
           issued_at       = greatest(excluded.issued_at, known.issued_at),
           expires_at      = greatest(excluded.issued_at, known.issued_at) + %(lease_ms)s
    RETURNING *
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'membridge.primary_selected', 'project', canonical_id, 'membridge',
           'primary node ' || primary_node_id || ', epoch ' || epoch
      FROM leadership
)
SELECT primary_node_id, epoch, issued_at / 1000.0::float8 AS issued_at, expires_at / 1000.0::float8 AS expires_at
  FROM leadership
"""


class Leadership(msgspec.Struct, frozen=True):
    primary_node_id: str
    epoch: int
    issued_at: float
    """Epoch seconds, as are all times that a control plane tells."""
    expires_at: float


async def current(database: Database, canonical_id: str) -> Leadership | None:
    """Who leads the project now; None when nobody does."""
    return await database.row(Leadership, CURRENT, canonical_id=canonical_id)


async def select(database: Database, canonical_id: str, primary_node_id: str, *, seconds: float) -> Leadership:
    """Make a node the primary for this long. It need not have been heard of."""
    [leadership] = await database.change(
        Leadership,
        SELECT,
        canonical_id=canonical_id,
        primary_node_id=primary_node_id,
        lease_ms=round(seconds * 1000),
    )
    return leadership
