"""Backups by schedule: when one is due, what is made of it, what is recorded, and which old ones go."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio

from bloomd.backup import making, verifying
from bloomd.backup.archive import BadArchive
from bloomd.backup.schedule import Schedule, following, next_at, previous
from bloomd.errors import Misconfigured, Unavailable
from bloomd.runtime import backups
from bloomd.runtime.backups import DAY_MS, Known
from bloomd.runtime.database import Database
from bloomd.settings import load

HOUR = 3600.0
DAY = 24 * HOUR


@pytest.fixture
def in_kyiv(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Kyiv")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def at(text: str) -> float:
    """In UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def tried(due: float, **changes: Any) -> Known:
    """One that was made at its time, and verified, unless something else is said; the schedule is a year old."""
    ms = int(due * 1000)
    made: dict[str, Any] = {
        "at": "03:30", "since": ms - 365 * DAY_MS, "node": "n", "file": "/b/f", "due_at": ms, "started_at": ms,
        "ended_at": ms + 60_000, "bytes": 5, "missing": 0, "error": None, "verified_from": ms,
    }  # fmt: skip
    return Known(**(made | changes))


def seen(since: float) -> Known:
    """The schedule was set then, and none was tried."""
    nothing = dict.fromkeys(["node", "file", "due_at", "started_at", "ended_at", "bytes", "error", "verified_from"])
    return Known(at="03:30", since=int(since * 1000), missing=0, **nothing)


@pytest.mark.usefixtures("in_kyiv")
def test_the_time_of_the_day_is_that_of_the_machine() -> None:
    now = at("2026-07-01 12:00")
    assert previous("03:30", now) == at("2026-07-01 00:30")
    assert following("03:30", now) == at("2026-07-02 00:30")
    assert previous("23:00", now) == at("2026-06-30 20:00")
    assert previous("15:00", now) == now
    assert following("15:00", now) == now + DAY
    assert previous("03:30", at("2026-12-31 23:00")) == at("2026-12-31 01:30")
    assert following("03:30", at("2026-12-31 23:00")) == at("2027-01-01 01:30")


@pytest.mark.usefixtures("in_kyiv")
def test_when_a_backup_is_due() -> None:
    night, now = at("2026-07-01 00:30"), at("2026-07-01 12:00")
    next_night = night + DAY
    assert next_at("03:30", now, None) == next_night
    assert next_at("03:30", now, seen(now - 60)) == next_night  # the first one waits for its time
    assert next_at("03:30", now, seen(night - 60)) == night  # and is made up for, too
    assert next_at("03:30", now, tried(night)) == next_night
    assert next_at("03:30", next_night, tried(night)) == next_night
    assert next_at("03:30", now, tried(night - DAY)) == night  # missed
    assert next_at("03:30", now, tried(night - 9 * DAY)) == night
    failed = tried(night, bytes=None, ended_at=int((night + 60) * 1000))
    assert next_at("03:30", night + 61, failed) == night + 60 + HOUR
    # Another time was set: it counts from then on.
    changed = tried(night, at="14:00", since=int(now * 1000))
    assert next_at("14:00", now, tried(night)) == next_at("14:00", now, changed) == at("2026-07-01 11:00") + DAY
    assert next_at("15:30", now, tried(night, at="15:30", since=int(now * 1000))) == at("2026-07-01 12:30")
    # A clock was wrong for a while.
    assert next_at("03:30", now, tried(night - DAY, due_at=int((night + 900 * DAY) * 1000))) == night


@contextmanager
def simulated(monkeypatch: pytest.MonkeyPatch, began: float, *, first: Known, fails: int = 0):
    """The service over the hours to come, with a table and a maker of its own: when it made one, by the mock clock."""
    made: list[float] = []
    state: dict[str, Any] = {"known": first, "fails": fails}
    start = trio.current_time()

    def clock() -> float:
        return began + trio.current_time() - start

    async def known(_database: object) -> Known:
        return state["known"]

    async def set_schedule(_database: object, at: str, *, epoch: int) -> None:
        pass

    async def abandon(_database: object, *, epoch: int) -> int:
        return 0

    async def make(_self: Schedule, due: float, _epoch: int) -> None:
        made.append(clock())
        state["fails"] -= 1
        now = int(clock() * 1000)
        state["known"] = tried(due, started_at=now, ended_at=now, bytes=None if state["fails"] >= 0 else 5)

    monkeypatch.setattr(backups, "known", known)
    monkeypatch.setattr(backups, "set_schedule", set_schedule)
    monkeypatch.setattr(backups, "abandon", abandon)
    monkeypatch.setattr(Schedule, "make", make)
    settings = SimpleNamespace(settings=SimpleNamespace(backup=SimpleNamespace(schedule="03:30")))
    yield Schedule(Database(), lambda: settings, node="n", clock=clock), made, settings.settings.backup


@pytest.mark.usefixtures("in_kyiv")
async def test_one_is_made_each_night(monkeypatch, autojump_clock) -> None:
    began = at("2026-07-01 12:00")
    with simulated(monkeypatch, began, first=seen(began)) as (service, made, settings):
        with trio.move_on_after(3 * DAY):
            await service.run(1)
        assert made == [at(f"2026-07-0{day} 00:30") for day in (2, 3, 4)]
        settings.schedule = None  # nothing any more
        with trio.move_on_after(3 * DAY):
            await service.run(1)
        assert len(made) == 3
        settings.schedule = "03:30"  # what was missed meanwhile is made up for at once, by one
        with trio.move_on_after(HOUR):
            await service.run(1)
        assert made[3:] == [began + 6 * DAY]


@pytest.mark.usefixtures("in_kyiv")
@pytest.mark.parametrize("before", ["2026-03-27 12:00", "2026-10-23 12:00"])
async def test_one_is_made_each_night_when_the_clocks_change(monkeypatch, autojump_clock, before) -> None:
    """03:30 is left out in the night to 29 March, and comes twice in that to 25 October."""
    with simulated(monkeypatch, at(before), first=seen(at(before))) as (service, made, _):
        with trio.move_on_after(4 * DAY):
            await service.run(1)
    days = [time.localtime(each).tm_mday for each in made]
    assert days == [int(before[8:10]) + day for day in (1, 2, 3, 4)]
    assert {time.localtime(each)[3:5] for each in made} <= {(3, 30), (2, 30)}


async def test_a_failure_is_tried_again_after_an_hour(monkeypatch, autojump_clock) -> None:
    night = previous("03:30", time.time())
    with simulated(monkeypatch, night - 60, first=tried(night - DAY), fails=2) as (service, made, _):
        with trio.move_on_after(DAY - HOUR):
            await service.run(1)
    assert [round(each - night) for each in made] == [0, 3600, 7200]


# What it makes: on a real database.


@pytest.fixture
async def epoch(db, sql) -> int:
    """That of the leader, who knows the schedule."""
    sql("INSERT INTO leaders VALUES ('leader', 'the-test', 'test', 1, 0, 253402300799000)")
    await backups.set_schedule(db, "03:30", epoch=1)
    return 1


@pytest.fixture
def unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is made is taken for good, which is quicker."""

    async def verify(_file: Path) -> None:
        pass

    monkeypatch.setattr(verifying, "verify", verify)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "backups"


@pytest.fixture
def service(db, conninfo, directory, tmp_path) -> Schedule:
    file = tmp_path / "bloomd.yaml"
    file.write_text(
        f"database: {{url: '{conninfo}'}}\nbackup: {{schedule: '03:30', directory: {directory}, keep: 2}}\n"
    )
    clock = iter(range(1_780_000_000, 1_790_000_000, 60))
    return Schedule(db, lambda: load(file, environ={}), node="node-7", clock=lambda: float(next(clock)))


async def test_it_is_made_verified_and_recorded_and_old_ones_go(db, sql, epoch, service, directory) -> None:
    for night in range(3):
        await service.make(1_000_000.0 + night, epoch)
        if not night:
            # Of somebody else, who has the same directory.
            others = {directory / "bloomd-20200101-0000.tar", directory / "bloomd-20200101-0330.tar.part"}
            for other in others:
                other.write_text("somebody else's")
    latest = await backups.known(db)
    assert latest
    assert (latest.node, latest.error, latest.missing, latest.due_at) == ("node-7", None, 0, 1_000_002_000)
    assert latest.verified_from == latest.started_at
    ours = sorted(set(directory.iterdir()) - others)
    assert [str(file) for file in ours] == [file for (file,) in sql("SELECT file FROM backups ORDER BY file")[1:]]
    assert len(ours) == 2
    assert all(other.exists() for other in others)
    file = ours[-1]
    assert file.stat().st_size == latest.bytes
    assert oct(directory.stat().st_mode)[-3:] == "700"
    trail = sql("SELECT action, actor, detail FROM audit_logs ORDER BY timestamp DESC LIMIT 1")
    assert trail == [("backup.made", "bloomd", f"node-7:{file}, {latest.bytes} bytes")]
    archive = await verifying.verify(file)
    assert [Path(name).name for name in archive.manifest.configuration.values()] == ["bloomd.yaml"]


@pytest.mark.usefixtures("unproven")
async def test_the_last_that_lacked_nothing_is_kept_while_newer_ones_do(db, epoch, service, directory, monkeypatch):
    real, missing = making.back_up, [0, 0, 3, 3, 3, 3]

    async def back_up(*args: Any, **kwargs: Any) -> Any:
        manifest = await real(*args, **kwargs)
        return msgspec.structs.replace(manifest, missing={str(url): "gone" for url in range(missing.pop(0))})

    monkeypatch.setattr(making, "back_up", back_up)
    made = []
    while missing:
        await service.make(float(len(missing)), epoch)
        latest = await backups.known(db)
        assert latest
        made.append(latest.file)
    assert sorted(map(str, directory.iterdir())) == [made[1], made[4], made[5]]
    assert latest.concern(latest.ended_at, warn_after_days=2) == (
        "the latest backup lacks 3 objects, or has them damaged: its manifest.json names them"
    )


@pytest.mark.usefixtures("unproven")
async def test_what_a_killed_one_left_goes_at_the_next(db, sql, epoch, service, directory) -> None:
    await service.make(1.0, epoch)
    left = directory / "bloomd-20260101-0330.tar.part"
    left.write_text("half")
    assert await backups.begin(db, node="n", file=str(left)[:-5], due_at=1, epoch=epoch)
    await backups.abandon(db, epoch=epoch)
    await service.make(2.0, epoch)
    assert not left.exists()
    assert len(list(directory.iterdir())) == 2


@pytest.mark.usefixtures("unproven")
async def test_one_that_cannot_be_made_leaves_the_others(db, sql, epoch, service, directory, monkeypatch) -> None:
    await service.make(1.0, epoch)
    [first] = directory.iterdir()

    async def full(*_args: object, **_kwargs: object) -> None:
        raise Unavailable("no space left on device")

    monkeypatch.setattr(making, "back_up", full)
    await service.make(2.0, epoch)
    latest = await backups.known(db)
    assert latest
    assert (latest.bytes, latest.error) == (None, "no space left on device")
    assert latest.ended_at
    assert list(directory.iterdir()) == [first]
    assert sql("SELECT action FROM audit_logs ORDER BY timestamp DESC LIMIT 1") == [("backup.failed",)]
    assert latest.concern(latest.ended_at, warn_after_days=2) == "the latest backup failed: no space left on device"


@pytest.mark.parametrize("error", [BadArchive("it is bad"), Unavailable("the server broke")])
@pytest.mark.usefixtures("unproven")
async def test_one_that_is_not_what_it_should_be_is_set_aside(
    db, epoch, service, directory, monkeypatch, error
) -> None:
    for night in range(2):
        await service.make(float(night), epoch)
    before = set(directory.iterdir())

    async def refuse(_file: Path) -> None:
        raise error

    monkeypatch.setattr(verifying, "verify", refuse)
    for night in range(2):
        await service.make(3.0 + night, epoch)
        latest = await backups.known(db)
        assert latest
        assert (latest.failed, latest.error) == (True, str(error))
        assert set(directory.iterdir()) - before == {Path(f"{latest.file}.unverified")}
    assert before < set(directory.iterdir())


async def test_one_that_cannot_be_verified_here_is_kept_with_a_warning(
    db, epoch, service, directory, monkeypatch
) -> None:
    async def refuse(_file: Path) -> None:
        raise Misconfigured("there is no server here")

    monkeypatch.setattr(verifying, "verify", refuse)
    for night in range(3):
        await service.make(float(night), epoch)
    latest = await backups.known(db)
    assert latest
    assert (latest.failed, latest.verified_from) == (False, None)
    assert latest.concern(latest.ended_at, warn_after_days=2) == (
        "the latest backup is not verified: there is no server here"
    )
    assert len(list(directory.iterdir())) == 2


async def test_who_is_stopped_says_so_and_leaves_nothing(db, sql, epoch, service, directory, monkeypatch) -> None:
    async def long(*_args: object, **_kwargs: object) -> None:
        stopped.cancel()
        await trio.sleep_forever()

    monkeypatch.setattr(making, "back_up", long)
    with trio.CancelScope() as stopped:
        await service.make(1.0, epoch)
    assert stopped.cancelled_caught
    assert sql("SELECT error, ended_at IS NULL FROM backups") == [("it was stopped", False)]


@pytest.mark.usefixtures("unproven")
async def test_what_a_killed_verification_left_goes_after_a_day(db, epoch, service, directory) -> None:
    for name, hours in ((".bloomd-verify-old", 25), (".bloomd-verify-young", 1)):
        (directory / name / "postgres").mkdir(parents=True)
        os.utime(directory / name, times=(time.time() - hours * HOUR,) * 2)
    await service.make(1.0, epoch)
    assert [each.name for each in directory.glob(".*")] == [".bloomd-verify-young"]


async def test_a_directory_that_is_not_ours_is_named_with_what_helps(db, epoch, service, directory) -> None:
    directory.write_text("a file")
    await service.make(1.0, epoch)
    latest = await backups.known(db)
    assert latest
    assert latest.error
    assert latest.error.startswith(f"backup.directory {directory}: ")
    assert f"install -d -m 700 -o root {directory}" in latest.error


async def test_who_does_not_lead_makes_none(db, sql, epoch, service, directory) -> None:
    await service.make(1.0, epoch + 1)
    assert sql("SELECT count(*) FROM backups") == [(0,)]
    assert not directory.exists()


async def test_what_a_killed_one_left_is_a_failure(db, sql, epoch) -> None:
    assert await backups.begin(db, node="n", file="/f", due_at=1, epoch=epoch)
    assert await backups.abandon(db, epoch=epoch + 1) == 0
    assert await backups.abandon(db, epoch=epoch) == 1
    latest = await backups.known(db)
    assert latest
    assert latest.ended_at
    assert "was not finished" in (latest.error or "")
    assert sql("SELECT action, entity_type FROM audit_logs") == [("backup.failed", "backup")]
    sql("UPDATE backups SET started_at = started_at - %s", backups.KEPT_MS + 1)
    assert await backups.begin(db, node="n", file="/g", due_at=2, epoch=epoch)
    assert sql("SELECT file FROM backups") == [("/g",)]


async def test_the_schedule_counts_from_when_it_was_set(db, sql, epoch) -> None:
    sql("DELETE FROM backup_schedule")
    assert await backups.known(db) is None
    await backups.set_schedule(db, "03:30", epoch=epoch + 1)
    assert await backups.known(db) is None
    await backups.set_schedule(db, "03:30", epoch=epoch)
    sql("UPDATE backup_schedule SET since = since - 5000")
    first = await backups.known(db)
    await backups.set_schedule(db, "03:30", epoch=epoch)
    assert await backups.known(db) == first
    await backups.set_schedule(db, "04:30", epoch=epoch)
    changed = await backups.known(db)
    assert first
    assert changed
    assert (changed.at, changed.since > first.since) == ("04:30", True)


@pytest.mark.usefixtures("unproven")
async def test_what_is_dated_far_into_the_future_counts_for_nothing(db, sql, epoch, service) -> None:
    for _ in range(2):
        await service.make(1.0, epoch)
    good = await backups.known(db)
    sql("INSERT INTO backups SELECT 'x', 'x', 'x', due_at, started_at + 99999999999, 1, 1, 0, 1 FROM backups LIMIT 1")
    assert await backups.known(db) == good


def test_what_an_operator_should_know() -> None:
    good = tried(1_000_000.0)
    assert good.started_at
    now = good.started_at + DAY_MS

    def concern(**changes: Any) -> str | None:
        return msgspec.structs.replace(good, **changes).concern(now, warn_after_days=2)

    assert concern() is None
    assert good.concern(now + 3 * DAY_MS, warn_after_days=2) == "the last verified backup is 4.0 days old"
    assert concern(ended_at=None, bytes=None) is None
    assert concern(bytes=None, error="x") == "the latest backup failed: x"
    assert concern(error="no server") == "the latest backup is not verified: no server"
    assert concern(missing=2) == "the latest backup lacks 2 objects, or has them damaged: its manifest.json names them"
    # None was ever verified: it counts from when the schedule was set.
    assert seen(now / 1000 - DAY).concern(now, warn_after_days=2) is None
    assert seen(now / 1000 - 3 * DAY).concern(now, warn_after_days=2) == "no backup was verified for 3.0 days"
    assert concern(verified_from=None, bytes=None, error="x") == "no backup was verified for 366.0 days: x"
