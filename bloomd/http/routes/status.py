"""The daemon from inside, as `bloomd-ctl status` has it: its state, its services, the queue in the last hours."""

from typing import Annotated

import msgspec
from litestar import get, post
from msgspec import Meta

from bloomd.control.answers import Services, Status
from bloomd.errors import one_line
from bloomd.http.bodies import read
from bloomd.http.problems import Problem
from bloomd.http.requests import Req, Since, actor, node_of
from bloomd.runtime import samples
from bloomd.runtime.samples import Sample
from bloomd.status import services, status
from bloomd.supervisor import UnknownService

# Why one of these is not restarted from here, and what to do instead.
NOT_FROM_HERE = {
    "http": "http gives this answer, which its restart would cut off: use `bloomd-ctl restart http`",
    "control": "control is how bloomd-ctl talks to bloomd, and restarts with the daemon: restart that instead",
}


class ServiceRequest(msgspec.Struct, frozen=True):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    """Its path in the task tree: `probes/minio`."""


@get("/api/runtime/status", summary="The state of the whole node, as bloomd-ctl status shows it")
async def show(request: Req) -> Status:
    """Times in here are seconds, as over the control socket. What the database would tell is null while it is away."""
    return await status(node_of(request))


@post(
    "/api/runtime/services/restart",
    summary="Restart a service of the task tree",
    status_code=200,
    opt={"body": ServiceRequest, "refuses": (404, 409)},
)
async def restart(request: Req) -> Services:
    """How it is then, and those below it: once each runs, or says why it does not."""
    body = await read(request, ServiceRequest)
    node = node_of(request)
    outcome = "it did not come to an end"
    try:
        if body.name in NOT_FROM_HERE:
            raise Problem(409, NOT_FROM_HERE[body.name], type="conflict")
        await node.root.restart_service(body.name, f"restarted by {actor(request)}")
        outcome = "ok"
    except UnknownService as error:
        outcome = one_line(error)
        raise Problem(404, outcome, type="not-found") from error
    except Problem as error:
        outcome = str(error)
        raise
    finally:
        node.note("restart", body.name, actor(request), outcome)
    return Services(services=services(node, body.name))


@get("/api/runtime/queue/history", summary="The queue in the last hours, oldest first")
async def history(request: Req, since: Since = 0) -> list[Sample]:
    """A sample every half minute, kept for a day; none for the time in which no daemon ran."""
    return await samples.history(node_of(request).database, since)


HANDLERS = [show, restart, history]
