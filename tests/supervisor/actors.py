"""Actors: services that do what a test tells them, and write down what they live through."""

from dataclasses import dataclass, field
from typing import Any

import trio

from bloomd.supervisor import Service, State, Supervisor

Story = list[str]
"""What happened, in order."""


@dataclass
class Actor:
    """A healthy service, until `before` or `during` says otherwise."""

    name: str
    story: Story
    before: Exception | None = None
    """Raised instead of starting, each time."""
    during: Exception | None = None
    """Raised as soon as it has started, each time."""
    start_seconds: float = 0.0
    finish_seconds: float = 0.0
    """How long it takes to finish once it was asked to."""
    began: list[float] = field(default_factory=list[float])
    alive: bool = False
    usable: bool = False
    _crash: trio.Event = field(default_factory=trio.Event)
    _asked: trio.Event = field(default_factory=trio.Event)
    _raise: Exception | None = None

    async def run(self, *, task_status: trio.TaskStatus[Any]) -> None:
        assert not self.alive, f"{self.name} lives twice"
        self.alive = True
        self._crash, self._asked = trio.Event(), trio.Event()
        self.began.append(trio.current_time())
        self.story.append(f"{self.name} begins")
        try:
            await trio.sleep(self.start_seconds)
            if self.before:
                raise self.before.with_traceback(None)
            self.usable = True
            task_status.started()
            if self.during:
                raise self.during.with_traceback(None)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._wait_for_a_crash)
                await self._asked.wait()
                await trio.sleep(self.finish_seconds)
                nursery.cancel_scope.cancel()
            self.story.append(f"{self.name} finishes")
        finally:
            self.alive = self.usable = False
            self.story.append(f"{self.name} ends")

    def crash(self, error: Exception) -> None:
        self._raise = error
        self._crash.set()

    def finish(self) -> None:
        """What `ask_to_stop` is for this service."""
        self.story.append(f"{self.name} is asked")
        self._asked.set()

    def service(self, **rules: Any) -> Service:
        return Service(self.name, self.run, **rules)

    async def _wait_for_a_crash(self) -> None:
        await self._crash.wait()
        assert self._raise
        raise self._raise.with_traceback(None)


async def settled(supervisor: Supervisor, path: str, state: State, *, within: float = 10_000) -> None:
    """Wait for a state; the mock clock jumps, so `within` is virtual time."""
    with trio.fail_after(within):
        await supervisor.wait_until(lambda s: s.state(path) is state)
