"""How soon a daemon answers on a database that exists, and what one costs that has nothing to do."""

import time
import urllib.request

from bloomd_process import Bloomd
from servers import eventually

from bench.measure import Row, cpu_seconds, rss_mb, spread
from bench.rig import rig

RUNS = 10
# By then the imports and the first round of every loop are over.
SETTLE_SECONDS = 5.0
IDLE_SECONDS = 20.0


def measure() -> list[Row]:
    healthy: list[float] = []
    ready: list[float] = []
    with rig() as (_, bloomd):
        for _ in range(RUNS):
            bloomd.stop()
            began = time.monotonic()
            bloomd.start(ready=False)
            for path, times in (("/api/runtime/health", healthy), ("/ready", ready)):
                eventually(lambda path=path: _answers(bloomd, path))
                times.append(time.monotonic() - began)
        assert bloomd.process
        time.sleep(SETTLE_SECONDS)
        before = cpu_seconds(bloomd.process.pid)
        time.sleep(IDLE_SECONDS)
        idle = (cpu_seconds(bloomd.process.pid) - before) / IDLE_SECONDS
        memory = rss_mb(bloomd.process.pid)
    return [
        {"what": "process start to 200 of /health", **spread(healthy)},
        {"what": "process start to 200 of /ready", **spread(ready)},
        {"what": f"idle for {IDLE_SECONDS:.0f} s", "RSS MB": memory, "CPU ms per s": idle * 1000},
    ]


def _answers(bloomd: Bloomd, path: str) -> bool:
    try:
        return urllib.request.urlopen(bloomd.url + path, timeout=10).status == 200
    except OSError:
        return False
