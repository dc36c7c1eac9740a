"""What `/agents` says, decoded: whatever is in it, the rest is kept, and all that comes out can be stored."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import new_agent, old_agent

from bloomd.membridge.agents import Agent, decode

NOW = 1_800_000_000.0


def one(**fields: Any) -> Agent:
    (agent,) = decode(json.dumps([{"name": "w", **fields}]).encode(), now=NOW).agents
    return agent


def test_what_is_not_sent_is_none() -> None:
    assert one() == Agent("w")
    nothing = dict.fromkeys(
        ("node_id", "url", "status", "capabilities", "last_seen", "ip_addrs", "obs_count", "db_sha")
    )
    assert one(**nothing) == Agent("w")


@pytest.mark.parametrize(
    ("fields", "id"),
    [
        ({"name": "n", "node_id": "m", "id": "i"}, "n"),
        ({"node_id": "m", "id": "i"}, "m"),
        ({"name": None, "node_id": None, "id": "i"}, "i"),
        ({"id": 17}, "17"),
        ({"name": "n" * 128}, "n" * 128),
    ],
)
def test_the_id_is_name_or_node_id_or_id(fields: dict[str, Any], id: str) -> None:
    assert [agent.id for agent in decode(json.dumps([fields]).encode(), now=NOW).agents] == [id]


@pytest.mark.parametrize(
    "bad",
    [
        None, 17, "w", [], {}, {"name": ""}, {"name": "a\0b"}, {"name": "n" * 129}, {"name": True}, {"name": ["w"]},
        {"name": "", "id": "i"}, {"name": "\ud800"}, {"name": "."}, {"node_id": ".."},
    ],
)  # fmt: skip
def test_a_malformed_agent_spoils_no_other(bad: Any) -> None:
    decoded = decode(json.dumps([old_agent("a"), bad, new_agent("b")]).encode(), now=NOW)
    assert [agent.id for agent in decoded.agents] == ["a", "b"]
    assert decoded.skipped == ["agent 1 has no usable name"]


def test_the_last_of_two_counts() -> None:
    decoded = decode(
        json.dumps([{"name": "a", "status": "online"}, {"name": "a", "status": "error"}]).encode(), now=NOW
    )
    assert decoded.agents == [Agent("a", status="error")]


@pytest.mark.parametrize("body", [b"", b"{}", b"null", b"<html>", b"\xff\xfe", b"[" * 100_000, b'{"agents": []}'])
def test_no_list_at_all(body: bytes) -> None:
    with pytest.raises(ValueError, match="its /agents is not"):
        decode(body, now=NOW)


@pytest.mark.parametrize(
    ("last_seen", "milliseconds"),
    [
        (1_700_000_000, 1_700_000_000_000),
        (1_700_000_000.25, 1_700_000_000_250),
        ("1700000000.5", 1_700_000_000_500),
        ("2023-11-14T22:13:20Z", 1_700_000_000_000),
        ("2023-11-14T22:13:20.5+00:00", 1_700_000_000_500),
        ("2023-11-14T22:13:20", 1_700_000_000_000),
        (NOW + 90, int(NOW * 1000)),
        (1_700_000_000_000, None),
        (-1, None),
        (0, None),
        (float("nan"), None),
        (float("inf"), None),
        (10**400, None),
        ("yesterday", None),
        ("nan", None),
        ("", None),
        (True, None),
        ([1], None),
    ],
)
def test_last_seen(last_seen: Any, milliseconds: int | None) -> None:
    assert one(last_seen=last_seen).last_seen_ms == milliseconds


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ({}, {}),
        ([], None),
        ("claude", None),
        ({"claude_cli": False}, {"claude_cli": False}),
        ({"claude_cli": "yes", "max_concurrency": None, "labels": None}, {}),
        ({"max_concurrency": 0}, {"max_concurrency": 1}),
        ({"max_concurrency": 1000}, {"max_concurrency": 32}),
        ({"max_concurrency": 3.0}, {"max_concurrency": 3}),
        ({"max_concurrency": float("nan")}, {}),
        ({"max_concurrency": "4"}, {}),
        ({"labels": ["a", "", None, "a", "b\0", ["c"], 7]}, {"labels": ["a", "7"]}),
        ({"labels": "gpu"}, {}),
        ({"gpu": {"names": ["x"]}, "sessions": True}, {"gpu": {"names": ["x"]}, "sessions": True}),
        ({"note": "a\0b", "list": [float("inf")], "big": 10**400, "\0": 1, "half": "\udfff"}, {}),
        ({"long": "x" * 20_000}, {}),
    ],
)  # fmt: skip
def test_capabilities(sent: Any, kept: Any) -> None:
    assert one(capabilities=sent).capabilities == kept


def test_what_bloomd_does_not_read_is_kept_within_reason() -> None:
    sent = {**{f"note{n}": "x" * 1000 for n in range(40)}, "small": 1, "labels": ["gpu"], "max_concurrency": 4}
    kept = one(capabilities=sent).capabilities
    assert kept is not None
    assert (kept["labels"], kept["max_concurrency"], kept["small"], kept["note14"]) == (["gpu"], 4, 1, "x" * 1000)
    assert "note39" not in kept
    assert len(json.dumps(kept)) <= 17 * 1024


def test_a_deep_capability_is_left_out() -> None:
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    assert one(capabilities={"deep": deep, "flat": [1]}).capabilities == {"flat": [1]}


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        ("url", "http://10.0.0.1:8001", "http://10.0.0.1:8001"),
        ("url", "HTTPS://h", "HTTPS://h"),
        ("url", "", None),
        ("url", "file:///etc/passwd", None),
        ("url", "http://a b", None),
        ("url", "http://a\r\nb", None),
        ("url", "http://" + "a" * 3000, None),
        ("status", "Online", "online"),
        ("status", "busy", None),
        ("status", 1, None),
        ("ip_addrs", ["10.0.0.1", None, "::1"], ["10.0.0.1", "::1"]),
        ("ip_addrs", "10.0.0.1", None),
        ("obs_count", 12, 12),
        ("obs_count", 2**31, None),
        ("obs_count", -1, None),
        ("obs_count", True, None),
        ("db_sha", "5f", "5f"),
        ("db_sha", ["5f"], None),
    ],
)
def test_other_fields(field: str, value: Any, kept: Any) -> None:
    assert getattr(one(**{field: value}), field) == kept


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["\0", "\ud800"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)
FIELDS = ("name", "node_id", "id", "url", "status", "last_seen", "ip_addrs", "obs_count", "db_sha")
CAPABILITIES = st.dictionaries(st.sampled_from(["claude_cli", "max_concurrency", "labels"]) | st.text(), VALUES)
ANYTHING = st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, VALUES) | {"capabilities": CAPABILITIES | VALUES})


@given(st.lists(ANYTHING | VALUES, max_size=4))
def test_whatever_comes_can_be_stored(items: list[Any]) -> None:
    decoded = decode(json.dumps([old_agent("sound"), *items]).encode(), now=NOW)
    assert decoded.agents
    assert len(decoded.agents) + len(decoded.skipped) <= len(items) + 1
    stored = json.dumps(msgspec.to_builtins(decoded.agents), allow_nan=False, ensure_ascii=False)
    assert "\\u0000" not in stored
    stored.encode()
    for agent in decoded.agents:
        assert 0 < len(agent.id) <= 128
        assert agent.last_seen_ms is None or 0 < agent.last_seen_ms <= NOW * 1000
        assert agent.obs_count is None or 0 <= agent.obs_count < 2**31


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_list_or_an_error(body: bytes) -> None:
    try:
        is_list = isinstance(json.loads(body), list)
    except ValueError:
        is_list = False
    if is_list:
        assert all(agent.id for agent in decode(body, now=NOW).agents)
    else:
        with pytest.raises(ValueError, match="its /agents is not"):
            decode(body, now=NOW)
