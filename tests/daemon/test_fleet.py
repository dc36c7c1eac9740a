"""A fleet on one machine: a daemon with its own Membridge, three workers, 500 tasks, and somebody who kills them."""

import json
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from bloomd_process import BIN, Bloomd
from invariants import AT_REST, TABLES, TRAIL, broken
from outputs import OUTPUT
from servers import PostgresServer, eventually, free_port

from bloomd.worker import guard

FAKE = Path(__file__).parents[1] / "fake_claude.py"

# Within this time programs end with their worker; the long ones take twice as long by themselves.
END_SECONDS = 2.0

TASKS = 500
KILLS = 10
DEADLINE_SECONDS = 180


class WorkerProcess:
    """`bloomd worker` with a token of its own, to be killed and started again."""

    def __init__(self, bloomd: Bloomd, name: str) -> None:
        self.name = name
        self.directory = bloomd.directory / name
        self.directory.mkdir()
        self.log = self.directory / "log"
        self._environ = {**os.environ, "CLAUDE_FAKE_DIR": str(bloomd.directory / "fake"), "CLAUDE_FAKE_WORKER": name}
        self._mark = f"CLAUDE_FAKE_WORKER={name}"
        (self.directory / "token").write_text(bloomd.ctl("worker", "token", name).stdout.strip())
        (self.directory / "worker.yaml").write_text(json.dumps({"worker": {"command": ["python3", "-IS", str(FAKE)]}}))
        self._command = [
            BIN / "bloomd", "worker", "--server", bloomd.url, "--name", name, "--token-file", self.directory / "token",
            "--max-concurrency", "4", "--root", self.directory / "root", "-c", self.directory / "worker.yaml",
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._environ
            )

    def programs(self) -> set[int]:
        """The process groups of what it has begun, whether the worker is still there or not."""
        return guard.groups(self._mark) - {os.getpgrp()}

    def leaves_nothing_running(self) -> None:
        eventually(lambda: not self.programs(), seconds=END_SECONDS)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


def kill(each: Bloomd | WorkerProcess) -> None:
    assert each.process
    each.process.kill()
    each.process.wait()


@contextmanager
def workers(bloomd: Bloomd, count: int) -> Iterator[list[WorkerProcess]]:
    started = [WorkerProcess(bloomd, f"w{number}") for number in range(count)]
    try:
        yield started
    finally:
        for each in started:
            kill(each)


def queue(bloomd: Bloomd) -> None:
    """Tasks of which most succeed; one in twenty-five always crashes, and a third talk in conversations.

    A few take long, so that somebody who is killed is likely to have one.
    """
    tasks: list[dict[str, Any]] = [
        {
            "prompt": f"fake:crash no {number}"
            if number % 25 == 0
            else f"fake:slow {4 if number % 50 == 7 else 0.05}\nfake:say answer {number}",
            "context_id": f"c{number % 20}" if number % 3 == 0 else "",
            "idempotency_key": str(number),
            "max_attempts": 3,
        }
        for number in range(TASKS)
    ]
    bloomd.http.post("/api/runtime/llm-tasks", json=tasks).raise_for_status()


def left(bloomd: Bloomd) -> int | None:
    """How many have not ended; None while nobody says so."""
    with suppress(httpx.HTTPError, KeyError):
        counts = bloomd.http.get("/api/runtime/stats").json()["tasks"]
        return counts["total"] - sum(counts["by_status"].get(each, 0) for each in ("completed", "dead", "failed"))
    return None


@pytest.mark.slow
def test_every_task_ends_once_whoever_is_killed(postgres_server: PostgresServer, migrated: str) -> None:
    url = postgres_server.create_database(migrated)
    bloomd = Bloomd(url, membridge__serve=f"127.0.0.1:{free_port()}", tasks__retry_delay=0.05)
    chance = random.Random(5)
    with bloomd, workers(bloomd, 3) as fleet:
        fake = bloomd.directory / "fake"
        fake.mkdir()
        queue(bloomd)
        orphans = 0
        until = time.monotonic() + DEADLINE_SECONDS
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.2, 1.5))
            victim = chance.choice([bloomd, *fleet])
            at_work = victim.programs() if isinstance(victim, WorkerProcess) else set[int]()
            kill(victim)
            time.sleep(chance.uniform(0, 0.5))
            if isinstance(victim, WorkerProcess):
                orphans += len(at_work)
                victim.leaves_nothing_running()
            victim.start()
        eventually(lambda: left(bloomd) == 0, seconds=until - time.monotonic())
        assert [worker.stop() for worker in fleet] == [0, 0, 0]
        assert [worker.programs() for worker in fleet] == [set(), set(), set()]
        assert orphans
        assert not (fake / "twice").exists(), (fake / "twice").read_text()
        starts = Counter(json.loads(line)["prompt"] for line in (fake / "log").read_text().splitlines())
        eventually(lambda: bloomd.http.get("/api/runtime/stats").json()["leases"]["active"] == 0)

    with psycopg.connect(url, autocommit=True) as connection:

        def sql(statement: str, *parameters: object) -> list[tuple[Any, ...]]:
            cursor = connection.execute(statement.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

        leases = dict(sql("SELECT prompt, count(*) FROM llm_tasks t JOIN leases ON task_id = t.id GROUP BY prompt"))
        assert {prompt: count for prompt, count in starts.items() if count > leases[prompt]} == {}
        assert sum(starts.values()) >= TASKS
        assert broken(sql, TABLES, TRAIL, AT_REST) == {}
        ended = sql(
            "SELECT idempotency_key::integer, llm_tasks.status, llm_tasks.error_message,"
            f"       count(llm_results.id) FILTER (WHERE llm_results.status = 'success'), max({OUTPUT})"
            "  FROM llm_tasks LEFT JOIN llm_results ON task_id = llm_tasks.id GROUP BY llm_tasks.id"
        )
        assert len(ended) == TASKS
        for number, status, error, successes, output in ended:
            if status == "completed":
                assert (successes, output) == (1, f"answer {number}")
            else:
                assert (status, successes) == ("dead", 0), (number, error)
                assert error, number
        outcome = Counter(status for _, status, *_ in ended)
        # A crash of the program costs an attempt; a kill may, where nobody comes back to give the task back.
        assert outcome["dead"] >= TASKS // 25
        assert outcome["completed"] >= TASKS * 0.9
        print(f"\n{outcome}, attempts: {Counter(sql('SELECT outcome FROM leases'))}")
