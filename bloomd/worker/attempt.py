"""One attempt: the life of one lease, from its claim to the moment when the server knows how it ended.

It ends in one of three ways. It is *completed*, with a result or an error. It is *given back*, when this machine cannot
work on it. Or it is *lost*: the server says that the lease is over, or it must be by the clock; then the program is
stopped, and nothing is sent.
"""

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

import msgspec
import structlog
import trio

from bloomd.errors import Unavailable, one_line
from bloomd.exchange import MIB
from bloomd.supervisor import Backoff
from bloomd.worker import claude, hints, process, prompt
from bloomd.worker.api import LeaseLost, Refused, Server, Work
from bloomd.worker.claude import Answered, Failed, SessionGone
from bloomd.worker.contexts import Context, Contexts
from bloomd.worker.journal import Journal
from bloomd.worker.limits import Limit

log = structlog.stdlib.get_logger(__name__)

# An output that is no longer goes with the completion; a longer one is uploaded before.
INLINE_BYTES = 1 * MIB

# Between two tries to reach a server that is away.
RETRY = Backoff(first=0.5, cap=10.0)

# A lease has this many heartbeats in its time, so that two may fail.
BEATS = 3

# Giving a task back is a courtesy to those who wait for it: without it the lease expires.
RELEASE_SECONDS = 5.0

# Beyond the deadline of a lease, by our own clock, nobody needs to be asked whether it is over.
DEADLINE_MARGIN = 5.0

PROGRESS_LENGTH = 200

# The type of the artifact, whether the completion makes it or it was uploaded.
RESULT_TYPE = "LLM_RESULT"

# Not a word about what was said: somebody has to give this worker its token back.
NOT_ALLOWED = (401, 403)

TRUNCATED, OVER_BUDGET = "truncated", "over-budget"

# So often a task is given back because this machine cannot work and does not know until when. Then that costs an
# attempt: it may be the task that makes it say so, and that would keep the machine from its work for ever.
PATIENCE = 2

_SHORTENED = "\n\n[bloomd: the server takes no more than this]"


class Workplace(msgspec.Struct, frozen=True):
    """What all attempts of a worker share."""

    server: Server
    contexts: Contexts
    journal: Journal
    program: Sequence[str]
    environ: Mapping[str, str]
    on_limit: Callable[[Limit], None]
    """Told when this machine cannot work at present."""
    on_success: Callable[[], None]
    """Told when it has."""
    vain: Counter[str] = msgspec.field(default_factory=Counter[str])
    """How often each task, by its id, was given back because of a limit without a time."""


class _CannotWork(Exception):
    """This machine cannot work on it, nor on any other task."""

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit.why)
        self.limit = limit


class Attempt:
    """One lease and the work on it."""

    def __init__(self, place: Workplace, work: Work) -> None:
        self._place = place
        self._work = work
        self._said = process.Said()
        self._scope = trio.CancelScope()
        self._stopped = ""
        self._lost: LeaseLost | None = None
        self._ran_seconds = 0.0
        self._began = trio.current_time()
        lease = work.lease
        lasts = (lease.deadline_at - lease.started_at) / 1000 + DEADLINE_MARGIN if lease.deadline_at else float("inf")
        self._over_at = self._began + lasts
        self._log = log.bind(task=work.task.id, lease=lease.id)

    def __repr__(self) -> str:
        return f"<Attempt at {self._work.task.id} {self._said!r}>"

    def stop(self, reason: str) -> None:
        """Stop the program and give the task back, whatever it is at."""
        self._stopped = reason
        self._scope.cancel()

    async def run(self) -> None:
        """All of it. Nothing runs for it any more when this returns."""
        lease = self._work.lease
        self._log.info("task begun", attempt=lease.attempt)
        try:
            with self._scope:
                await self._note(None)
                async with self._place.contexts.turn(self._work.task.context_id) as context:
                    await self._work_on(context)
            settled = await self._give_back(self._stopped) if self._scope.cancelled_caught else True
        except LeaseLost as lost:
            self._log.warning("lease lost, result discarded", reason=one_line(lost))
            settled = True
        except _CannotWork as cannot:
            settled = await self._do_without(cannot.limit)
        except OSError as error:
            settled = await self._do_without(Limit(f"the worker's directory cannot be used: {error.strerror or error}"))
        except Exception as error:  # a bug, which must not end the work on other tasks, nor come again for ever
            self._log.exception("the worker has a bug")
            settled = await self._fail(f"the worker has a bug: {type(_innermost(error)).__name__}")
        if settled:
            with suppress(OSError):
                await trio.to_thread.run_sync(self._place.journal.strike, lease.id)

    async def _work_on(self, context: Context) -> None:
        verdict: Answered | Failed | Limit | None = None
        artifact: str | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat, nursery.cancel_scope)
            try:
                verdict = await self._verdict(context)
                if isinstance(verdict, Answered) and len(verdict.output.encode()) > INLINE_BYTES:
                    verdict, artifact = await self._upload(verdict)
            except LeaseLost as lost:
                self._lost = lost
            # From here on a heartbeat could hear that the lease is over because the completion has arrived.
            nursery.cancel_scope.cancel()
        if self._lost or verdict is None:
            raise self._lost or LeaseLost("no reason given")
        if isinstance(verdict, Limit):
            raise _CannotWork(verdict)
        self._place.vain.pop(self._work.task.id, None)
        said = self._completion(verdict, artifact)
        status = await self._deliver(said)
        self._log.info("task ended", task_status=status, tags=said["artifact_tags"], **said["metrics"])
        if isinstance(verdict, Answered):
            self._place.on_success()
            if verdict.session:
                await context.remember(verdict.session)

    async def _verdict(self, context: Context) -> Answered | Failed | Limit:
        """Run the program; once more when the conversation that it should continue cannot be."""
        task = self._work.task
        session = await self._session(context)
        found = await trio.to_thread.run_sync(
            hints.read_all, self._place.contexts.root, task.context_hints, abandon_on_cancel=True
        )
        text = prompt.build(task.prompt, found, task.desired_format).encode()
        until = trio.current_time() + task.policy.timeout_sec
        verdict = await self._run(context, text, session, until)
        if isinstance(verdict, SessionGone):
            self._log.warning("conversation gone or full, a new one begins")
            await context.remember(None)
            verdict = await self._run(context, text, None, until)
        assert not isinstance(verdict, SessionGone)
        return verdict

    async def _session(self, context: Context) -> str | None:
        """The conversation to continue.

        None is it that went on at another worker, or was lost there; and an attempt after one that failed does not
        rely on it, which may be what it failed for.
        """
        if not self._work.holds_conversation:
            await context.remember(None)
            return None
        return context.session if (self._work.lease.attempt or 1) == 1 else None

    async def _run(self, context: Context, text: bytes, session: str | None, until: float) -> claude.Verdict:
        self._said = process.Said()
        began = trio.current_time()
        try:
            ended = await process.run(
                claude.command(self._place.program, session),
                text,
                directory=context.directory,
                environ=self._place.environ,
                seconds=max(until - began, 0),
                said=self._said,
                started=self._note,
            )
        except process.NotStarted as error:
            return Limit(one_line(error))
        finally:
            self._ran_seconds += trio.current_time() - began
        seconds = self._work.task.policy.timeout_sec
        verdict = claude.verdict(ended, session=session, seconds=seconds, now=time.time())
        return claude.without(verdict, claude.secrets(self._place.environ))

    async def _beat(self, scope: trio.CancelScope) -> None:
        """Say again and again that this is alive, until the lease is lost, which cancels the scope."""
        lease = self._work.lease
        failures = 0
        while True:
            wait = lease.ttl_seconds / BEATS
            try:
                await self._place.server.heartbeat(lease.id, self._progress)
                failures = 0
            except LeaseLost as lost:
                self._lost = lost
            except (Unavailable, Refused) as error:
                failures += 1
                wait = min(wait, RETRY.delay(failures))
                if failures == 1:
                    self._log.warning("heartbeat not heard, the work goes on", error=one_line(error))
                if trio.current_time() > self._over_at:
                    self._lost = LeaseLost("the server is away, and the deadline has passed")
            if self._lost:
                scope.cancel()
            await trio.sleep(wait)

    @property
    def _progress(self) -> str | None:
        """What the program said last beside its answer, or how long it has been at it."""
        seconds = int(trio.current_time() - self._began)
        said = claude.redacted(claude.clean(self._said.last_line), claude.secrets(self._place.environ))
        return said[:PROGRESS_LENGTH] or (f"running for {seconds} s" if seconds else None)

    async def _upload(self, answered: Answered) -> tuple[Answered, str | None]:
        """The artifact of a long output; or, when the server takes nothing so long, a shorter output."""
        content = answered.output.encode()
        keep = partial(
            self._place.server.upload, self._work.lease.id, content, type=RESULT_TYPE, tags=self._tags(answered)
        )
        try:
            return answered, await self._retry(keep)
        except Refused as refused:
            self._log.warning("upload refused, the output is shortened", error=one_line(refused), bytes=len(content))
            short = content[:INLINE_BYTES].decode(errors="ignore") + _SHORTENED
            return msgspec.structs.replace(answered, output=short, cut=True), None

    def _completion(self, verdict: Answered | Failed, artifact: str | None) -> dict[str, Any]:
        said: dict[str, Any] = {"artifact_type": RESULT_TYPE, "artifact_tags": self._tags(verdict)}
        if isinstance(verdict, Failed):
            said |= {"status": "error", "error_message": verdict.message + self._overrun(verdict)}
        elif artifact:
            said |= {"status": "success", "artifact_id": artifact}
        else:
            said |= {"status": "success", "output": verdict.output}
        cost = {} if verdict.cost_usd is None else {"cost_usd": verdict.cost_usd}
        metrics = {"duration_ms": int(self._ran_seconds * 1000), "tokens_used": verdict.tokens, **cost}
        return {**said, "metrics": metrics}

    def _tags(self, verdict: Answered | Failed) -> list[str]:
        tags: list[str] = []
        if isinstance(verdict, Answered) and verdict.cut:
            tags.append(TRUNCATED)
        if self._overrun(verdict):
            tags.append(OVER_BUDGET)
        return tags

    def _overrun(self, verdict: Answered | Failed) -> str:
        """What is said of an attempt that took more than the budget: a failed one has no artifact for a tag."""
        budget = self._work.task.policy.budget
        if not budget or verdict.tokens is None or verdict.tokens <= budget:
            return ""
        return f" [bloomd: it used {verdict.tokens} tokens, its budget was {budget:.15g} (policy.budget)]"

    async def _deliver(self, said: dict[str, Any]) -> str:
        """Complete; the status of the task. Where the result is refused as such, the task learns why."""
        complete = self._place.server.complete
        try:
            return await self._retry(partial(complete, self._work.lease.id, said))
        except Refused as refused:
            why = f"the server would not take the result: {one_line(refused)}"
            self._log.error("result refused", error=one_line(refused))
        instead = {"status": "error", "error_message": why, "retryable": False, "metrics": said["metrics"]}
        try:
            return await self._retry(partial(complete, self._work.lease.id, instead))
        except Refused as refused:
            raise LeaseLost(why) from refused

    async def _retry(self, call: Callable[[], Awaitable[str]]) -> str:
        """What the server says, as soon as it is there to say it.

        Raises:
            LeaseLost: it says that the lease is lost, or it must be by now.
            Refused: it would say no again.
        """
        failures = 0
        while True:
            try:
                return await call()
            except (Unavailable, Refused) as error:
                if isinstance(error, Refused) and error.status not in NOT_ALLOWED:
                    raise
                failures += 1
                if failures == 1:
                    self._log.warning("result not delivered yet", error=one_line(error))
                delay = RETRY.delay(failures)
                if trio.current_time() + delay > self._over_at:
                    raise LeaseLost("the server is away, and the deadline has passed") from error
            await trio.sleep(delay)

    async def _do_without(self, limit: Limit) -> bool:
        """This machine cannot work: the task goes to others, if need be at the cost of an attempt."""
        self._place.on_limit(limit)
        reason = f"this worker cannot work now: {limit.why}"
        if limit.until is None:
            self._place.vain[self._work.task.id] += 1
            if self._place.vain[self._work.task.id] > PATIENCE:
                return await self._fail(f"{reason} (said {self._place.vain[self._work.task.id]} times of this task)")
        return await self._give_back(reason)

    async def _give_back(self, reason: str) -> bool:
        """Whether it is known to be in other hands now; if not, the next worker gives it back, or the lease expires."""
        return await self._settle(partial(self._release, reason), "task given back", reason)

    async def _fail(self, message: str) -> bool:
        said = {"status": "error", "error_message": message}
        complete = partial(self._place.server.complete, self._work.lease.id, said)
        return await self._settle(complete, "attempt failed", message)

    async def _settle(self, call: Callable[[], Awaitable[str]], done: str, reason: str) -> bool:
        with trio.move_on_after(RELEASE_SECONDS):
            try:
                await self._retry(call)
                self._log.info(done, reason=reason)
            except (LeaseLost, Refused) as error:
                self._log.info("it was not ours any more", reason=one_line(error))
            return True
        self._log.warning("the server is away; the lease expires there", reason=reason)
        return False

    async def _release(self, reason: str) -> str:
        await self._place.server.release(self._work.lease.id, reason)
        return ""

    async def _note(self, group: int | None) -> None:
        await trio.to_thread.run_sync(self._place.journal.note, self._work.lease.id, group)


def _innermost(error: Exception) -> Exception:
    """The first error of a group in a group."""
    while isinstance(error, ExceptionGroup):
        error = cast("ExceptionGroup[Exception]", error).exceptions[0]
    return error
