"""The fleet: from `task add` to the process that does it, a thousand workers that wait, and what one worker takes."""

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
from bloomd_process import BIN, KEY, Bloomd
from servers import eventually

from bench import ROOT
from bench.measure import Row, cpu_seconds, rss_mb
from bench.rig import rig

FAKE = ROOT / "tests" / "fake_claude.py"

TASKS = 100
WAITING = 1000
# While nothing happens.
IDLE_SECONDS = 20.0
WAIT_SECONDS = 60


def measure() -> list[Row]:
    with rig() as (server, bloomd):
        return [*_one_worker(bloomd), *trio.run(_a_thousand, bloomd, server.pid)]


def _one_worker(bloomd: Bloomd) -> list[Row]:
    with _worker(bloomd) as (process, starts):
        time.sleep(2)  # it has registered, and waits
        memory = rss_mb(process.pid)
        waits: list[float] = []
        for number in range(TASKS):
            began = time.time()
            done = bloomd.ctl("task", "add", f"number {number}")
            assert done.returncode == 0, done.stderr
            eventually(lambda number=number: len(_lines(starts)) > number)
            waits.append((json.loads(_lines(starts)[number])["at"] - began) * 1000)
        eventually(lambda: bloomd.http.get("/api/runtime/stats").json()["leases"]["active"] == 0)
        ping = _median_ms(lambda: bloomd.ctl("ping"))
    cuts = statistics.quantiles(waits, n=100)
    return [
        {"what": "`bloomd-ctl task add`, to the start of the program", "p50 ms": cuts[49], "p99 ms": cuts[98]},
        {"what": "of that `bloomd-ctl` itself, by a ping", "p50 ms": ping},
        {"what": "a worker that waits", "RSS MB": memory},
    ]


@contextmanager
def _worker(bloomd: Bloomd) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """A worker with a program that notes when it was started."""
    told = bloomd.directory / "told"
    told.mkdir()
    (bloomd.directory / "key").write_text(KEY)
    file = bloomd.directory / "worker.yaml"
    file.write_text(json.dumps({"worker": {"command": ["python3", "-IS", str(FAKE)]}}))
    command = [
        BIN / "bloomd", "worker", "--server", bloomd.url, "--name", "bench", "--root", bloomd.directory / "root",
        "--token-file", bloomd.directory / "key", "-c", file,
    ]  # fmt: skip
    environ = {**os.environ, "CLAUDE_FAKE_DIR": str(told)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        yield process, told / "log"
        process.terminate()


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def _median_ms(call: Callable[[], object]) -> float:
    seconds: list[float] = []
    for _ in range(20):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1000


async def _a_thousand(bloomd: Bloomd, postgresql: int) -> list[Row]:
    assert bloomd.process
    for number in range(WAITING):
        body = {"name": f"w{number}", "capabilities": {"max_concurrency": 1}}
        bloomd.http.post("/api/runtime/workers", json=body).raise_for_status()
    before = rss_mb(bloomd.process.pid)
    answers, answered = trio.open_memory_channel[float](WAITING)
    async with trio.open_nursery() as nursery:
        for number in range(WAITING):
            nursery.start_soon(_claim_for_ever, bloomd.port, f"w{number}", answers)
            await trio.sleep(0.003)
        await trio.sleep(3)
        busy = {"bloomd": bloomd.process.pid, "PostgreSQL": postgresql}
        used = {name: cpu_seconds(process) for name, process in busy.items()}
        await trio.sleep(IDLE_SECONDS)
        idle = {
            f"{name} CPU %": 100 * (cpu_seconds(process) - used[name]) / IDLE_SECONDS for name, process in busy.items()
        }
        memory = rss_mb(bloomd.process.pid)
        waits: list[float] = []
        for _ in range(TASKS):
            began = time.monotonic()
            await trio.to_thread.run_sync(_create, bloomd)
            waits.append((await answered.receive() - began) * 1000)
            await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    cuts = statistics.quantiles(waits, n=100)
    return [
        {"what": f"{WAITING} workers that wait", "RSS MB": memory, "MB more than without": memory - before, **idle},
        {"what": "a task created, to the answer of one of them", "p50 ms": cuts[49], "p99 ms": cuts[98]},
    ]


def _create(bloomd: Bloomd) -> None:
    bloomd.http.post("/api/runtime/llm-tasks", json={"prompt": "x"}).raise_for_status()


async def _claim_for_ever(port: int, name: str, answers: trio.MemorySendChannel[float]) -> None:
    """Wait for tasks on one connection, until there was one."""
    body = json.dumps({"worker_id": name, "wait_seconds": WAIT_SECONDS})
    request = (
        "POST /api/runtime/leases/claim HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"X-Runtime-API-Key: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        while True:
            await stream.send_all(request)
            answer = b""
            while not answer.endswith((b"]}", b"}")):
                piece = await stream.receive_some()
                assert piece, "the connection was closed"
                answer += piece
            if b'"leases":[]' not in answer:
                answers.send_nowait(time.monotonic())
                return
