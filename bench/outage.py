"""How long after PostgreSQL answers again, killed and recovered, the API takes the next task."""

import time

from servers import eventually

from bench.measure import Row, spread
from bench.rig import rig

RUNS = 5
# By then every retry has reached the longest of its delays.
AWAY_SECONDS = 4.0


def measure() -> list[Row]:
    times: list[float] = []
    with rig() as (server, bloomd):

        def created() -> bool:
            return bloomd.http.post("/api/runtime/llm-tasks", json={"prompt": "Say hello"}).status_code == 201

        for _ in range(RUNS):
            eventually(created)
            server.kill()
            time.sleep(AWAY_SECONDS)
            assert not created(), "PostgreSQL was killed, and yet a task was taken"
            server.start()  # returns once it answers
            began = time.monotonic()
            eventually(created)
            times.append(time.monotonic() - began)
    return [{"what": "PostgreSQL answers to the next task created", **spread(times)}]
