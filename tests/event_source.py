"""A reader of Server-Sent Events, as their specification has it."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import httpx

PATH = "/api/runtime/events"


class Told(NamedTuple):
    """One event."""

    type: str
    data: Any
    id: str
    """The last one that was given, as a browser has it; also by an event without one."""


class EventSource:
    """An open stream; `with` closes it. What does not come within `seconds` (and a keep-alive) fails."""

    def __init__(self, http: httpx.Client, *, last_id: str | None = None, seconds: float = 10, **query: str) -> None:
        headers = {"Last-Event-ID": last_id} if last_id else {}
        self._context = http.stream("GET", PATH, params=query, headers=headers, timeout=httpx.Timeout(30))
        self.last_id = last_id or ""
        self._seconds = seconds

    def __enter__(self) -> Self:
        self.answer = self._context.__enter__()
        assert self.answer.status_code == 200, self.answer.read()
        self._lines = self.answer.iter_lines()
        for line in self._lines:  # up to the end of the greeting: from here on nothing is missed
            self._note(line)
            if not line:
                break
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def __iter__(self) -> Iterator[Told]:
        type, data = "message", []
        deadline = time.monotonic() + self._seconds
        for line in self._lines:
            assert time.monotonic() < deadline, "it did not come in time"
            name, _, value = line.partition(": ")
            self._note(line)
            if name == "event":
                type = value
            elif name == "data":
                data.append(value)
            elif not line:
                if data:
                    yield Told(type, json.loads("\n".join(data)), self.last_id)
                    deadline = time.monotonic() + self._seconds
                type, data = "message", []

    def take(self, count: int) -> list[Told]:
        """The next so many."""
        events = iter(self)
        return [next(events) for _ in range(count)]

    def until(self, condition: Callable[[Told], bool]) -> Told:
        """The first one of which this is true; those before it are passed over."""
        return next(event for event in self if condition(event))

    def _note(self, line: str) -> None:
        if line.startswith("id: "):
            self.last_id = line.removeprefix("id: ")
