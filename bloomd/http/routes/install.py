"""How a machine becomes a worker: `curl ... | sh`, and the program that the script fetches from here."""

from typing import Annotated

import msgspec
import trio
from litestar import Response, get
from litestar.params import Parameter
from msgspec import Meta

from bloomd.http.access import unauthorized
from bloomd.http.bodies import convert, invalid
from bloomd.http.install.package import files
from bloomd.http.install.script import Machine, script
from bloomd.http.problems import FieldError, Problem
from bloomd.http.requests import Req, actor, caller, node_of
from bloomd.http.routes.artifacts import matches
from bloomd.runtime import tokens
from bloomd.runtime.model import Label, NewWorkerName
from bloomd.runtime.tokens import BadCode

Code = Annotated[str, Meta(min_length=1, max_length=256)]


class Asked(msgspec.Struct, frozen=True):
    """What the query of the script says, as far as Litestar does not check it."""

    node_id: NewWorkerName | None
    code: Code | None
    label: Annotated[list[Label], Meta(max_length=64)]


_SAID = msgspec.json.schema_components([Asked])[1]["Asked"]["properties"]


@get(
    "/api/runtime/agent-install-script",
    summary="A shell script that makes a machine a worker of this server",
    opt={"media": ("text/plain",), "refuses": (409,)},
)
async def install_script(
    request: Req,
    node_id: Annotated[
        str | None,
        Parameter(
            description="The worker's name. With a key, it is all that is needed.",
            schema_extra=msgspec.json.schema(NewWorkerName),
        ),
    ] = None,
    code: Annotated[
        str | None,
        Parameter(
            description="An enrolment code, instead of a key: it says whose script this is.",
            schema_extra=msgspec.json.schema(Code),
        ),
    ] = None,
    label: Annotated[
        list[str] | None, Parameter(description="One of its labels; may be repeated.", schema_extra=_SAID["label"])
    ] = None,
    max_concurrency: Annotated[int, Parameter(description="Tasks that it runs at once.", ge=1, le=32)] = 1,
    port: Annotated[int, Parameter(description="Ignored: this worker listens nowhere.", ge=1, le=65535)] = 8001,
) -> Response[str]:
    """For `curl ... | sh`. It holds a code that is good for this worker's token, once and for an hour.

    The code in the query is not spent by this; no log has the queries of this route.
    """
    asked = convert({"node_id": node_id, "code": code, "label": label or []}, Asked)
    node = node_of(request)
    worker = await _worker(request, asked)
    server = node.settings.http.public_url
    if server is None:
        raise Problem(
            400,
            "http.public_url is not set, so the script could not say where this server is: set it to the URL by which "
            "workers reach it, such as https://bloom.example.org, then `bloomd-ctl reload`",
            type="no-public-url",
        )
    if asked.code is None:
        node.keys.refuse_without_key(node.settings.http.api_key)
        asked = msgspec.structs.replace(
            asked, code=(await tokens.enrol(node.database, worker, actor=actor(request))).code
        )
    machine = Machine(server, worker, asked.code or "", max_concurrency, tuple(asked.label))
    content = await trio.to_thread.run_sync(script, machine)
    return Response(content, media_type="text/plain")


async def _worker(request: Req, asked: Asked) -> str:
    """Whose script it is to be.

    Raises:
        Problem: 401, the code is worth nothing; 400, nobody is named, or somebody else than the code is for.
    """
    if asked.code is None:
        if not caller(request).authenticated:
            raise unauthorized("Send the API key, or the enrolment code as ?code=")
        if asked.node_id is None:
            raise invalid([FieldError("node_id", "is required: it is the name of the worker")])
        return asked.node_id
    try:
        worker = (await tokens.of_code(node_of(request).database, asked.code)).worker
    except BadCode as error:
        raise unauthorized(str(error)) from error
    if asked.node_id not in (None, worker):
        raise invalid([FieldError("node_id", "is not the worker that the enrolment code is for")])
    return worker


@get(
    "/api/runtime/agent-package/{filename:str}",
    summary="The program of a worker, or the list of what it imports",
    opt={"media": ("application/zip", "text/plain"), "also": (304,)},
)
async def package(request: Req, filename: str) -> Response[bytes]:
    """The wheel of this very version, and `requirements.txt`, which pins the rest by hash. For workers' tokens, too."""
    found = (await trio.to_thread.run_sync(files)).get(filename)
    if found is None:
        raise Problem(404, "There is no such file; fetch the install script again, it names those there are")
    headers = {"etag": f'"{found.sha256}"'}
    if matches(request.headers.get("if-none-match", ""), headers["etag"]):
        return Response(b"", status_code=304, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=headers)


HANDLERS = [install_script, package]
