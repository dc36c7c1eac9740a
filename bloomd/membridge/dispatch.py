"""The service that pushes tasks to the agents of workers (contract, section 6), and owns every push that is open.

::

    dispatch() ──▶ leased ──▶ POST {worker}/execute-task ┬▶ ok        the attempt is completed, unless it is already
                                    │                    ├▶ not ok    a failed attempt, unless it is completed already
        by the agent, meanwhile:    │                    ├▶ no call   no attempt, and the worker's account (`pushes.py`)
        heartbeat and completion ◀──┘                    ├▶ 503       no attempt
        at {runtime_url}                                 └▶ else      a failed attempt

A push belongs to this service, not to who asked for it: it goes on when that one has gone. While it is open its lease
is renewed, and when the lease ends before the call does, the call is given up: the task was cancelled, given back or
took too long, and nobody wants to know any more; or it was completed by the agent's callback, whose own answer is then
waited for a moment longer.

When the daemon stops, in whatever way, an open push is dropped and its lease left alone: the agent works on, and its
callback counts for as long as the lease does.

What is sent, and what an answer means, is told in `execution.py`. The agent key is in one header of one call
(`calls.py`), and in no sentence.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import httpx
import msgspec
import structlog
import trio

from bloomd.errors import Misconfigured, Unavailable, one_line
from bloomd.membridge.calls import NotReached, call
from bloomd.membridge.execution import (
    Execution,
    Failure,
    Said,
    callback_port,
    completion_of,
    execution_of,
    judged,
    task_of,
)
from bloomd.membridge.networks import local_address
from bloomd.runtime import completion, pushes, releases, tasks
from bloomd.runtime.claims import GRACE_SECONDS
from bloomd.runtime.completion import Completed
from bloomd.runtime.database import Database
from bloomd.runtime.leases import Leased, Wanted
from bloomd.runtime.model import Completion, Lease, Retry, Task, TaskStatus, Worker
from bloomd.runtime.refusals import LeaseLost, NotFound, Refusal, TaskCancelled
from bloomd.runtime.releases import Release
from bloomd.runtime.wakeups import Wakeups

log = structlog.stdlib.get_logger(__name__)

Answer = TypeVar("Answer")

# In the audit trail, for what is found out about a push and nobody has asked for.
ACTOR = "bloomd"

# How long the agent's answer is waited for when its completion has come: it follows within milliseconds, or never.
ANSWER_SECONDS = 5.0

# While the daemon starts, the API and the database are there a moment before this service.
START_SECONDS = 5.0

# So much earlier than its lease a push ends, so that it is still there to be given an outcome.
MARGIN_SECONDS = 0.5

# Should the news of a lease's end be lost, an open push learns it this late; and it looks no oftener than that.
LOOK_SECONDS = 1.0
PAUSE_SECONDS = 0.1

# Between two tries to record how a push ended, while the database is away.
RECORD_SECONDS = 1.0


class Rules(msgspec.Struct, frozen=True):
    """By what tasks are pushed; asked anew for each push."""

    key: str | None
    networks: tuple[str, ...]
    public_url: str | None
    binds: tuple[str, ...]
    """As `http.bind` has them."""
    retry: Retry

    def __repr__(self) -> str:
        return f"Rules(networks={self.networks!r}, public_url={self.public_url!r})"


class Dispatched(msgspec.Struct, frozen=True):
    """A push that led to a result, be it an error."""

    task_id: str
    worker_id: str
    lease_id: str
    execution: Execution
    task_status: TaskStatus


class PushFailed(Refusal):
    """The agent did not do it. The task has gone back to the queue, or to where its last attempt sends it."""

    def __init__(self, sentence: str, lease: Lease) -> None:
        super().__init__(sentence)
        self.lease = lease


@dataclass(eq=False)
class _Push:
    """One push while it is open."""

    task: Task
    lease: Lease
    worker: Worker
    over_at: float
    """When its attempt is over, on the clock of trio."""
    renew_at: float
    call: trio.CancelScope = field(default_factory=trio.CancelScope)
    outcome: Dispatched | Refusal | Unavailable | None = None
    left: trio.Event = field(default_factory=trio.Event)
    """Nobody waits for it any more: it has ended, or the daemon stops."""


class Dispatcher:
    """Pushes tasks for as long as its service runs."""

    def __init__(self, database: Database, wakeups: Wakeups, rules: Callable[[], Rules]) -> None:
        self._database = database
        self._wakeups = wakeups
        self._rules = rules
        self._nursery: trio.Nursery | None = None
        self._running = trio.Event()
        self._open: dict[str, _Push] = {}
        self._begun = trio.Event()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Dispatcher {len(self._open)} pushes open>"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry out what is asked for, until cancelled, which drops the pushes and leaves their leases."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._running.set()
                task_status.started()
                await self._watch()
        finally:
            self._nursery = None
            self._running = trio.Event()

    def close(self) -> None:
        """The daemon stops: nothing more is pushed, and nobody waits any more."""
        self._closed = True
        for push in self._open.values():
            push.left.set()

    async def dispatch(self, wanted: Wanted, *, actor: str) -> Dispatched:
        """Lease the task and push it, and wait until that has ended. A cancellation ends only the waiting.

        Raises:
            NotFound: no such task, or not the worker named.
            Conflict: the task is not queued, or not before its time.
            Invalid: the worker named has no URL.
            NoWorker: nobody suitable with a URL has free capacity, or the queue is paused.
            PushFailed: the agent did not do it.
            TaskCancelled, LeaseLost: the lease was ended by somebody else before.
            Misconfigured: agents could not call back.
            Unavailable: the database is away, or the service does not run.
        """
        push = await self._begin(wanted, partial(pushes.lease, actor=actor))
        if push is None:
            raise AssertionError("a lease that is not refused is given")
        await push.left.wait()
        match push.outcome:
            case Dispatched():
                return push.outcome
            case None:
                raise Unavailable(
                    f"bloomd, or its service `dispatch`, is stopping; worker {push.worker.id} may complete the task"
                    " all the same"
                )
            case error:
                raise error

    async def push(self, task_id: str) -> bool:
        """Push the task to the best worker there is, and do not wait; whether there was one. Nothing when it is closed.

        Raises:
            Misconfigured, Unavailable: as `dispatch` does.
        """
        if self._closed:
            return False
        try:
            return await self._begin(Wanted(task_id), partial(pushes.attempt, actor=ACTOR)) is not None
        except NotFound:
            return False

    async def _begin(
        self, wanted: Wanted, lease: Callable[[Database, Wanted], Awaitable[Leased | None]]
    ) -> _Push | None:
        with trio.move_on_after(START_SECONDS):
            await self._running.wait()
        nursery, rules = self._nursery, self._rules()
        if nursery is None or self._closed:
            raise Unavailable("tasks are not pushed at the moment: the service `dispatch` does not run")
        if rules.public_url is None and callback_port(rules.binds) is None:
            raise Misconfigured("agents cannot call back, because http.bind names no TCP port: set http.public_url")
        task = await tasks.one(self._database, wanted.task_id)
        leased: Leased | None = None
        with trio.CancelScope(shield=True):  # what is leased is pushed; a statement has its time limit
            leased = await lease(self._database, wanted)
            if leased and self._nursery is not nursery:
                unused = Release(leased.lease.id, reason="bloomd stopped before it was pushed")
                await releases.release(self._database, [unused], actor=ACTOR)
                raise Unavailable("tasks are not pushed any more: the service `dispatch` was stopped")
        if leased is None:
            return None
        now = trio.current_time()
        over_at = now + task.policy.timeout_sec + GRACE_SECONDS
        push = _Push(task, leased.lease, leased.worker, over_at, now + leased.lease.ttl_seconds / 3)
        self._open[push.lease.id] = push
        self._begun.set()
        nursery.start_soon(self._carry_out, push, rules)
        return push

    async def _carry_out(self, push: _Push, rules: Rules) -> None:
        who = {"task": push.task.id, "worker": push.worker.id, "lease": push.lease.id}
        try:
            push.outcome = await self._outcome(push, rules)
        except (Refusal, Unavailable) as error:
            log.warning("push failed", **who, error=one_line(error))
            push.outcome = error
        finally:
            del self._open[push.lease.id]
            push.left.set()

    async def _outcome(self, push: _Push, rules: Rules) -> Dispatched:
        answer = await self._call(push, rules)
        if answer is None:
            return await self._recorded(push, partial(self._ended, push))
        await self._recorded(push, partial(self._note, push, reached=isinstance(answer, Said) or answer.reached))
        record = self._complete if isinstance(answer, Said) else self._fail
        return await self._recorded(push, partial(record, push, answer, rules))

    async def _call(self, push: _Push, rules: Rules) -> Said | Failure | None:
        """Ask the agent; None when the lease ended first."""
        try:
            with push.call:
                answer = await call(
                    "POST",
                    push.worker.url,
                    "/execute-task",
                    key=rules.key,
                    networks=rules.networks,
                    timeout=push.over_at - trio.current_time() - MARGIN_SECONDS,
                    body=task_of(push.task, push.lease, await self._runtime(push.worker.url, rules)),
                )
                return judged(answer, key=rules.key)
        except NotReached as error:
            return Failure(one_line(error), reached=False, answered=False, counts=False)
        except Unavailable as error:
            return Failure(one_line(error), answered=False)
        return None

    async def _runtime(self, worker_url: str, rules: Rules) -> str:
        """The URL of this server as the worker reaches it. No request has a say in it.

        Raises:
            NotReached: there is no way to the worker.
        """
        if rules.public_url is not None:
            return rules.public_url.rstrip("/")
        try:
            url = httpx.URL(worker_url)
            port = url.port or (443 if url.scheme == "https" else 80)
            address = await local_address(url.host, port, networks=rules.networks)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise NotReached("its URL is not a valid http or https one") from error
        except Unavailable as error:
            raise NotReached(f"the agent: {one_line(error)}") from error
        host = f"[{address}]" if ":" in address else address
        return f"http://{host}:{callback_port(rules.binds, address)}"

    async def _note(self, push: _Push, *, reached: bool) -> None:
        """Keep the account of the connections that the worker does not take."""
        if reached:
            await pushes.reached(self._database, push.worker.id)
        elif await pushes.not_reached(self._database, push.worker.id, actor=ACTOR):
            log.warning("worker offline", worker=push.worker.id, reason="pushes do not reach it")

    async def _complete(self, push: _Push, said: Said, rules: Rules) -> Dispatched:
        ended = completion_of(said, push.lease)
        done = await completion.complete(self._database, push.task.id, ended, retry=rules.retry, actor=ACTOR)
        return _dispatched(push, done, said)

    async def _fail(self, push: _Push, failure: Failure, rules: Rules) -> Dispatched:
        """Record that the push led to nothing, unless the agent has completed the task by its callback.

        Raises:
            PushFailed: it is recorded.
            TaskCancelled: the task was cancelled meanwhile.
        """
        sentence = f"the push to worker {push.worker.id} failed: {failure.sentence}"
        try:
            if failure.counts:
                ended = Completion(status="error", error_message=sentence, lease_id=push.lease.id)
                done = await completion.complete(
                    self._database,
                    push.task.id,
                    ended,
                    retry=rules.retry,
                    actor=ACTOR,
                    sign_of_life=failure.answered,
                )
                if done.result.error_message != sentence:
                    return _dispatched(push, done)
            else:
                await pushes.give_back(self._database, push.lease, sentence, retry=rules.retry, actor=ACTOR)
        except TaskCancelled:
            raise
        except Refusal:  # the lease is over
            if done := await completion.of_lease(self._database, push.lease):
                return _dispatched(push, done)
        raise PushFailed(sentence, push.lease)

    async def _ended(self, push: _Push) -> Dispatched:
        """What became of a task whose lease ended before the call did."""
        if done := await completion.of_lease(self._database, push.lease):
            return _dispatched(push, done)
        lease = (await pushes.standing(self._database, [push.lease.id])).get(push.lease.id)
        match lease and lease.outcome:
            case "cancelled":
                raise TaskCancelled("The task was cancelled while its push was open")
            case "expired" | "deadline":
                raise PushFailed(f"the push to worker {push.worker.id} failed: it took too long", push.lease)
            case _:
                raise LeaseLost("The lease was ended by somebody else while its push was open")

    async def _recorded(self, push: _Push, record: Callable[[], Awaitable[Answer]]) -> Answer:
        """Do it as soon as the database is there, for as long as the lease may be current.

        What has been begun is not cancelled: a statement has its time limit.
        """
        while True:
            try:
                with trio.CancelScope(shield=True):
                    return await record()
            except Unavailable:
                if trio.current_time() >= push.over_at:
                    raise
            await trio.sleep(RECORD_SECONDS)

    async def _watch(self) -> None:
        """See to the leases of the open pushes."""
        while True:
            if not self._open:
                self._begun = trio.Event()
                await self._begun.wait()
            changes = self._wakeups.changes
            try:
                await self._look()
            except Unavailable as error:
                log.debug("the leases of open pushes cannot be looked at", error=one_line(error))
            await trio.sleep(PAUSE_SECONDS)
            with trio.move_on_after(LOOK_SECONDS):
                await changes.wait()

    async def _look(self) -> None:
        """Renew the leases for which it is time, and end the calls whose leases have ended."""
        now = trio.current_time()
        due = [push for push in self._open.values() if now >= push.renew_at]
        if due:
            await pushes.renew(self._database, [push.lease.id for push in due])
            for push in due:
                push.renew_at = now + push.lease.ttl_seconds / 3
        asked = list(self._open.values())
        standing = await pushes.standing(self._database, [push.lease.id for push in asked])
        for push in asked:
            lease = standing.get(push.lease.id)
            if lease is None or lease.outcome not in (None, "success", "error"):
                push.call.cancel()
            elif lease.status != "active":
                push.call.deadline = min(push.call.deadline, trio.current_time() + ANSWER_SECONDS)


def _dispatched(push: _Push, done: Completed, said: Said | None = None) -> Dispatched:
    """The task's outcome; from the agent's own answer only what the task does not have."""
    execution = execution_of(push.task, done.result, said)
    return Dispatched(push.task.id, push.worker.id, push.lease.id, execution, done.task.status)
