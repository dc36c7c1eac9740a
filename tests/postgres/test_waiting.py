"""The driver alone: generators as psycopg writes them, on a pair of sockets."""

import socket
import time
from collections.abc import Generator, Iterator

import psycopg
import pytest
import trio
from psycopg.waiting import Ready, Wait

from bloomd.postgres.waiting import MAX_TURN_SECONDS, Operation, Turn, run_connecting

Step = Generator[Wait, "Ready | int", list[int]]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


def waits_for(*wanted: Wait) -> Step:
    resumed_with: list[int] = []
    for wait in wanted:
        resumed_with.append((yield wait))  # noqa: PERF401 (a comprehension cannot yield)
    return resumed_with


def fill(sender: socket.socket) -> None:
    with pytest.raises(BlockingIOError):
        while True:
            sender.send(b"x" * 65536)


async def test_it_waits_for_what_the_generator_asks(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.send(b"x")
    operation = Operation(waits_for(Wait.W, Wait.R, Wait.RW), ours.fileno(), Turn(), lambda: False)
    assert await operation.result() == [Ready.W, Ready.R, Ready.RW]


async def test_either_means_the_first_of_both(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    fill(ours)
    for make_ready, expected in ((lambda: theirs.send(b"x"), Ready.R), (lambda: theirs.recv(1 << 24), Ready.RW)):
        operation = Operation(waits_for(Wait.RW), ours.fileno(), Turn(), lambda: False)
        async with trio.open_nursery() as nursery:

            async def check(operation: Operation[list[int]] = operation, expected: Ready = expected) -> None:
                assert await operation.result() == [expected]

            if expected == Ready.R:
                nursery.start_soon(check)
                await trio.testing.wait_all_tasks_blocked()
                make_ready()
            else:
                make_ready()
                nursery.start_soon(check)


@pytest.mark.parametrize("wanted", [Wait.R, Wait.W, Wait.RW])
async def test_a_cancelled_wait_is_a_plain_cancelled_and_can_be_taken_up_again(
    pair: tuple[socket.socket, socket.socket], wanted: Wait
) -> None:
    ours, theirs = pair
    fill(ours)
    operation = Operation(waits_for(wanted), ours.fileno(), Turn(), lambda: False)
    with trio.CancelScope() as scope:
        scope.cancel()
        with pytest.raises(trio.Cancelled):
            await operation.result()
    assert operation.is_sending == bool(wanted & Wait.W)
    theirs.send(b"x")
    theirs.recv(1 << 24)
    assert await operation.result()


@pytest.mark.parametrize("wanted", [Wait.R, Wait.W, Wait.RW])
async def test_a_socket_that_another_task_closes(pair: tuple[socket.socket, socket.socket], wanted: Wait) -> None:
    ours, _ = pair
    fill(ours)
    operation = Operation(waits_for(wanted), ours.fileno(), Turn(), lambda: False)

    async def check() -> None:
        with pytest.raises(psycopg.OperationalError, match="closed while it was in use"):
            await operation.result()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(check)
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.notify_closing(ours.fileno())


@pytest.mark.parametrize("wanted", [Wait.R, Wait.W])
async def test_a_generator_is_not_resumed_once_its_connection_is_gone(
    pair: tuple[socket.socket, socket.socket], wanted: Wait
) -> None:
    """Its memory belongs to libpq, which has freed it: the socket was ready, but another task closed it first."""
    ours, theirs = pair
    resumed: list[object] = []

    def generator() -> Generator[Wait, "Ready | int", None]:
        resumed.append((yield wanted))

    gone = False
    if wanted == Wait.W:
        fill(ours)
    operation = Operation(generator(), ours.fileno(), Turn(), lambda: gone)

    async def check() -> None:
        with pytest.raises(psycopg.OperationalError):
            await operation.result()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(check)
        await trio.testing.wait_all_tasks_blocked()
        theirs.recv(1 << 24) if wanted == Wait.W else theirs.send(b"x")
        gone = True
    assert resumed == []


@pytest.mark.parametrize("many", ["steps", "operations"])
async def test_a_socket_that_is_always_ready_leaves_others_their_turn(
    pair: tuple[socket.socket, socket.socket], many: str
) -> None:
    ours, _ = pair
    turns = 0
    turn = Turn()
    end = time.monotonic() + 40 * MAX_TURN_SECONDS

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    def busy() -> Generator[Wait, "Ready | int", None]:
        while time.monotonic() < end:
            yield Wait.W

    def immediate() -> Generator[Wait, "Ready | int", None]:
        return
        yield

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        if many == "steps":
            await Operation(busy(), ours.fileno(), turn, lambda: False).result()
        else:
            while time.monotonic() < end:
                await Operation(immediate(), ours.fileno(), turn, lambda: False).result()
        nursery.cancel_scope.cancel()
    # One for each time slice, less what a busy machine swallows; without any yielding it would be 1 at the most.
    assert turns > 10


async def test_the_result_is_not_lost_to_a_cancellation_that_comes_with_it(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, _ = pair
    with trio.CancelScope() as scope:
        scope.cancel()
        # A turn that is over: the operation yields to others before it returns, and must not raise there.
        assert await Operation(waits_for(), ours.fileno(), Turn(), lambda: False).result() == []


async def test_while_connecting_the_socket_may_be_another_one_each_time(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    closed: list[bool] = []

    def connect() -> Generator[tuple[int, Wait], "Ready | int", str]:
        try:
            yield ours.fileno(), Wait.W
            yield theirs.fileno(), Wait.W
            ours.send(b"x")
            yield theirs.fileno(), Wait.R
            return "connected"
        finally:
            closed.append(True)

    assert await run_connecting(connect()) == "connected"
    with trio.move_on_after(0):
        await run_connecting(connect())
    assert closed == [True, True], "also a half-open one is freed at once"
