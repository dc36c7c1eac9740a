"""A bounded set of connections, lent to one task at a time.

There is no background task: a connection is made in the task that needs it, inside its cancel scope and with its error,
and looked at when it is lent and when it comes back. The last one returned is lent first, so what a quiet hour does not
need stays untouched.

    lent       a place in the semaphore is taken; then an idle connection whose socket has nothing to say (a server that
               restarted has closed it), else a new one
    returned   idle again if it is fit for the next task, else closed; then the place is given back
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psycopg
import structlog
import trio
from psycopg.rows import TupleRow

from bloomd.errors import Unavailable
from bloomd.postgres import conninfo as strings
from bloomd.postgres.connection import Connection
from bloomd.postgres.errors import translated

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PoolStats:
    size: int
    """Connections there can be."""
    idle: int
    """Connections open and free."""
    busy: int
    """Places taken by tasks."""
    waiting: int
    """Tasks waiting for a place."""


class Pool:
    """Connections to one database, in autocommit mode. psycopg's errors leave it translated."""

    def __init__(
        self,
        conninfo: str,
        *,
        size: int,
        connect_timeout: float = 5.0,
        acquire_timeout: float = 5.0,
        statement_timeout: float | None = None,
        application_name: str = "bloomd",
        read_only: bool = False,
    ) -> None:
        """Nothing is connected yet.

        Args:
            acquire_timeout: seconds to wait for another task to return a connection.
            statement_timeout: seconds that the server lets one statement run.
            read_only: the server lets no statement change anything.

        Raises:
            Misconfigured: the connection string cannot be read.
        """
        with translated():
            self._conninfo = strings.complete(
                conninfo,
                application_name=application_name,
                statement_timeout=statement_timeout,
                read_only=read_only,
            )
        self._size = size
        self._connect_timeout = connect_timeout
        self._acquire_timeout = acquire_timeout
        self._places = trio.Semaphore(size, max_value=size)
        self._idle: list[Connection[TupleRow]] = []
        self._closed = False

    def __repr__(self) -> str:
        stats = self.stats
        closed = "closed, " if self._closed else ""
        return f"<Pool {closed}{stats.busy} of {stats.size} busy, {stats.idle} idle, {stats.waiting} waiting>"

    @property
    def stats(self) -> PoolStats:
        return PoolStats(
            size=self._size,
            idle=len(self._idle),
            busy=self._size - self._places.value,
            waiting=self._places.statistics().tasks_waiting,
        )

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection[TupleRow]]:
        """Borrow a connection, in autocommit mode.

        Raises:
            Unavailable: the database is away, or all connections were busy for too long, or the pool is closed.
            Misconfigured: the database refuses us for good.
        """
        async with await self.lend() as connection:
            yield connection

    async def lend(self) -> "Loan":
        """The same, for a single statement, which no async generator is set up for: `async with await pool.lend()`."""
        with translated():
            await self._take_place()
            try:
                connection = self._idle_one() or await Connection[TupleRow].connect(
                    self._conninfo, connect_timeout=self._connect_timeout
                )
            except BaseException:
                self._places.release()
                raise
            return Loan(connection, self._take_back)

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection[TupleRow]]:
        """Borrow a connection for one transaction: committed when the block ends, rolled back when it raises."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def close(self) -> None:
        """Lend no more; close what is idle now, and what is in use when it comes back."""
        self._closed = True
        while self._idle:
            await self._idle.pop().close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _take_place(self) -> None:
        self._refuse_when_closed()
        with suppress(trio.WouldBlock):  # to wait takes a deadline and a turn of the event loop, also for a free one
            self._places.acquire_nowait()
            return
        try:
            with trio.fail_after(self._acquire_timeout):
                await self._places.acquire()
        except trio.TooSlowError:
            raise Unavailable(
                f"the connection pool is busy: all {self._size} connections were in use for {self._acquire_timeout:g} s"
            ) from None
        try:
            self._refuse_when_closed()
        except Unavailable:
            self._places.release()
            raise

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise Unavailable("the connection pool is closed")

    def _idle_one(self) -> Connection[TupleRow] | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable:
                return connection
            connection.abandon()
        return None

    async def _take_back(self, connection: Connection[TupleRow]) -> None:
        try:
            if not self._closed and connection.is_reusable:
                self._idle.append(connection)
                return
            if not connection.closed and not self._closed:
                state = connection.info.transaction_status.name
                log.warning("database connection came back unfit and was closed", state=state)
            await connection.close()
        finally:
            self._places.release()


class Loan:
    """A connection that goes back to the pool at the end of the block. psycopg's errors leave it translated."""

    __slots__ = ("_connection", "_take_back")

    def __init__(
        self, connection: Connection[TupleRow], take_back: Callable[[Connection[TupleRow]], Awaitable[None]]
    ) -> None:
        self._connection = connection
        self._take_back = take_back

    async def __aenter__(self) -> Connection[TupleRow]:
        return self._connection

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with translated():
            await self._take_back(self._connection)
            if isinstance(exc, psycopg.Error):
                raise exc
