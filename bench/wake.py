"""How long a waiting claim waits for a task that has just been created; and a task, for the death of its worker."""

import statistics
import threading
import time

import httpx
from bloomd_process import KEY, Bloomd

from bench.measure import Row, spread
from bench.rig import rig

TASKS = 500
DEATHS = 5
# The shortest that a lease may last.
TTL_SECONDS = 5


def measure() -> list[Row]:
    with rig() as (_, bloomd):
        bloomd.http.post("/api/runtime/workers", json={"name": "w1", "capabilities": {"max_concurrency": 32}})
        return [_wakes(bloomd), _deaths(bloomd)]


def _wakes(bloomd: Bloomd) -> Row:
    """From the moment at which a create is sent, and from its answer, to the answer of the claim that waits."""
    answered: list[float] = []
    ready = threading.Semaphore(0)

    def claim() -> None:
        with httpx.Client(base_url=str(bloomd.http.base_url), headers={"X-Runtime-API-Key": KEY}) as client:
            for _ in range(TASKS):
                ready.release()
                body = {"worker_id": "w1", "wait_seconds": 60}
                [each] = client.post("/api/runtime/leases/claim", json=body, timeout=70).json()["leases"]
                answered.append(time.monotonic())
                done = [{"lease_id": each["lease"]["id"], "status": "success"}]
                client.post("/api/runtime/leases/complete", json=done)

    waiting = threading.Thread(target=claim)
    waiting.start()
    sent: list[float] = []
    created: list[float] = []
    for number in range(TASKS):
        ready.acquire()
        time.sleep(0.02)  # it waits by now
        sent.append(time.monotonic())
        bloomd.http.post("/api/runtime/llm-tasks", json={"prompt": "x"}).raise_for_status()
        created.append(time.monotonic())
        while len(answered) <= number:
            time.sleep(0.0002)
    waiting.join()
    waits = [(end - begin) * 1000 for begin, end in zip(sent, answered, strict=True)]
    after = [(end - begin) * 1000 for begin, end in zip(created, answered, strict=True)]
    cuts = statistics.quantiles(waits, n=100)
    return {
        "what": "create sent, to the waiting claim's answer",
        "p50 ms": cuts[49],
        "p99 ms": cuts[98],
        "p50 ms after the create's answer": statistics.median(after),
        "runs": TASKS,
    }


def _deaths(bloomd: Bloomd) -> Row:
    """A worker claims with the shortest time to live and is never heard of again."""
    seconds: list[float] = []
    for _ in range(DEATHS):
        task = bloomd.http.post("/api/runtime/llm-tasks", json={"prompt": "x"}).json()["id"]
        claim = {"worker_id": "w1", "ttl_seconds": TTL_SECONDS, "max": 32}
        bloomd.http.post("/api/runtime/leases/claim", json=claim).raise_for_status()
        began = time.monotonic()
        while bloomd.http.get(f"/api/runtime/llm-tasks/{task}").json()["status"] != "queued":
            time.sleep(0.01)
        seconds.append(time.monotonic() - began)
        bloomd.http.post(f"/api/runtime/llm-tasks/{task}/cancel")
    return {"what": f"death of a worker, to its task queued again (ttl {TTL_SECONDS} s)", **spread(seconds)}
