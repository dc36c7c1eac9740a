"""Tasks, leases and workers as the model of the queue has them, and as the API shows them (`json`).

Times are in epoch milliseconds.
"""

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


class Chosen:
    """A number that the server chooses between two others. Whatever it is compared to first, it is from then on."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, int) or not self.low <= other <= self.high:
            return False
        self.low = self.high = other
        return True

    def __int__(self) -> int:
        return self.high

    def __repr__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}..{self.high}"


@dataclass
class Task:
    """Its fields are those of the API, but for `ready`."""

    id: str
    created_at: int
    updated_at: int
    prompt: str
    context_id: str = ""
    agent_slug: str = ""
    context_hints: list[str] = field(default_factory=list[str])
    policy: Json = field(default_factory=lambda: {"timeout_sec": 120, "budget": 0})
    desired_format: str = "text"
    status: str = "queued"
    lease_id: str | None = None
    worker_id: str | None = None
    attempts: int = 0
    max_attempts: int = 3
    priority: int = 0
    labels: list[str] = field(default_factory=list[str])
    pinned_worker_id: str | None = None
    not_before: int | None = None
    retry_at: Chosen | None = None
    idempotency_key: str | None = None
    error_message: str | None = None
    progress: object = None
    progress_at: int | None = None
    ready: bool = True
    """Whether the sweeper has seen that its time has come: only then does a claim find it."""

    def json(self) -> Json:
        return {name: value for name, value in vars(self).items() if name != "ready"}

    def row(self) -> Json:
        """As the database has it. Of a task that is not queued nobody reads whether it is `ready`."""
        return vars(self) if self.status == "queued" else self.json()

    @property
    def due_at(self) -> int:
        return max(self.not_before or 0, int(self.retry_at or 0))

    @property
    def turn(self) -> tuple[int, int, str]:
        return -self.priority, self.created_at, self.id


@dataclass
class Lease:
    """Its fields are those of the API."""

    id: str
    task_id: str
    worker_id: str
    started_at: int
    expires_at: int
    ttl_seconds: int
    context_id: str
    attempt: int
    deadline_at: int | None = None
    status: str = "active"
    last_heartbeat: int = 0
    ended_at: int | None = None
    outcome: str | None = None
    reason: object = None

    def json(self) -> Json:
        return dict(vars(self))

    def prolong(self, now: int) -> None:
        """By its ttl from now, but not past the deadline of the attempt."""
        expires_at = now + self.ttl_seconds * 1000
        self.expires_at = expires_at if self.deadline_at is None else min(expires_at, self.deadline_at)


@dataclass
class Worker:
    id: str
    registered_at: int
    status: str = "online"
    capabilities: Json = field(default_factory=lambda: {"claude_cli": True, "max_concurrency": 1, "labels": []})
    last_heartbeat: int = 0
    alive_at: int | None = None
    asked_at: int | None = None
    """When it last asked for a task, or is taken to be about to."""
    cordoned: bool = False
    draining: bool = False

    def json(self, held: int) -> Json:
        return {
            **{name: value for name, value in vars(self).items() if name not in ("alive_at", "asked_at")},
            "node_id": self.id, "url": "", "ip_addrs": [], "obs_count": 0, "db_sha": "", "active_leases": held,
            "agent_version": None, "os_info": None, "install_method": None, "source": "direct",
        }  # fmt: skip

    def row(self, held: int) -> Json:
        """As the database has it."""
        return {**self.json(held), "alive_at": self.alive_at, "asked_at": self.asked_at, "capacity": self.capacity}

    @property
    def capacity(self) -> int:
        return self.capabilities["max_concurrency"]

    @property
    def is_serial(self) -> bool:
        return self.capabilities.get("sessions") is True


@dataclass
class Ending:
    """What a completion said and did; who says it again for the same lease gets this answer."""

    lease: Lease
    said: Json
    left_task: Json
    """How it left its task, as far as later attempts may change that."""
    artifact_id: str
    result_id: str

    def artifact(self) -> Json:
        output = self.said.get("output")
        content = self.said.get("error_message") if output is None and self.said["status"] == "error" else output
        return {
            "id": self.artifact_id, "task_id": self.lease.task_id, "type": "LLM_RESULT", "content": content,
            "created_at": self.lease.ended_at,
        }  # fmt: skip

    def result(self) -> Json:
        return {
            "id": self.result_id, "task_id": self.lease.task_id, "worker_id": self.lease.worker_id,
            "artifact_id": self.artifact_id, "status": self.said["status"], "output": self.said.get("output"),
            "error_message": self.said.get("error_message"), "metrics": {"duration_ms": 0, "tokens_used": None},
            "completed_at": self.lease.ended_at,
        }  # fmt: skip
