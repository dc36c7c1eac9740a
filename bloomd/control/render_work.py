"""Tasks and workers as text for a person: pure functions from a value to lines, as those of `render`."""

from __future__ import annotations

from bloomd.control.layout import clock, count, duration, section, table
from bloomd.control.render import made_and_used, shown

TYPE_CHECKING = False  # importing typing would cost as much as all of this
if TYPE_CHECKING:
    from collections.abc import Iterator

    from bloomd.control.answers import Attempt, Json, Matched, Result, Task, Tasks, TaskShown
    from bloomd.control.answers_workers import (
        FullWorker,
        Registered,
        RemovedToken,
        RemovedWorker,
        Tokens,
        WorkerList,
        WorkerShown,
    )
    from bloomd.control.layout import Look


# Of a prompt, also where there is no room for it.
_SOME = 12

# Of why a worker has paused, which is a sentence; and no pause ends after the year 9999.
_EXCERPT = 300
_FAR = 253_402_300_799


def task(answer: Task, look: Look) -> Iterator[str]:
    yield f"{answer['id']}  {look.paint(answer['status'])}"


def tasks(answer: Tasks, look: Look) -> Iterator[str]:
    if not answer["tasks"]:
        yield "no task"
        return
    rows = [["id", "status", "worker", "age", "prompt"]]
    for each in answer["tasks"]:
        age = duration(look.now - each["created_at"] / 1000)
        rows.append([each["id"], each["status"], each["worker_id"] or "-", age, each["prompt"]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    room = max(look.width - sum(widths) - 2 * len(widths), _SOME)
    for *cells, prompt in rows:  # one line each, however long the prompt is
        padded = (look.paint(cell.ljust(width)) for cell, width in zip(cells, widths, strict=True))
        yield "  ".join([*padded, prompt[:room]])
    if answer["cursor"]:
        yield f"there are more: --cursor {answer['cursor']}"


def matched(answer: Matched, look: Look) -> Iterator[str]:
    changed = "nothing is changed" if not answer["changed"] else f"{count(answer['changed'], 'task')} changed"
    yield f"{count(answer['matched'], 'task')} matched, {changed}"


def task_shown(answer: TaskShown, look: Look) -> Iterator[str]:
    task, result = answer["task"], answer["result"]
    yield f"{task['id']}  {look.paint(task['status'])}"
    for label, value in (
        ("prompt", task["prompt"]),
        ("context", task["context_id"]),
        ("agent", task["agent_slug"]),
        ("labels", ", ".join(task["labels"])),
        ("pinned", task["pinned_worker_id"]),
        ("worker", task["worker_id"]),
        ("progress", task["progress"]),
        ("error", task["error_message"]),
        ("result", _result(result) if result else None),
        ("attempts", f"{task['attempts']} of {task['max_attempts']}"),
    ):
        if value not in (None, ""):
            yield from section(str(value), look, label=label)
    rows = [
        [clock(each["started_at"] / 1000, look.now, "%H:%M:%S"), each["worker_id"], *_end(each)]
        for each in answer["history"]
    ]
    yield from table(rows, look, indent="  ")


def _end(attempt: Attempt) -> list[str]:
    if attempt["ended_at"] is None:
        return ["under way", ""]
    took = f"after {duration((attempt['ended_at'] - attempt['started_at']) / 1000)}"
    return [attempt["outcome"] or "ended", took + (f": {attempt['error']}" if attempt["error"] else "")]


def _result(result: Result) -> str:
    metrics = result["metrics"]
    facts = [f"artifact {result['artifact_id']}"] if result["artifact_id"] else []
    if took := metrics.get("duration_ms"):
        facts.append(f"{took / 1000:.1f} s")
    if tokens := metrics.get("tokens_used"):
        facts.append(count(tokens, "token"))
    if cost := metrics.get("cost_usd"):
        facts.append(f"${cost:.4f}")
    return ", ".join([result["status"], *facts])


def workers(answer: WorkerList, look: Look) -> Iterator[str]:
    if not answer["workers"]:
        yield "no worker is known"
        return
    rows = [["name", "status", "leases", "seen", "labels", "where"]]
    for each in answer["workers"]:
        capabilities = each["capabilities"]
        held_back = "draining" if each["draining"] else "cordoned" if each["cordoned"] else ""
        seen = each["last_heartbeat"]
        pause = _pause(each, look)
        rows.append([
            each["id"],
            "paused" if pause else held_back if held_back and each["status"] == "online" else each["status"],
            f"{each['active_leases']}/{capabilities.get('max_concurrency', 1)}",
            "never" if seen is None else look.ago(seen / 1000),
            ", ".join(map(str, capabilities.get("labels") or [])) or "-",
            pause or each["url"] or "asks for work itself",
        ])  # fmt: skip
    yield from table(rows, look, indent="")
    if answer["cursor"]:
        yield f"there are more: --cursor {answer['cursor']}"


def _pause(worker: FullWorker, look: Look) -> str:
    """Why it has paused and until when; nothing when it has not. It is the worker that says so."""
    because: object = worker["capabilities"].get("paused_because")
    at: object = worker["capabilities"].get("paused_until")
    if worker["status"] != "error" or not isinstance(because, str):
        return ""
    until = ""
    if isinstance(at, int | float) and look.now < at / 1000 < _FAR:
        until = f" until {clock(at / 1000, look.now)}"
    return f"paused{until}: {because[:_EXCERPT]}"


def worker_shown(answer: WorkerShown, look: Look) -> Iterator[str]:
    yield from workers({"workers": [answer["worker"]], "cursor": None}, look)
    for label, value in (
        ("version", answer["worker"]["agent_version"]),
        ("system", answer["worker"]["os_info"]),
        ("installed", answer["worker"]["install_method"]),
        ("addresses", ", ".join(map(str, answer["worker"]["ip_addrs"]))),
        ("source", answer["worker"]["source"]),
    ):
        if value:
            yield from section(value, look, label=label)
    for lease in answer["leases"]:
        began = clock(lease["started_at"] / 1000, look.now, "%H:%M:%S")
        yield from section(f"task {lease['task_id']} since {began}, lease {lease['id']}", look, label="lease")


def registered(answer: Registered, look: Look) -> Iterator[str]:
    what = "registered" if answer["new"] else "known already; what was said is noted"
    yield f"{answer['worker']['id']} is {what}"


def removed(answer: RemovedWorker, look: Look) -> Iterator[str]:
    yield f"{answer['id']} is forgotten"


def facts(answer: dict[str, Json], look: Look) -> Iterator[str]:
    """What an agent said, field by field; what it said nothing of is left out."""
    for name, value in answer.items():
        if isinstance(value, dict):
            yield from facts(value, look)
        elif value not in (None, "", []):
            yield from section(f"{name.replace('_', ' ')}: {shown(value)}", look)


def tokens(answer: Tokens, look: Look) -> Iterator[str]:
    if not answer["tokens"]:
        yield "this worker has no token"
        return
    yield from made_and_used("id", ((token["id"], token) for token in answer["tokens"]), look)


def removed_token(answer: RemovedToken, look: Look) -> Iterator[str]:
    yield f"{answer['id']} is a token no longer"
