"""Answers of a daemon at a good moment and at a bad one; times are relative to `NOW`."""

from copy import deepcopy
from typing import Any

NOW = 1_700_000_000.0


def service(name: str, **more: Any) -> dict[str, Any]:
    usual = {
        "state": "running", "since": NOW - 3 * 3600, "cause": "started", "restarts": 0, "retry_in": None,
        "last_error": None, "essential": False, "by_hand": False,
    }  # fmt: skip
    return {"name": name} | usual | more


def probe(name: str, **more: Any) -> dict[str, Any]:
    latency = {"p50_ms": 1.24, "p99_ms": 14.6, "history": []}
    usual = {"state": "up", "last_ok": NOW - 3, "failures": 0, "error": None} | latency
    return {"name": name} | usual | more


GOOD: dict[str, Any] = {
    "schema": 1,
    "verdict": "ok",
    "reasons": [],
    "notices": ["authentication is off"],
    "services": [
        service("control", essential=True),
        service("http", essential=True),
        service("probes"),
        service("probes/postgres"),
        service("database", restarts=1, last_error="the server closed the connection"),
        service("sync"),
    ],
    "probes": [probe("postgres"), probe("minio", state="disabled", last_ok=None, p50_ms=None, p99_ms=None)],
    "queue": {
        "by_status": {"queued": 12, "running": 3, "completed": 100},
        "oldest_queued_seconds": 75.0,
        "active_leases": 3,
        "rescued_last_hour": 0,
        "pause": None,
    },
    "workers": {"total": 4, "online": 3, "capacity": 12, "busy": 3, "free": 9, "cordoned": 0, "draining": 0},
    "leader": {"node": "alpha", "epoch": 7, "since": NOW - 3 * 3600, "here": True},
    "sync": {
        "configured": True, "last_success": NOW - 4, "age_seconds": 4.0, "failures": 0, "error": None, "agents": 4,
    },
    "process": {
        "pid": 4711, "uptime_seconds": 10800.0, "version": "0.1.0", "schema": 3, "rss_bytes": 88 * 2**20,
        "open_files": 31, "open_files_limit": 1024, "loop_lag_ms": 0.31, "loop_lag_worst_ms": 12.4, "node": "alpha",
    },
    "reload": None,
    "next": None,
}  # fmt: skip

BAD = deepcopy(GOOD) | {
    "verdict": "down",
    "reasons": ["PostgreSQL is away", "sync is waiting"],
    "notices": [],
    "services": [
        service("http", essential=True),
        service(
            "database", state="waiting", since=NOW - 130, retry_in=4.2, restarts=2,
            last_error="connection to 127.0.0.1:5432 failed: Connection refused. Is the server running on that host and"
            " accepting TCP/IP connections?",
        ),
        service("notifications", state="waiting", since=NOW - 130, cause="waits for database"),
        service("sync", state="stopped", since=NOW - 10, cause="stopped by hand", by_hand=True),
    ],
    "probes": [
        probe("postgres", state="down", last_ok=NOW - 131, failures=13, error="\x1b[2Jconnection\nrefused"),
        probe("minio", state="unknown", last_ok=None, p50_ms=None, p99_ms=None),
    ],
    "queue": None,
    "workers": None,
    "leader": None,
    "sync": {
        "configured": True, "last_success": None, "age_seconds": None, "failures": 1, "error": "HTTP 500",
        "agents": None,
    },
    "process": GOOD["process"] | {"schema": None},
    "reload": {"at": NOW - 90, "ok": False, "summary": "bloomd.yaml:3:1: unknown key `htpp`"},
    "next": "bloomd-ctl restart database",
}  # fmt: skip
