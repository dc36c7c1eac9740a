from typing import Any

import psycopg
import pytest
import trio
from polling import eventually, one
from psycopg.errors import QueryCanceled, UniqueViolation

from bloomd.errors import Unavailable
from bloomd.postgres import Pool, PoolStats


async def backend(pool: Pool) -> int:
    async with pool.connection() as connection:
        return connection.info.backend_pid


async def test_a_life(database: str) -> None:
    pool = Pool(database, size=2)
    assert repr(pool) == "<Pool 0 of 2 busy, 0 idle, 0 waiting>"
    async with pool.connection():
        assert repr(pool) == "<Pool 1 of 2 busy, 0 idle, 0 waiting>"
        async with pool.connection(), trio.open_nursery() as nursery:
            nursery.start_soon(backend, pool)
            await trio.testing.wait_all_tasks_blocked()
            assert repr(pool) == "<Pool 2 of 2 busy, 0 idle, 1 waiting>"
            assert pool.stats == PoolStats(size=2, idle=0, busy=2, waiting=1)
            nursery.cancel_scope.cancel()
        assert repr(pool) == "<Pool 1 of 2 busy, 1 idle, 0 waiting>"
        await pool.close()
        assert repr(pool) == "<Pool closed, 1 of 2 busy, 0 idle, 0 waiting>"
    assert repr(pool) == "<Pool closed, 0 of 2 busy, 0 idle, 0 waiting>"
    with pytest.raises(Unavailable, match="pool is closed"):
        await backend(pool)


async def test_the_last_one_returned_is_lent_first(pool: Pool) -> None:
    async with pool.connection() as first, pool.connection() as second:
        assert first.info.backend_pid != second.info.backend_pid
    # `second` came back first.
    assert await backend(pool) == first.info.backend_pid
    assert await backend(pool) == first.info.backend_pid
    assert pool.stats.idle == 2


async def test_nothing_connects_before_it_is_needed_and_nothing_runs_in_the_background(database: str) -> None:
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with Pool(database, size=2) as pool:
        assert pool.stats.idle == 0
        await backend(pool)
        assert trio.lowlevel.current_statistics().tasks_living == tasks


async def test_exhaustion_is_told_apart_from_an_outage(database: str) -> None:
    async with Pool(database, size=1, acquire_timeout=0.05) as pool:
        async with pool.connection() as connection:
            with pytest.raises(Unavailable, match=r"busy: all 1 connections were in use for 0\.05 s"):
                await backend(pool)
            assert await one(connection, "SELECT 1") == 1
        assert await backend(pool)


async def test_who_waits_gets_the_connection_that_comes_back(database: str) -> None:
    async with Pool(database, size=1) as pool:
        served: list[int] = []

        async def use(n: int) -> None:
            async with pool.connection() as connection:
                served.append(await one(connection, "SELECT %s::int", n))

        async with trio.open_nursery() as nursery, pool.connection():
            for n in range(20):
                nursery.start_soon(use, n)
                await trio.testing.wait_all_tasks_blocked()
        assert served == list(range(20)), "in the order in which they came"
        assert pool.stats.idle == 1


async def test_closing_lets_those_who_wait_know(database: str) -> None:
    pool = Pool(database, size=1)

    async def too_late() -> None:
        with pytest.raises(Unavailable, match="closed"):
            await backend(pool)

    async with trio.open_nursery() as nursery, pool.connection():
        nursery.start_soon(too_late)
        await trio.testing.wait_all_tasks_blocked()
        await pool.close()
    assert pool.stats == PoolStats(size=1, idle=0, busy=0, waiting=0)


async def test_a_transaction_commits_or_rolls_back(pool: Pool) -> None:
    async with pool.transaction() as connection:
        await connection.execute("CREATE TABLE t (n int PRIMARY KEY)")
        await connection.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(ZeroDivisionError):
        async with pool.transaction() as connection:
            await connection.execute("INSERT INTO t VALUES (2)")
            raise ZeroDivisionError
    with pytest.raises(UniqueViolation):
        async with pool.transaction() as connection:
            await connection.execute("INSERT INTO t VALUES (1)")
    async with pool.transaction() as connection:
        await connection.execute("INSERT INTO t VALUES (3)")
        raise psycopg.Rollback
    async with pool.connection() as connection:
        assert await one(connection, "SELECT array_agg(n) FROM t") == [1]
    assert pool.stats.idle == 1


@pytest.mark.parametrize("left_in", ["a transaction", "a failed transaction", "a query"])
async def test_what_is_not_idle_does_not_go_back(pool: Pool, left_in: str) -> None:
    async with pool.connection() as connection:
        left = connection.info.backend_pid
        await connection.set_autocommit(False)
        match left_in:
            case "a transaction":
                await connection.execute("SELECT 1")
            case "a failed transaction":
                with pytest.raises(psycopg.Error):
                    await connection.execute("SELECT 1 / 0")
            case _:
                connection.pgconn.send_query(b"SELECT pg_sleep(600)")
    assert pool.stats == PoolStats(size=4, idle=0, busy=0, waiting=0)
    async with pool.connection() as connection:
        assert connection.info.backend_pid != left

        async def gone() -> bool:
            return not await one(connection, "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", left)

        await eventually(gone)


async def test_an_idle_connection_that_the_server_closed_is_not_lent(pool: Pool) -> None:
    async with pool.connection() as first, pool.connection() as second, pool.connection() as third:
        pids = [connection.info.backend_pid for connection in (first, second, third)]
    async with pool.connection() as survivor:
        for pid in pids:
            if pid != survivor.info.backend_pid:
                await survivor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        assert await backend(pool) not in pids
        assert pool.stats.idle == 1


async def test_statement_timeout_and_name_cost_no_round_trip_and_yield_to_the_users(database: str) -> None:
    async with Pool(database, size=1, statement_timeout=0.05, application_name="bloomd-test") as pool:
        async with pool.connection() as connection:
            assert await one(connection, "SHOW statement_timeout") == "50ms"
            assert await one(connection, "SHOW application_name") == "bloomd-test"
        with pytest.raises(QueryCanceled):
            async with pool.connection() as connection:
                await connection.execute("SELECT pg_sleep(5)")
        assert pool.stats.idle == 1
    theirs = psycopg.conninfo.make_conninfo(
        database, options="-c statement_timeout=7s -c work_mem=5MB", application_name="theirs"
    )
    async with Pool(theirs, size=1, statement_timeout=0.05) as pool, pool.connection() as connection:
        assert await one(connection, "SHOW statement_timeout") == "7s"
        assert await one(connection, "SHOW work_mem") == "5MB"
        assert await one(connection, "SHOW application_name") == "theirs"


async def test_cancelled_while_it_connects_or_waits_no_place_is_lost(database: str) -> None:
    async with Pool(database, size=1) as pool:
        for _ in range(20):
            with trio.CancelScope() as scope:
                scope.cancel()
                await backend(pool)
            with trio.move_on_after(0.001):
                await backend(pool)
        async with pool.connection():
            with trio.move_on_after(0.01):
                await backend(pool)
        assert pool.stats.busy == 0
        assert await backend(pool)


async def test_a_notice_is_no_reason_to_distrust_a_connection_that_is_in_use(pool: Pool) -> None:
    heard: list[Any] = []
    async with pool.connection() as connection:
        connection.add_notice_handler(lambda notice: heard.append(notice.message_primary))
        await connection.execute("DO $$ BEGIN RAISE NOTICE 'hello'; END $$")
    assert heard == ["hello"]
    assert pool.stats.idle == 1
