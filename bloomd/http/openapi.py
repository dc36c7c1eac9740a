"""The API's own description: OpenAPI 3.1.

Litestar knows the paths, their parameters and what they are for. What a route answers is read off its annotation, and
how it may fail off its path and its body. What neither tells, a route says in its `opt`:

    body        the type of the JSON that it reads; with `many`, an array of them is as good, with `only_many` it is
                the only thing
    bytes       it reads content of any kind instead
    media       the content types of an answer that is no JSON
    also        statuses of success beside the usual one
    refuses     statuses of failure beside those that each of its kind has
    passes_on   its answer is another server's, whatever the status below 500
"""

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, cast, get_args, get_origin

import msgspec
from litestar import Litestar, Response
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute

from bloomd.http.access import BY_CODE, OPEN
from bloomd.http.problems import MEDIA_TYPE, FieldError

Object = dict[str, Any]


class ProblemDetails(msgspec.Struct, frozen=True):
    """RFC 9457, with `error` for clients of the older runtime."""

    type: str
    title: str
    status: int
    detail: str
    error: str
    errors: list[FieldError] = []


class Operation(msgspec.Struct, frozen=True):
    """One method of one path."""

    method: str
    path: str
    handler: HTTPRouteHandler
    description: Object
    """Its place in the document."""

    @property
    def reads(self) -> Any:
        """The type of its body; None without one that is JSON."""
        return self.handler.opt.get("body")

    @property
    def answers(self) -> Any:
        """The type of its answer; None for one that is not JSON of ours."""
        if "media" in self.handler.opt or "passes_on" in self.handler.opt:
            return None
        annotation = self.handler.parsed_fn_signature.return_type.annotation
        return get_args(annotation)[0] if issubclass(get_origin(annotation) or object, Response) else annotation

    @property
    def is_open(self) -> bool:
        """Whether anybody has it without a key."""
        return (self.method, self.path) in OPEN

    @property
    def is_list(self) -> bool:
        """Whether it gives a list in pages."""
        return "cursor" in self.handler.parsed_fn_signature.parameters


_KEY: list[Object] = [{"key": []}, {"bearer": []}]

# What an answer says with its status, and the headers that it has then.
_FAILURES = {
    400: "What was sent is malformed or makes no sense; `errors` says where",
    401: "A key is needed",
    403: "No key is set, and this Host or Origin may not use the server then; or it is not for a worker's token",
    404: "There is no such thing",
    408: "The body did not come",
    409: "Things are not in a state in which this can be done",
    413: "The body is too large",
    415: "The body is not JSON by its content type",
    416: "The content has nothing in this range",
    429: "Too many requests without a key",
    500: "A bug in bloomd",
    502: "Membridge cannot be reached, or a worker's agent did not do it",
    503: "Not now: PostgreSQL is away, or nobody can take the task",
}

_TEXT: Object = {"required": True, "schema": {"type": "string"}}
_COUNT: Object = {"required": True, "schema": {"type": "integer", "minimum": 0}}

_HEADERS: dict[int, Object] = {
    401: {"WWW-Authenticate": _TEXT},
    416: {"Content-Range": _TEXT},
    429: dict.fromkeys(("Retry-After", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"), _COUNT),
    503: {"Retry-After": {**_COUNT, "required": False}},
}

_REQUEST_ID: Object = {"X-Request-Id": {**_TEXT, "description": "The log has the request under it."}}
_NEXT_PAGE: Object = {"Link": {**_TEXT, "required": False, "description": 'With rel="next": the next page.'}}


def describe(app: Litestar) -> Object:
    """The document: Litestar's, with the bodies that our routes read themselves, and all answers, written in."""
    document = app.openapi_schema.to_schema()
    operations = list(_operations(app, document))
    types = dict.fromkeys(
        [ProblemDetails, *(each.reads for each in operations), *(each.answers for each in operations)]
    )
    references, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    reference = dict(zip(types, references, strict=True))
    for each in operations:
        each.description["responses"] = _responses(each, reference[each.answers])
        if body := _body(each, reference[each.reads]):
            each.description["requestBody"] = body
        for parameter in each.description.get("parameters", []):
            parameter["schema"] = _of_ecma(_never_null(parameter["schema"]))
        if each.is_open or each.path in ("/metrics", BY_CODE[1]):  # which some clients have without a key
            each.description["security"] = [{}, *_KEY]
    document["security"] = _KEY
    document["components"] = {
        "schemas": _of_ecma(schemas),
        "responses": {
            _name(status): {
                "description": description,
                "headers": _REQUEST_ID | _HEADERS.get(status, {}),
                "content": {MEDIA_TYPE: {"schema": reference[ProblemDetails]}},
            }
            for status, description in _FAILURES.items()
        },
        "securitySchemes": {
            "key": {"type": "apiKey", "in": "header", "name": "X-Runtime-API-Key"},
            "bearer": {"type": "http", "scheme": "bearer"},
        },
    }
    return document


def _operations(app: Litestar, document: Object) -> Iterator[Operation]:
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                for method in handler.http_methods:
                    if description := document["paths"].get(route.path_format, {}).get(method.lower()):
                        yield Operation(method, route.path_format, handler, description)


def _body(operation: Operation, one: Object) -> Object | None:
    opt = operation.handler.opt
    if opt.get("bytes"):
        return {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
    if operation.reads is None:
        return None
    many: Object = {"type": "array", "items": one, "minItems": 1, "maxItems": 500}
    schema = many if opt.get("only_many") else {"anyOf": [one, many]} if opt.get("many") else one
    required = "only_many" in opt or not _may_be_empty(operation.reads)
    return {"required": required, "content": {"application/json": {"schema": schema}}}


def _responses(operation: Operation, answer: Object) -> Object:
    """All that can come: what is answered in the end by its status, and how it may fail by reference."""
    opt = operation.handler.opt
    headers = _REQUEST_ID | (_NEXT_PAGE if operation.is_list else {})
    content: Object = (
        {each: {} for each in opt["media"]} if "media" in opt else {"application/json": {"schema": answer}}
    )
    responses: Object = {
        str(status): {
            "description": HTTPStatus(status).description or HTTPStatus(status).phrase,
            "headers": headers,
            **({} if status == HTTPStatus.NOT_MODIFIED else {"content": content}),
        }
        for status in (operation.handler.status_code, *opt.get("also", ()))
    }
    if opt.get("passes_on"):
        anything: Object = {"*/*": {}}
        responses = {
            "2XX": {"description": "What the other server says", "headers": headers, "content": anything},
            "4XX": {"description": "What the other server says, or a problem", "headers": headers, "content": anything},
        }
    failures = {400, 403, 413, 429, 500, 503, *opt.get("refuses", ())}
    if not operation.is_open:
        failures |= {401}
    if "{" in operation.path:
        failures |= {404}
    if opt.get("bytes") or operation.reads is not None:
        failures |= {408}
    if operation.reads is not None:
        failures |= {415}
    return responses | {
        str(status): {"$ref": f"#/components/responses/{_name(status)}"}
        for status in sorted(failures)
        if not (opt.get("passes_on") and status < 500)
    }


def _may_be_empty(type: Any) -> bool:
    """Whether nothing at all, which is read as `{}`, is a body of this type."""
    try:
        msgspec.convert({}, type)
    except msgspec.ValidationError:
        return False
    return True


def _name(status: int) -> str:
    """Of the response in the components."""
    return HTTPStatus(status).phrase.title().replace(" ", "").replace("-", "")


def _never_null(schema: Object) -> Object:
    """A parameter may be left out; it cannot be null."""
    if "oneOf" in schema:
        [present] = [each for each in schema["oneOf"] if each != {"type": "null"}]
        return {**present, **{key: value for key, value in schema.items() if key != "oneOf"}}
    if isinstance(schema.get("type"), list):
        [type] = [each for each in schema["type"] if each != "null"]
        return {**schema, "type": type, "enum": [each for each in schema["enum"] if each is not None]}
    return schema


def _of_ecma(schema: Any) -> Any:
    """A schema with its patterns as JSON Schema has them, whose `^` and `$` are what Python's `\\A` and `\\Z` are."""
    if isinstance(schema, dict):
        return {
            key: value.replace(r"\A", "^").replace(r"\Z", "$")
            if key == "pattern" and isinstance(value, str)
            else _of_ecma(value)
            for key, value in cast("Object", schema).items()
        }
    return [_of_ecma(each) for each in cast("list[Any]", schema)] if isinstance(schema, list) else schema
