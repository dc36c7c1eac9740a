"""One real daemon for all tests of the worker, a network between it and the workers that can fail, and what they do."""

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio
from bloomd_process import KEY, Bloomd
from fake import FAKE
from outputs import OUTPUT
from servers import PostgresServer

from bloomd.settings.model import Worker as Settings
from bloomd.worker import attempt, worker
from bloomd.worker.api import Server
from bloomd.worker.contexts import Contexts, take
from bloomd.worker.worker import Worker

EMPTY = """
UPDATE leases SET status = 'released' WHERE status = 'active';
TRUNCATE llm_tasks, leases, workers, conversations, runtime_artifacts, llm_results, audit_logs
"""

# So that a test can meet both limits with little.
MAX_BODY, MAX_ARTIFACT = 1_500_000, 3_000_000


@pytest.fixture(scope="session")
def daemon(postgres_server: PostgresServer, migrated: str) -> Iterator[Bloomd]:
    url = postgres_server.create_database(migrated)
    limits = {"http__max_body_bytes": MAX_BODY, "http__max_artifact_bytes": MAX_ARTIFACT}
    bloomd = Bloomd(url, tasks__sweep_interval=0.1, tasks__retry_delay=0.05, **limits)
    with bloomd:
        yield bloomd
        assert bloomd.stop() == 0
    postgres_server.drop_database(url)


class Queue:
    """What a client of the API does and sees."""

    def __init__(self, daemon: Bloomd) -> None:
        self.http = daemon.http
        self._database = daemon.settings["database.url"]

    def sql(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._database, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def add(self, prompt: str, **fields: Any) -> str:
        answer = self.http.post("/api/runtime/llm-tasks", json={"prompt": prompt, "max_attempts": 1, **fields})
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def task(self, id: str) -> dict[str, Any]:
        return self.http.get(f"/api/runtime/llm-tasks/{id}").json()

    def worker(self, name: str = "w1") -> dict[str, Any]:
        return self.http.get(f"/api/runtime/workers/{name}").json()

    def cancel(self, id: str) -> None:
        assert self.http.post(f"/api/runtime/llm-tasks/{id}/cancel").status_code == 200

    def artifacts(self, id: str) -> list[dict[str, Any]]:
        return self.http.get("/api/runtime/artifacts", params={"task_id": id}).json()

    def result(self, id: str) -> dict[str, Any]:
        whole = f"to_jsonb(llm_results) || jsonb_build_object('output', {OUTPUT})"
        [(result,)] = self.sql(f"SELECT {whole} FROM llm_results WHERE task_id = %s", id)
        return result

    def content(self, id: str) -> str:
        [artifact] = self.artifacts(id)
        return self.http.get(f"/api/runtime/artifacts/{artifact['id']}/content").text

    async def becomes(self, id: str, *statuses: str) -> dict[str, Any]:
        """The task, as soon as its status is one of these."""
        with trio.fail_after(20):
            while (task := self.task(id))["status"] not in statuses:
                assert task["status"] in ("queued", "leased", "running"), task
                await trio.sleep(0.01)
        return task


@pytest.fixture
def queue(daemon: Bloomd) -> Queue:
    with psycopg.connect(daemon.settings["database.url"], autocommit=True) as connection:
        while True:  # the daemon works meanwhile, and locks some of the tables in another order
            with suppress(psycopg.errors.DeadlockDetected):
                connection.execute(EMPTY)
                return Queue(daemon)


class Network:
    """TCP connections to the daemon: `open`; `closed`; `deaf`: no answer arrives; `slow`: each takes a while."""

    def __init__(self, port: int) -> None:
        self.url = ""
        self.refused = 0
        self._to = port
        self._state = "open"
        self._changed = trio.Event()

    def become(self, state: str) -> None:
        """From now on; what is under way breaks, unless it opens."""
        self._state = state
        self._changed.set()
        self._changed = trio.Event()

    async def serve(self, near: trio.SocketStream) -> None:
        if self._state == "closed":
            self.refused += 1
            await near.aclose()
            return
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with near, await trio.open_tcp_stream("127.0.0.1", self._to) as far, trio.open_nursery() as nursery:
                nursery.start_soon(self._break, nursery.cancel_scope)
                nursery.start_soon(self._pass, near, far, nursery.cancel_scope)
                nursery.start_soon(self._pass, far, near, nursery.cancel_scope)

    async def _break(self, scope: trio.CancelScope) -> None:
        while True:
            await self._changed.wait()
            if self._state == "closed":
                scope.cancel()

    async def _pass(self, one: trio.SocketStream, other: trio.SocketStream, scope: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for piece in one:
                if self._state == "deaf" and one.socket.getpeername()[1] == self._to:
                    self.refused += 1
                    break
                if self._state == "slow" and one.socket.getpeername()[1] == self._to:
                    await trio.sleep(0.1)
                await other.send_all(piece)
        scope.cancel()


@pytest.fixture
async def network(daemon: Bloomd) -> AsyncIterator[Network]:
    network = Network(daemon.port)
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        network.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.start_soon(trio.serve_listeners, network.serve, [listener])
        yield network
        nursery.cancel_scope.cancel()


@pytest.fixture
def fake_directory(tmp_path: Path) -> Path:
    directory = tmp_path / "fake"
    directory.mkdir()
    return directory


@pytest.fixture
def starts(fake_directory: Path) -> Callable[[], list[dict[str, Any]]]:
    """Each start of the fake CLI."""

    def starts() -> list[dict[str, Any]]:
        log = fake_directory / "log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    return starts


@pytest.fixture
async def start(
    daemon: Bloomd, network: Network, tmp_path: Path, fake_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Awaitable[Worker]]]:
    """Start a worker in this process. After the test it is hurried to its end, before the network goes."""
    monkeypatch.setattr(attempt, "BEATS", 600)  # of a minute: ten in a second
    monkeypatch.setattr(worker, "RESET_SECONDS", 0.0)
    monkeypatch.setattr(worker, "RESET_SPREAD", 0.0)
    workers: list[Worker] = []
    locks: list[int] = []

    async with trio.open_nursery() as nursery:

        async def start(name: str = "w1", *, url: str = daemon.url, token: str | None = KEY, **settings: Any) -> Worker:
            root = tmp_path / name
            locks.append(take(root))
            environ = {"PATH": "/usr/bin:/bin", "CLAUDE_FAKE_DIR": str(fake_directory)}
            made = Settings(**{"command": FAKE, **settings})
            workers.append(Worker(Server(url, name, token), Contexts(root), made, environ=environ))
            nursery.start_soon(workers[-1].run)
            return workers[-1]

        yield start
        with trio.fail_after(20):
            network.become("open")
            for each in workers:
                each.hurry()
            while nursery.child_tasks:
                await trio.sleep(0.01)
    for lock in locks:
        os.close(lock)
