"""What a cancellation means at each moment of an operation (the table at the head of bloomd.postgres.connection)."""

import os
import signal
from select import select
from typing import Any

import psycopg
import pytest
import trio
from polling import one
from psycopg.errors import InFailedSqlTransaction
from psycopg.pq import TransactionStatus
from servers import PostgresServer

from bloomd.postgres import Connection, Pool
from bloomd.postgres.connection import CANCEL_SECONDS

FAR_LONGER_THAN_THE_TEST = "SELECT pg_sleep(600)"


async def test_before_the_first_byte_nothing_has_happened(connection: Connection[Any]) -> None:
    await connection.execute("CREATE TABLE t (n int)")
    with trio.CancelScope() as scope:
        scope.cancel()
        await connection.execute("INSERT INTO t VALUES (1)")
    assert scope.cancelled_caught
    assert await one(connection, "SELECT count(*) FROM t") == 0


async def test_a_running_query_is_cancelled_on_the_server(connection: Connection[Any], database: str) -> None:
    with trio.move_on_after(0.3) as scope:
        await connection.execute(FAR_LONGER_THAN_THE_TEST)
    assert scope.cancelled_caught
    assert connection.info.transaction_status == TransactionStatus.IDLE
    assert await one(connection, "SELECT 42") == 42
    async with await Connection.connect(database) as observer:
        active = "SELECT count(*) FROM pg_stat_activity WHERE query = %s AND state = 'active'"
        assert await one(observer, active, FAR_LONGER_THAN_THE_TEST) == 0


async def test_a_cancelled_query_costs_milliseconds(connection: Connection[Any]) -> None:
    began = trio.current_time()
    for _ in range(20):
        with trio.move_on_after(0.005):
            await connection.execute(FAR_LONGER_THAN_THE_TEST)
    assert trio.current_time() - began < 4  # 20 × (5 ms + a cancel), on a busy machine
    assert not connection.closed


async def test_a_result_that_won_the_race_is_returned(connection: Connection[Any], monkeypatch: Any) -> None:
    """The request to cancel reaches the server only when the query is over: as if the network were slow."""
    cancel_safe = connection.cancel_safe
    asked: list[float] = []

    async def cancel_late(*, timeout: float = 30.0) -> None:
        asked.append(timeout)
        await trio.sleep(0.2)
        await cancel_safe(timeout=timeout)

    monkeypatch.setattr(connection, "cancel_safe", cancel_late)
    await connection.execute("CREATE TABLE t (n int)")
    claimed = None
    with trio.move_on_after(0.05) as scope:
        cursor = await connection.execute("INSERT INTO t SELECT 7 FROM pg_sleep(0.1) RETURNING n")
        claimed = await cursor.fetchone()
        await trio.lowlevel.checkpoint()
        pytest.fail("trio raises at the next checkpoint")
    assert scope.cancelled_caught
    assert asked
    assert claimed == (7,)
    assert await one(connection, "SELECT count(*) FROM t") == 1


async def test_an_error_that_won_the_race_is_raised(connection: Connection[Any], monkeypatch: Any) -> None:
    async def do_not_ask(*, timeout: float = 30.0) -> None:
        pass

    monkeypatch.setattr(connection, "cancel_safe", do_not_ask)
    with trio.move_on_after(0.2), pytest.raises(psycopg.errors.DivisionByZero):
        await connection.execute("SELECT 1 / (SELECT 0 FROM pg_sleep(0.1))")
    assert not connection.closed


async def test_a_cancel_that_fell_between_two_steps_is_asked_for_again(
    connection: Connection[Any], monkeypatch: Any
) -> None:
    cancel_safe = connection.cancel_safe
    asked = 0

    async def miss_once(*, timeout: float = 30.0) -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            await cancel_safe(timeout=timeout)

    monkeypatch.setattr(connection, "cancel_safe", miss_once)
    with trio.move_on_after(0.2) as scope:
        await connection.execute(FAR_LONGER_THAN_THE_TEST)
    assert scope.cancelled_caught
    assert asked == 2
    assert await one(connection, "SELECT 1") == 1


async def test_a_cancel_that_cannot_be_delivered_closes_the_connection(
    connection: Connection[Any], monkeypatch: Any
) -> None:
    async def fail(*, timeout: float = 30.0) -> None:
        raise psycopg.OperationalError("cancellation failed")

    monkeypatch.setattr(connection, "cancel_safe", fail)
    with trio.move_on_after(0.2) as scope:
        await connection.execute(FAR_LONGER_THAN_THE_TEST)
    assert scope.cancelled_caught
    assert connection.closed


async def test_cancelled_in_the_middle_of_sending_the_connection_is_closed(mortal_server: PostgresServer) -> None:
    connection = await Connection.connect(mortal_server.conninfo())
    mortal_server.sigstop()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.execute, "SELECT length(%s)", ["x" * 50_000_000])
        while select([], [connection], [], 0)[1]:  # there is room for more
            await trio.sleep(0.01)
        began = trio.current_time()
        nursery.cancel_scope.cancel()
    assert connection.closed
    assert trio.current_time() - began < CANCEL_SECONDS / 2, "there is nothing to wait for"


async def test_without_an_answer_the_connection_is_closed_in_the_end(
    mortal_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bloomd.postgres.connection.CANCEL_SECONDS", 0.2)
    connection = await Connection.connect(mortal_server.conninfo())
    mortal_server.sigstop()
    with trio.move_on_after(0.4) as scope:
        await connection.execute("SELECT 1")
    assert scope.cancelled_caught
    assert connection.closed


async def test_a_session_that_does_not_react_to_the_cancel_is_closed_in_the_end(
    mortal_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server takes the request, but the session that it is for is stuck."""
    monkeypatch.setattr("bloomd.postgres.connection.CANCEL_SECONDS", 0.2)
    connection = await Connection.connect(mortal_server.conninfo())
    os.kill(connection.info.backend_pid, signal.SIGSTOP)
    try:
        with trio.move_on_after(0.4) as scope:
            await connection.execute("SELECT 1")
        assert scope.cancelled_caught
        assert connection.closed
    finally:
        mortal_server.sigcont()


async def test_cancelled_in_pipeline_mode_the_connection_is_closed(connection: Connection[Any]) -> None:
    with trio.move_on_after(0.3) as scope:
        await connection.cursor().executemany("SELECT pg_sleep(%s)", [(600,), (600,)])
    assert scope.cancelled_caught
    assert connection.closed


async def test_a_copy_in_that_is_cancelled_leaves_the_connection_usable(connection: Connection[Any]) -> None:
    await connection.execute("CREATE TABLE t (n int)")
    with trio.move_on_after(0.3) as scope:
        async with connection.cursor().copy("COPY t FROM STDIN") as copy:
            await copy.write_row([1])
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert await one(connection, "SELECT count(*) FROM t") == 0


async def test_a_copy_out_that_is_cancelled_leaves_the_connection_usable(connection: Connection[Any]) -> None:
    with trio.move_on_after(0.3) as scope:
        slowly = "COPY (SELECT pg_sleep(0.01), generate_series(1, 100000)) TO STDOUT"
        async with connection.cursor().copy(slowly) as copy:
            async for _ in copy:
                pass
    assert scope.cancelled_caught
    assert await one(connection, "SELECT 1") == 1


async def test_cancelled_at_the_end_of_a_copy(connection: Connection[Any]) -> None:
    await connection.execute("CREATE TABLE t (n int)")
    with trio.CancelScope() as scope:
        async with connection.cursor().copy("COPY t FROM STDIN") as copy:
            await copy.write_row([1])
            scope.cancel()
    assert scope.cancelled_caught
    assert await one(connection, "SELECT count(*) FROM t") == 0


async def test_a_cancelled_transaction_is_rolled_back(connection: Connection[Any]) -> None:
    await connection.execute("CREATE TABLE t (n int)")
    with trio.move_on_after(0.3) as scope:
        async with connection.transaction():
            await connection.execute("INSERT INTO t VALUES (1)")
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert connection.info.transaction_status == TransactionStatus.IDLE
    assert await one(connection, "SELECT count(*) FROM t") == 0


async def test_a_commit_is_not_cancelled(connection: Connection[Any]) -> None:
    await connection.execute("CREATE TABLE t (n int)")
    committed = False
    with trio.CancelScope() as scope:
        async with connection.transaction():
            await connection.execute("INSERT INTO t VALUES (1)")
            scope.cancel()
        committed = True
        await trio.lowlevel.checkpoint()
    assert committed
    assert scope.cancelled_caught
    assert connection.info.transaction_status == TransactionStatus.IDLE
    assert await one(connection, "SELECT count(*) FROM t") == 1


async def test_explicit_commit_and_rollback_are_not_cancelled(database: str) -> None:
    connection = await Connection.connect(database, autocommit=False)
    for end in (connection.commit, connection.rollback):
        with trio.CancelScope() as scope:
            await connection.execute("SELECT 1")
            scope.cancel()
            await end()
        assert connection.info.transaction_status == TransactionStatus.IDLE
    await connection.close()


async def test_a_cancelled_begin_leaves_no_transaction(connection: Connection[Any]) -> None:
    for cancelled_before in (True, False):
        with trio.CancelScope() as scope:
            if cancelled_before:
                scope.cancel()
            async with connection.transaction():
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert connection.info.transaction_status == TransactionStatus.IDLE
        async with connection.transaction() as transaction:
            assert not transaction.savepoint_name, "it is not nested in one that was left open"


async def test_cancelled_between_the_lock_and_the_begin(connection: Connection[Any]) -> None:
    for _ in range(20):  # trio shuffles who runs first: often enough for either order
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                # Runs when this task yields first, which is when it takes the connection's lock.
                nursery.start_soon(cancel, scope)
                async with connection.transaction():
                    await trio.sleep_forever()
        assert scope.cancelled_caught
        async with connection.transaction() as transaction:
            assert not transaction.savepoint_name
        assert connection.info.transaction_status == TransactionStatus.IDLE


async def cancel(scope: trio.CancelScope) -> None:
    scope.cancel()


async def test_a_savepoint_that_is_cancelled_leaves_the_outer_transaction(connection: Connection[Any]) -> None:
    await connection.execute("CREATE TABLE t (n int)")
    async with connection.transaction():
        await connection.execute("INSERT INTO t VALUES (1)")
        with trio.move_on_after(0.05):
            async with connection.transaction():
                await connection.execute("INSERT INTO t VALUES (2)")
                await connection.execute(FAR_LONGER_THAN_THE_TEST)
        await connection.execute("INSERT INTO t VALUES (3)")
    rows = await (await connection.execute("SELECT n FROM t ORDER BY n")).fetchall()
    assert rows == [(1,), (3,)]


async def test_a_block_that_swallowed_a_cancellation_does_not_pretend_to_have_committed(
    connection: Connection[Any],
) -> None:
    with pytest.raises(InFailedSqlTransaction, match="rolled back"):
        async with connection.transaction():
            with trio.move_on_after(0.05):
                await connection.execute(FAR_LONGER_THAN_THE_TEST)
    assert connection.info.transaction_status == TransactionStatus.IDLE


async def test_a_block_that_lost_its_connection_does_not_pretend_to_have_committed(connection: Connection[Any]) -> None:
    with pytest.raises(psycopg.OperationalError, match="not committed"):
        async with connection.transaction():
            connection.abandon()


async def test_the_pool_takes_back_a_connection_whose_query_was_cancelled(pool: Pool) -> None:
    for _ in range(10):
        with trio.move_on_after(0.01):
            async with pool.connection() as connection:
                await connection.execute(FAR_LONGER_THAN_THE_TEST)
    assert pool.stats.idle == 1


async def test_a_commit_to_a_frozen_server_gives_up_in_the_end(
    mortal_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bloomd.postgres.connection.FINISH_SECONDS", 0.2)
    connection = await Connection.connect(mortal_server.conninfo())
    began = trio.current_time()
    with trio.move_on_after(0.4) as scope:
        async with connection.transaction():
            await connection.execute("SELECT 1")
            mortal_server.sigstop()
    assert scope.cancelled_caught
    assert trio.current_time() - began < 3
    assert connection.closed
