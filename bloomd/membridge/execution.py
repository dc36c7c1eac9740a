"""What an agent is told to do, and what its answer means: decisions only, no I/O.

The answer is not trusted: only known fields of the right kind go any further, and as text that can be stored. Where an
agent's answer and the completion that it has sent before differ, the completion is what happened. The agent key goes
nowhere, even if an agent sends it back.
"""

from typing import Any

import msgspec

from bloomd.membridge.agents import UNSTORABLE
from bloomd.membridge.calls import AgentAnswer
from bloomd.runtime.model import Completion, Lease, Metrics, Result, Task
from bloomd.settings import Tcp, parse_bind

# An agent's error becomes the task's, which lists show.
ERROR_LIMIT = 4000


class Said(msgspec.Struct, frozen=True):
    """An agent's answer that can be used."""

    ok: bool
    output: str | None = None
    error: str | None = None
    duration_ms: int | None = None
    returncode: int | None = None
    session_messages: int | None = None
    detail: str | None = None


class Execution(Said, frozen=True, omit_defaults=True, kw_only=True):
    """How the attempt ended, in the words of an agent; what it did not say is left out."""

    task_id: str
    context_id: str


class Failure(msgspec.Struct, frozen=True):
    """A push that led to nothing."""

    sentence: str
    reached: bool = True
    """Whether the agent took the connection."""
    answered: bool = True
    counts: bool = True
    """Whether the attempt does."""


def judged(answer: AgentAnswer, *, key: str | None) -> Said | Failure:
    """What an answer to execute-task means. `key` is the one with which it was asked."""
    match answer.status:
        case 200:
            return _said(answer.said, key) or Failure("its answer is not what an agent says: no JSON object with `ok`")
        case 503:
            return Failure("it cannot run Claude (it answered 503): install it there, or cordon it", counts=False)
        case 401 | 403:
            remedy = "correct" if key else "set"
            return Failure(f"it refuses the agent key (it answered {answer.status}): {remedy} membridge.agent_key")
        case 422:
            return Failure("it does not understand the task (it answered 422): update the agent")
        case status if 300 <= status < 400:
            return Failure(f"it redirects ({status}), which is not followed: correct the worker's url")
        case status:
            return Failure(f"it answered {status}")


def _said(said: dict[str, Any], key: str | None) -> Said | None:
    if not isinstance(said.get("ok"), bool):
        return None
    return Said(
        said["ok"],
        output=_text(said.get("output"), key),
        error=_text(said.get("error"), key),
        duration_ms=_count(said.get("duration_ms")),
        returncode=_integer(said.get("returncode")),
        session_messages=_count(said.get("session_messages")),
        detail=_text(said.get("detail"), key),
    )


def _text(value: Any, key: str | None) -> str | None:
    if not isinstance(value, str):
        return None
    text = UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    return text.replace(key, "****") if key else text


def _integer(value: Any) -> int | None:
    """Agents in Python and JavaScript write whole numbers as either type."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 1 << 53 else None


def _count(value: Any) -> int | None:
    number = _integer(value)
    return number if number is not None and number >= 0 else None


def callback_port(binds: tuple[str, ...], address: str | None = None) -> int | None:
    """The TCP port at which this machine is reached, by this address of it if it is known; None without any."""
    tcp = [bind for bind in map(parse_bind, binds) if isinstance(bind, Tcp)]
    everywhere = (None, "0.0.0.0", "::")
    best = [bind for bind in tcp if bind.host == address] + [bind for bind in tcp if bind.host in everywhere] + tcp
    return best[0].port if best else None


def task_of(task: Task, lease: Lease, runtime: str) -> dict[str, Any]:
    """What an agent is told to do. `runtime` is the URL of this server, as the agent reaches it."""
    return {
        "task_id": task.id,
        "lease_id": lease.id,
        "prompt": task.prompt,
        "context_id": task.context_id,
        "agent_slug": task.agent_slug,
        "desired_format": task.desired_format,
        "context_hints": task.context_hints,
        "policy": {"budget": task.policy.budget, "timeout_sec": task.policy.timeout_sec},
        "runtime_url": f"{runtime}/l/{lease.id}",
    }


def completion_of(said: Said, lease: Lease) -> Completion:
    """What an agent's answer says of the attempt, as its callback would have."""
    error = None if said.ok else (said.error or "the agent gave no reason")[:ERROR_LIMIT]
    return Completion(
        status="success" if said.ok else "error",
        output=said.output,
        error_message=error,
        metrics=Metrics(duration_ms=said.duration_ms or 0),
        lease_id=lease.id,
    )


def execution_of(task: Task, result: Result, said: Said | None) -> Execution:
    """How the attempt ended; from the agent's own answer only what the result does not have."""
    return Execution(
        ok=result.status == "success",
        task_id=task.id,
        context_id=task.context_id,
        output=result.output,
        error=result.error_message,
        duration_ms=result.metrics.get("duration_ms"),
        returncode=said and said.returncode,
        session_messages=said and said.session_messages,
        detail=said and said.detail,
    )
