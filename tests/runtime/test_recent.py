"""The latest events in memory, against a plain list of all there ever were."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomd.runtime.recent import BadPosition, Event, Recent, id_of, position_of

START = (10, 0)


def event(id, size=0):
    return Event(id, "task", "t", msgspec.Raw(b'"' + b"x" * size + b'"'))


@st.composite
def histories(draw):
    """What happens, in order: entries of the trail at growing positions, events without one, quiet."""
    steps, xact, seq = [], START[0], 0
    for kind in draw(st.lists(st.sampled_from(["entry", "entry", "entry", "live", "quiet"]), max_size=40)):
        if kind == "entry":
            xact, seq = xact + draw(st.integers(0, 3)), seq + draw(st.integers(1, 3))
        elif kind == "quiet":
            xact += 5
        steps.append((kind, (xact, seq), draw(st.integers(0, 3000))))
    return steps


@given(histories(), st.integers(0, 60), st.integers(0, 90))
def test_what_comes_after_a_position_is_given_as_long_as_it_is_kept(history, xact, seq):
    recent, everything = Recent(START, kept_bytes=10_000), []
    head = START
    for kind, position, size in history:
        if kind == "entry":
            head = position
            recent.add([(position, event(id_of(position), size))])
        elif kind == "live":
            recent.add_live(event(None, size))
        if kind != "quiet":
            everything.append((head, size))
    assert recent.head == head
    assert recent.end == len(everything)
    kept = recent.since(recent.first, len(everything))
    assert len(kept) == len(everything) - recent.first
    assert sum(size + 2 + 500 for _, size in everything[recent.first :]) <= 10_000
    assert recent.first == 0 or sum(size + 2 + 500 for _, size in everything[recent.first - 1 :]) > 10_000
    after = (xact, seq)
    if after >= recent.start:
        number = recent.number_after(after)
        assert number == next(
            (number for number, (position, _) in enumerate(everything) if position > after), len(everything)
        )
        assert [len(bytes(each.data)) - 2 for each in recent.since(number, 1000)] == [
            size for position, size in everything if position > after
        ]


@given(histories())
def test_nothing_is_missing_after_the_start(history):
    """Whoever has read the trail up to `start` finds all that follows."""
    recent, entries = Recent(START, kept_bytes=5_000), []
    for kind, position, size in history:
        if kind == "entry":
            entries.append(position)
            recent.add([(position, event(id_of(position), size))])
        elif kind == "live":
            recent.add_live(event(None, size))
        here = [each.id for each in recent.since(recent.number_after(recent.start), 1000) if each.id]
        assert here == [id_of(position) for position in entries if position > recent.start]


def test_what_has_just_come_is_kept_however_large():
    recent = Recent(START, kept_bytes=1000)
    recent.add([((11, n), event(f"11-{n}", 900)) for n in range(5)])
    assert (recent.first, recent.end, recent.start) == (0, 5, START)
    recent.add([((12, 9), event("12-9", 900))])
    assert (recent.first, recent.end, recent.start) == (5, 6, (11, 4))


def test_a_limit_cuts_and_the_rest_follows():
    recent = Recent(START)
    recent.add([((11, n), event(f"11-{n}")) for n in range(5)])
    assert [each.id for each in recent.since(0, 2)] == ["11-0", "11-1"]
    assert [each.id for each in recent.since(3, 2)] == ["11-3", "11-4"]
    assert recent.since(recent.end, 2) == []


async def test_who_waits_is_woken_by_either_kind():
    recent = Recent(START)
    for add in (lambda: recent.add([((11, 1), event("11-1"))]), lambda: recent.add_live(event(None))):
        arrived = recent.arrived
        add()
        await arrived.wait()
        assert not recent.arrived.is_set()


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_an_id_names_its_position(xact, seq):
    assert position_of(id_of((xact, seq))) == (xact, seq)


@pytest.mark.parametrize(
    "id", ["1", "1-", "-1", "a-b", "1-2-3", " 1-2", "1-2\n", "+1-2", "1_0-2", "²-1", f"1-{2**63}", "1" * 20 + "-1"]
)
def test_what_is_no_id_is_refused(id):
    with pytest.raises(BadPosition, match="two numbers with a hyphen"):
        position_of(id)
