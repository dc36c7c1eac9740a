"""Is it alive, and can it serve."""

from typing import Literal

import msgspec
from litestar import get

from bloomd import __version__
from bloomd.control.answers import Verdict
from bloomd.http.problems import Problem
from bloomd.http.requests import Req, caller, node_of
from bloomd.probes import State as ProbeState
from bloomd.supervisor import State
from bloomd.verdict import reasons, verdict


class MembridgeCalls(msgspec.Struct, frozen=True, rename="camel"):
    """How the calls to Membridge went."""

    consecutive_failures: int
    last_success: int | None
    last_error: str | None
    connected: bool


class Health(msgspec.Struct, frozen=True):
    status: Verdict
    service: Literal["bloom-runtime"]
    version: str
    node: str
    uptime: float
    storage: Literal["postgresql", "unavailable"]
    membridge: MembridgeCalls
    probes: dict[str, ProbeState]
    client: str
    """The address of whoever asks, as it is known here: behind a proxy, the one that the proxy tells."""


class Ready(msgspec.Struct, frozen=True):
    ready: bool


@get("/api/runtime/health", summary="Whether the daemon is alive, and what it thinks of itself")
async def health(request: Req) -> Health:
    """Always 200: an init system or a load balancer learns here that the process answers."""
    node = node_of(request)
    membridge = node.membridge.health
    return Health(
        status=verdict(reasons(node)),
        service="bloom-runtime",
        version=__version__,
        node=node.name,
        uptime=round(node.uptime, 3),
        storage="postgresql" if node.database.away is None else "unavailable",
        membridge=MembridgeCalls(
            consecutive_failures=membridge.consecutive_failures,
            last_success=membridge.last_success,
            last_error=membridge.last_error,
            connected=membridge.connected,
        ),
        probes={probe.status.name: probe.status.state for probe in node.probes},
        client=caller(request).client,
    )


@get(["/ready", "/api/runtime/ready"], summary="Whether work can be done here now")
async def ready(request: Req) -> Ready:
    """503 while it cannot: the database is away or unmigrated, or the daemon is stopping."""
    node = node_of(request)
    if node.stopping.is_set():
        raise Problem(503, "bloomd is stopping", type="stopping", headers={"retry-after": "5"})
    if node.root.state("database") is not State.RUNNING or node.database.away:
        raise Problem(
            503, node.database.away or "PostgreSQL is not up", type="unavailable", headers={"retry-after": "2"}
        )
    if not node.keys.known:
        raise Problem(503, "The API keys have not been read yet", type="unavailable", headers={"retry-after": "2"})
    return Ready(ready=True)


HANDLERS = [health, ready]
