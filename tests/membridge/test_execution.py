"""What an agent's answer means, and where it is told to call back."""

from typing import Any

import pytest

from bloomd.membridge.calls import AgentAnswer
from bloomd.membridge.execution import Failure, Said, callback_port, judged


@pytest.mark.parametrize(
    ("status", "said", "meaning"),
    [
        (200, {"ok": True}, Said(True)),
        (200, {"ok": True, "output": 7, "error": [], "duration_ms": -1, "returncode": 2.0, "secret": "x"},
         Said(True, returncode=2)),
        (200, {"ok": True, "output": "x", "duration_ms": 1e400, "returncode": True}, Said(True, output="x")),
        (200, {"ok": 1}, Failure("its answer is not what an agent says: no JSON object with `ok`")),
        (200, {}, Failure("its answer is not what an agent says: no JSON object with `ok`")),
        (503, {"ok": True},
         Failure("it cannot run Claude (it answered 503): install it there, or cordon it", counts=False)),
        (401, {}, Failure("it refuses the agent key (it answered 401): set membridge.agent_key")),
        (204, {}, Failure("it answered 204")),
    ],
)  # fmt: skip
def test_what_an_answer_means(status: int, said: dict[str, Any], meaning: Said | Failure) -> None:
    assert judged(AgentAnswer(status, said), key=None) == meaning


def test_the_agent_key_is_in_nothing_that_an_agent_says() -> None:
    said = {"ok": False, "output": "got k3y-1", "error": "k3y-1 is wrong", "detail": "X: k3y-1", "returncode": 1}
    blotted = Said(False, output="got ****", error="**** is wrong", detail="X: ****", returncode=1)
    assert judged(AgentAnswer(200, said), key="k3y-1") == blotted


@pytest.mark.parametrize(
    ("binds", "address", "port"),
    [
        (("127.0.0.1:5000",), "127.0.0.1", 5000),
        (("127.0.0.1:5000", ":6000"), "10.0.0.1", 6000),
        (("127.0.0.1:5000", "[::]:6000", "10.0.0.1:7000"), "10.0.0.1", 7000),
        (("unix:/x", "127.0.0.1:5000"), "10.0.0.1", 5000),
        (("unix:/x",), None, None),
    ],
)
def test_where_an_agent_calls_back(binds: tuple[str, ...], address: str | None, port: int | None) -> None:
    assert callback_port(binds, address) == port
