import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from functools import partial
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import trio
from control_answers import BAD, GOOD, service

from bloomd import __version__
from bloomd.control import commands
from bloomd.control.codes import NOT_PERMITTED, UNAVAILABLE
from bloomd.control.listener import bind, unbind
from bloomd.control.server import Call, ControlError, ControlServer, Method
from bloomd.ctl import DEFAULT_SOCKET, _parser
from bloomd.runtime.model import TaskStatus, WorkerStatus

CTL = [sys.executable, "-m", "bloomd.ctl"]
OURS = ("NO_COLOR", "BLOOMD_SOCKET", "COLUMNS", "LINES")
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in OURS}
ROOT = Path(__file__).parents[2]

WORKER = {"id": "gpu-1", "status": "online", "cordoned": False, "draining": False, "active_leases": 2}

ENROLMENT = {"code": "bloome_code", "worker": "gpu-1", "expires_at": 1, "server": "https://bloom.example.org/"}

RELOAD = {
    "ok": True, "result": "unchanged", "changes": [], "restarted": [], "needs_restart": [], "retried": [], "errors": [],
}  # fmt: skip


class Anything(msgspec.Struct, forbid_unknown_fields=True):
    name: str | None = None
    level: str | None = None
    until: int | None = None
    reason: str | None = None


class Canned:
    """A daemon that gives the answers that it is told to give, and notes what it was asked."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.asked: list[tuple[str, Any]] = []
        self.answers: dict[str, Any] = {
            "ping": {"pong": True, "pid": 4711, "loop_lag_ms": 0.2},
            "version": {"version": "0.1.0", "python": "3.11.7", "schema": 3},
            "status": GOOD,
            "config": {"settings": [], "warnings": []},
            "reload": RELOAD,
            "restart": {"services": [service("sync")]},
            "start": {"services": [service("sync", state="failed", last_error="no such host")]},
            "stop": {"services": [service("sync", state="stopped")]},
            "probe": {"probes": []},
            "sync": {"agents": 3, "added": 0, "changed": 1, "offline": 2, "seconds": 0.1},
            "log.level": {"level": "info"},
            "queue.pause": {"paused": True, "until": None, "reason": "quota"},
            "queue.resume": {"paused": False, "until": None, "reason": None},
            "worker": WORKER,
            "worker.cordon": WORKER | {"cordoned": True},
            "worker.uncordon": WORKER,
            "worker.drain": WORKER | {"draining": True},
            "why": {"status": "queued", "reasons": [{"code": "queue-paused", "sentence": "The queue is paused."}]},
            "key.add": {"name": "ci", "secret": "bloom_secret", "created_at": 1, "created_by": "root"},
            "key.list": {"keys": []},
            "worker.enrol": ENROLMENT,
            "key.remove": {"removed": True, "name": "ci", "authentication": "on"},
        }

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        listener = bind(self.path, "no-such-group")
        methods = [Method(name, self._answering(name), Anything) for name in self.answers]
        try:
            server = ControlServer(methods, group="no-such-group", audit=lambda *_: None)
            await server.serve(listener.socket, task_status=task_status)
        finally:
            unbind(listener)

    def _answering(self, name: str) -> Any:
        async def answer(params: Anything, call: Call) -> object:
            self.asked.append((name, params.name or params.level or params.until or params.reason))
            answer = self.answers[name]
            if isinstance(answer, list):  # one after the other, the last for ever
                answer = answer.pop(0) if len(answer) > 1 else answer[0]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return answer

    async def ctl(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return await ctl(*arguments, BLOOMD_SOCKET=self.path, **environment)


async def ctl(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    done = await trio.run_process(
        [*CTL, *arguments], capture_stdout=True, capture_stderr=True, check=False, env=ENVIRONMENT | environment
    )
    return subprocess.CompletedProcess(arguments, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
async def canned(path: str, nursery: trio.Nursery) -> Canned:
    daemon = Canned(path)
    await nursery.start(daemon.serve)
    return daemon


def age(done: "subprocess.CompletedProcess[str]") -> str:
    return " ".join(done.stdout.split()[2:4])


@pytest.mark.parametrize(
    ("verdict", "code"), [("ok", 0), ("degraded", 1), ("down", 2)]
)  # fmt: skip
async def test_the_verdict_is_the_exit_code_and_the_first_line(canned: Canned, verdict: str, code: int) -> None:
    canned.answers["status"] = GOOD | {"verdict": verdict, "reasons": ["sync is waiting"]}
    done = await canned.ctl("status")
    assert done.returncode == code
    assert done.stdout.splitlines()[0] == f"{verdict}: sync is waiting"
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


async def test_json_is_what_the_daemon_said(canned: Canned) -> None:
    canned.answers["status"] = BAD
    for arguments in (("-o", "json", "status"), ("status", "-o", "json")):
        done = await canned.ctl(*arguments)
        assert done.returncode == 2
        assert json.loads(done.stdout) == BAD


@pytest.mark.parametrize(
    ("arguments", "asked", "code", "words"),
    [
        (["ping"], ("ping", None), 0, "pong from pid 4711 in "),
        (["version"], ("version", None), 0, "bloomd 0.1.0, Python 3.11.7, schema 3"),
        (["config"], ("config", None), 0, ""),
        (["reload"], ("reload", None), 0, "unchanged"),
        (["restart", "sync"], ("restart", "sync"), 0, "sync  running"),
        (["start", "sync"], ("start", "sync"), 1, "no such host"),
        (["stop", "sync"], ("stop", "sync"), 0, "sync  stopped"),
        (["probe"], ("probe", None), 0, ""),
        (["probe", "minio"], ("probe", "minio"), 0, ""),
        (["sync"], ("sync", None), 0, "3 agents: 0 added, 1 changed, 2 offline"),
        (["log-level"], ("log.level", None), 0, "log level: info"),
        (["log-level", "debug"], ("log.level", "debug"), 0, "log level: info"),
        (["pause"], ("queue.pause", None), 0, "the queue is paused until somebody resumes it: quota\n"),
        (["pause", "--reason", "quota"], ("queue.pause", "quota"), 0, "paused"),
        (["pause", "--until", "2099-01-01T00:00Z"], ("queue.pause", 4070908800000), 0, "paused"),
        (["resume"], ("queue.resume", None), 0, "the queue is not paused\n"),
        (["cordon", "gpu-1"], ("worker.cordon", "gpu-1"), 0, "gpu-1 is cordoned: 2 leases left\n"),
        (["uncordon", "gpu-1"], ("worker.uncordon", "gpu-1"), 0, "gpu-1 gets leases again\n"),
        (["drain", "gpu-1"], ("worker.drain", "gpu-1"), 0, "gpu-1 is draining: 2 leases left\n"),
        (["why", "T"], ("why", "T"), 0, "queue-paused  The queue is paused.\n"),
        (["key", "list"], ("key.list", None), 0, "no key has a name\n"),
        (["key", "remove", "ci"], ("key.remove", "ci"), 0, "ci is a key no longer\n"),
    ],
)
async def test_every_command_asks_what_it_says(
    canned: Canned, arguments: list[str], asked: tuple[str, str | None], code: int, words: str
) -> None:
    done = await canned.ctl(*arguments)
    assert (done.returncode, done.stderr) == (code, "")
    assert words in done.stdout
    assert canned.asked == [asked]


async def test_failures_have_their_exit_codes(canned: Canned) -> None:
    canned.answers["reload"] = RELOAD | {"ok": False, "result": "failed", "errors": ["bloomd.yaml:3:1: unknown key"]}
    done = await canned.ctl("reload")
    assert done.returncode == 1
    assert "bloomd.yaml:3:1: unknown key" in done.stdout

    canned.answers["restart"] = ControlError("there is no service snyc")
    done = await canned.ctl("restart", "snyc")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "bloomd-ctl: there is no service snyc\n")

    for state, code in (("failed", 1), ("backoff", 1), ("waiting", 0)):
        canned.answers["restart"] = {"services": [service("http", state=state, last_error="no such address")]}
        done = await canned.ctl("restart", "http")
        assert (done.returncode, done.stdout) == (code, f"http  {state}  {age(done)}  no such address\n")

    canned.answers["restart"] = ControlError("members of the group bloomd-admin may", NOT_PERMITTED)
    done = await canned.ctl("restart", "sync")
    assert (done.returncode, done.stdout) == (4, "")
    assert "bloomd-admin" in done.stderr


async def test_no_daemon(path: str) -> None:
    for arguments in (("-s", path, "status"), ("status", "-s", path), ("-s", path, "-o", "json", "ping")):
        done = await ctl(*arguments, BLOOMD_SOCKET="/nowhere")
        assert (done.returncode, done.stdout) == (3, "")
        assert (
            done.stderr == f"bloomd-ctl: there is no socket {path}: is bloomd running, and with this control.socket?\n"
        )


@pytest.mark.skipif(os.path.exists(DEFAULT_SOCKET), reason="a bloomd runs on this machine")
async def test_without_anything_said_the_default_socket_is_asked() -> None:
    done = await ctl("ping", BLOOMD_SOCKET="")
    assert done.returncode == 3
    assert DEFAULT_SOCKET in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["stat"], ["restart"], ["status", "extra"], ["log-level", "loud"], ["-o", "yaml", "status"], ["key"],
        ["key", "add"], ["key", "list", "ci"], ["drain", "--wait"], ["pause", "18:00"], ["pause", "--wait", "0"],
    ],
)  # fmt: skip
async def test_wrong_usage(arguments: list[str]) -> None:
    done = await ctl(*arguments)
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.startswith("usage: bloomd-ctl ")


@pytest.mark.parametrize(
    ("time", "words"),
    [
        ("soon", "'soon' is no time: say it as 18:00,"),
        ("24:00", "no clock shows 24:00"),
        ("2001-01-01", "2001-01-01 is over"),
    ],
)
async def test_a_wrong_time_is_wrong_usage(time: str, words: str) -> None:
    done = await ctl("pause", "--until", time)
    assert (done.returncode, done.stdout) == (64, "")
    assert f"bloomd-ctl pause: argument --until: {words}" in done.stderr


async def test_the_secret_of_a_new_key_is_all_there_is_to_read(canned: Canned) -> None:
    done = await canned.ctl("key", "add", "ci")
    assert (done.returncode, done.stdout) == (0, "bloom_secret\n")
    assert done.stderr == "bloomd-ctl: ci is a key from now on; its secret is shown only this once\n"
    assert canned.asked == [("key.add", "ci")]
    done = await canned.ctl("-o", "json", "key", "add", "ci")
    assert json.loads(done.stdout) == canned.answers["key.add"]


async def test_waiting_for_a_worker_ends_when_it_holds_nothing(canned: Canned) -> None:
    draining = WORKER | {"draining": True}
    away = ControlError("PostgreSQL does not answer", UNAVAILABLE)
    canned.answers["worker"] = [draining, away, draining | {"active_leases": 1}, draining | {"active_leases": 0}]
    done = await canned.ctl("drain", "gpu-1", "--wait")
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        ["gpu-1 is draining: 2 leases left", "gpu-1 is draining: 1 lease left", "gpu-1 is drained: it holds no lease"],
    )
    assert done.stderr == "bloomd-ctl: PostgreSQL does not answer; waiting for its return\n"

    canned.answers["worker.drain"] = canned.answers["worker"][0]
    done = await canned.ctl("-o", "json", "drain", "gpu-1", "--wait")
    assert (done.returncode, json.loads(done.stdout)) == (0, draining | {"active_leases": 0})


@pytest.mark.parametrize(
    ("meanwhile", "code", "stdout", "stderr"),
    [
        (WORKER, 1, "gpu-1 gets leases again\n", ""),
        (ControlError("Worker not found"), 1, "", "bloomd-ctl: Worker not found\n"),
    ],
)
async def test_waiting_for_a_worker_ends_when_it_drains_no_longer(
    canned: Canned, meanwhile: Any, code: int, stdout: str, stderr: str
) -> None:
    canned.answers["worker"] = meanwhile
    done = await canned.ctl("drain", "gpu-1", "--wait")
    assert (done.returncode, done.stderr) == (code, stderr)
    assert done.stdout == "gpu-1 is draining: 2 leases left\n" + stdout


async def test_ctrl_c_ends_only_the_waiting(canned: Canned, nursery: trio.Nursery) -> None:
    wait = partial(
        trio.run_process, [*CTL, "-s", canned.path, "drain", "gpu-1", "--wait"], env=ENVIRONMENT, check=False
    )
    process: trio.Process = await nursery.start(partial(wait, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    assert process.stderr is not None
    with trio.fail_after(20):
        assert await line(process) == b"gpu-1 is draining: 2 leases left\n"
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        assert await process.stderr.receive_some() == b"\ngpu-1 goes on draining\n"


def leased(number: int, *, paused: bool = True) -> dict[str, Any]:
    pause = {"until": None, "reason": "upgrade"} if paused else None
    return GOOD | {"queue": GOOD["queue"] | {"active_leases": number, "pause": pause}}


async def test_waiting_with_a_paused_queue_ends_when_no_task_is_leased(canned: Canned) -> None:
    canned.answers["status"] = [leased(2), leased(2), BAD, leased(1), leased(0)]
    done = await canned.ctl("pause", "--wait", "--reason", "upgrade")
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        ["the queue is paused until somebody resumes it: quota", "2 leases left", "1 lease left", "no task is leased"],
    )
    assert done.stderr == "bloomd-ctl: PostgreSQL is away; waiting for its return\n"
    assert canned.asked[0] == ("queue.pause", "upgrade")

    done = await canned.ctl("-o", "json", "pause", "--wait")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"paused": True, "active_leases": 0})


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (leased(1), "1 lease left after 1 s; the queue stays paused"),
        (leased(2, paused=False), "the queue was resumed meanwhile"),
        (BAD, "how many leases are left is not known; the queue stays paused"),
    ],
    ids=["time", "resumed", "unknown"],
)
async def test_waiting_with_a_paused_queue_ends_without_success(canned: Canned, status: Any, words: str) -> None:
    canned.answers["status"] = status
    done = await canned.ctl("pause", "--wait", "1")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, f"bloomd-ctl: {words}")


async def test_help_has_an_example_for_every_command() -> None:
    done = await ctl("--help")
    assert done.returncode == 0
    commands = [
        "status",
        "ping",
        "version",
        "config",
        "reload",
        "restart",
        "start",
        "stop",
        "probe",
        "sync",
        "log-level",
        "log",
        "bugreport",
        "pause",
        "resume",
        "cordon",
        "uncordon",
        "drain",
        "why",
        "events",
        "key add",
        "key list",
        "key remove",
    ]
    for command in commands:
        assert f"\n  bloomd-ctl {command}" in done.stdout
    done = await ctl("restart", "--help")
    assert "example: bloomd-ctl restart membridge-sync" in done.stdout


def test_the_services_of_the_examples_exist() -> None:
    table = (ROOT / "bloomd/daemon.py").read_text()
    services = set(re.findall(r'\bService\(\s*"([^"]+)"', table))
    probes = set(re.findall(r'"([^"]+)": lambda: \w+\.check', table))
    assert {"http", "membridge-sync"} <= services
    assert "minio" in probes
    texts = _parser().format_help() + (ROOT / "man/bloomd-ctl.8").read_text() + (ROOT / "README.md").read_text()
    examples = re.findall(r"bloomd-ctl (restart|start|stop|probe) ([a-z][a-z/-]*)", texts.replace("\\-", "-"))
    assert {command for command, _ in examples} == {"restart", "start", "stop", "probe"}
    for command, name in examples:
        assert name in (probes if command == "probe" else services | {f"probes/{probe}" for probe in probes}), command


def test_the_statuses_are_those_of_the_rules() -> None:
    assert get_args(TaskStatus) == commands.STATUSES
    assert get_args(WorkerStatus) == commands.WORKER_STATUSES


async def test_its_own_version() -> None:
    done = await ctl("--version")
    assert (done.returncode, done.stdout) == (0, f"bloomd-ctl {__version__}\n")


async def test_the_width_is_that_of_the_environment_or_100(canned: Canned) -> None:
    canned.answers["status"] = GOOD | {"verdict": "down", "reasons": ["nothing works " * 30]}
    for environment, width in (({}, 100), ({"COLUMNS": "60"}, 60), ({"COLUMNS": "x"}, 100)):
        done = await canned.ctl("status", **environment)
        assert width - 10 < max(map(len, done.stdout.splitlines())) <= width


async def on_a_terminal(canned: Canned, *arguments: str, **environment: str) -> str:
    ours, theirs = pty.openpty()
    try:
        env = ENVIRONMENT | {"BLOOMD_SOCKET": canned.path, "TERM": "xterm"} | environment
        try:
            await trio.run_process([*CTL, *arguments], stdout=theirs, stderr=theirs, env=env)
        finally:
            os.close(theirs)
        return os.read(ours, 65536).decode()
    finally:
        os.close(ours)


async def test_a_person_is_told_how_to_use_a_code(canned: Canned) -> None:
    """Not a script, which would write the code into its log."""
    said = await on_a_terminal(canned, "worker", "enrol", "gpu-1")
    url = "https://bloom.example.org/api/runtime/agent-install-script?code=bloome_code"
    assert f"curl -fsS '{url}' | sh" in said
    done = await canned.ctl("worker", "enrol", "gpu-1")
    assert (done.stdout, "bloome_code" in done.stderr) == ("bloome_code\n", False)
    canned.answers["worker.enrol"] = ENROLMENT | {"server": None}
    assert "set http.public_url" in await on_a_terminal(canned, "worker", "enrol", "gpu-1")


async def test_colours_on_a_terminal_only_and_never_with_no_color(canned: Canned) -> None:
    text = await on_a_terminal(canned, "status")
    assert text.startswith("\x1b[32mok\x1b[0m")
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        text = await on_a_terminal(canned, "status", **environment)
        assert text.startswith("ok\r\n")
        assert "\x1b" not in text


async def test_text_that_the_locale_cannot_write_is_told_all_the_same(canned: Canned) -> None:
    canned.answers["status"] = GOOD | {
        "verdict": "down",
        "reasons": ["läuft nicht"],
    }
    done = await canned.ctl("status", PYTHONIOENCODING="ascii")
    assert done.stdout.splitlines()[0] == "down: l?uft nicht"


async def test_a_reader_that_has_seen_enough_is_no_error(canned: Canned) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = await trio.run_process(
            [*CTL, "-s", canned.path, "status"], stdout=writing, capture_stderr=True, check=False, env=ENVIRONMENT
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


async def test_following_goes_on_across_a_restart_until_interrupted(path: str, nursery: trio.Nursery) -> None:
    follow = partial(trio.run_process, [*CTL, "-s", path, "-o", "json", "status", "-w"], env=ENVIRONMENT, check=False)
    process: trio.Process = await nursery.start(partial(follow, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    with trio.fail_after(20):
        assert "there is no socket" in json.loads(await line(process))["error"]
        await nursery.start(Canned(path).serve)
        assert json.loads(await line(process)) == GOOD
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        assert process.stderr is not None
        assert await process.stderr.receive_some() == b"\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_following_on_a_terminal_keeps_the_verdict_in_sight(
    canned: Canned, nursery: trio.Nursery, number: signal.Signals
) -> None:
    canned.answers["status"] = GOOD | {"services": [service(f"service-{each}") for each in range(40)]}
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    env = ENVIRONMENT | {"BLOOMD_SOCKET": canned.path, "TERM": "xterm", "NO_COLOR": "1"}
    follow = partial(trio.run_process, [*CTL, "status", "-w"], stdout=theirs, stderr=theirs, env=env, check=False)
    process: trio.Process = await nursery.start(follow)
    async with trio.lowlevel.FdStream(ours) as screen:
        drawn = ""
        with trio.fail_after(20):
            while "without -w" not in drawn:
                drawn += (await screen.receive_some()).decode()
            process.send_signal(number)
            assert await process.wait() == 130
            after = (await screen.receive_some()).decode()
    os.close(theirs)
    lines = drawn.splitlines()
    assert re.fullmatch(r"\x1b\[\?1049h\x1b\[\?7l\x1b\[H\x1b\[J\d\d:\d\d:\d\d  ok", lines[0])
    assert (len(lines), drawn.count("\n")) == (24, 23)
    assert re.fullmatch(r"… \d+ more lines: make the window larger, or use status without -w", lines[-1])
    assert after == "\x1b[?7h\x1b[?1049l\r\n"


async def line(process: trio.Process) -> bytes:
    assert process.stdout is not None
    received = b""
    while not received.endswith(b"\n"):
        received += await process.stdout.receive_some()
    return received


def test_it_imports_no_more_than_it_needs() -> None:
    code = "import sys, bloomd.ctl; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    unwanted = {"trio", "msgspec", "structlog", "typing", "asyncio", "dataclasses", "inspect", "bloomd.errors"}
    assert not unwanted & set(done.stdout.split())
