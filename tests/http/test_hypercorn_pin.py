"""bloomd.http.connections stands in for a part of hypercorn: this says which, and fails with another hypercorn."""

import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from hypercorn.config import Config
from hypercorn.events import Closed, RawData, Updated
from hypercorn.protocol import events
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.trio.worker_context import WorkerContext

from bloomd.http.connections import Connection

PINNED = "0.18.0"


def test_hypercorn_is_exactly_the_version_that_was_read() -> None:
    assert version("hypercorn") == PINNED
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert f"hypercorn[trio]=={PINNED}" in project["project"]["dependencies"]


def parameters(of: object) -> list[str]:
    assert callable(of)
    return list(inspect.signature(of).parameters)


STREAM = ["app", "config", "context", "task_group", "ssl", "client", "server", "send", "stream_id"]


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (
            H11Protocol,
            ["app", "config", "context", "task_group", "connection_state", "ssl", "client", "server", "send"],
        ),
        (HTTPStream, STREAM),
        (WSStream, STREAM),
        (H11Protocol.handle, ["self", "event"]),
        (H11Protocol.stream_send, ["self", "event"]),
        (H11Protocol._check_protocol, ["self", "event"]),
        (H11Protocol._create_stream, ["self", "request"]),
        (Config.response_headers, ["self", "protocol"]),
        (WorkerContext, ["max_requests"]),
        (RawData, ["data", "address"]),
        (Updated, ["idle"]),
        (Closed, []),
        (events.Response, ["stream_id", "headers", "status_code"]),
        (events.Request, ["stream_id", "headers", "http_version", "method", "raw_path", "state"]),
    ],
)
def test_what_we_call_and_override_takes_what_it_took(of: object, expected: list[str]) -> None:
    assert parameters(of) == expected


def test_hypercorn_uses_of_its_task_group_only_what_we_have() -> None:
    for module in (H11Protocol, HTTPStream, WSStream):
        for line in inspect.getsource(module).splitlines():
            used = line.partition("self.task_group.")[2].partition("(")[0]
            assert not used or hasattr(Connection, used), line
    assert STREAM_ID == 1
