"""One run of a program: what it is given, what is kept of what it says, and that nothing of it is left."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from fake import FAKE, ends, the_pid
from servers import is_running

from bloomd.worker import process
from bloomd.worker.guard import guarded
from bloomd.worker.process import STDERR_TAIL, STDOUT_LIMIT, Ended, NotStarted, Said, run

ENVIRON = {"PATH": os.environ["PATH"], "CLAUDE_X": "1"}

LEAVES_THE_GROUP = """
import os, time
if os.fork() == 0:
    os.setsid()
    open("child", "w").write(str(os.getpid()))
    os.execle("/bin/sleep", "sleep", "60", os.environ)
while not os.path.exists("child"):
    time.sleep(0.01)
print("done")
"""

Run = Callable[..., Awaitable[Ended]]


@pytest.fixture
def start(tmp_path: Path) -> Run:
    """Run the fake CLI, or another command, with this prompt."""

    async def start(prompt: str, *command: str, said: Said | None = None, seconds: float = 20) -> Ended:
        async def started(group: int) -> None:
            assert os.getpgid(group) == group

        with trio.fail_after(30):
            return await run(
                command or FAKE, prompt.encode(), directory=tmp_path, environ=ENVIRON, seconds=seconds,
                said=said or Said(), started=started,
            )  # fmt: skip

    return start


async def test_the_prompt_comes_on_stdin_and_nothing_of_ours_is_in_the_environment(start, tmp_path):
    ended = await start("fake:env\na secret prompt")
    told = json.loads(json.loads(ended.stdout)["result"])
    assert (ended.exit_code, ended.timed_out, ended.cut) == (0, False, False)
    assert told["environ"].keys() - {"LC_CTYPE"} == {"PATH", "CLAUDE_X", "BLOOMD_RUN"}  # Python sets the first itself
    assert "secret" not in str(told["argv"])
    assert told["cwd"] == str(tmp_path)


async def test_a_prompt_that_is_not_read_does_no_harm(start):
    ended = await start("x" * 1_000_000, "/bin/sh", "-c", "exec <&-; echo done")
    assert ended.stdout == b"done\n"


async def test_a_crash_is_told_with_the_end_of_stderr(start):
    ended = await start("", "/bin/sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x >&2; echo the end >&2; exit 3")
    assert ended.exit_code == 3
    assert len(ended.stderr) == STDERR_TAIL
    assert ended.stderr.endswith(b"the end\n")
    assert (await start("fake:killed")).exit_code == -signal.SIGKILL


async def test_a_flood_is_read_to_its_end_and_kept_up_to_the_limit(start):
    said = Said()
    ended = await start("fake:flood 12", said=said)
    assert ended.exit_code == 0
    assert ended.cut
    assert len(ended.stdout) == STDOUT_LIMIT
    assert repr(said) == f"<Said {STDOUT_LIMIT} bytes and more>"


async def test_exactly_as_much_as_there_is_room_for_is_not_cut(start, monkeypatch):
    monkeypatch.setattr(process, "STDOUT_LIMIT", 10)
    assert not (await start("", "/bin/echo", "-n", "0123456789")).cut
    assert (await start("", "/bin/echo", "-n", "0123456789a")).cut


async def test_what_hangs_is_ended_when_its_time_is_up(start, tmp_path):
    ended = await start("fake:hang", seconds=0.6)
    assert (ended.exit_code, ended.timed_out) == (-signal.SIGTERM, True)
    assert not is_running(await the_pid(tmp_path / "hanging"))


async def test_what_does_not_want_to_end_is_ended(start, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "END_SECONDS", 0.2)
    ended = await start("fake:stubborn", seconds=0.6)
    assert (ended.exit_code, ended.timed_out) == (-signal.SIGKILL, True)


@pytest.mark.parametrize("how", ["fork", "fork-stubborn"])
async def test_a_child_that_outlives_the_leader_is_ended_too(start, tmp_path, monkeypatch, how):
    monkeypatch.setattr(process, "END_SECONDS", 0.2)
    began = trio.current_time()
    ended = await start(f"fake:{how}\nfake:say done")
    assert json.loads(ended.stdout)["result"] == "done"
    await ends(await the_pid(tmp_path / "child"))  # of a kill nobody hears when it is done
    assert trio.current_time() - began < 5


async def test_a_child_that_has_left_the_group_is_ended_too(start, tmp_path):
    ended = await start("", sys.executable, "-c", LEAVES_THE_GROUP)
    assert ended.stdout == b"done\n"
    await ends(await the_pid(tmp_path / "child"))  # of a kill nobody hears when it is done


async def test_a_child_that_nobody_can_find_is_not_waited_for(start, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "DRAIN_SECONDS", 0.1)
    ended = await start("", sys.executable, "-c", LEAVES_THE_GROUP.replace("os.environ", "{}"))
    assert ended.stdout == b"done\n"
    os.kill(await the_pid(tmp_path / "child"), signal.SIGKILL)


async def test_who_is_cancelled_leaves_nothing_running(start, tmp_path):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(start, "fake:hang")
        pid = await the_pid(tmp_path / "hanging")
        assert is_running(pid)
        nursery.cancel_scope.cancel()
    assert not is_running(pid)


async def test_who_is_cancelled_before_it_is_noted_leaves_nothing_running(tmp_path):
    groups: list[int] = []

    async def started(group: int) -> None:
        groups.append(group)
        scope.cancel()
        await trio.lowlevel.checkpoint()

    with trio.CancelScope() as scope:
        await run(FAKE, b"fake:hang", directory=tmp_path, environ={}, seconds=9, said=Said(), started=started)
    assert scope.cancelled_caught
    [group] = groups
    assert not is_running(group)


def test_a_guard_ends_who_has_its_mark_and_nobody_else():
    def sleeper(mark: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(["sleep", "60"], env={"BLOOMD_WORKER": mark}, start_new_session=True)

    with sleeper("m-1") as ours, sleeper("m-12") as other:
        with guarded("BLOOMD_WORKER=m-1"):
            assert is_running(ours.pid)
        assert ours.wait(10) == -signal.SIGKILL
        assert is_running(other.pid)
        other.kill()


@pytest.mark.parametrize(("program", "why"), [("/no/such/program", "No such file"), ("/etc", "Permission denied")])
async def test_a_program_that_is_not_there_is_told(start, program, why):
    with pytest.raises(NotStarted, match=f"`{program}` cannot be run: {why}"):
        await start("", program)


async def test_no_descriptor_is_left_open(start):
    before = len(os.listdir("/proc/self/fd"))
    for prompt in ("fake:say x", "fake:crash", "fake:fork"):
        await start(prompt)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_last_line_of_stderr():
    said = Said()
    assert said.last_line == ""
    said.hear_stderr(b"10 %\n20 %\n\n  \n30")
    assert said.last_line == "20 %"
    said.hear_stderr(b" %\n")
    assert said.last_line == "30 %"
