"""The audit trail over HTTP: its filters, and the trail as a file."""

import csv
import json
import re
from io import StringIO

import psycopg
import pytest

PATH = "/api/runtime/audit"
EXPORT = f"{PATH}/export"

# Of another time than what the daemon writes meanwhile.
TRAIL = """
INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
SELECT 'e' || n, n, CASE WHEN n = 5 THEN 'key.added' ELSE 'task.created' END,
       CASE WHEN n = 5 THEN 'key' ELSE 'task' END, 'x',
       CASE WHEN n = 5 THEN '=cmd' ELSE 'api-key' END, 'a "quoted", ' || chr(10) || ' ' || n
  FROM generate_series(1, %s) AS n
"""
END = 1_000_000


@pytest.fixture
def trail(api, daemon):
    def write(entries):
        with psycopg.connect(daemon.settings["database.url"], autocommit=True) as connection:
            connection.execute(TRAIL, [entries])

    return write


def found(api, **params):
    return [entry["timestamp"] for entry in api.get(PATH, params={"until": END} | params).json()]


def test_filters(api, trail):
    trail(10)
    assert found(api) == list(range(10, 0, -1))
    assert found(api, action="key.*") == found(api, actor="=cmd") == found(api, entity_type="key") == [5]
    assert found(api, action="", actor="", entity_type="", entity_id="") == found(api)
    assert found(api, since=3, until=6, action="task.*") == [4, 3]
    assert found(api, action="task.*", actor="=cmd") == []
    answer = api.get(PATH, params={"until": END, "limit": 3, "action": "task.*"})
    assert [entry["timestamp"] for entry in answer.json()] == [10, 9, 8]
    assert [entry["timestamp"] for entry in api.get(answer.links["next"]["url"]).json()] == [7, 6, 4]
    assert api.get(PATH, params={"until": "soon"}).status_code == 400


def test_a_page_with_little_on_it_is_followed_by_another(api, trail):
    trail(20_010)
    answer = api.get(PATH, params={"until": END, "actor": "=cmd"})
    assert answer.json() == []
    answer = api.get(answer.links["next"]["url"])
    assert [entry["timestamp"] for entry in answer.json()] == [5]
    assert "next" not in answer.links


def test_twenty_thousand_entries_as_a_file(api, trail):
    trail(20_000)
    with api.stream("GET", EXPORT, params={"until": END}) as answer:
        text = answer.read().decode()
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert re.fullmatch(r'attachment; filename="bloomd-audit-\d{8}T\d{6}Z\.csv"', answer.headers["content-disposition"])
    assert answer.headers["x-content-type-options"] == "nosniff"
    head, *rows = csv.reader(StringIO(text, newline=""))
    assert head == ["time", "timestamp", "action", "entity_type", "entity_id", "actor", "detail", "id"]
    assert [int(row[1]) for row in rows] == list(range(20_000, 0, -1))
    assert rows[-5][:6] == ["1970-01-01T00:00:00.005Z", "5", "key.added", "key", "x", "'=cmd"]
    assert rows[-5][6:] == ['a "quoted", \n 5', "e5"]
    lines = api.get(EXPORT, params={"until": END, "format": "jsonl"}).text.splitlines()
    first = [json.loads(line) for line in lines[:100]]
    assert first == api.get(PATH, params={"until": END}).json()
    assert len(lines) == 20_000


def test_what_is_exported_is_what_the_filters_find(api, trail):
    trail(20_010)
    rows = list(csv.reader(StringIO(api.get(EXPORT, params={"until": END, "actor": "=cmd"}).text, newline="")))
    assert [row[7] for row in rows[1:]] == ["e5"]
    lines = api.get(EXPORT, params={"since": 7, "until": 9, "action": "task.*", "format": "jsonl"}).text.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["e8", "e7"]


def test_what_cannot_be_exported(api, daemon):
    assert api.get(EXPORT, params={"format": "xml"}).status_code == 400
    assert api.get(EXPORT, params={"format": "null"}).status_code == 400
    head = api.head(EXPORT)
    assert (head.status_code, head.content) == (200, b"")
    assert api.get(EXPORT, headers={"X-Runtime-API-Key": "wrong"}).status_code == 401


def test_who_goes_in_the_middle_is_let_go(api, daemon, trail):
    trail(20_000)
    for _ in range(20):  # more than there are connections to the database
        with api.stream("GET", EXPORT, params={"until": END}) as answer:
            next(answer.iter_bytes())
    assert api.get(PATH).status_code == 200
    assert "Traceback" not in daemon.log.read_text()
