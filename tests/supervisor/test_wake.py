"""Waking a service that waits for something to become true outside of the supervisor."""

import trio

from bloomd.errors import Unavailable
from bloomd.supervisor import Service, State, Supervisor


async def test_a_waiting_service_is_tried_at_once_and_one_stopped_by_hand_is_not(nursery, autojump_clock):
    tries = []
    there = False

    async def run(*, task_status):
        tries.append(trio.current_time())
        if not there:
            raise Unavailable("away")
        task_status.started()
        await trio.sleep_forever()

    supervisor = Supervisor([Service("sync", run, configured=lambda: configured)])
    configured = False
    await nursery.start(supervisor.run)
    assert tries == []
    configured = True
    supervisor.wake_service("sync", "settings changed")
    await trio.testing.wait_all_tasks_blocked()
    assert (len(tries), supervisor.state("sync")) == (1, State.WAITING)
    there = True
    supervisor.wake_service("sync", "settings changed")
    await trio.testing.wait_all_tasks_blocked()
    assert (tries, supervisor.state("sync")) == ([0, 0], State.RUNNING)
    await supervisor.stop_service("sync")
    supervisor.wake_service("sync", "settings changed")
    await trio.testing.wait_all_tasks_blocked()
    assert supervisor.state("sync") is State.STOPPED
