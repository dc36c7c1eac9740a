"""What the methods answer, as `bloomd-ctl` reads it and `bloomd-ctl -o json` prints it.

Types only: they are plain dictionaries at run time, so that the client, which starts often, need not import them.
Times are seconds since the epoch, null where something has not happened yet; but those below "as the API has it" are
milliseconds, as they are there. New keys may come at any time; a change of what a key means raises `schema`.
"""

from typing import Any, Literal, TypedDict

Json = str | int | float | None | list["Json"] | dict[str, "Json"]

Verdict = Literal["ok", "degraded", "down"]


class Service(TypedDict):
    name: str
    state: Literal["starting", "running", "waiting", "backoff", "stopping", "stopped", "failed"]
    since: float
    cause: str
    restarts: int
    retry_in: float | None
    last_error: str | None
    essential: bool
    by_hand: bool


class Round(TypedDict):
    at: float
    ms: float | None
    """Null for a check that failed."""


class Probe(TypedDict):
    name: str
    state: Literal["up", "down", "disabled", "unknown"]
    last_ok: float | None
    p50_ms: float | None
    p99_ms: float | None
    failures: int
    """In a row."""
    error: str | None
    history: list[Round]
    """The latest checks, oldest first."""


class Pause(TypedDict):
    until: float | None
    """Null: until somebody resumes it."""
    reason: str | None


class Queue(TypedDict):
    by_status: dict[str, int]
    oldest_queued_seconds: float | None
    active_leases: int
    rescued_last_hour: int
    pause: Pause | None
    """Null when the queue is not paused, or when that is not known."""


class Workers(TypedDict):
    total: int
    online: int
    capacity: int
    busy: int
    free: int
    """Leases that could be had at once, by tasks that need no label."""
    cordoned: int
    draining: int


class Leader(TypedDict):
    node: str
    epoch: int
    """Rises with each change of hands."""
    since: float
    here: bool
    """Whether it is the daemon that answers."""


class Sync(TypedDict):
    configured: bool
    last_success: float | None
    age_seconds: float | None
    failures: int
    error: str | None
    agents: int | None


class ClockJump(TypedDict):
    at: float
    seconds: float
    """Forward, or back when negative."""


class Process(TypedDict):
    pid: int
    uptime_seconds: float
    version: str
    schema: int | None
    rss_bytes: int
    open_files: int
    open_files_limit: int
    loop_lag_ms: float
    loop_lag_worst_ms: float
    node: str
    clock_jumps: list[ClockJump]
    """The latest ten since the start, oldest first."""
    notifications: int
    """How many PostgreSQL has sent it since the start."""
    log_files: list[str]
    """The files that stdout and stderr go to; one that was deleted ends with ` (deleted)`."""


class LastReload(TypedDict):
    at: float
    ok: bool
    summary: str


class Objects(TypedDict):
    to_move: int
    """Contents that are still in PostgreSQL only, up to some thousands."""
    to_move_bytes: int
    to_remove: int
    """Objects that nothing refers to any more."""
    damaged: list[str]
    """Artifacts whose content was seen not to be what its sha256 says, since this daemon started."""


class Backup(TypedDict):
    next: float
    """When the next one is due; in the past when it should be under way."""
    since: float | None
    """Since when one is being made."""
    verified_age_seconds: float | None
    """How old the last verified one is; null when there is none."""
    file: str | None
    """Of the latest, on `node`; there is none when `bytes` is null."""
    node: str | None
    bytes: int | None
    missing: int
    """Objects that the store did not have as the database describes them."""
    error: str | None
    """Why the latest failed, or is not verified."""


class Status(TypedDict):
    schema: int
    verdict: Verdict
    reasons: list[str]
    """Why the verdict is not ok."""
    notices: list[str]
    """What an operator should know although nothing is wrong."""
    services: list[Service]
    probes: list[Probe]
    queue: Queue | None
    """Null when PostgreSQL is away: unknown, which is not the same as empty."""
    workers: Workers | None
    leader: Leader | None
    """Who sweeps, mirrors and polls for all nodes; null when that is not known."""
    sync: Sync
    objects: Objects | None
    """Null without an object store, and while nothing can be counted."""
    backup: Backup | None
    """Null without a schedule, and while nothing can be counted."""
    process: Process
    reload: LastReload | None
    next: str | None
    """The command to try next."""


class Setting(TypedDict):
    key: str
    value: Any
    source: str
    where: str | None
    default: Any


class Config(TypedDict):
    settings: list[Setting]
    warnings: list[str]


class Change(TypedDict):
    key: str
    old: Any
    new: Any


class Reload(TypedDict):
    ok: bool
    result: Literal["unchanged", "reloaded", "failed"]
    changes: list[Change]
    restarted: list[str]
    needs_restart: list[str]
    retried: list[str]
    errors: list[str]


class Services(TypedDict):
    services: list[Service]


class Probes(TypedDict):
    probes: list[Probe]


class SyncRound(TypedDict):
    agents: int
    added: int
    changed: int
    offline: int
    seconds: float


class Version(TypedDict):
    version: str
    python: str
    schema: int | None


class Pong(TypedDict):
    pong: bool
    pid: int
    loop_lag_ms: float
    round_trip_ms: float
    """Measured by the client, connecting included."""


class LogLevel(TypedDict):
    level: str


# As the API has it.


class QueueState(TypedDict):
    paused: bool
    until: int | None
    reason: str | None


class Worker(TypedDict):
    """And all else that the API tells of a worker."""

    id: str
    status: str
    cordoned: bool
    draining: bool
    active_leases: int


class Reason(TypedDict):
    code: str
    sentence: str


class Explanation(TypedDict):
    status: str
    reasons: list[Reason]


class Event(TypedDict):
    id: str | None
    """Where to go on after it; null for what is told only to those who follow."""
    type: str
    entity_id: str
    data: dict[str, Any]
    """An entry of the audit log, or what else there is to tell."""


class Key(TypedDict):
    name: str
    created_at: int
    created_by: str
    last_used_at: int | None


class Keys(TypedDict):
    keys: list[Key]


class MadeKey(TypedDict):
    name: str
    secret: str
    created_at: int
    created_by: str


class RemovedKey(TypedDict):
    removed: bool
    name: str
    authentication: Literal["on", "off"]
    """Off when this was the last key and `http.api_key` is not set either."""


class Task(TypedDict):
    """And all else that the API tells of a task."""

    id: str
    status: str
    prompt: str
    context_id: str
    agent_slug: str
    labels: list[str]
    pinned_worker_id: str | None
    worker_id: str | None
    attempts: int
    max_attempts: int
    created_at: int
    progress: int | float | str | None
    error_message: str | None


class Tasks(TypedDict):
    tasks: list[Task]
    cursor: str | None


class Attempt(TypedDict):
    worker_id: str
    started_at: int
    ended_at: int | None
    outcome: str | None
    error: str | None


class Result(TypedDict):
    artifact_id: str | None
    status: Literal["success", "error"]
    error_message: str | None
    metrics: dict[str, Any]


class TaskShown(TypedDict):
    task: Task
    history: list[Attempt]
    result: Result | None
    """Without its output, which is the content of its artifact."""


class ContentPiece(TypedDict):
    size: int
    content_type: str
    data: str
    """Base64."""


class Matched(TypedDict):
    matched: int
    changed: int
