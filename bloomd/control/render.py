"""The answers of the control socket as text for a person: pure functions from a value to lines.

The text fits a terminal of 60 columns and up; a long error is wrapped, never cut. What comes from elsewhere (an error
that some server sent, say) loses its control characters first, so that it cannot play tricks on the terminal.
"""

from __future__ import annotations

from bloomd.control.layout import clock, count, duration, milliseconds, section, table

TYPE_CHECKING = False  # importing typing would cost as much as all of this
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bloomd.control.answers import (
        Backup,
        Change,
        Config,
        Event,
        Explanation,
        Json,
        Key,
        Keys,
        Leader,
        LogLevel,
        Objects,
        Pong,
        Probe,
        Probes,
        Process,
        Queue,
        QueueState,
        Reload,
        RemovedKey,
        Service,
        Services,
        Status,
        Sync,
        SyncRound,
        Version,
        Worker,
        Workers,
    )
    from bloomd.control.answers_workers import Token
    from bloomd.control.layout import Look

# Wide enough for `worker.registered`.
_ACTION = 17


def shown(value: Json | tuple[Json, ...]) -> str:
    """The value of a setting."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "-"
    return str(value)


def failure(answer: dict[str, str], look: Look) -> Iterator[str]:
    yield from section(look.stamp + answer["error"], look)


def status(answer: Status, look: Look) -> Iterator[str]:
    reasons = "; ".join(answer["reasons"])
    verdict = answer["verdict"]
    yield from section(look.stamp + verdict + (f": {reasons}" if reasons else ""), look, lead=verdict)
    for notice in answer["notices"]:
        yield from section(notice, look, label="notice")
    yield ""
    yield "services"
    yield from _service_rows(answer["services"], look)
    yield ""
    yield "probes"
    away = {service["name"] for service in answer["services"] if service["state"] != "running"}
    yield from _probe_rows(answer["probes"], look, away)
    yield ""
    queue = answer["queue"]
    yield from section(_queue(queue, look), look, label="queue", lead="paused" if queue else "unknown")
    yield from section(_workers(answer["workers"]), look, label="workers", lead="unknown")
    leader = answer.get("leader")
    yield from section(_leader(leader, look), look, label="leader", lead="unknown")
    yield from section(_sync(answer["sync"], leader, look), look, label="sync", lead="not configured")
    if objects := answer.get("objects"):
        yield from section(_objects(objects), look, label="objects")
    if backup := answer.get("backup"):
        yield from section(_backup(backup, look), look, label="backup")
    yield from _process(answer["process"], look)
    if last := answer["reload"]:
        result = "ok" if last["ok"] else "failed"
        text = f"{result} {look.ago(last['at'])}: {last['summary']}"
        yield from section(text, look, label="reload", lead=result)
    if answer["next"]:
        yield ""
        yield from section(answer["next"], look, label="try next")


def services(answer: Services, look: Look) -> Iterator[str]:
    yield from _service_rows(answer["services"], look, indent="")


def probes(answer: Probes, look: Look) -> Iterator[str]:
    yield from _probe_rows(answer["probes"], look, set(), indent="")


def config(answer: Config, look: Look) -> Iterator[str]:
    rows = [
        [setting["key"], f"{shown(setting['value'])}  # {setting['source']}{_where(setting['where'])}"]
        for setting in answer["settings"]
    ]
    yield from table(rows, look, indent="")
    for warning in answer["warnings"]:
        yield from section(warning, look, label="warning")


def reload(answer: Reload, look: Look) -> Iterator[str]:
    later = [change for change in answer["changes"] if change["key"] in answer["needs_restart"]]
    now = [change for change in answer["changes"] if change not in later]
    match answer["result"]:
        case "unchanged":
            yield "unchanged"
        case "reloaded":
            effect = "the new settings are in force" if now else "nothing changes before a restart of bloomd"
            yield f"{look.paint('ok')}: {effect}"
        case "failed":
            yield look.paint("failed") + ": the old settings stay in force"
    for error in answer["errors"]:
        yield from section(error, look)
    yield from table(list(map(_change, now)), look, indent="  ")
    if later:
        yield "in force after a restart of bloomd:"
        yield from table(list(map(_change, later)), look, indent="  ")
    for label, names in (("restarted", answer["restarted"]), ("tried again", answer["retried"])):
        if names:
            yield f"{label}: {', '.join(names)}"


def sync(answer: SyncRound, look: Look) -> Iterator[str]:
    yield (
        f"{count(answer['agents'], 'agent')}: {answer['added']} added, {answer['changed']} changed,"
        f" {answer['offline']} offline, in {milliseconds(answer['seconds'] * 1000)}"
    )


def version(answer: Version, look: Look) -> Iterator[str]:
    schema = "unknown (the database is not ready)" if answer["schema"] is None else answer["schema"]
    yield f"bloomd {answer['version']}, Python {answer['python']}, schema {schema}"


def ping(answer: Pong, look: Look) -> Iterator[str]:
    yield (
        f"pong from pid {answer['pid']} in {milliseconds(answer['round_trip_ms'])},"
        f" loop lag {milliseconds(answer['loop_lag_ms'])}"
    )


def log_level(answer: LogLevel, look: Look) -> Iterator[str]:
    yield f"log level: {answer['level']}"


def queue(answer: QueueState, look: Look) -> Iterator[str]:
    if not answer["paused"]:
        yield "the queue is not paused"
        return
    until = answer["until"]
    reason = f": {answer['reason']}" if answer["reason"] else ""
    yield from section(f"the queue is {_paused(until and until / 1000, look)}{reason}", look)


def worker(answer: Worker, look: Look) -> Iterator[str]:
    leases = f"{count(answer['active_leases'], 'lease')} left" if answer["active_leases"] else "it holds no lease"
    if answer["draining"]:
        yield f"{answer['id']} is {'draining' if answer['active_leases'] else 'drained'}: {leases}"
    elif answer["cordoned"]:
        yield f"{answer['id']} is cordoned: {leases}"
    else:
        away = "" if answer["status"] == "online" else f" as soon as it is online (it is {answer['status']})"
        yield f"{answer['id']} gets leases again{away}"


def why(answer: Explanation, look: Look) -> Iterator[str]:
    yield from table([[reason["code"], reason["sentence"]] for reason in answer["reasons"]], look, indent="")


def event(answer: Event, look: Look) -> Iterator[str]:
    data = answer["data"]
    at = data["timestamp"] / 1000 if data.get("timestamp") else look.now
    what = data.get("action") or answer["type"]
    facts = [
        clock(at, look.now, "%H:%M:%S"),
        look.paint(what.ljust(_ACTION), data.get("state") or what.rpartition(".")[2]),
        answer["entity_id"],
        data.get("actor"),
        *map(data.get, ("state", "detail", "reason", "error")),
        data.get("progress"),
    ]
    yield "  ".join(str(fact) for fact in facts if fact not in (None, ""))


def keys(answer: Keys, look: Look) -> Iterator[str]:
    if not answer["keys"]:
        yield "no key has a name"
        return
    yield from made_and_used("name", ((key["name"], key) for key in answer["keys"]), look)


def made_and_used(label: str, what: Iterable[tuple[str, Key | Token]], look: Look) -> Iterator[str]:
    """A table of keys or tokens, each with what it is called."""
    rows = [[label, "made", "by", "last used"]]
    for called, each in what:
        used = each["last_used_at"]
        made = clock(each["created_at"] / 1000, look.now)
        rows.append([called, made, each["created_by"], "never" if used is None else look.ago(used / 1000)])
    yield from table(rows, look, indent="")


def removed_key(answer: RemovedKey, look: Look) -> Iterator[str]:
    yield f"{answer['name']} is a key no longer"
    if answer["authentication"] == "off":
        yield from section("it was the last one: whoever reaches the API may now do everything", look, label="notice")


def _service_rows(services: Iterable[Service], look: Look, indent: str = "  ") -> Iterator[str]:
    rows: list[list[str]] = []
    for service in services:
        *parents, own = service["name"].split("/")
        name = "  " * len(parents) + own if indent else service["name"]
        rows.append([name, service["state"], duration(look.now - service["since"]), _service_detail(service)])
    yield from table(rows, look, indent=indent)


def _service_detail(service: Service) -> str:
    facts: list[str] = []
    if service["retry_in"] is not None:
        facts.append(f"retry in {duration(service['retry_in'])}")
    if service["restarts"]:
        facts.append(count(service["restarts"], "restart"))
    if service["by_hand"]:
        facts.append("stopped by hand")
    elif service["state"] == "stopped":
        facts += [service["cause"]] if service["cause"] != "shutdown" else []  # its group was stopped, and says why
    elif service["state"] != "running":
        facts.append(service["last_error"] or service["cause"])
    elif service["last_error"] and service["restarts"]:
        facts.append(f"last error: {service['last_error']}")
    return ", ".join(facts)


def _probe_rows(probes: list[Probe], look: Look, away: set[str], indent: str = "  ") -> Iterator[str]:
    rows: list[list[str]] = []
    for probe in probes:
        state = probe["state"]
        if state == "disabled" or f"probes/{probe['name']}" in away:
            rows.append([probe["name"], state if state == "disabled" else "not watched", "", "", "", ""])
            continue
        last_ok = "never ok" if probe["last_ok"] is None else f"ok {look.ago(probe['last_ok'])}"
        detail = f"{count(probe['failures'], 'failure')} in a row: {probe['error']}" if probe["failures"] else ""
        p50 = "" if probe["p50_ms"] is None else f"p50 {milliseconds(probe['p50_ms'])}"
        p99 = "" if probe["p99_ms"] is None else f"p99 {milliseconds(probe['p99_ms'])}"
        rows.append([probe["name"], state, last_ok, p50, p99, detail])
    yield from table(rows, look, indent=indent)


def _paused(until: float | None, look: Look) -> str:
    return f"paused until {'somebody resumes it' if until is None else clock(until, look.now)}"


def _queue(queue: Queue | None, look: Look) -> str:
    if queue is None:
        return "unknown (the database is not ready)"
    facts = [f"{number} {status}" for status, number in queue["by_status"].items()] or ["empty"]
    if pause := queue.get("pause"):
        reason = f" ({pause['reason']})" if pause["reason"] else ""
        facts.insert(0, _paused(pause["until"], look) + reason)
    if queue["oldest_queued_seconds"] is not None:
        facts.append(f"oldest queued for {duration(queue['oldest_queued_seconds'])}")
    facts.append(count(queue["active_leases"], "active lease"))
    facts.append(f"{queue['rescued_last_hour']} rescued in the last hour")
    return ", ".join(facts)


def _workers(workers: Workers | None) -> str:
    if workers is None:
        return "unknown (the database is not ready)"
    online = f"{workers['online']} of {workers['total']} online"
    for word in ("cordoned", "draining"):
        if number := workers.get(word):
            online += f", {number} {word}"
    busy, capacity = workers["busy"], workers["capacity"]
    if busy > capacity:  # the capacity is that of workers online; who went offline still holds a place
        return f"{online}, {count(busy, 'place')} taken"
    return f"{online}, {busy} of {count(capacity, 'place')} taken" if capacity else online


def _leader(leader: Leader | None, look: Look) -> str:
    if leader is None:
        return "unknown"
    who = "this node" if leader["here"] else leader["node"]
    return f"{who}, epoch {leader['epoch']}, for {duration(look.now - leader['since'])}"


def _sync(sync: Sync, leader: Leader | None, look: Look) -> str:
    if not sync["configured"]:
        return "not configured"
    if leader and not leader["here"]:
        return f"done by {leader['node']}"
    last = "never succeeded" if sync["last_success"] is None else f"succeeded {look.ago(sync['last_success'])}"
    agents = "" if sync["agents"] is None else f", {count(sync['agents'], 'agent')}"
    if not sync["failures"]:
        return last + agents
    return f"{last}{agents}, {count(sync['failures'], 'failure')} in a row: {sync['error']}"


# What the daemon counts to.
MANY_OBJECTS = 10_000


def _objects(objects: Objects) -> str:
    moving, removing = objects["to_move"], objects["to_remove"]
    more = " or more" if moving >= MANY_OBJECTS else ""
    left = [f"{count(moving, 'content')}{more} to move ({objects['to_move_bytes'] / 2**20:.1f} MiB)"] if moving else []
    left += [f"{count(removing, 'object')} to remove"] if removing else []
    left += [f"{count(len(objects['damaged']), 'content')} damaged"] if objects["damaged"] else []
    return ", ".join(left) or "all moved"


def _backup(backup: Backup, look: Look) -> str:
    age = backup["verified_age_seconds"]
    facts = ["never verified" if age is None else f"verified {duration(age)} ago"]
    if backup["since"] is not None:
        facts.append(f"being made for {duration(look.now - backup['since'])}")
    else:
        facts.append(f"next {clock(backup['next'], look.now)}" if backup["next"] > look.now else "due now")
    if backup["missing"]:
        facts.append(f"{count(backup['missing'], 'object')} missing or damaged")
    if backup["error"]:
        facts.append(backup["error"])
    return ", ".join(facts)


def _process(process: Process, look: Look) -> Iterator[str]:
    schema = "unknown" if process["schema"] is None else process["schema"]
    yield from section(
        f"pid {process['pid']}, up {duration(process['uptime_seconds'])}, version {process['version']},"
        f" schema {schema}, node {process['node']}",
        look,
        label="process",
    )
    yield from section(
        f"{process['rss_bytes'] / 2**20:.0f} MiB, {process['open_files']} of {process['open_files_limit']} open files,"
        f" loop lag {milliseconds(process['loop_lag_ms'])}"
        f" (worst {milliseconds(process['loop_lag_worst_ms'])})",
        look,
        label=" ",
    )


def _change(change: Change) -> list[str]:
    return [change["key"], f"{shown(change['old'])} -> {shown(change['new'])}"]


def _where(where: str | None) -> str:
    return f" ({where})" if where else ""
