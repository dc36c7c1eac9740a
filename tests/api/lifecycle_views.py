"""What the model shows beside its objects: a task's attempts and result, the counts, and why a task does not run."""

from collections import Counter
from collections.abc import Iterator

from lifecycle_model import Model
from lifecycle_objects import Json, Task


def history(model: Model, task: Task) -> list[Json]:
    names = ("attempt", "worker_id", "started_at", "last_heartbeat", "deadline_at", "ended_at", "outcome")
    leases = [lease for lease in model.leases.values() if lease.task_id == task.id]
    return [
        {**{name: getattr(lease, name) for name in names}, "lease_id": lease.id, "error": lease.reason}
        for lease in sorted(leases, key=lambda lease: (lease.started_at, lease.id), reverse=True)
    ]


def listed(model: Model, task: Task) -> Json:
    """A task with the times of its latest attempt."""
    latest = next(iter(history(model, task)), {"started_at": None, "ended_at": None})
    return {**task.json(), "started_at": latest["started_at"], "ended_at": latest["ended_at"]}


def result(model: Model, task: Task) -> Json | None:
    """What the latest attempt that ended with a result said."""
    results = [ending.result() for ending in model.endings.values() if ending.lease.task_id == task.id]
    latest = max(results, key=lambda each: (each["completed_at"], each["id"]), default=None)
    return latest and {**latest, "output_truncated": False}


def stats(model: Model) -> Json:
    statuses = Counter(task.status for task in model.tasks.values())
    return {
        "tasks": {"total": len(model.tasks), "by_status": dict(statuses)},
        "leases": {
            "total": len(model.leases),
            "active": sum(lease.status == "active" for lease in model.leases.values()),
        },
        "workers": {
            "total": len(model.workers),
            "online": sum(worker.status == "online" for worker in model.workers.values()),
        },
    }


def why(model: Model, task_id: str) -> set[str]:
    """The codes of the reasons why a task does not run."""
    task = model.task(task_id)
    if task.status != "queued":
        return {task.status}
    reasons = set(_reasons(model, task))
    if not reasons:
        serial = all(worker.is_serial for worker in model.fitting(task))
        holder = model.holder(task)
        if serial and model.of_context(task):
            reasons = {"context-turn"}
        elif serial and holder and model.misfit(holder, task.labels) == "full":
            reasons = {"conversation"}
        else:
            reasons = {"claimable"}
    return reasons


def _reasons(model: Model, task: Task) -> Iterator[str]:
    if model.is_paused:
        yield "queue-paused"
    if (task.not_before or 0) > model.now:
        yield "not-before"
    if int(task.retry_at or 0) > model.now:
        yield "retry-delay"
    if model.fitting(task):
        return
    if task.pinned_worker_id:
        pin = model.workers.get(task.pinned_worker_id)
        misfit = model.misfit(pin, task.labels) if pin else "offline"
        away = {"offline": "pinned-worker-away", "no-claude": "no-claude", "no-label": "no-label"}
        yield away.get(misfit or "", f"workers-{misfit}")
        return
    misfits = {model.misfit(worker, task.labels) for worker in model.workers.values()}
    if not misfits:
        yield "no-worker"
    elif misfits == {"offline"}:
        yield "no-worker-online"
    elif misfits <= {"offline", "no-claude", "no-label"}:
        yield "no-label" if "no-label" in misfits else "no-claude"
    else:
        yield from (f"workers-{misfit}" for misfit in misfits - {"offline", "no-claude", "no-label"})
