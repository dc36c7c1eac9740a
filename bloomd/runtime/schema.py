"""Our migrations, in order, and what it means when PostgreSQL refuses them."""

from collections.abc import Generator
from contextlib import contextmanager
from importlib.resources import files

import psycopg
from psycopg.errors import InsufficientPrivilege

from bloomd.errors import Misconfigured, one_line
from bloomd.postgres.migrate import Migration, load

MIGRATIONS: list[Migration] = load(files("bloomd.runtime") / "migrations")


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
            "the migration that met this has changed nothing, those before it stay applied"
        ) from error
