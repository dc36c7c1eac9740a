"""What is known of the backups that are made by schedule (`bloomd.backup.schedule`): a row for each that was tried."""

import msgspec

from bloomd.runtime.database import Database
from bloomd.runtime.ids import Id, new_id

DAY_MS = 86_400_000

# For as long as anybody may ask what became of them.
KEPT_MS = 400 * DAY_MS

# In one row: since when there is this schedule, what was tried last, and from when the last one is that was verified.
# What a clock has dated far into the future, while it was wrong, counts for nothing.
KNOWN = """
SELECT schedule.at, schedule.since, latest.node, latest.file, latest.due_at, latest.started_at, latest.ended_at,
       latest.bytes, coalesce(latest.missing, 0) AS missing, latest.error, verified.started_at AS verified_from
  FROM backup_schedule AS schedule
  LEFT JOIN LATERAL (SELECT * FROM backups
                      WHERE started_at < bloom_now_ms() + 86400000
                      ORDER BY started_at DESC, id DESC LIMIT 1) AS latest ON true
  LEFT JOIN LATERAL (SELECT started_at FROM backups
                      WHERE started_at < bloom_now_ms() + 86400000 AND verified_at IS NOT NULL
                      ORDER BY started_at DESC LIMIT 1) AS verified ON true
"""

SET = """
INSERT INTO backup_schedule (at, since)
SELECT %(at)s, bloom_now_ms()
 WHERE bloom_leads(%(epoch)s)
    ON CONFLICT (one) DO UPDATE
   SET at = excluded.at, since = excluded.since
 WHERE backup_schedule.at <> excluded.at
"""

BEGIN = """
WITH old AS (
    DELETE FROM backups WHERE started_at < bloom_now_ms() - %(kept_ms)s AND bloom_leads(%(epoch)s)
)
INSERT INTO backups (id, node, file, due_at, started_at)
SELECT %(id)s, %(node)s, %(file)s, %(due_at)s, bloom_now_ms()
 WHERE bloom_leads(%(epoch)s)
RETURNING id
"""

# Said by who made it, although somebody else may lead by now: the file is there, or is not.
END = """
WITH backup AS (
    UPDATE backups
       SET ended_at = bloom_now_ms(), bytes = %(bytes)s, missing = %(missing)s, error = %(error)s,
           verified_at = CASE WHEN %(verified)s THEN bloom_now_ms() END
     WHERE id = %(id)s
    RETURNING id, node, file, bytes, missing, error
)
INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
SELECT gen_random_uuid(), bloom_now_ms(), CASE WHEN bytes IS NULL THEN 'backup.failed' ELSE 'backup.made' END,
       'backup', id, 'bloomd', concat_ws(', ', node || ':' || file, bytes || ' bytes',
       CASE WHEN missing > 0 THEN missing || ' objects are missing or damaged' END, error)
  FROM backup
RETURNING entity_id AS id
"""

# What nobody told the end of: whoever made it was killed.
ABANDON = """
WITH abandoned AS (
    UPDATE backups
       SET ended_at = bloom_now_ms(), error = 'it was not finished: the daemon was killed, or another node leads'
     WHERE ended_at IS NULL AND bloom_leads(%(epoch)s)
    RETURNING id, node, file, error
)
INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
SELECT gen_random_uuid(), bloom_now_ms(), 'backup.failed', 'backup', id, 'bloomd',
       concat_ws(', ', node || ':' || file, error)
  FROM abandoned
RETURNING entity_id AS id
"""


FILES = """
SELECT file, missing, bytes IS NOT NULL AS made FROM backups WHERE id <> %(id)s ORDER BY started_at DESC, id DESC
"""


class Tried(msgspec.Struct, frozen=True):
    """The file of a backup that was tried, on whichever node."""

    file: str
    missing: int
    made: bool
    """False when there may be a part of it, or one that was found to be bad."""


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """The schedule, and the latest backup that was tried by it, on whichever node; times in ms."""

    at: str
    """The time of the day."""
    since: int
    """Since when it is that."""
    node: str | None
    """None, and so are the next five, as long as none was tried."""
    file: str | None
    due_at: int | None
    """The time of the schedule that it is for, by the clock of that node."""
    started_at: int | None
    ended_at: int | None
    """None while it is made, too."""
    bytes: int | None
    """None when it failed, too."""
    missing: int
    """Objects that the store did not have as the database describes them."""
    error: str | None
    """Why it failed, or is not verified."""
    verified_from: int | None
    """When the last one began that was verified: so old is what it has."""

    @property
    def under_way(self) -> bool:
        return self.started_at is not None and self.ended_at is None

    @property
    def failed(self) -> bool:
        return self.ended_at is not None and self.bytes is None

    def age(self, now: int) -> float:
        """Seconds, of the last verified one; when there is none, of the schedule. By the database's clock (ms)."""
        return max(0, now - (self.since if self.verified_from is None else self.verified_from)) / 1000

    def concern(self, now: int, *, warn_after_days: float) -> str | None:
        """What an operator should know, if anything."""
        why = f": {self.error}" if self.error else ""
        days = self.age(now) * 1000 / DAY_MS
        if days > warn_after_days:
            last = "the last verified backup is" if self.verified_from is not None else "no backup was verified for"
            return f"{last} {days:.1f} days{' old' if self.verified_from is not None else ''}{why}"
        if self.error:
            return f"the latest backup {'failed' if self.failed else 'is not verified'}{why}"
        if self.missing:
            return f"the latest backup lacks {self.missing} objects, or has them damaged: its manifest.json names them"
        return None


async def known(database: Database) -> Known | None:
    """What is known; None as long as no schedule was set."""
    return await database.row(Known, KNOWN)


async def set_schedule(database: Database, at: str, *, epoch: int) -> None:
    """Note, as the leader of this epoch, at which time of the day one is made."""
    await database.execute(SET, at=at, epoch=epoch)


async def abandon(database: Database, *, epoch: int) -> int:
    """Note, as the leader of this epoch, that nobody makes those any more that are said to be made; how many."""
    return len(await database.change(Id, ABANDON, epoch=epoch))


async def files(database: Database, *, but: str) -> list[Tried]:
    """Those that were tried, the latest first, but for one."""
    return await database.rows(Tried, FILES, id=but)


async def begin(database: Database, *, node: str, file: str, due_at: int, epoch: int) -> str | None:
    """Note, as the leader of this epoch, that one is begun; its id. None when somebody else leads."""
    found = await database.rows(
        Id, BEGIN, id=new_id(), node=node, file=file, due_at=due_at, epoch=epoch, kept_ms=KEPT_MS
    )
    return found[0].id if found else None


async def end(
    database: Database,
    id: str,
    *,
    bytes: int | None = None,
    missing: int = 0,
    verified: bool = False,
    error: str | None = None,
) -> None:
    """Note what became of it, for the audit trail as well.

    Args:
        bytes: the size of the file; None when it failed.
        missing: objects that the store did not have as the database describes them.
        error: why it failed, or is not verified.
    """
    await database.change(Id, END, id=id, bytes=bytes, missing=missing, verified=verified, error=error)
