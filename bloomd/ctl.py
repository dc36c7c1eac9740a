"""`bloomd-ctl`: asks the daemon, or tells it, over its Unix socket.

Scripts and health checks run it often, so it imports only what it needs: no trio, no msgspec, no part of the daemon.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter

from bloomd import __version__
from bloomd.control import layout, render
from bloomd.control.client import CannotReach, Client, ControlFailure, NotPermitted

TYPE_CHECKING = False  # importing typing would cost as much as a call takes
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, NoReturn

    from bloomd.control.answers import Json, Probes, Reload, Services, Status

DEFAULT_SOCKET = "/run/bloomd/bloomd.sock"

OK, FAILED, DOWN, CANNOT_REACH, NOT_PERMITTED, USAGE = 0, 1, 2, 3, 4, 64
DEGRADED = FAILED
INTERRUPTED = 130  # as a shell reports a command that Ctrl-C ended

# Asking is answered from memory; doing may wait for services to stop, for PostgreSQL, or for Membridge.
ASK_SECONDS = 10.0
DO_SECONDS = 120.0
# Often enough to watch a restart, seldom enough to read what is there.
FOLLOW_SECONDS = 2.0
# Longer lines are hard to read, however wide the terminal.
MAX_WIDTH = 100
# To the terminal's other screen, where long lines are cut at the edge; back to what was there; and a fresh picture.
ENTER, LEAVE, CLEAR = "\x1b[?1049h\x1b[?7l", "\x1b[?7h\x1b[?1049l", "\x1b[H\x1b[J"

EXIT_CODES = (
    """\
exit codes: 0 ok, 1 degraded or the call failed, 2 down, 3 cannot reach the daemon, 4 not permitted, 64 wrong usage
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
        code = _follow(options) if options.follow else _once(options)
        sys.stdout.flush()
    except ControlFailure as failure:
        print(f"bloomd-ctl: {layout.printable(str(failure))}", file=sys.stderr)
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
        print(_text(options.show(layout.printable(answer), _look())))
    return options.judge(answer)


def _follow(options: Namespace) -> NoReturn:
    """Draw again and again until interrupted."""
    import signal

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `timeout` is not to leave us on the other screen
    draws = options.output == "text" and _is_terminal()
    try:
        print(ENTER if draws else "", end="")
        while True:
            lines = _picture(options)
            if draws:
                print(CLEAR + _text(layout.cropped(lines, *_size())), end="", flush=True)
            else:
                print(_text(lines), flush=True)
            time.sleep(FOLLOW_SECONDS)
    finally:
        print(LEAVE if draws else "", end="", flush=True)


def _picture(options: Namespace) -> list[str]:
    """How it is now; a daemon that cannot be reached may be on its way back."""
    show = options.show
    try:
        answer: Json = _call(options)
    except CannotReach as failure:
        answer = {"error": str(failure)}
        show = render.failure
    if options.output == "json":
        return [json.dumps(answer)]
    return list(show(layout.printable(answer), _look(time.strftime("%H:%M:%S  "))))


def _call(options: Namespace) -> Any:
    path = options.socket or os.environ.get("BLOOMD_SOCKET") or DEFAULT_SOCKET
    params = {key: value for key in ("name", "level") if (value := getattr(options, key, None)) is not None}
    began = time.perf_counter()
    with Client(path, options.seconds) as client:
        answer = client.call(options.method, **params)
    if options.method == "ping":
        answer["round_trip_ms"] = round((time.perf_counter() - began) * 1000, 3)
    return answer


def _look(stamp: str = "") -> layout.Look:
    colour = _is_terminal() and not os.environ.get("NO_COLOR")
    return layout.Look(time.time(), min(_size().columns, MAX_WIDTH), colour, stamp)


def _is_terminal() -> bool:
    """Whether what we write to understands escape sequences."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _size() -> os.terminal_size:
    return shutil.get_terminal_size((MAX_WIDTH, 24))


def _text(lines: Iterable[str]) -> str:
    text = "\n".join(lines)
    return text.encode(sys.stdout.encoding, "replace").decode(sys.stdout.encoding)  # some locales have few letters


def _code_of(failure: ControlFailure) -> int:
    if isinstance(failure, NotPermitted):
        return NOT_PERMITTED
    return CANNOT_REACH if isinstance(failure, CannotReach) else FAILED


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
    parser.set_defaults(output="text", socket=None, follow=False)
    parser.add_argument("--version", action="version", version=f"bloomd-ctl {__version__}")
    everywhere = Parser(add_help=False, argument_default=SUPPRESS)
    for place in (parser, everywhere):
        place.add_argument("-s", "--socket", help="path of the control socket")
        place.add_argument("-o", "--output", choices=("text", "json"), help="how to print the answer (default: text)")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    examples: list[str] = []

    def command(name: str, summary: str, *, example: str, method: str = "", **defaults: object) -> ArgumentParser:
        examples.append(f"  {example:<36}{summary}")
        added = subparsers.add_parser(
            name,
            parents=[everywhere],
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example: {example}",
        )
        added.set_defaults(**{"method": method or name, "judge": _fine, "seconds": ASK_SECONDS} | defaults)
        return added

    status = command(
        "status", "show how everything is", example="bloomd-ctl status -w", show=render.status, judge=_by_verdict
    )
    status.add_argument("-w", "--watch", dest="follow", action="store_true", help="draw again every 2 s until Ctrl-C")
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
    parser.epilog = "\n".join(["examples:", *examples, "", EXIT_CODES])
    return parser


if __name__ == "__main__":
    sys.exit(main())
