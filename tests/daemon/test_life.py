"""The daemon as an init system and an operator meet it: exit codes, signals, a second one, an unmigrated database."""

import json
import signal
import socket
import stat
import threading
import time

import httpx
import pytest
from servers import eventually


def words(text):
    """Without the line breaks of a terminal."""
    return " ".join(text.split())


def accepts(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_it_starts_serves_and_stops_with_0(bloomd):
    daemon = bloomd().start()
    assert daemon.http.get("/api/runtime/health").json()["status"] in ("ok", "degraded")
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o660
    assert daemon.stop() == 0
    assert not daemon.socket.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_under_way_is_finished_before_the_end(bloomd, number):
    daemon = bloomd(http__drain_seconds=10).start()
    with socket.create_connection(("127.0.0.1", daemon.port)) as connection:
        connection.settimeout(10)
        body = json.dumps({"prompt": "x"}).encode()
        connection.sendall(
            b"POST /api/runtime/llm-tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + f"X-Runtime-API-Key: {daemon.settings['http.api_key']}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body[:3]
        )
        time.sleep(0.3)  # until the request is with the application
        daemon.signal(number)
        eventually(lambda: not accepts(daemon.port), seconds=5)
        connection.sendall(body[3:])
        assert b" 201 " in connection.recv(65536).split(b"\r\n")[0]
    assert daemon.stop() == 0


def test_a_second_signal_does_not_wait(bloomd):
    daemon = bloomd(http__drain_seconds=60).start()
    with socket.create_connection(("127.0.0.1", daemon.port)) as connection:
        connection.sendall(
            b"POST /api/runtime/llm-tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
            + f"X-Runtime-API-Key: {daemon.settings['http.api_key']}\r\n\r\n".encode()
        )
        time.sleep(0.3)
        daemon.signal(signal.SIGTERM)
        eventually(lambda: not accepts(daemon.port), seconds=5)
        daemon.signal(signal.SIGTERM)
        assert daemon.stop(seconds=10) == 0


def test_an_unmigrated_database_is_refused_with_the_command_that_helps(bloomd, unmigrated):
    daemon = bloomd(unmigrated, migrate=False).start(ready=False)
    eventually(lambda: daemon.socket.exists() and "bloomd migrate" in words(daemon.ctl("status").stdout))
    assert daemon.ctl("status").returncode == 2
    ready = daemon.http.get("/ready")
    assert (ready.status_code, daemon.http.get("/api/runtime/stats").status_code) == (503, 503)
    assert "bloomd migrate" in ready.json()["error"]
    daemon.migrate()
    assert daemon.ctl("restart", "database").returncode == 0
    eventually(daemon.is_ready)


def test_a_second_daemon_on_the_same_socket_is_refused(bloomd, database):
    first = bloomd().start()
    second = bloomd(control__socket=str(first.socket)).start(ready=False)
    assert second.process.wait(20) == 78
    assert f"another bloomd (pid {first.process.pid}) is running" in second.log.read_text()
    assert first.ctl("ping").returncode == 0


def test_a_port_in_use_is_refused(bloomd):
    first = bloomd().start()
    second = bloomd(http__bind=[f"127.0.0.1:{first.port}"]).start(ready=False)
    assert second.process.wait(20) == 75
    assert f"http.bind: cannot listen on 127.0.0.1:{first.port}" in second.log.read_text()


def test_an_address_that_is_not_there_may_come(bloomd):
    daemon = bloomd(http__bind=["203.0.113.1:5000"]).start(ready=False)
    assert daemon.process.wait(20) == 75
    assert "http.bind: cannot listen on 203.0.113.1:5000" in daemon.log.read_text()


def test_a_bad_configuration_exits_with_78_and_every_error(bloomd):
    daemon = bloomd(http__max_body_bytes="many", membridge__server_url="ftp://x").start(ready=False)
    assert daemon.process.wait(20) == 78
    log = daemon.log.read_text()
    assert "http.max_body_bytes" in log or "max_body_bytes" in log
    assert "server_url" in log
    assert "Traceback" not in log


def test_a_wrong_password_is_said_and_does_not_show(bloomd, server):
    server.execute("CREATE ROLE locked LOGIN PASSWORD 'right'")
    hba = server.data / "pg_hba.conf"
    hba.write_text("local all locked scram-sha-256\n" + hba.read_text())
    server.reload()
    url = server.conninfo() + " password=very-wrong-secret"
    daemon = bloomd(url.replace("user=bloomd", "user=locked"), migrate=False).start(ready=False)
    eventually(lambda: daemon.socket.exists() and "password" in daemon.ctl("status").stdout)
    service = next(each for each in daemon.status()["services"] if each["name"] == "database")
    assert service["state"] == "failed"
    assert "very-wrong-secret" not in daemon.log.read_text() + daemon.ctl("-o", "json", "status").stdout
    assert "very-wrong-secret" not in daemon.ctl("config").stdout


def test_it_serves_on_a_unix_socket_too(bloomd, tmp_path):
    path = tmp_path / "http.sock"
    daemon = bloomd()
    daemon.configure(http__bind=[*daemon.settings["http.bind"], f"unix:{path}"], http__socket_mode="0600")
    daemon.start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        assert client.get("http://localhost/api/runtime/health").status_code == 200
        assert client.get("http://localhost/metrics").status_code == 401
    assert daemon.stop() == 0
    assert not path.exists()


def test_without_a_key_only_loopback_names_are_served(bloomd):
    daemon = bloomd(http__api_key=None).start()
    assert daemon.http.get("/api/runtime/stats").status_code == 200
    assert daemon.http.get("/api/runtime/stats", headers={"Host": "evil.example"}).status_code == 403
    assert daemon.http.get("/api/runtime/stats", headers={"Origin": "http://evil.example"}).status_code == 403
    assert "authentication is off" in words(daemon.ctl("status").stdout)


def test_nothing_listens_beyond_loopback_without_a_key(bloomd):
    daemon = bloomd(http__api_key=None, http__bind=["0.0.0.0:0"]).start(ready=False)
    assert daemon.process.wait(20) == 78
    assert "allow_unauthenticated" in daemon.log.read_text()


def test_kill_9_leaves_a_database_that_the_next_start_serves(bloomd):
    daemon = bloomd().start()
    daemon.http.post("/api/runtime/workers", json={"name": "w", "capabilities": {"max_concurrency": 32}})
    acknowledged: list[str] = []

    def work() -> None:
        with httpx.Client(base_url=daemon.url, headers=daemon.http.headers, timeout=5) as client:
            try:
                while True:
                    task = client.post("/api/runtime/llm-tasks", json={"prompt": "x"}).json()["id"]
                    acknowledged.append(task)
                    client.post(f"/api/runtime/llm-tasks/{task}/lease")
            except httpx.TransportError:
                return

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(acknowledged) > 50)
    daemon.process.kill()
    for thread in threads:
        thread.join()
    daemon.process.wait()
    assert daemon.socket.exists()
    daemon.start()
    for task in acknowledged[-40:]:
        assert daemon.http.get(f"/api/runtime/llm-tasks/{task}").status_code == 200
    assert daemon.ctl("ping").returncode == 0
