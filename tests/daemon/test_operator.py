"""What an operator does over the socket and on the command line, and what of it is written down."""

import json
import re
import socket

import psycopg
import pytest
from servers import eventually

SECRET = "a-secret-of-the-operator"


def audit(daemon, action):
    return daemon.http.get("/api/runtime/audit", params={"action": action}).json()


def service(daemon, name):
    return next(each for each in daemon.status()["services"] if each["name"] == name)


def test_what_is_done_is_audited_with_who_did_it(bloomd):
    daemon = bloomd().start()
    assert daemon.ctl("log-level", "debug").returncode == 0
    assert daemon.ctl("restart", "sweeper").returncode == 0
    assert daemon.ctl("stop", "no-such-service").returncode == 1
    eventually(lambda: audit(daemon, "control.stop"))
    [restarted] = audit(daemon, "control.restart")
    assert (restarted["entity_id"], restarted["actor"], restarted["detail"][:2]) == ("sweeper", "root", "ok")
    assert "debug" in audit(daemon, "control.log.level")[0]["detail"]
    assert "no service is called" in audit(daemon, "control.stop")[0]["detail"]
    assert "until the next reload" in " ".join(daemon.ctl("status").stdout.split())
    daemon.ctl("reload")
    assert daemon.ctl("log-level").stdout.split()[-1] == "info"


@pytest.mark.parametrize(
    "params",
    [{"name": "a\x00b"}, {"name": "x" * 20_000}, {"name": "s", "user": "x", "event": "y"}, {"name": 7}, {"method": []}],
)
def test_no_parameter_can_harm_the_audit(bloomd, params):
    daemon = bloomd().start()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon.socket))
        client.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "stop", "params": params}).encode() + b"\n")
        answer = json.loads(client.makefile().readline())
    assert answer["error"]["code"] != -32603, answer
    eventually(lambda: audit(daemon, "control.stop"))
    assert service(daemon, "audit")["state"] == "running"


def test_a_service_is_stopped_and_started_by_hand(bloomd):
    daemon = bloomd().start()
    assert daemon.ctl("stop", "database").returncode == 0
    status = daemon.status()
    assert (status["verdict"], status["reasons"][0]) == ("down", "database is stopped by hand")
    assert status["next"] == "bloomd-ctl start database"
    assert daemon.http.get("/api/runtime/stats").status_code == 503
    assert daemon.ctl("start", "database").returncode == 0
    assert service(daemon, "database")["state"] == "running"
    assert daemon.ctl("stop", "http").returncode == 0
    assert daemon.ctl("status").returncode == 2
    assert daemon.ctl("start", "http").returncode == 0
    assert daemon.http.get("/api/runtime/stats").status_code == 200


def test_one_outage_is_one_reason(bloomd, server):
    daemon = bloomd(server.conninfo()).start()
    eventually(lambda: daemon.status()["verdict"] == "ok")
    server.stop()
    eventually(lambda: daemon.status()["verdict"] == "down")
    eventually(lambda: len(daemon.status()["reasons"]) == 2)
    first, second = daemon.status()["reasons"]
    assert first.startswith("PostgreSQL is not up")
    assert re.fullmatch(r"\d services? waits? for it", second)
    eventually(lambda: daemon.http.get("/api/runtime/health").json()["probes"]["postgresql"] == "down")


def test_settings_that_wait_for_a_restart_are_named(bloomd):
    daemon = bloomd().start()
    daemon.configure(http__drain_seconds=3)
    report = json.loads(daemon.ctl("-o", "json", "reload").stdout)
    assert report["needs_restart"] == ["http.drain_seconds"]
    assert "http.drain_seconds" in " ".join(daemon.status()["notices"])


def test_a_secret_set_through_the_api_is_not_logged(bloomd):
    daemon = bloomd(log__level="debug").start()
    body = {"membridge_server_url": "http://127.0.0.1:1", "admin_key": SECRET}
    assert daemon.http.post("/api/runtime/config", json=body).status_code == 200
    daemon.http.get(f"/somewhere/{SECRET}")
    eventually(lambda: "/somewhere/" in daemon.log.read_text())
    assert SECRET not in daemon.log.read_text()


def test_migrate_tells_what_it_does_and_what_is_left_to_do(bloomd, unmigrated):
    daemon = bloomd(unmigrated, migrate=False)
    assert daemon.run("migrate", "--status").returncode == 1
    done = daemon.run("migrate")
    assert (done.returncode, "applied 0001 tables" in done.stdout) == (0, True)
    assert "nothing to do" in daemon.run("migrate").stdout
    assert daemon.run("migrate", "--status").returncode == 0


def test_tables_of_somebody_else_are_refused_in_one_sentence(bloomd, unmigrated):
    with psycopg.connect(unmigrated, autocommit=True) as connection:
        connection.execute("CREATE TABLE llm_tasks (id integer)")
    daemon = bloomd(unmigrated, migrate=False)
    refused = daemon.run("migrate")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (78, 1)
    assert "not those of BLOOM Runtime" in refused.stderr


def test_a_user_without_rights_is_told_what_is_missing(bloomd, postgres_server, database):
    daemon = bloomd()
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS powerless")
        connection.execute("CREATE ROLE powerless LOGIN")
    weak = bloomd(database.replace("user=bloomd", "user=powerless"), migrate=False)
    refused = weak.run("migrate")
    assert refused.returncode == 78
    assert "must own the tables" in refused.stderr
    weak.start(ready=False)
    eventually(lambda: weak.socket.exists() and service(weak, "database")["state"] == "failed")
    assert "Traceback" not in weak.log.read_text()
    assert daemon.socket != weak.socket


def test_check_prints_every_setting_with_its_source_and_no_secret(bloomd):
    daemon = bloomd(membridge__server_url="http://127.0.0.1:1", membridge__admin_key=SECRET)
    shown = daemon.run("check", "--print")
    assert shown.returncode == 0
    assert SECRET not in shown.stdout
    for key in ("http.bind", "membridge.admin_key", "tasks.retry_delay"):
        assert re.search(rf"(?m)^{key} ", shown.stdout), key
    assert f"{daemon.file}" in shown.stdout
    assert daemon.run("no-such-command").returncode == 64


def test_two_streams_and_json_in_production(bloomd, database):
    daemon = bloomd(environ={"NODE_ENV": "production"}).start()
    lines = [json.loads(line) for line in daemon.log.read_text().splitlines()]
    assert {"event", "level", "timestamp"} <= set(lines[0])
