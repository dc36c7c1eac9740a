"""The settings in force over HTTP: all of them, where each was told, and no secret."""

import json

from bloomd_process import KEY, Bloomd
from servers import PostgresServer

from bloomd.settings.keys import KEYS

PATH = "/api/runtime/settings"


def test_every_setting_and_where_it_was_told(api, daemon):
    answer = api.get(PATH)
    assert answer.status_code == 200
    assert list(answer.json()) == ["settings", "warnings"]
    shown = {setting.pop("key"): setting for setting in answer.json()["settings"]}
    assert list(shown) == list(KEYS)
    assert shown["log.level"] == {"value": "info", "source": "default", "where": None, "default": True}
    told = shown["tasks.sweep_interval"]
    assert (told["value"], told["source"], told["default"]) == (0.1, "file", False)
    assert told["where"].startswith(f"{daemon.file}:")
    assert shown["http.api_key"]["value"] == "****"
    assert shown["http.bind"]["value"] == [f"127.0.0.1:{daemon.port}"]
    assert KEY not in answer.text


def test_what_is_set_through_the_api_says_so(api):
    body = {"membridge_server_url": "http://127.0.0.1:1", "admin_key": "0123456789abcdef"}
    api.post("/api/runtime/config", json=body)
    shown = {setting["key"]: setting for setting in api.get(PATH).json()["settings"]}
    url, key = shown["membridge.server_url"], shown["membridge.admin_key"]
    assert (url["value"], url["source"], url["where"]) == ("http://127.0.0.1:1", "database", "membridge_server_url")
    assert (key["value"], key["source"]) == ("0123****cdef", "database")
    assert api.get("/api/runtime/config").json()["stored"] == ["membridge_server_url", "admin_key"]
    assert api.delete("/api/runtime/config/membridge_server_url").json()["stored"] == ["admin_key"]
    assert api.delete("/api/runtime/config/admin_key").json()["stored"] == []
    shown = {setting["key"]: setting for setting in api.get(PATH).json()["settings"]}
    assert shown["membridge.server_url"]["source"] == "default"


def test_it_is_what_bloomd_ctl_shows(api, daemon):
    shown = json.loads(daemon.ctl("-o", "json", "config").stdout)
    assert api.get(PATH).json() == shown


def test_no_secret_is_in_it(postgres_server: PostgresServer, migrated: str):
    bloomd = Bloomd(
        f"{postgres_server.create_database(migrated)} password=hush-database",
        membridge__server_url="http://127.0.0.1:1",
        membridge__admin_key="1234hush-admin5678",
        membridge__agent_key="hush-agent",
        minio__endpoint="127.0.0.1:1",
        minio__access_key="access",
        minio__secret_key="hush-minio",
    )
    with bloomd:
        text = bloomd.http.get(PATH).text
        assert '"1234****5678"' in text
        assert "password=****" in text
        assert "hush" not in text
        assert bloomd.http.get(PATH, headers={"X-Runtime-API-Key": ""}).status_code == 401
        assert bloomd.stop() == 0
