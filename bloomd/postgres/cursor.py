"""Cursors: what psycopg's do, with a COPY that always leaves the connection usable, and without `stream`."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Never

import psycopg
import trio
from psycopg import pq
from psycopg.abc import Params, Query
from psycopg.copy import AsyncWriter
from psycopg.errors import QueryCanceled
from psycopg.rows import Row

if TYPE_CHECKING:
    from bloomd.postgres.connection import Connection

# A COPY that was given up: the server has to read on to the end of what we sent before it answers.
LEAVE_COPY_SECONDS = 5.0


class Copy(psycopg.AsyncCopy):
    """A COPY under way. However its block is left, the server hears that the COPY is over."""

    connection: "Connection[Any]"

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        error = exc_val or QueryCanceled("the COPY was not read to its end")
        try:
            if exc_val is None:
                await self.finish(None)
        except trio.Cancelled as cancelled:
            error = cancelled
            raise
        finally:
            if self._is_copying:
                await self._leave(error)

    @property
    def _is_copying(self) -> bool:
        return self.connection.pgconn.transaction_status == pq.TransactionStatus.ACTIVE

    async def _leave(self, error: BaseException) -> None:
        # Shielded: the protocol has no way to a usable connection but through the end of the COPY.
        with trio.move_on_after(LEAVE_COPY_SECONDS, shield=True):
            await self.finish(error)
        if self._is_copying:
            self.connection.abandon()


class Cursor(psycopg.AsyncCursor[Row]):
    _conn: "Connection[Any]"

    @asynccontextmanager
    async def copy(
        self, statement: Query, params: Params | None = None, *, writer: AsyncWriter | None = None
    ) -> AsyncGenerator[Copy]:
        async with self._conn.lock:
            await self._conn.wait(self._start_copy_gen(statement, params))
            async with Copy(self, writer=writer) as copy:
                yield copy
        self._select_current_result(0)

    def stream(self, *_args: object, **_kwargs: object) -> Never:
        """Not offered: cancelled, it leaves the connection in the middle of its result."""
        raise psycopg.NotSupportedError("use a server-side cursor: connection.cursor(name=...) in a transaction")
