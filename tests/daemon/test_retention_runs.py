"""Retention in a real daemon: by its settings, as they are at the time of a round."""

import json

import psycopg
from servers import eventually


def test_the_settings_count_from_the_next_round(bloomd):
    daemon = bloomd().start()
    with psycopg.connect(daemon.settings["database.url"], autocommit=True) as connection:
        connection.execute(
            "INSERT INTO llm_tasks (id, prompt, status, created_at, updated_at) "
            "VALUES ('old', 'p', 'dead', 1, 1), ('waiting', 'p', 'queued', 1, 1)"
        )
    assert daemon.ctl("restart", "retention").returncode == 0
    daemon.configure(tasks__keep_days=30)
    assert daemon.http.get("/api/runtime/llm-tasks/old").status_code == 200
    assert daemon.ctl("reload").returncode == 0
    assert daemon.ctl("restart", "retention").returncode == 0  # which begins with a round
    eventually(lambda: daemon.http.get("/api/runtime/llm-tasks/old").status_code == 404)
    assert daemon.http.get("/api/runtime/llm-tasks/waiting").status_code == 200
    [entry] = daemon.http.get("/api/runtime/audit", params={"action": "retention.pruned"}).json()
    assert (entry["entity_type"], entry["actor"]) == ("task", "bloomd")
    assert json.loads(entry["detail"]) == {"keep_days": 30, "pruned": 1}
    assert daemon.status()["queue"]["by_status"] == {"queued": 1}
