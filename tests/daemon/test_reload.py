"""Reload: under load, valid and broken files in turn; by socket and by SIGHUP; all or nothing."""

import json
import signal
import threading

import httpx
from event_source import EventSource
from servers import eventually, free_port


def reload(daemon):
    done = daemon.ctl("-o", "json", "reload")
    return done.returncode, json.loads(done.stdout)


def test_no_request_fails_while_the_configuration_changes_back_and_forth(bloomd, database):
    daemon = bloomd().start()
    stop, failures, answered = threading.Event(), [], [0, 0, 0]

    def ask(index: int) -> None:
        with httpx.Client(base_url=daemon.url, headers=daemon.http.headers, timeout=30) as client:
            while not stop.is_set():
                try:
                    answer = client.get("/api/runtime/llm-tasks", params={"limit": 1})
                    if answer.status_code != 200:
                        failures.append(answer.text)
                except httpx.TransportError as error:
                    failures.append(repr(error))
                answered[index] += 1

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(10):
            if turn % 2:
                daemon.configure(http__max_body_bytes="broken")
                code, report = reload(daemon)
                assert (code, report["result"]) == (1, "failed")
                assert any("max_body_bytes" in error for error in report["errors"])
                assert daemon.status()["reload"]["ok"] is False
            else:
                daemon.configure(http__max_body_bytes=100_000 + turn, database__pool_size=5 + turn)
                code, report = reload(daemon)
                assert (code, report["result"]) == (0, "reloaded"), report
                assert {change["key"] for change in report["changes"]} == {"http.max_body_bytes", "database.pool_size"}
            shown = json.loads(daemon.ctl("-o", "json", "config").stdout)["settings"]
            in_force = next(each["value"] for each in shown if each["key"] == "http.max_body_bytes")
            assert int(str(in_force)) == 100_000 + turn - turn % 2
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert sum(answered) > 1000


def test_the_same_content_is_unchanged(bloomd):
    daemon = bloomd().start()
    assert reload(daemon)[1]["result"] == "unchanged"


def test_sighup_reloads(bloomd):
    daemon = bloomd().start()
    daemon.configure(log__level="debug")
    daemon.signal(signal.SIGHUP)
    eventually(lambda: (last := daemon.status()["reload"]) and last["ok"])
    daemon.http.get("/api/runtime/stats")
    eventually(lambda: "path=/api/runtime/stats" in daemon.log.read_text())


def test_an_address_comes_and_goes_while_requests_run(bloomd):
    daemon = bloomd().start()
    old, new = daemon.port, free_port()
    daemon.configure(http__bind=[f"127.0.0.1:{new}"])
    with httpx.Client(base_url=daemon.url, headers=daemon.http.headers) as kept:
        assert kept.get("/api/runtime/stats").status_code == 200
        assert reload(daemon)[1]["result"] == "reloaded"
    assert httpx.get(f"http://127.0.0.1:{new}/api/runtime/health").status_code == 200

    def refused() -> bool:
        try:
            httpx.get(f"http://127.0.0.1:{old}/api/runtime/health", timeout=1)
        except httpx.ConnectError:
            return True
        return False

    eventually(refused)


def test_an_address_that_cannot_be_had_changes_nothing(bloomd):
    other = bloomd().start()
    daemon = bloomd().start()
    daemon.configure(http__bind=[f"127.0.0.1:{daemon.port}", f"127.0.0.1:{other.port}"], http__max_body_bytes=5000)
    code, report = reload(daemon)
    assert code == 1
    assert f"cannot listen on 127.0.0.1:{other.port}" in report["errors"][0]
    assert daemon.http.get("/api/runtime/stats").status_code == 200
    assert daemon.http.post("/api/runtime/llm-tasks", json={"prompt": "x" * 6000}).status_code == 201


def test_another_database_is_taken_over_without_a_gap_or_not_at_all(bloomd, postgres_server, database):
    daemon = bloomd().start()
    daemon.http.post("/api/runtime/llm-tasks", json={"prompt": "x"})
    empty = postgres_server.create_database()
    daemon.configure(database__url=empty)
    code, report = reload(daemon)
    assert code == 1
    assert "bloomd migrate" in report["errors"][0]
    assert len(daemon.http.get("/api/runtime/llm-tasks").json()) == 1
    daemon.migrate()
    with EventSource(daemon.http, types="task") as follower:
        assert reload(daemon)[1]["result"] == "reloaded"
        assert list(follower) == []  # it is sent away: its position is one of another database
    assert daemon.http.get("/api/runtime/llm-tasks").json() == []


def test_a_service_stopped_by_hand_stays_so_and_does_not_spoil_the_reload(bloomd):
    daemon = bloomd().start()
    assert daemon.ctl("stop", "probes").returncode == 0
    daemon.configure(probes__interval=7)
    assert reload(daemon)[1]["result"] == "reloaded"
    probes = next(each for each in daemon.status()["services"] if each["name"] == "probes")
    assert (probes["state"], probes["by_hand"]) == ("stopped", True)


def test_a_key_is_exchanged_at_once(bloomd):
    daemon = bloomd().start()
    daemon.configure(http__api_key="another-key-that-is-long")
    assert reload(daemon)[1]["result"] == "reloaded"
    assert daemon.http.get("/api/runtime/stats").status_code == 401
    answer = daemon.http.get("/api/runtime/stats", headers={"X-Runtime-API-Key": "another-key-that-is-long"})
    assert answer.status_code == 200
    assert "another-key" not in daemon.log.read_text() + daemon.ctl("config").stdout
