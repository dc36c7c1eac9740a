"""PostgreSQL is well when it takes a new connection and answers a query on it."""

import trio

from bloomd.postgres import Connection, translated
from bloomd.postgres.conninfo import complete
from bloomd.settings.model import Database

# The query gives up by itself a little before the probe would cancel it: a cancellation asks the server to cancel as
# well, and waits for its answer, which a frozen server does not give.
MARGIN_SECONDS = 0.05


async def check(settings: Database) -> None:
    deadline = trio.current_effective_deadline() - MARGIN_SECONDS
    with translated():
        connection = await Connection.connect(complete(settings.url, application_name="bloomd probe"))
        try:
            await connection.ping(max(0.0, round(deadline - trio.current_time(), 2)))
        finally:
            connection.abandon()
