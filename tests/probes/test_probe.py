"""The loop and the state of a probe, on the mock clock."""

import threading
from collections import deque

import pytest
import trio
from trio.testing import MockClock

from bloomd.errors import Misconfigured, Unavailable
from bloomd.probes import Probe, ProbeStatus
from bloomd.probes.probe import ROUNDS_KEPT, percentile
from bloomd.settings.model import Probes

SETTINGS = Probes(interval=10.0, timeout=3.0, fall=2, rise=2)


class Dependency:
    """Is well or not, fast or slow, as a test says."""

    def __init__(self) -> None:
        self.trouble: Exception | None = None
        self.seconds = 0.1
        self.configured = True
        self.checks: list[float] = []
        self.settings = SETTINGS
        self.changes: list[ProbeStatus] = []

    def probe(self) -> Probe:
        return Probe(
            "dependency",
            lambda: self.check() if self.configured else None,
            lambda: self.settings,
            observe=self.changes.append,
            wall_clock=lambda: 1_700_000_000.0 + trio.current_time(),
        )

    async def check(self) -> None:
        self.checks.append(trio.current_time())
        await trio.sleep(self.seconds)
        if self.trouble:
            raise self.trouble


@pytest.fixture
def dependency() -> Dependency:
    return Dependency()


async def test_checks_at_once_and_every_interval(autojump_clock: MockClock, dependency: Dependency) -> None:
    dependency.settings = Probes(interval=10.0, timeout=3.0, rise=1)
    dependency.seconds = 2.0
    with trio.move_on_after(35):
        await dependency.probe().run()
    assert dependency.checks == [0.0, 10.0, 20.0, 30.0]


async def test_checks_every_second_until_something_is_known(autojump_clock: MockClock, dependency: Dependency) -> None:
    dependency.settings = Probes(interval=10.0, timeout=3.0, fall=3, rise=1)
    dependency.trouble = Unavailable("not there yet")
    with trio.move_on_after(25):
        await dependency.probe().run()
    assert dependency.checks == [0.0, 1.0, 2.0, 12.0, 22.0]
    assert [change.state for change in dependency.changes] == ["down"]


async def test_started_before_anything_has_answered(
    autojump_clock: MockClock, dependency: Dependency, nursery: trio.Nursery
) -> None:
    dependency.seconds = 2.0
    await nursery.start(dependency.probe().run)
    assert trio.current_time() == 0.0


async def test_the_thresholds(autojump_clock: MockClock, dependency: Dependency) -> None:
    probe = dependency.probe()
    states: list[str] = [probe.status.state]
    for well in (True, True, False, True, False, False, True, False, True, True):
        dependency.trouble = None if well else Unavailable("away")
        states.append((await probe.now()).state)
    assert states == ["unknown", "unknown", "up", "up", "up", "up", "down", "down", "down", "down", "up"]
    assert [change.state for change in dependency.changes] == ["up", "down", "up"]


async def test_what_is_known(autojump_clock: MockClock, dependency: Dependency) -> None:
    probe = dependency.probe()
    assert probe.status == ProbeStatus("dependency")
    await probe.now()
    await probe.now()
    well = ProbeStatus("dependency", "up", last_ok=1_700_000_000.2, p50_ms=100.0, p99_ms=100.0)
    assert probe.status == well
    dependency.trouble = Misconfigured("wrong key\nand more")
    for failures in (1, 2, 3):
        status = await probe.now()
        assert (status.failures, status.error) == (failures, "wrong key")
        assert (status.last_ok, status.p50_ms) == (well.last_ok, well.p50_ms)
    dependency.trouble = None
    status = await probe.now()
    assert (status.state, status.failures, status.error) == ("down", 0, None)


async def test_its_latest_rounds(autojump_clock: MockClock, dependency: Dependency) -> None:
    probe = dependency.probe()
    await probe.now()
    dependency.trouble = Unavailable("away")
    await probe.now()
    assert [(each.at, each.ms) for each in probe.history] == [(1_700_000_000.1, 100.0), (1_700_000_000.2, None)]
    for _ in range(ROUNDS_KEPT):
        await probe.now()
    assert [each.ms for each in probe.history] == [None] * ROUNDS_KEPT
    dependency.configured = False
    await probe.now()
    assert not probe.history


async def test_a_hanging_check_ends_in_time(autojump_clock: MockClock, dependency: Dependency) -> None:
    probe = dependency.probe()
    dependency.seconds = 1000.0
    status = await probe.now()
    assert trio.current_time() == 3.0
    assert (status.failures, status.error) == (1, "no answer within 3 s")


async def test_a_hanging_thread_holds_up_nothing() -> None:
    stuck = threading.Event()

    async def check() -> None:
        await trio.to_thread.run_sync(stuck.wait, abandon_on_cancel=True)

    probe = Probe("stuck", check, lambda: Probes(timeout=0.05, fall=1))
    try:
        with trio.fail_after(2):
            assert (await probe.now()).state == "down"
    finally:
        stuck.set()


async def test_a_hanging_probe_delays_no_other(
    autojump_clock: MockClock, dependency: Dependency, nursery: trio.Nursery
) -> None:
    hanging = Dependency()
    hanging.seconds = 1000.0
    nursery.start_soon(hanging.probe().run)
    await nursery.start(dependency.probe().run)
    await trio.sleep(25)
    assert dependency.checks == [0.0, 1.0, 11.0, 21.0]
    assert dependency.changes[0].state == "up"


async def test_one_check_at_a_time(autojump_clock: MockClock, dependency: Dependency, nursery: trio.Nursery) -> None:
    probe = dependency.probe()
    statuses: list[ProbeStatus] = []

    async def now() -> None:
        statuses.append(await probe.now())

    async with trio.open_nursery() as askers:
        for _ in range(5):
            askers.start_soon(now)
    assert dependency.checks == [0.0]
    assert len(set(statuses)) == 1


async def test_one_who_joined_a_check_that_was_given_up_makes_another(
    autojump_clock: MockClock, dependency: Dependency
) -> None:
    probe = dependency.probe()
    dependency.seconds = 2.0
    async with trio.open_nursery() as nursery:

        async def impatient() -> None:
            with trio.move_on_after(1.0):
                await probe.now()

        nursery.start_soon(impatient)
        await trio.sleep(0.5)
        assert (await probe.now()).last_ok == 1_700_000_003.0
    assert dependency.checks == [0.0, 1.0]


async def test_not_configured(autojump_clock: MockClock, dependency: Dependency) -> None:
    probe = dependency.probe()
    await probe.now()
    await probe.now()
    dependency.configured = False
    assert await probe.now() == ProbeStatus("dependency", "disabled")
    assert len(dependency.checks) == 2
    dependency.configured = True
    assert (await probe.now()).state == "unknown"
    assert (await probe.now()).state == "up"
    assert [change.state for change in dependency.changes] == ["up", "disabled", "unknown", "up"]


async def test_settings_count_from_the_next_check(
    autojump_clock: MockClock, dependency: Dependency, nursery: trio.Nursery
) -> None:
    probe = dependency.probe()
    await nursery.start(probe.run)
    await trio.sleep(5)
    dependency.settings = Probes(interval=1.0, timeout=0.05, fall=1)
    await trio.sleep(6.5)
    assert dependency.checks == [0.0, 1.0, 11.0]
    assert probe.status.error == "no answer within 0.05 s"
    assert probe.status.state == "down"


async def test_a_bug_is_not_taken_for_an_outage(autojump_clock: MockClock, dependency: Dependency) -> None:
    dependency.trouble = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await dependency.probe().run()


async def test_percentiles_are_of_the_last_hundred(autojump_clock: MockClock, dependency: Dependency) -> None:
    probe = dependency.probe()
    dependency.seconds = 2.0
    await probe.now()
    for milliseconds in range(1, 101):
        dependency.seconds = milliseconds / 1000
        await probe.now()
    assert (probe.status.p50_ms, probe.status.p99_ms) == (pytest.approx(50), pytest.approx(99))


@pytest.mark.parametrize(
    ("values", "p50", "p99"), [([7], 7, 7), ([1, 2], 1, 2), ([3, 1, 2], 2, 3), (list(range(1, 101)), 50, 99)]
)
def test_percentile(values: list[float], p50: float, p99: float) -> None:
    assert (percentile(deque(values), 50), percentile(deque(values), 99)) == (p50, p99)
