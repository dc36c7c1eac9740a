"""The server goes away in every way there is."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
from polling import eventually, one
from servers import PostgresServer

from bloomd.errors import Misconfigured, Unavailable
from bloomd.postgres import Connection, Pool


async def test_death_in_the_middle_of_a_query(mortal_server: PostgresServer) -> None:
    async with Pool(mortal_server.conninfo(), size=4) as pool:

        async def work() -> None:
            with pytest.raises(Unavailable, match="PostgreSQL: "):
                async with pool.connection() as connection:
                    await connection.execute("SELECT pg_sleep(600)")

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(work)
            async with pool.connection() as connection:

                async def working() -> bool:
                    asleep = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%%'"
                    return await one(connection, asleep) == 3

                await eventually(working)
            mortal_server.kill()
        with pytest.raises(Unavailable, match="cannot be reached"):
            async with pool.connection():
                pytest.fail("there is no server")
        mortal_server.start()
        async with pool.connection() as connection:
            assert await one(connection, "SELECT 1") == 1
        assert pool.stats.busy == 0


@pytest.mark.parametrize("end", [PostgresServer.stop, PostgresServer.kill])
async def test_after_a_restart_the_next_caller_notices_nothing(
    mortal_server: PostgresServer, end: Callable[[PostgresServer], None]
) -> None:
    async with Pool(mortal_server.conninfo(), size=3) as pool:
        async with pool.connection(), pool.connection(), pool.connection():
            pass
        assert pool.stats.idle == 3
        end(mortal_server)
        mortal_server.start()
        async with pool.connection() as connection:
            assert await one(connection, "SELECT 1") == 1
            assert pool.stats.idle == 0, "the others were found dead, too"


async def test_a_transaction_that_loses_its_server_is_unavailable(mortal_server: PostgresServer) -> None:
    async with Pool(mortal_server.conninfo(), size=1) as pool:
        with pytest.raises(Unavailable):
            async with pool.transaction() as connection:
                await connection.execute("SELECT 1")
                mortal_server.stop()
        mortal_server.start()
        async with pool.transaction() as connection:
            assert await one(connection, "SELECT 1") == 1


async def test_a_shutdown_that_waits_for_us_says_so(mortal_server: PostgresServer) -> None:
    async with Pool(mortal_server.conninfo(), size=2) as pool, pool.connection() as connection:
        with pytest.raises(Unavailable, match="terminating connection due to administrator command"):
            async with pool.connection() as victim:
                await connection.execute("SELECT pg_terminate_backend(%s, 5000)", [victim.info.backend_pid])
                await victim.execute("SELECT 1")


async def test_connecting_to_a_frozen_server_has_a_limit(mortal_server: PostgresServer) -> None:
    async with Pool(mortal_server.conninfo(), size=1, connect_timeout=0.2) as pool:
        mortal_server.sigstop()
        with trio.fail_after(5), pytest.raises(Unavailable, match=r"no answer within 0\.2 s"):
            async with pool.connection():
                pytest.fail("nobody answers")
        mortal_server.sigcont()
        async with pool.connection() as connection:
            assert await one(connection, "SELECT 1") == 1


async def test_a_query_to_a_frozen_server_ends_with_its_scope(
    mortal_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bloomd.postgres.connection.CANCEL_SECONDS", 0.3)
    async with Pool(mortal_server.conninfo(), size=2) as pool:
        async with pool.connection():
            pass
        mortal_server.sigstop()
        began = trio.current_time()
        with trio.move_on_after(0.1) as scope:
            async with pool.connection() as connection:
                await connection.execute("SELECT 1")
        assert scope.cancelled_caught
        assert trio.current_time() - began < 3
        assert pool.stats.idle == 0, "what may still be answered is not lent again"
        mortal_server.sigcont()
        async with pool.connection() as connection:
            assert await one(connection, "SELECT 1") == 1


async def test_ping_closes_a_connection_that_does_not_answer(mortal_server: PostgresServer) -> None:
    connection = await Connection.connect(mortal_server.conninfo())
    await connection.ping(5.0)
    mortal_server.sigstop()
    with pytest.raises(Exception, match=r"did not answer within 0\.1 s"):
        await connection.ping(0.1)
    assert connection.closed


async def test_a_socket_that_accepts_and_never_answers() -> None:
    with trio.socket.socket() as silent:
        await silent.bind(("127.0.0.1", 0))
        silent.listen()
        pool = Pool(f"host=127.0.0.1 port={silent.getsockname()[1]}", size=1, connect_timeout=0.1)
        with trio.fail_after(5), pytest.raises(Unavailable, match=r"no answer within 0\.1 s"):
            async with pool.connection():
                pytest.fail("nobody answers")
        assert pool.stats.busy == 0


async def test_a_socket_that_closes_at_once() -> None:
    async def slam(stream: trio.SocketStream) -> None:
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, slam, [listener])
        pool = Pool(f"host=127.0.0.1 port={listener.socket.getsockname()[1]}", size=1)
        with pytest.raises(Unavailable, match="closed the connection unexpectedly"):
            async with pool.connection():
                pytest.fail("nobody answers")
        nursery.cancel_scope.cancel()


async def test_a_frozen_host_does_not_hide_the_next_one(mortal_server: PostgresServer) -> None:
    with trio.socket.socket() as silent:
        await silent.bind(("127.0.0.1", 0))
        silent.listen()
        ports = f"{silent.getsockname()[1]},{mortal_server.port}"
        several = f"host=127.0.0.1,127.0.0.1 port={ports} user=bloomd dbname=postgres"
        async with Pool(several, size=1, connect_timeout=0.1) as pool, pool.connection() as connection:
            assert await one(connection, "SELECT 1") == 1


async def test_too_many_connections(mortal_server: PostgresServer) -> None:
    mortal_server.execute("CREATE ROLE crowd LOGIN CONNECTION LIMIT 1")
    try:
        async with Pool(mortal_server.conninfo().replace("user=bloomd", "user=crowd"), size=2) as pool:
            async with pool.connection():
                with pytest.raises(Unavailable, match="too many connections"):
                    async with pool.connection():
                        pytest.fail("the server has no room")
            assert pool.stats.busy == 0
    finally:
        mortal_server.execute("DROP ROLE crowd")


async def test_a_server_that_is_starting_up(mortal_server: PostgresServer) -> None:
    """Frozen halfway through its start, it is away; and nothing but a refusal for good is Misconfigured."""
    mortal_server.stop()
    pool = Pool(mortal_server.conninfo(), size=1)
    seen: list[Any] = []

    async def try_until_it_serves() -> bool:
        try:
            async with pool.connection():
                return True
        except Misconfigured:
            raise
        except Unavailable as error:
            seen.append(str(error))
            return False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(eventually, try_until_it_serves)
        await trio.sleep(0.05)
        mortal_server.start()
    assert seen
    await pool.close()
