"""One real daemon for all tests of the API, on a database that each test finds empty."""

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import httpx
import psycopg
import pytest
from bloomd_process import Bloomd
from servers import PostgresServer

EMPTY = """
UPDATE leases SET status = 'released' WHERE status = 'active';
TRUNCATE llm_tasks, leases, workers, conversations, runtime_artifacts, llm_results, audit_logs, runtime_settings
"""


@pytest.fixture(scope="session")
def start_daemon(postgres_server: PostgresServer, migrated: str) -> Callable[[], AbstractContextManager[Bloomd]]:
    """Start a daemon on a database of its own, for as long as a block lasts."""

    @contextmanager
    def started() -> Iterator[Bloomd]:
        url = postgres_server.create_database(migrated)
        bloomd = Bloomd(
            url,
            tasks__sweep_interval=0.1,
            tasks__retry_delay=0.05,
            http__max_body_bytes=100_000,
            http__max_artifact_bytes=64 << 20,
        )
        bloomd.configure()
        with bloomd:
            yield bloomd
            assert bloomd.stop() == 0

    return started


@pytest.fixture(scope="session")
def daemon(start_daemon: Callable[[], AbstractContextManager[Bloomd]]) -> Iterator[Bloomd]:
    with start_daemon() as bloomd:
        yield bloomd


@pytest.fixture(scope="session")
def keyed(postgres_server: PostgresServer, migrated: str) -> Iterator[Bloomd]:
    """Another one, which has a key for agents and leaves it to the tests to ask them."""
    key = "the-agent-key-of-the-tests"
    bloomd = Bloomd(
        postgres_server.create_database(migrated),
        membridge__agent_key=key,
        workers__poll_interval=3600,
        http__drain_seconds=0.1,
    )
    with socket.create_server(("127.0.0.1", 0)) as agent:
        url = f"http://127.0.0.1:{agent.getsockname()[1]}"
        with psycopg.connect(bloomd.settings["database.url"]) as connection:
            connection.execute("INSERT INTO workers (id, node_id, url) VALUES ('w0', 'w0', %s)", [url])
        with bloomd:
            # The leader asks every worker once when it begins: no test may meet that.
            agent.settimeout(30)
            agent.accept()[0].close()
            yield bloomd
            assert key not in bloomd.log.read_text()
            assert bloomd.stop() == 0


@pytest.fixture
def api(daemon: Bloomd) -> httpx.Client:
    with psycopg.connect(daemon.settings["database.url"], autocommit=True) as connection:
        # The daemon works meanwhile: its statements lock some of the tables in another order.
        while True:
            with suppress(psycopg.errors.DeadlockDetected):
                connection.execute(EMPTY)
                return daemon.http


@pytest.fixture
def create(api: httpx.Client) -> Any:
    """Queue a task."""

    def create(**fields: Any) -> dict[str, Any]:
        answer = api.post("/api/runtime/llm-tasks", json={"prompt": "Say hello", **fields})
        assert answer.status_code == 201, answer.text
        return answer.json()

    return create


@pytest.fixture
def register(api: httpx.Client) -> Any:
    """Register a worker."""

    def register(name: str = "w1", **fields: Any) -> dict[str, Any]:
        answer = api.post("/api/runtime/workers", json={"name": name, **fields})
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    return register
