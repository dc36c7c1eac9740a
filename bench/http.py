"""Requests and whole tasks a second through the HTTP API, and who is busy with them."""

import json
import statistics
import subprocess
import sys
import time

import psycopg
from bloomd_process import KEY, Bloomd
from servers import PostgresServer

from bench import ROOT
from bench.client import TASK
from bench.measure import Row, cpu_seconds
from bench.rig import rig

CONNECTIONS = 16
RUNS = 3
SECONDS = 5.0
# More than a run of `batch` can finish.
BACKLOG = 40_000

UNITS = {
    "/api/runtime/health": "GET /health",
    "/api/runtime/stats": "GET /stats",
    "create": "POST /llm-tasks",
    "bulk": "POST /llm-tasks, 500 at once (tasks)",
    "cycle": "create, lease, heartbeat, complete",
    "batch": "claim and complete in batches (tasks)",
}


def measure() -> list[Row]:
    rows: list[Row] = []
    with rig() as (server, bloomd):
        for unit, what in UNITS.items():
            register(bloomd)  # again, because who is silent for a minute is offline
            runs: list[dict[str, float]] = []
            for _ in range(RUNS):
                if unit == "batch":
                    fill(bloomd, BACKLOG)
                runs.append(run(server, bloomd, unit))
            rows.append({"what": what, **{name: statistics.median(each[name] for each in runs) for name in runs[0]}})
    return rows


def register(bloomd: Bloomd) -> None:
    """A worker for each connection, with as much room as one may have."""
    for number in range(CONNECTIONS):
        worker = {"name": f"bench-{number}", "capabilities": {"max_concurrency": 32}}
        bloomd.http.post("/api/runtime/workers", json=worker).raise_for_status()


def fill(bloomd: Bloomd, tasks: int) -> None:
    """Tasks that wait, nothing else in the queue, and nothing left over from clients that are gone."""
    statuses = {"filter": {"status": ["queued", "leased", "running"]}}
    bloomd.http.post("/api/runtime/llm-tasks/cancel", json=statuses, timeout=300).raise_for_status()
    with psycopg.connect(bloomd.settings["database.url"], autocommit=True) as connection:
        connection.execute(
            "INSERT INTO llm_tasks (id, prompt, agent_slug, status, created_at) "
            "SELECT gen_random_uuid(), %s, %s, 'queued', bloom_now_ms() FROM generate_series(1, %s)",
            (TASK["prompt"], TASK["agent_slug"], tasks),
        )
        connection.execute("VACUUM ANALYZE llm_tasks")


def run(server: PostgresServer, bloomd: Bloomd, unit: str) -> dict[str, float]:
    """What the client counted, and how much of a core each side had of it."""
    command = [sys.executable, "-m", "bench.client", str(bloomd.port), KEY, unit, str(CONNECTIONS), str(SECONDS)]
    with subprocess.Popen(command, text=True, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdin
        assert client.stdout
        assert bloomd.process
        busy = {"client": client.pid, "bloomd": bloomd.process.pid, "PostgreSQL": server.pid}
        assert client.stdout.readline() == "warm\n"
        began, before = time.monotonic(), {name: cpu_seconds(process) for name, process in busy.items()}
        figures: dict[str, float] = json.loads(client.stdout.readline())
        for name, process in busy.items():
            figures[f"{name} CPU %"] = 100 * (cpu_seconds(process) - before[name]) / (time.monotonic() - began)
        client.stdin.close()
    return figures
