"""A psycopg connection that is native to trio.

psycopg does the protocol (through libpq) and says what it waits for; this class decides how to wait, and what a
cancellation means at each moment:

    before the first byte is sent      nothing has happened: Cancelled
    while the server works             ask the server to cancel, and read its answer:
        it says "canceled"                 the connection is clean: Cancelled
        the result won the race            return it (trio raises at the next checkpoint): what was done is known
        another error won                  raise that
        no answer within CANCEL_SECONDS    close the connection: Cancelled
    half of a query sent, or pipeline  the protocol has no way back: close the connection: Cancelled
    COMMIT, ROLLBACK                   wait for the answer all the same, at most FINISH_SECONDS; else as above

A connection is therefore either usable or closed, never in between. It overrides private API of psycopg, so psycopg is
pinned exactly.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Any, Self, TypeVar

import msgspec
import psycopg
import trio
from psycopg import Notify, _queries, generators, pq
from psycopg._conninfo_utils import get_param
from psycopg.abc import AdaptContext, ConnDict, ConnParam, PQGen
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import make_conninfo
from psycopg.errors import (
    CancellationTimeout,
    ConnectionTimeout,
    QueryCanceled,
    _WaitTimeout,  # pyright: ignore[reportPrivateUsage]  # what psycopg's own code expects from wait()
)
from psycopg.rows import AsyncRowFactory, Row
from psycopg.types.json import set_json_dumps, set_json_loads
from psycopg.waiting import Wait

from bloomd.postgres import conninfo as strings
from bloomd.postgres.cursor import Cursor
from bloomd.postgres.errors import ConnectFailed, Failure
from bloomd.postgres.transaction import Transaction
from bloomd.postgres.waiting import Operation, Turn, ready_now, run_connecting

T = TypeVar("T")

CONNECT_SECONDS = 5.0
# A healthy server answers a cancel request within milliseconds, a distant or busy one within a second or two.
CANCEL_SECONDS = 4.0
# The cancel can fall between two steps of one operation (prepare, then execute) and hit neither: then ask again.
CANCEL_AGAIN_SECONDS = 0.5
# A commit may have to wait for disks and a synchronous standby; giving up leaves us not knowing how it ended.
FINISH_SECONDS = 5.0
# Asking to cancel is a courtesy to the server when a connection is closed in the middle of a query.
CLOSE_SECONDS = 1.0
CLOSE_POLL_SECONDS = 0.02

# Up to this length psycopg keeps what it has read of a statement: 4096 by itself, because long ones usually come from a
# program and do not come again. Ours are constants.
_queries.MAX_CACHED_STATEMENT_LENGTH = 1 << 14

ACTIVE = pq.TransactionStatus.ACTIVE
IDLE = pq.TransactionStatus.IDLE


class _Adapters:
    """What every connection starts with: psycopg's own adapters, and JSON by msgspec."""

    def __init__(self) -> None:
        self.adapters = AdaptersMap(psycopg.adapters)
        self.connection = None
        set_json_loads(msgspec.json.decode, self)
        set_json_dumps(msgspec.json.encode, self)


_ADAPTERS: AdaptContext = _Adapters()


class Lock:
    """Lets one task in at a time, and at once when there is no other: with trio's own a turn of the event loop passes.

    trio.Lock must be released by the task that took it, which a generator that is collected cannot promise.
    """

    __slots__ = ("_semaphore",)

    def __init__(self) -> None:
        self._semaphore = trio.Semaphore(1, max_value=1)

    async def acquire(self) -> None:
        try:
            self._semaphore.acquire_nowait()
        except trio.WouldBlock:
            await self._semaphore.acquire()

    def release(self) -> None:
        self._semaphore.release()

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        self.release()


class Connection(psycopg.AsyncConnection[Row]):
    """A connection for one task at a time (others wait for its lock)."""

    def __init__(self, pgconn: Any, row_factory: AsyncRowFactory[Row] | None = None) -> None:
        super().__init__(pgconn, *([row_factory] if row_factory else []))
        self.lock = Lock()  # pyright: ignore[reportAttributeAccessIssue]
        self.cursor_factory = Cursor[Row]
        self._turn = Turn()

    @classmethod
    async def connect(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        conninfo: str = "",
        *,
        autocommit: bool = True,
        connect_timeout: float = CONNECT_SECONDS,
        prepare_threshold: int | None = 5,
        row_factory: AsyncRowFactory[Row] | None = None,
        **kwargs: ConnParam,
    ) -> Self:
        """Connect to the first server that takes us.

        Args:
            connect_timeout: seconds for each address, when the connection string does not say `connect_timeout`.

        Raises:
            BadConninfo: the connection string cannot be read.
            ConnectFailed: no server took us; it holds why, for each.
        """
        params = strings.parse(make_conninfo(conninfo, **kwargs) if kwargs else conninfo)
        timeout = float(get_param(params, "connect_timeout") or connect_timeout)
        connection = await cls._first_that_connects(params, timeout)
        connection._autocommit = autocommit
        connection._adapters = AdaptersMap(_ADAPTERS.adapters)
        connection.prepare_threshold = prepare_threshold
        if row_factory:
            connection.row_factory = row_factory
        return connection

    @classmethod
    async def _first_that_connects(cls, params: ConnDict, timeout: float) -> Self:
        failures: list[Failure] = []

        def failed(attempt: ConnDict, error: psycopg.Error) -> None:
            failures.append(Failure(get_param(attempt, "host") or "", strings.where(attempt), str(error)))

        attempts: list[ConnDict] = []
        try:
            with trio.fail_after(timeout):
                attempts = await strings.attempts(params)
        except trio.TooSlowError:
            failed(params, ConnectionTimeout(f"its name was not resolved within {timeout:g} s"))
        except psycopg.OperationalError as error:
            failed(params, error)
        for attempt in attempts:
            try:
                with trio.fail_after(timeout):
                    return await run_connecting(cls._connect_gen(make_conninfo("", **attempt)))
            except trio.TooSlowError:
                failed(attempt, ConnectionTimeout(f"no answer within {timeout:g} s"))
            except psycopg.Error as error:
                failed(attempt, error)
        raise ConnectFailed(failures) from None

    async def wait(self, gen: PQGen[T], interval: float = 0.0, timeout: float | None = None) -> T:
        """Run one operation. The caller holds the lock."""
        await trio.lowlevel.checkpoint_if_cancelled()  # from here on the query may be on the wire
        operation = self._operation(gen)
        try:
            if timeout is None:
                return await operation.result()
            with trio.move_on_after(timeout):
                return await operation.result()
        except trio.Cancelled:
            if self.pgconn.pipeline_status or operation.is_sending:
                self.abandon()
            elif self.pgconn.transaction_status == ACTIVE:
                try:
                    with trio.move_on_after(CANCEL_SECONDS, shield=True):
                        return await self._cancelled_result(operation)
                    self.abandon()
                except QueryCanceled:
                    pass
            raise
        raise _WaitTimeout("wait timeout expired")

    async def _cancelled_result(self, operation: Operation[T]) -> T:
        while True:
            try:
                await self.cancel_safe(timeout=CANCEL_SECONDS)
            except psycopg.Error:
                # Whether it will be delivered later, to an innocent query, nobody can tell now.
                self.abandon()
                raise QueryCanceled("the cancel request failed") from None
            with trio.move_on_after(CANCEL_AGAIN_SECONDS):
                return await operation.result()

    async def finish(self, gen: PQGen[T]) -> T:
        """Run one operation that must not be cut short. The caller holds the lock."""
        operation = self._operation(gen)
        try:
            return await operation.result()
        except trio.Cancelled:
            with trio.move_on_after(FINISH_SECONDS, shield=True):
                return await operation.result()
            self.abandon()
            raise

    async def conclude(self, gen: PQGen[T]) -> T:
        """`finish`, with the lock."""
        try:
            await self.lock.acquire()
        except trio.Cancelled:
            with trio.move_on_after(FINISH_SECONDS, shield=True) as patience:
                await self.lock.acquire()
            if patience.cancelled_caught:
                self.abandon()
                raise
        try:
            return await self.finish(gen)
        finally:
            self.lock.release()

    async def clean_up(self, *commands: str) -> None:
        """Run commands that give the session back as it was, also when cancelled. A closed connection needs none."""
        for command in commands:
            if not self.closed:
                await self.conclude(self._exec_command(command.encode()))

    def _operation(self, gen: PQGen[T]) -> Operation[T]:
        self._check_connection_ok()
        return Operation(gen, self.pgconn.socket, self._turn, lambda: self._closed)

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Ask the server to cancel what runs on this connection.

        Shielded for as long as `timeout`: given up half-way, the request could reach the server later and hit the next
        query.
        """
        if not self._should_cancel():
            return
        with trio.move_on_after(timeout, shield=True):
            await run_connecting(self._cancel_gen())
            return
        raise CancellationTimeout("cancellation timeout expired")

    async def commit(self) -> None:
        await self.conclude(self._commit_gen())

    async def rollback(self) -> None:
        await self.conclude(self._rollback_gen())

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncGenerator[Transaction]:
        if self._pipeline:
            raise psycopg.NotSupportedError("begin the transaction first, then the pipeline in it")
        async with Transaction(self, savepoint_name, force_rollback) as transaction:
            yield transaction

    async def notifies(
        self, *, timeout: float | None = None, stop_after: int | None = None
    ) -> AsyncGenerator[Notify, None]:
        """Notifications as they come, until `timeout` seconds have passed.

        The lock is held for each wait and not while the caller has the generator in its hands, so that the caller may
        use the connection in between, and drop the generator unfinished.
        """
        deadline = None if timeout is None else monotonic() + timeout
        backlog = self._notifies_backlog
        assert backlog is not None  # only psycopg's own notifies() takes it away
        received = 0
        while stop_after is None or received < stop_after:
            if not backlog:
                remaining = None if deadline is None else deadline - monotonic()
                if remaining is not None and remaining <= 0:
                    if not ready_now(self.pgconn.socket, Wait.R):
                        return
                    remaining = None  # something has come: reading it will not wait
                try:
                    async with self.lock:
                        await self.wait(generators.notifies(self.pgconn), timeout=remaining)
                except _WaitTimeout:
                    return
            while backlog:
                received += 1
                yield backlog.popleft()

    async def ping(self, timeout: float) -> None:
        """Make sure that the server still answers; close the connection when it does not.

        Raises:
            psycopg.OperationalError: no answer within `timeout` seconds.
        """
        try:
            async with self.lock:
                await self.wait(self._exec_command(b"SELECT 1"), timeout=timeout)
        except _WaitTimeout:
            self.abandon()
            raise psycopg.OperationalError(f"the server did not answer within {timeout:g} s") from None

    async def close(self) -> None:
        """Close the connection, also while another task waits for its answer: that task gets an OperationalError.

        A closed socket does not stop a query that runs on the server, so it is asked to cancel it first; again, when it
        had not yet begun with it. A sign that it has stopped is its answer, whoever reads that.
        """
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            while self.pgconn.transaction_status == ACTIVE:
                await self._try_cancel(timeout=CLOSE_SECONDS)
                if self.pgconn.transaction_status != ACTIVE or ready_now(self.pgconn.socket, Wait.R):
                    break
                await trio.sleep(CLOSE_POLL_SECONDS)
        self.abandon()

    def abandon(self) -> None:
        """Close our side at once, without a word to the server."""
        if self._closed:
            return
        self._closed = True
        with suppress(psycopg.OperationalError):  # libpq may have lost the socket before us
            trio.lowlevel.notify_closing(self.pgconn.socket)
        self.pgconn.finish()

    @property
    def is_reusable(self) -> bool:
        """Whether the next task can have it: idle, and nothing to read.

        An idle server has nothing to say, but that it is going away.
        """
        return (
            not self.closed
            and self.pgconn.transaction_status == IDLE
            and not self.pgconn.pipeline_status
            and not ready_now(self.pgconn.socket, Wait.R)
        )
