"""What is found in the audit trail, and how much of it is looked at for that."""

import itertools

import psycopg
import pytest
from psycopg.rows import dict_row

from bloomd.runtime import audit, tasks
from bloomd.runtime.audit import FIND, Wanted
from bloomd.runtime.pages import END_OF_TIME, Page

# Number n is from time n.
TRAIL = """
INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor)
SELECT 'e' || n, n,
       CASE WHEN mod(n, 10) = 0 THEN 'worker.online' WHEN mod(n, 2) = 0 THEN 'task.created' ELSE 'task.leased' END,
       CASE WHEN mod(n, 10) = 0 THEN 'worker' ELSE 'task' END, 'x' || n / 10,
       CASE WHEN n = 17 THEN 'alice' ELSE 'api-key' END
  FROM generate_series(1, 100) AS n
"""


@pytest.fixture
def trail(sql):
    sql(TRAIL)


async def found(db, page=None, **wanted):
    return [entry.timestamp for entry in (await audit.find(db, page or Page(), Wanted(**wanted))).entries]


FILTERS = [
    ({}, range(100, 0, -1)),
    ({"action": "worker.online"}, range(100, 0, -10)),
    ({"action": "worker"}, []),
    ({"action": "worker.*"}, range(100, 0, -10)),
    ({"action": "task.created*", "until": 9}, [8, 6, 4, 2]),
    ({"action": "task.*", "since": 8, "until": 13}, [12, 11, 9, 8]),
    ({"action": "*", "until": 4}, [3, 2, 1]),
    ({"action": "nothing.*"}, []),
    ({"action": "%*"}, []),
    ({"action": "*.created"}, []),
    ({"actor": "alice"}, [17]),
    ({"actor": "nobody"}, []),
    ({"entity_type": "worker", "since": 90}, [100, 90]),
    ({"entity_id": "x1", "actor": "api-key", "action": "task.*"}, [19, 18, 16, 15, 14, 13, 12, 11]),
    ({"since": 100}, [100]),
    ({"until": 1}, []),
    ({"until": 0}, []),
    ({"since": 50, "until": 50}, []),
]


async def test_filters(db, trail):
    for wanted, expected in FILTERS:
        assert await found(db, **wanted) == list(expected), wanted


async def test_a_cursor_and_an_end_of_time_meet(db, trail):
    assert await found(db, Page(100, 50, "e50"), until=51) == list(range(49, 0, -1))
    assert await found(db, Page(100, 50, "e50"), until=50) == list(range(49, 0, -1))
    assert await found(db, Page(100, 50, "zzz"), until=50) == list(range(49, 0, -1))
    assert await found(db, Page(100, 50, "zzz"), until=51) == list(range(50, 0, -1))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [({"actor": "alice"}, [17]), ({"entity_type": "worker"}, range(100, 0, -10)), ({}, range(100, 0, -1))],
)
async def test_all_pages_together_have_all(db, trail, monkeypatch, wanted, expected):
    for limit, looked_at in itertools.product([1, 7, 100], [3, 10, 100, 1000]):
        monkeypatch.setattr(audit, "LOOKED_AT", looked_at)
        page, all, pages = Page(limit), [], 0
        while page:
            part = await audit.find(db, page, Wanted(**wanted))
            assert len(part.entries) <= min(limit, looked_at)
            all += [entry.timestamp for entry in part.entries]
            page, pages = part.next, pages + 1
        assert all == list(expected)
        assert pages <= 100 / min(limit, looked_at) + 1


@pytest.fixture(scope="module")
def long_trail(postgres_server, migrated):
    """A connection to a database with 50,000 entries and 60,000 tasks, most of which have had two attempts."""
    conninfo = postgres_server.create_database(template=migrated)
    with psycopg.connect(conninfo, autocommit=True, row_factory=dict_row) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(TRAIL.replace("100)", "50000)").encode())
        connection.execute("INSERT INTO audit_logs VALUES ('k', 77, 'key.added', 'key', 'k', 'root')")
        connection.execute("""
            INSERT INTO llm_tasks (id, prompt, agent_slug, context_id, status, created_at)
            SELECT 't' || n, '', 'a' || n % 20, 'c' || n % 20, (ARRAY['queued', 'completed', 'failed'])[1 + n % 3], n
              FROM generate_series(1, 60000) AS n""")
        connection.execute("""
            INSERT INTO leases (id, task_id, worker_id, status, started_at, ended_at, expires_at, ttl_seconds)
            SELECT 'l' || n || '-' || a, 't' || n, 'w', 'released', n + a, n + a + 1, n + 300, 300
              FROM generate_series(1, 60000) AS n, generate_series(1, 2) AS a WHERE n % 3 > 0""")
        connection.execute("ANALYZE")
        yield connection
    postgres_server.drop_database(conninfo)


def read(connection, query, **parameters):
    """What a statement reads: the names of the indexes, and how many rows it takes of all tables."""
    explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {query}".encode()
    [row] = connection.execute(explain, parameters, prepare=False).fetchall()
    indexes, rows = set(), 0

    def walk(node):
        nonlocal rows
        assert node["Node Type"] not in ("Seq Scan", "Parallel Seq Scan"), node
        if "Index Name" in node:
            indexes.add(node["Index Name"])
            taken = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            rows += taken * node["Actual Loops"]
        for child in node.get("Plans", []):
            walk(child)

    walk(row["QUERY PLAN"][0]["Plan"])
    return indexes, rows


@pytest.mark.parametrize(
    ("wanted", "most", "index"),
    [
        ({}, 110, "audit_logs_newest"),
        ({"actor": "nobody"}, 20_100, "audit_logs_newest"),
        ({"entity_type": "worker"}, 1100, "audit_logs_newest"),
        ({"actions": ["key.added"]}, 110, "audit_logs_by_action"),
        ({"actions": ["key.added", "key.removed"], "actor": "nobody"}, 110, "audit_logs_by_action"),
        ({"entity_id": "x5", "actor": "nobody"}, 110, "audit_logs_by_entity"),
        ({"at": 200, "since": 100}, 110, "audit_logs_newest"),
    ],
)
def test_little_is_read_for_a_page(long_trail, wanted, most, index):
    nothing = dict.fromkeys(("actions", "entity_id", "entity_type", "actor"))
    where = {"since": 0, "at": END_OF_TIME, "before": "", "limit": 100, "looked_at": audit.LOOKED_AT}
    indexes, rows = read(long_trail, FIND, **(nothing | where | wanted))
    assert indexes == {index}
    assert rows <= most


def test_little_is_read_for_the_known_actions_and_agents(long_trail):
    indexes, rows = read(long_trail, audit.ACTIONS, most=1000, prefix="task.")
    assert (indexes, rows <= 10) == ({"audit_logs_by_action"}, True)
    indexes, rows = read(long_trail, tasks.AGENTS)
    assert (indexes, rows <= 30) == ({"llm_tasks_by_agent"}, True)


@pytest.mark.parametrize(
    "wanted",
    [{}, {"status": "completed"}, {"at": 9000, "since": 8900}, {"agent_slug": "a7"}, {"context_id": "c7"}],
)
def test_little_is_read_for_a_page_of_tasks(long_trail, wanted):
    nothing = dict.fromkeys(("status", "worker_id", "context_id", "agent_slug"))
    where = {"since": 0, "at": END_OF_TIME, "before": "", "limit": 100}
    indexes, rows = read(long_trail, tasks.LIST, **(nothing | where | wanted))
    assert len(indexes) == 2
    assert "leases_by_task" in indexes
    assert rows <= 800  # of some 150,000; of this agent there are 3,000 tasks
