"""The commands of `bloomd-ctl` that are about tasks and workers: what their command lines hold."""

from __future__ import annotations

from argparse import ArgumentTypeError

from bloomd.control import render_work

TYPE_CHECKING = False  # importing typing would cost as much as a call takes
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable
    from typing import Any

    Command = Callable[..., ArgumentParser]
    """Adds a command: its name, what it does, what more there is to say, an example, and what it is done with."""
    Run = Callable[[Any], int]

# The longest attempt that a task allows, and what the daemon grants beyond that.
PUSH_SECONDS = 3700.0
# An agent that updates itself fetches something first.
AGENT_SECONDS = 330.0

STATUSES = ("queued", "leased", "running", "completed", "failed", "dead", "cancelled")
WORKER_STATUSES = ("online", "offline", "syncing", "error", "unknown")


def number(least: int, most: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number within bounds."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise ArgumentTypeError(f"a whole number from {least} to {most} is expected, not {text!r}")
        return value

    return parse


def tasks(command: Command, within: Any, *, tasking: Callable[[str], Run]) -> None:
    """`bloomd-ctl task ...`"""
    add = command(
        "add", "queue a task", "Its id is printed.", example='bloomd-ctl task add --wait "Say hello"',
        within=within, run=tasking("add"),
    )  # fmt: skip
    add.add_argument("prompt", metavar="PROMPT", nargs="?", help="what to do; - reads it from standard input")
    add.add_argument("-f", "--file", metavar="FILE", help="a file that holds the prompt")
    add.add_argument("--context", metavar="TEXT", help="tasks of one context share a conversation and a directory")
    add.add_argument("--agent", metavar="NAME", help="who is to do it: its agent_slug")
    add.add_argument("--label", metavar="LABEL", action="append", help="what the worker must have; repeatable")
    add.add_argument("--hint", metavar="PATH", action="append", help="a context hint, such as a file; repeatable")
    add.add_argument("--priority", metavar="N", type=number(0, 9), help="0 to 9, higher first (0)")
    add.add_argument("--pin", metavar="WORKER", help="only this worker may do it")
    add.add_argument("--format", choices=("text", "json"), help="what the result is to be (text)")
    add.add_argument("--timeout", metavar="SECONDS", type=number(1, 3600), help="how long an attempt may take (120)")
    add.add_argument(
        "--wait", action="store_true", help="print the result when there is one; the exit code says how it ended"
    )
    listing = command(
        "list", "show tasks, newest first", example="bloomd-ctl task list --status failed", within=within,
        method="task.list", show=render_work.tasks,
    )  # fmt: skip
    _filter(listing)
    _page(listing)
    show = command(
        "show", "show a task and its attempts", "Of each attempt it tells when it was, by whom, and how it ended.",
        example="bloomd-ctl task show TASK", within=within, method="task.show", show=render_work.task_shown,
    )  # fmt: skip
    result = command(
        "result", "print the result of a task", "Nothing is added to it.", example="bloomd-ctl task result TASK",
        within=within, run=tasking("result"),
    )  # fmt: skip
    wait = command(
        "wait", "wait for a task and print its result",
        "Meanwhile it tells on the standard error how the task fares. Interrupting that ends the waiting, and the task "
        "goes on. A daemon that is being restarted is waited for.",
        example="bloomd-ctl task wait TASK", within=within, run=tasking("wait_for"),
    )  # fmt: skip
    for each in (show, result, wait):
        each.add_argument("name", metavar="TASK", help="its id")
    dispatch = command(
        "dispatch", "push a task to a worker's agent now",
        "Without --worker it is the best one that has a URL. The answer tells how the attempt ended. Interrupting that "
        "ends the waiting, and the attempt goes on.",
        example="bloomd-ctl task dispatch TASK", within=within,
        method="task.dispatch", show=render_work.facts, seconds=PUSH_SECONDS,
    )  # fmt: skip
    dispatch.add_argument("name", metavar="TASK", help="its id")
    dispatch.add_argument("--worker", dest="worker_id", metavar="NAME", help="only to this worker")
    ending = "What runs is stopped when its worker hears of it, at its next heartbeat."
    again = (
        "Those that have failed, are dead or were cancelled get all their attempts once more; those that wait for a "
        "retry need not wait any longer."
    )
    for name, what, more in (("cancel", "cancel tasks", ending), ("requeue", "queue ended tasks again", again)):
        some = command(
            name, what, more, example=f"bloomd-ctl task {name} --context nightly --dry-run",
            within=within, run=tasking("change"), action=name,
        )  # fmt: skip
        some.add_argument("names", metavar="TASK", nargs="*", help="their ids; without any, all that match the filter")
        _filter(some)
        some.add_argument("--dry-run", action="store_true", help="only count what matches the filter")


def _filter(parser: ArgumentParser) -> None:
    parser.add_argument("--status", choices=STATUSES, help="only tasks in this state")
    parser.add_argument("--context", dest="context_id", metavar="TEXT", help="only those of this context")
    parser.add_argument("--agent", dest="agent_slug", metavar="NAME", help="only those for this agent")
    parser.add_argument("--worker", dest="worker_id", metavar="NAME", help="only those of this worker")


def _page(parser: ArgumentParser) -> None:
    parser.add_argument("--limit", metavar="N", type=number(1, 1000), help="how many at the most")
    parser.add_argument("--cursor", metavar="CURSOR", help="go on where another list ended")


def workers(command: Command, commands: Any, within: Any, *, tasking: Callable[[str], Run]) -> None:
    """`bloomd-ctl workers` and `bloomd-ctl worker ...`"""
    listing = command(
        "workers", "show the workers",
        "Of each it tells how it is, how many of its places are taken, when it was heard of last, its labels, and the "
        "URL that tasks are pushed to, if it has one, or why it has paused and until when.",
        example="bloomd-ctl workers", within=commands, method="worker.list", show=render_work.workers,
    )  # fmt: skip
    listing.add_argument("--status", choices=WORKER_STATUSES, help="only these; a worker that has paused is in error")
    _page(listing)
    show = command(
        "show", "show a worker and what it holds", example="bloomd-ctl worker show gpu-1", within=within,
        method="worker.show", show=render_work.worker_shown,
    )  # fmt: skip
    add = command(
        "add", "register a worker by hand",
        "It may be an agent that knows of no server. Of a known worker, what is said is noted.",
        example="bloomd-ctl worker add gpu-1 --url http://10.0.0.5:8001", within=within, run=tasking("add_worker"),
    )  # fmt: skip
    add.add_argument("--url", metavar="URL", help="where its agent listens, in workers.allowed_networks")
    add.add_argument("--label", metavar="LABEL", action="append", help="what it has; repeatable")
    add.add_argument("--max-concurrency", metavar="N", type=number(1, 32), help="tasks that it runs at once (1)")
    remove = command(
        "remove", "forget a worker",
        "A worker that still runs, or that Membridge still names, comes back by itself; its tokens stay valid until "
        "they are revoked.",
        example="bloomd-ctl worker remove gpu-1", within=within, method="worker.remove", show=render_work.removed,
    )  # fmt: skip
    remove.add_argument(
        "--force", action="store_true", default=None, help="end its leases first, and queue their tasks again"
    )
    token = command(
        "token", "make, list or revoke a worker's tokens",
        "The worker need not be known yet. The secret is all that is printed on the standard output, and it is never "
        "shown again.",
        example="bloomd-ctl worker token gpu-1", within=within, run=tasking("token"),
    )  # fmt: skip
    action = token.add_mutually_exclusive_group()
    action.add_argument("--list", action="store_true", help="show which there are, without their secrets")
    action.add_argument("--revoke", metavar="ID", help="make this one invalid")
    enrol = command(
        "enrol", "make a one-time code for a new machine",
        "With it the install script makes that machine this worker, once, within an hour; see bloomd-worker(8). The "
        "code is all that is printed on the standard output. A terminal shows the command to run there as well, if "
        "http.public_url is set.",
        example="bloomd-ctl worker enrol gpu-1", within=within, run=tasking("enrol"),
    )  # fmt: skip
    leaving = "The worker stays known, offline and cordoned."
    agents = [
        command(
            name, what, more, example=f"bloomd-ctl worker {name} gpu-1", within=within,
            method=f"worker.agent-{name}", show=render_work.facts, seconds=AGENT_SECONDS,
        )
        for name, what, more in (
            ("health", "ask a worker's agent how it is", "The worker is as it says afterwards, or else offline."),
            ("update", "have a worker's agent update itself", ""),
            ("restart", "have a worker's agent restart", ""),
            ("uninstall", "have a worker's agent remove itself from its machine", leaving),
        )
    ]  # fmt: skip
    agents[1].add_argument("--repo-url", metavar="URL", help="where it comes from; agents in the field want this")
    for each in (show, add, remove, token, enrol, *agents):
        each.add_argument("name", metavar="WORKER", help="its name")
