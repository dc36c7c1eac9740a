"""A Hypothesis state machine: whatever people, reloads, crashes and dependencies do, and in whatever order, what the
package's opening page promises holds.

A real supervisor lives in a trio loop on a mock clock, in a thread of its own; each rule is one visit to that loop that
ends when every task there is blocked again, so nothing depends on real time. Rules do not wait for what they have asked
for: a slow stop is still under way when the next rule strikes.
"""

import queue
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import hypothesis.strategies as st
import trio
from actors import Actor, Story
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from trio.testing import MockClock, wait_all_tasks_blocked

from bloomd.errors import Misconfigured, Unavailable
from bloomd.supervisor import Service, State, Supervisor, UnknownService

# In starting order. `group` is a supervisor, the others are actors.
TREE = ("base", "upper", "group", "group/inner", "group/outer", "lone")
ACTORS = tuple(path for path in TREE if path != "group")
NEEDS = {"upper": "base", "group/outer": "group/inner"}
FINISH_SECONDS, STOP_SECONDS = 2.0, 3.0
LONGEST_RETRY, LONGEST_START = 30.0, 20.0
LONG = LONGEST_RETRY + 2 * LONGEST_START

paths = st.sampled_from(TREE)
actors = st.sampled_from(ACTORS)
troubles = st.sampled_from([Unavailable("away"), Misconfigured("wrong"), ValueError("bug"), ValueError("bug")])
moods = st.one_of(st.none(), troubles)


class Witness(Actor):
    """An actor that also checks, at its birth, that it should live at all, and remembers how it died."""

    may_begin: Callable[[], str | None]
    ends: list[tuple[float, Exception | None]]
    violations: list[str]

    async def run(self, *, task_status: trio.TaskStatus[Any]) -> None:
        if objection := self.may_begin():
            self.violations.append(f"{self.name} begins, but {objection}")
        if self.alive:
            self.violations.append(f"{self.name} lives twice")
        try:
            await super().run(task_status=task_status)
        except Exception as exc:
            self.ends.append((trio.current_time(), exc.exceptions[0] if isinstance(exc, ExceptionGroup) else exc))
            raise


class SupervisorMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.story: Story = []
        self.violations: list[str] = []
        self.stopped_by_hand: set[str] = set()
        self.lone_is_configured = True
        self.under_way = 0
        self.touched = dict.fromkeys(TREE, 0.0)
        """When a person or a reload last gave a service a fresh budget."""
        self.actors = {path: self._witness(path) for path in ACTORS}
        self.group = Supervisor([self._service("group/inner"), self._service("group/outer", needs=("inner",))])
        upper = self.actors["upper"]
        self.root = Supervisor(
            [
                self._service("base"),
                self._service("upper", needs=("base",), ask_to_stop=upper.finish, stop_seconds=STOP_SECONDS),
                Service("group", self.group.run, group=self.group),
                self._service("lone", configured=lambda: self.lone_is_configured),
            ]
        )
        self.clock = MockClock()
        self.run_is_over = trio.Event()
        self.the_end = trio.Event()
        tokens: queue.Queue[trio.lowlevel.TrioToken] = queue.Queue()
        self.thread = threading.Thread(target=lambda: trio.run(self._main, tokens.put, clock=self.clock), daemon=True)
        self.thread.start()
        self.token = tokens.get(timeout=10)

    # What happens to the services and what is asked of the supervisor: each is decided before its first wait.

    async def stop(self, path: str) -> None:
        if self._present(path):
            self.stopped_by_hand.add(path)
        await self.root.stop_service(path)

    async def start(self, path: str) -> None:
        if self._present(path):
            self._touch(path)
            self.stopped_by_hand.discard(path)
        self.root.start_service(path)

    async def restart_by_hand(self, path: str) -> None:
        if self._present(path):
            self._touch(path)
            self.stopped_by_hand.discard(path)
        await self.root.restart_service(path)
        self._touch(path)

    async def reload(self, path: str) -> None:
        members = [other for other in TREE if other.partition("/")[0] == path.partition("/")[0]]
        for member in members:
            self._touch(member)
        await self.root.restart(members, "reload")
        for member in members:
            self._touch(member)

    async def crash(self, path: str) -> None:
        self._raise(path, ValueError("bug"))

    async def lose_dependency(self, path: str) -> None:
        self._raise(path, Unavailable("away"))

    async def find_out_it_is_misconfigured(self, path: str) -> None:
        self._raise(path, Misconfigured("wrong"))

    OPERATIONS = (stop, start, restart_by_hand, reload, crash, lose_dependency, find_out_it_is_misconfigured)

    @initialize()
    def begin(self) -> None:
        self.visit(self._begin)

    @rule(path=paths, operation=st.sampled_from(OPERATIONS))
    def one(self, path: str, operation: Callable[..., Awaitable[None]]) -> None:
        self.visit(self._ask, operation, path)

    @rule(path=paths, operations=st.lists(st.sampled_from(OPERATIONS), min_size=2, max_size=4))
    def one_after_another(self, path: str, operations: list[Callable[..., Awaitable[None]]]) -> None:
        """To one service, with a little time between."""
        for operation in operations:
            self.visit(self._ask, operation, path)
            self.visit(self._check)

    @rule(orders=st.lists(st.tuples(st.sampled_from(OPERATIONS), paths), min_size=2, max_size=6))
    def all_at_once(self, orders: list[tuple[Callable[..., Awaitable[None]], str]]) -> None:
        async def burst() -> None:
            for operation, path in orders:
                await self._ask(operation, path)

        self.visit(burst)

    @rule(path=actors, before=moods, during=st.one_of(st.none(), moods), at_once=st.booleans())
    def change_mood(self, path: str, before: Exception | None, during: Exception | None, at_once: bool) -> None:
        self.actors[path].before, self.actors[path].during = before, during
        if at_once and (error := before or during):
            self.visit(self._fall_ill, path, error)

    @rule(path=actors)
    def recover(self, path: str) -> None:
        self.actors[path].before = self.actors[path].during = None

    @rule(path=actors, seconds=st.sampled_from([0.0, 0.05, 3.0, LONGEST_START]))
    def change_speed(self, path: str, seconds: float) -> None:
        self.actors[path].start_seconds = seconds

    @rule(seconds=st.sampled_from([0.0, FINISH_SECONDS, 1000.0]))
    def take_time_to_finish(self, seconds: float) -> None:
        self.actors["upper"].finish_seconds = seconds

    @rule(configured=st.booleans())
    def configure(self, configured: bool) -> None:
        self.lone_is_configured = configured
        self.visit(self._ask, SupervisorMachine.reload, "lone")

    @rule()
    def retry_failed(self) -> None:
        async def retry() -> None:
            for path in self.root.retry_failed("reload"):
                self._touch(path)

        self.visit(retry)

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.5, 2.5, 10.0, 70.0]))
    def pass_time(self, seconds: float) -> None:
        self.visit(self._sleep, seconds)

    @rule()
    def calm_down(self) -> None:
        """When nothing is wrong any more, everything that is wanted runs, without anybody's help but for the failed."""

        async def calm() -> None:
            for actor in self.actors.values():
                actor.before = actor.during = None
                actor.start_seconds = 0.0
            self.root.retry_failed("reload")
            await self._sleep(LONG)
            assert self.under_way == 0, "an operation never returns"
            for path in TREE:
                if self._present(path) and not self._held_back(path):
                    assert self.root.state(path) is State.RUNNING, f"{path} is stuck: {self.root!r}"

        self.visit(calm)

    @rule()
    def shut_down_and_run_again(self) -> None:
        self.visit(self._shut_down)
        self.visit(self._begin)

    @invariant()
    def promises_are_kept(self) -> None:
        self.visit(self._check)

    def teardown(self) -> None:
        try:
            self.calm_down()
            self.visit(self._check)
            self.visit(self._shut_down)
        finally:
            trio.from_thread.run_sync(self.the_end.set, trio_token=self.token)
            self.thread.join(10)
            assert not self.thread.is_alive()

    # The loop and the visits to it.

    async def _main(self, hand_over: Callable[[trio.lowlevel.TrioToken], None]) -> None:
        async with trio.open_nursery() as self.nursery:
            hand_over(trio.lowlevel.current_trio_token())
            await self.the_end.wait()
            self.nursery.cancel_scope.cancel()

    def visit(self, step: Callable[..., Awaitable[None]], *args: Any) -> None:
        async def visit() -> None:
            await step(*args)
            await wait_all_tasks_blocked()

        trio.from_thread.run(visit, trio_token=self.token)

    async def _sleep(self, seconds: float) -> None:
        self.clock.autojump_threshold = 0
        try:
            await trio.sleep(seconds)
        finally:
            self.clock.autojump_threshold = float("inf")

    async def _ask(self, operation: Callable[..., Awaitable[None]], path: str) -> None:
        async def ask() -> None:
            self.under_way += 1
            present = self._present(path)
            try:
                await operation(self, path)
            except UnknownService:
                if present:
                    self.violations.append(f"{path} is unknown")
            finally:
                self.under_way -= 1

        self.nursery.start_soon(ask)

    async def _begin(self) -> None:
        self.run_is_over = trio.Event()
        for path in TREE:
            self._touch(path)

        async def run() -> None:
            await self.root.run()
            self.run_is_over.set()

        self.nursery.start_soon(run)

    async def _shut_down(self) -> None:
        usable = [path for path in ACTORS if self.actors[path].usable]
        undisturbed = self.under_way == 0 and all(self.root.state(p) is State.RUNNING for p in usable)
        del self.story[:]
        began = trio.current_time()
        self.root.stop()
        await self._sleep(STOP_SECONDS + 0.1)
        if not self.run_is_over.is_set():
            raise AssertionError(f"shutdown takes longer than {trio.current_time() - began} s: {self.root!r}")
        assert not any(actor.alive for actor in self.actors.values())
        if undisturbed:
            ends = [event.removesuffix(" ends") for event in self.story if event.endswith(" ends")]
            last_words = list(dict.fromkeys(path for path in ends if path in usable))
            assert last_words == usable[::-1], "not stopped in reverse order"
        await self._sleep(LONG)  # for the operations that were under way
        assert not any(actor.alive for actor in self.actors.values()), "something lives on after the end"

    # What must be true whenever the loop rests.

    async def _check(self) -> None:
        assert not self.violations, self.violations
        now = trio.current_time()
        statuses = {status.name: status for status in self.root.status()}
        assert list(statuses) == [path for path in TREE if self._present(path)]
        for path, status in statuses.items():
            state = status.state
            assert status.by_hand == (path in self.stopped_by_hand)
            assert state is self.root.state(path)
            if state is State.STOPPED:
                assert self._held_back(path) or self.under_way or not self._is_up("group"), f"{path}: {status}"
            if status.by_hand:
                assert state in (State.STOPPING, State.STOPPED)
            if path == "group":
                continue
            actor = self.actors[path]
            assert actor.alive == (state in (State.STARTING, State.RUNNING, State.STOPPING)), f"{path}: {status}"
            assert not (actor.usable and state is State.STARTING)
            assert actor.usable or state is not State.RUNNING
            if state is State.WAITING and status.cause.startswith("needs"):
                assert not self._is_up(NEEDS[path])
                assert status.retry_in is None
            elif state in (State.WAITING, State.BACKOFF):
                error = actor.ends[-1][1]
                assert isinstance(error, Unavailable) == (state is State.WAITING)
                assert status.retry_in is not None
                assert 0 < status.retry_in <= LONGEST_RETRY
            else:
                assert status.retry_in is None
            crashes = [at for at, error in actor.ends if isinstance(error, ValueError) and at > now - 60]
            if state is State.FAILED:
                at, error = actor.ends[-1]
                recent = [a for a, e in actor.ends if isinstance(e, ValueError) and a > at - 60]
                assert isinstance(error, Misconfigured) or len(recent) > 5, f"{path} gave up after {recent}"
            if len([at for at in crashes if at > self.touched[path]]) > 5:
                assert state in (State.FAILED, State.STOPPED), f"{path} goes on after {crashes}"

    async def _fall_ill(self, path: str, error: Exception) -> None:
        self._raise(path, error)

    def _raise(self, path: str, error: Exception) -> None:
        if path in self.actors and self.actors[path].usable:
            self.actors[path].crash(error)

    def _present(self, path: str) -> bool:
        return path != "lone" or self.lone_is_configured or self.actors["lone"].alive

    def _is_up(self, path: str) -> bool:
        return self.root.state(path) is State.RUNNING

    def _held_back(self, path: str) -> bool:
        """Whether a person wants it, its group, or what it needs to start, not to run."""
        relevant = {path, path.partition("/")[0], NEEDS.get(path, path)}
        return bool(relevant & self.stopped_by_hand)

    def _touch(self, path: str) -> None:
        for other in TREE:
            if other == path or other.startswith(f"{path}/"):
                self.touched[other] = trio.current_time()

    def _witness(self, path: str) -> Witness:
        witness = Witness(path, self.story, finish_seconds=FINISH_SECONDS if path == "upper" else 0.0)
        witness.ends, witness.violations = [], self.violations
        witness.may_begin = lambda: self._objection(path)
        return witness

    def _objection(self, path: str) -> str | None:
        if path in self.stopped_by_hand:
            return "a person has stopped it"
        if path.startswith("group/") and self.root.state("group") in (State.STOPPED, State.FAILED, State.WAITING):
            return "its group does not run"
        if path == "lone" and not self.lone_is_configured:
            return "it is not configured"
        if (need := NEEDS.get(path)) and not self.actors[need].usable:
            return f"{need} does not run"
        if self.run_is_over.is_set():
            return "the supervisor has ended"
        return None

    def _service(self, path: str, **rules: Any) -> Service:
        return Service(path.rpartition("/")[2], self.actors[path].run, **rules)


TestSupervisorMachine = SupervisorMachine.TestCase
TestSupervisorMachine.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
