"""Leader election: which of all nodes sweeps, mirrors and prunes.

The database is authoritative: one row says who leads, in which epoch, and until when. Every node asks for it with one
and the same statement (`CAMPAIGN`). It renews the time of the leader that still has some and trusts itself; once that
time is over, it gives the row to whoever comes first, with the next epoch::

                          campaign won
          following ─────────────────────▶ leading ──┐
              ▲                             │   ▲    │ renewed
              │     the row is another's    │   └────┘
              ├─────────────────────────────┤
              │     not renewed in time     │
              ├─────────────────────────────┤
              │     stopped: it resigns     │
              └─────────────────────────────┘

A node never knows that it leads, only until when nobody else can::

    trusted until = attempt started + TTL − safety margin

- From the start of the attempt, by the node's own monotonic clock: the database counts from the moment at which it ran
  the statement, which is later by an unknown time. However long an answer takes, it never grants too much.
- Less a margin: two clocks never run equally fast, and work that is cancelled takes a moment to end. It shall have
  ended before the next leader begins.

What the leader does runs inside cancel scopes with this deadline, which each renewal moves on. It therefore ends by
itself, whatever hangs: the network, the database, the renewal. What then is still under way in the database, or comes
from a process that was frozen and does not know it yet, is refused there: each statement of the leader names its epoch,
and `bloom_leads` is one of its conditions. Trust that has ended does not return: the next one is of another epoch, also
when nobody else wanted it. So a node that the database hears, but that does not hear the database, holds nobody up.

- A leader that is killed, frozen or cut off is replaced after TTL + `campaign` seconds at the latest; one that stops in
  order gives the row back, and is replaced at the next campaign.
- The clock of the database is set forward: the row is expired at once. The leader's statements do nothing until it has
  campaigned anew, and so has everybody else.
- It is set back: an end further away than TTL is impossible, so such a row is as good as expired. Otherwise a leader
  that died before would lead for as long as the clock was set back.
- The database is away: nobody leads, and nobody has to.
"""

import math
import random
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import msgspec
import structlog
import trio

from bloomd.errors import Misconfigured, Unavailable
from bloomd.runtime.database import Database
from bloomd.runtime.ids import new_id
from bloomd.supervisor import Run

log = structlog.stdlib.get_logger(__name__)

# Renews the time of the epoch in which this node leads, or takes the row when its time is over; who leads then, as far
# as this statement can see. A node that can do neither writes nothing. The clock is read again once the row is locked:
# whoever held the lock has moved the row's end on, and by the time before the wait it would look impossible.
CAMPAIGN = """
WITH clock AS MATERIALIZED (
    SELECT bloom_now_ms() AS now_ms
), won AS (
    INSERT INTO leaders (role, holder, node, epoch, since, expires_at)
    SELECT 'leader', %(holder)s::varchar, %(node)s, 1, now_ms, now_ms + %(ttl_ms)s::bigint
      FROM clock
     WHERE NOT EXISTS (SELECT
                         FROM leaders
                        WHERE role = 'leader' AND (holder, epoch) IS DISTINCT FROM (%(holder)s, %(epoch)s::bigint)
                          AND expires_at > now_ms AND expires_at <= now_ms + %(ttl_ms)s)
        ON CONFLICT (role) DO UPDATE
       SET holder     = excluded.holder,
           node       = excluded.node,
           expires_at = excluded.expires_at,
           epoch      = CASE WHEN (leaders.holder, leaders.epoch) = (%(holder)s, %(epoch)s)
                                  AND leaders.expires_at > excluded.since
                             THEN leaders.epoch ELSE leaders.epoch + 1 END,
           since      = CASE WHEN (leaders.holder, leaders.epoch) = (%(holder)s, %(epoch)s)
                                  AND leaders.expires_at > excluded.since
                             THEN leaders.since ELSE excluded.since END
     WHERE (leaders.holder, leaders.epoch) = (%(holder)s, %(epoch)s)
        OR leaders.expires_at <= bloom_now_ms()
        OR leaders.expires_at > bloom_now_ms() + %(ttl_ms)s
    RETURNING node, epoch, since, since = expires_at - %(ttl_ms)s AS elected
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), since, 'leader.elected', 'node', node, node, 'epoch ' || epoch
      FROM won
     WHERE elected
)
SELECT node, epoch, since, true AS here, elected
  FROM won
 UNION ALL
SELECT node, epoch, since, false, false
  FROM leaders, clock
 WHERE role = 'leader' AND holder <> %(holder)s AND expires_at > now_ms AND NOT EXISTS (SELECT FROM won)
"""

# Gives the row back, so that another node need not wait for its end.
RESIGN = """
WITH resigned AS (
    UPDATE leaders
       SET expires_at = bloom_now_ms()
     WHERE role = 'leader' AND holder = %(holder)s AND expires_at > bloom_now_ms()
    RETURNING node, epoch
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'leader.resigned', 'node', node, node, 'epoch ' || epoch
      FROM resigned
)
SELECT epoch FROM resigned
"""


class Timing(msgspec.Struct, frozen=True):
    """The times of an election, in seconds. All nodes of one database have to agree on `ttl`."""

    ttl: float = 6.0
    """How long a leader leads without another word; with `campaign`, how long an outage of it lasts at most."""
    margin: float = 1.0
    """How long before that it stops to trust itself."""
    renew: float = 2.0
    """Between two renewals: within what is trusted there is time for one that fails and for another one."""
    campaign: float = 1.0
    """Between two campaigns of a node that follows, at most; up to 30 % less by chance, so that nodes come apart."""
    attempt: float = 1.5
    """How long a campaign may take; then it is better to try again on another connection."""


class Leader(msgspec.Struct, frozen=True):
    """Who leads."""

    node: str
    epoch: int
    since: int
    """When this epoch began, in epoch milliseconds."""
    here: bool
    """Whether it is this very process."""


class _Seen(Leader, frozen=True):
    """What a campaign has found out."""

    elected: bool = False


class _Resigned(msgspec.Struct, frozen=True):
    epoch: int


class Work(Protocol):
    """What only the leader does, in a given epoch: a service's `run` with a `Leader`'s epoch."""

    def __call__(self, epoch: int, /, *, task_status: trio.TaskStatus[Any]) -> Awaitable[None]: ...


class Leadership:
    """One node's part in the election. `run` takes part; everything else may be asked whether it does or not."""

    def __init__(self, database: Database, node: str, *, timing: Timing | None = None) -> None:
        self._database = database
        self._node = node
        self._timing = timing or Timing()
        self._holder = new_id()
        self._seen: Leader | None = None
        self._seen_until = -math.inf
        self._scopes: set[trio.CancelScope] = set()
        self._granted = trio.Event()

    def __repr__(self) -> str:
        leader = self.leader
        if leader is None:
            return f"<Leadership of {self._node}: nobody is known to lead>"
        return f"<Leadership of {self._node}: {'it' if leader.here else leader.node} leads, epoch {leader.epoch}>"

    @property
    def leader(self) -> Leader | None:
        """Who leads; None when nobody is known to, or what is known is too old."""
        return self._seen if trio.current_time() < self._seen_until else None

    def epoch(self) -> int:
        """The epoch in which this node leads.

        Raises:
            Unavailable: it does not; the text names the node that does.
        """
        leader = self.leader
        if leader is None:
            raise Unavailable("no node is known to lead at the moment; try again in some seconds")
        if not leader.here:
            raise Unavailable(f"this is for the leader to do, which is the node {leader.node}; ask bloomd there")
        return leader.epoch

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled, and then resign. Started once it is known whether this node leads.

        Raises:
            Unavailable: the database is away. A leader goes on for as long as it was granted.
        """
        try:
            await self._campaign()
            task_status.started()
            while True:
                await trio.sleep(self._pause())
                await self._campaign()
        except trio.Cancelled:
            await self._resign()
            raise

    def only(self, work: Work, *, meanwhile: Callable[[], Awaitable[None]] = trio.sleep_forever) -> Run:
        """The `run` of a service that does this work while this node leads, and stands by while it does not.

        It has started when the work has, or as soon as it stands by; the supervisor does not mind hearing it for each
        epoch again. An error of the work is one of the service.

        Args:
            work: cancelled when the leadership ends, and called again with the next epoch.
            meanwhile: runs while the service stands by, and may end it with an error.
        """

        async def run(*, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
            while True:
                leader = self.leader
                if leader is None or not leader.here:
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED
                    await self._stand_by(meanwhile)
                    continue
                with self._trusted() as scope:
                    await work(leader.epoch, task_status=task_status)
                if not scope.cancel_called:
                    return

        return run

    @contextmanager
    def _trusted(self) -> Generator[trio.CancelScope]:
        """A scope that ends when this node can no longer be sure that it leads."""
        scope = trio.CancelScope(deadline=self._seen_until)
        self._scopes.add(scope)
        try:
            with scope:
                yield scope
        finally:
            self._scopes.discard(scope)

    async def _stand_by(self, meanwhile: Callable[[], Awaitable[None]]) -> None:
        """Return when the leadership was granted to this node."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(meanwhile)
            await self._granted.wait()
            nursery.cancel_scope.cancel()

    async def _campaign(self) -> None:
        started, leader = trio.current_time(), self.leader
        with trio.move_on_after(self._timing.attempt) as patience:
            found = await self._database.rows(
                _Seen,
                CAMPAIGN,
                holder=self._holder,
                node=self._node,
                epoch=leader.epoch if leader and leader.here else None,
                ttl_ms=int(self._timing.ttl * 1000),
            )
            self._take(found[0] if found else None, started)
        if patience.cancelled_caught:
            self._database.doubted.set()
            raise Unavailable(f"PostgreSQL has not answered for {self._timing.attempt:g} s")

    def _take(self, seen: _Seen | None, started: float) -> None:
        """Act on the outcome of a campaign that began at `started`."""
        before, self._seen = self._seen, seen
        here = seen is not None and seen.here
        news = seen is not None and (before is None or before.epoch != seen.epoch)
        self._seen_until = started + self._timing.ttl - (self._timing.margin if here else 0.0)
        if here and not news:
            for scope in self._scopes:
                scope.deadline = self._seen_until
        else:
            self._end()
        if seen and seen.elected:
            self._database.on_change()
        if seen and news:
            log.info("this node leads" if here else "another node leads", node=seen.node, epoch=seen.epoch)
        if here:
            self._granted.set()
            self._granted = trio.Event()

    def _end(self) -> None:
        """End all work of the leader."""
        for scope in self._scopes:
            scope.cancel()

    async def _resign(self) -> None:
        self._seen = None
        self._end()
        # Also when it does not know to lead: an answer may have been on its way. Unasked for, the others would wait.
        with trio.move_on_after(self._timing.attempt, shield=True), suppress(Unavailable, Misconfigured):
            await self._database.change(_Resigned, RESIGN, holder=self._holder)

    def _pause(self) -> float:
        leader = self.leader
        if leader and leader.here:
            return self._timing.renew
        return self._timing.campaign * (1 - 0.3 * random.random())
