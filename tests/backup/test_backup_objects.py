"""Objects in a backup, and where they come back: on a real PostgreSQL and a real S3 server."""

import hashlib
import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import trio
from s3_server import ACCESS, SECRET, Line, S3Server, s3_server
from servers import PostgresServer, eventually
from tools import require

from bloomd.backup import objects, restoring
from bloomd.cli import main
from bloomd.errors import Unavailable
from bloomd.objects.contents import Contents
from bloomd.objects.store import Store
from bloomd.postgres import Pool
from bloomd.runtime import artifacts
from bloomd.runtime.database import Database
from bloomd.supervisor import Backoff

MIB = 1 << 20
# By the keys of their objects: empty, of whole and of broken pieces, of names that no path may have.
HELD = {
    "bloom/artifacts/t1/empty": b"",
    "bloom/artifacts/t1/text": "щось ".encode() * 2000,
    "bloom/artifacts/t1/whole": os.urandom(2 * MIB),
    "bloom/artifacts/t1/broken": os.urandom(3 * MIB + 7),
    "artifacts/t2/100 %/öl.json": b"{}",
}
OLD = b"what the Node.js runtime has stored" * 40
MEMORY = {"claude-mem.db": os.urandom(MIB + 1), "node/b/claude-mem.db": b"b"}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    directory = tmp_path_factory.mktemp("s3")
    (directory / "claude-mem").mkdir()
    with s3_server(require("rclone"), directory) as server:
        yield server


@pytest.fixture
def store(s3: S3Server) -> Store:
    return Store(s3.settings())


def put(store: Store, key: str, data: bytes, bucket: str = "artifacts") -> None:
    async def read(at: int) -> bytes:
        return data[at : at + MIB]

    async def put() -> None:
        await store.make_bucket(bucket)
        await store.put(key, len(data), read, content_type="text/x-test", bucket=bucket)

    trio.run(put)


def add_artifact(conninfo: str, key: str, data: bytes | None, bucket: str = "artifacts") -> str:
    """A row that refers to an object; without data, one of the Node.js runtime."""
    id = hashlib.sha256(f"{bucket}/{key}".encode()).hexdigest()[:30]
    with psycopg.connect(conninfo) as connection:
        connection.execute(
            "INSERT INTO runtime_artifacts"
            " (id, task_id, type, created_at, finalized, entity_refs, tags, url, size, sha256)"
            " VALUES (%s, 't1', 'X', 1, true, '[]', '[]', %s, %s, %s)",
            [
                id,
                f"minio://{bucket}/{key}",
                None if data is None else len(data),
                None if data is None else hashlib.sha256(data).hexdigest(),
            ],
        )
    return id


@pytest.fixture
def conninfo(postgres_server: PostgresServer, migrated: str, store: Store) -> Iterator[str]:
    """A database whose objects are all there."""
    with postgres_server.database(migrated) as conninfo:
        for key, data in HELD.items():
            put(store, key, data)
            add_artifact(conninfo, key, data)
        put(store, "artifacts/t9/1.json", OLD, "of-before")
        add_artifact(conninfo, "artifacts/t9/1.json", None, "of-before")
        yield conninfo


@pytest.fixture
def bloomd(monkeypatch: pytest.MonkeyPatch, s3: S3Server) -> Callable[..., int]:
    """The command, with this database, and with this object store unless it is to have none."""
    monkeypatch.setattr(objects, "RETRY", Backoff(first=0.0, cap=0.0))

    def run(*arguments: object, url: str = "", endpoint: str | None = s3.endpoint, bucket: str = "artifacts") -> int:
        names = {
            "DATABASE_URL": url,
            "MINIO_ENDPOINT": endpoint,
            "MINIO_ACCESS_KEY": ACCESS,
            "MINIO_SECRET_KEY": SECRET,
            "MINIO_USE_SSL": "false",
            "MINIO_ARTIFACT_BUCKET": bucket,
        }
        for name, value in names.items():
            if value and (endpoint or not name.startswith("MINIO")):
                monkeypatch.setenv(name, value)
            else:
                monkeypatch.delenv(name, raising=False)
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return int(ended.value.code or 0)

    return run


@pytest.fixture
def archive(bloomd: Callable[..., int], conninfo: str, tmp_path: Path) -> Path:
    file = tmp_path / "backup.tar"
    assert bloomd("backup", "-o", file, url=conninfo) == 0
    return file


def manifest_of(archive: Path) -> dict[str, dict[str, str]]:
    with tarfile.open(archive) as tar:
        file = tar.extractfile("manifest.json")
        assert file
        return json.load(file)["manifest"]


def contents_of(conninfo: str, s3: S3Server, bucket: str = "artifacts") -> dict[str, tuple[bytes, str | None]]:
    """What each artifact holds, and what its sha256 should be."""

    async def read() -> dict[str, tuple[bytes, str | None]]:
        found: dict[str, tuple[bytes, str | None]] = {}
        database, elsewhere = Database(), Contents(lambda: s3.settings(bucket=bucket))
        async with Pool(conninfo, size=2) as pool:
            database.open(pool)
            with psycopg.connect(conninfo) as connection:
                ids = [id for (id,) in connection.execute("SELECT id FROM runtime_artifacts").fetchall()]
            for id in ids:
                content = await artifacts.content(database, elsewhere, id)
                data = b""
                while len(data) < content.size:
                    data += await content.piece_at(len(data))
                found[id] = data, content.sha256
        return found

    return trio.run(read)


def urls(conninfo: str) -> set[str | None]:
    with psycopg.connect(conninfo) as connection:
        return {url for (url,) in connection.execute("SELECT url FROM runtime_artifacts").fetchall()}


def test_objects_come_back_in_another_bucket(bloomd, archive, conninfo, database, s3, capsys):
    with psycopg.connect(conninfo) as connection:
        connection.execute("INSERT INTO objects_left VALUES ('minio://artifacts/x', 1)")
    assert bloomd("backup", "-o", archive, "--force", url=conninfo) == 0
    assert bloomd("restore", archive, "--into", database, "--dry-run", bucket="elsewhere") == 0
    assert "content that goes to the bucket elsewhere at" in capsys.readouterr().out
    assert not (s3.directory / "elsewhere").exists()
    for again in ([], ["--replace"]):
        assert bloomd("restore", archive, "--into", database, *again, bucket="elsewhere") == 0
    assert contents_of(database, s3, "elsewhere") == contents_of(conninfo, s3)
    assert urls(database) == {f"minio://elsewhere/{key}" for key in [*HELD, "artifacts/t9/1.json"]}
    with psycopg.connect(database) as connection:
        # Of a store that this one is not, nothing is to be removed.
        assert connection.execute("SELECT * FROM objects_left").fetchall() == []
    stat = trio.run(Store(s3.settings()).stat, "artifacts/t9/1.json")
    assert stat is None
    elsewhere = trio.run(Store(s3.settings(bucket="elsewhere")).stat, "artifacts/t9/1.json")
    assert elsewhere
    assert (
        elsewhere.content_type
        == manifest_of(archive)["members"]["objects/of-before/artifacts/t9/1.json"]["content_type"]
    )


def test_objects_of_one_key_in_two_buckets_stay_two(bloomd, conninfo, database, store, s3, tmp_path):
    put(store, "artifacts/t9/1.json", b"another", "artifacts")
    add_artifact(conninfo, "artifacts/t9/1.json", b"another", "artifacts")
    assert bloomd("backup", "-o", tmp_path / "f", url=conninfo) == 0
    assert bloomd("restore", tmp_path / "f", "--into", database, "--replace") == 0
    assert contents_of(database, s3) == contents_of(conninfo, s3)
    assert {"minio://artifacts/artifacts/t9/1.json", "minio://artifacts/of-before/artifacts/t9/1.json"} < urls(database)
    trio.run(store.remove, "artifacts/t9/1.json")


def test_without_an_object_store_content_comes_back_into_the_database(bloomd, archive, conninfo, database, s3):
    for again in ([], ["--replace"]):
        assert bloomd("restore", archive, "--into", database, *again, endpoint=None) == 0
    assert urls(database) == {None}
    restored = contents_of(database, s3)
    assert {id: data for id, (data, _) in restored.items()} == {
        id: data for id, (data, _) in contents_of(conninfo, s3).items()
    }
    assert all(hashlib.sha256(data).hexdigest() == sha256 for data, sha256 in restored.values())
    with psycopg.connect(database) as connection:
        text = connection.execute("SELECT content FROM runtime_artifacts WHERE size = %s", [len(OLD)]).fetchall()
        assert text == [(OLD.decode(),)]


def test_objects_can_be_left_out_of_both(bloomd, archive, conninfo, database, tmp_path, capsys):
    assert bloomd("restore", archive, "--into", database, "--no-objects", endpoint=None) == 0
    assert urls(database) == urls(conninfo)
    assert bloomd("backup", "-o", tmp_path / "f", url=conninfo, endpoint=None) == 78
    assert f"the content of {len(HELD) + 1} artifacts is in an object store" in capsys.readouterr().err
    assert not (tmp_path / "f").exists()
    assert bloomd("backup", "-o", tmp_path / "f", "--no-objects", url=conninfo, endpoint=None) == 0
    assert bloomd("backup", "--verify", tmp_path / "f") == 0
    assert bloomd("restore", tmp_path / "f", "--into", database, "--replace") == 0
    assert urls(database) == urls(conninfo)


def test_what_is_missing_or_damaged_is_named_and_the_rest_is_kept(
    bloomd, conninfo, database, store, s3, tmp_path, capsys
):
    lost = add_artifact(conninfo, "lost", b"lost")
    add_artifact(conninfo, "gone", b"gone", "no-such-bucket")
    add_artifact(conninfo, "", b"strange")
    add_artifact(conninfo, "artifacts/../../x", b"stranger")
    add_artifact(conninfo, "k", b"strangest", "No_bucket!")
    put(store, "shorter", b"fals")
    add_artifact(conninfo, "shorter", b"false")
    put(store, "altered", b"False")
    add_artifact(conninfo, "altered", b"false")
    put(store, "longer", b"x" * MIB + b"y")
    add_artifact(conninfo, "longer", b"x" * MIB)
    file = tmp_path / "f"
    assert bloomd("backup", "-o", file, url=conninfo) == 1
    said = capsys.readouterr().err
    assert "missing: 5 objects; the backup has everything else" in said
    assert "damaged: 2 objects" in said
    told = manifest_of(file)
    assert set(told["missing"]) == {"minio://artifacts/lost", "minio://no-such-bucket/gone", "minio://artifacts/",
        "minio://artifacts/artifacts/../../x", "minio://No_bucket!/k",
    }  # fmt: skip
    assert set(told["damaged"]) == {"minio://artifacts/shorter", "minio://artifacts/altered"}
    assert bloomd("backup", "--verify", file) == 0
    assert "missing when it was made: 5 objects" in capsys.readouterr().out
    assert bloomd("restore", file, "--into", database, bucket="second") == 0
    assert {f"minio://second/{key}" for key in [*HELD, "shorter", "altered"]} < urls(database)
    with psycopg.connect(database) as connection:
        [url] = connection.execute("SELECT url FROM runtime_artifacts WHERE id = %s", [lost]).fetchone() or ("",)
        assert url == "minio://artifacts/lost"


def test_a_copy_shares_no_objects_with_the_original_unasked(bloomd, archive, conninfo, database, capsys):
    assert bloomd("restore", archive, "--into", database) == 78
    assert "the bucket artifacts has objects of this backup already" in capsys.readouterr().err
    assert bloomd("restore", archive, "--into", database, "--no-objects") == 0
    assert bloomd("restore", archive, "--into", database, "--replace") == 0
    # The database of the configuration is the original.
    assert bloomd("restore", archive, "--replace", url=conninfo) == 0


def test_a_restored_database_makes_no_backup(bloomd, conninfo, database, tmp_path):
    with psycopg.connect(conninfo) as connection:
        connection.execute(
            "INSERT INTO backups (id, node, file, due_at, started_at, ended_at) VALUES"
            " ('this', 'n', '/f', 1, 1, NULL), ('old', 'n', '/e', 1, 1, 2)"
        )
    assert bloomd("backup", "-o", tmp_path / "f", url=conninfo) == 0
    assert bloomd("restore", tmp_path / "f", "--into", database, "--no-objects") == 0
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT id FROM backups").fetchall() == [("old",)]


def test_one_that_was_damaged_replaces_none(bloomd, conninfo, database, store, tmp_path):
    put(store, "altered", b"False")
    add_artifact(conninfo, "altered", b"false")
    assert bloomd("backup", "-o", tmp_path / "f", url=conninfo) == 1
    put(store, "altered", b"false")  # somebody mends it
    assert bloomd("restore", tmp_path / "f", "--into", database, "--replace") == 0
    assert trio.run(store.read, "altered", 0, 100) == b"false"
    trio.run(store.remove, "altered")


def test_two_artifacts_may_have_one_object_and_disagree_about_it(bloomd, conninfo, store, tmp_path):
    with psycopg.connect(conninfo) as connection:
        connection.execute("UPDATE runtime_artifacts SET url = 'minio://artifacts/bloom/artifacts/t1/text'")
    assert bloomd("backup", "-o", tmp_path / "f", url=conninfo) == 1
    assert list(manifest_of(tmp_path / "f")["damaged"]) == ["minio://artifacts/bloom/artifacts/t1/text"]
    assert bloomd("backup", "--verify", tmp_path / "f") == 0


def test_a_restore_that_fails_among_the_contents_leaves_the_database_as_it_was(
    bloomd, archive, conninfo, database, monkeypatch, capsys
):
    real, calls = objects._keep_here, []

    async def fail(*said: object) -> None:
        calls.append(said)
        if len(calls) == 3:
            raise KeyboardInterrupt
        await real(*said)

    monkeypatch.setattr(objects, "_keep_here", fail)
    assert bloomd("restore", archive, "--into", database, endpoint=None) == 130
    assert "the database is as it was" in capsys.readouterr().err
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT FROM pg_tables WHERE schemaname = 'public'").fetchall() == []
    before = urls(conninfo)
    calls.clear()
    assert bloomd("restore", archive, "--into", conninfo, "--replace", endpoint=None) == 130
    assert urls(conninfo) == before


def test_what_fails_after_the_commit_says_what_is_there(bloomd, archive, database, monkeypatch, capsys):
    async def fail(*_args: object, **_kwargs: object) -> None:
        raise Unavailable("PostgreSQL is gone")

    monkeypatch.setattr(restoring, "migrate", fail)
    assert bloomd("restore", archive, "--into", database, "--replace") == 69
    said = capsys.readouterr().err
    assert "the database is restored, and what comes after that is not done: `bloomd migrate`" in said
    assert "PostgreSQL is gone" in said


def test_a_store_that_is_away_or_breaks_off_costs_the_backup_only_when_it_stays_so(
    bloomd, conninfo, database, s3, tmp_path, monkeypatch, capsys
):
    line = Line(s3.endpoint)
    line.bytes_passed = 0
    try:
        line.mode = "cut"
        assert bloomd("backup", "-o", tmp_path / "f", url=conninfo, endpoint=line.endpoint) == 69
        assert "the object store at" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())
        line.mode, check = "ok", Store.check_bucket

        async def check_and_be_cut(self: Store) -> None:
            await check(self)
            line.mode = "cut"

        monkeypatch.setattr(Store, "check_bucket", check_and_be_cut)
        assert bloomd("backup", "-o", tmp_path / "f", url=conninfo, endpoint=line.endpoint) == 69
        assert not list(tmp_path.iterdir())
        # It is back when it is asked again.
        waits: list[int] = []

        def delay(_self: Backoff, failures: int) -> float:
            waits.append(failures)
            line.mode = "ok"
            return 0.0

        line.mode = "ok"
        monkeypatch.setattr(Backoff, "delay", delay)
        assert bloomd("backup", "-o", tmp_path / "f", url=conninfo, endpoint=line.endpoint) == 0
        assert waits
        assert bloomd("restore", tmp_path / "f", "--into", database, bucket="third") == 0
        assert contents_of(database, s3, "third") == contents_of(conninfo, s3)
    finally:
        line.close()


def test_no_object_is_removed_while_a_backup_is_made(bloomd, conninfo, tmp_path):
    """It says so to whoever removes objects (runtime/objects.py), by a lock that is held until they were read."""

    def held() -> bool:
        with psycopg.connect(conninfo) as connection:
            shared = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock' AND granted"
            return connection.execute(shared).fetchone() != (0,)

    with psycopg.connect(conninfo) as locking:  # pg_dump waits for it
        locking.execute("LOCK TABLE runtime_settings IN ACCESS EXCLUSIVE MODE")
        seen: list[bool] = []

        def look() -> None:
            eventually(held)
            seen.append(True)
            locking.rollback()

        looking = threading.Thread(target=look)
        looking.start()
        assert bloomd("backup", "-o", tmp_path / "f", url=conninfo) == 0
        looking.join(60)
    assert seen
    assert not held()


def test_the_memory_of_the_agents_is_kept_when_asked_for(bloomd, conninfo, database, store, s3, tmp_path, capsys):
    for key, data in MEMORY.items():
        put(store, key, data, "claude-mem")
    file = tmp_path / "f"
    assert bloomd("backup", "-o", file, url=conninfo) == 0
    assert bloomd("restore", file, "--into", database, "--memory") == 78
    assert "does not hold the agents' memory" in capsys.readouterr().err
    assert bloomd("backup", "-o", file, "--force", "--memory", url=conninfo) == 0
    for key in MEMORY:
        put(store, key, b"of later", "claude-mem")
    assert bloomd("restore", file, "--into", database, "--memory", "--no-objects") == 78
    assert "the bucket claude-mem has 2 of the objects already" in capsys.readouterr().err
    assert bloomd("restore", file, "--into", database, "--no-objects") == 0
    assert trio.run(lambda: store.read("claude-mem.db", 0, 100, bucket="claude-mem")) == b"of later"
    assert bloomd("restore", file, "--into", database, "--replace", "--memory") == 0
    for key, data in MEMORY.items():
        assert trio.run(lambda key=key: store.read(key, 0, 9 * MIB, bucket="claude-mem")) == data


def test_a_memory_that_changes_while_it_is_read_is_read_again(bloomd, conninfo, store, s3, tmp_path, monkeypatch):
    put(store, "claude-mem.db", b"a" * (MIB + 5), "claude-mem")
    read, changed = Store.read, []

    async def read_and_change(self: Store, key: str, at: int, most: int, *, bucket: str | None = None) -> bytes:
        data = await read(self, key, at, most, bucket=bucket)
        if bucket == "claude-mem" and key == "claude-mem.db" and not changed:
            changed.append(key)

            async def piece(at: int) -> bytes:
                return b"b" * (MIB + 6)

            await self.put(key, MIB + 6, piece, content_type="x/y", bucket=bucket)
        return data

    monkeypatch.setattr(Store, "read", read_and_change)
    assert bloomd("backup", "-o", tmp_path / "f", "--memory", url=conninfo) == 0
    with tarfile.open(tmp_path / "f") as tar:
        file = tar.extractfile("memory/claude-mem.db")
        assert file
        assert file.read() == b"b" * (MIB + 6)


def test_keys_that_are_no_paths_have_names_of_their_own():
    from bloomd.backup.archive import key_of, member_of

    keys = ["b/a", "b/../../etc", "b//a", "b/./a", "/", "..", "a%2Fb", "a/b/", "ключ/ ?#"]
    members = [member_of("objects", key) for key in keys]
    assert [key_of(member) for member in members] == keys
    assert len(set(members)) == len(keys)
    assert not any({"", ".", ".."} & set(member.split("/")) for member in members)
