"""The way from the rules to PostgreSQL: the pool, behind a gate that only a matching schema opens."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, LiteralString, TypeVar

import msgspec
import trio
from psycopg.errors import DeadlockDetected, LockNotAvailable, QueryCanceled
from psycopg.rows import TupleRow, dict_row

from bloomd.errors import Unavailable, one_line
from bloomd.postgres import Connection, Loan, Pool
from bloomd.runtime.meters import Meters

Row = TypeVar("Row", bound=msgspec.Struct)
Answer = TypeVar("Answer")

# Our statements lock tasks before leases before workers, so a deadlock takes a stranger (a psql session, a migration).
# The victim was rolled back whole; a few tries are enough, because the other side has moved on by then.
DEADLOCK_TRIES = 3


class Database:
    """Runs statements on the open pool and gives rows back as Structs.

    Until `open` is called, and after `close`, everything raises `Unavailable` with the reason given.
    """

    def __init__(self, away: str = "PostgreSQL is not connected yet") -> None:
        self._pool: Pool | None = None
        self._away = away
        self._limit = 0.0
        self._under_way: set[trio.CancelScope] = set()
        self.on_change: Callable[[], None] = _nobody
        """Called after each change that has been committed: there are new entries in the audit trail."""
        self.on_offer: Callable[[], None] = _nobody
        """Called when a task can be claimed that could not be claimed before, or by somebody who could not."""
        self.doubted = trio.Event()
        """Set when a statement could not be run: a reason to look whether the server is still there."""
        self.schema: int | None = None
        """The version of the schema, as it was found when the database was opened last."""
        self.meters = Meters()
        """What was done through here since the start, for Prometheus."""

    def __repr__(self) -> str:
        return f"<Database {self._pool or self._away}>"

    @property
    def away(self) -> str | None:
        """Why there is no database at the moment; None while there is one."""
        return None if self._pool else self._away

    def open(self, pool: Pool, *, limit: float = 60.0) -> None:
        """Run statements on this pool from now on, each for `limit` seconds at the most."""
        self._pool = pool
        self._limit = limit

    def close(self, reason: str) -> None:
        """Refuse all statements, and end those under way, for this reason."""
        self._pool = None
        self._away = reason
        for scope in self._under_way:
            scope.cancel()

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection[Any]]:
        """A connection inside a transaction that commits at the end of the block.

        Raises:
            Unavailable: no database at the moment.
        """
        with self._limited():
            async with await self._lend() as connection, connection.transaction():
                yield connection

    async def rows(self, struct: type[Row], query: LiteralString, /, **parameters: object) -> list[Row]:
        """The rows that one statement gives, each as a Struct. Autocommitted."""
        return await self._persistently(lambda connection: rows(connection, struct, query, parameters))

    async def row(self, struct: type[Row], query: LiteralString, /, **parameters: object) -> Row | None:
        """The first row that one statement gives, or None."""
        found = await self.rows(struct, query, **parameters)
        return found[0] if found else None

    async def binary_row(self, struct: type[Row], query: LiteralString, /, **parameters: object) -> Row | None:
        """The same in PostgreSQL's binary format: bytes come as they are, and not as hexadecimal digits."""
        found = await self._persistently(lambda connection: rows(connection, struct, query, parameters, binary=True))
        return found[0] if found else None

    async def change(self, struct: type[Row], query: LiteralString, /, **parameters: object) -> list[Row]:
        """The rows that one statement has changed; when there are any, whoever follows the changes is told."""
        changed = await self.rows(struct, query, **parameters)
        if changed:
            self.on_change()
        return changed

    async def listing(self, struct: type[Row], query: LiteralString, /, **parameters: object) -> list[Row]:
        """The same for a list with optional filters, planned anew for these very values.

        One plan for all values, as a prepared statement gets it, would read a whole index for a filter that is not set.
        """
        return await self._persistently(lambda connection: rows(connection, struct, query, parameters, prepare=False))

    async def execute(self, query: LiteralString, /, **parameters: object) -> None:
        """Run one statement that gives no rows. Autocommitted."""

        async def run(connection: Connection[TupleRow]) -> None:
            await connection.execute(query, parameters)

        await self._persistently(run)

    async def _persistently(self, statement: Callable[[Connection[TupleRow]], Awaitable[Answer]]) -> Answer:
        for _ in range(DEADLOCK_TRIES):
            with suppress(DeadlockDetected), self._limited():
                async with await self._lend() as connection:
                    return await statement(connection)
        raise Unavailable("PostgreSQL saw one deadlock after another; try again")

    async def _lend(self) -> Loan:
        """Borrow a connection; from the pool that took the place of the one asked first, when that has closed."""
        while True:
            pool = self._open_pool()
            try:
                return await pool.lend()
            except Unavailable:
                if self._pool is pool:
                    raise

    @contextmanager
    def _limited(self) -> Generator[None]:
        """What runs in here ends at `limit`, and when the database is closed: a frozen server keeps no timeout."""
        scope = trio.CancelScope(deadline=trio.current_time() + self._limit)
        self._under_way.add(scope)
        try:
            with scope:
                yield
        except (QueryCanceled, LockNotAvailable) as error:
            raise Unavailable(f"PostgreSQL did not do it in time ({one_line(error)}); try again") from error
        except Unavailable:
            self.doubted.set()
            raise
        finally:
            self._under_way.discard(scope)
        if scope.cancelled_caught:
            self.doubted.set()
            raise Unavailable(self.away or f"PostgreSQL has not answered for {self._limit:.0f} s")

    def _open_pool(self) -> Pool:
        if self._pool is None:
            raise Unavailable(self._away)
        return self._pool


def _nobody() -> None:
    """Who is told while nobody follows the changes."""


async def rows(
    connection: Connection[Any],
    struct: type[Row],
    query: LiteralString,
    parameters: dict[str, object],
    *,
    prepare: bool | None = None,
    binary: bool = False,
) -> list[Row]:
    """The rows that a statement gives on this connection, each as a Struct."""
    async with connection.cursor(row_factory=dict_row, binary=binary) as cursor:
        await cursor.execute(query, parameters, prepare=prepare)
        return [msgspec.convert(row, struct) for row in await cursor.fetchall()]
