"""Fencing: only the current lease of a task speaks for it, and whoever is refused learns why.

A statement that changes tasks locks their rows, looks at the leases under these locks, and does each change with its
audit entry, or nothing. One gap is left by PostgreSQL's snapshots: a lease that was made while a statement waited for
the task's lock is invisible to it. The statement then changes nothing although nothing stands in its way, and is simply
run again (`SNAPSHOT_TRIES`).

Rows are found by their ids. What else must be so of them is written in a way that no index answers (`status || ''`):
with statistics from a quiet hour, all tasks of a status or all active leases look like fewer rows than one, and a plan
that was made then would read them all in a busy one.

One statement serves a single change and many: what it has done of many is done, and each of the others is tried alone,
in order to learn why it was refused.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import LiteralString, TypeVar

from bloomd.runtime.database import Database
from bloomd.runtime.model import Lease, Task
from bloomd.runtime.refusals import Conflict, LeaseLost, Refusal, TaskCancelled

# Each further try needs yet another lease of the same task made within the same millisecond or so.
SNAPSHOT_TRIES = 3

BY_ID = """
SELECT * FROM leases WHERE id = %(id)s AND task_id = %(task_id)s
"""

STILL_VALID = """
SELECT * FROM leases WHERE id = %(id)s AND status || '' = 'active' AND least(expires_at, deadline_at) > bloom_now_ms()
"""


Item = TypeVar("Item")
Answer = TypeVar("Answer")


def of_one(statement: LiteralString) -> LiteralString:
    """The statement for a single record, which then is no array.

    The planner takes a set of records for a hundred of them, whatever there is, and reads small and middling tables
    from end to end for so many; a single record is one row to it, and each of its rows is found by an index.
    """
    return statement.replace("jsonb_to_recordset", "jsonb_to_record")


async def decided(change: Callable[[], Awaitable[Answer | None]], refuse: Callable[[], Awaitable[None]]) -> Answer:
    """Try the change; when it did nothing, say why by `refuse`, which returns when nothing stands in its way."""
    for _ in range(SNAPSHOT_TRIES):
        if (answer := await change()) is not None:
            return answer
        await refuse()
    raise Conflict("The task is changing hands too quickly; try again")


async def settled(
    items: Sequence[Item], done: Callable[[Item], Answer | None], alone: Callable[[Item], Awaitable[Answer]]
) -> list[Answer | Refusal]:
    """What became of each of many: what is done already, or what comes of trying it alone."""
    answers: list[Answer | Refusal] = []
    for item in items:
        answer = done(item)
        try:
            answers.append(await alone(item) if answer is None else answer)
        except Refusal as refusal:
            answers.append(refusal)
    return answers


async def refuse_lost(database: Database, task: Task, lease_id: str | None, worker_id: str | None) -> None:
    """Raise when a caller that proves who it is by a lease or a worker is not the one that holds the task."""
    if lease_id is None and worker_id is None:
        return
    if task.status == "cancelled":
        raise TaskCancelled("The task was cancelled")
    if lease_id is not None:
        lease = await database.row(Lease, BY_ID, id=lease_id, task_id=task.id)
        if lease is None:
            raise LeaseLost("The task has never had this lease")
        if task.lease_id != lease_id or lease.status != "active":
            raise LeaseLost(f"The lease is {lease.status} and not the current one of the task")
        if not await is_valid(database, lease_id):
            raise LeaseLost("The lease has expired")
    if worker_id is not None and task.status in ("leased", "running") and task.worker_id != worker_id:
        raise LeaseLost(f"The task is leased to another worker than {worker_id}")


async def is_valid(database: Database, lease_id: str) -> bool:
    """Whether a lease is active and not past its time."""
    return await database.row(Lease, STILL_VALID, id=lease_id) is not None
