"""Services that are started, watched, restarted and stopped: the tree that a daemon is made of.

A *service* is an `async def run(*, task_status)` with a name. The supervisor runs each in a task of its own and owns
everything about its life; a service only serves, says `task_status.started()` once it is really usable, and raises when
it cannot go on::

                needs are running        started()        stop, restart, shutdown
      waiting ───────────────▶ starting ───────────▶ running ───────────▶ stopping ───▶ stopped
                                 ▲  │                  │
                                 │  └────────┬─────────┘
                                 │           │ it raises, or returns
                                 │           ├── Unavailable ──▶ waiting ──┐
                                 │           ├── a bug ────────▶ backoff ──┤
                                 ├───────────┼─── after a delay ───────────┘
                                 │           └── Misconfigured, or the 6th bug within 60 s ──▶ failed ──┐
                                 └────────────── a person or a reload says so ────────────────────────┘

Three kinds of trouble, told apart by exception type (`bloomd.errors`), also inside an exception group:

- `Unavailable`: a dependency is away. Not the service's fault: it is tried again for ever, with capped, jittered
  backoff, and costs no restart budget.
- `Misconfigured`: trying again cannot help, a person must change something. The service has failed at once.
- everything else, and returning unasked: a bug. Logged with its traceback and restarted after 0.1 s, doubling to 5 s,
  at most five times within a minute; then the service has failed.

What holds at any time:

- Services start in the order in which they are given, each after the one before has started, has said why it cannot
  yet, or has been starting for longer than is decent. They stop in reverse, after those that are marked `stops_first`.
  A stop is a cancellation, except for a service that can be asked to finish (`ask_to_stop`), which is cancelled only
  when it takes longer than its `stop_seconds`, or when the operator is in a hurry.
- `needs` gate a start and nothing else: when a needed service goes away later, those that need it stay up, and decide
  themselves what that means. This way a short outage of one service is not an outage of all.
- Nothing that happens in one service ends another. The one exception is a service marked `essential` that fails for
  good: its supervisor then stops everything in order and raises `EssentialServiceFailed`. At the root this ends the
  daemon, so that the init system starts afresh; a group has thereby failed as a service of the supervisor above it.
- A supervisor's `run` is itself a service: trees nest, and names are paths (`probes/minio`).
- What a person stops stays stopped, through reloads as well, until a person starts it.
- A service lives at most once at a time, and whoever waits for a change (a stop, a restart) may go away meanwhile:
  what was asked for still happens. From the moment that its turn at shutdown has come, nothing starts a service again.

Who does what: `trouble.py` decides (how bad is it, when to try again), `keeper.py` lives one service's life, and
`supervisor.py` keeps the order and takes the orders. All state is kept in plain values (`ServiceStatus`, `Change`),
which status, metrics and logs are made from.
"""

from bloomd.supervisor.backoff import Backoff
from bloomd.supervisor.looplag import LoopLag
from bloomd.supervisor.service import Change, Run, Service, ServiceStatus, State
from bloomd.supervisor.supervisor import Supervisor, UnknownService
from bloomd.supervisor.trouble import EssentialServiceFailed
from bloomd.supervisor.wallclock import WallClock

__all__ = [
    "Backoff",
    "Change",
    "EssentialServiceFailed",
    "LoopLag",
    "Run",
    "Service",
    "ServiceStatus",
    "State",
    "Supervisor",
    "UnknownService",
    "WallClock",
]
