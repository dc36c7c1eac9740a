"""PostgreSQL dies, freezes, is late, comes back: nothing acknowledged is lost, and nobody has to do anything."""

import threading
import time

import httpx
from servers import eventually


def test_kill_9_of_postgresql_while_tasks_are_worked_on(bloomd, server):
    daemon = bloomd(server.conninfo()).start()
    daemon.http.post("/api/runtime/workers", json={"name": "w", "capabilities": {"max_concurrency": 32}})
    completed: list[str] = []
    statuses: set[int] = set()
    stop = threading.Event()

    def work() -> None:
        with httpx.Client(base_url=daemon.url, headers=daemon.http.headers, timeout=40) as client:
            while not stop.is_set():
                created = client.post("/api/runtime/llm-tasks", json={"prompt": "x"})
                statuses.add(created.status_code)
                if created.status_code != 201:
                    time.sleep(0.05)
                    continue
                path = f"/api/runtime/llm-tasks/{created.json()['id']}"
                client.post(f"{path}/lease")
                if client.post(f"{path}/complete", json={"status": "success", "output": "y"}).status_code == 200:
                    completed.append(created.json()["id"])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(completed) > 40)
    server.kill()
    eventually(lambda: 503 in statuses)
    assert daemon.ctl("status").returncode == 2
    server.start()
    back = time.monotonic()
    before = len(completed)
    eventually(lambda: len(completed) > before, seconds=5)
    assert time.monotonic() - back < 2
    eventually(lambda: len(completed) > before + 20)
    stop.set()
    for thread in threads:
        thread.join()
    assert statuses <= {201, 503}
    assert daemon.process.poll() is None
    for task in completed:
        assert daemon.http.get(f"/api/runtime/llm-tasks/{task}").json()["status"] == "completed"


def test_postgresql_away_at_the_start(bloomd, server):
    daemon = bloomd(server.conninfo())
    server.stop()
    daemon.start(ready=False)
    eventually(lambda: daemon.socket.exists() and daemon.ctl("status").returncode == 2)
    health = daemon.http.get("/api/runtime/health")
    assert (health.status_code, health.json()["status"], health.json()["storage"]) == (200, "down", "unavailable")
    answer = daemon.http.get("/api/runtime/stats")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    status = daemon.ctl("status").stdout
    assert status.splitlines()[0].lower().startswith("down")
    assert "unknown (the database is not ready)" in status
    server.start()
    back = time.monotonic()
    eventually(daemon.is_ready)
    assert time.monotonic() - back < 2


def test_postgresql_frozen_at_the_start_and_then_again(bloomd, server):
    daemon = bloomd(server.conninfo(), database__connect_timeout=1)
    server.sigstop()
    try:
        daemon.start(ready=False)
        eventually(lambda: daemon.socket.exists() and daemon.ctl("status").returncode == 2)
        assert daemon.http.get("/api/runtime/health").status_code == 200
    finally:
        server.sigcont()
    back = time.monotonic()
    eventually(daemon.is_ready)
    assert time.monotonic() - back < 2.5
    server.sigstop()
    try:
        eventually(lambda: daemon.ctl("status").returncode == 2)
        began = time.monotonic()
        assert daemon.http.get("/api/runtime/stats").status_code == 503
        assert time.monotonic() - began < 2
    finally:
        server.sigcont()
    eventually(daemon.is_ready)
