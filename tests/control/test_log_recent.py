"""The lines that the daemon keeps of its log, and what of them goes over the socket."""

import json
import logging
import os
import pwd
import signal
import subprocess
import sys
import threading
from functools import partial
from typing import Any, cast

import pytest
import structlog
import trio

from bloomd import ctl, unixsocket
from bloomd.control import facts
from bloomd.control.codes import MAX_LINE
from bloomd.control.server import ControlServer
from bloomd.logs import (
    RECENT_LINE_LENGTH,
    RECENT_LINES,
    TROUBLE_BYTES,
    TROUBLE_LINES,
    USUAL_BYTES,
    USUAL_LINES,
    Logs,
    Recent,
)

SECRET = "a-secret-of-the-log"


@pytest.fixture
def logs():
    """Logs of this process, as a daemon has them; the way it was afterwards."""
    before = structlog.get_config()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield Logs(json=False)
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)


def texts(recent: Recent, after: int = 0) -> list[str]:
    return [line for _, line in recent.after(after)]


def test_the_latest_lines_are_kept_and_no_more():
    recent = Recent()
    for number in range(1, USUAL_LINES + 11):
        recent.add(f"line {number}")
    assert len(texts(recent)) == USUAL_LINES
    assert recent.after(0)[0] == (11, "line 11")
    assert texts(recent, USUAL_LINES + 9) == [f"line {USUAL_LINES + 10}"]
    assert texts(recent, recent.last) == []


def test_trouble_outlasts_what_goes_on():
    recent = Recent()
    recent.add("the disk is full", trouble=True)
    for number in range(2 * USUAL_LINES):
        recent.add(f"request {number}")
    recent.add("the disk is full again", trouble=True)
    kept = texts(recent)
    assert (kept[0], kept[-1]) == ("the disk is full", "the disk is full again")
    for number in range(TROUBLE_LINES):
        recent.add(f"trouble {number}", trouble=True)
    assert "the disk is full again" not in texts(recent)
    assert len(texts(recent)) == RECENT_LINES


@pytest.mark.parametrize(("trouble", "most"), [(False, USUAL_BYTES), (True, TROUBLE_BYTES)])
def test_long_lines_are_cut_and_leave_room_for_fewer(trouble, most):
    recent = Recent()
    for number in range(500):
        recent.add(f"{number:04}{'я' * 2 * RECENT_LINE_LENGTH}", trouble=trouble)
    kept = texts(recent)
    assert most - 3 * RECENT_LINE_LENGTH < sum(len(line.encode()) for line in kept) <= most
    assert kept[-1].startswith("0499")
    assert kept[-1].endswith(f"… ({RECENT_LINE_LENGTH + 4} more characters)")


def test_any_thread_may_add_one():
    recent = Recent()

    def add():
        for _ in range(2000):
            recent.add("x")
            recent.after(recent.last - 3)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recent.last == 8000
    numbers = [number for number, _ in recent.after(0)]
    assert numbers == list(range(8001 - USUAL_LINES, 8001))


@pytest.mark.usefixtures("logs")  # for what is put back afterwards
def test_what_is_kept_is_what_was_written(capsys):
    logs = Logs(json=False)  # here, since it writes to the streams of its time
    logs.redact([SECRET])
    structlog.get_logger().info("usual", path=f"/{SECRET}", key=SECRET)
    structlog.get_logger().debug("not at this level")
    structlog.get_logger().error("trouble", error=f"postgresql://u:{SECRET[::-1]}@h/d")
    logging.getLogger("some.library").warning("a library says %s", SECRET)
    refused = f"x {SECRET}\nDETAIL:  Failing row contains (1, the prompt of a task, queued).\nCONTEXT:  JSON"
    try:
        raise ValueError(refused)
    except ValueError:
        structlog.get_logger().exception("bug")
    written = capsys.readouterr()
    kept = texts(logs.recent)
    assert [line for line in kept if line in written.out] == kept[:1]
    assert [line for line in kept if line in written.err] == kept[1:]
    assert len(kept) == 4
    assert "raise ValueError" in kept[3]
    assert "Failing row contains ****" in kept[3]
    for _ in range(USUAL_LINES):
        logs.recent.add("what goes on")
    assert texts(logs.recent)[:3] == kept[1:]
    for gone in (SECRET, SECRET[::-1], "prompt of a task"):
        assert gone not in written.out + written.err + "".join(kept)


def test_colours_are_for_the_terminal(logs, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    logs.set_level("info")
    structlog.get_logger().info("started", port=5000)
    assert "\x1b[" in capsys.readouterr().out
    [kept] = texts(logs.recent)
    assert "\x1b" not in kept
    assert "port=5000" in kept


@pytest.fixture
def listener(path):
    """Without a group, of which a log line would tell."""
    listener = unixsocket.bind(path, setting="control.socket", mode=0o660)
    yield listener
    unixsocket.unbind(listener)


async def serve(logs: Logs, listener: unixsocket.Listener, audit: Any = lambda *_: None, *, task_status: Any) -> None:
    """`log.recent` on a socket, of these logs."""
    methods = facts.methods(cast("Any", None), logs)
    server = ControlServer(methods, group="no-such-group", audit=audit)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, listener.socket)
            task_status.started(scope)


@pytest.fixture
async def served(logs, listener, nursery):
    """`log.recent` on a socket; its logs."""
    await nursery.start(serve, logs, listener)
    return logs


async def lines_of(path: str, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "bloomd.ctl", "-s", path, *arguments]
    return await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)


async def test_the_last_lines_are_shown(served, path):
    for number in range(100):
        served.recent.add(f"line {number} \x1b[2J")
    done = await lines_of(path, "log")
    assert (done.returncode, done.stderr) == (0, b"")
    shown = done.stdout.decode().splitlines()
    assert (len(shown), shown[0], shown[-1]) == (50, "line 50 \N{REPLACEMENT CHARACTER}[2J", shown[-1])
    assert shown[-1].startswith("line 99 ")
    done = await lines_of(path, "-o", "json", "log", "-n", "2")
    assert [json.loads(line)["line"] for line in done.stdout.splitlines()] == ["line 98 \x1b[2J", "line 99 \x1b[2J"]
    assert (await lines_of(path, "log", "-n", "0")).stdout == b""


def test_nobody_may_ask_who_may_not_do_everything(logs):
    rules = {method.name: (method.public, method.mutating) for method in facts.methods(cast("Any", None), logs)}
    assert rules == {"bugreport": (False, True), "log.recent": (False, True), "log.redact": (False, False)}


async def test_who_reads_them_is_audited(logs, listener, path, nursery):
    audited: list[tuple[str, str]] = []

    def audit(call, method, params, outcome):
        audited.append((call.user, f"{method.name} {params['lines']} {outcome}"))

    await nursery.start(serve, logs, listener, audit)
    await lines_of(path, "log")
    assert audited == [(pwd.getpwuid(os.geteuid()).pw_name, "log.recent 50 ok")]


def test_as_many_can_be_asked_for_as_there_are():
    accepted = ctl._parser().parse_args(["log", "-n", str(RECENT_LINES)])
    assert accepted.lines == RECENT_LINES
    with pytest.raises(SystemExit):
        ctl._parser().parse_args(["log", "-n", str(RECENT_LINES + 1)])


async def test_no_answer_is_longer_than_a_line_of_the_protocol(served, path):
    """Even when each character takes the six that JSON has for the worst of them."""
    for _ in range(RECENT_LINES):
        served.recent.add("\x01" * RECENT_LINE_LENGTH)
    kept = served.recent.after(0)
    received: list[bytes] = []
    async with await trio.open_unix_socket(path) as stream:
        await stream.send_all(b'{"jsonrpc": "2.0", "id": 1, "method": "log.recent", "params": {}}\n')
        buffer = b""
        with trio.fail_after(20):
            while not any(b'"result"' in line for line in received):
                buffer += await stream.receive_some(1 << 20)
                *whole, buffer = buffer.split(b"\n")
                received += whole
    assert max(map(len, received)) < MAX_LINE
    told = [line for message in map(json.loads, received) for line in message.get("params", {}).get("lines", [])]
    assert told == [line for _, line in kept]
    assert json.loads(received[-1])["result"] == {"lines": len(kept)}


async def test_a_secret_that_became_one_later_is_not_told(served, path):
    served.recent.add(f"somebody typed {SECRET} in the wrong place")
    served.redact([SECRET])
    done = await lines_of(path, "log")
    assert done.stdout == b"somebody typed **** in the wrong place\n"


async def test_following_goes_on_with_each_new_line_across_a_restart(logs, listener, path, nursery):
    """Every line once; of a daemon that was started anew all that it has."""
    for number in range(5):
        logs.recent.add(f"old {number}")
    daemon = await nursery.start(serve, logs, listener)
    command = [sys.executable, "-m", "bloomd.ctl", "-s", path, "log", "-n", "2", "--follow"]
    follow = partial(trio.run_process, command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    process: trio.Process = await nursery.start(follow)
    shown = b""

    async def until(line: bytes) -> None:
        nonlocal shown
        assert process.stdout
        while line not in shown:
            shown += await process.stdout.receive_some()

    with trio.fail_after(20):
        await until(b"old 4\n")
        logs.recent.add("new 1")
        await until(b"new 1\n")
        daemon.cancel()
        again = Logs(json=False)
        again.recent.add("started anew")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(facts, "_MARK", "another")
            await nursery.start(serve, again, listener)
            await until(b"started anew\n")
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
    assert shown == b"old 3\nold 4\nnew 1\nstarted anew\n"
