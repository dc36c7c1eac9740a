import math
import sys
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import psycopg
import pytest
import trio
from polling import eventually, one
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from bloomd.postgres import Connection


async def until_running(observer: Connection[Any], query: str, number: int) -> None:
    running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = %s"

    async def as_many() -> bool:
        return await one(observer, running, query) == number

    await eventually(as_many)


async def test_no_event_loop_but_trio_is_ever_asked_for(database: str) -> None:
    # asyncio raises when a loop is asked for and none runs, so working at all is the proof; see that none was made.
    connection = await Connection.connect(database)
    async with connection:
        assert await one(connection, "SELECT 1") == 1
        await connection.set_autocommit(False)
        assert await one(connection, "SELECT 2") == 2
        await connection.commit()
        await connection.cursor().executemany("SELECT %s", [(1,), (2,)])
        await connection.rollback()
        await connection.cancel_safe()
    asyncio = sys.modules["asyncio"]
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


async def test_json_goes_through_msgspec(connection: Connection[Any]) -> None:
    class Task(msgspec.Struct):
        id: str
        labels: list[str]

    assert await one(connection, "SELECT %s::jsonb", Jsonb(Task("a", ["x", "ü"]))) == {"id": "a", "labels": ["x", "ü"]}
    assert psycopg.AsyncConnection.connect is not Connection.connect
    # Only on our own connections: the process-wide adapters are as they were.
    assert Jsonb({}).dumps is None


async def test_two_rows_of_a_kind(connection: Connection[Any]) -> None:
    class Pair(msgspec.Struct):
        a: int
        b: str

    rows = await connection.cursor(row_factory=class_row(Pair)).execute("SELECT 1 AS a, 'x' AS b")
    assert await rows.fetchall() == [Pair(1, "x")]
    rows = await connection.cursor(row_factory=dict_row).execute("SELECT 1 AS a")
    assert await rows.fetchone() == {"a": 1}


async def test_copy_in_and_out(connection: Connection[Any]) -> None:
    await connection.execute("CREATE TABLE numbers (n int)")
    cursor = connection.cursor()
    async with cursor.copy("COPY numbers FROM STDIN") as copy:
        for n in range(50_000):
            await copy.write_row([n])
    assert cursor.rowcount == 50_000
    read = 0
    async with connection.cursor().copy("COPY numbers TO STDOUT") as copy:
        async for _ in copy.rows():
            read += 1
    assert read == 50_000


async def test_a_copy_that_fails_leaves_the_connection_usable(connection: Connection[Any]) -> None:
    await connection.execute("CREATE TABLE numbers (n int)")
    with pytest.raises(ZeroDivisionError):
        async with connection.cursor().copy("COPY numbers FROM STDIN") as copy:
            await copy.write_row([1])
            raise ZeroDivisionError
    with pytest.raises(psycopg.DataError):
        async with connection.cursor().copy("COPY numbers FROM STDIN") as copy:
            await copy.write("not a number\n")
    assert await one(connection, "SELECT count(*) FROM numbers") == 0


async def test_a_copy_that_is_not_read_to_its_end_leaves_the_connection_usable(connection: Connection[Any]) -> None:
    async with connection.cursor().copy("COPY (SELECT generate_series(1, 3000000)) TO STDOUT") as copy:
        assert bytes(await copy.read()) == b"1\n"
    assert await one(connection, "SELECT 1") == 1


async def test_a_large_query_and_a_large_answer(connection: Connection[Any]) -> None:
    text = "x" * 20_000_000
    assert await one(connection, "SELECT %s", text) == text


async def test_stream_is_not_offered(connection: Connection[Any]) -> None:
    with pytest.raises(psycopg.NotSupportedError, match="server-side cursor"):
        connection.cursor().stream("SELECT 1")
    async with connection.transaction(), connection.cursor("rows") as cursor:
        await cursor.execute("SELECT generate_series(1, 250)")
        assert [n async for (n,) in cursor] == list(range(1, 251))


async def test_a_long_copy_shares_the_loop(connection: Connection[Any]) -> None:
    await connection.execute("CREATE TABLE numbers (n int)")
    turns = 0
    worst = 0.0

    async def count_turns() -> None:
        nonlocal turns, worst
        last = trio.current_time()
        while True:
            await trio.lowlevel.checkpoint()
            now = trio.current_time()
            worst = max(worst, now - last)
            turns, last = turns + 1, now

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        began = trio.current_time()
        async with connection.cursor().copy("COPY numbers FROM STDIN") as copy:
            for n in range(100_000):
                await copy.write_row([n])
        took = trio.current_time() - began
        nursery.cancel_scope.cancel()
    assert turns >= took / 0.1, f"{turns} turns for others in {took:.2f} s"
    assert worst < 0.5


async def test_one_connection_serves_tasks_one_after_the_other(connection: Connection[Any]) -> None:
    answers: list[int] = []

    async def ask(n: int) -> None:
        answers.append(await one(connection, "SELECT %s::int FROM pg_sleep(0.005)", n))

    async with trio.open_nursery() as nursery:
        for n in range(20):
            nursery.start_soon(ask, n)
    assert sorted(answers) == list(range(20))


async def test_another_tasks_abandoned_notifies_keeps_the_lock_free(connection: Connection[Any]) -> None:
    await connection.execute("LISTEN news")
    await connection.execute("NOTIFY news, 'first'")
    notifications = connection.notifies()

    async def hear_one() -> None:
        notification = await anext(notifications)
        assert notification.payload == "first"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hear_one)
    # The generator stands at its yield, its task is gone, and the connection can be used.
    assert await one(connection, "SELECT 1") == 1
    await notifications.aclose()


async def test_a_generator_that_another_task_closes_gives_the_lock_back(connection: Connection[Any]) -> None:
    async def rows() -> AsyncGenerator[Any, None]:
        async with connection.cursor().copy("COPY (SELECT generate_series(1, 1000000)) TO STDOUT") as copy:
            while row := await copy.read_row():
                yield row

    generator = rows()

    async def take_one() -> None:
        assert await anext(generator) == ("1",)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_one)
    await generator.aclose()
    assert await one(connection, "SELECT 1") == 1


async def test_notifies_ends_at_its_timeout_and_reads_what_is_there(connection: Connection[Any]) -> None:
    assert [n async for n in connection.notifies(timeout=0)] == []
    await connection.execute("LISTEN news")
    await connection.execute("NOTIFY news, 'a'")
    await connection.execute("NOTIFY news, 'b'")
    assert [n.payload async for n in connection.notifies(timeout=0)] == ["a", "b"]
    assert [n async for n in connection.notifies(timeout=0.01)] == []


async def test_closing_wakes_the_task_that_waits_and_cancels_its_query(
    database: str, connection: Connection[Any]
) -> None:
    victim = await Connection.connect(database)

    async def wait_for_ever() -> None:
        with pytest.raises(psycopg.OperationalError, match=r"canceling|closed"):
            await victim.execute("SELECT pg_sleep(60)")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_ever)
        await until_running(connection, "SELECT pg_sleep(60)", 1)
        await victim.close()
    await until_running(connection, "SELECT pg_sleep(60)", 0)
    assert victim.closed
    await victim.close()


async def test_abandoning_wakes_the_task_that_waits(database: str, connection: Connection[Any]) -> None:
    victim = await Connection.connect(database)

    async def wait_for_ever() -> None:
        with pytest.raises(psycopg.OperationalError, match="closed while it was in use"):
            await victim.execute("SELECT pg_sleep(60)")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_ever)
        await until_running(connection, "SELECT pg_sleep(60)", 1)
        victim.abandon()


async def test_host_names_are_resolved_in_a_thread_and_addresses_are_not(
    monkeypatch: pytest.MonkeyPatch, database: str
) -> None:
    asked: list[str] = []

    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, host: Any, *args: Any, **kwargs: Any) -> Any:
            asked.append(host)
            await trio.lowlevel.checkpoint()
            raise OSError(-2, "Name or service not known")

        async def getnameinfo(self, *args: Any) -> Any:
            raise NotImplementedError

    trio.socket.set_custom_hostname_resolver(Resolver())
    for conninfo in ("host=db.example", "host=127.0.0.1 port=1", "host=/nonexistent"):
        with pytest.raises(psycopg.OperationalError):
            await Connection.connect(conninfo)
    assert asked == [b"db.example"]


async def test_connecting_goes_on_to_the_next_host(database: str) -> None:
    params = psycopg.conninfo.conninfo_to_dict(database)
    several = psycopg.conninfo.make_conninfo(database, host=f"127.0.0.1,{params['host']}", port="1,5432")
    async with await Connection.connect(several) as connection:
        assert await one(connection, "SELECT 1") == 1
    with pytest.raises(psycopg.OperationalError, match=r"127\.0\.0\.1:1: Connection refused; /nonexistent"):
        await Connection.connect("host=127.0.0.1,/nonexistent port=1,5432")


async def test_a_standby_is_preferred_but_not_required(database: str) -> None:
    async with await Connection.connect(database, target_session_attrs="prefer-standby") as connection:
        assert await one(connection, "SELECT pg_is_in_recovery()") is False
    with pytest.raises(psycopg.OperationalError, match="standby"):
        await Connection.connect(database, target_session_attrs="standby")


@pytest.mark.parametrize("value", [math.inf, 1.5, None])
async def test_values_come_back_as_they_went(connection: Connection[Any], value: object) -> None:
    assert await one(connection, "SELECT %s::float8", value) == value
