import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomd.control.codes import INVALID_PARAMS, INVALID_REQUEST, PARSE_ERROR
from bloomd.control.protocol import (
    MAX_LINE,
    Fault,
    Parser,
    Request,
    encode_error,
    encode_notification,
    encode_result,
    read_line,
)

names = st.text(st.characters(codec="utf-8"), max_size=8)
ids = st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | names
# Without -0.0 and the like: what JSON does to a float is not ours to test.
values = st.recursive(
    st.none() | st.booleans() | st.integers() | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
requests = st.builds(Request, names, st.dictionaries(names, values, max_size=3), ids)
notifications = st.builds(Request, names, st.dictionaries(names, values, max_size=3), st.none(), st.just(True))


def line_of(request: Request) -> bytes:
    message = {"jsonrpc": "2.0", "method": request.method, "params": request.params}
    if not request.notification:
        message["id"] = request.id
    return json.dumps(message).encode()


almost_requests = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | values,
        "method": names | values,
        "params": values,
        "id": ids | values,
        "extra": values,
    },
)
lines = st.one_of(
    st.binary(max_size=40).map(lambda data: data.replace(b"\n", b"")),
    st.builds(line_of, requests | notifications),
    st.builds(lambda value: json.dumps(value).encode(), values | almost_requests),
)


@st.composite
def chunked(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The bytes, cut anywhere."""
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def feed(parser: Parser, chunks: list[bytes]) -> list[Request | Fault]:
    return [message for chunk in chunks for message in parser.feed(chunk)]


@given(st.data())
def test_every_line_has_the_same_answer_however_the_bytes_arrive(data: st.DataObject) -> None:
    sent = data.draw(st.lists(lines, max_size=8))
    rest = data.draw(st.binary(max_size=20)).replace(b"\n", b"")
    parser = Parser()
    messages = feed(parser, data.draw(chunked(b"".join(line + b"\n" for line in sent) + rest)))

    assert messages == [message for line in sent if (message := read_line(line)) is not None]
    assert parser.unfinished == bool(rest)
    for message in messages:
        if isinstance(message, Fault):  # it can be said, and the other side can read it
            answer = json.loads(encode_error(message.id, message.code, message.message))
            assert answer["id"] == message.id


@given(st.data(), st.integers(1, 30))
def test_an_overlong_line_is_one_error_and_the_end_however_the_bytes_arrive(data: st.DataObject, max_line: int) -> None:
    everything = data.draw(
        st.lists(st.sampled_from([b"\n", b"1", b"22", b'{"a":1}', b"\r"]), max_size=60).map(b"".join)
    )
    expected: list[Request | Fault | None] = []
    overrun = False
    for line in everything.split(b"\n"):
        if overrun := len(line) > max_line:
            expected.append(Fault(None, INVALID_REQUEST, f"line too long: at most {max_line} bytes"))
            break
        expected.append(read_line(line))
    if not overrun:
        expected.pop()  # what follows the last LF is no line yet

    parser = Parser(max_line)
    assert feed(parser, data.draw(chunked(everything))) == expected
    assert parser.overrun == overrun
    if overrun:
        assert parser.feed(b"1\n") == []


@given(requests | notifications, st.sampled_from([b"", b"\r", b"  ", b" \t\r"]))
def test_a_request_is_read_as_it_was_written(request: Request, ending: bytes) -> None:
    assert read_line(line_of(request) + ending) == request


@given(st.binary(max_size=60))
def test_what_is_no_json_is_a_parse_error(line: bytes) -> None:
    try:
        json.loads(line.decode("utf-8"))
    except ValueError:
        fault = read_line(line)
        assert isinstance(fault, Fault)
        assert (fault.id, fault.code) == (None, PARSE_ERROR)


@pytest.mark.parametrize(
    ("line", "id", "code", "words"),
    [
        (b"", None, PARSE_ERROR, "not JSON"),
        (b"{", None, PARSE_ERROR, "not JSON"),
        (b'{"jsonrpc":"2.0","id":1,"method":"\xff"}', None, PARSE_ERROR, "utf-8"),
        (b"\xef\xbb\xbf{}", None, PARSE_ERROR, "not JSON"),
        (b"[" * 100_000, None, PARSE_ERROR, "recursion"),
        (b"9" * 5000, None, PARSE_ERROR, "out of range"),
        (b"3", None, INVALID_REQUEST, "JSON object"),
        (b"[]", None, INVALID_REQUEST, "batches"),
        (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', None, INVALID_REQUEST, "batches"),
        (b'{"id":1,"method":"ping"}', 1, INVALID_REQUEST, "jsonrpc"),
        (b'{"jsonrpc":"1.0","id":"a","method":"ping"}', "a", INVALID_REQUEST, "1.0"),
        (b'{"jsonrpc":"2.0","id":2.5}', 2.5, INVALID_REQUEST, "method"),
        (b'{"jsonrpc":"2.0","id":7,"method":null}', 7, INVALID_REQUEST, "method"),
        (b'{"jsonrpc":"2.0","id":7,"method":"ping","params":null}', 7, INVALID_REQUEST, "params"),
        (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', None, INVALID_REQUEST, "id"),
        (b'{"jsonrpc":"2.0","id":[1],"method":"ping"}', None, INVALID_REQUEST, "id"),
        (b'{"jsonrpc":"2.0","id":7,"method":"ping","params":[1]}', 7, INVALID_PARAMS, "by name"),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping","params":[]}', None, INVALID_PARAMS, "by name"),
    ],
)
def test_what_is_no_request_is_told_so(line: bytes, id: object, code: int, words: str) -> None:
    fault = read_line(line)
    assert isinstance(fault, Fault)
    assert (fault.id, fault.code) == (id, code)
    assert words in fault.message


def test_a_wrong_notification_is_told_nothing() -> None:
    assert read_line(b'{"jsonrpc":"2.0","method":"ping","params":[1]}') is None


def test_a_null_id_is_a_request_and_no_notification() -> None:
    request = read_line(b'{"jsonrpc":"2.0","method":"ping","id":null}')
    assert request == Request("ping", {}, None)
    assert request == msgspec.structs.replace(request, notification=False)


def test_the_longest_line_is_read_and_one_byte_more_is_not() -> None:
    frame = b'{"jsonrpc":"2.0","id":1,"method":""}'
    longest = frame[:-2] + b"x" * (MAX_LINE - len(frame)) + frame[-2:]
    (request,) = Parser().feed(longest + b"\n")
    assert isinstance(request, Request)

    parser = Parser()
    assert parser.feed(longest) == []
    (fault,) = parser.feed(b" ")  # no LF is needed to know it
    assert fault == Fault(None, INVALID_REQUEST, f"line too long: at most {MAX_LINE} bytes")
    assert repr(parser) == "<Parser overrun>"


def test_a_huge_line_in_small_pieces_takes_linear_time() -> None:
    parser = Parser()
    for _ in range(MAX_LINE // 16):
        assert parser.feed(b"x" * 16) == []
    assert repr(parser) == f"<Parser {MAX_LINE} bytes of a line>"


@given(ids, values)
def test_an_answer_is_one_line_of_the_same_id(id: str | int | float | None, result: object) -> None:
    line = encode_result(id, result)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"jsonrpc": "2.0", "id": id, "result": result}


def test_a_notification_has_no_id() -> None:
    assert json.loads(encode_notification("event", {"a": 1})) == {
        "jsonrpc": "2.0",
        "method": "event",
        "params": {"a": 1},
    }
