from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import psycopg
import pytest
import trio
from servers import PostgresServer

from bloomd.errors import Misconfigured, Unavailable
from bloomd.postgres import Connection, listen

Heard = trio.MemoryReceiveChannel[tuple[str, str]]


@asynccontextmanager
async def listening(conninfo: str, *channels: str, **options: Any) -> AsyncIterator[Heard]:
    send, receive = trio.open_memory_channel[tuple[str, str]](100)
    async with trio.open_nursery() as nursery:
        hear = lambda channel, payload: send.send_nowait((channel, payload))  # noqa: E731
        await nursery.start(partial(listen, conninfo, channels, hear, **options))
        with trio.fail_after(15):
            yield receive
        nursery.cancel_scope.cancel()


def notify(server: PostgresServer, channel: str, payload: str) -> None:
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        connection.execute("SELECT pg_notify(%s, %s)", [channel, payload])


async def test_what_is_notified_after_started_arrives_in_order(mortal_server: PostgresServer) -> None:
    async with listening(mortal_server.conninfo(), "tasks", 'Odd "name"') as heard:
        for n in range(50):
            notify(mortal_server, "tasks", str(n))
        assert [await heard.receive() for _ in range(50)] == [("tasks", str(n)) for n in range(50)]
        notify(mortal_server, "elsewhere", "nobody listens")
        notify(mortal_server, 'Odd "name"', "")
        assert await heard.receive() == ('Odd "name"', "")


async def test_it_goes_on_after_a_keepalive(mortal_server: PostgresServer) -> None:
    async with listening(mortal_server.conninfo(), "tasks", keepalive=0.02) as heard:
        await trio.sleep(0.1)
        notify(mortal_server, "tasks", "still there")
        assert await heard.receive() == ("tasks", "still there")


async def test_a_restart_ends_it_and_the_next_one_hears_again(mortal_server: PostgresServer) -> None:
    with pytest.RaisesGroup(Unavailable):
        async with listening(mortal_server.conninfo(), "tasks"):
            mortal_server.kill()
            await trio.sleep_forever()
    with pytest.RaisesGroup(Unavailable):
        async with listening(mortal_server.conninfo(), "tasks"):
            pytest.fail("there is no server")
    mortal_server.start()
    async with listening(mortal_server.conninfo(), "tasks") as heard:
        notify(mortal_server, "tasks", "again")
        assert await heard.receive() == ("tasks", "again")


async def test_a_frozen_server_is_noticed(mortal_server: PostgresServer) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(Unavailable, match=r"did not answer within 0\.1 s")):
        async with listening(mortal_server.conninfo(), "tasks", keepalive=0.05, answer_timeout=0.1):
            mortal_server.sigstop()
            await trio.sleep_forever()


async def test_a_refusal_is_told_apart(mortal_server: PostgresServer) -> None:
    with pytest.RaisesGroup(Misconfigured):
        async with listening(mortal_server.conninfo("nothere"), "tasks"):
            pytest.fail("there is no such database")


async def test_cancelled_it_leaves_no_session(mortal_server: PostgresServer) -> None:
    async with listening(mortal_server.conninfo(), "tasks"):
        pass
    async with await Connection.connect(mortal_server.conninfo()) as connection:
        left = "SELECT FROM pg_stat_activity WHERE application_name = 'bloomd listener'"
        with trio.fail_after(10):
            while (await connection.execute(left)).rowcount:
                await trio.sleep(0.01)
