"""Transactions whose end is not up to the caller's cancel scope, and that never claim a commit that was none."""

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import psycopg
from psycopg import pq
from psycopg.errors import InFailedSqlTransaction

if TYPE_CHECKING:
    from bloomd.postgres.connection import Connection


class Transaction(psycopg.AsyncTransaction):
    """`async with connection.transaction()`.

    BEGIN can be cancelled; COMMIT and ROLLBACK cannot (`Connection.conclude`): trio delivers a cancellation at every
    checkpoint, so a plain exit would leave the connection in a transaction, and the next `transaction()` would silently
    become a savepoint in it.
    """

    _conn: "Connection[Any]"

    async def __aenter__(self) -> Self:
        async with self._conn.lock:
            self._check_enter()
            try:
                await self._conn.wait(self._enter_gen())
            except BaseException as error:
                # A status other than NOT_STARTED: psycopg counts the block as entered, and BEGIN may be on the wire.
                if self.status is not self.Status.NOT_STARTED and self.pgconn.status == pq.ConnStatus.OK:
                    await self._conn.finish(self._exit_gen(type(error), error, None))
                raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool:
        if self.pgconn.status != pq.ConnStatus.OK:
            self.status = self.Status.FAILED
            if exc_val is None:
                raise psycopg.OperationalError("the connection was closed: the transaction was not committed")
            return False
        failed = self.pgconn.transaction_status == pq.TransactionStatus.INERROR
        swallowed = await self._conn.conclude(self._exit_gen(exc_type, exc_val, exc_tb))
        if failed and exc_val is None:
            # The server answers COMMIT of a failed transaction with a plain ROLLBACK, which is no error to libpq.
            raise InFailedSqlTransaction("a statement failed or was cancelled: the transaction was rolled back")
        return swallowed
