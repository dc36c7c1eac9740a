"""Drives psycopg's generators with trio: the one place where a task waits for a database socket.

psycopg writes each operation as a generator that yields what it waits for (`Wait.R`, `W` or `RW`) and is resumed with
what became ready. Whoever drives it decides how to wait; here it is trio.
"""

import select
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import psycopg
import trio
from psycopg.abc import PQGen, PQGenConn
from psycopg.waiting import Ready, Wait

T = TypeVar("T")

# A socket that is always ready (COPY, executemany) must not keep the loop from all other tasks for longer than a person
# or a lease heartbeat would notice; much shorter, and the scheduler itself becomes the cost.
MAX_TURN_SECONDS = 0.005

_POLL_EVENTS = {Wait.R: select.POLLIN, Wait.W: select.POLLOUT, Wait.RW: select.POLLIN | select.POLLOUT}
# A broken socket counts as ready: libpq then reads or writes it and finds out why.
_READABLE = select.POLLIN | select.POLLHUP | select.POLLERR
_WRITABLE = select.POLLOUT | select.POLLHUP | select.POLLERR


class Turn:
    """How long a connection has kept the event loop to itself."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since = 0.0

    def begin(self) -> None:
        self._since = time.monotonic()

    @property
    def is_over(self) -> bool:
        return time.monotonic() - self._since >= MAX_TURN_SECONDS


class Operation(Generic[T]):
    """One generator under way on an established connection.

    `result` may be called again after it was cancelled: it goes on where the generator waits.
    """

    __slots__ = ("_abandoned", "_fileno", "_generator", "_turn", "_waits_for")

    def __init__(self, generator: PQGen[T], fileno: int, turn: Turn, abandoned: Callable[[], bool]) -> None:
        self._generator = generator
        self._fileno = fileno
        self._turn = turn
        self._abandoned = abandoned
        self._waits_for: Wait | None = None

    @property
    def is_sending(self) -> bool:
        """Whether a part of the query may still be in our buffer: the server would wait for the rest for ever."""
        return self._waits_for is not None and bool(self._waits_for & Wait.W)

    async def result(self) -> T:
        try:
            if self._waits_for is None:
                self._waits_for = next(self._generator)
            while True:
                ready = await self._ready(self._waits_for)
                self._waits_for = self._generator.send(ready)
        except StopIteration as stop:
            if self._turn.is_over:
                # Shielded, because the result must not be lost any more.
                await trio.lowlevel.cancel_shielded_checkpoint()
                self._turn.begin()
            return stop.value

    async def _ready(self, wanted: Wait) -> Ready:
        if wanted & Wait.W:
            if self._turn.is_over:
                await trio.lowlevel.checkpoint()
                self._turn.begin()
            # A socket is nearly always writable: asking costs a tenth of a round through the scheduler.
            ready = ready_now(self._fileno, wanted)
            if ready and not self._abandoned():
                return ready
        ready = await wait_until_ready(self._fileno, wanted)
        self._turn.begin()
        if self._abandoned():  # while this task was about to run: libpq's memory is gone, resuming would touch it
            raise closed_while_in_use()
        return ready


async def run_connecting(generator: PQGenConn[T]) -> T:
    """Drive a generator whose socket may be another one after each step, as while connecting."""
    try:
        fileno, wanted = next(generator)
        while True:
            fileno, wanted = generator.send(await wait_until_ready(fileno, wanted))
    except StopIteration as stop:
        return stop.value
    finally:
        generator.close()  # frees a half-open connection now, not when some traceback is collected


async def wait_until_ready(fileno: int, wanted: Wait) -> Ready:
    try:
        if wanted == Wait.R:
            await trio.lowlevel.wait_readable(fileno)
            return Ready.R
        if wanted == Wait.W:
            await trio.lowlevel.wait_writable(fileno)
            return Ready.W
        return await _wait_for_either(fileno)
    except (trio.ClosedResourceError, OSError) as error:
        raise closed_while_in_use() from error


async def _wait_for_either(fileno: int) -> Ready:
    async def wait_with(wait: Callable[[int], Awaitable[None]], nursery: trio.Nursery) -> None:
        nonlocal closed
        try:
            await wait(fileno)
        except trio.ClosedResourceError as error:
            closed = error
        nursery.cancel_scope.cancel()

    closed: trio.ClosedResourceError | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_with, trio.lowlevel.wait_readable, nursery)
            nursery.start_soon(wait_with, trio.lowlevel.wait_writable, nursery)
    except BaseExceptionGroup:
        # Only ever of trio.Cancelled, one for each task; raised once more, it is a single one again.
        await trio.lowlevel.checkpoint_if_cancelled()
        raise
    if closed:
        raise closed
    return ready_now(fileno, Wait.RW)


def ready_now(fileno: int, wanted: Wait) -> Ready:
    poll = select.poll()
    poll.register(fileno, _POLL_EVENTS[wanted])
    ready = Ready.NONE
    for _, event in poll.poll(0):
        if event & select.POLLNVAL:
            raise closed_while_in_use()
        if event & _READABLE and wanted & Wait.R:
            ready |= Ready.R
        if event & _WRITABLE and wanted & Wait.W:
            ready |= Ready.W
    return Ready(ready)


def closed_while_in_use() -> psycopg.OperationalError:
    return psycopg.OperationalError("the connection was closed while it was in use")
