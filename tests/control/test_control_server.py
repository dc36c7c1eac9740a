import resource

import pytest
import trio
import trio.testing
from control_daemon import Daemon, Talker
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomd.control.codes import (
    BUSY,
    FAILED,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    UNAVAILABLE,
)
from bloomd.control.connection import LINE_SECONDS, UNSENT_LINES, WRITE_SECONDS, Answer, Connection
from bloomd.control.protocol import MAX_LINE, Fault, Request, encode_result, read_line
from bloomd.control.server import MAX_CLIENTS


async def test_a_call_is_answered(daemon: Daemon) -> None:
    async with await daemon.connect() as talker:
        answer = await talker.ask("ping")
        assert answer["id"] == 1
        assert answer["result"]["pong"] is True
        assert repr(daemon.server) == f"<ControlServer 1 of {MAX_CLIENTS} clients>"


@pytest.mark.parametrize(
    ("method", "params", "code", "words"),
    [
        ("pnig", {}, METHOD_NOT_FOUND, "no method 'pnig'; there are ping, status"),
        ("restart", {}, INVALID_PARAMS, "params of restart: Object missing required field `name`"),
        ("restart", {"name": 3}, INVALID_PARAMS, "Expected `str`, got `int` - at `$.name`"),
        ("restart", {"name": "http", "nmae": ""}, INVALID_PARAMS, "unknown field `nmae`"),
        ("restart", {"name": "nothing"}, FAILED, "there is no service nothing"),
        ("wrong", {}, FAILED, "the password for bloom is wrong"),
        ("refuse", {}, FAILED, "Task not found"),
        ("away", {}, UNAVAILABLE, "PostgreSQL does not answer"),
        ("bug", {}, INTERNAL_ERROR, "bug failed because of a bug in bloomd; its log has the details"),
        ("unencodable", {}, INTERNAL_ERROR, "a bug in bloomd"),
    ],
)
async def test_what_goes_wrong_is_an_error_and_the_conversation_goes_on(
    daemon: Daemon, method: str, params: dict[str, object], code: int, words: str
) -> None:
    async with await daemon.connect() as talker:
        error = (await talker.ask(method, **params))["error"]
        assert error["code"] == code
        assert words in error["message"]
        assert "12345" not in error["message"]
        assert "result" in await talker.ask("ping")


async def test_mutations_are_audited_whatever_becomes_of_them(daemon: Daemon) -> None:
    async with await daemon.connect() as talker:
        await talker.ask("ping")
        await talker.ask("restart", name="http")
        await talker.ask("restart", name="nothing")
        await talker.ask("restart", nmae="http")
        await talker.ask("bug")
    users = {user for user, *_ in daemon.audited}
    assert len(users) == 1
    assert [entry[1:] for entry in daemon.audited] == [
        ("restart", {"name": "http"}, "ok"),
        ("restart", {"name": "nothing"}, "there is no service nothing"),
        ("restart", {"nmae": "http"}, "params of restart: Object contains unknown field `nmae`"),
        ("bug", {}, "the password is 12345"),
    ]


async def test_garbage_costs_one_error_a_line(daemon: Daemon) -> None:
    async with await daemon.connect() as talker:
        await talker.say(b"\xff\xfe", b"[]", b"{}")
        codes = [(await talker.hear())["error"]["code"] for _ in range(3)]
        assert codes == [PARSE_ERROR, INVALID_REQUEST, INVALID_REQUEST]
        assert "result" in await talker.ask("ping")


async def test_requests_sent_together_are_answered_in_order_and_notifications_never(daemon: Daemon) -> None:
    request = '{{"jsonrpc":"2.0","id":{},"method":"ping"}}'
    async with await daemon.connect() as talker:
        numbers = range(200)
        await talker.say(*(request.format(number).encode() for number in numbers))
        await talker.say(
            b'{"jsonrpc":"2.0","method":"restart","params":{"name":"http"}}',
            b'{"jsonrpc":"2.0","method":"restart","params":{"name":"nothing"}}',
            b'{"jsonrpc":"2.0","method":"no such"}',
            request.format('"last"').encode(),
        )
        assert [(await talker.hear())["id"] for _ in numbers] == list(numbers)
        assert (await talker.hear())["id"] == "last"
    assert len(daemon.audited) == 2


async def test_a_huge_line_ends_the_conversation_with_one_error(daemon: Daemon) -> None:
    async with await daemon.connect() as talker, trio.open_nursery() as nursery:

        async def flood() -> None:
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await talker.stream.send_all(b"x" * MAX_LINE)

        nursery.start_soon(flood)
        error = (await talker.hear())["error"]
        assert error == {"code": INVALID_REQUEST, "message": f"line too long: at most {MAX_LINE} bytes"}
        assert await talker.hear() == {}


async def test_a_line_of_a_mebibyte_is_answered(daemon: Daemon) -> None:
    async with await daemon.connect() as talker:
        answer = await talker.ask("restart", name="x" * (MAX_LINE - 100))
        assert len(answer["result"][0]) == MAX_LINE - 100


async def test_two_hundred_clients_at_once_are_all_served_in_the_end(daemon: Daemon) -> None:
    answers: list[dict[str, object]] = []
    turned_away = 0

    async def insist() -> None:
        nonlocal turned_away
        while True:
            async with await daemon.connect() as talker:
                try:
                    answer = await talker.ask("ping")
                except trio.BrokenResourceError:  # hung up before the question was out
                    answer = await talker.hear()
            if "result" in answer:
                answers.append(answer)
                return
            assert answer["error"]["code"] == BUSY
            turned_away += 1

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(insist)
    assert len(answers) == 200


async def test_one_client_too_many_is_told_so_and_room_is_made_again(daemon: Daemon) -> None:
    talkers = [await daemon.connect() for _ in range(MAX_CLIENTS)]
    for talker in talkers:
        assert "result" in await talker.ask("ping")
    async with await daemon.connect() as one_too_many:
        error = (await one_too_many.hear())["error"]
        assert error == {"code": BUSY, "message": "busy: 64 clients are connected already; try again later"}
        assert await one_too_many.hear() == {}
    await talkers.pop().stream.aclose()
    with trio.fail_after(5):
        while True:
            async with await daemon.connect() as next_one:
                if "result" in await next_one.ask("ping"):
                    break
    for talker in talkers:
        await talker.stream.aclose()


async def test_a_client_that_goes_away_cancels_its_call(daemon: Daemon) -> None:
    async with await daemon.connect() as talker:
        await talker.say(b'{"jsonrpc":"2.0","id":1,"method":"hang"}')
        await daemon.hanging.wait()
    with trio.fail_after(5):
        await daemon.cancelled.wait()
        while not daemon.audited:
            await trio.lowlevel.checkpoint()
    assert daemon.audited[0][1:] == ("hang", {}, "cancelled: the client went away")


async def test_a_client_that_asks_no_more_still_gets_its_answer(daemon: Daemon) -> None:
    async with await daemon.connect() as talker:
        await talker.say(b'{"jsonrpc":"2.0","id":1,"method":"hang"}')
        await talker.stream.send_eof()
        await daemon.hanging.wait()
        await trio.testing.wait_all_tasks_blocked()
        daemon.finish.set()
        assert (await talker.hear())["result"] == "finished"
        assert await talker.hear() == {}
    assert not daemon.cancelled.is_set()


async def test_a_half_closed_client_that_goes_away_cancels_its_call(daemon: Daemon) -> None:
    async with await daemon.connect() as talker:
        await talker.say(b'{"jsonrpc":"2.0","id":1,"method":"hang"}')
        await talker.stream.send_eof()
        await daemon.hanging.wait()
        await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(5):
        await daemon.cancelled.wait()


async def test_a_subscriber_gets_notifications_and_then_the_result(daemon: Daemon) -> None:
    async with await daemon.connect() as talker:
        first = await talker.ask("events", count=3)
        assert first == {"jsonrpc": "2.0", "method": "event", "params": {"number": 0, "text": "x" * 10}}
        assert [(await talker.hear())["params"]["number"] for _ in range(2)] == [1, 2]
        assert (await talker.hear())["result"] == "end"


async def test_a_subscriber_that_reads_late_misses_nothing_and_holds_up_nobody(daemon: Daemon) -> None:
    async with await daemon.connect() as slow, await daemon.connect() as other:
        await slow.say(b'{"jsonrpc":"2.0","id":1,"method":"events","params":{"count":5000,"size":1000}}')
        await daemon.subscribed.wait()
        assert "result" in await other.ask("ping")
        with trio.fail_after(20):
            assert [(await slow.hear())["params"]["number"] for _ in range(5000)] == list(range(5000))
            assert (await slow.hear())["result"] == "end"


async def test_no_descriptors_left_is_survived(daemon: Daemon) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with await daemon.connect() as talker:
        assert "result" in await talker.ask("ping")
        late = trio.socket.socket(trio.socket.AF_UNIX)
        resource.setrlimit(resource.RLIMIT_NOFILE, (late.fileno(), limits[1]))
        try:
            await late.connect(daemon.path)
            await trio.testing.wait_all_tasks_blocked()
            assert "result" in await talker.ask("ping")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        async with Talker(trio.SocketStream(late)) as waited:
            with trio.fail_after(5):
                assert "result" in await waited.ask("ping")


async def test_a_restart_of_the_service_keeps_the_socket(daemon: Daemon) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.server.serve, daemon.listener.socket)
        nursery.cancel_scope.cancel()
    async with await daemon.connect() as talker:
        assert "result" in await talker.ask("ping")


# What is left waits for time to pass: on a socket pair and the mock clock.


async def echo(request: Request) -> bytes:
    return encode_result(request.id, request.params)


class Pair:
    """A connection that is served as `ControlServer` would, without a listener, and its other end."""

    def __init__(self) -> None:
        ours, theirs = trio.socket.socketpair()
        self._stream = trio.SocketStream(ours)
        self.connection = Connection(self._stream)
        self.talker = Talker(trio.SocketStream(theirs))

    async def serve(self, answer: Answer = echo) -> None:
        async with self._stream:
            await self.connection.run(answer)


async def test_half_a_line_is_waited_for_a_while(autojump_clock: trio.testing.MockClock) -> None:
    pair = Pair()
    async with pair.talker as talker, trio.open_nursery() as nursery:
        nursery.start_soon(pair.serve)
        await trio.sleep(1000)  # idle is allowed
        began = trio.current_time()
        await talker.stream.send_all(b'{"jsonrpc":')
        await trio.sleep(LINE_SECONDS - 1)
        await talker.stream.send_all(b'"2.0"')  # a byte now and then does not help
        error = (await talker.hear())["error"]
        assert error["message"] == "line not finished within 10 seconds"
        assert trio.current_time() - began == pytest.approx(LINE_SECONDS)
        assert await talker.hear() == {}


async def test_each_line_has_its_own_deadline(autojump_clock: trio.testing.MockClock) -> None:
    pair = Pair()
    async with pair.talker as talker, trio.open_nursery() as nursery:
        nursery.start_soon(pair.serve)
        await talker.stream.send_all(b'{"jsonrpc":"2.0","id":0,"method":"a"')
        for number in range(1, 5):
            await trio.sleep(LINE_SECONDS - 1)
            await talker.stream.send_all(b'}\n{"jsonrpc":"2.0","id":%d,"method":"a"' % number)
            assert (await talker.hear())["id"] == number - 1
        nursery.cancel_scope.cancel()


async def test_a_client_that_does_not_read_its_answer_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    async def large(request: Request) -> bytes:
        return encode_result(request.id, "x" * 10_000_000)

    pair = Pair()
    async with pair.talker as talker:
        await talker.say(b'{"jsonrpc":"2.0","id":1,"method":"a"}')
        began = trio.current_time()
        await pair.serve(large)
        assert trio.current_time() - began == pytest.approx(WRITE_SECONDS)


async def test_a_subscriber_that_does_not_read_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    pair = Pair()
    sent = 0

    async def publish(request: Request) -> bytes:
        nonlocal sent
        while True:
            await pair.connection.notify("event", {"text": "x" * 10_000})
            sent += 1

    async with pair.talker as talker:
        await talker.say(b'{"jsonrpc":"2.0","id":1,"method":"events"}')
        began = trio.current_time()
        await pair.serve(publish)
        assert trio.current_time() - began == pytest.approx(WRITE_SECONDS)
    assert UNSENT_LINES < sent < 1000


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=50) | st.sampled_from([b"\n", b"{}\n", b'{"jsonrpc":"2.0","id":1,"method":"a"}\n'])))
def test_whatever_is_sent_each_line_is_answered(chunks: list[bytes]) -> None:
    messages = [read_line(line) for line in b"".join(chunks).split(b"\n")[:-1]]
    expected = [
        {"jsonrpc": "2.0", "id": message.id, "error": {"code": message.code, "message": message.message}}
        if isinstance(message, Fault)
        else {"jsonrpc": "2.0", "id": message.id, "result": message.params}
        for message in messages
        if message is not None and not (isinstance(message, Request) and message.notification)
    ]

    async def talk() -> None:
        pair = Pair()
        async with pair.talker as talker, trio.open_nursery() as nursery:
            nursery.start_soon(pair.serve)
            with trio.fail_after(10):
                for chunk in chunks:
                    await talker.stream.send_all(chunk)
                    await trio.lowlevel.checkpoint()
                await talker.stream.send_eof()
                answers = []
                while answer := await talker.hear():
                    answers.append(answer)
        assert answers == expected

    trio.run(talk)
