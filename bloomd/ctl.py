"""`bloomd-ctl`: asks the daemon, or tells it, over its Unix socket.

Scripts and health checks run it often, so it imports only what it needs: no trio, no msgspec, no part of the daemon.
"""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from functools import partial

from bloomd import __version__
from bloomd.control import commands as about
from bloomd.control import layout, render, terminal
from bloomd.control.client import CannotReach, Client, ControlFailure, NotPermitted

TYPE_CHECKING = False  # importing typing would cost as much as a call takes
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

    from bloomd.control.answers import MadeKey, Probes, Reload, Services, Status

DEFAULT_SOCKET = "/run/bloomd/bloomd.sock"

OK, FAILED, DOWN, CANNOT_REACH, NOT_PERMITTED, USAGE = 0, 1, 2, 3, 4, 64
DEGRADED = FAILED
INTERRUPTED = 130  # as a shell reports a command that Ctrl-C ended

# Asking is answered from memory; doing may wait for services to stop, for PostgreSQL, or for Membridge.
ASK_SECONDS = 10.0
DO_SECONDS = 120.0

# What of the command line goes to the daemon as it is.
PARAMS = (
    "name", "level", "until", "reason", "status", "context_id", "agent_slug", "worker_id", "limit", "cursor", "force",
    "repo_url",
)  # fmt: skip

EXIT_CODES = (
    """\
exit codes: 0 ok, 1 degraded or the call failed, 2 down, 3 cannot reach the daemon, 4 not permitted, 64 wrong usage
  of a task that was waited for: 0 completed, 10 failed, 11 dead, 12 cancelled
the socket: -s, else the environment's BLOOMD_SOCKET, else """
    + DEFAULT_SOCKET
)


class Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except ControlFailure as failure:
        terminal.tell(layout.printable(str(failure)))
        return _code_of(failure)
    except BrokenPipeError:  # `| head` has seen enough; the interpreter must not find that out again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        print(file=sys.stderr)  # the prompt is not to stand behind the terminal's ^C
        return INTERRUPTED
    return code


def _once(options: Namespace) -> int:
    answer = _call(options)
    if options.output == "json":
        print(json.dumps(answer, indent=2))
    else:
        print(terminal.text(options.show(layout.printable(answer), terminal.look())))
    return options.judge(answer)


def _status(options: Namespace) -> int:
    if options.watch:
        from bloomd.control import following

        following.watch(options, partial(_call, options))
    return _once(options)


def _drain(options: Namespace) -> int:
    if options.wait:
        from bloomd.control import following

        return following.until_empty(options, partial(_call, options))
    return _once(options)


def _events(options: Namespace) -> NoReturn:
    from bloomd.control import following

    following.events(options, partial(_connect, options))


def _tasking(name: str) -> Callable[[Namespace], int]:
    """What does that, by its name: it is imported when it is needed."""

    def run(options: Namespace) -> int:
        from bloomd.control import tasking

        try:
            return getattr(tasking, name)(options, partial(_ask, options))
        except tasking.WrongUsage as error:
            terminal.tell(str(error))
            return USAGE

    return run


def _new_key(options: Namespace) -> int:
    """The secret alone is the answer, so that `KEY=$(bloomd-ctl key add NAME)` works."""
    made: MadeKey = _call(options)
    terminal.tell(f"{made['name']} is a key from now on; its secret is shown only this once")
    print(json.dumps(made, indent=2) if options.output == "json" else made["secret"])
    return OK


def _call(options: Namespace, method: str = "") -> Any:
    params = {key: value for key in PARAMS if (value := getattr(options, key, None)) is not None}
    began = time.perf_counter()
    answer = _ask(options, method or options.method, **params)
    if options.method == "ping":
        answer["round_trip_ms"] = round((time.perf_counter() - began) * 1000, 3)
    return answer


def _ask(options: Namespace, method: str, **params: Any) -> Any:
    with _connect(options, options.seconds) as client:
        return client.call(method, **params)


def _connect(options: Namespace, seconds: float) -> Client:
    return Client(options.socket or os.environ.get("BLOOMD_SOCKET") or DEFAULT_SOCKET, seconds)


def _code_of(failure: ControlFailure) -> int:
    if isinstance(failure, NotPermitted):
        return NOT_PERMITTED
    return CANNOT_REACH if isinstance(failure, CannotReach) else FAILED


def _time(text: str) -> int:
    from bloomd.control import until

    try:
        return until.parse(text, time.time())
    except until.WrongTime as error:
        raise ArgumentTypeError(str(error)) from error


def _list(text: str) -> list[str]:
    return [name for name in text.replace(" ", "").split(",") if name]


def _fine(answer: Any) -> int:
    return OK


def _by_verdict(answer: Status) -> int:
    return {"ok": OK, "degraded": DEGRADED, "down": DOWN}[answer["verdict"]]


def _by_success(answer: Reload) -> int:
    return OK if answer["ok"] else FAILED


def _by_services(answer: Services) -> int:
    return FAILED if any(service["state"] in ("failed", "backoff") for service in answer["services"]) else OK


def _by_probes(answer: Probes) -> int:
    return FAILED if any(probe["state"] == "down" for probe in answer["probes"]) else OK


def _parser() -> ArgumentParser:
    parser = Parser(
        prog="bloomd-ctl",
        description="Ask the bloomd of this machine how it is, and steer it.",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.set_defaults(output="text", socket=None)
    parser.add_argument("--version", action="version", version=f"bloomd-ctl {__version__}")
    everywhere = Parser(add_help=False, argument_default=SUPPRESS)
    for place in (parser, everywhere):
        place.add_argument("-s", "--socket", help="path of the control socket")
        place.add_argument("-o", "--output", choices=("text", "json"), help="how to print the answer (default: text)")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    examples: list[str] = []

    def command(
        name: str, summary: str, *, example: str, method: str = "", within: Any = commands, **defaults: object
    ) -> ArgumentParser:
        examples.append(f"  {example:<36}{summary}")
        added: ArgumentParser = within.add_parser(
            name,
            parents=[everywhere],
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example: {example}",
        )
        usual = {"run": _once, "method": method or name, "judge": _fine, "seconds": ASK_SECONDS}
        added.set_defaults(**usual | defaults)
        return added

    status = command(
        "status", "show how everything is", example="bloomd-ctl status -w",
        run=_status, show=render.status, judge=_by_verdict,
    )  # fmt: skip
    status.add_argument("-w", "--watch", action="store_true", help="draw again every 2 s until Ctrl-C")
    command("ping", "see whether the daemon answers", example="bloomd-ctl ping", show=render.ping)
    command("version", "show the daemon's version", example="bloomd-ctl version", show=render.version)
    command("config", "show every setting and its source", example="bloomd-ctl config -o json", show=render.config)
    command(
        "reload", "read the configuration again", example="bloomd-ctl reload",
        show=render.reload, judge=_by_success, seconds=DO_SECONDS,
    )  # fmt: skip
    for name, summary, example in (
        ("restart", "stop and start a service", "bloomd-ctl restart membridge-sync"),
        ("start", "start a stopped or failed service", "bloomd-ctl start probes/minio"),
        ("stop", "stop a service until it is started", "bloomd-ctl stop membridge-sync"),
    ):
        service = command(name, summary, example=example, show=render.services, judge=_by_services, seconds=DO_SECONDS)
        service.add_argument("name", metavar="SERVICE", help="its name, as `bloomd-ctl status` shows it")
    probe = command(
        "probe", "probe the dependencies now", example="bloomd-ctl probe minio",
        show=render.probes, judge=_by_probes, seconds=DO_SECONDS,
    )  # fmt: skip
    probe.add_argument("name", metavar="PROBE", nargs="?", help="only this one")
    command("sync", "mirror Membridge's agents now", example="bloomd-ctl sync", show=render.sync, seconds=DO_SECONDS)
    level = command(
        "log-level", "show or change what is logged", example="bloomd-ctl log-level debug",
        method="log.level", show=render.log_level,
    )  # fmt: skip
    level.add_argument("level", nargs="?", choices=("debug", "info", "warning", "error"), help="the new level")
    pause = command(
        "pause", "hand out no tasks for a while", example="bloomd-ctl pause --until 18:00",
        method="queue.pause", show=render.queue, seconds=DO_SECONDS,
    )  # fmt: skip
    pause.add_argument(
        "--until", type=_time, metavar="TIME", help="18:00, 2026-12-01T09:30, +90m, +2h or +1d (default: until resumed)"
    )
    pause.add_argument("--reason", metavar="TEXT", help="why, for those who wonder")
    command(
        "resume", "hand out tasks again", example="bloomd-ctl resume",
        method="queue.resume", show=render.queue, seconds=DO_SECONDS,
    )  # fmt: skip
    for name, summary in (
        ("cordon", "give a worker no new leases"),
        ("uncordon", "give a worker leases again"),
        ("drain", "let a worker finish, to take it away"),
    ):
        worker = command(
            name, summary, example=f"bloomd-ctl {name} gpu-1{' --wait' if name == 'drain' else ''}",
            method=f"worker.{name}", show=render.worker, seconds=DO_SECONDS,
        )  # fmt: skip
        worker.add_argument("name", metavar="WORKER", help="its name")
    worker.set_defaults(run=_drain)
    worker.add_argument(
        "--wait", action="store_true", help="return when it holds no lease; Ctrl-C ends only the waiting"
    )
    why = command("why", "tell why a task does not run", example="bloomd-ctl why TASK", show=render.why)
    why.add_argument("name", metavar="TASK", help="its id")
    events = command("events", "follow what happens", example="bloomd-ctl events --types task", run=_events)
    kinds = "only these: task, lease, worker, probe, service, audit"
    events.add_argument("--types", type=_list, metavar="TYPE,...", help=kinds)
    events.add_argument("--after", metavar="ID", help="begin after this event, not with what comes from now on")

    def group(name: str, summary: str, description: str) -> Any:
        return commands.add_parser(name, help=summary, description=description).add_subparsers(
            metavar="ACTION", required=True
        )

    about.tasks(command, group("task", "queue tasks, look at them, end them", "Tasks."), tasking=_tasking)
    about.workers(
        command, commands, group("worker", "register, look at or forget a worker", "Workers."), tasking=_tasking
    )
    actions = group("key", "make, list or remove a named API key", "API keys by name.")
    for name, summary, run, show in (
        ("add", "make an API key; its secret is printed", _new_key, None),
        ("list", "show who has an API key", _once, render.keys),
        ("remove", "make an API key invalid", _once, render.removed_key),
    ):
        example = f"bloomd-ctl key {name}{'' if name == 'list' else ' ci'}"
        action = command(
            name, summary, example=example, within=actions, method=f"key.{name}", run=run, show=show, seconds=DO_SECONDS
        )
        if name != "list":
            action.add_argument("name", metavar="NAME", help="of the key, and of whoever uses it in the audit log")
    parser.epilog = "\n".join(["examples:", *examples, "", EXIT_CODES])
    return parser


if __name__ == "__main__":
    sys.exit(main())
