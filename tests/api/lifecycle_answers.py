"""Whether an answer of the API is the one that goes with what the model predicts."""

import hashlib
from collections.abc import Callable
from typing import TypeVar

import httpx
from lifecycle_model import Refused
from lifecycle_objects import Ending, Json, Task

TYPES = "urn:problem-type:bloomd:"

T = TypeVar("T")


def agree(answer: httpx.Response, predict: Callable[[], T], *, status: int = 200) -> T | None:
    """What the model predicts, once the answer has the status that goes with it; None when it says no."""
    predicted = None
    try:
        predicted, expected = predict(), (status, None)
    except Refused as refused:
        expected = refused.how
    type = answer.json()["type"].removeprefix(TYPES) if answer.status_code >= 400 else None
    assert (answer.status_code, type) == expected, answer.text
    return predicted


def outcome_of(predict: Callable[..., Json], **said: object) -> Json:
    """What an answer about many says of one of them, but for the sentence."""
    try:
        predicted = predict(**said)
    except Refused as refused:
        status, type = refused.how
        return {"lease_id": said["lease_id"], "ok": False, "status": status, "type": TYPES + type}
    known = {name: value for name, value in predicted.items() if value is not None}
    return {"lease_id": said["lease_id"], "ok": True, **known}


def same_outcomes(answer: httpx.Response, expected: list[Json]) -> None:
    assert answer.status_code == 200, answer.text
    for outcome in (found := answer.json()):
        assert outcome["ok"] or outcome.pop("error")
    assert found == expected


def same_ending(found: Json, ending: Ending, task: Task) -> None:
    assert found["task"] == {**task.json(), **ending.left_task}
    artifact = ending.artifact()
    content = artifact["content"]
    assert found["artifact"] == {
        **artifact, "name": "result", "lease_id": ending.lease.id, "content_type": None, "job_id": None,
        "finalized": True, "url": None, "entity_refs": [], "tags": [],
        "size": None if content is None else len(content),
        "sha256": None if content is None else hashlib.sha256(content.encode()).hexdigest(),
    }  # fmt: skip
    assert found["result"] == ending.result()


def same_list(found: list[Json], expected: dict[str, Json], *, by: str) -> None:
    """These and no others, the newest `by` first."""
    assert {each["id"]: each for each in found} == expected
    places = [(each[by], each["id"]) for each in found]
    assert places == sorted(places, reverse=True)


def same_rows(found: dict[str, Json], expected: dict[str, Json]) -> None:
    """The rows of a table, as far as the model knows their columns."""
    assert found.keys() == expected.keys()
    for id, row in expected.items():
        assert {name: found[id][name] for name in row} == row
