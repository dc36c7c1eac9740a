"""What `bloomd-ctl` does for as long as it takes: draw the status again, print events, wait until a worker is empty.

A daemon that goes away meanwhile may be on its way back, so it is waited for; only one that was never there is an
error.
"""

from __future__ import annotations

import json
import signal
import sys
import time

from bloomd.control import layout, render, terminal
from bloomd.control.client import CannotReach, Failed
from bloomd.control.codes import UNAVAILABLE

TYPE_CHECKING = False  # importing typing would cost as much as a call takes
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable
    from typing import Any, NoReturn

    from bloomd.control.client import Client

# Often enough to watch a restart, seldom enough to read what is there.
FOLLOW_SECONDS = 2.0
# A worker is empty after seconds or minutes.
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
    """Print what happens until interrupted; after a restart of the daemon from where it was.

    Raises:
        ControlFailure: the daemon was not there to begin with, or does not want to be asked so.
    """
    after: str | None = options.after
    there = told = False
    while True:
        try:
            with connect(SILENCE_SECONDS) as client:
                for kind, said in client.notifications("events", types=options.types, after=after):
                    if told:
                        terminal.tell("bloomd is there again")
                    there, told = True, False
                    if kind == "event":
                        _print(options, said)
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
    worker: Any = call("worker.drain")
    try:
        while worker["active_leases"] and worker["draining"]:
            if options.output == "text":
                print(terminal.text(render.worker(layout.printable(worker), terminal.look())), flush=True)
            worker = _changed(worker, call)
    except KeyboardInterrupt:
        print(f"\n{options.name} goes on draining", end="", file=sys.stderr)
        raise
    if options.output == "json":
        print(json.dumps(worker, indent=2))
    else:
        print(terminal.text(render.worker(layout.printable(worker), terminal.look())))
    return 0 if worker["draining"] else 1


def _changed(before: Any, call: Callable[[str], Any]) -> Any:
    """The worker as soon as it holds more or fewer leases, or drains no longer."""
    told = False
    while True:
        time.sleep(WAIT_SECONDS)
        try:
            worker: Any = call("worker")
        except (CannotReach, Failed) as failure:
            if isinstance(failure, Failed) and failure.code != UNAVAILABLE:
                raise
            if not told:
                terminal.tell(f"{layout.printable(str(failure))}; waiting for its return")
            told = True
            continue
        if (worker["active_leases"], worker["draining"]) != (before["active_leases"], before["draining"]):
            return worker
