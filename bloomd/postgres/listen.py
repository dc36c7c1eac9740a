"""Notifications: one connection that does nothing else, and notices when it has been cut.

A connection that only listens never finds out by itself that its server is frozen, or that a firewall has forgotten it.
So when nothing has come for a while, it asks for a sign of life. What was notified while nobody was listening is lost:
whoever relies on notifications also polls.
"""

from collections.abc import Callable, Iterable

import trio
from psycopg import sql

from bloomd.postgres import conninfo as strings
from bloomd.postgres.connection import CONNECT_SECONDS, Connection
from bloomd.postgres.errors import translated

# A cut connection stays unnoticed for the sum of the two. Pollers cover that time, and a ping costs next to nothing.
KEEPALIVE_SECONDS = 15.0
ANSWER_SECONDS = 5.0


async def listen(
    conninfo: str,
    channels: Iterable[str],
    on_notify: Callable[[str, str], None],
    *,
    connect_timeout: float = CONNECT_SECONDS,
    keepalive: float = KEEPALIVE_SECONDS,
    answer_timeout: float = ANSWER_SECONDS,
    application_name: str = "bloomd listener",
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Call `on_notify(channel, payload)` for each notification, until cancelled.

    Started once the server listens for us: what is notified from then on arrives, unless the connection is lost.

    Raises:
        Unavailable: the database is away, or the connection was lost.
        Misconfigured: the database refuses us for good.
    """
    with translated():
        completed = strings.complete(conninfo, application_name=application_name)
        connection = await Connection.connect(completed, connect_timeout=connect_timeout)
        try:
            for channel in channels:
                await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
            task_status.started()
            while True:
                heard = False
                async for notification in connection.notifies(timeout=keepalive):
                    heard = True
                    on_notify(notification.channel, notification.payload)
                if not heard:
                    await connection.ping(answer_timeout)
        finally:
            await connection.close()
