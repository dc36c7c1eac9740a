"""The worker's directory: whose turn it is, which conversation goes on, and what a killed worker left."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from servers import is_running

from bloomd.errors import Misconfigured
from bloomd.worker import contexts as worker_contexts
from bloomd.worker import journal
from bloomd.worker.contexts import Contexts, name_of, take
from bloomd.worker.journal import Journal, Note


@pytest.fixture
def root(tmp_path: Path):
    root = tmp_path / "worker"
    lock = take(root)
    yield root
    os.close(lock)


async def test_a_context_has_its_directory_and_its_conversation(root):
    contexts = Contexts(root)
    async with contexts.turn("a/../b") as context:
        assert context.session is None
        assert context.directory == root / "contexts" / name_of("a/../b")
        (context.directory / "kept").touch()
        await context.remember("s-1")
    async with Contexts(root).turn("a/../b") as context:
        assert context.session == "s-1"
        assert (context.directory / "kept").exists()
        await context.remember(None)
        await context.remember(None)
    async with contexts.turn("a/../b") as context:
        assert context.session is None
    async with contexts.turn("other") as context:
        assert not (context.directory / "kept").exists()


async def test_the_names_and_modes_tell_others_nothing(root):
    async with Contexts(root).turn("secret-context") as context:
        await context.remember("s-1")
    assert "secret" not in "".join(str(path) for path in root.rglob("*"))
    assert (root / "contexts").stat().st_mode & 0o077 == 0
    assert (root / "sessions").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("content", [b"", b"--help", b"\xff\xfe", b"a b"])
async def test_a_conversation_that_cannot_be_one_is_none(root, content):
    (root / "sessions" / name_of("c")).write_bytes(content)
    async with Contexts(root).turn("c") as context:
        assert context.session is None


async def test_a_conversation_that_cannot_be_kept_fails_nothing(root):
    async with Contexts(root).turn("c") as context:
        (root / "sessions" / f"{name_of('c')}.new").mkdir()
        await context.remember("s-1")


async def test_a_task_without_a_context_leaves_nothing(root):
    contexts = Contexts(root)
    async with contexts.turn("") as first, contexts.turn("") as second:
        assert first.directory != second.directory
        assert first.session is None
        (first.directory / "deep").mkdir()
        await first.remember("s-1")
    assert list((root / "tasks").iterdir()) == []
    assert list((root / "sessions").iterdir()) == []


async def test_one_task_of_a_context_at_a_time(root):
    contexts = Contexts(root)
    running: dict[str, int] = {"c": 0, "d": 0}
    most = dict(running)

    async def work(context_id: str) -> None:
        async with contexts.turn(context_id):
            running[context_id] += 1
            most[context_id] = max(most[context_id], running[context_id])
            both = running["c"] and running["d"]
            seen.add(bool(both))
            await trio.sleep(0.002)
            running[context_id] -= 1

    seen: set[bool] = set()
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(work, "cd"[number % 2])
    assert most == {"c": 1, "d": 1}
    assert seen == {True, False}
    assert contexts._turns == {}


async def test_who_is_cancelled_in_a_turn_or_before_it_passes_it_on(root):
    contexts = Contexts(root)
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            async with contexts.turn("c"):
                await trio.sleep_forever()

        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    with trio.fail_after(5):
        async with contexts.turn("c"):
            pass
    assert contexts._turns == {}


def age(root: Path, context_id: str, days: float) -> None:
    moment = time.time() - days * 86_400
    for path in (root / "contexts" / name_of(context_id), root / "sessions" / name_of(context_id)):
        os.utime(path, (moment, moment))


async def test_a_context_that_nobody_has_used_for_long_is_forgotten(root):
    contexts = Contexts(root)
    for context_id in ("old", "young", "used", "talked in"):
        async with contexts.turn(context_id) as context:
            (context.directory / "file").write_text("x")
            await context.remember(f"s-{context_id[0]}")
        age(root, context_id, 29 if context_id == "young" else 31)
    os.utime(root / "sessions" / name_of("talked in"))
    async with contexts.turn("used"), trio.open_nursery() as nursery:
        age(root, "used", 31)  # it has been used for a very long time
        nursery.start_soon(contexts.keep_pruned)
        with trio.fail_after(5):
            while (root / "contexts" / name_of("old")).exists():
                await trio.sleep(0.005)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    left = {name_of("young"), name_of("used"), name_of("talked in")}
    assert {path.name for path in (root / "contexts").iterdir()} == left
    assert {path.name for path in (root / "sessions").iterdir()} == left
    assert contexts._turns == {}


async def test_what_is_pruned_and_what_is_used_wait_for_each_other(root, monkeypatch):
    contexts = Contexts(root)
    async with contexts.turn("c") as context:
        await context.remember("s-1")
    forget = worker_contexts._forget

    def forget_slowly(*arguments: Any) -> None:
        trio.from_thread.run_sync(pruning.set)
        time.sleep(0.05)
        forget(*arguments)

    pruning = trio.Event()
    monkeypatch.setattr(worker_contexts, "_forget", forget_slowly)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(contexts.prune, time.time() + 1)
        await pruning.wait()
        async with contexts.turn("c") as context:
            assert context.session is None
            assert context.directory.exists()


async def test_what_is_used_again_after_it_was_found_to_be_old_stays(root, monkeypatch):
    contexts = Contexts(root)
    async with contexts.turn("c") as context:
        await context.remember("s-1")
    monkeypatch.setattr(worker_contexts, "_unused", lambda root, before: [name_of("c")])
    await contexts.prune(time.time() - 60)
    assert (root / "sessions" / name_of("c")).exists()
    assert (root / "contexts" / name_of("c")).exists()


def test_a_directory_is_one_workers(root, tmp_path):
    with pytest.raises(Misconfigured, match="another worker runs in"):
        take(root)


@pytest.mark.parametrize("where", ["file/x", "file"])
def test_a_directory_that_cannot_be_is_told(tmp_path, where):
    (tmp_path / "file").touch()
    with pytest.raises(Misconfigured, match=r"cannot be used: Not a directory; name another one with --root"):
        take(tmp_path / where)


def test_what_a_killed_worker_left_of_tasks_goes(tmp_path):
    os.close(take(tmp_path))
    (tmp_path / "tasks" / "task-x").mkdir()
    (tmp_path / "contexts" / "c").mkdir()
    os.close(take(tmp_path))
    assert list((tmp_path / "tasks").iterdir()) == []
    assert (tmp_path / "contexts" / "c").exists()


@pytest.fixture
def sleeper():
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        yield process
        process.kill()


def test_a_note_of_what_runs_ends_it(root, sleeper):
    notes = Journal(root / "leases")
    notes.note("lease/1")
    notes.note("lease/1", sleeper.pid)
    [note] = Journal(root / "leases").left()
    assert (note.lease_id, note.group) == ("lease/1", sleeper.pid)
    assert journal.end(note)
    assert sleeper.wait(10) == -signal.SIGKILL
    assert not journal.end(note)
    notes.strike("lease/1")
    notes.strike("lease/1")
    assert notes.left() == []


def test_a_number_that_was_given_to_another_process_is_left_alone(sleeper, root):
    notes = Journal(root / "leases")
    notes.note("lease", sleeper.pid)
    [note] = notes.left()
    assert note.started
    boot, ticks = note.started.split()
    for started in (None, f"{boot} {int(ticks) - 1}", f"another-boot {ticks}"):
        assert not journal.end(Note("lease", sleeper.pid, started))
    assert not journal.end(Note("lease"))
    assert is_running(sleeper.pid)


def test_a_note_that_cannot_be_read_is_thrown_away(root):
    Journal(root / "leases").note("lease")
    (root / "leases" / name_of("lease")).rename(root / "leases" / f"{name_of('lease')}.new")
    (root / "leases" / "x").write_bytes(b"{")
    assert Journal(root / "leases").left() == []
    assert list((root / "leases").iterdir()) == []
