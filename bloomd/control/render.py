"""The answers of the control socket as text for a person: pure functions from a value to lines.

The text fits a terminal of 60 columns and up; a long error is wrapped, never cut. What comes from elsewhere (an error
that some server sent, say) loses its control characters first, so that it cannot play tricks on the terminal.
"""

from __future__ import annotations

from textwrap import wrap

TYPE_CHECKING = False  # importing typing would cost as much as all of this
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from bloomd.control.answers import (
        Change,
        Config,
        Json,
        LogLevel,
        Pong,
        Probe,
        Probes,
        Process,
        Queue,
        Reload,
        Service,
        Services,
        Status,
        Sync,
        SyncRound,
        Version,
        Workers,
    )

_GREEN, _YELLOW, _RED, _DIM = "32", "33", "31", "2"
_COLOURS = {
    "ok": _GREEN, "running": _GREEN, "up": _GREEN,
    "degraded": _YELLOW, "starting": _YELLOW, "waiting": _YELLOW, "backoff": _YELLOW, "stopping": _YELLOW,
    "stopped": _YELLOW, "unknown": _YELLOW, "not watched": _YELLOW,
    "down": _RED, "failed": _RED,
    "disabled": _DIM, "not configured": _DIM,
}  # fmt: skip

# Wide enough for the longest heading, `workers` and `process`, and a gap.
_LABEL = 10
# With less room than this beside a row, its text is easier to read below.
_BESIDE = 24


class Look:
    """How it is to look: the width to fit, whether in colour, what time it is, and what to begin a status with."""

    def __init__(self, now: float, width: int = 100, colour: bool = False, stamp: str = "") -> None:
        self.now = now
        self.width = width
        self.colour = colour
        self.stamp = stamp

    def paint(self, word: str) -> str:
        """A word in the colour of what it means, if it means anything."""
        code = _COLOURS.get(word.strip())
        return f"\x1b[{code}m{word}\x1b[0m" if self.colour and code else word

    def ago(self, at: float) -> str:
        return f"{duration(self.now - at)} ago"


def printable(value: Json) -> Any:
    """A JSON value with everything that is not printable replaced in its strings."""
    if isinstance(value, str):
        return "".join(c if c.isprintable() else " " if c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in value)
    if isinstance(value, list):
        return [printable(item) for item in value]
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    return value


def duration(seconds: float) -> str:
    """Seconds for a person: one number and its unit."""
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{int(seconds)} s"
    if seconds < 3600:
        return f"{int(seconds / 60)} min"
    return f"{int(seconds / 3600)} h" if seconds < 48 * 3600 else f"{int(seconds / 86400)} d"


def shown(value: Json | tuple[Json, ...]) -> str:
    """The value of a setting."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "-"
    return str(value)


def cropped(lines: list[str], width: int, height: int) -> list[str]:
    """What of it fits a window; its last line says what does not."""
    if len(lines) <= height:
        return lines
    more = f"… {_count(len(lines) - height + 1, 'more line')}: make the window larger, or use status without -w"
    return [*lines[: height - 1], more[:width]]


def failure(answer: dict[str, str], look: Look) -> Iterator[str]:
    yield from _section(look.stamp + answer["error"], look, label="")


def status(answer: Status, look: Look) -> Iterator[str]:
    reasons = "; ".join(answer["reasons"])
    verdict = look.stamp + look.paint(answer["verdict"])
    yield from _section(verdict + (f": {reasons}" if reasons else ""), look, label="")
    for notice in answer["notices"]:
        yield from _section(notice, look, label="notice")
    yield ""
    yield "services"
    yield from _service_rows(answer["services"], look)
    yield ""
    yield "probes"
    away = {service["name"] for service in answer["services"] if service["state"] != "running"}
    yield from _probe_rows(answer["probes"], look, away)
    yield ""
    yield from _section(_queue(answer["queue"], look), look, label="queue")
    yield from _section(_workers(answer["workers"], look), look, label="workers")
    yield from _section(_sync(answer["sync"], look), look, label="sync")
    yield from _process(answer["process"], look)
    if last := answer["reload"]:
        result = "ok" if last["ok"] else "failed"
        text = f"{look.paint(result)} {look.ago(last['at'])}: {last['summary']}"
        yield from _section(text, look, label="reload")
    if answer["next"]:
        yield ""
        yield from _section(answer["next"], look, label="try next")


def services(answer: Services, look: Look) -> Iterator[str]:
    yield from _service_rows(answer["services"], look, indent="")


def probes(answer: Probes, look: Look) -> Iterator[str]:
    yield from _probe_rows(answer["probes"], look, set(), indent="")


def config(answer: Config, look: Look) -> Iterator[str]:
    rows = [
        [setting["key"], f"{shown(setting['value'])}  # {setting['source']}{_where(setting['where'])}"]
        for setting in answer["settings"]
    ]
    yield from _table(rows, look, indent="")
    for warning in answer["warnings"]:
        yield from _section(warning, look, label="warning")


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
        yield from _section(error, look, label="")
    yield from _table(list(map(_change, now)), look, indent="  ")
    if later:
        yield "in force after a restart of bloomd:"
        yield from _table(list(map(_change, later)), look, indent="  ")
    for label, names in (("restarted", answer["restarted"]), ("tried again", answer["retried"])):
        if names:
            yield f"{label}: {', '.join(names)}"


def sync(answer: SyncRound, look: Look) -> Iterator[str]:
    yield (
        f"{_count(answer['agents'], 'agent')}: {answer['added']} added, {answer['changed']} changed,"
        f" {answer['offline']} offline, in {_milliseconds(answer['seconds'] * 1000)}"
    )


def version(answer: Version, look: Look) -> Iterator[str]:
    schema = "unknown (PostgreSQL is away)" if answer["schema"] is None else answer["schema"]
    yield f"bloomd {answer['version']}, Python {answer['python']}, schema {schema}"


def ping(answer: Pong, look: Look) -> Iterator[str]:
    yield (
        f"pong from pid {answer['pid']} in {_milliseconds(answer['round_trip_ms'])},"
        f" loop lag {_milliseconds(answer['loop_lag_ms'])}"
    )


def log_level(answer: LogLevel, look: Look) -> Iterator[str]:
    yield f"log level: {answer['level']}"


def _service_rows(services: Iterable[Service], look: Look, indent: str = "  ") -> Iterator[str]:
    rows: list[list[str]] = []
    for service in services:
        *parents, own = service["name"].split("/")
        name = "  " * len(parents) + own if indent else service["name"]
        rows.append([name, service["state"], duration(look.now - service["since"]), _service_detail(service)])
    yield from _table(rows, look, indent=indent)


def _service_detail(service: Service) -> str:
    facts: list[str] = []
    if service["retry_in"] is not None:
        facts.append(f"retry in {duration(service['retry_in'])}")
    if service["restarts"]:
        facts.append(_count(service["restarts"], "restart"))
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
        detail = f"{_count(probe['failures'], 'failure')} in a row: {probe['error']}" if probe["failures"] else ""
        p50 = "" if probe["p50_ms"] is None else f"p50 {_milliseconds(probe['p50_ms'])}"
        p99 = "" if probe["p99_ms"] is None else f"p99 {_milliseconds(probe['p99_ms'])}"
        rows.append([probe["name"], state, last_ok, p50, p99, detail])
    yield from _table(rows, look, indent=indent)


def _queue(queue: Queue | None, look: Look) -> str:
    if queue is None:
        return f"{look.paint('unknown')} (PostgreSQL is away)"
    facts = [f"{count} {status}" for status, count in queue["by_status"].items()] or ["empty"]
    if queue["oldest_queued_seconds"] is not None:
        facts.append(f"oldest queued for {duration(queue['oldest_queued_seconds'])}")
    facts.append(_count(queue["active_leases"], "active lease"))
    facts.append(f"{queue['rescued_last_hour']} rescued in the last hour")
    return ", ".join(facts)


def _workers(workers: Workers | None, look: Look) -> str:
    if workers is None:
        return f"{look.paint('unknown')} (PostgreSQL is away)"
    online = f"{workers['online']} of {workers['total']} online"
    busy, capacity = workers["busy"], workers["capacity"]
    if busy > capacity:  # the capacity is that of workers online; who went offline still holds a place
        return f"{online}, {_count(busy, 'place')} taken"
    return f"{online}, {busy} of {_count(capacity, 'place')} taken" if capacity else online


def _sync(sync: Sync, look: Look) -> str:
    if not sync["configured"]:
        return look.paint("not configured")
    last = "never succeeded" if sync["last_success"] is None else f"succeeded {look.ago(sync['last_success'])}"
    agents = "" if sync["agents"] is None else f", {_count(sync['agents'], 'agent')}"
    if not sync["failures"]:
        return last + agents
    return f"{last}{agents}, {_count(sync['failures'], 'failure')} in a row: {sync['error']}"


def _process(process: Process, look: Look) -> Iterator[str]:
    schema = "unknown" if process["schema"] is None else process["schema"]
    yield from _section(
        f"pid {process['pid']}, up {duration(process['uptime_seconds'])}, version {process['version']},"
        f" schema {schema}, node {process['node']}",
        look,
        label="process",
    )
    yield from _section(
        f"{process['rss_bytes'] / 2**20:.0f} MiB, {process['open_files']} of {process['open_files_limit']} open files,"
        f" loop lag {_milliseconds(process['loop_lag_ms'])}"
        f" (worst {_milliseconds(process['loop_lag_worst_ms'])})",
        look,
        label=" ",
    )


def _section(text: str, look: Look, *, label: str) -> Iterator[str]:
    """A heading and its text, wrapped beside it; without a label the text begins at the margin."""
    indent = " " * (_LABEL if label else 2)
    lines = wrap(text, look.width, initial_indent=label.ljust(_LABEL) if label else "", subsequent_indent=indent)
    yield from lines


def _table(rows: list[list[str]], look: Look, *, indent: str) -> Iterator[str]:
    """Aligned columns; the last one is wrapped in what room is left, or below when that is little."""
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    for *cells, last in rows:
        head = indent + "".join(f"{look.paint(cell.ljust(width))}  " for cell, width in zip(cells, widths, strict=True))
        used = len(indent) + sum(widths) + 2 * len(widths)
        if look.width - used < _BESIDE:
            yield head.rstrip()
            below = indent + "    "
            yield from wrap(last, look.width, initial_indent=below, subsequent_indent=below)
            continue
        first, *rest = wrap(last, look.width - used) or [""]
        yield (head + first).rstrip()
        for line in rest:
            yield " " * used + line


def _change(change: Change) -> list[str]:
    return [change["key"], f"{shown(change['old'])} -> {shown(change['new'])}"]


def _where(where: str | None) -> str:
    return f" ({where})" if where else ""


def _count(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _milliseconds(value: float) -> str:
    return f"{value:.1f} ms" if value < 10 else f"{value:.0f} ms"
