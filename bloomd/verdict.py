"""The verdict on a node: ok, degraded or down, why, and what to do about it. Decisions only, on plain values."""

from collections.abc import Iterable, Sequence

import msgspec

from bloomd.control.answers import Verdict
from bloomd.node import Node, ReloadReport
from bloomd.probes import ProbeStatus
from bloomd.supervisor import ServiceStatus, State

# A loop that was this late within the last minute kept everybody waiting for a time that a person notices.
LAGGING_SECONDS = 1.0

# Without these two nobody is served.
VITAL = ("http", "database")

# The service that has a probe for the same dependency: one outage is one reason.
PROBED_BY = {"membridge-sync": "membridge", "database": "postgresql"}


class Reason(msgspec.Struct, frozen=True):
    """One thing that is not as it should be."""

    text: str
    down: bool = False
    next: str | None = None
    """The command to try."""


def reasons(node: Node) -> list[Reason]:
    """Everything that is not as it should be, the worst first."""
    return judge(
        node.root.status(),
        [probe.status for probe in node.probes],
        lag=node.lag.worst,
        last_reload=node.last_reload,
        config_option=node.config_option,
    )


def verdict(reasons: Sequence[Reason]) -> Verdict:
    return "down" if any(reason.down for reason in reasons) else "degraded" if reasons else "ok"


def judge(
    services: Sequence[ServiceStatus],
    probes: Iterable[ProbeStatus],
    *,
    lag: float = 0.0,
    last_reload: ReloadReport | None = None,
    config_option: str = "",
) -> list[Reason]:
    """Name causes, not what follows from them: a service that waits for another one is only counted."""
    troubled = {each.name: each for each in services if each.state is not State.RUNNING}
    troubled = {name: each for name, each in troubled.items() if name.rpartition("/")[0] not in troubled}
    waiting = [each for each in troubled.values() if "database" in troubled and _waits_for_database(each)]
    found = [_of_service(each, config_option) for each in troubled.values() if each not in waiting]
    if waiting:
        found.append(Reason(f"{len(waiting)} {'service waits' if len(waiting) == 1 else 'services wait'} for it"))
    told = {PROBED_BY.get(name) for name in troubled}
    found += [
        Reason(f"{probe.name} is down: {probe.error}", next=f"bloomd-ctl probe {probe.name}")
        for probe in probes
        if probe.state == "down" and probe.name not in told
    ]
    if lag >= LAGGING_SECONDS:
        found.append(Reason(f"the event loop was {lag:.1f} s late within the last minute"))
    if last_reload and not last_reload.ok:
        check = f"bloomd check{config_option}, then bloomd-ctl reload"
        found.append(Reason(f"the last reload failed: {last_reload.summary}", next=check))
    return sorted(found, key=lambda reason: not reason.down)


def _waits_for_database(each: ServiceStatus) -> bool:
    """Whether it is in trouble only because the database is: it needs it, or has lost it like everybody else."""
    lost = each.state in (State.WAITING, State.STARTING) and each.name not in (*VITAL, *PROBED_BY)
    return lost or each.cause == "needs database"


def _of_service(each: ServiceStatus, config_option: str) -> Reason:
    down = each.name in VITAL
    if each.by_hand:
        return Reason(f"{each.name} is stopped by hand", down, f"bloomd-ctl start {each.name}")
    error = each.last_error or each.cause
    if each.state is State.FAILED:
        command = f"bloomd-ctl restart {each.name}"
        if "bloomd migrate" in error:
            command = f"bloomd migrate{config_option}, then {command}"
        return Reason(f"{each.name} has failed: {error}", down, command)
    if each.name == "database":
        return Reason(f"PostgreSQL is not up: {error}" if each.last_error else "PostgreSQL is not connected yet", down)
    # Between two tries a service that waits is `starting` for a moment.
    state = State.WAITING if each.state is State.STARTING and each.last_error else each.state
    return Reason(f"{each.name} is {state.value}" + (f": {error}" if error else ""), down)
