"""Plain dumps that are less than they were, and names that need quotes: on a real PostgreSQL."""

import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psycopg
import pytest

from bloomd.backup import script
from bloomd.postgres import binaries


@pytest.fixture
def odd(database: str) -> str:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute('CREATE SCHEMA "My Schema"; CREATE TABLE "My Schema"."T b" (n int); CREATE TABLE t (n int)')
        connection.execute('INSERT INTO "My Schema"."T b" VALUES (1), (2); INSERT INTO t VALUES (3)')
    return database


def rows(conninfo: str) -> tuple[int, int]:
    with psycopg.connect(conninfo) as connection:
        found = connection.execute('SELECT (SELECT count(*) FROM "My Schema"."T b"), (SELECT count(*) FROM t)')
        return found.fetchone() or (0, 0)


@pytest.mark.parametrize("end", [b"COPY", b"-- PostgreSQL database dump complete"])
def test_a_plain_dump_that_was_cut_off_between_two_statements_changes_nothing(
    bloomd: Callable[..., int], odd: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], end: bytes
) -> None:
    """Each statement that is left of it would run: the tables would be there, and empty."""
    with psycopg.connect(odd) as connection:
        program, _ = binaries.client("pg_dump", connection.info.server_version // 10000)
    dump = subprocess.run([program, odd], capture_output=True, check=True).stdout
    (tmp_path / "cut.sql").write_bytes(dump[: dump.index(end)])
    assert bloomd("restore", tmp_path / "cut.sql", "--replace", url=odd) == 1
    assert "cut off" in capsys.readouterr().err
    assert rows(odd) == (2, 1)


def test_names_that_need_quotes_are_backed_up_and_restored(
    bloomd: Callable[..., int], odd: str, tmp_path: Path
) -> None:
    assert bloomd("backup", "-o", tmp_path / "b.tar", url=odd) == 0
    with psycopg.connect(odd, autocommit=True) as connection:
        connection.execute('DELETE FROM t; DELETE FROM "My Schema"."T b"')
    assert bloomd("restore", tmp_path / "b.tar", "--replace", url=odd) == 0
    assert rows(odd) == (2, 1)


async def test_a_row_of_many_pieces_is_passed_on_whole() -> None:
    """Also when the end of the COPY comes in two of them."""
    row = b"1\t" + b"x" * 3_000_000 + b"\n"
    dump = row + b"2\ty\n\\.\nSELECT 1;\n"

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(dump), 65_521):
            yield dump[start : start + 65_521]

    async def bytewise() -> AsyncIterator[bytes]:
        for each in dump[-20:]:
            yield bytes([each])

    for source, expected in ((pieces(), row + b"2\ty\n"), (bytewise(), dump[-20:-13])):
        lines = script._Lines(source)
        assert b"".join([rows async for rows in lines.to_end_of_copy()]) == expected
        assert await lines.next() == b"SELECT 1;\n"
        assert await lines.next() == b""
