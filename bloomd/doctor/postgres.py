"""PostgreSQL: whether it is there, is new enough, may be used, keeps what it says it keeps, and has our schema."""

import re
import time

import msgspec
from psycopg import sql

from bloomd.doctor.case import Case
from bloomd.doctor.clocks import compared
from bloomd.doctor.finding import Found, error, ok, warning
from bloomd.errors import Misconfigured, one_line
from bloomd.runtime.connector import OLDEST_SERVER
from bloomd.runtime.schema import MIGRATIONS

# What there is by our migrations; what else lies in the schema is somebody else's.
TABLES = ["bloomd_migrations"] + [
    name
    for migration in MIGRATIONS
    for name in re.findall(r"^CREATE TABLE (?:IF NOT EXISTS )?(\w+)", migration.sql, re.MULTILINE)
]

# PostgreSQL takes several privileges in one text for "one of these".
PRIVILEGES = """
SELECT current_user::text                                                    AS me,
       current_schema()::text                                                AS schema,
       coalesce(array_agg(relname::text ORDER BY relname)
                FILTER (WHERE NOT (has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT')
                                   AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE'))),
                '{}')                                                        AS closed,
       coalesce(array_agg(relname::text ORDER BY relname) FILTER (WHERE NOT pg_has_role(relowner, 'USAGE')),
                '{}')                                                        AS foreign
  FROM pg_class
 WHERE oid IN (SELECT to_regclass(quote_ident(name)) FROM unnest(%(tables)s::text[]) AS ours (name))
"""

DURABLE = """
SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') ORDER BY name
"""

NOW = """
SELECT bloom_now_ms() AS now_ms
"""


class _Privileges(msgspec.Struct, frozen=True):
    me: str
    schema: str | None
    closed: list[str]
    foreign: list[str]


class _Setting(msgspec.Struct, frozen=True):
    name: str
    setting: str


class _Now(msgspec.Struct, frozen=True):
    now_ms: int


def reachable(case: Case) -> Found:
    """It takes our connection."""
    trouble = case.server.trouble
    if trouble is None:
        return ok("PostgreSQL takes our connection")
    mend = f"correct database.url: bloomd check{case.option} --print shows where it is told"
    return error(one_line(trouble), mend if isinstance(trouble, Misconfigured) else "start PostgreSQL, or " + mend)


def version(case: Case) -> Found:
    """It is one that bloomd can work with."""
    number = case.server.value
    text = f"this is PostgreSQL {number // 10000}.{number % 10000}"
    if number >= OLDEST_SERVER:
        return ok(text)
    return error(f"{text}, and bloomd needs {OLDEST_SERVER // 10000} or newer", "upgrade it with pg_upgrade")


async def privileges(case: Case) -> Found:
    """Our user may do to the tables what a daemon and a migration do."""
    [found] = await case.any_database.rows(_Privileges, PRIVILEGES, tables=TABLES)
    me, schema = sql.Identifier(found.me).as_string(), sql.Identifier(found.schema or "public").as_string()
    if found.closed:
        return error(
            f"the user {found.me} may not read and write {_some(found.closed)}",
            f"in psql, as their owner: GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {me}",
        )
    if found.foreign:
        return warning(
            f"the user {found.me} does not own {_some(found.foreign)}, so `bloomd migrate` will fail one day",
            f"in psql, as their owner: REASSIGN OWNED BY CURRENT_USER TO {me}",
        )
    return ok(f"the user {found.me} may do what it has to")


async def durable(case: Case) -> Found:
    """What it has committed survives a crash of the machine."""
    settings = await case.any_database.rows(_Setting, DURABLE)
    off = [each.name for each in settings if each.setting == "off"]
    if not off:
        return ok("what PostgreSQL commits survives a crash")
    return error(
        f"{' and '.join(off)} {'is' if len(off) == 1 else 'are'} off: a crash of the machine can destroy the database",
        "in psql: " + "; ".join([*(f"ALTER SYSTEM SET {name} = on" for name in off), "SELECT pg_reload_conf()"]),
    )


def schema(case: Case) -> Found:
    """The tables are those that this version works with."""
    trouble = case.schema.trouble
    if trouble:
        return error(one_line(trouble), "name another database in database.url")
    found = case.schema.value
    if found.changed:
        names = ", ".join(map(str, found.changed))
        return error(
            f"the database was migrated by another build of this version: migration {names} differs",
            "install the bloomd that migrated it",
        )
    if found.newer:
        return error(
            f"the database has schema {found.current}, newer than this bloomd knows ({found.latest})",
            "install the bloomd that migrated it, or a newer one",
        )
    if found.pending:
        has = f"schema {found.current}" if found.current else "no schema yet"
        return error(
            f"the database has {has}, and this bloomd needs {found.latest}",
            f"bloomd migrate{case.option}, then bloomd-ctl restart database",
        )
    return ok(f"the database has schema {found.current}")


async def clock(case: Case) -> Found:
    """It has our time: leases live by the clock of the database, and people read ours."""
    asked = time.time()
    [found] = await case.database.rows(_Now, NOW)
    return compared("PostgreSQL", found.now_ms / 1000, asked, time.time())


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more tables" if len(names) > 3 else "")
