"""Why a task does not run: every reason there is, by the same predicate by which workers are chosen (`bloom_misfit`).

The database gives the facts, in one statement; what they mean is decided here, on plain values.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from bloomd.runtime.database import Database
from bloomd.runtime.model import Task
from bloomd.runtime.refusals import NotFound

# Of the workers that have paused the first few say why: most have the same reason.
PAUSES = 3
PAUSE_EXCERPT = 300

# The workers are counted by what keeps them from this task, not counting its pin; `pin` is the one it is pinned to.
# A worker that has paused says so in its capabilities, in which it may say anything.
FACTS = """
SELECT to_jsonb(task)                              AS task,
       bloom_now_ms()                              AS now_ms,
       NOT bloom_queue_is_open()                   AS paused,
       (SELECT until FROM queue_state)             AS paused_until,
       (SELECT reason FROM queue_state)            AS paused_reason,
       (SELECT coalesce(jsonb_object_agg(misfit, number), '{}')
          FROM (SELECT coalesce(bloom_misfit(workers.id, workers.status, workers.capabilities, workers.active_leases,
                                             workers.capacity, workers.cordoned, workers.draining,
                                             NULL, task.labels), 'fits') AS misfit,
                       count(*) AS number
                  FROM workers
                 GROUP BY misfit) AS each)         AS workers,
       (SELECT jsonb_build_object('status', status, 'held', active_leases, 'capacity', capacity,
                                  'misfit', bloom_misfit(id, status, capabilities, active_leases, capacity, cordoned,
                                                         draining, NULL, task.labels))
          FROM workers
         WHERE id = task.pinned_worker_id)         AS pin,
       (SELECT coalesce(jsonb_agg(label), '[]')
          FROM jsonb_array_elements_text(task.labels) AS label
         WHERE NOT EXISTS (SELECT FROM workers
                            WHERE status = 'online' AND capabilities -> 'labels' @> to_jsonb(label))) AS missing_labels,
       (SELECT to_jsonb(held)
          FROM leases AS held
         WHERE held.status = 'active' AND held.context_id = task.context_id AND task.context_id <> ''
         LIMIT 1)                                  AS same_context,
       (SELECT bool_and(coalesce(capabilities -> 'sessions' = 'true'::jsonb, false))
          FROM workers
         WHERE bloom_misfit(id, status, capabilities, active_leases, capacity, cordoned, draining,
                            task.pinned_worker_id, task.labels) IS NULL)  AS only_serial_workers,
       (SELECT bool_and(url <> '' AND asked_at IS NULL)
          FROM workers
         WHERE bloom_misfit(id, status, capabilities, active_leases, capacity, cordoned, draining,
                            task.pinned_worker_id, task.labels) IS NULL)  AS only_pushed_to,
       (SELECT jsonb_build_object('id', id, 'full', active_leases >= capacity)
          FROM workers
         WHERE id = bloom_holder(task.context_id, task.pinned_worker_id, task.labels))  AS holder,
       (SELECT coalesce(jsonb_agg(jsonb_build_object('id', id, 'because', because, 'until', until)), '[]')
          FROM (SELECT id, left(capabilities ->> 'paused_because', %(excerpt)s) AS because, until
                  FROM workers,
                       LATERAL (SELECT CASE WHEN jsonb_typeof(capabilities -> 'paused_until') = 'number'
                                            THEN (capabilities -> 'paused_until')::numeric END) AS said (at),
                       LATERAL (SELECT CASE WHEN at BETWEEN 0 AND 253402300799000 THEN trunc(at)::bigint END)
                                   AS pause (until)
                 WHERE status = 'error'
                   AND jsonb_typeof(capabilities -> 'paused_because') = 'string'
                   AND coalesce(until > bloom_now_ms(), true)
                   AND coalesce(bloom_misfit(id, 'online', capabilities, active_leases, capacity, cordoned, draining,
                                             task.pinned_worker_id, task.labels), 'full') = 'full'
                 ORDER BY until, id
                 LIMIT %(pauses)s) AS each)        AS pauses
  FROM llm_tasks AS task
 WHERE id = %(id)s
"""


class Reason(msgspec.Struct, frozen=True):
    code: str
    sentence: str


class Explanation(msgspec.Struct, frozen=True):
    status: str
    reasons: list[Reason]


class Pin(msgspec.Struct, frozen=True):
    status: str
    held: int
    capacity: int
    misfit: str | None


class SameContext(msgspec.Struct, frozen=True):
    worker_id: str
    task_id: str


class Holder(msgspec.Struct, frozen=True):
    """Who has the conversation of the task's context."""

    id: str
    full: bool


class Pausing(msgspec.Struct, frozen=True):
    """A worker that could take the task, if it had not paused."""

    id: str
    because: str
    until: int | None

    def __str__(self) -> str:
        until = f" until {_time(self.until)}" if self.until else ""
        return f"paused{until}: {' '.join(self.because.split()).rstrip('.')}."


class Facts(msgspec.Struct, frozen=True):
    """What there is to know about a task and those who could take it."""

    task: Task
    now_ms: int
    paused: bool
    paused_until: int | None
    paused_reason: str | None
    workers: dict[str, int]
    pin: Pin | None
    missing_labels: list[str]
    same_context: SameContext | None
    only_serial_workers: bool | None
    only_pushed_to: bool | None
    """Whether those that could take it have never asked for a task."""
    holder: Holder | None
    pauses: list[Pausing]


async def explain(database: Database, task_id: str) -> Explanation:
    """Why the task does not run, or what it does instead.

    Raises:
        NotFound: there is none with this id.
    """
    if facts := await database.row(Facts, FACTS, id=task_id, pauses=PAUSES, excerpt=PAUSE_EXCERPT):
        return Explanation(
            facts.task.status, list(_queued(facts) if facts.task.status == "queued" else _other(facts.task))
        )
    raise NotFound("Task not found")


def _queued(facts: Facts) -> Iterator[Reason]:
    found = [*_of_the_queue(facts), *_of_time(facts), *_of_workers(facts)]
    if not found and (held := facts.same_context) and facts.only_serial_workers:
        found.append(
            Reason(
                "context-turn",
                f"It waits for its turn: task {held.task_id} of the same context is under way on worker "
                f"{held.worker_id}, and the workers that could take it run the tasks of a context one at a time.",
            )
        )
    holder = facts.holder if facts.only_serial_workers else None
    if not found and holder and holder.full:
        found.append(
            Reason(
                "conversation",
                f"It waits for worker {holder.id}, which has the conversation of its context and no room now.",
            )
        )
    if not found:
        only = facts.task.pinned_worker_id or (holder and holder.id)
        takers = f"worker {only}" if only else _count(facts.workers["fits"], "worker")
        when = (
            "when it is dispatched, by hand or with tasks.auto_dispatch"
            if facts.only_pushed_to
            else "when asking for work"
        )
        found.append(Reason("claimable", f"Nothing keeps it: {takers} could take it, and will {when}."))
    yield from found


def _of_the_queue(facts: Facts) -> Iterator[Reason]:
    if facts.paused:
        until = f" until {_time(facts.paused_until)}" if facts.paused_until else ""
        reason = f": {facts.paused_reason}" if facts.paused_reason else ""
        yield Reason("queue-paused", f"The queue is paused{until}{reason}.")


def _of_time(facts: Facts) -> Iterator[Reason]:
    task = facts.task
    if (task.not_before or 0) > facts.now_ms:
        yield Reason("not-before", f"It may not start before {_time(task.not_before)}.")
    if (task.retry_at or 0) > facts.now_ms:
        why = f": {task.error_message}" if task.error_message else ""
        if task.attempts == 0:
            yield Reason(
                "retry-delay", f"It was given back{why}; the next attempt may start at {_time(task.retry_at)}."
            )
            return
        yield Reason(
            "retry-delay",
            f"Attempt {task.attempts} of {task.max_attempts} did not succeed{why}; "
            f"the next may start at {_time(task.retry_at)}.",
        )


def _of_workers(facts: Facts) -> Iterator[Reason]:
    if facts.task.pinned_worker_id is not None:
        yield from _of_pin(facts, facts.task.pinned_worker_id)
        return
    number = facts.workers.get
    if number("fits"):
        return
    known = sum(facts.workers.values())
    online = known - number("offline", 0)
    if not known:
        yield Reason("no-worker", "No worker is known; register one.")
    elif not online:
        yield Reason("no-worker-online", f"No worker is online ({_count(known, 'worker')} known).")
    for pausing in facts.pauses:
        yield Reason("workers-paused", f"Worker {pausing.id} is {pausing}")
    able = online - number("no-claude", 0) - number("no-label", 0)
    if online and not able:
        if number("no-label"):
            yield _no_label(facts, number("no-label", 0))
        else:
            yield Reason("no-claude", f"{_none_of(online)} the Claude CLI.")
    for misfit in ("draining", "cordoned", "full"):
        if count := number(misfit):
            whose = (
                f"All {count} suitable workers are"
                if count == able > 1
                else (
                    "The only suitable worker is"
                    if able == 1
                    else f"Of the {able} suitable workers {count} {'is' if count == 1 else 'are'}"
                )
            )
            yield Reason(f"workers-{misfit}", f"{whose} {misfit}.")


def _of_pin(facts: Facts, name: str) -> Iterator[Reason]:
    pin = facts.pin
    if pin is None:
        yield Reason("pinned-worker-away", f"It is pinned to worker {name}, which is not known.")
        return
    match pin.misfit:
        case None:
            return
        case "offline" if facts.pauses:
            yield Reason("workers-paused", f"It is pinned to worker {name}, which is {facts.pauses[0]}")
        case "offline":
            yield Reason("pinned-worker-away", f"It is pinned to worker {name}, which is {pin.status}, not online.")
        case "no-claude":
            yield Reason("no-claude", f"It is pinned to worker {name}, which does not have the Claude CLI.")
        case "no-label":
            labels = ", ".join(facts.task.labels)
            yield Reason("no-label", f"It is pinned to worker {name}, which does not have all of its labels: {labels}.")
        case "full":
            yield Reason(
                "workers-full",
                f"It is pinned to worker {name}, which is full: {pin.held} of {_count(pin.capacity, 'lease')} held.",
            )
        case misfit:
            yield Reason(f"workers-{misfit}", f"It is pinned to worker {name}, which is {misfit}.")


def _no_label(facts: Facts, number: int) -> Reason:
    whose = _none_of(number)
    if missing := facts.missing_labels:
        labels = f"the label {missing[0]}" if len(missing) == 1 else f"the labels {', '.join(missing)}"
        return Reason("no-label", f"{whose} {labels}.")
    return Reason("no-label", f"{whose} all of its labels: {', '.join(facts.task.labels)}.")


def _none_of(online: int) -> str:
    return f"None of the {online} online workers has" if online > 1 else "The only online worker does not have"


def _other(task: Task) -> Iterator[Reason]:
    last = f": {task.error_message}" if task.error_message else ""
    match task.status:
        case "leased":
            sentence = f"It is leased to worker {task.worker_id}, which has not shown yet that it works on it."
        case "running":
            sentence = f"It runs on worker {task.worker_id}, attempt {task.attempts} of {task.max_attempts}."
        case "completed":
            sentence = f"It was completed at {_time(task.updated_at)}."
        case "failed":
            sentence = f"It failed at {_time(task.updated_at)}{last}. Requeue it to try again."
        case "dead":
            sentence = f"It is dead after {_count(task.attempts, 'attempt')}{last}. Requeue it to try again."
        case _:
            sentence = f"It was cancelled at {_time(task.updated_at)}. Requeue it to run it after all."
    yield Reason(task.status, sentence)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _time(epoch_ms: Any) -> str:
    return f"{datetime.fromtimestamp(epoch_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
