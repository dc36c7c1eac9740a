"""The service that keeps the database open."""

import pytest
import trio

from bloomd.errors import Misconfigured, Unavailable
from bloomd.postgres import Pool
from bloomd.postgres.migrate import migrate
from bloomd.runtime import connector, tasks
from bloomd.runtime.connector import Connector
from bloomd.runtime.database import Database
from bloomd.runtime.pages import Page
from bloomd.runtime.schema import MIGRATIONS
from bloomd.settings import model


async def test_statements_run_only_while_the_service_does(conninfo):
    database = Database()
    with pytest.raises(Unavailable, match="not connected yet"):
        await tasks.listing(database, Page())
    service = Connector(database, lambda: model.Database(url=conninfo))
    async with trio.open_nursery() as nursery:
        await nursery.start(service.run)
        assert await tasks.listing(database, Page()) == []
        assert database.schema == MIGRATIONS[-1].version
        nursery.cancel_scope.cancel()
    with pytest.raises(Unavailable, match=r"service of this bloomd is stopped; `bloomd-ctl start database`"):
        await tasks.listing(database, Page())


async def test_the_stop_of_all_is_told_from_that_of_the_service(conninfo):
    database = Database()
    service = Connector(database, lambda: model.Database(url=conninfo), stopping=lambda: True)
    async with trio.open_nursery() as nursery:
        await nursery.start(service.run)
        nursery.cancel_scope.cancel()
    assert database.away == "bloomd is stopping"


async def test_an_unmigrated_and_a_newer_schema_are_refused(database):
    settings = model.Database(url=database)
    with pytest.raises(Misconfigured, match="no schema yet, and this bloomd needs"):
        await Connector(Database(), lambda: settings).run()
    async with Pool(database, size=1) as pool, pool.connection() as connection:
        await migrate(connection, MIGRATIONS, report=lambda line: None)
        await connection.execute(
            "INSERT INTO bloomd_migrations (version, name, checksum) VALUES (9999, 'of_the_future', 'x')"
        )
    with pytest.raises(Misconfigured, match="schema 9999, newer than this bloomd knows"):
        await Connector(Database(), lambda: settings).run()


async def test_an_old_server_is_refused(conninfo, monkeypatch):
    monkeypatch.setattr(connector, "OLDEST_SERVER", 990000)
    with pytest.raises(Misconfigured, match="needs 99 or newer"):
        await Connector(Database(), lambda: model.Database(url=conninfo)).run()


async def test_other_settings_are_taken_over_while_statements_run(conninfo):
    database = Database()
    settings = model.Database(url=conninfo, pool_size=3)
    service = Connector(database, lambda: settings)
    stop = trio.Event()
    done = 0

    async def work():
        nonlocal done
        while not stop.is_set():
            await tasks.listing(database, Page())
            done += 1

    async with trio.open_nursery() as nursery:
        await nursery.start(service.run)
        for _ in range(3):
            nursery.start_soon(work)
        for _ in range(5):
            pool = await service.prepare(settings)
            before = service.take(pool)
            assert before is not None
            await before.close()
            target = done + 20
            with trio.fail_after(10):
                while done < target:
                    await trio.sleep(0.01)
        stop.set()
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()


async def test_a_server_that_goes_ends_the_service_at_once(postgres_server, conninfo):
    database = Database()
    service = Connector(database, lambda: model.Database(url=conninfo))
    with pytest.RaisesGroup(Unavailable):
        async with trio.open_nursery() as nursery:
            await nursery.start(service.run)
            with trio.fail_after(5):
                while True:  # the one that watches may not be there yet
                    postgres_server.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                        " AND pid <> pg_backend_pid()",
                        dbname=conninfo.rpartition("dbname=")[2].split()[0],
                    )
                    await trio.sleep(0.05)
    assert database.away is not None
