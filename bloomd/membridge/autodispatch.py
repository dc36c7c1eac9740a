"""Automatic pushes (`tasks.auto_dispatch`): queued tasks go to workers that have a URL, and nobody calls dispatch.

The leader does it. Each round finds the tasks that some such worker could take now, and pushes them one after the
other, each to the best worker at that moment; what somebody else takes meanwhile is gone, and nobody minds. A round
begins as soon as there may be something new, and after a second at the latest. The pushes themselves are the
dispatcher's (`dispatch.py`), and go on when this ends.
"""

from collections.abc import Callable

import trio

from bloomd.errors import Unavailable
from bloomd.membridge.dispatch import Dispatcher
from bloomd.runtime import pushes
from bloomd.runtime.database import Database
from bloomd.runtime.wakeups import Wakeups

# Should every notification be lost, a task is pushed this late; and so late it is noticed that the setting has changed.
POLL_SECONDS = 1.0

# Between two rounds: what is queued in one go is found in one.
PAUSE_SECONDS = 0.02


class AutoDispatch:
    def __init__(
        self, database: Database, wakeups: Wakeups, dispatcher: Dispatcher, *, enabled: Callable[[], bool]
    ) -> None:
        self._database = database
        self._wakeups = wakeups
        self._dispatcher = dispatcher
        self._enabled = enabled

    async def run(self, epoch: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Push what there is, as the leader of this epoch.

        Raises:
            Unavailable: the database is away, or `tasks.auto_dispatch` is off.
            Misconfigured: agents could not call back.
        """
        task_status.started()
        while True:
            offers = self._wakeups.offers
            self._check()
            if not await self.round(epoch):
                with trio.move_on_after(POLL_SECONDS):
                    await offers.wait()
            await trio.sleep(PAUSE_SECONDS)

    async def stand_by(self) -> None:
        """While another node does it: wait.

        Raises:
            Unavailable: `tasks.auto_dispatch` is off.
        """
        while True:
            self._check()
            await trio.sleep(POLL_SECONDS)

    async def round(self, epoch: int) -> bool:
        """Push what could be pushed now; whether there may be more at once."""
        found = await pushes.pushable(self._database, epoch=epoch)
        pushed = [task_id for task_id in found if await self._dispatcher.push(task_id)]
        return bool(pushed) and len(found) >= pushes.ROUND

    def _check(self) -> None:
        if not self._enabled():
            raise Unavailable("tasks.auto_dispatch is off")
