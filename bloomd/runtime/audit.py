"""The audit trail. Changes of tasks and workers write their entry in their own statement; this is for all else."""

from bloomd.runtime.database import Database
from bloomd.runtime.model import AuditEntry
from bloomd.runtime.pages import Page

ADD = """
INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
VALUES (gen_random_uuid(), bloom_now_ms(), %(action)s, %(entity_type)s, %(entity_id)s, %(actor)s, %(detail)s)
"""

LIST = """
SELECT *
  FROM audit_logs
 WHERE (timestamp, id) < (%(at)s, %(before)s)
   AND (%(action)s::varchar IS NULL OR action = %(action)s)
   AND (%(entity_id)s::varchar IS NULL OR entity_id = %(entity_id)s)
   AND (%(since)s::bigint IS NULL OR timestamp >= %(since)s)
 ORDER BY timestamp DESC, id DESC
 LIMIT %(limit)s
"""


async def add(
    database: Database, action: str, *, entity_type: str, entity_id: str, actor: str, detail: str | None = None
) -> None:
    """Record something that has no row of its own to change."""
    await database.execute(ADD, action=action, entity_type=entity_type, entity_id=entity_id, actor=actor, detail=detail)
    database.on_change()


async def listing(
    database: Database,
    page: Page,
    *,
    action: str | None = None,
    entity_id: str | None = None,
    since: int | None = None,
) -> list[AuditEntry]:
    """A page of entries, newest first; `since` is in epoch milliseconds."""
    return await database.listing(
        AuditEntry,
        LIST,
        action=action,
        entity_id=entity_id,
        since=since,
        at=page.at,
        before=page.id,
        limit=page.limit,
    )
