"""`bloomd backup` and `bloomd restore` as an operator runs them, on a real PostgreSQL."""

import gzip
import io
import os
import signal
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from servers import PostgresServer, eventually

from bloomd.postgres import binaries
from bloomd.runtime.schema import MIGRATIONS

# As the Node.js program's own migration makes them.
OLD = """
CREATE TABLE llm_tasks (id varchar PRIMARY KEY, context_id varchar NOT NULL, agent_slug varchar NOT NULL,
    prompt text NOT NULL, context_hints jsonb, policy jsonb, desired_format varchar, status varchar NOT NULL,
    created_at bigint NOT NULL, updated_at bigint NOT NULL, lease_id varchar, worker_id varchar, attempts integer,
    max_attempts integer);
CREATE TABLE runtime_settings (key varchar PRIMARY KEY, value text NOT NULL);
INSERT INTO llm_tasks VALUES
    ('t1', 'c', 'a', E'привіт\\nGRANT x TO y;', '[]', '{}', 'text', 'queued', 1, 1, NULL, NULL, 0, 3);
INSERT INTO runtime_settings VALUES ('membridge_server_url', 'http://127.0.0.1:8000');
"""


@pytest.fixture
def conninfo(postgres_server: PostgresServer, migrated: str) -> Iterator[str]:
    with postgres_server.database(migrated) as conninfo:
        with psycopg.connect(conninfo) as connection:
            for number in range(20):
                connection.execute(
                    "INSERT INTO runtime_settings (key, value) VALUES (%s, %s)",
                    [f"key{number}", "a line\nGRANT all;\n\\.\n'quoted' $$ -- й"],
                )
        yield conninfo


def content(conninfo: str) -> dict[str, list[Any]]:
    """Every row of every table."""
    with psycopg.connect(conninfo) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        rows: dict[str, list[Any]] = {}
        for (name,) in tables:
            query = sql.SQL("SELECT t::text FROM {} AS t ORDER BY 1").format(sql.Identifier(name))
            rows[name] = connection.execute(query).fetchall()
        return rows


@pytest.fixture
def archive(bloomd: Callable[..., int], conninfo: str, tmp_path: Path) -> Path:
    file = tmp_path / "backup.tar"
    assert bloomd("backup", "-o", file, url=conninfo) == 0
    return file


def test_what_was_backed_up_is_restored_elsewhere_row_by_row(
    bloomd: Callable[..., int], archive: Path, conninfo: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    with tarfile.open(archive) as tar:
        assert [member.name for member in tar][:2] == ["bloomd-backup.json", "database.dump"]
    assert bloomd("restore", archive, "--into", database, "--dry-run") == 0
    assert content(database) == {}
    assert bloomd("restore", archive, "--into", database) == 0
    assert content(database) == content(conninfo)
    assert "public.runtime_settings" in capsys.readouterr().out


def test_a_backup_under_load_is_of_one_moment(
    bloomd: Callable[..., int], conninfo: str, database: str, tmp_path: Path
) -> None:
    """A writer keeps two tables equal; a restored copy has them equal, too, and fewer rows than there are by now."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("CREATE TABLE a (n int); CREATE TABLE z (n int)")
    over, written = threading.Event(), threading.Event()

    def write() -> None:
        with psycopg.connect(conninfo) as connection:
            while not over.is_set():
                connection.execute("INSERT INTO a VALUES (1)")
                connection.execute("INSERT INTO z VALUES (1)")
                connection.commit()
                written.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert written.wait(20)
        assert bloomd("backup", "-o", tmp_path / "f", url=conninfo) == 0
    finally:
        over.set()
        writer.join()
    assert bloomd("restore", tmp_path / "f", "--into", database) == 0
    restored, now = content(database), content(conninfo)
    assert 0 < len(restored["a"]) == len(restored["z"]) < len(now["a"])


def test_a_database_that_is_not_empty_is_refused_and_replaced_only_when_told(
    bloomd: Callable[..., int], archive: Path, conninfo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(conninfo)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("DELETE FROM runtime_settings; CREATE TABLE other (n int)")
    assert bloomd("restore", archive, "--into", conninfo) == 78
    assert "say --replace" in capsys.readouterr().err
    assert bloomd("restore", archive, "--into", conninfo, "--replace") == 0
    assert content(conninfo) == before


def test_what_cannot_be_restored_leaves_what_was_there(
    bloomd: Callable[..., int], conninfo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(conninfo)
    for bad in (
        b"CREATE TABLE x (n int);\nSELECT 1/0;\n",
        b"\\! true\n",
        b"CREATE TABLE x (n int);\nCOPY x FROM stdin;\n1\n",
        b"CREATE TABLE x (n int);\nCOMMIT;\nSELECT 1/0;\n",
        b"CREATE TABLE x (n int);\nend;\nSELECT 1/0;\n",
    ):
        (tmp_path / "dump.sql").write_bytes(b"--\n-- PostgreSQL database dump\n--\n" + bad)
        assert bloomd("restore", tmp_path / "dump.sql", "--into", conninfo, "--replace") == 1
        assert "the database is as it was" in capsys.readouterr().err
        assert content(conninfo) == before


def test_the_plain_dump_of_the_old_runtime_is_restored_and_adopted(
    bloomd: Callable[..., int], postgres_server: PostgresServer, database: str, tmp_path: Path
) -> None:
    with postgres_server.database() as theirs, psycopg.connect(theirs, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS bloom_of_theirs")
        connection.execute("CREATE ROLE bloom_of_theirs")
        connection.execute(OLD)
        connection.execute("ALTER TABLE llm_tasks OWNER TO bloom_of_theirs")
        connection.execute("GRANT SELECT ON llm_tasks TO bloom_of_theirs")
        program, _ = binaries.client("pg_dump", connection.info.server_version // 10000)
        dump = subprocess.run([program, theirs], capture_output=True, check=True).stdout
        connection.execute("DROP OWNED BY bloom_of_theirs CASCADE")
        connection.execute("DROP ROLE bloom_of_theirs")
    assert b"OWNER TO bloom_of_theirs" in dump
    (tmp_path / "dump.sql").write_bytes(dump)
    assert bloomd("restore", tmp_path / "dump.sql", "--into", database) == 0
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT max(version) FROM bloomd_migrations").fetchone() == (MIGRATIONS[-1].version,)
        assert connection.execute("SELECT prompt FROM llm_tasks").fetchall() == [("привіт\nGRANT x TO y;",)]


def test_what_is_cut_off_or_altered_is_refused(
    bloomd: Callable[..., int], archive: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = archive.read_bytes()
    with tarfile.open(archive) as tar:
        contents = {member.name: member.offset_data for member in tar}
    damaged = [whole[:length] for length in (0, 100, 512, 5000, len(whole) // 2, contents["manifest.json"] - 512)]
    for at in [*contents.values(), contents["database.dump"] + 3000, contents["manifest.json"] + 300]:
        flipped = bytearray(whole)
        flipped[at + 20] ^= 1
        damaged.append(bytes(flipped))
    for each in damaged:
        archive.write_bytes(each)
        assert bloomd("restore", archive, "--into", database) == 1
        assert "the database is as it was" in capsys.readouterr().err
    assert content(database) == {}


def test_a_function_with_an_end_of_its_own_is_no_end_of_the_transaction(bloomd, conninfo, database, tmp_path):
    with psycopg.connect(conninfo) as connection:
        connection.execute("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END")
    assert bloomd("backup", "-o", tmp_path / "f", url=conninfo) == 0
    assert bloomd("restore", tmp_path / "f", "--into", database) == 0
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT f()").fetchone() == (2,)


def test_what_is_no_archive_is_told_apart(bloomd, conninfo, database, tmp_path, capsys):
    program, _ = binaries.client("pg_dump", 15)
    for format, said in (("custom", "pg_restore -f"), ("plain", "")):
        dump = subprocess.run([program, f"--format={format}", conninfo], capture_output=True, check=True).stdout
        (tmp_path / "f").write_bytes(dump if said else gzip.compress(dump))
        assert bloomd("restore", tmp_path / "f", "--into", database) == 1
        assert (said or "gunzip it first") in capsys.readouterr().err
    (tmp_path / "f").write_text("--\n-- PostgreSQL database cluster dump\n--\n")
    assert bloomd("restore", tmp_path / "f", "--into", database) == 1
    assert "of a whole cluster" in capsys.readouterr().err
    assert bloomd("backup", "-o", tmp_path, "--force", url=conninfo) == 78
    assert "is a directory" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../x", "/etc/x", "configuration/1-..", "configuration/../x", "other", "link"])
def test_foreign_members_are_refused(
    bloomd: Callable[..., int], archive: Path, database: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    member = tarfile.TarInfo("configuration/1-a" if name == "link" else name)
    if name == "link":
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    else:
        member.size = 1
    with tarfile.open(archive) as tar, tarfile.open(archive.with_suffix(".new"), "w") as new:
        for number, each in enumerate(tar):
            if number == 1:
                new.addfile(member, io.BytesIO(b"x"))
            new.addfile(each, tar.extractfile(each))
    assert bloomd("restore", archive.with_suffix(".new"), "--into", database) == 1
    said = capsys.readouterr().err
    assert "a member" in said or "other than a file" in said or "configuration/1-.." in said


def test_a_file_that_is_there_and_an_old_pg_dump_are_refused(
    bloomd: Callable[..., int],
    archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bloomd("backup", "-o", archive) == 78
    assert "is there already" in capsys.readouterr().err
    assert bloomd("backup", "-o", archive, "--force") == 0
    (tmp_path / "pg_dump").write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 11.2'\n")
    (tmp_path / "pg_dump").chmod(0o755)
    monkeypatch.setattr(binaries, "_candidates", lambda program="postgres": iter([tmp_path]))
    capsys.readouterr()
    assert bloomd("backup", "-o", tmp_path / "new") == 78
    assert "is of PostgreSQL 11, and PostgreSQL" in capsys.readouterr().err
    assert not list(tmp_path.glob("new*"))


def test_interrupted_it_leaves_nothing_and_its_password_was_never_seen(
    postgres_server: PostgresServer, conninfo: str, tmp_path: Path
) -> None:
    url = make_conninfo(conninfo, password="sesame-open")
    with psycopg.connect(conninfo) as locking:  # pg_dump waits for it
        locking.execute("LOCK TABLE runtime_settings IN ACCESS EXCLUSIVE MODE")
        process = subprocess.Popen(
            [sys.executable, "-c", "from bloomd.cli import main; main()", "backup", "-o", tmp_path / "f"],
            env=os.environ | {"DATABASE_URL": url},
            stderr=subprocess.DEVNULL,
        )

        def children() -> list[bytes]:
            """What they were started with. The thread that has started one is its parent, for as long as it lives."""
            found: list[bytes] = []
            for thread in Path(f"/proc/{process.pid}/task").iterdir():
                with suppress(OSError):  # a thread, or a child, that has just ended
                    started = (thread / "children").read_text().split()
                    found += [Path(f"/proc/{child}/cmdline").read_bytes() for child in started]
            return found

        eventually(lambda: any(b"--snapshot" in line for line in children()))
        assert not any(b"sesame" in line for line in children())
        assert (tmp_path / "f.part").exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 130
    assert not list(tmp_path.iterdir())
