"""What every subject needs: PostgreSQL as it would run for real, and a daemon on a migrated database."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bloomd_process import Bloomd
from servers import PostgresServer

# The tests' server gives durability up for speed; figures without it would be worth nothing.
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "max_wal_size": "1GB"}


@contextmanager
def rig(**settings: Any) -> Iterator[tuple[PostgresServer, Bloomd]]:
    """A server that keeps what it has acknowledged, and a daemon that is ready, with its default settings."""
    with PostgresServer(settings=DURABLE) as server:
        bloomd = Bloomd(server.create_database(), **{"probes.interval": 10.0, **settings})
        bloomd.migrate()
        with bloomd:
            yield server, bloomd
            bloomd.stop()
