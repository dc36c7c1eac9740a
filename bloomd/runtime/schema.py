"""Our migrations, in order."""

from importlib.resources import files

from bloomd.postgres.migrate import Migration, load

MIGRATIONS: list[Migration] = load(files("bloomd.runtime") / "migrations")
