"""`bloomd backup --verify`, and databases of `bloomd dev`: each has a PostgreSQL of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import trio
from servers import PostgresServer, eventually

from bloomd.backup import verifying
from bloomd.backup.archive import DUMP, HEAD, Archive, read, writing
from bloomd.errors import Misconfigured
from bloomd.postgres import binaries
from bloomd.postgres.embedded import serving


@pytest.fixture
def conninfo(postgres_server: PostgresServer, migrated: str) -> Iterator[str]:
    with postgres_server.database(migrated) as conninfo:
        with psycopg.connect(conninfo) as connection:
            connection.execute("INSERT INTO runtime_settings (key, value) VALUES ('membridge_server_url', 'http://a')")
            connection.execute(
                "INSERT INTO runtime_artifacts"
                " (id, task_id, type, created_at, finalized, entity_refs, tags, url, size, sha256)"
                " VALUES ('a', 't', 'X', 1, true, '[]', '[]', 'minio://artifacts/a', 1, 'abc')"
            )
        yield conninfo


@pytest.fixture
def file(bloomd: Callable[..., int], conninfo: str, tmp_path: Path) -> Path:
    file = tmp_path / "backup.tar"
    assert bloomd("backup", "-o", file, "--no-objects", url=conninfo) == 0
    return file


def places() -> set[Path]:
    """Where the server of a root may be, who is not the one that it runs as."""
    return set(Path("/var/lib").glob("bloomd-dev-*")) | set(Path("/tmp").glob("bloomd-pg-*"))


def remade(file: Path, change: Callable[[Archive], dict[str, object]]) -> Path:
    """The same archive, whole, but with something else in its manifest or its head."""
    new = file.with_name("remade.tar")
    with file.open("rb") as opened, writing(new, force=True) as writer:
        archive = read(opened, passed=lambda _: None)
        changed = change(archive)
        head = b"".join(archive.chunks(HEAD))
        for old, put in changed.pop("head", {}).items():  # type: ignore[attr-defined]
            assert old in head
            head = head.replace(old, put)
        writer.add(HEAD, head)
        writer.begin(DUMP)
        for data in archive.chunks(DUMP):
            writer.write(data)
        writer.end()
        said = {"rows": archive.manifest.rows, "configuration": {}, "missing": {}, "damaged": {}} | changed
        writer.seal(**said)  # type: ignore[arg-type]
    return new


def test_a_good_one_is_proven_and_nothing_is_left_of_the_proof(bloomd, file, capsys):
    before = places()
    assert bloomd("backup", "--verify", file) == 0
    said = capsys.readouterr()
    assert "verified" in said.out
    assert "1 of" not in said.out
    assert list(file.parent.iterdir()) == [file]
    assert places() == before


def test_one_that_is_whole_but_not_what_it_says_is_refused(bloomd, file, capsys):
    rows = remade(file, lambda archive: {"rows": archive.manifest.rows | {"public.workers": 7}})
    assert bloomd("backup", "--verify", rows) == 1
    assert "public.workers would have 0 rows, and had 7" in capsys.readouterr().err
    holding = {"head": {b'"holds": []': b'"holds": ["objects"]'}}
    assert bloomd("backup", "--verify", remade(file, lambda _: dict(holding))) == 1
    assert "the archive lacks minio://artifacts/a, to which artifact a refers" in capsys.readouterr().err
    known = remade(file, lambda _: holding | {"missing": {"minio://artifacts/a": "gone"}})
    assert bloomd("backup", "--verify", known) == 0


def test_what_cannot_be_known_here_is_no_verdict_on_the_backup(bloomd, file, monkeypatch, capsys):
    newer = remade(file, lambda archive: {"head": {f'"server": "{archive.head.server}'.encode(): b'"server": "99.1'}})
    assert bloomd("backup", "--verify", newer) == 78
    assert "the backup is of PostgreSQL 99" in capsys.readouterr().err

    def none() -> Path:
        raise Misconfigured("no server binaries")

    monkeypatch.setattr(binaries, "find", none)
    assert bloomd("backup", "--verify", file) == 78
    assert "no server binaries" in capsys.readouterr().err
    assert bloomd("backup", "--verify", file.with_name("other")) == 78
    assert "No such file" in capsys.readouterr().err


def test_interrupted_it_leaves_nothing_behind(file):
    before = places()
    code = (
        "import trio; from bloomd.backup import restoring; from bloomd.cli import main\n"
        "async def restore(*_, **__): print('now', flush=True); await trio.sleep_forever()\n"
        "restoring.restore = restore; main()"
    )
    command = [sys.executable, "-c", code, "backup", "--verify", file]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        assert process.stdout.readline() == b"now\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 130
    assert list(file.parent.iterdir()) == [file]
    assert places() == before


def test_a_failure_of_the_server_or_of_the_block_is_told_as_it_is(tmp_path):
    async def block() -> None:
        async with serving(tmp_path / "a", durable=False):
            raise KeyError("mine")

    async def server() -> None:
        (tmp_path / "file").write_text("")
        async with serving(tmp_path / "file" / "b"):
            raise AssertionError("it does not come so far")

    with pytest.raises(KeyError, match="mine"):
        trio.run(block)
    with pytest.raises(Misconfigured, match="cannot be made"):
        trio.run(server)


def test_the_database_of_bloomd_dev_is_saved_whether_it_runs_or_not_and_brought_back(
    bloomd, conninfo, tmp_path, capsys
):
    assert bloomd("backup", "-o", tmp_path / "first", "--no-objects", url=conninfo) == 0
    assert bloomd("restore", tmp_path / "first", "--dir", tmp_path / "dev", "--no-objects") == 0
    assert bloomd("backup", "-o", tmp_path / "second", "--no-objects", "--dir", tmp_path / "dev") == 0

    async def while_it_runs() -> None:
        async with serving(tmp_path / "dev" / "postgres") as running:
            url = running
            command = [sys.executable, "-c", "from bloomd.cli import main; main()", "backup", "--no-objects", "-o"]
            await trio.run_process([*command, tmp_path / "third", "--dir", tmp_path / "dev"], env=environment())
            connection = await trio.to_thread.run_sync(psycopg.connect, url)
            value = connection.execute("SELECT value FROM runtime_settings WHERE key = 'membridge_server_url'")
            assert value.fetchall() == [("http://a",)]
            connection.close()

    trio.run(while_it_runs)
    for each in ("second", "third"):
        assert bloomd("backup", "--verify", tmp_path / each) == 0
    capsys.readouterr()
    assert bloomd("backup", "-o", tmp_path / "fourth", "--dir", tmp_path / "nothing") == 78
    assert "no directory of bloomd dev" in capsys.readouterr().err
    assert bloomd("restore", tmp_path / "first", "--dir", tmp_path / "dev", "--into", conninfo) == 78
    assert "both name a database" in capsys.readouterr().err


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}


def test_the_loop_goes_on_while_a_large_archive_is_read(file, monkeypatch):
    """Reading it and its digests are in a thread: a daemon that verifies its backup answers meanwhile."""
    whole, turns = verifying.whole, [0]

    def slowly(*said: object) -> Archive:
        eventually(lambda: turns[0] > 20)
        return whole(*said)  # type: ignore[arg-type]

    monkeypatch.setattr(verifying, "whole", slowly)

    async def turn() -> None:
        async with trio.open_nursery() as nursery:

            async def count() -> None:
                while True:
                    turns[0] += 1
                    await trio.sleep(0.001)

            nursery.start_soon(count)
            await verifying.verify(file)
            nursery.cancel_scope.cancel()

    trio.run(turn)
