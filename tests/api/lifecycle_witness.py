"""What the database has to say of the queue: its rows, its audit trail, and which invariants are broken."""

from collections import Counter
from contextlib import suppress
from typing import Any

import psycopg
from invariants import TABLES, TRAIL, broken
from lifecycle_objects import Json

EMPTY = """
UPDATE leases SET status = 'released' WHERE status = 'active';
TRUNCATE llm_tasks, leases, workers, conversations, runtime_artifacts, llm_results, audit_logs;
UPDATE queue_state SET paused = false, until = NULL, reason = NULL;
"""

# Capacity may shrink below what a worker holds: then it holds more than it may, and only the model knows why.
SHRUNK = "2: a worker holds more than it may"

# All questions about the tables at once, because they are asked after each rule.
BROKEN = " UNION ALL ".join(
    f"SELECT $${rule}$$, to_jsonb(broken) FROM ({question}) AS broken"
    for rule, question in TABLES.items()
    if rule != SHRUNK
)

# Where who leads is kept in order is told elsewhere: its entries are taken away with the others.
ELECTIONS = "an epoch without exactly one election"

ROWS = """
SELECT 'tasks', id, to_jsonb(llm_tasks) FROM llm_tasks
UNION ALL
SELECT 'leases', id, to_jsonb(leases) FROM leases
UNION ALL
SELECT 'workers', id, to_jsonb(workers) FROM workers
"""

# Leaders are elected in real time. What was done to many at once has one entry, under an id of its own.
ENTRIES = """
SELECT seq, action, entity_type, CASE WHEN action LIKE 'tasks.%%' THEN 'all' ELSE entity_id END, actor
  FROM audit_logs
 WHERE seq > %s AND action NOT LIKE 'leader.%%'
 ORDER BY seq
"""


class Witness:
    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        """On an autocommitting connection."""
        self._connection = connection
        self._last_entry = 0

    def empty(self) -> None:
        """Forget everything. The daemon works meanwhile: its statements lock some of the tables in another order."""
        emptied = False
        while not emptied:
            with suppress(psycopg.errors.DeadlockDetected):
                self._connection.execute(EMPTY)
                emptied = True
        [(self._last_entry,)] = self._connection.execute("SELECT nextval('audit_logs_seq')")

    def rows(self) -> dict[str, dict[str, Json]]:
        """The tasks, leases and workers, by their ids."""
        found: dict[str, dict[str, Json]] = {"tasks": {}, "leases": {}, "workers": {}}
        for kind, id, row in self._connection.execute(ROWS):
            found[kind][id] = row
        return found

    def new_entries(self) -> Counter[tuple[str, str, str, str]]:
        """What was written into the audit trail since the last call: action, type and id of the entity, actor."""
        entries: Counter[tuple[str, str, str, str]] = Counter()
        for seq, *entry in self._connection.execute(ENTRIES, [self._last_entry]):
            entries[tuple(entry)] += 1
            self._last_entry = seq
        return entries

    def broken_by_tables(self) -> list[tuple[str, Json]]:
        """The rules that are broken as the tables are, each with a row that breaks it."""
        return self._sql(BROKEN)

    def broken_by_trail(self) -> dict[str, list[tuple[object, ...]]]:
        """The rules that are broken as the audit trail tells it, each with rows that break it."""
        return broken(self._sql, {rule: question for rule, question in TRAIL.items() if rule != ELECTIONS})

    def _sql(self, statement: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement.encode()).fetchall()
