"""Jumps of the wall's clock, on two clocks that a test sets."""

import trio
from trio.testing import MockClock

from bloomd.supervisor.wallclock import JUMPS_KEPT, LOOK_SECONDS, Jump, WallClock


class Clocks:
    """The wall's, which can be set, and the one that only trio moves."""

    def __init__(self) -> None:
        self.set_by = 1_700_000_000.0

    def wall(self) -> float:
        return self.set_by + trio.current_time()

    def watch(self) -> WallClock:
        return WallClock(wall=self.wall, monotonic=trio.current_time)


async def test_a_clock_that_runs_has_not_jumped(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    clocks = Clocks()
    watch = clocks.watch()
    await nursery.start(watch.run)
    for _ in range(100):
        clocks.set_by += 0.0005 * LOOK_SECONDS  # as fast as NTP may push it
        await trio.sleep(LOOK_SECONDS)
    assert not watch.jumps


async def test_a_jump_is_seen_once_with_its_size(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    clocks = Clocks()
    watch = clocks.watch()
    await nursery.start(watch.run)
    clocks.set_by += 3600
    await trio.sleep(10 * LOOK_SECONDS)
    clocks.set_by -= 60
    await trio.sleep(10 * LOOK_SECONDS)
    assert [round(jump.seconds, 3) for jump in watch.jumps] == [3600, -60]
    assert all(isinstance(jump, Jump) and 0 < clocks.wall() - jump.at < 200 for jump in watch.jumps)


async def test_only_the_latest_are_kept(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    clocks = Clocks()
    watch = clocks.watch()
    await nursery.start(watch.run)
    for number in range(JUMPS_KEPT + 5):
        clocks.set_by += 100 + number
        await trio.sleep(2 * LOOK_SECONDS)
    assert [round(jump.seconds) for jump in watch.jumps] == [105 + number for number in range(JUMPS_KEPT)]
