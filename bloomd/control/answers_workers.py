"""What the daemon answers about workers, their tokens and enrolments: types only, as in `answers`."""

from typing import Any, TypedDict

from bloomd.control.answers import Worker


class FullWorker(Worker):
    url: str
    capabilities: dict[str, Any]
    last_heartbeat: int | None
    agent_version: str | None
    os_info: str | None
    install_method: str | None
    ip_addrs: list[Any]
    source: str


class WorkerList(TypedDict):
    workers: list[FullWorker]
    cursor: str | None


class HeldLease(TypedDict):
    id: str
    task_id: str
    started_at: int


class WorkerShown(TypedDict):
    worker: FullWorker
    leases: list[HeldLease]


class Registered(TypedDict):
    worker: FullWorker
    new: bool


class RemovedWorker(TypedDict):
    removed: bool
    id: str


class Token(TypedDict):
    id: str
    created_at: int
    created_by: str
    last_used_at: int | None


class Tokens(TypedDict):
    tokens: list[Token]


class MadeToken(TypedDict):
    id: str
    worker_id: str
    secret: str
    created_at: int
    created_by: str


class RemovedToken(TypedDict):
    removed: bool
    id: str


class Enrolment(TypedDict):
    code: str
    worker: str
    expires_at: int
    server: str | None
    """As `http.public_url` has it."""
