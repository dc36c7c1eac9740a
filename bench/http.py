"""Requests and whole tasks a second through the HTTP API, and who is busy with them."""

import json
import statistics
import subprocess
import sys
import time

from bloomd_process import KEY, Bloomd
from servers import PostgresServer

from bench import ROOT
from bench.measure import Row, cpu_seconds
from bench.rig import rig

CONNECTIONS = 16
RUNS = 3
SECONDS = 5.0
WORKERS = 4

UNITS = {
    "health": "GET /health",
    "stats": "GET /stats",
    "create": "POST /llm-tasks",
    "cycle": "create, lease, heartbeat, complete",
}


def measure() -> list[Row]:
    rows: list[Row] = []
    with rig() as (server, bloomd):
        for number in range(WORKERS):
            worker = {"name": f"bench-{number}", "capabilities": {"max_concurrency": 32}}
            bloomd.http.post("/api/runtime/workers", json=worker).raise_for_status()
        for unit, what in UNITS.items():
            runs = [run(server, bloomd, unit) for _ in range(RUNS)]
            rows.append({"what": what, **{name: statistics.median(each[name] for each in runs) for name in runs[0]}})
    return rows


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
