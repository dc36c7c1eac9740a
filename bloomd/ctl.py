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


def _pause(options: Namespace) -> int:
    if options.wait is not None:
        from bloomd.control import following

        return following.until_idle(options, partial(_call, options), partial(_ask, options, "status"))
    return _once(options)


def _events(options: Namespace) -> NoReturn:
    from bloomd.control import following

    following.events(options, partial(_connect, options))


def _log(options: Namespace) -> int:
    from bloomd.control import following

    return following.log(options, partial(_connect, options))


def _bugreport(options: Namespace) -> int:
    from bloomd.control import bugreport

    return bugreport.bugreport(options, partial(_connect, options))


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
    located = Parser(add_help=False, argument_default=SUPPRESS)
    for place in (parser, located):
        place.add_argument("-s", "--socket", metavar="SOCKET", help="path of the control socket")
    everywhere = Parser(add_help=False, argument_default=SUPPRESS, parents=[located])
    for place in (parser, everywhere):
        place.add_argument("-o", "--output", choices=("text", "json"), help="how to print the answer (default: text)")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    examples: list[str] = []

    def command(
        name: str, summary: str, more: str = "", *, example: str, method: str = "", within: Any = commands,
        parent: ArgumentParser = everywhere, **defaults: object,
    ) -> ArgumentParser:  # fmt: skip
        examples.append(f"  {example:<36}{summary}")
        added: ArgumentParser = within.add_parser(
            name,
            parents=[parent],
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}. {more}".strip(),
            epilog=f"example: {example}",
        )
        usual = {"run": _once, "method": method or name, "judge": _fine, "seconds": ASK_SECONDS}
        added.set_defaults(**usual | defaults)
        return added

    status = command(
        "status", "show how everything is",
        "That is the verdict, the services with their state and last error, the probes, the queue, the workers, the "
        "process, the last reload, and the command to try next.",
        example="bloomd-ctl status -w",
        run=_status, show=render.status, judge=_by_verdict,
    )  # fmt: skip
    status.add_argument("-w", "--watch", action="store_true", help="draw again every 2 seconds until interrupted")
    command("ping", "see whether the daemon answers", example="bloomd-ctl ping", show=render.ping)
    command("version", "show the daemon's version", example="bloomd-ctl version", show=render.version)
    command(
        "config", "show every setting and its source", "Each has its value in force; secrets are masked.",
        example="bloomd-ctl config -o json", show=render.config,
    )  # fmt: skip
    command(
        "reload", "read the configuration again",
        "All errors are reported, and one error leaves all settings as they were. Otherwise the services that a "
        "changed setting concerns are replaced, and if one of them does not become ready, the old settings come back. "
        "The answer lists what changed, what was restarted, and what waits for a restart of the daemon.",
        example="bloomd-ctl reload",
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
    command(
        "sync", "mirror Membridge's agents now",
        "Of several nodes only the leader does that; the others name it, as `status` does.",
        example="bloomd-ctl sync", show=render.sync, seconds=DO_SECONDS,
    )  # fmt: skip
    level = command(
        "log-level", "show or change what is logged",
        "A change lasts until the next reload or restart of the daemon.", example="bloomd-ctl log-level debug",
        method="log.level", show=render.log_level,
    )  # fmt: skip
    level.add_argument("level", nargs="?", choices=("debug", "info", "warning", "error"), help="the new level")
    lines = command(
        "log", "show the latest lines of the log",
        "They come from the memory of the daemon, which keeps the last 2000 lines or 1 MiB.",
        example="bloomd-ctl log --follow", run=_log,
    )  # fmt: skip
    most = 2000  # as many as the daemon keeps (`bloomd.logs`)
    lines.add_argument("-n", "--lines", metavar="N", type=about.number(0, most), default=50, help="how many (50)")
    lines.add_argument("-f", "--follow", action="store_true", help="go on with what is written, until interrupted")
    report = command(
        "bugreport", "write an archive of what helps to find a fault",
        "It holds versions, status, settings with their sources, the latest lines of the log, limits, and what bloomd "
        "doctor finds. Secrets are blotted out, and prompts and results are not in it; look at it before you send it.",
        example="bloomd-ctl bugreport", run=_bugreport, parent=located,
    )  # fmt: skip
    report.add_argument("-o", dest="file", metavar="FILE", help="where (a name with node and time, in this directory)")
    report.add_argument(
        "-c", "--config", metavar="FILE", help="the configuration, when no daemon runs that tells where it is"
    )
    pause = command(
        "pause", "hand out no tasks for a while",
        "That holds on every node. What is leased already goes on. Pausing again changes time and reason.",
        example="bloomd-ctl pause --until 18:00",
        method="queue.pause", run=_pause, show=render.queue, seconds=DO_SECONDS,
    )  # fmt: skip
    pause.add_argument(
        "--until", type=_time, metavar="TIME", help="18:00, 2026-12-01T09:30, +90m, +2h or +1d (default: until resumed)"
    )
    pause.add_argument("--reason", metavar="TEXT", help="why, for those who wonder")
    pause.add_argument(
        "--wait", type=about.number(1, 86400), nargs="?", const=0, metavar="SECONDS",
        help="return when no task is leased, at the latest after this time, and say meanwhile how many leases are left",
    )  # fmt: skip
    command(
        "resume", "hand out tasks again", example="bloomd-ctl resume",
        method="queue.resume", show=render.queue, seconds=DO_SECONDS,
    )  # fmt: skip
    for name, summary, more in (
        ("cordon", "give a worker no new leases", "What it holds goes on."),
        ("uncordon", "give a worker leases again", "That ends `cordon` as well as `drain`."),
        ("drain", "let a worker finish, to take it away", "It gets no new leases, and what it holds goes on."),
    ):
        worker = command(
            name, summary, more, example=f"bloomd-ctl {name} gpu-1{' --wait' if name == 'drain' else ''}",
            method=f"worker.{name}", show=render.worker, seconds=DO_SECONDS,
        )  # fmt: skip
        worker.add_argument("name", metavar="WORKER", help="its name")
    worker.set_defaults(run=_drain)
    worker.add_argument(
        "--wait", action="store_true", help="return when it holds no lease, and say meanwhile how many are left"
    )
    why = command(
        "why", "tell why a task does not run", "Each reason has a line, with its code.",
        example="bloomd-ctl why TASK", show=render.why,
    )  # fmt: skip
    why.add_argument("name", metavar="TASK", help="its id")
    events = command(
        "events", "follow what happens",
        "Each event has a line until interrupted: the time, what happened to what, who did it, and details. A daemon "
        "that is being restarted is waited for.",
        example="bloomd-ctl events --types task", run=_events,
    )  # fmt: skip
    kinds = "only these: task, lease, worker, probe, service, and audit for all else"
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
    for name, summary, more, run, show in (
        (
            "add", "make an API key; its secret is printed",
            "It is never shown again. With the first key, the API asks everybody for one.",
            _new_key, None,
        ),
        (
            "list", "show who has an API key",
            "Of each key it tells when it was made and by whom, and when it was used last.",
            _once, render.keys,
        ),
        (
            "remove", "make an API key invalid",
            "It is refused at once on this node, and within moments on every other one.",
            _once, render.removed_key,
        ),
    ):  # fmt: skip
        action = command(
            name, summary, more, example=f"bloomd-ctl key {name}{'' if name == 'list' else ' ci'}",
            within=actions, method=f"key.{name}", run=run, show=show, seconds=DO_SECONDS,
        )  # fmt: skip
        if name != "list":
            action.add_argument("name", metavar="NAME", help="of the key, and of whoever uses it in the audit log")
    parser.epilog = "\n".join(["examples:", *examples, "", EXIT_CODES])
    return parser


if __name__ == "__main__":
    sys.exit(main())
