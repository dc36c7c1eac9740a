"""Settings that were made through the API: kept in the database, in force on every node."""

from collections.abc import Mapping

import msgspec

from bloomd.runtime.database import Database

# What other nodes listen for: a setting was changed.
CHANNEL = "bloom_settings"

READ = """
SELECT key, value FROM runtime_settings WHERE value IS NOT NULL
"""

WRITE = """
WITH written AS (
    INSERT INTO runtime_settings (key, value)
    SELECT key, value FROM unnest(%(keys)s::varchar[], %(values)s::text[]) AS new (key, value)
        ON CONFLICT (key) DO UPDATE SET value = excluded.value
    RETURNING key
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'config.updated', 'config', %(entity)s, %(actor)s, %(detail)s
     WHERE %(audited)s
)
SELECT pg_notify('bloom_settings', '')::text AS notified WHERE %(audited)s
"""

UNSET = """
WITH removed AS (
    DELETE FROM runtime_settings WHERE key = ANY (%(keys)s) RETURNING key
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'config.unset', 'config', key, %(actor)s, '' FROM removed
)
SELECT key, pg_notify('bloom_settings', '')::text AS notified FROM removed
"""


class _Setting(msgspec.Struct, frozen=True):
    key: str
    value: str


class _Key(msgspec.Struct, frozen=True):
    key: str


class _Done(msgspec.Struct, frozen=True):
    notified: str | None


async def read(database: Database) -> dict[str, str]:
    """All stored settings."""
    return {row.key: row.value for row in await database.rows(_Setting, READ)}


async def write(database: Database, values: Mapping[str, str], *, actor: str, detail: str) -> None:
    """Store these settings together, audited with a detail that holds no secret, and tell every node."""
    await _write(database, values, actor=actor, detail=detail, audited=True)


async def note(database: Database, values: Mapping[str, str]) -> None:
    """Store what was observed (such as the last test of a connection): no setting, so nobody is told."""
    await _write(database, values, actor="bloomd", detail="", audited=False)


async def unset(database: Database, keys: list[str], *, actor: str) -> list[str]:
    """Forget these settings; the keys that were set."""
    return [row.key for row in await database.change(_Key, UNSET, keys=keys, actor=actor)]


async def _write(database: Database, values: Mapping[str, str], *, actor: str, detail: str, audited: bool) -> None:
    await database.change(
        _Done,
        WRITE,
        keys=list(values),
        values=list(values.values()),
        entity=", ".join(values),
        detail=detail,
        actor=actor,
        audited=audited,
    )
