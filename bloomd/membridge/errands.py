"""What an operator has one worker's agent do: tell how it is, update itself, restart, uninstall itself.

An agent is believed field by field: what it says goes no further unless it is one of `Told`, of the right type and of a
length that a person reads. The agent key never does, even if an agent sends it back.
"""

from typing import Any, Literal, Protocol

import msgspec
import structlog

from bloomd.errors import Unavailable, one_line
from bloomd.exchange import MIB
from bloomd.membridge.agents import INTEGER_LIMIT, TEXT_LIMIT, UNSTORABLE
from bloomd.membridge.calls import call
from bloomd.membridge.polls import poll
from bloomd.runtime import audit, liveness, workers
from bloomd.runtime.database import Database
from bloomd.runtime.model import Worker
from bloomd.runtime.projects import without_users
from bloomd.runtime.refusals import Invalid
from bloomd.settings import Settings

log = structlog.stdlib.get_logger(__name__)

ANSWER_LIMIT = 1 * MIB

# An update fetches something; the others only have to be begun.
UPDATE_SECONDS = 300.0
STEP_SECONDS = 60.0

SENTENCE_LIMIT = 2000
OUTPUT_LIMIT = 16_000

# How long the texts may be that are passed on. Longer ones are cut.
_TEXTS = {
    "detail": SENTENCE_LIMIT,
    "error": SENTENCE_LIMIT,
    "path": 1024,
    "action": TEXT_LIMIT,
    "project": TEXT_LIMIT,
    "canonical_id": TEXT_LIMIT,
    "hostname": TEXT_LIMIT,
    "version": TEXT_LIMIT,
    "job_id": TEXT_LIMIT,
    "stdout": OUTPUT_LIMIT,
    "stderr": OUTPUT_LIMIT,
}


class AgentFailed(Unavailable):
    """A worker's agent, or Membridge for it, cannot be asked, or could not do it."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status
        """Of the answer, if there was one."""


class Told(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent said of what it did, as far as it is passed on."""

    ok: bool | None = None
    detail: str | None = None
    error: str | None = None
    path: str | None = None
    action: str | None = None
    project: str | None = None
    canonical_id: str | None = None
    hostname: str | None = None
    version: str | None = None
    job_id: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    returncode: int | None = None


class Done(Told, frozen=True, kw_only=True, omit_defaults=True):
    status: Literal["updated", "restarted", "uninstalled"]


class AgentHealth(msgspec.Struct, frozen=True, omit_defaults=True):
    """How an agent is, or why nobody knows."""

    reachable: bool
    error: str | None = None
    version: str | None = None
    os_info: str | None = None
    hostname: str | None = None
    capabilities: dict[str, Any] | None = None
    ip_addrs: list[str] | None = None


class Target(Protocol):
    """A worker that has a URL."""

    @property
    def id(self) -> str: ...
    @property
    def url(self) -> str: ...


async def health(database: Database, settings: Settings, worker_id: str, *, actor: str) -> AgentHealth:
    """Ask an agent how it is, now: the worker's row is as it says afterwards, or offline.

    Raises:
        NotFound: there is no such worker.
        Invalid: it has no URL.
    """
    worker = await _with_url(database, worker_id)
    result = await poll(worker.id, worker.url, settings.workers.allowed_networks)
    if not result.ok:
        await liveness.record_no_answer(database, worker.id, result.error or "no answer", actor=actor)
        return AgentHealth(reachable=False, error=result.error)
    await liveness.record_answer(database, result, actor=actor)
    return AgentHealth(
        reachable=True,
        version=result.version,
        os_info=result.os_info,
        hostname=result.hostname,
        capabilities=result.capabilities,
        ip_addrs=result.ip_addrs,
    )


async def update(
    database: Database, settings: Settings, worker_id: str, *, repo_url: str | None = None, actor: str
) -> Done:
    """Have an agent update itself, from this repository or, without one, from where it came.

    Raises:
        NotFound: there is no such worker.
        Invalid: it has no URL.
        AgentFailed: it could not, or not be asked.
    """
    worker = await _with_url(database, worker_id)
    body = {"repo_url": repo_url} if repo_url else {}
    try:
        told = await ask(worker, "/self-update", body, settings=settings, timeout=UPDATE_SECONDS)
    except AgentFailed as error:
        if error.status == 422 and repo_url is None:
            raise AgentFailed(f"{error}; name the repository that it came from as repo_url", 422) from error
        raise
    await _note(database, worker, "updated", f"from {repo_url}" if repo_url else None, actor=actor)
    return _done("updated", told)


async def restart(database: Database, settings: Settings, worker_id: str, *, actor: str) -> Done:
    """Have an agent restart.

    Raises:
        NotFound: there is no such worker.
        Invalid: it has no URL.
        AgentFailed: it could not, or not be asked.
    """
    worker = await _with_url(database, worker_id)
    told = await ask(worker, "/restart", {}, settings=settings, timeout=STEP_SECONDS)
    await _note(database, worker, "restarted", None, actor=actor)
    return _done("restarted", told)


async def uninstall(database: Database, settings: Settings, worker_id: str, *, actor: str) -> Done:
    """Have an agent remove itself from its machine. Its worker stays known, offline and cordoned.

    Raises:
        NotFound: there is no such worker.
        Invalid: it has no URL.
        AgentFailed: it could not, or not be asked.
    """
    worker = await _with_url(database, worker_id)
    told = await ask(worker, "/uninstall", {}, settings=settings, timeout=STEP_SECONDS)
    await workers.retire(database, worker.id, actor=actor)
    return _done("uninstalled", told)


async def ask(target: Target, path: str, body: object, *, settings: Settings, timeout: float) -> Told:
    """Have the agent of a worker do something, and hear what came of it.

    Raises:
        AgentFailed: it cannot be asked, refuses, says that it failed, or does not answer like an agent.
    """
    key = settings.membridge.agent_key
    try:
        answer = await call(
            "POST",
            target.url,
            path,
            key=key,
            networks=settings.workers.allowed_networks,
            timeout=timeout,
            body=body,
            limit=ANSWER_LIMIT,
        )
    except Unavailable as error:
        raise _failed(target, path, one_line(error)) from error
    told = known(answer.said, secret=key)
    reason = told.error or told.detail
    if answer.status in (401, 403):
        trouble = "refuses the agent key: correct membridge.agent_key" if key else "wants one: set membridge.agent_key"
        raise _failed(target, path, f"it {trouble}", answer.status)
    if not 200 <= answer.status < 300:
        raise _failed(target, path, f"it answered {answer.status}" + (f", {reason}" if reason else ""), answer.status)
    if not answer.said:
        raise _failed(target, path, "its answer is not a JSON object", answer.status)
    if answer.said.get("ok", True) is not True:
        raise _failed(target, path, reason or told.stderr or "it does not say why", answer.status)
    return told


def known(said: dict[str, Any], *, secret: str | None) -> Told:
    """What is passed on of an answer: fields that are known, of their types, cut to a length; never the secret."""
    texts = {name: _excerpt(said.get(name), limit, secret) for name, limit in _TEXTS.items()}
    ok, code = said.get("ok"), said.get("returncode")
    return Told(
        **texts,
        ok=ok if isinstance(ok, bool) else None,
        returncode=code if type(code) is int and abs(code) <= INTEGER_LIMIT else None,  # a bool is an int as well
    )


def _failed(target: Target, path: str, reason: str, status: int | None = None) -> AgentFailed:
    """The error that says so; the log has it as well."""
    log.warning("an agent failed", worker=target.id, path=path, error=reason)
    return AgentFailed(f"{path} of worker {target.id}: {reason}", status)


def _excerpt(value: Any, limit: int, secret: str | None) -> str | None:
    if not isinstance(value, str) or not value:
        return None
    text = UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    if secret:
        text = text.replace(secret, "****")
    text = without_users(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _done(status: Literal["updated", "restarted", "uninstalled"], told: Told) -> Done:
    return Done(**msgspec.structs.asdict(told), status=status)


async def _with_url(database: Database, worker_id: str) -> Worker:
    worker = await workers.one(database, worker_id)
    if not worker.url:
        raise Invalid(f"The worker {worker.id} has no url, so it has no agent that could be asked")
    return worker


async def _note(database: Database, worker: Worker, what: str, detail: str | None, *, actor: str) -> None:
    await audit.add(
        database,
        f"worker.agent-{what}",
        entity_type="worker",
        entity_id=worker.id,
        actor=actor,
        detail=detail or "",
    )
