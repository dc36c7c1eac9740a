"""The objects of the API: each Struct is a row of its table, the JSON that clients see, and its schema, in one.

Field names are the wire format of the runtime that bloomd replaces; clients in the field depend on them. All times are
epoch milliseconds.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

TaskStatus = Literal["queued", "leased", "running", "completed", "failed", "dead", "cancelled"]
LeaseStatus = Literal["active", "expired", "released", "failed"]
WorkerStatus = Literal["online", "offline", "syncing", "error", "unknown"]
Format = Literal["json", "text"]
Outcome = Literal["success", "error"]
AttemptOutcome = Literal["success", "error", "expired", "deadline", "released", "cancelled"]
"""As the worker said; because it fell silent, or took too long; given back; cancelled under way."""


class Policy(msgspec.Struct, frozen=True):
    """What an attempt may cost."""

    timeout_sec: int = 120
    budget: int | float = 0
    """Tokens; 0 is no limit."""


class Task(msgspec.Struct, frozen=True):
    id: str
    context_id: str
    agent_slug: str
    prompt: str
    context_hints: list[str]
    policy: Policy
    desired_format: Format
    status: TaskStatus
    created_at: int
    updated_at: int
    lease_id: str | None
    worker_id: str | None
    attempts: int
    max_attempts: int
    priority: int
    labels: list[str]
    pinned_worker_id: str | None
    not_before: int | None
    retry_at: int | None
    idempotency_key: str | None
    error_message: str | None
    progress: int | float | str | None = None
    """How far the worker has come, in its own words."""
    progress_at: int | None = None


class Lease(msgspec.Struct, frozen=True):
    id: str
    task_id: str
    worker_id: str
    started_at: int
    expires_at: int
    ttl_seconds: int
    status: LeaseStatus
    last_heartbeat: int | None
    context_id: str | None
    attempt: int | None = None
    ended_at: int | None = None
    deadline_at: int | None = None
    """When the attempt is over, however often it is heartbeated; None for a task that was leased by itself."""
    outcome: str | None = None
    reason: str | None = None


class Worker(msgspec.Struct, frozen=True):
    id: str
    node_id: str
    url: str
    status: WorkerStatus
    capabilities: dict[str, Any]
    last_heartbeat: int | None
    ip_addrs: list[Any]
    obs_count: int
    db_sha: str
    registered_at: int
    active_leases: int
    agent_version: str | None
    os_info: str | None
    install_method: str | None
    cordoned: bool
    draining: bool
    source: Literal["direct", "membridge"]


class Artifact(msgspec.Struct, frozen=True):
    id: str
    task_id: str
    job_id: str | None
    type: str
    created_at: int
    finalized: bool
    url: str | None
    entity_refs: list[Any]
    tags: list[Any]
    content: str | None
    """The text, where it is short enough to stand here."""
    size: int | None
    sha256: str | None
    name: str | None = None
    """Unique under its lease; `result` is what the attempt ended with, unless that was uploaded."""
    content_type: str | None = None
    lease_id: str | None = None


class Result(msgspec.Struct, frozen=True):
    id: str
    task_id: str
    worker_id: str | None
    artifact_id: str | None
    status: Outcome
    output: str | None
    error_message: str | None
    metrics: dict[str, Any]
    completed_at: int


class AuditEntry(msgspec.Struct, frozen=True):
    id: str
    timestamp: int
    action: str
    entity_type: str
    entity_id: str
    actor: str
    detail: str | None


Name = Annotated[str, Meta(min_length=1, max_length=256)]
WorkerName = Annotated[str, Meta(min_length=1, max_length=128)]
# Stands in paths and on terminals: no slash, no control character, and neither `.` nor `..`, which clients and proxies
# take out of a path.
WORKER_NAME_RULE = "must be 1 to 128 characters, none of them a slash or a control character, and neither `.` nor `..`"
NewWorkerName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=128,
        pattern=r"\A(?!\.{1,2}\Z)[^/\x00-\x1f\x7f]+\Z",
        extra={"rule": WORKER_NAME_RULE},
    ),
]
Label = Annotated[str, Meta(min_length=1, max_length=64)]
EpochMs = Annotated[int, Meta(ge=0, le=253_402_300_799_000)]  # the end of the year 9999


class NewPolicy(msgspec.Struct, frozen=True):
    timeout_sec: Annotated[int, Meta(ge=1, le=3600)] = 120
    budget: Annotated[int, Meta(ge=0, le=1 << 53)] | Annotated[float, Meta(ge=0, le=1 << 53)] = 0


class NewTask(msgspec.Struct, frozen=True):
    """What a client says to queue a task."""

    prompt: Annotated[str, Meta(min_length=1)]
    context_id: Annotated[str, Meta(max_length=512)] = ""
    agent_slug: Annotated[str, Meta(max_length=512)] = ""
    context_hints: list[str] | dict[str, Any] = []
    policy: NewPolicy = NewPolicy()
    desired_format: Format = "text"
    max_attempts: Annotated[int, Meta(ge=1, le=10)] = 3
    priority: Annotated[int, Meta(ge=0, le=9)] = 0
    labels: Annotated[list[Label], Meta(max_length=64)] = []
    pinned_worker_id: WorkerName | None = None
    not_before: EpochMs | None = None
    idempotency_key: Name | None = None


class NewWorker(msgspec.Struct, frozen=True):
    """What a worker, or somebody for it, says to register. What is not said keeps what is known."""

    name: NewWorkerName
    url: Annotated[str, Meta(pattern=r"\A(https?://[^\s/?#@]+([/?#]\S*)?)?\Z", max_length=2048)] | None = None
    status: WorkerStatus | None = None
    capabilities: "Capabilities | None" = None
    ip_addrs: Annotated[list[Label], Meta(max_length=64)] | None = None
    agent_version: Name | None = None
    os_info: Name | None = None
    install_method: Name | None = None


class Capabilities(msgspec.Struct, frozen=True, omit_defaults=True):
    """The three that bloomd reads; further keys are kept as they come."""

    claude_cli: bool | msgspec.UnsetType = msgspec.UNSET
    max_concurrency: Annotated[int, Meta(ge=1, le=32)] | msgspec.UnsetType = msgspec.UNSET
    labels: Annotated[list[Label], Meta(max_length=64)] | msgspec.UnsetType = msgspec.UNSET


class Metrics(msgspec.Struct, frozen=True):
    duration_ms: Annotated[int, Meta(ge=0, le=1 << 53)] = 0
    tokens_used: Annotated[int, Meta(ge=0, le=1 << 53)] | None = None
    cost_usd: Annotated[float, Meta(ge=0, le=1e9)] | msgspec.UnsetType | None = msgspec.UNSET
    """Kept where a worker says it: those in the field do not."""


class Completion(msgspec.Struct, frozen=True):
    """What a worker says when an attempt has ended."""

    status: Outcome
    output: str | None = None
    error_message: str | None = None
    metrics: Metrics | None = None
    artifact_type: Name = "LLM_RESULT"
    artifact_tags: list[str] = []
    artifact_id: Name | None = None
    """Of what was uploaded under the same lease, to be the result's artifact instead of a new one."""
    lease_id: Name | None = None
    worker_id: WorkerName | None = None
    retryable: bool = True


class Retry(msgspec.Struct, frozen=True):
    """When a lost or failed attempt is tried again."""

    first_seconds: float = 5.0
    max_seconds: float = 300.0
    errors: bool = True
    """Whether an attempt that a worker reports as an error is tried again at all."""

    @property
    def parameters(self) -> dict[str, int]:
        return {"retry_ms": int(self.first_seconds * 1000), "retry_max_ms": int(self.max_seconds * 1000)}
