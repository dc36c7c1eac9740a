"""What a service is, and what its supervisor says about it: plain values, no behaviour."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

import trio

from bloomd.supervisor.backoff import Backoff

if TYPE_CHECKING:
    from bloomd.supervisor.supervisor import Supervisor


class State(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    """For a service that it needs, or for a dependency that is away."""
    BACKOFF = "backoff"
    """It crashed and will be restarted."""
    STOPPING = "stopping"
    STOPPED = "stopped"
    """By hand, or at shutdown."""
    FAILED = "failed"
    """Given up until a person, or a reload, says otherwise."""


class Run(Protocol):
    async def __call__(self, *, task_status: trio.TaskStatus[Any]) -> None:
        """Serve until cancelled; call `task_status.started()` once the service is really usable."""
        ...


# Soon enough that a person hardly notices, rare enough that a dependency under repair is not hammered.
DEPENDENCY_BACKOFF = Backoff(first=0.2, cap=30.0)


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Service:
    """One thing that the daemon does, and the rules by which it lives."""

    name: str
    run: Run
    needs: tuple[str, ...] = ()
    """Siblings that must be running before this one starts. What their later absence means is its own affair."""
    essential: bool = False
    """When it fails for good, the whole supervisor ends with `EssentialServiceFailed`."""
    configured: Callable[[], bool] = _always
    """Asked before each start; a service that is not configured is absent: not started and not shown.

    One that already runs stays until it is stopped or restarted, and is shown until then.
    """
    retry: Backoff = DEPENDENCY_BACKOFF
    """Between tries while a dependency is `Unavailable`."""
    stops_first: bool = False
    """At shutdown it is stopped before the others, which are still there for what it has to finish."""
    ask_to_stop: Callable[[], None] | None = None
    """Asks a running service to finish and return. Without it, a stop is a cancellation."""
    stop_seconds: float = 10.0
    """How long a service that was asked to stop may take before it is cancelled."""
    group: "Supervisor | None" = None
    """The supervisor that `run` is, when this service is a tree of its own: it is then stopped in order as well."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of state, as it is kept and published."""

    service: str
    state: State
    at: float
    """Wall clock, seconds since the epoch."""
    cause: str


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """What there is to know about one service at one moment."""

    name: str
    """Its path: `probes/minio`."""
    state: State
    since: float
    """Wall clock of the last change of state, seconds since the epoch."""
    cause: str
    restarts: int
    """How many times it was started again after trouble, since the daemon started."""
    retry_in: float | None
    """Seconds until the next try, while it waits for one."""
    last_error: str | None
    essential: bool
    by_hand: bool
    """Whether a person stopped it."""
    changes: tuple[Change, ...] = field(default=(), repr=False)
    """The latest changes of state, oldest first."""
