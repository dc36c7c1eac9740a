"""What `bloomd-ctl task` and `bloomd-ctl worker` do beyond a call: read a prompt, wait for the end, print a result."""

from __future__ import annotations

import base64
import json
import sys
import time

from bloomd.control import layout, render_work, terminal
from bloomd.control.client import CannotReach, Failed, TooLong
from bloomd.control.codes import UNAVAILABLE

TYPE_CHECKING = False  # importing typing would cost as much as a call takes
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterable
    from typing import Any

    from bloomd.control.answers import ContentPiece, Reason, Task, TaskShown
    from bloomd.control.answers_workers import Enrolment, MadeToken
    from bloomd.control.layout import Look

    Call = Callable[..., Any]
    """Calls a method with parameters by name."""

# How a task ends, and with what whoever waited for it exits.
ENDED = {"completed": 0, "failed": 10, "dead": 11, "cancelled": 12}

# Whoever waits for longer than this while the task is queued is told why it is.
PATIENCE_SECONDS = 2.0

# Between two looks at a task that is waited for: short at first, for the quick ones.
LOOKS_SECONDS = (0.1, 0.1, 0.2, 0.2, 0.5, 0.5, 1.0)


class WrongUsage(Exception):
    """What was said on the command line does not do; the text says why."""


def prompt(options: Namespace) -> str:
    """The prompt of the command line, of a file, or of standard input for `-`.

    Raises:
        WrongUsage: it is nowhere, in two places, cannot be read, or is no text.
    """
    if (options.prompt is None) == (options.file is None):
        raise WrongUsage("say the prompt once: as an argument, with -f FILE, or as - to read it from standard input")
    try:
        if options.prompt == "-":
            text = sys.stdin.buffer.read().decode()
        elif options.file is not None:
            with open(options.file, "rb") as file:
                text = file.read().decode()
        else:
            text = options.prompt
    except OSError as error:
        raise WrongUsage(f"cannot read {options.file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise WrongUsage("the prompt is not UTF-8 text") from error
    if not text.strip():
        raise WrongUsage("the prompt is empty")
    return text


def add(options: Namespace, call: Call) -> int:
    """Queue a task; its id is the answer, or with --wait its result."""
    said = {
        "prompt": prompt(options),
        "context_id": options.context,
        "agent_slug": options.agent,
        "labels": options.label,
        "priority": options.priority,
        "pinned_worker_id": options.pin,
        "desired_format": options.format,
        "policy": {"timeout_sec": options.timeout} if options.timeout else None,
        "context_hints": options.hint,
    }
    try:
        [task] = call("task.add", tasks=[{name: value for name, value in said.items() if value is not None}])["tasks"]
    except TooLong as error:
        raise TooLong(f"{error}; POST /api/runtime/llm-tasks takes up to http.max_body_bytes") from error
    if options.wait:
        terminal.tell(f"task {task['id']}")
        return wait(options, call, task["id"])
    print(json.dumps(task, indent=2) if options.output == "json" else task["id"])
    return 0


def wait(options: Namespace, call: Call, id: str) -> int:
    """Tell how the task fares until it has ended, then print its result. A daemon that is away is waited for.

    Returns:
        How it ended, as `ENDED` has it.
    """
    shown: TaskShown | None = None
    told = looks = 0
    why = ""
    queued_since = time.monotonic()
    away = False
    try:
        while shown is None or shown["task"]["status"] not in ENDED:
            if shown is not None:
                time.sleep(LOOKS_SECONDS[min(looks, len(LOOKS_SECONDS) - 1)])
            looks += 1
            try:
                shown = call("task.show", name=id)
                assert shown is not None
                told = _tell(shown["task"], told)
                if shown["task"]["status"] != "queued":
                    queued_since = time.monotonic()
                elif time.monotonic() - queued_since > PATIENCE_SECONDS:
                    why = _tell_why(call("why", name=id)["reasons"], why)
                away = False
            except (CannotReach, Failed) as failure:
                if shown is None or (isinstance(failure, Failed) and failure.code != UNAVAILABLE):
                    raise
                if not away:
                    terminal.tell(f"{layout.printable(str(failure))}; waiting for its return")
                away = True
    except KeyboardInterrupt:
        print(f"\nthe task goes on: bloomd-ctl task show {id}", end="", file=sys.stderr)
        raise
    if options.output == "json":
        print(json.dumps(shown, indent=2))
    else:
        print_result(shown, call)
    return ENDED[shown["task"]["status"]]


def _tell(task: Task, told: int) -> int:
    """Say on standard error what is new; the hash of what was said."""
    worker = f" on {task['worker_id']}" if task["worker_id"] and task["status"] in ("leased", "running") else ""
    progress = f": {task['progress']}" if task["progress"] is not None else ""
    line = layout.printable(f"{task['status']}{worker}{progress}")
    if hash(line) != told:
        terminal.tell(line)
    return hash(line)


def _tell_why(reasons: list[Reason], told: str) -> str:
    """Say on standard error why it waits, unless that was said last; what was said."""
    why = layout.printable(" ".join(reason["sentence"] for reason in reasons))
    if why != told:
        terminal.tell(why)
    return why


def result(options: Namespace, call: Call) -> int:
    """Print the result of a task.

    Returns:
        0 when it has a result, 1 otherwise.
    """
    shown: TaskShown = call("task.show", name=options.name)
    if options.output == "json":
        print(json.dumps(shown["result"], indent=2))
    elif shown["result"] is None:
        terminal.tell(f"the task is {shown['task']['status']} and has no result yet")
    else:
        print_result(shown, call)
    return 1 if shown["result"] is None else 0


def print_result(shown: TaskShown, call: Call) -> None:
    """Write the content of the result's artifact as it is; why there is none, on standard error."""
    task, result = shown["task"], shown["result"]
    if result is None or result["artifact_id"] is None or task["status"] != "completed":
        terminal.tell(layout.printable(f"{task['status']}: {task['error_message'] or 'there is no result'}"))
        return
    offset, size, last = 0, 1, b""
    while offset < size:
        piece: ContentPiece = call("artifact.read", name=result["artifact_id"], offset=offset)
        data = base64.b64decode(piece["data"])
        if not data:
            break
        sys.stdout.buffer.write(data)
        offset, size, last = offset + len(data), piece["size"], data
    if sys.stdout.isatty() and not last.endswith(b"\n"):
        print()
    sys.stdout.flush()


def wait_for(options: Namespace, call: Call) -> int:
    """Wait for the task that is named, as `wait` does."""
    return wait(options, call, options.name)


def change(options: Namespace, call: Call) -> int:
    """Cancel or queue again each task that was named, or all that match a filter.

    One of those named that cannot be is told, and the others go on.

    Returns:
        0 when all could be, 1 otherwise.

    Raises:
        WrongUsage: neither a task nor a filter is named, or both.
    """
    said = {name: getattr(options, name) for name in ("status", "context_id", "agent_slug", "worker_id")}
    filter = {name: value for name, value in said.items() if value is not None}
    if bool(filter) == bool(options.names):
        raise WrongUsage(f"name the tasks to {options.action}, or a filter such as --status, and not both")
    if filter:
        done = call(f"tasks.{options.action}", filter=filter, dry_run=options.dry_run)
        _print(options, done, render_work.matched)
        return 0
    if options.dry_run:
        raise WrongUsage("--dry-run counts what matches a filter; tasks that are named need no counting")
    return max([_change_one(options, call, id) for id in options.names])


def _change_one(options: Namespace, call: Call, id: str) -> int:
    try:
        task: Task = call(f"task.{options.action}", name=id)
    except Failed as failure:
        terminal.tell(layout.printable(f"{id}: {failure}"))
        return 1
    _print(options, task, render_work.task)
    return 0


def add_worker(options: Namespace, call: Call) -> int:
    """Register a worker, or note what is said of a known one."""
    said = {"max_concurrency": options.max_concurrency, "labels": options.label}
    capabilities = {name: value for name, value in said.items() if value is not None}
    worker = {"name": options.name, "url": options.url, "capabilities": capabilities or None}
    _print(options, call("worker.add", worker=worker), render_work.registered)
    return 0


def token(options: Namespace, call: Call) -> int:
    """Make a token for a worker, whose secret alone is the answer; or list its tokens, or revoke one."""
    if options.list:
        _print(options, call("worker.tokens", name=options.name), render_work.tokens)
    elif options.revoke:
        removed = call("worker.token.remove", name=options.name, id=options.revoke)
        _print(options, removed, render_work.removed_token)
    else:
        made: MadeToken = call("worker.token.add", name=options.name)
        terminal.tell(f"{made['worker_id']} may use this token from now on; it is shown only this once")
        print(json.dumps(made, indent=2) if options.output == "json" else made["secret"])
    return 0


def enrol(options: Namespace, call: Call) -> int:
    """Make a code by which a machine becomes this worker; it alone is the answer."""
    made: Enrolment = call("worker.enrol", name=options.name)
    until = layout.clock(made["expires_at"] / 1000, time.time())
    terminal.tell(f"a machine that has this code becomes {made['worker']}, once, until {until}")
    if sys.stdout.isatty():  # the code is there already; a script would have it in its log
        _tell_how_to_install(made)
    print(json.dumps(made, indent=2) if options.output == "json" else made["code"])
    return 0


def _tell_how_to_install(made: Enrolment) -> None:
    server = made["server"]
    if server is None:
        terminal.tell("the machine could install its worker from here: set http.public_url, and reload")
        return
    base = server.rstrip("/").replace("'", "%27")
    url = f"{base}/api/runtime/agent-install-script?code={made['code']}"
    terminal.tell("on that machine, as root, this installs its worker:")
    print(f"\n  curl -fsS '{url}' | sh\n", file=sys.stderr)


def _print(options: Namespace, answer: Any, show: Callable[[Any, Look], Iterable[str]]) -> None:
    if options.output == "json":
        print(json.dumps(answer, indent=2))
    else:
        print(terminal.text(show(layout.printable(answer), terminal.look())))
