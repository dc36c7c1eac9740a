"""The lag of the event loop, measured on a clock that a test can push forward under everybody's feet."""

import time

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from bloomd.supervisor import LoopLag
from bloomd.supervisor.looplag import PROBE_INTERVAL, WINDOW_SECONDS


async def test_an_idle_loop_does_not_lag(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    lag = LoopLag()
    assert (lag.now, lag.worst) == (0, 0)
    await nursery.start(lag.run)
    await trio.sleep(10)
    assert (lag.now, lag.worst) == (0, 0)


async def test_a_stall_shows_for_a_minute(mock_clock: MockClock, nursery: trio.Nursery) -> None:
    lag = LoopLag()
    await nursery.start(lag.run)
    await wait_all_tasks_blocked()
    mock_clock.jump(3 + PROBE_INTERVAL)
    await wait_all_tasks_blocked()
    assert lag.now == lag.worst == pytest.approx(3)
    mock_clock.autojump_threshold = 0
    await trio.sleep(WINDOW_SECONDS - 1)
    assert lag.now == pytest.approx(0)
    assert lag.worst == pytest.approx(3)
    await trio.sleep(2)
    assert lag.worst == pytest.approx(0)


async def test_a_blocking_call_is_noticed_on_the_real_clock(nursery: trio.Nursery) -> None:
    lag = LoopLag()
    await nursery.start(lag.run)
    await wait_all_tasks_blocked()
    for _ in range(20):  # a busy machine may let the call fall between two samples
        await trio.sleep(PROBE_INTERVAL - 0.01)
        time.sleep(0.045)  # noqa: ASYNC251 - to block the loop is the point
        await trio.sleep(0.001)
        if lag.worst >= 0.03:
            break
    assert lag.worst >= 0.03
