"""Artifacts: in and out, a GiB of one, and completions while the object store is well, slow and away."""

import http.client
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from bloomd_process import BIN, KEY, Bloomd
from s3_server import ACCESS, SECRET, Line, S3Server, s3_server
from servers import eventually

from bench.measure import Row, cpu_seconds, rss_mb
from bench.rig import rig

T = TypeVar("T")

CONNECTIONS = 8

# Name, content, how many. Text of this size stands in the row of its artifact, anything else in a table of its own.
KINDS = (
    ("4 KiB of text", b"They met. They agreed. ".ljust(4 << 10, b"."), 1500),
    ("4 KiB", os.urandom(4 << 10), 1500),
    ("8 MiB", os.urandom(8 << 20), 32),
)

GIB = 1 << 30
CHUNK = os.urandom(1 << 20)

# What the completions of one round bring, and how long it is from one to the next: the mover is at work meanwhile.
OUTPUT = "They met. They agreed. " * 700
COMPLETIONS = 250
PAUSE_SECONDS = 0.01
ROUNDS = 2
# As many as a worker may hold.
HELD = 32

PATIENCE_SECONDS = 300.0

TO_MOVE = "SELECT count(*) FROM runtime_artifacts WHERE url IS NULL AND size >= 4096"


def measure() -> list[Row]:
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as directory,
        s3_server(str(BIN / "rclone"), Path(directory)) as s3,
    ):
        with rig() as (server, bloomd):
            busy = {"bloomd": _pid(bloomd), "PostgreSQL": server.pid, "store": s3.pid}
            rows = [row for kind in KINDS for row in _in_and_out(bloomd, s3, busy, *kind)]
        with rig() as (_, bloomd):
            rows += _gib(bloomd, s3)
        with rig() as (_, bloomd):
            rows += _completions(bloomd, s3)
    return rows


def _in_and_out(
    bloomd: Bloomd, s3: S3Server, busy: dict[str, int], kind: str, content: bytes, count: int
) -> Iterator[Row]:
    """Each step by itself: the store comes when all is uploaded, and is read when all is there."""

    @contextmanager
    def step(what: str) -> Iterator[Row]:
        row: Row = {"what": f"{kind}, {what}"}
        began, used = time.monotonic(), {name: cpu_seconds(process) for name, process in busy.items()}
        yield row
        seconds = time.monotonic() - began
        row |= {"per s": count / seconds, "MB/s": count * len(content) / seconds / 1e6}
        row |= {f"{name} CPU %": 100 * (cpu_seconds(process) - used[name]) / seconds for name, process in busy.items()}

    ids: list[str] = []
    leases = [_lease(bloomd) for _ in range(CONNECTIONS)]
    names = [(leases[number % CONNECTIONS][1], f"{number}.bin") for number in range(count)]

    def put(connection: http.client.HTTPConnection, artifact: tuple[str, str]) -> None:
        ids.append(_put(connection, *artifact, [content], len(content)))

    def get(connection: http.client.HTTPConnection, id: str) -> None:
        assert _get(connection, id) == len(content)

    with step(f"in: PUT by {CONNECTIONS} at once") as row:
        _each(bloomd, names, put)
    yield row
    for task, _ in leases:
        _complete(bloomd, task)
    prefix = f"{kind.replace(' ', '-')}/"
    _connect(bloomd, s3.endpoint, prefix)
    eventually((s3.directory / "artifacts" / prefix).exists)
    with step("to the object store") as row:
        _wait_until_moved(bloomd)
    yield row
    with step(f"out: GET by {CONNECTIONS} at once") as row:
        _each(bloomd, ids, get)
    yield row
    _connect(bloomd, None)


def _gib(bloomd: Bloomd, s3: S3Server) -> Iterator[Row]:
    """One artifact of a GiB: what the daemon has in memory meanwhile."""
    process = _pid(bloomd)

    @contextmanager
    def step(what: str) -> Iterator[Row]:
        row: Row = {"what": f"1 GiB, {what}"}
        before, began = rss_mb(process), time.monotonic()
        Path(f"/proc/{process}/clear_refs").write_text("5")  # the peak is of now on
        yield row
        seconds = time.monotonic() - began
        row["MB/s"] = GIB / seconds / 1e6
        row |= {"RSS MB before": before, "peak": _peak_mb(process), "after": rss_mb(process)}

    task, lease = _lease(bloomd)
    with step("in: PUT") as row, _connection(bloomd) as connection:
        id = _put(connection, lease, "gib.bin", (CHUNK for _ in range(GIB // len(CHUNK))), GIB)
    yield row
    _complete(bloomd, task)
    _connect(bloomd, s3.endpoint, "gib/")
    with step("to the object store") as row:
        _wait_until_moved(bloomd)
    yield row
    with step("out: GET") as row, _connection(bloomd) as connection:
        assert _get(connection, id) == GIB
    yield row


def _completions(bloomd: Bloomd, s3: S3Server) -> Iterator[Row]:
    """In turns, so that none has a better time than another."""
    line = Line(s3.endpoint)
    times: dict[str, list[float]] = {}
    _register(bloomd)

    def up() -> None:
        _wait_until_moved(bloomd)

    def slow() -> None:
        line.mode = "slow"

    def away() -> None:
        line.mode = "ok"
        s3.kill()
        eventually(lambda: "objects is waiting" in str(bloomd.status()["reasons"]))

    with _connection(bloomd) as connection:
        for _ in range(ROUNDS):
            _connect(bloomd, None)
            times.setdefault("without a store", []).extend(_round(bloomd, connection))
            _connect(bloomd, line.endpoint)
            for what, change in (("store up", up), ("store slow (2 s an answer)", slow), ("store away", away)):
                change()
                times.setdefault(what, []).extend(_round(bloomd, connection))
            s3.start()
    line.close()
    for what, each in times.items():
        cuts = statistics.quantiles(each, n=100)
        told = {"p50 ms": cuts[49] * 1e3, "p99 ms": cuts[98] * 1e3, "max ms": max(each) * 1e3, "runs": len(each)}
        yield {"what": f"completion of {len(OUTPUT) // 1000} kB, {what}", **told}


def _round(bloomd: Bloomd, connection: http.client.HTTPConnection) -> list[float]:
    bloomd.http.post("/api/runtime/llm-tasks", json=[{"prompt": "Say hello"}] * COMPLETIONS).raise_for_status()
    times: list[float] = []
    while len(times) < COMPLETIONS:
        claim = {"worker_id": "bench", "max": HELD, "ttl_seconds": 600}
        claimed = bloomd.http.post("/api/runtime/leases/claim", json=claim).raise_for_status().json()["leases"]
        for each in claimed:
            said = {"lease_id": each["lease"]["id"], "status": "success", "output": OUTPUT}
            path, body = f"/api/runtime/llm-tasks/{each['task']['id']}/complete", json.dumps(said)
            began = time.monotonic()
            _ask(connection, "POST", path, body, **{"Content-Type": "application/json"})
            times.append(time.monotonic() - began)
            time.sleep(PAUSE_SECONDS)
    return times


def _each(bloomd: Bloomd, things: Sequence[T], call: Callable[[http.client.HTTPConnection, T], None]) -> None:
    """Call it for each, on some connections at once."""

    def some(number: int) -> None:
        with _connection(bloomd) as connection:
            for thing in things[number::CONNECTIONS]:
                call(connection, thing)

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        list(threads.map(some, range(CONNECTIONS)))


@contextmanager
def _connection(bloomd: Bloomd) -> Iterator[http.client.HTTPConnection]:
    """Little enough of a client to leave the machine to the daemon."""
    connection = http.client.HTTPConnection("127.0.0.1", bloomd.port, timeout=PATIENCE_SECONDS)
    yield connection
    connection.close()


def _ask(connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, **headers: Any) -> bytes:
    connection.request(method, path, body, {"X-Runtime-API-Key": KEY, **headers})
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status < 300, content
    return content


def _put(connection: http.client.HTTPConnection, lease: str, name: str, content: Iterable[bytes], size: int) -> str:
    """The id of the artifact."""
    path = f"/api/runtime/leases/{lease}/artifacts/{name}"
    return json.loads(_ask(connection, "PUT", path, content, **{"Content-Length": str(size)}))["id"]


def _get(connection: http.client.HTTPConnection, id: str) -> int:
    """How many bytes came."""
    connection.request("GET", f"/api/runtime/artifacts/{id}/content", headers={"X-Runtime-API-Key": KEY})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    room, size = bytearray(1 << 20), 0
    while got := answer.readinto(room):
        size += got
    return size


def _register(bloomd: Bloomd) -> None:
    worker = {"name": "bench", "capabilities": {"max_concurrency": HELD}}
    bloomd.http.post("/api/runtime/workers", json=worker).raise_for_status()


def _lease(bloomd: Bloomd) -> tuple[str, str]:
    """The ids of a task and of its lease."""
    _register(bloomd)
    task = bloomd.http.post("/api/runtime/llm-tasks", json={"prompt": "Say hello"}).raise_for_status().json()["id"]
    leased = bloomd.http.post(f"/api/runtime/llm-tasks/{task}/lease", json={"worker_id": "bench", "ttl_seconds": 3600})
    return task, leased.raise_for_status().json()["lease"]["id"]


def _complete(bloomd: Bloomd, task: str) -> None:
    said = {"status": "success", "output": "Done."}
    bloomd.http.post(f"/api/runtime/llm-tasks/{task}/complete", json=said).raise_for_status()


def _connect(bloomd: Bloomd, endpoint: str | None, prefix: str = "") -> None:
    """Give the daemon this object store, or none."""
    bloomd.configure(
        minio__endpoint=endpoint,
        minio__bucket="artifacts",
        minio__access_key=ACCESS,
        minio__secret_key=SECRET,
        minio__prefix=prefix,
    )
    done = bloomd.ctl("reload")
    assert done.returncode == 0, done.stderr


def _wait_until_moved(bloomd: Bloomd) -> None:
    with psycopg.connect(bloomd.settings["database.url"], autocommit=True) as connection:
        eventually(lambda: connection.execute(TO_MOVE).fetchone() == (0,), seconds=PATIENCE_SECONDS)


def _pid(bloomd: Bloomd) -> int:
    assert bloomd.process
    return bloomd.process.pid


def _peak_mb(process: int) -> float:
    """The most that a process has had in memory since it was last asked to begin anew."""
    [kib] = re.findall(r"VmHWM:\s*(\d+)", Path(f"/proc/{process}/status").read_text())
    return int(kib) * 1024 / 1e6
