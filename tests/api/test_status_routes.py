"""The routes of the daemon's own state: its status, its services, the history of its queue."""

import httpx
import pytest
from bloomd_process import KEY
from event_source import EventSource
from servers import eventually

STATUS = "/api/runtime/status"
RESTART = "/api/runtime/services/restart"
HISTORY = "/api/runtime/queue/history"


def restarts(api):
    entries = api.get("/api/runtime/audit", params={"action": "control.restart"}).json()
    return [(each["entity_id"], each["actor"], each["detail"]) for each in entries]


def test_the_status_is_that_of_the_socket(daemon, api):
    eventually(lambda: all(each["history"] for each in probes(api) if each["state"] != "disabled"))
    told, shown = api.get(STATUS), daemon.status()
    assert told.status_code == 200
    assert set(told.json()) == set(shown)
    assert told.json()["schema"] == shown["schema"]
    assert [each["name"] for each in told.json()["services"]] == [each["name"] for each in shown["services"]]
    [postgresql] = [each for each in told.json()["probes"] if each["name"] == "postgresql"]
    assert set(postgresql["history"][0]) == {"at", "ms"}
    assert [each["at"] for each in postgresql["history"]] == sorted(each["at"] for each in postgresql["history"])


def probes(api):
    return api.get(STATUS).json()["probes"]


def test_the_status_needs_a_key_and_has_none(daemon, api):
    assert httpx.get(f"{daemon.url}{STATUS}", trust_env=False).status_code == 401
    assert KEY not in api.get(STATUS).text
    assert daemon.settings["database.url"] not in api.get(STATUS).text


def test_a_service_is_restarted_and_those_who_follow_see_it(api):
    with EventSource(api, types="service") as source:
        answer = api.post(RESTART, json={"name": "probes"})
        told = source.until(lambda event: event.data["name"] == "probes" and event.data["state"] == "running")
    assert answer.status_code == 200, answer.text
    services = answer.json()["services"]
    assert {each["name"] for each in services} == {"probes", *(f"probes/{each['name']}" for each in probes(api))}
    assert {each["state"] for each in services} == {"running"}
    assert services[0]["cause"]
    assert set(told.data) == {"name", "state", "cause", "node"}
    eventually(lambda: restarts(api) == [("probes", "api-key", "ok")])


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("nobody", 404, "no service is called 'nobody'"),
        ("probes/nobody", 404, "no service is called"),
        ("http", 409, "bloomd-ctl restart http"),
        ("control", 409, "restarts with the daemon"),
    ],
)
def test_what_is_not_restarted(api, name, status, says):
    answer = api.post(RESTART, json={"name": name})
    assert (answer.status_code, says in answer.json()["detail"]) == (status, True)
    eventually(lambda: restarts(api))
    [(entity, actor, detail)] = restarts(api)
    assert (entity, actor, says in detail) == (name, "api-key", True)


def test_a_body_without_a_name(api):
    assert api.post(RESTART, json={}).status_code == 400
    assert api.post(RESTART, json={"name": ""}).status_code == 400


def test_the_history_of_the_queue(api, create):
    create()
    api.post(RESTART, json={"name": "samples"}).raise_for_status()  # which begins with a sample
    eventually(lambda: (samples := api.get(HISTORY).json()) and samples[-1]["queued"] == 1)
    last = api.get(HISTORY).json()[-1]
    assert set(last) == {
        "at", "queued", "leased", "running", "free", "created", "completed", "failed", "dead", "cancelled"
    }  # fmt: skip
    assert last["created"] >= 1
    assert api.get(HISTORY, params={"since": last["at"]}).json()[0] == last
    assert api.get(HISTORY, params={"since": last["at"] + 3_600_000}).json() == []
    for wrong in ("x", "-1", "null"):
        assert api.get(HISTORY, params={"since": wrong}).status_code == 400
