"""`python -m bench.client PORT KEY UNIT CONNECTIONS SECONDS`: keeps bloomd busy, from a process of its own.

UNIT is one of `UNITS`, or a path to GET.

Plain sockets and one selector: a real HTTP client would need more of the machine than the daemon. Every connection
does its unit of work again and again. A line says that the warm-up is over, and one at the end has the figures.
"""

import json
import re
import selectors
import socket
import statistics
import sys
import time
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

WARM_UP_SECONDS = 1.0

TASKS = "/api/runtime/llm-tasks"
TASK = {"prompt": "Summarise the attached minutes in three sentences.", "agent_slug": "summary"}
RESULT = {"status": "success", "output": "They met. They agreed. They will meet again.", "metrics": {"duration_ms": 9}}

# As many as one request may bring.
BULK = 500
# More than a worker may hold (32), so that it gets all it can.
BATCH = 50

# Yields requests (method, path, body), is sent the decoded answers, and returns how many things it has done.
Unit = Generator[tuple[str, str, Any], Any, int]


def get(path: str) -> Unit:
    yield "GET", path, {}
    return 1


def create(connection: int) -> Unit:
    yield "POST", TASKS, TASK
    return 1


def bulk(connection: int) -> Unit:
    yield "POST", TASKS, [TASK] * BULK
    return BULK


def batch(connection: int) -> Unit:
    """Each connection is a worker of its own."""
    claim = {"worker_id": f"bench-{connection}", "max": BATCH, "wait_seconds": 5}
    claimed = (yield "POST", "/api/runtime/leases/claim", claim)["leases"]
    done = yield (
        "POST",
        "/api/runtime/leases/complete",
        [RESULT | {"lease_id": each["lease"]["id"]} for each in claimed],
    )
    return sum(each["ok"] for each in done)


def cycle(connection: int) -> Unit:
    task = yield "POST", TASKS, TASK
    path = f"{TASKS}/{task['id']}"
    leased = yield "POST", f"{path}/lease", {}
    proof = {"lease_id": leased["lease"]["id"]}
    yield "POST", f"{path}/heartbeat", proof
    yield "POST", f"{path}/complete", RESULT | proof
    return 1


UNITS: dict[str, Callable[[int], Unit]] = {"create": create, "bulk": bulk, "batch": batch, "cycle": cycle}


class Connection:
    def __init__(self, port: str, key: str, unit: Callable[[], Unit]) -> None:
        self.socket = socket.create_connection(("127.0.0.1", int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._key = key
        self._unit = unit
        self._begin()

    def receive(self) -> tuple[float, int] | None:
        """Read what has come, and go on when an answer is complete; seconds and things of the unit that this ended."""
        chunk = self.socket.recv(1 << 16)
        self._received += chunk
        head, _, body = self._received.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        if not chunk or (length and int(head[9:12]) >= 300):
            raise SystemExit(f"bloomd refused: {self._received.decode()}")
        if not length or len(body) < int(length[1]):
            return None
        try:
            self._send(*self._steps.send(json.loads(body)))
        except StopIteration as end:
            took = time.monotonic() - self._began
            self._begin()
            return took, end.value
        return None

    def _begin(self) -> None:
        self._began = time.monotonic()
        self._steps = self._unit()
        self._send(*next(self._steps))

    def _send(self, method: str, path: str, body: Any) -> None:
        content = "" if body == {} else json.dumps(body)
        head = f"{method} {path} HTTP/1.1\r\nhost: bench\r\nx-runtime-api-key: {self._key}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        self._received = b""
        self.socket.sendall((head + content).encode())


def _work(selector: selectors.BaseSelector, seconds: float) -> list[tuple[float, int]]:
    units: list[tuple[float, int]] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        units += [ended for key, _ in selector.select(0.1) if (ended := key.data())]
    return units


def main(port: str, key: str, unit: str, connections: str, seconds: str) -> None:
    with selectors.DefaultSelector() as selector:
        for number in range(int(connections)):
            begin = partial(UNITS[unit], number) if unit in UNITS else partial(get, unit)
            connection = Connection(port, key, begin)
            selector.register(connection.socket, selectors.EVENT_READ, connection.receive)
        _work(selector, WARM_UP_SECONDS)
        print("warm", flush=True)
        units = _work(selector, float(seconds))
        cuts = statistics.quantiles([took for took, _ in units], n=100)
        done = sum(things for _, things in units)
        print(json.dumps({"per s": done / float(seconds), "p50 ms": cuts[49] * 1e3, "p99 ms": cuts[98] * 1e3}))
        sys.stdout.flush()
        sys.stdin.read()  # until our CPU time was looked at


if __name__ == "__main__":
    main(*sys.argv[1:])
