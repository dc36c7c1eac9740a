"""Our migrations, in order, and what it means when PostgreSQL refuses them."""

from collections.abc import Generator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import psycopg
from psycopg.errors import InsufficientPrivilege

from bloomd.errors import Misconfigured, one_line
from bloomd.postgres import Connection
from bloomd.postgres.migrations import Migration, load

MIGRATIONS: list[Migration] = load(files("bloomd.runtime") / "migrations")

# The sessions of a daemon, unless its database.url names them otherwise.
_SESSIONS = """
SELECT DISTINCT coalesce(host(client_addr), 'this machine')
  FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name IN ('bloomd', 'bloomd listener')
 ORDER BY 1
"""

# A leader renews its row every other second. An end that is far away is from before the clock was set back.
_LEADERS = """
SELECT node FROM leaders WHERE expires_at > bloom_now_ms() AND expires_at < bloom_now_ms() + 60000
"""


async def refuse_while_in_use(conn: Connection[Any]) -> None:
    """Raise when a bloomd is at work on this database, as far as that can be told.

    Raises:
        Misconfigured: it has sessions there, or leads; the text says where.
    """
    signs = [f"it is connected from {host}" for (host,) in await (await conn.execute(_SESSIONS)).fetchall()]
    if await (await conn.execute("SELECT to_regclass('leaders')")).fetchone() != (None,):
        signs += [f"the node {node} leads" for (node,) in await (await conn.execute(_LEADERS)).fetchall()]
    if signs:
        raise Misconfigured(
            f"a bloomd is using this database: {', '.join(signs)}; stop it first, on every node "
            "(one that was killed counts as leader for some seconds)"
        )


@contextmanager
def explained() -> Generator[None]:
    """Translate what goes wrong with the schema into what a person has to do about it."""
    try:
        yield
    except InsufficientPrivilege as error:
        raise Misconfigured(
            f"{one_line(error)}: the user in database.url must own the tables; "
            "as their owner: REASSIGN OWNED BY CURRENT_USER TO that user"
        ) from error
    except psycopg.OperationalError:
        raise  # the server went away: the pool says so
    except psycopg.Error as error:
        raise Misconfigured(
            f"{one_line(error)}: these tables are not those of BLOOM Runtime, or were changed; "
            "the migration that met this has changed nothing, those before it are done"
        ) from error
