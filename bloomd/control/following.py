"""What `bloomd-ctl` does for as long as it takes: draw the status again, print events, wait until a worker, or
the whole queue, holds no lease.

A daemon that goes away meanwhile may be on its way back, so it is waited for; only one that was never there is an
error.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time

from bloomd.control import layout, render, terminal
from bloomd.control.client import CannotReach, Failed
from bloomd.control.codes import UNAVAILABLE

TYPE_CHECKING = False  # importing typing would cost as much as a call takes
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

    from bloomd.control.client import Client

# Often enough to watch a restart, seldom enough to read what is there.
FOLLOW_SECONDS = 2.0
# Leases end after seconds or minutes.
WAIT_SECONDS = 1.0
# Between two tries to reach a daemon that was there.
RETRY_SECONDS = 1.0
# Whoever follows events hears from the daemon every five seconds; one that is silent for three times that is stuck.
SILENCE_SECONDS = 15.0

# To the terminal's other screen, where long lines are cut at the edge; back to what was there; and a fresh picture.
ENTER, LEAVE, CLEAR = "\x1b[?1049h\x1b[?7l", "\x1b[?7h\x1b[?1049l", "\x1b[H\x1b[J"


def watch(options: Namespace, call: Callable[[], Any]) -> NoReturn:
    """Draw the answer again and again until interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `timeout` is not to leave us on the other screen
    draws = options.output == "text" and terminal.is_terminal()
    try:
        print(ENTER if draws else "", end="")
        while True:
            lines = _picture(options, call)
            if draws:
                print(CLEAR + terminal.text(layout.cropped(lines, *terminal.size())), end="", flush=True)
            else:
                print(terminal.text(lines), flush=True)
            time.sleep(FOLLOW_SECONDS)
    finally:
        print(LEAVE if draws else "", end="", flush=True)


def _picture(options: Namespace, call: Callable[[], Any]) -> list[str]:
    show = options.show
    try:
        answer: Any = call()
    except CannotReach as failure:
        answer = {"error": str(failure)}
        show = render.failure
    if options.output == "json":
        return [json.dumps(answer)]
    return list(show(layout.printable(answer), terminal.look(time.strftime("%H:%M:%S  "))))


def events(options: Namespace, connect: Callable[[float], Client]) -> NoReturn:
    """Print what happens until interrupted.

    Raises: as `_follow` does.
    """

    def tell(kind: str, said: Any) -> None:
        if kind == "event":
            _print(options, said)

    _follow(connect, "events", tell, after=options.after, types=options.types)


def log(options: Namespace, connect: Callable[[float], Client]) -> int:
    """Print the latest lines of the daemon's log; with --follow, then what is written until interrupted.

    Raises: as `_follow` does.
    """

    def tell(kind: str, said: Any) -> None:
        for line in said.get("lines", ()):
            print(json.dumps({"line": line}) if options.output == "json" else terminal.text([layout.printable(line)]))
        sys.stdout.flush()

    if options.follow:
        _follow(connect, "log.recent", tell, lines=options.lines, follow=True)
    with connect(SILENCE_SECONDS) as client:
        for kind, said in client.notifications("log.recent", lines=options.lines):
            tell(kind, said)
    return 0


def _follow(
    connect: Callable[[float], Client],
    method: str,
    tell: Callable[[str, Any], None],
    *,
    after: str | None = None,
    **params: Any,
) -> NoReturn:
    """Tell every notification until interrupted; after a restart of the daemon from where it was.

    Raises:
        ControlFailure: the daemon was not there to begin with, or does not want to be asked so.
    """
    there = told = False
    while True:
        try:
            with connect(SILENCE_SECONDS) as client:
                for kind, said in client.notifications(method, after=after, **params):
                    if told:
                        terminal.tell("bloomd is there again")
                    there, told = True, False
                    tell(kind, said)
                    after = said["id"] or after
            away = "bloomd stops"
        except (CannotReach, Failed) as failure:
            if not there or (isinstance(failure, Failed) and failure.code != UNAVAILABLE):
                raise
            away = layout.printable(str(failure))
        if not told:
            terminal.tell(f"{away}; waiting for its return")
        told = True
        time.sleep(RETRY_SECONDS)


def _print(options: Namespace, event: Any) -> None:
    if options.output == "json":
        print(json.dumps(event), flush=True)
    else:
        print(terminal.text(render.event(layout.printable(event), terminal.look())), flush=True)


def until_empty(options: Namespace, call: Callable[[str], Any]) -> int:
    """Drain the worker and wait until it holds no lease; says how many are left whenever that changes.

    Raises:
        ControlFailure: it cannot be drained, or is forgotten meanwhile.
    """
    drained: Any = call("worker.drain")
    worker = drained
    try:
        for worker in _changes(lambda: call("worker"), ("active_leases", "draining"), first=drained):
            if not (worker["active_leases"] and worker["draining"]):
                break
            if options.output == "text":
                print(terminal.text(render.worker(layout.printable(worker), terminal.look())), flush=True)
    except KeyboardInterrupt:
        print(f"\n{options.name} goes on draining", end="", file=sys.stderr)
        raise
    if options.output == "json":
        print(json.dumps(worker, indent=2))
    else:
        print(terminal.text(render.worker(layout.printable(worker), terminal.look())))
    return 0 if worker["draining"] else 1


def until_idle(options: Namespace, pause: Callable[[], Any], status: Callable[[], Any]) -> int:
    """Pause the queue and wait until no task is leased, or for `options.wait` seconds; says how many leases are left
    whenever that changes.

    Raises:
        ControlFailure: it cannot be paused.
    """
    paused: Any = pause()
    if options.output == "text":
        print(terminal.text(render.queue(layout.printable(paused), terminal.look())), flush=True)
    state: Any = {"paused": True, "active_leases": None}
    try:
        for state in _changes(lambda: _leased(status()), ("active_leases", "paused"), seconds=options.wait):
            if not (state["active_leases"] and state["paused"]):
                break
            if options.output == "text":
                print(f"{layout.count(state['active_leases'], 'lease')} left", flush=True)
    except KeyboardInterrupt:
        print("\nthe queue stays paused", end="", file=sys.stderr)
        raise
    if options.output == "json":
        print(json.dumps(state, indent=2))
    if not state["paused"]:
        terminal.tell("the queue was resumed meanwhile")
    elif state["active_leases"] is None:
        terminal.tell("how many leases are left is not known; the queue stays paused")
    elif state["active_leases"]:
        left = layout.count(state["active_leases"], "lease")
        terminal.tell(f"{left} left after {options.wait} s; the queue stays paused")
    else:
        if options.output == "text":
            print("no task is leased")
        return 0
    return 1


def _leased(status: Any) -> Any:
    queue = status["queue"]
    if queue is None:
        raise Failed("PostgreSQL is away", UNAVAILABLE)
    return {"paused": queue["pause"] is not None, "active_leases": queue["active_leases"]}


def _changes(
    look: Callable[[], Any], keys: tuple[str, ...], *, first: Any = None, seconds: float | None = None
) -> Iterator[Any]:
    """The first, then what there is to see whenever one of these keys has another value; ends when the time is over."""
    end = time.monotonic() + (seconds or math.inf)
    if first is not None:
        yield first
    before, told = first, False
    while True:
        try:
            seen = look()
        except (CannotReach, Failed) as failure:
            if isinstance(failure, Failed) and failure.code != UNAVAILABLE:
                raise
            if not told:
                terminal.tell(f"{layout.printable(str(failure))}; waiting for its return")
            told = True
        else:
            told = False
            if before is None or any(seen[key] != before[key] for key in keys):
                yield seen
                before = seen
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(WAIT_SECONDS, left))
