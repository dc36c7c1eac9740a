"""Leases: for workers that ask for tasks themselves, and do all else with many of them at once."""

from typing import Annotated, TypeVar, cast

import msgspec
import trio
from litestar import Response, get, post
from msgspec import Meta

from bloomd.errors import Unavailable
from bloomd.http.access import unauthorized, until_refused
from bloomd.http.asgi import Scope
from bloomd.http.bodies import convert, read, read_json
from bloomd.http.problems import Problem, problem_of
from bloomd.http.requests import Cursor, Limit, Req, actor, cancel_when_gone, chosen, node_of, page_of, worker_of
from bloomd.runtime import completion, leases, releases
from bloomd.runtime.claims import Claim, Claimed
from bloomd.runtime.heartbeats import Beat, Progress, heartbeat_many
from bloomd.runtime.model import Completion, Label, Lease, LeaseStatus, Name, WorkerName
from bloomd.runtime.pages import Page
from bloomd.runtime.refusals import Refusal
from bloomd.runtime.releases import Release

# As many as a claim may give, several times over: who drives a machine may drive some.
MAX_MANY = 500

Item = TypeVar("Item", bound=msgspec.Struct)
Own = TypeVar("Own", "LeaseCompletion", Release)


class ClaimRequest(msgspec.Struct, frozen=True):
    worker_id: WorkerName
    max: Annotated[int, Meta(ge=1, le=100)] = 1
    wait_seconds: Annotated[int, Meta(ge=0, le=60)] | Annotated[float, Meta(ge=0, le=60)] = 0
    labels: Annotated[list[Label], Meta(max_length=64)] | None = None
    ttl_seconds: Annotated[int, Meta(ge=5, le=86400)] | None = None


class ClaimAnswer(msgspec.Struct, frozen=True):
    leases: list[Claimed]


class LeaseHeartbeat(msgspec.Struct, frozen=True):
    lease_id: Name
    worker_id: WorkerName | None = None
    progress: Progress | None = None


class LeaseCompletion(Completion, frozen=True, kw_only=True):
    """Among many, each says which lease it ends."""

    lease_id: Name  # pyright: ignore[reportGeneralTypeIssues] (by keyword, it may stand after what has a default)


class LeaseOutcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one of many: what came of it, or the error that it would have been alone."""

    lease_id: str
    ok: bool
    expires_at: int | None = None
    task_id: str | None = None
    task_status: str | None = None
    attempts: int | None = None
    retry_at: int | None = None
    artifact_id: str | None = None
    result_id: str | None = None
    status: int | None = None
    """Of the error, as HTTP has it."""
    type: str | None = None
    error: str | None = None


@get("/api/runtime/leases", summary="Leases, newest first")
async def listing(
    request: Req,
    status: LeaseStatus | None = None,
    worker_id: str | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response[list[Lease]]:
    page = Page.after(cursor, limit)
    rows = await leases.listing(
        node_of(request).database, page, status=chosen("status", status, request), worker_id=worker_id
    )
    return page_of(rows, page, lambda lease: (lease.started_at, lease.id), request)


@post(
    "/api/runtime/leases/claim",
    summary="Ask for tasks, and wait for some",
    status_code=200,
    opt={"body": ClaimRequest, "refuses": (404,)},
)
async def claim(request: Req) -> ClaimAnswer:
    """Up to `max`, as far as the worker has room. Empty when there is nothing for it within `wait_seconds`."""
    body = await read(request, ClaimRequest)
    worker_of(request, body.worker_id)
    asked = Claim(body.worker_id, body.max, body.labels, body.ttl_seconds)
    node = node_of(request)
    answer: list[Claimed] | Refusal | Unavailable | Problem = []

    async def refuse() -> None:
        nonlocal answer
        await until_refused(cast("Scope", request.scope), lambda: node.settings.http, node.keys)
        answer = unauthorized("The key or token of this request counts no longer")
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_when_gone, request.receive, nursery.cancel_scope)
        if body.wait_seconds:
            nursery.start_soon(refuse)
        try:
            answer = await node.waiting_room.claim(asked, wait_seconds=body.wait_seconds, actor=actor(request))
        except (Refusal, Unavailable) as error:
            answer = error
        nursery.cancel_scope.cancel()
    if isinstance(answer, Exception):
        raise answer
    return ClaimAnswer(answer)


@post(
    "/api/runtime/leases/heartbeat",
    summary="Prolong many leases",
    status_code=200,
    opt={"body": LeaseHeartbeat, "only_many": True},
)
async def heartbeat(request: Req) -> list[LeaseOutcome]:
    """One outcome each, in order."""
    many = await _read_many(request, LeaseHeartbeat)
    beats = [Beat(each.lease_id, worker_of(request, each.worker_id), each.progress) for each in many]
    node = node_of(request)
    answers = await heartbeat_many(node.database, beats, actor=actor(request))
    for beat, answer in zip(beats, answers, strict=True):
        if isinstance(answer, Lease):
            node.tell_progress(answer, beat)
    return [
        _refused(asked.lease_id, answer)
        if isinstance(answer, Refusal)
        else LeaseOutcome(asked.lease_id, ok=True, task_id=answer.task_id, expires_at=answer.expires_at)
        for asked, answer in zip(many, answers, strict=True)
    ]


@post(
    "/api/runtime/leases/complete",
    summary="End many attempts with their results",
    status_code=200,
    opt={"body": LeaseCompletion, "only_many": True},
)
async def complete(request: Req) -> list[LeaseOutcome]:
    """One outcome each, in order."""
    node = node_of(request)
    many = await _read_many_own(request, LeaseCompletion)
    answers = await completion.complete_many(node.database, many, retry=node.retry, actor=actor(request))
    return [
        _refused(asked.lease_id, answer)
        if isinstance(answer, Refusal)
        else LeaseOutcome(ok=True, **msgspec.structs.asdict(answer))
        for asked, answer in zip(many, answers, strict=True)
    ]


@post(
    "/api/runtime/leases/release",
    summary="Give tasks back",
    status_code=200,
    opt={"body": Release, "only_many": True},
)
async def release(request: Req) -> list[LeaseOutcome]:
    """They are queued again, and no attempt is counted. One outcome each, in order."""
    many = await _read_many_own(request, Release)
    answers = await releases.release(node_of(request).database, many, actor=actor(request))
    return [
        _refused(asked.lease_id, answer)
        if isinstance(answer, Refusal)
        else LeaseOutcome(asked.lease_id, ok=True, task_id=answer.task_id, task_status="queued")
        for asked, answer in zip(many, answers, strict=True)
    ]


async def _read_many(request: Req, type: type[Item]) -> list[Item]:
    many = convert(await read_json(request), list[type])
    if not 1 <= len(many) <= MAX_MANY:
        raise Problem(400, f"An array of 1 to {MAX_MANY} is expected, not of {len(many)}", type="invalid")
    return many


async def _read_many_own(request: Req, type: type[Own]) -> list[Own]:
    """The same, each for the worker that the request may speak for."""
    many = await _read_many(request, type)
    return [msgspec.structs.replace(each, worker_id=worker_of(request, each.worker_id)) for each in many]


def _refused(lease_id: str, refusal: Refusal) -> LeaseOutcome:
    problem = problem_of(refusal)
    if problem is None:
        raise refusal
    return LeaseOutcome(
        lease_id, ok=False, status=problem.status, type=problem.body["type"], error=problem.body["error"]
    )


HANDLERS = [listing, claim, heartbeat, complete, release]
