"""Events and wake-ups across daemons, outages and ends."""

import socket
import threading
import time

import httpx
import psycopg
import pytest
from bloomd_process import KEY
from event_source import PATH, EventSource
from servers import eventually

INSERT = """
INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
SELECT gen_random_uuid(), 1, 'task.test', 'task', %s, 'test', %s FROM generate_series(1, %s)
"""

# How long something may take that takes milliseconds on a machine with nothing else to do.
AT_ONCE = 0.7


def insert(url, entity, *, detail="", times=1):
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(INSERT, [entity, detail, times])


def kill_listeners(url):
    with psycopg.connect(url, autocommit=True) as connection:
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'bloomd listener'"
        return connection.execute(f"{query} AND datname = current_database()").rowcount


def create(daemon, **fields):
    return daemon.http.post("/api/runtime/llm-tasks", json={"prompt": "x", **fields}).json()["id"]


def service(daemon, name):
    return next(each for each in daemon.status()["services"] if each["name"] == name)


@pytest.fixture
def two(bloomd):
    return bloomd().start(), bloomd().start()


def test_what_happens_at_one_node_is_told_at_the_other_at_once(two):
    one, other = two
    with EventSource(other.http, types="task") as source:
        slowest = 0.0
        for _ in range(10):
            time.sleep(0.1)  # each after a time of quiet
            began = time.monotonic()
            task = create(one)
            assert source.take(1)[0].data["entity_id"] == task
            slowest = max(slowest, time.monotonic() - began)
    assert slowest < AT_ONCE


def test_progress_told_to_one_node_reaches_the_readers_of_the_other(two):
    one, other = two
    one.http.post("/api/runtime/workers", json={"name": "w"})
    task = create(one)
    one.http.post(f"/api/runtime/llm-tasks/{task}/lease")
    with EventSource(other.http, entity_id=task) as source:
        one.http.post(f"/api/runtime/llm-tasks/{task}/heartbeat", json={"progress": "half"})
        told = source.until(lambda event: event.data["action"] == "task.progress")
    assert (told.type, told.data["progress"], told.data["entity_id"]) == ("task", "half", task)


def test_a_reader_goes_on_at_another_node(two):
    one, other = two
    with EventSource(one.http, types="task") as source:
        tasks = [create(one) for _ in range(6)]
        seen = source.take(3)
    with EventSource(other.http, last_id=seen[-1].id, types="task") as source:
        assert [event.data["entity_id"] for event in [*seen, *source.take(3)]] == tasks


def test_a_killed_listener_is_noticed_and_nothing_is_stranded_meanwhile(two, database):
    """Both listeners are killed again and again, while tasks made at one node are claimed and followed at the other."""
    one, other = two
    other.http.post("/api/runtime/workers", json={"name": "w", "capabilities": {"max_concurrency": 32}})
    made, claimed = [], []

    def claim():
        while len(claimed) < 20:
            asked = {"worker_id": "w", "max": 5, "wait_seconds": 10}
            claimed.extend(
                each["task"]["id"] for each in other.http.post("/api/runtime/leases/claim", json=asked).json()["leases"]
            )

    thread = threading.Thread(target=claim)
    with EventSource(other.http, types="task") as source:
        thread.start()
        for _ in range(20):
            assert kill_listeners(database) <= 2
            made.append(create(one))
            time.sleep(0.05)
        created = [event.data["entity_id"] for event in source.take(40) if event.data["action"] == "task.created"]
    thread.join(20)
    assert created == made
    assert sorted(claimed) == sorted(made)
    for node in two:
        eventually(lambda node=node: service(node, "notifications")["state"] == "running")
        assert service(node, "notifications")["last_error"]
    with EventSource(other.http, types="task") as source:
        began = time.monotonic()
        task = create(one)
        assert source.take(1)[0].data["entity_id"] == task
        assert time.monotonic() - began < AT_ONCE


def test_after_a_restart_of_the_daemon_a_reader_misses_nothing(bloomd, database):
    daemon = bloomd().start()
    with EventSource(daemon.http, types="task") as source:
        insert(database, "before")
        [seen] = [source.until(lambda event: event.data["entity_id"] == "before")]
    assert daemon.stop() == 0
    insert(database, "meanwhile", times=3)
    daemon.start()
    with EventSource(daemon.http, last_id=seen.id, types="task") as source:
        assert [event.data["entity_id"] for event in source.take(3)] == ["meanwhile"] * 3


def test_a_stream_outlives_the_database(bloomd, server):
    url = server.create_database()
    daemon = bloomd(url).start()
    with EventSource(daemon.http, types="task", seconds=30) as source:
        insert(url, "before")
        assert source.take(1)[0].data["entity_id"] == "before"
        server.kill()
        eventually(lambda: daemon.http.get("/ready").status_code == 503)
        assert daemon.http.get(PATH).status_code == 503
        server.start()
        insert(url, "after")
        assert source.take(1)[0].data["entity_id"] == "after"


def test_open_streams_end_with_the_daemon_properly_and_at_once(bloomd):
    daemon = bloomd(http__drain_seconds=30).start()
    ends = []

    def follow(opened):
        with EventSource(daemon.http) as source:
            opened.release()
            ends.append(list(source))  # a stream that breaks off would raise

    opened = threading.Semaphore(0)
    threads = [threading.Thread(target=follow, args=[opened]) for _ in range(20)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert opened.acquire(timeout=20)
    hanging = connect(daemon)  # one that does not read
    began = time.monotonic()
    assert daemon.stop(seconds=20) == 0
    assert time.monotonic() - began < 10
    for thread in threads:
        thread.join(10)
    assert len(ends) == len(threads)
    hanging.close()


def connect(daemon):
    """A reader that reads nothing after the greeting, with as small a buffer as there can be."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.connect(("127.0.0.1", daemon.port))
    reader.settimeout(20)
    reader.sendall(f"GET {PATH} HTTP/1.1\r\nHost: x\r\nX-Runtime-API-Key: {KEY}\r\n\r\n".encode())
    received = b""
    while b"retry" not in received:
        received += reader.recv(1024)
    return reader


def test_who_does_not_read_is_dropped_and_the_others_read_on(bloomd, database):
    daemon = bloomd().start()
    hanging = connect(daemon)
    with EventSource(daemon.http, types="task", seconds=60) as source:
        for n in range(10):
            insert(database, f"e{n}", detail="x" * 20_000, times=200)
            assert {event.data["entity_id"] for event in source.take(200)} == {f"e{n}"}
        eventually(lambda: "readers of events dropped" in daemon.log.read_text())
        eventually(lambda: subscribers(daemon) == 1)
        received = 0
        with pytest.raises((ConnectionResetError, EOFError)):
            while chunk := hanging.recv(1 << 20):
                received += len(chunk)
            raise EOFError
        assert received < 10 * 200 * 20_000 / 2
        insert(database, "end")
        assert source.take(1)[0].data["entity_id"] == "end"
    hanging.close()


def subscribers(daemon):
    [line] = [line for line in daemon.http.get("/metrics").text.splitlines() if line.startswith("bloomd_event_sub")]
    return float(line.split()[-1])


def test_who_goes_away_is_forgotten(bloomd):
    daemon = bloomd().start()
    assert subscribers(daemon) == 0
    with EventSource(daemon.http), EventSource(daemon.http):
        eventually(lambda: subscribers(daemon) == 2)
    eventually(lambda: subscribers(daemon) == 0, seconds=5)
    assert "bug" not in daemon.log.read_text()
    assert "Traceback" not in daemon.log.read_text()


def test_a_probe_that_changes_its_state_is_an_event(bloomd):
    daemon = bloomd(probes__fall=1)
    daemon.start()
    with EventSource(daemon.http, types="probe", seconds=30) as source:
        daemon.configure(membridge__server_url="http://127.0.0.1:1", membridge__admin_key="a-key-of-membridge")
        assert daemon.ctl("reload").returncode == 0
        told = source.until(lambda event: event.data["name"] == "membridge" and event.data["state"] == "down")
    assert told.data["error"]
    assert told.data["node"] == daemon.http.get("/api/runtime/health").json()["node"]


def test_many_readers_at_once(bloomd, database):
    """Each of 100 gets every event, and the API answers as ever meanwhile."""
    daemon = bloomd().start()
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=daemon.url, headers=daemon.http.headers, limits=limits, trust_env=False) as http:
        sources = [EventSource(http, types="task") for _ in range(100)]
        for source in sources:
            source.__enter__()
        insert(database, "e", times=200)
        began = time.monotonic()
        assert daemon.http.get("/api/runtime/health").status_code == 200
        assert time.monotonic() - began < 5
        for source in sources:
            assert len(source.take(200)) == 200
        for source in sources:
            source.__exit__(None, None, None)
