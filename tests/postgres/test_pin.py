"""bloomd.postgres overrides private API of psycopg: this says which, and fails when another psycopg is installed."""

import tomllib
from pathlib import Path

import psycopg
import pytest
from psycopg import _queries, generators, pq
from psycopg._connection_base import BaseConnection
from psycopg.adapt import Transformer

import bloomd.postgres

PINNED = "3.3.9"


def test_psycopg_is_exactly_the_version_whose_private_api_we_use() -> None:
    assert psycopg.__version__ == PINNED
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert f"psycopg[binary]=={PINNED}" in project["project"]["dependencies"]


def test_libpq_is_the_wheels_own_and_can_cancel_safely() -> None:
    assert pq.__impl__ == "binary"
    assert psycopg.capabilities.has_cancel_safe()


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (psycopg.AsyncConnection, name)
        for name in ("connect", "wait", "cancel_safe", "_try_cancel", "close", "commit", "rollback", "transaction")
    ]
    + [
        (BaseConnection, name)
        for name in ("_connect_gen", "_cancel_gen", "_commit_gen", "_rollback_gen", "_exec_command", "_should_cancel")
    ]
    + [(BaseConnection, "_check_connection_ok"), (psycopg.AsyncConnection, "notifies")]
    + [(psycopg.AsyncTransaction, name) for name in ("_check_enter", "_enter_gen", "_exit_gen")]
    + [(psycopg.AsyncCursor, name) for name in ("copy", "stream", "_start_copy_gen", "_select_current_result")]
    + [(psycopg.AsyncCopy, "finish"), (generators, "notifies"), (psycopg.errors, "_WaitTimeout")],
)
def test_the_names_that_we_override_or_call_exist(owner: object, name: str) -> None:
    assert hasattr(owner, name)


def test_the_attributes_that_we_set_exist() -> None:
    connection = psycopg.AsyncConnection(pq.PGconn.connect_start(b"host=/nonexistent"))
    for name in ("lock", "cursor_factory", "_closed", "_autocommit", "_adapters", "_pipeline", "_notifies_backlog"):
        assert hasattr(connection, name)
    connection.pgconn.finish()


def test_a_long_statement_is_read_once() -> None:
    assert bloomd.postgres.Connection  # whose module raises the limit that psycopg has for it
    query, long = _queries.PostgresQuery(Transformer()), "SELECT %(a)s --" + "x" * 8000
    query.convert(long, {"a": 1})
    before = _queries._query2pg.cache_info().hits  # pyright: ignore[reportPrivateUsage]
    query.convert(long, {"a": 2})
    assert _queries._query2pg.cache_info().hits == before + 1  # pyright: ignore[reportPrivateUsage]
