"""What a long history costs: `/stats`, and the first page of each list, with a million finished tasks."""

import statistics

import psycopg
from bloomd_process import Bloomd

from bench.http import RUNS, run
from bench.measure import Row
from bench.rig import rig

TASKS = 1_000_000

PATHS = (
    "/stats",
    "/llm-tasks",
    "/llm-tasks?status=completed",
    "/llm-tasks?status=queued",
    "/llm-tasks?agent_slug=agent-7",
    "/llm-tasks?context_id=context-77",
    "/llm-tasks?worker_id=w7",
    "/leases",
    "/leases?status=active",
    "/runs",
    "/artifacts",
    "/audit",
    "/audit?action=task.completed",
    "/workers",
)

# As triggers would refuse nothing of it, they are left out; what they count is written by hand.
HISTORY = """
SET session_replication_role = replica;
INSERT INTO workers (id, node_id, status, capacity, capabilities)
SELECT 'w' || n, 'w' || n, 'online', 4, '{"claude_cli": true, "max_concurrency": 4}' FROM generate_series(0, 99) AS n;
INSERT INTO llm_tasks (id, context_id, agent_slug, prompt, status, created_at, updated_at, lease_id, worker_id,
                       attempts)
SELECT 'task-' || n, 'context-' || n %% 10000, 'agent-' || n %% 100, 'Summarise the attached minutes.', 'completed',
       1700000000000 + n * 100, 1700000000000 + n * 100 + 5000, 'lease-' || n, 'w' || n %% 100, 1
  FROM generate_series(1, %(tasks)s) AS n;
INSERT INTO leases (id, task_id, worker_id, started_at, expires_at, ttl_seconds, status, attempt, ended_at, outcome)
SELECT 'lease-' || n, 'task-' || n, 'w' || n %% 100, 1700000000000 + n * 100, 1700000000000 + n * 100 + 300000, 300,
       'released', 1, 1700000000000 + n * 100 + 5000, 'success'
  FROM generate_series(1, %(tasks)s) AS n;
INSERT INTO runtime_artifacts (id, task_id, created_at, content, lease_id, name)
SELECT 'artifact-' || n, 'task-' || n, 1700000000000 + n * 100 + 5000, 'They met.', 'lease-' || n, 'result'
  FROM generate_series(1, %(tasks)s) AS n;
INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor)
SELECT 'audit-' || n, 1700000000000 + n * 100 + 5000, 'task.completed', 'task', 'task-' || n, 'api-key'
  FROM generate_series(1, %(tasks)s) AS n;
INSERT INTO tallies VALUES ('task:completed', %(tasks)s), ('lease', %(tasks)s);
"""


def measure() -> list[Row]:
    rows: list[Row] = []
    with rig() as (server, bloomd):
        _make(bloomd)
        for path in PATHS:
            runs = [run(server, bloomd, f"/api/runtime{path}") for _ in range(RUNS)]
            rows.append({"what": path, **{name: statistics.median(each[name] for each in runs) for name in runs[0]}})
    return rows


def _make(bloomd: Bloomd) -> None:
    with psycopg.connect(bloomd.settings["database.url"], autocommit=True, cursor_factory=psycopg.ClientCursor) as sql:
        sql.execute(HISTORY, {"tasks": TASKS})
        sql.execute("VACUUM ANALYZE")
